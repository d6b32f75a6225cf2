//! Listeners that a worker shuts down or cuts are put right again.

pub(crate) mod tcp;
pub(crate) mod unix;
pub(crate) mod watch;
