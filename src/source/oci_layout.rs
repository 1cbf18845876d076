//! An OCI layout, as `--cache-to type=local` writes it: a directory, or all of it in one tar.
//!
//! ```text
//! DIR/
//!   oci-layout           {"imageLayoutVersion":"1.0.0"}; left out by old releases
//!   index.json           manifests[]: {mediaType, digest, size,
//!                                      annotations["org.opencontainers.image.ref.name"] = tag}
//!   blobs/sha256/<hex>   manifests, configs and layers
//! ```
//!
//! Mirrors `client/ociindex` and `client/solve.go` of `BuildKit` v0.34, which writes the tag `latest`
//! where none was given. Paths below `blobs` come from parsed digests only. Nothing else of a directory
//! counts: neither modes nor times, nor whether a file is a symlink to one, nor what else there is. So it
//! may have been anywhere that keeps names and bytes.

use std::fs::File;
use std::io::{self, Read, Seek as _, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::layout_tar::{LayoutTar, Part};
use super::{Content, Entry, Error, MAX_MANIFEST, Manifest, Mismatch, Receiver, Source};
use crate::digest::Digest;
use crate::oci::{Descriptor, Document};
use crate::progress::Progress;

const REF_NAME: &str = "org.opencontainers.image.ref.name";

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct LayoutFile {
    image_layout_version: String,
}

/// Where the files of a layout are.
#[derive(Debug, Clone)]
enum Files {
    Directory(PathBuf),
    Tar(LayoutTar),
}

/// One cache in an OCI layout.
#[derive(Debug, Clone)]
pub struct OciLayout {
    root: PathBuf,
    files: Files,
    tag: Option<String>,
    manifest: Digest,
    /// Size and media type of `manifest`, where the index lists it.
    listed: Option<Descriptor>,
}

impl OciLayout {
    /// Reads the index of the layout at `root` and finds the entry: the manifest with `digest`, else
    /// the one tagged `tag`, else the only one there is.
    pub fn open(root: &Path, tag: Option<&str>, digest: Option<&Digest>) -> Result<Self, Error> {
        let files = Files::open(root)?;
        check_version(root, &files)?;
        let listed = read_index(root, &files)?;
        let entries = || -> Vec<Entry> {
            let entry =
                |d: &Descriptor| Entry { tag: d.annotations.get(REF_NAME).cloned(), digest: d.digest };
            listed.iter().map(entry).collect()
        };
        let (manifest, listed) = match (digest, tag) {
            (Some(digest), _) => (*digest, listed.iter().find(|d| d.digest == *digest)),
            (None, Some(tag)) => {
                let tagged = listed.iter().find(|d| d.annotations.get(REF_NAME).is_some_and(|t| t == tag));
                let tagged = tagged.ok_or_else(|| Error::NoSuchTag {
                    path: root.to_owned(),
                    tag: tag.to_owned(),
                    entries: entries(),
                })?;
                (tagged.digest, Some(tagged))
            }
            (None, None) => match listed.as_slice() {
                [] => {
                    let reason = "its index.json lists nothing".to_owned();
                    return Err(Error::NotALayout { path: root.to_owned(), reason });
                }
                [first, rest @ ..] if rest.iter().all(|d| d.digest == first.digest) => {
                    (first.digest, Some(first))
                }
                _ => return Err(Error::Ambiguous { path: root.to_owned(), entries: entries() }),
            },
        };
        let listed = listed.cloned();
        Ok(Self { root: root.to_owned(), files, tag: tag.map(str::to_owned), manifest, listed })
    }

    /// The digest of the manifest that was found.
    pub fn digest(&self) -> Digest {
        self.manifest
    }

    /// Where a blob is, for messages.
    fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.root.join(blob_name(digest))
    }

    /// Opens a blob; gives its size too.
    fn open_blob(&self, digest: &Digest) -> Result<Measured, Error> {
        self.files.open_file(&blob_name(digest))?.ok_or_else(|| Error::NoSuchBlob {
            blob: *digest,
            source_name: self.name(),
            detail: String::new(),
        })
    }

    fn check_size(&self, blob: Digest, expected: u64, found: u64) -> Result<(), Error> {
        if expected == found {
            return Ok(());
        }
        let mismatch = Mismatch::Size { expected, found };
        Err(Error::BlobMismatch { blob, source_name: self.name(), mismatch })
    }
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// A file, and its size.
type Measured = (Opened, u64);

/// A file of a layout.
enum Opened {
    File(File),
    Part(Part),
}

impl Opened {
    /// Leaves out the next bytes.
    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        match self {
            Self::File(file) => {
                file.seek(SeekFrom::Current(i64::try_from(bytes).unwrap_or(i64::MAX))).map(drop)
            }
            Self::Part(part) => {
                part.skip(bytes);
                Ok(())
            }
        }
    }
}

