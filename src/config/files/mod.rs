//! The files that panzer reads: the configuration file, and files of variables.

pub mod env;
pub mod yaml;
