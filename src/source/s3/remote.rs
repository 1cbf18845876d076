//! AWS credentials that a service gives: the security token service, a container's agent, an
//! instance's metadata.
//!
//! ```text
//! STS        POST / Action=AssumeRoleWithWebIdentity, unsigned    XML: <AccessKeyId>, <SecretAccessKey>, …
//!            GET /?Action=AssumeRole, signed                      the same
//! container  GET $AWS_CONTAINER_CREDENTIALS_FULL_URI              JSON: AccessKeyId, SecretAccessKey, Token
//! instance   PUT /latest/api/token, GET …/security-credentials/   the role's name, then JSON
//! ```

use std::time::Duration;

use jiff::Timestamp;
use ureq::http::Uri;

use super::endpoint::{dns_suffix, host_header};
use super::error::AwsError;
use super::held::{Answer, Held};
use super::sigv4::{self, Keys};
use crate::source::credentials::JsonFault;
use crate::source::http::{Failure, Method, Options, Reply, Transport, element, is_loopback, percent_encode};

/// The version of the security token service's protocol.
const STS_VERSION: &str = "2011-06-15";
/// How sessions are called in an account's log, unless a profile says otherwise.
const SESSION_NAME: &str = "warmkit";
/// ECS's agent; a relative URI is relative to it.
const ECS_AGENT: &str = "http://169.254.170.2";
/// Where an agent on this host may listen besides loopback: ECS, EKS on IPv4 and IPv6.
const AGENTS: [&str; 3] = ["169.254.170.2", "169.254.170.23", "fd00:ec2::23"];
/// An instance's metadata.
const METADATA: &str = "http://169.254.169.254";
const ROLES: &str = "latest/meta-data/iam/security-credentials";

fn service(service: &str, reason: impl Into<String>) -> AwsError {
    AwsError::Service { service: service.to_owned(), reason: reason.into() }
}

fn url(text: &str, from: &str) -> Result<Uri, AwsError> {
    let uri: Uri = text.parse().map_err(|error| service(from, format!("{text:?}: {error}")))?;
    match (uri.scheme_str(), uri.host()) {
        (Some("http" | "https"), Some(_)) => Ok(uri),
        _ => Err(service(from, format!("{text:?} is no URL of http or https"))),
    }
}

/// The security token service of a region.
fn sts(options: &Options, region: &str) -> Result<(Transport, Uri), Failure> {
    let set =
        ["AWS_ENDPOINT_URL_STS", "AWS_ENDPOINT_URL"].into_iter().find_map(|name| options.env.text(name));
    let text = set.map_or_else(|| format!("https://sts.{region}.{}", dns_suffix(region)), str::to_owned);
    let uri = url(&text, "the security token service")?;
    Ok((Transport::at(&uri, options)?, uri))
}

/// Takes a role for a token that an identity provider issued.
pub(super) fn assume_role_with_web_identity(
    options: &Options,
    region: &str,
    token: &str,
    role: &str,
    session: Option<&str>,
) -> Result<Held, Failure> {
    let (transport, _) = sts(options, region)?;
    let form = [
        ("Action", "AssumeRoleWithWebIdentity"),
        ("Version", STS_VERSION),
        ("RoleArn", role),
        ("RoleSessionName", session.unwrap_or(SESSION_NAME)),
        ("WebIdentityToken", token),
    ];
    let reply = transport.post_form(&format!("{}/", transport.base()?), &form)?;
    from_sts(reply, &format!("role {role} by web identity"))
}

/// Takes a role with other keys.
pub(super) fn assume_role(
    options: &Options,
    region: &str,
    keys: &Keys,
    role: &str,
    session: Option<&str>,
    external_id: Option<&str>,
) -> Result<Held, Failure> {
    let (transport, uri) = sts(options, region)?;
    let mut query = String::from("Action=AssumeRole");
    if let Some(id) = external_id {
        query = format!("{query}&ExternalId={}", percent_encode(id));
    }
    let (role_arn, session) = (percent_encode(role), percent_encode(session.unwrap_or(SESSION_NAME)));
    query = format!("{query}&RoleArn={role_arn}&RoleSessionName={session}&Version={STS_VERSION}");
    let host = host_header(&uri);
    let request =
        sigv4::Request { method: "GET", host: &host, path: "/", query: &query, region, service: "sts" };
    let (headers, authorization) = sigv4::sign(&request, keys, Timestamp::now(), &[]);
    let url = format!("{}/?{query}", transport.base()?);
    let reply = transport.get_here(&url, &headers, Some(&authorization))?;
    from_sts(reply, &format!("role {role}"))
}

