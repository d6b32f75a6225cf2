//! Listeners that a worker has shut down, or whose queue it has made shorter, are put right again.

pub(crate) mod flags;
pub(crate) mod tcp;
pub(crate) mod unix;
pub(crate) mod watch;
