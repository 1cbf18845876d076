//! What refers to a manifest: the referrers API, and the tag that stands in where there is none.
//!
//! ```text
//! GET referrers/<digest>?artifactType=…   200 and an index, empty where there is nothing
//!                                         Link: <…?…>; rel="next": and there is more
//!                                         anything else of a client error: the registry has no such API
//! GET manifests/sha256-<hex>              the same index under a tag, which clients keep up to date
//! ```
//!
//! OCI distribution-spec v1.1, "Listing Referrers" and "Referrers Tag Schema".

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use super::Registry;
use crate::digest::Digest;
use crate::oci::media_type::OCI_INDEX;
use crate::oci::{Referrer, ReferrersList};
use crate::progress::Progress;
use crate::source::http::{Attempts, Failure, RetryPolicy, percent_encode};
use crate::source::{Error, MAX_MANIFEST, Manifest};

/// The most pages of one list that are read.
const MAX_PAGES: usize = 256;
/// The most bytes of all pages of one list.
const MAX_LIST: u64 = 4 * MAX_MANIFEST;
/// How often a list under a tag is written again because somebody else wrote it at the same time.
const WRITES: u32 = 8;

/// The tag that lists what refers to `subject` where a registry has no referrers API.
pub(super) fn fallback_tag(subject: &Digest) -> String {
    format!("sha256-{}", subject.hex())
}

/// One page of a list.
struct Page {
    list: ReferrersList,
    bytes: u64,
    /// What to ask the same endpoint for next.
    next: Option<String>,
}

/// The query of the next page, from `</v2/…/referrers/…?n=…&last=…>; rel="next"`. Whatever host and path stand
/// there, only the registry's own list is asked.
fn next_query(link: &str) -> Option<String> {
    let mut links = link.split('<').filter_map(|link| link.split_once('>'));
    let (url, _) = links.find(|(_, rest)| rest.contains("rel=\"next\"") || rest.contains("rel=next"))?;
    Some(url.find('?').map_or("", |at| &url[at..]).to_owned())
}

impl Registry {
    /// What the registry lists as referring to `subject`, as far as it may be of this type; `None` where
    /// it has no referrers API.
    ///
    /// A list of several pages is read to its end.
    ///
    /// Who cannot find the API may be told so with all kinds of client errors, or with a web page. Those
    /// that share a [`Pool`](crate::source::Pool) ask once.
    pub fn referrers(
        &self,
        subject: &Digest,
        artifact_type: &str,
        progress: &dyn Progress,
    ) -> Result<Option<Vec<Referrer>>, Error> {
        let without = &self.transport.without_referrers;
        if without.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let what = format!("referrers of {subject}");
        let path = format!("referrers/{subject}");
        let mut query = format!("?artifactType={}", percent_encode(artifact_type));
        let mut listed = Vec::new();
        let (mut asked, mut left) = (BTreeSet::new(), MAX_LIST);
        loop {
            let place = format!("{what} in {}", self.repository_name());
            let first = asked.is_empty();
            let attempts = Attempts::new(place, self.retry, &self.stop, progress);
            let page = attempts.run(|| {
                match self.try_referrers(&what, &format!("{path}{query}"), left, first) {
                    // The cache itself could be read: it is only this that there is not.
                    Err(Failure::Final(Error::Denied(_) | Error::Storage { .. })) if first => Ok(None),
                    result => result,
                }
            })?;
            if first {
                without.store(page.is_none(), Ordering::Relaxed);
            }
            let Some(Page { list, bytes, next }) = page else { return Ok(None) };
            listed.extend(list.referrers().filter(|referrer| referrer.may_be(artifact_type)));
            let Some(next) = next else { return Ok(Some(listed)) };
            left = left.saturating_sub(bytes);
            asked.insert(std::mem::replace(&mut query, next));
            if asked.contains(&query) || asked.len() == MAX_PAGES {
                let host = self.transport.authority().to_owned();
                return Err(Error::BadAnswer { what, host, reason: "pages without end".to_owned() });
            }
        }
    }

