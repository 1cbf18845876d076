//! Dockerfiles, as far as it takes to say what a daemon calls each step.
//!
//! Mirrors `frontend/dockerfile/parser/parser.go` and `frontend/dockerfile/instructions/parse.go` of
//! v0.34.2. What is malformed is read as far as possible: at worst a step has no name.

use super::expand::{self, Mode, Variable};

/// One instruction, its continuation lines put together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Instruction {
    /// `RUN`, in upper case.
    pub(super) keyword: String,
    /// All of it without what is around it, keyword included, heredocs excluded.
    pub(super) text: String,
    /// First and last line, from 1, heredocs included.
    pub(super) lines: (i64, i64),
    /// The bodies of its heredocs.
    pub(super) heredocs: Vec<String>,
}

impl Instruction {
    /// Takes the text of an instruction, its lines put together.
    pub(super) fn new(text: &str) -> Self {
        let text = text.trim();
        let keyword = text.split_whitespace().next().unwrap_or_default().to_ascii_uppercase();
        Self { keyword, text: text.to_owned(), lines: (0, 0), heredocs: Vec::new() }
    }

    /// What stands after the keyword.
    pub(super) fn rest(&self) -> &str {
        self.text.split_once(char::is_whitespace).map_or("", |(_, rest)| rest.trim_start())
    }

    /// What stands after the keyword and its `--flags`.
    pub(super) fn arguments(&self) -> &str {
        let mut rest = self.rest();
        while rest.starts_with("--") {
            rest = rest.split_once(char::is_whitespace).map_or("", |(_, rest)| rest.trim_start());
        }
        rest
    }

    /// The values of a flag, such as those of `--mount`.
    pub(super) fn flags<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        let flags = self.rest().split_whitespace().take_while(|word| word.starts_with("--"));
        flags.filter_map(move |word| word.strip_prefix("--")?.strip_prefix(name)?.strip_prefix('='))
    }

    /// Whether it counts as a step of its stage.
    pub(super) fn is_step(&self) -> bool {
        matches!(self.keyword.as_str(), "RUN" | "COPY" | "ADD" | "WORKDIR")
    }

    fn takes_heredocs(&self) -> bool {
        let (keyword, rest) = match self.keyword.as_str() {
            "ONBUILD" => (first_word(self.rest()), self.rest()),
            keyword => (keyword.to_owned(), self.text.as_str()),
        };
        let arguments = rest.split_once(char::is_whitespace).map_or("", |(_, rest)| rest);
        matches!(keyword.as_str(), "RUN" | "COPY" | "ADD") && !arguments.trim_start().starts_with('[')
    }
}

fn first_word(text: &str) -> String {
    text.split_whitespace().next().unwrap_or_default().to_ascii_uppercase()
}

/// A stage: its `FROM` and what follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stage {
    /// The `FROM`.
    pub(super) from: Instruction,
    /// The name after `AS`, in lower case; empty where there is none.
    pub(super) name: String,
    /// What it is built on, as written.
    pub(super) base: String,
    /// The instructions after the `FROM`.
    pub(super) instructions: Vec<Instruction>,
}

impl Stage {
    fn new(from: Instruction) -> Self {
        let words: Vec<&str> = from.arguments().split_whitespace().collect();
        let (base, name) = match words.as_slice() {
            [base, keyword, name] if keyword.eq_ignore_ascii_case("as") => {
                ((*base).to_owned(), name.to_lowercase())
            }
            [base, ..] => ((*base).to_owned(), String::new()),
            [] => (String::new(), String::new()),
        };
        Self { from, name, base, instructions: Vec::new() }
    }
}

/// A parsed Dockerfile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Dockerfile {
    /// The escape character.
    pub(super) escape: char,
    /// The instructions before the first `FROM`.
    pub(super) globals: Vec<Instruction>,
    /// The stages, in order.
    pub(super) stages: Vec<Stage>,
}

impl Dockerfile {
    /// Reads the text of a Dockerfile.
    pub(super) fn parse(text: &str) -> Self {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let escape = escape_directive(text);
        let mut file = Self { escape, globals: Vec::new(), stages: Vec::new() };
        for instruction in Lines::new(text, escape) {
            if instruction.keyword == "FROM" {
                file.stages.push(Stage::new(instruction));
            } else if let Some(stage) = file.stages.last_mut() {
                stage.instructions.push(instruction);
            } else {
                file.globals.push(instruction);
            }
        }
        file
    }
}

/// The value of `# escape=`, which stands with other directives before anything else.
fn escape_directive(text: &str) -> char {
    for line in text.lines() {
        let Some((name, value)) = line.trim().strip_prefix('#').and_then(|line| line.split_once('=')) else {
            break;
        };
        let name = name.trim();
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric()) {
            break;
        }
        if name.eq_ignore_ascii_case("escape") && value.trim() == "`" {
            return '`';
        }
    }
    '\\'
}

struct Lines<'a> {
    lines: std::str::Lines<'a>,
    number: i64,
    escape: char,
}

impl<'a> Lines<'a> {
    fn new(text: &'a str, escape: char) -> Self {
        Self { lines: text.lines(), number: 0, escape }
    }

