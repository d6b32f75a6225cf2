//! The messages between main and the logger, over the same kind of channel as with a monitor.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::monitor::channel::Message;
use crate::config::{Logs, Stream};

/// Version of the layout of the logger's memory. A logger cannot go on with memory of another layout.
pub const LAYOUT: u32 = 1;

/// Limit of the size of that memory, which counts as a file.
pub const MEMORY_BYTES: u64 = 1100 << 20;

/// An order of main to the logger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// Write like this from now on.
    Settings {
        /// Destinations and form.
        logs: Box<Logs>,
        /// How long those who write may go on once main is gone.
        patience: Duration,
    },
    /// Read this pipe, which comes as a descriptor.
    Take(Source),
    /// Report the last lines of a worker; answered with [`Report::Last`].
    Last {
        /// See [`Source::pair`].
        pair: u64,
    },
    /// Open the files anew.
    Reopen,
    /// Read and write everything that is there, then exit.
    Finish,
}

/// A pipe that a worker writes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// Number of the worker's pair of pipes. No other worker of this main has had it.
    pub pair: u64,
    /// Which pipe of the pair this is.
    pub stream: Stream,
    /// The worker's slot; None for a mold.
    pub worker: Option<u32>,
    /// Its generation.
    pub generation: u32,
}

impl Source {
    /// A number for this pipe alone. It is never 0.
    pub fn id(&self) -> u64 {
        2 * self.pair + self.stream as u64 + 1
    }
}

/// A report of the logger to main.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Report {
    /// Nobody writes to this pipe any more, and all that it held has been taken.
    Ended {
        /// [`Source::id`].
        id: u64,
    },
    /// The last lines of a worker.
    Last {
        /// As in the order.
        pair: u64,
        /// The lines; empty if there are none.
        lines: Vec<String>,
    },
}

impl Message for Order {
    fn carries(&self, descriptors: usize) -> bool {
        descriptors == usize::from(matches!(self, Order::Take(_)))
    }
}

impl Message for Report {
    fn carries(&self, descriptors: usize) -> bool {
        descriptors == 0
    }
}
