//! A monitor's loop, which has the one place where it sleeps.

use std::io;
use std::time::{Duration, Instant};

use anyhow::Context;

use super::start::{find_release, read_assignment};
use super::{ACKS, CHANNEL, FIRST_NOTIFY, MOLD, Monitor, NOTIFY, SHARING, SIGNALS, STDERR, WARM, worker_of};
use crate::control::environment::Environment;
use crate::control::monitor::channel::Channel;
use crate::control::monitor::messages::Report;
use crate::monitor::decide::{Action, Event, Worker};
use crate::monitor::processes::adopted::LeftBehind;
use crate::readiness::ack::{AckSocket, Said};
use crate::readiness::notify::{Notification, Words};
use crate::sockets::sharing::Sharing;
use crate::sys::errno::unless_forbidden;
use crate::sys::oom::OomKills;
use crate::sys::packets::Sender;
use crate::sys::trim_memory::Sleeper;
use crate::sys::{processes, signals, stderr};
use crate::worker::cause::Cause;
use crate::worker::environment::Common;
use crate::worker::findings::Findings;
use crate::worker::spawn::Outcome;

/// Limit of the notifications that are read before the loop looks at anything else.
const NOTIFY_BATCH: usize = 64;

/// Pause before another look at an exec that the poller does not watch.
const UNWATCHED_PAUSE: Duration = Duration::from_millis(20);

/// Runs as a monitor until all its workers have ended. Fails if panzer itself is at fault.
pub fn run(environment: &Environment) -> anyhow::Result<()> {
    let inheritance = environment.take_monitor()?;
    signals::block_all().context("cannot block signals")?;
    processes::set_name();
    let mut channel = Channel::new(inheritance.channel);
    let assignment = read_assignment(inheritance.plan)?;
    stderr::start(assignment.plan.tuning.verbosity.level());
    stderr::set_json(assignment.plan.logs.is_json());
    if assignment.plan.daemonize {
        // Workers outlive the start, and the terminal may close with it. So none of their descriptors may be the
        // terminal.
        stderr::keep_terminal_to_itself().context("cannot leave the terminal")?;
    }
    let (release, findings) = match find_release(&assignment, inheritance.release, environment) {
        Ok(found) => found,
        Err(cause) => {
            // Main says what follows: the end of a reload, or of a first start.
            channel.send(&Report::CannotBegin(cause));
            return last_words(channel.finish());
        }
    };
    let written = findings.to_document().context("a monitor cannot start")?;
    let Findings { variables, identity, directory } = findings;
    identity.open_output();
    let mut inherited = identity.rename_in(environment.passed_on());
    inherited.retain(|(name, _)| name != "PWD");
    inherited.extend(directory.map(|directory| ("PWD".into(), directory.0)));
    let common = Common { inherited, from_files: variables };
    let found = (release, identity, written);
    let mut monitor = match Monitor::new(assignment, found, channel, inheritance.listeners, common) {
        Ok(monitor) => monitor,
        // Main ended before anything was started, so there is nothing to stop.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
        Err(error) => return Err(unless_forbidden(error)).context("a monitor cannot start"),
    };
    monitor.run().context("a monitor cannot go on")?;
    last_words(monitor.talk.channel.finish())
}

/// The result of the last message. If main is gone, the message is not needed.
fn last_words(said: io::Result<()>) -> anyhow::Result<()> {
    match said {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error).context("main cannot be told"),
        _ => Ok(()),
    }
}

