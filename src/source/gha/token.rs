//! A job's token: which scopes it may read, and how long.
//!
//! ```text
//! base64(header) . base64(claims) . base64(signature)
//! claims  {"ac": "[{\"Scope\": \"refs/heads/main\", \"Permission\": 3}]", "nbf": seconds, "exp": seconds}
//! ```
//!
//! Mirrors `New` of `github.com/tonistiigi/go-actions-cache`. The service judges the token: nothing here
//! verifies its signature.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use serde::Deserialize;

#[derive(Deserialize)]
struct Claims {
    ac: String,
    nbf: f64,
    exp: f64,
}

/// A branch, or another ref, whose caches a job may read.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Scope {
    #[serde(rename = "Scope")]
    pub(super) name: String,
}

/// The scopes of a token, in its order; otherwise what is wrong with it.
pub(super) fn scopes(token: &str, now: Timestamp) -> Result<Vec<Scope>, String> {
    const NONE: &str = "it is no JSON web token";
    let claims = token.split('.').nth(1).ok_or(NONE)?;
    let claims = URL_SAFE_NO_PAD.decode(claims.trim_end_matches('=')).map_err(|_| NONE)?;
    let claims: Claims =
        serde_json::from_slice(&claims).map_err(|error| format!("{NONE} of a job: {error}"))?;
    let scopes: Vec<Scope> =
        serde_json::from_str(&claims.ac).map_err(|error| format!("its claim ac: {error}"))?;
    let seconds = |of: f64, name| {
        jiff::SignedDuration::try_from_secs_f64(of)
            .ok()
            .and_then(|since| Timestamp::from_duration(since).ok())
            .ok_or_else(|| format!("its claim {name} is no time"))
    };
    let (from, until) = (seconds(claims.nbf, "nbf")?, seconds(claims.exp, "exp")?);
    if now > until {
        return Err(format!("it ended at {until}: it lasts as long as its job"));
    }
    if now < from {
        return Err(format!("it begins at {from}: set this machine's clock"));
    }
    if scopes.is_empty() { Err("it names no scope".to_owned()) } else { Ok(scopes) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(claims: &str) -> String {
        format!("e30.{}.sig", URL_SAFE_NO_PAD.encode(claims))
    }

    #[test]
    fn tells_scopes_and_time() {
        let now: Timestamp = "2026-11-20T10:00:00Z".parse().unwrap();
        let ac = r#""ac":"[{\"Scope\":\"refs/heads/a\",\"Permission\":3},{\"Scope\":\"refs/heads/main\",\"Permission\":1}]""#;
        let good = token(&format!(r#"{{{ac},"nbf":1763000000,"exp":1900000000}}"#));
        let names: Vec<_> = scopes(&good, now).unwrap().into_iter().map(|scope| scope.name).collect();
        assert_eq!(names, ["refs/heads/a", "refs/heads/main"]);
        let cases = [
            ("nothing".to_owned(), "no JSON web token"),
            ("a.%.b".to_owned(), "no JSON web token"),
            (token("{"), "no JSON web token of a job: EOF"),
            (token(r#"{"nbf":0,"exp":1900000000}"#), "missing field `ac`"),
            (token(r#"{"ac":"[","nbf":0,"exp":1900000000}"#), "its claim ac"),
            (token(r#"{"ac":"[]","nbf":0,"exp":1900000000}"#), "names no scope"),
            (token(&format!(r#"{{{ac},"nbf":0,"exp":1}}"#)), "ended at 1970-01-01T00:00:01Z"),
            (token(&format!(r#"{{{ac},"nbf":1900000000,"exp":1900000001}}"#)), "clock"),
            (token(&format!(r#"{{{ac},"nbf":0,"exp":1e300}}"#)), "exp is no time"),
        ];
        for (token, expected) in cases {
            let error = scopes(&token, now).unwrap_err();
            assert!(error.contains(expected), "{token}: {error}");
        }
    }
}
