//! What servers say, and what is said to them, as text.

use std::fmt::Write as _;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ureq::http::Uri;

use crate::source::secret::Secret;

/// As much of what a server says in an error as goes into a message, in characters.
const MAX_DETAIL: usize = 300;

/// One line from an error's body: the messages of a registry's JSON, else its text. Of what is `secret`, nothing.
pub(super) fn error_detail(bytes: &[u8], secrets: &[Secret]) -> String {
    #[derive(serde::Deserialize)]
    struct Errors {
        errors: Vec<Item>,
    }
    #[derive(serde::Deserialize)]
    struct Item {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    #[derive(serde::Deserialize)]
    struct Details {
        #[serde(alias = "error_description", alias = "message", alias = "error")]
        details: String,
    }
    let text = if let Ok(Errors { errors }) = serde_json::from_slice(bytes) {
        let line = |item: Item| match (item.code.is_empty(), item.message.is_empty()) {
            (false, false) => format!("{}: {}", item.code, item.message),
            _ => item.code + &item.message,
        };
        errors.into_iter().map(line).collect::<Vec<_>>().join("; ")
    } else if let Ok(Details { details }) = serde_json::from_slice(bytes) {
        details
    } else if let Some(code) = element(bytes, "Code") {
        match element(bytes, "Message") {
            Some(message) if !message.is_empty() => format!("{code}: {message}"),
            _ => code,
        }
    } else {
        String::from_utf8_lossy(bytes).into_owned()
    };
    let line = words(&without(text, secrets));
    match line.char_indices().nth(MAX_DETAIL) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

/// One line of what a program said; of much, the end: the reason stands there.
pub(in crate::source) fn one_line(said: &[u8]) -> String {
    let line = words(&String::from_utf8_lossy(said));
    match line.chars().count().saturating_sub(MAX_DETAIL) {
        0 => line,
        skipped => format!("…{}", line.chars().skip(skipped).collect::<String>()),
    }
}

/// A text for a terminal, on one line and without control characters.
fn words(text: &str) -> String {
    let words = text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join(" ")
}

/// A URL as messages may show it: user and password are left out, and the query, which may hold a signature.
pub(in crate::source) fn discreet_url(url: &str) -> String {
    let shown = match (url.split_once("://"), url.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, host))) => format!("{scheme}://…@{host}"),
        (None, Some((_, host))) => format!("…@{host}"),
        (_, None) => url.to_owned(),
    };
    shown.split(['?', '#']).next().unwrap_or_default().to_owned()
}

/// The parts of a URL that open what it names to whoever has them: signatures and tokens, as object stores and their
/// distribution networks have them.
pub(super) fn secrets_in_query(url: &Uri) -> Vec<Secret> {
    const ENDINGS: [&str; 6] = ["signature", "credential", "token", "sig", "policy", "hmac"];
    let parts = url.query().unwrap_or_default().split('&').filter_map(|part| part.split_once('='));
    let is_secret = |name: &str| ENDINGS.iter().any(|ending| name.to_ascii_lowercase().ends_with(ending));
    parts.filter(|(name, _)| is_secret(name)).map(|(_, value)| Secret::new(value)).collect()
}

/// A text without these secrets, as they are and as they stand in JSON and in URLs.
fn without(mut text: String, secrets: &[Secret]) -> String {
    /// What is shorter is no secret, and stands in many words.
    const SHORTEST: usize = 3;
    for secret in secrets.iter().map(Secret::expose).filter(|secret| secret.len() >= SHORTEST) {
        let json = serde_json::Value::from(secret).to_string();
        for form in [secret, json.trim_matches('"'), &percent_encode(secret)] {
            if text.contains(form) {
                text = text.replace(form, "…");
            }
        }
    }
    text
}

/// The secrets in an `Authorization`: a password, alone and as it is sent, or a token.
pub(super) fn secrets_in(authorization: &str) -> Vec<Secret> {
    let (scheme, sent) = authorization.split_once(' ').unwrap_or(("", authorization));
    let mut secrets = Vec::new();
    if scheme.eq_ignore_ascii_case("basic")
        && let Ok(both) = STANDARD.decode(sent).map(String::from_utf8)
        && let Some((_, password)) = both.ok().as_deref().and_then(|both| both.split_once(':'))
    {
        secrets.push(Secret::new(password));
    }
    secrets.push(Secret::new(sent));
    // What contains another one goes first.
    secrets.sort_by_key(|secret| std::cmp::Reverse(secret.expose().len()));
    secrets
}

