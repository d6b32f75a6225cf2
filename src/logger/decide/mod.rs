//! What the logger decides: pure, without clock and IO.

pub(crate) mod lines;
pub(crate) mod rotation;
