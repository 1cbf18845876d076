//! What this machine has that a root could be for, and what tells so: `--for auto`.
//!
//! ```text
//! --for host, containerd    units, configuration, socket, state, processes      host
//! --for rootless:USER       the same in the homes of users                      users
//! --for buildx:NAME         builders that buildx keeps, volumes of docker       builders
//! dockerd's own builder     its state, its process: seen, and never taken       builders
//! ```
//!
//! Looking changes nothing. What cannot be looked at is kept, as is what is seen and cannot be written for: only one
//! target of which it is sure that it is the only one is taken.

mod builders;
mod host;
mod processes;
mod users;

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::root::Root;
use super::{Error, ErrorClass, Target, rootless};
use processes::{Process, Processes};

/// What was seen, and what could not be looked at.
#[derive(Debug)]
#[non_exhaustive]
pub struct Survey {
    /// Each once, in the order of the table above.
    pub seen: Vec<Seen>,
    /// Why something was not looked at.
    pub unseen: Vec<Error>,
}

/// Something that keeps a root.
#[derive(Debug)]
#[non_exhaustive]
pub struct Seen {
    /// How it is named.
    pub way: Way,
    /// What was found, and where.
    pub evidence: Vec<String>,
    /// Its root, or why there can be none.
    pub root: Result<Root, Error>,
}

/// How something that keeps a root is named on a command line.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Way {
    /// By whose it is; with the directory, where that is not found by the name alone.
    For {
        /// Whose it is.
        target: Target,
        /// The directory.
        root: Option<PathBuf>,
    },
    /// By its directory.
    Root(PathBuf),
    /// Not at all: it is dockerd's own builder, whose state is there.
    Engine(PathBuf),
}

impl Way {
    /// What such words find.
    ///
    /// # Errors
    /// As [`Target::find`]; and it is dockerd's.
    pub fn find(&self) -> Result<Root, Error> {
        match self {
            Self::For { target, root: None } => target.find(),
            Self::For { target, root: Some(root) } => Ok(target.find()?.moved_to(root)),
            Self::Root(path) => Ok(Root::at(path)),
            Self::Engine(path) => Err(Error::Engine { path: path.clone() }),
        }
    }
}

impl From<Target> for Way {
    fn from(target: Target) -> Self {
        Self::For { target, root: None }
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::For { target, root } => {
                write!(f, "--for {}", word(&target.to_string()))?;
                match root {
                    Some(root) => write!(f, " --root {}", word(&root.to_string_lossy())),
                    None => Ok(()),
                }
            }
            Self::Root(path) => write!(f, "--root {}", word(&path.to_string_lossy())),
            Self::Engine(_) => f.write_str("dockerd's own builder"),
        }
    }
}

/// A word as shells take it.
fn word(text: &str) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || "/._-:@%+=,".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', "'\\''"))
    }
}

impl Seen {
    /// That no root can be written for it, whatever else there is.
    pub fn is_refused(&self) -> bool {
        self.root.as_ref().is_err_and(|error| {
            // A daemon of a user without subordinate ids, or without a home, does not start.
            error.class() == ErrorClass::Choice
                || matches!(error, Error::NoSubordinateIds { .. } | Error::NoHomeOf { .. })
        })
    }
}

impl Survey {
    /// Looks at this machine.
    pub fn of_this_machine() -> Self {
        let mut look = Look::default();
        let daemons = Processes::find(&mut look);
        if users::is_namespace(&mut look) && rootless::is_user_of_namespace() {
            // No other root can be written from here.
            users::look_at_own(&mut look, &daemons);
        } else {
            host::look(&mut look, &daemons);
            users::look(&mut look, &daemons);
            builders::look(&mut look, &daemons);
        }
        look.finish()
    }

    /// The one that is taken, if it is beyond doubt.
    pub fn taken(&self) -> Option<&Seen> {
        let mut open = self.open();
        let only = open.next().filter(|_| open.next().is_none() && self.unseen.is_empty());
        only.filter(|seen| seen.root.is_ok())
    }

    fn open(&self) -> impl Iterator<Item = &Seen> {
        self.seen.iter().filter(|seen| !seen.is_refused())
    }

