//! This process as a mold.

use std::fmt::Display;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicI32, Ordering};
use std::{env, mem, process, ptr, thread, time::Duration};

use crate::Program;
use crate::fork::{Signals, Stack, fork};
use crate::worker::listener_numbers;

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
        SOCKET.store(raise(number), Ordering::Relaxed);
        MONITOR.store(libc::getppid(), Ordering::Relaxed);
        libc::close(number);
        libc::unsetenv(c"PANZER_MOLD_FD".as_ptr());
        libc::unsetenv(c"PANZER_MOLD_VERSION".as_ptr());
    }
}

/// A descriptor away from the numbers at which those of workers are to stand, as far as RLIMIT_NOFILE allows. -1 if there is none.
fn raise(descriptor: RawFd) -> RawFd {
    let numbers = std::iter::successors(Some(HIGH), |number| Some(number / 2)).take_while(|number| *number > 3);
    // SAFETY: it has no preconditions, and nobody owns the new descriptor yet.
    let mut raised = numbers.map(|number| unsafe { libc::fcntl(descriptor, libc::F_DUPFD_CLOEXEC, number) });
    raised.find(|raised| *raised >= 0).unwrap_or(-1)
}

/// Reports that the program cannot be loaded, and exits with 1.
pub fn failed(why: impl Display) -> ! {
    if let Some(socket) = take() {
        send(&socket, &format!("FAILED {why}"));
    }
    eprintln!("panzer: {why}");
    process::exit(1);
}

/// The mold's socket, if panzer has started this process as one.
pub(crate) fn take() -> Option<OwnedFd> {
    let socket = SOCKET.swap(-1, Ordering::Relaxed);
    // SAFETY: `start` has opened it, and it is taken once.
    (socket >= 0).then(|| unsafe { OwnedFd::from_raw_fd(socket) })
}

/// Returns whether the monitor can hear it.
fn send(socket: &OwnedFd, text: &str) -> bool {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let end = (0..=line.len().min(MAX_MESSAGE_BYTES)).rev().find(|end| line.is_char_boundary(*end)).unwrap_or(0);
    let bytes = &line.as_bytes()[..end];
    // SAFETY: the buffer is whole. If the monitor is gone, the next `receive` says so.
    unsafe { libc::send(socket.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), libc::MSG_NOSIGNAL) >= 0 }
}

/// This process as a mold, and in a worker that it has forked what the worker needs to become one.
pub(crate) struct Mold {
    socket: OwnedFd,
    monitor: i32,
    program: Program,
    at_start: Signals,
    /// The workers run on the first. A mold that was a worker runs there itself, and its workers on the other.
    stacks: [Stack; 2],
    has_told_of_threads: bool,
}

/// FORK, with the descriptors that came along.
struct Order {
    ticket: String,
    slot: String,
    places: Vec<Place>,
    descriptors: Vec<OwnedFd>,
}

/// Where a descriptor is to stand in the worker.
#[derive(Clone, Copy)]
enum Place {
    At(RawFd),
    /// The socket on which the worker may become the mold.
    Refork,
}

impl Mold {
    pub(crate) fn new(socket: OwnedFd, program: Program) -> Mold {
        let stack =
            || Stack::new().unwrap_or_else(|error| panic!("panzer: a stack for the workers cannot be mapped: {error}"));
        Mold {
            socket,
            monitor: MONITOR.load(Ordering::Relaxed),
            program,
            at_start: Signals::now(),
            stacks: [stack(), stack()],
            has_told_of_threads: false,
        }
    }

    fn send(&self, text: &str) -> bool {
        send(&self.socket, text)
    }

    /// Forks a worker whenever the monitor asks for one, until it says STOP or is gone.
    pub(crate) fn serve(&mut self) {
        let version = VERSION.load(Ordering::Relaxed);
        if version != 1 {
            let why = format!("this client speaks version 1 of the mold protocol, and panzer version {version}");
            self.send(&format!("FAILED {why}"));
            eprintln!("panzer: {why}");
            process::exit(1);
        }
        self.send("READY refork");
        while let Some((text, descriptors)) = self.receive() {
            let words: Vec<&str> = text.split(' ').collect();
            match words[..] {
                ["STOP"] => return,
                ["FORK", ticket, slot, ref places @ ..] => {
                    let order = Order {
                        ticket: ticket.to_owned(),
                        slot: slot.to_owned(),
                        places: places.iter().filter_map(|word| Place::read(word)).collect(),
                        descriptors,
                    };
                    if let Err(why) = self.obey(order) {
                        self.send(&format!("UNBORN {ticket} {why}"));
                    }
                }
                _ => {}
            }
        }
    }

