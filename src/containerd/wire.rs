//! Messages of containerd's API, as far as they are used: fields by their numbers, which never change.
//!
//! Mirrors `api/services/{content,diff,leases,snapshots,version}/v1/*.proto` and `api/types/{descriptor,mount}.proto` of
//! containerd (v1.6 to v2.2). What is not declared here is skipped when it is read, and absent when it is written.

use std::collections::HashMap;

pub(super) const VERSION: &str = "/containerd.services.version.v1.Version/Version";
pub(super) const LEASE_CREATE: &str = "/containerd.services.leases.v1.Leases/Create";
pub(super) const LEASE_DELETE: &str = "/containerd.services.leases.v1.Leases/Delete";
pub(super) const LEASE_ADD: &str = "/containerd.services.leases.v1.Leases/AddResource";
pub(super) const LEASE_LIST: &str = "/containerd.services.leases.v1.Leases/List";
pub(super) const LEASE_RESOURCES: &str = "/containerd.services.leases.v1.Leases/ListResources";
pub(super) const CONTENT_LIST: &str = "/containerd.services.content.v1.Content/List";
pub(super) const CONTENT_INFO: &str = "/containerd.services.content.v1.Content/Info";
pub(super) const CONTENT_UPDATE: &str = "/containerd.services.content.v1.Content/Update";
pub(super) const CONTENT_READ: &str = "/containerd.services.content.v1.Content/Read";
pub(super) const CONTENT_WRITE: &str = "/containerd.services.content.v1.Content/Write";
pub(super) const CONTENT_ABORT: &str = "/containerd.services.content.v1.Content/Abort";
pub(super) const SNAPSHOT_STAT: &str = "/containerd.services.snapshots.v1.Snapshots/Stat";
pub(super) const SNAPSHOT_LIST: &str = "/containerd.services.snapshots.v1.Snapshots/List";
pub(super) const SNAPSHOT_PREPARE: &str = "/containerd.services.snapshots.v1.Snapshots/Prepare";
pub(super) const SNAPSHOT_COMMIT: &str = "/containerd.services.snapshots.v1.Snapshots/Commit";
pub(super) const SNAPSHOT_REMOVE: &str = "/containerd.services.snapshots.v1.Snapshots/Remove";
pub(super) const SNAPSHOT_USAGE: &str = "/containerd.services.snapshots.v1.Snapshots/Usage";
pub(super) const DIFF_APPLY: &str = "/containerd.services.diff.v1.Diff/Apply";

