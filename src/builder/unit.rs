//! How systemd starts a daemon.

use std::process::Command;
use std::time::Duration;

use super::user_unit;
use crate::daemon::{on_path, output_within};

/// How long systemd may take for an answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// The arguments that a unit starts its daemon with; none where systemd does not run, or has no such unit.
pub(super) fn arguments(unit: &str) -> Vec<String> {
    find(unit).unwrap_or_default()
}

/// The same; `None` where there is no such unit, or systemd cannot be asked.
pub(super) fn find(unit: &str) -> Option<Vec<String>> {
    let said = property(unit, "ExecStart")?;
    (!said.trim().is_empty()).then(|| words(&said))
}

/// The user that a unit names for its daemon; `None` where that is root, and where there is no such unit.
pub(super) fn user(unit: &str) -> Option<String> {
    let said = property(unit, "User")?;
    Some(said.trim()).filter(|user| !matches!(*user, "" | "root" | "0")).map(str::to_owned)
}

/// A variable that a unit gives its daemon, where it says something. A file of variables is not looked at.
pub(super) fn variable(unit: &str, name: &str) -> Option<String> {
    value_of(&property(unit, "Environment")?, name)
}

/// The last value of a variable in `A=1 "B=2 3"`.
fn value_of(said: &str, name: &str) -> Option<String> {
    let words = user_unit::words(said);
    let value = words.iter().rev().find_map(|word| word.strip_prefix(name)?.strip_prefix('='))?;
    Some(value.to_owned()).filter(|value| !value.is_empty())
}

/// Whether it runs.
pub(super) fn is_active(unit: &str) -> bool {
    property(unit, "ActiveState").is_some_and(|said| said.trim() == "active")
}

fn property(unit: &str, name: &str) -> Option<String> {
    let mut command = Command::new(on_path("systemctl")?);
    command.arg("show").arg(format!("--property={name}")).args(["--value", "--", unit]);
    output_within(&mut command, PATIENCE).ok()
}

/// The words of `{ path=… ; argv[]=… ; ignore_errors=… }`, without the program.
fn words(said: &str) -> Vec<String> {
    let argv = said.split(" ; ").find_map(|part| part.strip_prefix("argv[]="));
    argv.unwrap_or_default().split_whitespace().skip(1).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_of_a_unit_are_read() {
        let said = "{ path=/usr/sbin/dockerd ; argv[]=/usr/sbin/dockerd -H fd:// --data-root /srv/docker $DOCKER_OPTS ; \
                    ignore_errors=no ; start_time=[n/a] ; stop_time=[n/a] ; pid=0 ; code=(null) ; status=0/0 }\n";
        assert_eq!(words(said), ["-H", "fd://", "--data-root", "/srv/docker", "$DOCKER_OPTS"]);
        assert!(words("").is_empty() && words("\n").is_empty());
    }

    #[test]
    fn a_variable_of_a_unit_is_read() {
        for (said, expected) in [
            ("A=/a AB=/ab\n", Some("/a")),
            ("B=1 \"A=/a b\"\n", Some("/a b")),
            ("A=/a A=/b\n", Some("/b")),
            ("A=\n", None),
            ("AB=/ab\n", None),
            ("\n", None),
        ] {
            assert_eq!(value_of(said, "A").as_deref(), expected, "{said:?}");
        }
    }
}