    /// Forks a worker. The error says why there is none.
    fn obey(&mut self, order: Order) -> Result<(), String> {
        if order.places.len() != order.descriptors.len() {
            return Err(format!("{} descriptors came for {} places", order.descriptors.len(), order.places.len()));
        }
        let before_fork = self.program.before_fork.as_mut();
        panic::catch_unwind(AssertUnwindSafe(|| before_fork.map(|hook| hook())))
            .map_err(|_| "before_fork has panicked")?;
        tell_of_threads(&mut self.has_told_of_threads);
        let _ = io::stdout().flush();
        // The worker takes everything with it: it has a copy of this memory.
        let taken = ptr::from_mut(self);
        let forked = fork(&self.stacks[0], |between| {
            // SAFETY: this runs in the worker, which never comes back to where it is used again.
            unsafe { taken.read() }.be_worker(between, order)
        });
        forked.map_err(|error| words_of(&error))
    }

    /// In the worker: becomes one, and runs the program.
    fn be_worker(mut self, between: i32, order: Order) -> ! {
        self.settle(between);
        let Ok(refork) = place(&order.places, order.descriptors) else { process::abort() };
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
        let Some(refork) = refork else {
            // SAFETY: nobody uses it after this; the worker ends by exit, so it is not closed again.
            unsafe { libc::close(self.socket.as_raw_fd()) };
            process::exit(self.program.work());
        };
        self.socket = refork;
        let code = self.program.work();
        if code == 0 && self.is_wanted() {
            self.become_mold();
            self.serve();
        }
        process::exit(code);
    }

    /// Whether panzer wants this worker as its mold. It says so before it tells the worker to stop.
    fn is_wanted(&self) -> bool {
        let mut text = [0u8; MAX_MESSAGE_BYTES];
        // SAFETY: the buffer is whole.
        let length =
            unsafe { libc::recv(self.socket.as_raw_fd(), text.as_mut_ptr().cast(), text.len(), libc::MSG_DONTWAIT) };
        usize::try_from(length).is_ok_and(|length| &text[..length] == b"MOLD")
    }

    /// In a worker whose `run` has returned.
    fn become_mold(&mut self) {
        self.at_start.restore();
        // For `failed`.
        SOCKET.store(self.socket.as_raw_fd(), Ordering::Relaxed);
        let hook = self.program.become_mold.take();
        self.program.forget_work().unwrap_or_else(|why| failed(why));
        // The program may have closed them, and each worker gets them anew.
        let null = File::options().read(true).write(true).open("/dev/null").unwrap_or_else(|error| failed(error));
        for number in listener_numbers() {
            // SAFETY: what stands at that number is of no use in the mold.
            unsafe { libc::dup2(null.as_raw_fd(), number) };
        }
        let hooked = panic::catch_unwind(AssertUnwindSafe(|| {
            hook.map(|mut hook| {
                hook();
                hook
            })
        }));
        self.program.become_mold = hooked.unwrap_or_else(|_| failed("become_mold has panicked"));
        SOCKET.store(-1, Ordering::Relaxed);
        self.stacks.swap(0, 1);
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

impl Place {
    fn read(word: &str) -> Option<Place> {
        if word == "refork" { Some(Place::Refork) } else { word.parse().ok().map(Place::At) }
    }
}

/// Puts the descriptors where they are to stand, and returns the socket for `refork`. They are raised first, so that none
/// overwrites another.
fn place(places: &[Place], descriptors: Vec<OwnedFd>) -> io::Result<Option<OwnedFd>> {
    let most = places.iter().filter_map(|place| if let Place::At(number) = place { Some(*number) } else { None }).max();
    let (top, mut refork, mut raised) = (most.map_or(0, |most| most + 1), None, Vec::new());
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
    for (descriptor, place) in raised.iter().zip(places) {
        let stands = match place {
            // SAFETY: what stands at that number is replaced, as the monitor asks.
            Place::At(number) => unsafe { libc::dup2(descriptor.as_raw_fd(), *number) },
            Place::Refork => raise(descriptor.as_raw_fd()),
        };
        if stands < 0 {
            return Err(io::Error::last_os_error());
        }
        if matches!(place, Place::Refork) {
            // SAFETY: it was opened just now.
            refork = Some(unsafe { OwnedFd::from_raw_fd(stands) });
        }
    }
    Ok(refork)
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
