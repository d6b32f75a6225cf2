//! The loop: asks at each interval, shows what it is answered, and ends when it is told to or main has ended.
//!
//! Each question has a connection of its own, so a main that is restarted in place is only asked again. One that does
//! not answer, or takes nobody, is given up after [`PATIENCE`], until when the last state stands with a line that says
//! so.

use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, raise};

use super::super::client::{PATIENCE, Trouble};
use super::super::command_line::Options;
use super::super::instances::{self, Instance};
use super::super::status::{as_json, as_table, complete, is_capable_terminal};
use super::super::table;
use super::super::text::{Line, Tone};
use super::super::usage::{Meter, Usages};
use super::question::Question;
use super::screen::Screen;
use crate::control::operator::status::Status;
use crate::sys::poller::Poller;
use crate::sys::signals::{Signals, block_all, unblock};

const SIGNALS: u64 = 0;
const KEYS: u64 = 1;
const ANSWER: u64 = 2;

/// What ends it, and what has it painted anew.
const READ: [Signal; 6] =
    [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGTSTP, Signal::SIGWINCH];

/// Whether it goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    GoOn,
    End,
}

#[derive(Debug)]
struct Watch {
    instance: Instance,
    patience: Duration,
    interval: Duration,
    json: bool,
    poller: Poller,
    /// None where each state is written below the one before.
    screen: Option<(Screen, Signals)>,
    question: Option<Question>,
    /// When the next question is due.
    next: Instant,
    /// When the question was asked that has had no answer, nor those after it.
    unanswered_since: Option<Instant>,
    why: Option<String>,
    last: Option<(Status, Usages)>,
    meter: Meter,
}

/// Until it is told to end. An error where nobody answers, at first or any more.
pub(in super::super) fn watch(options: &Options, json: bool, interval: Duration) -> Result<(), Trouble> {
    let instance = instances::choose(options)?;
    let cannot = |error: io::Error| Trouble::Failed(format!("cannot watch: {error}"));
    let poller = Poller::new().map_err(cannot)?;
    let screen = (!json && is_capable_terminal()).then(|| begin(&poller)).transpose().map_err(cannot)?;
    let patience = options.timeout.unwrap_or(PATIENCE);
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
    };
    watch.run()
}

