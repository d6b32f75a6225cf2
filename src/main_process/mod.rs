//! Main: owns the listeners, starts a monitor for each generation, and retires the old one when the new one is ready.
//!
//! [`state`] decides and [`run`] performs. Main never runs the program's code and never waits for anything but its
//! poller; what may hang (a path on a dead file system, an exec) is done by a monitor.

mod accept_queues;
mod ack_paths;
mod binding;
mod children;
mod counters;
mod dump;
mod emptying;
mod generation;
mod guard;
mod inquiry;
mod log;
mod operators;
mod own_queues;
mod pidfile;
mod renewal;
mod rolling;
pub mod run;
mod scaling;
mod shares;
pub mod state;
mod unix_guard;
mod upward;
mod vocabulary;
