//! How main feeds the logger: pipes of workers, settings, questions for last lines.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit};
use nix::sys::signal::Signal;

use super::logger::{Held, Pipe, Process, SERIAL_BITS, pair_of};
use crate::carry::descriptor::Descriptor;
use crate::config::{Stream, text};
use crate::control::environment::OWN_IMAGE;
use crate::control::logger::{LAYOUT, Order, Report, Source};
use crate::control::monitor::channel::{Channel, Received};
use crate::control::monitor::messages::{self as monitor_messages, Output};
use crate::main_process::decide::{Monitor, Verdict};
use crate::main_process::main::{LOGGER, Main};
use crate::main_process::operators::messages;
use crate::sys::errno::words;
use crate::sys::processes::{self, Exit};
use crate::sys::shared_memory;
use crate::worker::cause::Cause;
use crate::worker::spawn::{Image, NewProcess, Outcome, spawn};

/// Time that the logger has to write what is left when panzer ends.
const END_TIMEOUT: Duration = Duration::from_secs(4);

/// Time for which the logger goes on without main beyond a whole stop.
const PATIENCE_AFTER_STOP: Duration = Duration::from_secs(5);

/// Limit of the time that the verdict of a release waits for the last lines of a worker that is not ready.
const LAST_LINES_TIMEOUT: Duration = Duration::from_secs(1);

/// Descriptors of main that are kept free of pipes: listeners, channels and clients need some.
const RESERVED_DESCRIPTORS: usize = 64;

/// Reports that are read at once.
const MAX_REPORTS_A_TURN: usize = 256;

