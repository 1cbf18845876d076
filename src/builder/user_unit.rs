//! How systemd starts a user's daemon, by the files that it reads, whether or not it runs: in an image it does not.
//!
//! ```text
//! [Service]
//! Environment=XDG_DATA_HOME=%h/data
//! ExecStart=rootlesskit --net=slirp4netns /usr/local/bin/buildkitd --root %h/buildkit
//! ```
//!
//! Mirrors systemd.unit(5), systemd.syntax(7) and systemd.exec(5): where units are, what follows in `<unit>.d`, quotes,
//! specifiers. What only a systemd that runs knows, such as its own variables or what a file of variables
//! (`EnvironmentFile`) will have, is an error: a wrong root would be one that nobody finds.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::Error;
use super::settings::{CONFIG_VARIABLE, argument, is_read};
use crate::fsutil;

/// The units that start a user's daemon, where packages or their own setup bring one.
pub(super) const UNITS: [&str; 2] = ["buildkit.service", "buildkitd.service"];
/// Where the units of all users are, below those of the user itself.
const SHARED: [&str; 5] = [
    "/etc/systemd/user",
    "/run/systemd/user",
    "/usr/local/lib/systemd/user",
    "/usr/lib/systemd/user",
    "/lib/systemd/user",
];

/// Variables that say where the root, or its daemon's configuration, is.
const PLACES: [&str; 4] = [CONFIG_VARIABLE, "HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"];

/// What a unit tells its daemon.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Unit {
    /// The file that it begins with.
    path: PathBuf,
    /// Those of `buildkitd`; none where it is not started, or by another program only.
    pub(super) arguments: Vec<String>,
    pub(super) environment: BTreeMap<String, String>,
}

impl Unit {
    pub(super) fn name(&self) -> String {
        self.path.display().to_string()
    }
}

/// The unit of a user; an empty one where there is none.
///
/// # Errors
/// A file cannot be read, or says what only systemd knows.
pub(super) fn find(specifiers: &Specifiers<'_>) -> Result<Unit, Error> {
    let Specifiers { home, config, runtime, .. } = specifiers;
    let mut directories = vec![config.join("systemd/user")];
    directories.extend(runtime.map(|runtime| runtime.join("systemd/user")));
    directories.extend(SHARED[..2].iter().map(PathBuf::from));
    directories.push(home.join(".local/share/systemd/user"));
    directories.extend(SHARED[2..].iter().map(PathBuf::from));
    for name in UNITS {
        let Some((path, texts)) = texts(&directories, name)? else { continue };
        let unit = read(&texts, specifiers)
            .map_err(|detail| Error::Configuration { file: path.display().to_string(), detail })?;
        return Ok(Unit { path, ..unit });
    }
    Ok(Unit::default())
}

/// The file of a unit, and its text followed by those of its drop-ins; `None` where there is no such unit.
fn texts(directories: &[PathBuf], name: &str) -> Result<Option<(PathBuf, Vec<String>)>, Error> {
    let mut found = None;
    for directory in directories {
        let path = directory.join(name);
        if let Some(text) = text(&path)? {
            found = Some((path, text));
            break;
        }
    }
    // One that is empty, or a link to /dev/null, is masked.
    let Some((path, text)) = found.filter(|(_, text)| !text.is_empty()) else { return Ok(None) };
    // Of files with one name, the first counts.
    let mut drop_ins = BTreeMap::new();
    for directory in directories.iter().rev() {
        let Ok(entries) = fs::read_dir(directory.join(format!("{name}.d"))) else { continue };
        for entry in entries.flatten() {
            if Path::new(&entry.file_name()).extension().is_some_and(|extension| extension == "conf") {
                drop_ins.insert(entry.file_name(), entry.path());
            }
        }
    }
    let mut texts = vec![text];
    for path in drop_ins.values() {
        texts.extend(self::text(path)?);
    }
    Ok(Some((path, texts)))
}

fn text(path: &Path) -> Result<Option<String>, Error> {
    match fsutil::read_config(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(None)
        }
        Err(source) => Err(Error::Read { path: path.to_owned(), source }),
    }
}

/// Whose unit it is: what stands for `%h` and its like.
pub(super) struct Specifiers<'a> {
    pub(super) home: &'a Path,
    /// Where all programs of the user have their configurations.
    pub(super) config: &'a Path,
    pub(super) runtime: Option<&'a Path>,
    pub(super) user: &'a str,
    /// The user's number, where it is known.
    pub(super) id: Option<u32>,
}

impl Specifiers<'_> {
    /// Puts in what they stand for.
    ///
    /// # Errors
    /// One is not known: what it is of no interest for, and what differs between releases of systemd, as `%S`.
    fn expand(&self, text: &str) -> Result<String, String> {
        let mut expanded = String::new();
        let mut rest = text.chars();
        while let Some(char) = rest.next() {
            if char != '%' {
                expanded.push(char);
                continue;
            }
            let path = |path: &Path| path.display().to_string();
            let value = match rest.next() {
                Some('%') => Some("%".to_owned()),
                Some('h') => Some(path(self.home)),
                Some('u') => Some(self.user.to_owned()),
                Some('U') => self.id.map(|id| id.to_string()),
                Some('E') => Some(path(self.config)),
                Some('C') => Some(path(&self.home.join(".cache"))),
                Some('t') => self.runtime.map(path),
                _ => None,
            };
            expanded.push_str(&value.ok_or_else(|| {
                format!("{text:?} has a specifier that is not known here: write what it stands for there")
            })?);
        }
        Ok(expanded)
    }
}

