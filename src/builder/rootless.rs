//! The root of a daemon that a plain user runs, as its unit starts it, or its user.
//!
//! Mirrors `isRootlessConfig` in `BuildKit`'s `cmd/buildkitd/main.go` (v0.17.3 and v0.34.2): in a user namespace a
//! `$USER` that is root gets root's directories.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::Error;
use super::root::{Kind, Root};
use super::start::Start;
use super::user::{self, Account};
use super::user_unit::{self, Specifiers, Unit};
use crate::fsutil;
use crate::userns::Owners;

/// Who runs the daemon, and what it has around it.
struct Session<'a> {
    user: &'a str,
    id: Option<u32>,
    home: Option<&'a Path>,
    /// The variables of the user's processes, where they are known.
    variables: &'a dyn Fn(&str) -> Option<OsString>,
    /// What systemd knows as `%t`.
    runtime: Option<PathBuf>,
}

/// The root of the daemon that a user runs: whose name is given, or who is root in the user namespace of this process,
/// or who has started it, under sudo or not.
pub(super) fn find(user: Option<&str>) -> Result<Root, Error> {
    let here = Owners::of_this_process()
        .map_err(|source| Error::Read { path: "/proc/self/uid_map".into(), source })?;
    let own = |name: &str| env::var_os(name).filter(|value| !value.is_empty());
    if here.is_namespace() {
        // Who is root here, and whose the files are that it makes.
        let name = own("USER").map(|name| name.to_string_lossy().into_owned());
        let name = name.filter(|name| is_plain(name)).ok_or(Error::RootOfNamespace)?;
        if user.is_some_and(|user| user != name) {
            return Err(Error::InNamespace);
        }
        let home = own("HOME").map(PathBuf::from).filter(|home| home.is_absolute());
        let runtime = own("XDG_RUNTIME_DIR").map(PathBuf::from);
        let id = user::account(&name).ok().map(|account| account.id);
        return at(&Session { user: &name, id, home: home.as_deref(), variables: &own, runtime }, here);
    }
    let caller = rustix::process::geteuid();
    let name = match user {
        Some(name) => name.to_owned(),
        None if !caller.is_root() => caller.as_raw().to_string(),
        None => env::var("SUDO_USER").ok().filter(|name| name != "root").ok_or(Error::WhichUser)?,
    };
    let account = user::account(&name)?;
    if account.id == 0 {
        return Err(Error::RootIsNotRootless);
    }
    let home = account.home.as_deref().ok_or_else(|| Error::NoHomeOf { user: account.name.clone() })?;
    let owners = account.owners()?;
    let is_caller = account.id == caller.as_raw();
    let session = Session {
        user: &account.name,
        id: Some(account.id),
        home: Some(home),
        variables: &|name| own(name).filter(|_| is_caller),
        runtime: Some(format!("/run/user/{}", account.id).into()),
    };
    let root = at(&session, owners)?;
    if caller.is_root() {
        require_own(&root, &account)?;
    }
    Ok(root)
}

/// Refuses a root where its user could make none: who bakes for the user may write anywhere, and would give it away.
fn require_own(root: &Root, account: &Account) -> Result<(), Error> {
    let read = |source| Error::Read { path: root.path().to_owned(), source };
    let place = fsutil::nearest(root.path()).and_then(|place| place.canonicalize()).map_err(read)?;
    if fs::metadata(&place).map_err(read)?.uid() == account.id {
        return Ok(());
    }
    let misfit = format!(
        "has its root at {}, in {}, which is not that user's: give it to the user with chown, or have the daemon keep \
         its root elsewhere",
        root.path().display(),
        place.display()
    );
    Err(Error::Misfit { whose: format!("{}'s buildkitd", account.name), misfit })
}

/// Whether `$USER` names a plain user: else a daemon in a user namespace takes root's directories, as where the whole
/// machine is in one.
pub(super) fn is_user_of_namespace() -> bool {
    env::var("USER").is_ok_and(|name| is_plain(&name))
}

/// Whether such a `$USER` gets a daemon in a user namespace its user's directories.
pub(super) fn is_plain(user: &str) -> bool {
    !matches!(user, "" | "root")
}

