//! The databases as a whole: written, read back, and compared entry by entry with what daemons write.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use super::*;
use crate::bolt::{BucketRef, Database, Item};
use crate::digest::{Digest, RecordDigest};

const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";

fn blob(media_type: &str, name: &str, diff_id: DiffId, size: u64) -> Blob {
    let descriptor = Descriptor::new(media_type, Digest::of(name.as_bytes()), size);
    let repositories = BTreeSet::from(["team/cache".to_owned(), "team/base".to_owned()]);
    Blob { descriptor, diff_id, sources: BTreeMap::from([("127.0.0.1".to_owned(), repositories)]) }
}

/// A base layer; on it a layer that exists as gzip and as zstd, so that two records share a snapshot.
fn sample() -> Contents {
    let (base, top) = (DiffId::of(b"base tar"), DiffId::of(b"top tar"));
    let blobs = vec![
        blob(GZIP, "base", base, 307_631),
        blob(GZIP, "top gzip", top, 129),
        blob(ZSTD, "top zstd", top, 119),
    ];
    let chain = ChainId::of_layer(None, base);
    let top_chain = ChainId::of_layer(Some(chain), top);
    let blob_chain = BlobChainId::of_layer(None, blobs[0].descriptor.digest, base);
    let of_top = |index: usize| BlobChainId::of_layer(Some(blob_chain), blobs[index].descriptor.digest, top);
    let record = |index: usize, blob_chain_id: BlobChainId| Record {
        id: RecordId::of(&blob_chain_id),
        blob: index,
        snapshot: index.min(1),
        parent: (index > 0).then_some(0),
        chain_id: if index == 0 { chain } else { top_chain },
        blob_chain_id,
        created_at: "2026-11-20T23:44:56.46611104Z".parse().unwrap(),
        last_used_at: "2026-11-20T23:45:21.5Z".parse().unwrap(),
        usage_count: 1,
        description: "[2/3] RUN make && make install".to_owned(),
        image_refs: Vec::new(),
        documents: Vec::new(),
        frontend: false,
    };
    let records = vec![record(0, blob_chain), record(1, of_top(1)), record(2, of_top(2))];
    let digest: RecordDigest = Digest::of(b"source").to_string().parse().unwrap();
    let root = KeyId::root(&digest);
    let child = KeyId::derived(&digest, &[vec![(&root, "sha256:5e1ec7")]]);
    Contents {
        worker: WorkerId::warmkit(),
        written_at: "2026-11-20T23:45:21.343930144Z".parse().unwrap(),
        blobs,
        snapshots: vec![
            Snapshot { key: SnapshotKey::of(&chain), parent: None, size: 311_296, inodes: 12 },
            Snapshot { key: SnapshotKey::of(&top_chain), parent: Some(0), size: 4096, inodes: 3 },
        ],
        documents: Vec::new(),
        records,
        keys: vec![
            Key { id: root, results: vec![(0, Some("2026-11-20T23:44:56.2Z".parse().unwrap()))] },
            Key { id: child, results: vec![(1, None), (2, None)] },
        ],
        links: vec![Link {
            from: 0,
            to: 1,
            input: 1,
            output: 0,
            digest: OpDigest::new("sha256:0b"),
            selector: "sha256:5e1ec7".to_owned(),
        }],
    }
}

