//! The operations of a build as provenance has them: LLB, in JSON.
//!
//! Mirrors `solver/pb/ops.proto`.

use std::collections::BTreeMap;

use serde_json::Value;

use super::dialects::{Dialect, Encoder};
use super::wire::{Bytes, Wire, field, get, messages, when};

messages! {
    /// Runs a process.
    ExecOp {
        meta: Option<Meta> = "meta",
        mounts: Vec<Mount> = "mounts",
        network: i64 = "network",
        security: i64 = "security",
        secretenv: Vec<SecretEnv> = "secretenv",
        cdi_devices: Vec<CdiDevice> = "cdiDevices",
    }
    /// The process of an [`ExecOp`].
    Meta {
        args: Vec<String> = "args",
        env: Vec<String> = "env",
        cwd: String = "cwd",
        user: String = "user",
        proxy_env: Option<ProxyEnv> = "proxy_env",
        extra_hosts: Vec<HostIp> = "extraHosts",
        hostname: String = "hostname",
        ulimit: Vec<Ulimit> = "ulimit",
        cgroup_parent: String = "cgroupParent",
        remove_mount_stubs_recursive: bool = "removeMountStubsRecursive",
        valid_exit_codes: Vec<i64> = "validExitCodes",
    }
    /// Proxy settings of a process; never part of a digest.
    ProxyEnv {}
    /// An entry for `/etc/hosts`.
    HostIp {
        host: String = "Host",
        ip: String = "IP",
    }
    /// A resource limit.
    Ulimit {
        name: String = "Name",
        soft: i64 = "Soft",
        hard: i64 = "Hard",
    }
    /// A secret in the environment.
    SecretEnv {
        id: String = "ID",
        name: String = "name",
        optional: bool = "optional",
    }
    /// A device of the container device interface.
    CdiDevice {
        name: String = "name",
        optional: bool = "optional",
    }
    /// A mount of an [`ExecOp`].
    Mount {
        input: i64 = "input" gogo,
        selector: String = "selector",
        dest: String = "dest",
        output: i64 = "output" gogo,
        readonly: bool = "readonly",
        mount_type: i64 = "mountType",
        tmpfs: Option<TmpfsOpt> = "TmpfsOpt",
        cache: Option<CacheOpt> = "cacheOpt",
        secret: Option<SecretOpt> = "secretOpt",
        ssh: Option<SshOpt> = "SSHOpt",
        result_id: String = "resultID",
        content_cache: i64 = "contentCache",
    }
    /// Options of a tmpfs mount.
    TmpfsOpt {
        size: i64 = "size",
    }
    /// Options of a cache mount.
    CacheOpt {
        id: String = "ID",
        sharing: i64 = "sharing",
    }
    /// Options of a secret mount.
    SecretOpt {
        id: String = "ID",
        uid: i64 = "uid",
        gid: i64 = "gid",
        mode: i64 = "mode",
        optional: bool = "optional",
    }
    /// Options of an SSH mount.
    SshOpt {
        id: String = "ID",
        uid: i64 = "uid",
        gid: i64 = "gid",
        mode: i64 = "mode",
        optional: bool = "optional",
    }
    /// Builds what another operation describes.
    BuildOp {
        builder: i64 = "builder" gogo,
        inputs: BTreeMap<String, BuildInput> = "inputs",
        def: Option<Definition> = "def",
        attrs: BTreeMap<String, String> = "attrs",
    }
    /// An input of a [`BuildOp`].
    BuildInput {
        input: i64 = "input" gogo,
    }
    /// LLB inside LLB.
    Definition {
        def: Vec<Bytes> = "def",
        metadata: BTreeMap<String, OpMetadata> = "metadata",
        source: Option<Source> = "Source",
    }
    /// What a [`Definition`] says of one operation.
    OpMetadata {
        ignore_cache: bool = "ignore_cache",
        description: BTreeMap<String, String> = "description",
        export_cache: Option<ExportCache> = "export_cache",
        caps: BTreeMap<String, bool> = "caps" gogo,
        progress_group: Option<ProgressGroup> = "progress_group",
    }
    /// Whether an operation's result is exported.
    ExportCache {
        value: bool = "Value",
    }
    /// Operations that are shown as one.
    ProgressGroup {
        id: String = "id",
        name: String = "name",
        weak: bool = "weak",
    }
    /// Where operations come from.
    Source {
        locations: BTreeMap<String, Locations> = "locations",
        infos: Vec<SourceInfo> = "infos",
    }
    /// Places in source files.
    Locations {
        locations: Vec<Location> = "locations",
    }
    /// A source file.
    SourceInfo {
        filename: String = "filename",
        data: Bytes = "data",
        definition: Option<Definition> = "definition",
        language: String = "language",
    }
    /// A place in one source file.
    Location {
        source_index: i64 = "sourceIndex",
        ranges: Vec<Range> = "ranges",
    }
    /// From a position to another.
    Range {
        start: Option<Position> = "start" gogo,
        end: Option<Position> = "end" gogo,
    }
    /// A line, from 1, and a column.
    Position {
        line: i64 = "line",
        character: i64 = "character",
    }
    /// Copies a file or directory.
    Copy {
        src: String = "src",
        dest: String = "dest",
        owner: Option<ChownOpt> = "owner",
        mode: i64 = "mode",
        follow_symlink: bool = "followSymlink",
        dir_copy_contents: bool = "dirCopyContents",
        attempt_unpack: bool = "attemptUnpackDockerCompatibility",
        create_dest_path: bool = "createDestPath",
        allow_wildcard: bool = "allowWildcard",
        allow_empty_wildcard: bool = "allowEmptyWildcard",
        timestamp: i64 = "timestamp",
        include_patterns: Vec<String> = "include_patterns",
        exclude_patterns: Vec<String> = "exclude_patterns",
        always_replace: bool = "alwaysReplaceExistingDestPaths",
        mode_str: String = "modeStr",
        required_paths: Vec<String> = "required_paths",
    }
    /// Makes a file.
    MkFile {
        path: String = "path",
        mode: i64 = "mode",
        data: Bytes = "data",
        owner: Option<ChownOpt> = "owner",
        timestamp: i64 = "timestamp",
    }
    /// Makes a symbolic link.
    Symlink {
        oldpath: String = "oldpath",
        newpath: String = "newpath",
        owner: Option<ChownOpt> = "owner",
        timestamp: i64 = "timestamp",
    }
    /// Makes a directory.
    MkDir {
        path: String = "path",
        mode: i64 = "mode",
        make_parents: bool = "makeParents",
        owner: Option<ChownOpt> = "owner",
        timestamp: i64 = "timestamp",
    }
    /// Removes a path.
    Rm {
        path: String = "path",
        allow_not_found: bool = "allowNotFound",
        allow_wildcard: bool = "allowWildcard",
    }
    /// Owner and group of what a file action makes.
    ChownOpt {
        user: Option<User> = "user",
        group: Option<User> = "group",
    }
    /// A user by name, looked up in an input.
    NamedUser {
        name: String = "name",
        input: i64 = "input" gogo,
    }
    /// Lays inputs over each other.
    MergeOp {
        inputs: Vec<MergeInput> = "inputs",
    }
    /// An input of a [`MergeOp`].
    MergeInput {
        input: i64 = "input" gogo,
    }
    /// What one input has that another lacks.
    DiffOp {
        lower: Option<DiffInput> = "lower",
        upper: Option<DiffInput> = "upper",
    }
    /// An input of a [`DiffOp`].
    DiffInput {
        input: i64 = "input" gogo,
    }
    /// Hands inputs through.
    PassthroughOp {
        id: String = "id",
        outputs: Vec<i64> = "outputs",
    }
    /// What an operation runs on.
    OpPlatform {
        architecture: String = "Architecture",
        os: String = "OS",
        variant: String = "Variant",
        os_version: String = "OSVersion",
        os_features: Vec<String> = "OSFeatures",
    }
}

