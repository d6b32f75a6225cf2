//! Decisions of the logger: pure, without clock and IO.

pub(crate) mod lines;
pub(crate) mod rotation;
