//! Notifies the service manager above panzer, as in sd_notify(3), if panzer's own environment has `NOTIFY_SOCKET`. A
//! manager that does not read does no harm.

use std::ffi::OsStr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, sendto, socket};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::control::environment::Environment;
use crate::main_process::decide::{Overview, Progress};
use crate::sys::errno::words;

/// Pause before a notification is tried again. It doubles up to the longest.
const RETRY: Duration = Duration::from_millis(200);
const MAX_RETRY_PAUSE: Duration = Duration::from_secs(5);

/// After this time panzer no longer wakes to try again. It still tries whenever it is awake.
const GIVE_UP: Duration = Duration::from_secs(60);

/// The manager is asked for this much more time at once, and again when a third of it is over.
const EXTENSION: Duration = Duration::from_secs(30);

/// Facts that the service manager knows, and those that it is still to be notified of.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct ServiceManager {
    #[serde(skip)]
    to: Option<(OwnedFd, UnixAddr)>,
    #[serde(skip)]
    watchdog: Option<Watchdog>,
    told: Told,
    /// When a signal asked for a reading of the configuration: the time that the manager gets.
    #[serde(skip)]
    reading_asked: Option<i64>,
    /// Until when the manager waits because it was asked to, and when to ask it again.
    #[serde(skip)]
    extended_to: Option<Instant>,
    #[serde(skip)]
    extend_at: Option<Instant>,
    #[serde(skip)]
    stuck: Option<Stuck>,
    #[serde(skip)]
    failure_told: bool,
}

/// The manager does not take a notification.
#[derive(Debug, Clone, Copy)]
struct Stuck {
    since: Instant,
    pause: Duration,
    retry_at: Option<Instant>,
}

#[derive(Debug)]
struct Watchdog {
    every: Duration,
    next: Instant,
}

/// Facts that the manager knows.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Told {
    ready: bool,
    /// The last generation whose beginning the manager knows.
    begun: u32,
    reloading: bool,
    stopping: bool,
    status: String,
}

impl ServiceManager {
    /// Set up as `environment` says. The variables are panzer's own, and workers do not see them.
    pub(crate) fn new(environment: &Environment, now: Instant) -> ServiceManager {
        let to =
            environment.path_of_manager("NOTIFY_SOCKET").filter(|name| !name.is_empty()).and_then(|name| {
                match open(name) {
                    Ok(to) => Some(to),
                    Err(errno) => {
                        log::warn!("NOTIFY_SOCKET {} cannot be used: {}", name.display(), words(&errno.into()));
                        None
                    }
                }
            });
        let number = |name| environment.of_manager(name).and_then(|value| value.parse::<u64>().ok());
        let is_ours = environment.of_manager("WATCHDOG_PID").is_none()
            || number("WATCHDOG_PID") == u64::try_from(Pid::this().as_raw()).ok();
        let every = number("WATCHDOG_USEC").filter(|&micros| is_ours && micros > 0);
        let watchdog = every
            .filter(|_| to.is_some())
            // Half of the interval, as is usual, but no busy loop.
            .map(|micros| Watchdog {
                every: Duration::from_micros(micros / 2).max(Duration::from_millis(1)),
                next: now,
            });
        ServiceManager { to, watchdog, ..ServiceManager::default() }
    }

    /// Goes on after a restart in place. The manager is not notified again of what it knows.
    pub(crate) fn resume(&mut self, environment: &Environment, now: Instant) {
        let ServiceManager { to, watchdog, .. } = ServiceManager::new(environment, now);
        (self.to, self.watchdog) = (to, watchdog);
    }

    /// A signal asks for a reading of the configuration. `Type=notify-reload` waits for its beginning and its end, even
    /// if nothing changes.
    pub(crate) fn reading_asked(&mut self) {
        self.reading_asked = Some(monotonic_micros());
    }