impl Read for Opened {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::File(file) => file.read(buffer),
            Self::Part(part) => part.read(buffer),
        }
    }
}

impl Files {
    fn open(root: &Path) -> Result<Self, Error> {
        match root.metadata() {
            Ok(metadata) if metadata.is_file() => LayoutTar::open(root).map(Self::Tar),
            Ok(metadata) if metadata.is_dir() => Ok(Self::Directory(root.to_owned())),
            // A pipe has no offsets to read at.
            Ok(_) => {
                let reason = "neither a directory nor a regular file".to_owned();
                Err(Error::NotALayout { path: root.to_owned(), reason })
            }
            Err(source) if source.kind() == io::ErrorKind::NotFound => {
                Err(Error::NoSuchLayout { path: root.to_owned() })
            }
            Err(source) => Err(Error::Read { path: root.to_owned(), source }),
        }
    }

    /// Opens a file by its path in the layout; gives its size too.
    fn open_file(&self, name: &str) -> Result<Option<Measured>, Error> {
        let root = match self {
            Self::Directory(root) => root,
            Self::Tar(tar) => {
                let found = tar.file(name)?;
                return Ok(found.map(|(part, size)| (Opened::Part(part), size)));
            }
        };
        let path = root.join(name);
        // Looked at first, since opening a pipe waits for who writes to it.
        let found = path.metadata().and_then(|found| {
            if !found.is_file() {
                return Err(io::Error::other("not a regular file"));
            }
            Ok((File::open(&path)?, found.len()))
        });
        match found {
            Ok((file, size)) => Ok(Some((Opened::File(file), size))),
            Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(Error::Read { path, source }),
        }
    }

    /// Reads a file of the layout's own, which are small.
    fn read(&self, root: &Path, name: &str) -> Result<Option<Vec<u8>>, Error> {
        let Some((file, _)) = self.open_file(name)? else { return Ok(None) };
        let mut bytes = Vec::new();
        file.take(MAX_MANIFEST + 1)
            .read_to_end(&mut bytes)
            .map_err(|source| Error::Read { path: root.join(name), source })?;
        if bytes.len() as u64 > MAX_MANIFEST {
            let source_name = root.display().to_string();
            return Err(Error::TooLarge { what: name.to_owned(), source_name, limit: MAX_MANIFEST });
        }
        Ok(Some(bytes))
    }
}

fn check_version(root: &Path, files: &Files) -> Result<(), Error> {
    // Without it the index decides: old releases write only that.
    let Some(bytes) = files.read(root, "oci-layout")? else { return Ok(()) };
    let reason = match serde_json::from_slice::<LayoutFile>(&bytes) {
        Ok(file) if file.image_layout_version.starts_with("1.") => return Ok(()),
        Ok(file) => format!("its oci-layout has version {:?}, expected 1.0.0", file.image_layout_version),
        Err(error) => format!("its oci-layout is not valid: {error}"),
    };
    Err(Error::NotALayout { path: root.to_owned(), reason })
}

fn read_index(root: &Path, files: &Files) -> Result<Vec<Descriptor>, Error> {
    let not_a_layout = |reason| Error::NotALayout { path: root.to_owned(), reason };
    let Some(bytes) = files.read(root, "index.json")? else {
        let nested = match files {
            Files::Tar(tar) => tar.nested(),
            Files::Directory(_) => None,
        };
        return Err(not_a_layout(match nested {
            Some(directory) => format!(
                "it has no index.json at its top, but {directory}/index.json: pack it with \
                 tar -C {directory} -cf FILE ."
            ),
            None => "it has no index.json".to_owned(),
        }));
    };
    match Document::parse(&bytes) {
        Ok(Document::Index { manifests }) => Ok(manifests),
        Ok(Document::Manifest { .. }) => Err(not_a_layout("its index.json is a manifest".to_owned())),
        Err(error) => Err(not_a_layout(format!("its index.json: {error}"))),
    }
}

