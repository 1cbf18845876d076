//! Names in the databases: buckets, keys and labels. Constants only, so that whoever reads the stores
//! can use them without knowing how they are written.
//!
//! How they hang together is drawn at the top of the file of each store.

/// Length of the ids of workers, records and derived keys.
pub const ID_LEN: usize = 25;
/// What stands before the hexadecimal chain ID in a layer snapshot's key (`BuildKit` v0.33.1).
pub const SNAPSHOT_KEY_PREFIX: &str = "buildkit-layer-snapshot-v1-sha256-";
/// The containerd namespace that `BuildKit` works in.
pub const NAMESPACE: &str = "buildkit";

/// Names in `containerdmeta.db`; containerd `core/metadata/buckets.go`.
pub mod containerd {
    /// Root bucket, and name of the schema.
    pub const V1: &str = "v1";
    /// Schema version within v1, a value in [`V1`].
    pub const VERSION: &str = "version";
    /// The version that is written. Each newer release brings it up to its own at start, and older ones
    /// open it.
    pub const VERSION_WRITTEN: i64 = 3;
    /// Bucket of the content store's metadata.
    pub const CONTENT: &str = "content";
    /// Bucket in [`CONTENT`], one bucket per blob.
    pub const BLOB: &str = "blob";
    /// Bucket of labels.
    pub const LABELS: &str = "labels";
    /// Bucket of snapshotters.
    pub const SNAPSHOTS: &str = "snapshots";
    /// Bucket of leases.
    pub const LEASES: &str = "leases";
    /// Bucket in a snapshot, one key per child.
    pub const CHILDREN: &str = "children";
    /// Key of a snapshot: its name in the snapshotter's own store.
    pub const NAME: &str = "name";
    /// Key of a snapshot: the key of its parent.
    pub const PARENT: &str = "parent";
    /// Key of a blob: its size.
    pub const SIZE: &str = "size";
    /// Key of blobs, snapshots and leases.
    pub const CREATED_AT: &str = "createdat";
    /// Key of blobs and snapshots.
    pub const UPDATED_AT: &str = "updatedat";

    /// Label of a lease: what it names is kept, but not what that refers to.
    pub const GC_FLAT: &str = "containerd.io/gc.flat";
    /// Before the digest, label of a blob: a blob that it keeps alive.
    pub const GC_REF_BLOB: &str = "containerd.io/gc.ref.content.blob-";
    /// Before a host, label of a blob: the repositories there that have it.
    pub const DISTRIBUTION_SOURCE: &str = "containerd.io/distribution.source.";
    /// Label of a blob: its media type; `BuildKit` `cache/refs.go`.
    pub const MEDIA_TYPE: &str = "buildkit.io/blob/mediatype";
    /// Before an annotation's name, label of a blob; `BuildKit` `cache/refs.go`.
    pub const ANNOTATION: &str = "buildkit.io/blob/annotation.";
    /// Most bytes that a label may have, name and value; containerd `pkg/labels/validate.go`.
    pub const LABEL_MAX: usize = 4096;
}

/// Names in `snapshots/metadata.db`; containerd `core/snapshots/storage/bolt.go`.
pub mod snapshots {
    /// Root bucket.
    pub const V1: &str = "v1";
    /// Bucket of snapshots; its sequence is the highest id handed out.
    pub const SNAPSHOTS: &str = "snapshots";
    /// Bucket from parent and child id to the child's name.
    pub const PARENTS: &str = "parents";
    /// Key of a snapshot: the number of its directory.
    pub const ID: &str = "id";
    /// Key of a snapshot: see [`COMMITTED`].
    pub const KIND: &str = "kind";
    /// [`KIND`] of a snapshot that no longer changes.
    pub const COMMITTED: u8 = 3;
    /// Key of a snapshot: its parent's name.
    pub const PARENT: &str = "parent";
    /// Key of a snapshot: bytes on disk.
    pub const SIZE: &str = "size";
    /// Key of a snapshot: inodes on disk.
    pub const INODES: &str = "inodes";
    /// Key of a snapshot.
    pub const CREATED_AT: &str = "createdat";
    /// Key of a snapshot.
    pub const UPDATED_AT: &str = "updatedat";
}

