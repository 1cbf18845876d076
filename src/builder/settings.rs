//! What a `buildkitd` is told of its root, by arguments and by `buildkitd.toml`.
//!
//! Mirrors `BuildKit`'s `cmd/buildkitd/main.go`, `main_oci_worker.go` and `config/config.go` (v0.34.2): an argument
//! wins over the file.

use std::io;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::Error;
use crate::fsutil;

/// The root of a daemon that is told none, run as root.
pub(super) const DEFAULT_ROOT: &str = "/var/lib/buildkit";
/// Where containerd listens unless it is told otherwise.
const DEFAULT_CONTAINERD: &str = "/run/containerd/containerd.sock";
/// The namespace that a containerd worker works in unless it is told otherwise.
const DEFAULT_NAMESPACE: &str = "buildkit";
/// The configuration of a daemon that is told none.
pub(super) const DEFAULT_CONFIG: &str = "/etc/buildkit/buildkitd.toml";

/// The variable that names its configuration where no argument does: v0.34.2 reads it, v0.33.1 does not.
pub(super) const CONFIG_VARIABLE: &str = "BUILDKITD_CONFIG";

/// As far as it matters for where its root is, and of what kind.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Settings {
    root: Option<String>,
    rootless: bool,
    oci_worker: Option<bool>,
    snapshotter: Option<String>,
    /// The socket of the program that keeps its snapshots.
    proxy: Option<String>,
    containerd: Containerd,
    told: Told,
}

/// What a daemon is told of garbage collection: by its configuration, and by arguments, which win.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Told {
    /// The file of its configuration.
    pub file: PathBuf,
    /// What is in it, where it is there.
    pub text: Option<String>,
    /// `--oci-worker-gc`, or `--containerd-worker-gc`: of the worker that it uses.
    pub gc: Option<bool>,
    /// The same with `-keepstorage` behind.
    pub keep_storage: Option<String>,
}

/// Of its containerd worker.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Containerd {
    enabled: Option<bool>,
    /// By an argument: in the file it changes nothing but how builds are run.
    rootless: bool,
    address: Option<String>,
    namespace: Option<String>,
    snapshotter: Option<String>,
    gc: Option<bool>,
    keep_storage: Option<String>,
}

impl Settings {
    /// Of a daemon with these arguments and this text in its configuration.
    ///
    /// # Errors
    /// The text is no TOML.
    pub(super) fn read(arguments: &[String], config: Option<&str>) -> Result<Self, toml::de::Error> {
        let mut read = Self::default();
        if let Some(config) = config {
            read.configure(&config.parse()?);
        }
        if let Some(root) = argument(arguments, "root") {
            read.root = Some(root.to_owned());
        }
        if let Some(rootless) = switch(arguments, "rootless") {
            (read.rootless, read.containerd.rootless) = (rootless, rootless);
        }
        // Where the whole machine is in a user namespace, "false" makes it an ordinary one.
        if let Some(rootless) = switch(arguments, "oci-worker-rootless") {
            read.rootless = rootless;
        }
        if let Some(rootless) = switch(arguments, "containerd-worker-rootless") {
            read.containerd.rootless = rootless;
        }
        // With "auto" it is as if the file said nothing.
        if let Some(enabled) = argument(arguments, "oci-worker") {
            read.oci_worker = truth(enabled);
        }
        if let Some(name) = argument(arguments, "oci-worker-snapshotter") {
            read.snapshotter = Some(name.to_owned());
        }
        if let Some(socket) = argument(arguments, "oci-worker-proxy-snapshotter-path") {
            read.proxy = Some(socket.to_owned());
        }
        if let Some(enabled) = argument(arguments, "containerd-worker") {
            read.containerd.enabled = truth(enabled);
        }
        read.told.text = config.map(str::to_owned);
        read.told.gc = switch(arguments, "oci-worker-gc");
        read.told.keep_storage = argument(arguments, "oci-worker-gc-keepstorage").map(str::to_owned);
        read.containerd.gc = switch(arguments, "containerd-worker-gc");
        let Containerd { address, namespace, snapshotter, keep_storage, .. } = &mut read.containerd;
        for (name, told) in [
            ("containerd-worker-addr", address),
            ("containerd-worker-namespace", namespace),
            ("containerd-worker-snapshotter", snapshotter),
            ("containerd-worker-gc-keepstorage", keep_storage),
        ] {
            if let Some(value) = argument(arguments, name) {
                *told = Some(value.to_owned());
            }
        }
        Ok(read)
    }

