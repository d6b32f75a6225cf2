//! Fork and exec: the one room with `unsafe` besides `sys`.
//!
//! A plain fork, not vfork or posix_spawn: the parent must not wait for an exec that hangs on a dead file system, and
//! a process this small is copied in about the same time. The outcome of the exec comes through a pipe that closes
//! itself, to be watched like everything else.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::ptr;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::libc;
use nix::sys::signal::Signal;
use nix::sys::stat::{Mode, stat};
use nix::unistd::{Pid, pipe2, read, write};
use rustix::thread::CpuSet;
use serde::{Deserialize, Serialize};

use super::cause::Cause;
use super::identity::Identity;
use super::refusal::{Refused, explain_child};
use super::resources::run_on;
use super::step::Step;
use crate::config::text::c_string;
use crate::sys::descriptors::FIRST;
use crate::sys::file_id::FileId;
use crate::sys::output::open_output_anew;

/// How often, and at which distance, an exec that is refused because the file is still being written is tried again.
const BUSY_TRIES: u32 = 50;
const BUSY_PAUSE: libc::timespec = libc::timespec { tv_sec: 0, tv_nsec: 20_000_000 };

/// First byte of the child's report that it executes another file than the release's. No errno or step begins so.
const MIXED: u8 = b'm';

/// The longest report of a child, in bytes: a refusal with its explanation.
const MAX_REPORT_BYTES: usize = 8192;

/// These variables name the process that they are meant for.
pub const LISTEN_PID: &str = "LISTEN_PID=";
/// Name of the watchdog's variable that holds the worker's pid.
pub const WATCHDOG_PID: &str = "WATCHDOG_PID=";

/// Such a variable, with room for the pid, which is known only after the fork.
type PidEntry = [u8; WATCHDOG_PID.len() + 11];

fn pid_entry(name: &str) -> PidEntry {
    let mut entry = [0; WATCHDOG_PID.len() + 11];
    entry[..name.len()].copy_from_slice(name.as_bytes());
    entry
}

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

/// A program, made ready for a child that does not allocate.
struct Executable<'a> {
    path: CString,
    release: Option<&'a Program<'a>>,
    /// A path that leads to the held file.
    through_proc: CString,
}

impl<'a> Executable<'a> {
    fn of(image: &'a Image<'_>) -> Executable<'a> {
        match image {
            Image::Path(path) => Executable { path: path.clone(), release: None, through_proc: CString::default() },
            Image::Release(program) => Executable {
                path: c_string(program.path.as_os_str()),
                release: Some(program),
                through_proc: c_string(format!("/proc/self/fd/{}", program.file.as_raw_fd()).as_ref()),
            },
        }
    }

    /// In the child: whether the path still leads to the program. Allocates nothing.
    fn is_at_its_path(&self) -> bool {
        let Some(program) = self.release else { return true };
        stat(self.path.as_c_str()).is_ok_and(|found| Some(FileId::from(&found)) == program.id)
    }

    /// In the child: whether the held file begins with `#!`. The kernel hands it to its interpreter by a path then, and its
    /// descriptor is of no use. Allocates nothing.
    fn is_script(&self) -> bool {
        let mut bytes = [0; 2];
        let file = open(self.through_proc.as_c_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty());
        file.is_ok_and(|file| read(&file, &mut bytes) == Ok(2)) && bytes == *b"#!"
    }
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
    pub identity: Option<&'a Identity>,
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

/// A process that has been forked, and may by now have executed its program.
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
}

/// What came of the exec so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Not tried yet, or under way.
    Pending,
    /// The program runs, or the process was killed before.
    Done,
    /// Refused; with the child's explanation, if a release was to be executed.
    Failed(Refused, Option<Cause>),
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
            return match report.split_first_chunk() {
                Some((refused, cause)) => {
                    Outcome::Failed(Refused::from_bytes(*refused), serde_json::from_slice(cause).ok())
                }
                None => Outcome::Done,
            };
        }
    }
}

