//! Reaping, signalling and looking at processes.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::stat::Mode;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{Pid, SysconfVar, getpgid, sysconf};
use rustix::process::WaitOptions;

use crate::sys::errno::{of_start, words};
use crate::sys::printing::printable;

/// How a child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It exited with this code.
    Code(i32),
    /// This signal ended it. True if it dumped core.
    Signal(i32, bool),
}

/// Which of the two a process is after [`fork`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forked {
    /// The one that forked, with the pid of its child.
    Parent(Pid),
    /// Its child.
    Child,
}

/// Splits this process in two; both go on from here.
pub fn fork() -> io::Result<Forked> {
    // SAFETY: panzer has one thread in each of its roles, so the child is whole: nothing in it waits for a thread that
    // it lacks.
    Ok(match unsafe { nix::unistd::fork() }.map_err(|errno| of_start(errno.into()))? {
        nix::unistd::ForkResult::Parent { child } => Forked::Parent(child),
        nix::unistd::ForkResult::Child => Forked::Child,
    })
}

/// Reaps any child that has ended. None if none has.
pub fn reap() -> Option<(Pid, Exit)> {
    // Not nix's waitpid: it reaps a child that a real-time signal killed, then returns EINVAL without the pid.
    let (pid, status) = rustix::process::wait(WaitOptions::NOHANG).ok()??;
    let (pid, status) = (Pid::from_raw(pid.as_raw_pid()), status.as_raw());
    let exit = if libc::WIFEXITED(status) {
        Exit::Code(libc::WEXITSTATUS(status))
    } else {
        Exit::Signal(libc::WTERMSIG(status), libc::WCOREDUMP(status))
    };
    Some((pid, exit))
}

/// One child that a signal has stopped since the last call, with that signal, or one that was continued. None if there
/// is none.
pub fn stopped_or_continued() -> Option<(Pid, Option<Signal>)> {
    let flags = WaitPidFlag::WSTOPPED | WaitPidFlag::WCONTINUED | WaitPidFlag::WNOHANG;
    match waitid(Id::All, flags).ok()? {
        WaitStatus::Stopped(pid, signal) => Some((pid, Some(signal))),
        WaitStatus::Continued(pid) => Some((pid, None)),
        _ => None,
    }
}

/// Children that are reaped before anything else has its turn.
pub const MAX_REAPED_AT_ONCE: usize = 1024;

/// Reaps the children that have ended, up to that number. `look` gets each pid while it can still be looked at.
pub fn reap_all(mut look: impl FnMut(Pid)) -> Vec<(Pid, Exit)> {
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    let next = || {
        waitid(Id::All, flags).ok().and_then(|status| status.pid()).into_iter().for_each(&mut look);
        reap()
    };
    std::iter::from_fn(next).take(MAX_REAPED_AT_ONCE).collect()
}

/// The kernel's willingness to end this process when memory is short.
pub fn oom_score() -> Option<i32> {
    fs::read_to_string("/proc/self/oom_score_adj").ok()?.trim().parse().ok()
}

/// Sets it, also for each process that shares our memory. Allocates nothing, for a forked child.
pub fn set_oom_score(score: i32) -> Result<(), Errno> {
    let mut text = [0; 12];
    let mut rest = &mut text[..];
    let _ = write!(rest, "{score}");
    let left = rest.len();
    let file = open(c"/proc/self/oom_score_adj", OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    nix::unistd::write(file, &text[..text.len() - left]).map(drop)
}

/// Sends `signal` to an unreaped child of ours. One that has just ended is no error.
pub fn signal_child(pid: Pid, signal: Signal) -> io::Result<()> {
    ignore_gone(kill(pid, signal))
}

/// Sends `signal` to the process group that an unreaped child of ours is in.
pub fn signal_group(group: Pid, signal: Signal) -> io::Result<()> {
    ignore_gone(killpg(group, signal))
}

/// Sends a signal that is to end an unreaped child of ours, and CONT, so that a stopped child can obey.
pub fn stop_child(pid: Pid, signal: Signal) -> io::Result<()> {
    signal_child(pid, signal)?;
    if needs_to_run(signal) { signal_child(pid, Signal::SIGCONT) } else { Ok(()) }
}

/// Sends `signal` to the process group of an unreaped child of ours.
pub fn stop_group(group: Pid, signal: Signal) -> io::Result<()> {
    signal_group(group, signal)?;
    if needs_to_run(signal) { signal_group(group, Signal::SIGCONT) } else { Ok(()) }
}

/// Whether a process must run to react to this signal, and is meant to.
pub fn needs_to_run(signal: Signal) -> bool {
    use Signal::{SIGCONT, SIGKILL, SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU};
    ![SIGKILL, SIGCONT, SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU].contains(&signal)
}

/// Whether this signal makes a process dump core that does nothing about it.
pub fn dumps_core(signal: Signal) -> bool {
    use Signal::{SIGABRT, SIGBUS, SIGFPE, SIGILL, SIGQUIT, SIGSEGV, SIGSYS, SIGTRAP, SIGXCPU, SIGXFSZ};
    [SIGABRT, SIGBUS, SIGFPE, SIGILL, SIGQUIT, SIGSEGV, SIGSYS, SIGTRAP, SIGXCPU, SIGXFSZ].contains(&signal)
}

/// Whether any process is in this group, ours or not.
pub fn group_exists(group: Pid) -> bool {
    killpg(group, None) != Err(Errno::ESRCH)
}

/// Whether there is a process with this pid, ours or not.
pub fn exists(pid: Pid) -> bool {
    kill(pid, None) != Err(Errno::ESRCH)
}

/// Why a signal was refused, and what helps.
pub fn why_not_signalled(error: &io::Error) -> String {
    let why = words(error);
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EPERM) => format!("{why}; it has become another user: end it as that user, or as root"),
        _ => why,
    }
}

