//! One look at a worker and its descendants.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, RawFd};

use nix::unistd::Pid;

use super::listeners::Listeners;
use super::proc::{self, Link, Thread};
use super::wait::{self, Wait};
use crate::sys::epoll_sets::{Member, members};
use crate::sys::pidfd::PidFd;

/// Limit of the threads and descriptors in one look, which takes some 10 ms. A worker's other ones are not seen.
const MAX_STEPS: u32 = 4096;

/// Limit of the connections in one look that are asked for their address.
const MAX_CONNECTIONS: u32 = 256;

/// The kernel's limit for epoll sets within epoll sets.
const MAX_SET_DEPTH: u32 = 5;

/// The result of one look at a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sight {
    /// It accepts.
    Accepting,
    /// It does not accept, as far as can be seen. The reason, if some of the processes that it has started could not be
    /// seen.
    NotYet(Option<Hidden>),
    /// It is hidden, so it may accept or not.
    Unseeable(Hidden),
}

/// Why panzer cannot see whether a worker accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hidden {
    /// It has an io_uring, through which it may accept.
    ByIoUring,
    /// It has other rights than panzer.
    ByRights,
    /// /proc does not show the calls in which threads wait.
    ByKernel,
}

impl Hidden {
    /// Completes the same sentence if only a process is hidden that the worker has started.
    pub fn of_helper(self) -> String {
        match self {
            Hidden::ByIoUring => "a process that it started uses io_uring".to_owned(),
            Hidden::ByRights => "panzer has no permission to look at a process that it started".to_owned(),
            Hidden::ByKernel => self.to_string(),
        }
    }
}

/// Completes "whether it accepts cannot be seen: …".
impl fmt::Display for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Hidden::ByIoUring => "it uses io_uring",
            Hidden::ByRights => "panzer has no permission to look at it",
            Hidden::ByKernel => "this kernel does not show what threads wait for",
        })
    }
}

/// Looks once at `worker`, an unreaped child of ours, and at its descendants. Never waits.
pub fn look(worker: Pid, listeners: &Listeners) -> Sight {
    if !proc::shows_calls() {
        return Sight::Unseeable(Hidden::ByKernel);
    }
    let mut look = Look::new(listeners);
    let mut family = vec![worker];
    // A process that the worker has started may be anything, such as sudo for a moment. So only if the worker itself is
    // hidden, another proof is taken.
    let mut own = None;
    let mut next = 0;
    while let Some(&pid) = family.get(next).filter(|_| look.steps > 0) {
        next += 1;
        if look.accepts(pid, &mut family) {
            return Sight::Accepting;
        }
        if next == 1 {
            own = look.hidden.take();
        }
    }
    own.map_or(Sight::NotYet(look.hidden), Sight::Unseeable)
}

/// `worker` and its descendants, as far as one look goes.
pub fn family(worker: Pid) -> Vec<Pid> {
    let mut family = vec![worker];
    let (mut next, mut steps) = (0, MAX_STEPS);
    while let Some(&pid) = family.get(next).filter(|_| steps > 0) {
        next += 1;
        for thread in proc::threads(pid) {
            steps = steps.saturating_sub(1);
            family.extend(thread.children());
        }
    }
    family
}

/// One look, with the rest of its limits.
pub(super) struct Look<'a> {
    pub(super) listeners: &'a Listeners,
    pub(super) steps: u32,
    connections: u32,
    hidden: Option<Hidden>,
}

