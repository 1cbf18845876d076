//! A container runtime that runs no step.
//!
//! The daemon is started with it in place of runc. A frontend of a `# syntax=` line is a container too,
//! and has to run: it is told from a step by a random option that frontends alone are given, in their
//! environment. All other commands (`delete`, `kill`, …) go to the real runtime, for such frontends.

use std::env;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use crate::daemon::{Error, Tools, io_error};

/// What a step that would run is told, and leaves in the log.
const SCRIPT: &str = r#"#!/bin/sh
# Written by warmkit for one replay.
log=@LOG@ token=@TOKEN@ real=@REAL@
command= bundle= before=
for word in "$@"; do
    case $before in --bundle | -b) bundle=$word ;; esac
    case $word in run | create | start | restore | exec) command=${command:-$word} ;; esac
    before=$word
done
case $command in
'') ;;
*)
    if [ "$command" != run ] || ! grep -qF "=warmkit-replay=$token" "$bundle/config.json"; then
        printf '%s\n' "$*" >>"$log"
        echo "warmkit: a step that is not in the cache; a replay runs none" >&2
        exit 1
    fi
    ;;
esac
[ -n "$real" ] || exit 0
exec "$real" "$@"
"#;

/// The runtime of one replay.
#[derive(Debug)]
pub(super) struct Runtime {
    /// For `--oci-worker-binary`.
    pub(super) binary: PathBuf,
    /// For the frontend: an option that only a frontend gets.
    pub(super) option: String,
    log: PathBuf,
}

impl Runtime {
    /// Writes it into `run`.
    pub(super) fn make(tools: &Tools, run: &Path) -> Result<Self, Error> {
        let token = token().map_err(io_error("read", Path::new("/dev/urandom")))?;
        let (binary, log) = (run.join("runtime"), run.join("refused"));
        let real = ["buildkit-runc", "runc"].iter().find_map(|name| {
            env::split_paths(&tools.path).map(|directory| directory.join(name)).find(|path| path.is_file())
        });
        let real = real.map(|path| quoted(&path)).unwrap_or_default();
        let script =
            SCRIPT.replace("@LOG@", &quoted(&log)).replace("@TOKEN@", &token).replace("@REAL@", &real);
        fs::write(&binary, script).map_err(io_error("write", &binary))?;
        let mode = fs::Permissions::from_mode(0o700);
        fs::set_permissions(&binary, mode).map_err(io_error("change the mode of", &binary))?;
        Ok(Self { binary, option: format!("warmkit-replay={token}"), log })
    }

    /// How often a step was to run, and was refused.
    pub(super) fn refused(&self) -> usize {
        fs::read_to_string(&self.log).map_or(0, |log| log.lines().count())
    }
}

/// A path as one word for the shell.
fn quoted(path: &Path) -> String {
    format!("'{}'", path.to_string_lossy().replace('\'', r"'\''"))
}

/// 128 bits that no Dockerfile can know.
fn token() -> io::Result<String> {
    use std::io::Read as _;
    let mut bytes = [0; 16];
    fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(format!("{:032x}", u128::from_be_bytes(bytes)))
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::process::Command;

    use super::*;

    #[test]
    fn runs_frontends_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let made = |name: &str, text: &str| {
            fs::write(path(name), text).unwrap();
            fs::set_permissions(path(name), fs::Permissions::from_mode(0o755)).unwrap();
        };
        made("runc", "#!/bin/sh\necho real \"$@\"\n");
        let tools = Tools {
            buildkitd: path("buildkitd"),
            buildctl: path("buildctl"),
            version: String::new(),
            path: OsString::from(format!("{}:/usr/bin:/bin", directory.path().display())),
        };
        let run = path("it's run");
        fs::create_dir(&run).unwrap();
        let runtime = Runtime::make(&tools, &run).unwrap();
        for (bundle, env) in [
            ("step", "FOO=bar".to_owned()),
            ("liar", "BUILDKIT_FRONTEND_OPT_0=warmkit-replay=0".to_owned()),
            ("frontend", format!("BUILDKIT_FRONTEND_OPT_3={}", runtime.option)),
        ] {
            fs::create_dir(path(bundle)).unwrap();
            let config = format!("{{\"process\":{{\"env\":[\"{env}\"]}}}}");
            fs::write(path(bundle).join("config.json"), config).unwrap();
        }
        let call = |arguments: &[&str]| {
            let output = Command::new(&runtime.binary).args(arguments).output().unwrap();
            (output.status.code(), String::from_utf8(output.stdout).unwrap())
        };
        let run = |bundle: &str| {
            let bundle = path(bundle).display().to_string();
            call(&["--log-format", "json", "run", "--bundle", &bundle, "--keep", "id"])
        };
        assert_eq!((run("step").0, run("liar").0, runtime.refused()), (Some(1), Some(1), 2));
        let (code, said) = run("frontend");
        assert!(code == Some(0) && said.starts_with("real --log-format json run"), "{said}");
        assert_eq!(call(&["exec", "id", "sh"]).0, Some(1));
        assert_eq!(call(&["delete", "id"]), (Some(0), "real delete id\n".to_owned()));
        assert_eq!(runtime.refused(), 3);
    }
}
