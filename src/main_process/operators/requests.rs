//! What people ask of main, by signals and over the control socket, and how things stand.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Instant;

use nix::fcntl::OFlag;
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::dump;
use super::inquiry::Inquiry;
use crate::control::files;
use crate::control::monitor::messages::{Order, Urgency};
use crate::control::operator::requests::{Command as Wanted, Outcome, Request};
use crate::control::operator::status::{Generation, Status};
use crate::main_process::decide::{Change, Event, Standing};
use crate::main_process::listeners::accept_queues;
use crate::main_process::main::Main;
use crate::signals::Action as Asked;
use crate::sys::signals::{Received as Signalled, parse_signal_or_number};
use crate::sys::stderr;

impl Main {
    pub(crate) fn signalled(&mut self, received: Signalled) {
        log::debug!("received {} from pid {}", received.signal.as_str(), received.sender);
        if is_hang_up(received, self.had_terminal) {
            return self.events.push_back(Event::Stop(Urgency::Graceful));
        }
        // The kernel's own comes along with a terminal's end, and nobody asks for anything by it.
        if received.signal == Signal::SIGCONT && received.by_kernel {
            return;
        }
        let asked = self.plan.signals.action(received.signal);
        // A stop must not wait for a file system, and removes them anyway.
        if !asked.stops() && !self.state.is_stopping() && !self.pid_file.is_lost() {
            self.restore_own_files();
        }
        self.interrupted |= is_interrupt(received, asked);
        match asked {
            Asked::Reload => self.events.push_back(Event::Reload),
            Asked::Detach => self.events.push_back(Event::ReloadRetiring(Urgency::Patient)),
            Asked::RestartWorkers => self.events.push_back(Event::ReloadRetiring(Urgency::Quick)),
            Asked::Stop => self.events.push_back(Event::Stop(Urgency::Graceful)),
            Asked::StopThenNow => self.events.push_back(Event::StopThenNow),
            Asked::StopNow => {
                if Pid::this().as_raw() == 1 && received.signal == Signal::SIGQUIT && !self.state.is_stopping() {
                    log::warn!(
                        "QUIT stops at once, and requests under way are cut; where it is the STOPSIGNAL of the image, \
                         --on QUIT=stop makes it graceful"
                    );
                }
                self.events.push_back(Event::Stop(Urgency::Quick));
            }
            Asked::ScaleUp => self.scale(None, Change::By(1)),
            Asked::ScaleDown => self.scale(None, Change::By(-1)),
            Asked::ScaleDownOldest => self.scale(None, Change::WithoutOldest),
            Asked::Quiet => self.scale(None, Change::ToNone),
            Asked::Restart => self.restart_asked(None),
            Asked::Status => {
                self.told_on_stderr = true;
                self.inquire();
            }
            Asked::Dump => {
                self.dumps = true;
                self.inquire();
            }
            Asked::Reread => {
                self.upward.reading_asked();
                self.reread();
            }
            // Nothing of panzer's own is open for writing but stderr, which belongs to whoever started it.
            Asked::Reopen => {
                self.upward.reading_asked();
                log::info!("{}: nothing is open but stderr, which is not ours", received.signal.as_str())
            }
            Asked::Ignore if Pid::this().as_raw() == 1 && received.signal == Signal::SIGWINCH => {
                log::warn!("WINCH does nothing; where it is the STOPSIGNAL of the image, use --on WINCH=stop")
            }
            Asked::Ignore => log::debug!("{}: nothing to do", received.signal.as_str()),
        }
    }

    /// An operator asks for something; what a signal asks for as well is the same event.
    pub(crate) fn asked(&mut self, client: u64, request: Request) {
        match request.command {
            Wanted::Status => {
                self.operators.wants_status(client);
                self.inquire();
            }
            Wanted::Reload => {
                self.operators.wants_reload(client, request);
                self.events.push_back(Event::ReloadFor(client));
            }
            Wanted::Stop | Wanted::Exit => {
                let quick = request.command == Wanted::Exit;
                let urgency = if quick { Urgency::Quick } else { Urgency::Graceful };
                self.events.push_back(Event::Stop(urgency));
                self.operators.wants_end(client, request.no_wait);
            }
            Wanted::Scale => match change(request.count.as_deref()) {
                Ok(change) => self.scale(Some(client), change),
                Err(why) => self.operators.answer(client, Outcome::refused(why)),
            },
            Wanted::Drain => self.drain_asked(client, &request),
            Wanted::Restart => self.restart_asked(Some(client)),
            Wanted::Quiet => self.scale(Some(client), Change::ToNone),
            Wanted::Signal => {
                if let Err(why) = self.order_signal(client, &request) {
                    self.operators.answer(client, Outcome::refused(why));
                }
            }
            // Nothing of panzer's own is open for writing but stderr, which belongs to whoever started it.
            Wanted::Reopen => self.operators.answer(client, Outcome::done()),
        }
    }

    fn drain_asked(&mut self, client: u64, request: &Request) {
        let mut draining = self.state.draining();
        if let Some(generation) = request.generation
            && !draining.contains(&generation)
        {
            let others: Vec<String> = draining.iter().map(u32::to_string).collect();
            let others =
                if others.is_empty() { "none does".to_owned() } else { format!("these do: {}", others.join(", ")) };
            let why = format!("generation {generation} does not drain; {others}");
            return self.operators.answer(client, Outcome::refused(why));
        }
        draining.retain(|one| request.generation.is_none_or(|only| only == *one));
        if request.now {
            self.events.push_back(Event::HastenDraining(request.generation));
        }
        match request.no_wait || draining.is_empty() {
            true => self.operators.answer(client, Outcome::done()),
            false => self.operators.wants_drained(client, draining),
        }
    }

