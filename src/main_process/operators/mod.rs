//! People: their signals and requests, and the answers.

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

/// Requests that have not been answered yet.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Operators {
    /// The clients of the control socket.
    pub(crate) clients: Clients,
    /// The inquiry for the state of all workers, if one is under way.
    #[serde(skip)]
    pub(crate) inquiry: Option<Inquiry>,
    /// The clients that get the answer of this inquiry.
    #[serde(skip)]
    pub(crate) askers: Vec<u64>,
    /// Whether to print its answer to stderr.
    pub(crate) told_on_stderr: bool,
    /// Whether to write its answer to a file.
    pub(crate) dumps: bool,
    pub(crate) counters: Counters,
}

impl Operators {
    /// No request yet.
    pub(crate) fn new(clients: Clients) -> Operators {
        let (told_on_stderr, dumps) = (false, false);
        Operators { clients, inquiry: None, askers: Vec::new(), told_on_stderr, dumps, counters: Counters::default() }
    }

    /// When a request has waited long enough.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let inquiry = self.inquiry.as_ref().map(Inquiry::deadline);
        [inquiry, self.clients.server.deadline(), self.clients.deadline()].into_iter().flatten().min()
    }

    /// Whether the state of all workers is wanted.
    pub(crate) fn want_status(&self) -> bool {
        self.told_on_stderr || self.dumps || self.clients.want_status()
    }
}
