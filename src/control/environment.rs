//! The variables by which panzer gives a process its role when it executes itself.
//!
//! | variable | role | value |
//! | --- | --- | --- |
//! | `PANZER_ROLE` | all | the role |
//! | `PANZER_IMAGE` | main | the path at which its next build will be |
//! | `PANZER_PLAN_FD` | monitor, planner, hook | its assignment, its question, its command |
//! | `PANZER_STATE_FD` | main in place of another, pre-flight | what the main before knows |
//! | `PANZER_MEMORY_FD` | logger | the memory that outlives it |
//! //! | `PANZER_CHANNEL_FD` | monitor, pre-flight, logger | its channel with main |
//! | `PANZER_ANSWER_FD` | planner, hook | where to write the plan, what came of the command |
//! | `PANZER_NOFILE` | all | the soft limit of descriptors with which panzer was started |
//! | `PANZER_GENERATION`, `PANZER_MAIN_PID` | monitor | for people who look at its environment |
//! | `LISTEN_FDS` | monitor | number of its listeners, from descriptor 3 on |
//! | `PANZER_RELEASE_FDS` | monitor | the release, if an earlier monitor has found it |

use std::ffi::{CString, OsStr, OsString};
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::anyhow;
use nix::sys::resource::{Resource, getrlimit};
use nix::unistd::Pid;

use crate::config::Rlimit;
use crate::config::files::env::is_for_panzer;
use crate::config::text::entry;
use crate::sys::descriptors::{FIRST, adopt, take_over};
use crate::sys::errno::words;
use crate::worker::dialects;

/// A role that panzer executes itself in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The process that owns the listeners.
    Main,
    /// The process that keeps one generation running.
    Monitor,
    /// A new build that tests whether it can take main's place.
    Preflight,
    /// The process that reads the configuration.
    Planner,
    /// The process that runs a command of the user.
    Hook,
    /// The process that writes the workers' output into files.
    Logger,
}

const ROLES: [(&str, Role); 6] = [
    ("main", Role::Main),
    ("monitor", Role::Monitor),
    ("preflight", Role::Preflight),
    ("planner", Role::Planner),
    ("hook", Role::Hook),
    ("logger", Role::Logger),
];

/// Leads to the running build, even if its file has been replaced.
pub const OWN_IMAGE: &str = "/proc/self/exe";

const ROLE: &str = "PANZER_ROLE";
const PLAN_FD: &str = "PANZER_PLAN_FD";
const STATE_FD: &str = "PANZER_STATE_FD";
const MEMORY_FD: &str = "PANZER_MEMORY_FD";
const IMAGE: &str = "PANZER_IMAGE";
const CHANNEL_FD: &str = "PANZER_CHANNEL_FD";
const ANSWER_FD: &str = "PANZER_ANSWER_FD";
const RELEASE_FDS: &str = "PANZER_RELEASE_FDS";
const NOFILE: &str = "PANZER_NOFILE";
const GENERATION: &str = "PANZER_GENERATION";
const MAIN_PID: &str = "PANZER_MAIN_PID";
const LISTEN_FDS: &str = "LISTEN_FDS";

/// Variables that panzer sets, not the user.
const OF_PROTOCOL: [&str; 11] =
    [ROLE, PLAN_FD, STATE_FD, MEMORY_FD, IMAGE, CHANNEL_FD, ANSWER_FD, RELEASE_FDS, NOFILE, GENERATION, MAIN_PID];

