//! Keys for AWS as they are held, and as programs and services write them.

use std::fmt;

use jiff::Timestamp;
use serde::Deserialize;

use super::sigv4::Keys;
use crate::source::secret::Secret;

/// Keys, whose they are, and how long they last.
#[derive(Debug, Clone)]
pub(super) struct Held {
    pub(super) keys: Keys,
    /// For messages, after "from".
    pub(super) origin: String,
    pub(super) expires: Option<Timestamp>,
}

impl Held {
    pub(super) fn new(
        id: &str,
        secret: &str,
        session_token: Option<&str>,
        origin: impl Into<String>,
    ) -> Self {
        let session_token = session_token.filter(|token| !token.is_empty()).map(Secret::new);
        let keys = Keys { id: id.to_owned(), secret: Secret::new(secret), session_token };
        Self { keys, origin: origin.into(), expires: None }
    }
}

impl fmt::Display for Held {
    /// Whose they are and where from; an access key's id is no secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "with access key {} from {}", self.keys.id, self.origin)
    }
}

/// Credentials as programs and services write them.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Answer {
    #[serde(default)]
    access_key_id: String,
    #[serde(default)]
    secret_access_key: String,
    #[serde(default, alias = "Token")]
    session_token: Option<String>,
    #[serde(default)]
    expiration: Option<String>,
    /// Where there are none, why.
    #[serde(default)]
    message: String,
}

impl Answer {
    pub(super) fn new(id: String, secret: String, token: String, expiration: Option<String>) -> Self {
        Self {
            access_key_id: id,
            secret_access_key: secret,
            session_token: Some(token),
            expiration,
            message: String::new(),
        }
    }

    /// Takes them; says what is missing.
    pub(super) fn into_held(self, origin: &str) -> Result<Held, String> {
        if self.access_key_id.is_empty() || self.secret_access_key.is_empty() {
            let no = "it holds no AccessKeyId and SecretAccessKey".to_owned();
            return Err(if self.message.is_empty() { no } else { self.message });
        }
        let expires = self.expiration.filter(|text| !text.is_empty());
        let expires = expires.map(|text| text.parse().map_err(|error| format!("its Expiration: {error}")));
        let token = self.session_token.as_deref();
        let held = Held::new(&self.access_key_id, &self.secret_access_key, token, origin);
        Ok(Held { expires: expires.transpose()?, ..held })
    }
}
