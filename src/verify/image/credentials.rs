//! Credentials that somebody left in an image: what a bake was given to read its caches with.
//!
//! ```text
//! of each user    .docker/config.json  .dockercfg  .config/containers/auth.json
//!                 .aws/credentials  .aws/config  .aws/cli/cache/  .aws/sso/cache/  .ecr/cache.json
//!                 .azure/  .git-credentials
//! of the machine  /run/containers/<uid>/auth.json  /run/user/<uid>/containers/auth.json
//!                 /etc/environment
//! ```
//!
//! Where to find a credential (a helper, an empty entry) is none. Secrets are looked for, and never repeated.

use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use serde_json::{Map, Value};

use super::super::report::{FindingKind, Findings, Subject};
use super::sysroot::Sysroot;
use crate::root::fault::text;

/// The longest file that is read, in bytes.
pub(super) const LONGEST: u64 = 4 << 20;

/// How a file holds credentials, and what takes them out of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// As docker and podman write it; the program that logs out.
    Auths(&'static str),
    /// Docker's before 1.7: `auths` alone.
    OldAuths,
    /// AWS's shared files.
    Profiles,
    /// What AWS's programs keep: JSON with secrets somewhere in it.
    Cache,
    /// One assignment per line.
    Variables,
    /// A secret, if there is anything in it.
    Whole,
}

/// The files of a user, from the home directory.
const OF_USER: [(&str, Form); 10] = [
    (".docker/config.json", Form::Auths("docker")),
    (".dockercfg", Form::OldAuths),
    (".config/containers/auth.json", Form::Auths("podman")),
    (".aws/credentials", Form::Profiles),
    (".aws/config", Form::Profiles),
    (".ecr/cache.json", Form::Cache),
    (".azure/msal_token_cache.json", Form::Cache),
    (".azure/accessTokens.json", Form::Cache),
    (".azure/service_principal_entries.json", Form::Cache),
    (".git-credentials", Form::Whole),
];

/// Directories of a user in which AWS's command line keeps what it got.
const CACHES: [&str; 2] = [".aws/cli/cache", ".aws/sso/cache"];

/// What the keys of JSON secrets are called, in lower case and without what is between the words.
const SECRET_KEYS: [&str; 9] = [
    "accesstoken",
    "authorizationtoken",
    "clientsecret",
    "password",
    "refreshtoken",
    "secret",
    "secretaccesskey",
    "sessiontoken",
    "token",
];

/// The settings of AWS's files that are secrets.
const SECRET_SETTINGS: [&str; 2] = ["aws_secret_access_key", "aws_session_token"];

/// The variables that this program, or what provisions an image with it, takes secrets from.
const SECRET_VARIABLES: [&str; 9] = [
    "ACTIONS_RUNTIME_TOKEN",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SECRET_KEY",
    "AWS_SESSION_TOKEN",
    "AZURE_CLIENT_SECRET",
    "DOCKER_AUTH_CONFIG",
    "GH_TOKEN",
    "GITHUB_TOKEN",
    "WARMKIT_DOCKER_CONFIG",
];

/// What was looked at.
#[derive(Debug, Default)]
pub(super) struct Looked {
    /// Home directories, in the image.
    pub(super) homes: Vec<PathBuf>,
    /// Files that were read.
    pub(super) files: usize,
}

/// Looks through the files of every user and of the machine.
pub(super) fn check(sysroot: &Sysroot, findings: &mut Findings) -> Looked {
    let mut look = Look { sysroot, files: 0, findings };
    let homes = look.homes();
    for home in &homes {
        for (path, form) in OF_USER {
            look.file(&home.join(path), form);
        }
        for cache in CACHES {
            for path in look.names(&home.join(cache)) {
                look.file(&path, Form::Cache);
            }
        }
    }
    for directory in look.names(Path::new("/run/containers")) {
        look.file(&directory.join("auth.json"), Form::Auths("podman"));
    }
    for directory in look.names(Path::new("/run/user")) {
        look.file(&directory.join("containers/auth.json"), Form::Auths("podman"));
    }
    look.file(Path::new("/etc/environment"), Form::Variables);
    Looked { homes, files: look.files }
}