    /// Of a daemon with these arguments on this machine, and this configuration, if it is there.
    ///
    /// # Errors
    /// The configuration cannot be read, or is no TOML.
    pub(super) fn at(arguments: &[String], config: &Path) -> Result<Self, Error> {
        let text = match fsutil::read_config(config) {
            Ok(text) => Some(text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(source) => return Err(Error::Read { path: config.to_owned(), source }),
        };
        // Not the line at fault, which is for the eyes of whoever may read the file.
        let mut read = Self::read(arguments, text.as_deref()).map_err(|error| {
            let before = error.span().and_then(|span| text.as_deref()?.get(..span.start));
            let line = before.map(|before| format!(" at line {}", before.matches('\n').count() + 1));
            Error::Configuration {
                file: config.display().to_string(),
                detail: format!("TOML parse error{}: {}", line.unwrap_or_default(), error.message()),
            }
        })?;
        config.clone_into(&mut read.told.file);
        Ok(read)
    }

    /// What it is told of the garbage collection of its OCI worker.
    pub(super) fn told(&self) -> Told {
        self.told.clone()
    }

    /// The same of its containerd worker.
    pub(super) fn told_of_containerd(&self) -> Told {
        let Containerd { gc, keep_storage, .. } = self.containerd.clone();
        Told { gc, keep_storage, ..self.told.clone() }
    }

    fn configure(&mut self, table: &Table) {
        self.root = value(table, "root").and_then(Value::as_str).map(str::to_owned);
        let worker = |name| value(value(table, "worker")?.as_table()?, name)?.as_table();
        let oci = worker("oci");
        let get = |name| oci.and_then(|oci| value(oci, name));
        let text = |name| get(name).and_then(Value::as_str).map(str::to_owned);
        self.oci_worker = get("enabled").and_then(Value::as_bool);
        self.rootless = get("rootless").and_then(Value::as_bool).unwrap_or_default();
        self.snapshotter = text("snapshotter");
        self.proxy = text("proxySnapshotterPath");
        let containerd = worker("containerd");
        let get = |name| containerd.and_then(|containerd| value(containerd, name));
        let text = |name| get(name).and_then(Value::as_str).map(str::to_owned);
        self.containerd = Containerd {
            enabled: get("enabled").and_then(Value::as_bool),
            address: text("address"),
            namespace: text("namespace"),
            snapshotter: text("snapshotter"),
            ..Containerd::default()
        };
    }

    /// Where its containerd listens.
    pub(super) fn containerd_address(&self) -> String {
        told(self.containerd.address.as_ref()).unwrap_or(DEFAULT_CONTAINERD).to_owned()
    }

    /// The namespace of its containerd worker.
    pub(super) fn containerd_namespace(&self) -> String {
        told(self.containerd.namespace.as_ref()).unwrap_or(DEFAULT_NAMESPACE).to_owned()
    }

    /// The snapshotter of its containerd worker; `None` where it is told none, and takes overlayfs.
    ///
    /// # Errors
    /// Why it would find nothing in a root that is written here.
    pub(super) fn containerd_snapshotter(&self) -> Result<Option<String>, String> {
        if self.containerd.enabled == Some(false) {
            return Err("has its containerd worker turned off".into());
        }
        if self.containerd.rootless {
            return Err("is told to run rootless, and for a rootless daemon roots are written of its OCI worker alone: have it \
                        use that, and name whose it is, with --for rootless:USER"
                .into());
        }
        written(told(self.containerd.snapshotter.as_ref()))
    }

    /// Whether builds go to its OCI worker, which it prefers, and whether it is told to have a containerd worker.
    pub(super) fn workers(&self) -> (bool, bool) {
        let has_oci = self.oci_worker != Some(false);
        (has_oci, self.containerd.enabled.unwrap_or(!has_oci))
    }

    /// Its root, where it is told one.
    pub(super) fn named_root(&self) -> Option<PathBuf> {
        self.root.as_deref().filter(|root| !root.is_empty()).map(PathBuf::from)
    }

    /// Its root, as of a daemon that runs as root.
    pub(super) fn root(&self) -> PathBuf {
        self.named_root().unwrap_or_else(|| Path::new(DEFAULT_ROOT).into())
    }

    /// The snapshotter that it is told; `None` where it takes the best that there is.
    ///
    /// # Errors
    /// Why it would find nothing in a root that is written here.
    pub(super) fn snapshotter(&self) -> Result<Option<String>, String> {
        if self.oci_worker == Some(false) {
            return Err(
                "has its OCI worker turned off; bake --for containerd where it has a containerd worker"
                    .into(),
            );
        }
        if let Some(socket) = told(self.proxy.as_ref()) {
            return Err(format!(
                "leaves its snapshots to the program that listens at {socket} (proxySnapshotterPath, or \
                 --oci-worker-proxy-snapshotter-path), which keeps layers in a form of its own under any name; roots are \
                 written for the daemon's own overlayfs, fuse-overlayfs and native: have it use one of these"
            ));
        }
        written(self.snapshotter.as_deref().filter(|name| *name != "auto" && !name.is_empty()))
    }

    /// The same of a daemon that a plain user runs.
    ///
    /// # Errors
    /// As [`Self::snapshotter`].
    pub(super) fn rootless(&self) -> Result<Option<String>, String> {
        if self.oci_worker == Some(false) {
            return Err("has its OCI worker turned off, and of a rootless daemon that is the only one for which roots are \
                        written: turn it on"
                .into());
        }
        self.snapshotter()
    }

    /// The same of a daemon that runs as root.
    ///
    /// # Errors
    /// As [`Self::snapshotter`], and where it runs rootless.
    pub(super) fn rootful(&self) -> Result<Option<String>, String> {
        if self.rootless {
            Err("runs rootless; name whose it is, with --for rootless:USER".into())
        } else {
            self.snapshotter()
        }
    }
}

/// What a table says under a name, in upper or lower case: a daemon reads both.
fn value<'t>(table: &'t Table, name: &str) -> Option<&'t Value> {
    let other = || table.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value);
    table.get(name).or_else(other)
}

