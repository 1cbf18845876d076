//! Blobs that a containerd keeps, read through its API.

use super::parallel;
use super::report::{FindingKind, Findings, Subject};
use crate::digest::Digest;
use crate::progress::{Event, Progress};
use crate::root::keeper::Keeper;
use crate::root::{Containerd, Error};

/// What one thread has read, and why it read no more.
#[derive(Default)]
struct Read {
    bytes: u64,
    failure: Option<Error>,
}

/// Reads every blob of the namespace: it is there, as long as recorded, and has the
/// bytes that its digest says. Gives how many bytes were hashed.
///
/// # Errors
/// containerd does not answer any more.
pub(super) fn check_blobs(
    keeper: &Keeper,
    containerd: &Containerd,
    jobs: usize,
    progress: &dyn Progress,
    findings: &mut Findings,
) -> Result<u64, Error> {
    let all: Vec<Digest> = containerd.blobs.keys().copied().collect();
    let bytes = containerd.blobs.values().filter_map(|blob| u64::try_from(blob.size?).ok()).sum();
    progress.event(Event::Planned { layers: all.len(), bytes, unpacks: 0 });
    let outcomes = parallel::each(jobs, &all, |digest, read: &mut Read, findings| {
        if read.failure.is_some() {
            return;
        }
        let fetched = |bytes| progress.event(Event::Fetched { digest: *digest, bytes });
        match keeper.hash(digest, fetched) {
            Ok(Some((size, found))) => {
                read.bytes += size;
                let expected = containerd.blobs.get(digest).and_then(|blob| blob.size);
                if let Some(expected) = expected.filter(|&expected| i64::try_from(size) != Ok(expected)) {
                    let detail = format!("{size} bytes, containerd says {expected}");
                    findings.add(FindingKind::BlobSize, Subject::blob(digest), detail);
                } else if found != *digest {
                    let detail = format!("its bytes have {found}");
                    findings.add(FindingKind::BlobDigest, Subject::blob(digest), detail);
                } else {
                    progress.event(Event::BlobDone { digest: *digest });
                }
            }
            Ok(None) => match keeper.is_known(digest) {
                Ok(true) => {
                    let detail = "containerd has lost its bytes";
                    findings.add(FindingKind::BlobFileMissing, Subject::blob(digest), detail);
                }
                // It was another's, and has been collected since it was listed.
                Ok(false) => {}
                Err(error) => read.failure = Some(error),
            },
            Err(error) => read.failure = Some(error),
        }
    });
    let mut hashed = 0;
    for (read, found) in outcomes {
        if let Some(error) = read.failure {
            return Err(error);
        }
        hashed += read.bytes;
        findings.append(found);
    }
    Ok(hashed)
}
