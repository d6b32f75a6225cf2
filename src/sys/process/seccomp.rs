//! A seccomp filter: the kernel asks us about each bind and listen of the processes below us, and about nothing else.
//!
//! The caller waits in its call until we answer. If it was interrupted meanwhile or has ended, our answer is dropped
//! (ENOENT). A caller that was interrupted asks again.

use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::libc::{c_int, c_void};
use nix::unistd::Pid;
use rustix::process::WaitOptions;

use crate::sys::descriptors::adopt;
use crate::sys::errno::of_start;
use crate::sys::process::stack::Stack;

/// The architecture whose call numbers the filter compares. Calls of other architectures pass.
#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xc000_00b7;

/// The other architecture whose programs this machine may run, and the numbers of its bind and its socketcall.
#[cfg(target_arch = "x86_64")]
const OTHER: (u32, u32, u32) = (0x4000_0003, 361, 102);
#[cfg(target_arch = "aarch64")]
const OTHER: (u32, u32, u32) = (0x4000_0028, 282, 102);

/// The first argument of a socketcall that is a bind.
const SOCKETCALL_BIND: u32 = 2;

/// Bit in the call numbers of x32 programs.
const X32: u32 = 0x4000_0000;

/// The mitigations that come with seccomp on older kernels are for programs that distrust their own code.
const FLAGS: libc::c_ulong = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER
    | libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW
    | libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV;

/// Room for the kernel's structure, which may be longer than the one that we know.
const MAX_NOTIFICATION_BYTES: usize = 512;

/// The call that the filter trapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trapped {
    /// bind(2).
    Bind,
    /// listen(2).
    Listen,
    /// bind(2) of a program for another architecture, whose arguments we cannot read.
    OtherArchitecture,
}

/// One trapped call, whose caller waits for an answer.
#[derive(Debug, Clone, Copy)]
pub struct Call {
    /// Identifies the call in an answer. Never used twice.
    pub id: u64,
    /// The thread that calls.
    pub thread: Pid,
    /// The call.
    pub trapped: Trapped,
    /// Its arguments.
    pub arguments: [u64; 6],
}

impl Call {
    /// The descriptor that the call is about: its first argument.
    pub fn descriptor(&self) -> RawFd {
        self.arguments[0] as RawFd
    }
}

/// The descriptor that trapped calls come from. Once it is closed, every trapped call fails with ENOSYS.
#[derive(Debug)]
pub struct Calls {
    fd: OwnedFd,
}

/// Traps bind and listen of this process and all its descendants from here on, for good. Returns true if that took
/// no_new_privs: then a setuid program started below has no more rights than we.
pub fn trap() -> io::Result<(Calls, bool)> {
    match install() {
        Err(error) if error.raw_os_error() == Some(libc::EACCES) => {
            nix::sys::prctl::set_no_new_privs()?;
            Ok((install()?, true))
        }
        other => Ok((other?, false)),
    }
}

/// Whether [`trap`] and the answers work here: tries it in a child process, if that is not known.
pub fn try_out() -> io::Result<()> {
    if is_known_to_work() {
        return Ok(());
    }
    extern "C" fn code(_: *mut c_void) -> c_int {
        trap_and_answer().map_or_else(|error| error.raw_os_error().unwrap_or(libc::EINVAL), |()| 0)
    }
    let child = Stack::run(code).map_err(of_start)?;
    let child = rustix::process::Pid::from_raw(child.as_raw());
    let status = rustix::io::retry_on_intr(|| rustix::process::waitpid(child, WaitOptions::empty()))?;
    match status.and_then(|(_, status)| status.exit_status()) {
        None => Err(Errno::EPERM.into()),
        Some(0) => Ok(()),
        Some(errno) => Err(io::Error::from_raw_os_error(errno)),
    }
}

/// No filter is in force that may refuse us, and the kernel knows what came last of all that we use. It refuses flags that it
/// does not know before it looks at the filter.
fn is_known_to_work() -> bool {
    // SAFETY: the call gets no pointer.
    let unfiltered = unsafe { libc::prctl(libc::PR_GET_SECCOMP) } == 0;
    let unknown = 1 << 31;
    let none = std::ptr::null();
    unfiltered && set_filter(unknown, none) == Err(Errno::EINVAL) && set_filter(FLAGS, none) == Err(Errno::EFAULT)
}

fn trap_and_answer() -> io::Result<()> {
    let (calls, _) = trap()?;
    let no_call = Call { id: 0, thread: Pid::this(), trapped: Trapped::Bind, arguments: [0; 6] };
    match calls.replace_descriptor(&no_call, calls.fd.as_fd(), false) {
        // The kernel knows the request, and that there is no such call.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        Err(error) => Err(error),
        Ok(()) => Err(Errno::EINVAL.into()),
    }
}

fn install() -> io::Result<Calls> {
    match load(FLAGS) {
        // Before 5.19.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            load(FLAGS & !libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV)
        }
        other => other,
    }
}

