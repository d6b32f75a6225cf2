//! Panzer's own messages. One line, one write, and never a wait: a reader that has stopped must not stop a supervisor.

use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};

use log::{Level, LevelFilter, Log, Metadata, Record};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::write;

/// A pipe that can be written to takes at least this many bytes at once (PIPE_BUF), so a longer line is cut.
const LONGEST_LINE: usize = 4096;

struct Messages;

static MESSAGES: Messages = Messages;
static LOST: AtomicU64 = AtomicU64::new(0);

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
    let mut line = format!("{time} panzer: {label}{text}\n").into_bytes();
    if line.len() > LONGEST_LINE {
        line.truncate(LONGEST_LINE - 4);
        line.extend_from_slice(b"...\n");
    }
    line
}

/// False where it would have had to wait. A stderr that is closed or broken is nobody's to read: that is no loss.
fn put(line: &[u8]) -> bool {
    let stderr = io::stderr();
    let mut fds = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
    match poll(&mut fds, PollTimeout::ZERO) {
        Ok(0) => false,
        _ => {
            let _ = write(stderr.as_fd(), line);
            true
        }
    }
}
