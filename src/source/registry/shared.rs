//! What registries that are opened together share: connections per host, tokens per repository.
//!
//! Three hundred tags of one repository are three hundred [`Registry`](super::Registry)s, but one
//! TLS handshake per connection that is in use, one set of trusted certificates, and one token. One answer of a
//! credential helper does for all repositories of a host.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::auth::Auth;
use crate::oci::Reference;
use crate::source::Error;
use crate::source::credentials::Credentials;
use crate::source::http::{Options, Transport};

/// Connections and tokens.
#[derive(Default)]
pub(super) struct Shared(Mutex<Maps>);

#[derive(Default)]
struct Maps {
    /// By host and port, and whether plain http is allowed.
    transports: HashMap<(String, bool), Arc<Transport>>,
    /// By registry and repository, as references name them.
    auths: HashMap<(String, String, bool), Arc<Auth>>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Maps> {
        // Maps are changed by one insertion each, so a panic elsewhere leaves nothing half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connections to a registry.
    pub(super) fn transport(&self, authority: &str, options: &Options) -> Result<Arc<Transport>, Error> {
        let mut maps = self.lock();
        let key = (authority.to_owned(), options.insecure);
        if let Some(transport) = maps.transports.get(&key) {
            return Ok(Arc::clone(transport));
        }
        let transport = Arc::new(Transport::new(authority, options)?);
        maps.transports.insert(key, Arc::clone(&transport));
        Ok(transport)
    }

    /// What a repository is shown. Apart for those that may be asked in the clear: what is got over one
    /// kind of connection is not shown over the other.
    pub(super) fn auth(&self, reference: &Reference, options: &Options) -> Arc<Auth> {
        let (registry, repository) = (reference.registry(), reference.repository());
        let key = (registry.to_owned(), repository.to_owned(), options.insecure);
        let new = || {
            let credentials = Credentials::new(options);
            Arc::new(Auth::new(credentials, registry, repository))
        };
        Arc::clone(self.lock().auths.entry(key).or_insert_with(new))
    }
}