impl Monitor {
    fn run(&mut self) -> io::Result<()> {
        let mut sleeper = Sleeper::default();
        self.settle();
        self.oom_kills = OomKills::from_now_on(self.assignment.cgroup.as_deref());
        loop {
            self.settle();
            self.held_notes.tend(self.state.is_stopping(), self.assignment.generation);
            if self.done {
                return Ok(());
            }
            self.talk.channel.rearm(&self.poller, CHANNEL);
            stderr::rearm(&self.poller, STDERR);
            let acks = self.talk.acks.as_ref().and_then(AckSocket::deadline);
            let unwatched = (!self.unwatched.is_empty()).then(|| Instant::now() + UNWATCHED_PAUSE);
            let channel = self.talk.channel.deadline();
            let calls = self.sockets.sharing.as_ref().and_then(Sharing::deadline);
            let unmet = self.roster.unmet.then(Instant::now);
            let deadlines = [
                self.state.deadline(),
                self.talk.outputs.deadline(),
                acks,
                unwatched,
                channel,
                calls,
                unmet,
                self.held_notes.deadline(),
            ];
            let mut tokens = sleeper.wait(&self.poller, deadlines.into_iter().flatten().min())?;
            // Messages before ends: a process that has ended may have sent a message, which is read while its owner is
            // known.
            tokens.sort_by_key(|token| *token == SIGNALS);
            for token in tokens {
                self.look_at(token);
            }
            self.give_up_last_lines(false);
            if unmet.is_some() {
                self.reap();
            }
            for worker in std::mem::take(&mut self.unwatched) {
                self.look_at_unwatched_exec(worker);
            }
            if channel.is_some_and(|deadline| deadline <= Instant::now()) {
                self.look_at(CHANNEL);
            }
            if let Some(why) = self.talk.cut_off.take() {
                return Err(io::Error::other(why));
            }
            if let Some(sharing) = &mut self.sockets.sharing {
                sharing.let_overdue_through(Instant::now());
            }
            if acks.is_some_and(|deadline| deadline <= Instant::now()) {
                self.take_acks();
            }
            self.events.push_back(Event::Wake);
        }
    }

    /// Decides about everything that has happened.
    pub(super) fn settle(&mut self) {
        while let Some(event) = self.events.pop_front() {
            let actions = self.state.on(Instant::now(), event);
            // Spawn first, by the mold that is the right one by then; reports and log lines can wait.
            let is_start =
                |action: &Action| matches!(action, Action::Spawn(_) | Action::Fork(..) | Action::Promote(..));
            let (starts, others): (Vec<_>, Vec<_>) = actions.into_iter().partition(is_start);
            starts.into_iter().for_each(|action| self.perform(action));
            self.announce();
            others.into_iter().for_each(|action| self.perform(action));
        }
    }

    fn look_at(&mut self, token: u64) {
        match token {
            SIGNALS => {
                // The poller wakes again for others.
                self.signals.read();
                self.notice_suspensions();
                // Orders first: whether workers are being stopped decides how their ends are judged.
                self.take_orders();
                self.reap();
            }
            CHANNEL => {
                self.talk.channel.flush();
                self.take_orders();
            }
            NOTIFY => self.take_notifications(None),
            SHARING => self.take_call(),
            ACKS => self.take_acks(),
            MOLD => self.hear_mold(&[]),
            WARM => self.hear_candidate(),
            FIRST_NOTIFY.. => self.take_notifications(Some(worker_of(token))),
            STDERR => stderr::catch_up(),
            _ => self.look_at_exec(worker_of(token)),
        }
    }

    /// Reads notifications; with `worker`, from its own socket.
    fn take_notifications(&mut self, worker: Option<Worker>) {
        for _ in 0..NOTIFY_BATCH {
            let live = worker.and_then(|worker| self.roster.live(worker));
            let own = live.and_then(|live| Some((live.worker, live.notify.as_ref()?)));
            let (worker, heard) = match own {
                Some((worker, socket)) => (Some(worker), socket.receive()),
                None if worker.is_some() => return,
                None => (None, self.talk.notify.receive()),
            };
            let Some(notification) = heard else { return };
            self.notified(notification, worker);
        }
    }

