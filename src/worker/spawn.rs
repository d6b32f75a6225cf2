//! How a process is started: the one room with `unsafe` besides `sys`.
//!
//! The child shares our memory until its exec, as to copy the page tables takes longer than everything else; unlike with
//! vfork, we go on meanwhile, because an exec may hang on a dead file system. A child that takes another user, OOM score
//! or cgroup gets a copy of its own (`fork`). The outcome of the exec comes through a pipe that closes itself, to be watched like
//! everything else, and the memory is kept until then.

use std::cell::RefCell;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::ptr::{self, NonNull};
use std::rc::Rc;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, pipe2, read};
use rustix::thread::CpuSet;
use serde::{Deserialize, Serialize};

use super::child::{self, Descriptors, MIXED, PidEntry, Prepared, ReleaseFile, pid_entry};
use super::identity::Identity;
use super::refusal::Refused;
use crate::config::text::c_string;
use crate::sys::calls::KEEP_ERRNO;
use crate::sys::descriptors::FIRST;
use crate::sys::errno::of_start;
use crate::sys::file_id::FileId;
use crate::sys::output::pipes_anew;
use crate::sys::signals::swap_mask;
use crate::sys::stack::Stack;

/// The longest report of a child, in bytes.
const MAX_REPORT_BYTES: usize = 1 + Refused::BYTES;

/// These variables name the process that they are meant for.
pub const LISTEN_PID: &str = "LISTEN_PID=";
/// Name of the watchdog's variable that holds the worker's pid.
pub const WATCHDOG_PID: &str = "WATCHDOG_PID=";

/// What is executed.
#[derive(Debug)]
pub enum Image<'a> {
    /// The file at this path.
    Path(CString),
    /// The program of a release. The child looks where its path leads by now: to ask a file system may hang.
    Release(Program<'a>),
}

/// The program of a release.
#[derive(Debug)]
pub struct Program<'a> {
    /// Where it was found.
    pub path: &'a Path,
    /// Its file, held open. It is executed if the path leads elsewhere by now.
    pub file: BorrowedFd<'a>,
    /// That file; none if it cannot be looked at.
    pub id: Option<FileId>,
}

/// One process to be started. Built anew for each, as its environment differs.
#[derive(Debug)]
pub struct NewProcess<'a> {
    /// What is executed.
    pub image: Image<'a>,
    /// Its arguments, its own name first.
    pub arguments: Vec<CString>,
    /// Its whole environment, but for the variables that follow.
    pub environment: Vec<CString>,
    /// Variables whose value is the pid that the process turns out to have.
    pub pid_variables: Vec<&'static str>,
    /// What it gets as stdin, in place of ours.
    pub stdin: Option<BorrowedFd<'a>>,
    /// What it gets as stdout and as stderr, in place of ours.
    pub output: [Option<BorrowedFd<'a>>; 2],
    /// Gives it our stdout and stderr as open file descriptions of its own, where they are pipes or terminals.
    pub opens_output_anew: bool,
    /// Descriptors it gets, the first as 3, and so on.
    pub descriptors: Vec<BorrowedFd<'a>>,
    /// Gives it also what lies open from 3 on without close-on-exec.
    pub inherits_descriptors: bool,
    /// Makes it lead a process group of its own.
    pub leads_group: bool,
    /// Leaves all signals blocked, for a role of panzer, which reads them.
    pub keeps_mask: bool,
    /// The signal it gets when its parent dies.
    pub death_signal: Option<Signal>,
    /// As whom, and how, it runs; none: as we do.
    pub identity: Option<Rc<Identity>>,
    /// Where it runs.
    pub place: Place<'a>,
}

/// Where a process runs: as we do, if nothing else is said.
#[derive(Debug, Default)]
pub struct Place<'a> {
    /// The CPUs that it may use.
    pub cpus: Option<CpuSet>,
    /// The entrance of its cgroup.
    pub cgroup: Option<BorrowedFd<'a>>,
}

