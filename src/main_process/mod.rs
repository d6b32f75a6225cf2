//! Main: owns the listeners, starts a monitor for each generation, and retires the old one when the new one is ready.
//!
//! [`state`] decides and [`run`] performs. Main never runs the program's code and never waits for anything but its
//! poller; what may hang (a path on a dead file system, an exec) is done by a monitor.

mod children;
mod inquiry;
mod log;
mod pidfile;
pub mod run;
mod shares;
pub mod state;
mod vocabulary;
