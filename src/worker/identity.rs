//! The user, group, umask, nice value and limits of workers. A generation's first monitor looks them up; each child assumes them
//! after its fork.

use std::ffi::{OsStr, OsString};
use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::unistd::{Gid, getegid, geteuid, getgroups, getresgid, getresuid};
use rustix::thread::CpuSet;

use serde::{Deserialize, Serialize};

use super::cause::Cause;
use super::resources::Resources;
use super::step::Step;
use crate::config::run_as::NameOrNumber;
use crate::config::{self, Text};
use crate::sys::accounts::{User, group_named};
use crate::sys::errno::words;
use crate::sys::{credentials, output};

/// Variables that name the user of a program.
const VARIABLES: [&str; 4] = ["USER", "LOGNAME", "HOME", "SHELL"];

/// The user, group, umask and nice value of a generation's workers.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Identity {
    whom: Option<Credentials>,
    umask: Option<u32>,
    nice: Option<i32>,
    #[serde(default)]
    resources: Resources,
    variables: Vec<(Text, Text)>,
    forgotten: Vec<Text>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Credentials {
    /// For messages: "user nobody".
    shown: String,
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
    /// Whether all of these are our own already. Then nothing is set, because we may not have the right to.
    are_ours: bool,
}

impl Identity {
    /// Looks up the user and group that `asked` names, as the system has them now.
    pub fn resolve(asked: &config::RunAs) -> Result<Identity, Cause> {
        let mut identity =
            Identity { umask: asked.umask, nice: asked.nice, resources: Resources::of(asked), ..Identity::default() };
        match (&asked.user, &asked.group) {
            (None, None) => {}
            (None, Some(group)) => {
                let gid = find_group(group)?;
                identity.whom = Some(Credentials::new(format!("group {group}"), geteuid().as_raw(), gid, vec![gid]));
            }
            (Some(named), group) => {
                let user = find_user(named)?;
                let gid = group.as_ref().map(find_group).transpose()?;
                let Some(gid) = gid.or(user.as_ref().map(|user| user.gid)) else {
                    return Err(Cause::CannotBecome(format!(
                        "user {named} has no entry that says its group; give one, as in --user {named}:{named}"
                    )));
                };
                let groups = user.as_ref().map_or_else(|| Ok(vec![gid]), |user| groups_of(user, gid))?;
                let uid = match (&user, named) {
                    (Some(user), _) => user.uid,
                    (None, NameOrNumber::Number(number)) => *number,
                    (None, NameOrNumber::Name(_)) => return Err(no_such("user", named)),
                };
                identity.whom = Some(Credentials::new(format!("user {named}"), uid, gid, groups));
                identity.name_in_environment(named, user);
            }
        }
        Ok(identity)
    }

    fn name_in_environment(&mut self, named: &NameOrNumber, user: Option<User>) {
        match user {
            Some(User { name, home, shell, .. }) => {
                let name = OsString::from(name);
                let values = [name.clone(), name, home.into(), shell.clone().into()];
                self.variables = VARIABLES.into_iter().zip(values).map(|(name, value)| pair(name, value)).collect();
                // Programs execute SHELL. A shell that refuses everybody is worse than none.
                let lets_in = !matches!(shell.file_name().and_then(OsStr::to_str), None | Some("nologin" | "false"));
                if !lets_in && let Some((shell, _)) = self.variables.pop() {
                    self.forgotten = vec![shell];
                }
            }
            None => {
                let name = OsString::from(named.to_string());
                self.variables = vec![pair("USER", name.clone()), pair("LOGNAME", name), pair("HOME", "/".into())];
                self.forgotten = vec![Text("SHELL".into())];
            }
        }
    }