impl<'a> NewProcess<'a> {
    /// Panzer itself, as a process of its own that is killed when its parent dies. It gets `descriptors` and no other.
    pub fn role(
        image: Image<'a>,
        title: &str,
        environment: Vec<CString>,
        descriptors: Vec<BorrowedFd<'a>>,
    ) -> NewProcess<'a> {
        NewProcess {
            image,
            arguments: vec![c_string(title.as_ref())],
            environment,
            pid_variables: Vec::new(),
            stdin: None,
            output: [None; 2],
            opens_output_anew: false,
            descriptors,
            inherits_descriptors: false,
            leads_group: true,
            keeps_mask: false,
            death_signal: Some(Signal::SIGKILL),
            identity: None,
            place: Place::default(),
        }
    }
}

/// A process that has been started, and may by now have executed its program.
#[derive(Debug, Serialize, Deserialize)]
pub struct Child {
    /// Its pid; an unreaped child of ours.
    #[serde(with = "crate::carry::pid")]
    pub pid: Pid,
    /// Whether the path of a `#!` program leads to another file by now, so that not only this release runs.
    #[serde(skip)]
    pub is_mixed: bool,
    #[serde(with = "crate::carry::descriptor")]
    outcome: OwnedFd,
    /// Our memory that it uses. (An exec of ours does not take it away from the child.)
    #[serde(skip)]
    in_flight: Option<InFlight>,
}

/// What came of the exec so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Not tried yet, or under way.
    Pending,
    /// The program runs, or the process was killed before.
    Done,
    /// Refused. If a release was to be executed, the process waits to be killed, so that its end can be explained.
    Failed(Refused),
}

impl Child {
    /// What has come of the exec. Never waits.
    pub fn outcome(&mut self) -> Outcome {
        let mut bytes = [0; MAX_REPORT_BYTES];
        loop {
            let count = match read(&self.outcome, &mut bytes) {
                Err(Errno::EAGAIN | Errno::EINTR) => return Outcome::Pending,
                other => other.unwrap_or(0),
            };
            let mut report = &bytes[..count];
            if let Some(rest) = report.strip_prefix(&[MIXED]) {
                self.is_mixed = true;
                report = rest;
                if rest.is_empty() {
                    continue;
                }
            }
            if let Some(refused) = report.first_chunk() {
                return Outcome::Failed(Refused::from_bytes(*refused));
            }
            // The pipe has closed itself, which comes after the last use of our memory.
            self.in_flight = None;
            return Outcome::Done;
        }
    }
}

impl AsFd for Child {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.outcome.as_fd()
    }
}

thread_local! {
    /// The memory of children that nobody asks for their outcome any more, each with its pipe.
    static ABANDONED: RefCell<Vec<(OwnedFd, InFlight)>> = const { RefCell::new(Vec::new()) };
}

impl Drop for Child {
    fn drop(&mut self) {
        while self.in_flight.is_some() && self.outcome() != Outcome::Pending {}
        if let Some(in_flight) = self.in_flight.take() {
            match self.outcome.try_clone() {
                Ok(outcome) => ABANDONED.with_borrow_mut(|all| all.push((outcome, in_flight))),
                // Without a way to see the end of its use, it is never freed.
                Err(_) => std::mem::forget(in_flight),
            }
        }
    }
}

/// Frees the memory of abandoned children that are done with it.
fn sweep() {
    let is_used = |outcome: &OwnedFd| read(outcome, &mut [0; MAX_REPORT_BYTES]) != Ok(0);
    ABANDONED.with_borrow_mut(|all| all.retain(|(outcome, _)| is_used(outcome)));
}

/// Starts a child that executes `command`. Never waits. Fails with the errno of the clone, or for want of descriptors.
pub fn spawn(command: NewProcess<'_>) -> io::Result<Child> {
    spawn_by(command, start)
}

