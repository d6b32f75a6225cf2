//! Main: owns the listeners, starts a monitor for each generation, and retires the old one when the new one is ready.
//!
//! [`state`] decides; [`run`] has the loop, `perform` does what was decided, `heard` is what its children tell, and `asked`
//! what people want of it; `parts` are what it is made of. Main never runs the program's code and never waits for anything
//! but its poller; what may hang (a path on a dead file system, an exec) is done by a monitor, or by a [`planner`].

mod accept_queues;
mod ack_paths;
mod asked;
mod binding;
mod carried;
mod children;
mod claims;
mod comparing;
mod conflicts;
mod counters;
mod draining;
mod dump;
mod emptying;
mod families;
mod final_exits;
mod generation;
mod guard;
mod heard;
mod held;
mod helper;
mod inquiry;
mod log;
mod operators;
mod orphans;
mod own_queues;
mod parts;
mod perform;
mod pidfile;
pub mod planner;
pub mod preflight;
mod reloading;
mod renewal;
mod replanning;
mod reports;
mod restart;
mod rolling;
pub mod run;
mod scaling;
pub mod shares;
mod start;
mod starter;
pub mod state;
mod steering;
mod successor;
mod unix_guard;
mod upward;
mod vocabulary;
