//! Who started panzer, and the files by which panzer is found.

pub(crate) mod ack_paths;
pub(crate) mod pid_file;
pub(crate) mod service_manager;
pub(crate) mod starter;
