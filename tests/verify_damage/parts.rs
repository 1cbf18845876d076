//! What the damages are made of: files and database entries of a root, by what they are.

use std::fs::{self, OpenOptions, Permissions};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, XattrFlags};

use super::Root;
use super::bolt_tree::{Node, Tree};

/// A record id, and a worker's, that no root has.
pub const NOBODY: &str = "aaaaaaaaaaaaaaaaaaaaaaaaa";
pub const NOTHING: &str = "sha256:00000000000000000000000000000000000000000000000000000000000000aa";
pub const BLOBS: [&str; 4] = ["v1", "buildkit", "content", "blob"];
pub const LEASES: [&str; 3] = ["v1", "buildkit", "leases"];
pub const SNAPSHOTS: [&str; 4] = ["v1", "buildkit", "snapshots", "overlayfs"];
pub const STORED: [&str; 2] = ["v1", "snapshots"];

// Files.

pub fn overwrite(path: &Path, bytes: &[u8]) {
    OpenOptions::new().write(true).truncate(true).open(path).unwrap().write_all(bytes).unwrap();
}

pub fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

pub fn pipe(path: &Path) {
    fs::remove_file(path).unwrap();
    rustix::fs::mknodat(CWD, path, FileType::Fifo, Mode::RUSR, 0).unwrap();
}

pub fn xattr(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::setxattr(path, name, value, XattrFlags::empty()).unwrap();
}

pub fn flip(path: &Path, at: u64) {
    let byte = fs::read(path).unwrap()[usize::try_from(at).unwrap()];
    let mut file = OpenOptions::new().write(true).open(path).unwrap();
    file.seek(SeekFrom::Start(at)).unwrap();
    file.write_all(&[byte ^ 1]).unwrap();
}

pub fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// Where the meta page that counts is.
pub fn meta(bytes: &[u8]) -> usize {
    if word(bytes, 16 + 48) > word(bytes, 4096 + 16 + 48) { 16 } else { 4096 + 16 }
}

/// Flips a bit in the number that the root page bears.
pub fn flip_page(path: &Path) {
    let bytes = fs::read(path).unwrap();
    flip(path, word(&bytes, meta(&bytes) + 16) * 4096);
}

/// Puts the root page into the freelist.
pub fn free_in_use(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let meta = meta(&bytes);
    let page = usize::try_from(word(&bytes, meta + 32)).unwrap() * 4096;
    let root = word(&bytes, meta + 16);
    bytes[page + 10..page + 12].copy_from_slice(&1u16.to_le_bytes());
    bytes[page + 16..page + 24].copy_from_slice(&root.to_le_bytes());
    overwrite(path, &bytes);
}

/// A blob that a record has.
pub fn some_blob(root: &Root) -> PathBuf {
    let digest = root.read("containerd").at(&BLOBS).names()[0].clone();
    blob_path(root, &digest)
}

pub fn blob_path(root: &Root, digest: &str) -> PathBuf {
    root.worker("content/blobs/sha256").join(digest.strip_prefix("sha256:").unwrap())
}

/// A regular file in a snapshot, with another beside it.
pub fn a_file(root: &Root) -> PathBuf {
    root.worker("snapshots/snapshots/3/fs/docs/guide.md")
}

/// The first path of some snapshot for which `is` holds.
pub fn find(root: &Root, is: &dyn Fn(&fs::Metadata) -> bool) -> PathBuf {
    let mut todo = vec![root.worker("snapshots/snapshots")];
    while let Some(directory) = todo.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let metadata = fs::symlink_metadata(&path).unwrap();
            if is(&metadata) {
                return path;
            }
            if metadata.is_dir() {
                todo.push(path);
            }
        }
    }
    panic!("no such file in the good root");
}

// Databases.

#[track_caller]
pub fn first(tree: &mut Tree) -> &mut Tree {
    let name = tree.names()[0].clone();
    tree.at(&[&name])
}

