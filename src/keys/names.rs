//! What a daemon calls each step: `[build 2/4] RUN make`.
//!
//! Provenance does not say it, but holds what it follows from: the Dockerfile, the lines that each
//! operation comes from, the build arguments, and the environment of the processes. Where something
//! is missing (a variable that only the base image sets, a pattern in a variable) the text stands as
//! in the Dockerfile; on a base image with `ONBUILD` triggers, which nothing lists, the steps are not
//! numbered; where the step cannot be told, there is no name. The platform that a daemon
//! puts first in a build for several is not known here.
//!
//! Mirrors `prefixCommand`, `dispatchRun`, `dispatchCopy` and `dispatchWorkdir` in
//! `frontend/dockerfile/dockerfile2llb/` of v0.34.2.

use std::collections::{BTreeMap, HashMap};

use serde_json::{Map, Value};

use super::dockerfile::{Dockerfile, Heredoc, Instruction, Stage};
use super::expand::{Mode, Variable, expand, split_words};
use super::llb::{Action, Locations, Operation, Step};
use super::variables::{Platforms, Vars};
use super::wire::{Bytes, Wire, get};

/// Longer Dockerfiles are not read for names, in bytes.
const MAX_DOCKERFILE: usize = 256 << 10;
/// Dockerfiles with more stages are not read for names.
const MAX_STAGES: usize = 500;
/// More source files are not read for names.
const MAX_FILES: usize = 16;
/// How many bytes all names together may have.
const MAX_NAMES: usize = 16 << 20;

/// Names by the ids of steps, up to [`MAX_NAMES`].
#[derive(Debug, Default)]
pub(super) struct Names<'a> {
    names: HashMap<&'a str, String>,
    bytes: usize,
}

impl<'a> Names<'a> {
    /// The name of a step.
    pub(super) fn get(&self, id: &str) -> Option<&str> {
        self.names.get(id).map(String::as_str)
    }

    fn set(&mut self, id: &'a str, name: String) {
        if self.bytes + name.len() <= MAX_NAMES {
            self.bytes += name.len();
            self.names.insert(id, name);
        }
    }
}

/// The steps of one file by the line where their instruction begins, in the order of the build.
type Placed<'a> = BTreeMap<i64, Vec<&'a Step>>;

/// The name of each step, by its id, as far as it follows.
///
/// `source` is the provenance's source map, `args` are the arguments of the build, `platforms` what it
/// ran on and for.
pub(super) fn of_steps<'a>(
    steps: &'a [Step],
    source: Option<&Map<String, Value>>,
    args: Option<&Map<String, Value>>,
    platforms: &Platforms,
) -> Names<'a> {
    let places = places(steps, source);
    let mut names = Names::default();
    let infos = source.and_then(|source| get(source, "infos")).and_then(Value::as_array);
    for (file, info) in (0i64..).zip(infos.into_iter().flatten().take(MAX_FILES)) {
        let (Some(steps), Some(text)) = (places.get(&file), dockerfile_text(info)) else { continue };
        let dockerfile = Dockerfile::parse(&text);
        if dockerfile.stages.len() <= MAX_STAGES {
            let globals = platforms.args();
            name_file(&dockerfile, steps, globals, &build_args(args), &mut names);
        }
    }
    for step in steps {
        if let Some(name) = internal_name(step)
            && names.get(&step.id).is_none()
        {
            names.set(&step.id, name.to_owned());
        }
    }
    names
}

/// Where the steps come from, by file. One that several instructions gave goes by the last of them, as
/// in the daemon's output.
fn places<'a>(steps: &'a [Step], source: Option<&Map<String, Value>>) -> HashMap<i64, Placed<'a>> {
    let mut files: HashMap<i64, Placed<'a>> = HashMap::new();
    let locations = source.and_then(|source| get(source, "locations")).and_then(Value::as_object);
    for step in steps {
        let of_step = locations.and_then(|locations| locations.get(&step.id)).map(Locations::read);
        let Some(last) = of_step.and_then(|mut places| places.locations.pop()) else { continue };
        if let Some(start) = last.ranges.first().and_then(|range| range.start.as_ref()) {
            files.entry(last.source_index).or_default().entry(start.line).or_default().push(step);
        }
    }
    files
}

