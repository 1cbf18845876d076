//! Showing a registry who is asking: nothing, a password, or a token from its token service.
//!
//! ```text
//! 401 WWW-Authenticate: Basic                 -> Authorization: Basic <user:password>
//! 401 WWW-Authenticate: Bearer realm,service,scope
//!        password or nothing: GET  realm?service&scope…   (Basic)        -\
//!        identity token:      POST realm grant_type=refresh_token         -> token, expires_in
//! ```
//!
//! Mirrors distribution's `spec/auth/{token,oauth}` and containerd's `core/remotes/docker/authorizer.go`.
//! One lock is held while a token is fetched, so that threads which all find it stale fetch one.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::challenge::{self, Challenge};
use crate::source::credentials::{
    AWS_CLI, Credential, CredentialError, Credentials, ECR_HELPER, GHCR, GITHUB_TOKEN, JsonFault, Login,
    Origin, ecr_region,
};
use crate::source::http::{Failure, Reply, Transport, discreet_url, percent_encode};
use crate::source::secret::Secret;
use crate::source::{Denied, Error};

/// How long a token lasts whose service does not say (distribution's token spec).
const DEFAULT_LIFETIME: u64 = 60;
/// The longest that a token is kept, in seconds, whatever its service says.
const LONGEST_LIFETIME: u64 = 24 * 60 * 60;

/// An `Authorization` header and which one it is.
#[derive(Clone)]
pub(super) struct Authorization {
    pub(super) header: String,
    pub(super) generation: u64,
}

/// What became of an attempt to get a better authorization.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Renewal {
    /// There is a new one, got just now.
    Got,
    /// There is a new one, which another thread has got.
    GotByOther,
    /// There is none other than that which was refused.
    Nothing,
    /// The registry does not say what it wants, or wants what is not known here.
    Unknown,
}

/// What a registry is shown, shared by threads.
pub(super) struct Auth {
    credentials: Credentials,
    /// As references name it: `docker.io`.
    registry: String,
    repository: String,
    /// Whether to ask for leave to write, too.
    push: bool,
    /// Whether the registry has taken what it was shown.
    accepted: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Counts authorizations; 0 is none.
    generation: u64,
    header: Option<String>,
    /// When to fetch a new token without being told.
    renew_at: Option<Instant>,
    challenge: Option<Challenge>,
    /// What was found to answer it with.
    credential: Option<Credential>,
}

#[derive(Deserialize)]
struct TokenAnswer {
    #[serde(default)]
    token: String,
    #[serde(default)]
    access_token: String,
    expires_in: Option<u64>,
}

impl Auth {
    pub(super) fn new(credentials: Credentials, registry: &str, repository: &str) -> Self {
        Self {
            credentials,
            registry: registry.to_owned(),
            repository: repository.to_owned(),
            push: false,
            accepted: AtomicBool::new(false),
            state: Mutex::default(),
        }
    }

