//! Thin safe wrappers around what the kernel offers and nix does not, or not in the shape needed here.
//!
//! Besides `worker` this is the only room with `unsafe` in it. Nothing here decides anything.

pub mod accounts;
pub mod descriptors;
pub mod errno;
pub mod file_id;
pub mod memfd;
pub mod poller;
pub mod shared_memory;
pub mod signals;
pub mod trim_memory;

// The unwinder from an archive: a start would take 0.1 ms to load the library. (Panics abort, and nothing is unwound.)
#[cfg(all(panic = "abort", target_env = "gnu", not(target_feature = "crt-static")))]
#[link(name = "gcc_eh")]
unsafe extern "C" {}

mod printing;
mod process;
mod socket;

pub use printing::{output, printable, stderr, stdout, terminal};
pub use process::{
    calls, cgroup, credentials, epoll_sets, helper, memory, oom, other_process, pidfd, processes, seccomp, shown, stack,
};
pub use socket::{packets, reuseport, settings, socket_options, unix_paths, unix_queue};

/// For tests: tries until `attempt` gives something, which comes by itself.
#[cfg(test)]
#[track_caller]
pub(crate) fn soon<T>(mut attempt: impl FnMut() -> Option<T>) -> T {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    loop {
        if let Some(found) = attempt() {
            return found;
        }
        assert!(std::time::Instant::now() < deadline, "waited in vain");
        std::thread::yield_now();
    }
}
