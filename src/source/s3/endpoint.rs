//! Where a bucket is.
//!
//! ```text
//! region           https://<bucket>.s3.<region>.amazonaws.com/<key>     a bucket with dots: as path style
//! endpoint_url     <scheme>://<bucket>.<host>/<key>                     a host that is an address: as path style
//! use_path_style   <scheme>://<host>/<bucket>/<key>
//! ```
//!
//! Mirrors the rules of aws-sdk-go-v2's `service/s3`, as far as `BuildKit` gets to them: `use_path_style`
//! counts with `endpoint_url` only.

use std::fmt::Write as _;
use std::net::IpAddr;

use ureq::http::Uri;

use super::attributes::ENDPOINT;
use crate::source::SpecError;
use crate::source::http::host_of;

/// What the hosts of a region's services end with: each partition of AWS has its own.
pub(super) fn dns_suffix(region: &str) -> &'static str {
    const PARTITIONS: [(&str, &str); 6] = [
        ("cn-", "amazonaws.com.cn"),
        ("us-iso-", "c2s.ic.gov"),
        ("us-isob-", "sc2s.sgov.gov"),
        ("us-isof-", "csp.hci.ic.gov"),
        ("eu-isoe-", "cloud.adc-e.uk"),
        ("eusc-", "amazonaws.eu"),
    ];
    let partition = PARTITIONS.iter().find(|(prefix, _)| region.starts_with(prefix));
    partition.map_or("amazonaws.com", |(_, suffix)| suffix)
}

/// Host and port as a client writes them into the `Host` header: without the scheme's own port.
pub(super) fn host_header(uri: &Uri) -> String {
    let host = uri.host().unwrap_or_default();
    let default = if uri.scheme_str() == Some("http") { 80 } else { 443 };
    match uri.port_u16() {
        Some(port) if port != default => format!("{host}:{port}"),
        _ => host.to_owned(),
    }
}

/// Whether this may be the name of a region.
pub(super) fn is_region(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'))
}

/// The URL that all keys of a bucket stand below.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Endpoint {
    /// Without a slash at the end.
    pub(super) base: Uri,
    /// Percent-encoded, from the first slash, without one at the end; empty for none.
    folder: String,
}

impl Endpoint {
    pub(super) fn new(
        bucket: &str,
        region: &str,
        endpoint_url: Option<&Uri>,
        path_style: bool,
    ) -> Result<Self, SpecError> {
        let value = |key, value: &str, expected| SpecError::Value { key, value: value.to_owned(), expected };
        let in_path = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
        if bucket.is_empty() || matches!(bucket, "." | "..") || !bucket.chars().all(in_path) {
            return Err(value("bucket", bucket, "the name of a bucket"));
        }
        if !is_region(region) {
            return Err(value("region", region, "the name of a region, such as eu-central-1"));
        }
        let is_label = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let in_host = (3..=63).contains(&bucket.len())
            && bucket.split('.').all(|label| {
                label.chars().all(is_label)
                    && !label.is_empty()
                    && !label.starts_with('-')
                    && !label.ends_with('-')
            });
        let (scheme, host, folder, virtual_host) = if let Some(uri) = endpoint_url {
            let scheme = uri.scheme_str().unwrap_or("https").to_owned();
            let host = host_header(uri);
            let is_address = host_of(&host).parse::<IpAddr>().is_ok();
            // No certificate is for more than one label before its host.
            let in_certificate = scheme == "http" || !bucket.contains('.');
            let virtual_host = !path_style && !is_address && in_host && in_certificate;
            (scheme, host, uri.path().trim_end_matches('/').to_owned(), virtual_host)
        } else {
            let host = format!("s3.{region}.{}", dns_suffix(region));
            ("https".to_owned(), host, String::new(), in_host && !bucket.contains('.'))
        };
        let url = if virtual_host {
            format!("{scheme}://{bucket}.{host}{folder}")
        } else {
            format!("{scheme}://{host}{folder}/{bucket}")
        };
        let base: Uri = url.parse().map_err(|_| value("endpoint_url", &url, ENDPOINT))?;
        let folder = base.path().trim_end_matches('/').to_owned();
        Ok(Self { base, folder })
    }

