//! The child between its start and its exec. It may share its parent's memory, and the parent goes on meanwhile: so it
//! allocates nothing, takes no lock, and leaves errno alone.

use std::ffi::CString;
use std::os::fd::RawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::rc::Rc;

use nix::errno::Errno;
use nix::libc::{self, c_char, c_int, c_void};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use rustix::fs::{Mode, OFlags};
use rustix::thread::CpuSet;

use super::identity::Identity;
use super::refusal::Refused;
use super::resources::run_on;
use super::step::Step;
use crate::sys::calls::call;
use crate::sys::descriptors::{FIRST, close_from, put};
use crate::sys::file_id::FileId;
use crate::sys::output::open_terminals_anew;
use crate::sys::signals::{reset_number, swap_mask};
use crate::sys::{shown, stderr};

/// How often, and at which distance, an exec that is refused because the file is still being written is tried again.
const BUSY_TRIES: u32 = 50;
static BUSY_PAUSE: libc::timespec = libc::timespec { tv_sec: 0, tv_nsec: 20_000_000 };

/// Exit code of a role that panicked, as Rust has it.
const PANICKED: i32 = 101;

/// First byte of the child's report that it executes another file than the release's. No errno or step begins so.
pub(super) const MIXED: u8 = b'm';

/// The name of a variable, with room for a pid, which only the child knows.
pub(super) type PidEntry = [u8; 32];

pub(super) fn pid_entry(name: &str) -> PidEntry {
    let mut entry = [0; size_of::<PidEntry>()];
    entry[..name.len()].copy_from_slice(name.as_bytes());
    entry
}

/// The program of a release, for the child.
pub(super) struct ReleaseFile {
    pub(super) file: RawFd,
    pub(super) id: Option<FileId>,
    /// A path that leads to the held file.
    pub(super) through_proc: CString,
}

/// The descriptors of a child. None is in the way of another, because the parent has moved them.
pub(super) struct Descriptors {
    /// What it gets from 3 on.
    pub(super) given: Vec<RawFd>,
    pub(super) stdin: Option<RawFd>,
    pub(super) output: [Option<RawFd>; 2],
    pub(super) opens_terminals_anew: bool,
    pub(super) inherits_others: bool,
    /// The entrance of its cgroup.
    pub(super) cgroup: Option<RawFd>,
    pub(super) reporter: RawFd,
}

/// Everything that a child reads. Nobody else uses it while the child runs.
pub(super) struct Prepared {
    pub(super) path: CString,
    /// Also says that somebody looks for the reason if the exec is refused, and kills the child then.
    pub(super) release: Option<ReleaseFile>,
    pub(super) pid_entries: Vec<PidEntry>,
    /// Keeps alive what the lists point to, which is also the entries above.
    pub(super) strings: [Vec<CString>; 2],
    /// Each ends in null.
    pub(super) argument_list: Vec<*const c_char>,
    pub(super) variable_list: Vec<*const c_char>,
    pub(super) descriptors: Descriptors,
    pub(super) leads_group: bool,
    pub(super) mask: u64,
    pub(super) death_signal: Option<Signal>,
    pub(super) identity: Option<Rc<Identity>>,
    pub(super) cpus: Option<CpuSet>,
    pub(super) parent: Pid,
}

/// The first function of a child, which gets a [`Prepared`].
pub(super) extern "C" fn run(prepared: *mut c_void) -> c_int {
    // SAFETY: the parent keeps it alive, and does not touch it, until this child has executed its program or has ended.
    let prepared = unsafe { &mut *prepared.cast::<Prepared>() };
    // Where its path leads by now only the child asks: a file system may hang.
    let is_there = prepared.is_at_its_path();
    let by_path = is_there || prepared.is_script();
    if by_path && !is_there {
        prepared.report(&[MIXED]);
    }
    let refused = match prepared.settle() {
        Ok(()) => prepared.execute(by_path).into(),
        Err(refused) => refused,
    };
    if prepared.release.is_some() {
        prepared.wait_after(refused);
    }
    prepared.report(&refused.to_bytes());
    end()
}

