//! This process as a mold.

use std::fmt::Display;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicI32, Ordering};
use std::{env, mem, process, ptr, thread, time::Duration};

use crate::Program;
use crate::fork::{Stack, fork};

const MAX_MESSAGE_BYTES: usize = 1024;
const MAX_DESCRIPTORS: usize = 253;
/// Above the numbers at which descriptors of workers are to stand.
const HIGH: RawFd = 512;

/// The mold's socket and the version that panzer speaks, as they were found before main; -1 is none.
static SOCKET: AtomicI32 = AtomicI32::new(-1);
static VERSION: AtomicI32 = AtomicI32::new(-1);
static MONITOR: AtomicI32 = AtomicI32::new(-1);

/// Before main: takes what is for the mold out of the environment, before the program starts anything that would inherit it.
#[used]
#[unsafe(link_section = ".init_array")]
static START: extern "C" fn() = start;

extern "C" fn start() {
    // SAFETY: before main there is one thread, and only functions of the C library are called.
    unsafe {
        let number = libc::getenv(c"PANZER_MOLD_FD".as_ptr());
        if number.is_null() {
            return;
        }
        let number = libc::atoi(number);
        let version = libc::getenv(c"PANZER_MOLD_VERSION".as_ptr());
        VERSION.store(if version.is_null() { 0 } else { libc::atoi(version) }, Ordering::Relaxed);
        SOCKET.store(libc::fcntl(number, libc::F_DUPFD_CLOEXEC, HIGH), Ordering::Relaxed);
        MONITOR.store(libc::getppid(), Ordering::Relaxed);
        libc::close(number);
        libc::unsetenv(c"PANZER_MOLD_FD".as_ptr());
        libc::unsetenv(c"PANZER_MOLD_VERSION".as_ptr());
    }
}

/// Reports that the program cannot be loaded, and exits with 1.
pub fn failed(why: impl Display) -> ! {
    if let Some(mold) = take() {
        mold.send(&format!("FAILED {why}"));
    }
    eprintln!("panzer: {why}");
    process::exit(1);
}

/// The mold, if panzer has started this process as one.
pub(crate) fn take() -> Option<Mold> {
    let socket = SOCKET.swap(-1, Ordering::Relaxed);
    // SAFETY: `start` has opened it, and it is taken once.
    let socket = (socket >= 0).then(|| unsafe { OwnedFd::from_raw_fd(socket) })?;
    Some(Mold { socket, monitor: MONITOR.load(Ordering::Relaxed) })
}

pub(crate) struct Mold {
    socket: OwnedFd,
    monitor: i32,
}

/// FORK, with the descriptors that came along.
struct Order {
    ticket: String,
    slot: String,
    numbers: Vec<RawFd>,
    descriptors: Vec<OwnedFd>,
}

