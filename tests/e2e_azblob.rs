//! Caches that a real daemon exported to Azure's storage emulator: a root baked from them is warm, and
//! whoever may not read them, or asks for what is not there, is told what to do.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

#[path = "source_registry/server.rs"]
#[allow(dead_code, reason = "registries do more")]
mod server;
mod support;

use std::process::Command;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::json;
use server::{Answer, Server};
use support::azurite::{ACCOUNT, Azurite, KEY};
use support::cases::Origin;
use support::command::run;
use support::stored::Stored;
use support::{BuildRequest, Scratch, tools};
use warmkit::progress::Silent;
use warmkit::source::{CacheSpec, Environment, ErrorClass, Options};

struct Setup {
    stored: Stored,
    azurite: Azurite,
}

impl Setup {
    fn start(release: &str) -> Option<Self> {
        Some(Self { azurite: Azurite::start()?, stored: Stored::start(release)? })
    }

    /// Builds on an empty daemon, and exports with these attributes.
    #[track_caller]
    fn export(&self, name: &str, request: &BuildRequest, attributes: &str) -> Origin {
        let cache = self.azurite.cache(attributes);
        let to = format!("{cache},secret_access_key={KEY}");
        self.stored.export(name, request, &cache, &to)
    }
}

/// Defaults, and what the error of each thing that is wrong says.
#[test]
fn a_container_warms_and_says_what_is_wrong() {
    let Some(setup) = Setup::start(tools::NEWEST) else { return };
    let Stored { world, case } = &setup.stored;
    let origin = setup.export("origin", &case.request, "");
    let root = world.root(case, "baked");
    let key = format!(",secret_access_key={KEY}");
    Stored::bake(&format!("{}{key}", origin.cache), &[&origin.image], &root, &[]).expect_success("bake");
    setup.stored.warms(&case.request, &origin, &root);

    let refused = |cache: &str, code: i32, words: &[&str]| {
        setup.stored.refused(&origin, cache, &[], (code, words), &[KEY]);
    };
    let cache = |attributes: &str| format!("{}{key}", setup.azurite.cache(attributes));
    refused(&cache(",name=other"), 3, &["no cache \"other\" in container buildkit-cache", "manifests/other"]);
    refused(&cache(",container=others"), 3, &["no container others", "ContainerNotFound"]);
    let wrong = setup.azurite.cache(",secret_access_key=aGlkZGVu");
    refused(&wrong, 4, &["denies access", ACCOUNT, "machine's clock"]);
    refused(&setup.azurite.cache(",secret_access_key=no!"), 4, &["not the base64"]);
    refused("type=azblob", 2, &["$BUILDKIT_AZURE_STORAGE_ACCOUNT_URL"]);
}

/// A container, prefixes, and several names: of an old release, each with another build.
#[test]
fn names_and_prefixes() {
    let Some(setup) = Setup::start("v0.17.3") else { return };
    let Stored { world, case } = &setup.stored;
    let place = ",container=box,prefix=team a/,manifests_prefix=m,blobs_prefix=b";
    let one = setup.export("one", &case.request, &format!("{place},name=main;main/2"));
    let two = setup.export("two", &case.changed, &format!("{place},name=branch"));
    let cache = setup.azurite.cache(&format!("{place},name=branch;gone;main/2,secret_access_key={KEY}"));
    let root = world.root(case, "baked");
    let ended = Stored::bake(&cache, &[&one.image, &two.image], &root, &[]).expect_success("bake");
    assert!(ended.stderr.contains("no cache \"gone\""), "{}", ended.stderr);
    setup.stored.warms(&case.request, &one, &root);
    setup.stored.warms(&case.changed, &two, &root);
}