impl Source for OciLayout {
    fn name(&self) -> String {
        match &self.tag {
            Some(tag) => format!("{} (tag {tag})", self.root.display()),
            None => self.root.display().to_string(),
        }
    }

    fn manifest(&self, digest: Option<&Digest>, _: &dyn Progress) -> Result<Manifest, Error> {
        let expected = *digest.unwrap_or(&self.manifest);
        let listed = self.listed.as_ref().filter(|d| d.digest == expected);
        let (file, size) = self.open_blob(&expected)?;
        if let Some(listed) = listed {
            self.check_size(expected, listed.size, size)?;
        }
        let too_large = || Error::TooLarge {
            what: format!("manifest {expected}"),
            source_name: self.name(),
            limit: MAX_MANIFEST,
        };
        let mut bytes = Vec::new();
        file.take(MAX_MANIFEST + 1)
            .read_to_end(&mut bytes)
            .map_err(|source| Error::Read { path: self.blob_path(&expected), source })?;
        if bytes.len() as u64 > MAX_MANIFEST {
            return Err(too_large());
        }
        let found = Digest::of(&bytes);
        if found != expected {
            return Err(Error::ManifestMismatch { source_name: self.name(), expected, found });
        }
        let media_type = listed.map(|d| d.media_type.clone()).unwrap_or_default();
        Ok(Manifest { bytes, digest: found, media_type })
    }

    fn content<'a>(&'a self, blob: &'a Descriptor) -> Box<dyn Content + 'a> {
        Box::new(LayoutBlob { layout: self, blob })
    }

    fn blob_store(&self) -> String {
        self.root.display().to_string()
    }

    fn repository(&self) -> Option<(String, String)> {
        None
    }
}

/// A blob that is a file.
struct LayoutBlob<'a> {
    layout: &'a OciLayout,
    blob: &'a Descriptor,
}

impl LayoutBlob<'_> {
    /// Opens it, if it is as long as it should be; gives its size too.
    fn open(&self) -> Result<Measured, Error> {
        let (file, size) = self.layout.open_blob(&self.blob.digest)?;
        self.layout.check_size(self.blob.digest, self.blob.size, size)?;
        Ok((file, size))
    }

    fn unreadable(&self, source: io::Error) -> Error {
        Error::Read { path: self.layout.blob_path(&self.blob.digest), source }
    }
}