fn dockerfile_text(info: &Value) -> Option<String> {
    let info = info.as_object()?;
    let language = get(info, "language").and_then(Value::as_str).unwrap_or("Dockerfile");
    if !language.eq_ignore_ascii_case("dockerfile") {
        return None;
    }
    String::from_utf8(Bytes::read(get(info, "data")?).0).ok().filter(|text| text.len() <= MAX_DOCKERFILE)
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
    /// Whether the base image brought triggers, which nothing here lists: the steps cannot be counted.
    uncountable: bool,
    /// Variables after the last instruction.
    vars: Vars,
    /// Whether variables may come from an image.
    on_image: bool,
}

fn name_file<'a>(
    file: &Dockerfile,
    steps: &Placed<'a>,
    mut globals: Vars,
    build_args: &Vars,
    names: &mut Names<'a>,
) {
    let escape = file.escape;
    for instruction in file.globals.iter().filter(|i| i.keyword == "ARG") {
        for (name, value) in assignments(instruction, escape) {
            let value = build_args.get(&name).cloned().or_else(|| {
                let value = value?;
                expand(&value, escape, Mode::Plain, &|name| globals.known(name))
            });
            if let Some(value) = value {
                globals.set(name, value);
            }
        }
    }
    let single = file.stages.len() == 1 && !uses_other_images(file);
    let mut contexts: Vec<Context<'_>> = Vec::new();
    for (index, stage) in file.stages.iter().enumerate() {
        let base_name = expand(&stage.base, escape, Mode::Plain, &|name| globals.known(name));
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
        let on_base = steps.get(&stage.from.lines.0).into_iter().flatten().copied();
        let on_base: Vec<&Step> =
            on_base.filter(|s| !matches!(s.operation, Operation::Source { .. })).collect();
        let (triggers, vars, on_image) = match base {
            Base::Scratch => (Vec::new(), Vars::default(), false),
            Base::Image => (Vec::new(), Vars::default(), true),
            Base::Stage(at) => {
                (triggers(contexts[at].stage), contexts[at].vars.clone(), contexts[at].on_image)
            }
        };
        let uncountable = base == Base::Image && !on_base.is_empty();
        let mut context = Context { stage, base, label, triggers, uncountable, vars, on_image };
        let of_file = Namer { escape, globals: &globals, build_args, steps };
        of_file.name_stage(&mut context, &on_base, names);
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
        // A mount that names no source counts as one of an image "scratch", whatever its type.
        let mounts = instruction
            .flags("mount")
            .map(|mount| mount.split(',').find_map(|field| field.strip_prefix("from=")).unwrap_or("scratch"));
        from.chain(mounts).any(|name| !is_stage(name))
    })
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
    steps: &'f Placed<'a>,
}

