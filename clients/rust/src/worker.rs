//! What a worker is and does.

use std::fs::File;
use std::io::Read;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::panic::{self, AssertUnwindSafe};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::{env, mem, ptr};

use crate::{Hook, Program};

/// The first descriptor that panzer passes.
const FIRST_LISTENER: RawFd = 3;

static STOPPING: AtomicBool = AtomicBool::new(false);
static CATCHES_TERM: AtomicBool = AtomicBool::new(false);
/// Where the handler writes which signal came, for the thread that calls the hooks.
static SIGNAL_PIPE: AtomicI32 = AtomicI32::new(-1);
/// Requests that this worker has counted, and how many of them were counted before it was forked.
static SERVED: AtomicU64 = AtomicU64::new(0);
static SERVED_BEFORE: AtomicU64 = AtomicU64::new(0);
static NOTIFIER: OnceLock<Option<UnixDatagram>> = OnceLock::new();

/// One worker, as its own program sees it.
#[derive(Debug)]
pub struct Worker(());

impl Worker {
    /// The worker's number, from 0 on. A respawned worker has the number of the one that ended.
    pub fn index(&self) -> usize {
        env::var("PANZER_WORKER_ID").ok().and_then(|text| text.parse().ok()).unwrap_or(0)
    }

    /// Whether the worker was asked to stop. A worker that calls this, or has `stop`, is not ended by TERM.
    pub fn stopping(&self) -> bool {
        catch_term(false);
        STOPPING.load(Ordering::SeqCst)
    }

    /// Says that this worker can serve. Returns whether anybody listens.
    pub fn ready(&self) -> bool {
        self.notify("READY=1")
    }

    /// Says that this worker is not stuck, for the watchdog.
    pub fn alive(&self) -> bool {
        self.notify("WATCHDOG=1")
    }

    /// Says how many requests this worker has served so far, for --max-requests and --refork. Now and then is enough. What was
    /// counted before it was forked is left out.
    pub fn served(&self, requests: u64) -> bool {
        SERVED.store(requests, Ordering::Relaxed);
        let before = SERVED_BEFORE.load(Ordering::Relaxed);
        let own = requests.checked_sub(before).unwrap_or_else(|| {
            SERVED_BEFORE.store(0, Ordering::Relaxed);
            requests
        });
        self.notify(&format!("X_PANZER_REQUESTS={own}"))
    }

    /// Sends a message as sd_notify(3) does, such as `STATUS=importing`.
    pub fn notify(&self, text: &str) -> bool {
        let Ok(path) = env::var("NOTIFY_SOCKET") else { return false };
        let address = match path.strip_prefix('@') {
            Some(name) => SocketAddr::from_abstract_name(name),
            None => SocketAddr::from_pathname(&path),
        };
        let notifier = NOTIFIER.get_or_init(|| UnixDatagram::unbound().ok());
        match (address, notifier) {
            (Ok(address), Some(socket)) => socket.send_to_addr(text.as_bytes(), &address).is_ok(),
            _ => false,
        }
    }
}

/// The sockets that panzer passes, in the order of `listen`. Each call takes them: call it once, in the mold or in a worker.
pub fn listeners() -> Vec<OwnedFd> {
    // SAFETY: panzer has opened these descriptors for this program, and nobody else here owns them.
    listener_numbers().map(|number| unsafe { OwnedFd::from_raw_fd(number) }).collect()
}

pub(crate) fn listener_numbers() -> std::ops::Range<RawFd> {
    let count: RawFd = env::var("LISTEN_FDS").ok().and_then(|text| text.parse().ok()).unwrap_or(0);
    FIRST_LISTENER..FIRST_LISTENER + count
}

/// The thread that calls `stop` and `reload`. It gives them back when it ends.
pub(crate) type Hooks = JoinHandle<(Option<Hook>, Option<Hook>)>;

impl Program {
    /// In the worker: everything from its first hook to the end of `run`. Returns the exit code.
    pub(crate) fn work(&mut self) -> i32 {
        // A panic has been reported by its hook. It must not unwind the frames of the mold below.
        let ended = panic::catch_unwind(AssertUnwindSafe(|| self.work_through()));
        if ended.is_ok() { 0 } else { 101 }
    }

