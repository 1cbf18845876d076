//! Daemons of plain users, and what is seen by one of them.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, chown};

use super::machine::Machine;
use super::support::skip::{is_root, skip};
use super::support::tools::on_path;
use super::support::{Tools, tools};

#[test]
fn daemons_of_users_are_found_in_their_homes_and_among_processes() {
    if !is_root() {
        return;
    }
    let mut machine = Machine::new();
    // A home of somebody else's is no trace of its second owner.
    machine.directory("home/ci/.local/share/buildkit");
    let state = "directory /home/ci/.local/share/buildkit, empty";
    machine.looks(Ok("--for rootless:ci"), &[state]);
    // One that is masked is none.
    machine.write("home/ci/.config/systemd/user/buildkitd.service", "");
    machine.write("home/ci/.config/systemd/user/buildkit.service", "[Service]\nExecStart=buildkitd\n");
    machine.write("run/user/4001/buildkit/buildkitd.sock", "").directory("home/ci/.config/buildkit");
    machine.runs("as 4001 $bin/buildkitd --addr unix:///run/user/4001/buildkit/buildkitd.sock");
    let all = [
        "configuration /home/ci/.config/buildkit",
        "unit /home/ci/.config/systemd/user/buildkit.service",
        "socket /run/user/4001/buildkit/buildkitd.sock",
        state,
        "process …",
    ];
    machine.looks(Ok("--for rootless:ci"), &all);
    machine.directory("home/ann/.config/buildkit");
    let both = [&all[..], &["configuration /home/ann/.config/buildkit"]].concat();
    machine.looks(Err("as --for rootless:ci or --for rootless:ann"), &both);

    // No daemon of theirs would start.
    let machine = Machine::new();
    machine.directory("home/poor/.config/buildkit").directory("var/lib/buildkit");
    let said = [
        "configuration /home/poor/.config/buildkit",
        "directory /var/lib/buildkit, empty",
        "--for rootless:poor  not to be had: poor has no range in /etc/subuid…",
    ];
    machine.looks(Ok("--for host"), &said);

    // Elsewhere than its name says.
    for line in ["as 4001 $bin/buildkitd --root /srv/ci", "as 4001 env XDG_DATA_HOME=/srv $bin/buildkitd"] {
        let mut machine = Machine::new();
        machine.runs(line);
        machine.looks(Err("and --for rootless:ci would be /home/ci/.local/share/buildkit"), &["process …"]);
    }
    // It takes itself for root's, configuration and all.
    for user in ["", "root"] {
        let mut machine = Machine::new();
        machine.runs(&format!("as 4001 env USER={user} $bin/buildkitd"));
        let said = "has its root at /var/lib/buildkit, and --for rootless:ci would be \
                    /home/ci/.local/share/buildkit: start it with USER=ci";
        machine.looks(Err(said), &["process …"]);
    }
    let mut machine = Machine::new();
    machine.write("etc/own.toml", "root = \"/srv/own\"\n");
    machine.runs("as 4001 env BUILDKITD_CONFIG=/etc/own.toml $bin/buildkitd");
    machine.looks(Err("has its root at /srv/own, and --for rootless:ci"), &["process …"]);
}

#[test]
fn what_cannot_be_looked_at_is_told() {
    if !is_root() {
        return;
    }
    let mut machine = Machine::new();
    machine.directory("home/ann/.config/buildkit");
    fs::set_permissions(machine.path("home/ann"), Permissions::from_mode(0o700)).unwrap();
    machine.write("etc/buildkit/buildkitd.toml", "");
    // Others may look everywhere else.
    machine.user = Some(4001);
    let said = [
        "configuration /etc/buildkit/buildkitd.toml",
        "warning: cannot read /home/ann/.config/buildkit: Permission denied (os error 13); run it under sudo",
    ];
    machine.looks(Err("there may be more targets than --for host: say that one"), &said);
    machine.user = None;
    let both = [said[0], "configuration /home/ann/.config/buildkit"];
    machine.looks(Err("as --for host or --for rootless:ann"), &both);
}