impl Prepared {
    /// The first function of a child that goes on as `role` in its copy of our memory.
    pub(super) fn go_on_as(&mut self, role: impl FnOnce() -> u8) -> ! {
        let [arguments, environment] = &self.strings;
        // The first call closes nothing: it only shows whether the other one will be refused.
        if close_from(RawFd::MAX).and_then(|()| shown::set(arguments, environment)).is_err() {
            run(ptr::from_mut(self).cast());
            end();
        }
        stderr::begin_anew();
        let rest = FIRST + self.descriptors.given.len() as RawFd;
        if let Err(errno) = self.descriptors.settle(None).and_then(|()| close_from(rest)) {
            self.report(&Refused::from(errno).to_bytes());
            end();
        }
        swap_mask(self.mask);
        let code = catch_unwind(AssertUnwindSafe(role)).map_or(PANICKED, i32::from);
        // SAFETY: ends the child. Nothing that belongs to the parent is dropped here.
        unsafe { libc::_exit(code) }
    }

    fn is_at_its_path(&self) -> bool {
        let Some(release) = &self.release else { return true };
        rustix::fs::stat(self.path.as_c_str()).is_ok_and(|found| Some(FileId::from(&found)) == release.id)
    }

    /// Whether the held file begins with `#!`. The kernel hands it to its interpreter by a path then, and its descriptor is
    /// of no use.
    fn is_script(&self) -> bool {
        let Some(release) = &self.release else { return false };
        let mut bytes = [0; 2];
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let file = rustix::fs::open(release.through_proc.as_c_str(), flags, Mode::empty());
        file.is_ok_and(|file| rustix::io::read(&file, &mut bytes) == Ok(2)) && bytes == *b"#!"
    }

    /// The pipe is empty, and has room for every report.
    fn report(&self, bytes: &[u8]) {
        let _ = write(self.descriptors.reporter, bytes);
    }

    /// Puts everything in order for the program.
    fn settle(&mut self) -> Result<(), Refused> {
        if self.leads_group {
            // SAFETY: the call gets no pointer.
            unsafe { call(libc::SYS_setpgid, [0, 0])? };
        }
        self.descriptors.settle(self.release.as_ref().map(|release| release.file))?;
        let own_pid = rustix::process::getpid().as_raw_nonzero().get();
        self.pid_entries.iter_mut().for_each(|entry| write_pid(entry, own_pid));
        // Everything else has had its default since main began.
        [libc::SIGPIPE, libc::SIGXFSZ].into_iter().for_each(reset_number);
        let on_cpus = self.cpus.as_ref().map_or(Ok(()), |cpus| run_on(None, cpus));
        on_cpus.map_err(|errno| Refused { step: Some(Step::Cpus), errno })?;
        let entered = self.descriptors.cgroup.map_or(Ok(()), |entrance| write(entrance, b"0"));
        entered.map_err(|errno| Refused { step: Some(Step::Cgroup), errno })?;
        let assumed = self.identity.as_deref().map_or(Ok(()), Identity::assume);
        assumed.map_err(|(step, errno)| Refused { step: Some(step), errno })?;
        // Last: to change the user takes it away.
        if let Some(signal) = self.death_signal {
            self.end_with_parent(signal);
        }
        swap_mask(self.mask);
        Ok(())
    }

    fn end_with_parent(&self, signal: Signal) {
        // SAFETY: the call gets no pointer.
        let _ = unsafe { call(libc::SYS_prctl, [libc::PR_SET_PDEATHSIG as usize, signal as usize]) };
        if rustix::process::getppid().map(|parent| parent.as_raw_nonzero().get()) != Some(self.parent.as_raw()) {
            end();
        }
    }

