//! The cgroups of an instance: one for panzer's own processes, and one for the workers of each generation.
//!
//! All lie in the cgroup that panzer was started in. The kernel lets a cgroup either have processes or limit the cgroups
//! below it, so panzer leaves that one.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::unistd::Pid;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::carry::descriptor::Descriptor;
use crate::config::Cgroup;
use crate::control::operator::status;
use crate::sys::errno::words;
use crate::sys::{cgroup, processes};

/// How panzer gets a cgroup that it may divide.
const REMEDY: &str = "panzer needs a cgroup (v2) for itself: under systemd set Delegate=yes in its unit, in a terminal \
                      take systemd-run --user --scope -p Delegate=yes panzer ..., in a container a namespace of its own \
                      with a writable /sys/fs/cgroup (docker run --cgroupns=private --privileged)";

/// Limit of the instances with one name in one cgroup.
const MAX_INSTANCES: u32 = 1000;

/// Limit of the processes that a message names.
const MAX_NAMED: usize = 3;

/// The kernel ends what it kills within milliseconds, unless a process waits for a dead file system.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// The first pause before another look at a cgroup that is to be removed, and the longest one.
const PAUSES: (Duration, Duration) = (Duration::from_millis(5), Duration::from_secs(1));

/// The cgroups of an instance.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Cgroups {
    /// The folder of the cgroup that panzer was started in.
    #[serde(with = "crate::config::text::path")]
    base: PathBuf,
    /// The cgroup of panzer's own processes. The names of the others begin with this one.
    name: String,
    /// Its folder, locked for as long as the instance lives.
    lock: Descriptor,
    /// The controllers that this instance has enabled in `base`.
    enabled: BTreeSet<String>,
    /// The cgroup of each generation.
    leaves: BTreeMap<u32, String>,
    ending: Vec<Ending>,
}

/// A cgroup that is to be removed.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Ending {
    name: String,
    /// For messages: "generation 3".
    whose: String,
    /// When what is left in it is killed.
    #[serde(with = "crate::carry::moment")]
    kill_at: Instant,
    /// When it is given up. None before the kill.
    #[serde(with = "crate::carry::moment::option")]
    until: Option<Instant>,
    #[serde(with = "crate::carry::moment")]
    next: Instant,
    pause: Duration,
}

impl Cgroups {
    /// Divides our cgroup, and moves this process and `waiting` into a part of it. What an earlier instance has left is
    /// killed unless it ends by itself within `patience`. The error is a line.
    pub(crate) fn begin(
        instance: &str,
        limits: &Cgroup,
        waiting: Option<Pid>,
        patience: Duration,
    ) -> Result<Cgroups, String> {
        let refused = |why: String| format!("--cgroup: {why}; {REMEDY}");
        let base = cgroup::own().ok_or_else(|| refused("no cgroup of version 2 is mounted here".to_owned()))?;
        let mut begun = Cgroups::claim(base, instance).map_err(refused)?;
        let entered = begun.enter([Some(Pid::this()), waiting].into_iter().flatten());
        if let Err(why) = entered.and_then(|()| begun.enable(limits)) {
            begun.leave();
            return Err(refused(why));
        }
        begun.take_over(Instant::now() + patience);
        Ok(begun)
    }