impl AsFd for Child {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.outcome.as_fd()
    }
}

/// Forks, and has the child execute `command`. Fails with the errno of the fork, or for want of descriptors.
pub fn spawn(command: &NewProcess<'_>) -> io::Result<Child> {
    let (outcome, reporter) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
    // Where the child puts its descriptors nothing of what it still needs may lie.
    let free_from = FIRST + command.descriptors.len() as RawFd;
    let reporter = move_up(reporter, free_from)?;
    let raised = command.descriptors.iter().map(|fd| raise(*fd, free_from)).collect::<nix::Result<Vec<_>>>()?;
    let sources: Vec<RawFd> = raised.iter().map(AsRawFd::as_raw_fd).collect();

    let mut pid_entries: Vec<PidEntry> = command.pid_variables.iter().map(|name| pid_entry(name)).collect();
    let first_entry = pid_entries.as_mut_ptr();
    let pid_entries: Vec<*mut PidEntry> = (0..pid_entries.len()).map(|at| first_entry.wrapping_add(at)).collect();
    let mut environment: Vec<*const libc::c_char> = command.environment.iter().map(|entry| entry.as_ptr()).collect();
    environment.extend(pid_entries.iter().map(|entry| entry.cast_const().cast()));
    environment.push(ptr::null());
    let mut arguments: Vec<*const libc::c_char> = command.arguments.iter().map(|entry| entry.as_ptr()).collect();
    arguments.push(ptr::null());

    let executable = Executable::of(&command.image);

    let parent = Pid::this();
    // SAFETY: panzer has one thread, and until its exec the child makes async-signal-safe calls only, on memory that
    // was prepared above: it allocates nothing and takes no lock.
    let forked = unsafe { libc::fork() };
    if forked == 0 {
        let is_there = executable.is_at_its_path();
        let by_path = is_there || executable.is_script();
        if by_path && !is_there {
            report(&reporter, &[MIXED]);
        }
        let held = executable.release.filter(|_| !by_path).map(|program| program.file.as_raw_fd());
        let image = held.map_or(Ok(&executable.path), Err);
        let refused = become_program(command, image, &sources, &arguments, &environment, &pid_entries, parent);
        // Why it was refused only the file system knows. This allocates, which a child may whose parent has one thread.
        let explained = executable.release.map(|program| explain_child(refused, program.path, command.identity));
        let explained = explained.and_then(|cause| serde_json::to_vec(&cause).ok()).unwrap_or_default();
        report(&reporter, &[&refused.to_bytes()[..], &explained].concat());
        // SAFETY: ends the child.
        unsafe { libc::_exit(127) }
    }
    let fork_error = Errno::last();
    drop(raised);
    if forked < 0 {
        let limit = "no further process is allowed (ulimit -u, TasksMax=, pids.max)";
        return Err(if fork_error == Errno::EAGAIN { io::Error::other(limit) } else { fork_error.into() });
    }
    let pid = Pid::from_raw(forked);
    if command.leads_group {
        // The child does the same; whichever comes first, a signal to the group finds it. After the exec it is refused.
        let _ = nix::unistd::setpgid(pid, pid);
    }
    Ok(Child { pid, is_mixed: false, outcome })
}

