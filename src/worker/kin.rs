//! Finds out which worker a process comes from whose parent has ended. Two kinds of evidence survive the parent:
//!
//! - its process group or session: as long as one process is in it, no other gets its number;
//! - the environment that it was executed with, which names main, the generation and the worker.
//!
//! If a process shows neither, the caller decides.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::sys::processes::{self, Clues};

/// Limit of the bytes of an environment that are searched.
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
    /// The worker that the environment of `pid` names. None if it names none, or if it cannot be read.
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
                // A process of a generation without a worker's number is its mold or was started by it, unless it has a
                // role: then it is the monitor.
                None if value("PANZER_ROLE").is_none() => MOLD,
                None => return None,
            },
        })
    }
}

/// Adopted children, each with its owner. They are unreaped, so no other process has their pids.
#[derive(Debug)]
pub struct Kin<Owner> {
    known: BTreeMap<Pid, (Clues, Option<Owner>)>,
    /// Children of which it was logged that a signal was refused.
    refused: BTreeSet<Pid>,
}

impl<Owner> Default for Kin<Owner> {
    fn default() -> Kin<Owner> {
        Kin { known: BTreeMap::new(), refused: BTreeSet::new() }
    }
}

impl<Owner: Copy + PartialEq> Kin<Owner> {
    /// Adds an adopted child.
    pub fn add(&mut self, pid: Pid, clues: Clues, owner: Option<Owner>) {
        self.known.insert(pid, (clues, owner));
    }

    /// Looks again at a child that has ended and is about to be reaped: it may have changed its group or session since it
    /// was added, and what it has left is known by them.
    pub fn look_again(&mut self, pid: Pid) {
        self.known.get_mut(&pid).into_iter().for_each(|(clues, _)| *clues = Clues::of(pid));
    }

    /// Removes a child that was reaped.
    pub fn remove(&mut self, pid: Pid) {
        self.refused.remove(&pid);
        self.known.remove(&pid);
    }

    /// The owner of this child.
    pub fn owner(&self, pid: Pid) -> Option<Owner> {
        self.known.get(&pid)?.1
    }

    /// Whether this child was added.
    pub fn knows(&self, pid: Pid) -> bool {
        self.known.contains_key(&pid)
    }

    /// The owner according to a group or a session. `led` gives the owner of a leader's pid.
    pub fn owner_by_group(&self, clues: &Clues, led: impl Fn(Pid) -> Option<Owner>) -> Option<Owner> {
        let leaders = || [clues.group, clues.session].into_iter().flatten();
        let shares = |(other, _): &&(Clues, Option<Owner>)| {
            leaders().any(|leader| other.group == Some(leader) || other.session == Some(leader))
        };
        let known = || self.known.values().filter(shares).find_map(|(_, owner)| *owner);
        leaders().find_map(led).or_else(known)
    }

    /// All children of this owner.
    pub fn of(&self, owner: Owner) -> impl Iterator<Item = Pid> {
        self.known.iter().filter(move |(_, (_, its))| *its == Some(owner)).map(|(pid, _)| *pid)
    }

    /// All children whose owner is known.
    pub fn owned(&self) -> impl Iterator<Item = (Pid, Owner)> {
        self.known.iter().filter_map(|(pid, (_, owner))| Some((*pid, (*owner)?)))
    }

    /// All children whose owner is not known.
    pub fn without_owner(&self) -> impl Iterator<Item = Pid> {
        self.known.iter().filter(|(_, (_, owner))| owner.is_none()).map(|(pid, _)| *pid)
    }

    /// Gives each child without an owner the one that `judge` returns.
    pub fn settle(&mut self, judge: impl Fn(&Clues) -> Option<Owner>) {
        for (clues, owner) in self.known.values_mut().filter(|(_, owner)| owner.is_none()) {
            *owner = judge(clues);
        }
    }

    /// Sends `signal` to all children of this owner. KILL, or with `to_groups` any signal, goes to their process
    /// groups, unless a group holds children of others. CONT follows, so that stopped processes can obey. Returns the
    /// children that refused a signal for the first time.
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
            // A group with an unreaped child of ours belongs to nobody else.
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
        // A program that writes its title there leaves no valid entry.
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
