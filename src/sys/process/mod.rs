//! Processes: our own, our children, and what /proc shows of others.

pub mod calls;
pub mod cgroup;
pub mod credentials;
pub mod epoll_sets;
pub mod helper;
pub mod memory;
pub mod oom;
pub mod other_process;
pub mod pidfd;
pub mod processes;
pub mod seccomp;
pub mod shown;
pub mod stack;