struct Look<'a> {
    sysroot: &'a Sysroot,
    files: usize,
    findings: &'a mut Findings,
}

impl Look<'_> {
    /// The home directories of all users that the image knows, root's and those below `/home` in any case.
    fn homes(&mut self) -> Vec<PathBuf> {
        let mut homes = vec![PathBuf::from("/root")];
        let users = Path::new("/etc/passwd");
        match self.sysroot.read(users, LONGEST) {
            Ok(users) => {
                let users = users.unwrap_or_default();
                let homes_of = String::from_utf8_lossy(&users);
                let of_line = |line: &str| line.split(':').nth(5).map(PathBuf::from);
                homes.extend(homes_of.lines().filter_map(of_line).filter(|home| home.is_absolute()));
            }
            Err(fault) => {
                self.findings.add(FindingKind::CredentialsUnreadable, Subject::file(users), fault.detail);
            }
        }
        homes.extend(self.names(Path::new("/home")));
        homes.sort();
        homes.dedup();
        homes.retain(|home| matches!(self.sysroot.directory(home), Ok(Some(_)) | Err(_)));
        homes
    }

    /// The paths of what stands in a directory.
    fn names(&mut self, directory: &Path) -> Vec<PathBuf> {
        let listed = match self.sysroot.directory(directory) {
            Ok(None) => return Vec::new(),
            Ok(Some(tree)) => tree.list(Path::new("")),
            Err(fault) => Err(fault),
        };
        match listed {
            Ok(names) => names.into_iter().map(|(name, _)| directory.join(name.0)).collect(),
            Err(fault) => {
                self.findings.add(FindingKind::CredentialsUnreadable, Subject::file(directory), fault.detail);
                Vec::new()
            }
        }
    }

    fn file(&mut self, path: &Path, form: Form) {
        let bytes = match self.sysroot.read(path, LONGEST) {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return,
            Err(fault) => {
                self.findings.add(FindingKind::CredentialsUnreadable, Subject::file(path), fault.detail);
                return;
            }
        };
        self.files += 1;
        match form.secrets(&bytes) {
            Ok(secrets) if secrets.is_empty() => {}
            Ok(secrets) => {
                let detail = format!("{}; {}", secrets.join(", "), form.remedy());
                self.findings.add(FindingKind::CredentialsLeft, Subject::file(path), detail);
            }
            Err(reason) => {
                let detail = format!("{reason}, so it is unknown whether it has secrets");
                self.findings.add(FindingKind::CredentialsUnreadable, Subject::file(path), detail);
            }
        }
    }
}

impl Form {
    /// What the secrets in a file are for, in words that show none of them.
    fn secrets(self, bytes: &[u8]) -> Result<Vec<String>, &'static str> {
        if bytes.trim_ascii().is_empty() {
            return Ok(Vec::new());
        }
        let json = || match serde_json::from_slice(bytes) {
            Ok(Value::Object(object)) => Ok(object),
            _ => Err("no JSON object"),
        };
        let lines = || String::from_utf8_lossy(bytes).into_owned();
        Ok(match self {
            Self::Auths(_) => of_config(&json()?),
            Self::OldAuths => of_auths(&json()?),
            Self::Profiles => of_profiles(&lines()),
            Self::Cache => {
                let value: Value = serde_json::from_slice(bytes).map_err(|_| "no JSON")?;
                has_secret(&value).then(|| "what a login left".to_owned()).into_iter().collect()
            }
            Self::Variables => of_variables(&lines()),
            Self::Whole => vec!["passwords".to_owned()],
        })
    }

    fn remedy(self) -> &'static str {
        match self {
            Self::Auths("podman") => "run podman logout --all as that user, or delete the file",
            Self::Auths(_) => "run docker logout as that user, or delete the file",
            Self::Variables => "delete the lines",
            _ => "delete the file",
        }
    }
}

/// The text under a key, if there is any.
fn filled<'a>(object: &'a Map<String, Value>, key: &str) -> Option<&'a str> {
    object.get(key).and_then(Value::as_str).filter(|text| !text.is_empty())
}

