//! A bolt database as a tree that tests change and write back.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use warmkit::bolt::{Bucket, BucketRef, Database, Item, PageSize};

/// What stands under a key.
#[derive(Debug, Clone)]
pub enum Node {
    /// A value.
    Value(Vec<u8>),
    /// A bucket.
    Bucket(Tree),
}

/// A bucket.
#[derive(Debug, Clone, Default)]
pub struct Tree {
    /// Its sequence.
    pub sequence: u64,
    /// What is in it.
    pub entries: BTreeMap<Vec<u8>, Node>,
}

impl Tree {
    fn read(bucket: BucketRef<'_>) -> Self {
        let entries = bucket.iter().map(|item| {
            let (key, item) = item.unwrap();
            let node = match item {
                Item::Value(value) => Node::Value(value.to_vec()),
                Item::Bucket(bucket) => Node::Bucket(Self::read(bucket)),
            };
            (key.to_vec(), node)
        });
        Self { sequence: bucket.sequence(), entries: entries.collect() }
    }

    fn write(&self, bucket: &mut Bucket) {
        bucket.set_sequence(self.sequence);
        for (key, node) in &self.entries {
            match node {
                Node::Value(value) => bucket.put(key.clone(), value.clone()),
                Node::Bucket(tree) => tree.write(bucket.bucket(key.clone())),
            }
        }
    }

    /// Makes it a database with such pages, in place of one that is there.
    #[track_caller]
    pub fn save(&self, path: &Path, pages: PageSize) {
        let mut bucket = Bucket::new();
        self.write(&mut bucket);
        fs::write(path, bucket.to_bytes(pages).unwrap()).unwrap();
    }

    /// The bucket at the end of a path.
    #[track_caller]
    pub fn at(&mut self, path: &[&str]) -> &mut Tree {
        path.iter().fold(self, |tree, name| match tree.entries.get_mut(name.as_bytes()) {
            Some(Node::Bucket(tree)) => tree,
            _ => panic!("no bucket {name}"),
        })
    }

    /// The names in it.
    pub fn names(&self) -> Vec<String> {
        self.entries.keys().map(|key| String::from_utf8_lossy(key).into_owned()).collect()
    }

    /// The value under a key.
    #[track_caller]
    pub fn value(&self, key: &str) -> Vec<u8> {
        match self.entries.get(key.as_bytes()) {
            Some(Node::Value(value)) => value.clone(),
            _ => panic!("no value {key}"),
        }
    }

    /// The value under a key, as text.
    #[track_caller]
    pub fn text(&self, key: &str) -> String {
        String::from_utf8(self.value(key)).unwrap()
    }

    /// Puts a value.
    pub fn put(&mut self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) {
        self.entries.insert(key.as_ref().to_vec(), Node::Value(value.as_ref().to_vec()));
    }

    /// Removes what is there.
    #[track_caller]
    pub fn remove(&mut self, key: impl AsRef<[u8]>) -> Node {
        let key = key.as_ref();
        self.entries.remove(key).unwrap_or_else(|| panic!("no {}", String::from_utf8_lossy(key)))
    }

    /// Gives what is there another name.
    #[track_caller]
    pub fn rename(&mut self, from: &str, to: &str) {
        let node = self.remove(from);
        self.entries.insert(to.as_bytes().to_vec(), node);
    }

    /// Replaces a text in all keys and values.
    pub fn replace(&mut self, from: &str, to: &str) {
        let replaced = |bytes: Vec<u8>| match String::from_utf8(bytes) {
            Ok(text) => text.replace(from, to).into_bytes(),
            Err(error) => error.into_bytes(),
        };
        for (key, node) in std::mem::take(&mut self.entries) {
            let node = match node {
                Node::Value(value) => Node::Value(replaced(value)),
                Node::Bucket(mut tree) => {
                    tree.replace(from, to);
                    Node::Bucket(tree)
                }
            };
            self.entries.insert(replaced(key), node);
        }
    }
}

/// Changes a database in place, its mode kept.
#[track_caller]
pub fn edit(path: &Path, change: impl FnOnce(&mut Tree)) {
    let mut tree = read(path);
    change(&mut tree);
    tree.save(path, PageSize::DEFAULT);
}

/// Reads a database.
#[track_caller]
pub fn read(path: &Path) -> Tree {
    Tree::read(Database::open(path).unwrap().root())
}
