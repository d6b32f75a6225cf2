//! Whether a worker is seen accepting: known through /proc, without a word from the worker.
//!
//! It is proof that a thread of it, or of a descendant, waits on a listener, or that a connection which came
//! through one is among its descriptors. To hold a listener is none, nor to have it in an epoll set that nobody
//! looks at.

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
