//! AWS's shared files: `~/.aws/config` and `~/.aws/credentials`.
//!
//! ```text
//! [profile name]            in config; "default" goes without the word
//! [name]                    in credentials
//! key = value               later keys replace earlier ones; credentials go before config
//!   nested = value          belongs to the key above it, and is skipped
//! # comment  ; comment      also after a value, when there is white space before it
//! ```
//!
//! Mirrors "Configuration and credential file settings" of AWS's SDKs and tools reference guide.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

use super::error::AwsError;
use crate::source::Environment;

/// The settings of one profile.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Profile(BTreeMap<String, String>);

impl Profile {
    /// A setting; an empty one counts as none.
    pub(super) fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str).filter(|value| !value.is_empty())
    }
}

/// The shared files: where they are, and what the two say together.
#[derive(Debug, Clone, Default)]
pub(super) struct Profiles {
    /// In the order in which they were read; they need not exist.
    pub(super) files: Vec<PathBuf>,
    profiles: BTreeMap<String, Profile>,
}

impl Profiles {
    /// Reads both files, as far as they are there.
    pub(super) fn read(env: &Environment) -> Result<Self, AwsError> {
        let home = env.path("HOME").map(|home| home.join(".aws"));
        let place = |variable, name| env.path(variable).or_else(|| Some(home.as_ref()?.join(name)));
        let config = place("AWS_CONFIG_FILE", "config");
        let credentials = place("AWS_SHARED_CREDENTIALS_FILE", "credentials");
        let mut all = Self::default();
        for (path, is_config) in [(config, true), (credentials, false)] {
            let Some(path) = path else { continue };
            match std::fs::read(&path) {
                Ok(bytes) => all.add(&String::from_utf8_lossy(&bytes), is_config),
                Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
                Err(source) => return Err(AwsError::Read { path, source }),
            }
            all.files.push(path);
        }
        Ok(all)
    }

    /// One profile.
    pub(super) fn get(&self, name: &str) -> Option<&Profile> {
        self.profiles.get(name)
    }

    fn add(&mut self, text: &str, is_config: bool) {
        let mut section = None;
        for line in text.lines() {
            let trimmed = line.trim();
            if trimmed.is_empty() || trimmed.starts_with(['#', ';']) {
                continue;
            }
            if let Some(header) = trimmed.strip_prefix('[').and_then(|rest| rest.split(']').next()) {
                section = profile_name(header.trim(), is_config);
                if let Some(name) = &section {
                    self.profiles.entry(name.clone()).or_default();
                }
                continue;
            }
            // A nested setting belongs to a service, not to the profile.
            let nested = line.starts_with([' ', '\t']);
            let (Some(name), Some((key, value)), false) = (&section, trimmed.split_once('='), nested) else {
                continue;
            };
            let comment = [" #", " ;", "\t#", "\t;"].iter().filter_map(|mark| value.find(mark)).min();
            let value = value[..comment.unwrap_or(value.len())].trim();
            let profile = self.profiles.entry(name.clone()).or_default();
            profile.0.insert(key.trim().to_ascii_lowercase(), value.to_owned());
        }
    }
}

/// The profile that a section is about; `None` where it is about something else.
fn profile_name(header: &str, is_config: bool) -> Option<String> {
    if !is_config || header == "default" {
        return Some(header.to_owned());
    }
    let name = header.strip_prefix("profile")?;
    name.starts_with([' ', '\t']).then(|| name.trim().trim_matches(['"', '\'']).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_both_files() {
        let mut all = Profiles::default();
        all.add(
            "region = lost\n[default]\nregion=eu-west-1 # mine\n\n[profile ci]\nregion = eu-central-1\n\
             s3 =\n  endpoint_url = nested\n[sso-session x]\nregion = other\n[profilex]\nregion = other\n\
             aws_access_key_id = from-config\n[profile \"with space\"]\nrole_arn = a#b\n",
            true,
        );
        all.add("; a comment\n[ci]\nAWS_ACCESS_KEY_ID = one\naws_secret_access_key=a/b=c\n[empty]\n", false);
        let value = |name: &str, key: &str| all.get(name).and_then(|p| p.get(key)).map(str::to_owned);
        let cases = [
            ("default", "region", Some("eu-west-1")),
            ("ci", "region", Some("eu-central-1")),
            ("ci", "aws_access_key_id", Some("one")),
            ("ci", "aws_secret_access_key", Some("a/b=c")),
            ("ci", "endpoint_url", None),
            ("ci", "s3", None),
            ("with space", "role_arn", Some("a#b")),
            ("x", "region", None),
        ];
        for (name, key, expected) in cases {
            assert_eq!(value(name, key).as_deref(), expected, "{name} {key}");
        }
        assert!(all.get("empty").is_some() && all.get("profilex").is_none() && all.get("x").is_none());
    }
}
