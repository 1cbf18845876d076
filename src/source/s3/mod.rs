//! A cache in an S3 bucket, as `--cache-to type=s3` writes it.
//!
//! ```text
//! <prefix><manifests_prefix><name>      the cache config, with an annotation for each layer
//! <prefix><blobs_prefix>sha256:<hex>    a layer
//! ```
//!
//! Mirrors the importer of `BuildKit`'s `cache/remotecache/s3/s3.go`. There is no manifest: what is a
//! config elsewhere tells size, media type and diff ID of its layers itself.

mod attributes;
mod credentials;
mod endpoint;
mod profile;
mod remote;
mod sigv4;

use std::fmt;
use std::io::Write;

use jiff::Timestamp;

pub use self::attributes::Attributes;
use self::attributes::ENDPOINT;
pub use self::credentials::AwsError;
use self::credentials::Provider;
use self::endpoint::{Endpoint, host_header};
pub use self::sigv4::Keys;
use super::fields::parse_url;
use super::http::{Download, Failure, Options, Reply, RetryPolicy, Stop, Transport, document, element};
use super::{Denied, Error, Manifest, MissingCache, Source, SpecError};
use crate::digest::Digest;
use crate::oci::Descriptor;
use crate::progress::Progress;

/// One cache in a bucket.
pub struct S3 {
    name: String,
    bucket: String,
    region: String,
    cache: String,
    manifest_key: String,
    blobs: String,
    endpoint: Endpoint,
    provider: Provider,
    transport: Transport,
    retry: RetryPolicy,
    stop: Stop,
}

impl fmt::Debug for S3 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3").field("name", &self.name).finish_non_exhaustive()
    }
}

impl S3 {
    /// Gets ready; asks for nothing yet.
    ///
    /// # Errors
    /// Neither the attributes nor the environment say which bucket, or what they say is none.
    pub fn open(attributes: &Attributes, options: &Options) -> Result<Self, Error> {
        let set = |written: &Option<String>, key, variable| -> Result<String, SpecError> {
            let found = written.as_deref().or_else(|| options.env.text(variable));
            found.map(str::to_owned).ok_or(SpecError::NotSet { kind: "s3", key, variable })
        };
        let bucket = set(&attributes.bucket, "bucket", "AWS_BUCKET")?;
        let region = set(&attributes.region, "region", "AWS_REGION")?;
        let set = |variable| Some(parse_url(variable, options.env.text(variable)?, ENDPOINT));
        let url = match &attributes.endpoint_url {
            Some(url) => Some(url.clone()),
            None => set("AWS_ENDPOINT_URL_S3").or_else(|| set("AWS_ENDPOINT_URL")).transpose()?,
        };
        let endpoint = Endpoint::new(&bucket, &region, url.as_ref(), attributes.use_path_style)?;
        let mut retry = options.retry;
        if let Some(attempts) = attributes.retry_max_attempts {
            retry.failures = attempts;
            retry.failures_before_first_answer = retry.failures_before_first_answer.min(attempts);
        }
        Ok(Self {
            name: attributes.written.to_string(),
            cache: attributes.name.clone(),
            manifest_key: format!("{}{}{}", attributes.prefix, attributes.manifests_prefix, attributes.name),
            blobs: format!("{}{}", attributes.prefix, attributes.blobs_prefix),
            provider: Provider::new(attributes.keys.clone(), &region, options),
            transport: Transport::at(&endpoint.base, options)?,
            endpoint,
            bucket,
            region,
            retry,
            stop: options.stop.clone(),
        })
    }

    fn place(&self) -> String {
        format!("bucket {}", self.bucket)
    }