/// A user or group: the one message that the dialects spell differently.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum User {
    /// Neither name nor number.
    Unset,
    /// A name.
    Name(NamedUser),
    /// A number.
    Id(i64),
}

impl Wire for User {
    fn read(value: &Value) -> Self {
        let Some(user) = value.as_object().and_then(|o| get(o, "User")).and_then(Value::as_object) else {
            return Self::Unset;
        };
        match get(user, "byName") {
            Some(name) => Self::Name(NamedUser::read(name)),
            None => Self::Id(get(user, "byID").map(i64::read).unwrap_or_default()),
        }
    }

    fn write(&self, encoder: &mut Encoder) {
        let dialect = encoder.dialect;
        let (name_key, id_key) = match dialect {
            Dialect::Gogo => ("byName", "byID"),
            Dialect::Protoc => ("ByName", "ByID"),
            Dialect::ProtocUser => ("byName", "byId"),
        };
        encoder.object(|object| {
            object.with("User", |encoder| match self {
                Self::Unset if dialect != Dialect::ProtocUser => encoder.raw("null"),
                Self::Unset => encoder.raw("{}"),
                Self::Name(name) => {
                    encoder.object(|object| object.with(name_key, |encoder| name.write(encoder)));
                }
                Self::Id(0) if dialect != Dialect::Protoc => encoder.raw("{}"),
                Self::Id(id) => encoder.object(|object| object.with(id_key, |encoder| encoder.integer(*id))),
            });
        });
    }
}

