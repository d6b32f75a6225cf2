//! People: their signals and requests, and what they are told.

pub(crate) mod clients;
pub(crate) mod counters;
pub(crate) mod dump;
pub(crate) mod inquiry;
pub(crate) mod messages;
pub(crate) mod requests;
pub(crate) mod signals;
pub(crate) mod status;

use std::time::Instant;

use serde::{Deserialize, Serialize};

use self::clients::Clients;
use self::counters::Counters;
use self::inquiry::Inquiry;

/// What people have asked for and not got yet.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Operators {
    /// Those who ask over the control socket.
    pub(crate) clients: Clients,
    /// The state of all workers, while monitors are asked for it.
    #[serde(skip)]
    pub(crate) inquiry: Option<Inquiry>,
    /// Clients that get the answer of this inquiry.
    #[serde(skip)]
    pub(crate) askers: Vec<u64>,
    /// Whether its answer is to be printed to stderr.
    pub(crate) told_on_stderr: bool,
    /// Whether its answer is to be written to a file.
    pub(crate) dumps: bool,
    pub(crate) counters: Counters,
}

impl Operators {
    /// Nobody has asked for anything yet.
    pub(crate) fn new(clients: Clients) -> Operators {
        let (told_on_stderr, dumps) = (false, false);
        Operators { clients, inquiry: None, askers: Vec::new(), told_on_stderr, dumps, counters: Counters::default() }
    }

    /// When somebody has waited for long enough.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let inquiry = self.inquiry.as_ref().map(Inquiry::deadline);
        [inquiry, self.clients.server.deadline(), self.clients.deadline()].into_iter().flatten().min()
    }

    /// Whether somebody waits for the state of all workers.
    pub(crate) fn want_status(&self) -> bool {
        self.told_on_stderr || self.dumps || self.clients.want_status()
    }
}
