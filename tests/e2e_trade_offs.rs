//! What docs/trade-offs.md says of the ways to have a cache on a machine, tried on real daemons: which steps are CACHED
//! on a machine that boots, untouched and after a change, with and without a network.
//!
//! CI runs this with packages of 1 MB, and of the rarer boots those of one way only. `scripts/trade-offs` runs all with
//! larger ones, named in `$WARMKIT_TRADE_OFFS_MB`, and takes what was measured from the file `$WARMKIT_TRADE_OFFS_OUT`.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod support;

use std::env;
use std::fs;

use serde_json::{Map, Value, json};
use support::tools::{self, Tools};
use support::trade_offs::{BOOTS, Boot, Found, Made, WAYS, Way, World};

/// The release of the daemon in [`Boot::Release`]: one that computes other keys.
const OTHER: &str = "v0.12.5";

/// What is tried in every way, and has one outcome: the rest is chance, or slow.
const CERTAIN: [Boot; 4] = [Boot::Untouched, Boot::Changed, Boot::UntouchedOffline, Boot::ChangedOffline];

/// All that one way was tried for.
struct Tried {
    way: Way,
    made: Made,
    found: Vec<(Boot, Found)>,
    torn: Option<Found>,
}

impl Tried {
    fn of(world: &World, way: Way, all: bool) -> Self {
        let mut image = world.make(way);
        eprintln!("{way:?}: {:?}", image.made);
        let boot = |boot| {
            let found = world.boot(&image, boot);
            eprintln!("{way:?}, {boot:?}: {found:?}");
            (boot, found)
        };
        // Where the import is the way, there is no other beside it.
        let imports = matches!(way, Way::Registry | Way::Layout);
        let boots = BOOTS.into_iter().filter(|boot| all || CERTAIN.contains(boot));
        let found = boots.filter(|boot| !(imports && *boot == Boot::ChangedImporting)).map(boot).collect();
        // What a snapshot of a running builder lacks is chance, too.
        let torn = if all { world.boot_torn(&mut image) } else { None };
        torn.iter().for_each(|torn| eprintln!("{way:?}, torn: {torn:?}"));
        Self { way, made: image.made, found, torn }
    }

    fn found(&self, boot: Boot) -> &Found {
        &self.found.iter().find(|(other, _)| *other == boot).unwrap().1
    }

    /// Steps that were CACHED in the one build of a boot; nothing where it failed.
    fn cached(&self, boot: Boot) -> Option<usize> {
        let cached = self.found(boot).cached.as_ref()?;
        assert_eq!(cached.len(), 1, "{boot:?}");
        Some(cached[0])
    }

    fn json(&self) -> Value {
        let found: Map<String, Value> =
            self.found.iter().map(|(boot, found)| (name(boot), json!(found))).collect();
        json!({ "way": self.way, "made": self.made, "found": found, "torn": self.torn })
    }
}

fn name(of: &impl serde::Serialize) -> String {
    json!(of).as_str().unwrap().to_owned()
}

