//! The processes that a monitor starts, adopts and reaps: the one room that knows pids.

pub(crate) mod adopted;
pub(crate) mod roster;
