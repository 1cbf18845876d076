//! The commands that there are, as the manual names them.

use std::fs;
use std::process::Command;

/// `bake`, `keys check` and so on, in alphabetical order; not `keys`, which is a name for several.
pub fn commands() -> Vec<Vec<String>> {
    let dir = tempfile::tempdir().unwrap();
    let mut man = Command::new(env!("CARGO_BIN_EXE_warmkit"));
    assert!(man.arg("man").arg(dir.path()).status().unwrap().success());
    let pages =
        fs::read_dir(dir.path()).unwrap().map(|page| page.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = pages
        .filter_map(|page| Some(page.strip_prefix("warmkit-")?.strip_suffix(".1")?.to_owned()))
        .collect();
    names.sort();
    let of_several: Vec<String> =
        names.iter().filter_map(|name| Some(format!("{}-", name.split_once('-')?.0))).collect();
    names.retain(|name| !of_several.contains(&format!("{name}-")));
    names.iter().map(|name| name.split('-').map(str::to_owned).collect()).collect()
}