    /// The monitor knows the pids, and that they are still its own: it sends the signal.
    pub(crate) fn order_signal(&mut self, client: u64, request: &Request) -> Result<(), String> {
        let text = request.signal.as_deref().ok_or("a signal command needs a \"signal\"")?;
        let number = parse_signal_or_number(text)? as i32;
        let slot = request.worker;
        let serving = self.state.standings().into_iter().find(|(standing, ..)| *standing == Standing::Serving);
        let (_, generation, monitor) = serving.ok_or("no generation serves: panzer is being stopped")?;
        let slots = self.state.slots();
        if let Some(slot) = slot.filter(|&slot| slot >= slots) {
            return Err(format!("there is no worker {slot}: they are numbered from 0 to {}", slots.saturating_sub(1)));
        }
        let running = monitor.and_then(|monitor| Some((monitor, self.children.running(monitor)?)));
        let (monitor, running) =
            running.ok_or_else(|| format!("generation {generation} has no monitor just now; try again"))?;
        let ticket = self.operators.wants_signalled(client, monitor, Instant::now());
        running.channel.send(&Order::Signal { ticket, number, slot });
        Ok(())
    }

    pub(crate) fn inquire(&mut self) {
        // One that a restart would interrupt is left to the next main; but that may wait for a planner that hangs.
        let gives_way = self.restart.is_proven() && !self.children.is_planning();
        if self.inquiry.is_some() || gives_way {
            return;
        }
        self.askers = self.operators.take_status_askers();
        let standings = self.state.standings();
        for (_, _, monitor) in &standings {
            if let Some(running) = monitor.and_then(|monitor| self.children.running(monitor))
                && !std::mem::replace(&mut running.asked, true)
            {
                running.channel.send(&Order::Status);
            }
        }
        let inquiry = Inquiry::new(standings, |monitor| self.children.pid_of(monitor), Instant::now());
        self.inquiry = Some(inquiry);
    }

    pub(crate) fn answer_inquiry(&mut self) {
        let now = Instant::now();
        let is_over = |inquiry: &mut Inquiry| inquiry.is_complete() || inquiry.deadline() <= now;
        let Some(inquiry) = self.inquiry.take_if(is_over) else { return };
        let status = self.status(inquiry.into_generations());
        if std::mem::take(&mut self.told_on_stderr) {
            stderr::tell(&status.to_string());
        }
        if std::mem::take(&mut self.dumps) {
            dump::write(self.pid_file.path(), &status.to_string());
        }
        let askers = std::mem::take(&mut self.askers);
        if !askers.is_empty() {
            self.operators.answer_all(askers, Outcome { status: Some(status), ..Outcome::done() });
        }
        if self.operators.want_status() {
            self.inquire();
        }
    }

    /// What people call this instance. A pid file by the name of "pid" does not name it.
    fn name(&self) -> String {
        let by_file = files::name_of(self.pid_file.path());
        match &self.plan.name {
            Some(name) => name.clone(),
            None if by_file == "pid" => {
                let program = Path::new(&self.plan.program.0).file_name().unwrap_or(&self.plan.program.0);
                program.to_string_lossy().into_owned()
            }
            None => by_file,
        }
    }

    fn status(&self, generations: Vec<Generation>) -> Status {
        Status {
            name: self.name(),
            pid: Pid::this().as_raw(),
            workers: self.state.workers(),
            ready: self.state.is_ready(),
            stopping: self.state.is_stopping(),
            uptime_ms: self.operators.begun.elapsed().as_millis() as u64,
            generations,
            listeners: accept_queues::all(&self.held, &self.shares),
            respawns: self.counters.respawns(),
            reloads: self.counters.reloads(),
        }
    }
}

/// Reads what a scale is by: `4`, `+1` or `-1`.
fn change(count: Option<&str>) -> Result<Change, String> {
    let text = count.ok_or("a scale command needs a \"count\"")?;
    let wrong = || format!("'{text}' is no count of workers: take 4, +1 or -1");
    match text.strip_prefix(['+', '-']) {
        Some(digits) if digits.starts_with(|first: char| first.is_ascii_digit()) => {
            text.parse().map(Change::By).map_err(|_| wrong())
        }
        Some(_) => Err(wrong()),
        None => text.parse().map(Change::To).map_err(|_| wrong()),
    }
}

/// Whether the terminal was closed that panzer was started on.
pub(crate) fn is_hang_up(received: Signalled, had_terminal: bool) -> bool {
    received.signal == Signal::SIGHUP && (received.by_kernel || (had_terminal && !has_terminal()))
}

/// Whether somebody pressed Ctrl-C to end panzer. Then it ends by that signal, as whoever waits for it expects: a shell
/// that got it too ends its script only if the program did.
pub(crate) fn is_interrupt(received: Signalled, asked: Asked) -> bool {
    received.signal == Signal::SIGINT && received.by_kernel && asked.stops()
}

pub(crate) fn has_terminal() -> bool {
    // A line without a carrier would be waited for.
    File::options().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open("/dev/tty").is_ok()
}
