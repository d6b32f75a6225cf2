//! The processes that a monitor starts, adopts and reaps. Only this room knows pids.

pub(crate) mod adopted;
pub(crate) mod outputs;
pub(crate) mod roster;
