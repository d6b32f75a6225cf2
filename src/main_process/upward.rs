//! What main tells the service manager above it, as sd_notify(3) has it: where `NOTIFY_SOCKET` is in panzer's own
//! environment. A manager that does not listen disturbs nothing.

use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, sendto, socket};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;

use super::state::{Overview, Progress};
use crate::control::role::Environment;

/// When what a full socket did not take is tried again.
const RETRY: Duration = Duration::from_millis(200);

/// The way up.
#[derive(Debug)]
pub(super) struct Upward {
    to: Option<(OwnedFd, UnixAddr)>,
    watchdog: Option<Watchdog>,
    told: Told,
    /// The manager's queue was full.
    retry_at: Option<Instant>,
    failure_told: bool,
}

#[derive(Debug)]
struct Watchdog {
    every: Duration,
    next: Instant,
}

/// What the manager knows.
#[derive(Debug, Default)]
struct Told {
    ready: bool,
    reloading: Option<u32>,
    stopping: bool,
    status: String,
}

impl Upward {
    /// As `environment` says. The variables are panzer's own: no worker sees them.
    pub(super) fn new(environment: &Environment, now: Instant) -> Upward {
        let to = environment.of_manager("NOTIFY_SOCKET").and_then(|name| match open(name) {
            Ok(to) => Some(to),
            Err(errno) => {
                log::warn!("NOTIFY_SOCKET {name} cannot be used: {}", errno.desc().to_lowercase());
                None
            }
        });
        let number = |name| environment.of_manager(name).and_then(|value| value.parse::<u64>().ok());
        let is_ours = environment.of_manager("WATCHDOG_PID").is_none()
            || number("WATCHDOG_PID") == u64::try_from(Pid::this().as_raw()).ok();
        let every = number("WATCHDOG_USEC").filter(|&micros| is_ours && micros > 0);
        let watchdog = every
            .filter(|_| to.is_some())
            // Half of it, as is usual; never so often that nothing else is done.
            .map(|micros| Watchdog {
                every: Duration::from_micros(micros / 2).max(Duration::from_millis(1)),
                next: now,
            });
        Upward { to, watchdog, told: Told::default(), retry_at: None, failure_told: false }
    }

    /// When it has something to do if nothing happens.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.watchdog.as_ref().map(|watchdog| watchdog.next).into_iter().chain(self.retry_at).min()
    }

    /// Tells what has changed, and that main lives where that is due.
    pub(super) fn tell(&mut self, overview: Overview, now: Instant) {
        if self.to.is_none() || self.retry_at.is_some_and(|at| now < at) {
            return;
        }
        self.retry_at = self.tell_changes(overview).is_none().then_some(now + RETRY);
        if let Some(watchdog) = self.watchdog.as_mut().filter(|watchdog| watchdog.next <= now) {
            watchdog.next = now + watchdog.every;
            // One that is not taken is made up for by the next.
            let _ = self.send("WATCHDOG=1");
        }
    }

    /// None where the manager's queue is full: the rest is told later.
    fn tell_changes(&mut self, overview: Overview) -> Option<()> {
        let status = describe(overview);
        if overview.serves && !self.told.ready && !overview.stopping {
            self.send(&format!("READY=1\nMAINPID={}\nSTATUS={status}", Pid::this()))?;
            self.told.ready = true;
            self.told.status.clone_from(&status);
        }
        let reloading = overview.starting.map(|starting| starting.generation).filter(|_| self.told.ready);
        if self.told.reloading.is_some() && self.told.reloading != reloading {
            if !overview.stopping {
                self.send("READY=1")?;
            }
            self.told.reloading = None;
        }
        if reloading.is_some() && self.told.reloading.is_none() {
            self.send(&format!("RELOADING=1\nMONOTONIC_USEC={}", monotonic_micros()))?;
            self.told.reloading = reloading;
        }
        if overview.stopping && !self.told.stopping {
            self.send("STOPPING=1")?;
            self.told.stopping = true;
        }
        if status != self.told.status {
            self.send(&format!("STATUS={status}"))?;
            self.told.status = status;
        }
        Some(())
    }

    /// None where it would have had to wait.
    fn send(&mut self, message: &str) -> Option<()> {
        let Some((from, to)) = &self.to else { return Some(()) };
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        match sendto(from.as_raw_fd(), message.as_bytes(), to, flags) {
            Err(Errno::EAGAIN | Errno::ENOBUFS) => return None,
            Err(errno) if !std::mem::replace(&mut self.failure_told, true) => {
                log::warn!("NOTIFY_SOCKET cannot be told anything: {}", errno.desc().to_lowercase());
            }
            _ => {}
        }
        Some(())
    }
}

fn open(name: &str) -> nix::Result<(OwnedFd, UnixAddr)> {
    let address = match name.strip_prefix('@') {
        Some(name) => UnixAddr::new_abstract(name.as_bytes())?,
        None if name.starts_with('/') => UnixAddr::new(name)?,
        None => return Err(Errno::EAFNOSUPPORT),
    };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok((socket(AddressFamily::Unix, SockType::Datagram, flags, None)?, address))
}

fn describe(overview: Overview) -> String {
    let ready = |Progress { generation, ready, workers, .. }: Progress| {
        format!("{ready} of {workers} workers ready, generation {generation}")
    };
    match overview {
        Overview { stopping: true, .. } => "stopping".to_owned(),
        Overview { serving: Some(serving), starting: Some(starting), .. } => {
            format!("{}; reloading: {}", ready(serving), ready(starting))
        }
        Overview { serving: Some(serving), .. } => ready(serving),
        Overview { .. } => "starting".to_owned(),
    }
}

fn monotonic_micros() -> i64 {
    // This clock is always there.
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |time| time.tv_sec() * 1_000_000 + time.tv_nsec() / 1000)
}
