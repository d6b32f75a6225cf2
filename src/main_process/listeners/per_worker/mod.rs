//! Per-slot queues (`per-worker`): their number, and which of them get new connections.

pub(crate) mod count;
pub(crate) mod steer;

use serde::{Deserialize, Serialize};

use crate::main_process::decide::queue_emptying::Emptyings;

/// State of the per-slot queues.
#[derive(Serialize, Deserialize)]
pub(crate) struct PerWorker {
    /// Number of slots whose queues get new connections.
    pub(crate) active: u32,
    /// The last order to the kernel.
    #[serde(skip)]
    pub(crate) steered: Option<Served>,
    pub(crate) emptyings: Emptyings,
}

/// The slots whose queues get new connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Served {
    /// Number of slots, counted from slot 0.
    pub(crate) active: u32,
    /// Slots among them whose worker has ended for good. Their queues get no new connections.
    pub(crate) ended: Vec<u32>,
    /// The serving generation. Its plan says which addresses have more than one queue.
    pub(crate) serving: Option<u32>,
}
