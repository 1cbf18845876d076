//! What servers say, and what is said to them, as text.

use std::fmt::Write as _;

/// As much of what a server says in an error as goes into a message, in characters.
const MAX_DETAIL: usize = 300;

/// One line from an error's body: the messages of a registry's JSON, else its text.
pub(super) fn error_detail(bytes: &[u8]) -> String {
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
    // It goes to a terminal: no control characters, and not a whole web page.
    let words = text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty());
    let line = words.collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(MAX_DETAIL) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
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
            assert_eq!(error_detail(body.as_bytes()), expected, "{body}");
        }
        let long = error_detail(&[b'x'; 1000]);
        assert_eq!(long.chars().count(), MAX_DETAIL + 1);
    }
}
