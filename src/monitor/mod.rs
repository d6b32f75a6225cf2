//! The monitor: keeps the slots of one generation filled with workers.
//!
//! [`state`] decides; [`run`] has the loop, `perform` does what was decided, and `orders` is what main wants of it. A
//! monitor knows one generation, its own; what a generation means to the others is main's business.

mod adopted;
mod becoming_ready;
mod bypass;
mod claims;
mod final_exits;
mod limits;
mod log;
mod orders;
mod pacing;
mod perform;
mod roster;
pub mod run;
mod scaling;
mod start;
pub mod state;
mod stopping;
mod suspension;
mod vocabulary;
