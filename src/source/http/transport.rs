//! Requests to one server: its base URL, redirects, TLS roots, and which failures may pass.
//!
//! Redirects are followed here and not by the client, so that an `Authorization` header goes to the
//! host that asked for it and to no other, and never from https to http.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use ureq::http::header::{ACCEPT_ENCODING, AUTHORIZATION, LOCATION};
use ureq::http::{HeaderMap, Response, Uri};
use ureq::tls::{RootCerts, TlsConfig};
use ureq::{Agent, Body, Proxy};

use super::Options;
use super::reply::Reply;
use super::retry::Failure;
use super::text::{discreet_url, secrets_in_query};
use super::tls;
use crate::source::Error;
use crate::source::credentials::Environment;
use crate::source::secret::Secret;

const MAX_REDIRECTS: usize = 10;
/// A connection pool for one server, shared by threads.
pub(in crate::source) struct Transport {
    agent: Agent,
    /// Host and port as in a URL.
    authority: String,
    /// In the order in which they are tried.
    schemes: &'static [&'static str],
    loopback: bool,
    insecure: bool,
    base: OnceLock<String>,
    answered: AtomicBool,
    /// What is asked in its place, unless it or another host is to be asked directly.
    proxy: Option<Proxy>,
    certs: PathBuf,
    /// Whether the server has said that it has no referrers API; it is not asked twice.
    pub(in crate::source) without_referrers: AtomicBool,
}

/// How something is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::source) enum Method {
    Put,
    Post,
}

/// The host of an authority, without port and without brackets.
pub(in crate::source) fn host_of(authority: &str) -> &str {
    if let Some(rest) = authority.strip_prefix('[') {
        return rest.split(']').next().unwrap_or_default();
    }
    authority.split(':').next().unwrap_or_default()
}

/// Whether no proxy reaches a server: this machine, and what is on its own link.
fn is_direct(authority: &str) -> bool {
    let host = host_of(authority);
    is_loopback(host) || is_link_local(host)
}

/// Whether a host is on this machine's own link, as metadata services are.
fn is_link_local(host: &str) -> bool {
    match host.parse() {
        Ok(IpAddr::V4(ip)) => ip.is_link_local(),
        Ok(IpAddr::V6(ip)) => ip.is_unicast_link_local() || ip.is_unique_local(),
        Err(_) => false,
    }
}

/// Whether a host is this machine, as docker tells it.
pub(in crate::source) fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

impl Transport {
    pub(in crate::source) fn new(authority: &str, options: &Options) -> Result<Self, Error> {
        if !is_direct(authority) {
            check_proxy(&options.env)?;
        }
        let dirs = options.certs_dirs.iter().map(|dir| dir.join(authority));
        let roots = tls::root_certs(dirs, options.insecure)?;
        Ok(Self::with_roots(authority, options, roots))
    }

    fn with_roots(authority: &str, options: &Options, roots: RootCerts) -> Self {
        let loopback = is_loopback(host_of(authority));
        let schemes: &[_] = match (loopback, options.insecure) {
            (true, _) => &["http", "https"],
            (false, true) => &["https", "http"],
            (false, false) => &["https"],
        };
        let mut config = Agent::config_builder()
            .user_agent(concat!("warmkit/", env!("CARGO_PKG_VERSION")))
            .http_status_as_error(false)
            .max_redirects(0)
            .timeout_connect(Some(options.connect_timeout))
            .timeout_per_read(Some(options.stall_timeout))
            .timeout_per_write(Some(options.stall_timeout))
            .max_idle_connections_per_host(16)
            .max_idle_connections(32)
            .tls_config(TlsConfig::builder().root_certs(roots).build());
        if is_direct(authority) {
            config = config.proxy(None);
        }
        let agent = config.build().new_agent();
        options.stop.cuts(&agent);
        let proxy = agent.config().proxy().cloned();
        let certs = options.certs_dirs.first().map(|dir| dir.join(authority));
        Self {
            agent,
            authority: authority.to_owned(),
            schemes,
            loopback,
            insecure: options.insecure,
            base: OnceLock::new(),
            answered: AtomicBool::new(false),
            without_referrers: AtomicBool::new(false),
            proxy,
            certs: certs.unwrap_or_else(|| PathBuf::from("a directory for certificates")),
        }
    }