    /// The variables that workers inherit, with USER, HOME and the like replaced by those of their user.
    pub fn rename_in(&self, inherited: &[(OsString, OsString)]) -> Vec<(OsString, OsString)> {
        let replaced = |name: &OsStr| {
            self.variables.iter().map(|(known, _)| known).chain(&self.forgotten).any(|known| name == known.0)
        };
        let kept = inherited.iter().filter(|(name, _)| !replaced(name)).cloned();
        let own = self.variables.iter().map(|(name, value)| (name.0.clone(), value.0.clone()));
        kept.chain(own).collect()
    }

    /// The user that workers run as, if it is not ours.
    pub fn other_user(&self) -> Option<u32> {
        self.whom.as_ref().map(|credentials| credentials.uid).filter(|uid| *uid != geteuid().as_raw())
    }

    /// Lets the workers open /dev/stdout and /dev/stderr, if they run as another user.
    pub fn open_output(&self) {
        if let Some(whom) = self.whom.as_ref().filter(|whom| !whom.are_ours && whom.uid != 0) {
            output::open_to_group(whom.gid);
        }
    }

    /// The CPUs of the worker in `slot`; of a mold, which is in none, where all its workers get the same.
    pub fn cpus(&self, slot: Option<u32>) -> Option<CpuSet> {
        self.resources.cpus(slot)
    }

    /// Whether a child that assumes it needs memory of its own from the start. With shared memory, the kernel would set the
    /// OOM score of the parent too, and a process of another user would lie in the parent's memory.
    pub fn needs_own_memory(&self) -> bool {
        self.whom.is_some() || self.resources.sets_oom_score()
    }

    /// In a child, before its exec: changes to this user and group, and proves that there is no way back. Allocates nothing and
    /// takes no lock. Leaves errno alone, unless it [needs memory of its own](Identity::needs_own_memory).
    pub fn assume(&self) -> Result<(), (Step, Errno)> {
        if let Some(mask) = self.umask {
            credentials::set_umask(mask);
        }
        // First, because the right to lower it goes with the user.
        if let Some(nice) = self.nice {
            credentials::set_nice(nice).map_err(|errno| (Step::Nice, errno))?;
        }
        self.resources.assume()?;
        self.whom.as_ref().map_or(Ok(()), Credentials::assume)
    }

    /// Why `step` failed, in words.
    pub fn explain(&self, step: Step, errno: Errno) -> Cause {
        let why = words(&errno.into());
        let shown = self.whom.as_ref().map_or("", |credentials| credentials.shown.as_str());
        let text = match (step, errno) {
            (Step::Nice, _) => {
                format!("cannot set the nice value {}: {why}; only root may lower it", self.nice.unwrap_or_default())
            }
            (Step::Limit | Step::OomScore | Step::Cpus, _) => format!("cannot {}", self.resources.explain(step, errno)),
            (Step::Cgroup, _) => {
                format!("cannot enter the cgroup of its generation (--cgroup): {why}; a reload makes another")
            }
            (Step::Proof, _) => format!("was not started as {shown}: it could have become root again"),
            (_, Errno::EPERM) => {
                format!("cannot become {shown}: {why}; panzer must run as root for --user and --group")
            }
            (Step::User | Step::Group | Step::Groups, Errno::EINVAL) => {
                format!("cannot become {shown}: {why}; is its number mapped in this user namespace?")
            }
            _ => format!("cannot become {shown}: {why}"),
        };
        Cause::CannotBecome(text)
    }

    /// Why the user may not execute the file at `path`, as far as file modes show.
    pub fn barrier(&self, path: &Path) -> Option<String> {
        let credentials = self.whom.as_ref().filter(|credentials| credentials.uid != 0)?;
        let mut folders: Vec<PathBuf> = path.ancestors().skip(1).map(Path::to_owned).collect();
        folders.reverse();
        let refused = |path: &Path| fs::metadata(path).ok().filter(|meta| !credentials.may_execute(meta));
        let mode = |meta: &Metadata| format!("mode {:04o}, owned by uid {}", meta.mode() & 0o7777, meta.uid());
        let shown = &credentials.shown;
        if let Some((folder, meta)) = folders.iter().find_map(|folder| Some((folder, refused(folder)?))) {
            return Some(format!("{shown} may not enter {} ({})", folder.display(), mode(&meta)));
        }
        refused(path).map(|meta| format!("{shown} may not execute it ({})", mode(&meta)))
    }
}

