//! Writing to a repository: small blobs, and the manifests that name them.
//!
//! ```text
//! POST blobs/uploads/             202, Location: anywhere, absolute or relative
//! PUT  <Location>&digest=…        201
//! PUT  manifests/<tag or digest>  201, OCI-Subject: what it refers to, if the registry minds that
//! ```
//!
//! OCI distribution-spec v1.1, "Pushing". A blob goes in one piece, which is what every registry takes;
//! an attempt that fails begins again at the first step, since an upload that broke off may be gone.

use std::sync::Arc;

use ureq::http::Uri;

use super::Registry;
use super::auth::Auth;
use crate::digest::Digest;
use crate::oci::Reference;
use crate::progress::Progress;
use crate::source::Error;
use crate::source::credentials::Credentials;
use crate::source::http::{Attempts, Failure, Method, Options, Reply, origin, parse_uri};

const MAX_REDIRECTS: usize = 5;

/// A manifest that the registry has taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pushed {
    /// Hash of its bytes, computed here.
    pub digest: Digest,
    /// Whether the registry said that it lists the manifest beside its subject.
    pub listed: bool,
}

impl Registry {
    /// Gets ready to write, too; asks the registry for nothing yet.
    pub fn open_for_push(reference: &Reference, options: &Options) -> Result<Self, Error> {
        let credentials = Credentials::new(options);
        let auth = Auth::new(credentials, reference.registry(), reference.repository()).for_push();
        Ok(Self { auth: Arc::new(auth), ..Self::open(reference, options)? })
    }

    /// Stores a blob.
    ///
    /// # Errors
    /// [`Error::Denied`] without leave to push; otherwise as for reading.
    pub fn put_blob(&self, bytes: &[u8], progress: &dyn Progress) -> Result<Digest, Error> {
        let digest = Digest::of(bytes);
        let what = format!("upload of blob {digest}");
        let attempts = Attempts::new(self.whole(&what), self.retry, &self.stop, progress);
        attempts.run(|| self.try_blob(&what, &digest, bytes))?;
        Ok(digest)
    }

    pub(super) fn whole(&self, what: &str) -> String {
        format!("{what} to {}", self.repository_name())
    }

    fn try_blob(&self, what: &str, digest: &Digest, bytes: &[u8]) -> Result<(), Failure> {
        let start = self.url("blobs/uploads/")?;
        let reply = self.send(what, Method::Post, &start, &[], &[])?;
        let reply = match reply.status {
            // It has the blob already.
            201 => reply,
            202 => {
                let at = self.upload_location(what, &start, &reply)?;
                let separator = if at.query().is_some() { '&' } else { '?' };
                let url = format!("{at}{separator}digest={digest}");
                let headers = [("content-type", "application/octet-stream".to_owned())];
                let mut reply = self.send(what, Method::Put, &url, &headers, bytes)?;
                if reply.status == 404 {
                    // The upload is gone, or another of several servers has it.
                    let detail = reply.error_detail();
                    return Err(Failure::again(format!("{} lost the upload ({detail})", reply.host)));
                }
                reply
            }
            _ => return Err(self.refused(what, reply)),
        };
        if reply.status != 201 {
            return Err(self.refused(what, reply));
        }
        check_digest(what, &reply, digest)
    }

    /// Where an upload that was begun goes on.
    fn upload_location(&self, what: &str, start: &str, reply: &Reply) -> Result<Uri, Failure> {
        let start = parse_uri(start, self.transport.authority())?;
        let location = reply.header("location").unwrap_or_default();
        // A registry behind a proxy that ends TLS may not know that it is asked over https.
        if start.scheme_str() == Some("https")
            && let Some(rest) = location.strip_prefix("http://")
            && rest.split('/').next() == start.authority().map(ToString::to_string).as_deref()
        {
            return parse_uri(&format!("https://{rest}"), self.transport.authority());
        }
        self.transport.redirect(what, &start, &reply.headers)
    }

    /// Stores a manifest under a tag or its digest.
    ///
    /// # Errors
    /// [`Error::Denied`] without leave to push; otherwise as for reading.
    pub fn put_manifest(
        &self,
        reference: &str,
        media_type: &str,
        bytes: &[u8],
        progress: &dyn Progress,
    ) -> Result<Pushed, Error> {
        let digest = Digest::of(bytes);
        let what = format!("push of manifest {reference}");
        let headers = [("content-type", media_type.to_owned())];
        let attempt = || {
            let url = self.url(&format!("manifests/{reference}"))?;
            let reply = self.send(&what, Method::Put, &url, &headers, bytes)?;
            if !matches!(reply.status, 200..=202) {
                return Err(self.refused(&what, reply));
            }
            check_digest(&what, &reply, &digest)?;
            Ok(Pushed { digest, listed: reply.header("oci-subject").is_some() })
        };
        Attempts::new(self.whole(&what), self.retry, &self.stop, progress).run(attempt)
    }

    /// Makes a request that sends something, with whatever authorization it takes. Redirects that keep the
    /// method are followed; to another host it goes without authorization.
    fn send(
        &self,
        what: &str,
        method: Method,
        url: &str,
        headers: &[(&'static str, String)],
        body: &[u8],
    ) -> Result<Reply, Failure> {
        let registry = origin(&parse_uri(&self.url("")?, self.transport.authority())?);
        self.authorized(what, &|authorization| {
            let mut at = parse_uri(url, self.transport.authority())?;
            for _ in 0..MAX_REDIRECTS {
                let mut headers = headers.to_vec();
                let authorization = authorization.filter(|_| origin(&at) == registry);
                headers.extend(authorization.map(|header| ("authorization", header.to_owned())));
                let reply = self.transport.send(method, &at.to_string(), &headers, body)?;
                if !matches!(reply.status, 307 | 308) {
                    return Ok(reply);
                }
                at = self.transport.redirect(what, &at, &reply.headers)?;
            }
            let host = self.transport.authority().to_owned();
            Err(Error::BadAnswer { what: what.to_owned(), host, reason: "redirects without end".to_owned() }
                .into())
        })
    }

    /// A status that is neither success nor something that may pass.
    fn refused(&self, what: &str, mut reply: Reply) -> Failure {
        let detail = reply.error_detail();
        Error::Status { what: self.whole(what), host: reply.host, status: reply.status, detail }.into()
    }
}

/// What the registry says it has stored should be what was sent.
fn check_digest(what: &str, reply: &Reply, sent: &Digest) -> Result<(), Failure> {
    match reply.header("docker-content-digest").filter(|found| *found != sent.to_string()) {
        Some(found) => {
            let reason = format!("says that it stored {found:?} instead of {sent}");
            Err(Error::BadAnswer { what: what.to_owned(), host: reply.host.clone(), reason }.into())
        }
        None => Ok(()),
    }
}
