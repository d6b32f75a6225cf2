//! Reaps children, and finds out which one each was.

use std::collections::BTreeMap;
use std::time::Instant;

use nix::unistd::Pid;

use super::children::{FIRST_WORD_TIMEOUT, FirstWord};
use crate::main_process::decide::{Event, Monitor, hooks};
use crate::main_process::main::Main;
use crate::sys::errno::words;
use crate::sys::processes;
use crate::worker::cause::Cause;
use crate::worker::spawn::Outcome;

impl Main {
    pub(crate) fn reap(&mut self) {
        // Reap everything first, so that a process that has ended too is not adopted as an orphan.
        let mut ended = processes::reap_all(|pid| self.children.kin.look_again(pid));
        self.children.reaps_on = ended.len() == processes::MAX_REAPED_AT_ONCE;
        let mut orphans: BTreeMap<Monitor, Vec<Pid>> = BTreeMap::new();
        orphans.extend(self.children.unmet.take().map(|monitor| (monitor, Vec::new())));
        // Monitors before orphans, so that what a monitor has left is not attributed to an orphan.
        ended.sort_by_key(|(pid, _)| self.children.by_pid(*pid).is_none());
        for (pid, exit) in ended {
            if let Some(monitor) = self.children.by_pid(pid) {
                // Its last reports come before its end.
                self.take_reports(monitor, usize::MAX);
                let silent = self.children.running(monitor).is_some_and(|it| it.first_word == FirstWord::Missed);
                let cause = match self.children.running(monitor).map(|running| running.child.outcome()) {
                    Some(Outcome::Failed(refused)) => {
                        Cause::CannotStart(format!("could not be executed: {}", words(&refused.errno.into())))
                    }
                    _ if silent => {
                        let time = FIRST_WORD_TIMEOUT.as_secs();
                        Cause::CannotStart(format!("hung for {time}s before its first word, and was killed"))
                    }
                    _ => exit.into(),
                };
                if let Some(running) = self.children.running(monitor) {
                    self.poller.forget(&running.channel);
                }
                self.children.remove(monitor);
                let again = self.listeners.shares.monitor_ended(monitor);
                self.claim_again(again);
                self.operators.clients.give_up_signals(Instant::now(), Some(monitor));
                let is_survived = self.meet(monitor) || !self.children.is_gone(monitor);
                if let Some(inquiry) = &mut self.operators.inquiry {
                    inquiry.complete(monitor);
                }
                self.events.push_back(Event::Ended(monitor, cause, is_survived));
            } else if self.children.logger == Some(pid) {
                self.on_logger_ended(exit);
            } else if let Some(preflight) = self.children.take_preflight(pid) {
                self.on_preflight_ended(preflight, exit);
            } else if let Some(planner) = self.children.take_planner(pid) {
                self.on_planner_ended(planner, exit);
            } else if let Some(hook) = self.children.hook.take_if(|hook| hook.pid() == pid) {
                self.go_on_with_hooks(hooks::Event::Ended(hook.answered(exit)));
            } else if let Some(monitor) = self.children.kin.owner(pid) {
                orphans.entry(monitor).or_default().push(pid);
            } else {
                self.children.strangers.remove(&pid);
            }
        }
        for (monitor, ended) in orphans {
            // Main has also adopted what they have left.
            let joined = self.meet(monitor);
            ended.into_iter().for_each(|pid| self.children.kin.remove(pid));
            if joined {
                self.events.push_back(Event::OrphansJoined(monitor));
            } else if self.children.is_gone(monitor) {
                self.events.push_back(Event::OrphansGone(monitor));
            }
        }
    }

    /// Adopts children. Returns whether something is left of `dead`.
    fn meet(&mut self, dead: Monitor) -> bool {
        let mut more = self.children.meet(dead);
        let is_left = more.remove(&dead);
        self.events.extend(more.into_iter().map(Event::OrphansJoined));
        is_left
    }
}
