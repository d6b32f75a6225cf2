//! The one place where a process sleeps: epoll with a deadline.

use std::cell::Cell;
use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::memory;

/// How many descriptors one wake-up tells of; the rest is told of by the next.
const BATCH: usize = 64;

/// Epoll takes milliseconds in an i32; a later deadline is slept to in pieces of this length.
const LONGEST_SLEEP: Duration = Duration::from_secs(24 * 3600);

/// What a process woke for is over when nothing has come for this long.
const LULL: Duration = Duration::from_millis(100);

/// After so many times of being woken it is worth the while to let go of what they needed; for fewer, it costs more.
const MANY: u32 = 4;

/// A set of watched descriptors, each with a token that says what it is.
#[derive(Debug)]
pub struct Poller {
    epoll: Epoll,
    /// How often it was woken since it last let go of what that needed.
    woken: Cell<u32>,
}

impl Poller {
    /// An empty set. Fails where the process has no descriptor left.
    pub fn new() -> io::Result<Poller> {
        Ok(Poller { epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?, woken: Cell::new(MANY) })
    }

    /// Wakes with `token` when `fd` can be read or its other end is gone.
    pub fn watch(&self, fd: impl AsFd, token: u64) -> io::Result<()> {
        Ok(self.epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, token))?)
    }

    /// Wakes with `token` when `fd` is shut down, whoever did that, and for nothing else.
    pub fn watch_hang_up(&self, fd: impl AsFd, token: u64) -> io::Result<()> {
        Ok(self.epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET, token))?)
    }

    /// Also wakes when `fd`, watched already, can be written to, or no longer does.
    pub fn watch_writing(&self, fd: impl AsFd, token: u64, writing: bool) -> io::Result<()> {
        let mut flags = EpollFlags::EPOLLIN;
        flags.set(EpollFlags::EPOLLOUT, writing);
        Ok(self.epoll.modify(fd, &mut EpollEvent::new(flags, token))?)
    }

    /// Wakes when `fd`, watched already, can be read, if `reading`, or written to, if `writing`; and in any case when its
    /// other end is gone.
    pub fn watch_for(&self, fd: impl AsFd, token: u64, reading: bool, writing: bool) -> io::Result<()> {
        let mut flags = EpollFlags::empty();
        flags.set(EpollFlags::EPOLLIN, reading);
        flags.set(EpollFlags::EPOLLOUT, writing);
        Ok(self.epoll.modify(fd, &mut EpollEvent::new(flags, token))?)
    }

    /// Wakes once with `token` when `fd` can be written to, or its other end is gone. To be called again for each time.
    pub fn watch_once_for_writing(&self, fd: impl AsFd, token: u64) -> io::Result<()> {
        let mut event = EpollEvent::new(EpollFlags::EPOLLOUT | EpollFlags::EPOLLONESHOT, token);
        match self.epoll.add(&fd, event) {
            Err(Errno::EEXIST) => Ok(self.epoll.modify(&fd, &mut event)?),
            added => Ok(added?),
        }
    }

    /// Stops watching `fd`. To be called before it is closed: a copy in another process would keep it watched.
    pub fn forget(&self, fd: impl AsFd) {
        // It fails only for a descriptor that is not watched, which is what is wanted.
        let _ = self.epoll.delete(fd);
    }

    /// Sleeps until something watched is ready or `deadline` has come; without one, for ever. Returns the tokens.
    pub fn wait(&self, deadline: Option<Instant>) -> io::Result<Vec<u64>> {
        let mut ready = [EpollEvent::empty(); BATCH];
        let mut wait = |deadline| match self.epoll.wait(&mut ready, timeout(deadline, Instant::now())) {
            Ok(count) => Ok(ready[..count].iter().map(EpollEvent::data).collect()),
            Err(Errno::EINTR) => Ok(Vec::new()),
            Err(errno) => Err(io::Error::from(errno)),
        };
        let mut tokens = Vec::new();
        if deadline.is_none() && self.woken.get() >= MANY {
            tokens = wait(Some(Instant::now() + LULL))?;
            if tokens.is_empty() {
                memory::release_unused();
                self.woken.set(0);
            }
        }
        if tokens.is_empty() {
            tokens = wait(deadline)?;
        }
        self.woken.set(self.woken.get().saturating_add(1));
        Ok(tokens)
    }
}

/// Rounded up to the next millisecond, so that a deadline has come when it wakes.
fn timeout(deadline: Option<Instant>, now: Instant) -> EpollTimeout {
    let Some(deadline) = deadline else { return EpollTimeout::NONE };
    let left = deadline.saturating_duration_since(now).min(LONGEST_SLEEP);
    let millis = left.as_nanos().div_ceil(1_000_000);
    i32::try_from(millis).ok().and_then(|millis| EpollTimeout::try_from(millis).ok()).unwrap_or(EpollTimeout::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_is_never_met_early() {
        let now = Instant::now();
        let after = |micros| timeout(Some(now + Duration::from_micros(micros)), now);
        assert_eq!(after(1), EpollTimeout::from(1u16));
        assert_eq!(after(1_000), EpollTimeout::from(1u16));
        assert_eq!(after(1_001), EpollTimeout::from(2u16));
        assert_eq!(timeout(Some(now), now), EpollTimeout::ZERO);
        assert_eq!(timeout(None, now), EpollTimeout::NONE);
    }
}
