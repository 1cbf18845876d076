//! The daemon that a machine runs as root.

use super::machine::Machine;
#[cfg(feature = "containerd")]
use super::support::containerd::{Release, program};
use super::support::skip::is_root;
use super::support::{Tools, tools};

#[test]
fn the_host_is_known_by_each_of_its_traces() {
    if !is_root() {
        return;
    }
    let host = Ok("--for host");
    let machine = Machine::new();
    machine.directory("var/lib/buildkit");
    machine.looks(host, &["--for host  /var/lib/buildkit", "directory /var/lib/buildkit, empty"]);

    let machine = Machine::new();
    machine.write("etc/buildkit/buildkitd.toml", "root = \"/var/lib/moved\"\n");
    machine.directory("var/lib/moved/runc-overlayfs").write("var/lib/moved/cache.db", "");
    machine.looks(
        host,
        &[
            "--for host  /var/lib/moved",
            "configuration /etc/buildkit/buildkitd.toml",
            "directory /var/lib/moved, with cache.db, runc-overlayfs",
        ],
    );

    let machine = Machine::new();
    machine.unit("buildkitd.service", "--root /var/lib/of-unit").write("run/buildkit/buildkitd.sock", "");
    machine.looks(
        host,
        &[
            "--for host  /var/lib/of-unit",
            "unit buildkitd.service, which runs, with --root /var/lib/of-unit",
            "socket /run/buildkit/buildkitd.sock",
        ],
    );

    let mut machine = Machine::new();
    machine.runs("start $bin/buildkitd --debug");
    machine.looks(host, &["--for host  /var/lib/buildkit", "process …"]);

    // What is wrong with the only one is the reason.
    let machine = Machine::new();
    machine.write("etc/buildkit/buildkitd.toml", "[worker.oci]\nsnapshotter = \"stargz\"\n");
    machine.looks(Err("the snapshotter \"stargz\""), &["configuration /etc/buildkit/buildkitd.toml"]);
}

/// What a daemon itself makes and leaves.
#[test]
fn a_real_daemon_is_known_while_it_runs_and_after() {
    if !is_root() {
        return;
    }
    let Some(tools) = Tools::find(tools::NEWEST) else { return };
    let mut machine = Machine::new();
    machine.real(&tools.buildkitd).real(&tools.buildctl);
    machine.write("etc/buildkit/buildkitd.toml", "[worker.oci]\nsnapshotter = \"overlayfs\"\n");
    machine.runs(
        "$bin/buildkitd --oci-worker-snapshotter=overlayfs --containerd-worker=false >\"$files/log\" 2>&1 &",
    );
    machine.answers("$bin/buildctl");
    let left = [
        "--for host  /var/lib/buildkit",
        "configuration /etc/buildkit/buildkitd.toml",
        "socket /run/buildkit/buildkitd.sock",
        "directory /var/lib/buildkit, with cache.db, runc-overlayfs",
    ];
    machine.looks(Ok("--for host"), &[&left[..], &["process …"]].concat());
    // It went with its machine, as one that is killed.
    machine.daemons.clear();
    machine.looks(Ok("--for host"), &left);
}

#[test]
fn a_daemon_that_runs_with_another_root_is_named_by_that() {
    if !is_root() {
        return;
    }
    let mut machine = Machine::new();
    machine.runs("start $bin/buildkitd --root /var/lib/other --oci-worker-snapshotter=native");
    machine.looks(Ok("--root /var/lib/other"), &["--root /var/lib/other  /var/lib/other", "process …"]);
    machine.runs("cd \"$files/var\"\nstart $bin/buildkitd --root relative");
    let relative = machine.path("var/relative");
    let both = format!("as --root /var/lib/other or --root {}", relative.display());
    machine.looks(Err(&both), &["process …", "process …"]);
}

#[test]
fn a_daemon_whose_configuration_a_variable_names_is_read_by_that() {
    if !is_root() {
        return;
    }
    let mut machine = Machine::new();
    machine.write("etc/own.toml", "root = \"/var/lib/own\"\n");
    machine.runs("start env BUILDKITD_CONFIG=/etc/own.toml $bin/buildkitd");
    machine.looks(Ok("--root /var/lib/own"), &["--root /var/lib/own  /var/lib/own", "process …"]);
}

