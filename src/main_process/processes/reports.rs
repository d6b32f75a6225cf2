//! What monitors report, and what their workers want to bind.

use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::children::FirstWord;
use crate::control::monitor::channel::Received;
use crate::control::monitor::messages::Report;
use crate::main_process::configuration::Release;
use crate::main_process::decide::{Event, Monitor};
use crate::main_process::listeners::claims::Bind;
use crate::main_process::main::Main;
use crate::sys::processes;

impl Main {
    /// Reads at most `count` reports. The poller wakes main again for those that are left.
    pub(crate) fn take_reports(&mut self, monitor: Monitor, count: usize) {
        for _ in 0..count {
            let Some(running) = self.children.running(monitor) else { return };
            running.channel.flush();
            let received = running.channel.receive::<Report>();
            if !matches!(received, Received::Nothing | Received::Gone) {
                running.first_word = FirstWord::Heard;
            }
            match received {
                Received::Message(Report::Claim { ticket, key, process, late, again, .. }, descriptors) => {
                    let socket = descriptors.into_iter().next();
                    self.on_claim((monitor, ticket), Bind { key, process, late, again, socket });
                }
                Received::Message(Report::Listen { ticket, key, backlog }, descriptors) => {
                    self.on_listens((monitor, ticket), &key, backlog, descriptors.into_iter().next());
                }
                Received::Message(Report::Owns { addresses }, _) => {
                    drop(self.listeners.conflicts.own.insert(monitor.generation, addresses))
                }
                Received::Message(Report::Looked { ticket, may_listen }, _) => {
                    self.on_looked((monitor, ticket), may_listen);
                }
                Received::Message(Report::Output(output), pipes) => self.on_output(monitor, &output, pipes),
                Received::Message(Report::LastLines { slot, lines }, _) => {
                    self.operators.last_lines.insert((monitor.generation, slot), lines);
                }
                Received::Message(Report::LastLinesOf { serial }, _) => self.on_last_lines_asked(monitor, serial),
                Received::Message(report, descriptors) => self.on_report(monitor, report, descriptors),
                Received::Cut(Report::Claim { ticket, .. } | Report::Listen { ticket, .. }) => {
                    log::warn!("a worker cannot share what it binds: panzer has no descriptor left for it");
                    self.not_shared((monitor, ticket), Some(Errno::EMFILE as i32));
                }
                Received::Cut(Report::Output(output)) => self.lose_output(monitor, &output),
                Received::Cut(_) => self.cut_off(monitor, "panzer has no descriptor left for what it sends"),
                Received::Failed(why) => self.cut_off(monitor, &why),
                Received::Garbage(why) => log::warn!(
                    "the monitor of generation {} says what this build does not know, and that is left out: {why}; a \
                     reload gives it one that is understood",
                    monitor.generation
                ),
                Received::MoreGarbage => {}
                Received::Nothing => return,
                Received::Gone => {
                    // Its end is handled when it was reaped.
                    self.poller.forget(&running.channel);
                    return;
                }
            }
        }
    }

    /// Messages between main and this monitor got lost, so their knowledge differs. The monitor is ended, its workers
    /// are adopted, and another monitor takes its place.
    fn cut_off(&mut self, monitor: Monitor, why: &str) {
        log::error!("the monitor of generation {} is ended, as messages get lost: {why}", monitor.generation);
        if let Some(running) = self.children.running(monitor) {
            self.poller.forget(&running.channel);
            running.channel.close();
            if let Err(error) = processes::signal_child(running.child.pid, Signal::SIGKILL) {
                log::error!(
                    "cannot kill the monitor of generation {}: {}",
                    monitor.generation,
                    processes::why_not_signalled(&error)
                );
            }
        }
    }

    pub(crate) fn on_report(&mut self, monitor: Monitor, report: Report, descriptors: Vec<OwnedFd>) {
        match (report, <[OwnedFd; 3]>::try_from(descriptors)) {
            (Report::Resolved { path, other_user, fingerprint }, Ok([directory, program, findings])) => {
                log::debug!("generation {} runs {}", monitor.generation, path.display());
                let found = Release { directory, program, findings, path, other_user, fingerprint };
                self.tell_of_unfollowed_symlink(monitor.generation, &found);
                self.configuration.found.insert(monitor.generation, found);
            }
            (Report::Forked { slot, pid, started }, _) => {
                self.children.family(monitor).add(slot, (Pid::from_raw(pid), started));
            }
            (Report::GivenUp(pids), _) => {
                if let Some(running) = self.children.running(monitor) {
                    running.given_up.extend(pids);
                }
            }
            (Report::Worker(status), _) => {
                if let Some(inquiry) = &mut self.operators.inquiry {
                    inquiry.add(monitor, status);
                }
            }
            (Report::Mold(status), _) => {
                if let Some(inquiry) = &mut self.operators.inquiry {
                    inquiry.add_mold(monitor, status);
                }
            }
            (Report::StatusEnd, _) => {
                if let Some(running) = self.children.running(monitor) {
                    running.asked = false;
                }
                if let Some(inquiry) = &mut self.operators.inquiry {
                    inquiry.complete(monitor);
                }
            }
            (Report::QueueMissing { place }, _) => self.send_queue_again(monitor, place),
            (Report::Signalled { ticket, reached }, _) => self.operators.clients.signalled(ticket, monitor, reached),
            (report, _) => {
                if matches!(report, Report::Ready { .. } | Report::Died { .. }) {
                    self.put_listeners_right();
                }
                self.events.push_back(Event::Reported(monitor, report));
            }
        }
    }
}