    /// Makes the cgroup of panzer's own processes, under the first name that no living instance has.
    fn claim(base: PathBuf, instance: &str) -> Result<Cgroups, String> {
        let plain = |letter: char| letter.is_alphanumeric() || "-_.@".contains(letter);
        let instance: String = instance.chars().map(|letter| if plain(letter) { letter } else { '_' }).collect();
        // A main that was killed may be started again from within its cgroup.
        let is_ours = base.file_name().is_some_and(|name| *name == *format!("panzer-{instance}"));
        let base = base.parent().filter(|_| is_ours).map_or(base.clone(), Path::to_owned);
        for number in 1..=MAX_INSTANCES {
            let name = if number == 1 { format!("panzer-{instance}") } else { format!("panzer-{instance}-{number}") };
            let own = base.join(&name);
            let cannot = |why| format!("cannot make the cgroup {}: {why}", own.display());
            let is_left = own.exists();
            make(&own).map_err(cannot)?;
            let folder = File::open(&own).map_err(|error| cannot(words(&error)))?;
            if flock(&folder, FlockOperation::NonBlockingLockExclusive).is_ok() {
                // One that was killed has left on what it had enabled.
                let on = cgroup::words(&base.join("cgroup.subtree_control")).into_iter();
                let enabled = on.filter(|one| is_left && Cgroup::CONTROLLERS.contains(&one.as_str())).collect();
                let lock = OwnedFd::from(folder).into();
                return Ok(Cgroups { base, name, lock, enabled, leaves: BTreeMap::new(), ending: Vec::new() });
            }
        }
        Err(format!("{MAX_INSTANCES} instances of the name {instance} have a cgroup in {}", base.display()))
    }

    fn own(&self) -> PathBuf {
        self.base.join(&self.name)
    }

    fn enter(&self, pids: impl Iterator<Item = Pid>) -> Result<(), String> {
        for pid in pids {
            if let Err(error) = cgroup::enter(&self.own(), pid) {
                return Err(format!(
                    "cannot move pid {pid} into the cgroup {}: {}",
                    self.own().display(),
                    words(&error)
                ));
            }
        }
        Ok(())
    }

    /// Enables the controllers that these limits need.
    fn enable(&mut self, limits: &Cgroup) -> Result<(), String> {
        let file = self.base.join("cgroup.subtree_control");
        let (on, available) = (cgroup::words(&file), cgroup::words(&self.base.join("cgroup.controllers")));
        let needed = limits.limits().map(|(controller, ..)| controller);
        let missing: Vec<&str> = needed.filter(|controller| !on.iter().any(|one| one == controller)).collect();
        let base = self.base.display();
        if let Some(unknown) = missing.iter().find(|controller| !available.iter().any(|one| one == *controller)) {
            return Err(format!("the cgroup {base} has no controller for {unknown} (it has: {})", available.join(" ")));
        }
        if missing.is_empty() {
            return Ok(());
        }
        let enabled = missing.iter().map(|controller| format!("+{controller}")).collect::<Vec<_>>().join(" ");
        cgroup::write(&file, &enabled).map_err(|error| match Errno::try_from(error) {
            Ok(Errno::EBUSY) => {
                format!("other processes are in the cgroup {base} too: {}", named(&own_processes(&self.base)))
            }
            Ok(errno) => format!("cannot write {enabled} to {}: {}", file.display(), words(&errno.into())),
            Err(error) => format!("cannot write {enabled} to {}: {error:?}", file.display()),
        })?;
        self.enabled.extend(missing.into_iter().map(str::to_owned));
        Ok(())
    }

    /// What belongs to an instance that was killed is removed once it is empty.
    fn take_over(&mut self, kill_at: Instant) {
        let prefix = format!("{}:", self.name);
        let names =
            cgroup::below(&self.base).into_iter().filter_map(|path| path.file_name()?.to_str().map(str::to_owned));
        let left = names.filter(|name| name.starts_with(&prefix));
        let (whose, next, pause) = ("a panzer that was killed".to_owned(), Instant::now(), PAUSES.0);
        let ending = |name| Ending { name, whose: whose.clone(), kill_at, until: None, next, pause };
        self.ending = left.map(ending).collect();
        self.tend(Instant::now());
    }

