//! The two protocols of main, with its monitors and with operators, and what all processes agree on: the variables that
//! give a process its role, and the names of an instance's files.

pub mod environment;
pub mod files;
pub mod monitor;
pub mod operator;