    /// Returns why the program was not executed.
    fn execute(&self, by_path: bool) -> Errno {
        let lists = [self.argument_list.as_ptr() as usize, self.variable_list.as_ptr() as usize];
        for _ in 0..BUSY_TRIES {
            let held = self.release.as_ref().filter(|_| !by_path).map(|release| release.file);
            // SAFETY: every pointer is to memory that lives until the exec, and both lists end in null.
            let refused = unsafe {
                match held {
                    None => call(libc::SYS_execve, [self.path.as_ptr() as usize, lists[0], lists[1]]),
                    Some(file) => {
                        let (file, empty) = (file as usize, c"".as_ptr() as usize);
                        call(libc::SYS_execveat, [file, empty, lists[0], lists[1], libc::AT_EMPTY_PATH as usize])
                    }
                }
            };
            if refused != Err(Errno::ETXTBSY) {
                return refused.err().unwrap_or(Errno::UnknownErrno);
            }
            // SAFETY: the kernel reads a constant.
            let _ = unsafe { call(libc::SYS_nanosleep, [&raw const BUSY_PAUSE as usize, 0]) };
        }
        Errno::ETXTBSY
    }

    /// Reports the refusal, and waits to be killed by a parent that finds out why.
    fn wait_after(&self, refused: Refused) -> ! {
        self.end_with_parent(Signal::SIGKILL);
        swap_mask(self.mask);
        self.report(&refused.to_bytes());
        loop {
            // SAFETY: the call gets no pointer: it waits for a signal alone.
            let _ = unsafe { call(libc::SYS_ppoll, [0, 0, 0, 0]) };
        }
    }
}

impl Descriptors {
    /// Puts each to its number.
    fn settle(&self, release: Option<RawFd>) -> Result<(), Errno> {
        if !self.inherits_others {
            let (all, how) = (libc::c_uint::MAX as usize, libc::CLOSE_RANGE_CLOEXEC as usize);
            // SAFETY: the call gets no pointer, and only marks descriptors.
            if unsafe { call(libc::SYS_close_range, [FIRST as usize, all, how]) } == Err(Errno::EINVAL) {
                self.close_others(release);
            }
        }
        // While it has the right to.
        if self.opens_terminals_anew {
            open_terminals_anew();
        }
        for (output, number) in self.output.iter().zip(libc::STDOUT_FILENO..) {
            output.map_or(Ok(()), |output| put(output, number))?;
        }
        for (source, target) in self.given.iter().zip(FIRST..) {
            put(*source, target)?;
        }
        self.stdin.map_or(Ok(()), |stdin| put(stdin, libc::STDIN_FILENO))
    }

    /// Closes what the program is not to get: to mark it for the exec takes Linux 5.11.
    fn close_others(&self, release: Option<RawFd>) {
        let kept = || {
            let single = [self.stdin, self.output[0], self.output[1], self.cgroup, Some(self.reporter), release];
            self.given.iter().copied().chain(single.into_iter().flatten())
        };
        let mut first = FIRST;
        loop {
            let next = kept().filter(|fd| *fd >= first).min();
            let last = next.map_or(libc::c_uint::MAX as usize, |next| next as usize - 1);
            // SAFETY: the call gets no pointer. This child has a table of descriptors of its own, and owns no other.
            let _ = unsafe { call(libc::SYS_close_range, [first as usize, last, 0]) };
            let Some(next) = next else { return };
            first = next + 1;
        }
    }
}

fn write(fd: RawFd, bytes: &[u8]) -> Result<(), Errno> {
    // SAFETY: the kernel reads exactly as many bytes as the slice has.
    unsafe { call(libc::SYS_write, [fd as usize, bytes.as_ptr() as usize, bytes.len()]) }.map(drop)
}

fn end() -> ! {
    // SAFETY: ends the child, without any clean-up.
    unsafe { libc::_exit(127) }
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
            let mut entry = pid_entry("LISTEN_PID=");
            write_pid(&mut entry, pid);
            let end = entry.iter().position(|&byte| byte == 0).unwrap();
            assert_eq!(std::str::from_utf8(&entry[..end]).unwrap(), expected);
        }
    }
}