fn load(flags: libc::c_ulong) -> io::Result<Calls> {
    const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let number = mem::offset_of!(libc::seccomp_data, nr) as u32;
    let (other, other_bind, socketcall) = OTHER;
    // The steps to skip lead to the one before last, which allows, or to the last, which asks.
    let mut filter = [
        step(LOAD, 0, 0, mem::offset_of!(libc::seccomp_data, arch) as u32),
        step(IF_EQUAL, 0, 5, ARCHITECTURE),
        step(LOAD, 0, 0, number),
        step(IF_EQUAL, 10, 0, libc::SYS_bind as u32),
        step(IF_EQUAL, 9, 0, libc::SYS_listen as u32),
        step(IF_EQUAL, 8, 0, X32 | libc::SYS_bind as u32),
        step(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
        step(IF_EQUAL, 0, 5, other),
        step(LOAD, 0, 0, number),
        step(IF_EQUAL, 4, 0, other_bind),
        step(IF_EQUAL, 0, 2, socketcall),
        step(LOAD, 0, 0, mem::offset_of!(libc::seccomp_data, args) as u32),
        step(IF_EQUAL, 1, 0, SOCKETCALL_BIND),
        step(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
        step(RETURN, 0, 0, libc::SECCOMP_RET_USER_NOTIF),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    Ok(Calls { fd: adopt(set_filter(flags, &program)?)? })
}

/// The number of the descriptor that the calls come from. `program` is null, or points to a program with all its steps.
fn set_filter(flags: libc::c_ulong, program: *const libc::sock_fprog) -> nix::Result<RawFd> {
    // SAFETY: the kernel copies the program while its caller has it on its stack, and refuses a null.
    let number = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, program) };
    Errno::result(number).map(|number| number as RawFd)
}

impl Calls {
    /// The next call that waits. None if it was withdrawn meanwhile. Call this once per readiness event; otherwise it blocks.
    pub fn receive(&self) -> Option<Call> {
        #[repr(C)]
        union Notification {
            known: libc::seccomp_notif,
            room: [u8; MAX_NOTIFICATION_BYTES],
        }
        let mut notification = Notification { room: [0; MAX_NOTIFICATION_BYTES] };
        self.request(libc::SECCOMP_IOCTL_NOTIF_RECV, &mut notification).ok()?;
        // SAFETY: the whole room was initialised, and its beginning has been written by the kernel as this structure of
        // integers.
        let notification = unsafe { notification.known };
        let trapped = match libc::c_long::from(notification.data.nr) {
            _ if notification.data.arch != ARCHITECTURE => Trapped::OtherArchitecture,
            libc::SYS_bind => Trapped::Bind,
            libc::SYS_listen => Trapped::Listen,
            _ => Trapped::OtherArchitecture,
        };
        let thread = Pid::from_raw(notification.pid as i32);
        Some(Call { id: notification.id, thread, trapped, arguments: notification.data.args })
    }

    /// Whether the caller still waits. If so, what we read of its process was its own, and not of a later process.
    pub fn is_waiting(&self, call: &Call) -> bool {
        self.request(libc::SECCOMP_IOCTL_NOTIF_ID_VALID, &mut { call.id }).is_ok()
    }

    /// Replaces the descriptor that the call is about with a copy of `fd`.
    pub fn replace_descriptor(&self, call: &Call, fd: BorrowedFd<'_>, close_on_exec: bool) -> io::Result<()> {
        let mut replacement = libc::seccomp_notif_addfd {
            id: call.id,
            flags: libc::SECCOMP_ADDFD_FLAG_SETFD as u32,
            srcfd: fd.as_raw_fd() as u32,
            newfd: call.arguments[0] as u32,
            newfd_flags: if close_on_exec { libc::O_CLOEXEC as u32 } else { 0 },
        };
        self.request(libc::SECCOMP_IOCTL_NOTIF_ADDFD, &mut replacement)
    }

    /// Makes the call return `result` without being carried out.
    pub fn answer(&self, call: &Call, result: Result<(), Errno>) {
        let error = result.map_or_else(|errno| -(errno as i32), |()| 0);
        self.send(libc::seccomp_notif_resp { id: call.id, val: 0, error, flags: 0 });
    }

    /// Makes the kernel carry the call out.
    pub fn let_through(&self, call: &Call) {
        let flags = libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32;
        self.send(libc::seccomp_notif_resp { id: call.id, val: 0, error: 0, flags });
    }

    fn send(&self, mut answer: libc::seccomp_notif_resp) {
        // Refused only if the call was withdrawn: then it comes again, or its caller has ended.
        let _ = self.request(libc::SECCOMP_IOCTL_NOTIF_SEND, &mut answer);
    }

    fn request<T>(&self, number: libc::Ioctl, argument: &mut T) -> io::Result<()> {
        // SAFETY: private, and called above only, each time with the structure that the request reads or writes.
        Errno::result(unsafe { libc::ioctl(self.fd.as_raw_fd(), number, std::ptr::from_mut(argument)) })?;
        Ok(())
    }
}

impl AsFd for Calls {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