/// Docker's `config.json`, and podman's `auth.json`.
fn of_config(config: &Map<String, Value>) -> Vec<String> {
    let mut found = config.get("auths").and_then(Value::as_object).map(of_auths).unwrap_or_default();
    let headers = config.get("HttpHeaders").and_then(Value::as_object).into_iter().flatten();
    found.extend(
        headers
            .filter(|(name, _)| is_secret(name) || name.eq_ignore_ascii_case("authorization"))
            .map(|(name, _)| format!("a header {}", text(name.as_bytes()))),
    );
    let proxies = config.get("proxies").and_then(Value::as_object).into_iter().flatten();
    let urls = proxies.filter_map(|(_, proxy)| proxy.as_object()).flatten();
    if urls.filter_map(|(_, url)| url.as_str()).any(has_password) {
        found.push("the password of a proxy".to_owned());
    }
    found
}

fn of_auths(auths: &Map<String, Value>) -> Vec<String> {
    let secret = |entry: &Map<String, Value>| {
        if filled(entry, "identitytoken").or_else(|| filled(entry, "registrytoken")).is_some() {
            return Some("a token");
        }
        let password = filled(entry, "password").is_some() || filled(entry, "auth").is_some_and(has_auth);
        password.then_some("a password")
    };
    let name = |key: &str| {
        // Who wrote a password into the name of a host did not mean to show it.
        let host = key.rsplit_once('@').map_or(key, |(_, host)| host);
        text(host.as_bytes())
    };
    let found = auths.iter().filter_map(|(key, entry)| Some((key, secret(entry.as_object()?)?)));
    found.map(|(key, secret)| format!("{secret} for {}", name(key))).collect()
}

/// Whether an `auth` has a password in it: docker writes one without beside a token.
fn has_auth(auth: &str) -> bool {
    let decoded = STANDARD_NO_PAD.decode(auth.trim().trim_end_matches('='));
    // What does not decode may be a secret all the same.
    decoded.map_or(true, |both| match both.iter().position(|byte| *byte == b':') {
        Some(colon) => both[colon + 1..].iter().any(|byte| *byte != 0),
        None => true,
    })
}

/// Whether a URL has a user's password in it.
fn has_password(url: &str) -> bool {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    authority
        .rsplit_once('@')
        .and_then(|(user, _)| user.split_once(':'))
        .is_some_and(|(_, password)| !password.is_empty())
}

fn of_profiles(lines: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut profile = "";
    for line in lines.lines().map(str::trim) {
        if let Some(header) = line.strip_prefix('[') {
            let name = header.split(']').next().unwrap_or_default().trim();
            profile = name.strip_prefix("profile ").map_or(name, str::trim);
        } else if let Some((key, value)) = line.split_once('=')
            && SECRET_SETTINGS.contains(&key.trim().to_ascii_lowercase().as_str())
            && !value.trim().is_empty()
        {
            let shown = format!("keys of profile {}", text(profile.as_bytes()));
            if found.last() != Some(&shown) {
                found.push(shown);
            }
        }
    }
    found
}

fn of_variables(lines: &str) -> Vec<String> {
    let assigned = lines.lines().filter_map(|line| {
        let (name, value) = line.trim().split_once('=')?;
        let name = name.strip_prefix("export ").unwrap_or(name).trim();
        let value = value.trim().trim_matches(['"', '\'']);
        (SECRET_VARIABLES.contains(&name) && !value.is_empty()).then(|| format!("variable {name}"))
    });
    assigned.collect()
}

fn is_secret(key: &str) -> bool {
    let plain: String = key.chars().filter(char::is_ascii_alphanumeric).collect();
    SECRET_KEYS.contains(&plain.to_ascii_lowercase().as_str())
}

