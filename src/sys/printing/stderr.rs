//! Panzer's own messages. Each line is one write that never waits: a reader that has stopped must not stop a supervisor.
//! Lines that stderr does not take are counted, and the count is logged once it takes lines again.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use env_logger::Target;
use log::{Level, LevelFilter};
use nix::unistd::{dup2_stderr, dup2_stdout};
use serde::Serialize;

use super::outlet::Outlet;
use crate::sys::descriptors::{Kind, kind};
use crate::sys::file_id::FileId;
use crate::sys::poller::Poller;
use crate::sys::printing::printable;

/// A pipe that can be written to takes at least this many bytes at once (PIPE_BUF), so a longer line is cut.
const MAX_LINE_BYTES: usize = 4096;

static OUTPUT: Mutex<Output> =
    Mutex::new(Output { to: None, is_journal: false, is_json: false, lost: 0, awaits: false });

/// The target of messages.
#[derive(Debug)]
struct Output {
    /// The target of stderr when it was opened. None before.
    to: Option<Outlet>,
    /// Whether it is the journal, which adds the time itself and takes a priority in front of each line.
    is_journal: bool,
    /// Whether each message is a JSON object.
    is_json: bool,
    /// Number of messages that were lost since the last line about lost messages.
    lost: u64,
    /// Whether a poller waits for stderr, or has waited in vain.
    awaits: bool,
}

/// Logs to stderr from now on. `RUST_LOG` is ignored, because it is meant for the workers.
pub fn start(level: LevelFilter) {
    output().open();
    let logger = env_logger::Builder::new()
        .format(|buffer, record| {
            let mut output = output();
            output.open();
            buffer.write_all(&output.line(record.level(), &record.args().to_string()))
        })
        .filter_level(LevelFilter::Trace)
        .target(Target::Pipe(Box::new(Lines)))
        .try_init();
    // It is set once in each process.
    drop(logger);
    set_level(level);
}

/// Logs only messages of this level and more serious ones from here on.
pub fn set_level(level: LevelFilter) {
    log::set_max_level(level);
}

/// Writes each message as a JSON object, or as text, from here on.
pub fn set_json(is_json: bool) {
    output().is_json = is_json;
}

/// Takes each line whole. Never fails, because lines that stderr does not take are counted.
struct Lines;

impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        output().put(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes a text that was asked for, line by line, whatever the level.
pub fn tell(text: &str) {
    text.lines().for_each(|line| output().say(Level::Info, line));
}

/// Writes why this process ends, even if [`start`] was not called. It is one write, because other processes of panzer may
/// write at the same moment.
pub fn last_words(why: &str) {
    let mut output = output();
    output.open();
    let line = match output.is_json {
        true => output.line(Level::Error, why),
        false => output.ended(format!("panzer: {why}"), Level::Error),
    };
    output.put(&line);
}

/// Number of lost messages that were not logged yet, for the image that takes this one's place.
pub fn lost() -> u64 {
    output().lost
}

/// Adds messages that the image before has lost.
pub fn add_lost(count: u64) {
    output().lost += count;
}

/// If messages were lost, makes `poller` wake once with `token` when stderr takes lines again. Call this before each sleep.
pub fn rearm(poller: &Poller, token: u64) {
    let mut output = output();
    let Output { to: Some(to), lost, awaits: awaits @ false, .. } = &mut *output else { return };
    if *lost > 0 || to.has_rest() {
        // If it cannot be watched, the next message reports the lost ones.
        *awaits = poller.watch_once_for_writing(to, token).is_ok();
    }
}

/// Call this on that token. If stderr still takes nothing, the next message asks for another wake-up.
pub fn catch_up() {
    let mut output = output();
    output.awaits = !output.settle();
}

/// Begins anew in a copy of the process that has logged so far: what is lost or half written is that one's to tell.
pub fn begin_anew() {
    let mut output = output();
    // The number is no longer ours to close.
    std::mem::forget(output.to.take());
    (output.lost, output.awaits) = (0, false);
}

/// Replaces stdout and stderr with /dev/null if they are a terminal, for programs that are executed from here on. Messages
/// still reach the terminal until [`leave_terminal`].
pub fn keep_terminal_to_itself() -> io::Result<()> {
    output().open();
    redirect_terminals()
}

/// Replaces stdout and stderr with /dev/null if they are a terminal. Redirected ones stay as they are.
pub fn leave_terminal() -> io::Result<()> {
    let mut output = output();
    (output.to, output.awaits) = (None, false);
    drop(output);
    redirect_terminals()
}

fn redirect_terminals() -> io::Result<()> {
    let null = || OpenOptions::new().write(true).open("/dev/null");
    if is_terminal(io::stdout().as_fd()) {
        dup2_stdout(null()?)?;
    }
    if is_terminal(io::stderr().as_fd()) {
        dup2_stderr(null()?)?;
    }
    Ok(())
}

fn is_terminal(fd: BorrowedFd<'_>) -> bool {
    matches!(kind(fd), Kind::Terminal | Kind::Revoked)
}

/// Whether `fd` is the stream that systemd has connected with the journal: JOURNAL_STREAM names it by device and inode.
pub fn is_journal(fd: BorrowedFd<'_>) -> bool {
    let stream = FileId::of(fd).map(|id| id.to_string());
    stream.is_some() && std::env::var("JOURNAL_STREAM").ok() == stream
}

fn output() -> MutexGuard<'static, Output> {
    OUTPUT.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Output {
    fn open(&mut self) {
        if self.to.is_none() {
            self.to = Outlet::open(io::stderr().as_fd()).ok();
            self.is_journal = is_journal(io::stderr().as_fd());
        }
    }

    fn say(&mut self, level: Level, text: &str) {
        self.open();
        let line = self.line(level, text);
        self.put(&line);
    }

    fn put(&mut self, line: &[u8]) {
        if !(self.settle() && self.to.as_mut().is_some_and(|to| to.write(line))) {
            self.lost += 1;
            self.awaits = false;
        }
    }

    /// Writes the rest of a line, and how many messages were lost. Returns false if stderr does not take that.
    fn settle(&mut self) -> bool {
        let lost = (self.lost > 0).then(|| {
            let (messages, were) = if self.lost == 1 { ("message", "was") } else { ("messages", "were") };
            self.line(Level::Warn, &format!("{} {messages} {were} lost: stderr was full", self.lost))
        });
        let Some(to) = &mut self.to else { return false };
        let settled = to.finish() && lost.is_none_or(|line| to.write(&line));
        if settled {
            self.lost = 0;
        }
        settled
    }

    fn line(&self, level: Level, text: &str) -> Vec<u8> {
        let label = match level {
            Level::Error => "error: ",
            Level::Warn => "warning: ",
            Level::Info | Level::Debug | Level::Trace => "",
        };
        let time = humantime::format_rfc3339_seconds(std::time::SystemTime::now());
        if self.is_json {
            return json_line(&time.to_string(), level, text);
        }
        let time = if self.is_journal { String::new() } else { format!("{time} ") };
        self.ended(format!("{time}panzer: {label}{text}"), level)
    }

    /// Adds the end of the line, and for the journal a priority in front of each line.
    fn ended(&self, text: String, level: Level) -> Vec<u8> {
        let mut text = printable::message(&text);
        if self.is_journal {
            let priority = match level {
                Level::Error => 3,
                Level::Warn => 4,
                Level::Info => 6,
                Level::Debug | Level::Trace => 7,
            };
            text = format!("<{priority}>{}", text.replace('\n', &format!("\n<{priority}>")));
        }
        let mut line = text.into_bytes();
        if line.len() >= MAX_LINE_BYTES {
            line.truncate(MAX_LINE_BYTES - 4);
            line.extend_from_slice(b"...");
        }
        line.push(b'\n');
        line
    }
}

/// A message as a JSON object.
fn json_line(time: &str, level: Level, text: &str) -> Vec<u8> {
    #[derive(Serialize)]
    struct Message<'a> {
        time: &'a str,
        level: String,
        message: &'a str,
    }
    // A line that is cut would not be JSON: the text is cut, which may double in length as it is escaped.
    let end = (0..=text.len().min(MAX_LINE_BYTES / 2 - 128)).rev().find(|at| text.is_char_boundary(*at));
    let message = &text[..end.unwrap_or_default()];
    let level = if level == Level::Warn { "warning".to_owned() } else { level.to_string().to_lowercase() };
    let mut line = serde_json::to_vec(&Message { time, level, message }).unwrap_or_default();
    line.push(b'\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_journal_gets_a_priority_in_the_place_of_the_time() {
        let line = |is_journal, level, text: &str| {
            let output = Output { to: None, is_journal, is_json: false, lost: 0, awaits: false };
            String::from_utf8(output.line(level, text)).unwrap()
        };
        assert_eq!(line(true, Level::Error, "a\nb\n1 | c"), "<3>panzer: error: a?b\n<3>1 | c\n");
        assert_eq!(line(true, Level::Info, "a"), "<6>panzer: a\n");
        assert!(line(false, Level::Warn, "a").ends_with("Z panzer: warning: a\n"));
        let long = line(true, Level::Debug, &"x".repeat(5000));
        assert!(long.len() == MAX_LINE_BYTES && long.starts_with("<7>panzer: x") && long.ends_with("x...\n"));
    }
}
