//! What tells of a `buildkitd` that a plain user runs.

use std::collections::BTreeMap;
use std::env;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::{Look, Process, Processes, State};
use crate::builder::settings::{CONFIG_VARIABLE, Settings};
use crate::builder::start::Start;
use crate::builder::user::{self, Account};
use crate::builder::user_unit::UNITS;
use crate::builder::{Error, Target, root, rootless};
use crate::userns::Owners;

/// Directories of each user who is logged in, by number.
const RUNTIME: &str = "/run/user";
/// What the kernel calls a user who has no id in a user namespace.
const UNMAPPED: u32 = 65534;

/// Whether this process is in a user namespace, from where no other root can be written.
pub(super) fn is_namespace(look: &mut Look) -> bool {
    let owners = Owners::of_this_process();
    let owners = look.read(Path::new("/proc/self/uid_map"), owners);
    owners.is_some_and(|owners| owners.is_namespace())
}

/// Looks for the daemon of who owns this user namespace.
pub(super) fn look_at_own(look: &mut Look, daemons: &Processes) {
    let target = Target::Rootless { user: None };
    let home = own("HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let mut places = home.map(|home| Places::of(&home, &own)).unwrap_or_default();
    places.socket = own("XDG_RUNTIME_DIR").map(|directory| socket(Path::new(&directory)));
    places.look(look, &target);
    // Who is root here is the user there.
    for process in daemons.buildkitd.iter().filter(|process| !process.is_contained && process.user == 0) {
        look.sign(target.clone(), process.shown());
    }
}

/// A variable of this process, where it says something.
fn own(name: &str) -> Option<OsString> {
    env::var_os(name).filter(|value| !value.is_empty())
}

/// Looks for the daemons of all users.
///
/// In a user namespace whose `$USER` is root no root can be written for any of them: what is seen of one is refused as that, and
/// what cannot be looked at hides no choice.
pub(super) fn look(look: &mut Look, daemons: &Processes) {
    let ids = Owners::of_this_process().unwrap_or_default();
    let unseen = look.unseen.len();
    look_at_all(look, daemons, &ids);
    if ids.is_namespace() {
        look.unseen.truncate(unseen);
    }
}

fn look_at_all(look: &mut Look, daemons: &Processes, ids: &Owners) {
    let mut users: BTreeMap<u32, Account> = BTreeMap::new();
    for account in look.kept(user::accounts()).unwrap_or_default() {
        users.entry(account.id).or_insert(account);
    }
    // Those that the directory of users keeps to itself.
    if let Some(account) = env::var("SUDO_USER").ok().and_then(|name| user::account(&name).ok()) {
        users.entry(account.id).or_insert(account);
    }
    let logged_in = look.names(Path::new(RUNTIME)).unwrap_or_default();
    let running: Vec<&Process> = daemons.buildkitd.iter().filter(|process| is_rootless(process)).collect();
    let numbers = logged_in.iter().filter_map(|name| name.parse().ok());
    for id in numbers.chain(running.iter().map(|process| process.user)) {
        if !users.contains_key(&id)
            && let Ok(account) = user::account(&id.to_string())
        {
            users.insert(id, account);
        }
    }
    users.remove(&0);
    for account in users.values() {
        let target = Target::Rootless { user: Some(account.name.clone()) };
        let mut places = Places::default();
        if let Some(home) = &account.home {
            // Many that are nobody's have a home that is not theirs.
            let owner = look.read(home, fs::metadata(home)).map(|found| found.uid());
            // Perhaps theirs, as seen from a user namespace where its owner has no id.
            let is_unmapped = owner == Some(UNMAPPED) && ids.user(account.id).is_err();
            if is_unmapped || owner == Some(account.id) {
                let is_caller = rustix::process::geteuid().as_raw() == account.id;
                places = Places::of(home, &|name| own(name).filter(|_| is_caller));
            }
        }
        let id = account.id.to_string();
        places.socket = logged_in.contains(&id).then(|| socket(&Path::new(RUNTIME).join(id)));
        places.look(look, &target);
    }
    for process in running {
        if ids.user(process.user).is_err() {
            look.sign(Target::Rootless { user: Some(process.user.to_string()) }, process.shown());
            continue;
        }
        let Some(account) = users.get(&process.user) else {
            look.unseen.push(Error::NoUser { name: format!("{} ({})", process.user, process.shown()) });
            continue;
        };
        run_by(look, process, account);
    }
}

/// Whether a user runs it, on this machine itself.
fn is_rootless(process: &Process) -> bool {
    !process.is_contained && process.user != 0
}

fn socket(directory: &Path) -> PathBuf {
    directory.join("buildkit/buildkitd.sock")
}

/// Where a daemon of a user would leave something.
#[derive(Debug, Default)]
struct Places {
    config: Option<PathBuf>,
    units: Vec<PathBuf>,
    socket: Option<PathBuf>,
    root: Option<PathBuf>,
}

impl Places {
    /// Those of a home, with these variables of its user.
    fn of(home: &Path, variable: &dyn Fn(&str) -> Option<OsString>) -> Self {
        let start = Start {
            arguments: &[],
            variable: &|name| Ok(variable(name)),
            home: &|| Ok(home.to_owned()),
            resolve: &|what, path| Err(Error::Relative { what: what.to_owned(), path }),
        };
        // What is said in a way that leads nowhere is an error of the one that reads it.
        let config_home = start.config_home().ok();
        let units = config_home.iter().flat_map(|config| {
            // One of all users runs for those who have enabled it.
            ["systemd/user", "systemd/user/default.target.wants"].map(|units| config.join(units))
        });
        let units = units.chain([home.join(".local/share/systemd/user")]);
        Self {
            units: units.flat_map(|units| UNITS.map(|unit| units.join(unit))).collect(),
            config: config_home.map(|config| config.join("buildkit")),
            socket: None,
            root: start.default_root().ok(),
        }
    }

    fn look(&self, look: &mut Look, target: &Target) {
        let mut is_seen = false;
        for (what, path) in [("configuration", &self.config), ("socket", &self.socket)] {
            if let Some(path) = path
                && look.is_there(path)
            {
                look.sign(target.clone(), format!("{what} {}", path.display()));
                is_seen = true;
            }
        }
        for path in &self.units {
            // One that is empty, or a link to /dev/null, is masked.
            let unit = look.read(path, fs::metadata(path));
            if unit.is_some_and(|unit| unit.is_file() && unit.len() > 0) {
                look.sign(target.clone(), format!("unit {}", path.display()));
                is_seen = true;
            }
        }
        let mut roots: Vec<PathBuf> = self.root.iter().cloned().collect();
        if is_seen && let Ok(root) = target.find() {
            // As its unit and its configuration say.
            roots.push(root.path().to_owned());
            roots.dedup();
        }
        for root in roots {
            if let Some(state) = State::at(look, &root) {
                look.sign(target.clone(), state.shown);
            }
        }
    }
}

/// What a running daemon tells: it may have its root elsewhere than such a daemon has.
fn run_by(look: &mut Look, process: &Process, account: &Account) {
    let target = Target::Rootless { user: Some(account.name.clone()) };
    let known = look.kept(is_roots(process).and_then(|is_roots| {
        let (root, settings) = if is_roots { root_of_roots(process) } else { root_of(process, account) }?;
        Ok((is_roots, root, settings))
    }));
    let (Some((is_roots, root, settings)), Ok(found)) = (known, target.find()) else {
        look.sign(target, process.shown());
        return;
    };
    let snapshotter = match settings.rootless() {
        Ok(snapshotter) => snapshotter,
        Err(misfit) => {
            let error = Error::Misfit { whose: process.shown(), misfit };
            look.sign_of(target, process.shown(), Err(error));
            return;
        }
    };
    let name = |snapshotter: Option<&String>| snapshotter.map_or("overlayfs", String::as_str).to_owned();
    let (told, to_be) = (name(snapshotter.as_ref()), name(found.kind().snapshotter.as_ref()));
    if root == found.path() && told != to_be {
        let misfit = format!(
            "uses the snapshotter {told}, and --for {target} would write for {to_be}: say `snapshotter = {told:?}` under \
             [worker.oci] in its buildkitd.toml"
        );
        let error = Error::Misfit { whose: process.shown(), misfit };
        look.sign_of(target, process.shown(), Err(error));
        return;
    }
    if root == found.path() {
        look.sign(target, process.shown());
        return;
    }
    let way_out = if is_roots {
        format!("start it with USER={}, without which it takes root's directories", account.name)
    } else {
        format!("say `root = {:?}` in its buildkitd.toml", root.display().to_string())
    };
    let misfit = format!(
        "has its root at {}, and --for {target} would be {}: {way_out}",
        root.display(),
        found.path().display()
    );
    let error = Error::Misfit { whose: process.shown(), misfit };
    look.sign_of(target, process.shown(), Err(error));
}

/// Whether it takes itself for root's: its `$USER` names no plain user.
fn is_roots(process: &Process) -> Result<bool, Error> {
    Ok(!process.variable("USER")?.is_some_and(|name| rootless::is_plain(&name)))
}

/// The root of one that takes itself for root's, and what else it is told.
fn root_of_roots(process: &Process) -> Result<(PathBuf, Settings), Error> {
    let variable = process.variable(CONFIG_VARIABLE)?;
    let config = root::config_of(&process.arguments, variable.as_deref());
    let settings = Settings::at(&process.arguments, &process.absolute(config.into())?)?;
    Ok((process.absolute(settings.root())?, settings))
}

/// The root that it has, by its arguments, its configuration and its environment, and what else it is told.
fn root_of(process: &Process, account: &Account) -> Result<(PathBuf, Settings), Error> {
    let home = || account.home.clone().ok_or_else(|| Error::NoHomeOf { user: account.name.clone() });
    let start = Start {
        arguments: &process.arguments,
        variable: &|name| Ok(process.variable(name)?.map(OsString::from)),
        home: &home,
        resolve: &|_, path| process.absolute(path),
    };
    start.find()
}