/// Names in `metadata_v2.db`; `BuildKit` `cache/metadata/metadata.go` and `cache/metadata.go`.
pub mod metadata {
    /// Bucket of records, one bucket each.
    pub const MAIN: &str = "_main";
    /// Bucket of `<index>::<record id>`.
    pub const INDEX: &str = "_index";
    /// Bucket of values too large for JSON.
    pub const EXTERNAL: &str = "_external";
    /// Between index and record id.
    pub const INDEX_SEPARATOR: &str = "::";
    /// Before a chain ID in the index.
    pub const CHAIN_INDEX: &str = "chainid:";
    /// Before a blob chain ID in the index.
    pub const BLOB_CHAIN_INDEX: &str = "blobchainid:";

    /// Digest of the layer's blob.
    pub const BLOB: &str = "cache.blob";
    /// Size of the layer's blob.
    pub const BLOB_SIZE: &str = "cache.blobsize";
    /// Media type of the layer's blob.
    pub const MEDIA_TYPE: &str = "cache.mediatype";
    /// Diff ID of the layer.
    pub const DIFF_ID: &str = "cache.diffID";
    /// What the layer's chain ID was made from (v0.33.1 on); under overlayfs, the diff ID.
    pub const LAYER_IDENTITY: &str = "cache.layerIdentity";
    /// Chain ID of the layer.
    pub const CHAIN_ID: &str = "cache.chainID";
    /// Blob chain ID of the layer.
    pub const BLOB_CHAIN_ID: &str = "cache.blobChainID";
    /// Whether the layer has yet to be extracted.
    pub const BLOB_ONLY: &str = "cache.blobonly";
    /// What eviction does with the record.
    pub const CACHE_POLICY: &str = "cache.cachePolicy";
    /// [`CACHE_POLICY`] of records that a cache key has as its result.
    pub const RETAIN: i64 = 1;
    /// Whether the snapshot no longer changes.
    pub const COMMITTED: &str = "snapshot.committed";
    /// Key of the record's snapshot.
    pub const SNAPSHOT: &str = "cache.snapshot";
    /// Bytes on disk, of snapshot and blob.
    pub const SIZE: &str = "snapshot.size";
    /// Record id of the parent layer.
    pub const PARENT: &str = "cache.parent";
    /// When the layer was made, in nanoseconds.
    pub const CREATED_AT: &str = "cache.createdAt";
    /// When the record was used last, in nanoseconds.
    pub const LAST_USED_AT: &str = "cache.lastUsedAt";
    /// How often the record was used.
    pub const USAGE_COUNT: &str = "cache.usageCount";
    /// What `buildctl du` says of the record.
    pub const DESCRIPTION: &str = "cache.description";
    /// Names of the images that the layer is of.
    pub const IMAGE_REFS: &str = "cache.imageRefs";
    /// What the record is, where it is not an ordinary one.
    pub const RECORD_TYPE: &str = "cache.recordType";
    /// [`RECORD_TYPE`] of the last layer of a frontend's image.
    pub const FRONTEND: &str = "frontend";
}

/// Names in `cache.db`; `BuildKit` `solver/bboltcachestorage/storage.go`.
pub mod cache {
    /// Bucket from keys to their results.
    pub const RESULT: &str = "_result";
    /// Bucket from keys to the keys that have them as an input.
    pub const LINKS: &str = "_links";
    /// Bucket from results to their keys.
    pub const BY_RESULT: &str = "_byresult";
    /// Bucket from keys to their inputs.
    pub const BACKLINKS: &str = "_backlinks";
    /// Between the worker's and the record's id in a result.
    pub const RESULT_SEPARATOR: &str = "::";
    /// Between a link and the key that it leads to.
    pub const LINK_SEPARATOR: &str = "@";
}
