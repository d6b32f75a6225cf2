//! The configuration: command line, environment and file become one validated [`Plan`].
//!
//! Every role of a generation gets exactly the plan that main validated. It travels as JSON in a memfd.

pub mod address;
pub mod control;
pub mod duration;
pub mod files;
pub mod handover;
pub mod hooks;
pub mod limits;
pub mod logs;
pub mod number;
pub mod placeholders;
mod plan;
pub mod resources;
pub mod run_as;
pub mod schedule;
pub mod share_ports;
pub mod size;
pub mod text;
pub mod tuning;

pub use address::{Access, Address, Listen, MAX_LISTENERS};
pub use control::{Control, ControlAccess, Right};
pub use handover::{Dialect, Handover, ListenAs, ListenPid};
pub use hooks::{Hook, HookEvent, Hooks};
pub use limits::{
    DEFAULT_DRAINING, ExitCodes, FinalExit, FinalExits, MAX_DRAINING, Reason, Recycling, Refork, ReforkAfter,
    RespawnLimit, StartDelay,
};
pub use logs::{LogFile, LogFormat, Logs, Stream};
pub use plan::{EnvFile, MAX_WORKERS, Plan, Ready, Surge, usable_cpus};
pub use resources::cgroup::{Cgroup, CgroupItem};
pub use resources::rlimit::{CpuAffinity, Rlimit};
pub use run_as::RunAs;
pub use schedule::{Escalation, Schedule};
pub use share_ports::SharePorts;
pub use text::Text;
pub use tuning::{Tuning, Verbosity};
