//! panzerctl: the command by which operators control a running panzer.

mod choose;
mod client;
mod command_line;
mod follow;
mod instance;
mod logs;
mod metrics;
mod output;
mod run;
mod status;
mod table;
mod text;
mod top;
mod trouble;
mod usage;
mod watch;

pub use run::{command, run};