/// The text of the first XML element of that name, as S3 and Azure write it: `<Code>text</Code>`.
pub(in crate::source) fn element(xml: &[u8], name: &str) -> Option<String> {
    let text = String::from_utf8_lossy(xml);
    let (_, rest) = text.split_once(&format!("<{name}>"))?;
    let (inner, _) = rest.split_once(&format!("</{name}>"))?;
    let plain =
        inner.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"").replace("&apos;", "'");
    Some(plain.replace("&amp;", "&").trim().to_owned())
}

/// Encodes one part of a path or a query (RFC 3986, unreserved characters stay).
pub(in crate::source) fn percent_encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_become_one_line() {
        let cases = [
            (r#"{"errors":[{"code":"DENIED","message":"no\u001b[31m"},{"code":"X"}]}"#, "DENIED: no [31m; X"),
            (r#"{"details":"incorrect username"}"#, "incorrect username"),
            (r#"{"error":"invalid_grant"}"#, "invalid_grant"),
            ("<html>\n  gone\r\n</html>", "<html> gone </html>"),
            (
                "<?xml?><Error><Code>NoSuchKey</Code><Message>gone &amp; lost</Message></Error>",
                "NoSuchKey: gone & lost",
            ),
            ("\u{feff}<Error><Code>AuthenticationFailed</Code></Error>", "AuthenticationFailed"),
            ("", ""),
        ];
        for (body, expected) in cases {
            assert_eq!(error_detail(body.as_bytes(), &[]), expected, "{body}");
        }
        let long = error_detail(&[b'x'; 1000], &[]);
        assert_eq!(long.chars().count(), MAX_DETAIL + 1);
    }

    #[test]
    fn of_what_a_program_said_the_end_is_kept() {
        let long = format!("{}\nthe\x1b[31m reason\n", "at a line\n".repeat(1000));
        let line = one_line(long.as_bytes());
        assert!(line.starts_with('…') && line.ends_with(" the [31m reason"), "{line}");
        assert_eq!(line.chars().count(), MAX_DETAIL + 1);
        assert_eq!(one_line(b" no\n key "), "no key");
        assert_eq!(one_line(&[b'x'; MAX_DETAIL]).len(), MAX_DETAIL);
    }

    #[test]
    fn a_url_is_shown_without_secrets() {
        let cases = [
            ("https://h:1/p?X-Amz-Signature=hidden#hidden", "https://h:1/p"),
            ("https://u:hidden@h/p?q", "https://…@h/p"),
            ("https://u:hid#den@h/p", "https://…@h/p"),
            ("https://u:hid/den@h", "https://…@h"),
            ("//u:hidden@h/p", "…@h/p"),
            ("tag \"cache\"", "tag \"cache\""),
        ];
        for (url, shown) in cases {
            assert_eq!(discreet_url(url), shown);
        }
    }

    #[test]
    fn what_opens_a_presigned_url_is_not_repeated() {
        let url = "https://h/l?X-Amz-Credential=AK%2Fhidden&X-Amz-Security-Token=hid%2Bden&X-Amz-Date=2026&sig=hidden&n=1";
        let secrets = secrets_in_query(&url.parse().unwrap());
        let said = error_detail(format!("no {url}").as_bytes(), &secrets);
        assert_eq!(
            said,
            "no https://h/l?X-Amz-Credential=…&X-Amz-Security-Token=…&X-Amz-Date=2026&sig=…&n=1"
        );
        assert!(secrets_in_query(&"https://h/token?service=s&scope=r:a:pull".parse().unwrap()).is_empty());
    }

    #[test]
    fn secrets_that_are_sent_back_are_not_repeated() {
        // ci:hunt"er 2, as it is sent.
        let sent = STANDARD.encode("ci:hunt\"er 2");
        let secrets = secrets_in(&format!("Basic {sent}"));
        let cases = [
            (r#"{"errors":[{"code":"DENIED","message":"no: hunt\"er 2"}]}"#.to_owned(), "DENIED: no: …"),
            (r#"{"other":"hunt\"er 2"}"#.to_owned(), r#"{"other":"…"}"#),
            ("?password=hunt%22er%202".to_owned(), "?password=…"),
            (format!("Basic {sent} is not good"), "Basic … is not good"),
            // Not even the part of it that a cut leaves.
            (
                format!("{} hunt\"er 2", "x".repeat(MAX_DETAIL - 4)),
                &format!("{} …", "x".repeat(MAX_DETAIL - 4)),
            ),
        ];
        for (body, expected) in cases {
            assert_eq!(error_detail(body.as_bytes(), &secrets), expected, "{body}");
        }
        let token = secrets_in("Bearer abc.def");
        assert_eq!(error_detail(b"abc.def has expired", &token), "… has expired");
        assert_eq!(error_detail(b"a", &[Secret::new(""), Secret::new("a")]), "a");
    }
}
