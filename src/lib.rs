//! Panzer.

pub mod backoff;
pub mod cli;
pub mod config;
pub mod control;
pub mod launch;
pub mod main_process;
pub mod monitor;
pub mod readiness;
pub mod signals;
pub mod sockets;
pub mod sys;
pub mod worker;
