//! Processes, pids and parents, as the kernel keeps them. A pid that is free is given to the very next process, so that
//! a signal that comes too late would hit a stranger.

use std::time::Duration;

use nix::sys::signal::Signal;
use panzer::sys::processes::Clues;
use panzer::worker::cause::Cause;

use crate::check::Violation;
use crate::worker_script::Script;

/// Since the world began.
pub(crate) type Time = Duration;

/// Names a process for ever, where a pid is soon another's.
pub(crate) type ProcessId = usize;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Pid(pub(crate) u32);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Main,
    /// By its place among the world's monitors.
    Monitor(usize),
    Worker,
    /// A helper that outlived its worker.
    LeftBehind,
    /// A probe of a worker.
    Probe,
    /// What falls to main as to PID 1, and no worker has started.
    Stranger,
}

/// What a worker's process, or a helper's, has done so far.
#[derive(Debug)]
pub(crate) struct Program {
    pub(crate) script: Script,
    pub(crate) executed: bool,
    /// When it was executed.
    pub(crate) began: Time,
    /// Its monitor has let it listen on a shared port.
    pub(crate) listens: bool,
    /// Got before the exec; they count from then on.
    pub(crate) held_back: Vec<Signal>,
    /// What the kernel sends it when its monitor dies.
    pub(crate) death_signal: Option<Signal>,
    /// A signal has stopped it.
    pub(crate) halted: bool,
}