    fn work_through(&mut self) {
        let worker = Worker(());
        if self.stop.is_some() || self.reload.is_some() {
            self.hooks = Some(listen_to_signals(self.stop.take(), self.reload.take()));
        }
        if let Some(after_start) = &mut self.after_start {
            after_start(&worker);
        }
        (self.run)(&worker);
    }

    /// In a worker that becomes the mold, which has its signals back already.
    pub(crate) fn forget_work(&mut self) -> Result<(), &'static str> {
        let pipe = SIGNAL_PIPE.swap(-1, Ordering::SeqCst);
        if let Some(hooks) = self.hooks.take() {
            // No signal has the number 0: the thread ends.
            // SAFETY: the pipe is this program's own, and one byte is written of one.
            unsafe {
                libc::write(pipe, ptr::from_ref(&0u8).cast(), 1);
                libc::close(pipe);
            }
            (self.stop, self.reload) = hooks.join().map_err(|_| "stop or reload has panicked")?;
        }
        CATCHES_TERM.store(false, Ordering::SeqCst);
        STOPPING.store(false, Ordering::SeqCst);
        SERVED_BEFORE.store(SERVED.load(Ordering::Relaxed), Ordering::Relaxed);
        Ok(())
    }
}

/// Has a thread call the hooks: in a signal handler little is allowed.
fn listen_to_signals(stop: Option<Hook>, reload: Option<Hook>) -> Hooks {
    let mut ends = [0; 2];
    // SAFETY: the array has room for two descriptors.
    if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) } < 0 {
        panic!("panzer: a pipe cannot be opened: {}", std::io::Error::last_os_error());
    }
    SIGNAL_PIPE.store(ends[1], Ordering::SeqCst);
    let (has_stop, has_reload) = (stop.is_some(), reload.is_some());
    // SAFETY: pipe2 has just made it.
    let mut reader = File::from(unsafe { OwnedFd::from_raw_fd(ends[0]) });
    let thread = thread::spawn(move || {
        let mut number = [0u8];
        // The standard library reads again after a signal.
        while reader.read_exact(&mut number).is_ok() && number != [0] {
            let hook = if i32::from(number[0]) == libc::SIGTERM { &stop } else { &reload };
            if let Some(hook) = hook {
                hook(&Worker(()));
            }
        }
        (stop, reload)
    });
    if has_stop {
        catch_term(true);
    }
    if has_reload {
        catch(libc::SIGUSR2);
    }
    thread
}

/// Unless the program has its own handler for TERM, and no `stop`.
fn catch_term(has_stop: bool) {
    if CATCHES_TERM.swap(true, Ordering::SeqCst) {
        return;
    }
    // SAFETY: an all-zero sigaction is a valid one, which sigaction(2) fills.
    let is_default = unsafe {
        let mut now: libc::sigaction = mem::zeroed();
        libc::sigaction(libc::SIGTERM, ptr::null(), &mut now);
        now.sa_sigaction == libc::SIG_DFL
    };
    if has_stop || is_default {
        catch(libc::SIGTERM);
    }
}

fn catch(number: libc::c_int) {
    let handler: extern "C" fn(libc::c_int) = on_signal;
    // SAFETY: an all-zero sigaction is a valid one, with an empty mask; the handler only does what a handler may.
    unsafe {
        let mut action: libc::sigaction = mem::zeroed();
        action.sa_sigaction = handler as usize;
        libc::sigaction(number, &action, ptr::null_mut());
    }
}

extern "C" fn on_signal(number: libc::c_int) {
    if number == libc::SIGTERM {
        STOPPING.store(true, Ordering::SeqCst);
    }
    let byte = number as u8;
    // SAFETY: write is async-signal-safe, errno is put back, and a pipe that is not there fails with EBADF.
    unsafe {
        let before = *libc::__errno_location();
        libc::write(SIGNAL_PIPE.load(Ordering::SeqCst), ptr::from_ref(&byte).cast(), 1);
        *libc::__errno_location() = before;
    }
}
