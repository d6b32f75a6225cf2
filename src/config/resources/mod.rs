//! What workers may use: as asked for.

pub mod cgroup;
pub mod rlimit;
