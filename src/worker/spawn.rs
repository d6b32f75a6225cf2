//! Fork and exec: the one room with `unsafe` besides `sys`.
//!
//! A plain fork, not vfork or posix_spawn: the parent must not wait for an exec that hangs on a dead file system, and
//! a process this small is copied in about the same time. The outcome of the exec comes through a pipe that closes
//! itself, to be watched like everything else.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, pipe2, read};

use super::identity::{Identity, Step};
use crate::config::text::c_string;
use crate::sys::descriptors::FIRST;
use crate::sys::output::open_output_anew;

/// How often, and at which distance, an exec that is refused because the file is still being written is tried again.
const BUSY_TRIES: u32 = 50;
const BUSY_PAUSE: libc::timespec = libc::timespec { tv_sec: 0, tv_nsec: 20_000_000 };

/// Room for the pid, which is known only after the fork.
const LISTEN_PID: &[u8] = b"LISTEN_PID=";
type ListenPid = [u8; LISTEN_PID.len() + 11];

fn listen_pid_entry() -> ListenPid {
    let mut entry = [0; LISTEN_PID.len() + 11];
    entry[..LISTEN_PID.len()].copy_from_slice(LISTEN_PID);
    entry
}

/// What is executed.
#[derive(Debug)]
pub enum Image<'a> {
    /// The file at this path.
    Path(CString),
    /// The file behind this descriptor, wherever it is by now.
    Descriptor(BorrowedFd<'a>),
}

/// One process to be started. Built anew for each, as its environment differs.
#[derive(Debug)]
pub struct Command<'a> {
    /// What is executed.
    pub image: Image<'a>,
    /// Its arguments, its own name first.
    pub arguments: Vec<CString>,
    /// Its whole environment, but for `LISTEN_PID`.
    pub environment: Vec<CString>,
    /// Adds `LISTEN_PID` with the pid that the process turns out to have.
    pub listen_pid: bool,
    /// What it gets as stdin, in place of ours.
    pub stdin: Option<BorrowedFd<'a>>,
    /// What it gets as stdout and stderr, in place of ours.
    pub output: Option<BorrowedFd<'a>>,
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
}

impl<'a> Command<'a> {
    /// Panzer itself, as a process of its own that is killed when its parent dies. It gets `descriptors` and no other.
    pub fn role(
        image: Image<'a>,
        title: &str,
        environment: Vec<CString>,
        descriptors: Vec<BorrowedFd<'a>>,
    ) -> Command<'a> {
        Command {
            image,
            arguments: vec![c_string(title.as_ref())],
            environment,
            listen_pid: false,
            stdin: None,
            output: None,
            opens_output_anew: false,
            descriptors,
            inherits_descriptors: false,
            leads_group: true,
            keeps_mask: false,
            death_signal: Some(Signal::SIGKILL),
            identity: None,
        }
    }
}

/// A process that has been forked, and may by now have executed its program.
#[derive(Debug)]
pub struct Child {
    /// Its pid; an unreaped child of ours.
    pub pid: Pid,
    outcome: OwnedFd,
}

/// What came of the exec so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Not tried yet, or under way.
    Pending,
    /// The program runs, or the process was killed before.
    Done,
    /// Refused.
    Failed(Refused),
}

/// Why a child did not execute its program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused {
    /// Which step of becoming its identity failed; none: the exec or what leads to it.
    pub step: Option<Step>,
    /// What the kernel said.
    pub errno: Errno,
}

impl Refused {
    const BYTES: usize = 8;

    fn to_bytes(self) -> [u8; Refused::BYTES] {
        let step = self.step.map_or(0, |step| step as i32);
        let mut bytes = [0; Refused::BYTES];
        bytes[..4].copy_from_slice(&step.to_ne_bytes());
        bytes[4..].copy_from_slice(&(self.errno as i32).to_ne_bytes());
        bytes
    }

    fn from_bytes([a, b, c, d, rest @ ..]: [u8; Refused::BYTES]) -> Refused {
        let step = Step::from_number(i32::from_ne_bytes([a, b, c, d]));
        Refused { step, errno: Errno::from_raw(i32::from_ne_bytes(rest)) }
    }
}

impl From<Errno> for Refused {
    fn from(errno: Errno) -> Refused {
        Refused { step: None, errno }
    }
}