    fn line(&mut self) -> Option<&'a str> {
        let line = self.lines.next()?;
        self.number += 1;
        Some(line)
    }

    /// The line without its continuation character; true where it has one.
    fn continued<'b>(&self, line: &'b str) -> (&'b str, bool) {
        let trimmed = line.trim_end_matches([' ', '\t']);
        match trimmed.strip_suffix(self.escape) {
            Some(rest) if !rest.ends_with(self.escape) => (rest, true),
            _ => (line, false),
        }
    }

    fn heredocs(&mut self, instruction: &mut Instruction) {
        for word in expand::split_words(&instruction.text, self.escape) {
            let Some(heredoc) = Heredoc::parse(&word, self.escape) else { continue };
            let mut body = String::new();
            while let Some(line) = self.line() {
                let end = if heredoc.chomp { line.trim_start_matches('\t') } else { line };
                if end == heredoc.name {
                    break;
                }
                body.push_str(line);
                body.push('\n');
            }
            instruction.heredocs.push(body);
        }
    }
}

impl Iterator for Lines<'_> {
    type Item = Instruction;

    fn next(&mut self) -> Option<Instruction> {
        loop {
            let line = self.line()?.trim_start();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let start = self.number;
            let (line, mut more) = self.continued(line);
            let mut text = line.to_owned();
            while more {
                let Some(line) = self.line() else { break };
                if line.trim_start().is_empty() || line.trim_start().starts_with('#') {
                    continue;
                }
                let (line, continues) = self.continued(line);
                text.push_str(line);
                more = continues;
            }
            let mut instruction = Instruction::new(&text);
            if instruction.text.is_empty() {
                continue;
            }
            if instruction.takes_heredocs() && instruction.text.contains("<<") {
                self.heredocs(&mut instruction);
            }
            instruction.lines = (start, self.number);
            return Some(instruction);
        }
    }
}

/// `<<EOF`, as a word of an instruction.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Heredoc {
    name: String,
    /// `<<-`: leading tabs vanish.
    chomp: bool,
}

impl Heredoc {
    /// Reads a word such as `<<EOF`, `3<<-"EOF"`; `None` where it is none.
    pub(super) fn parse(word: &str, escape: char) -> Option<Self> {
        let word = word.trim_start_matches(|c: char| c.is_ascii_digit()).strip_prefix("<<")?;
        let (chomp, word) = match word.strip_prefix('-') {
            Some(word) => (true, word),
            None => (false, word),
        };
        let word = word.trim_start();
        if word.is_empty() || word.contains('<') || expand::split_words(word, escape).len() != 1 {
            return None;
        }
        let name = expand::expand(word, escape, Mode::Plain, &|name| Variable::Set(format!("${name}")))?;
        Some(Self { name, chomp })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_instructions_with_their_lines() {
        let text = "\u{feff}# syntax=docker/dockerfile:1\n\nARG A=1\nFROM --platform=$X base AS Build\n\
                    RUN one && \\\n  # comment\n\n    two \\  \n  three\n\
                    COPY <<A <<-'B C' /dst/\nfirst\nA\n\tsecond\n\tB C\nRUN [\"a\", \"<<x\"]\nRUN x \\\\\n";
        let file = Dockerfile::parse(text);
        assert_eq!(file.globals.len(), 1);
        let [stage] = file.stages.as_slice() else { panic!("{file:?}") };
        assert_eq!((stage.name.as_str(), stage.base.as_str()), ("build", "base"));
        let seen: Vec<_> = stage.instructions.iter().map(|i| (i.text.as_str(), i.lines)).collect();
        let expected = [
            ("RUN one &&     two   three", (5, 9)),
            ("COPY <<A <<-'B C' /dst/", (10, 14)),
            ("RUN [\"a\", \"<<x\"]", (15, 15)),
            ("RUN x \\\\", (16, 16)),
        ];
        assert_eq!(seen, expected);
        assert_eq!(stage.instructions[1].heredocs, ["first\n", "\tsecond\n"]);
    }

    #[test]
    fn reads_the_escape_directive() {
        let file = Dockerfile::parse("# Escape = `\nFROM x\nRUN a `\n b\\\n");
        assert_eq!(file.escape, '`');
        assert_eq!(file.stages[0].instructions[0].text, "RUN a  b\\");
        // A comment before it makes it one more comment.
        assert_eq!(Dockerfile::parse("# hello\n# escape=`\nFROM x\n").escape, '\\');
    }

    #[test]
    fn reads_flags_and_arguments() {
        let run = Instruction::new("run --mount=type=bind,from=a --network=none --mount=x  echo --no");
        assert_eq!(run.flags("mount").collect::<Vec<_>>(), ["type=bind,from=a", "x"]);
        assert_eq!(run.arguments(), "echo --no");
    }

    #[test]
    fn survives_anything() {
        for text in ["", "\\", "FROM", "FROM \\", "RUN <<", "FROM x\nRUN <<EOF\n", "COPY <<'a", "#", "# = \n"]
        {
            let _ = Dockerfile::parse(text);
        }
    }
}
