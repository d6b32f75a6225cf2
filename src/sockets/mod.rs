//! Listening sockets: bound once by main, and held for its whole life; those that a program binds itself, too.

mod holder;
pub mod listener;
pub mod sharing;

pub use listener::{Listener, Refusal, bind};
