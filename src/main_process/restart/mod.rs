//! Main becomes another build of itself, by an exec in place.

pub(crate) mod document;
pub(crate) mod hand_over;
pub mod preflight;