    /// A connection pool for the server at `base`, a URL of http or https that was written down as it
    /// is: nothing has to be found out about it, and one of http gives leave to stay with http.
    pub(in crate::source) fn at(base: &Uri, options: &Options) -> Result<Self, Error> {
        let authority = base.authority().map(ToString::to_string).unwrap_or_default();
        let mut options = options.clone();
        options.insecure |= base.scheme_str() == Some("http");
        let transport = Self::new(&authority, &options)?;
        let _ = transport.base.set(base.to_string().trim_end_matches('/').to_owned());
        Ok(transport)
    }

    /// Host and port of the server.
    pub(in crate::source) fn authority(&self) -> &str {
        &self.authority
    }

    /// `https://host:port`, without a slash at the end.
    ///
    /// Where plain http is allowed, the registry is asked once which of the two it speaks.
    pub(in crate::source) fn base(&self) -> Result<&str, Failure> {
        if let Some(base) = self.base.get() {
            return Ok(base);
        }
        let (first, second) = match self.schemes {
            [first, second, ..] => (first, Some(second)),
            [first] => (first, None),
            [] => (&"https", None),
        };
        let url = |scheme: &str| format!("{scheme}://{}", self.authority);
        let Some(second) = second else { return Ok(self.base.get_or_init(|| url(first))) };
        let other = match self.probe(&url(first)) {
            Ok(()) => return Ok(self.base.get_or_init(|| url(first))),
            // A certificate that is not trusted is no reason to do without.
            Err(Failure::Final(error)) => return Err(error.into()),
            Err(other) => other,
        };
        match self.probe(&url(second)) {
            Ok(()) => Ok(self.base.get_or_init(|| url(second))),
            Err(Failure::Final(error)) => Err(error.into()),
            Err(Failure::Again { .. }) => Err(other),
        }
    }

    /// Whether a registry answers there, whatever it answers.
    fn probe(&self, base: &str) -> Result<(), Failure> {
        let mut reply = self.get(&format!("{base}/v2/"), &[], None)?;
        let speaks_tls = base.starts_with("http:") && reply.status == 400 && {
            let body = reply.error_detail();
            // Go's, nginx's and Apache's words for a request in the clear on a TLS port.
            ["HTTPS server", "HTTPS port", "SSL-enabled server port"].iter().any(|words| body.contains(words))
        };
        if speaks_tls {
            return Err(Failure::again(format!("{} speaks https, not http", self.authority)));
        }
        Ok(())
    }