    /// One page of what the registry lists; `None` where it has no such API, which only the `first` page tells.
    fn try_referrers(
        &self,
        what: &str,
        path: &str,
        limit: u64,
        first: bool,
    ) -> Result<Option<Page>, Failure> {
        let mut reply = self.get(what, path, &[("accept", OCI_INDEX.to_owned())])?;
        let media_type = reply.header("content-type").unwrap_or_default();
        let is_index = media_type.split(';').next().is_some_and(|media_type| media_type.trim() == OCI_INDEX);
        match reply.status {
            200 if is_index => {
                let next = reply.header("link").and_then(next_query);
                let limit = limit.min(MAX_MANIFEST);
                let bytes = reply.read(limit)?.ok_or_else(|| Error::TooLarge {
                    what: what.to_owned(),
                    source_name: self.repository_name(),
                    limit,
                })?;
                let host = reply.host;
                let bad = |error: crate::oci::Error| {
                    let (what, reason) = (what.to_owned(), format!("sent no such list: {error}"));
                    Failure::Final(Error::BadAnswer { what, host, reason })
                };
                let list = ReferrersList::parse(&bytes).map_err(bad)?;
                Ok(Some(Page { list, bytes: bytes.len() as u64, next }))
            }
            200 | 400..=499 | 501 if first => {
                // Reading it frees the connection.
                reply.error_detail();
                Ok(None)
            }
            status => {
                let detail = reply.error_detail();
                Err(Error::Status { what: what.to_owned(), host: reply.host, status, detail }.into())
            }
        }
    }

    /// The manifest under a tag; `None` where there is none.
    pub fn tagged(&self, tag: &str, progress: &dyn Progress) -> Result<Option<Manifest>, Error> {
        let what = format!("tag {tag:?}");
        let whole = format!("{what} of {}", self.repository_name());
        let found = Attempts::new(whole, self.retry, &self.stop, progress).run(|| {
            match self.try_manifest(&what, tag) {
                Err(Failure::Final(Error::NoSuchManifest { .. })) => Ok(None),
                result => result.map(Some),
            }
        })?;
        Ok(found.map(|(bytes, media_type)| Manifest { digest: Digest::of(&bytes), bytes, media_type }))
    }

    /// What the tag that stands in for the referrers API lists, as far as it may be of this type.
    ///
    /// # Errors
    /// [`Error::BadAnswer`] where the tag holds something else.
    pub fn tagged_referrers(
        &self,
        subject: &Digest,
        artifact_type: &str,
        progress: &dyn Progress,
    ) -> Result<Vec<Referrer>, Error> {
        let list = self.tagged_list(subject, progress)?.unwrap_or_default();
        Ok(list.referrers().filter(|referrer| referrer.may_be(artifact_type)).collect())
    }

    fn tagged_list(&self, subject: &Digest, progress: &dyn Progress) -> Result<Option<ReferrersList>, Error> {
        let tag = fallback_tag(subject);
        let Some(manifest) = self.tagged(&tag, progress)? else { return Ok(None) };
        ReferrersList::parse(&manifest.bytes).map(Some).map_err(|error| Error::BadAnswer {
            what: format!("tag {tag:?} of {}", self.repository_name()),
            host: self.transport.authority().to_owned(),
            reason: format!("has something else there: {error}"),
        })
    }

    /// Puts `added` into the list under the tag that stands in for the referrers API, and takes out the
    /// manifests that it supersedes. Gives the tag.
    ///
    /// A registry cannot be asked to write only if nobody else has written, so it is read again
    /// afterwards: whoever's entry was lost to another writer puts it in once more.
    pub fn tag_referrer(
        &self,
        subject: &Digest,
        added: &Referrer,
        superseded: &[Digest],
        progress: &dyn Progress,
    ) -> Result<String, Error> {
        let tag = fallback_tag(subject);
        let what = format!("update of tag {tag:?}");
        let policy = RetryPolicy { failures: WRITES, ..self.retry };
        Attempts::new(self.whole(&what), policy, &self.stop, progress).run(|| {
            let mut list = self.tagged_list(subject, progress)?.unwrap_or_default();
            if !list.replace(added, superseded) {
                return Ok(tag.clone());
            }
            let bytes = list.to_bytes().map_err(|error| Error::BadAnswer {
                what: what.clone(),
                host: self.transport.authority().to_owned(),
                reason: format!("has a list that cannot be written: {error}"),
            })?;
            self.put_manifest(&tag, OCI_INDEX, &bytes, progress)?;
            let stays = |list: ReferrersList| !list.clone().replace(added, &[]);
            if self.tagged_list(subject, progress)?.is_some_and(stays) {
                return Ok(tag.clone());
            }
            Err(Failure::again("somebody else wrote it at the same time"))
        })
    }
}
