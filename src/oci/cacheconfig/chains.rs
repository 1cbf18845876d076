//! Chains of layers: what a result is made of, as far as anything could mount it.

use super::{Error, RawLayer};

/// The most layers that overlayfs stacks (`OVL_MAX_STACK`): nothing on more could be mounted.
pub(super) const MAX_HEIGHT: usize = 500;
/// The most layers in the chains of all results together: 128 MiB of indexes. Ten thousand results on
/// a hundred layers each are a million.
pub(super) const MAX_CHAINED: usize = 1 << 24;

/// The config's layers, checked.
pub(super) struct Chains<'a> {
    pub(super) layers: &'a [RawLayer],
    /// Per layer an index into the distinct blobs.
    pub(super) blobs: Vec<usize>,
    /// Per layer how many it is with all its parents.
    pub(super) heights: Vec<usize>,
    /// Layers in the chains that were given out.
    pub(super) total: usize,
}

impl Chains<'_> {
    /// The blobs of a layer and its parents, lowest first.
    pub(super) fn of(&mut self, layer: usize) -> Result<Vec<usize>, Error> {
        self.count(self.heights[layer], i64::try_from(layer).unwrap_or_default())?;
        let mut chain = vec![0; self.heights[layer]];
        let mut at = Some(layer);
        for slot in chain.iter_mut().rev() {
            if let Some(layer) = at {
                *slot = self.blobs[layer];
                at = usize::try_from(self.layers[layer].parent).ok();
            }
        }
        Ok(chain)
    }

    /// Refuses a chain, of which `index` is the top, that nothing could mount, or one too many of them.
    pub(super) fn count(&mut self, height: usize, index: i64) -> Result<(), Error> {
        if height > MAX_HEIGHT {
            return Err(Error::TooHigh { index, height, limit: MAX_HEIGHT });
        }
        self.total += height;
        if self.total > MAX_CHAINED {
            return Err(Error::TooManyLayers { limit: MAX_CHAINED });
        }
        Ok(())
    }
}
