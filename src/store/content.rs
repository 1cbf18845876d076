//! The content store: layer blobs as transferred.
//!
//! ```text
//! <worker>/content/
//!   ingest/<temporary name>     while it is written
//!   blobs/sha256/<hex>   0444   once its digest is proven
//! ```
//!
//! Mirrors containerd `plugins/content/local/{store,writer}.go`. containerd's ingests are directories; a
//! file left behind by a bake that was killed is none, and a daemon passes it over.

use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;

use tempfile::NamedTempFile;

use crate::digest::Digest;

use super::Error;
use super::state_dir::{BLOB_MODE, INGEST, StateDir};

/// A blob on its way into the content store. Dropped unfinished, it leaves nothing behind.
#[derive(Debug)]
pub struct BlobWriter {
    file: NamedTempFile,
    state: StateDir,
}

impl BlobWriter {
    /// Starts a blob; [`StateDir::create`] must have run.
    ///
    /// # Errors
    /// The temporary file cannot be made.
    pub fn new(state: &StateDir) -> Result<Self, Error> {
        let directory = state.in_worker(INGEST);
        let file = tempfile::Builder::new()
            .prefix("warmkit-")
            .tempfile_in(&directory)
            .map_err(|source| Error::Create { path: directory, source })?;
        Ok(Self { file, state: state.clone() })
    }

    /// The file, to be read again before it is finished.
    pub fn file(&self) -> &File {
        self.file.as_file()
    }

    /// Puts the blob in its place. Whoever wrote it has proven that it has this digest. A blob that is there
    /// already has the same bytes and is replaced. Nothing is flushed to disk.
    ///
    /// # Errors
    /// The mode cannot be set, or the file not renamed.
    pub fn finish(self, digest: &Digest) -> Result<PathBuf, Error> {
        let path = self.state.blob(digest);
        let failed = |source| Error::Create { path: path.clone(), source };
        self.state.finish_file(self.file.as_file(), BLOB_MODE).map_err(failed)?;
        self.file.persist(&path).map_err(|error| failed(error.error))?;
        Ok(path)
    }
}

impl Write for BlobWriter {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.file.as_file_mut().write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.as_file_mut().flush()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::super::Snapshotter;
    use super::*;

    #[test]
    fn finished_blobs_stand_under_their_digest() {
        let temp = tempfile::tempdir().unwrap();
        let state = StateDir::new(temp.path(), Snapshotter::Overlayfs);
        state.create().unwrap();
        for _ in 0..2 {
            let mut writer = BlobWriter::new(&state).unwrap();
            writer.write_all(b"layer").unwrap();
            let path = writer.finish(&Digest::of(b"layer")).unwrap();
            assert_eq!(path, state.blob(&Digest::of(b"layer")));
            assert_eq!(fs::read(&path).unwrap(), b"layer");
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o444);
        }
        let mut writer = BlobWriter::new(&state).unwrap();
        writer.write_all(b"cut").unwrap();
        drop(writer);
        assert_eq!(fs::read_dir(state.in_worker(INGEST)).unwrap().count(), 0);
    }
}