/// Starts a child that goes on as `role`, and ends with the code that it returns: an exec would have to load, link and
/// begin everything anew. The child gets the descriptors of `command` and no other. /proc shows the arguments and the
/// environment of `command`; a child in which that is refused executes it after all.
pub fn go_on_as(command: NewProcess<'_>, role: impl FnOnce() -> u8) -> io::Result<Child> {
    spawn_by(command, |mut prepared| {
        let in_child = || {
            // They are children of its parent, and their pipes are closed here.
            ABANDONED.with_borrow_mut(|all| std::mem::forget(std::mem::take(all)));
            prepared.go_on_as(role)
        };
        Ok((fork(in_child)?, None))
    })
}

fn spawn_by(
    command: NewProcess<'_>,
    start: impl FnOnce(Box<Prepared>) -> io::Result<(Pid, Option<InFlight>)>,
) -> io::Result<Child> {
    let (outcome, reporter) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
    // Where the child puts its descriptors nothing of what it still needs may lie.
    let free_from = FIRST + command.descriptors.len() as RawFd;
    let reporter = move_up(reporter, free_from)?;
    let raised = command.descriptors.iter().map(|fd| raise(*fd, free_from)).collect::<nix::Result<Vec<_>>>()?;
    // Not in the child, which would look up each part of the path in /proc for the first time.
    let pipes = pipes_anew(command.output.map(|given| command.opens_output_anew && given.is_none()));
    let leads_group = command.leads_group;
    let given = raised.iter().map(AsRawFd::as_raw_fd).collect();
    sweep();
    // A child that shares our memory must not run a handler of ours.
    let before = swap_mask(u64::MAX);
    let mut prepared = prepare(command, given, reporter.as_raw_fd(), before);
    for (output, pipe) in prepared.descriptors.output.iter_mut().zip(&pipes) {
        *output = output.or(pipe.as_ref().map(AsRawFd::as_raw_fd));
    }
    let started = start(prepared);
    swap_mask(before);
    drop((raised, reporter, pipes));
    let (pid, in_flight) = started.map_err(of_start)?;
    if leads_group {
        // The child does the same; whichever comes first, a signal to the group finds it. After the exec it is refused.
        let _ = nix::unistd::setpgid(pid, pid);
    }
    Ok(Child { pid, is_mixed: false, outcome, in_flight })
}

fn prepare(command: NewProcess<'_>, given: Vec<RawFd>, reporter: RawFd, mask: u64) -> Box<Prepared> {
    let (path, release) = match command.image {
        Image::Path(path) => (path, None),
        Image::Release(Program { path, file, id }) => {
            let file = file.as_raw_fd();
            let through_proc = c_string(format!("/proc/self/fd/{file}").as_ref());
            (c_string(path.as_os_str()), Some(ReleaseFile { file, id, through_proc }))
        }
    };
    let pid_entries: Vec<PidEntry> = command.pid_variables.iter().map(|name| pid_entry(name)).collect();
    let list = |strings: &[CString]| -> Vec<*const libc::c_char> { strings.iter().map(|it| it.as_ptr()).collect() };
    let mut argument_list = list(&command.arguments);
    argument_list.push(ptr::null());
    let mut variable_list = list(&command.environment);
    variable_list.extend(pid_entries.iter().map(|entry| entry.as_ptr().cast()));
    variable_list.push(ptr::null());
    let raw = |fd: BorrowedFd<'_>| fd.as_raw_fd();
    let descriptors = Descriptors {
        given,
        stdin: command.stdin.map(raw),
        output: command.output.map(|output| output.map(raw)),
        opens_terminals_anew: command.opens_output_anew,
        inherits_others: command.inherits_descriptors,
        cgroup: command.place.cgroup.map(raw),
        reporter,
    };
    Box::new(Prepared {
        path,
        release,
        pid_entries,
        strings: [command.arguments, command.environment],
        argument_list,
        variable_list,
        descriptors,
        leads_group: command.leads_group,
        mask: if command.keeps_mask { mask } else { 0 },
        death_signal: command.death_signal,
        identity: command.identity,
        cpus: command.place.cpus,
        parent: Pid::this(),
    })
}

