//! What operators have asked main to do besides its work: commands of theirs, and a wait before a stop.

pub mod farewell;
pub mod hooks;