fn from_sts(mut reply: Reply, origin: &str) -> Result<Held, Failure> {
    if let Some(failure) = reply.passing_failure() {
        return Err(failure);
    }
    let from = format!("the security token service at {}", reply.host);
    if reply.status != 200 {
        let detail = reply.error_detail();
        return Err(service(&from, format!("status {} ({detail})", reply.status)).into());
    }
    let xml = reply.answer()?;
    let text = |name| element(&xml, name).unwrap_or_default();
    let answer = Answer::new(
        text("AccessKeyId"),
        text("SecretAccessKey"),
        text("SessionToken"),
        element(&xml, "Expiration"),
    );
    Ok(answer.into_held(origin).map_err(|reason| service(&from, reason))?)
}

/// What a container's agent gives, where one is named.
pub(super) fn of_container(options: &Options) -> Result<Option<Held>, Failure> {
    const FROM: &str = "the container's agent";
    let env = &options.env;
    let relative =
        env.text("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI").map(|path| format!("{ECS_AGENT}{path}"));
    let full = env.text("AWS_CONTAINER_CREDENTIALS_FULL_URI").map(str::to_owned);
    let Some(text) = relative.or(full) else { return Ok(None) };
    let uri = url(&text, FROM)?;
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    if uri.scheme_str() == Some("http") && !is_loopback(host) && !AGENTS.contains(&host) {
        let reason = format!("{text:?} is neither on https nor on this host");
        return Err(service(FROM, reason).into());
    }
    let token = match env.path("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE") {
        Some(path) => {
            let read = std::fs::read_to_string(&path).map_err(|source| AwsError::Read { path, source })?;
            Some(read.trim().to_owned())
        }
        None => env.text("AWS_CONTAINER_AUTHORIZATION_TOKEN").map(str::to_owned),
    };
    let transport = Transport::at(&uri, options)?;
    let mut reply = transport.get_here(&text, &[], token.as_deref())?;
    if let Some(failure) = reply.passing_failure() {
        return Err(failure);
    }
    if reply.status != 200 {
        let detail = reply.error_detail();
        let reason = format!("{} answered with status {} ({detail})", reply.host, reply.status);
        return Err(service(FROM, reason).into());
    }
    Ok(Some(from_json(&mut reply, FROM)?))
}

fn from_json(reply: &mut Reply, from: &str) -> Result<Held, Failure> {
    let bytes = reply.answer()?;
    let answer: Answer =
        serde_json::from_slice(&bytes).map_err(|error| service(from, JsonFault::from(&error).to_string()))?;
    Ok(answer.into_held(from).map_err(|reason| service(from, reason))?)
}

/// What the instance's metadata gives; otherwise why not. A machine that is no instance says nothing
/// at all, so patience is short.
pub(super) fn of_instance(options: &Options) -> Result<Held, String> {
    let env = &options.env;
    if env.text("AWS_EC2_METADATA_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
        return Err("AWS_EC2_METADATA_DISABLED is set".to_owned());
    }
    let base = env.text("AWS_EC2_METADATA_SERVICE_ENDPOINT").unwrap_or(METADATA).trim_end_matches('/');
    let options = Options {
        connect_timeout: Duration::from_secs(1),
        stall_timeout: Duration::from_secs(5),
        ..options.clone()
    };
    let from = "the instance's metadata";
    let ask = || -> Result<Held, Failure> {
        let uri = url(base, from)?;
        let transport = Transport::at(&uri, &options)?;
        let lifetime = [("x-aws-ec2-metadata-token-ttl-seconds", "21600".to_owned())];
        let token = transport.send(Method::Put, &format!("{base}/latest/api/token"), &lifetime, &[])?;
        let token = [("x-aws-ec2-metadata-token", text(token, "a token")?)];
        let roles = text(transport.get_here(&format!("{base}/{ROLES}/"), &token, None)?, "a role")?;
        let role = roles.lines().next().unwrap_or_default().trim().to_owned();
        let mut reply =
            transport.get_here(&format!("{base}/{ROLES}/{}", percent_encode(&role)), &token, None)?;
        if reply.status != 200 {
            return Err(service(from, format!("status {} for role {role}", reply.status)).into());
        }
        from_json(&mut reply, &format!("the instance's role {role}"))
    };
    ask().map_err(|failure| match failure {
        Failure::Again { reason, .. } => reason,
        Failure::Final(error) => error.to_string(),
    })
}

fn text(mut reply: Reply, what: &str) -> Result<String, Failure> {
    if reply.status != 200 {
        let reason = format!("status {} when asked for {what}", reply.status);
        return Err(service("the instance's metadata", reason).into());
    }
    let bytes = reply.answer()?;
    Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
}