/// What the texts of a unit say, in this order.
///
/// # Errors
/// Something that the root may depend on is not known here.
fn read(texts: &[String], specifiers: &Specifiers<'_>) -> Result<Unit, String> {
    let mut unit = Unit::default();
    let mut start = Vec::new();
    let mut file = None;
    for text in texts {
        let mut section = String::new();
        for line in lines(text) {
            if line.starts_with('[') {
                section = line;
                continue;
            }
            let Some((key, value)) = line.split_once('=').filter(|_| section == "[Service]") else {
                continue;
            };
            match key.trim_end() {
                "ExecStart" => start = words(value),
                "Environment" if value.trim().is_empty() => unit.environment.clear(),
                "Environment" => {
                    for word in words(value) {
                        if let Some((name, value)) = word.split_once('=') {
                            unit.environment.insert(name.to_owned(), value.to_owned());
                        }
                    }
                }
                "EnvironmentFile" => file = Some(value.trim().to_owned()).filter(|file| !file.is_empty()),
                _ => {}
            }
        }
    }
    // Before it stands what makes the user namespace.
    let is_daemon = |word: &String| {
        word.trim_start_matches(['@', '-', ':', '+', '!']).rsplit('/').next() == Some("buildkitd")
    };
    for (name, value) in &mut unit.environment {
        match specifiers.expand(value) {
            Ok(expanded) => *value = expanded,
            Err(error) if PLACES.contains(&name.as_str()) => return Err(error),
            // It is of no interest.
            Err(_) => {}
        }
    }
    let mut is_of_interest = false;
    for word in start.into_iter().skip_while(|word| !is_daemon(word)).skip(1) {
        // One that stands alone and without braces is as many words as it has.
        if let Some(value) = word.strip_prefix('$').and_then(|name| unit.environment.get(name)) {
            unit.arguments.extend(value.split_whitespace().map(str::to_owned));
            continue;
        }
        // A value is of interest as what it follows, and what is but a variable may be any argument.
        if word.starts_with('-') {
            is_of_interest = is_read(&word);
        }
        match expand(&word, specifiers, &unit.environment) {
            Ok(expanded) => unit.arguments.push(expanded),
            Err(error) if is_of_interest || word.starts_with('$') => return Err(error),
            Err(_) => unit.arguments.push(word),
        }
    }
    let is_told = |name| argument(&unit.arguments, name).is_some();
    match file {
        Some(file) if !(is_told("root") && is_told("config")) => Err(format!(
            "what EnvironmentFile={file} has may say where the root is: say it with Environment=, or with --root and --config"
        )),
        _ => Ok(unit),
    }
}

/// Puts in what specifiers stand for, and the variables that the unit itself sets.
///
/// # Errors
/// One is not known.
fn expand(
    word: &str,
    specifiers: &Specifiers<'_>,
    environment: &BTreeMap<String, String>,
) -> Result<String, String> {
    let word = environment
        .iter()
        .fold(specifiers.expand(word)?, |word, (name, value)| word.replace(&format!("${{{name}}}"), value));
    if word.contains("${") || word.starts_with('$') {
        return Err(format!("{word:?} has a variable that only systemd knows: write its value there"));
    }
    Ok(word)
}

/// Lines without comments; those that end in a backslash go on.
fn lines(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    let mut goes_on = false;
    for line in text.lines().map(str::trim) {
        if line.starts_with(['#', ';']) || line.is_empty() && !goes_on {
            continue;
        }
        let (line, more) = line.strip_suffix('\\').map_or((line, false), |line| (line, true));
        match lines.last_mut().filter(|_| goes_on) {
            Some(last) => {
                last.push(' ');
                last.push_str(line);
            }
            None => lines.push(line.to_owned()),
        }
        goes_on = more;
    }
    lines
}

