//! Queues of single slots (`per-worker`): how many there are, and which of them get new connections.

pub(crate) mod count;
pub(crate) mod steer;
