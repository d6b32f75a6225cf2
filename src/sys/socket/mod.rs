//! Socket options and messages.

pub mod packets;
pub mod reuseport;
pub mod settings;
pub mod socket_options;
pub mod unix_paths;
pub mod unix_queue;
