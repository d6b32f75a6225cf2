//! What a worker is: the program it executes, the environment it is given, how it is started and why it ended.
//!
//! This knows nothing of slots, generations' states or loops; a monitor's own start goes through [`spawn`] as well.

pub mod cause;
pub mod dialects;
pub mod env_file;
pub mod environment;
pub mod findings;
pub mod identity;
pub mod kin;
pub mod program;
pub mod refusal;
pub mod spawn;