/// Memory of ours that a child uses until it has executed its program or has ended.
#[derive(Debug)]
struct InFlight {
    prepared: NonNull<Prepared>,
    _stack: Stack,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        // SAFETY: it comes from a box, and the child is done with it.
        drop(unsafe { Box::from_raw(self.prepared.as_ptr()) });
    }
}

/// Starts the child. Also returns the memory that it uses, if it shares ours.
fn start(mut prepared: Box<Prepared>) -> io::Result<(Pid, Option<InFlight>)> {
    let needs_own = prepared.identity.as_ref().is_some_and(|identity| identity.needs_own_memory());
    // The kernel ends whoever shares memory with what it ends in a cgroup that is full.
    if needs_own || prepared.descriptors.cgroup.is_some() || !KEEP_ERRNO {
        return Ok((fork(|| child::run((&raw mut *prepared).cast()))?, None));
    }
    let stack = Stack::new()?;
    let in_flight = InFlight { prepared: NonNull::from(Box::leak(prepared)), _stack: stack };
    let argument = in_flight.prepared.as_ptr();
    // SAFETY: the function keeps to these rules. What it uses lives until `Child` or `sweep` has seen the pipe close.
    // All signals are blocked, and the child unblocks them right before its exec, when none of ours is sent to it.
    match unsafe { in_flight._stack.start(child::run, argument.cast()) } {
        // The user mode of qemu knows no such child.
        Err(Errno::EINVAL) => Ok((fork(|| child::run(argument.cast()))?, None)),
        started => Ok((started?, Some(in_flight))),
    }
}

/// Starts the child as a copy of this process, in which `main` never returns.
fn fork<T>(main: impl FnOnce() -> T) -> nix::Result<Pid> {
    // SAFETY: panzer has one thread, so the child is whole.
    let pid = Errno::result(unsafe { libc::fork() })?;
    if pid == 0 {
        main();
        std::process::abort();
    }
    Ok(Pid::from_raw(pid))
}

fn move_up(fd: OwnedFd, free_from: RawFd) -> nix::Result<OwnedFd> {
    if fd.as_raw_fd() >= free_from {
        return Ok(fd);
    }
    duplicate(fd.as_fd(), free_from)
}

fn duplicate(fd: BorrowedFd<'_>, free_from: RawFd) -> nix::Result<OwnedFd> {
    let higher = fcntl(fd, FcntlArg::F_DUPFD_CLOEXEC(free_from))?;
    // SAFETY: fcntl has just made this descriptor, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(higher) })
}

/// A descriptor of the parent, or a duplicate of it with a higher number, which closes itself.
enum Raised<'a> {
    Given(BorrowedFd<'a>),
    Duplicate(OwnedFd),
}

impl AsRawFd for Raised<'_> {
    fn as_raw_fd(&self) -> RawFd {
        match self {
            Raised::Given(fd) => fd.as_raw_fd(),
            Raised::Duplicate(fd) => fd.as_raw_fd(),
        }
    }
}