impl Content for LayoutBlob<'_> {
    fn copy(&self, out: &mut dyn Write, progress: &dyn Progress) -> Result<(), Error> {
        let (mut file, _) = self.open()?;
        let name = self.layout.name();
        let mut receiver = Receiver::new(self.blob, &name, out, progress);
        let mut buffer = vec![0; 128 << 10];
        loop {
            match file.read(&mut buffer) {
                Ok(0) => return receiver.finish(),
                Ok(n) => receiver.take(&buffer[..n])?,
                Err(source) if source.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(self.unreadable(source)),
            }
        }
    }

    fn tail(&self, length: u64, _: &dyn Progress) -> Result<Option<Vec<u8>>, Error> {
        let (mut file, size) = self.open()?;
        let mut bytes = Vec::new();
        file.skip(size.saturating_sub(length))
            .and_then(|()| file.take(length).read_to_end(&mut bytes))
            .map_err(|source| self.unreadable(source))?;
        Ok(Some(bytes))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::oci::media_type::OCI_MANIFEST;
    use crate::progress::Silent;
    use crate::source::ErrorClass;

    /// A layout with a manifest for each tag (`""`: untagged); equal numbers are equal manifests.
    fn layout(entries: &[(&str, u32)]) -> (tempfile::TempDir, Vec<Digest>) {
        let dir = tempfile::tempdir().unwrap();
        let blobs = dir.path().join("blobs/sha256");
        fs::create_dir_all(&blobs).unwrap();
        fs::write(dir.path().join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        let mut listed = Vec::new();
        let mut digests = Vec::new();
        for (tag, number) in entries {
            let body = format!("{{\"schemaVersion\":2,\"number\":{number}}}");
            let digest = Digest::of(body.as_bytes());
            fs::write(blobs.join(digest.hex()), &body).unwrap();
            let mut entry = serde_json::json!({
                "mediaType": OCI_MANIFEST, "digest": digest, "size": body.len(),
            });
            if !tag.is_empty() {
                entry["annotations"] = serde_json::json!({ REF_NAME: tag });
            }
            listed.push(entry);
            digests.push(digest);
        }
        let index = serde_json::json!({"schemaVersion": 2, "manifests": listed});
        fs::write(dir.path().join("index.json"), index.to_string()).unwrap();
        (dir, digests)
    }

    #[test]
    fn finds_the_entry() {
        let (one, d) = layout(&[("latest", 1)]);
        let source = OciLayout::open(one.path(), None, None).unwrap();
        assert_eq!(source.manifest(None, &Silent).unwrap().digest, d[0]);
        assert_eq!(source.repository(), None);

        let (two, d) = layout(&[("main", 1), ("dev", 2)]);
        let tagged = OciLayout::open(two.path(), Some("dev"), None).unwrap();
        assert_eq!(tagged.manifest(None, &Silent).unwrap().digest, d[1]);
        assert_eq!(tagged.manifest(Some(&d[0]), &Silent).unwrap().digest, d[0]);
        let by_digest = OciLayout::open(two.path(), None, Some(&d[0])).unwrap();
        assert_eq!(by_digest.manifest(None, &Silent).unwrap().media_type, OCI_MANIFEST);

        let (same, d) = layout(&[("main", 1), ("dev", 1)]);
        let source = OciLayout::open(same.path(), None, None).unwrap();
        assert_eq!(source.manifest(None, &Silent).unwrap().digest, d[0]);
    }

    #[test]
    fn reads_a_manifest_that_the_index_does_not_list() {
        let (dir, _) = layout(&[("a", 1), ("b", 2)]);
        let digest = Digest::of(b"{}");
        fs::write(dir.path().join("blobs/sha256").join(digest.hex()), "{}").unwrap();
        let source = OciLayout::open(dir.path(), None, Some(&digest)).unwrap();
        let manifest = source.manifest(None, &Silent).unwrap();
        assert_eq!((manifest.bytes.as_slice(), manifest.media_type.as_str()), (&b"{}"[..], ""));
    }

    #[test]
    fn asks_for_one_of_several() {
        let (dir, d) = layout(&[("main", 1), ("", 2)]);
        let error = OciLayout::open(dir.path(), None, None).unwrap_err();
        let path = dir.path().display();
        let message =
            format!("{path} holds several caches, add one of: tag=main ({}), digest={}", d[0], d[1]);
        assert_eq!(error.to_string(), message);
        assert_eq!(error.class(), ErrorClass::Spec);

        let error = OciLayout::open(dir.path(), Some("dev"), None).unwrap_err();
        let message = format!("no tag \"dev\" in {path}; it has: tag=main ({}), digest={}", d[0], d[1]);
        assert_eq!(error.to_string(), message);
    }

    #[test]
    fn says_why_it_is_no_layout() {
        let empty = tempfile::tempdir().unwrap();
        let (versioned, _) = layout(&[("a", 1)]);
        fs::write(versioned.path().join("oci-layout"), r#"{"imageLayoutVersion":"2.0.0"}"#).unwrap();
        let (nothing, _) = layout(&[]);
        let (garbage, _) = layout(&[("a", 1)]);
        fs::write(garbage.path().join("index.json"), "{").unwrap();
        let (file, _) = layout(&[("a", 1)]);
        let cases = [
            (empty.path().join("absent"), "no such directory, and no such file"),
            (empty.path().to_owned(), "it has no index.json"),
            (file.path().join("index.json"), "neither a directory nor a tar"),
            (versioned.path().to_owned(), "its oci-layout has version \"2.0.0\", expected 1.0.0"),
            (nothing.path().to_owned(), "its index.json lists nothing"),
            (garbage.path().to_owned(), "its index.json: the manifest is not valid"),
        ];
        for (path, reason) in cases {
            let error = OciLayout::open(&path, None, None).unwrap_err();
            let expected = format!("{} is not an OCI layout: {reason}", path.display());
            assert!(error.to_string().starts_with(&expected), "{error}");
            assert_eq!(error.class(), ErrorClass::Unavailable);
        }
    }

    #[test]
    fn old_releases_leave_the_version_out() {
        let (dir, d) = layout(&[("latest", 1)]);
        fs::remove_file(dir.path().join("oci-layout")).unwrap();
        let source = OciLayout::open(dir.path(), None, None).unwrap();
        assert_eq!(source.manifest(None, &Silent).unwrap().digest, d[0]);
    }

    #[test]
    fn proves_manifests_and_blobs() {
        let (dir, d) = layout(&[("latest", 1)]);
        let path = dir.path().join("blobs/sha256").join(d[0].hex());
        let good = fs::read(&path).unwrap();
        let source = OciLayout::open(dir.path(), None, None).unwrap();
        let blob = Descriptor::new("x", d[0], good.len() as u64);
        assert_eq!(source.document(&blob, &Silent).unwrap(), good);

        let mut bad = good.clone();
        bad[0] ^= 1;
        fs::write(&path, &bad).unwrap();
        let found = Digest::of(&bad);
        let error = source.manifest(None, &Silent).unwrap_err().to_string();
        let name = source.name();
        assert_eq!(error, format!("manifest from {name}: expected digest {}, found {found}", d[0]));
        let error = source.document(&blob, &Silent).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("blob {} from {name}: expected that digest, found {found}", d[0])
        );
        assert_eq!(error.class(), ErrorClass::Content);

        fs::write(&path, &good[1..]).unwrap();
        let sizes = format!("expected {} bytes, found {}", good.len(), good.len() - 1);
        let error = source.document(&blob, &Silent).unwrap_err().to_string();
        assert_eq!(error, format!("blob {} from {name}: {sizes}", d[0]));

        fs::remove_file(&path).unwrap();
        let error = source.document(&blob, &Silent).unwrap_err().to_string();
        assert!(error.starts_with(&format!("blob {} is not in {name}", d[0])), "{error}");
    }

    #[test]
    fn the_end_of_a_blob_comes_from_directories_and_tars() {
        let (dir, d) = layout(&[("latest", 1)]);
        let packed = dir.path().join("layout.tar");
        let mut tar = tar::Builder::new(fs::File::create(&packed).unwrap());
        tar.append_dir_all("blobs", dir.path().join("blobs")).unwrap();
        tar.append_path_with_name(dir.path().join("index.json"), "index.json").unwrap();
        tar.finish().unwrap();
        let whole = fs::read(dir.path().join("blobs/sha256").join(d[0].hex())).unwrap();
        for path in [dir.path(), &packed] {
            let source = OciLayout::open(path, None, None).unwrap();
            let blob = Descriptor::new("x", d[0], whole.len() as u64);
            for length in [0, 4, whole.len(), whole.len() + 9] {
                let tail = source.content(&blob).tail(length as u64, &Silent).unwrap().unwrap();
                assert_eq!(tail, whole[whole.len().saturating_sub(length)..], "{} {length}", path.display());
            }
            let error = source.content(&Descriptor::new("x", d[0], 1)).tail(4, &Silent).unwrap_err();
            assert!(matches!(error, Error::BlobMismatch { .. }), "{error}");
        }
    }

    #[test]
    fn a_document_has_a_limit() {
        let (dir, d) = layout(&[("latest", 1)]);
        let source = OciLayout::open(dir.path(), None, None).unwrap();
        let error = source.document(&Descriptor::new("x", d[0], u64::MAX), &Silent).unwrap_err();
        assert!(matches!(error, Error::TooLarge { .. }), "{error}");
    }

    #[test]
    fn a_pipe_is_not_waited_for() {
        let (dir, d) = layout(&[("latest", 1)]);
        let source = OciLayout::open(dir.path(), None, None).unwrap();
        for name in [format!("blobs/sha256/{}", d[0].hex()), "index.json".to_owned()] {
            let path = dir.path().join(name);
            fs::remove_file(&path).unwrap();
            rustix::fs::mknodat(
                rustix::fs::CWD,
                &path,
                rustix::fs::FileType::Fifo,
                rustix::fs::Mode::RUSR,
                0,
            )
            .unwrap();
        }
        let errors = [source.manifest(None, &Silent).err(), OciLayout::open(dir.path(), None, None).err()];
        for error in errors {
            assert!(error.unwrap().to_string().ends_with("not a regular file"));
        }
    }

    #[test]
    fn a_full_disk_is_not_the_sources_fault() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::StorageFull.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let (dir, d) = layout(&[("latest", 1)]);
        let source = OciLayout::open(dir.path(), None, None).unwrap();
        let size = fs::metadata(dir.path().join("blobs/sha256").join(d[0].hex())).unwrap().len();
        let error = source.blob(&Descriptor::new("x", d[0], size), &mut Full, &Silent).unwrap_err();
        assert_eq!(error.class(), ErrorClass::Output);
    }
}
