//! A repository in a registry: OCI distribution-spec v1.1.
//!
//! ```text
//! push             blobs and manifests, to write a sidecar beside a cache
//! referrers        what refers to a manifest
//! manifest, blob   what to ask for, and proving what came
//!   shared         what many tags of one registry share
//!   auth           challenge -> credentials -> token
//!   http           waits, base URL, redirects, TLS: as for every source over a network
//! ```
//!
//! Http is tried first on loopback, where docker too needs no flag; elsewhere https, and http only
//! where [`Options::insecure`] allows it and https is not answered.

mod auth;
mod challenge;
mod push;
mod referrers;
mod shared;

use std::fmt;
use std::sync::Arc;

use self::auth::{Auth, Renewal};
use self::shared::Shared;
use super::credentials::ecr_region;
use super::http::{Attempts, Download, Failure, Options, Reply, RetryPolicy, Stop, Transport, host_of};
use super::{Content, Denied, Error, MAX_MANIFEST, Manifest, Source};
use crate::digest::Digest;
use crate::oci::media_type::{DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST};
use crate::oci::{Descriptor, Reference};
use crate::progress::Progress;

pub use push::Pushed;

/// Why a cache may be missing at ECR though its build has run.
const NO_INDEX: &str = ", with image-manifest=true,oci-mediatypes=true: ECR takes no cache that is an index";

/// What to do where a registry asks for nothing that is known here.
const UNKNOWN: &str = "it asks neither for a password (Basic) nor for a token (Bearer): check that it is the registry, \
                       and no gateway or proxy before it, that answers";

/// One repository of a registry, and the manifest in it that a reference names.
pub struct Registry {
    reference: Reference,
    /// The digest in the reference, if there is one: it goes before the tag.
    pinned: Option<Digest>,
    name: String,
    transport: Arc<Transport>,
    auth: Arc<Auth>,
    retry: RetryPolicy,
    stop: Stop,
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").field("reference", &self.name).finish_non_exhaustive()
    }
}

impl Registry {
    /// Gets ready; asks the registry for nothing yet.
    pub fn open(reference: &Reference, options: &Options) -> Result<Self, Error> {
        // Docker Hub's registry is not at the host that its references name.
        let authority = match reference.registry() {
            "docker.io" => "registry-1.docker.io",
            other => other,
        };
        let pinned = reference.digest().map(str::parse).transpose().map_err(super::SpecError::from)?;
        let shared = options.pool.shared::<Shared>();
        Ok(Self {
            pinned,
            name: reference.to_string(),
            transport: shared.transport(authority, options)?,
            auth: shared.auth(reference, options),
            reference: reference.clone(),
            retry: options.retry,
            stop: options.stop.clone(),
        })
    }

    /// The reference it was opened with.
    pub fn reference(&self) -> &Reference {
        &self.reference
    }

    /// `host/repository`, for messages.
    fn repository_name(&self) -> String {
        format!("{}/{}", self.reference.registry(), self.reference.repository())
    }