#[test]
fn a_root_that_its_daemon_cannot_mount_is_refused() {
    if !is_root() {
        return;
    }
    let machine = Machine::new();
    let configure =
        |more: &str| machine.write("etc/buildkit/buildkitd.toml", &format!("root = \"/srv/a,b\"\n{more}"));
    let plan = ["plan", "type=local,src=/nonexistent", "--for"];
    let (taken, fails) =
        ("no snapshotter takes native there; bake with --snapshotter native", "every build would fail");
    let told = "[worker.oci]\nsnapshotter = \"overlayfs\"\n";
    for (config, arguments, code, said) in [
        (
            "",
            &["auto"][..],
            2,
            "/srv/a,b cannot be the root of a daemon with overlayfs, whose mounts take the ','",
        ),
        ("", &["host"], 2, taken),
        ("[worker.oci]\nsnapshotter = \"auto\"\n", &["host"], 2, taken),
        (told, &["host"], 2, fails),
        ("", &["host", "--snapshotter=fuse-overlayfs"], 2, "of a daemon with fuse-overlayfs"),
        // The cache is what is wrong then.
        ("", &["host", "--snapshotter=native"], 3, "/nonexistent"),
    ] {
        configure(config);
        let output = machine.warmkit(&[&plan[..], arguments].concat());
        let errors = output.stderr;
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {errors}");
        assert!(errors.contains(said), "{errors}");
    }
}

#[test]
fn a_containerd_worker_is_seen_where_a_configuration_has_it() {
    if !is_root() {
        return;
    }
    let config = "etc/buildkit/buildkitd.toml";
    let seen = "configuration /etc/buildkit/buildkitd.toml";
    let machine = Machine::new();
    machine.write("run/containerd/containerd.sock", "");
    // That there is a containerd tells nothing.
    machine.looks(Err("no target is seen"), &[]);
    machine.write(config, "[worker.oci]\nenabled = false\n");
    let expected = ["--for containerd  /var/lib/buildkit", seen, "socket /run/containerd/containerd.sock"];
    machine.looks(Ok("--for containerd"), &expected);
    machine.write(config, "[worker.containerd]\nenabled = true\naddress = \"/run/k3s.sock\"\n");
    machine.looks(Err("as --for host or --for containerd"), &[seen, seen]);
    machine.write(config, "").directory("var/lib/buildkit/containerd-overlayfs");
    let state = "directory /var/lib/buildkit, with containerd-overlayfs";
    let expected = [seen, state, "socket /run/containerd/containerd.sock"];
    machine.looks(Err("as --for host or --for containerd"), &expected);

    let mut machine = Machine::new();
    machine.runs("start $bin/buildkitd --oci-worker=false --containerd-worker-addr=/run/x.sock --root /r");
    machine.looks(Ok("--for containerd:/run/x.sock --root /r"), &["process …"]);
    let mut machine = Machine::new();
    machine.runs("start $bin/buildkitd --oci-worker=false --containerd-worker-namespace=x");
    machine.looks(Err("is told a namespace or a snapshotter of containerd"), &["process …"]);
}

/// Started with its containerd as in production, by its configuration alone.
#[test]
#[cfg(feature = "containerd")]
fn a_real_containerd_worker_is_known_while_it_runs_and_after() {
    let Some(tools) = Tools::find(tools::NEWEST) else { return };
    let Some(containerd) = program(Release::Newer, "containerd") else { return };
    let mut machine = Machine::new();
    machine.real(&tools.buildkitd).real(&tools.buildctl).real(&containerd);
    machine.write(
        "etc/containerd/config.toml",
        "version = 2\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
         [plugins.\"io.containerd.internal.v1.opt\"]\npath = \"/var/lib/opt\"\n",
    );
    let config =
        "[worker.oci]\nenabled = false\n[worker.containerd]\nenabled = true\nsnapshotter = \"native\"\n";
    machine.write("etc/buildkit/buildkitd.toml", config);
    machine.runs("$bin/containerd >\"$files/containerd.log\" 2>&1 &");
    machine.runs("$bin/buildkitd >\"$files/log\" 2>&1 &").answers("$bin/buildctl");
    let left = [
        "--for containerd  /var/lib/buildkit",
        "configuration /etc/buildkit/buildkitd.toml",
        "socket /run/buildkit/buildkitd.sock",
        "directory /var/lib/buildkit, with cache.db, containerd-native",
        "socket /run/containerd/containerd.sock",
    ];
    machine.looks(Ok("--for containerd"), &[&left[..], &["process …"]].concat());
    machine.daemons.clear();
    machine.looks(Ok("--for containerd"), &left);
}
