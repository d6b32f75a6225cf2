//! Wishes of operators besides main's work: commands of theirs, and a wait before a stop.

pub mod farewell;
pub mod hooks;