    /// When something is due.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let watchdog = self.watchdog.as_ref().map(|watchdog| watchdog.next);
        let retry = self.stuck.and_then(|stuck| stuck.retry_at);
        // While a notification is stuck, nothing else is tried.
        retry.or(watchdog.into_iter().chain(self.extend_at).min())
    }

    /// Notifies the manager of changes, and sends its watchdog's signal if that is due. `reading`: the configuration is
    /// being read.
    pub(crate) fn tell(&mut self, overview: Overview, reading: bool, now: Instant) {
        let waits = self.stuck.and_then(|stuck| stuck.retry_at).is_some_and(|at| now < at);
        if self.to.is_none() || waits {
            return;
        }
        match self.tell_all(overview, reading, now) {
            Some(()) => self.stuck = None,
            None => self.put_off(now),
        }
    }

    /// None if the manager does not take a notification. The rest follows later.
    fn tell_all(&mut self, overview: Overview, reading: bool, now: Instant) -> Option<()> {
        self.tell_changes(overview, reading)?;
        self.ask_for_time(overview, now)?;
        if self.watchdog.as_ref().is_some_and(|watchdog| watchdog.next <= now) {
            self.send("WATCHDOG=1")?;
        }
        if let Some(watchdog) = self.watchdog.as_mut().filter(|watchdog| watchdog.next <= now) {
            watchdog.next = now + watchdog.every;
        }
        Some(())
    }

    fn put_off(&mut self, now: Instant) {
        let (since, pause) =
            self.stuck.map_or((now, RETRY), |stuck| (stuck.since, (stuck.pause * 2).min(MAX_RETRY_PAUSE)));
        let retry_at = (now < since + GIVE_UP).then_some(now + pause);
        self.stuck = Some(Stuck { since, pause, retry_at });
        if retry_at.is_none() {
            self.extend_at = None;
            // The next watchdog signal makes up for a lost one.
            if let Some(watchdog) = &mut self.watchdog {
                watchdog.next = watchdog.next.max(now + watchdog.every);
            }
        }
    }

    /// While the manager waits for something, asks it for more time, up to panzer's own limits. It asks for a little at
    /// a time, so that the manager notices if panzer itself hangs.
    fn ask_for_time(&mut self, overview: Overview, now: Instant) -> Option<()> {
        self.extend_at = None;
        let waits = !self.told.ready || self.told.reloading || overview.stopping;
        let Some(until) = overview.busy_until.filter(|until| waits && *until > now) else {
            self.extended_to = None;
            return Some(());
        };
        if self.extended_to.is_none_or(|to| to < until && now + EXTENSION * 2 / 3 >= to) {
            let to = until.min(now + EXTENSION);
            self.send(&format!("EXTEND_TIMEOUT_USEC={}", (to - now).as_micros()))?;
            self.extended_to = Some(to);
        }
        self.extend_at = self.extended_to.filter(|to| *to < until).map(|to| to - EXTENSION * 2 / 3);
        Some(())
    }

    /// None if the manager's queue is full. The rest follows later.
    fn tell_changes(&mut self, overview: Overview, reading: bool) -> Option<()> {
        let status = describe(overview);
        if overview.serves && !self.told.ready && !overview.stopping {
            self.send(&format!("READY=1{}\nSTATUS={status}", main_pid()))?;
            self.told.ready = true;
            self.told.begun = overview.serving.map_or(overview.begun, |serving| serving.generation);
            self.told.status.clone_from(&status);
        }
        if self.told.ready && !overview.stopping {
            self.tell_reload(overview, reading)?;
        } else {
            // The notification that the start is over also ends a reload.
            self.reading_asked = None;
        }
        if overview.stopping && !self.told.stopping {
            self.send("STOPPING=1")?;
            self.told.stopping = true;
            self.extended_to = None;
        }
        if status != self.told.status {
            self.send(&format!("STATUS={status}"))?;
            self.told.status = status;
        }
        Some(())
    }

    /// Each reload begins and ends, even if it came to nothing at once. `Type=notify-reload` waits for both.
    fn tell_reload(&mut self, overview: Overview, reading: bool) -> Option<()> {
        self.tell_end_of_reload(overview, reading || self.reading_asked.is_some())?;
        if let Some(asked) = self.reading_asked {
            self.begin_reload(asked)?;
            self.reading_asked = None;
        }
        if overview.begun > self.told.begun {
            self.begin_reload(monotonic_micros())?;
            self.told.begun = overview.begun;
        }
        self.tell_end_of_reload(overview, reading)
    }

    fn begin_reload(&mut self, asked: i64) -> Option<()> {
        self.send(&format!("RELOADING=1\nMONOTONIC_USEC={asked}"))?;
        self.told.reloading = true;
        self.extended_to = None;
        Some(())
    }

    fn tell_end_of_reload(&mut self, overview: Overview, reading: bool) -> Option<()> {
        let starts = overview.starting.is_some_and(|starting| starting.generation == self.told.begun);
        if self.told.reloading && !starts && !reading {
            self.send("READY=1")?;
            self.told.reloading = false;
        }
        Some(())
    }

    /// None if the manager did not take it. Never waits.
    fn send(&mut self, message: &str) -> Option<()> {
        let Some((from, to)) = &self.to else { return Some(()) };
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        match sendto(from.as_raw_fd(), message.as_bytes(), to, flags) {
            Ok(_) => Some(()),
            Err(Errno::EAGAIN | Errno::ENOBUFS | Errno::ENOMEM | Errno::EINTR) => None,
            // A manager that is being restarted listens again in a moment.
            Err(errno) => {
                if !std::mem::replace(&mut self.failure_told, true) {
                    log::warn!("NOTIFY_SOCKET cannot be told anything: {}", words(&errno.into()));
                }
                None
            }
        }
    }
}

fn open(name: &OsStr) -> nix::Result<(OwnedFd, UnixAddr)> {
    let address = match name.as_bytes() {
        [b'@', name @ ..] => UnixAddr::new_abstract(name)?,
        [b'/', ..] => UnixAddr::new(name)?,
        _ => return Err(Errno::EAFNOSUPPORT),
    };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok((socket(AddressFamily::Unix, SockType::Datagram, flags, None)?, address))
}

fn describe(overview: Overview) -> String {
    let ready = |Progress { generation, ready, workers, .. }: Progress| {
        format!("{ready} of {workers} workers ready, generation {generation}")
    };
    match overview {
        Overview { leaving: true, .. } => "stopping: workers serve on until balancers know".to_owned(),
        Overview { stopping: true, .. } => "stopping".to_owned(),
        Overview { serving: Some(serving), starting: Some(starting), .. } => {
            format!("{}; reloading: {}", ready(serving), ready(starting))
        }
        Overview { serving: Some(serving), .. } => ready(serving),
        Overview { .. } => "starting".to_owned(),
    }
}

/// The line with main's pid, because the manager may have started another process. PID 1 sends none, because its pid
/// means another process outside of its namespace.
fn main_pid() -> String {
    let main = Pid::this();
    if main.as_raw() == 1 { String::new() } else { format!("\nMAINPID={main}") }
}

fn monotonic_micros() -> i64 {
    // This clock always exists.
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |time| time.tv_sec() * 1_000_000 + time.tv_nsec() / 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watchdog_that_is_due_waits_until_a_full_socket_is_tried_again() {
        let now = Instant::now();
        let watchdog = Some(Watchdog { every: RETRY, next: now });
        let mut manager = ServiceManager { watchdog, ..ServiceManager::default() };
        assert_eq!(manager.deadline(), Some(now));
        manager.put_off(now);
        assert_eq!(manager.deadline(), Some(now + RETRY));
    }
}
