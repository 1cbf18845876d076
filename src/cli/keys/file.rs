//! The keys file that a command writes.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use clap::Args;
use tempfile::NamedTempFile;

use super::super::exit::{self, Failure};
use crate::keys;

/// Where to.
#[derive(Debug, Args)]
pub(super) struct OutputPath {
    /// The keys file to write; one that is there is replaced
    #[arg(short = 'o', long = "output", value_name = "FILE")]
    path: PathBuf,
}

/// A file that is there whole in the end, or as it was before. It is made before the work begins, which may be
/// long, so that a path that cannot be written is known by then.
#[derive(Debug)]
pub(super) struct OutputFile {
    path: PathBuf,
    to: To,
}

#[derive(Debug)]
enum To {
    /// Takes the place of what stands there.
    Replacement(NamedTempFile),
    /// What is no regular file, such as `/dev/stdout`, cannot be replaced.
    Device(File),
}

impl OutputPath {
    /// Makes the file.
    pub(super) fn create(&self) -> Result<OutputFile, Failure> {
        let path = self.path.clone();
        match open(&path) {
            Ok(to) => Ok(OutputFile { path, to }),
            Err(error) => Err(failed(&path, &error)),
        }
    }
}

impl OutputFile {
    /// Writes it, and gives the path.
    pub(super) fn write(self, bytes: Result<Vec<u8>, keys::file::Error>) -> Result<String, Failure> {
        let bytes = bytes.map_err(|error| failed(&self.path, &error))?;
        let written = match self.to {
            To::Device(mut file) => file.write_all(&bytes),
            To::Replacement(mut file) => file
                .write_all(&bytes)
                .and_then(|()| file.persist(real(&self.path)).map(drop).map_err(|error| error.error)),
        };
        written.map_err(|error| failed(&self.path, &error))?;
        Ok(self.path.display().to_string())
    }
}

fn open(path: &Path) -> io::Result<To> {
    if path.exists() && !path.is_file() {
        return OpenOptions::new().write(true).open(path).map(To::Device);
    }
    let path = real(path);
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // Those of the file that is there, or what anybody may read.
    let permissions =
        fs::metadata(&path).map_or_else(|_| Permissions::from_mode(0o644), |metadata| metadata.permissions());
    fs::metadata(folder)?;
    tempfile::Builder::new().permissions(permissions).tempfile_in(folder).map(To::Replacement)
}

/// The file itself, where a link leads to one.
fn real(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_owned())
}

fn failed(path: &Path, error: &dyn std::fmt::Display) -> Failure {
    Failure::new(format!("cannot write {}: {error}", path.display()), exit::FAILURE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(path: &Path, bytes: &[u8]) -> Result<String, String> {
        let output = OutputPath { path: path.to_owned() };
        let written = output.create().and_then(|file| file.write(Ok(bytes.to_vec())));
        written.map_err(|failure| format!("{} {}", failure.code, failure.error))
    }

    #[test]
    fn replaces_what_is_there_and_keeps_its_mode() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("keys.json"), dir.path().join("link"));
        let mode = || fs::metadata(&file).unwrap().permissions().mode() & 0o777;
        write(&file, b"old").unwrap();
        assert_eq!(mode(), 0o644);
        fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
        std::os::unix::fs::symlink("keys.json", &link).unwrap();
        assert_eq!(write(&link, b"new").unwrap(), link.display().to_string());
        assert_eq!((fs::read(&file).unwrap(), mode()), (b"new".to_vec(), 0o600));
        assert!(link.is_symlink());
        write(Path::new("/dev/null"), b"gone").unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn what_cannot_be_written_is_known_before_the_work() {
        let dir = tempfile::tempdir().unwrap();
        for (path, reason) in [("none/keys.json", "No such file"), ("", "Is a directory")] {
            let path = dir.path().join(path);
            let failure = OutputPath { path: path.clone() }.create().unwrap_err();
            let expected = format!("cannot write {}: {reason}", path.display());
            assert!(failure.error.to_string().starts_with(&expected), "{}", failure.error);
            assert_eq!(failure.code, exit::FAILURE);
        }
    }

    #[test]
    fn work_that_fails_leaves_the_file_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys.json");
        write(&path, b"old").unwrap();
        drop(OutputPath { path: path.clone() }.create().unwrap());
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
