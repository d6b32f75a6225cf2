//! The loop: asks at each interval and shows the answer. It ends on a key or a signal, or when main has ended.
//!
//! Each question has its own connection, so that a restart of main in place costs only one question. If main does not
//! answer, or takes no connection, the last state stays on the screen with a line that says so; after [`ANSWER_TIMEOUT`]
//! the watch gives up.

use std::io::{self, ErrorKind, Read};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use signal_hook::low_level::emulate_default_handler;

use super::screen::Screen;
use crate::control::operator::requests::{Line as Said, Request, Wanted};
use crate::control::operator::status::Status;
use crate::panzerctl::choose::choose;
use crate::panzerctl::client::{ANSWER_TIMEOUT, Client, status_in};
use crate::panzerctl::command_line::Options;
use crate::panzerctl::follow::{conclude, describe};
use crate::panzerctl::instance::Instance;
use crate::panzerctl::output::{DEFAULT_COLUMNS, columns, is_capable_terminal, print, rendered};
use crate::panzerctl::status::{as_json, as_table, complete, of_chosen};
use crate::panzerctl::table::{self, Room};
use crate::panzerctl::text::{Line, Tone};
use crate::panzerctl::top::{self, Key, Sort};
use crate::panzerctl::trouble::Trouble;
use crate::panzerctl::usage::{Meter, Usages};
use crate::sys::errno::words;
use crate::sys::poller::Poller;
use crate::sys::printable;
use crate::sys::signals::{Signals, block_all, unblock};
use crate::sys::stdout::{why_not, write};

const SIGNALS: u64 = 0;
const KEYS: u64 = 1;
const ANSWER: u64 = 2;
const RELOAD: u64 = 3;

/// The signals that end the watch, suspend it or make it paint again.
const SIGNALS_READ: [Signal; 6] =
    [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGTSTP, Signal::SIGWINCH];

#[derive(Debug)]
struct Watch {
    instance: Instance,
    patience: Duration,
    interval: Duration,
    json: bool,
    poller: Poller,
    /// None if each state is written below the one before.
    screen: Option<(Screen, Signals)>,
    question: Option<Client>,
    /// When the next question is due.
    next: Instant,
    /// When the first question was asked that has no answer yet.
    unanswered_since: Option<Instant>,
    /// Why the last question failed.
    why: Option<String>,
    last: Option<(Status, Usages)>,
    meter: Meter,
    /// The list of `panzerctl top`, instead of the table.
    top: Option<Top>,
}

/// How `panzerctl top` is shown.
#[derive(Debug, Default)]
struct Top {
    sort: Sort,
    /// Whether the last lines of the logs are shown in place of the workers.
    shows_logs: bool,
    /// News in place of the keys, until the next key.
    said: Option<(Tone, String)>,
    /// A reload that was asked for.
    reload: Option<Client>,
}

/// Watches until the user ends it. Fails if main does not answer.
pub(crate) fn watch(options: &Options, json: bool, interval: Duration) -> Result<(), Trouble> {
    begin_watch(options, json, interval, None)
}

/// The same with a sorted list of workers. Prints it once if the output is not a terminal.
pub(crate) fn top(options: &Options, interval: Duration) -> Result<(), Trouble> {
    if is_capable_terminal() {
        return begin_watch(options, false, interval, Some(Top::default()));
    }
    let status = of_chosen(options)?;
    let usages = Meter::default().look(&status);
    let columns = columns().unwrap_or(DEFAULT_COLUMNS);
    let room = Room { columns, rows: None };
    print(&rendered(&top::lines(&status, &usages, room, Sort::default(), None), columns))
}

fn begin_watch(options: &Options, json: bool, interval: Duration, top: Option<Top>) -> Result<(), Trouble> {
    let instance = choose(options)?;
    let cannot = |error: io::Error| Trouble::Failed(format!("cannot watch: {}", words(&error)));
    let poller = Poller::new().map_err(cannot)?;
    let screen = (!json && is_capable_terminal()).then(|| begin(&poller)).transpose().map_err(cannot)?;
    let patience = options.timeout.unwrap_or(ANSWER_TIMEOUT);
    let mut watch = Watch {
        instance,
        patience,
        interval,
        json,
        poller,
        screen,
        question: None,
        next: Instant::now(),
        unanswered_since: None,
        why: None,
        last: None,
        meter: Meter::default(),
        top,
    };
    watch.run()
}