    fn notified(&mut self, Notification { sender, words, is_too_long }: Notification, own: Option<Worker>) {
        if is_too_long && !std::mem::replace(&mut self.talk.too_long_told, true) {
            log::warn!(
                "pid {} sent more to NOTIFY_SOCKET than is read at once; it is left out (said once)",
                sender.pid
            );
        }
        if words == Words::default() {
            return;
        }
        let seen = self.find_worker(sender.pid);
        let Some(worker) = seen.or(own.filter(|own| self.roster.may_have_sent(*own, sender))) else {
            // The sender has ended, and so has its worker, or it ends because its mold does: the message means nothing.
            let is_late = self.roster.born_too_late.contains(&sender.pid)
                || own.and_then(|own| self.roster.pid_of(own)).is_some_and(|pid| processes::user_of(pid).is_none());
            if !is_late && !std::mem::replace(&mut self.talk.unattributed_told, true) {
                log::warn!(
                    "{} came from pid {} (user {}), which cannot be seen to belong to a worker of generation {}, and does not \
                     count (said once)",
                    if words.ready { "READY=1" } else { "a message to NOTIFY_SOCKET" },
                    sender.pid,
                    sender.user,
                    self.assignment.generation
                );
            }
            return;
        };
        // Its program runs, whether its exec has been looked at or not.
        self.look_at_exec(worker);
        self.events.extend(words.extends.map(|by| Event::Extends(worker, by)));
        self.events.extend(words.ready.then_some(Event::Notified(worker)));
        self.events.extend(words.period.map(|period| Event::WatchedEvery(worker, period)));
        self.events.extend(words.lives.then_some(Event::Lives(worker)));
        self.events.extend(words.stops.then_some(Event::Stops(worker)));
        self.events.extend(words.requests.map(|requests| Event::Served(worker, requests)));
        self.events.extend(words.is_broken.then_some(Event::IsBroken(worker)));
    }

    fn take_acks(&mut self) {
        let Some(acks) = &mut self.talk.acks else { return };
        let roster = &self.roster;
        let is_known = |sender: Sender| roster.find_ancestor(sender.pid).is_some() || roster.may_have_had(sender);
        let now = Instant::now();
        for (sender, named, said) in acks.tend(&self.poller, now, is_known) {
            // If a helper has ended by now, only the pid that it named shows its worker.
            let by_name = || self.roster.find_ancestor(named?).filter(|it| self.roster.may_have_sent(*it, sender));
            let Some(worker) = self.roster.find_ancestor(sender.pid).or_else(by_name) else { continue };
            match said {
                Said::Ack => {
                    // Its program runs, whether its exec has been looked at or not.
                    self.look_at_exec(worker);
                    self.events.push_back(Event::Notified(worker));
                }
                Said::Ping => {
                    self.roster.note_sign_of_life(worker, now);
                    self.events.push_back(Event::Lives(worker));
                }
            }
        }
    }

    /// Looks at an exec that the poller does not watch. The next turn looks again while it is under way.
    pub(super) fn look_at_unwatched_exec(&mut self, worker: Worker) {
        self.look_at_exec(worker);
        if self.roster.live(worker).is_some_and(|live| live.executing.is_some()) {
            self.unwatched.insert(worker);
        }
    }

    pub(super) fn look_at_exec(&mut self, worker: Worker) {
        let Some(live) = self.roster.live(worker) else { return };
        let Some(child) = &mut live.executing else { return };
        let outcome = child.outcome();
        if child.is_mixed && !std::mem::replace(&mut self.program.mixed_release_told, true) {
            log::warn!(
                "{} leads to another file by now; workers of generation {} run a mix of releases until a reload",
                self.program.release.path.display(),
                self.assignment.generation
            );
        }
        if outcome == Outcome::Pending {
            return;
        }
        self.poller.forget(child);
        live.executing = None;
        match outcome {
            Outcome::Failed(refused) => self.find_reason(worker, refused),
            Outcome::Done | Outcome::Pending => self.events.push_back(Event::Executed(worker)),
        }
    }