impl<'a> Namer<'_, 'a> {
    fn name_stage(&self, context: &mut Context<'_>, on_base: &[&'a Step], names: &mut Names<'a>) {
        let stage = context.stage;
        let from = usize::from(context.base == Base::Image);
        let own = stage.instructions.iter().filter(|i| i.is_step()).count();
        let total = from + own + context.triggers.len();
        let numbered = |number: usize| {
            let label = if context.label.is_empty() { String::new() } else { format!("{} ", context.label) };
            format!("[{label}{number:>width$}/{total}] ", width = total.to_string().len())
        };
        let prefix = |number: usize| match (context.uncountable, context.label.as_str()) {
            (false, _) => numbered(number),
            (true, "") => String::new(),
            (true, label) => format!("[{label}] "),
        };
        let mut number = from;
        for step in self.steps.get(&stage.from.lines.0).into_iter().flatten() {
            if let Operation::Source { identifier } = &step.operation {
                let image = identifier.strip_prefix("docker-image://").unwrap_or(identifier);
                names.set(&step.id, format!("{}FROM {image}", numbered(1)));
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
                    names.set(&step.id, format!("{}ONBUILD {text}", prefix(number)));
                }
            }
            self.assign(trigger, &mut vars);
        }
        for instruction in &stage.instructions {
            if instruction.is_step() {
                let (first, last) = instruction.lines;
                let here: Vec<&Step> =
                    self.steps.range(first..=last).flat_map(|(_, steps)| steps).copied().collect();
                let text = self.text(instruction, &here, &vars, environment.as_ref(), context.on_image);
                // A WORKDIR of / makes nothing and is not counted.
                if instruction.keyword == "WORKDIR" && text.trim_end_matches('/') == "WORKDIR " {
                    continue;
                }
                number += 1;
                for step in here {
                    names.set(&step.id, format!("{}{text}", prefix(number)));
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
        self.steps.range(first..=last).flat_map(|(_, steps)| steps).find_map(|step| environment(step))
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
                text = format!("{text} ({first}{more})");
            }
            let own = steps.iter().find_map(|step| environment(step));
            let vars = own.as_ref().unwrap_or(vars);
            expand(&text, self.escape, Mode::Raw, &|name| vars.known(name))
        } else {
            expand(&text, self.escape, Mode::Plain, &|name| match (vars.get(name), environment_of_stage) {
                (Some(value), _) => Variable::Set(value.clone()),
                (None, _) if Platforms::sets(name) => Variable::Unknown,
                (None, Some(environment)) => environment.known(name),
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

    /// Applies an `ARG` or `ENV`. The values of one `ENV` all see what was there before it.
    fn assign(&self, instruction: &Instruction, vars: &mut Vars) {
        let plain =
            |value: &str, vars: &Vars| expand(value, self.escape, Mode::Plain, &|name| vars.known(name));
        match instruction.keyword.as_str() {
            "ARG" => {
                for (name, value) in assignments(instruction, self.escape) {
                    let given = self.build_args.get(&name).cloned();
                    let value =
                        given.or_else(|| plain(&value?, vars)).or_else(|| self.globals.get(&name).cloned());
                    if let Some(value) = value {
                        vars.set(name, value);
                    }
                }
            }
            "ENV" => {
                let values = assignments(instruction, self.escape).into_iter();
                let values: Vec<_> =
                    values.filter_map(|(name, value)| Some((name, plain(&value?, vars)?))).collect();
                for (name, value) in values {
                    vars.set(name, value);
                }
            }
            _ => {}
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

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use serde_json::json;

    use super::*;

    /// The names of steps at these lines (`line`, `op`) of a Dockerfile.
    fn names(dockerfile: &str, ops: &[(i64, Value)], args: &Value) -> Vec<String> {
        let data = base64::engine::general_purpose::STANDARD.encode(dockerfile);
        let locations = ops.iter().enumerate().map(|(i, (line, _))| {
            let start = json!({"line": line});
            (format!("step{i}"), json!({"locations": [{"ranges": [{"start": start}]}]}))
        });
        let source = json!({
            "locations": locations.collect::<Map<_, _>>(),
            "infos": [{"language": "Dockerfile", "data": data}],
        });
        let step = |(i, (_, op)): (usize, &(i64, Value))| {
            Step::read(&json!({"id": format!("step{i}"), "op": {"Op": op}, "inputs": ["x:0"]})).unwrap()
        };
        let steps: Vec<Step> = ops.iter().enumerate().map(step).collect();
        let platforms = Platforms {
            builder: Some("linux/amd64".parse().unwrap()),
            target: Some("linux/arm/v6".parse().unwrap()),
        };
        let names = of_steps(&steps, source.as_object(), args.as_object(), &platforms);
        steps.iter().map(|step| names.get(&step.id).unwrap_or("-").to_owned()).collect()
    }

    fn exec(env: &[&str]) -> Value {
        json!({"exec": {"meta": {"env": env}}})
    }

    fn copy() -> Value {
        json!({"file": {"actions": [{"Action": {"copy": {}}}]}})
    }

    #[test]
    fn the_only_stage_has_no_name() {
        let text = "FROM x\nRUN a\n";
        assert_eq!(names(text, &[(2, exec(&[]))], &Value::Null), ["[2/2] RUN a"]);
        // Unless an image beside its base takes part.
        let text = "FROM x\nCOPY --from=y a b\n";
        assert_eq!(names(text, &[(2, copy())], &Value::Null), ["[stage-0 2/2] COPY --from=y a b"]);
        let text = "FROM x\nRUN --mount=type=tmpfs,target=/t a\n";
        let expected = ["[stage-0 2/2] RUN --mount=type=tmpfs,target=/t a"];
        assert_eq!(names(text, &[(2, exec(&[]))], &Value::Null), expected);
    }

    #[test]
    fn scratch_is_no_step() {
        assert_eq!(names("FROM scratch\nCOPY a b\n", &[(2, copy())], &Value::Null), ["[1/1] COPY a b"]);
    }

    #[test]
    fn numbers_are_as_wide_as_the_total() {
        let text = format!("FROM x AS y\n{}FROM y\nRUN b\n", "RUN a\n".repeat(9));
        let ops =
            [(1, json!({"source": {"identifier": "docker-image://x@d"}})), (10, exec(&[])), (12, exec(&[]))];
        let expected = ["[y  1/10] FROM x@d", "[y 10/10] RUN a", "[stage-1 1/1] RUN b"];
        assert_eq!(names(&text, &ops, &Value::Null), expected);
    }

    #[test]
    fn arguments_come_from_the_build_the_stage_or_the_file() {
        let text = "ARG A=file\nARG B=file\nFROM scratch\nARG A\nARG B=stage\nARG C=stage\nARG D\n\
                    COPY $A $B $C $D /\n";
        let args = json!({"build-arg:C": "build", "label:x": "y"});
        assert_eq!(names(text, &[(8, copy())], &args), ["[1/1] COPY file stage build  /"]);
        let text = "FROM scratch\nARG TARGETPLATFORM\nARG BUILDARCH\nCOPY $TARGETPLATFORM $BUILDARCH\n";
        assert_eq!(names(text, &[(4, copy())], &Value::Null), ["[1/1] COPY linux/arm/v6 amd64"]);
    }

    #[test]
    fn stages_hand_their_variables_on() {
        let text = "FROM scratch AS a\nENV X=1\nFROM a AS b\nENV Y=$X$X\nFROM b\nCOPY $Y /\n";
        assert_eq!(names(text, &[(6, copy())], &Value::Null), ["[stage-2 1/1] COPY 11 /"]);
    }

    #[test]
    fn what_only_the_image_knows_stays_as_written() {
        let text = "FROM x\nCOPY $PLACE /\nRUN true\n";
        assert_eq!(names(text, &[(2, copy())], &Value::Null), ["[2/3] COPY $PLACE /"]);
        // A process tells the variables of its image.
        let ops = [(2, copy()), (3, exec(&["PLACE=p"]))];
        assert_eq!(names(text, &ops, &Value::Null), ["[2/3] COPY p /", "[3/3] RUN true"]);
    }

    #[test]
    fn secrets_are_masked() {
        let op = json!({"exec": {"meta": {"env": ["A=a"]}, "secretenv": [{"ID": "i", "name": "S"}]}});
        assert_eq!(names("FROM x\nRUN $A $S\n", &[(2, op)], &Value::Null), ["[2/2] RUN a ****"]);
    }

    #[test]
    fn triggers_of_a_stage_come_before_its_own_steps() {
        let text =
            "FROM x AS base\nONBUILD ARG V=v\nONBUILD RUN a $V\nONBUILD COPY $V c\nFROM base AS t\nRUN d\n";
        let ops = [(5, exec(&["V=v"])), (5, copy()), (6, exec(&[]))];
        let expected = ["[t 1/4] ONBUILD RUN a v", "[t 2/4] ONBUILD COPY v c", "[t 3/4] RUN d"];
        assert_eq!(names(text, &ops, &Value::Null), expected);
        // A step that is missing, and it cannot be told which one the other is.
        assert_eq!(names(text, &[(5, copy()), (6, exec(&[]))], &Value::Null), ["-", "[t 3/4] RUN d"]);
    }

    #[test]
    fn other_languages_have_no_names() {
        let source = json!({
            "locations": {"step0": {"locations": [{"ranges": [{"start": {"line": 2}}]}]}},
            "infos": [{"language": "Go", "data": "RlJPTSB4ClJVTiBhCg=="}],
        });
        let steps = [Step::read(&json!({"id": "step0", "op": {"Op": exec(&[])}})).unwrap()];
        let names = of_steps(&steps, source.as_object(), None, &Platforms::default());
        assert_eq!(names.get("step0"), None);
    }
}