impl Look<'_> {
    pub(super) fn new(listeners: &Listeners) -> Look<'_> {
        Look { listeners, steps: MAX_STEPS, connections: MAX_CONNECTIONS, hidden: None }
    }

    /// Whether this process is seen accepting. Adds its children to `family`.
    fn accepts(&mut self, pid: Pid, family: &mut Vec<Pid>) -> bool {
        for thread in proc::threads(pid) {
            if !self.may_go_on() {
                return false;
            }
            if self.waits_on_a_listener(&thread) {
                return true;
            }
            family.extend(thread.children());
        }
        self.has_a_connection(pid)
    }

    /// Counts a step.
    pub(super) fn may_go_on(&mut self) -> bool {
        self.steps = self.steps.saturating_sub(1);
        self.steps > 0
    }

    /// The value that was read; nothing if the process has ended. Remembers if the process is hidden from us.
    pub(super) fn shown<T: Default>(&mut self, read: io::Result<T>) -> T {
        read.unwrap_or_else(|error| {
            if error.kind() == io::ErrorKind::PermissionDenied {
                self.hidden = Some(Hidden::ByRights);
            }
            T::default()
        })
    }

    fn waits_on_a_listener(&mut self, thread: &Thread) -> bool {
        let call = self.shown(thread.call());
        match wait::parse(&call) {
            None => false,
            Some(Wait::Accept(fd)) => self.is_listener(thread, fd, 0),
            Some(Wait::AcceptBy { arguments }) => {
                let fd = self.shown(thread.memory(arguments, size_of::<RawFd>()));
                fd.first_chunk().is_some_and(|fd| self.is_listener(thread, RawFd::from_ne_bytes(*fd), 0))
            }
            Some(Wait::Epoll(set)) => self.set_holds_a_listener(thread, set, 0),
            Some(Wait::Poll { array, count }) => {
                let array = self.shown(thread.memory(array, wait::length_of_array(count)));
                wait::polled(&array).any(|fd| self.is_listener(thread, fd, 0))
            }
            Some(Wait::Select { readable, count }) => {
                let bits = self.shown(thread.memory(readable, wait::length_of_bits(count)));
                wait::selected(&bits, count).any(|fd| self.is_listener(thread, fd, 0))
            }
            Some(Wait::Ring) => {
                self.hidden = Some(Hidden::ByIoUring);
                false
            }
        }
    }

    /// Whether `fd` is a listener, or an epoll set that holds one.
    fn is_listener(&mut self, thread: &Thread, fd: RawFd, depth: u32) -> bool {
        if !self.may_go_on() {
            return false;
        }
        match self.shown(thread.link(fd)) {
            Link::Socket(inode) => self.listeners.contains(inode),
            Link::EpollSet => self.set_holds_a_listener(thread, fd, depth + 1),
            Link::Ring | Link::Other => false,
        }
    }

    fn set_holds_a_listener(&mut self, thread: &Thread, set: RawFd, depth: u32) -> bool {
        if depth >= MAX_SET_DEPTH || !self.may_go_on() {
            return false;
        }
        let info = self.shown(thread.info(set));
        // All epoll sets share one inode, so a member with the inode of the set may be a set itself.
        let sets = proc::own_inode(&info);
        let may_lead_there = |member: &Member| self.listeners.contains(member.inode) || sets == Some(member.inode);
        let candidates: Vec<Member> = members(&info).filter(Member::wants_to_read).filter(may_lead_there).collect();
        // The number is checked too, because a closed file may stay in the set while other descriptors hold it.
        candidates.iter().any(|member| self.is_listener(thread, member.fd, depth))
    }

    /// Whether a connection that a listener has accepted is among the descriptors. Also finds an io_uring there.
    fn has_a_connection(&mut self, pid: Pid) -> bool {
        let Some(main_thread) = proc::threads(pid).next() else { return false };
        let descriptors = self.shown(main_thread.descriptors());
        let mut sockets = Vec::new();
        for fd in descriptors {
            if !self.may_go_on() {
                break;
            }
            match self.shown(main_thread.link(fd)) {
                Link::Socket(inode) if !self.listeners.contains(inode) => sockets.push(fd),
                Link::Ring => self.hidden = Some(Hidden::ByIoUring),
                _ => {}
            }
        }
        self.is_any_from_a_listener(pid, &sockets)
    }

    fn is_any_from_a_listener(&mut self, pid: Pid, sockets: &[RawFd]) -> bool {
        if sockets.is_empty() {
            return false;
        }
        // A copy of the descriptor tells more than the tables of all connections of the machine, and costs less. It is
        // closed at once. A descriptor that cannot be copied is not seen.
        let Ok(process) = PidFd::open(pid) else { return false };
        sockets.iter().any(|&fd| {
            self.connections = self.connections.saturating_sub(1);
            let copy = (self.connections > 0).then(|| process.copy_of(fd).ok()).flatten();
            copy.is_some_and(|socket| self.listeners.gave(socket.as_fd()))
        })
    }
}