#[test]
fn an_image_is_kept_by_the_record_of_its_last_layer() {
    let mut contents = sample();
    let source =
        |repository: &str| BTreeMap::from([("r.io".to_owned(), BTreeSet::from([repository.to_owned()]))]);
    let manifest = Digest::of(b"manifest");
    contents.documents = ["team/image", "team/copy"]
        .map(|repository| Document { digest: manifest, size: 8, sources: source(repository) })
        .to_vec();
    contents.records[1].documents = vec![0, 1];
    contents.records[1].frontend = true;
    contents.records[1].image_refs = vec!["r.io/team/image:1@sha256:0a".to_owned(), "r.io/b".to_owned()];
    let (_temp, state) = write(&contents);

    let lines = dump(&state.file(StateFile::Containerd));
    let of_manifest: Vec<String> = lines
        .iter()
        .filter(|l| l.contains(&manifest.to_string()))
        .map(|l| l.replace(&manifest.to_string(), "M"))
        .collect();
    let blob = "v1/buildkit/content/blob/M/";
    let time = "0x010000000ee292d291147ff520ffff";
    let expected = [
        blob.to_owned(),
        format!("{blob}createdat = {time}"),
        format!("{blob}labels/"),
        format!("{blob}labels/containerd.io/distribution.source.r.io = team/copy,team/image"),
        format!("{blob}size = 0x10"),
        format!("{blob}updatedat = {time}"),
        "v1/buildkit/leases/RECORD-gzip/content/M =".to_owned(),
    ];
    assert_eq!(of_manifest, expected);

    let lines = dump(&state.file(StateFile::Metadata));
    let of_images: Vec<&String> =
        lines.iter().filter(|l| l.contains("imageRefs") || l.contains("recordType")).collect();
    let expected = [
        r#"_main/RECORD-gzip/cache.imageRefs = {"value":["r.io/team/image:1@sha256:0a","r.io/b"]}"#,
        r#"_main/RECORD-gzip/cache.recordType = {"value":"frontend"}"#,
    ];
    assert_eq!(of_images, expected);

    contents.records[1].documents = vec![2];
    let error = write_databases(&state, &contents, PageSize::DEFAULT).unwrap_err();
    assert_eq!(error.to_string(), "the contents name document 2, but there are only 2");
}

fn write(contents: &Contents) -> (tempfile::TempDir, StateDir) {
    let temp = tempfile::tempdir().unwrap();
    let state = StateDir::new(temp.path(), Snapshotter::Overlayfs);
    state.create().unwrap();
    write_databases(&state, contents, PageSize::DEFAULT).unwrap();
    (temp, state)
}

/// One line per entry: its path, and its value as text or hexadecimal digits. Digests and ids that the
/// sample gives are shortened to names.
fn dump(path: &Path) -> Vec<String> {
    fn text(bytes: &[u8]) -> String {
        if bytes.iter().all(|byte| (b' '..=b'~').contains(byte)) {
            return String::from_utf8(bytes.to_vec()).unwrap();
        }
        bytes.iter().fold("0x".to_owned(), |mut text, byte| {
            write!(text, "{byte:02x}").unwrap();
            text
        })
    }
    fn walk(bucket: BucketRef<'_>, prefix: &str, out: &mut Vec<String>) {
        if bucket.sequence() != 0 {
            out.push(format!("{prefix} sequence {}", bucket.sequence()));
        }
        for entry in &bucket {
            match entry.unwrap() {
                (key, Item::Value(value)) => {
                    out.push(format!("{prefix}{} = {}", text(key), text(value)).trim_end().to_owned());
                }
                (key, Item::Bucket(bucket)) => {
                    let prefix = format!("{prefix}{}/", text(key));
                    out.push(prefix.clone());
                    walk(bucket, &prefix, out);
                }
            }
        }
    }
    let database = Database::open(path).unwrap();
    assert_eq!(database.check(), vec![]);
    let mut lines = Vec::new();
    walk(database.root(), "", &mut lines);
    let contents = sample();
    let mut names = vec![(contents.worker.to_string(), "WORKER".to_owned())];
    for (record, name) in contents.records.iter().zip(["base", "gzip", "zstd"]) {
        let blob = &contents.blobs[record.blob];
        names.push((record.id.to_string(), format!("RECORD-{name}")));
        names.push((record.blob_chain_id.to_string(), format!("BLOBCHAIN-{name}")));
        names.push((blob.descriptor.digest.to_string(), format!("BLOB-{name}")));
    }
    for (index, name) in ["base", "top"].iter().enumerate() {
        let record = &contents.records[index];
        names.push((contents.snapshots[index].key.to_string(), format!("SNAPSHOT-{name}")));
        // The chain ID of a base layer is its diff ID.
        names.push((contents.blobs[index].diff_id.to_string(), format!("DIFF-{name}")));
        names.push((record.chain_id.to_string(), format!("CHAIN-{name}")));
        names.push((contents.keys[index].id.to_string(), format!("KEY-{name}")));
    }
    for line in &mut lines {
        for (id, name) in &names {
            *line = line.replace(id.as_str(), name);
        }
    }
    lines
}

