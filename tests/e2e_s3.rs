//! Caches that a real daemon exported to an S3 server: a root baked from one is warm, and whoever may not
//! read it, or asks for what is not there, is told what to do.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod support;

use support::cases::Origin;
use support::moto::{self, Moto};
use support::stored::Stored;
use support::tools;

struct Setup {
    stored: Stored,
    moto: Moto,
}

impl Setup {
    fn start(release: &str) -> Option<Self> {
        Some(Self { moto: Moto::start()?, stored: Stored::start(release)? })
    }

    /// Builds on an empty daemon, and exports to the bucket with these attributes.
    #[track_caller]
    fn export(&self, attributes: &str) -> Origin {
        let cache = self.moto.cache(attributes);
        let to = format!("{cache}{}", self.moto.key_attributes());
        self.stored.export("origin", &self.stored.case.request, &cache, &to)
    }

    /// Bakes with these variables of AWS, and asserts that the root is warm.
    #[track_caller]
    fn warms(&self, name: &str, cache: &str, origin: &Origin, variables: &[(&str, &str)]) {
        let root = self.stored.world.root(&self.stored.case, name);
        Stored::bake(cache, &[&origin.image], &root, variables).expect_success(name);
        self.stored.warms(&self.stored.case.request, origin, &root);
    }

    fn keys(&self) -> [(&str, &str); 2] {
        [("AWS_ACCESS_KEY_ID", &self.moto.key_id), ("AWS_SECRET_ACCESS_KEY", &self.moto.secret)]
    }
}

/// Defaults, keys from the environment; and what the error of each thing that is wrong says.
#[test]
fn a_bucket_warms_and_says_what_is_wrong() {
    let Some(setup) = Setup::start(tools::NEWEST) else { return };
    let origin = setup.export("");
    setup.warms("baked", &origin.cache, &origin, &setup.keys());

    let refused = |cache: &str, variables: &[(&str, &str)], code: i32, words: &[&str]| {
        let secrets = [&*setup.moto.secret, "hidden"];
        setup.stored.refused(&origin, cache, variables, (code, words), &secrets);
    };
    let (keys, id) = (setup.keys(), setup.moto.key_id.as_str());
    let named = setup.moto.cache(",name=other");
    refused(&named, &keys, 3, &["no cache \"other\" in bucket cache", "manifests/other"]);
    refused(&setup.moto.cache(",bucket=others"), &keys, 3, &["no bucket others", "NoSuchBucket"]);
    refused(&origin.cache, &[], 4, &["no AWS credentials", "AWS_ACCESS_KEY_ID", "access_key_id"]);
    let wrong = [("AWS_ACCESS_KEY_ID", id), ("AWS_SECRET_ACCESS_KEY", "hidden")];
    refused(&origin.cache, &wrong, 4, &["SignatureDoesNotMatch", id, "from the environment"]);
    let unknown = [("AWS_ACCESS_KEY_ID", "AKIAUNKNOWN"), ("AWS_SECRET_ACCESS_KEY", "hidden")];
    refused(&origin.cache, &unknown, 4, &["InvalidAccessKeyId", "AKIAUNKNOWN"]);
    refused("type=s3,region=us-east-1", &keys, 2, &["type=s3 needs bucket=… or $AWS_BUCKET"]);

    // What the bucket holds is not taken on trust: a blob that is another, and one that is gone.
    let blob = setup.moto.keys().into_iter().find(|key| key.starts_with("blobs/sha256:")).unwrap();
    setup.moto.replace(&blob, Some(b"something else"));
    refused(&origin.cache, &keys, 5, &["expected", "bytes, found 14"]);
    setup.moto.replace(&blob, None);
    refused(&origin.cache, &keys, 3, &[blob.as_str(), "export the cache again"]);
    setup.moto.replace("manifests/buildkit", Some(br#"{"layers":[{"blob":"x"}]}"#));
    refused(&origin.cache, &keys, 5, &["the cache config is not valid"]);
}

/// Prefixes, several names, keys in the attributes, in a profile, and for a role.
#[test]
fn names_prefixes_and_credentials() {
    let Some(setup) = Setup::start(tools::NEWEST) else { return };
    let prefixes = ",prefix=team a/,manifests_prefix=m/,blobs_prefix=b/";
    let origin = setup.export(&format!("{prefixes},name=main;feature/ä"));
    let world = &setup.stored.world;
    let cache = |name: &str| setup.moto.cache(&format!("{prefixes},name={name}"));
    let found = setup.moto.keys();
    assert!(found.contains(&"team a/m/feature/ä".to_owned()), "{found:?}");

    let warms = |name: &str, cache: &str, variables: &[_]| setup.warms(name, cache, &origin, variables);
    // Of several names the first counts, as it does for the daemon's own import.
    warms("attributes", &format!("{}{}", cache("feature/ä;none"), setup.moto.key_attributes()), &[]);

    // The bucket and its region come from the environment, the keys from a profile.
    let credentials = format!(
        "[ci]\naws_access_key_id = {}\naws_secret_access_key = {}\n",
        setup.moto.key_id, setup.moto.secret
    );
    let credentials = world.scratch.write("aws/credentials", credentials);
    let cache = cache("main").replace("region=us-east-1,bucket=cache,", "");
    let profile = [
        ("AWS_SHARED_CREDENTIALS_FILE", credentials.to_str().unwrap()),
        ("AWS_PROFILE", "ci"),
        ("AWS_REGION", moto::REGION),
        ("AWS_BUCKET", moto::BUCKET),
    ];
    warms("profile", &cache, &profile);

    // A role, for the keys of a profile, and for a token in a file.
    let config = format!("[profile role]\nrole_arn = {}\nsource_profile = ci\n", moto::ROLE);
    let config = world.scratch.write("aws/config", config);
    let role = [
        ("AWS_CONFIG_FILE", config.to_str().unwrap()),
        ("AWS_ENDPOINT_URL_STS", setup.moto.url()),
        ("AWS_PROFILE", "role"),
    ];
    warms("role", &cache, &[&profile[..1], &profile[2..], &role].concat());
    let token = world.scratch.write("aws/token", "of an identity provider\n");
    let identity = [
        ("AWS_WEB_IDENTITY_TOKEN_FILE", token.to_str().unwrap()),
        ("AWS_ROLE_ARN", moto::ROLE),
        ("AWS_ENDPOINT_URL_STS", setup.moto.url()),
    ];
    // It is the token that shows who asks for the role; with the role's keys everything has to be signed.
    setup.moto.let_in_unsigned(1);
    warms("identity", &cache, &[&profile[2..], &identity].concat());
}

#[test]
fn a_bucket_that_an_old_release_wrote() {
    let Some(setup) = Setup::start("v0.17.3") else { return };
    let origin = setup.export("");
    setup.warms("baked", &origin.cache, &origin, &setup.keys());
}
