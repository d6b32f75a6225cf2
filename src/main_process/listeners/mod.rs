//! The sockets that main holds from start to stop.

pub(crate) mod accept_queues;
pub(crate) mod bind_at_start;
pub(crate) mod claims;
pub(crate) mod conflicts;
pub(crate) mod follow_plan;
pub(crate) mod guard;
pub(crate) mod held;
pub(crate) mod per_worker;
