//! In the place of `containerd`, where that is not built in.

use std::convert::Infallible;

use crate::gather::Image;
use crate::layer::Usage;
use crate::progress::Progress;
use crate::source::Source;

use super::plan::Plan;
use super::{Cancel, Containerd, Error, Options};

/// There is none.
pub(super) struct Held(Infallible);

impl Held {
    pub(super) fn commit(&self) -> Result<(), Error> {
        match self.0 {}
    }

    pub(super) fn settle(self) -> Option<Error> {
        match self.0 {}
    }
}

/// Refuses.
pub(super) fn connect(_: &Containerd, _: &Options, _: &Cancel) -> Result<Infallible, Error> {
    Err(Error::NoContainerd)
}

/// Is never reached.
pub(super) fn keep(
    client: Infallible,
    _: &Plan,
    _: &[Box<dyn Source>],
    _: &[Image],
    _: &Options,
    _: &Cancel,
    _: &dyn Progress,
) -> Result<(Vec<Usage>, Held), Error> {
    match client {}
}
