//! Builders of buildx, and dockerd's own.

use std::os::unix::fs::symlink;

use super::machine::Machine;
use super::support::skip::is_root;

#[test]
fn builders_are_found_where_buildx_and_docker_keep_them() {
    if !is_root() {
        return;
    }
    let by_buildx = "builder of the driver docker-container in /root/.docker/buildx";
    let engine = "docker at unix:///run/docker.sock";
    let mut machine = Machine::new();
    machine.builder("ci", "docker-container", &["ci0"]).directory("var/lib/docker/buildkit");
    machine.docker(&["buildx_buildkit_ci0_state", "data"]);
    let state = "directory /var/lib/docker/buildkit";
    machine
        .looks(Ok("--for buildx:ci"), &[by_buildx, engine, state, "dockerd's own builder  not to be had: …"]);

    // Of another user: docker has its volume.
    machine.docker(&["buildx_buildkit_ci0_state", "buildx_buildkit_gpu_state"]);
    let volume = "volume buildx_buildkit_gpu_state of docker at unix:///run/docker.sock";
    machine.looks(Err("as --for buildx:ci or --for buildx:gpu/gpu"), &[by_buildx, volume, engine, state]);

    let machine = Machine::new();
    machine.builder("two", "docker-container", &["a", "b"]).directory("var/lib/docker");
    machine.looks(Err("as --for buildx:two/a or --for buildx:two/b"), &[by_buildx, by_buildx]);

    // Those that cannot be written for are named, and not counted.
    let machine = Machine::new();
    machine.builder("pods", "kubernetes", &["pods0"]).directory("var/lib/buildkit");
    let of_pods = "builder of the driver kubernetes in /root/.docker/buildx";
    machine.looks(Ok("--for host"), &["directory /var/lib/buildkit, empty", of_pods]);

    // docker is stopped.
    let machine = Machine::new();
    machine.directory("var/lib/docker/volumes/buildx_buildkit_ci0_state/_data");
    let volume = "volume buildx_buildkit_ci0_state in /var/lib/docker/volumes";
    machine.looks(Ok("--for buildx:ci"), &[volume]);

    // A daemon in a container is its builder's.
    let mut machine = Machine::new();
    machine.directory("var/lib/buildkit");
    machine.runs("contained $bin/buildkitd");
    machine.looks(Err("there may be more targets than --for host"), &["directory /var/lib/buildkit, empty"]);
    let mut machine = Machine::new();
    machine.builder("ci", "docker-container", &["ci0"]).directory("var/lib/docker");
    machine.runs("contained $bin/buildkitd");
    machine.looks(Ok("--for buildx:ci"), &[by_buildx]);

    // Whoever calls sudo has builders, too.
    let mut machine = Machine::new();
    machine.directory("var/lib/buildkit").write("home/ci/.docker/buildx/instances/mine", "{}");
    machine.variables.push(("SUDO_USER".into(), "ci".into()));
    let warning = "warning: /home/ci/.docker/buildx has builders too (mine)…";
    machine.looks(
        Err("there may be more targets than --for host"),
        &["directory /var/lib/buildkit, empty", warning],
    );
}

#[test]
fn dockers_own_builder_is_named_and_refused() {
    if !is_root() {
        return;
    }
    let way_out = "`docker buildx create --name warm --driver docker-container`, and --for buildx:warm";
    let mut machine = Machine::new();
    machine.docker(&[]).runs("start $bin/dockerd -H fd://");
    machine.looks(Err(way_out), &["docker at unix:///run/docker.sock", "process …"]);
    let mut machine = Machine::new();
    machine.runs("start $bin/dockerd").directory("var/lib/docker/buildkit");
    machine.looks(Err(way_out), &["directory /var/lib/docker/buildkit", "process …"]);

    // By its directory, whatever is in it, by whatever path, wherever dockerd is told to have it.
    machine.write("var/lib/moved/buildkit/history_c8d.db", "").directory("var/lib/moved/buildkit/content");
    symlink("/var/lib/moved/buildkit", machine.path("var/lib/link")).unwrap();
    machine.unit("docker.service", "--data-root /var/lib/told");
    for path in [
        "/var/lib/docker/buildkit",
        "/var/lib/docker/buildkit/mine",
        "/var/lib/moved/buildkit",
        "/var/lib/moved/buildkit/content/mine",
        "/var/lib/link",
        "/var/lib/told/buildkit/mine",
    ] {
        let nothing = "type=local,src=/nonexistent";
        let mut commands = vec![vec!["diff", path, nothing], vec!["diff", nothing, path]];
        for command in ["bake", "plan", "verify", "inspect", "hydrate", "forecast"] {
            let cache = matches!(command, "bake" | "plan").then_some(nothing);
            commands.push([command, "--root", path].into_iter().chain(cache).collect());
        }
        for arguments in commands {
            let output = machine.warmkit(&arguments);
            let errors = output.stderr;
            assert_eq!(output.status.code(), Some(2), "{arguments:?}: {errors}");
            assert!(errors.contains(way_out) && errors.contains("dockerd's image store"), "{errors}");
        }
    }
    // In an image it is looked at what the image has.
    machine
        .write("var/lib/image/srv/buildkit/history_c8d.db", "")
        .directory("var/lib/image/var/lib/told/buildkit");
    for (path, code) in [
        ("/srv/buildkit/mine", 2),
        ("/var/lib/docker/buildkit", 2),
        // Where this machine's dockerd has it.
        ("/var/lib/told/buildkit", 8),
    ] {
        let output = machine.warmkit(&["verify", "--image", "--sysroot", "/var/lib/image", "--root", path]);
        let errors = output.stderr;
        assert_eq!(output.status.code(), Some(code), "{path}: {errors}");
        assert_eq!(errors.contains(way_out), code == 2, "{path}: {errors}");
    }
    assert!(!machine.path("var/lib/told").exists() && !machine.path("var/lib/docker/buildkit/mine").exists());
}
