//! What the processes tell each other, and what people are shown of it.

pub mod channel;
pub mod messages;
pub mod role;
pub mod status;
