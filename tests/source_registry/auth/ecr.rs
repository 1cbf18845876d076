//! Passwords that programs give and that end, as those of ECR, and its other ways.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::json;
use warmkit::progress::Silent;
use warmkit::source::{Options, Registry, Source};

use super::{challenge, with_config, write_helper};
use crate::server::{Answer, Server};
use crate::{Log, bytes, descriptor};

/// A password that changes, who takes it, and who gives it.
struct Changing {
    server: Server,
    /// What the registry takes now.
    taken: Arc<Mutex<String>>,
    dir: tempfile::TempDir,
    options: Options,
}

impl Changing {
    /// A registry that wants the password itself, or one whose token service does; `ci` is who has it.
    fn start(blob: &[u8], with_tokens: bool) -> Self {
        let taken = Arc::<Mutex<String>>::default();
        let (content, wanted) = (blob.to_vec(), Arc::clone(&taken));
        let server = Server::start(move |request| {
            let shown = request.header("authorization").unwrap_or_default();
            let password = wanted.lock().unwrap().clone();
            if request.target.starts_with("/token") {
                return if shown == basic(&password) {
                    Answer::new(
                        200,
                        json!({"token": format!("for-{password}"), "expires_in": 300}).to_string(),
                    )
                } else {
                    Answer::new(401, "")
                };
            }
            let is_good = if with_tokens {
                shown == format!("Bearer for-{password}")
            } else {
                shown == basic(&password)
            };
            match (is_good, with_tokens) {
                (true, _) => Answer::new(200, &*content),
                (false, true) => challenge(request),
                (false, false) => {
                    Answer::new(401, "Not Authorized").header("www-authenticate", "Basic realm=\"ecr\"")
                }
            }
        });
        let dir = tempfile::tempdir().unwrap();
        let config = json!({"credHelpers": {server.addr.to_string(): "ours"}});
        let script = format!(
            "echo asked >> '{0}/asked'\necho \"{{\\\"Username\\\":\\\"ci\\\",\\\"Secret\\\":\\\"$(cat '{0}/password')\\\"}}\"",
            dir.path().display()
        );
        write_helper(dir.path(), "ours", &script);
        let options = with_config(dir.path(), &config);
        Self { server, taken, dir, options }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn change(&self, password: &str) {
        password.clone_into(&mut self.taken.lock().unwrap());
        fs::write(self.path("password"), password).unwrap();
    }

    fn open(&self, repository: &str) -> Registry {
        let reference = format!("{}/{repository}:cache", self.server.addr).parse().unwrap();
        Registry::open(&reference, &self.options).unwrap()
    }

    /// How often the helper was asked.
    fn asked(&self) -> usize {
        lines(&self.path("asked"))
    }
}

fn lines(path: &Path) -> usize {
    fs::read_to_string(path).unwrap_or_default().lines().count()
}

fn basic(password: &str) -> String {
    use base64::Engine as _;
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("ci:{password}")))
}

#[test]
fn a_helper_is_asked_once_for_all_repositories_of_a_registry() {
    let blob = bytes(10);
    for with_tokens in [false, true] {
        let changing = Changing::start(&blob, with_tokens);
        changing.change("first");
        std::thread::scope(|scope| {
            for n in 0..8 {
                let registry = changing.open(&format!("acme/app{n}"));
                let blob = &blob;
                scope
                    .spawn(move || assert_eq!(registry.document(&descriptor(blob), &Silent).unwrap(), *blob));
            }
        });
        assert_eq!(changing.asked(), 1, "tokens: {with_tokens}");
    }
}

#[test]
fn a_helper_is_asked_again_when_what_it_gave_has_ended() {
    let blob = bytes(10);
    for with_tokens in [false, true] {
        let changing = Changing::start(&blob, with_tokens);
        let get = |registry: &Registry| registry.document(&descriptor(&blob), &Silent);
        changing.change("first");
        let (one, two) = (changing.open("acme/one"), changing.open("acme/two"));
        assert_eq!((get(&one).unwrap(), get(&two).unwrap()), (blob.clone(), blob.clone()));
        assert_eq!(changing.asked(), 1);

        // The first that is refused asks; the others take its answer.
        changing.change("second");
        for registry in [&one, &two, &changing.open("acme/three")] {
            assert_eq!(get(registry).unwrap(), blob);
        }
        assert_eq!(changing.asked(), 2, "tokens: {with_tokens}");

        // One that is opened later has nothing but the old answer.
        changing.change("third");
        assert_eq!(get(&changing.open("acme/four")).unwrap(), blob);
        assert_eq!(changing.asked(), 3, "tokens: {with_tokens}");

        // A helper that has nothing new is asked once more, not for ever.
        "fourth".clone_into(&mut changing.taken.lock().unwrap());
        let error = get(&changing.open("acme/five")).unwrap_err().to_string();
        assert!(error.contains("from credential helper docker-credential-ours (status 401)"), "{error}");
        assert_eq!(changing.asked(), 4, "tokens: {with_tokens}");
    }
}

#[test]
fn throttling_passes_and_a_redirect_takes_no_password_along() {
    let blob = bytes(10);
    let content = blob.clone();
    let storage = Server::start(move |_| Answer::new(200, &*content));
    let location = format!("http://{}/layer?X-Amz-Signature=1", storage.addr);
    let count = AtomicUsize::new(0);
    let server = Server::start(move |request| {
        if request.header("authorization") != Some(&basic("secret")) {
            return Answer::new(401, "Not Authorized").header("www-authenticate", "Basic realm=\"ecr\"");
        }
        match count.fetch_add(1, Ordering::SeqCst) {
            0 => Answer::new(429, r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"Rate exceeded"}]}"#),
            _ => Answer::new(307, "").header("location", &location),
        }
    });
    let dir = tempfile::tempdir().unwrap();
    let auths = json!({"auths": {server.addr.to_string(): {"username": "ci", "password": "secret"}}});
    let log = Log::default();
    let registry = crate::registry(&server, &with_config(dir.path(), &auths));
    assert_eq!(registry.document(&descriptor(&blob), &log).unwrap(), blob);
    let reason = format!("{} answered with status 429 (TOOMANYREQUESTS: Rate exceeded)", server.addr);
    assert_eq!(log.retries(), [reason]);
    let stored = storage.requests();
    assert_eq!(stored.len(), 1);
    assert_eq!(stored[0].header("authorization"), None);
}