fn begin(poller: &Poller) -> io::Result<(Screen, Signals)> {
    block_all()?;
    // A job in the background is to be stopped when it reaches for the terminal, as always.
    unblock(&[Signal::SIGTTIN, Signal::SIGTTOU])?;
    let signals = Signals::new(READ)?;
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
                self.tick()?;
            }
            let ready = self.poller.wait(Some(self.next)).map_err(|error| Trouble::Failed(error.to_string()))?;
            for token in ready {
                let next = match token {
                    SIGNALS => self.heed_signals(),
                    KEYS => read_keys(),
                    _ => self.heed_answer(),
                };
                if next == Next::End {
                    return Ok(());
                }
            }
        }
    }

    /// An interval is over.
    fn tick(&mut self) -> Result<(), Trouble> {
        let now = Instant::now();
        if self.question.is_none() {
            let asked = Question::ask(&self.instance);
            let asked = asked.and_then(|question| self.poller.watch(&question, ANSWER).map(|()| question));
            match asked {
                Ok(question) => self.question = Some(question),
                Err(error) => self.note_absence(self.instance.absence(&error), now)?,
            }
        }
        let since = *self.unanswered_since.get_or_insert(now);
        if now.saturating_duration_since(since) >= self.patience {
            let why = self.why.take().unwrap_or_else(|| "is it stopped (kill -STOP)?".to_owned());
            return Err(Trouble::Unknown(format!("{} gives no answer any more: {why}", self.instance.shown())));
        }
        if since < now {
            let _ = self.paint();
        }
        // A moment that is over is not made up for.
        self.next = (self.next + self.pause()).max(now + self.pause() / 2);
        Ok(())
    }

    /// While there is no answer, how long there has been none is told each second at least.
    fn pause(&self) -> Duration {
        let left = self.unanswered_since.map(|since| (since + self.patience).saturating_duration_since(Instant::now()));
        let longest = if left.is_some() { Duration::from_secs(1) } else { self.interval };
        self.interval.min(longest).min(left.unwrap_or(longest).max(Duration::from_millis(10)))
    }

    /// Nobody is there. Without its socket it has ended, unless it is about to have one; while that is there somebody
    /// may come back to it.
    fn note_absence(&mut self, trouble: Trouble, now: Instant) -> Result<(), Trouble> {
        let since = *self.unanswered_since.get_or_insert(now);
        let runs = self.instance.is_running();
        if now.saturating_duration_since(since) >= self.patience || (self.last.is_none() && !runs) {
            return Err(trouble);
        }
        if !runs && !self.instance.socket.exists() {
            return Err(Trouble::NotRunning(format!("{} has ended", self.instance.shown())));
        }
        let (Trouble::Failed(why)
        | Trouble::Dead(why)
        | Trouble::Usage(why)
        | Trouble::NotRunning(why)
        | Trouble::Unknown(why)) = trouble;
        self.note(why);
        Ok(())
    }

    fn note(&mut self, why: String) {
        let is_news = self.why.replace(why).is_none();
        if let (true, None, Some(why)) = (is_news, &self.screen, &self.why) {
            eprintln!("panzerctl: {why}; trying again for {}", crate::config::duration::show(self.patience));
        }
    }

    fn heed_answer(&mut self) -> Next {
        let Some(answer) = self.question.as_mut().and_then(Question::answer) else { return Next::GoOn };
        self.question.take().into_iter().for_each(|question| self.poller.forget(question));
        match answer {
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
                Next::GoOn
            }
        }
    }

    /// The state just answered. A reader that has gone has read enough.
    fn show(&self) -> Next {
        let Some((status, usages)) = &self.last else { return Next::GoOn };
        let written = match self.screen {
            Some(_) => self.paint(),
            None if self.json => write(&as_json(status, usages)),
            None => write(&(as_table(status, usages) + "\n")),
        };
        if written.is_ok() { Next::GoOn } else { Next::End }
    }

    fn paint(&self) -> io::Result<()> {
        let (Some((screen, _)), Some((status, usages))) = (&self.screen, &self.last) else { return Ok(()) };
        let mut lines = table::lines(status, usages, screen.room());
        if let (Some(since), Some(line)) = (self.unanswered_since, lines.get_mut(1)) {
            let why = self.why.as_deref().map(|why| format!(": {why}")).unwrap_or_default();
            *line = Line::new(Tone::Bad, format!("no answer for {}s{why}", since.elapsed().as_secs()));
        }
        screen.paint(&lines)
    }

    fn heed_signals(&mut self) -> Next {
        while let Some(received) = self.screen.as_ref().and_then(|(_, signals)| signals.read()) {
            match received.signal {
                Signal::SIGWINCH => {}
                Signal::SIGTSTP => {
                    let Some((screen, _)) = &mut self.screen else { continue };
                    screen.leave();
                    // What Ctrl-Z would have done, had it not been read here.
                    let _ = raise(Signal::SIGSTOP);
                    screen.take();
                }
                _ => return Next::End,
            }
        }
        let _ = self.paint();
        Next::GoOn
    }
}

fn read_keys() -> Next {
    let mut keys = [0; 64];
    match io::stdin().lock().read(&mut keys) {
        Ok(0) | Err(_) => Next::End,
        Ok(length) if keys[..length].contains(&b'q') => Next::End,
        Ok(_) => Next::GoOn,
    }
}

fn write(text: &str) -> io::Result<()> {
    let mut out = io::stdout();
    out.write_all(text.as_bytes())?;
    out.flush()
}
