//! Who is trusted over TLS, and what to do about who is not.

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rustls::CertificateError;
use rustls::pki_types::UnixTime;
use ureq::tls::{Certificate, PemItem, RootCerts, parse_pem};

use crate::source::Error;

/// The system's certificate authorities, and those that docker and podman were given for this host.
///
/// Without the latter the platform's own verifier is left to read the former when https is used
/// for the first time. It does not go to work where there are none at all, so where plain http will do,
/// too, it is not left to it: a greeting then still tells whether the server speaks https.
pub(super) fn root_certs(dirs: impl Iterator<Item = PathBuf>, insecure: bool) -> Result<RootCerts, Error> {
    let mut extra = Vec::new();
    for dir in dirs {
        let Ok(entries) = std::fs::read_dir(&dir) else { continue };
        let files = entries.filter_map(|entry| Some(entry.ok()?.path()));
        for path in files.filter(|path| path.extension().is_some_and(|ext| ext == "crt")) {
            let pem = std::fs::read(&path).map_err(|source| Error::Read { path: path.clone(), source })?;
            for item in parse_pem(&pem) {
                let certificate = |reason| Error::Certificate { path: path.clone(), reason };
                match item.map_err(|error| certificate(error.to_string()))? {
                    PemItem::Certificate(found) => extra.push(found),
                    _ => return Err(certificate("it holds something else than certificates".to_owned())),
                }
            }
        }
    }
    if extra.is_empty() && !insecure {
        return Ok(RootCerts::PlatformVerifier);
    }
    let system = rustls_native_certs::load_native_certs().certs;
    extra.extend(system.iter().map(|der| Certificate::from_der(der.as_ref()).to_owned()));
    Ok(RootCerts::from(extra))
}

/// A rustls error that ureq wrapped on its way through `std::io`.
pub(super) fn in_io(error: &std::io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

/// Whether the peer answered a TLS greeting with something that is no TLS at all.
pub(super) fn is_not_tls(error: &rustls::Error) -> bool {
    matches!(error, rustls::Error::InvalidMessage(_))
}

/// The error for a handshake with `host` that failed; `certs` is where authorities for it are looked for.
pub(super) fn failed(host: &str, error: &rustls::Error, certs: &Path) -> Error {
    let (reason, advice) = match error {
        rustls::Error::InvalidCertificate(invalid) => of_certificate(invalid, certs),
        other => (other.to_string(), "check that what answers there is the server that was meant".to_owned()),
    };
    Error::Tls { host: host.to_owned(), reason, advice }
}

/// What is wrong with a certificate, and what to do about it.
fn of_certificate(error: &CertificateError, certs: &Path) -> (String, String) {
    let renew = "have it renewed there, or set this machine's clock, if that is wrong";
    let clock = "set this machine's clock, if that is wrong";
    let (reason, advice) = match error {
        CertificateError::Expired => ("its certificate has expired".to_owned(), renew),
        CertificateError::ExpiredContext { not_after, .. } => {
            (format!("its certificate expired on {}", date(*not_after)), renew)
        }
        CertificateError::NotValidYet => ("its certificate is not valid yet".to_owned(), clock),
        CertificateError::NotValidYetContext { not_before, .. } => {
            (format!("its certificate is not valid before {}", date(*not_before)), clock)
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            let names = match error {
                CertificateError::NotValidForNameContext { presented, .. } if !presented.is_empty() => {
                    let plain = |name: &String| {
                        name.replace(['"', ')'], "").replace("DnsName(", "").replace("IpAddress(", "")
                    };
                    format!(", but for {}", presented.iter().map(plain).collect::<Vec<_>>().join(", "))
                }
                _ => String::new(),
            };
            (format!("its certificate is not for that name{names}"), "use a name that the certificate has")
        }
        // What `openssl req -x509` makes by itself, and no client but Go's takes.
        other if format!("{other:?}").contains("CaUsedAsEndEntity") => (
            "its certificate is that of an authority".to_owned(),
            "give the server one of its own, which an authority has signed",
        ),
        CertificateError::UnknownIssuer => {
            let advice = format!(
                "put the certificate of the authority that did into {}, or into a file that SSL_CERT_FILE names",
                certs.join("ca.crt").display()
            );
            return ("nobody whom this machine trusts has signed its certificate".to_owned(), advice);
        }
        other => (format!("its certificate is not valid: {other}"), "have it renewed there"),
    };
    (reason, advice.to_owned())
}

/// A day, as certificates count: in UTC.
fn date(time: UnixTime) -> String {
    let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    Timestamp::from_second(seconds).map_or_else(|_| seconds.to_string(), |time| time.to_string())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use rustls::OtherError;
    use rustls::pki_types::ServerName;

    use super::*;

    #[test]
    fn says_what_to_do_about_each_certificate() {
        #[derive(Debug, thiserror::Error)]
        #[error("CaUsedAsEndEntity")]
        struct CaUsedAsEndEntity;
        let at = |seconds| UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        let (time, name) = (at(1_795_261_533), ServerName::try_from("r.example").unwrap());
        let cases = [
            (
                CertificateError::ExpiredContext { time, not_after: at(1_609_459_200) },
                "r.example: no trusted TLS connection: its certificate expired on 2021-01-01T00:00:00Z: have it renewed \
                 there, or set this machine's clock, if that is wrong",
            ),
            (
                CertificateError::NotValidYetContext { time, not_before: at(1_893_456_000) },
                "r.example: no trusted TLS connection: its certificate is not valid before 2030-01-01T00:00:00Z: set this \
                 machine's clock, if that is wrong",
            ),
            (
                CertificateError::NotValidForNameContext {
                    expected: name,
                    presented: ["DnsName(\"s.example\")", "IpAddress(127.0.0.1)"].map(str::to_owned).to_vec(),
                },
                "r.example: no trusted TLS connection: its certificate is not for that name, but for s.example, \
                 127.0.0.1: use a name that the certificate has",
            ),
            (
                CertificateError::UnknownIssuer,
                "r.example: no trusted TLS connection: nobody whom this machine trusts has signed its certificate: put the \
                 certificate of the authority that did into /etc/docker/certs.d/r.example/ca.crt, or into a file that \
                 SSL_CERT_FILE names",
            ),
            (
                CertificateError::Other(OtherError(Arc::new(CaUsedAsEndEntity))),
                "r.example: no trusted TLS connection: its certificate is that of an authority: give the server one of its \
                 own, which an authority has signed",
            ),
            (
                CertificateError::Revoked,
                "r.example: no trusted TLS connection: its certificate is not valid: Revoked: have it renewed \
                 there",
            ),
        ];
        for (error, message) in cases {
            let error = rustls::Error::InvalidCertificate(error);
            let certs = Path::new("/etc/docker/certs.d/r.example");
            assert_eq!(failed("r.example", &error, certs).to_string(), message);
        }
    }
}