    /// The cgroup for the workers of this generation, with these limits. The error is a line.
    pub(crate) fn leaf(&mut self, generation: u32, limits: &Cgroup) -> Result<PathBuf, String> {
        self.enable(limits)?;
        let free = || {
            let names = (1..).map(|number| match number {
                1 => format!("{}:{generation}", self.name),
                _ => format!("{}:{generation}.{number}", self.name),
            });
            let is_free = |name: &String| !self.ending.iter().any(|ending| ending.name == *name);
            names.into_iter().find(is_free).unwrap_or_default()
        };
        let name = self.leaves.get(&generation).cloned().unwrap_or_else(free);
        let leaf = self.base.join(&name);
        make(&leaf).map_err(|why| format!("cannot make the cgroup {}: {why}", leaf.display()))?;
        self.leaves.insert(generation, name);
        for (_, file, limit) in limits.limits() {
            let file = leaf.join(file);
            cgroup::write(&file, &limit.to_string())
                .map_err(|error| format!("cannot write {limit} to {}: {}", file.display(), words(&error)))?;
        }
        Ok(leaf)
    }

    /// The generation has ended: what is left of it is killed, and its cgroup removed.
    pub(crate) fn end(&mut self, generation: u32, now: Instant) {
        if let Some(name) = self.leaves.remove(&generation) {
            let whose = format!("generation {generation}");
            self.ending.push(Ending { name, whose, kill_at: now, until: None, next: now, pause: PAUSES.0 });
            self.tend(now);
        }
    }

    /// All generations have ended.
    pub(crate) fn end_all(&mut self, now: Instant) {
        for generation in self.leaves.keys().copied().collect::<Vec<_>>() {
            self.end(generation, now);
        }
    }

    /// Removes cgroups that are due.
    pub(crate) fn tend(&mut self, now: Instant) {
        let base = &self.base;
        self.ending.retain_mut(|ending| ending.next > now || !ending.is_over(&base.join(&ending.name), now));
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.ending.iter().map(|ending| ending.next).min()
    }

    /// Whether nothing that was killed is still ending.
    pub(crate) fn is_idle(&self) -> bool {
        self.ending.iter().all(|ending| ending.until.is_none())
    }

    /// Leaves everything as it was before, as far as nothing else needs it.
    pub(crate) fn leave(&self) {
        let is_shared = cgroup::below(&self.base).iter().any(|other| *other != self.own());
        if !is_shared && !self.enabled.is_empty() {
            let disabled = self.enabled.iter().map(|controller| format!("-{controller}")).collect::<Vec<_>>().join(" ");
            // If this fails, the next line fails too.
            let _ = cgroup::write(&self.base.join("cgroup.subtree_control"), &disabled);
        }
        let left = cgroup::enter(&self.base, Pid::this()).and_then(|()| fs::remove_dir(self.own()));
        if let Err(error) = left {
            log::debug!("the cgroup {} stays: {}", self.own().display(), words(&error));
        }
    }

    /// The cgroup of a generation as operators see it.
    pub(crate) fn status(&self, generation: u32) -> Option<status::Cgroup> {
        let path = self.base.join(self.leaves.get(&generation)?);
        let number = |file| cgroup::number(&path.join(file));
        let (memory, memory_max) = (number("memory.current"), number("memory.max"));
        let (pids, pids_max) = (number("pids.current"), number("pids.max"));
        Some(status::Cgroup { memory, memory_max, pids, pids_max, path })
    }
}

impl Ending {
    /// Removes the cgroup, or kills what is in it. Returns whether there is nothing more to do.
    fn is_over(&mut self, path: &Path, now: Instant) -> bool {
        let Err(error) = cgroup::remove(path) else { return true };
        let left = || named(&cgroup::processes(path));
        match self.until {
            _ if error.kind() != ErrorKind::ResourceBusy => {
                log::warn!("cannot remove the cgroup {}: {}", path.display(), words(&error));
                return true;
            }
            None if self.kill_at <= now => {
                log::info!("killing what {} has left in its cgroup: {}", self.whose, left());
                cgroup::kill(path);
                self.until = Some(now + KILL_TIMEOUT);
                self.pause = PAUSES.0;
            }
            Some(until) if until <= now => {
                log::warn!("the cgroup {} stays, as processes in it do not end: {}", path.display(), left());
                return true;
            }
            // An older kernel does not kill those that were started meanwhile.
            Some(_) => cgroup::kill(path),
            None => {}
        }
        self.next = now + self.pause;
        if self.until.is_none() {
            self.next = self.next.min(self.kill_at);
        }
        self.pause = (self.pause * 2).min(PAUSES.1);
        false
    }
}