/// Variables that are meant for one process only, and are never passed on unchanged.
const NEVER_PASSED_ON: [&str; 7] =
    ["LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "LISTEN_PIDFDID", "NOTIFY_SOCKET", "WATCHDOG_USEC", WATCHDOG_PID];

/// Variables that panzer's service manager sets and main needs.
const OF_MANAGER: [&str; 3] = ["NOTIFY_SOCKET", "WATCHDOG_USEC", WATCHDOG_PID];

const WATCHDOG_PID: &str = "WATCHDOG_PID";

/// The environment of this process, taken once at its start.
#[derive(Debug)]
pub struct Environment {
    /// Variables for panzer itself.
    own: Vec<(OsString, OsString)>,
    /// Variables for the workers.
    passed_on: Vec<(OsString, OsString)>,
}

/// What the main of a daemon tells its waiting parent when it serves.
pub const STARTED: &[u8] = b"started";

/// The descriptors that a monitor gets.
#[derive(Debug)]
pub struct MonitorInheritance {
    /// Its end of the channel with main.
    pub channel: OwnedFd,
    /// Its assignment.
    pub plan: OwnedFd,
    /// The listeners, from descriptor 3 on.
    pub listeners: Vec<OwnedFd>,
    /// Directory, program and other findings of the release, if an earlier monitor has found them.
    pub release: Option<[OwnedFd; 3]>,
}

impl Environment {
    /// Takes this process's environment, and separates the variables for panzer from those for workers.
    pub fn take() -> Environment {
        let is_own = |name: &OsStr| {
            is_for_panzer(name.as_bytes())
                || NEVER_PASSED_ON.iter().any(|never| OsStr::new(never) == name)
                || dialects::owns(name)
        };
        let (own, passed_on) = std::env::vars_os().partition(|(name, _)| is_own(name));
        Environment { own, passed_on }
    }

    /// The variables that workers inherit.
    pub fn passed_on(&self) -> &[(OsString, OsString)] {
        &self.passed_on
    }

    /// The value of a variable that workers inherit.
    pub fn inherited(&self, name: &str) -> Option<&OsStr> {
        self.passed_on.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_os_str())
    }

    /// The role of this process. None if a user started it.
    pub fn role(&self) -> anyhow::Result<Option<Role>> {
        let Some(name) = self.own(ROLE) else { return Ok(None) };
        let role = ROLES.into_iter().find(|(known, _)| *known == name).map(|(_, role)| role);
        role.map(Some).ok_or_else(|| anyhow!("{ROLE}={name}: there is no such role; unset it, panzer sets it itself"))
    }

    /// The environment for `role`: the variables for workers, and `own`.
    fn of_role(&self, role: Role, own: &[(&str, OsString)]) -> Environment {
        let role = ROLES.into_iter().find(|(_, known)| *known == role).map_or("", |(name, _)| name);
        let limit = self.soft_limit().map(|soft| (NOFILE, soft.to_string().into()));
        let own = [(ROLE, role.into())].into_iter().chain(own.iter().cloned()).chain(limit);
        Environment { own: own.map(|(name, value)| (name.into(), value)).collect(), passed_on: self.passed_on.clone() }
    }

    fn for_role(&self, role: Role, own: &[(&str, OsString)]) -> Vec<CString> {
        self.of_role(role, own).entries()
    }

    /// All of it, as an exec takes it.
    pub fn entries(&self) -> Vec<CString> {
        self.passed_on.iter().chain(&self.own).map(|(name, value)| entry(name, value)).collect()
    }

    /// The soft limit of descriptors before main raised it.
    fn soft_limit(&self) -> Option<u64> {
        match self.own(ROLE) {
            Some(_) => self.own(NOFILE)?.parse().ok(),
            None => getrlimit(Resource::RLIMIT_NOFILE).ok().map(|(soft, _)| soft),
        }
    }

    /// The limit of descriptors that a program of the user gets.
    pub fn descriptor_limit(&self) -> Option<Rlimit> {
        self.soft_limit().and_then(Rlimit::descriptors)
    }

    /// This environment as that of main, whose next build will be at `image`. A daemon's main is not the process that the
    /// user started, which was `started`.
    pub fn into_main(self, image: &Path, started: Pid) -> Environment {
        let limit = self.soft_limit().map(|soft| (NOFILE, soft.to_string().into()));
        let own = [(ROLE, "main".into()), (IMAGE, image.as_os_str().to_owned())].into_iter().chain(limit);
        let own = own.chain(self.kept_by_main(started)).map(|(name, value)| (name.into(), value)).collect();
        Environment { own, passed_on: self.passed_on }
    }

    /// The variables for the main that takes our place, with our state at descriptor `state`.
    pub fn for_next_main(&self, state: RawFd, image: &Path) -> Vec<CString> {
        let mut own = vec![(STATE_FD, number(state)), (IMAGE, image.as_os_str().to_owned())];
        own.extend(self.kept_by_main(Pid::this()));
        self.for_role(Role::Main, &own)
    }

    /// The variables of a service manager, which meant the process `started`, and the options.
    fn kept_by_main(&self, started: Pid) -> impl Iterator<Item = (&str, OsString)> {
        let of_manager = OF_MANAGER.iter().filter_map(move |name| {
            let value = self.own_os(name)?;
            // Main takes the place of that process.
            let is_meant = *name == WATCHDOG_PID && value == &*started.to_string();
            Some((*name, if is_meant { Pid::this().to_string().into() } else { value.to_owned() }))
        });
        of_manager.chain(self.options())
    }

    /// Options that the user has set as variables. Main keeps them for the next plans.
    fn options(&self) -> impl Iterator<Item = (&str, OsString)> {
        let named = self.own.iter().filter_map(|(name, value)| Some((name.to_str()?, value.clone())));
        named.filter(|(name, _)| name.starts_with("PANZER_") && !OF_PROTOCOL.contains(name))
    }

    /// The variables for a planner that gets, from descriptor 3 on: its question, and where to write its answer.
    pub fn for_planner(&self) -> Vec<CString> {
        let mut own = vec![(PLAN_FD, number(FIRST)), (ANSWER_FD, number(FIRST + 1))];
        own.extend(self.options());
        self.for_role(Role::Planner, &own)
    }

    /// The variables for the process of a hook that gets, from descriptor 3 on: its command, and where to write what came
    /// of it.
    pub fn for_hook(&self) -> Vec<CString> {
        self.for_role(Role::Hook, &[(PLAN_FD, number(FIRST)), (ANSWER_FD, number(FIRST + 1))])
    }

    /// The variables for a pre-flight that gets, from descriptor 3 on: main's state, and a channel with main.
    pub fn for_preflight(&self) -> Vec<CString> {
        self.for_role(Role::Preflight, &[(STATE_FD, number(FIRST)), (CHANNEL_FD, number(FIRST + 1))])
    }

    /// The variables for a logger that gets, from descriptor 3 on: its channel with main, and its memory.
    pub fn for_logger(&self) -> Vec<CString> {
        self.for_role(Role::Logger, &[(CHANNEL_FD, number(FIRST)), (MEMORY_FD, number(FIRST + 1))])
    }

    /// The environment for a monitor that gets, from descriptor 3 on: its listeners, channel and assignment, and the release
    /// if there is one.
    pub fn for_monitor(&self, generation: u32, listeners: usize, with_release: bool) -> Environment {
        let after = FIRST + listeners as RawFd;
        let mut own = vec![
            (GENERATION, generation.to_string()),
            // Shows which main the holder of a socket belongs to.
            (MAIN_PID, std::process::id().to_string()),
            (CHANNEL_FD, after.to_string()),
            (PLAN_FD, (after + 1).to_string()),
            (LISTEN_FDS, listeners.to_string()),
        ];
        if with_release {
            own.push((RELEASE_FDS, format!("{},{},{}", after + 2, after + 3, after + 4)));
        }
        let own: Vec<_> = own.into_iter().map(|(name, value)| (name, OsString::from(value))).collect();
        self.of_role(Role::Monitor, &own)
    }

    /// Takes the state of the main whose place this process takes.
    pub fn take_state(&self) -> anyhow::Result<OwnedFd> {
        self.descriptor(STATE_FD)
    }

    /// Takes the descriptors of a pre-flight: main's state, and the channel.
    pub fn take_preflight(&self) -> anyhow::Result<(OwnedFd, OwnedFd)> {
        Ok((self.descriptor(STATE_FD)?, self.descriptor(CHANNEL_FD)?))
    }

    /// Takes the descriptors of a planner or a hook: its question, and where to write its answer.
    pub fn take_question(&self) -> anyhow::Result<(OwnedFd, OwnedFd)> {
        Ok((self.descriptor(PLAN_FD)?, self.descriptor(ANSWER_FD)?))
    }

    /// Takes the descriptors of a logger: its channel with main, and its memory.
    pub fn take_logger(&self) -> anyhow::Result<(OwnedFd, OwnedFd)> {
        Ok((self.descriptor(CHANNEL_FD)?, self.descriptor(MEMORY_FD)?))
    }

    /// The path at which main's next build will be.
    pub fn image(&self) -> anyhow::Result<PathBuf> {
        Ok(PathBuf::from(self.own_os(IMAGE).ok_or_else(|| broken(IMAGE, "missing"))?))
    }

    /// Takes the descriptors of a monitor. The listeners stay inheritable, since workers get them as they are.
    pub fn take_monitor(&self) -> anyhow::Result<MonitorInheritance> {
        let count = self.own(LISTEN_FDS).ok_or_else(|| broken(LISTEN_FDS, "missing"))?;
        let count: RawFd = count.parse().map_err(|_| broken(LISTEN_FDS, "not a number"))?;
        let listeners = (FIRST..FIRST.saturating_add(count))
            .map(|number| adopt(number).map_err(|error| broken(LISTEN_FDS, &words(&error))))
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

    /// A variable that panzer's service manager has set.
    pub fn of_manager(&self, name: &str) -> Option<&str> {
        self.own(name)
    }

    /// The same, where it may be a path of any bytes.
    pub fn path_of_manager(&self, name: &str) -> Option<&OsStr> {
        self.own_os(name)
    }

    fn own(&self, wanted: &str) -> Option<&str> {
        self.own_os(wanted).and_then(OsStr::to_str)
    }

    fn own_os(&self, wanted: &str) -> Option<&OsStr> {
        self.own.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.as_os_str())
    }

    fn descriptor(&self, name: &str) -> anyhow::Result<OwnedFd> {
        descriptor(name, self.own(name).ok_or_else(|| broken(name, "missing"))?)
    }
}

fn number(fd: RawFd) -> OsString {
    fd.to_string().into()
}

fn descriptor(name: &str, value: &str) -> anyhow::Result<OwnedFd> {
    let number = value.parse().map_err(|_| broken(name, "not a number"))?;
    take_over(number).map_err(|error| broken(name, &words(&error)))
}

fn broken(name: &str, why: &str) -> anyhow::Error {
    anyhow!("{name} is {why}, though {ROLE} is set; unset {ROLE}, panzer sets both itself")
}
