//! The metadata service of an EC2 instance (`IMDSv2`), as far as credentials of its role go.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::TcpStream;

use serde_json::json;

use super::serve::Serving;

const SESSION: &str = "session-of-this-instance";
const ROLE: &str = "builder";

/// A running service; ends when dropped.
#[derive(Debug)]
pub struct Instance(Serving);

impl Instance {
    /// Starts one whose role has a key that lasts for an hour.
    pub fn start() -> Self {
        Self(Serving::start(answer))
    }

    /// For `AWS_EC2_METADATA_SERVICE_ENDPOINT`.
    pub fn url(&self) -> String {
        format!("http://{}", self.0.address)
    }
}

fn answer(mut stream: TcpStream) -> io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let request = lines.next().transpose()?.unwrap_or_default();
    let mut has_session = false;
    for line in lines {
        let line = line?;
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(": ").unwrap_or_default();
        has_session |= name.eq_ignore_ascii_case("x-aws-ec2-metadata-token") && value == SESSION;
    }
    let mut words = request.split(' ');
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let body = match (method, path.strip_prefix("/latest/meta-data/iam/security-credentials/")) {
        ("PUT", _) if path == "/latest/api/token" => Some(SESSION.to_owned()),
        ("GET", Some("")) if has_session => Some(ROLE.to_owned()),
        ("GET", Some(ROLE)) if has_session => Some(credentials()),
        _ => None,
    };
    let status = if body.is_some() { "200 OK" } else { "401 Unauthorized" };
    let body = body.unwrap_or_default();
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 {status}\r\nX-Aws-Ec2-Metadata-Token-Ttl-Seconds: 21600\r\nConnection: close\r\n\
         Content-Length: {length}\r\n\r\n{body}"
    )
}

fn credentials() -> String {
    let now = jiff::Timestamp::now();
    json!({
        "Code": "Success",
        "LastUpdated": now.to_string(),
        "Type": "AWS-HMAC",
        "AccessKeyId": "ASIAINSTANCE",
        "SecretAccessKey": "any",
        "Token": "any",
        "Expiration": (now + jiff::SignedDuration::from_hours(1)).strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
    })
    .to_string()
}