impl Main {
    /// A monitor is about to start a worker that writes to these pipes.
    pub(crate) fn on_output(&mut self, monitor: Monitor, output: &Output, pipes: Vec<OwnedFd>) {
        let allowed = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft as usize);
        if self.logger.pipes.len() + pipes.len() > allowed.saturating_sub(RESERVED_DESCRIPTORS).max(allowed / 2) {
            return self.lose_output(monitor, output);
        }
        let pair = pair_of(monitor, output.serial);
        for (stream, pipe) in output.streams.iter().zip(pipes) {
            let source = Source { pair, stream: *stream, worker: output.slot, generation: monitor.generation };
            self.logger.pipes.insert(source.id(), Pipe { source, fd: Descriptor::from(pipe) });
            self.send_pipe(source.id());
        }
        self.tend_logger();
    }

    /// There is no descriptor for these pipes. They are closed, so the worker does not wait for a reader; its writes fail.
    pub(crate) fn lose_output(&self, monitor: Monitor, output: &Output) {
        let name = output.slot.map_or_else(|| "the mold".to_owned(), |slot| format!("worker {slot}"));
        log::error!(
            "{name} of generation {} cannot write: panzer has no descriptor left for its output (ulimit -n, \
             LimitNOFILE=)",
            monitor.generation
        );
    }

    fn send_pipe(&mut self, id: u64) {
        if let Err(error) = self.logger.send_pipe(id) {
            log::error!("the output of a worker is not read before the logger is started again: {}", words(&error));
        }
    }

    /// A monitor wants to know what one of its workers wrote last.
    pub(crate) fn on_last_lines_asked(&mut self, monitor: Monitor, serial: u64) {
        let pair = pair_of(monitor, serial);
        self.logger.asked.push(pair);
        self.logger.send(&Order::Last { pair });
    }

    /// Holds the verdict of a generation whose workers were not ready in time until it is known what one of them wrote last.
    /// Gives it back if nobody is to be asked.
    pub(crate) fn hold_verdict(&mut self, generation: u32, verdict: Verdict) -> Option<Verdict> {
        self.report_held();
        let Verdict::Rejected(why) = &verdict else { return Some(verdict) };
        let known = messages::last_lines(generation, why, &self.operators.last_lines);
        let Some(slot) = why.missing.first().copied().filter(|_| known.is_empty()) else { return Some(verdict) };
        let sources = self.logger.pipes.values().map(|pipe| pipe.source);
        let is_its = |source: &Source| source.generation == generation && source.worker.is_none_or(|one| one == slot);
        let Some(pair) = sources.filter(is_its).map(|source| source.pair).max() else { return Some(verdict) };
        let until = Instant::now() + LAST_LINES_TIMEOUT;
        self.logger.held = Some(Held { generation, slot, pair, until, verdict, note: None });
        self.logger.asked.push(pair);
        self.logger.send(&Order::Last { pair });
        None
    }

    /// Reports the rejection that is held, now without waiting any longer.
    pub(crate) fn report_held(&mut self) {
        let Some(Held { generation, verdict, note, .. }) = self.logger.held.take() else { return };
        self.pass_verdict(generation, &verdict);
        note.into_iter().for_each(|note| self.log(note));
    }

    /// Starts the logger if it is needed, gives it its settings, and reads what it reports. Call this before each sleep.
    pub(crate) fn tend_logger(&mut self) {
        let now = Instant::now();
        if self.logger.held.as_ref().is_some_and(|held| held.until <= now) {
            self.report_held();
        }
        let may_start = !self.logger.pipes.is_empty() && self.exit.is_none() && self.logger.process.is_none();
        if may_start
            && self.logger.life.is_needed(now)
            && let Err(error) = self.start_logger()
        {
            self.logger_failed(&format!("cannot be started: {}", words(&error)));
        }
        self.give_logger_settings();
        if let Some(process) = &mut self.logger.process {
            process.channel.flush();
            process.channel.rearm(&self.poller, LOGGER);
        }
    }

    fn start_logger(&mut self) -> io::Result<()> {
        if self.logger.memory.is_none() {
            self.logger.memory = Some(Descriptor::from(shared_memory::create()?));
            self.logger.layout = LAYOUT;
        }
        let Some(held) = &self.logger.memory else { return Ok(()) };
        let (channel, theirs) = Channel::pair()?;
        let image = Image::Path(text::c_string(OWN_IMAGE.as_ref()));
        let variables = self.environment.for_logger();
        let role = NewProcess::role(image, "panzer: logger", variables, vec![theirs.as_fd(), held.as_fd()]);
        self.poller.watch(&channel, LOGGER)?;
        // It goes on without main until all who write have ended.
        let child = spawn(NewProcess { death_signal: None, ..role }).inspect_err(|_| self.poller.forget(&channel))?;
        self.children.logger = Some(child.pid);
        self.logger.process = Some(Process { child, channel });
        self.logger.settings = None;
        self.give_logger_settings();
        for id in self.logger.pipes.keys().copied().collect::<Vec<_>>() {
            self.send_pipe(id);
        }
        for pair in self.logger.asked.clone() {
            self.logger.send(&Order::Last { pair });
        }
        Ok(())
    }

    /// A stream that is no longer captured goes on to its file, for the workers that still write to it.
    fn give_logger_settings(&mut self) {
        let plan = &self.configuration.plan;
        let patience = plan.tuning.stop.total() + PATIENCE_AFTER_STOP;
        let (mut logs, before) = (plan.logs.clone(), self.logger.settings.as_ref().map(|(logs, _)| logs));
        for stream in Stream::BOTH {
            // The plan of a generation that starts may be the first to have any.
            let newest = self.configuration.plans.values().rev().find_map(|plan| plan.logs.of(stream)).cloned();
            let file = logs.of(stream).cloned().or_else(|| before.and_then(|logs| logs.of(stream)).cloned()).or(newest);
            *(if stream == Stream::Stdout { &mut logs.stdout } else { &mut logs.stderr }) = file;
        }
        let settings = Some((logs.clone(), patience));
        if self.logger.process.is_some() && self.logger.settings != settings {
            self.logger.settings = settings;
            self.logger.send(&Order::Settings { logs: Box::new(logs), patience });
        }
    }

    pub(crate) fn take_logger_reports(&mut self) {
        for _ in 0..MAX_REPORTS_A_TURN {
            let Some(process) = &mut self.logger.process else { return };
            process.channel.flush();
            match process.channel.receive::<Report>() {
                Received::Message(Report::Ended { id }, _) => drop(self.logger.pipes.remove(&id)),
                Received::Message(Report::Last { pair, lines }, _) => {
                    self.logger.asked.retain(|asked| *asked != pair);
                    self.send_last_lines(pair, lines);
                }
                Received::Garbage(_) | Received::MoreGarbage | Received::Cut(_) => {}
                Received::Failed(why) => {
                    log::error!("messages of the logger get lost: {why}");
                    self.poller.forget(&process.channel);
                    process.channel.close();
                }
                Received::Nothing => return,
                // Its end is handled when it was reaped.
                Received::Gone => return self.poller.forget(&process.channel),
            }
        }
    }

    fn send_last_lines(&mut self, pair: u64, lines: Vec<String>) {
        if let Some(held) = self.logger.held.as_ref().filter(|held| held.pair == pair) {
            self.operators.last_lines.insert((held.generation, held.slot), lines);
            return self.report_held();
        }
        let number = |monitor: &Monitor| pair_of(*monitor, pair) == pair;
        let Some(monitor) = self.children.monitors().find(number) else { return };
        if let Some(running) = self.children.running(monitor) {
            let serial = pair & ((1 << SERIAL_BITS) - 1);
            running.channel.send(&monitor_messages::Order::LastLines { serial, lines });
        }
    }

    /// It was reaped.
    pub(crate) fn on_logger_ended(&mut self, exit: Exit) {
        self.take_logger_reports();
        let Some(mut process) = self.logger.process.take() else { return };
        self.poller.forget(&process.channel);
        self.children.logger = None;
        if self.exit.is_none() {
            match process.child.outcome() {
                Outcome::Failed(refused) => {
                    self.logger_failed(&format!("could not be executed: {}", words(&refused.errno.into())));
                }
                _ if self.logger.memory.is_none() => {
                    self.logger.life.on_ended(Instant::now());
                    log::info!("a logger of this build takes over");
                }
                _ => self.logger_failed(&Cause::from(exit).to_string()),
            }
        }
    }

    fn logger_failed(&mut self, how: &str) {
        let wait = self.logger.life.on_ended(Instant::now());
        let after = if wait.is_zero() { String::new() } else { format!(" in {}", crate::config::duration::show(wait)) };
        log::error!("the logger {how}; starting another{after}. No line is lost: main holds the pipes");
    }

    /// Everything has ended. Returns whether the logger has, or has had its time.
    pub(crate) fn has_ended_logger(&mut self) -> bool {
        if self.logger.process.is_none() {
            return true;
        }
        let now = Instant::now();
        match self.logger.ending {
            None => {
                self.logger.ending = Some(now + END_TIMEOUT);
                self.logger.send(&Order::Finish);
                false
            }
            Some(until) => {
                if until <= now
                    && let Some(pid) = self.logger.pid()
                {
                    log::error!("the logger does not end, and is killed: lines may be lost");
                    // Cannot fail: it is an unreaped child of ours.
                    let _ = processes::signal_child(pid, Signal::SIGKILL);
                }
                until <= now
            }
        }
    }
}
