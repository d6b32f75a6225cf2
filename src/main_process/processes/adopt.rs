//! Finds the owner of an adopted child: it comes from a monitor that died, or it is a stranger.
//!
//! If main is PID 1, or if a shell executed panzer in its place, main adopts processes that none of its workers
//! started. Main reaps these strangers and does nothing else to them.

use std::collections::BTreeSet;

use nix::unistd::Pid;

use super::children::Children;
use crate::main_process::decide::Monitor;
use crate::sys::processes::{self, Clues};
use crate::worker::kin::Mark;

/// Limit of the children that are looked at before anything else has its turn.
const MAX_LOOKS: usize = 256;

/// The origin of a child.
enum Whose {
    /// It was left by this monitor.
    Of(Monitor),
    /// It seems to belong to a living monitor, which will be reaped in a moment.
    Undecided,
    Stranger,
}

impl Children {
    /// Finds the origin of the children that were adopted since the last look. `dead` is a monitor that has been
    /// reaped; a child without evidence was left by it, unless main may adopt strangers. Returns the dead monitors that
    /// have left more than was known.
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
            // The children that have not been looked at may be its.
            more.insert(dead);
        }
        more
    }

    fn judge(&self, pid: Pid, clues: &Clues, dead: Monitor) -> Whose {
        if self.is_given_up((pid.as_raw(), clues.started)) {
            return Whose::Stranger;
        }
        let led = |leader: Pid| {
            // If several workers had this pid one after the other, the last one counts.
            let had_it =
                self.families.iter().filter_map(|(monitor, family)| Some((family.led(leader, pid)?, *monitor)));
            had_it.max().map(|(_, monitor)| monitor)
        };
        let by_mark = || {
            let mark = Mark::of(pid).filter(|mark| mark.main == Pid::this().as_raw())?;
            let is = |monitor: &Monitor| monitor.generation == mark.generation;
            // The generation may have another monitor by now, whose workers main has not adopted.
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

    /// Main no longer waits for the processes of this monitor, nor for what joins them. Returns them.
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