impl Child {
    /// One that the main before has forked, with what [`Child::as_fd`] showed there.
    pub fn taken_over(pid: Pid, outcome: OwnedFd) -> Child {
        Child { pid, outcome }
    }

    /// What has come of the exec. Never waits.
    pub fn outcome(&self) -> Outcome {
        let mut bytes = [0; Refused::BYTES];
        match read(&self.outcome, &mut bytes) {
            Ok(Refused::BYTES) => Outcome::Failed(Refused::from_bytes(bytes)),
            Err(Errno::EAGAIN | Errno::EINTR) => Outcome::Pending,
            _ => Outcome::Done,
        }
    }
}

impl AsFd for Child {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.outcome.as_fd()
    }
}

/// Forks, and has the child execute `command`. Fails with the errno of the fork, or for want of descriptors.
pub fn spawn(command: &Command<'_>) -> io::Result<Child> {
    let (outcome, reporter) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
    // Where the child puts its descriptors nothing of what it still needs may lie.
    let free_from = FIRST + command.descriptors.len() as RawFd;
    let reporter = move_up(reporter, free_from)?;
    let raised = command.descriptors.iter().map(|fd| raise(*fd, free_from)).collect::<nix::Result<Vec<_>>>()?;
    let sources: Vec<RawFd> = raised.iter().map(AsRawFd::as_raw_fd).collect();

    let mut listen_pid = listen_pid_entry();
    let listen_pid: *mut ListenPid = &mut listen_pid;
    let mut environment: Vec<*const libc::c_char> = command.environment.iter().map(|entry| entry.as_ptr()).collect();
    if command.listen_pid {
        environment.push(listen_pid.cast());
    }
    environment.push(ptr::null());
    let mut arguments: Vec<*const libc::c_char> = command.arguments.iter().map(|entry| entry.as_ptr()).collect();
    arguments.push(ptr::null());

    let parent = Pid::this();
    // SAFETY: panzer has one thread, and until its exec the child makes async-signal-safe calls only, on memory that
    // was prepared above: it allocates nothing and takes no lock.
    let forked = unsafe { libc::fork() };
    if forked == 0 {
        let refused = become_program(command, &sources, &arguments, &environment, listen_pid, parent);
        let bytes = refused.to_bytes();
        // SAFETY: write and _exit are async-signal-safe; the bytes live on this stack.
        unsafe {
            libc::write(reporter.as_raw_fd(), bytes.as_ptr().cast(), bytes.len());
            libc::_exit(127)
        }
    }
    let fork_error = Errno::last();
    drop(raised);
    if forked < 0 {
        return Err(fork_error.into());
    }
    let pid = Pid::from_raw(forked);
    if command.leads_group {
        // The child does the same; whichever comes first, a signal to the group finds it. After the exec it is refused.
        let _ = nix::unistd::setpgid(pid, pid);
    }
    Ok(Child { pid, outcome })
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
    command: &Command<'_>,
    sources: &[libc::c_int],
    arguments: &[*const libc::c_char],
    environment: &[*const libc::c_char],
    listen_pid: *mut ListenPid,
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
        if let Some(output) = command.output
            && (libc::dup2(output.as_raw_fd(), libc::STDOUT_FILENO) < 0
                || libc::dup2(output.as_raw_fd(), libc::STDERR_FILENO) < 0)
        {
            return Errno::last().into();
        }
        // While it has the right to.
        if command.opens_output_anew {
            open_output_anew();
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
        write_pid(&mut *listen_pid, libc::getpid());
        // Rust ignores PIPE; everything else has had its default since main began.
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
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
            match &command.image {
                Image::Path(path) => {
                    libc::execve(path.as_ptr(), arguments.as_ptr(), environment.as_ptr());
                }
                Image::Descriptor(fd) => {
                    libc::syscall(
                        libc::SYS_execveat,
                        fd.as_raw_fd(),
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

/// Completes `LISTEN_PID=` in decimal, without allocating.
fn write_pid(entry: &mut ListenPid, pid: libc::pid_t) {
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
    for (place, digit) in entry[LISTEN_PID.len()..].iter_mut().zip(digits[..count].iter().rev()) {
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
            let mut entry = listen_pid_entry();
            write_pid(&mut entry, pid);
            let end = entry.iter().position(|&byte| byte == 0).unwrap();
            assert_eq!(std::str::from_utf8(&entry[..end]).unwrap(), expected);
        }
    }
}
