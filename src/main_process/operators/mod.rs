//! People: their signals and requests, and what they are told.

pub(crate) mod clients;
pub(crate) mod counters;
pub(crate) mod dump;
pub(crate) mod inquiry;
pub(crate) mod messages;
pub(crate) mod requests;
pub(crate) mod signals;
pub(crate) mod status;

use self::clients::Clients;
use self::counters::Counters;
use self::inquiry::Inquiry;

/// What people have asked for and not got yet.
pub(crate) struct Operators {
    /// Those who ask over the control socket.
    pub(crate) clients: Clients,
    /// The state of all workers, while monitors are asked for it.
    pub(crate) inquiry: Option<Inquiry>,
    /// Clients that get the answer of this inquiry.
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
}
