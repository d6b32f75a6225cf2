//! Thin safe wrappers around what the kernel offers and nix does not, or not in the shape needed here.
//!
//! Besides `worker::spawn` this is the only room with `unsafe` in it. Nothing here decides anything.

pub mod credentials;
pub mod descriptors;
pub mod epoll_sets;
pub mod errno;
pub mod file_id;
pub mod memfd;
pub mod other_process;
mod outlet;
pub mod output;
pub mod packets;
pub mod pidfd;
pub mod poller;
pub mod printable;
pub mod processes;
pub mod reuseport;
pub mod seccomp;
pub mod signals;
pub mod socket_options;
pub mod stderr;
pub mod stdout;
pub mod terminal;
pub mod trim_memory;
pub mod unix_paths;
pub mod unix_queue;

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
