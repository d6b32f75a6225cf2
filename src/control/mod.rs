//! What the processes tell each other, and what people are shown of it.

pub mod activation;
pub mod channel;
pub mod messages;
pub mod places;
pub mod requests;
pub mod role;
pub mod server;
pub mod status;
