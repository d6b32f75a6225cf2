//! Listening sockets: bound once by main, and held for its whole life.

mod holder;
pub mod listener;

pub use listener::{Listener, Refusal, bind};