impl Program {
    fn new(script: Script, executed: bool, death_signal: Option<Signal>) -> Program {
        Program {
            script,
            executed,
            began: Time::ZERO,
            listens: false,
            held_back: Vec::new(),
            death_signal,
            halted: false,
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Life {
    Running,
    Ended(Cause),
    Reaped,
}

#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) pid: Pid,
    pub(crate) group: Pid,
    /// None: init.
    pub(crate) parent: Option<ProcessId>,
    pub(crate) role: Role,
    /// The generation and the slot that its environment names.
    pub(crate) mark: Option<(u32, u32)>,
    pub(crate) began: Time,
    pub(crate) program: Option<Program>,
    life: Life,
    /// It was left to init: with both main and its monitor killed, nobody is there to end it.
    pub(crate) abandoned: bool,
}

impl Process {
    pub(crate) fn is_running(&self) -> bool {
        self.life == Life::Running
    }

    /// A helper of which nothing says whose it is.
    pub(crate) fn is_unknown(&self) -> bool {
        self.role == Role::LeftBehind && self.group == self.pid && self.mark.is_none()
    }

    /// What nobody may signal.
    pub(crate) fn refuses(&self) -> bool {
        self.role == Role::LeftBehind && self.program.as_ref().is_some_and(|program| program.script.refuses)
    }

    pub(crate) fn clues(&self) -> Clues {
        let number = |pid: Pid| nix::unistd::Pid::from_raw(pid.0 as i32);
        let group = (self.group != NO_GROUP).then(|| number(self.group));
        Clues { group, session: None, started: Some(self.began.as_nanos() as u64) }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Kernel {
    processes: Vec<Process>,
    /// Those whose pid is taken.
    unreaped: Vec<ProcessId>,
    /// So many of those have ended.
    zombies: usize,
    free: Vec<Pid>,
    highest: u32,
}

/// Main and monitors are in a group of no interest here.
const NO_GROUP: Pid = Pid(0);

impl Kernel {
    pub(crate) fn start(&mut self, parent: Option<ProcessId>, role: Role) -> ProcessId {
        let pid = self.next_pid();
        let (mark, began, program) = (None, Time::ZERO, None);
        let (group, life, abandoned) = (NO_GROUP, Life::Running, false);
        self.add(Process { pid, group, parent, role, mark, began, program, life, abandoned })
    }

    /// What no worker has started, and falls to `parent`.
    pub(crate) fn stray(&mut self, parent: ProcessId) -> ProcessId {
        let process = self.start(Some(parent), Role::Stranger);
        self.processes[process].group = self.processes[process].pid;
        process
    }

    pub(crate) fn fork_worker(
        &mut self,
        parent: ProcessId,
        (script, mark): (Script, (u32, u32)),
        death_signal: Signal,
        began: Time,
    ) -> ProcessId {
        let pid = self.next_pid();
        let program = Some(Program::new(script, false, Some(death_signal)));
        let parent = Some(parent);
        self.add(Process {
            pid,
            group: pid,
            parent,
            role: Role::Worker,
            mark: Some(mark),
            began,
            program,
            life: Life::Running,
            abandoned: false,
        })
    }

    /// The helper that `worker` left, which becomes its parent's child.
    pub(crate) fn leave_behind(&mut self, worker: ProcessId, script: Script, began: Time) -> ProcessId {
        let mark = self.processes[worker].mark.filter(|_| !script.unmarked);
        let parent = self.processes[worker].parent;
        let pid = self.next_pid();
        let group = if script.daemonizes { pid } else { self.processes[worker].group };
        let program = Some(Program::new(script, true, None));
        let abandoned = parent.is_none();
        let (role, life) = (Role::LeftBehind, Life::Running);
        self.add(Process { pid, group, parent, role, mark, began, program, life, abandoned })
    }

    fn next_pid(&mut self) -> Pid {
        self.free.pop().unwrap_or_else(|| {
            self.highest += 1;
            Pid(self.highest)
        })
    }

    fn add(&mut self, process: Process) -> ProcessId {
        self.processes.push(process);
        self.unreaped.push(self.processes.len() - 1);
        self.processes.len() - 1
    }

    pub(crate) fn process(&self, id: ProcessId) -> &Process {
        &self.processes[id]
    }

    pub(crate) fn program(&mut self, id: ProcessId) -> Option<&mut Program> {
        self.processes[id].program.as_mut()
    }

    pub(crate) fn unreaped(&self) -> impl Iterator<Item = ProcessId> {
        self.unreaped.iter().copied()
    }

    pub(crate) fn running(&self) -> impl Iterator<Item = ProcessId> {
        self.unreaped().filter(|&id| self.processes[id].is_running())
    }

    pub(crate) fn children(&self, parent: ProcessId) -> impl Iterator<Item = ProcessId> {
        self.unreaped().filter(move |&id| self.processes[id].parent == Some(parent))
    }

    pub(crate) fn has_zombies(&self, parent: ProcessId) -> bool {
        self.zombies > 0 && self.children(parent).any(|id| !self.processes[id].is_running())
    }

    /// The unreaped child of `sender` that has this pid. Any other target is a stranger.
    pub(crate) fn target(&self, sender: ProcessId, pid: Pid) -> Result<ProcessId, Violation> {
        let child = self.children(sender).find(|&id| self.processes[id].pid == pid);
        let child = child.filter(|&id| self.processes[id].role != Role::Stranger);
        child.ok_or_else(|| Violation::new(3, format!("a signal for pid {} hits a stranger", pid.0)))
    }

    /// All that run in a group, which must hold an unreaped child of `sender`.
    pub(crate) fn targets(&self, sender: ProcessId, group: Pid) -> Result<Vec<ProcessId>, Violation> {
        let in_group = |&id: &ProcessId| self.processes[id].group == group && self.processes[id].role != Role::Stranger;
        if !self.children(sender).any(|id| in_group(&id)) {
            return Err(Violation::new(3, format!("a signal for group {} hits strangers", group.0)));
        }
        Ok(self.running().filter(in_group).collect())
    }

    /// Makes a zombie of a process; its children become `heir`'s. Returns these.
    pub(crate) fn end(&mut self, id: ProcessId, cause: Cause, heir: Option<ProcessId>) -> Vec<ProcessId> {
        self.processes[id].life = Life::Ended(cause);
        self.zombies += 1;
        let children: Vec<_> = self.children(id).collect();
        for &child in &children {
            self.processes[child].parent = heir;
            self.processes[child].abandoned = heir.is_none() && self.processes[child].program.is_some();
        }
        // Init reaps at once.
        let is_inits = |&id: &ProcessId| self.processes[id].parent.is_none() && !self.processes[id].is_running();
        let reaped: Vec<_> = self.unreaped().filter(is_inits).collect();
        reaped.into_iter().for_each(|id| self.reap(id));
        children
    }

    pub(crate) fn reap_children(&mut self, parent: ProcessId) -> Vec<(ProcessId, Cause)> {
        if !self.has_zombies(parent) {
            return Vec::new();
        }
        let ended = |id: ProcessId| match &self.processes[id].life {
            Life::Ended(cause) => Some((id, cause.clone())),
            Life::Running | Life::Reaped => None,
        };
        let zombies: Vec<_> = self.children(parent).filter_map(ended).collect();
        for (id, _) in &zombies {
            self.reap(*id);
        }
        zombies
    }

    fn reap(&mut self, id: ProcessId) {
        self.processes[id].life = Life::Reaped;
        self.zombies -= 1;
        self.unreaped.retain(|&other| other != id);
        let Process { pid, group, .. } = self.processes[id];
        // A number that still names a group is not given away.
        for number in [pid, group] {
            if number != NO_GROUP && !self.is_taken(number) && !self.free.contains(&number) {
                self.free.push(number);
            }
        }
    }

    /// It names a process or a group.
    pub(crate) fn is_taken(&self, number: Pid) -> bool {
        self.unreaped().any(|id| self.processes[id].pid == number || self.processes[id].group == number)
    }
}
