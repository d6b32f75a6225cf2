//! How a worker's readiness becomes known.

pub mod notify;
pub mod watch;
