//! Parsing JSON that anybody may have written, in memory that its length bounds.

use serde::de::DeserializeOwned;

use super::Error;

/// The most values that a document may hold: objects, arrays, and what stands in them. A record of a cache
/// has some 15, so this is as much as 250,000 of them.
///
/// What is short in JSON is long in memory: `{},` in 64 MiB would take some GB.
const MAX_VALUES: usize = 4 << 20;

/// Parses a document; `what` is what to call it in messages.
pub(super) fn parse<T: DeserializeOwned>(what: &'static str, bytes: &[u8]) -> Result<T, Error> {
    if count_values(bytes) > MAX_VALUES {
        return Err(Error::TooManyValues { what, limit: MAX_VALUES });
    }
    serde_json::from_slice(bytes).map_err(|source| Error::Json { what, source })
}

/// How many values a JSON text holds at most: each but the first of an object or array follows a comma, and
/// the first its bracket.
pub fn count_values(json: &[u8]) -> usize {
    let (mut count, mut quoted, mut escaped) = (0, false, false);
    for byte in json {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = quoted,
            b'"' => quoted = !quoted,
            b',' | b'[' | b'{' if !quoted => count += 1,
            _ => {}
        }
    }
    count
}

#[cfg(test)]
mod tests {
    use serde::de::IgnoredAny;
    use serde_json::Value;

    use super::*;

    #[test]
    fn counts_what_stands_outside_of_texts() {
        let cases = [("7", 0), ("[]", 1), (r#"{"a":[1,2],"b":{}}"#, 5), (r#"["[,{","\",",1]"#, 3)];
        for (json, expected) in cases {
            assert_eq!(count_values(json.as_bytes()), expected, "{json}");
        }
    }

    #[test]
    fn short_values_do_not_become_long() {
        let document = |values: usize| format!("[{}]", vec!["{}"; values].join(","));
        // A bracket of its own for each, and either a comma or the list's bracket.
        assert!(parse::<IgnoredAny>("it", document(MAX_VALUES / 2).as_bytes()).is_ok());
        let error =
            parse::<IgnoredAny>("it", document(MAX_VALUES / 2 + 1).as_bytes()).unwrap_err().to_string();
        assert!(error.starts_with("it has more than 4194304 values"), "{error}");
    }

    #[test]
    fn depth_needs_no_stack() {
        let deep = [vec![b'['; 1 << 20], vec![b']'; 1 << 20]].concat();
        let error = parse::<Value>("it", &deep).unwrap_err().to_string();
        assert!(error.contains("recursion limit"), "{error}");
    }
}
