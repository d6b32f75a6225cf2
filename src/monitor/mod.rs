//! The monitor: keeps the slots of one generation filled with workers.
//!
//! [`state`] decides and [`run`] performs. A monitor knows one generation, its own; what a generation means to the
//! others is main's business.

mod becoming_ready;
mod bypass;
mod final_exits;
mod log;
mod pacing;
mod roster;
pub mod run;
mod scaling;
pub mod state;
mod stopping;
mod vocabulary;
