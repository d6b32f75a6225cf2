//! Whose a process is that has outlived its parent. Two kinds of evidence survive the parent:
//!
//! - its process group or session: as long as one process is in it, its number is given to no other;
//! - the environment that it was executed with, which names main, the generation and the worker.
//!
//! What shows neither is for the finder to judge.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::sys::processes::{self, Clues};

/// So many bytes of an environment are searched.
const MAX_ENVIRONMENT_BYTES: u64 = 1 << 18;

/// The worker that an environment names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// Main's pid.
    pub main: i32,
    /// The worker's generation.
    pub generation: u32,
    /// Its slot; [`MOLD`] for the mold, and for what it has forked.
    pub worker: u32,
}

/// Stands for the mold where a slot is named.
pub const MOLD: u32 = u32::MAX;

impl Mark {
    /// What the environment of `pid` names. None where it names nothing, or must not be read.
    pub fn of(pid: Pid) -> Option<Mark> {
        let environment = processes::environment_of(pid, MAX_ENVIRONMENT_BYTES)?;
        Mark::in_environment(&environment)
    }

    fn in_environment(environment: &[u8]) -> Option<Mark> {
        let value = |name: &str| {
            let mut entries = environment.split(|&byte| byte == 0);
            let value = entries.find_map(|entry| entry.strip_prefix(name.as_bytes())?.strip_prefix(b"="))?;
            std::str::from_utf8(value).ok()
        };
        Some(Mark {
            main: value("PANZER_MAIN_PID")?.parse().ok()?,
            generation: value("PANZER_GENERATION")?.parse().ok()?,
            worker: match value("PANZER_WORKER_ID") {
                Some(slot) => slot.parse().ok()?,
                // Of a generation only a mold is no worker, and what it starts; and the monitor, which has a role.
                None if value("PANZER_ROLE").is_none() => MOLD,
                None => return None,
            },
        })
    }
}

/// Children that were adopted, and whose each is. They are unreaped, so that their pids are nobody else's.
#[derive(Debug)]
pub struct Kin<Owner> {
    known: BTreeMap<Pid, (Clues, Option<Owner>)>,
    /// Those of which it has been logged that they may not be signalled.
    refused: BTreeSet<Pid>,
}

impl<Owner> Default for Kin<Owner> {
    fn default() -> Kin<Owner> {
        Kin { known: BTreeMap::new(), refused: BTreeSet::new() }
    }
}

impl<Owner: Copy + PartialEq> Kin<Owner> {
    /// Takes in a child that has been adopted.
    pub fn add(&mut self, pid: Pid, clues: Clues, owner: Option<Owner>) {
        self.known.insert(pid, (clues, owner));
    }

    /// Forgets one that has been reaped.
    pub fn remove(&mut self, pid: Pid) {
        self.refused.remove(&pid);
        self.known.remove(&pid);
    }

    /// Whose this one is.
    pub fn owner(&self, pid: Pid) -> Option<Owner> {
        self.known.get(&pid)?.1
    }

    /// Whether it has been taken in.
    pub fn knows(&self, pid: Pid) -> bool {
        self.known.contains_key(&pid)
    }

    /// Whose a process is by its group or its session. `led` says whose leader a pid is, or was.
    pub fn owner_by_group(&self, clues: &Clues, led: impl Fn(Pid) -> Option<Owner>) -> Option<Owner> {
        let leaders = || [clues.group, clues.session].into_iter().flatten();
        let shares = |(other, _): &&(Clues, Option<Owner>)| {
            leaders().any(|leader| other.group == Some(leader) || other.session == Some(leader))
        };
        let known = || self.known.values().filter(shares).find_map(|(_, owner)| *owner);
        leaders().find_map(led).or_else(known)
    }

    /// All that are this one's.
    pub fn of(&self, owner: Owner) -> impl Iterator<Item = Pid> {
        self.known.iter().filter(move |(_, (_, its))| *its == Some(owner)).map(|(pid, _)| *pid)
    }

