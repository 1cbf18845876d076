//! What a daemon calls each step: `[build 2/4] RUN make`.
//!
//! Provenance does not say it, but holds what it follows from: the Dockerfile, the lines that each
//! operation comes from, the build arguments, and the environment of the processes. Where something
//! is missing (a variable that only the base image sets, a pattern in a variable) the text stands as
//! in the Dockerfile; where the step cannot be told, there is no name. The platform that a daemon
//! puts first in a build for several is not known here.
//!
//! Mirrors `prefixCommand`, `dispatchRun`, `dispatchCopy` and `dispatchWorkdir` in
//! `frontend/dockerfile/dockerfile2llb/` of v0.34.2.

use std::collections::{BTreeMap, HashMap};

use serde_json::{Map, Value};

use super::dockerfile::{Dockerfile, Heredoc, Instruction, Stage};
use super::expand::{Mode, Variable, expand, split_words};
use super::llb::{Action, Bytes, Locations, Operation, Step, Wire, get};

type Vars = BTreeMap<String, String>;

/// The name of each step, by its id, as far as it follows.
///
/// `source` is the provenance's source map, `args` are the arguments of the build.
pub(super) fn of_steps<'a>(
    steps: &'a [Step],
    source: Option<&Map<String, Value>>,
    args: Option<&Map<String, Value>>,
) -> HashMap<&'a str, String> {
    let places = places(steps, source);
    let mut names: HashMap<&str, String> = HashMap::new();
    let infos = source.and_then(|source| get(source, "infos")).and_then(Value::as_array);
    for (file, info) in (0i64..).zip(infos.into_iter().flatten()) {
        let Some(text) = dockerfile_text(info) else { continue };
        let steps: Vec<Placed<'a>> =
            places.iter().filter(|place| place.file == file).map(|place| place.step).collect();
        name_file(&Dockerfile::parse(&text), &steps, build_args(args), &mut names);
    }
    for step in steps {
        if let Some(name) = internal_name(step) {
            names.entry(&step.id).or_insert_with(|| name.to_owned());
        }
    }
    names
}

/// A step and the line where its instruction begins.
#[derive(Clone, Copy)]
struct Placed<'a> {
    step: &'a Step,
    line: i64,
}

struct Place<'a> {
    file: i64,
    step: Placed<'a>,
}

/// Where the steps come from. One that several instructions gave goes by the last of them, as in the
/// daemon's output.
fn places<'a>(steps: &'a [Step], source: Option<&Map<String, Value>>) -> Vec<Place<'a>> {
    let locations = source.and_then(|source| get(source, "locations")).and_then(Value::as_object);
    let Some(locations) = locations else { return Vec::new() };
    let place = |step: &'a Step| {
        let locations = Locations::read(locations.get(&step.id)?);
        let location = locations.locations.last()?;
        let line = location.ranges.first()?.start.as_ref()?.line;
        Some(Place { file: location.source_index, step: Placed { step, line } })
    };
    steps.iter().filter_map(place).collect()
}

fn dockerfile_text(info: &Value) -> Option<String> {
    let info = info.as_object()?;
    let language = get(info, "language").and_then(Value::as_str).unwrap_or("Dockerfile");
    if !language.eq_ignore_ascii_case("dockerfile") {
        return None;
    }
    String::from_utf8(Bytes::read(get(info, "data")?).0).ok()
}

fn build_args(args: Option<&Map<String, Value>>) -> Vars {
    let entries = args.into_iter().flatten();
    entries
        .filter_map(|(key, value)| {
            Some((key.strip_prefix("build-arg:")?.to_owned(), value.as_str()?.to_owned()))
        })
        .collect()
}

/// Names of steps that no line of the Dockerfile stands for.
fn internal_name(step: &Step) -> Option<&'static str> {
    match &step.operation {
        Operation::Source { identifier } if identifier == "local://context" => {
            Some("[internal] load build context")
        }
        Operation::File(actions) if step.inputs == 0 => match actions.as_slice() {
            [action] => match &action.action {
                Action::MkFile(_) => Some("[internal] preparing inline document"),
                Action::MkDir(dir) if dir.path == "/cache" => {
                    Some("[internal] setting cache mount permissions")
                }
                _ => None,
            },
            _ => None,
        },
        _ => None,
    }
}

/// What a stage stands on.
#[derive(Clone, Copy, PartialEq)]
enum Base {
    Scratch,
    Image,
    Stage(usize),
}

/// A stage with what counting and expanding need.
struct Context<'a> {
    stage: &'a Stage,
    base: Base,
    /// The name that is shown; empty for the only stage of a file.
    label: String,
    /// The `ONBUILD` triggers that the base hands on.
    triggers: Vec<Instruction>,
    /// Whether triggers came that are not known.
    unknown_triggers: usize,
    /// Variables after the last instruction.
    vars: Vars,
    /// Whether variables may come from an image.
    on_image: bool,
}

