//! What sources that are opened with the same options share.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

/// One value of each type that a kind of source shares, made when it is first asked for; clones have the same.
#[derive(Clone, Default)]
pub struct Pool(Arc<Mutex<HashMap<TypeId, Arc<dyn Any + Send + Sync>>>>);

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").finish_non_exhaustive()
    }
}

impl Pool {
    /// The value of type `T`.
    pub(in crate::source) fn shared<T: Any + Default + Send + Sync>(&self) -> Arc<T> {
        // The map is changed by one insertion, so a panic elsewhere leaves nothing half done.
        let mut values = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let value = values.entry(TypeId::of::<T>()).or_insert_with(|| Arc::new(T::default()));
        // It is of that type, which is its key.
        Arc::clone(value).downcast().unwrap_or_default()
    }
}
