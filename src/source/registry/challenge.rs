//! `WWW-Authenticate`: what a registry asks for (RFC 9110 section 11, distribution's token spec).

/// One challenge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Challenge {
    /// In lower case: `basic`, `bearer`, or one that nobody here knows.
    pub(super) scheme: String,
    params: Vec<(String, String)>,
}

impl Challenge {
    /// The value of a parameter.
    pub(super) fn param(&self, name: &str) -> Option<&str> {
        self.params.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// Reads all challenges of one header; what is malformed ends the list.
///
/// Commas separate parameters as well as challenges: a name with `=` behind it is a parameter of
/// the challenge before, one without begins the next.
pub(super) fn parse(header: &str) -> Vec<Challenge> {
    let mut rest = Cursor(header);
    let mut challenges: Vec<Challenge> = Vec::new();
    loop {
        rest.skip(|c| c == ',' || c.is_ascii_whitespace());
        let Some(name) = rest.token() else { return challenges };
        let before = rest;
        rest.skip(|c| c.is_ascii_whitespace());
        match challenges.last_mut() {
            Some(challenge) if rest.eat('=') => {
                rest.skip(|c| c.is_ascii_whitespace());
                let Some(value) = rest.value() else { return challenges };
                challenge.params.push((name.to_ascii_lowercase(), value));
            }
            _ => {
                rest = before;
                challenges.push(Challenge { scheme: name.to_ascii_lowercase(), params: Vec::new() });
                rest.skip_token68();
            }
        }
    }
}

#[derive(Clone, Copy)]
struct Cursor<'a>(&'a str);

impl<'a> Cursor<'a> {
    fn skip(&mut self, what: impl Fn(char) -> bool) {
        self.0 = self.0.trim_start_matches(what);
    }

    fn eat(&mut self, c: char) -> bool {
        let rest = self.0.strip_prefix(c);
        self.0 = rest.unwrap_or(self.0);
        rest.is_some()
    }

    fn take(&mut self, what: impl Fn(char) -> bool) -> &'a str {
        let end = self.0.find(|c| !what(c)).unwrap_or(self.0.len());
        let (taken, rest) = self.0.split_at(end);
        self.0 = rest;
        taken
    }

    fn token(&mut self) -> Option<&'a str> {
        let token = self.take(|c| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c));
        (!token.is_empty()).then_some(token)
    }

    /// A token or a quoted string. Unquoted values may hold more than a token may: some registries
    /// leave the quotes of `realm` out.
    fn value(&mut self) -> Option<String> {
        if !self.eat('"') {
            let value = self.take(|c| c != ',' && !c.is_ascii_whitespace());
            return (!value.is_empty()).then(|| value.to_owned());
        }
        let mut value = String::new();
        loop {
            value.push_str(self.take(|c| c != '"' && c != '\\'));
            if self.eat('"') {
                return Some(value);
            }
            if !self.eat('\\') {
                return None;
            }
            let escaped = self.0.chars().next()?;
            value.push(escaped);
            self.0 = &self.0[escaped.len_utf8()..];
        }
    }

    /// Skips credentials such as `Negotiate oWw==` has; nobody here reads them.
    fn skip_token68(&mut self) {
        let mut after = *self;
        after.skip(|c| c == ' ');
        let text = after.take(|c| c.is_ascii_alphanumeric() || "-._~+/".contains(c));
        after.skip(|c| c == '=');
        after.skip(|c| c == ' ');
        if !text.is_empty() && (after.0.is_empty() || after.0.starts_with(',')) {
            *self = after;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_registries_send() {
        let cases = [
            ("", vec![]),
            ("Basic", vec![("basic", vec![])]),
            ("Basic realm=\"Registry Realm\"", vec![("basic", vec![("realm", "Registry Realm")])]),
            (
                "Bearer realm=\"https://auth.docker.io/token\",service=\"registry.docker.io\",\
                 scope=\"repository:a/b:pull,push\"",
                vec![(
                    "bearer",
                    vec![
                        ("realm", "https://auth.docker.io/token"),
                        ("service", "registry.docker.io"),
                        ("scope", "repository:a/b:pull,push"),
                    ],
                )],
            ),
            (
                "Bearer realm=\"https://a/t?x=1,2\" , service = \"s\", Basic realm=\"b\"",
                vec![
                    ("bearer", vec![("realm", "https://a/t?x=1,2"), ("service", "s")]),
                    ("basic", vec![("realm", "b")]),
                ],
            ),
            (
                "Negotiate, Negotiate oWw+/==, BEARER REALM=https://a/t,error=\"a \\\"b\\\"\"",
                vec![
                    ("negotiate", vec![]),
                    ("negotiate", vec![]),
                    ("bearer", vec![("realm", "https://a/t"), ("error", "a \"b\"")]),
                ],
            ),
            ("Bearer realm=\"open", vec![("bearer", vec![])]),
            ("=", vec![]),
        ];
        for (header, expected) in cases {
            let expected: Vec<_> = expected
                .into_iter()
                .map(|(scheme, params)| Challenge {
                    scheme: scheme.to_owned(),
                    params: params.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect(),
                })
                .collect();
            assert_eq!(parse(header), expected, "{header}");
        }
    }
}
