use base64::Engine as _;

use super::*;

/// A home directory with these files, and an environment that points there.
struct Home(tempfile::TempDir);

impl Home {
    fn new(files: &[(&str, &str)]) -> Self {
        let home = Self(tempfile::tempdir().unwrap());
        for (name, content) in files {
            let path = home.path(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        home
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Variables whose values are paths below the home directory; `HOME` is always set.
    fn credentials(&self, vars: &[(&str, &str)]) -> Credentials {
        let home = ("HOME".to_owned(), self.0.path().as_os_str().to_owned());
        let vars = vars.iter().map(|(name, value)| ((*name).to_owned(), self.path(value).into_os_string()));
        credentials(vars.chain([home]).collect())
    }

    fn find(&self, registry: &str, repository: &str) -> Option<Credential> {
        self.credentials(&[]).find(registry, repository, None).unwrap()
    }
}

fn credentials(env: Environment) -> Credentials {
    Credentials::new(&Options { env, ..Options::default() })
}

/// Names and values.
type Vars<'a> = &'a [(&'a str, &'a str)];

/// `{"auths": {key: user:password}}`
fn auths(entries: &[(&str, &str)]) -> String {
    let entry = |auth: &str| {
        let auth = base64::engine::general_purpose::STANDARD.encode(auth);
        serde_json::json!({ "auth": auth })
    };
    let auths: serde_json::Map<_, _> =
        entries.iter().map(|(key, auth)| ((*key).to_owned(), entry(auth))).collect();
    serde_json::json!({ "auths": auths }).to_string()
}

fn user(found: Option<Credential>) -> Option<String> {
    found.map(|credential| match credential.login {
        Login::Password { user, password } => {
            assert_eq!(password.expose(), "pw");
            user
        }
        Login::Identity(token) | Login::Registry(token) => token.expose().to_owned(),
    })
}

#[test]
fn looks_where_docker_and_podman_do() {
    let docker = auths(&[("r.example", "docker:pw")]);
    let podman = auths(&[("r.example", "podman:pw"), ("q.example", "podman:pw")]);
    let home = Home::new(&[
        (".docker/config.json", &docker),
        (".config/containers/auth.json", &podman),
        ("d/config.json", &auths(&[("r.example", "named:pw")])),
        ("run/containers/auth.json", &auths(&[("q.example", "run:pw")])),
        ("xdg/containers/auth.json", &auths(&[("q.example", "xdg:pw")])),
        ("file.json", &auths(&[("r.example", "file:pw"), ("q.example", "file:pw")])),
        ("empty.json", " \n"),
    ]);
    let cases: [(Vars<'_>, &str, Option<&str>); 13] = [
        (&[], "r.example", Some("docker")),
        (&[], "q.example", Some("podman")),
        (&[], "x.example", None),
        (&[("DOCKER_CONFIG", "d")], "r.example", Some("named")),
        (&[("DOCKER_CONFIG", "d")], "q.example", Some("podman")),
        (&[("DOCKER_CONFIG", "absent")], "r.example", Some("podman")),
        (&[("REGISTRY_AUTH_FILE", "file.json")], "r.example", Some("file")),
        (&[("REGISTRY_AUTH_FILE", "empty.json")], "q.example", None),
        (&[("DOCKER_CONFIG", "d"), ("REGISTRY_AUTH_FILE", "file.json")], "r.example", Some("file")),
        (&[("DOCKER_CONFIG", "d"), ("REGISTRY_AUTH_FILE", "empty.json")], "r.example", Some("named")),
        // As skopeo does; podman's own places are not for who has named another.
        (&[("REGISTRY_AUTH_FILE", "absent.json")], "r.example", Some("docker")),
        (&[("XDG_RUNTIME_DIR", "run")], "q.example", Some("run")),
        (&[("XDG_CONFIG_HOME", "xdg")], "q.example", Some("xdg")),
    ];
    for (vars, registry, expected) in cases {
        let found = home.credentials(vars).find(registry, "a/b", None).unwrap();
        assert_eq!(user(found).as_deref(), expected, "{vars:?} {registry}");
    }
    let nowhere = credentials(Environment::default());
    assert!(nowhere.find("r.example", "a", None).unwrap().is_none());
    assert!(nowhere.files().is_empty());
    let files = home.credentials(&[("REGISTRY_AUTH_FILE", "absent.json")]).files();
    assert!(files[0].ends_with("absent.json, which $REGISTRY_AUTH_FILE names and is not there"), "{files:?}");
}

#[test]
fn the_environment_may_hold_them_itself() {
    let home = Home::new(&[(".docker/config.json", &auths(&[("r.example", "a:pw"), ("q.example", "b:pw")]))]);
    let vars = [
        ("HOME", home.0.path().to_str().unwrap().to_owned()),
        ("DOCKER_AUTH_CONFIG", auths(&[("r.example", "env:pw")])),
    ];
    let credentials = credentials(vars.into_iter().collect());
    let found = credentials.find("r.example", "x", None).unwrap().unwrap();
    assert_eq!(found.to_string(), "as \"env\" from $DOCKER_AUTH_CONFIG");
    assert_eq!(user(credentials.find("q.example", "x", None).unwrap()).as_deref(), Some("b"));

    let broken = [("DOCKER_AUTH_CONFIG", "{")].into_iter().collect();
    let error = self::credentials(broken).find("r.example", "x", None).err().unwrap();
    assert!(error.to_string().starts_with("credentials file $DOCKER_AUTH_CONFIG is not valid"), "{error}");
}

#[test]
fn the_longest_key_counts() {
    let home = Home::new(&[(
        ".config/containers/auth.json",
        &auths(&[
            ("r.example", "host:pw"),
            ("r.example/acme", "acme:pw"),
            ("r.example/acme/app", "app:pw"),
            ("https://old.example/v1/", "old:pw"),
            ("localhost:5000", "port:pw"),
        ]),
    )]);
    let cases = [
        ("r.example", "acme/app", Some("app")),
        ("r.example", "acme/app/deep", Some("app")),
        ("r.example", "acme/apple", Some("acme")),
        ("r.example", "other", Some("host")),
        ("old.example", "a", Some("old")),
        ("localhost:5000", "a", Some("port")),
        ("localhost:5001", "a", None),
        ("localhost", "a", None),
    ];
    for (registry, repository, expected) in cases {
        assert_eq!(user(home.find(registry, repository)).as_deref(), expected, "{registry}/{repository}");
    }
}

#[test]
fn docker_hub_has_many_names() {
    for key in ["https://index.docker.io/v1/", "index.docker.io", "docker.io", "https://docker.io"] {
        let home = Home::new(&[(".docker/config.json", &auths(&[(key, "hub:pw")]))]);
        assert_eq!(user(home.find("docker.io", "library/app")).as_deref(), Some("hub"), "{key}");
    }
    let home = Home::new(&[(".docker/config.json", &auths(&[("docker.io/acme", "acme:pw")]))]);
    assert_eq!(user(home.find("docker.io", "acme/app")).as_deref(), Some("acme"));
    assert!(home.find("docker.io", "library/app").is_none());
}

#[test]
fn reads_every_way_of_writing_a_secret() {
    let nul = base64::engine::general_purpose::STANDARD.encode("nul:pw\0\0");
    let cases = [
        (r#"{"auth": "dXNlcjpwdw=="}"#.to_owned(), Some("user")),
        (r#"{"auth": "dXNlcjpwdw"}"#.to_owned(), Some("user")),
        (format!("{{\"auth\": \"{nul}\"}}"), Some("nul")),
        (r#"{"username": "plain", "password": "pw", "email": "a@b"}"#.to_owned(), Some("plain")),
        (r#"{"auth": "MDA6", "identitytoken": "id"}"#.to_owned(), Some("id")),
        (r#"{"registrytoken": "raw"}"#.to_owned(), Some("raw")),
        (r#"{"auth": null}"#.to_owned(), None),
        ("{}".to_owned(), None),
    ];
    for (entry, expected) in cases {
        let home = Home::new(&[(".docker/config.json", &format!("{{\"auths\":{{\"r.example\":{entry}}}}}"))]);
        assert_eq!(user(home.find("r.example", "a")).as_deref(), expected, "{entry}");
    }
}

#[test]
fn says_which_file_is_wrong() {
    let cases = [
        (
            "{",
            "credentials file PATH is not valid: it ends too early, at line 1 column 1: mend it, or move it away and log in again",
        ),
        (
            "auths",
            "credentials file PATH is not valid: no JSON at line 1 column 1: mend it, or move it away and log in again",
        ),
        (
            r#"{"auths":{"r.example":{"auth":["hunter2"]}}}"#,
            "credentials file PATH is not valid: another kind of value than expected, or one that is missing, at \
             line 1 column 30",
        ),
        (
            r#"{"auths":{"r.example":"hunter2"}}"#,
            "credentials file PATH is not valid: another kind of value than expected, or one that is missing, at \
             line 1 column ",
        ),
        (
            r#"{"auths":{"r.example":{"auth":"%"}}}"#,
            "credentials file PATH: the auth of r.example is not base64 of user:password: log in to it again",
        ),
        (
            r#"{"auths":{"r.example":{"auth":"bm9jb2xvbg=="}}}"#,
            "credentials file PATH: the auth of r.example is not base64 of user:password: log in to it again",
        ),
    ];
    let home = Home::new(&[(".docker/config.json/file", "")]);
    let error = home.credentials(&[]).find("r.example", "a", None).err().unwrap().to_string();
    assert!(
        error.ends_with("Is a directory (os error 21): make it a file that this user may read"),
        "{error}"
    );
    for (content, message) in cases {
        let home = Home::new(&[(".docker/config.json", content)]);
        let error = home.credentials(&[]).find("r.example", "a", None).err().unwrap().to_string();
        let path = home.path(".docker/config.json").display().to_string();
        assert!(error.starts_with(&message.replace("PATH", &path)), "{error}");
        assert!(!error.contains("hunter2"), "{error}");
    }
}

#[test]
fn secrets_are_not_shown() {
    let home = Home::new(&[(".docker/config.json", &auths(&[("r.example", "ci:pw")]))]);
    let path = home.path(".docker/config.json");
    let found = home.find("r.example", "a").unwrap();
    assert_eq!(found.to_string(), format!("as \"ci\" from {}", path.display()));
    let env: Environment = [("PASSWORD", "hunter2")].into_iter().collect();
    assert_eq!(format!("{env:?}"), "{\"PASSWORD\"}");
}

#[test]
fn what_was_given_goes_first_and_nowhere_else() {
    let home = Home::new(&[(".docker/config.json", &auths(&[("r.example", "a:pw"), ("q.example", "b:pw")]))]);
    let given = Given::read("r.example", "ci", &mut b"pw\n".as_slice()).unwrap();
    let env = [("HOME", home.0.path())].into_iter().collect();
    let credentials = Credentials::new(&Options { given: Some(given), env, ..Options::default() });
    let found = credentials.find("r.example", "x", None).unwrap().unwrap();
    assert_eq!(found.to_string(), "as \"ci\" from standard input");
    assert_eq!(user(Some(found)).as_deref(), Some("ci"));
    assert_eq!(user(credentials.find("q.example", "x", None).unwrap()).as_deref(), Some("b"));
    assert!(credentials.find("x.example", "x", None).unwrap().is_none());
    assert!(!format!("{credentials:?}").contains("pw"));
}

#[test]
fn a_workflow_has_a_token_for_ghcr_alone() {
    let home = Home::new(&[(".docker/config.json", &auths(&[("q.example", "b:pw")]))]);
    let find = |registry: &str, more: &[(&str, &str)]| {
        let vars = [("HOME", home.0.path().to_str().unwrap()), ("GITHUB_TOKEN", "pw")];
        credentials(vars.iter().chain(more).copied().collect()).find(registry, "a/b", None).unwrap()
    };
    assert_eq!(find("ghcr.io", &[]).unwrap().to_string(), "as \"x-access-token\" from $GITHUB_TOKEN");
    assert_eq!(user(find("ghcr.io", &[("GITHUB_ACTOR", "octocat")])).as_deref(), Some("octocat"));
    assert!(find("r.example", &[]).is_none());
    assert!(find("ghcr.io.evil.example", &[]).is_none());
    let file = auths(&[("ghcr.io", "file:pw")]);
    assert_eq!(user(find("ghcr.io", &[("DOCKER_AUTH_CONFIG", &file)])).as_deref(), Some("file"));
}
