//! References as people write them, who may write more than belongs there.

/// A text that was to be a reference, without the user and password that stand before its host; `None` where there are
/// none. What a digest's `@` separates is no user.
pub fn without_user(text: &str) -> Option<String> {
    let end = text.find("@sha").unwrap_or(text.len());
    let (head, digest) = text.split_at(end);
    let (_, rest) = head.rsplit_once('@').filter(|(user, _)| !user.is_empty())?;
    Some(format!("{rest}{digest}"))
}

/// A text as messages may show it: of a user and a password, nothing.
pub fn discreet(text: &str) -> String {
    without_user(text).map_or_else(|| text.to_owned(), |rest| format!("…@{rest}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_a_user() {
        let cases = [
            ("r.example/app:1", None),
            ("r.example/app@sha256:ab", None),
            ("@list.txt", None),
            ("u:hidden@r.example/app:1", Some("r.example/app:1")),
            ("u:hid@den@r.example/app", Some("r.example/app")),
            ("https://u:hidden@r.example/app@sha256:ab", Some("r.example/app@sha256:ab")),
            ("type=image,ref=u:hidden@r.example/app", Some("r.example/app")),
        ];
        for (text, expected) in cases {
            assert_eq!(without_user(text).as_deref(), expected, "{text}");
        }
    }
}
