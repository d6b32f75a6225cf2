//! How a worker's readiness becomes known.

pub mod ack;
pub mod notify;
pub mod watch;
