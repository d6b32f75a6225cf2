//! What main decides. Nothing here has a clock, does IO or knows a pid. `tests/tidy.rs` checks the folder, and the
//! simulation plays it.
//!
//! `vocabulary` has the events and actions, `generation` one generation, and `generations` all of them. Each other file
//! is one part of their behaviour.

mod final_exits;
mod generation;
mod generations;
pub(crate) mod logger;
mod operators;
mod reload;
mod reload_by_shares;
mod renewal;
mod reports;
mod retired;
mod retiring;
mod vocabulary;

pub(crate) mod queue_emptying;
pub(crate) mod restart;
pub mod shared_ports;
pub(crate) mod worker_count;

pub use generations::Generations;
pub use operators::{farewell, hooks};
pub use vocabulary::{Action, Change, Event, Monitor, Note, Overview, Progress, Rejected, Settings, Standing, Verdict};
