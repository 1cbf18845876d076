//! What registries that are opened together share: connections per host, tokens per repository.
//!
//! Three hundred tags of one repository are three hundred [`Registry`](super::Registry)s, but one
//! TLS handshake per connection that is in use, one set of trusted certificates, one password asked of a
//! credential helper, and one token.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::auth::Auth;
use crate::oci::Reference;
use crate::source::Error;
use crate::source::credentials::Credentials;
use crate::source::http::{Options, Transport};

/// Connections and tokens; clones share them.
#[derive(Clone, Default)]
pub struct Pool(Arc<Mutex<Shared>>);

#[derive(Default)]
struct Shared {
    /// By host and port, and whether plain http is allowed.
    transports: HashMap<(String, bool), Arc<Transport>>,
    /// By registry and repository, as references name them.
    auths: HashMap<(String, String, bool), Arc<Auth>>,
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("registries", &self.lock().transports.len()).finish()
    }
}

impl Pool {
    fn lock(&self) -> MutexGuard<'_, Shared> {
        // Maps are changed by one insertion each, so a panic elsewhere leaves nothing half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connections to a registry.
    pub(super) fn transport(&self, authority: &str, options: &Options) -> Result<Arc<Transport>, Error> {
        let mut shared = self.lock();
        let key = (authority.to_owned(), options.insecure);
        if let Some(transport) = shared.transports.get(&key) {
            return Ok(Arc::clone(transport));
        }
        let transport = Arc::new(Transport::new(authority, options)?);
        shared.transports.insert(key, Arc::clone(&transport));
        Ok(transport)
    }

    /// What a repository is shown. Apart for those that may be asked in the clear: what is got over one
    /// kind of connection is not shown over the other.
    pub(super) fn auth(&self, reference: &Reference, options: &Options) -> Arc<Auth> {
        let (registry, repository) = (reference.registry(), reference.repository());
        let key = (registry.to_owned(), repository.to_owned(), options.insecure);
        let new = || {
            let credentials = Credentials::new(options.env.clone(), options.helper_timeout);
            Arc::new(Auth::new(credentials, registry, repository))
        };
        Arc::clone(self.lock().auths.entry(key).or_insert_with(new))
    }
}
