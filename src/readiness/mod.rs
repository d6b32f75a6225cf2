//! How panzer learns that a worker is ready.

pub mod ack;
pub mod notify;
pub mod watch;
