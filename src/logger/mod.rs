//! The logger: reads the pipes of workers, and writes whole lines into files that it rotates.
//!
//! ```text
//! pipe ──splice──▶ room of the pipe ──whole lines──▶ half of a buffer ──sendfile──▶ FILE
//! ```
//!
//! Rooms and buffers lie in memory that main holds too ([`memory`]). Each step writes there how far it has come, in the same
//! system call or as one commit, so a logger that is killed at any moment loses no line and writes none twice; the next one
//! goes on with the same memory. Main holds the pipes, so workers notice nothing. (One exception: what is not a regular
//! file, as a terminal, may get the lines of one write twice.)
//!
//! A thread for each file writes, because a file may hang. The loop never waits for it: it fills the other half of the
//! buffer, and if that is full too, drops lines and counts them.

pub mod decide;
pub mod run;

mod compress;
pub(crate) mod memory;
mod writer;
