//! The protocol between main and operators: requests, and the lines of the answers, over the control socket.

mod client;
pub mod requests;
pub mod server;
mod socket;
pub mod status;