    /// Makes a GET request and follows redirects. Any status but a redirect's is an answer.
    pub(in crate::source) fn get(
        &self,
        url: &str,
        headers: &[(&'static str, String)],
        authorization: Option<&str>,
    ) -> Result<Reply, Failure> {
        let mut at: Uri = parse_uri(url, &self.authority)?;
        let asked = origin(&at);
        let mut authorization = authorization;
        for _ in 0..MAX_REDIRECTS {
            // Nor does it come back: where to ask then is what another host has said.
            authorization = authorization.filter(|_| origin(&at) == asked);
            let (response, host) = self.get_at(&at, headers, authorization)?;
            if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok(Reply::new(response, host, authorization).knowing(secrets_in_query(&at)));
            }
            at = self.redirect(url, &at, response.headers())?;
        }
        let (what, host) = (discreet_url(url), self.authority.clone());
        Err(Error::BadAnswer { what, host, reason: "redirects without end".to_owned() }.into())
    }

    /// Makes a GET request whose authorization holds for this one URL: a redirect is an answer too.
    pub(in crate::source) fn get_here(
        &self,
        url: &str,
        headers: &[(&'static str, String)],
        authorization: Option<&str>,
    ) -> Result<Reply, Failure> {
        let at = parse_uri(url, &self.authority)?;
        let (response, host) = self.get_at(&at, headers, authorization)?;
        Ok(Reply::new(response, host, authorization).knowing(secrets_in_query(&at)))
    }

    fn get_at(
        &self,
        at: &Uri,
        headers: &[(&'static str, String)],
        authorization: Option<&str>,
    ) -> Result<(Response<Body>, String), Failure> {
        let mut request = self.agent.get(at).header(ACCEPT_ENCODING, "identity");
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        if let Some(authorization) = authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        let response = request.call().map_err(|error| self.failure(at, error))?;
        self.answered.store(true, Ordering::Relaxed);
        Ok((response, shown_host(at)))
    }

    /// Makes a PUT or POST request; redirects are not followed, since it may hold a secret.
    pub(in crate::source) fn send(
        &self,
        method: Method,
        url: &str,
        headers: &[(&'static str, String)],
        body: &[u8],
    ) -> Result<Reply, Failure> {
        let at = parse_uri(url, &self.authority)?;
        let mut request = match method {
            Method::Put => self.agent.put(&at),
            Method::Post => self.agent.post(&at),
        };
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        let response = request.send(body).map_err(|error| self.failure(&at, error))?;
        self.answered.store(true, Ordering::Relaxed);
        let authorization = headers.iter().find(|(name, _)| *name == "authorization");
        let authorization = authorization.map(|(_, header)| header.as_str());
        Ok(Reply::new(response, shown_host(&at), authorization).knowing(secrets_in_query(&at)))
    }

    /// Makes a POST request with a form; redirects are not followed, since the form holds a secret.
    pub(in crate::source) fn post_form(&self, url: &str, form: &[(&str, &str)]) -> Result<Reply, Failure> {
        let at = parse_uri(url, &self.authority)?;
        let sent = self.agent.post(&at).send_form(form.iter().copied());
        let response = sent.map_err(|error| self.failure(&at, error))?;
        self.answered.store(true, Ordering::Relaxed);
        let secret =
            |name: &str| name.ends_with("token") || name.ends_with("secret") || name.ends_with("assertion");
        let secrets = form.iter().filter(|(name, _)| secret(name)).map(|(_, value)| Secret::new(*value));
        Ok(Reply::new(response, shown_host(&at), None).knowing(secrets))
    }

    /// Where a redirect leads.
    pub(in crate::source) fn redirect(
        &self,
        what: &str,
        from: &Uri,
        headers: &HeaderMap,
    ) -> Result<Uri, Failure> {
        let bad = |reason: String| {
            Failure::Final(Error::BadAnswer { what: discreet_url(what), host: shown_host(from), reason })
        };
        let location = headers.get(LOCATION).and_then(|value| value.to_str().ok());
        let location = location.ok_or_else(|| bad("redirects without a readable Location".to_owned()))?;
        let target = resolve(from, location).ok_or_else(|| {
            bad(format!("redirects to {:?}, which is no valid URL", discreet_url(location)))
        })?;
        if !self.may_ask(&target) {
            let host = shown_host(&target);
            return Err(bad(format!("redirects to {host} over plain http, which only --insecure allows")));
        }
        Ok(target)
    }

    /// Whether a URL that the registry named may be used: over https, or over http where that is
    /// allowed; a registry on loopback may name others there.
    pub(in crate::source) fn may_ask(&self, url: &Uri) -> bool {
        match url.scheme_str() {
            Some("https") => true,
            Some("http") => {
                self.insecure || (self.loopback && is_loopback(host_of(url.host().unwrap_or_default())))
            }
            _ => false,
        }
    }

    /// Tells failures that may pass from those that will not.
    fn failure(&self, at: &Uri, error: ureq::Error) -> Failure {
        let host = shown_host(at);
        let proxy = self.proxy.as_ref().filter(|proxy| !proxy.is_no_proxy(at));
        let proxy = proxy.map(|proxy| format!("{}:{}", proxy.host(), proxy.port()));
        let answered = self.answered.load(Ordering::Relaxed);
        let again = |reason: String| {
            let by = proxy.as_ref().map(|proxy| format!(" (by the proxy {proxy})")).unwrap_or_default();
            Failure::Again { reason: format!("{host}{by}: {reason}"), after: None, answered }
        };
        let bad = |reason: String| {
            Failure::Final(Error::BadAnswer { what: "request".to_owned(), host: host.clone(), reason })
        };
        let tls = |error: &rustls::Error| match error {
            error if tls::is_not_tls(error) => {
                again("does not speak https; if plain http is meant, --insecure allows it".to_owned())
            }
            error => Failure::Final(tls::failed(&host, error, &self.certs)),
        };
        match error {
            ureq::Error::Rustls(error) => tls(&error),
            ureq::Error::Io(error) => match tls::in_io(&error) {
                Some(error) => tls(error),
                None => again(error.to_string()),
            },
            ureq::Error::ConnectProxyFailed(reason) if reason.contains("407") => {
                let (proxy, reason) =
                    (proxy.unwrap_or_default(), "wants a user and a password, or others".to_owned());
                Failure::Final(Error::Proxy { proxy, reason })
            }
            ureq::Error::Timeout(ureq::Timeout::PerRead) => again("sent nothing for too long".to_owned()),
            ureq::Error::Timeout(kind) => again(format!("timed out ({kind})")),
            ureq::Error::HostNotFound => again("no such host".to_owned()),
            ureq::Error::LargeResponseHeader(_, limit) => {
                bad(format!("sent more than {limit} bytes of headers"))
            }
            // Its words would repeat the URL.
            ureq::Error::BadUri(_) => bad("cannot be asked: its URL is not valid".to_owned()),
            ureq::Error::Http(_) => bad(format!("cannot be asked: {error}")),
            other => again(other.to_string()),
        }
    }
}

pub(in crate::source) fn parse_uri(url: &str, host: &str) -> Result<Uri, Failure> {
    url.parse().map_err(|error| {
        let reason = format!("cannot be asked for {:?}: {error}", discreet_url(url));
        Failure::Final(Error::BadAnswer { what: "request".to_owned(), host: host.to_owned(), reason })
    })
}

/// Host and port, for messages: what stands before them may be a password.
fn shown_host(uri: &Uri) -> String {
    let authority = uri.authority().map(ureq::http::uri::Authority::as_str).unwrap_or_default();
    authority.rsplit('@').next().unwrap_or_default().to_owned()
}

/// The variables that name a proxy, in the order in which the first counts.
const PROXIES: [&str; 6] =
    ["ALL_PROXY", "all_proxy", "HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"];

/// Refuses a proxy that cannot be understood: it would be passed over without a word.
fn check_proxy(env: &Environment) -> Result<(), Error> {
    let mut set = PROXIES.iter().filter_map(|variable| Some((variable, env.text(variable)?)));
    match set.next() {
        Some((variable, url)) if Proxy::new(url).is_err() => {
            Err(Error::Proxy { proxy: format!("${variable}"), reason: "is no URL of a proxy".to_owned() })
        }
        _ => Ok(()),
    }
}

/// Scheme, host and port: what must be equal for credentials to go along.
pub(in crate::source) fn origin(uri: &Uri) -> (String, String, u16) {
    let scheme = uri.scheme_str().unwrap_or_default().to_ascii_lowercase();
    let default = if scheme == "https" { 443 } else { 80 };
    let host = uri.host().unwrap_or_default().to_ascii_lowercase();
    (scheme, host, uri.port_u16().unwrap_or(default))
}

/// A `Location`, absolute or relative to where it came from (RFC 3986 section 5.2, but for `..`).
fn resolve(from: &Uri, location: &str) -> Option<Uri> {
    let location = location.split('#').next().unwrap_or_default();
    let lower = location.to_ascii_lowercase();
    let (scheme, authority) = (from.scheme_str()?, from.authority()?);
    let url = if lower.starts_with("http://") || lower.starts_with("https://") {
        location.to_owned()
    } else if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else if location.starts_with('?') {
        format!("{scheme}://{authority}{}{location}", from.path())
    } else if location.is_empty() || location.split(['/', '?']).next()?.contains(':') {
        return None;
    } else {
        let folder = from.path().rsplit_once('/').map_or("", |(folder, _)| folder);
        format!("{scheme}://{authority}{folder}/{location}")
    };
    let uri: Uri = url.parse().ok()?;
    uri.host().is_some_and(|host| !host.is_empty()).then_some(uri)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn knows_this_machine() {
        let cases = [
            ("localhost", true),
            ("localhost:5000", true),
            ("127.0.0.1:5000", true),
            ("127.8.9.1", true),
            ("[::1]:5000", true),
            ("[::1]", true),
            ("localhost.example:5000", false),
            ("10.0.0.1:5000", false),
            ("[fe80::1]:5000", false),
            ("ghcr.io", false),
        ];
        for (authority, expected) in cases {
            assert_eq!(is_loopback(host_of(authority)), expected, "{authority}");
        }
    }

    fn transport(authority: &str, insecure: bool) -> Transport {
        let options = Options { insecure, certs_dirs: Vec::new(), ..Options::default() };
        Transport::new(authority, &options).unwrap()
    }

    #[test]
    fn plain_http_needs_loopback_or_leave() {
        let cases: [(_, _, &[&str]); 4] = [
            ("ghcr.io", false, &["https"]),
            ("ghcr.io", true, &["https", "http"]),
            ("127.0.0.1:5000", false, &["http", "https"]),
            ("[::1]:5000", true, &["http", "https"]),
        ];
        for (authority, insecure, schemes) in cases {
            assert_eq!(transport(authority, insecure).schemes, schemes, "{authority} {insecure}");
        }
    }

    #[test]
    fn a_registry_cannot_send_secrets_over_plain_http() {
        let cases = [
            ("ghcr.io", false, "https://cdn.example/x", true),
            ("ghcr.io", false, "http://ghcr.io/x", false),
            ("ghcr.io", false, "http://127.0.0.1/x", false),
            ("ghcr.io", true, "http://cdn.example/x", true),
            ("localhost:5000", false, "http://localhost:5001/x", true),
            ("localhost:5000", false, "http://[::1]:5001/x", true),
            ("localhost:5000", false, "http://auth.example/x", false),
            ("localhost:5000", true, "ftp://auth.example/x", false),
            ("ghcr.io", true, "/relative", false),
        ];
        for (authority, insecure, url, expected) in cases {
            let allowed = transport(authority, insecure).may_ask(&url.parse().unwrap());
            assert_eq!(allowed, expected, "{authority} {insecure} {url}");
        }
    }

    /// Answers http, and a TLS greeting as an http server does.
    fn plain_server() -> std::net::SocketAddr {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut head = [0; 1];
                stream.read_exact(&mut head).unwrap();
                let status = if head[0] == b'G' { "200 OK" } else { "400 Bad Request" };
                let _ = write!(stream, "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
                // What was sent and not read would reset the connection before the answer is seen.
                let _ = stream.shutdown(std::net::Shutdown::Write);
                let _ = std::io::copy(&mut stream, &mut std::io::sink());
            }
        });
        addr
    }

    #[test]
    fn falls_back_to_http_only_with_leave() {
        let addr = plain_server().to_string();
        let mut with_leave = transport(&addr, true);
        with_leave.schemes = &["https", "http"];
        assert_eq!(with_leave.base().unwrap(), format!("http://{addr}"));

        let mut without = transport(&addr, false);
        without.schemes = &["https"];
        let base = without.base().unwrap().to_owned();
        let failure = without.get(&format!("{base}/v2/"), &[], None).err().unwrap();
        let reason = format!("{addr}: does not speak https; if plain http is meant, --insecure allows it");
        assert!(matches!(&failure, Failure::Again { reason: r, .. } if *r == reason), "{failure:?}");
    }

    #[test]
    fn a_machine_without_certificates_still_finds_out_who_speaks_http() {
        let addr = plain_server().to_string();
        let options = Options { insecure: true, certs_dirs: Vec::new(), ..Options::default() };
        let mut transport = Transport::with_roots(&addr, &options, RootCerts::from(Vec::new()));
        transport.schemes = &["https", "http"];
        assert_eq!(transport.base().unwrap(), format!("http://{addr}"));
    }

    #[test]
    fn resolves_locations() {
        let from: Uri = "https://r.example:5000/v2/a/blobs/x?y=z".parse().unwrap();
        let cases = [
            ("https://cdn.example/b?sig=1#f", Some("https://cdn.example/b?sig=1")),
            ("HTTP://cdn.example/b", Some("http://cdn.example/b")),
            ("//cdn.example/b", Some("https://cdn.example/b")),
            ("/b/c", Some("https://r.example:5000/b/c")),
            ("?q", Some("https://r.example:5000/v2/a/blobs/x?q")),
            ("b", Some("https://r.example:5000/v2/a/blobs/b")),
            ("", None),
            ("ftp://x/y", None),
            ("file:/etc/passwd", None),
            ("https:///x", None),
            ("http://a b/", None),
        ];
        for (location, expected) in cases {
            let found = resolve(&from, location).map(|uri| uri.to_string());
            assert_eq!(found.as_deref(), expected, "{location}");
        }
    }

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        let same = |a: &str, b: &str| origin(&a.parse().unwrap()) == origin(&b.parse().unwrap());
        assert!(same("https://a/x", "https://A:443/y"));
        assert!(!same("https://a/x", "http://a/x"));
        assert!(!same("https://a/x", "https://a:444/x"));
        assert!(!same("https://a/x", "https://b/x"));
    }
}