fn begin(poller: &Poller) -> io::Result<(Screen, Signals)> {
    block_all()?;
    // A background job that uses the terminal must be stopped, as usual.
    unblock(&[Signal::SIGTTIN, Signal::SIGTTOU])?;
    let signals = Signals::new(SIGNALS_READ)?;
    poller.watch(&signals, SIGNALS)?;
    let screen = Screen::enter();
    if screen.has_keys() {
        poller.watch(io::stdin(), KEYS)?;
    }
    Ok((screen, signals))
}

impl Watch {
    fn run(&mut self) -> Result<(), Trouble> {
        loop {
            if self.next <= Instant::now() {
                self.on_interval()?;
            }
            let ready = self.poller.wait(Some(self.next)).map_err(|error| Trouble::Failed(words(&error)))?;
            for token in ready {
                let goes_on = match token {
                    SIGNALS => self.on_signals(),
                    KEYS => self.on_keys(),
                    RELOAD => self.on_reload_news(),
                    _ => self.on_answer()?,
                };
                if !goes_on {
                    return Ok(());
                }
            }
        }
    }

    /// Asks again, and gives up if there has been no answer for too long.
    fn on_interval(&mut self) -> Result<(), Trouble> {
        let now = Instant::now();
        if self.question.is_none() {
            match self.ask() {
                Ok(question) => self.question = Some(question),
                Err(error) => self.note_absence(self.instance.absence(&error), now)?,
            }
        }
        let since = *self.unanswered_since.get_or_insert(now);
        if now.saturating_duration_since(since) >= self.patience {
            let why = self.why.take().unwrap_or_else(|| "is it stopped (kill -STOP)?".to_owned());
            return Err(Trouble::Unknown(format!("{} does not answer any more: {why}", self.instance.shown())));
        }
        if since < now {
            let _ = self.paint();
        }
        // Intervals that were missed are skipped.
        self.next = (self.next + self.pause()).max(now + self.pause() / 2);
        Ok(())
    }

    fn ask(&self) -> io::Result<Client> {
        let mut question = Client::connect_without_waiting(&self.instance)?;
        question.ask(&Request::new(Wanted::Status));
        self.poller.watch(&question, ANSWER)?;
        Ok(question)
    }

    /// The time without an answer is shown at least once a second.
    fn pause(&self) -> Duration {
        let left = self.unanswered_since.map(|since| (since + self.patience).saturating_duration_since(Instant::now()));
        let longest = if left.is_some() { Duration::from_secs(1) } else { self.interval };
        self.interval.min(longest).min(left.unwrap_or(longest).max(Duration::from_millis(10)))
    }

    /// There is no connection. Without a socket the instance has ended, unless it is just starting. With a socket, main
    /// may come back.
    fn note_absence(&mut self, trouble: Trouble, now: Instant) -> Result<(), Trouble> {
        let since = *self.unanswered_since.get_or_insert(now);
        let runs = self.instance.is_running();
        if now.saturating_duration_since(since) >= self.patience || (self.last.is_none() && !runs) {
            return Err(trouble);
        }
        if !runs && !self.instance.socket.exists() {
            return Err(Trouble::NotRunning(format!("{} has ended", self.instance.shown())));
        }
        self.note(trouble.into_parts().1);
        Ok(())
    }

    fn note(&mut self, why: String) {
        let is_news = self.why.replace(why).is_none();
        if let (true, None, Some(why)) = (is_news, &self.screen, &self.why) {
            eprintln!(
                "panzerctl: {}; trying again for {}",
                printable::message(why),
                crate::config::duration::show(self.patience)
            );
        }
    }

    /// Like the other handlers, this returns whether the watch goes on.
    fn on_answer(&mut self) -> Result<bool, Trouble> {
        let Some(answer) = self.question.as_mut().and_then(Client::answer_so_far) else {
            return Ok(true);
        };
        if let Some(question) = self.question.take() {
            self.poller.forget(question);
        }
        match answer.and_then(status_in) {
            Ok(mut status) => {
                complete(&mut status);
                let usages = self.meter.look(&status);
                self.last = Some((status, usages));
                self.why = None;
                let (asked, now) = (self.unanswered_since.take(), Instant::now());
                self.next = asked.map_or(now, |asked| asked + self.interval).max(now + self.interval / 2);
                self.show()
            }
            Err(why) => {
                self.note(why);
                Ok(true)
            }
        }
    }