/// A value that says something.
fn told(value: Option<&String>) -> Option<&str> {
    value.map(String::as_str).filter(|value| !value.is_empty())
}

/// A snapshotter, if roots are written for it.
fn written(snapshotter: Option<&str>) -> Result<Option<String>, String> {
    match snapshotter {
        None | Some("overlayfs" | "fuse-overlayfs" | "native") => Ok(snapshotter.map(str::to_owned)),
        Some(other) => Err(format!(
            "is told to use the snapshotter {other:?}, which keeps layers in a form of its own; roots are written for \
             overlayfs, fuse-overlayfs and native: tell it one of these, or none"
        )),
    }
}

/// Arguments that are read here, or where the configuration is looked for.
const READ: [&str; 16] = [
    "config",
    "root",
    "rootless",
    "oci-worker",
    "oci-worker-rootless",
    "oci-worker-snapshotter",
    "oci-worker-proxy-snapshotter-path",
    "oci-worker-gc",
    "oci-worker-gc-keepstorage",
    "containerd-worker",
    "containerd-worker-rootless",
    "containerd-worker-addr",
    "containerd-worker-namespace",
    "containerd-worker-snapshotter",
    "containerd-worker-gc",
    "containerd-worker-gc-keepstorage",
];

/// Whether `--name`, with or without `=VALUE`, is an argument that is read.
pub(super) fn is_read(argument: &str) -> bool {
    READ.iter().any(|name| named(argument, name).is_some_and(|rest| rest.is_empty() || rest.starts_with('=')))
}

/// The last value of `--name VALUE` or `--name=VALUE`.
pub(super) fn argument<'a>(arguments: &'a [String], name: &str) -> Option<&'a str> {
    all(arguments, name).pop()
}

