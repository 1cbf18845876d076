//! Finds the real parts that `scripts/tools` installs.

use std::env;
use std::path::{Path, PathBuf};

/// BuildKit releases that every end-to-end promise is tested on.
pub const RELEASES: [&str; 3] = ["v0.34.2", "v0.33.1", "v0.17.3"];

/// The newest of [`RELEASES`].
pub const NEWEST: &str = RELEASES[0];

/// The real parts, all found.
#[derive(Debug, Clone)]
pub struct Tools {
    /// BuildKit release that `buildkitd` and `buildctl` are of.
    pub release: String,
    /// The daemon.
    pub buildkitd: PathBuf,
    /// Its client.
    pub buildctl: PathBuf,
    /// Docker's registry, as Debian packages it.
    pub registry: PathBuf,
    /// A statically linked busybox.
    pub busybox: PathBuf,
    /// OpenSSH's agent.
    pub ssh_agent: PathBuf,
    /// bbolt's own consistency check.
    pub bbolt_check: PathBuf,
}

impl Tools {
    /// Finds every part for `release`.
    ///
    /// `None` when one is missing, after it said which; the test is then to return.
    ///
    /// # Panics
    ///
    /// When one is missing and `WARMKIT_REQUIRE_REAL=1`.
    #[track_caller]
    pub fn find(release: &str) -> Option<Self> {
        match Self::look_for(release) {
            Ok(tools) => Some(tools),
            Err(missing) => {
                super::skip::skip(&missing);
                None
            }
        }
    }

    fn look_for(release: &str) -> Result<Self, String> {
        if !rustix::process::geteuid().is_root() {
            return Err("BuildKit's daemon needs root".into());
        }
        on_path("runc").ok_or("no runc in $PATH")?;
        let base = directory().ok_or("neither $WARMKIT_TOOLS, $XDG_CACHE_HOME nor $HOME is set")?;
        let bin = base.join(format!("buildkit-{release}/bin"));
        let file =
            |path: PathBuf| if path.is_file() { Ok(path) } else { Err(format!("no {}", path.display())) };
        let busybox = on_path("busybox").ok_or("no busybox in $PATH")?;
        let bytes = std::fs::read(&busybox).map_err(|e| format!("{}: {e}", busybox.display()))?;
        if !is_static(&bytes) {
            return Err(format!("{} is not statically linked", busybox.display()));
        }
        Ok(Self {
            release: release.to_owned(),
            buildkitd: file(bin.join("buildkitd"))?,
            buildctl: file(bin.join("buildctl"))?,
            registry: on_path("docker-registry").ok_or("no docker-registry in $PATH")?,
            ssh_agent: on_path("ssh-agent").ok_or("no ssh-agent in $PATH")?,
            bbolt_check: file(base.join("bbolt-check/bin/bbolt-check"))?,
            busybox,
        })
    }
}

/// The release of buildx that the documented commands are tried with.
pub const BUILDX: &str = "v0.37.2";

/// Finds buildx.
///
/// `None` when it is missing, after it said so; the test is then to return.
///
/// # Panics
///
/// When it is missing and `WARMKIT_REQUIRE_REAL=1`.
#[track_caller]
pub fn buildx() -> Option<PathBuf> {
    let file = directory().map(|base| base.join(format!("buildx-{BUILDX}/bin/buildx")));
    let found = file.clone().filter(|file| file.is_file());
    if found.is_none() {
        super::skip::skip(&format!("no {}", file.unwrap_or_default().display()));
    }
    found
}

/// The release of the Dockerfile frontend that `scripts/tools` builds.
const FRONTEND: &str = "v0.34.2";

/// The program of a Dockerfile frontend's image; `None` when it is missing, after it said so.
///
/// # Panics
///
/// When it is missing and `WARMKIT_REQUIRE_REAL=1`.
#[track_caller]
pub fn dockerfile_frontend() -> Option<PathBuf> {
    let path = format!("dockerfile-frontend-{FRONTEND}/bin/dockerfile-frontend");
    let file = directory().map(|base| base.join(path));
    let found = file.clone().filter(|file| file.is_file());
    if found.is_none() {
        super::skip::skip(&format!("no {}", file.unwrap_or_default().display()));
    }
    found
}

/// The registry of tests/support/referrers-registry, or what is missing.
pub fn referrers_registry() -> Result<PathBuf, String> {
    let base = directory().ok_or("neither $WARMKIT_TOOLS, $XDG_CACHE_HOME nor $HOME is set")?;
    let path = base.join("referrers-registry/bin/referrers-registry");
    if path.is_file() { Ok(path) } else { Err(format!("no {}", path.display())) }
}

/// Where `scripts/tools` puts things.
pub fn directory() -> Option<PathBuf> {
    let set = |name| env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    set("WARMKIT_TOOLS").or_else(|| {
        let cache = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")))?;
        Some(cache.join("warmkit/tools"))
    })
}

/// Whether a 64-bit little-endian ELF file asks for no loader (`PT_INTERP`), so that it runs in an
/// image of its own.
fn is_static(elf: &[u8]) -> bool {
    const PT_INTERP: u32 = 3;
    let number = |at: usize, len: usize| -> Option<usize> {
        let bytes = elf.get(at..at.checked_add(len)?)?;
        bytes.iter().rev().try_fold(0_usize, |n, &b| n.checked_mul(256)?.checked_add(usize::from(b)))
    };
    let interpreted = || -> Option<bool> {
        let (start, size, count) = (number(0x20, 8)?, number(0x36, 2)?, number(0x38, 2)?);
        let types = (0..count).map(|i| number(start + i * size, 4));
        Some(types.collect::<Option<Vec<_>>>()?.contains(&(PT_INTERP as usize)))
    };
    elf.starts_with(b"\x7fELF\x02\x01") && interpreted() == Some(false)
}

/// The program `name` in `$PATH`, or where Debian keeps what only root runs.
pub fn on_path(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(name))
        .find(|file: &PathBuf| Path::is_file(file))
}
