//! Listening sockets. Main binds them once and holds them for its whole life. It also holds sockets that a program
//! binds itself.

pub mod activation;
pub mod bind;
mod holder;
pub mod inherited;
pub mod listener;
pub mod queues;
pub mod sharing;
pub mod unix_path;

pub use bind::{Refusal, bind};
pub use listener::Listener;