/// All of its values.
pub(super) fn all<'a>(arguments: &'a [String], name: &str) -> Vec<&'a str> {
    let mut found = Vec::new();
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        match named(argument, name) {
            Some("") => found.extend(arguments.next().map(String::as_str)),
            Some(rest) => found.extend(rest.strip_prefix('=')),
            None => {}
        }
    }
    found
}

/// The last value of a switch, `--name` or `--name=true`.
fn switch(arguments: &[String], name: &str) -> Option<bool> {
    arguments.iter().rev().find_map(|argument| match named(argument, name)? {
        "" => Some(true),
        rest => rest.strip_prefix('=').and_then(truth),
    })
}

/// What follows `-name` or `--name`.
fn named<'a>(argument: &'a str, name: &str) -> Option<&'a str> {
    let bare = argument.strip_prefix("--").or_else(|| argument.strip_prefix('-'))?;
    bare.strip_prefix(name)
}

/// As Go reads it.
fn truth(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(arguments: &[&str], config: &str) -> Settings {
        let arguments: Vec<String> = arguments.iter().map(|&argument| argument.to_owned()).collect();
        Settings::read(&arguments, Some(config)).unwrap()
    }

    #[test]
    fn arguments_win_over_the_file() {
        let cases: [(&[&str], &str, &str); 8] = [
            (&[], "", "/var/lib/buildkit"),
            (&[], "root = \"/c\"", "/c"),
            (&["--debug", "--root", "/r"], "root = \"/c\"", "/r"),
            (&["--root=/r"], "", "/r"),
            (&["-root", "/r"], "", "/r"),
            (&["--root", "/a", "--root=/b"], "", "/b"),
            (&["--rootless=false"], "root = \"/c\"", "/c"),
            (&["--root"], "", "/var/lib/buildkit"),
        ];
        for (arguments, config, expected) in cases {
            assert_eq!(read(arguments, config).root(), Path::new(expected), "{arguments:?} {config:?}");
        }
    }

    #[test]
    fn a_daemon_that_would_find_nothing_is_told() {
        type Expected = Result<Option<&'static str>, &'static str>;
        let proxied = |name| {
            format!("[worker.oci]\nproxySnapshotterPath = \"/run/p.sock\"\nsnapshotter = \"{name}\"\n")
        };
        let cases: [(&[&str], &str, Expected); 25] = [
            (&[], "", Ok(None)),
            (
                &["--oci-worker-snapshotter=overlayfs"],
                "[worker.oci]\nsnapshotter = \"stargz\"",
                Ok(Some("overlayfs")),
            ),
            (&["--oci-worker=auto", "--oci-worker-gc"], "[worker.oci]\nenabled = true", Ok(None)),
            (&["--rootless=false"], "[worker.oci]\nrootless = true", Ok(None)),
            (&["--oci-worker-snapshotter", "native"], "", Ok(Some("native"))),
            (&[], "[worker.oci]\nsnapshotter = \"fuse-overlayfs\"", Ok(Some("fuse-overlayfs"))),
            (&["--rootless"], "", Err("rootless")),
            (&["--oci-worker-rootless"], "", Err("rootless")),
            (&[], "[worker.oci]\nrootless = true", Err("rootless")),
            (&["--oci-worker=false", "--containerd-worker=true"], "", Err("OCI worker")),
            (&[], "[worker.oci]\nenabled = false", Err("OCI worker")),
            (&[], "[worker.oci]\nsnapshotter = \"stargz\"", Err("\"stargz\"")),
            (&[], "[worker.oci]\nsnapshotter = \"nydus\"", Err("\"nydus\"")),
            (&[], "[worker.oci]\nSnapshotter = \"zfs\"", Err("\"zfs\"")),
            (&["--oci-worker-snapshotter=btrfs"], "", Err("\"btrfs\"")),
            (&[], &proxied("overlayfs"), Err("/run/p.sock (proxySnapshotterPath")),
            (&[], &proxied("auto"), Err("--oci-worker-proxy-snapshotter-path")),
            (&["--oci-worker-proxy-snapshotter-path", "/q"], "", Err("listens at /q")),
            (&["--oci-worker-proxy-snapshotter-path="], &proxied("native"), Ok(Some("native"))),
            // Each is for its own worker.
            (&["--containerd-worker-rootless"], "", Ok(None)),
            (&["--oci-worker-rootless=false"], "", Ok(None)),
            (&["--oci-worker-rootless=false"], "[worker.oci]\nrootless = true", Ok(None)),
            (&["--rootless", "--oci-worker-rootless=false"], "", Ok(None)),
            (&["--oci-worker-rootless=true", "--rootless=false"], "", Err("rootless")),
            (&[], "[worker.containerd]\nrootless = true", Ok(None)),
        ];
        for (arguments, config, expected) in cases {
            match (read(arguments, config).rootful(), expected) {
                (Ok(found), Ok(expected)) => {
                    assert_eq!(found.as_deref(), expected, "{arguments:?} {config:?}");
                }
                (Err(found), Err(expected)) => assert!(found.contains(expected), "{found}"),
                (found, _) => panic!("{arguments:?} {config:?}: {found:?}"),
            }
        }
        assert!(Settings::read(&[], Some("root = ")).is_err());
    }

    #[test]
    fn builds_go_to_the_oci_worker_unless_it_is_off() {
        let cases: [(&[&str], &str, (bool, bool)); 9] = [
            (&[], "", (true, false)),
            (&["--containerd-worker=true"], "", (true, true)),
            (&["--oci-worker=false"], "", (false, true)),
            (&["--oci-worker=auto"], "[worker.oci]\nenabled = false", (true, false)),
            (&["--oci-worker="], "[worker.oci]\nenabled = false", (true, false)),
            (&["--containerd-worker=Auto"], "[worker.containerd]\nenabled = true", (true, false)),
            (&["--oci-worker=auto", "--oci-worker=0"], "", (false, true)),
            (&[], "[worker.oci]\nenabled = false\n[worker.containerd]\nenabled = false", (false, false)),
            (&["--oci-worker"], "[worker.containerd]\nenabled = true", (true, true)),
        ];
        for (arguments, config, expected) in cases {
            assert_eq!(read(arguments, config).workers(), expected, "{arguments:?} {config:?}");
        }
    }

    #[test]
    fn a_containerd_worker_is_read() {
        let settings = read(&[], "");
        assert_eq!(settings.containerd_address(), "/run/containerd/containerd.sock");
        assert_eq!(settings.containerd_namespace(), "buildkit");
        assert_eq!(settings.containerd_snapshotter(), Ok(None));
        let config = "[worker.containerd]\naddress = \"/a\"\nnamespace = \"n\"\nsnapshotter = \"native\"\n";
        let settings = read(&["--containerd-worker-addr=/b"], config);
        assert_eq!(settings.containerd_address(), "/b");
        assert_eq!(settings.containerd_namespace(), "n");
        assert_eq!(settings.containerd_snapshotter(), Ok(Some("native".into())));
        for (arguments, config, said) in [
            (&["--containerd-worker=false"][..], "[worker.containerd]\nenabled = true", "turned off"),
            (&[][..], "[worker.containerd]\nenabled = false", "turned off"),
            (&["--containerd-worker-snapshotter=zfs"][..], "", "\"zfs\""),
            (&["--rootless"][..], "", "is told to run rootless"),
            (&["--containerd-worker-rootless"][..], "", "is told to run rootless"),
        ] {
            let found = read(arguments, config).containerd_snapshotter().unwrap_err();
            assert!(found.contains(said), "{found}");
        }
        for (arguments, config) in [
            (&["--containerd-worker=auto"][..], "[worker.containerd]\nenabled = false"),
            (&["--containerd-worker-rootless=false"][..], ""),
            (&["--oci-worker-rootless"][..], ""),
            (&[][..], "[worker.containerd]\nrootless = true"),
        ] {
            assert_eq!(
                read(arguments, config).containerd_snapshotter(),
                Ok(None),
                "{arguments:?} {config:?}"
            );
        }
    }
}