/// Whether a secret stands somewhere in a document.
fn has_secret(value: &Value) -> bool {
    match value {
        Value::Object(object) => object.iter().any(|(key, value)| {
            (is_secret(key) && value.as_str().is_some_and(|text| !text.is_empty())) || has_secret(value)
        }),
        Value::Array(items) => items.iter().any(has_secret),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCKER: Form = Form::Auths("docker");

    #[test]
    fn tells_secrets_from_where_to_find_them() {
        // base64 of "ci:hunter2", ":", "<token>:" and "ci:\0".
        let cases: [(Form, &str, &[&str]); 25] = [
            (DOCKER, "", &[]),
            (DOCKER, "{}", &[]),
            (DOCKER, r#"{"auths":{"r.example":{}},"credsStore":"desktop"}"#, &[]),
            (DOCKER, r#"{"auths":{"r.example":{"auth":""}},"credHelpers":{"g.example":"gcloud"}}"#, &[]),
            (DOCKER, r#"{"auths":{"r.example":{"auth":"Y2k6aHVudGVyMg=="}}}"#, &["a password for r.example"]),
            (DOCKER, r#"{"auths":{"r.example":{"auth":"Y2k6aHVudGVyMg"}}}"#, &["a password for r.example"]),
            (DOCKER, r#"{"auths":{"r.example":{"auth":"Og=="}}}"#, &[]),
            (DOCKER, r#"{"auths":{"r.example":{"auth":"Y2k6AA=="}}}"#, &[]),
            (DOCKER, r#"{"auths":{"r.example":{"auth":"hunter2!"}}}"#, &["a password for r.example"]),
            (
                DOCKER,
                r#"{"auths":{"a":{"auth":"PHRva2VuPjo=","identitytoken":"hunter2"},"b":{"registrytoken":"hunter2"}}}"#,
                &["a token for a", "a token for b"],
            ),
            (
                DOCKER,
                r#"{"auths":{"https://u:hunter2@r.example/v1/":{"username":"u","password":"hunter2"}}}"#,
                &["a password for r.example/v1/"],
            ),
            (
                DOCKER,
                r#"{"HttpHeaders":{"Authorization":"Basic hunter2","User-Agent":"x"}}"#,
                &["a header Authorization"],
            ),
            (
                DOCKER,
                r#"{"proxies":{"default":{"httpProxy":"http://u:hunter2@p:3128","noProxy":"a@b:c"}}}"#,
                &["the password of a proxy"],
            ),
            (DOCKER, r#"{"proxies":{"default":{"httpProxy":"http://p:3128"}}}"#, &[]),
            (
                Form::OldAuths,
                r#"{"r.example":{"auth":"Y2k6aHVudGVyMg==","email":"x"}}"#,
                &["a password for r.example"],
            ),
            (
                Form::Profiles,
                "[default]\nregion = eu\n[profile ci]\nAWS_Secret_Access_Key=hunter2\naws_session_token = hunter2\n",
                &["keys of profile ci"],
            ),
            (Form::Profiles, "[default]\nrole_arn = x\ncredential_source = Ec2InstanceMetadata\n", &[]),
            (Form::Profiles, "[default]\naws_secret_access_key =\n", &[]),
            (Form::Cache, r#"{"Credentials":{"SecretAccessKey":"hunter2"}}"#, &["what a login left"]),
            (Form::Cache, r#"[{"registries":[{"AuthorizationToken":"hunter2"}]}]"#, &["what a login left"]),
            (Form::Cache, r#"{"AccessToken":{},"RefreshToken":{}}"#, &[]),
            (Form::Cache, r#"{"Version":"1.0"}"#, &[]),
            (
                Form::Variables,
                "PATH=/bin\nexport GITHUB_TOKEN=\"hunter2\"\nAWS_SESSION_TOKEN=\n# AWS_SECRET_KEY=x\n",
                &["variable GITHUB_TOKEN"],
            ),
            (Form::Whole, "https://u:hunter2@github.com\n", &["passwords"]),
            (Form::Whole, "\n", &[]),
        ];
        for (form, content, expected) in cases {
            let found = form.secrets(content.as_bytes()).unwrap();
            assert_eq!(found, expected, "{content}");
            assert!(!found.concat().contains("hunter2"), "{found:?}");
        }
    }

    #[test]
    fn what_does_not_parse_is_said_to_be_unknown() {
        for (form, content) in [
            (DOCKER, "auths"),
            (DOCKER, "[]"),
            (DOCKER, "{\"auths\":"),
            (Form::Cache, "token"),
            (Form::OldAuths, "1"),
        ] {
            assert!(form.secrets(content.as_bytes()).is_err(), "{content}");
        }
    }
}
