//! The one place where a process sleeps: epoll with a deadline.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

/// Ready descriptors that one wake-up reports. The next one reports the rest.
const MAX_EVENTS: usize = 64;

/// Epoll takes milliseconds in an i32, so a longer sleep is done in pieces of this length.
const MAX_SLEEP: Duration = Duration::from_secs(24 * 3600);

/// A set of watched descriptors, each with a token.
#[derive(Debug)]
pub struct Poller {
    epoll: Epoll,
}

impl Poller {
    /// An empty set. Fails if the process has no descriptor left.
    pub fn new() -> io::Result<Poller> {
        Ok(Poller { epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)? })
    }

    /// Wakes with `token` when `fd` can be read or its other end is gone.
    pub fn watch(&self, fd: impl AsFd, token: u64) -> io::Result<()> {
        Ok(self.epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, token))?)
    }

    /// Wakes with `token` only when `fd` is shut down, by any process.
    pub fn watch_hang_up(&self, fd: impl AsFd, token: u64) -> io::Result<()> {
        Ok(self.epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET, token))?)
    }

    /// Changes when `fd`, which is watched already, wakes: if it can be read (`reading`) or written (`writing`). It always
    /// wakes when its other end is gone.
    pub fn watch_for(&self, fd: impl AsFd, token: u64, reading: bool, writing: bool) -> io::Result<()> {
        let mut flags = EpollFlags::empty();
        flags.set(EpollFlags::EPOLLIN, reading);
        flags.set(EpollFlags::EPOLLOUT, writing);
        Ok(self.epoll.modify(fd, &mut EpollEvent::new(flags, token))?)
    }

    /// Wakes once with `token` when `fd` can be written to, or its other end is gone. Call this again for each time.
    pub fn watch_once_for_writing(&self, fd: impl AsFd, token: u64) -> io::Result<()> {
        let mut event = EpollEvent::new(EpollFlags::EPOLLOUT | EpollFlags::EPOLLONESHOT, token);
        match self.epoll.add(&fd, event) {
            Err(Errno::EEXIST) => Ok(self.epoll.modify(&fd, &mut event)?),
            added => Ok(added?),
        }
    }

    /// Stops watching `fd`. Call this before it is closed: a copy in another process would keep it watched.
    pub fn forget(&self, fd: impl AsFd) {
        // Fails only for a descriptor that is not watched, which is fine.
        let _ = self.epoll.delete(fd);
    }

    /// Sleeps until a watched descriptor is ready, or until `deadline`. Without a deadline it may sleep for ever.
    /// Returns the tokens of the ready descriptors.
    pub fn wait(&self, deadline: Option<Instant>) -> io::Result<Vec<u64>> {
        let mut ready = [EpollEvent::empty(); MAX_EVENTS];
        match self.epoll.wait(&mut ready, timeout(deadline, Instant::now())) {
            Ok(count) => Ok(ready[..count].iter().map(EpollEvent::data).collect()),
            Err(Errno::EINTR) => Ok(Vec::new()),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// Rounded up to the next millisecond, so that a deadline has come when it wakes.
fn timeout(deadline: Option<Instant>, now: Instant) -> EpollTimeout {
    let Some(deadline) = deadline else { return EpollTimeout::NONE };
    let left = deadline.saturating_duration_since(now).min(MAX_SLEEP);
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