    /// All that are known to be somebody's.
    pub fn owned(&self) -> impl Iterator<Item = (Pid, Owner)> {
        self.known.iter().filter_map(|(pid, (_, owner))| Some((*pid, (*owner)?)))
    }

    /// Gives each that nobody is known to own to whom `judge` says.
    pub fn settle(&mut self, judge: impl Fn(&Clues) -> Option<Owner>) {
        for (clues, owner) in self.known.values_mut().filter(|(_, owner)| owner.is_none()) {
            *owner = judge(clues);
        }
    }

    /// Sends `signal` to all that are this one's; KILL, or with `to_groups` any, to their groups where these hold nobody
    /// else's children. CONT follows, so that what is stopped can obey. Returns those that refused it for the first time.
    pub fn signal(
        &mut self,
        owner: Owner,
        signal: Signal,
        to_groups: bool,
        is_led: impl Fn(Pid) -> bool,
    ) -> Vec<(Pid, io::Error)> {
        let group_of = |pid: Pid| processes::group_of(pid).filter(|group| *group != nix::unistd::getpgrp());
        let foreign = self.known.iter().filter(|(_, (_, its))| *its != Some(owner));
        let foreign: BTreeSet<Pid> = foreign.filter_map(|(pid, _)| group_of(*pid)).collect();
        let to_groups = to_groups || signal == Signal::SIGKILL;
        let mut reached = BTreeSet::new();
        let mut refused = Vec::new();
        for pid in self.of(owner).collect::<Vec<_>>() {
            // A group that holds an unreaped child of ours cannot be anybody else's.
            let group = group_of(pid).filter(|group| to_groups && !foreign.contains(group) && !is_led(*group));
            let sent = match group {
                Some(group) if reached.contains(&group) => continue,
                Some(group) => processes::stop_group(group, signal),
                None => processes::stop_child(pid, signal),
            };
            match (sent, group) {
                (Err(error), _) if self.refused.insert(pid) => refused.push((pid, error)),
                (Ok(()), Some(group)) => drop(reached.insert(group)),
                _ => {}
            }
        }
        refused
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_environment_names_a_worker() {
        let mark = |text: &str| Mark::in_environment(text.as_bytes());
        let whole = "A=1\0PANZER_WORKER_ID=3\0PANZER_GENERATION=2\0PANZER_MAIN_PID=77\0";
        assert_eq!(mark(whole), Some(Mark { main: 77, generation: 2, worker: 3 }));
        let without = whole.replace("PANZER_WORKER_ID=3", "A=1");
        assert_eq!(mark(&without), Some(Mark { main: 77, generation: 2, worker: MOLD }));
        assert_eq!(mark(&(without + "\0PANZER_ROLE=monitor")), None);
        assert_eq!(mark(&whole.replace("=77", "=x")), None);
        assert_eq!(mark("XPANZER_WORKER_ID=3\0PANZER_WORKER_IDX=3"), None);
        // A program that writes its title there leaves what makes no sense.
        assert_eq!(mark("nginx: worker process\0\0\0\0"), None);
        assert_eq!(mark(""), None);
    }

    #[test]
    fn a_group_or_a_session_says_whose_a_process_is() {
        let pid = Pid::from_raw;
        let clues =
            |group: i32, session: i32| Clues { group: Some(pid(group)), session: Some(pid(session)), started: None };
        let mut kin = Kin::default();
        kin.add(pid(20), clues(10, 5), Some('a'));
        kin.add(pid(30), clues(30, 30), Some('b'));
        let led = |leader: Pid| (leader == pid(40)).then_some('c');
        assert_eq!(kin.owner_by_group(&clues(10, 6), led), Some('a'));
        assert_eq!(kin.owner_by_group(&clues(31, 30), led), Some('b'));
        assert_eq!(kin.owner_by_group(&clues(40, 6), led), Some('c'));
        assert_eq!(kin.owner_by_group(&clues(50, 50), led), None);
        kin.remove(pid(20));
        assert_eq!(kin.owner_by_group(&clues(10, 6), led), None);
    }
}