/// A token as Entra ID issues it, for who is called so, but for its signature.
fn token(audience: &str, who: &str) -> String {
    let claims = json!({
        "aud": audience, "iss": "https://sts.windows.net/tenant/", "sub": who,
        "iat": 1_700_000_000, "nbf": 1_700_000_000, "exp": 4_000_000_000_u64,
    });
    let encode = |text: &str| URL_SAFE_NO_PAD.encode(text);
    format!("{}.{}.c2ln", encode(r#"{"alg":"RS256","typ":"JWT"}"#), encode(&claims.to_string()))
}

/// The services that give tokens: each knows who asks in its own way.
fn token_services() -> Server {
    Server::start(|request| {
        let good = token("https://storage.azure.com", "ci");
        let has = |words: &[&str]| words.iter().all(|word| request.body.contains(word));
        let scope = "scope=https%3A%2F%2Fstorage.azure.com%2F.default";
        let resource = "resource=https%3A%2F%2Fstorage.azure.com";
        let (path, query) = request.target.split_once('?').unwrap_or((&request.target, ""));
        let answer = |token: String| json!({ "access_token": token, "expires_in": 3599 }).to_string();
        match path {
            "/tenant/oauth2/v2.0/token"
                if has(&["grant_type=client_credentials", "client_id=id", scope])
                    && (has(&["client_secret=s%26cret"])
                        || has(&["client_assertion=proof", "client-assertion-type%3Ajwt-bearer"])) =>
            {
                Answer::new(200, answer(good))
            }
            "/elsewhere/oauth2/v2.0/token" => {
                Answer::new(200, answer(token("https://vault.azure.net", "ci")))
            }
            "/msi" if query.contains(resource) && request.header("x-identity-header") == Some("s&cret") => {
                // Its numbers are digits.
                Answer::new(200, json!({ "access_token": good, "expires_in": "3599" }).to_string())
            }
            "/metadata/identity/oauth2/token"
                if query.contains(resource) && request.header("metadata") == Some("true") =>
            {
                Answer::new(200, answer(good))
            }
            _ => {
                Answer::new(401, json!({ "error_description": "AADSTS7000215: no such secret" }).to_string())
            }
        }
    })
}

/// Every way to a token, each shown to storage that looks into it.
#[test]
fn tokens() {
    let Some(azurite) = Azurite::start_with_tokens() else { return };
    let config = br#"{"layers":[],"records":[]}"#;
    azurite.put(&token("https://storage.azure.com", "writer"), "manifests/buildkit", config);
    let services = token_services();
    let url = format!("http://{}", services.addr);
    let msi = format!("{url}/msi");
    let scratch = Scratch::new();
    let proof = scratch.write("proof", "proof\n").display().to_string();
    let answer =
        json!({ "accessToken": token("https://storage.azure.com", "me"), "expires_on": 4_000_000_000_u64 });
    let az = format!("#!/bin/sh\ntest \"$1 $2\" = 'account get-access-token' && echo '{answer}'\n");
    // By a shell: what this process has open for writing while another thread forks cannot be run.
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", "printf %s \"$1\" > \"$0\" && chmod +x \"$0\""]).arg(scratch.join("az")).arg(az);
    run(&mut shell, Duration::from_secs(60)).expect_success("a program az");
    let path = format!("{}:/usr/bin:/bin", scratch.path().display());

    let cache: CacheSpec = azurite.cache("").parse().unwrap();
    let manifest = |variables: &[(&str, &str)]| {
        let env: Environment = variables.iter().copied().collect();
        let options = Options { env, certs_dirs: vec![azurite.certs_dir()], ..Options::default() };
        cache.open(&options).unwrap().manifest(None, &Silent).map(|manifest| manifest.bytes)
    };
    let authority = ("AZURE_AUTHORITY_HOST", url.as_str());
    let (tenant, client) = (("AZURE_TENANT_ID", "tenant"), ("AZURE_CLIENT_ID", "id"));
    let nobody = [("AZURE_POD_IDENTITY_AUTHORITY_HOST", "http://127.0.0.1:1"), ("PATH", "/nonexistent")];
    let ways: [&[_]; 5] = [
        &[authority, tenant, client, ("AZURE_CLIENT_SECRET", "s&cret")],
        &[authority, tenant, client, ("AZURE_FEDERATED_TOKEN_FILE", &proof)],
        &[("IDENTITY_ENDPOINT", &msi), ("IDENTITY_HEADER", "s&cret")],
        &[("AZURE_POD_IDENTITY_AUTHORITY_HOST", &url)],
        &[nobody[0], ("PATH", &path)],
    ];
    for way in ways {
        assert_eq!(manifest(way).unwrap(), config, "{way:?}");
    }

    let secret = ("AZURE_CLIENT_SECRET", "hidden");
    let refusals: [(&[_], &[&str]); 3] = [
        (
            &[authority, ("AZURE_TENANT_ID", "elsewhere"), client, secret],
            &["denies access to cache \"buildkit\"", "with the token of client id", "AuthenticationFailed"],
        ),
        (&[authority, tenant, client, secret], &["gives no token: status 401 (AADSTS7000215"]),
        (&nobody, &["no Azure credentials", "AZURE_TENANT_ID", "127.0.0.1:1", "az: No such file"]),
    ];
    for (way, words) in refusals {
        let error = manifest(way).unwrap_err();
        assert_eq!(error.class(), ErrorClass::Auth, "{error}");
        for word in words {
            assert!(error.to_string().contains(word), "no {word:?} in: {error}");
        }
        assert!(!error.to_string().contains("hidden"), "{error}");
    }
}