pub fn json(record: &mut Tree, key: &str, value: &str) {
    record.put(key, format!(r#"{{"value":"{value}"}}"#));
}

#[track_caller]
pub fn string(record: &Tree, key: &str) -> String {
    let value: serde_json::Value = serde_json::from_slice(&record.value(key)).unwrap();
    value["value"].as_str().unwrap().to_owned()
}

/// A record and one that stands on it.
pub fn pair(records: &mut Tree) -> (String, String) {
    let main = records.at(&["_main"]);
    let child = main.names().into_iter().find(|id| main.at(&[id]).entries.contains_key(&b"cache.parent"[..]));
    let child = child.unwrap();
    (string(main.at(&[&child]), "cache.parent"), child)
}

/// A record that none stands on.
pub fn leaf(records: &mut Tree) -> String {
    let main = records.at(&["_main"]);
    let ids = main.names();
    let has_parent = |main: &mut Tree, id: &str| main.at(&[id]).entries.contains_key(&b"cache.parent"[..]);
    let parents: Vec<String> = ids
        .iter()
        .filter_map(
            |id| if has_parent(main, id) { Some(string(main.at(&[id]), "cache.parent")) } else { None },
        )
        .collect();
    ids.into_iter().find(|id| !parents.contains(id) && has_parent(main, id)).unwrap()
}

/// Gives an indexed value and its index another digest.
pub fn indexed(records: &mut Tree, key: &str, index: &str) {
    let id = leaf(records);
    let old = string(records.at(&["_main", &id]), key);
    let value = format!(r#"{{"value":"{NOTHING}","index":"{index}{NOTHING}"}}"#);
    records.at(&["_main", &id]).put(key, value);
    records.at(&["_index"]).rename(&format!("{index}{old}::{id}"), &format!("{index}{NOTHING}::{id}"));
}

/// Makes a record lazy and returns its blob and snapshot key.
pub fn make_lazy(root: &Root) -> (String, String) {
    let mut found = (String::new(), String::new());
    root.edit("records", |t| {
        let id = leaf(t);
        let record = t.at(&["_main", &id]);
        record.put("cache.blobonly", r#"{"value":true}"#);
        found = (string(record, "cache.blob"), string(record, "cache.snapshot"));
    });
    found
}

pub fn child_of(snapshots: &mut Tree) -> String {
    let has_parent = |snapshots: &mut Tree, key: &str| {
        snapshots
            .at(&[key])
            .entries
            .get(&b"parent"[..])
            .is_some_and(|p| !matches!(p, Node::Value(v) if v.is_empty()))
    };
    snapshots.names().into_iter().find(|key| has_parent(snapshots, key)).unwrap()
}

/// A snapshot of containerd's metadata that has a parent and no children.
pub fn leaf_snapshot(containerd: &mut Tree) -> String {
    let snapshots = containerd.at(&SNAPSHOTS);
    let is_leaf = |snapshot: &Tree| {
        snapshot.entries.contains_key(&b"parent"[..])
            && !matches!(snapshot.entries.get(&b"children"[..]), Some(Node::Bucket(c)) if !c.entries.is_empty())
    };
    snapshots.names().into_iter().find(|key| is_leaf(snapshots.at(&[key]))).unwrap()
}

/// A snapshot of the snapshotter's database that none has for parent.
pub fn leaf_stored(store: &mut Tree) -> String {
    let snapshots = store.at(&STORED);
    let parents: Vec<String> = snapshots
        .names()
        .iter()
        .filter_map(|name| {
            let snapshot = snapshots.at(&[name]);
            snapshot.entries.contains_key(&b"parent"[..]).then(|| snapshot.text("parent"))
        })
        .collect();
    snapshots.names().into_iter().find(|name| !parents.contains(name)).unwrap()
}

pub fn remove_snapshot(containerd: &mut Tree, key: &str) {
    let Node::Bucket(removed) = containerd.at(&SNAPSHOTS).remove(key) else { panic!() };
    let parent = removed.text("parent");
    containerd.at(&SNAPSHOTS).at(&[&parent, "children"]).remove(key);
}

pub fn name_of(containerd: &mut Tree, key: &str) -> String {
    containerd.at(&SNAPSHOTS).at(&[key]).text("name")
}

/// A snapshot's parent, the snapshot, which has no children, and a third one that is neither.
pub fn three(containerd: &mut Tree) -> (String, String, String) {
    let key = leaf_snapshot(containerd);
    let snapshots = containerd.at(&SNAPSHOTS);
    let parent = snapshots.at(&[&key]).text("parent");
    let other = snapshots.names().into_iter().find(|name| *name != key && *name != parent).unwrap();
    (parent, key, other)
}

/// Gives a snapshot another parent in containerd's metadata; returns its key, its name and the new parent's.
pub fn move_snapshot(root: &Root) -> (String, String, String) {
    let mut moved = (String::new(), String::new(), String::new());
    root.edit("containerd", |t| {
        let (parent, key, other) = three(t);
        let snapshots = t.at(&SNAPSHOTS);
        snapshots.at(&[&key]).put("parent", &other);
        snapshots.at(&[&parent, "children"]).remove(&key);
        let new = snapshots.at(&[&other]);
        if !new.entries.contains_key(&b"children"[..]) {
            new.entries.insert(b"children".to_vec(), Node::Bucket(Tree::default()));
        }
        new.at(&["children"]).put(&key, "");
        moved = (key.clone(), name_of(t, &key), name_of(t, &other));
    });
    moved
}

/// Gives a snapshot another parent in the snapshotter's database, its index included.
pub fn reparent(store: &mut Tree, name: &str, parent: &str) {
    let id = |store: &mut Tree, name: &str| store.at(&STORED).at(&[name]).value("id");
    let old = store.at(&STORED).at(&[name]).text("parent");
    let (own, old, new) = (id(store, name), id(store, &old), id(store, parent));
    store.at(&STORED).at(&[name]).put("parent", parent);
    let index = store.at(&["v1", "parents"]);
    index.remove([&old[..], &[0], &own].concat());
    index.put([&new[..], &[0], &own].concat(), name);
}

/// A key with results that no key has as input.
pub fn end_key(cache: &mut Tree) -> String {
    let ends: Vec<String> = cache.at(&["_result"]).names();
    let links = cache.at(&["_links"]);
    ends.into_iter().find(|id| links.at(&[id]).entries.is_empty()).unwrap()
}

/// A link that is the only one of its operation: the key it stands at, its JSON, its target.
pub fn some_link(cache: &mut Tree) -> (String, String, String) {
    let mut all = Vec::new();
    let links = cache.at(&["_links"]);
    for id in links.names() {
        for entry in links.at(&[&id]).names() {
            let (json, target) = entry.rsplit_once('@').unwrap();
            all.push((id.clone(), json.to_owned(), target.to_owned()));
        }
    }
    let alone = |target: &str| all.iter().filter(|(_, _, other)| other == target).count() == 1;
    all.iter().find(|(_, _, target)| alone(target)).unwrap().clone()
}

/// Changes the JSON of a link.
pub fn change_link(cache: &mut Tree, change: impl FnOnce(&str) -> String) {
    let (from, json, target) = some_link(cache);
    let links = cache.at(&["_links"]).at(&[&from]);
    links.remove(format!("{json}@{target}"));
    links.put(format!("{}@{target}", change(&json)), "");
}

/// Makes some link of `cache.db` and a new one back a circle.
pub fn circle(t: &mut Tree) {
    let (from, _, target) = some_link(t);
    let link = format!(r#"{{"Digest":"{NOTHING}"}}@{from}"#);
    t.at(&["_links"]).at(&[&target]).put(link, "");
    if !t.at(&["_backlinks"]).entries.contains_key(from.as_bytes()) {
        t.at(&["_backlinks"]).entries.insert(from.clone().into_bytes(), Node::Bucket(Tree::default()));
    }
    t.at(&["_backlinks"]).at(&[&from]).put(target, "");
}