/// What a file action does.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Action {
    Copy(Copy),
    MkFile(MkFile),
    MkDir(MkDir),
    Rm(Rm),
    Symlink(Symlink),
    /// An action that provenance does not tell: up to v0.34 it leaves symlinks out.
    Untold,
}

/// One action of a file operation, with the inputs and the output that it has there.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct FileAction {
    pub(super) input: i64,
    pub(super) secondary_input: i64,
    pub(super) output: i64,
    pub(super) action: Action,
}

impl FileAction {
    fn read(value: &Value) -> Self {
        let Some(object) = value.as_object() else {
            return Self { input: 0, secondary_input: 0, output: 0, action: Action::Untold };
        };
        let index = |name| get(object, name).map(i64::read).unwrap_or_default();
        let action = get(object, "Action").and_then(Value::as_object);
        let of_kind = |name| action.and_then(|action| get(action, name));
        let action = None
            .or_else(|| of_kind("copy").map(|v| Action::Copy(Wire::read(v))))
            .or_else(|| of_kind("mkfile").map(|v| Action::MkFile(Wire::read(v))))
            .or_else(|| of_kind("mkdir").map(|v| Action::MkDir(Wire::read(v))))
            .or_else(|| of_kind("rm").map(|v| Action::Rm(Wire::read(v))))
            .or_else(|| of_kind("symlink").map(|v| Action::Symlink(Wire::read(v))))
            .unwrap_or(Action::Untold);
        Self {
            input: index("input"),
            secondary_input: index("secondaryInput"),
            output: index("output"),
            action,
        }
    }
}

/// What an operation does.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Operation {
    Exec(Box<ExecOp>),
    File(Vec<FileAction>),
    Merge(MergeOp),
    Diff(DiffOp),
    Build(Box<BuildOp>),
    Passthrough(PassthroughOp),
    /// A source: its record needs no key. `identifier` is such as `docker-image://…`.
    Source {
        identifier: String,
    },
    /// The end of the build, or an operation that is not known here.
    Other,
}

/// One operation of a build.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Step {
    /// `step0`, …: what the rest of the provenance calls it.
    pub(super) id: String,
    /// How many inputs it has.
    pub(super) inputs: usize,
    /// What it runs on, where it says.
    pub(super) platform: Option<OpPlatform>,
    /// What it does.
    pub(super) operation: Operation,
}

impl Step {
    /// Reads an entry of `llbDefinition`.
    pub(super) fn read(value: &Value) -> Option<Self> {
        let step = value.as_object()?;
        let op = get(step, "op")?.as_object()?;
        let kinds = get(op, "Op").and_then(Value::as_object);
        let of_kind = |name| kinds.and_then(|kinds| get(kinds, name));
        let source = |v: &Value| {
            let identifier = v.as_object().and_then(|o| get(o, "identifier")).map(String::read);
            Operation::Source { identifier: identifier.unwrap_or_default() }
        };
        let file = |v: &Value| {
            let actions = v.as_object().and_then(|o| get(o, "actions")).and_then(Value::as_array);
            Operation::File(actions.into_iter().flatten().map(FileAction::read).collect())
        };
        let operation = None
            .or_else(|| of_kind("exec").map(|v| Operation::Exec(Box::new(Wire::read(v)))))
            .or_else(|| of_kind("file").map(file))
            .or_else(|| of_kind("source").map(source))
            .or_else(|| of_kind("merge").map(|v| Operation::Merge(Wire::read(v))))
            .or_else(|| of_kind("diff").map(|v| Operation::Diff(Wire::read(v))))
            .or_else(|| of_kind("build").map(|v| Operation::Build(Box::new(Wire::read(v)))))
            .or_else(|| of_kind("passthrough").map(|v| Operation::Passthrough(Wire::read(v))))
            .unwrap_or(Operation::Other);
        Some(Self {
            id: get(step, "id").map(String::read).unwrap_or_default(),
            inputs: get(step, "inputs").and_then(Value::as_array).map_or(0, Vec::len),
            platform: get(op, "platform").map(OpPlatform::read),
            operation,
        })
    }
}
