//! The environment protocol by which panzer executes itself in another role.
//!
//! `PANZER_ROLE` says which; main also gets `PANZER_IMAGE`, the path that leads to its next build, and `PANZER_PLAN_FD`,
//! or `PANZER_STATE_FD` where it takes the place of another main; a pre-flight gets `PANZER_STATE_FD` and
//! `PANZER_CHANNEL_FD`; a planner `PANZER_PLAN_FD` and `PANZER_ANSWER_FD`; a daemon's main also gets
//! `PANZER_STARTED_FD`; a monitor `PANZER_CHANNEL_FD`, `PANZER_PLAN_FD`,
//! `PANZER_GENERATION`, its listeners by `LISTEN_FDS` from descriptor 3, and the release's descriptors, where another
//! monitor has found it before, by `PANZER_RELEASE_FDS`.

use std::ffi::{CString, OsStr, OsString};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::unistd::Pid;

use crate::config::env_file::is_for_panzer;
use crate::config::text::entry;
use crate::sys::descriptors::{FIRST, adopt, take_over};
use crate::worker::dialects;

/// A role that panzer executes itself in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The process that owns the listeners.
    Main,
    /// Keeper of one generation.
    Monitor,
    /// A new build that shows whether it could take main's place.
    Preflight,
    /// Reader of the configuration.
    Planner,
}

/// What is always called so: the running build, also where the file was replaced meanwhile.
pub const OWN_IMAGE: &str = "/proc/self/exe";

const ROLE: &str = "PANZER_ROLE";
const PLAN_FD: &str = "PANZER_PLAN_FD";
const STATE_FD: &str = "PANZER_STATE_FD";
const IMAGE: &str = "PANZER_IMAGE";
const STARTED_FD: &str = "PANZER_STARTED_FD";
const CHANNEL_FD: &str = "PANZER_CHANNEL_FD";
const ANSWER_FD: &str = "PANZER_ANSWER_FD";
const RELEASE_FDS: &str = "PANZER_RELEASE_FDS";
const GENERATION: &str = "PANZER_GENERATION";
const MAIN_PID: &str = "PANZER_MAIN_PID";
const LISTEN_FDS: &str = "LISTEN_FDS";

/// What the protocol sets, as opposed to what a user does.
const OF_PROTOCOL: [&str; 10] =
    [ROLE, PLAN_FD, STATE_FD, IMAGE, STARTED_FD, CHANNEL_FD, ANSWER_FD, RELEASE_FDS, GENERATION, MAIN_PID];

