//! Every random choice of a history: drawn from a seed, or taken from a record, so that a history can be replayed and
//! shrunk.

use std::time::Duration;

/// Where a history's choices come from.
#[derive(Debug)]
pub(crate) struct Choices {
    source: Source,
    taken: Vec<u64>,
}

#[derive(Debug)]
enum Source {
    Seed(u64),
    Record(std::vec::IntoIter<u64>),
}

impl Choices {
    pub(crate) fn from_seed(seed: u64) -> Choices {
        Choices { source: Source::Seed(seed), taken: Vec::with_capacity(512) }
    }

    /// The same choices again. Where the record ends, the tamest follow.
    pub(crate) fn replay(record: Vec<u64>) -> Choices {
        Choices { source: Source::Record(record.into_iter()), taken: Vec::new() }
    }

    /// All that were made so far.
    pub(crate) fn into_record(self) -> Vec<u64> {
        self.taken
    }

    /// A number from 0 to `bound` - 1. Whoever asks makes 0 the tamest choice, which is what shrinking tries.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        let choice = match &mut self.source {
            Source::Seed(state) => split_mix(state) % bound,
            Source::Record(record) => record.next().unwrap_or(0) % bound,
        };
        self.taken.push(choice);
        choice
    }

    pub(crate) fn one_in(&mut self, bound: u64) -> bool {
        self.below(bound) == bound - 1 && bound > 1
    }

    pub(crate) fn among<T: Clone>(&mut self, all: &[T]) -> T {
        all[self.below(all.len() as u64) as usize].clone()
    }

    pub(crate) fn millis(&mut self, all: &[u64]) -> Duration {
        Duration::from_millis(self.among(all))
    }

    /// How late something is noticed or delivered: mostly not at all.
    pub(crate) fn latency(&mut self) -> Duration {
        self.millis(&[0, 0, 0, 0, 1, 3, 20])
    }
}

/// splitmix64: small, and each seed gives a history of its own.
fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut mixed = *state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}