    /// The path of a key, percent-encoded as it is signed and sent.
    pub(super) fn path(&self, key: &str) -> String {
        let mut path = format!("{}/", self.folder);
        for byte in key.bytes() {
            if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
                path.push(char::from(byte));
            } else {
                let _ = write!(path, "%{byte:02X}");
            }
        }
        path
    }

    /// The URL of a path.
    pub(super) fn url(&self, path: &str) -> String {
        let scheme = self.base.scheme_str().unwrap_or("https");
        format!("{scheme}://{}{path}", self.base.authority().map_or("", |a| a.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_is_in_the_host_or_in_the_path() {
        let minio = Some("http://minio.local:9000");
        let cases = [
            ("acme", "eu-west-1", None, false, "https://acme.s3.eu-west-1.amazonaws.com/k"),
            ("acme", "eu-west-1", None, true, "https://acme.s3.eu-west-1.amazonaws.com/k"),
            ("acme", "cn-north-1", None, false, "https://acme.s3.cn-north-1.amazonaws.com.cn/k"),
            ("a.cme", "us-east-1", None, false, "https://s3.us-east-1.amazonaws.com/a.cme/k"),
            ("Acme_1", "us-east-1", None, false, "https://s3.us-east-1.amazonaws.com/Acme_1/k"),
            ("acme", "auto", minio, true, "http://minio.local:9000/acme/k"),
            ("acme", "auto", minio, false, "http://acme.minio.local:9000/k"),
            ("a.cme", "auto", minio, false, "http://a.cme.minio.local:9000/k"),
            ("a.cme", "auto", Some("https://minio.local"), false, "https://minio.local/a.cme/k"),
            ("acme", "auto", Some("https://minio.local:443/s3/"), false, "https://acme.minio.local/s3/k"),
            ("acme", "auto", Some("https://minio.local/s3"), true, "https://minio.local/s3/acme/k"),
            ("acme", "auto", Some("http://127.0.0.1:80"), false, "http://127.0.0.1/acme/k"),
            ("acme", "auto", Some("http://[::1]:9000"), false, "http://[::1]:9000/acme/k"),
        ];
        for (bucket, region, endpoint, path_style, expected) in cases {
            let endpoint: Option<Uri> = endpoint.map(|url| url.parse().unwrap());
            let found = Endpoint::new(bucket, region, endpoint.as_ref(), path_style).unwrap();
            assert_eq!(found.url(&found.path("k")), expected);
        }
    }

    #[test]
    fn keys_are_encoded_once() {
        let endpoint = Endpoint::new("acme", "eu-west-1", None, false).unwrap();
        let cases = [
            ("blobs/sha256:ab", "/blobs/sha256%3Aab"),
            ("a b+c/%/../d", "/a%20b%2Bc/%25/../d"),
            ("ä", "/%C3%A4"),
        ];
        for (key, path) in cases {
            assert_eq!(endpoint.path(key), path);
        }
    }

    #[test]
    fn what_leads_elsewhere_is_refused() {
        let cases = [
            ("", "r", "invalid value \"\" for bucket: expected the name of a bucket"),
            ("a/b", "r", "invalid value \"a/b\" for bucket: expected the name of a bucket"),
            ("a@b", "r", "invalid value \"a@b\" for bucket: expected the name of a bucket"),
            ("arn:aws:s3", "r", "invalid value \"arn:aws:s3\" for bucket: expected the name of a bucket"),
            (
                "b",
                "evil.example/",
                "invalid value \"evil.example/\" for region: expected the name of a region, such as eu-central-1",
            ),
        ];
        for (bucket, region, message) in cases {
            let error = Endpoint::new(bucket, region, None, false).unwrap_err();
            assert_eq!(error.to_string(), message);
        }
    }
}