fn raise(fd: BorrowedFd<'_>, free_from: RawFd) -> nix::Result<Raised<'_>> {
    Ok(if fd.as_raw_fd() >= free_from { Raised::Given(fd) } else { Raised::Duplicate(duplicate(fd, free_from)?) })
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::io::PipeReader;
    use std::io::Read;
    use std::thread;

    use nix::sys::signal::kill;
    use nix::sys::wait::{WaitStatus, waitpid};

    use super::*;
    use crate::config::RunAs;
    use crate::sys::{processes, soon};

    fn shell<'a>(command: &str, stdout: Option<BorrowedFd<'a>>) -> NewProcess<'a> {
        let role = NewProcess::role(Image::Path(c"/bin/sh".to_owned()), "sh", Vec::new(), Vec::new());
        let arguments = ["sh", "-c", command].map(|argument| c_string(argument.as_ref())).to_vec();
        NewProcess { arguments, output: [stdout, None], ..role }
    }

    fn ended(pid: Pid) -> WaitStatus {
        waitpid(pid, None).unwrap()
    }

    fn outcome(child: &mut Child) -> Outcome {
        loop {
            match child.outcome() {
                Outcome::Pending => thread::yield_now(),
                outcome => return outcome,
            }
        }
    }

    fn read_all(mut pipe: PipeReader) -> String {
        let mut text = String::new();
        pipe.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn many_children_that_nobody_waits_for_get_what_is_theirs() {
        let pipes: Vec<(Child, PipeReader)> = (0..50)
            .map(|number| {
                let (pipe, theirs) = io::pipe().unwrap();
                let variables = vec![c_string(format!("NUMBER={number}").as_ref())];
                let command = shell("echo $NUMBER $LISTEN_PID $$", Some(theirs.as_fd()));
                let command = NewProcess { environment: variables, pid_variables: vec![LISTEN_PID], ..command };
                (spawn(command).unwrap(), pipe)
            })
            .collect();
        for (number, (mut child, pipe)) in pipes.into_iter().enumerate() {
            assert_eq!(outcome(&mut child), Outcome::Done);
            assert!(child.in_flight.is_none());
            assert_eq!(read_all(pipe), format!("{number} {pid} {pid}\n", pid = child.pid));
            assert_eq!(ended(child.pid), WaitStatus::Exited(child.pid, 0));
        }
    }

    #[test]
    fn memory_of_a_child_is_kept_until_its_exec_whoever_asks() {
        let count = || ABANDONED.with_borrow(Vec::len);
        let pids: Vec<Pid> = (0..20).map(|_| spawn(shell("exit 3", None)).unwrap().pid).collect();
        for pid in pids {
            assert_eq!(ended(pid), WaitStatus::Exited(pid, 3));
        }
        // The child of another test may hold the pipe for a moment.
        soon(|| {
            sweep();
            (count() == 0).then_some(())
        });
    }

    #[test]
    fn a_refused_release_waits_to_be_killed_and_another_program_ends() {
        let file = File::open("/bin/sh").unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("script");
        fs::write(&path, "").unwrap();
        let script = File::open(&path).unwrap();
        let refused = |path: &Path, file: &File| {
            let image = Image::Release(Program { path, file: file.as_fd(), id: FileId::of(file) });
            let mut child = spawn(NewProcess { image, ..shell("", None) }).unwrap();
            (outcome(&mut child), child)
        };
        let (found, child) = refused(&path, &script);
        assert_eq!(found, Outcome::Failed(Errno::EACCES.into()));
        assert!(processes::is_alive(child.pid));
        kill(child.pid, Signal::SIGKILL).unwrap();
        ended(child.pid);
        // A path that leads nowhere by now is no reason: the file is held.
        let (found, child) = refused(&folder.path().join("gone"), &file);
        assert_eq!(found, Outcome::Done);
        ended(child.pid);

        let missing = Image::Path(c"/nowhere".to_owned());
        let mut child = spawn(NewProcess { image: missing, ..shell("", None) }).unwrap();
        assert_eq!(outcome(&mut child), Outcome::Failed(Errno::ENOENT.into()));
        assert_eq!(ended(child.pid), WaitStatus::Exited(child.pid, 127));
    }

    #[test]
    fn an_oom_score_is_the_childs_alone() {
        let ours = processes::oom_score();
        let asked = RunAs { oom_score_adj: Some(777), ..RunAs::default() };
        let identity = Some(Rc::new(Identity::resolve(&asked).unwrap()));
        let (pipe, theirs) = io::pipe().unwrap();
        let command = shell("read score < /proc/self/oom_score_adj; echo $score", Some(theirs.as_fd()));
        let child = spawn(NewProcess { identity, ..command }).unwrap();
        drop(theirs);
        assert_eq!(read_all(pipe), "777\n");
        assert_eq!(processes::oom_score(), ours);
        ended(child.pid);
    }
}