fn name_file<'a>(
    file: &Dockerfile,
    steps: &[Placed<'a>],
    build_args: Vars,
    names: &mut HashMap<&'a str, String>,
) {
    let escape = file.escape;
    let mut globals = Vars::new();
    for instruction in file.globals.iter().filter(|i| i.keyword == "ARG") {
        for (name, value) in assignments(instruction, escape) {
            let value = build_args.get(&name).cloned().or_else(|| {
                let value = value?;
                expand(&value, escape, Mode::Plain, &|name| known(&globals, name))
            });
            globals.extend(value.map(|value| (name, value)));
        }
    }
    let single = file.stages.len() == 1 && !uses_other_images(file);
    let mut contexts: Vec<Context<'_>> = Vec::new();
    for (index, stage) in file.stages.iter().enumerate() {
        let base_name = expand(&stage.base, escape, Mode::Plain, &|name| known(&globals, name));
        let base_name = base_name.unwrap_or_else(|| stage.base.clone());
        let earlier = contexts.iter().rposition(|c| c.stage.name == base_name.to_lowercase());
        let base = match earlier.filter(|_| !base_name.is_empty()) {
            Some(earlier) => Base::Stage(earlier),
            None if base_name == "scratch" => Base::Scratch,
            None => Base::Image,
        };
        let label = match (single, stage.name.as_str()) {
            (true, _) => String::new(),
            (false, "") => format!("stage-{index}"),
            (false, name) => name.to_owned(),
        };
        let on_base: Vec<&Step> =
            steps.iter().filter(|p| p.line == stage.from.lines.0).map(|p| p.step).collect();
        let on_base: Vec<&Step> =
            on_base.into_iter().filter(|s| !matches!(s.operation, Operation::Source { .. })).collect();
        let (triggers, vars, on_image) = match base {
            Base::Scratch => (Vec::new(), Vars::new(), false),
            Base::Image => (Vec::new(), Vars::new(), true),
            Base::Stage(at) => {
                (triggers(contexts[at].stage), contexts[at].vars.clone(), contexts[at].on_image)
            }
        };
        let unknown_triggers = if base == Base::Image { on_base.len() } else { 0 };
        let mut context = Context { stage, base, label, triggers, unknown_triggers, vars, on_image };
        let namer = Namer { escape, globals: &globals, build_args: &build_args, steps };
        namer.name_stage(&mut context, &on_base, names);
        contexts.push(context);
    }
}

/// The instructions that a stage leaves to those built on it.
fn triggers(stage: &Stage) -> Vec<Instruction> {
    let onbuild = stage.instructions.iter().filter(|i| i.keyword == "ONBUILD");
    onbuild.map(|i| Instruction { heredocs: i.heredocs.clone(), ..Instruction::new(i.rest()) }).collect()
}

/// Whether images beside the bases take part, which then count as stages.
fn uses_other_images(file: &Dockerfile) -> bool {
    let is_stage = |name: &str| {
        let index = name.parse::<usize>().is_ok_and(|index| index < file.stages.len());
        index || file.stages.iter().any(|stage| stage.name == name.to_lowercase())
    };
    let mut instructions = file.stages.iter().flat_map(|stage| &stage.instructions);
    instructions.any(|instruction| {
        let from = instruction.flags("from");
        let mounts = instruction.flags("mount").flat_map(|mount| mount.split(','));
        let mounted = mounts.filter_map(|field| field.strip_prefix("from="));
        from.chain(mounted).any(|name| !is_stage(name))
    })
}

fn known(vars: &Vars, name: &str) -> Variable {
    vars.get(name).cloned().map_or(Variable::Unset, Variable::Set)
}

/// The variables of an `ARG` or `ENV` with their values as written; `None`: without one.
fn assignments(instruction: &Instruction, escape: char) -> Vec<(String, Option<String>)> {
    let rest = instruction.rest();
    let words = split_words(rest, escape);
    if instruction.keyword == "ENV" && words.first().is_some_and(|word| !word.contains('=')) {
        let (name, value) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
        return vec![(name.to_owned(), Some(value.trim().to_owned()))];
    }
    let split = |word: &String| match word.split_once('=') {
        Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
        None => (word.clone(), None),
    };
    words.iter().map(split).collect()
}

struct Namer<'f, 'a> {
    escape: char,
    globals: &'f Vars,
    build_args: &'f Vars,
    steps: &'f [Placed<'a>],
}

