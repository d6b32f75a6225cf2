//! What workers bind and listen on: what main is asked, and what it asks.

use std::collections::BTreeSet;
use std::time::Instant;

use nix::unistd::Pid;

use super::run::Monitor;
use super::state::Event;
use crate::control::monitor::messages::Report;
use crate::readiness::watch;
use crate::sockets::sharing::{Claim, Sharing, Taken};

/// Number of workers that are looked at for listeners of their own, and number of addresses reported.
const MAX_LOOKED_AT: usize = 4;
const MAX_ADDRESSES: usize = 4;

impl Monitor {
    pub(super) fn take_call(&mut self) {
        match self.sharing.as_mut().and_then(Sharing::take_call) {
            None => {}
            Some(Taken::Claim(claim)) => self.ask_main(claim),
            Some(Taken::Listens(process)) => self.listens(process),
        }
    }

    pub(super) fn ask_main(&mut self, Claim { ticket, key, process, socket, backlog }: Claim) {
        let report = match backlog {
            Some(backlog) => Report::Listen { ticket, key, backlog },
            None => {
                let worker = self.roster.find_ancestor(process);
                let late = worker.is_some_and(|worker| self.state.serves_for_long(worker, Instant::now()));
                Report::Claim { ticket, key, socket: Some(socket.is_some()), process: Some(process.as_raw()), late }
            }
        };
        self.channel.send_along(&report, socket.into_iter().collect());
    }

    pub(super) fn listens(&mut self, process: Pid) {
        if let Some(worker) = self.roster.find_ancestor(process) {
            // It is past its exec, whether that has been looked at or not.
            self.look_at_exec(worker.slot);
            self.events.push_back(Event::Listens(worker));
        }
    }

    /// Reports where the first workers listen that panzer does not hold: what the others have is of the same kind.
    pub(super) fn report_own(&mut self) {
        let pids = (0..self.state.count()).filter_map(|slot| self.roster.in_slot(slot).map(|live| live.pid()));
        let pids: Vec<Pid> = pids.take(MAX_LOOKED_AT).collect();
        let own: BTreeSet<String> =
            pids.into_iter().flat_map(|pid| watch::own_listeners(pid, &self.accepted_on)).collect();
        self.channel.send(&Report::Owns { addresses: own.into_iter().take(MAX_ADDRESSES).collect() });
    }

    /// Reports whether the socket of this bind may still listen: others wait for it.
    pub(super) fn look_at_bind(&mut self, ticket: u64) {
        let bound = self.sharing.as_ref().and_then(|sharing| sharing.may_listen(ticket));
        let may_listen = bound.is_some_and(|(process, since)| {
            self.state.may_listen(self.roster.find_ancestor(process), since, Instant::now())
        });
        self.channel.send(&Report::Looked { ticket, may_listen });
    }
}
