//! The parts of the bench, and what they share.

pub(crate) mod bare;
pub(crate) mod cost;
pub(crate) mod crowd;
#[path = "../../tests/support/load.rs"]
pub(crate) mod load;
pub(crate) mod logs;
pub(crate) mod machine;
pub(crate) mod many;
pub(crate) mod memory;
pub(crate) mod molds;
pub(crate) mod page_server;
pub(crate) mod panzer;
pub(crate) mod program;
pub(crate) mod rack;
pub(crate) mod real_servers;
pub(crate) mod respawn;
pub(crate) mod server;
pub(crate) mod smaps;
pub(crate) mod spread;
pub(crate) mod stamps;
pub(crate) mod start;
pub(crate) mod table;
pub(crate) mod under_load;
pub(crate) mod wake_ups;

use std::error::Error;
use std::time::Duration;

/// What a part gives, or why it could not be measured.
pub(crate) type Measured<T> = Result<T, Box<dyn Error>>;

/// Main asks after 5 s and after 30 s what serves by itself. From then on it has no deadline, and gives its text back.
pub(crate) const SETTLED: Duration = Duration::from_secs(34);

/// Nothing that is measured here takes nearly so long: what does has gone wrong.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);
