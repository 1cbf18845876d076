//! Who runs the daemon of a view: this process, or the plain user to whom the root belongs.
//!
//! A rootless daemon that is run as root takes other attributes for marks, and sees other owners: what it said of such a
//! root would say nothing. So the user runs it, as for real: with rootlesskit, in a user namespace of its own.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::lchown;
use std::path::Path;

use super::{LiveError, fail};
use crate::daemon::{self, on_path};
use crate::root::files::Tree;
use crate::userns::Owners;
use crate::verify::owners;

/// What makes a user namespace for the daemon; files of `/etc` and `/run` it may replace there.
const NAMESPACE: [&str; 4] = ["rootlesskit", "--net=host", "--copy-up=/etc", "--copy-up=/run"];

/// Who runs the daemon.
#[derive(Debug, Default)]
pub(super) struct Runner {
    /// The user and the group to whom the root belongs, where they are not those of this process.
    owner: Option<(u32, u32)>,
    /// Whether the daemon's namespace is not the machine's.
    pub(super) in_namespace: bool,
    /// What the daemon is started by.
    pub(super) through: Vec<OsString>,
    /// Variables of its environment.
    pub(super) environment: Vec<(OsString, Option<OsString>)>,
}

impl Runner {
    /// Who runs the daemon of the root at `tree`; `own` is a directory of its own.
    pub(super) fn of(tree: &Tree, own: &Path) -> Result<Self, LiveError> {
        let proc = Path::new("/proc/self/uid_map");
        if Owners::of_this_process().map_err(fail("read", proc))?.is_namespace() {
            return Ok(Self { in_namespace: true, ..Self::default() });
        }
        let stat = tree
            .stat(Path::new(""))
            .map_err(|fault| LiveError::Damaged { path: tree.path.clone(), detail: fault.detail })?;
        if stat.st_uid == 0 {
            return Ok(Self::default());
        }
        for program in ["setpriv", "rootlesskit"] {
            if on_path(program).is_none() {
                let place = format!("in $PATH, for the daemon of user {}, whose root this is", stat.st_uid);
                return Err(daemon::Error::NoProgram { program, place }.into());
            }
        }
        let (user, group) = (format!("--reuid={}", stat.st_uid), format!("--regid={}", stat.st_gid));
        let become_user = ["setpriv", &user, &group, "--clear-groups", "--"];
        let known = owners::user(stat.st_uid, |path| fs::read_to_string(path).ok());
        let name = known.map_or_else(|| stat.st_uid.to_string(), |user| user.name);
        let own = own.as_os_str().to_owned();
        let mut environment: Vec<_> =
            ["HOME", "TMPDIR", "XDG_RUNTIME_DIR"].map(|name| (name.into(), Some(own.clone()))).into();
        // Who is called root is taken for one.
        environment.push(("USER".into(), Some(name.into())));
        for name in ["XDG_CONFIG_HOME", "XDG_DATA_HOME"] {
            environment.push((name.into(), None));
        }
        Ok(Self {
            owner: Some((stat.st_uid, stat.st_gid)),
            in_namespace: true,
            through: become_user.into_iter().chain(NAMESPACE).map(OsString::from).collect(),
            environment,
        })
    }

    /// Makes what was made for the daemon its own.
    pub(super) fn own(&self, path: &Path) -> Result<(), LiveError> {
        match self.owner {
            Some((user, group)) => {
                lchown(path, Some(user), Some(group)).map_err(fail("change the owner of", path))
            }
            None => Ok(()),
        }
    }
}
