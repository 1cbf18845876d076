//! The caches that a command is given: as arguments, and as lists in files.

use std::ffi::OsStr;
use std::fmt::Display;
use std::fs;
use std::io::{self, Read};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::Args;
use clap::builder::TypedValueParser;
use clap::error::ErrorKind;

use super::options::{Registries, distinct};
use crate::source::{CacheSpec, SpecError};

/// The largest list that is read, in bytes.
const MAX_LIST: u64 = 16 << 20;

/// Which caches; for every command that takes some.
#[derive(Debug, Args)]
pub(super) struct Caches {
    /// A cache, as after buildx's --cache-from: a reference, type=registry,ref=REF,
    /// type=local,src=DIR-OR-TAR[,tag=TAG][,digest=DIGEST], type=s3,region=REGION,bucket=BUCKET[,name=NAME],
    /// or type=azblob or type=gha with buildx's attributes (docs/caches.md); @FILE stands for the caches
    /// that FILE lists
    #[arg(required_unless_present = "from_file", value_name = "CACHE", value_parser = discreet::<Argument>())]
    named: Vec<Argument>,

    /// A file that lists caches, one per line, as they are written here; blank lines and lines that begin
    /// with # count for nothing. `-` is standard input
    #[arg(long, value_name = "FILE")]
    from_file: Vec<PathBuf>,

    /// Go on without caches that are not there, as long as one is; the report names them
    #[arg(long)]
    pub(super) skip_missing: bool,
}

/// A cache, or a list of some.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Argument {
    Cache(Box<CacheSpec>),
    List(PathBuf),
}

impl FromStr for Argument {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        match text.strip_prefix('@') {
            Some(path) if !path.is_empty() => Ok(Self::List(path.into())),
            _ => Ok(Self::Cache(Box::new(text.parse()?))),
        }
    }
}

/// Reads an argument that may hold secrets: where it is wrong, it is not repeated, as clap does by itself.
pub(super) fn discreet<T>() -> impl TypedValueParser<Value = T>
where
    T: FromStr<Err: Display> + Clone + Send + Sync + 'static,
{
    Discreet(PhantomData)
}

#[derive(Clone)]
struct Discreet<T>(PhantomData<T>);

impl<T> TypedValueParser for Discreet<T>
where
    T: FromStr<Err: Display> + Clone + Send + Sync + 'static,
{
    type Value = T;

    fn parse_ref(
        &self,
        command: &clap::Command,
        _: Option<&clap::Arg>,
        value: &OsStr,
    ) -> Result<T, clap::Error> {
        let invalid = |message: String| {
            clap::Error::raw(ErrorKind::ValueValidation, format!("{message}\n")).with_cmd(command)
        };
        let text = value.to_str().ok_or_else(|| invalid("an argument is not valid UTF-8".to_owned()))?;
        text.parse().map_err(|error: T::Err| invalid(error.to_string()))
    }
}

/// Why a list of caches is of no use.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(super) enum Error {
    /// The file cannot be read.
    #[error("cannot read {list}, a list of caches: {source}")]
    Read {
        /// The file.
        list: String,
        /// What the system said.
        source: io::Error,
    },
    /// The file is no list.
    #[error("{list} is longer than {MAX_LIST} bytes, more than a list of caches can be")]
    TooLarge {
        /// The file.
        list: String,
    },
    /// A line that names no cache.
    #[error("{list}, line {line}: {source}")]
    Line {
        /// The file.
        list: String,
        /// Counted from 1.
        line: usize,
        /// What is wrong with it.
        source: SpecError,
    },
    /// A line that is no text.
    #[error("{list}, line {line}: not valid UTF-8")]
    NotText {
        /// The file.
        list: String,
        /// Counted from 1.
        line: usize,
    },
    /// No line of any list names a cache.
    #[error("no cache is given: {} only blank lines and comments", have(lists))]
    Empty {
        /// The files.
        lists: Vec<String>,
    },
    /// Two lists want standard input.
    #[error("standard input can be the list of caches only once")]
    StandardInputTwice,
    /// A list and a password want standard input.
    #[error(
        "standard input cannot be both the list of caches and the password (--password-stdin): put the list into a \
         file"
    )]
    StandardInputIsPassword,
}

fn have(lists: &[String]) -> String {
    format!("{} {}", lists.join(", "), if lists.len() == 1 { "has" } else { "have" })
}

impl Caches {
    /// The caches of all arguments and lists, each once: arguments first, each list in the place of the
    /// argument that names it. Reads nothing where a password is to be read from standard input, too.
    pub(super) fn read(self, registries: &Registries) -> Result<Vec<CacheSpec>, Error> {
        let is_stdin = |path: &Path| path == Path::new("-");
        let is_listed = |argument: &Argument| matches!(argument, Argument::List(path) if is_stdin(path));
        let wants_stdin =
            self.named.iter().any(is_listed) || self.from_file.iter().any(|path| is_stdin(path));
        if registries.password_stdin && wants_stdin {
            return Err(Error::StandardInputIsPassword);
        }
        self.read_with(&mut io::stdin())
    }