/// Seen by root, and in a user namespace of its user's.
#[test]
fn a_real_rootless_daemon_is_known_while_it_runs_and_after() {
    let Some(tools) = Tools::find(tools::NEWEST) else { return };
    let mut machine = Machine::new();
    machine.real(&tools.buildkitd).real(&tools.buildctl);
    for name in ["rootlesskit", "newuidmap", "newgidmap", "runc"] {
        let Some(program) = on_path(name) else { return skip(&format!("no {name} in $PATH")) };
        machine.real(&program);
    }
    machine.write("home/ci/.config/buildkit/buildkitd.toml", "[worker.oci]\nsnapshotter = \"overlayfs\"\n");
    machine.directory("run/user/4001");
    chown(machine.path("run/user/4001"), Some(4001), Some(4001)).unwrap();
    machine.runs(
        "by 4001 env USER=ci XDG_RUNTIME_DIR=/run/user/4001 \
         rootlesskit --state-dir=/run/user/4001/kit --net=host --copy-up=/etc --copy-up=/run \
         $bin/buildkitd --oci-worker-no-process-sandbox >\"$files/log\" 2>&1 &",
    );
    machine.answers("by 4001 $bin/buildctl --addr unix:///run/user/4001/buildkit/buildkitd.sock");
    let left = [
        "configuration /home/ci/.config/buildkit",
        "socket /run/user/4001/buildkit/buildkitd.sock",
        "directory /home/ci/.local/share/buildkit, with cache.db, runc-overlayfs",
    ];
    let outside = [&["--for rootless:ci  /home/ci/.local/share/buildkit"][..], &left].concat();
    let within = [&["--for rootless  /home/ci/.local/share/buildkit"][..], &left].concat();
    let running = |left: &[&'static str]| [left, &["process …"]].concat();
    machine.looks(Ok("--for rootless:ci"), &running(&outside));
    let user = ["/usr/bin/env", "HOME=/home/ci", "USER=ci", "XDG_RUNTIME_DIR=/run/user/4001", "rootlesskit"];
    machine.user = Some(4001);
    machine.within = user.map(str::to_owned).into();
    machine.within.push("--state-dir=/run/user/4001/own-kit".into());
    machine.looks(Ok("--for rootless"), &running(&within));
    machine.daemons.clear();
    machine.looks(Ok("--for rootless"), &within);
    machine.user = None;
    machine.within.clear();
    machine.looks(Ok("--for rootless:ci"), &outside);
}

/// A container that has no capability, or those that docker gives: what it may not look at it says, and takes nothing.
#[test]
fn a_container_without_privileges_takes_nothing_that_it_is_not_sure_of() {
    if !is_root() {
        return;
    }
    let docker = "-all,+chown,+dac_override,+fowner,+fsetid,+kill,+setgid,+setuid,+setpcap,+net_bind_service,+net_raw,\
                  +sys_chroot,+mknod,+audit_write,+setfcap";
    let config = "configuration /etc/buildkit/buildkitd.toml";
    let several = "there may be more targets than --for host: say that one";
    for (capabilities, denied) in [("-all", true), (docker, false)] {
        let mut machine = Machine::new();
        machine.within =
            ["/usr/bin/setpriv", "--inh-caps=-all", "--bounding-set", capabilities].map(str::to_owned).into();
        machine.write("etc/buildkit/buildkitd.toml", "");
        machine.looks(Ok("--for host"), &[config]);
        machine.directory("home/ann/.config/buildkit");
        fs::set_permissions(machine.path("home/ann"), Permissions::from_mode(0o700)).unwrap();
        let cannot = "warning: cannot read /home/ann/.config/buildkit: Permission denied (os error 13)…";
        let ann = "configuration /home/ann/.config/buildkit";
        let seen = ("as --for host or --for rootless:ann", ann);
        let (why, said) = if denied { (several, cannot) } else { seen };
        machine.looks(Err(why), &[config, said]);

        // Its environment says where its root is.
        let within = machine.within;
        let mut machine = Machine::new();
        machine.within = within;
        machine.runs("as 4001 $bin/buildkitd");
        let cannot = "warning: cannot read /proc/…";
        machine.looks(Err("there may be more targets than --for rootless:ci"), &["process …", cannot]);
    }
}

/// Where all other users are nobody.
#[test]
fn a_namespace_of_roots_has_no_daemon_of_a_user() {
    if !is_root() {
        return;
    }
    let config = "configuration /etc/buildkit/buildkitd.toml";
    let refused = |name: &str| format!("--for rootless:{name}  not to be had: $USER names no plain user…");
    let machine = || {
        let mut machine = Machine::new();
        machine.write("etc/buildkit/buildkitd.toml", "");
        machine.variables.push(("USER".into(), "root".into()));
        machine.user = Some(4001);
        machine.within = ["/usr/bin/unshare", "--map-root-user"].map(str::to_owned).into();
        machine
    };
    machine().looks(Ok("--for host"), &[config]);
    let homes = machine();
    homes.directory("home/ann/.config/buildkit");
    let of_ann = "configuration /home/ann/.config/buildkit";
    homes.looks(Ok("--for host"), &[config, of_ann, &refused("ann")]);
    // Whatever is in there is no choice either.
    fs::set_permissions(homes.path("home/ann"), Permissions::from_mode(0o700)).unwrap();
    homes.looks(Ok("--for host"), &[config]);
    let mut daemons = machine();
    daemons.runs("as 4002 $bin/buildkitd");
    daemons.looks(Ok("--for host"), &[config, "process …", &refused("65534")]);
}
