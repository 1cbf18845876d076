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
mod error;
mod held;
mod profile;
mod remote;
mod sigv4;

use jiff::Timestamp;

pub use self::attributes::Attributes;
use self::attributes::ENDPOINT;
use self::credentials::Provider;
use self::endpoint::{Endpoint, host_header};
pub use self::error::AwsError;
pub use self::sigv4::Keys;
use super::fields::parse_url;
use super::http::{Failure, Options, Reply, Transport, element};
use super::objects::{Config, Object, Objects, Store};
use super::{Denied, Error, SpecError};

/// A bucket, and who is asking.
pub(super) struct Bucket {
    /// `bucket <name>`, for messages.
    place: String,
    region: String,
    endpoint: Endpoint,
    provider: Provider,
    transport: Transport,
}

/// Gets ready; asks for nothing yet.
///
/// # Errors
/// Neither the attributes nor the environment say which bucket, or what they say is none.
pub(super) fn open(attributes: &Attributes, options: &Options) -> Result<Objects<Bucket>, Error> {
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
    let config = Config {
        what: format!("cache {:?}", attributes.name),
        name: attributes.name.clone(),
        part: String::new(),
        key: format!("{}{}{}", attributes.prefix, attributes.manifests_prefix, attributes.name),
        is_expected: true,
    };
    let blobs = format!("{}{}", attributes.prefix, attributes.blobs_prefix);
    let store = Bucket {
        place: format!("bucket {bucket}"),
        provider: Provider::new(attributes.keys.clone(), &region, options),
        transport: Transport::at(&endpoint.base, options)?,
        endpoint,
        region,
    };
    let mut options = options.clone();
    if let Some(attempts) = attributes.retry_max_attempts {
        let retry = &mut options.retry;
        retry.failures = attempts;
        retry.failures_before_first_answer = retry.failures_before_first_answer.min(attempts);
    }
    Ok(Objects::new(store, attributes.written.to_string(), vec![config], blobs, &options))
}

impl Store for Bucket {
    fn place(&self) -> &str {
        &self.place
    }

    fn get(&self, what: &str, key: &str, headers: &[(&'static str, String)]) -> Result<Object, Failure> {
        let path = self.endpoint.path(key);
        let host = host_header(&self.endpoint.base);
        let mut renewed = false;
        loop {
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
                return Ok(Object::Here(reply));
            }
            let refusal = Refusal::read(&mut reply);
            let ended =
                matches!(refusal.code.as_str(), "ExpiredToken" | "InvalidToken" | "TokenRefreshRequired");
            if ended && !renewed && self.provider.refused(&keys) {
                renewed = true;
                continue;
            }
            if reply.status == 404 && refusal.code != "NoSuchBucket" {
                return Ok(Object::Missing(refusal.detail));
            }
            return Err(self.refused(what, key, reply, refusal).into());
        }
    }
}

impl Bucket {
    /// The error that a refusal means.
    fn refused(&self, what: &str, key: &str, reply: Reply, refusal: Refusal) -> Error {
        let (status, host, Refusal { code, detail, region }) = (reply.status, reply.host, refusal);
        if let Some(region) = region.filter(|region| *region != self.region)
            && matches!(status, 301 | 307 | 400)
        {
            let bucket = self.place.clone();
            return Error::OtherRegion { bucket, asked: self.region.clone(), region };
        }
        match (status, code.as_str()) {
            (404, _) => Error::NoSuchContainer { host, name: self.place.clone(), detail },
            (401 | 403, _) | (_, "ExpiredToken" | "InvalidToken" | "TokenRefreshRequired") => {
                let denied = Denied {
                    host,
                    what: format!("{what} ({key}) in {}", self.place),
                    credentials: self.provider.shown(),
                    status,
                    detail,
                    advice: advice(&code).to_owned(),
                };
                Error::Denied(Box::new(denied))
            }
            _ => Error::Status { what: format!("{what} of {}", self.place), host, status, detail },
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