/// The lines of `dump` that are about one entry, without the bucket itself.
fn below<'a>(lines: &'a [String], prefix: &str) -> Vec<&'a str> {
    lines.iter().filter_map(|line| line.strip_prefix(prefix)).filter(|line| !line.is_empty()).collect()
}

/// The four databases, written down line by line. The shape of each entry is that of a root that v0.34.2
/// wrote natively.
#[test]
fn databases_as_written_down() {
    let (_temp, state) = write(&sample());
    let cases = [
        (StateFile::Snapshots, include_str!("testdata/snapshots.txt")),
        (StateFile::Containerd, include_str!("testdata/containerdmeta.txt")),
        (StateFile::Metadata, include_str!("testdata/metadata.txt")),
        (StateFile::Cache, include_str!("testdata/cache.txt")),
    ];
    for (file, expected) in cases {
        let found = dump(&state.file(file));
        let expected: Vec<_> = expected.lines().collect();
        assert_eq!(found, expected, "{file:?} is\n{}", found.join("\n"));
    }
}

#[test]
fn files_have_their_modes_and_the_worker_id_no_newline() {
    let (_temp, state) = write(&sample());
    for file in StateFile::COMMIT_ORDER {
        let found = fs::metadata(state.file(file)).unwrap().permissions().mode() & 0o7777;
        assert_eq!(found, file.mode(), "{file:?}");
    }
    assert_eq!(fs::read_to_string(state.file(StateFile::WorkerId)).unwrap(), WorkerId::warmkit().as_str());
    assert_eq!(StateFile::COMMIT_ORDER.last(), Some(&StateFile::Cache));
}

#[test]
fn snapshotters_and_page_sizes_change_nothing_else() {
    let (_temp, overlayfs) = write(&sample());
    let databases = StateFile::COMMIT_ORDER.into_iter().filter(|file| *file != StateFile::WorkerId);
    let expected: Vec<_> = databases.map(|file| (file, dump(&overlayfs.file(file)).join("\n"))).collect();
    for snapshotter in Snapshotter::ALL {
        for page_size in [4096, 16_384, 65_536].map(|size| PageSize::try_from(size).unwrap()) {
            let temp = tempfile::tempdir().unwrap();
            let state = StateDir::new(temp.path(), snapshotter);
            state.create().unwrap();
            write_databases(&state, &sample(), page_size).unwrap();
            for (file, expected) in &expected {
                let path = state.file(*file);
                let expected = expected.replace("/overlayfs/", &format!("/{snapshotter}/"));
                assert_eq!(dump(&path).join("\n"), expected, "{snapshotter} {file:?}");
                assert_eq!(Database::open(&path).unwrap().page_size(), page_size.bytes());
            }
        }
    }
}

#[test]
fn same_contents_same_bytes() {
    let (_a, first) = write(&sample());
    let (_b, second) = write(&sample());
    // Writing over what is there gives the same, too.
    write_databases(&second, &sample(), PageSize::DEFAULT).unwrap();
    for file in StateFile::COMMIT_ORDER {
        assert_eq!(fs::read(first.file(file)).unwrap(), fs::read(second.file(file)).unwrap(), "{file:?}");
    }
}

