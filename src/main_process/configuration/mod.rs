//! The plan in force, and how it is read again.

pub(crate) mod reread;
