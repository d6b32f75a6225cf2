//! The processes that main starts, talks to and reaps. Only this room knows pids.

pub(crate) mod adopt;
pub(crate) mod children;
pub(crate) mod families;
pub(crate) mod helper;
pub mod hook;
pub(crate) mod logger;
pub(crate) mod logging;
pub(crate) mod monitor;
pub mod planner;
pub(crate) mod reap;
pub(crate) mod reports;