    fn read_with(self, stdin: &mut dyn Read) -> Result<Vec<CacheSpec>, Error> {
        let mut caches = Vec::new();
        let mut lists = Vec::new();
        let mut stdin = Some(stdin);
        for argument in self.named.into_iter().chain(self.from_file.into_iter().map(Argument::List)) {
            let path = match argument {
                Argument::Cache(cache) => {
                    caches.push(*cache);
                    continue;
                }
                Argument::List(path) => path,
            };
            let (list, bytes) = if path == Path::new("-") {
                let stdin = stdin.take().ok_or(Error::StandardInputTwice)?;
                let list = "standard input".to_owned();
                let bytes = read(stdin);
                (list, bytes)
            } else {
                (path.display().to_string(), fs::File::open(&path).and_then(read))
            };
            let bytes = match bytes {
                Ok(bytes) => bytes,
                Err(source) => return Err(Error::Read { list, source }),
            };
            if bytes.len() as u64 > MAX_LIST {
                return Err(Error::TooLarge { list });
            }
            caches.extend(parse(&bytes, &list)?);
            lists.push(list);
        }
        if caches.is_empty() { Err(Error::Empty { lists }) } else { Ok(distinct(caches)) }
    }
}

/// At most a byte more than a list may have.
fn read(from: impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(MAX_LIST + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn parse(bytes: &[u8], list: &str) -> Result<Vec<CacheSpec>, Error> {
    // What some editors put first in a file.
    let bytes = bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(bytes);
    let mut caches = Vec::new();
    for (at, line) in bytes.split(|&byte| byte == b'\n').enumerate() {
        let (list, line_number) = (|| list.to_owned(), at + 1);
        let Ok(line) = std::str::from_utf8(line) else {
            return Err(Error::NotText { list: list(), line: line_number });
        };
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let cache = line.parse();
        caches.push(cache.map_err(|source| Error::Line { list: list(), line: line_number, source })?);
    }
    Ok(caches)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::exit::Failure;
    use super::*;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        caches: Caches,
    }

    /// What these arguments name, with this on standard input; `{name}` stands for the path of a list.
    fn named(arguments: &[&str], lists: &[(&str, &str)], stdin: &str) -> Result<Vec<String>, String> {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().display().to_string();
        for (name, text) in lists {
            fs::write(dir.path().join(name), text).unwrap();
        }
        let arguments = arguments.iter().map(|a| a.replace("{}", &at));
        let command = Command::try_parse_from(["warmkit".to_owned()].into_iter().chain(arguments)).unwrap();
        match command.caches.read_with(&mut stdin.as_bytes()) {
            Ok(caches) => Ok(caches.iter().map(ToString::to_string).collect()),
            Err(error) => {
                let text = error.to_string().replace(&at, "{}");
                Err(format!("{} {text}", Failure::from(error).code))
            }
        }
    }

    #[test]
    fn lists_stand_where_they_are_named() {
        let lists = [
            ("main.txt", "# branches\n\nr.io/a:main\r\n  type=local,src=/x,tag=y  \n#r.io/a:old\n"),
            ("more.txt", "\u{feff}r.io/b:1\nr.io/b:2"),
        ];
        let found = named(&["r.io/z:1", "@{}/main.txt", "r.io/z:2", "--from-file={}/more.txt"], &lists, "");
        let local = "type=local,src=/x,tag=y";
        let references = ["r.io/z:1", "r.io/a:main", local, "r.io/z:2", "r.io/b:1", "r.io/b:2"];
        let expected: Vec<String> = references
            .iter()
            .map(|r| if *r == local { (*r).to_owned() } else { r.parse::<CacheSpec>().unwrap().to_string() })
            .collect();
        assert_eq!(found.unwrap(), expected);
        assert_eq!(named(&["--from-file", "-"], &[], "r.io/a:1\nr.io/a:2\n").unwrap().len(), 2);
        assert_eq!(named(&["@-", "--from-file={}/more.txt"], &lists, "r.io/a:1\n").unwrap().len(), 3);
    }

    #[test]
    fn says_where_a_list_is_wrong() {
        let lists = [
            ("bad.txt", "# first\nr.io/a:1\n\ntype=tape,drive=1\n"),
            ("nested.txt", "@{}/bad.txt\n"),
            ("empty.txt", "# nothing\n\n"),
        ];
        let cases: [(&[&str], &str, &str); 6] = [
            (&["@{}/bad.txt"], "", "2 {}/bad.txt, line 4: unsupported cache type \"tape\""),
            (&["@{}/nested.txt"], "", "2 {}/nested.txt, line 1: invalid reference"),
            (
                &["r.io/a:1", "--from-file={}/none.txt"],
                "",
                "1 cannot read {}/none.txt, a list of caches: No such",
            ),
            (
                &["@{}/empty.txt", "@-"],
                "",
                "2 no cache is given: {}/empty.txt, standard input have only blank lines and comments",
            ),
            (&["@-"], "a:1\n\n:::\n", "2 standard input, line 3: invalid reference \":::\""),
            (&["@-", "--from-file=-"], "a:1", "2 standard input can be the list of caches only once"),
        ];
        for (arguments, stdin, expected) in cases {
            let error = named(arguments, &lists, stdin).unwrap_err();
            assert!(error.starts_with(expected), "{error}");
        }
        let not_text = parse(b"a:1\n\xff\xfe\n", "list").unwrap_err();
        assert_eq!(not_text.to_string(), "list, line 2: not valid UTF-8");
    }
    #[test]
    fn a_wrong_cache_is_not_repeated() {
        let arguments = ["warmkit", "type=s3,secret_access_key=hidden,regoin=x"];
        let error = Command::try_parse_from(arguments).unwrap_err();
        assert!(error.to_string().starts_with("error: unknown key \"regoin\" for type=s3"), "{error}");
        assert!(!error.to_string().contains("hidden"), "{error}");
    }
}