    /// For whoever writes.
    pub(super) fn for_push(self) -> Self {
        Self { push: true, ..self }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // What is guarded is replaced as a whole, so a panic elsewhere leaves nothing half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What to show now; a token about to run out is renewed first.
    pub(super) fn current(&self, transport: &Transport) -> Result<Option<Authorization>, Failure> {
        let mut state = self.lock();
        if state.renew_at.is_some_and(|at| Instant::now() >= at)
            && let Some(challenge) = state.challenge.clone()
        {
            self.answer(&mut state, &challenge, None, transport)?;
        }
        let generation = state.generation;
        Ok(state.header.clone().map(|header| Authorization { header, generation }))
    }

    /// Reacts to a refusal of `refused` (0: nothing was shown). Another thread may have done so.
    pub(super) fn renew(
        &self,
        refused: u64,
        reply: &Reply,
        transport: &Transport,
    ) -> Result<Renewal, Failure> {
        let mut state = self.lock();
        if state.generation != refused {
            return Ok(Renewal::GotByOther);
        }
        let mut challenges: Vec<_> = reply.challenges().flat_map(challenge::parse).collect();
        // A token is worth less to a thief than a password: prefer it, as docker does.
        challenges.sort_by_key(|c| c.scheme != "bearer");
        let known = challenges.into_iter().find(|c| matches!(c.scheme.as_str(), "bearer" | "basic"));
        let Some(challenge) = known.or_else(|| state.challenge.clone()) else { return Ok(Renewal::Unknown) };
        let before = state.header.clone();
        // A token that is refused says nothing of the password that it was got with.
        let basic = before.as_ref().is_some_and(|header| header.starts_with(BASIC));
        let password = state.credential.take_if(|_| basic);
        self.answer(&mut state, &challenge, password.as_ref(), transport)?;
        state.challenge = Some(challenge);
        let is_kept = state.credential.as_ref().is_some_and(|found| found.kept);
        Ok(match &state.header {
            header if *header == before => Renewal::Nothing,
            // For another repository: it may have ended since.
            Some(header) if header.starts_with(BASIC) && is_kept => Renewal::GotByOther,
            _ => Renewal::Got,
        })
    }

    /// Notes that the registry has taken what it was shown.
    pub(super) fn accepted(&self) {
        self.accepted.store(true, Ordering::Relaxed);
    }

    /// For messages: with which credentials the registry was asked.
    pub(super) fn shown(&self) -> String {
        shown(self.lock().credential.as_ref())
    }

    /// For messages: what to do when access is denied with this status and these words.
    pub(super) fn advice(&self, status: u16, detail: &str) -> String {
        self.advise(self.lock().credential.as_ref().map(|found| &found.origin), status, detail)
    }

    fn advise(&self, origin: Option<&Origin>, status: u16, detail: &str) -> String {
        let wanted = format!("{} {}", if self.push { "push to" } else { "read" }, self.repository);
        let Some(origin) = origin else { return self.advise_anonymous(&wanted) };
        // Who may read may still be refused to push, by a registry that has taken the same password before.
        let taken_before = !self.push && self.accepted.load(Ordering::Relaxed);
        let why = if taken_before || detail.to_ascii_lowercase().contains("expired") {
            "these credentials have expired".to_owned()
        } else if status == 403 {
            format!("these credentials may not {wanted}")
        } else {
            format!("these credentials are wrong, or may not {wanted}")
        };
        format!("{why}: {}", origin.remedy(&self.registry, &wanted))
    }

    fn advise_anonymous(&self, wanted: &str) -> String {
        let registry = &self.registry;
        let cloud = match (registry.as_str(), ecr_region(registry)) {
            (GHCR, _) => format!("set ${GITHUB_TOKEN}, or "),
            (_, Some(region)) => format!(
                "install {ECR_HELPER} or the AWS CLI on a machine whose role may {wanted}, or pipe what \
                 {AWS_CLI} --region {region} prints to --username AWS --password-stdin, or "
            ),
            _ => String::new(),
        };
        let files = self.credentials.files();
        let files = if files.is_empty() { "nowhere: HOME is not set".to_owned() } else { files.join(", ") };
        format!(
            "{cloud}run docker login {registry} with an account that may {wanted}, or check that the repository \
             exists (credentials are read from {files})"
        )
    }

    /// Gets what a challenge asks for and puts it into `state`; `refused` was shown to the registry in vain.
    fn answer(
        &self,
        state: &mut State,
        challenge: &Challenge,
        refused: Option<&Credential>,
        transport: &Transport,
    ) -> Result<(), Failure> {
        state.credential = self.find(refused)?;
        let (header, lifetime) = match state.credential.as_ref().map(|credential| &credential.login) {
            Some(Login::Registry(token)) => (Some(format!("Bearer {}", token.expose())), None),
            Some(Login::Password { user, password }) if challenge.scheme == "basic" => {
                (Some(basic(user, password)), None)
            }
            _ if challenge.scheme == "basic" => (None, None),
            _ => {
                let (token, lifetime) = self.token(state, challenge, transport)?;
                (Some(format!("Bearer {token}")), Some(lifetime))
            }
        };
        // It becomes a header, so it must be able to.
        if let Some(header) =
            header.as_ref().filter(|h| !h.bytes().all(|b| b == b' ' || b.is_ascii_graphic()))
        {
            let what = format!("authorization for {} ({} bytes)", self.repository, header.len());
            let reason = "gets a token that is no valid header value".to_owned();
            return Err(Error::BadAnswer { what, host: self.registry.clone(), reason }.into());
        }
        // Ahead of its end, for a clock or a network that is slow; not so early that it is no use.
        state.renew_at =
            lifetime.map(|l| Instant::now() + l.saturating_sub(Duration::from_secs(10).min(l / 4)));
        state.header = header;
        state.generation += 1;
        Ok(())
    }

    fn find(&self, refused: Option<&Credential>) -> Result<Option<Credential>, Failure> {
        self.credentials.find(&self.registry, &self.repository, refused).map_err(|error| match error {
            Error::Credential(throttled @ CredentialError::Throttled(_)) => {
                Failure::again(throttled.to_string())
            }
            error => error.into(),
        })
    }

    /// Gets a token; where the service refuses what a program gave, once more with what the program gives now.
    fn token(
        &self,
        state: &mut State,
        challenge: &Challenge,
        transport: &Transport,
    ) -> Result<(String, Duration), Failure> {
        let failure = match self.fetch_token(challenge, state.credential.as_ref(), transport) {
            Err(failure @ Failure::Final(Error::Denied(_))) => failure,
            other => return other,
        };
        let Some(refused) = state.credential.as_ref().filter(|found| found.origin.may_change()) else {
            return Err(failure);
        };
        let newer = self.find(Some(refused))?;
        if newer.as_ref() == Some(refused) {
            return Err(failure);
        }
        state.credential = newer;
        self.fetch_token(challenge, state.credential.as_ref(), transport)
    }

    fn fetch_token(
        &self,
        challenge: &Challenge,
        credential: Option<&Credential>,
        transport: &Transport,
    ) -> Result<(String, Duration), Failure> {
        let what = || format!("token for repository {}", self.repository);
        let bad = |host: &str, reason: String| -> Failure {
            Error::BadAnswer { what: what(), host: host.to_owned(), reason }.into()
        };
        let realm = challenge.param("realm").unwrap_or_default();
        if !realm.parse().is_ok_and(|url| transport.may_ask(&url)) {
            let reason = format!(
                "names a token service that may not be asked, since it is not on https: {:?}",
                discreet_url(realm)
            );
            return Err(bad(&self.registry, reason));
        }
        let service = challenge.param("service").unwrap_or_default();
        let scopes = self.scopes(challenge.param("scope").unwrap_or_default());
        let mut reply = match credential.map(|c| &c.login) {
            Some(Login::Identity(token)) => {
                let scope = scopes.join(" ");
                let form = [
                    ("grant_type", "refresh_token"),
                    ("service", service),
                    ("client_id", "warmkit"),
                    ("scope", &scope),
                    ("refresh_token", token.expose()),
                ];
                transport.post_form(realm, &form)?
            }
            Some(Login::Password { user, password }) => {
                let mut url = token_url(realm, service, &scopes);
                let _ = write!(url, "&account={}", percent_encode(user));
                transport.get(&url, &[], Some(&basic(user, password)))?
            }
            _ => transport.get(&token_url(realm, service, &scopes), &[], None)?,
        };
        if let Some(failure) = reply.passing_failure() {
            return Err(failure);
        }
        let status = reply.status;
        if status != 200 {
            let detail = reply.error_detail();
            let (host, what) = (reply.host, what());
            if !matches!(status, 400 | 401 | 403) {
                return Err(Error::Status { what, host, status, detail }.into());
            }
            let credentials = shown(credential);
            let advice = self.advise(credential.map(|found| &found.origin), status, &detail);
            let denied = Denied { host, what, credentials, status, detail, advice };
            return Err(Error::Denied(Box::new(denied)).into());
        }
        let bytes = reply.answer()?;
        let answer: TokenAnswer = serde_json::from_slice(&bytes).map_err(|error| {
            bad(&reply.host, format!("sent a token that is not valid: {}", JsonFault::from(&error)))
        })?;
        let token = [answer.token, answer.access_token].into_iter().find(|token| !token.is_empty());
        let token = token.ok_or_else(|| bad(&reply.host, "sent no token".to_owned()))?;
        let lifetime = answer.expires_in.unwrap_or(DEFAULT_LIFETIME).min(LONGEST_LIFETIME);
        Ok((token, Duration::from_secs(lifetime)))
    }

    /// What to ask the token service for: what is needed, and what the registry named besides.
    fn scopes(&self, named: &str) -> Vec<String> {
        let actions = if self.push { "pull,push" } else { "pull" };
        let mut scopes = vec![format!("repository:{}:{actions}", self.repository)];
        for scope in named.split_ascii_whitespace() {
            if !scopes.iter().any(|s| s == scope) {
                scopes.push(scope.to_owned());
            }
        }
        scopes
    }
}

/// For messages: with which credentials.
fn shown(credential: Option<&Credential>) -> String {
    credential.map_or("without credentials".to_owned(), ToString::to_string)
}

/// What an authorization with a password begins with.
const BASIC: &str = "Basic ";

fn basic(user: &str, password: &Secret) -> String {
    format!("{BASIC}{}", STANDARD.encode(format!("{user}:{}", password.expose())))
}

fn token_url(realm: &str, service: &str, scopes: &[String]) -> String {
    let separator = if realm.contains('?') { '&' } else { '?' };
    let mut url = format!("{realm}{separator}service={}", percent_encode(service));
    for scope in scopes {
        let _ = write!(url, "&scope={}", percent_encode(scope));
    }
    url
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::{Environment, Options};

    #[test]
    fn builds_token_urls() {
        let scopes = ["repository:a/b:pull".to_owned(), "x y".to_owned()];
        assert_eq!(
            token_url("https://t/token", "r.example", &scopes),
            "https://t/token?service=r.example&scope=repository%3Aa%2Fb%3Apull&scope=x%20y"
        );
        assert!(token_url("https://t/token?a=b", "", &[]).ends_with("?a=b&service="));
    }

    #[test]
    fn asks_for_what_is_needed_once() {
        let options = Options { env: Environment::default(), ..Options::default() };
        let auth = Auth::new(Credentials::new(&options), "r", "a/b");
        assert_eq!(auth.scopes("repository:a/b:pull"), ["repository:a/b:pull"]);
        assert_eq!(auth.scopes("other"), ["repository:a/b:pull", "other"]);
        let auth = auth.for_push();
        assert_eq!(auth.scopes("repository:a/b:pull,push"), ["repository:a/b:pull,push"]);
        assert!(auth.advice(401, "").contains("an account that may push to a/b"));
    }
}