/// Variables that are meant for one process and never passed on as they came.
const NEVER_PASSED_ON: [&str; 7] =
    ["LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "LISTEN_PIDFDID", "NOTIFY_SOCKET", "WATCHDOG_USEC", WATCHDOG_PID];

/// Variables of panzer's own service manager, which main needs.
const OF_MANAGER: [&str; 3] = ["NOTIFY_SOCKET", "WATCHDOG_USEC", WATCHDOG_PID];

const WATCHDOG_PID: &str = "WATCHDOG_PID";

/// An environment, taken once at the start of a role.
#[derive(Debug)]
pub struct Environment {
    own: Vec<(OsString, OsString)>,
    passed_on: Vec<(OsString, OsString)>,
}

/// How main begins.
#[derive(Debug)]
pub enum Begin {
    /// By this plan.
    Anew(OwnedFd),
    /// In the place of another, by what that knew.
    InPlace(OwnedFd),
}

/// Who waits for a daemon to serve.
#[derive(Debug)]
pub struct Starter {
    /// Its pid.
    pub pid: Pid,
    /// Where it waits for [`STARTED`]; the end without it is a failure.
    pub told: OwnedFd,
}

/// What the starter of a daemon is told once it serves.
pub const STARTED: &[u8] = b"started";

/// What a monitor is given.
#[derive(Debug)]
pub struct MonitorInheritance {
    /// The end of its channel with main.
    pub channel: OwnedFd,
    /// Its assignment.
    pub plan: OwnedFd,
    /// Where each listener lies, from 3 on.
    pub listeners: Vec<OwnedFd>,
    /// Directory and program of the release and what else was looked up, where another monitor has found them.
    pub release: Option<[OwnedFd; 3]>,
}

impl Environment {
    /// Takes this process's environment, and what is meant for panzer itself out of what workers get.
    pub fn take() -> Environment {
        let is_own = |name: &OsStr| {
            is_for_panzer(name.as_bytes())
                || NEVER_PASSED_ON.iter().any(|never| OsStr::new(never) == name)
                || dialects::owns(name)
        };
        let (own, passed_on) = std::env::vars_os().partition(|(name, _)| is_own(name));
        Environment { own, passed_on }
    }

    /// What a worker inherits of it.
    pub fn passed_on(&self) -> &[(OsString, OsString)] {
        &self.passed_on
    }

    /// The value of `name` among what workers inherit.
    pub fn inherited(&self, name: &str) -> Option<&OsStr> {
        self.passed_on.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_os_str())
    }

    /// Which role this process is to take; none for one that a user started.
    pub fn role(&self) -> Result<Option<Role>, String> {
        match self.own(ROLE) {
            None => Ok(None),
            Some("main") => Ok(Some(Role::Main)),
            Some("monitor") => Ok(Some(Role::Monitor)),
            Some("preflight") => Ok(Some(Role::Preflight)),
            Some("planner") => Ok(Some(Role::Planner)),
            Some(other) => Err(format!("{ROLE}={other}: there is no such role; unset it, panzer sets it itself")),
        }
    }

    /// The environment of `role`: what workers inherit, and what the role needs.
    fn for_role(&self, role: Role, own: &[(&str, OsString)]) -> Vec<CString> {
        let role = match role {
            Role::Main => "main",
            Role::Monitor => "monitor",
            Role::Preflight => "preflight",
            Role::Planner => "planner",
        };
        let inherited = self.passed_on.iter().map(|(name, value)| entry(name, value));
        let own = own.iter().map(|(name, value)| entry(OsStr::new(name), value));
        inherited.chain([entry(OsStr::new(ROLE), OsStr::new(role))]).chain(own).collect()
    }

    /// The variables for a main that finds its plan at `plan`, and whose next build `image` will lead to; as a daemon it
    /// is the child of `starter`.
    pub fn for_main(&self, plan: RawFd, image: &Path, starter: Option<&Starter>) -> Vec<CString> {
        self.for_either_main(PLAN_FD, plan, image, starter)
    }

    /// The variables for the main that takes our place, and finds what we know at `state`.
    pub fn for_next_main(&self, state: RawFd, image: &Path) -> Vec<CString> {
        self.for_either_main(STATE_FD, state, image, None)
    }

    fn for_either_main(
        &self,
        document: &'static str,
        fd: RawFd,
        image: &Path,
        starter: Option<&Starter>,
    ) -> Vec<CString> {
        let number = |fd: RawFd| OsString::from(fd.to_string());
        let mut own = vec![(document, number(fd)), (IMAGE, image.as_os_str().to_owned())];
        own.extend(starter.map(|starter| (STARTED_FD, number(starter.told.as_raw_fd()))));
        // The manager meant the process that it started.
        let is_starter = |value: &OsStr| starter.is_some_and(|starter| value == &*starter.pid.to_string());
        let told = OF_MANAGER.iter().filter_map(|name| {
            let value = self.own_os(name)?;
            let is_ours = *name == WATCHDOG_PID && is_starter(value);
            Some((*name, if is_ours { Pid::this().to_string().into() } else { value.to_owned() }))
        });
        own.extend(told);
        own.extend(self.options());
        self.for_role(Role::Main, &own)
    }

    /// The options that the user has set as variables. Main keeps them for the plans to come.
    fn options(&self) -> impl Iterator<Item = (&str, OsString)> {
        let named = self.own.iter().filter_map(|(name, value)| Some((name.to_str()?, value.clone())));
        named.filter(|(name, _)| name.starts_with("PANZER_") && !OF_PROTOCOL.contains(name))
    }

    /// The variables for a planner that gets, from 3 on: what to read, and where to write what it comes to.
    pub fn for_planner(&self) -> Vec<CString> {
        let fds = [(PLAN_FD, FIRST), (ANSWER_FD, FIRST + 1)];
        let fds = fds.map(|(name, fd)| (name, OsString::from(fd.to_string())));
        let own: Vec<_> = fds.into_iter().chain(self.options()).collect();
        self.for_role(Role::Planner, &own)
    }

    /// The variables for a pre-flight that gets, from 3 on: what main knows, and a channel to say what it makes of it.
    pub fn for_preflight(&self) -> Vec<CString> {
        let own = [(STATE_FD, FIRST), (CHANNEL_FD, FIRST + 1)];
        self.for_role(Role::Preflight, &own.map(|(name, fd)| (name, OsString::from(fd.to_string()))))
    }

    /// The variables for a monitor that gets, from 3 on: `listeners` listeners, channel, plan, and the release if any.
    pub fn for_monitor(&self, generation: u32, listeners: usize, with_release: bool) -> Vec<CString> {
        let after = FIRST + listeners as RawFd;
        let mut fds = vec![
            (GENERATION, generation.to_string()),
            // For whoever asks which main the holder of a socket belongs to.
            (MAIN_PID, std::process::id().to_string()),
            (CHANNEL_FD, after.to_string()),
            (PLAN_FD, (after + 1).to_string()),
            (LISTEN_FDS, listeners.to_string()),
        ];
        if with_release {
            fds.push((RELEASE_FDS, format!("{},{},{}", after + 2, after + 3, after + 4)));
        }
        let fds: Vec<_> = fds.into_iter().map(|(name, value)| (name, OsString::from(value))).collect();
        self.for_role(Role::Monitor, &fds)
    }

    /// Takes what main was given: its plan, where nothing came before, or what the main before knew.
    pub fn take_main(&self) -> Result<Begin, String> {
        match self.own(STATE_FD) {
            None => Ok(Begin::Anew(self.descriptor(PLAN_FD)?)),
            Some(_) => Ok(Begin::InPlace(self.descriptor(STATE_FD)?)),
        }
    }

    /// Takes what a pre-flight was given: what main knows, and the channel.
    pub fn take_preflight(&self) -> Result<(OwnedFd, OwnedFd), String> {
        Ok((self.descriptor(STATE_FD)?, self.descriptor(CHANNEL_FD)?))
    }

    /// Takes what a planner was given: what to read, and where to write what it comes to.
    pub fn take_planner(&self) -> Result<(OwnedFd, OwnedFd), String> {
        Ok((self.descriptor(PLAN_FD)?, self.descriptor(ANSWER_FD)?))
    }

    /// The path that leads to main's next build.
    pub fn image(&self) -> Result<PathBuf, String> {
        Ok(PathBuf::from(self.own_os(IMAGE).ok_or_else(|| broken(IMAGE, "missing"))?))
    }

    /// Takes where a daemon's starter waits.
    pub fn take_started(&self) -> Result<Option<OwnedFd>, String> {
        self.own(STARTED_FD).map(|value| descriptor(STARTED_FD, value)).transpose()
    }

    /// Takes what a monitor was given. The listeners stay inheritable: workers find them where they are.
    pub fn take_monitor(&self) -> Result<MonitorInheritance, String> {
        let count: RawFd = self.number(LISTEN_FDS)?;
        let listeners = (FIRST..FIRST.saturating_add(count))
            .map(|number| adopt(number).map_err(|error| broken(LISTEN_FDS, &error.to_string())))
            .collect::<Result<Vec<_>, _>>()?;
        let three = |numbers: &str| {
            let all =
                numbers.split(',').map(|number| descriptor(RELEASE_FDS, number)).collect::<Result<Vec<_>, _>>()?;
            all.try_into().map_err(|_| broken(RELEASE_FDS, "not three numbers"))
        };
        let release = self.own(RELEASE_FDS).map(three).transpose()?;
        Ok(MonitorInheritance {
            channel: self.descriptor(CHANNEL_FD)?,
            plan: self.descriptor(PLAN_FD)?,
            listeners,
            release,
        })
    }

    /// What panzer's own service manager set for it.
    pub fn of_manager(&self, name: &str) -> Option<&str> {
        self.own(name)
    }

    fn own(&self, wanted: &str) -> Option<&str> {
        self.own_os(wanted).and_then(OsStr::to_str)
    }

    fn own_os(&self, wanted: &str) -> Option<&OsStr> {
        self.own.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.as_os_str())
    }

    fn number(&self, name: &str) -> Result<RawFd, String> {
        let value = self.own(name).ok_or_else(|| broken(name, "missing"))?;
        value.parse().map_err(|_| broken(name, "not a number"))
    }

    fn descriptor(&self, name: &str) -> Result<OwnedFd, String> {
        descriptor(name, self.own(name).ok_or_else(|| broken(name, "missing"))?)
    }
}

fn descriptor(name: &str, value: &str) -> Result<OwnedFd, String> {
    let number = value.parse().map_err(|_| broken(name, "not a number"))?;
    take_over(number).map_err(|error| broken(name, &error.to_string()))
}

fn broken(name: &str, why: &str) -> String {
    format!("{name} is {why}, though {ROLE} is set; unset {ROLE}, panzer sets both itself")
}
