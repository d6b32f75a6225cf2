//! What main tells the service manager above it, as sd_notify(3) has it: where `NOTIFY_SOCKET` is in panzer's own
//! environment. A manager that does not listen disturbs nothing.

use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, sendto, socket};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

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
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Told {
    ready: bool,
    /// The last generation whose beginning it was told of.
    begun: u32,
    reloading: bool,
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

    /// What the manager knows, for the next main.
    pub(super) fn told(&self) -> Told {
        self.told.clone()
    }

    /// Goes on where the main before was: what the manager knows is not told again.
    pub(super) fn resume(self, told: Told) -> Upward {
        Upward { told, ..self }
    }

    /// When it has something to do if nothing happens.
    pub(super) fn deadline(&self) -> Option<Instant> {
        // Until a full socket is tried again, a watchdog that is due waits as well.
        self.retry_at.or(self.watchdog.as_ref().map(|watchdog| watchdog.next))
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
            self.send(&format!("READY=1{}\nSTATUS={status}", main_pid()))?;
            self.told.ready = true;
            self.told.begun = overview.serving.map_or(overview.begun, |serving| serving.generation);
            self.told.status.clone_from(&status);
        }
        if self.told.ready && !overview.stopping {
            self.tell_reload(overview)?;
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

    /// Each reload begins and ends, also one that came to nothing at once: `Type=notify-reload` waits for both.
    fn tell_reload(&mut self, overview: Overview) -> Option<()> {
        self.tell_end_of_reload(overview)?;
        if overview.begun > self.told.begun {
            self.send(&format!("RELOADING=1\nMONOTONIC_USEC={}", monotonic_micros()))?;
            self.told.begun = overview.begun;
            self.told.reloading = true;
        }
        self.tell_end_of_reload(overview)
    }

    fn tell_end_of_reload(&mut self, overview: Overview) -> Option<()> {
        let goes_on = overview.starting.is_some_and(|starting| starting.generation == self.told.begun);
        if self.told.reloading && !goes_on {
            self.send("READY=1")?;
            self.told.reloading = false;
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

/// The line that names main, where the manager may have started something else. Not for PID 1: its number means somebody
/// else to a manager outside of its namespace.
fn main_pid() -> String {
    let main = Pid::this();
    if main.as_raw() == 1 { String::new() } else { format!("\nMAINPID={main}") }
}

fn monotonic_micros() -> i64 {
    // This clock is always there.
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |time| time.tv_sec() * 1_000_000 + time.tv_nsec() / 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watchdog_that_is_due_waits_until_a_full_socket_is_tried_again() {
        let now = Instant::now();
        let watchdog = Some(Watchdog { every: RETRY, next: now });
        let mut upward = Upward { to: None, watchdog, told: Told::default(), retry_at: None, failure_told: false };
        assert_eq!(upward.deadline(), Some(now));
        upward.retry_at = Some(now + RETRY);
        assert_eq!(upward.deadline(), Some(now + RETRY));
    }
}
