//! Decisions of the logger: pure, without clock and IO.

pub mod delivery;
pub mod lines;
pub mod rotation;
pub mod store;
