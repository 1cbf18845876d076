//! In the place of `keeper`, where no containerd can be asked.

use std::convert::Infallible;

use super::{Containerd, Error, KeptIn, Snapshotter};
use crate::digest::Digest;

/// There is none.
#[derive(Debug)]
pub(crate) struct Keeper(Infallible);

/// There is none.
#[derive(Debug)]
pub(super) struct Held;

impl Keeper {
    /// Refuses.
    pub(super) fn connect(_: &KeptIn) -> Result<Self, Error> {
        Err(Error::NoContainerd)
    }

    pub(super) fn held(&self) -> Result<Held, Error> {
        match self.0 {}
    }

    pub(super) fn read(&self, _: &str, _: &Held) -> Result<Option<(Containerd, Snapshotter)>, Error> {
        match self.0 {}
    }

    pub(crate) fn place(&self) -> String {
        match self.0 {}
    }

    pub(crate) fn is_known(&self, _: &Digest) -> Result<bool, Error> {
        match self.0 {}
    }

    pub(crate) fn hash(&self, _: &Digest, _: impl Fn(u64)) -> Result<Option<(u64, Digest)>, Error> {
        match self.0 {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_without_it_says_how_to_get_one() {
        let kept = KeptIn { address: "/run/containerd/containerd.sock".into(), namespace: "buildkit".into() };
        let error = Keeper::connect(&kept).unwrap_err();
        assert!(matches!(error, Error::NoContainerd), "{error}");
        assert!(error.to_string().contains("--features containerd"), "{error}");
    }
}
