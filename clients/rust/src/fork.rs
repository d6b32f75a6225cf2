//! One fork of a worker that falls to the monitor.

use std::ffi::c_void;
use std::io;
use std::mem;
use std::ptr;

/// Bytes of the stack that workers run on, as much as a main thread usually has. Pages that are not touched cost nothing.
const STACK_BYTES: usize = 8 << 20;
const GUARD_BYTES: usize = 64 << 10;

/// What the process between mold and worker gets, in memory that it shares with the mold.
struct Between<'a> {
    worker: Option<Box<dyn FnOnce(i32) + 'a>>,
    mask: libc::sigset_t,
    error: i32,
}

/// Forks a worker, which calls `worker` with the pid of the process between and ends after that.
///
/// The process between shares the mold's memory (`CLONE_VM`), so the page table is copied once. `CLONE_PARENT` would do with
/// one copy too, but the C library would not know of that fork: handlers of pthread_atfork, which reseed random numbers, would
/// not run, nor would its locks be in order. The process between has a stack of its own, on which the worker then runs.
pub(crate) fn fork(stack: &Stack, worker: impl FnOnce(i32)) -> io::Result<()> {
    let mut between = Between { worker: Some(Box::new(worker)), mask: no_signals(), error: 0 };
    let all = all_signals();
    // SAFETY: both sets are whole. The process between must run no handler: it would do so in the mold's memory.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, &all, &mut between.mask) };
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    // SAFETY: the stack is mapped, and nobody else uses it: this process waits (CLONE_VFORK) until the other one is gone, and so
    // `between` outlives it as well.
    let child = unsafe { libc::clone(start, stack.top(), flags, ptr::from_mut(&mut between).cast()) };
    if child < 0 {
        between.error = io::Error::last_os_error().raw_os_error().unwrap_or(0);
    }
    // SAFETY: waits for the child that was just forked; restores the mask.
    unsafe {
        while child > 0 && libc::waitpid(child, ptr::null_mut(), 0) < 0 && *libc::__errno_location() == libc::EINTR {}
        libc::sigprocmask(libc::SIG_SETMASK, &between.mask, ptr::null_mut());
    }
    if between.error == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(between.error)) }
}

extern "C" fn start(between: *mut c_void) -> libc::c_int {
    // SAFETY: `fork` above passes its own, which lives as long as this process.
    let between = unsafe { &mut *between.cast::<Between<'_>>() };
    // SAFETY: these have no preconditions. After the fork the worker has a copy of the memory, and one thread.
    unsafe {
        let own = libc::getpid();
        match libc::fork() {
            0 => {
                libc::sigprocmask(libc::SIG_SETMASK, &between.mask, ptr::null_mut());
                if let Some(worker) = between.worker.take() {
                    worker(own);
                }
                libc::_exit(1)
            }
            -1 => between.error = *libc::__errno_location(),
            _ => {}
        }
    }
    0
}

fn no_signals() -> libc::sigset_t {
    // SAFETY: all zeros is a valid set.
    unsafe { mem::zeroed() }
}

fn all_signals() -> libc::sigset_t {
    let mut set = no_signals();
    // SAFETY: the set is whole.
    unsafe { libc::sigfillset(&mut set) };
    set
}

/// The signal dispositions and the signal mask of this process.
pub(crate) struct Signals {
    actions: Vec<(libc::c_int, libc::sigaction)>,
    mask: libc::sigset_t,
}

impl Signals {
    pub(crate) fn now() -> Signals {
        let mut mask = no_signals();
        // SAFETY: the set is whole.
        unsafe { libc::sigprocmask(libc::SIG_SETMASK, ptr::null(), &mut mask) };
        let action = |number| {
            // SAFETY: all zeros is a valid action, which sigaction fills.
            unsafe {
                let mut action: libc::sigaction = mem::zeroed();
                (libc::sigaction(number, ptr::null(), &mut action) == 0).then_some((number, action))
            }
        };
        Signals { actions: (1..=libc::SIGRTMAX()).filter_map(action).collect(), mask }
    }

    pub(crate) fn restore(&self) {
        for (number, action) in &self.actions {
            // SAFETY: the action was this process's own. KILL and STOP have none, and refuse.
            unsafe { libc::sigaction(*number, action, ptr::null_mut()) };
        }
        // SAFETY: the set is whole.
        unsafe { libc::sigprocmask(libc::SIG_SETMASK, &self.mask, ptr::null_mut()) };
    }
}

/// The stack of the process between, and of the worker.
pub(crate) struct Stack(*mut c_void);

impl Stack {
    pub(crate) fn new() -> io::Result<Stack> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_STACK;
        // SAFETY: maps memory where there is none; the lowest pages are there to be run into.
        unsafe {
            let base = libc::mmap(ptr::null_mut(), STACK_BYTES, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0);
            if base == libc::MAP_FAILED || libc::mprotect(base, GUARD_BYTES, libc::PROT_NONE) < 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(Stack(base))
        }
    }

    fn top(&self) -> *mut c_void {
        self.0.wrapping_byte_add(STACK_BYTES)
    }
}
