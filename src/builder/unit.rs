//! How systemd starts a daemon.

use std::process::Command;
use std::time::Duration;

use crate::daemon::{on_path, output_within};

/// How long systemd may take for an answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// The arguments that a unit starts its daemon with; none where systemd does not run, or has no such unit.
pub(super) fn arguments(unit: &str) -> Vec<String> {
    let Some(systemctl) = on_path("systemctl") else { return Vec::new() };
    let mut command = Command::new(systemctl);
    command.args(["show", "--property=ExecStart", "--value", "--", unit]);
    output_within(&mut command, PATIENCE).map(|said| words(&said)).unwrap_or_default()
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
}
