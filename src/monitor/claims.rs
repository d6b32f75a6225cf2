//! Claims of workers' ports: questions to main, and questions of main.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Instant;

use nix::sys::socket::{getsockopt, sockopt};
use nix::unistd::Pid;

use super::Monitor;
use crate::control::monitor::messages::Report;
use crate::monitor::decide::Event;
use crate::readiness::watch;
use crate::sockets::sharing::{Claim, Sharing, Taken};
use crate::sys::{processes, unix_paths};

/// Limit of the workers that are looked at for listeners of their own, and of the addresses that are reported.
const MAX_LOOKED_AT: usize = 4;
const MAX_ADDRESSES: usize = 4;

impl Monitor {
    pub(super) fn take_call(&mut self) {
        match self.sockets.sharing.as_mut().and_then(Sharing::take_call) {
            None => {}
            Some(Taken::Claim(claim)) => self.ask_main(claim),
            Some(Taken::Listens(process)) => self.listens(process),
            Some(Taken::OnPath(_, _, inode)) if self.sockets.accepted_on.contains(inode) => {}
            Some(Taken::OnPath(process, path, _)) => self.tell_own_path(process, &path),
        }
    }

    pub(super) fn ask_main(&mut self, Claim { ticket, key, process, socket, backlog }: Claim) {
        let report = match backlog {
            Some(backlog) => Report::Listen { ticket, key, backlog },
            None => {
                let worker = self.find_worker(process);
                let late = worker.is_some_and(|worker| self.state.serves_for_long(worker, Instant::now()));
                // As servers do whose parent reserves the port, and whose children listen.
                let reuses = socket.as_ref().is_some_and(|socket| getsockopt(socket, sockopt::ReusePort) == Ok(true));
                let bound = self.sockets.sharing.as_ref().filter(|_| reuses).map(|it| it.bound_by(&key));
                let again =
                    worker.is_some() && bound.into_iter().flatten().any(|other| self.find_worker(other) == worker);
                let (socket, process) = (Some(socket.is_some()), Some(process.as_raw()));
                Report::Claim { ticket, key, socket, process, late, again }
            }
        };
        self.talk.channel.send_along(&report, socket.into_iter().collect());
    }

    pub(super) fn listens(&mut self, process: Pid) {
        if let Some(worker) = self.find_worker(process) {
            // Its program runs, whether its exec has been looked at or not.
            self.look_at_exec(worker);
            self.events.push_back(Event::Listens(worker));
        }
    }

    /// Reports where the first workers listen by themselves. The others listen in the same way. Unix paths are logged.
    pub(super) fn report_own(&mut self) {
        let workers = self.roster.live.iter().filter(|(worker, _)| !worker.is_mold());
        let pids: Vec<Pid> = workers.map(|(_, live)| live.pid()).take(MAX_LOOKED_AT).collect();
        let mut addresses = BTreeSet::new();
        for pid in pids {
            let own = watch::own_listeners(pid, &self.sockets.accepted_on);
            addresses.extend(own.tcp);
            own.paths.iter().for_each(|(process, path)| self.tell_own_path(*process, path));
        }
        self.talk.channel.send(&Report::Owns { addresses: addresses.into_iter().take(MAX_ADDRESSES).collect() });
    }

    /// Warns about a unix path: the workers of the next release take it over, and those of the old one remove it when
    /// they end.
    fn tell_own_path(&mut self, process: Pid, path: &Path) {
        // A path with the process's pid belongs to it alone, and one with the generation to this release alone.
        let (plan, pid) = (&self.assignment.plan, process.to_string());
        let generation = plan.names_generations().then(|| self.assignment.generation.to_string());
        let is_part = |part: &str| part == pid || Some(part) == generation.as_deref();
        let is_named = path.to_string_lossy().split(|letter: char| !letter.is_ascii_digit()).any(is_part);
        // Its own name is of no use to a file that was given one which the others use as well.
        let is_renamed = unix_paths::has_left(process, path);
        if is_named && !is_renamed {
            return;
        }
        let path = std::fs::read_link(format!("/proc/{process}/cwd")).unwrap_or_default().join(path);
        // As Python's multiprocessing makes one: no other worker's file is there.
        let worker = self.roster.find_ancestor(process).and_then(|worker| self.roster.live.get(&worker));
        let leader = worker.map_or(process, |live| live.pid());
        if path.parent().is_some_and(|folder| processes::has_made(leader, folder))
            || std::mem::replace(&mut self.sockets.own_path_told, true)
        {
            return;
        }
        let (what, listen) = match is_renamed {
            true => ("a unix path of its own that it has renamed", "PATH".into()),
            false => ("a unix path of its own", path.to_string_lossy()),
        };
        log::warn!(
            "pid {process} listens on {what}, {}: each worker's file replaces the others'. If clients connect there, use \
             --listen unix:{listen}, which panzer keeps; else name it with {{worker}}, or ignore this",
            path.display()
        );
    }

    /// Reports whether the socket of this bind may still listen, because others wait for it.
    pub(super) fn look_at_bind(&mut self, ticket: u64) {
        let bound = self.sockets.sharing.as_ref().and_then(|sharing| sharing.may_listen(ticket));
        let may_listen = bound.is_some_and(|(process, since)| {
            let worker = self.find_worker(process);
            self.state.may_listen(worker, since, Instant::now())
        });
        self.talk.channel.send(&Report::Looked { ticket, may_listen });
    }
}