/// Nothing; also what `google.protobuf.Empty` is.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Empty {}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Version {
    #[prost(string, tag = "1")]
    pub(super) version: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct LeaseCreate {
    #[prost(string, tag = "1")]
    pub(super) id: String,
    #[prost(map = "string, string", tag = "3")]
    pub(super) labels: HashMap<String, String>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct LeaseDelete {
    #[prost(string, tag = "1")]
    pub(super) id: String,
    /// Whether what it kept is collected before the answer.
    #[prost(bool, tag = "2")]
    pub(super) sync: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct LeaseAdd {
    #[prost(string, tag = "1")]
    pub(super) id: String,
    #[prost(message, optional, tag = "2")]
    pub(super) resource: Option<Resource>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Resource {
    #[prost(string, tag = "1")]
    pub(super) id: String,
    #[prost(string, tag = "2")]
    pub(super) kind: String,
}

/// A lease, as it is listed.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Lease {
    #[prost(string, tag = "1")]
    pub(super) id: String,
    #[prost(map = "string, string", tag = "3")]
    pub(super) labels: HashMap<String, String>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Leases {
    #[prost(message, repeated, tag = "1")]
    pub(super) leases: Vec<Lease>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct LeaseId {
    #[prost(string, tag = "1")]
    pub(super) id: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Resources {
    #[prost(message, repeated, tag = "1")]
    pub(super) resources: Vec<Resource>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Digested {
    #[prost(string, tag = "1")]
    pub(super) digest: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Info {
    #[prost(string, tag = "1")]
    pub(super) digest: String,
    #[prost(int64, tag = "2")]
    pub(super) size: i64,
    #[prost(map = "string, string", tag = "5")]
    pub(super) labels: HashMap<String, String>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct InfoReply {
    #[prost(message, optional, tag = "1")]
    pub(super) info: Option<Info>,
}

/// Some of a list: there may be more to come.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Infos {
    #[prost(message, repeated, tag = "1")]
    pub(super) infos: Vec<Info>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct InfoUpdate {
    #[prost(message, optional, tag = "1")]
    pub(super) info: Option<Info>,
    #[prost(message, optional, tag = "2")]
    pub(super) mask: Option<Mask>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Mask {
    #[prost(string, repeated, tag = "1")]
    pub(super) paths: Vec<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Chunk {
    #[prost(bytes = "vec", tag = "2")]
    pub(super) data: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Ref {
    #[prost(string, tag = "1")]
    pub(super) name: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub(super) enum Action {
    Stat = 0,
    Write = 1,
    Commit = 2,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Write {
    #[prost(enumeration = "Action", tag = "1")]
    pub(super) action: i32,
    #[prost(string, tag = "2")]
    pub(super) name: String,
    #[prost(int64, tag = "3")]
    pub(super) total: i64,
    #[prost(string, tag = "4")]
    pub(super) expected: String,
    #[prost(int64, tag = "5")]
    pub(super) offset: i64,
    #[prost(bytes = "vec", tag = "6")]
    pub(super) data: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Written {
    #[prost(int64, tag = "4")]
    pub(super) offset: i64,
    #[prost(string, tag = "6")]
    pub(super) digest: String,
}

/// A snapshot by its key: of `Stat`, `Remove` and `Usage`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct SnapshotKey {
    #[prost(string, tag = "1")]
    pub(super) snapshotter: String,
    #[prost(string, tag = "2")]
    pub(super) key: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct SnapshotPrepare {
    #[prost(string, tag = "1")]
    pub(super) snapshotter: String,
    #[prost(string, tag = "2")]
    pub(super) key: String,
    #[prost(string, tag = "3")]
    pub(super) parent: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct SnapshotCommit {
    #[prost(string, tag = "1")]
    pub(super) snapshotter: String,
    #[prost(string, tag = "2")]
    pub(super) name: String,
    #[prost(string, tag = "3")]
    pub(super) key: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Snapshot {
    #[prost(string, tag = "1")]
    pub(super) key: String,
    #[prost(string, tag = "2")]
    pub(super) parent: String,
    #[prost(int32, tag = "3")]
    pub(super) kind: i32,
    #[prost(map = "string, string", tag = "6")]
    pub(super) labels: HashMap<String, String>,
}

/// [`Snapshot::kind`] of one that is read only.
pub(super) const VIEW: i32 = 1;
/// [`Snapshot::kind`] of one that no longer changes.
pub(super) const COMMITTED: i32 = 3;

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct SnapshotList {
    #[prost(string, tag = "1")]
    pub(super) snapshotter: String,
}

/// Some of a list: there may be more to come.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Snapshots {
    #[prost(message, repeated, tag = "1")]
    pub(super) infos: Vec<Snapshot>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct SnapshotReply {
    #[prost(message, optional, tag = "1")]
    pub(super) info: Option<Snapshot>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Usage {
    #[prost(int64, tag = "1")]
    pub(super) size: i64,
    #[prost(int64, tag = "2")]
    pub(super) inodes: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Mount {
    #[prost(string, tag = "1")]
    pub(super) kind: String,
    #[prost(string, tag = "2")]
    pub(super) source: String,
    #[prost(string, tag = "3")]
    pub(super) target: String,
    #[prost(string, repeated, tag = "4")]
    pub(super) options: Vec<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Mounts {
    #[prost(message, repeated, tag = "1")]
    pub(super) mounts: Vec<Mount>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Descriptor {
    #[prost(string, tag = "1")]
    pub(super) media_type: String,
    #[prost(string, tag = "2")]
    pub(super) digest: String,
    #[prost(int64, tag = "3")]
    pub(super) size: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Apply {
    #[prost(message, optional, tag = "1")]
    pub(super) diff: Option<Descriptor>,
    #[prost(message, repeated, tag = "2")]
    pub(super) mounts: Vec<Mount>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Applied {
    #[prost(message, optional, tag = "1")]
    pub(super) applied: Option<Descriptor>,
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    /// Bytes as another implementation of protobuf writes these messages.
    #[test]
    fn fields_have_containerds_numbers() {
        let write = Write {
            action: Action::Commit.into(),
            name: "r".into(),
            total: 300,
            expected: "d".into(),
            offset: 2,
            data: vec![7],
        };
        let bytes = b"\x08\x02\x12\x01r\x18\xac\x02\x22\x01d\x28\x02\x32\x01\x07";
        assert_eq!(write.encode_to_vec(), bytes);
        let add =
            LeaseAdd { id: "l".into(), resource: Some(Resource { id: "c".into(), kind: "content".into() }) };
        assert_eq!(add.encode_to_vec(), b"\x0a\x01l\x12\x0c\x0a\x01c\x12\x07content");
    }

    #[test]
    fn what_is_not_declared_is_skipped() {
        // The time of an Info (field 3) is none of ours.
        let info = Info::decode(&b"\x0a\x01d\x10\x05\x1a\x02\x08\x01\x2a\x06\x0a\x01k\x12\x01v"[..]).unwrap();
        let labels = HashMap::from([("k".into(), "v".into())]);
        assert_eq!(info, Info { digest: "d".into(), size: 5, labels });
    }
}