    /// The root of the one that is taken.
    ///
    /// # Errors
    /// None is, since there is none, or more than one, or perhaps; or its root cannot be had.
    pub fn choose(mut self) -> Result<Root, Error> {
        let ways: Vec<String> = self.open().map(|seen| seen.way.to_string()).collect();
        match ways.as_slice() {
            [] if self.unseen.is_empty() => {
                // What is wrong with the only one says it best.
                match self.seen.pop() {
                    Some(only) if self.seen.is_empty() => only.root,
                    seen => Err(Error::NoTarget { refused: seen.is_some() }),
                }
            }
            [] => Err(Error::NoTarget { refused: !self.seen.is_empty() }),
            [way] if !self.unseen.is_empty() => Err(Error::PerhapsSeveral { way: way.clone() }),
            [_] => match self.seen.into_iter().find(|seen| !seen.is_refused()) {
                Some(seen) => seen.root,
                None => Err(Error::NoTarget { refused: true }),
            },
            _ => Err(Error::SeveralTargets { ways }),
        }
    }
}

/// What was found so far.
#[derive(Debug, Default)]
struct Look {
    signs: Vec<Sign>,
    unseen: Vec<Error>,
}

#[derive(Debug)]
struct Sign {
    way: Way,
    evidence: Vec<String>,
    /// Where it is not what the words for it find.
    root: Option<Result<Root, Error>>,
}

impl Look {
    /// Something tells of a target.
    fn sign(&mut self, way: impl Into<Way>, evidence: String) {
        let way = way.into();
        match self.signs.iter_mut().find(|sign| sign.way == way) {
            Some(sign) => sign.evidence.push(evidence),
            None => self.signs.push(Sign { way, evidence: vec![evidence], root: None }),
        }
    }

    /// The same, where the words for it say less of its root than was found.
    fn sign_of(&mut self, way: impl Into<Way>, evidence: String, root: Result<Root, Error>) {
        let way = way.into();
        self.sign(way.clone(), evidence);
        if let Some(sign) = self.signs.iter_mut().find(|sign| sign.way == way) {
            sign.root = Some(root);
        }
    }

    /// Whether something is there; where it cannot be told, that is kept.
    fn is_there(&mut self, path: &Path) -> bool {
        self.read(path, fs::symlink_metadata(path)).is_some()
    }

    /// The names in a directory, sorted; `None` where there is no such directory, or it cannot be read, which is kept.
    fn names(&mut self, path: &Path) -> Option<Vec<String>> {
        let entries = fs::read_dir(path).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        let entries = self.read(path, entries)?;
        let mut names: Vec<String> =
            entries.iter().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        Some(names)
    }

    /// What the system says of a path; `None` where there is nothing. Another error is kept.
    fn read<T>(&mut self, path: &Path, result: io::Result<T>) -> Option<T> {
        match result {
            Ok(found) => Some(found),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                None
            }
            Err(source) => {
                self.unseen.push(Error::Read { path: path.to_owned(), source });
                None
            }
        }
    }

    /// What was asked for; `None` where that failed, which is kept.
    fn kept<T>(&mut self, result: Result<T, Error>) -> Option<T> {
        result.map_err(|error| self.unseen.push(error)).ok()
    }

    fn finish(self) -> Survey {
        let seen = self.signs.into_iter().map(|Sign { way, evidence, root }| {
            let root = root.unwrap_or_else(|| way.find());
            Seen { way, evidence, root }
        });
        let mut unseen: Vec<Error> = Vec::new();
        for error in self.unseen {
            // Several look at the same.
            if !unseen.iter().any(|known| known.to_string() == error.to_string()) {
                unseen.push(error);
            }
        }
        Survey { seen: seen.collect(), unseen }
    }
}

/// What is known of a state directory: which workers have had it, and how to call it.
struct State {
    shown: String,
    has_oci: bool,
    has_containerd: bool,
}