/// The message that a process is given up, and how to find out more.
pub fn does_not_end(pid: Pid, whose: &str) -> String {
    let name = name_of(pid);
    format!(
        "pid {pid} ({name}) of {whose} does not end, whatever it is sent; leaving it alone; ps -o user,stat,wchan {pid} \
         shows whose it is, and what it waits for"
    )
}

fn ignore_gone(sent: nix::Result<()>) -> io::Result<()> {
    match sent {
        Err(Errno::ESRCH) => Ok(()),
        other => Ok(other?),
    }
}

/// Our children as the kernel lists them, with the adopted ones. Each is unreaped, so no other process has its pid.
pub fn children() -> Vec<Pid> {
    children_of(Pid::this())
}

/// The children of a process that has one thread.
pub fn children_of(pid: Pid) -> Vec<Pid> {
    children_in(Path::new(&format!("/proc/{pid}/task/{pid}")))
}

/// The processes that a thread has started, by its folder in /proc.
pub fn children_in(thread: &Path) -> Vec<Pid> {
    let list = fs::read_to_string(thread.join("children")).unwrap_or_default();
    list.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).map(Pid::from_raw).collect()
}

/// The origin of a process, and its start time, which tells it from a later process with its pid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clues {
    /// Its process group, if that is not ours.
    pub group: Option<Pid>,
    /// Its session, if that is not ours.
    pub session: Option<Pid>,
    /// When it began, in the kernel's ticks.
    pub started: Option<u64>,
}

impl Clues {
    /// The clues of an unreaped child of ours.
    pub fn of(pid: Pid) -> Clues {
        // A leader outside of our pid namespace is shown as 0.
        let foreign = |leader: Pid| leader.as_raw() > 0;
        let session = |pid: Option<Pid>| nix::unistd::getsid(pid).ok();
        Clues {
            group: group_of(pid).filter(|group| foreign(*group) && *group != nix::unistd::getpgrp()),
            session: session(Some(pid)).filter(|its| foreign(*its) && Some(*its) != session(None)),
            started: started(pid),
        }
    }
}

/// When a process began, in the kernel's ticks.
pub fn started(pid: Pid) -> Option<u64> {
    Stat::of(pid)?.field(22)
}

/// Whether a process has made this folder itself, for its own user alone: it is newer than the process.
pub fn has_made(pid: Pid, folder: &Path) -> bool {
    let age_of = |pid| {
        let tick = Duration::from_secs(1) / u32::try_from(sysconf(SysconfVar::CLK_TCK).ok()??).ok()?.max(1);
        let since_boot = Duration::from(clock_gettime(ClockId::CLOCK_BOOTTIME).ok()?);
        Some(since_boot.saturating_sub(tick * u32::try_from(started(pid)?).ok()?))
    };
    let meta = fs::metadata(folder).ok().filter(|meta| meta.mode() & 0o077 == 0);
    let age = meta.and_then(|meta| meta.created().ok()?.elapsed().ok());
    age.zip(age_of(pid)).is_some_and(|(folder, process)| folder <= process)
}

/// Up to `most` bytes of the environment that `pid` was executed with. None if we may not look, or if we might have to
/// wait: a process that waits for a disk may hold the lock that the kernel takes for this.
pub fn environment_of(pid: Pid, most: u64) -> Option<Vec<u8>> {
    state_and_parent(pid).filter(|(state, _)| *state != 'D' || is_forking(pid))?;
    let mut environment = Vec::new();
    let file = fs::File::open(format!("/proc/{pid}/environ")).ok()?;
    file.take(most).read_to_end(&mut environment).ok()?;
    Some(environment)
}

/// Whether `pid` waits in a fork, as for the exec of its child after vfork. It holds no lock then, though its state is the
/// same as that of a process that waits for a disk.
fn is_forking(pid: Pid) -> bool {
    let call = fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap_or_default();
    let number = call.split(' ').next().and_then(|number| number.parse().ok());
    #[cfg(target_arch = "x86_64")]
    if number == Some(libc::SYS_vfork) {
        return true;
    }
    number.is_some_and(|number: libc::c_long| [libc::SYS_clone, libc::SYS_clone3].contains(&number))
}

