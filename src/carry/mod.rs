//! How what main knows is written down for the main that takes its place, where serde's own forms do not do.
//!
//! Both are the same process on the same clock, one after the other.

pub mod bytes;
pub mod moment;
pub mod pairs;
