//! What every source over a network needs of HTTP.
//!
//! ```text
//! blob        one blob: resumed where it broke off, proven at the end
//!   retry     waits, and when to give up
//!   transport base URL, redirects, proxies, which failures may pass
//!     tls     who is trusted
//!     reply   what an answer means, and how much of it is read
//! ```
//!
//! What to ask for, and who is asking, is for each source to say.

mod blob;
mod pool;
mod reply;
mod retry;
mod text;
mod tls;
mod transport;

use std::path::PathBuf;
use std::time::Duration;

use super::credentials::{Environment, Given};

pub(super) use blob::Download;
pub use pool::Pool;
pub(super) use reply::Reply;
pub(super) use retry::{Attempts, Failure};
pub use retry::{RetryPolicy, Stop};
pub(super) use text::{discreet_url, element, one_line, percent_encode};
pub(super) use transport::{Method, Transport, host_of, is_loopback, origin, parse_uri};

/// How to reach sources over a network.
#[derive(Debug, Clone)]
pub struct Options {
    /// Whether plain http is allowed where a registry is not on loopback and answers no https.
    pub insecure: bool,
    /// Credentials that go before all others, for their registry.
    pub given: Option<Given>,
    /// Where credentials are looked for.
    pub env: Environment,
    /// Directories with one of their own per registry, in which `*.crt` are trusted for it.
    pub certs_dirs: Vec<PathBuf>,
    /// How often to make failed requests again.
    pub retry: RetryPolicy,
    /// How long to wait for a connection.
    pub connect_timeout: Duration,
    /// How long a server may send nothing before the connection counts as broken.
    pub stall_timeout: Duration,
    /// How long a credential helper may take.
    pub helper_timeout: Duration,
    /// Ends requests before their time.
    pub stop: Stop,
    /// What sources opened with these options share: connections and tokens. Where anything else here is
    /// changed, a new one belongs here too.
    pub pool: Pool,
}

impl Default for Options {
    /// The process's environment, and docker's and podman's certificate directories.
    fn default() -> Self {
        Self {
            insecure: false,
            given: None,
            env: Environment::of_process(),
            certs_dirs: vec!["/etc/docker/certs.d".into(), "/etc/containers/certs.d".into()],
            retry: RetryPolicy::default(),
            connect_timeout: seconds(20),
            stall_timeout: seconds(30),
            helper_timeout: seconds(30),
            stop: Stop::default(),
            pool: Pool::default(),
        }
    }
}

const fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}