/// The short name of a process, with control bytes replaced.
pub fn name_of(pid: Pid) -> String {
    let name = fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
    printable::line(String::from_utf8_lossy(&name).trim_end())
}

/// The process group of `pid`.
pub fn group_of(pid: Pid) -> Option<Pid> {
    getpgid(Some(pid)).ok()
}

/// The parent of `pid`. None if it has ended and been reaped.
pub fn parent_of(pid: Pid) -> Option<Pid> {
    state_and_parent(pid).map(|(_, parent)| parent)
}

/// Whether `pid` is a process that has not ended.
pub fn is_alive(pid: Pid) -> bool {
    state_and_parent(pid).is_some_and(|(state, _)| state != 'Z' && state != 'X')
}

/// Whether `pid` has ended, or the kernel is about to end it.
pub fn is_exiting(pid: Pid) -> bool {
    // A flag that is set before the kernel takes anything away.
    const PF_EXITING: u32 = 0x4;
    // Pending from the moment on when a signal is sent that ends the process, whatever that signal is.
    const KILL: u32 = 1 << (Signal::SIGKILL as u32 - 1);
    let Some(stat) = Stat::of(pid) else { return true };
    let has = |field, bit| stat.field::<u32>(field).is_some_and(|bits| bits & bit != 0);
    // Between the two, only the exit code shows it (Linux 5.19). That of a stopped process is the signal that stopped it.
    let is_stopped = stat.field(3).is_some_and(|state: char| matches!(state, 'T' | 't'));
    let has_code = !is_stopped && stat.field::<i32>(52).is_some_and(|code| code != 0);
    has(9, PF_EXITING) || has(31, KILL) || has_code
}

/// Whether `pid` has waited for a child of its own that had ended.
pub fn has_reaped(pid: Pid) -> bool {
    // The page faults of such children. Every process has some.
    Stat::of(pid).and_then(|stat| stat.field::<u64>(11)).is_some_and(|faults| faults != 0)
}

fn state_and_parent(pid: Pid) -> Option<(char, Pid)> {
    let stat = Stat::of(pid)?;
    Some((stat.field(3)?, Pid::from_raw(stat.field(4)?)))
}

/// The content of /proc/PID/stat behind the name of the process.
#[derive(Debug)]
pub struct Stat(String);

impl Stat {
    /// None if there is no such process.
    pub fn of(pid: Pid) -> Option<Stat> {
        Stat::read(rustix::fs::CWD, &format!("/proc/{pid}/stat"))
    }

    /// Reads the file at this path, which begins in `folder`.
    pub fn read(folder: impl AsFd, path: &str) -> Option<Stat> {
        // "pid (comm) state ppid …", where comm may hold spaces and parentheses.
        let mut stat = content(folder, path)?;
        let after = stat.iter().rposition(|&byte| byte == b')')? + 1;
        stat.drain(..after);
        String::from_utf8(stat).ok().map(Stat)
    }

    /// A field by its number in proc_pid_stat(5), from 3 on.
    pub fn field<T: FromStr>(&self, number: usize) -> Option<T> {
        self.0.split_ascii_whitespace().nth(number.checked_sub(3)?)?.parse().ok()
    }
}

/// The content of a file in /proc that is shorter than a page. One read gets all of it, where [`fs::read`] asks for the
/// length and then reads several times.
pub(super) fn content(folder: impl AsFd, path: &str) -> Option<Vec<u8>> {
    const PAGE_BYTES: usize = 4096;
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC;
    let file = rustix::fs::openat(folder, path, flags, rustix::fs::Mode::empty()).ok()?;
    // Not in a vector: for one of this size the allocator would tidy up all small pieces.
    let mut page = [0; PAGE_BYTES];
    let count = rustix::io::read(&file, &mut page).ok()?;
    Some(page[..count].to_vec())
}

/// The user that `pid` runs as. None if it has ended and been reaped.
pub fn user_of(pid: Pid) -> Option<u32> {
    use std::os::unix::fs::MetadataExt;
    fs::metadata(format!("/proc/{pid}")).ok().map(|meta| meta.uid())
}

/// Whether `pid` runs as another user than the `given` one, or than we do. Then it may have lost the signal of its
/// parent's death.
pub fn has_changed_user(pid: Pid, given: Option<u32>) -> bool {
    user_of(pid).is_some_and(|user| user != given.unwrap_or(nix::unistd::geteuid().as_raw()))
}

/// The path that this process was executed by, as the caller of exec gave it.
pub fn executed_by() -> Option<PathBuf> {
    let path = rustix::param::linux_execfn().to_bytes();
    (!path.is_empty()).then(|| PathBuf::from(OsStr::from_bytes(path)))
}

/// Sets our short name for `ps`. (After an exec through a descriptor it would be a number.)
pub fn set_name() {
    // It is only for show: if it fails, the old name stays.
    let _ = nix::sys::prctl::set_name(c"panzer");
}

/// From now on, descendants whose parent has ended become our children.
pub fn become_subreaper() -> io::Result<()> {
    Ok(nix::sys::prctl::set_child_subreaper(true)?)
}