    /// Workers that have ended by now are left out.
    fn notice_suspensions(&mut self) {
        for (pid, stopped_by) in std::iter::from_fn(processes::stopped_or_continued).take(processes::MAX_REAPED_AT_ONCE)
        {
            let Some(worker) = self.roster.worker_of(pid) else { continue };
            self.look_at_exec(worker);
            self.events.push_back(match stopped_by {
                Some(signal) => Event::Suspended(worker, signal),
                None => Event::Continued(worker),
            });
        }
    }

    pub(super) fn reap(&mut self) {
        // Reap everything first, so that a process that has ended too does not count as left behind.
        let reaped = processes::reap_all(|pid| self.roster.kin.look_again(pid));
        let (main, generation) = (self.assignment.main_pid, self.assignment.generation);
        let (mut ended, mut probed) = (Vec::new(), Vec::new());
        if !reaped.is_empty() {
            let pids: Vec<_> = reaped.iter().map(|(pid, _)| *pid).collect();
            self.hear_mold(&pids);
        }
        for (pid, exit) in &reaped {
            let (pid, exit) = (*pid, *exit);
            if let Some(worker) = self.roster.remove_probe(pid, main, generation) {
                probed.push(self.probe_ended(worker, exit));
                continue;
            }
            if let Some(done) = self.roster.measurement.take_if(|it| it.pid == pid) {
                self.take_measurement(done);
                continue;
            }
            if let Some((worker, reason)) = self.roster.reasons.remove(&pid) {
                self.take_reason(worker, reason);
                continue;
            }
            if let Some(worker) = self.roster.worker_of(pid) {
                self.look_at_exec(worker);
                // Its last notifications.
                self.take_notifications(Some(worker));
            }
            let out_of_memory =
                matches!(exit, processes::Exit::Signal(9, _)) && self.oom_kills.take_one(Instant::now());
            let Some(mut live) = self.roster.remove(pid) else { continue };
            live.notify.iter().for_each(|socket| self.poller.forget(socket));
            if Some(live.worker) == self.state.mold_worker() {
                self.close_line();
            }
            let cause = live.refused.take().unwrap_or_else(|| match out_of_memory {
                true => {
                    let limit = self.assignment.plan.cgroup.and_then(|cgroup| cgroup.memory);
                    let reached = limit.filter(|_| self.oom_kills.is_by_limit());
                    reached.map_or(Cause::OutOfMemory, Cause::OverMemoryLimit)
                }
                false => exit.into(),
            });
            match self.state.is_retiring(live.worker) {
                true => self.roster.forget(live.worker.slot),
                false => self.roster.remember(live.worker.slot, pid, &cause),
            }
            ended.extend(self.ended_with_last_lines(live.worker, cause));
        }
        // While helpers that have ended are known, what they in turn have left in their groups is known by them.
        self.roster.meet(main, generation);
        reaped.iter().for_each(|(pid, _)| self.roster.remove_adopted(*pid));
        self.roster.unmet |= reaped.len() == processes::MAX_REAPED_AT_ONCE;
        let LeftBehind { more, gone } = self.roster.left_behind();
        // Before the ends of workers, because what they have left is waited for.
        // Probes come last: of a worker that has ended too, none has succeeded.
        self.events.extend(more.into_iter().map(Event::LeftBehind).chain(ended).chain(probed));
        self.events.extend(gone.into_iter().map(Event::GroupGone));
    }

    fn probe_ended(&self, worker: Worker, exit: processes::Exit) -> Event {
        let succeeded = exit == processes::Exit::Code(0);
        if !succeeded {
            log::debug!("the probe of worker {} {}", worker.slot, Cause::from(exit));
        }
        // A probe may have killed the worker: its end is about to be reaped.
        let lives = self.roster.pid_of(worker).is_some_and(|pid| !processes::is_exiting(pid));
        Event::Probed(worker, succeeded && lives)
    }
}
