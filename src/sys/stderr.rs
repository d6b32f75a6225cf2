//! Panzer's own messages. One line, one write, and never a wait: a reader that has stopped must not stop a supervisor.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::printable;
use log::{Level, LevelFilter, Log, Metadata, Record};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::termios::tcgetattr;
use nix::unistd::{dup2_stderr, dup2_stdout, write};

/// A pipe that can be written to takes at least this many bytes at once (PIPE_BUF), so a longer line is cut.
const LONGEST_LINE: usize = 4096;

struct Messages;

static MESSAGES: Messages = Messages;
static LOST: AtomicU64 = AtomicU64::new(0);

/// The terminal, where messages go to it while stderr itself does not lead there.
static TERMINAL: Mutex<Option<OwnedFd>> = Mutex::new(None);

/// Sends what is logged from here on to stderr.
pub fn start(level: LevelFilter) {
    // It is set once in each process.
    let _ = log::set_logger(&MESSAGES);
    set_level(level);
}

/// From here on only this, and what is more serious, is told.
pub fn set_level(level: LevelFilter) {
    log::set_max_level(level);
}

impl Log for Messages {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let lost = LOST.swap(0, Ordering::Relaxed);
        if lost > 0 && !put(&line(Level::Warn, &format!("{lost} messages were lost: stderr was full"))) {
            LOST.fetch_add(lost, Ordering::Relaxed);
        }
        if !put(&line(record.level(), &record.args().to_string())) {
            LOST.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn flush(&self) {}
}

/// Puts /dev/null where stdout or stderr is a terminal, for whatever is executed from here on. Messages still reach that
/// terminal, until [`leave_terminal`].
pub fn keep_terminal_to_itself() -> io::Result<()> {
    let stderr = io::stderr();
    let own = is_terminal(stderr.as_fd()).then(|| stderr.as_fd().try_clone_to_owned()).transpose()?;
    leave_terminal()?;
    *terminal() = own;
    Ok(())
}

/// Puts /dev/null where stdout or stderr is a terminal: what was redirected stays as it is, but nothing of this process
/// depends on a terminal any more.
pub fn leave_terminal() -> io::Result<()> {
    *terminal() = None;
    let null = || OpenOptions::new().write(true).open("/dev/null");
    if is_terminal(io::stdout().as_fd()) {
        dup2_stdout(null()?)?;
    }
    if is_terminal(io::stderr().as_fd()) {
        dup2_stderr(null()?)?;
    }
    Ok(())
}

/// Also one that has been closed, which answers with EIO.
fn is_terminal(fd: BorrowedFd<'_>) -> bool {
    matches!(tcgetattr(fd), Ok(_) | Err(Errno::EIO))
}

fn terminal() -> MutexGuard<'static, Option<OwnedFd>> {
    TERMINAL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Writes what somebody asked for, whatever the level, line by line.
pub fn tell(text: &str) {
    for each in text.lines() {
        if !put(&line(Level::Info, each)) {
            LOST.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn line(level: Level, text: &str) -> Vec<u8> {
    let time = humantime::format_rfc3339_seconds(std::time::SystemTime::now());
    let label = match level {
        Level::Error => "error: ",
        Level::Warn => "warning: ",
        Level::Info | Level::Debug | Level::Trace => "",
    };
    let mut line = format!("{time} panzer: {label}{}\n", printable::lines(text)).into_bytes();
    if line.len() > LONGEST_LINE {
        line.truncate(LONGEST_LINE - 4);
        line.extend_from_slice(b"...\n");
    }
    line
}

/// False where it would have had to wait. A stderr that is closed or broken is nobody's to read: that is no loss.
fn put(line: &[u8]) -> bool {
    match &*terminal() {
        Some(terminal) => put_on(terminal.as_fd(), line),
        None => put_on(io::stderr().as_fd(), line),
    }
}

fn put_on(to: BorrowedFd<'_>, line: &[u8]) -> bool {
    let mut fds = [PollFd::new(to, PollFlags::POLLOUT)];
    match poll(&mut fds, PollTimeout::ZERO) {
        Ok(0) => false,
        _ => {
            let _ = write(to, line);
            true
        }
    }
}
