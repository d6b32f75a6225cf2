//! What the tests are written with.
#![allow(dead_code, unused_imports, reason = "a tool box: not every tool is in use at every time")]

mod descriptors;
mod executables;
mod mold;
mod output;
mod panzer;
mod patterns;
mod ports;
mod processes;
mod requirements;
mod status;
mod tracing;
mod turns;
mod waiting;

pub use crate::load::http::{Address, Response, get};
pub use descriptors::descriptor_of;
pub use executables::{copy_executable, set_mode, write_executable};
pub use mold::{as_mold, example_mold, in_this_test};
pub use output::Mark;
pub use panzer::{Builder, Panzer, heed_ctrl_c};
pub use patterns::matches;
pub use ports::free_port;
pub use processes::{Process, descendants, kill_exactly};
pub use requirements::{require, require_module, there_is, with_real_interpreter};
pub use status::{Generation, Status, Worker};
pub use tracing::Tracer;
pub use turns::turn_under_load;
pub use waiting::{eventually, eventually_some, eventually_some_every};
