//! What a cloud's registry is shown where no file has anything for it.
//!
//! ```text
//! <account>.dkr.ecr.<region>.amazonaws.com   docker-credential-ecr-login, if it is on the PATH
//!                                            aws ecr get-login-password,  if it is on the PATH
//! ghcr.io                                    $GITHUB_TOKEN
//! ```
//!
//! Both programs of AWS find the instance's role by themselves. The helper says "not found" whatever went wrong,
//! and keeps the reason in a log of its own; any other failure of either ends the search.

use std::path::PathBuf;

use super::error::CredentialError;
use super::{Credential, Credentials, Login, Origin};
use crate::source::Error;

/// GitHub's container registry.
pub(in crate::source) const GHCR: &str = "ghcr.io";
/// The variable in which a workflow has its token.
pub(in crate::source) const GITHUB_TOKEN: &str = "GITHUB_TOKEN";
/// The user name that GitHub takes with any token.
const GITHUB_USER: &str = "x-access-token";
/// The credential helper of AWS.
pub(in crate::source) const ECR_HELPER: &str = "docker-credential-ecr-login";
/// What asks ECR for a password, for messages.
pub(in crate::source) const AWS_CLI: &str = "aws ecr get-login-password";
/// What AWS's APIs call requests that are too many.
const THROTTLED: [&str; 3] = ["ThrottlingException", "TooManyRequests", "RequestLimitExceeded"];
/// The user name that goes with ECR's passwords.
const ECR_USER: &str = "AWS";
/// What the hosts of ECR's private registries end with.
const ECR_DOMAINS: [&str; 4] = ["amazonaws.com", "amazonaws.com.cn", "on.aws", "on.amazonwebservices.com.cn"];

/// The region of a private ECR registry; `None` for every other host.
pub(in crate::source) fn ecr_region(host: &str) -> Option<&str> {
    let (account, rest) = host.split_once('.')?;
    if account.len() != 12 || !account.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let rest = ["dkr.ecr.", "dkr.ecr-fips.", "dkr-ecr.", "dkr-ecr-fips."]
        .iter()
        .find_map(|service| rest.strip_prefix(service))?;
    let (region, domain) = rest.split_once('.')?;
    (!region.is_empty() && ECR_DOMAINS.contains(&domain)).then_some(region)
}

impl Credentials {
    /// Credentials for a registry that no file knows.
    pub(super) fn of_cloud(
        &self,
        registry: &str,
        refused: Option<&Credential>,
    ) -> Result<Option<Credential>, Error> {
        if registry == GHCR {
            return Ok(self.env.text(GITHUB_TOKEN).map(|token| {
                let user = self.env.text("GITHUB_ACTOR").unwrap_or(GITHUB_USER);
                Credential::new(Login::password(user, token), Origin::GithubToken)
            }));
        }
        match ecr_region(registry) {
            Some(region) => self.of_ecr(registry, region, refused),
            None => Ok(None),
        }
    }

    fn of_ecr(
        &self,
        registry: &str,
        region: &str,
        refused: Option<&Credential>,
    ) -> Result<Option<Credential>, Error> {
        let helper = self.on_path(ECR_HELPER);
        if let Some(program) = &helper {
            let ask = || self.ask_helper(ECR_HELPER, self.command(program), registry, registry);
            if let Some(found) = self.asked.once(ECR_HELPER, registry, refused, ask)? {
                return Ok(Some(found));
            }
        }
        if let Some(program) = self.on_path("aws") {
            let ask = || self.ask_aws(program, registry, region).map(Some);
            return self.asked.once(AWS_CLI, registry, refused, ask);
        }
        // It was there, so credentials were meant to be had.
        helper.map_or(Ok(None), |_| Err(CredentialError::EcrHelper { host: registry.to_owned() }.into()))
    }

    fn ask_aws(&self, program: PathBuf, registry: &str, region: &str) -> Result<Credential, Error> {
        let mut command = self.command(program);
        command.args(["ecr", "get-login-password", "--region", region]);
        let ended = self.run(AWS_CLI, &mut command, registry, registry)?;
        if !ended.status.success() {
            let stderr = String::from_utf8_lossy(&ended.stderr);
            let is_throttled = THROTTLED.iter().any(|code| stderr.contains(code));
            let failed = ended.failed(AWS_CLI, registry);
            return Err(if is_throttled {
                CredentialError::Throttled(Box::new(failed)).into()
            } else {
                failed.into()
            });
        }
        let password = std::str::from_utf8(&ended.stdout).unwrap_or_default().trim();
        if password.is_empty() || !password.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(CredentialError::NoPassword { host: registry.to_owned() }.into());
        }
        Ok(Credential::new(Login::password(ECR_USER, password), Origin::AwsCli))
    }

    /// Where the `PATH` has a program.
    fn on_path(&self, name: &str) -> Option<PathBuf> {
        let path = self.env.path("PATH")?;
        std::env::split_paths(&path)
            .filter(|dir| dir.is_absolute())
            .map(|dir| dir.join(name))
            .find(|program| program.is_file())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_the_hosts_of_ecr() {
        let cases = [
            ("123456789012.dkr.ecr.eu-central-1.amazonaws.com", Some("eu-central-1")),
            ("123456789012.dkr.ecr-fips.us-gov-west-1.amazonaws.com", Some("us-gov-west-1")),
            ("123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn", Some("cn-north-1")),
            ("123456789012.dkr-ecr.us-east-1.on.aws", Some("us-east-1")),
            ("123456789012.dkr.ecr.us-east-1.amazonaws.com.evil.example", None),
            ("123456789012.dkr.ecr.us-east-1.evil.example", None),
            ("12345678901.dkr.ecr.us-east-1.amazonaws.com", None),
            ("a23456789012.dkr.ecr.us-east-1.amazonaws.com", None),
            ("123456789012.dkr.ecr..amazonaws.com", None),
            ("123456789012.dkr.ecr.us-east-1.amazonaws.com:5000", None),
            ("public.ecr.aws", None),
            ("ghcr.io", None),
        ];
        for (host, region) in cases {
            assert_eq!(ecr_region(host), region, "{host}");
        }
    }
}