/// The root of whose session this is.
fn at(session: &Session<'_>, owners: Owners) -> Result<Root, Error> {
    let Session { user, id, home, variables, runtime } = session;
    let home_of_user = || home.map(Path::to_owned).ok_or(Error::NoHome);
    let resolve =
        |what: &str, path| Err(Error::Relative { what: format!("{what} of {user}'s buildkitd"), path });
    let by_user = Start {
        arguments: &[],
        variable: &|name| Ok(variables(name)),
        home: &home_of_user,
        resolve: &resolve,
    };
    let unit = match home {
        Some(home) => {
            let (config, runtime) = (by_user.config_home()?, runtime.as_deref());
            user_unit::find(&Specifiers { home, config: &config, runtime, user, id: *id })?
        }
        None => Unit::default(),
    };
    let of_unit = |name: &str| Ok(unit.environment.get(name).map(OsString::from).or_else(|| variables(name)));
    let start = Start { arguments: &unit.arguments, variable: &of_unit, ..by_user };
    let (root, settings) = start.find()?;
    let snapshotter = settings.rootless().map_err(|misfit| {
        let config = settings.told().file;
        let whose = if unit.arguments.is_empty() {
            config.display().to_string()
        } else {
            format!("{} with {}", unit.name(), config.display())
        };
        Error::Misfit { whose, misfit }
    })?;
    if let Some(home) = home
        && root.starts_with(home)
        && !home.is_dir()
    {
        return Err(Error::HomeMissing { user: (*user).to_owned(), home: home.to_path_buf() });
    }
    let kind = Kind { snapshotter, owners, containerd: None };
    Ok(Root::of(root, kind).told(settings.told()).run_by(user))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// Where a user has its root, with these variables.
    fn root(home: &Path, variables: &[(&str, &str)]) -> Result<Root, Error> {
        let variables: BTreeMap<&str, &str> = variables.iter().copied().collect();
        let variables = |name: &str| variables.get(name).map(OsString::from);
        let session =
            Session { user: "ci", id: None, home: Some(home), variables: &variables, runtime: None };
        at(&session, Owners::AsNamed)
    }

    fn path(home: &Path, variables: &[(&str, &str)]) -> PathBuf {
        root(home, variables).unwrap().path().to_owned()
    }

    #[test]
    fn a_root_is_where_its_daemon_has_it() {
        let home = tempfile::tempdir().unwrap();
        let home = home.path();
        assert_eq!(path(home, &[]), home.join(".local/share/buildkit"));
        assert_eq!(path(home, &[("XDG_DATA_HOME", "/data:/more")]), Path::new("/data/buildkit"));
        let error = root(home, &[("XDG_DATA_HOME", "data")]).unwrap_err().to_string();
        assert!(error.contains("$XDG_DATA_HOME of ci's buildkitd is \"data\""), "{error}");

        let config = home.join(".config/buildkit");
        fs::create_dir_all(&config).unwrap();
        let text = "root = \"/r\"\n[worker.oci]\nsnapshotter = \"native\"\n";
        fs::write(config.join("buildkitd.toml"), text).unwrap();
        assert_eq!(path(home, &[("XDG_DATA_HOME", "/data")]), Path::new("/r"));
        let found = root(home, &[]).unwrap();
        assert_eq!(found.kind().snapshotter.as_deref(), Some("native"));
        assert_eq!(found.configuration().text.as_deref(), Some(text));
        assert_eq!(path(home, &[("XDG_CONFIG_HOME", "/none")]), home.join(".local/share/buildkit"));
    }

    #[test]
    fn a_unit_of_the_user_wins() {
        let home = tempfile::tempdir().unwrap();
        let home = home.path();
        let units = home.join(".config/systemd/user");
        fs::create_dir_all(&units).unwrap();
        let unit = |text: &str| fs::write(units.join("buildkit.service"), text).unwrap();
        let start = "rootlesskit --net=host /usr/local/bin/buildkitd";
        unit(&format!("[Service]\nEnvironment=XDG_DATA_HOME=%h/data\nExecStart={start}\n"));
        assert_eq!(path(home, &[("XDG_DATA_HOME", "/data")]), home.join("data/buildkit"));
        unit(&format!("[Service]\nEnvironment=HOME=%h/other\nExecStart={start}\n"));
        assert_eq!(path(home, &[]), home.join("other/.local/share/buildkit"));
        let file = home.join("own.toml");
        fs::write(&file, "root = \"/own\"\n").unwrap();
        unit(&format!("[Service]\nExecStart={start} --config=%h/own.toml\n"));
        assert_eq!(path(home, &[]), Path::new("/own"));
        unit(&format!("[Service]\nEnvironment=BUILDKITD_CONFIG=%h/own.toml\nExecStart={start}\n"));
        assert_eq!(path(home, &[]), Path::new("/own"));
        unit(&format!("[Service]\nExecStart={start} --config=%h/own.toml --root %h/there\n"));
        assert_eq!(path(home, &[]), home.join("there"));
        unit(&format!("[Service]\nExecStart={start} --oci-worker-snapshotter=stargz\n"));
        let error = root(home, &[]).unwrap_err().to_string();
        assert!(error.contains("buildkit.service with "), "{error}");
        assert!(error.contains("is told to use the snapshotter \"stargz\""), "{error}");
    }
}
