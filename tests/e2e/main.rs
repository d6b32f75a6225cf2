//! End to end: the real binary, real processes, real servers.
//!
//! Every test starts panzer through [`support::Panzer`], which fails the test if anything is left behind or if
//! panzer says something on stderr that the test did not expect. Tests run side by side: each has its own folder
//! and its own ports, and none sleeps; they wait for a condition, with a limit.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking, its helpers as well")]
#![allow(unreachable_pub, reason = "nothing of a test is for others; pub is what the modules offer each other")]

#[path = "../support/load.rs"]
mod load;
mod support;

mod addresses;
mod binding;
mod bypass;
mod cgroups;
mod clients;
mod config;
mod config_reread;
mod control;
mod control_access;
mod control_metrics;
mod control_signal;
mod control_status;
mod daemon;
mod deploy;
mod dialects;
mod env_file;
mod farewell;
mod faults;
mod guard;
mod harness;
mod hooks;
mod identity;
mod inherited;
mod limits;
mod listeners;
mod logs;
mod lookup;
mod managed;
mod molds;
mod my_app;
mod operators;
mod output;
mod per_worker;
mod per_worker_scaling;
mod planning;
mod recycling;
mod resources;
mod restart;
mod scaling;
mod seeds;
mod servers;
mod sharing;
mod shown;
mod shown_logs;
mod signals;
mod soak;
mod strangers;
mod surge;
mod tuning;
mod unix_guard;
mod unmodified;
mod upward;
mod watchdog;
mod watching;
mod zero_loss;