impl Mold {
    /// Returns whether the monitor can hear it.
    fn send(&self, text: &str) -> bool {
        let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
        let end = (0..=line.len().min(MAX_MESSAGE_BYTES)).rev().find(|end| line.is_char_boundary(*end)).unwrap_or(0);
        let bytes = &line.as_bytes()[..end];
        // SAFETY: the buffer is whole. If the monitor is gone, the next `receive` says so.
        unsafe { libc::send(self.socket.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), libc::MSG_NOSIGNAL) >= 0 }
    }

    /// Forks a worker whenever the monitor asks for one, until it says STOP or is gone.
    pub(crate) fn serve(self, mut program: Program) {
        let version = VERSION.load(Ordering::Relaxed);
        if version != 1 {
            let why = format!("this client speaks version 1 of the mold protocol, and panzer version {version}");
            self.send(&format!("FAILED {why}"));
            eprintln!("panzer: {why}");
            process::exit(1);
        }
        let stack =
            Stack::new().unwrap_or_else(|error| panic!("panzer: a stack for the workers cannot be mapped: {error}"));
        let mut has_told_of_threads = false;
        self.send("READY");
        while let Some((text, descriptors)) = self.receive() {
            let words: Vec<&str> = text.split(' ').collect();
            match words[..] {
                ["STOP"] => return,
                ["FORK", ticket, slot, ref numbers @ ..] => {
                    let numbers: Vec<RawFd> = numbers.iter().filter_map(|word| word.parse().ok()).collect();
                    if numbers.len() != descriptors.len() {
                        let (came, named) = (descriptors.len(), numbers.len());
                        self.send(&format!("UNBORN {ticket} {came} descriptors came for {named} numbers"));
                        continue;
                    }
                    let before_fork = program.before_fork.as_mut();
                    let hooked = panic::catch_unwind(AssertUnwindSafe(|| before_fork.map(|hook| hook())));
                    if hooked.is_err() {
                        self.send(&format!("UNBORN {ticket} before_fork has panicked"));
                        continue;
                    }
                    tell_of_threads(&mut has_told_of_threads);
                    let _ = io::stdout().flush();
                    let order = Order { ticket: ticket.to_owned(), slot: slot.to_owned(), numbers, descriptors };
                    // The worker takes the program with it: it has a copy of this memory.
                    let taken = ptr::from_mut(&mut program);
                    let forked = fork(&stack, |between| {
                        // SAFETY: this runs in the worker, which never comes back to where the program is used again.
                        let program = unsafe { taken.read() };
                        self.be_worker(between, order, program)
                    });
                    if let Err(error) = forked {
                        self.send(&format!("UNBORN {ticket} {}", words_of(&error)));
                    }
                }
                _ => {}
            }
        }
    }

    /// In the worker: becomes one, and runs the program.
    fn be_worker(&self, between: i32, order: Order, program: Program) -> ! {
        self.settle(between);
        if place(&order.numbers, order.descriptors).is_err() {
            process::abort();
        }
        // SAFETY: a process has one thread after a fork.
        unsafe {
            env::set_var("PANZER_WORKER_ID", &order.slot);
            for (wanted, name) in [("LISTEN_FDS", "LISTEN_PID"), ("WATCHDOG_USEC", "WATCHDOG_PID")] {
                if env::var_os(wanted).is_some() {
                    env::set_var(name, process::id().to_string());
                }
            }
        }
        if !self.send(&format!("BORN {}", order.ticket)) {
            // The monitor has another mold by now, and does not know this worker.
            // SAFETY: it has no preconditions.
            unsafe { libc::_exit(0) };
        }
        // SAFETY: nobody uses it after this; the worker ends by exit, so it is not closed again.
        unsafe { libc::close(self.socket.as_raw_fd()) };
        program.work();
    }

    /// Waits until the monitor is the parent, and asks for TERM when it dies.
    fn settle(&self, between: i32) {
        // SAFETY: these have no preconditions.
        unsafe {
            while libc::getppid() == between {
                thread::sleep(Duration::from_micros(100));
            }
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM);
            if libc::getppid() != self.monitor {
                libc::_exit(0);
            }
            libc::setpgid(0, 0);
        }
    }

    /// The next message, and the descriptors that came with it. None at the end.
    fn receive(&self) -> Option<(String, Vec<OwnedFd>)> {
        let mut text = [0u8; MAX_MESSAGE_BYTES];
        // Of u64, so that headers are aligned.
        let mut control = [0u64; (MAX_DESCRIPTORS * 4).div_ceil(8) + 4];
        let mut part = libc::iovec { iov_base: text.as_mut_ptr().cast(), iov_len: text.len() };
        // SAFETY: all zeros is a valid message header.
        let mut message: libc::msghdr = unsafe { mem::zeroed() };
        message.msg_iov = &mut part;
        message.msg_iovlen = 1;
        let length = loop {
            message.msg_control = control.as_mut_ptr().cast();
            message.msg_controllen = mem::size_of_val(&control) as _;
            // SAFETY: the header leads to buffers of this function, with their true lengths.
            let length = unsafe { libc::recvmsg(self.socket.as_raw_fd(), &mut message, libc::MSG_CMSG_CLOEXEC) };
            if length >= 0 || io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
                break length;
            }
        };
        let length = usize::try_from(length).ok().filter(|length| *length > 0)?;
        let mut descriptors = Vec::new();
        // SAFETY: the kernel has filled the control buffer, and made the descriptors in it for this process.
        unsafe {
            let mut head = libc::CMSG_FIRSTHDR(&message);
            while let Some(part) = head.as_ref() {
                if (part.cmsg_level, part.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
                    #[allow(clippy::unnecessary_cast, reason = "with musl it is a u32")]
                    let length = part.cmsg_len as usize;
                    let count = (length - libc::CMSG_LEN(0) as usize) / mem::size_of::<RawFd>();
                    let data = libc::CMSG_DATA(head).cast::<RawFd>();
                    descriptors.extend((0..count).map(|index| OwnedFd::from_raw_fd(data.add(index).read_unaligned())));
                }
                head = libc::CMSG_NXTHDR(&message, head);
            }
        }
        Some((String::from_utf8_lossy(&text[..length]).into_owned(), descriptors))
    }
}

/// Without "(os error 11)".
fn words_of(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_owned()
}

/// Puts the descriptors where they are to stand. They are raised first, so that none overwrites another.
fn place(numbers: &[RawFd], descriptors: Vec<OwnedFd>) -> io::Result<()> {
    let top = numbers.iter().max().map_or(0, |most| most + 1);
    let mut raised = Vec::new();
    for descriptor in descriptors {
        // SAFETY: the new descriptor is nobody else's.
        unsafe {
            let higher = libc::fcntl(descriptor.as_raw_fd(), libc::F_DUPFD_CLOEXEC, top);
            if higher < 0 {
                return Err(io::Error::last_os_error());
            }
            raised.push(OwnedFd::from_raw_fd(higher));
        }
    }
    for (descriptor, number) in raised.iter().zip(numbers) {
        // SAFETY: what stands at that number is replaced, as the monitor asks.
        if unsafe { libc::dup2(descriptor.as_raw_fd(), *number) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Workers have only the thread that forks them. Says so once.
fn tell_of_threads(has_told: &mut bool) {
    let count = std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count);
    if count > 1 && !mem::replace(has_told, true) {
        let more = count - 1;
        eprintln!(
            "panzer: warning: {more} more threads run in the mold. Workers do not have them, and locks that they hold stay \
             locked there. Start threads in after_start or run."
        );
    }
}
