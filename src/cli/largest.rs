//! How much of a long table is shown.

use clap::Args;

/// What a table shows of more than one reads.
#[derive(Debug, Clone, Copy, Args)]
pub(super) struct Largest {
    /// How many to show of more, the largest; of the other ones only how many they are, and their bytes
    #[arg(long, value_name = "N", default_value_t = 100, conflicts_with = "all")]
    largest: usize,

    /// Show all, however many there are
    #[arg(long)]
    all: bool,
}

impl Largest {
    /// So many at most.
    pub(super) fn limit(self) -> usize {
        if self.all { usize::MAX } else { self.largest }
    }
}
