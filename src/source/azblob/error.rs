//! What can go wrong with credentials for Azure.

use std::path::PathBuf;

/// Why Azure credentials cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AzureError {
    /// There are none anywhere.
    #[error(
        "no Azure credentials: write secret_access_key, set AZURE_TENANT_ID, AZURE_CLIENT_ID and \
         AZURE_CLIENT_SECRET, or log in with az (asked for a managed identity: {metadata}; az: {cli})"
    )]
    None {
        /// Why the instance's metadata gave none.
        metadata: String,
        /// Why the command line gave none.
        cli: String,
    },
    /// An account key that is none.
    #[error("secret_access_key is not the base64 of an account's key")]
    Key,
    /// The file of a workload's token cannot be read.
    #[error("cannot read {}, which AZURE_FEDERATED_TOKEN_FILE names: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A service that gave none.
    #[error("{service} gives no token: {reason}")]
    Service {
        /// Which service.
        service: String,
        /// What it said.
        reason: String,
    },
}
