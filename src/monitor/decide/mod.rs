//! What a monitor decides. Nothing here has a clock, does IO or knows a pid: `tests/tidy.rs` checks the folder, and the
//! simulation plays it.
//!
//! `vocabulary` has the events and actions, `slot` one slot, `slots` all of them. Each other file is one part of their
//! behaviour.

mod becoming_ready;
mod bypass;
mod final_exits;
mod limits;
mod mold;
mod pacing;
mod recycling;
mod slot;
mod slots;
mod stopping;
mod suspension;
mod tickets;
mod vocabulary;
mod watchdog;
mod worker_count;

pub use slots::Slots;
pub use vocabulary::{Action, Event, Note, Phase, Settings, View, Watch, Worker, Worn};
