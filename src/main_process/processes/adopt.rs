//! Whose the children are that main has adopted: of a monitor that died, by evidence, or strangers'.
//!
//! As PID 1, or where a shell executed panzer in its place, processes fall to main that no worker of its has started.
//! These are reaped, and nothing else.

use std::collections::BTreeSet;

use nix::unistd::Pid;

use super::children::Children;
use crate::main_process::decide::Monitor;
use crate::sys::processes::{self, Clues};
use crate::worker::kin::Mark;

/// So many children are looked at before anything else has its turn.
const MAX_LOOKS: usize = 256;

/// Whose a child is.
enum Whose {
    /// What is left of this monitor.
    Of(Monitor),
    /// A living monitor's, as it seems: that is about to be reaped.
    Undecided,
    Stranger,
}

impl Children {
    /// Finds out whose those are that have been adopted since the last look: without evidence of `dead`, a monitor that
    /// has been reaped, if no stranger can fall to us. Returns the dead monitors of which more is left than was known.
    pub(crate) fn meet(&mut self, dead: Monitor) -> BTreeSet<Monitor> {
        let mut new: Vec<Pid> = processes::children().into_iter().filter(|pid| !self.is_known(*pid)).collect();
        self.unmet = (new.len() > MAX_LOOKS).then_some(dead);
        new.truncate(MAX_LOOKS);
        let mut more = BTreeSet::new();
        for pid in new {
            let clues = Clues::of(pid);
            match self.judge(pid, &clues, dead) {
                Whose::Of(monitor) => {
                    self.kin.add(pid, clues, Some(monitor));
                    more.insert(monitor);
                }
                Whose::Stranger => drop(self.strangers.insert(pid)),
                Whose::Undecided => {}
            }
        }
        if self.unmet.is_some() {
            // What has not been looked at yet may be its.
            more.insert(dead);
        }
        more
    }

    fn judge(&self, pid: Pid, clues: &Clues, dead: Monitor) -> Whose {
        if self.is_given_up((pid.as_raw(), clues.started)) {
            return Whose::Stranger;
        }
        let led = |leader: Pid| {
            // Of several that had the number one after the other the last one counts.
            let had_it =
                self.families.iter().filter_map(|(monitor, family)| Some((family.led(leader, pid)?, *monitor)));
            had_it.max().map(|(_, monitor)| monitor)
        };
        let by_mark = || {
            let mark = Mark::of(pid).filter(|mark| mark.main == Pid::this().as_raw())?;
            let is = |monitor: &Monitor| monitor.generation == mark.generation;
            // A generation may have another monitor by now, whose own are not ours.
            let adopted = || self.kin.owned().map(|(_, monitor)| monitor).find(is);
            let running = || self.monitors().find(is);
            Some(Some(dead).filter(is).or_else(adopted).or_else(running).unwrap_or(dead))
        };
        let own = led(pid).or_else(|| self.kin.owner_by_group(clues, led)).or_else(by_mark);
        match own {
            Some(monitor) if self.pid_of(monitor).is_some() => Whose::Undecided,
            Some(monitor) => Whose::Of(monitor),
            None if self.has_strangers => Whose::Stranger,
            None => Whose::Of(dead),
        }
    }

    /// Neither these nor anything that joins them is waited for any more. Returns them.
    pub(crate) fn give_up(&mut self, monitor: Monitor) -> Vec<Pid> {
        let left: Vec<Pid> = self.kin.of(monitor).collect();
        for pid in &left {
            self.kin.remove(*pid);
            self.strangers.insert(*pid);
        }
        self.families.remove(&monitor);
        left
    }
}