impl<'a> Namer<'_, 'a> {
    fn name_stage(
        &self,
        context: &mut Context<'_>,
        on_base: &[&'a Step],
        names: &mut HashMap<&'a str, String>,
    ) {
        let stage = context.stage;
        let from = usize::from(context.base == Base::Image);
        let own = stage.instructions.iter().filter(|i| i.is_step()).count();
        let total = from + own + context.triggers.len() + context.unknown_triggers;
        let prefix = |number: usize| {
            let label = if context.label.is_empty() { String::new() } else { format!("{} ", context.label) };
            format!("[{label}{number:>width$}/{total}] ", width = total.to_string().len())
        };
        let mut number = from;
        for placed in self.steps.iter().filter(|p| p.line == stage.from.lines.0) {
            if let Operation::Source { identifier } = &placed.step.operation {
                let image = identifier.strip_prefix("docker-image://").unwrap_or(identifier);
                names.insert(&placed.step.id, format!("{}FROM {image}", prefix(1)));
            }
        }
        // Steps of triggers have the line of the FROM: told apart by their order alone.
        let mut vars = std::mem::take(&mut context.vars);
        let environment = self.environment(stage);
        let triggers = context.triggers.iter().filter(|i| i.is_step()).count();
        let mut on_base = on_base.iter().filter(|_| on_base.len() == triggers);
        for trigger in &context.triggers {
            if trigger.is_step() {
                number += 1;
                if let Some(step) = on_base.next() {
                    let text = self.text(trigger, &[step], &vars, environment.as_ref(), context.on_image);
                    names.insert(&step.id, format!("{}ONBUILD {text}", prefix(number)));
                }
            }
            self.assign(trigger, &mut vars);
        }
        number += context.unknown_triggers;
        for instruction in &stage.instructions {
            if instruction.is_step() {
                let here: Vec<&Step> = self
                    .steps
                    .iter()
                    .filter(|placed| (instruction.lines.0..=instruction.lines.1).contains(&placed.line))
                    .map(|placed| placed.step)
                    .collect();
                let text = self.text(instruction, &here, &vars, environment.as_ref(), context.on_image);
                // A WORKDIR of / makes nothing and is not counted.
                if instruction.keyword == "WORKDIR" && text.trim_end_matches('/') == "WORKDIR " {
                    continue;
                }
                number += 1;
                for step in here {
                    names.insert(&step.id, format!("{}{text}", prefix(number)));
                }
            }
            self.assign(instruction, &mut vars);
        }
        context.vars = vars;
    }

    /// The variables of some process of the stage: what is in there and not set by the stage is the
    /// image's.
    fn environment(&self, stage: &Stage) -> Option<Vars> {
        let first = stage.from.lines.0;
        let last = stage.instructions.last().map_or(first, |i| i.lines.1);
        let in_stage = self.steps.iter().filter(|p| (first..=last).contains(&p.line));
        in_stage.map(|p| p.step).find_map(environment)
    }

    /// An instruction as it is shown.
    fn text(
        &self,
        instruction: &Instruction,
        steps: &[&Step],
        vars: &Vars,
        environment_of_stage: Option<&Vars>,
        on_image: bool,
    ) -> String {
        let mut text = instruction.text.clone();
        let expanded = if instruction.keyword == "RUN" {
            let arguments = instruction.arguments();
            if let ([body], Some(_)) =
                (instruction.heredocs.as_slice(), Heredoc::parse(arguments, self.escape))
            {
                let mut lines = body.trim().lines();
                let first = lines.next().unwrap_or_default();
                let more = if lines.next().is_some() { "..." } else { "" };
                text.push_str(&format!(" ({first}{more})"));
            }
            let own = steps.iter().find_map(|step| environment(step));
            let vars = own.as_ref().unwrap_or(vars);
            expand(&text, self.escape, Mode::Raw, &|name| known(vars, name))
        } else {
            expand(&text, self.escape, Mode::Plain, &|name| match (vars.get(name), environment_of_stage) {
                (Some(value), _) => Variable::Set(value.clone()),
                (None, Some(environment)) => known(environment, name),
                (None, None) if on_image => Variable::Unknown,
                (None, None) => Variable::Unset,
            })
        };
        let text = expanded.unwrap_or(text);
        match text.split_once(' ') {
            Some((keyword, rest)) => format!("{} {rest}", keyword.to_uppercase()),
            None => text.to_uppercase(),
        }
    }

    /// Applies an `ARG` or `ENV`.
    fn assign(&self, instruction: &Instruction, vars: &mut Vars) {
        let before = vars.clone();
        let is_arg = match instruction.keyword.as_str() {
            "ARG" => true,
            "ENV" => false,
            _ => return,
        };
        for (name, value) in assignments(instruction, self.escape) {
            let lookup = |name: &str| known(if is_arg { &*vars } else { &before }, name);
            let given = if is_arg { self.build_args.get(&name).cloned() } else { None };
            let value = given
                .or_else(|| expand(&value?, self.escape, Mode::Plain, &lookup))
                .or_else(|| self.globals.get(&name).filter(|_| is_arg).cloned());
            vars.extend(value.map(|value| (name, value)));
        }
    }
}

/// The variables of a process, secrets masked as they are shown.
fn environment(step: &Step) -> Option<Vars> {
    let Operation::Exec(exec) = &step.operation else { return None };
    let env = exec.meta.iter().flat_map(|meta| &meta.env).filter_map(|var| var.split_once('='));
    let secrets = exec.secretenv.iter().map(|secret| (secret.name.as_str(), "****"));
    Some(env.chain(secrets).map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
}
