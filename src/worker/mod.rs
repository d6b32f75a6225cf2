//! The worker: the program that it executes, its environment, how it is started, and why it ended.
//!
//! This room does not know slots, states of generations, or loops. Main starts monitors through [`spawn`] too.

pub mod cause;
mod child;
pub mod dialects;
pub mod env_file;
pub mod environment;
pub mod findings;
pub mod identity;
pub mod kin;
pub mod program;
pub mod refusal;
pub mod resources;
pub mod spawn;
pub mod step;
