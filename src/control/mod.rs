//! The two protocols of main, with its monitors and with operators, that of a monitor with its mold, and what all
//! processes agree on: the variables that give a process its role, and the names of an instance's files.

pub mod environment;
pub mod files;
pub mod log_file;
pub mod logger;
pub mod mold;
pub mod monitor;
pub mod operator;
