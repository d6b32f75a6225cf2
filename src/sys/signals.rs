//! Signals are blocked for good and read from a descriptor in the loop. So no call is ever interrupted, and none is lost
//! while one role executes the next (a blocked signal stays pending over an exec).

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr;
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::sys::process::calls::call;

/// The highest signal number of Linux on x86-64 and aarch64.
const LAST: libc::c_int = 64;

/// A signal that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// Which one.
    pub signal: Signal,
    /// The process that sent it; 0 if the kernel did, or a process outside of our pid namespace.
    pub sender: u32,
    /// Whether the kernel itself sent it.
    pub by_kernel: bool,
}

/// The signals that a process reads.
#[derive(Debug)]
pub struct Signals {
    fd: SignalFd,
}

impl Signals {
    /// Reads `wanted` from now on. All signals must have been blocked with [`block_all`] before.
    pub fn new(wanted: impl IntoIterator<Item = Signal>) -> io::Result<Signals> {
        let set: SigSet = wanted.into_iter().collect();
        Ok(Signals { fd: SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)? })
    }

    /// The next signal that waits, if there is one.
    pub fn read(&self) -> Option<Received> {
        loop {
            let info = self.fd.read_signal().ok()??;
            if let Ok(signal) = Signal::try_from(info.ssi_signo as i32) {
                return Some(Received { signal, sender: info.ssi_pid, by_kernel: info.ssi_code == libc::SI_KERNEL });
            }
        }
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A signal by its name, with or without `SIG`.
pub fn parse_signal(text: &str) -> Result<Signal, String> {
    let name = text.to_ascii_uppercase();
    let name = if name.starts_with("SIG") { name } else { format!("SIG{name}") };
    name.parse().map_err(|_| format!("there is no signal '{text}'"))
}

/// A signal by its name or its number. The error lists all names.
pub fn parse_signal_or_number(text: &str) -> Result<Signal, String> {
    let numbered = || text.parse::<i32>().ok().and_then(|number| Signal::try_from(number).ok());
    parse_signal(text).ok().or_else(numbered).ok_or_else(|| {
        let names: Vec<&str> = Signal::iterator().map(|signal| signal.as_str().trim_start_matches("SIG")).collect();
        format!("there is no signal '{text}'; take one of {}, or a number from 1 to 31", names.join(" "))
    })
}

/// Blocks every signal that can be blocked. Programs inherit that: `worker::spawn` clears the mask before an exec.
pub fn block_all() -> io::Result<()> {
    Ok(SigSet::all().thread_block()?)
}

/// Unblocks signals that the loop does not read, so that Ctrl-Z, and the ABRT that systemd sends to a main that hangs,
/// have their usual effect.
pub fn unblock(signals: &[Signal]) -> io::Result<()> {
    Ok(signals.iter().copied().collect::<SigSet>().thread_unblock()?)
}

/// Whether `signal` is ignored, as nohup asks for HUP.
pub fn is_ignored(signal: Signal) -> bool {
    // SAFETY: an all-zero sigaction is a valid value of that plain C structure.
    let mut current: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: a null new action only asks; the old one is written to a structure that lives on our stack.
    let asked = unsafe { libc::sigaction(signal as libc::c_int, std::ptr::null(), &mut current) };
    asked == 0 && current.sa_sigaction == libc::SIG_IGN
}

/// Gives every signal but two its default action. PIPE stays ignored, and XFSZ is: a write to a closed pipe, or beyond the
/// largest size of a file, fails, and we handle that. Main does this once, so that a spawn need only reset these.
pub fn reset_dispositions() {
    let kept = [libc::SIGKILL, libc::SIGSTOP, libc::SIGPIPE];
    (1..=LAST).filter(|number| !kept.contains(number)).for_each(reset_number);
    // SAFETY: no handler is installed.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

/// Gives `signal` its default action.
pub fn reset(signal: Signal) {
    reset_number(signal as libc::c_int);
}

/// The same for its number. Leaves errno alone.
pub fn reset_number(number: libc::c_int) {
    /// The kernel's own structure, all zero: the default action, no flags, no mask.
    const DEFAULT: [libc::c_ulong; 8] = [0; 8];
    // Not libc's signal(), which refuses the two numbers glibc keeps to itself, and those may be ignored too.
    // SAFETY: no handler is installed, only the default action; the kernel reads less than the array is long.
    let _ = unsafe { call(libc::SYS_rt_sigaction, [number as usize, DEFAULT.as_ptr() as usize, 0, size_of::<u64>()]) };
}

/// Blocks the signals of these bits and no others, the lowest bit for signal 1. Returns the bits that were set before. Leaves
/// errno alone.
pub fn swap_mask(mask: u64) -> u64 {
    let mut before = 0u64;
    let (new, old) = (&raw const mask as usize, &raw mut before as usize);
    // SAFETY: the kernel reads and writes a number each, on this stack.
    let _ = unsafe { call(libc::SYS_rt_sigprocmask, [libc::SIG_SETMASK as usize, new, old, size_of::<u64>()]) };
    before
}

/// Makes `call`. A system call in it that waits fails with EINTR after `limit`, which is less than a second. None if there is
/// no timer left.
pub fn interrupted_after<T>(limit: Duration, call: impl FnOnce() -> T) -> Option<T> {
    extern "C" fn interrupt(_: libc::c_int) {}
    // The loop reads no real-time signal, so this number is free.
    let number = libc::SIGRTMAX();
    // SAFETY: all-zero values are valid for these plain C structures, each call gets pointers to values on this stack,
    // and the handler does nothing. The timer is deleted before this returns.
    unsafe {
        let mut event: libc::sigevent = std::mem::zeroed();
        (event.sigev_notify, event.sigev_signo) = (libc::SIGEV_THREAD_ID, number);
        event.sigev_notify_thread_id = libc::gettid();
        let mut timer: libc::timer_t = std::mem::zeroed();
        if libc::timer_create(libc::CLOCK_MONOTONIC, &mut event, &mut timer) != 0 {
            return None;
        }
        let mut handler: libc::sigaction = std::mem::zeroed();
        handler.sa_sigaction = interrupt as *const () as usize;
        libc::sigaction(number, &handler, ptr::null_mut());
        let mut mask: libc::sigset_t = std::mem::zeroed();
        libc::sigaddset(&mut mask, number);
        libc::sigprocmask(libc::SIG_UNBLOCK, &mask, ptr::null_mut());
        // Repeated, because the first one may come before the call waits.
        let every = libc::timespec { tv_sec: 0, tv_nsec: limit.subsec_nanos().into() };
        libc::timer_settime(timer, 0, &libc::itimerspec { it_interval: every, it_value: every }, ptr::null_mut());
        let made = call();
        libc::timer_delete(timer);
        libc::sigprocmask(libc::SIG_BLOCK, &mask, ptr::null_mut());
        Some(made)
    }
}

/// Ends this process by `signal`, so that the process that waits for it sees that. Returns only for PID 1.
pub fn end_by(signal: Signal) {
    // The kernel spares PID 1, and signal-hook would then abort.
    if std::process::id() != 1 {
        let _ = signal_hook::low_level::emulate_default_handler(signal as libc::c_int);
    }
}

#[cfg(test)]
mod tests {
    use nix::errno::Errno;
    use nix::unistd::{pipe, read};

    use super::*;

    #[test]
    fn a_call_that_waits_is_interrupted() {
        let (from, _to) = pipe().unwrap();
        let read = || read(&from, &mut [0; 8]);
        assert_eq!(interrupted_after(Duration::from_millis(1), read), Some(Err(Errno::EINTR)));
    }
}