#[test]
fn each_way_finds_what_is_documented() {
    let (Some(tools), Some(other)) = (Tools::find(tools::NEWEST), Tools::find(OTHER)) else { return };
    for program in ["skopeo", "mkfs.ext4", "fstrim", "unshare"] {
        if tools::on_path(program).is_none() {
            support::skip::skip(&format!("no {program} in $PATH"));
            return;
        }
    }
    let megabytes: Option<usize> = env::var("WARMKIT_TRADE_OFFS_MB").ok().map(|text| text.parse().unwrap());
    let world = World::start(tools, other, megabytes.unwrap_or(1));
    let tried = WAYS.map(|way| Tried::of(&world, way, megabytes.is_some() || way == Way::Warmkit));
    let (layers, records, bytes) = world.cache();
    if let Some(out) = env::var_os("WARMKIT_TRADE_OFFS_OUT") {
        let measured = json!({
            "release": tools::NEWEST,
            "other": OTHER,
            "cores": std::thread::available_parallelism().unwrap(),
            "cache": { "layers": layers, "records": records, "bytes": bytes },
            "ways": tried.iter().map(Tried::json).collect::<Vec<_>>(),
        });
        fs::write(out, measured.to_string()).unwrap();
    }
    assert!(records >= 30, "{records} records: too small a cache to tell much");
    let mut faults: Vec<String> = tried.iter().flat_map(|way| surprises(way, &tried)).collect();
    if megabytes.is_none() {
        let document = include_str!("../docs/trade-offs.md");
        faults.extend(tried.iter().flat_map(|way| undocumented(way, document)));
    }
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

/// What a way has found otherwise than it must.
fn surprises(tried: &Tried, all: &[Tried]) -> Vec<String> {
    let volume = all.iter().find(|tried| tried.way == Way::Volume).unwrap();
    let steps = volume.found(Boot::Untouched).steps;
    // What the daemon that did the build has still, no other can better.
    let (every, possible) = (Some(steps), volume.cached(Boot::Changed));
    assert!(possible.is_some_and(|possible| possible < steps), "nothing had to run after a change");
    let mut faults = Vec::new();
    let expected = match tried.way {
        Way::Volume | Way::Stages | Way::Warmkit => [every, possible, every, possible],
        Way::Registry | Way::Layout => [every, possible, None, None],
        Way::Build => {
            // Steps that the change has nothing to do with ran as well: how many, the document says.
            let cached = tried.cached(Boot::Changed);
            if cached.is_none() || cached >= possible {
                faults.push(format!("Build: {cached:?} of {possible:?} possible steps after a change"));
            }
            [every, cached, every, None]
        }
    };
    for (boot, expected) in CERTAIN.into_iter().zip(expected) {
        let found = tried.cached(boot);
        if found != expected {
            faults.push(format!("{:?}, {boot:?}: {found:?} steps CACHED, not {expected:?}", tried.way));
        }
        let Found { network, extractions, .. } = *tried.found(boot);
        if tried.way == Way::Warmkit && (network, extractions) != (0, 0) {
            faults.push(format!("Warmkit, {boot:?}: {network} bytes loaded, {extractions} layers extracted"));
        }
    }
    if tried.way == Way::Warmkit {
        // There is nothing left for an import to find.
        let boot = Boot::ChangedImporting;
        let (found, extractions) = (tried.cached(boot), tried.found(boot).extractions);
        if (found, extractions) != (possible, 0) {
            faults.push(format!("Warmkit, {boot:?}: {found:?} steps CACHED, {extractions} layers extracted"));
        }
    }
    faults
}

/// Where the table of docs/trade-offs.md has another number of CACHED steps.
fn undocumented(tried: &Tried, document: &str) -> Vec<String> {
    let cells = |line: &str| line.split('|').map(|text| text.trim().to_owned()).collect::<Vec<_>>();
    let line = |start: &str| document.lines().find(|line| line.starts_with(start)).map(cells);
    let steps = tried.found.iter().map(|(_, found)| found.steps).max().unwrap();
    let rows = [
        (Boot::Untouched, "| untouched |"),
        (Boot::Changed, "| one source file changed |"),
        (Boot::UntouchedOffline, "| untouched, no network |"),
        (Boot::ChangedOffline, "| changed, no network |"),
    ];
    let said = |row: &str| {
        let head = line(&format!("| of {steps} steps |"))?;
        let column = head.iter().position(|cell| cell.ends_with(&format!("({})", name(&tried.way))))?;
        line(row)?.get(column).cloned()
    };
    let differs = |(boot, row): (Boot, &str)| {
        let found = tried.cached(boot).map_or("fails".to_owned(), |cached| cached.to_string());
        let said = said(row);
        (said.as_ref() != Some(&found))
            .then(|| format!("{:?}, {boot:?}: found {found}, docs/trade-offs.md says {said:?}", tried.way))
    };
    rows.into_iter().filter_map(differs).collect()
}