impl Credentials {
    fn new(shown: String, uid: u32, gid: u32, groups: Vec<u32>) -> Credentials {
        let are_ours = are_ours(uid, gid, &groups);
        Credentials { shown, uid, gid, groups, are_ours }
    }

    /// The groups first and the user last, because the right to change groups goes with the user.
    fn assume(&self) -> Result<(), (Step, Errno)> {
        if !self.are_ours {
            credentials::set_groups(&self.groups).map_err(|errno| (Step::Groups, errno))?;
            credentials::set_group(self.gid).map_err(|errno| (Step::Group, errno))?;
            credentials::set_user(self.uid).map_err(|errno| (Step::User, errno))?;
        }
        if self.uid != 0 {
            credentials::drop_capabilities().map_err(|errno| (Step::Capabilities, errno))?;
            if credentials::can_become_root(self.gid != 0) {
                return Err((Step::Proof, Errno::EPERM));
            }
        }
        Ok(())
    }

    fn may_execute(&self, meta: &Metadata) -> bool {
        let shift = if meta.uid() == self.uid {
            6
        } else if meta.gid() == self.gid || self.groups.contains(&meta.gid()) {
            3
        } else {
            0
        };
        meta.mode() >> shift & 1 == 1
    }
}

fn pair(name: &str, value: OsString) -> (Text, Text) {
    (Text(name.into()), Text(value))
}

fn are_ours(uid: u32, gid: u32, groups: &[u32]) -> bool {
    let (Ok(users), Ok(own), Ok(mut ours)) = (getresuid(), getresgid(), getgroups()) else { return false };
    let users = [users.real, users.effective, users.saved];
    let own = [own.real, own.effective, own.saved];
    let mut groups: Vec<Gid> = groups.iter().copied().map(Gid::from_raw).collect();
    // Ignore whether the primary group is also supplementary.
    ours.push(getegid());
    groups.push(Gid::from_raw(gid));
    for list in [&mut ours, &mut groups] {
        list.sort_by_key(|group| group.as_raw());
        list.dedup();
    }
    users.iter().all(|user| user.as_raw() == uid) && own.iter().all(|group| group.as_raw() == gid) && ours == groups
}

fn find_user(named: &NameOrNumber) -> Result<Option<User>, Cause> {
    let found = match named {
        NameOrNumber::Number(number) => return User::numbered(*number).map_err(|why| cannot_find("user", named, &why)),
        NameOrNumber::Name(name) => User::named(name),
    };
    match found {
        Ok(Some(user)) => Ok(Some(user)),
        Ok(None) => Err(no_such("user", named)),
        Err(why) => Err(cannot_find("user", named, &why)),
    }
}

fn find_group(named: &NameOrNumber) -> Result<u32, Cause> {
    match named {
        NameOrNumber::Number(number) => Ok(*number),
        NameOrNumber::Name(name) => match group_named(name) {
            Ok(found) => found.ok_or_else(|| no_such("group", named)),
            Err(why) => Err(cannot_find("group", named, &why)),
        },
    }
}

fn groups_of(user: &User, gid: u32) -> Result<Vec<u32>, Cause> {
    let unknown = |why| Cause::CannotBecome(format!("the groups of user {} cannot be looked up: {why}", user.name));
    user.groups(gid).map_err(unknown)
}

fn no_such(kind: &str, named: &NameOrNumber) -> Cause {
    Cause::CannotBecome(format!("there is no {kind} {named} on this machine; create it, or correct --{kind}"))
}

fn cannot_find(kind: &str, named: &NameOrNumber, why: &str) -> Cause {
    Cause::CannotBecome(format!("{kind} {named} cannot be looked up: {why}; try again, or give numbers"))
}