/// Words, with what is quoted or escaped as it is meant.
pub(super) fn words(value: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut chars = value.chars();
    while let Some(char) = chars.next() {
        match (quote, char) {
            (Some(open), close) if close == open => quote = None,
            (None, '"' | '\'') => {
                quote = Some(char);
                word.get_or_insert_default();
            }
            (None, char) if char.is_whitespace() => words.extend(word.take()),
            (_, '\\') => word.get_or_insert_default().extend(chars.next()),
            (_, char) => word.get_or_insert_default().push(char),
        }
    }
    words.extend(word);
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_of_the_daemon_are_read() {
        let cases: [(&[&str], &[&str]); 13] = [
            (&["[Service]\nExecStart=/usr/bin/buildkitd --root /r\n"], &["--root", "/r"]),
            // As upstream's example has it, and as nerdctl's setup writes it.
            (
                &[
                    "[Service]\nExecStart=rootlesskit --net=slirp4netns \\\n  # why\n  /bin/buildkitd --root %h/%u%%\n",
                ],
                &["--root", "/home/ci/ci%"],
            ),
            (
                &["[Service]\nExecStart=\"/a b/setup.sh\" nsenter -- buildkitd '--root=/a b'\n"],
                &["--root=/a b"],
            ),
            // The last one counts.
            (
                &[
                    "[Service]\nExecStart=buildkitd --a\n",
                    "[Service]\nExecStart=\nExecStart=-buildkitd --b\n",
                ],
                &["--b"],
            ),
            (
                &["[Service]\nEnvironment=\"D=/d e\"\nExecStart=buildkitd --root ${D}/x\n"],
                &["--root", "/d e/x"],
            ),
            (
                &["[Service]\nEnvironment=\"F=--debug --root /r\" P=${HOME}/%j\nExecStart=buildkitd $F\n"],
                &["--debug", "--root", "/r"],
            ),
            (
                &["[Service]\nEnvironmentFile=-%h/e\nExecStart=buildkitd --root /r --config /c\n"],
                &["--root", "/r", "--config", "/c"],
            ),
            (&["[Service]\nExecStart=buildkitd --root=/srv/%U\n"], &["--root=/srv/4001"]),
            // Of no interest.
            (
                &[
                    "[Service]\nExecStart=buildkitd --oci-worker-labels host=%H --addr=unix://${D}/s --root /r\n",
                ],
                &["--oci-worker-labels", "host=%H", "--addr=unix://${D}/s", "--root", "/r"],
            ),
            (&["[Service]\nExecStart=buildkitd --addr unix://%S/s\n"], &["--addr", "unix://%S/s"]),
            (&["[Unit]\nExecStart=buildkitd --a\n"], &[]),
            (&["[Service]\nExecStart=/usr/bin/other buildkitd-x --a\n"], &[]),
            (&["; [Service]\nExecStart=buildkitd --a\n"], &[]),
        ];
        let (home, config) = (Path::new("/home/ci"), Path::new("/home/ci/.config"));
        let specifiers = Specifiers { home, config, runtime: None, user: "ci", id: Some(4001) };
        for (texts, expected) in cases {
            let texts: Vec<String> = texts.iter().map(|&text| text.to_owned()).collect();
            assert_eq!(read(&texts, &specifiers).unwrap().arguments, expected, "{texts:?}");
        }
        for (text, said) in [
            ("ExecStart=buildkitd --root /srv/%H", "\"/srv/%H\" has a specifier"),
            ("ExecStart=buildkitd --oci-worker-snapshotter=%i", "=%i\" has a specifier"),
            ("ExecStart=buildkitd --debug ${R}", "\"${R}\" has a variable"),
            ("ExecStart=buildkitd --root ${R}", "\"${R}\" has a variable"),
            ("ExecStart=buildkitd $FLAGS", "\"$FLAGS\" has a variable"),
            ("Environment=XDG_DATA_HOME=%S\nExecStart=buildkitd", "\"%S\" has a specifier"),
            ("Environment=BUILDKITD_CONFIG=%S/b.toml\nExecStart=buildkitd", "\"%S/b.toml\" has a specifier"),
            ("EnvironmentFile=/e\nExecStart=buildkitd --root /r", "EnvironmentFile=/e"),
        ] {
            let error = read(&[format!("[Service]\n{text}\n")], &specifiers).unwrap_err();
            assert!(error.contains(said), "{text}: {error}");
        }
    }

    #[test]
    fn units_are_found_where_systemd_finds_them() {
        let home = tempfile::tempdir().unwrap();
        let home = home.path();
        let config = home.join("config");
        let specifiers = Specifiers { home, config: &config, runtime: None, user: "ci", id: None };
        let find = || find(&specifiers);
        let write = |path: &str, text: &str| {
            let path = home.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write(".local/share/systemd/user/buildkit.service", "[Service]\nExecStart=buildkitd --root /a\n");
        assert_eq!(find().unwrap().arguments, ["--root", "/a"]);
        write("config/systemd/user/buildkit.service", "[Service]\nExecStart=buildkitd --root /b\n");
        assert_eq!(find().unwrap().arguments, ["--root", "/b"]);
        write("config/systemd/user/buildkit.service.d/10.conf", "[Service]\nEnvironment=XDG_DATA_HOME=/d\n");
        assert_eq!(find().unwrap().environment["XDG_DATA_HOME"], "/d");
        write(
            "config/systemd/user/buildkit.service.d/20.conf",
            "[Service]\nExecStart=buildkitd --root ${E}\n",
        );
        let error = find().unwrap_err().to_string();
        assert!(error.contains("buildkit.service: \"${E}\" has a variable"), "{error}");
        // Masked.
        write("config/systemd/user/buildkit.service", "");
        assert_eq!(find().unwrap(), Unit::default());
    }
}