    /// Shows the last state. Returns false if the reader is gone.
    fn show(&self) -> Result<bool, Trouble> {
        let Some((status, usages)) = &self.last else { return Ok(true) };
        let written = match self.screen {
            Some(_) => self.paint(),
            None if self.json => write(&as_json(status, usages)),
            None => write(&(as_table(status, usages) + "\n")),
        };
        match written {
            Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(Trouble::Failed(why_not(&error))),
            written => Ok(written.is_ok()),
        }
    }

    fn paint(&self) -> io::Result<()> {
        let (Some((screen, _)), Some((status, usages))) = (&self.screen, &self.last) else { return Ok(()) };
        let mut lines = match &self.top {
            Some(top) if top.shows_logs => top::log_lines(status, screen.room(), top.said.as_ref()),
            Some(top) => top::lines(status, usages, screen.room(), top.sort, top.said.as_ref()),
            None => table::lines(status, usages, screen.room()),
        };
        if let (Some(since), Some(line)) = (self.unanswered_since, lines.get_mut(1)) {
            let why = self.why.as_deref().map(|why| format!(": {why}")).unwrap_or_default();
            *line = Line::new(Tone::Bad, format!("no answer for {}s{why}", since.elapsed().as_secs()));
        }
        screen.paint(&lines)
    }

    fn on_signals(&mut self) -> bool {
        while let Some(received) = self.screen.as_ref().and_then(|(_, signals)| signals.read()) {
            match received.signal {
                Signal::SIGWINCH => {}
                Signal::SIGTSTP => {
                    let Some((screen, _)) = &mut self.screen else { continue };
                    screen.leave();
                    // Ctrl-Z suspends the process, as it would without us reading the signal.
                    let _ = emulate_default_handler(Signal::SIGTSTP as i32);
                    screen.take();
                }
                _ => return false,
            }
        }
        let _ = self.paint();
        true
    }

    fn on_keys(&mut self) -> bool {
        let mut bytes = [0; 64];
        let Ok(length @ 1..) = io::stdin().lock().read(&mut bytes) else { return false };
        for key in bytes[..length].iter().filter_map(|byte| Key::of(*byte)) {
            match (key, &mut self.top) {
                (Key::Quit, _) => return false,
                (_, None) => {}
                (Key::Sort(sort), Some(top)) => (top.sort, top.shows_logs, top.said) = (sort, false, None),
                (Key::Logs, Some(top)) => (top.shows_logs, top.said) = (!top.shows_logs, None),
                (Key::Reload, Some(_)) => self.reload(),
            }
        }
        let _ = self.paint();
        true
    }

    fn reload(&mut self) {
        let Some(top) = self.top.as_mut().filter(|top| top.reload.is_none()) else { return };
        let asked = Client::connect_without_waiting(&self.instance).and_then(|mut client| {
            client.ask(&Request::new(Wanted::Reload));
            self.poller.watch(&client, RELOAD)?;
            Ok(client)
        });
        match asked {
            Ok(client) => {
                (top.reload, top.said) = (Some(client), Some((Tone::Passing, "reload: asked for".to_owned())))
            }
            Err(error) => top.said = Some((Tone::Bad, format!("no reload: {}", words(&error)))),
        }
    }

    /// How far the reload has come.
    fn on_reload_news(&mut self) -> bool {
        let Some(top) = &mut self.top else { return true };
        while let Some(answer) = top.reload.as_mut().and_then(Client::answer_so_far) {
            let (is_last, said) = match answer.map(|answer| answer.line) {
                Ok(Said::Progress(progress)) => (false, Ok(describe(&progress))),
                Ok(Said::Last(outcome)) => (true, conclude(&Request::new(Wanted::Reload), *outcome)),
                Err(why) => (true, Err(why)),
            };
            top.said = Some(match said {
                Ok(done) if is_last => (Tone::Good, format!("reload: {done}")),
                Ok(progress) => (Tone::Passing, format!("reload: {progress}")),
                Err(why) => (Tone::Bad, why.lines().next().unwrap_or_default().to_owned()),
            });
            if is_last {
                top.reload.take().into_iter().for_each(|client| self.poller.forget(client));
            }
        }
        let _ = self.paint();
        true
    }
}
