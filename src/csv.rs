//! One line of CSV, in which buildx and warmkit write the attributes of caches and key sources.

/// A line that is not CSV.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Error {
    /// What is wrong with its quotes.
    pub reason: &'static str,
    /// Where, in characters from 1.
    pub column: usize,
}

/// Splits one line of CSV as Go's `encoding/csv` does, with its default settings; an empty line is one empty field.
pub fn fields(text: &str) -> Result<Vec<String>, Error> {
    let line = text.strip_suffix("\r\n").or_else(|| text.strip_suffix('\n')).unwrap_or(text);
    let error = |at: usize, reason| {
        let column = line[..at].chars().count() + 1;
        Err(Error { reason, column })
    };
    let mut fields = Vec::new();
    let mut at = 0;
    loop {
        let rest = &line[at..];
        let Some(quoted) = rest.strip_prefix('"') else {
            let field = rest.split(',').next().unwrap_or_default();
            if let Some(quote) = field.find('"') {
                return error(at + quote, "bare \" in a field without quotes");
            }
            fields.push(field.to_owned());
            if field.len() == rest.len() {
                return Ok(fields);
            }
            at += field.len() + 1;
            continue;
        };
        let mut field = String::new();
        let mut inner = quoted;
        at += 1;
        loop {
            let Some(quote) = inner.find('"') else { return error(at, "missing closing \"") };
            field.push_str(&inner[..quote]);
            inner = &inner[quote + 1..];
            at += quote + 1;
            if let Some(more) = inner.strip_prefix('"') {
                field.push('"');
                inner = more;
                at += 1;
            } else if inner.is_empty() {
                fields.push(field);
                return Ok(fields);
            } else if inner.starts_with(',') {
                fields.push(field);
                at += 1;
                break;
            } else {
                return error(at - 1, "extraneous \"");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_are_those_of_csv() {
        let cases: [(&str, &[&str]); 6] = [
            ("", &[""]),
            ("a,b", &["a", "b"]),
            ("a,", &["a", ""]),
            ("\"a,b\",c\n", &["a,b", "c"]),
            ("\"say \"\"hi\"\"\"", &["say \"hi\""]),
            ("\"\"", &[""]),
        ];
        for (text, expected) in cases {
            assert_eq!(fields(text).unwrap(), expected, "{text:?}");
        }
    }

    #[test]
    fn quotes_in_the_wrong_place_are_shown() {
        for (text, column) in [("a\"b", 2), ("\"a", 2), ("\"a\"b", 3), ("é,\"a\"b", 5)] {
            assert_eq!(fields(text).unwrap_err().column, column, "{text:?}");
        }
    }
}
