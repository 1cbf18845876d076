//! What tells of a `buildkitd` that runs as root.

use std::path::Path;

use super::processes::telling;
use super::{Look, Process, Processes, State, Way};
use crate::builder::root::{self, Root, UNITS};
use crate::builder::settings::{CONFIG_VARIABLE, DEFAULT_ROOT, Settings, argument};
use crate::builder::{Error, Target, unit};

/// Where it listens unless it is told otherwise.
const SOCKET: &str = "/run/buildkit/buildkitd.sock";
/// What a bake writes for where nothing is said.
const DEFAULT_SNAPSHOTTER: &str = "overlayfs";
const IN_CONTAINERD: Target = Target::Containerd { address: None };

pub(super) fn look(look: &mut Look, daemons: &Processes) {
    let mut evidence = Vec::new();
    let mut arguments = Vec::new();
    for unit in UNITS {
        if let Some(told) = unit::find(unit) {
            let runs = if unit::is_active(unit) { ", which runs" } else { "" };
            let telling = telling(&told).join(" ");
            let with = if telling.is_empty() { telling } else { format!(", with {telling}") };
            evidence.push(format!("unit {unit}{runs}{with}"));
            arguments.extend(told);
        }
    }
    let config = root::config_of_host(&arguments);
    if look.is_there(&config) {
        evidence.push(format!("configuration {}", config.display()));
    }
    if look.is_there(Path::new(SOCKET)) {
        evidence.push(format!("socket {SOCKET}"));
    }
    let settings = root::settings_of_host().ok();
    // What cannot be read is an error of the one that reads it.
    let targets = settings.as_ref().map_or_else(|| vec![Target::Host], targets);
    for target in &targets {
        for evidence in &evidence {
            look.sign(target.clone(), evidence.clone());
        }
    }
    let root = settings.as_ref().map_or_else(|| DEFAULT_ROOT.into(), Settings::root);
    if let Some(State { shown, has_oci, has_containerd }) = State::at(look, &root) {
        if has_containerd && !has_oci {
            look.sign(IN_CONTAINERD, shown);
        } else if evidence.is_empty() || targets.contains(&Target::Host) {
            look.sign(Target::Host, shown);
        } else {
            look.sign(IN_CONTAINERD, shown);
        }
    }
    let is_seen = |look: &Look| look.signs.iter().any(|sign| sign.way == IN_CONTAINERD.into());
    if let Some(settings) = &settings
        && is_seen(look)
    {
        let address = settings.containerd_address();
        if look.is_there(Path::new(address.strip_prefix("unix://").unwrap_or(&address))) {
            look.sign(IN_CONTAINERD, format!("socket {address}"));
        }
    }
    for process in daemons.buildkitd.iter().filter(|process| is_of_host(process)) {
        if let Err(error) = run_by(look, process) {
            look.sign_of(Target::Host, process.shown(), Err(error));
        }
    }
}

/// Whether root runs it, on this machine itself.
fn is_of_host(process: &Process) -> bool {
    !process.is_contained && !process.is_mapped && process.user == 0
}

/// Whose words are for a daemon with these settings.
fn targets(settings: &Settings) -> Vec<Target> {
    match settings.workers() {
        (true, true) => vec![Target::Host, IN_CONTAINERD],
        (false, true) => vec![IN_CONTAINERD],
        // One without any worker is refused by its name.
        (_, false) => vec![Target::Host],
    }
}

/// What a running daemon tells: it may have been started with other words than its unit has.
fn run_by(look: &mut Look, process: &Process) -> Result<(), Error> {
    let shown = process.shown();
    let arguments = &process.arguments;
    let variable = match argument(arguments, "config") {
        Some(_) => None,
        None => look.kept(process.variable(CONFIG_VARIABLE)).flatten(),
    };
    let config = process.absolute(root::config_of(arguments, variable.as_deref()).into())?;
    let settings = Settings::at(arguments, &config)?;
    let whose = format!("{shown},");
    let (has_oci, has_containerd) = settings.workers();
    if has_containerd && !has_oci {
        return run_in_containerd(look, process, &settings);
    }
    let root = match root::of_settings(&whose, &settings) {
        Ok(root) => root,
        Err(error) => {
            look.sign_of(Target::Host, shown, Err(error));
            return Ok(());
        }
    };
    let root = Root::of(process.absolute(root.path().to_owned())?, root.kind().clone());
    match Target::Host.find() {
        Ok(found) if is_same(&found, &root) => look.sign(Target::Host, shown),
        _ => {
            let told = root.kind().snapshotter.as_ref();
            let told = told.map(|name| format!(" (a bake is told --snapshotter {name})")).unwrap_or_default();
            look.sign_of(Way::Root(root.path().to_owned()), shown + &told, Ok(root));
        }
    }
    Ok(())
}

fn run_in_containerd(look: &mut Look, process: &Process, settings: &Settings) -> Result<(), Error> {
    let shown = process.shown();
    let root = match root::of_settings_in_containerd(&format!("{shown},"), settings, None) {
        Ok(root) => root,
        Err(error) => {
            look.sign_of(IN_CONTAINERD, shown, Err(error));
            return Ok(());
        }
    };
    let root = Root::of(process.absolute(root.path().to_owned())?, root.kind().clone());
    let address = Some(settings.containerd_address());
    let moved = Some(root.path().to_owned());
    let named = |address: Option<String>| Target::Containerd { address };
    let ways = [
        Way::from(IN_CONTAINERD),
        Way::from(named(address.clone())),
        Way::For { target: IN_CONTAINERD, root: moved.clone() },
        Way::For { target: named(address), root: moved },
    ];
    let found = ways.iter().find(|way| way.find().is_ok_and(|found| is_same(&found, &root)));
    if let Some(way) = found {
        look.sign(way.clone(), shown);
    } else {
        let misfit = "is told a namespace or a snapshotter of containerd on its command line: a bake finds them in its \
                      buildkitd.toml alone";
        let error = Error::Misfit { whose: shown.clone(), misfit: misfit.to_owned() };
        look.sign_of(IN_CONTAINERD, shown, Err(error));
    }
    Ok(())
}

/// Whether a bake makes the same of them.
fn is_same(one: &Root, other: &Root) -> bool {
    let kind = |root: &Root| {
        let snapshotter = root.kind().snapshotter.as_deref().unwrap_or(DEFAULT_SNAPSHOTTER).to_owned();
        (snapshotter, root.kind().containerd.clone())
    };
    one.path() == other.path() && kind(one) == kind(other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_tell_whose_root_it_is() {
        let cases: [(&str, &[Target]); 4] = [
            ("", &[Target::Host]),
            ("[worker.containerd]\nenabled = true", &[Target::Host, IN_CONTAINERD]),
            ("[worker.oci]\nenabled = false", &[IN_CONTAINERD]),
            ("[worker.oci]\nenabled = false\n[worker.containerd]\nenabled = false", &[Target::Host]),
        ];
        for (config, expected) in cases {
            assert_eq!(targets(&Settings::read(&[], Some(config)).unwrap()), expected, "{config:?}");
        }
    }
}
