//! People: their signals and requests, and what they are told.

pub(crate) mod clients;
pub(crate) mod counters;
pub(crate) mod dump;
pub(crate) mod inquiry;
pub(crate) mod messages;
pub(crate) mod requests;
pub(crate) mod signals;
pub(crate) mod status;

use std::io;
use std::os::fd::RawFd;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use self::clients::Clients;
use self::counters::Counters;
use self::inquiry::Inquiry;
use crate::sys::descriptors::Kept;
use crate::sys::poller::Poller;

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

/// What people have asked for, as one main hands it on to the next.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Carried {
    clients: clients::Carried,
    told_on_stderr: bool,
    dumps: bool,
    counters: Counters,
}

impl Carried {
    /// All descriptors in it.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = RawFd> {
        self.clients.server.descriptors()
    }
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

    /// For the next main.
    pub(crate) fn carry<'a>(&'a self, kept: &mut Kept<'a>) -> Carried {
        let (told_on_stderr, dumps) = (self.told_on_stderr, self.dumps);
        Carried { clients: self.clients.carry(kept), told_on_stderr, dumps, counters: self.counters.clone() }
    }

    /// What the main before has handed on.
    pub(crate) fn take_over(carried: Carried, poller: &Poller) -> io::Result<Operators> {
        let Carried { clients, told_on_stderr, dumps, counters } = carried;
        let clients = Clients::take_over(clients, poller)?;
        Ok(Operators { told_on_stderr, dumps, counters, ..Operators::new(clients) })
    }
}
