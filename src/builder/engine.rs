//! Directories that are dockerd's own builder's.

use std::path::{Path, PathBuf};

use super::data_root;
use super::settings::DEFAULT_ROOT;

/// The directory of dockerd's own builder that a path is, or is in: where this machine's dockerd keeps it, or would. The
/// path is absolute, without links.
pub fn engine_around(path: &Path) -> Option<PathBuf> {
    let is_candidate = |directory: &&Path| {
        directory.file_name().is_some_and(|name| name == data_root::ENGINE)
            && *directory != Path::new(DEFAULT_ROOT)
    };
    let mut candidates = path.ancestors().filter(is_candidate).peekable();
    // systemd is asked only where it matters.
    candidates.peek()?;
    let engines = [data_root::of_engine().ok(), Some(data_root::default_engine())];
    let found =
        candidates.find(|candidate| engines.iter().flatten().any(|engine| resolved(engine) == **candidate));
    found.map(Path::to_owned)
}

/// The same by where dockerd keeps it that is told nothing: on a machine that is not this one.
pub fn default_engine_around(path: &Path) -> Option<PathBuf> {
    let engine = data_root::default_engine();
    path.starts_with(&engine).then_some(engine)
}

/// Without links, also where dockerd has not made it yet.
fn resolved(engine: &Path) -> PathBuf {
    let of_parent = || Some(engine.parent()?.canonicalize().ok()?.join(engine.file_name()?));
    engine.canonicalize().ok().or_else(of_parent).unwrap_or_else(|| engine.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_in_dockers_own_state_is_known_by_its_name() {
        let engine = Path::new("/var/lib/docker/buildkit");
        for (path, expected) in [
            ("/var/lib/docker/buildkit", true),
            ("/var/lib/docker/buildkit/nonexistent", true),
            ("/var/lib/docker/buildkit2", false),
            ("/var/lib/docker", false),
            ("/var/lib/buildkit", false),
            ("/srv/buildkit/x", false),
        ] {
            let found = engine_around(Path::new(path));
            assert_eq!(found.as_deref(), expected.then_some(engine), "{path}");
        }
    }
}
