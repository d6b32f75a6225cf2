//! Whose processes are there: so that none is left behind, and none of somebody else's is touched.

use std::collections::BTreeSet;
use std::fs;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// What `/proc/PID/stat` says of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Process {
    pub pid: i32,
    pub parent: i32,
    pub session: i32,
    /// In ticks since boot: together with the pid it names one process for ever.
    pub started: u64,
    /// It has ended and waits for its parent to notice.
    pub zombie: bool,
}

/// A process, as a name that is never used again.
pub type Name = (i32, u64);

impl Process {
    /// Looks at one process. None where there is none.
    pub fn look(pid: i32) -> Option<Process> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // "pid (comm) state ppid pgrp session …", and comm may hold spaces and parentheses.
        let fields: Vec<&str> = stat[stat.rfind(')')? + 2..].split_ascii_whitespace().collect();
        Some(Process {
            pid,
            parent: fields.get(1)?.parse().ok()?,
            session: fields.get(3)?.parse().ok()?,
            started: fields.get(19)?.parse().ok()?,
            zombie: matches!(*fields.first()?, "Z" | "X"),
        })
    }

    pub fn name(&self) -> Name {
        (self.pid, self.started)
    }

    /// For a failed test: its pid and its command line.
    pub fn describe(&self) -> String {
        let command = fs::read(format!("/proc/{}/cmdline", self.pid)).unwrap_or_default();
        format!("pid {} (parent {}): {}", self.pid, self.parent, String::from_utf8_lossy(&command).replace('\0', " "))
    }

    fn has_variable(&self, entry: &str) -> bool {
        let environment = fs::read(format!("/proc/{}/environ", self.pid)).unwrap_or_default();
        environment.split(|&byte| byte == 0).any(|variable| variable == entry.as_bytes())
    }
}

fn all() -> Vec<Process> {
    let entries = fs::read_dir("/proc").expect("/proc is mounted");
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(Process::look).filter(|process| !process.zombie).collect()
}

/// The descendants of `ancestor`.
pub fn descendants(ancestor: i32) -> Vec<Process> {
    let all = all();
    let mut family = BTreeSet::from([ancestor]);
    // Children may stand before their parents in /proc, so it is gone through until nobody new is found.
    loop {
        let found: Vec<i32> = all.iter().filter(|one| family.contains(&one.parent)).map(|one| one.pid).collect();
        let before = family.len();
        family.extend(found);
        if family.len() == before {
            return all.into_iter().filter(|one| one.pid != ancestor && family.contains(&one.pid)).collect();
        }
    }
}

/// All that a panzer started, whether it still is above them or not: by descent, by the session that the harness
/// made for it, by the variable that every worker has, and those `seen` among its descendants before.
pub fn started_by(main: i32, seen: &BTreeSet<Name>) -> Vec<Process> {
    let variable = format!("PANZER_MAIN_PID={main}");
    let mut found: BTreeSet<Process> = descendants(main).into_iter().collect();
    found.extend(all().into_iter().filter(|one| {
        one.pid != main && (one.session == main || seen.contains(&one.name()) || one.has_variable(&variable))
    }));
    found.into_iter().collect()
}

/// Kills exactly this process, if it is still that one.
pub fn kill_exactly(process: &Process) {
    if Process::look(process.pid).is_some_and(|there| there.name() == process.name()) {
        // It may just have ended by itself, which is as good.
        let _ = kill(Pid::from_raw(process.pid), Signal::SIGKILL);
    }
}