#[test]
fn one_blob_has_the_sources_of_all_its_entries() {
    let mut contents = sample();
    let mut again = contents.blobs[0].clone();
    again.sources = BTreeMap::from([
        ("127.0.0.1".to_owned(), BTreeSet::from(["other".to_owned()])),
        ("ghcr.io".to_owned(), BTreeSet::from(["a".repeat(5000), "team/x".to_owned()])),
    ]);
    contents.blobs.push(again);
    let (_temp, state) = write(&contents);
    let lines = dump(&state.file(StateFile::Containerd));
    let labels =
        below(&lines, "v1/buildkit/content/blob/BLOB-base/labels/containerd.io/distribution.source.");
    assert_eq!(labels, ["127.0.0.1 = other,team/base,team/cache", "ghcr.io = team/x"]);
}

#[test]
fn estargz_annotations_are_kept_and_others_are_not() {
    let mut contents = sample();
    let annotations = &mut contents.blobs[0].descriptor.annotations;
    for name in [
        "containerd.io/snapshot/stargz/toc.digest",
        "io.containers.estargz.uncompressed-size",
        "buildkit/createdat",
    ] {
        annotations.insert(name.to_owned(), "x".to_owned());
    }
    let (_temp, state) = write(&contents);
    let lines = dump(&state.file(StateFile::Containerd));
    let labels = below(&lines, "v1/buildkit/content/blob/BLOB-base/labels/buildkit.io/blob/annotation.");
    assert_eq!(
        labels,
        [
            "containerd.io/snapshot/stargz/toc.digest = x",
            "containerd.io/uncompressed = DIFF-base",
            "io.containers.estargz.uncompressed-size = x",
        ]
    );
}

#[test]
fn labels_of_others_are_kept_where_they_serve() {
    const DOCKER: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
    const DIFF_ID: &str = "buildkit.io/blob/annotation.containerd.io/uncompressed";
    for (name, has, wanted, expected) in [
        ("buildkit.io/blob/mediatype", GZIP, GZIP, true),
        ("buildkit.io/blob/mediatype", DOCKER, GZIP, true),
        ("buildkit.io/blob/mediatype", ZSTD, GZIP, false),
        ("buildkit.io/blob/mediatype", "text/plain", GZIP, false),
        ("buildkit.io/blob/mediatype", "text/plain", "text/html", false),
        (DIFF_ID, "sha256:a", "sha256:a", true),
        (DIFF_ID, "sha256:b", "sha256:a", false),
        ("containerd.io/distribution.source.127.0.0.1", "theirs", "ours", true),
    ] {
        assert_eq!(is_same_label(name, has, wanted), expected, "{name}: {has}, {wanted}");
    }
}

#[test]
fn inconsistent_contents_make_no_root() {
    type Damage = fn(&mut Contents);
    let cases: [(&str, Damage); 7] = [
        ("the contents name snapshot 7, but there are only 2", |c| c.snapshots[1].parent = Some(7)),
        ("the contents name blob 7, but there are only 3", |c| c.records[1].blob = 7),
        ("the contents name snapshot 7, but there are only 2", |c| c.records[1].snapshot = 7),
        ("the contents name record 7, but there are only 3", |c| c.records[1].parent = Some(7)),
        ("the contents name record 7, but there are only 3", |c| c.keys[0].results[0].0 = 7),
        ("the contents name key 7, but there are only 2", |c| c.links[0].to = 7),
        ("twice", |c| c.keys[1].id = c.keys[0].id.clone()),
    ];
    for (expected, damage) in cases {
        let temp = tempfile::tempdir().unwrap();
        let state = StateDir::new(temp.path(), Snapshotter::Overlayfs);
        state.create().unwrap();
        let mut contents = sample();
        damage(&mut contents);
        let error = write_databases(&state, &contents, PageSize::DEFAULT).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        assert!(!state.file(StateFile::Cache).exists(), "{expected}");
    }
}
