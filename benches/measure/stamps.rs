//! Moments, as processes write them on a pipe by their first act.

use std::io::{self, PipeReader, PipeWriter, Read};
use std::os::fd::AsFd;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{Pid, getpid, write};

use super::{LIMIT, Measured};

/// Pid, seconds and nanoseconds in native words: what `worker.c` writes.
const RECORD: usize = 24;

/// When a process did its first act, in nanoseconds of the monotonic clock.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stamp {
    pub(crate) pid: Pid,
    pub(crate) at: u64,
}

/// The reading end of the pipe that processes write their stamps to.
pub(crate) struct Stamps {
    pipe: PipeReader,
}

impl Stamps {
    /// A pipe, and the end of it to be given to processes as stdout.
    pub(crate) fn pipe() -> io::Result<(Stamps, PipeWriter)> {
        let (pipe, writer) = io::pipe()?;
        Ok((Stamps { pipe }, writer))
    }

    /// The next stamp. Fails where none comes.
    pub(crate) fn next(&mut self) -> Measured<Stamp> {
        let mut fds = [PollFd::new(self.pipe.as_fd(), PollFlags::POLLIN)];
        if poll(&mut fds, PollTimeout::try_from(LIMIT)?)? == 0 {
            return Err("a worker did not start in time".into());
        }
        let mut record = [0; RECORD];
        self.pipe.read_exact(&mut record)?;
        let mut words = record.chunks_exact(8).map(|word| word.try_into().map_or(0, i64::from_ne_bytes));
        let mut word = || words.next().unwrap_or(0);
        let (pid, seconds, nanoseconds) = (word(), word(), word());
        Ok(Stamp { pid: Pid::from_raw(i32::try_from(pid)?), at: nanoseconds_of(seconds, nanoseconds) })
    }

    /// The next `count` stamps.
    pub(crate) fn take(&mut self, count: usize) -> Measured<Vec<Stamp>> {
        (0..count).map(|_| self.next()).collect()
    }
}

/// Writes a stamp to stdout. Allocates nothing, so that it can be called between fork and exec.
pub(crate) fn write_own() -> io::Result<()> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC)?;
    let mut record = [0; RECORD];
    let words = [i64::from(getpid().as_raw()), now.tv_sec(), now.tv_nsec()];
    for (place, word) in record.chunks_exact_mut(8).zip(words) {
        place.copy_from_slice(&word.to_ne_bytes());
    }
    write(io::stdout(), &record)?;
    Ok(())
}

/// This moment, as a stamp would tell it.
pub(crate) fn now() -> Measured<u64> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC)?;
    Ok(nanoseconds_of(now.tv_sec(), now.tv_nsec()))
}

fn nanoseconds_of(seconds: i64, nanoseconds: i64) -> u64 {
    (seconds * 1_000_000_000 + nanoseconds).unsigned_abs()
}