fn make(group: &Path) -> Result<(), String> {
    match fs::create_dir(group) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(words(&error)),
        _ => Ok(()),
    }
}

fn own_processes(group: &Path) -> Vec<Pid> {
    cgroup::words(&group.join(cgroup::PROCESSES)).iter().filter_map(|pid| pid.parse().ok().map(Pid::from_raw)).collect()
}

/// "pid 7 (sleep), pid 8 (sh) and 3 more".
fn named(pids: &[Pid]) -> String {
    let name = |pid: &Pid| match pid.as_raw() {
        0 => "one outside of this pid namespace".to_owned(),
        _ => format!("pid {pid} ({})", processes::name_of(*pid)),
    };
    let shown = pids.iter().take(MAX_NAMED).map(name).collect::<Vec<_>>().join(", ");
    match pids.len().saturating_sub(MAX_NAMED) {
        0 if pids.is_empty() => "nothing that can be seen here".to_owned(),
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder that looks like a cgroup with these controllers.
    fn group(path: &Path, controllers: &str) {
        let files =
            [("cgroup.controllers", controllers), ("cgroup.subtree_control", ""), ("memory.max", ""), ("pids.max", "")];
        fs::create_dir_all(path).unwrap();
        files.iter().for_each(|(name, content)| fs::write(path.join(name), content).unwrap());
    }

    #[test]
    fn limits_are_written_where_the_kernel_reads_them() {
        let folder = tempfile::tempdir().unwrap();
        let base = folder.path();
        group(base, "cpu memory pids");
        group(&base.join("panzer-a_b:7"), "");
        let mut cgroups = Cgroups::claim(base.to_owned(), "a/b").unwrap();
        let limits = Cgroup { memory: Some(1 << 30), pids: Some(50) };
        let leaf = cgroups.leaf(7, &limits).unwrap();
        let read = |path: PathBuf| fs::read_to_string(path).unwrap();
        assert_eq!(leaf, base.join("panzer-a_b:7"));
        assert_eq!(read(base.join("cgroup.subtree_control")), "+memory +pids");
        assert_eq!(read(leaf.join("memory.max")), "1073741824");
        assert_eq!(read(leaf.join("pids.max")), "50");
        let status = cgroups.status(7).unwrap();
        assert_eq!((status.memory, status.memory_max, status.pids_max), (None, Some(1 << 30), Some(50)));
        assert_eq!(cgroups.status(8), None);
    }

    #[test]
    fn a_missing_controller_is_named() {
        let folder = tempfile::tempdir().unwrap();
        group(folder.path(), "cpu pids");
        let mut cgroups = Cgroups::claim(folder.path().to_owned(), "x").unwrap();
        let why = cgroups.leaf(1, &Cgroup { memory: Some(1), pids: Some(1) }).unwrap_err();
        assert!(why.ends_with("has no controller for memory (it has: cpu pids)"), "{why}");
    }

    #[test]
    fn each_living_instance_has_a_name_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let claim = || Cgroups::claim(folder.path().to_owned(), "x").unwrap();
        let (first, second) = (claim(), claim());
        assert_eq!([&first.name, &second.name], ["panzer-x", "panzer-x-2"]);
        drop(first);
        assert_eq!(claim().name, "panzer-x");
        assert_eq!(Cgroups::claim(second.own(), "x-2").unwrap().base, folder.path());
    }
}