    /// Makes one request below `/v2/<repository>/`, with whatever authorization it takes.
    ///
    /// Gives any answer that is neither a refusal nor a failure that may pass.
    fn get(&self, what: &str, path: &str, headers: &[(&'static str, String)]) -> Result<Reply, Failure> {
        let url = self.url(path)?;
        self.authorized(what, &|header| self.transport.get(&url, headers, header))
    }

    /// The URL of something below `/v2/<repository>/`.
    fn url(&self, path: &str) -> Result<String, Failure> {
        Ok(format!("{}/v2/{}/{path}", self.transport.base()?, self.reference.repository()))
    }

    /// Does `exchange` with whatever authorization it takes: it is given the header, and makes the request.
    fn authorized(
        &self,
        what: &str,
        exchange: &dyn Fn(Option<&str>) -> Result<Reply, Failure>,
    ) -> Result<Reply, Failure> {
        let mut got_new = false;
        let mut others_left = 3;
        loop {
            let authorization = self.auth.current(&self.transport)?;
            let header = authorization.as_ref().map(|a| a.header.as_str());
            let mut reply = exchange(header)?;
            if let Some(failure) = reply.passing_failure() {
                return Err(failure);
            }
            if !matches!(reply.status, 401 | 403) {
                if reply.authorized {
                    self.auth.accepted();
                }
                return Ok(reply);
            }
            if reply.host != self.transport.authority() {
                // A storage host has no say in who may read.
                let (status, detail) = (reply.status, reply.error_detail());
                let (what, registry) = (what.to_owned(), self.transport.authority().to_owned());
                return Err(Error::Storage { what, registry, host: reply.host, status, detail }.into());
            }
            // Some registries (ECR) answer 403 to a token that ran out. One that has never been shown
            // anything means it, and so does one that refuses what was got for this very request.
            let worth_it = reply.status == 401 || reply.authorized;
            let mut renewal = Renewal::Nothing;
            if worth_it && !got_new && others_left > 0 {
                let refused = authorization.map_or(0, |a| a.generation);
                renewal = self.auth.renew(refused, &reply, &self.transport)?;
            }
            match renewal {
                Renewal::Got => got_new = true,
                Renewal::GotByOther => others_left -= 1,
                Renewal::Nothing => return Err(self.denied(what, reply, None)),
                Renewal::Unknown => return Err(self.denied(what, reply, Some(UNKNOWN))),
            }
        }
    }

    /// The error for an answer that denies access; with this advice, or what its status and words suggest.
    fn denied(&self, what: &str, mut reply: Reply, advice: Option<&str>) -> Failure {
        let (status, detail) = (reply.status, reply.error_detail());
        let denied = Denied {
            host: reply.host,
            what: format!("{what} of {}", self.repository_name()),
            credentials: self.auth.shown(),
            status,
            advice: advice.map_or_else(|| self.auth.advice(status, &detail), str::to_owned),
            detail,
        };
        Error::Denied(Box::new(denied)).into()
    }

    fn try_manifest(&self, what: &str, reference: &str) -> Result<(Vec<u8>, String), Failure> {
        let accept = [OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST].join(", ");
        let mut reply = self.get(what, &format!("manifests/{reference}"), &[("accept", accept)])?;
        match reply.status {
            200 => {}
            404 => {
                let detail = reply.error_detail();
                let repository = self.repository_name();
                let hint = ecr_region(self.reference.registry()).map_or("", |_| NO_INDEX);
                return Err(Error::NoSuchManifest { what: what.to_owned(), repository, detail, hint }.into());
            }
            status => {
                let detail = reply.error_detail();
                let (what, host) = (what.to_owned(), reply.host);
                return Err(Error::Status { what, host, status, detail }.into());
            }
        }
        let media_type = reply.header("content-type").unwrap_or_default();
        let media_type = media_type.split(';').next().unwrap_or_default().trim().to_owned();
        let bytes = reply.document(what, MAX_MANIFEST)?.ok_or_else(|| {
            let (what, source_name) = (what.to_owned(), self.name.clone());
            Error::TooLarge { what, source_name, limit: MAX_MANIFEST }
        })?;
        Ok((bytes, media_type))
    }
}

impl Registry {
    /// Whether it would hand out a blob: asks for the first byte, as a download would. A `HEAD` tells less
    /// where the registry redirects to a storage host.
    ///
    /// # Errors
    /// As for reading, but that a blob which is not there is an answer.
    pub fn has_blob(&self, blob: &Digest, progress: &dyn Progress) -> Result<bool, Error> {
        let what = format!("blob {blob}");
        let whole = format!("{what} of {}", self.repository_name());
        let mut attempts = Attempts::new(whole, self.retry, &self.stop, progress);
        loop {
            match self.get(&what, &format!("blobs/{blob}"), &[("range", "bytes=0-0".to_owned())]) {
                Ok(reply) => return Ok(reply.status != 404),
                Err(failure) => attempts.failed(failure)?,
            }
        }
    }
}

impl Source for Registry {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn manifest(&self, digest: Option<&Digest>, progress: &dyn Progress) -> Result<Manifest, Error> {
        let expected = digest.or(self.pinned.as_ref());
        let (what, reference) = match (expected, self.reference.tag()) {
            (Some(digest), _) => (format!("manifest {digest}"), digest.to_string()),
            (None, tag) => {
                let tag = tag.unwrap_or("latest");
                (format!("tag {tag:?}"), tag.to_owned())
            }
        };
        let whole = format!("{what} of {}", self.repository_name());
        let attempts = Attempts::new(whole, self.retry, &self.stop, progress);
        let (bytes, media_type) = attempts.run(|| self.try_manifest(&what, &reference))?;
        let found = Digest::of(&bytes);
        if let Some(&expected) = expected.filter(|expected| **expected != found) {
            return Err(Error::ManifestMismatch { source_name: self.name(), expected, found });
        }
        Ok(Manifest { bytes, digest: found, media_type })
    }

    fn content<'a>(&'a self, blob: &'a Descriptor) -> Box<dyn Content + 'a> {
        let path = format!("blobs/{}", blob.digest);
        let ask = Box::new(move |what: &str, headers: &[_]| self.get(what, &path, headers));
        let (source_name, place) = (self.name(), self.repository_name());
        Box::new(Download { blob, source_name, place, retry: self.retry, stop: &self.stop, ask })
    }

    fn blob_store(&self) -> String {
        self.repository_name()
    }

    fn repository(&self) -> Option<(String, String)> {
        let host = host_of(self.reference.registry()).to_owned();
        Some((host, self.reference.repository().to_owned()))
    }
}