/// In the child: the pipe is empty, and has room for every report.
fn report(reporter: &OwnedFd, bytes: &[u8]) {
    let _ = write(reporter, bytes);
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

/// In the child: puts everything in order and executes the program. Returns why that was not possible.
fn become_program(
    command: &NewProcess<'_>,
    image: Result<&CString, RawFd>,
    sources: &[libc::c_int],
    arguments: &[*const libc::c_char],
    environment: &[*const libc::c_char],
    pid_entries: &[*mut PidEntry],
    parent: Pid,
) -> Refused {
    // SAFETY: every call is async-signal-safe, every pointer is to memory prepared before the fork and alive here, the
    // two arrays end in null, and the descriptors are open in this copy of the process.
    unsafe {
        if command.leads_group && libc::setpgid(0, 0) < 0 {
            return Errno::last().into();
        }
        if !command.inherits_descriptors {
            libc::close_range(FIRST as libc::c_uint, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC as libc::c_int);
        }
        // While it has the right to.
        if command.opens_output_anew {
            open_output_anew();
        }
        for (output, number) in command.output.iter().zip(libc::STDOUT_FILENO..) {
            if let Some(output) = output
                && libc::dup2(output.as_raw_fd(), number) < 0
            {
                return Errno::last().into();
            }
        }
        for (source, target) in sources.iter().zip(FIRST..) {
            if libc::dup2(*source, target) < 0 {
                return Errno::last().into();
            }
        }
        if let Some(stdin) = command.stdin
            && libc::dup2(stdin.as_raw_fd(), libc::STDIN_FILENO) < 0
        {
            return Errno::last().into();
        }
        for entry in pid_entries {
            write_pid(&mut **entry, libc::getpid());
        }
        // Everything else has had its default since main began.
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        libc::signal(libc::SIGXFSZ, libc::SIG_DFL);
        if let Some(Err(errno)) = command.place.cpus.as_ref().map(|cpus| run_on(None, cpus)) {
            return Refused { step: Some(Step::Cpus), errno };
        }
        if let Some(entrance) = command.place.cgroup
            && let Err(errno) = write(entrance, b"0")
        {
            return Refused { step: Some(Step::Cgroup), errno };
        }
        if let Some(Err((step, errno))) = command.identity.map(Identity::assume) {
            return Refused { step: Some(step), errno };
        }
        // Last: to change the user takes it away.
        if let Some(signal) = command.death_signal {
            libc::prctl(libc::PR_SET_PDEATHSIG, signal as libc::c_ulong);
            if libc::getppid() != parent.as_raw() {
                libc::_exit(127);
            }
        }
        if !command.keeps_mask {
            let mut none = std::mem::zeroed();
            libc::sigemptyset(&mut none);
            libc::sigprocmask(libc::SIG_SETMASK, &none, ptr::null_mut());
        }
        for _ in 0..BUSY_TRIES {
            match image {
                Ok(path) => {
                    libc::execve(path.as_ptr(), arguments.as_ptr(), environment.as_ptr());
                }
                Err(file) => {
                    libc::syscall(
                        libc::SYS_execveat,
                        file,
                        c"".as_ptr(),
                        arguments.as_ptr(),
                        environment.as_ptr(),
                        libc::AT_EMPTY_PATH,
                    );
                }
            }
            if Errno::last() != Errno::ETXTBSY {
                break;
            }
            libc::nanosleep(&BUSY_PAUSE, ptr::null_mut());
        }
        Errno::last().into()
    }
}

/// Completes such a variable in decimal, without allocating.
fn write_pid(entry: &mut PidEntry, pid: libc::pid_t) {
    let mut digits = [0; 10];
    let mut rest = pid.unsigned_abs();
    let mut count = 0;
    loop {
        digits[count] = b'0' + (rest % 10) as u8;
        count += 1;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    for (place, digit) in entry.iter_mut().skip_while(|byte| **byte != 0).zip(digits[..count].iter().rev()) {
        *place = *digit;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pid_is_written_in_decimal() {
        for (pid, expected) in [(1, "LISTEN_PID=1"), (40_960, "LISTEN_PID=40960"), (i32::MAX, "LISTEN_PID=2147483647")]
        {
            let mut entry = pid_entry(LISTEN_PID);
            write_pid(&mut entry, pid);
            let end = entry.iter().position(|&byte| byte == 0).unwrap();
            assert_eq!(std::str::from_utf8(&entry[..end]).unwrap(), expected);
        }
    }
}
