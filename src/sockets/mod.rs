//! Listening sockets: bound once by main, and held for its whole life; those that a program binds itself, too.

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
