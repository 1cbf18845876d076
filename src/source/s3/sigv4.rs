//! AWS Signature Version 4, as a header.
//!
//! ```text
//! canonical request = method \n path \n query \n headers \n\n names of headers \n hash of the body
//! string to sign    = AWS4-HMAC-SHA256 \n time \n scope \n hash of the canonical request
//! key               = HMAC(HMAC(HMAC(HMAC("AWS4" + secret, day), region), service), "aws4_request")
//! ```
//!
//! Mirrors AWS's "Create a signed AWS API request". The primitives are those of the `hmac` and `sha2`
//! crates; what is here is which lines go into them.

use std::fmt::Write as _;

use jiff::Timestamp;

use crate::digest::Digest;
use crate::source::hmac::hmac_sha256;
use crate::source::secret::Secret;

/// Who is asking.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keys {
    /// The access key's id; not secret.
    pub id: String,
    /// The secret access key.
    pub secret: Secret,
    /// With temporary keys, what goes along with them.
    pub session_token: Option<Secret>,
}

/// What is to be signed: everything that the server will see of a request without a body.
#[derive(Debug, Clone, Copy)]
pub(super) struct Request<'a> {
    pub(super) method: &'static str,
    /// Host and port as they go into the `Host` header.
    pub(super) host: &'a str,
    /// Percent-encoded, from the first slash.
    pub(super) path: &'a str,
    /// Percent-encoded, sorted, without the question mark.
    pub(super) query: &'a str,
    pub(super) region: &'a str,
    pub(super) service: &'static str,
}

/// Signs a request. Gives the headers to add; the last is `Authorization`'s value.
pub(super) fn sign(
    request: &Request<'_>,
    keys: &Keys,
    now: Timestamp,
    more: &[(&'static str, String)],
) -> (Vec<(&'static str, String)>, String) {
    let time = now.strftime("%Y%m%dT%H%M%SZ").to_string();
    let day = now.strftime("%Y%m%d").to_string();
    let empty = hex(&[]);
    let mut headers = vec![("x-amz-content-sha256", empty.clone()), ("x-amz-date", time.clone())];
    if let Some(token) = &keys.session_token {
        headers.push(("x-amz-security-token", token.expose().to_owned()));
    }
    let mut signed: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
    signed.push(("host", request.host));
    signed.extend(more.iter().map(|(name, value)| (*name, value.as_str())));
    signed.sort_unstable();
    let names = signed.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(";");
    let mut canonical = format!("{}\n{}\n{}\n", request.method, request.path, request.query);
    for (name, value) in &signed {
        let _ = writeln!(canonical, "{name}:{}", value.trim());
    }
    let _ = write!(canonical, "\n{names}\n{empty}");

    let scope = format!("{day}/{}/{}/aws4_request", request.region, request.service);
    let to_sign = format!("AWS4-HMAC-SHA256\n{time}\n{scope}\n{}", hex(canonical.as_bytes()));
    let first = format!("AWS4{}", keys.secret.expose());
    let key = [day.as_str(), request.region, request.service, "aws4_request"]
        .iter()
        .fold(first.into_bytes(), |key, part| hmac_sha256(&key, part.as_bytes()).to_vec());
    let signature = hmac_sha256(&key, to_sign.as_bytes()).iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    });
    let authorization = format!(
        "AWS4-HMAC-SHA256 Credential={}/{scope}, SignedHeaders={names}, Signature={signature}",
        keys.id
    );
    (headers, authorization)
}

/// The SHA-256 of some bytes in hexadecimal.
fn hex(bytes: &[u8]) -> String {
    Digest::of(bytes).hex()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(session_token: Option<&str>) -> Keys {
        Keys {
            id: "AKIAIOSFODNN7EXAMPLE".to_owned(),
            secret: Secret::new("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"),
            session_token: session_token.map(Secret::new),
        }
    }

    /// The examples of "Signature Calculations for the Authorization Header" in Amazon S3's reference.
    #[test]
    fn signs_as_the_examples_do() {
        let now: Timestamp = "2013-05-24T00:00:00Z".parse().unwrap();
        let request = |path, query| Request {
            method: "GET",
            host: "examplebucket.s3.amazonaws.com",
            path,
            query,
            region: "us-east-1",
            service: "s3",
        };
        let range = [("range", "bytes=0-9".to_owned())];
        let cases: [(_, &[_], _, _); 3] = [
            (
                request("/test.txt", ""),
                &range,
                "host;range;x-amz-content-sha256;x-amz-date",
                "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
            ),
            (
                request("/", "lifecycle="),
                &[],
                "host;x-amz-content-sha256;x-amz-date",
                "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543",
            ),
            (
                request("/", "max-keys=2&prefix=J"),
                &[],
                "host;x-amz-content-sha256;x-amz-date",
                "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7",
            ),
        ];
        for (request, more, names, signature) in cases {
            let (headers, authorization) = sign(&request, &keys(None), now, more);
            assert_eq!(headers[1], ("x-amz-date", "20130524T000000Z".to_owned()));
            let expected = format!(
                "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request, \
                 SignedHeaders={names}, Signature={signature}"
            );
            assert_eq!(authorization, expected);
        }
    }

    #[test]
    fn a_session_token_goes_along_and_is_signed() {
        let request = Request { method: "GET", host: "h", path: "/", query: "", region: "r", service: "s3" };
        let (headers, authorization) = sign(&request, &keys(Some("token")), Timestamp::UNIX_EPOCH, &[]);
        assert_eq!(headers[2], ("x-amz-security-token", "token".to_owned()));
        assert!(authorization.contains("x-amz-date;x-amz-security-token,"), "{authorization}");
    }
}
