//! The processes that main starts, hears and reaps: the one room that knows pids.

pub(crate) mod children;
pub(crate) mod families;
pub(crate) mod helper;
pub mod planner;
pub(crate) mod reports;
