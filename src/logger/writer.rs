//! Writes one file, in a thread of its own: a file may hang.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender, TryRecvError};
use std::sync::{Arc, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::eventfd::EventFd;

use super::compress::{self, Names};
use super::decide::rotation::fitting;
use super::decide::store::{FileWord, MAX_FILES, Store, file_word};
use super::memory::Memory;
use crate::config::{LogFile, Logs, Stream};
use crate::control::log_file::{self, Lock, older};
use crate::sys::errno::words;
use crate::sys::file_id::FileId;

/// Pause before the first further try after an error. It doubles up to [`MAX_PAUSE`].
const PAUSE: Duration = Duration::from_millis(100);
const MAX_PAUSE: Duration = Duration::from_secs(5);

/// Time between two messages about errors, if writing works in between.
const ERROR_INTERVAL: Duration = Duration::from_secs(10);

/// Bytes that are written at once into what is not a regular file.
const STREAM_BYTES: usize = 64 << 10;

/// An order of the loop to a writer.
#[derive(Debug)]
pub(super) enum Job {
    /// There is something to write.
    Write,
    /// Write like this from now on.
    Settings(Box<Logs>),
    /// Open the file anew.
    Reopen,
}

/// An open log.
#[derive(Debug)]
struct Open {
    file: File,
    /// Whether it is rotated, and written so that nothing comes twice.
    is_regular: bool,
}

/// How writers tell the loop that they have written everything.
#[derive(Debug)]
pub(super) struct Signal {
    /// Wakes the loop.
    pub(super) done: EventFd,
    /// Whether each writer has nothing to write. Only then the loop changes what is to be written.
    pub(super) idle: [AtomicBool; MAX_FILES],
}

/// One file, and what is to be written into it.
#[derive(Debug)]
pub(super) struct Writer {
    file: usize,
    memory: Memory,
    signal: Arc<Signal>,
    /// Whether the loop has given this writer something to write.
    is_busy: bool,
    /// Whether rotating has failed, and is not tried until the file is opened anew.
    is_stuck: bool,
    logs: Logs,
    names: Names,
    open: Option<Open>,
    /// Pause before the next try, after an error.
    pause: Option<Duration>,
    /// When the last error was logged.
    logged: Option<Instant>,
}

impl Writer {
    /// Starts the thread of this file.
    pub(super) fn start(file: usize, memory: Memory, signal: Arc<Signal>) -> io::Result<Sender<Job>> {
        let (sender, jobs) = mpsc::channel();
        let (logs, names, open, pause, logged) = (Logs::default(), Names::default(), None, None, None);
        let (is_busy, is_stuck) = (false, false);
        let writer = Writer { file, memory, signal, is_busy, is_stuck, logs, names, open, pause, logged };
        thread::Builder::new().name(format!("writer {file}")).stack_size(256 << 10).spawn(move || writer.run(&jobs))?;
        Ok(sender)
    }

    fn run(mut self, jobs: &Receiver<Job>) {
        loop {
            let job = match (self.is_busy, self.pause) {
                (false, _) => jobs.recv().ok(),
                (true, Some(pause)) => match jobs.recv_timeout(pause) {
                    Err(RecvTimeoutError::Timeout) => Some(Job::Write),
                    job => job.ok(),
                },
                (true, None) => match jobs.try_recv() {
                    Err(TryRecvError::Empty) => Some(Job::Write),
                    job => job.ok(),
                },
            };
            match job {
                None => return,
                Some(Job::Write) => self.is_busy = true,
                Some(Job::Settings(logs)) => {
                    if logs.of(self.stream()) != self.logs.of(self.stream()) {
                        self.open = None;
                    }
                    self.logs = *logs;
                }
                Some(Job::Reopen) => {
                    self.open = None;
                    // The other writer has it, if both streams go to one file.
                    let is_its = self.file == 0 || !self.logs.is_joint();
                    if let Err(error) = if is_its { self.opened() } else { Ok(()) } {
                        log::warn!("{}", self.trouble(&error));
                        self.logged = Some(Instant::now());
                    }
                }
            }
            if !self.is_busy || self.log().is_none() {
                continue;
            }
            match self.write() {
                Ok(()) => self.pause = None,
                Err(error) => self.put_off(&error),
            }
            if !self.is_behind() {
                self.is_busy = false;
                self.signal.idle[self.file].store(true, SeqCst);
                // It fails only if the loop has been woken many times already.
                let _ = self.signal.done.write(1);
            }
        }
    }

    fn stream(&self) -> Stream {
        Stream::BOTH[self.file]
    }

    fn log(&self) -> Option<&LogFile> {
        self.logs.of(self.stream())
    }

    fn word(&self, word: FileWord) -> usize {
        self.memory.of_file(self.file, word)
    }

    fn is_behind(&self) -> bool {
        self.word(FileWord::Written) < self.word(FileWord::End)
    }

    fn trouble(&self, error: &io::Error) -> String {
        let name = self.log().map_or_else(String::new, ToString::to_string);
        if log_file::lacks_reader(error) {
            return format!(
                "nobody reads the log {name}. Workers run on; lines that find no room are dropped and counted"
            );
        }
        let remedy = if error.kind() == ErrorKind::StorageFull { "; make room" } else { "" };
        format!(
            "cannot write to the log {name}: {}{remedy}. Workers run on; lines that find no room are dropped and counted",
            words(error)
        )
    }

    fn put_off(&mut self, error: &io::Error) {
        if self.pause.is_none() && self.logged.is_none_or(|logged| logged.elapsed() >= ERROR_INTERVAL) {
            log::warn!("{}", self.trouble(error));
            self.logged = Some(Instant::now());
        }
        self.pause = Some(self.pause.map_or(PAUSE, |pause| (2 * pause).min(MAX_PAUSE)));
        let is_own = self.log().is_some_and(|log| log.own_descriptor().is_some());
        // On a full disk the file stays: it may have been rotated for nothing otherwise.
        if !is_own && error.kind() != ErrorKind::StorageFull {
            self.open = None;
        }
    }

    fn opened(&mut self) -> io::Result<()> {
        let (None, Some(log)) = (&self.open, self.log()) else { return Ok(()) };
        let open = match log.own_descriptor() {
            Some(number) => {
                let (stdout, stderr) = (io::stdout(), io::stderr());
                let own: BorrowedFd<'_> = if number == 1 { stdout.as_fd() } else { stderr.as_fd() };
                Open { file: File::from(own.try_clone_to_owned()?), is_regular: false }
            }
            None => {
                let file = log_file::open(log)?;
                Open { is_regular: file.metadata()?.is_file(), file }
            }
        };
        self.open = Some(open);
        self.is_stuck = false;
        Ok(())
    }

    /// Writes some of what is to be written.
    fn write(&mut self) -> io::Result<()> {
        self.opened()?;
        let Some(open) = &mut self.open else { return Ok(()) };
        let (from, to) =
            (self.memory.of_file(self.file, FileWord::Written), self.memory.of_file(self.file, FileWord::End));
        if !open.is_regular {
            let written = open.file.write(self.memory.part(from, to.min(from + STREAM_BYTES)))?;
            self.memory.store(file_word(self.file, FileWord::Written), (from + written) as u64);
            return Ok(());
        }
        let lock = Lock::take(&open.file);
        // Somebody may have made it shorter, or longer.
        let length = (&open.file).seek(SeekFrom::End(0))?;
        let limit = if self.is_stuck { 0 } else { self.logs.log_size };
        let count = fitting(self.memory.part(from, to), self.memory.has_begun_line(self.file), length, limit);
        if count == 0 {
            drop(lock);
            return self.rotate();
        }
        match self.memory.put(&open.file, self.file, count)? {
            0 => Err(io::Error::from(ErrorKind::WriteZero)),
            _ => Ok(()),
        }
    }

    /// Gives the file its next name, and opens another. One that somebody has moved away is left there.
    fn rotate(&mut self) -> io::Result<()> {
        let Some(open) = self.open.take() else { return Ok(()) };
        let Some(log) = self.log() else { return Ok(()) };
        let (path, keep) = (log.path.clone(), self.logs.log_keep);
        let renamed = {
            let _names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
            let _lock = Lock::take(&open.file);
            let is_there = FileId::at(&path).is_some_and(|id| Some(id) == FileId::of(open.file.as_fd()));
            is_there.then(|| shift(&path, keep).and_then(|()| fs::rename(&path, older(&path, 1, false))))
        };
        match renamed {
            Some(Err(error)) => {
                let (name, why) = (path.display(), words(&error));
                log::warn!("{name} cannot be rotated, and grows on until it is reopened: {why}");
                (self.open, self.is_stuck) = (Some(open), true);
                return Ok(());
            }
            Some(Ok(())) if self.logs.log_compress => compress::begin(path, keep, self.names.clone()),
            _ => {}
        }
        self.opened()
    }
}

fn unless_missing(done: io::Result<()>) -> io::Result<()> {
    done.or_else(|error| if error.kind() == ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

/// Makes room for a file of number 1: each older file gets the next number, and the last one is removed.
fn shift(path: &Path, keep: u32) -> io::Result<()> {
    let exists = |number| [false, true].map(|gz| older(path, number, gz).symlink_metadata().is_ok());
    // Files behind a gap stay.
    let free = (1..=keep).find(|number| exists(*number) == [false; 2]).unwrap_or(keep);
    for number in (1..=free).rev() {
        for compressed in [false, true] {
            let from = older(path, number, compressed);
            let moved = match number {
                _ if number == keep => fs::remove_file(from),
                _ => fs::rename(from, older(path, number + 1, compressed)),
            };
            unless_missing(moved)?;
        }
    }
    // More were kept before.
    for number in (keep + 1..).take_while(|number| exists(*number) != [false; 2]) {
        [false, true].into_iter().try_for_each(|gz| unless_missing(fs::remove_file(older(path, number, gz))))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn older_files_move_on_and_the_last_one_goes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.log");
        for (number, compressed) in [(1, false), (2, true), (4, false)] {
            fs::write(older(&path, number, compressed), number.to_string()).unwrap();
        }
        let names = || {
            let mut names: Vec<_> =
                fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            names
        };
        shift(&path, 5).unwrap();
        assert_eq!(names(), ["a.log.2", "a.log.3.gz", "a.log.4"]);
        fs::write(older(&path, 1, false), "1").unwrap();
        shift(&path, 3).unwrap();
        assert_eq!(names(), ["a.log.2", "a.log.3"]);
    }
}
