//! Whether a worker is seen accepting. Read from /proc; the worker need not say anything.
//!
//! The proof is that one of its threads, or of its descendants' threads, waits on a listener, or that one of its
//! descriptors is a connection that a listener has accepted. Holding a listener is no proof, nor is having it in an
//! epoll set that no thread looks at.

mod bypass;
mod listeners;
mod look;
mod proc;
mod wait;

pub use bypass::{Bypass, Own, bypass, own_listeners};
pub use listeners::Listeners;
pub use look::{Hidden, Sight, family, look};

#[cfg(test)]
mod tests;
