//! People: their signals and requests, and what they are told.

pub(crate) mod counters;
pub(crate) mod dump;
pub(crate) mod inquiry;
pub(crate) mod messages;
pub(crate) mod requests;
pub(crate) mod waiting;