    /// Makes one request for the object `key`. Gives an answer that has it, in whole or in part.
    fn get(
        &self,
        what: &str,
        key: &str,
        headers: &[(&'static str, String)],
        missing: &dyn Fn(String) -> Error,
    ) -> Result<Reply, Failure> {
        let path = self.endpoint.path(key);
        let host = host_header(&self.endpoint.base);
        let mut renewed = false;
        loop {
            if self.stop.is_stopped() {
                return Err(Error::Stopped { what: what.to_owned() }.into());
            }
            let keys = self.provider.current()?;
            let request = sigv4::Request {
                method: "GET",
                host: &host,
                path: &path,
                query: "",
                region: &self.region,
                service: "s3",
            };
            let (mut all, authorization) = sigv4::sign(&request, &keys, Timestamp::now(), &[]);
            all.extend_from_slice(headers);
            let mut reply = self.transport.get_here(&self.endpoint.url(&path), &all, Some(&authorization))?;
            if let Some(failure) = reply.passing_failure() {
                return Err(failure);
            }
            if matches!(reply.status, 200 | 206) {
                return Ok(reply);
            }
            let refusal = Refusal::read(&mut reply);
            let ended =
                matches!(refusal.code.as_str(), "ExpiredToken" | "InvalidToken" | "TokenRefreshRequired");
            if ended && !renewed && self.provider.refused(&keys) {
                renewed = true;
                continue;
            }
            return Err(self.error(what, key, reply, refusal, missing).into());
        }
    }

    fn error(
        &self,
        what: &str,
        key: &str,
        reply: Reply,
        refusal: Refusal,
        missing: &dyn Fn(String) -> Error,
    ) -> Error {
        let (status, host, Refusal { code, detail, region }) = (reply.status, reply.host, refusal);
        if let Some(region) = region.filter(|region| *region != self.region)
            && matches!(status, 301 | 307 | 400)
        {
            let bucket = self.bucket.clone();
            return Error::OtherRegion { bucket, asked: self.region.clone(), region };
        }
        match (status, code.as_str()) {
            (404, "NoSuchBucket") => Error::NoSuchContainer { host, name: self.place(), detail },
            (404, _) => missing(detail),
            (401 | 403, _) | (_, "ExpiredToken" | "InvalidToken" | "TokenRefreshRequired") => {
                let denied = Denied {
                    host,
                    what: format!("{what} ({key}) in {}", self.place()),
                    credentials: self.provider.shown(),
                    status,
                    detail,
                    advice: advice(&code).to_owned(),
                };
                Error::Denied(Box::new(denied))
            }
            _ => Error::Status { what: format!("{what} of {}", self.place()), host, status, detail },
        }
    }
}

/// What to do about a refusal.
fn advice(code: &str) -> &'static str {
    match code {
        "RequestTimeTooSkewed" => "set this machine's clock: it is more than 15 minutes off",
        "InvalidAccessKeyId" => "check the access key, and that it is one of this endpoint",
        "SignatureDoesNotMatch" => "check that the secret access key belongs to the access key",
        "ExpiredToken" | "InvalidToken" | "TokenRefreshRequired" => "get new temporary credentials",
        _ => {
            "check bucket, prefixes and name, and that the account may read them (s3:GetObject); without \
             s3:ListBucket, S3 answers so for what is not there, too"
        }
    }
}

/// What S3 says when it does not give an object.
struct Refusal {
    code: String,
    detail: String,
    /// Where the bucket is, when it was asked for in another region.
    region: Option<String>,
}

impl Refusal {
    fn read(reply: &mut Reply) -> Self {
        let header = reply.header("x-amz-bucket-region").map(str::to_owned);
        let (body, detail) = reply.error_body();
        let code = element(&body, "Code").unwrap_or_default();
        let region = header.or_else(|| element(&body, "Region"));
        // It goes into an advice.
        Self { code, detail, region: region.filter(|region| endpoint::is_region(region)) }
    }
}

impl Source for S3 {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn manifest(&self, digest: Option<&Digest>, progress: &dyn Progress) -> Result<Manifest, Error> {
        let what = format!("cache {:?}", self.cache);
        let whole = format!("{what} of {}", self.place());
        let missing = |detail| {
            let missing = MissingCache {
                name: self.cache.clone(),
                place: self.place(),
                key: self.manifest_key.clone(),
                detail,
            };
            Error::NoSuchCache(Box::new(missing))
        };
        let bytes = document(&whole, &self.name, self.retry, &self.stop, progress, &|| {
            self.get(&what, &self.manifest_key, &[], &missing)
        })?;
        Manifest::of_config(bytes, digest, &self.name)
    }

    fn blob(&self, blob: &Descriptor, out: &mut dyn Write, progress: &dyn Progress) -> Result<(), Error> {
        let place = self.place();
        let key = format!("{}{}", self.blobs, blob.digest);
        let missing =
            |detail| Error::NoSuchBlob { blob: blob.digest, source_name: format!("{place} ({key})"), detail };
        let download =
            Download { blob, source_name: &self.name, place: &place, retry: self.retry, stop: &self.stop };
        download.run(out, progress, &|what, headers| self.get(what, &key, headers, &missing))
    }

    fn repository(&self) -> Option<(String, String)> {
        None
    }
}
