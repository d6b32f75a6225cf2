//! The protocol between main and a monitor: orders go down, reports go up.

pub mod channel;
pub mod messages;