impl State {
    fn at(look: &mut Look, path: &Path) -> Option<Self> {
        let names = look.names(path)?;
        let is_empty = names.is_empty();
        let of_daemon: Vec<String> = names
            .into_iter()
            .filter(|name| name == "cache.db" || name.starts_with("runc-") || name.starts_with("containerd-"))
            .collect();
        let has = |prefix: &str| of_daemon.iter().any(|name| name.starts_with(prefix));
        let (has_oci, has_containerd) = (has("runc-"), has("containerd-"));
        let what = match of_daemon.join(", ") {
            _ if is_empty => "empty".to_owned(),
            none if none.is_empty() => "with nothing of a daemon in it".to_owned(),
            found => format!("with {found}"),
        };
        Some(Self { shown: format!("directory {}, {what}", path.display()), has_oci, has_containerd })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(way: Way, root: Result<Root, Error>) -> Seen {
        Seen { way, evidence: vec!["x".into()], root }
    }

    fn fine(target: &str) -> Seen {
        seen(target.parse::<Target>().unwrap().into(), Ok(Root::at(Path::new(target))))
    }

    fn engine() -> Seen {
        let way = Way::Engine("/d/buildkit".into());
        let root = way.find();
        seen(way, root)
    }

    fn broken() -> Seen {
        seen(Target::Host.into(), Err(Error::NoDocker))
    }

    fn denied() -> Error {
        Error::Read { path: "/home/x".into(), source: io::ErrorKind::PermissionDenied.into() }
    }

    #[test]
    fn only_what_is_beyond_doubt_is_taken() {
        type Case = (Vec<Seen>, Vec<Error>, Result<&'static str, &'static str>);
        let cases: [Case; 10] = [
            (vec![], vec![], Err("no target is seen on this machine: say which, as --for host")),
            (vec![], vec![denied()], Err("no target is seen")),
            (vec![fine("host")], vec![], Ok("host")),
            (vec![fine("buildx:ci"), engine()], vec![], Ok("buildx:ci")),
            (vec![engine()], vec![], Err("/d/buildkit is for dockerd's own builder")),
            (vec![engine(), engine()], vec![], Err("that a root can be written for: say which")),
            (vec![broken()], vec![], Err("no docker found")),
            (vec![fine("host")], vec![denied()], Err("more targets than --for host: say that one")),
            (vec![fine("host"), fine("buildx:ci")], vec![], Err("as --for host or --for buildx:ci")),
            // Of one that cannot be had today nobody knows whether it is the one.
            (vec![broken(), fine("rootless:ci")], vec![], Err("as --for host or --for rootless:ci")),
        ];
        for (at, (seen, unseen, expected)) in cases.into_iter().enumerate() {
            let survey = Survey { seen, unseen };
            let taken = survey.taken().map(|seen| seen.way.to_string());
            assert_eq!(taken, expected.ok().map(|target| format!("--for {target}")), "case {at}");
            match (survey.choose(), expected) {
                (Ok(root), Ok(target)) => assert_eq!(root.path(), Path::new(target), "case {at}"),
                (Err(error), Err(said)) => assert!(error.to_string().contains(said), "case {at}: {error}"),
                (found, _) => panic!("case {at}: {found:?}"),
            }
        }
    }

    #[test]
    fn words_are_as_shells_take_them() {
        let root = |path: &str| Some(PathBuf::from(path));
        let containerd = Target::Containerd { address: Some("/run/a.sock".into()) };
        for (way, expected) in [
            (Way::from(Target::Host), "--for host"),
            (Way::Root("/srv/a b".into()), "--root '/srv/a b'"),
            (Way::Root("/srv/it's".into()), "--root '/srv/it'\\''s'"),
            (Way::For { target: containerd, root: root("/r") }, "--for containerd:/run/a.sock --root /r"),
            (Target::Rootless { user: Some("D\\ci".into()) }.into(), "--for 'rootless:D\\ci'"),
        ] {
            assert_eq!(way.to_string(), expected);
        }
    }

    #[test]
    fn what_is_in_a_directory_tells_whose_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let mut look = Look::default();
        let mut state = || {
            let state = State::at(&mut look, dir.path()).unwrap();
            let (_, what) = state.shown.rsplit_once('/').unwrap();
            (what.split_once(", ").unwrap().1.to_owned(), state.has_oci, state.has_containerd)
        };
        assert_eq!(state(), ("empty".into(), false, false));
        fs::create_dir(dir.path().join("lost+found")).unwrap();
        assert_eq!(state(), ("with nothing of a daemon in it".into(), false, false));
        fs::create_dir(dir.path().join("containerd-overlayfs")).unwrap();
        fs::write(dir.path().join("cache.db"), "").unwrap();
        assert_eq!(state(), ("with cache.db, containerd-overlayfs".into(), false, true));
        fs::create_dir(dir.path().join("runc-native")).unwrap();
        assert_eq!(state(), ("with cache.db, containerd-overlayfs, runc-native".into(), true, true));
        let nothing = State::at(&mut look, &dir.path().join("none"));
        assert!(nothing.is_none() && look.unseen.is_empty());
    }
}
