//! Shared ports on the monitor's side: each bind and listen of its workers, and of their children, stops here.
//!
//! A call that is not about TCP goes through at once. A bind to a TCP address is claimed from main, because only main
//! knows who is first. The first socket is bound with all its options, and stays the program's own until it listens.
//! From then on main holds it. Everybody else who claims the address gets this socket in place of its own. A `listen`
//! may make the backlog longer, never shorter.
//!
//! Every answer may be given twice: a call that a signal interrupts comes again, whatever was done for it before.

mod key;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use nix::unistd::Pid;

pub use key::{Key, bind_as_claimed, bind_own, bind_unbound, is_at, is_bound, key_of};
use key::{LENGTH_V4, LENGTH_V6, Seen, look_at, look_from_outside, read_address, unbound};

use crate::sys::errno::words;
use crate::sys::file_id::FileId;
use crate::sys::seccomp::{self, Call, Calls, Trapped};
use crate::sys::{epoll_sets, other_process, socket_options};

/// Number of calls that may wait for main. More threads than this do not bind at once, except to do harm.
const MAX_WAITING: usize = 1024;

/// Number of sockets remembered that are bound and do not listen yet.
const MAX_BOUND: usize = 1024;

/// A question to main about a call of a worker.
#[derive(Debug)]
pub struct Claim {
    /// Ticket of main's answer.
    pub ticket: u64,
    /// The address.
    pub key: Key,
    /// The process that calls.
    pub process: Pid,
    /// A copy of the program's own socket, if it could be made.
    pub socket: Option<OwnedFd>,
    /// The backlog, if the call is a listen.
    pub backlog: Option<i32>,
}

/// A consequence of a worker's call, beyond its answer.
#[derive(Debug)]
pub enum Taken {
    /// Main is asked.
    Claim(Claim),
    /// This process listens on a shared socket.
    Listens(Pid),
    /// This process listens on a unix path, through the socket with this inode.
    OnPath(Pid, PathBuf, u64),
}

/// The treatment of a call.
enum Next {
    /// The kernel carries it out.
    Kernel,
    Answered,
    /// It is answered, and this process listens on a shared socket.
    Listens(Pid),
    /// The kernel carries it out, and this process listens on a unix path, through the socket with this inode.
    OnPath(Pid, PathBuf, u64),
    /// Main decides.
    Main(Waiting),
}

/// A call whose caller waits.
#[derive(Debug)]
struct Waiting {
    call: Call,
    key: Key,
    /// A copy of the program's own socket. None only if a container forbids pidfd_getfd.
    socket: Option<OwnedFd>,
    inode: u64,
    process: Pid,
    since: Instant,
}

/// A socket that is bound and does not listen yet. Only the program holds it.
#[derive(Debug)]
struct Bound {
    ticket: u64,
    key: Key,
    /// Process and number of its descriptor, unless the program has moved it.
    process: Pid,
    number: RawFd,
    since: Instant,
}

/// The ports that the workers of one generation share with all others.
#[derive(Debug)]
pub struct Sharing {
    calls: Calls,
    /// The only ports that are shared, if they were given.
    only: Option<BTreeSet<u16>>,
    /// Sockets that main has sent. A later bind need not ask main. None once a stop has begun.
    held: Option<BTreeMap<Key, OwnedFd>>,
    /// The inodes of all held sockets.
    inodes: BTreeMap<u64, Key>,
    /// Bound sockets by inode.
    bound: BTreeMap<u64, Bound>,
    /// Inodes of sockets that a held one has replaced. Other descriptors may still lead to them, such as those of the
    /// parent of a process that binds for it.
    replaced: BTreeMap<u64, Key>,
    waiting: BTreeMap<u64, Waiting>,
    /// The longest time that a call waits for main.
    patience: Duration,
    main_is_gone: bool,
    told_hidden: bool,
    told_other_architecture: bool,
    told_capabilities: bool,
}

/// Whether ports can be shared here. The error is a line for people.
pub fn try_out() -> Result<(), String> {
    seccomp::try_out().map_err(|error| match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EBUSY) => "somebody else, such as an outer panzer, already answers for these processes".to_owned(),
        Some(Errno::EPERM | Errno::EACCES) => "seccomp is forbidden here, as by a container".to_owned(),
        Some(Errno::ENOSYS | Errno::EINVAL) => "it takes Linux 5.9 or later, with seccomp".to_owned(),
        _ => words(&error),
    })
}

impl Sharing {
    /// Traps the calls of this process and of all processes that it will start, for ever. From now on it cannot bind
    /// anything itself. Also returns whether privileges were given up for it. `patience` is the longest time that a
    /// call waits for main.
    pub fn begin(only: Option<BTreeSet<u16>>, patience: Duration) -> io::Result<(Sharing, bool)> {
        let (calls, gave_up) = seccomp::trap()?;
        let sharing = Sharing {
            calls,
            only,
            held: Some(BTreeMap::new()),
            inodes: BTreeMap::new(),
            bound: BTreeMap::new(),
            replaced: BTreeMap::new(),
            waiting: BTreeMap::new(),
            patience,
            main_is_gone: false,
            told_hidden: false,
            told_other_architecture: false,
            told_capabilities: false,
        };
        Ok((sharing, gave_up))
    }

    /// Takes one call. Answers it, or returns what to ask main. Call this once per readiness event.
    pub fn take_call(&mut self) -> Option<Taken> {
        let call = self.calls.receive()?;
        let next = match call.trapped {
            Trapped::Bind => self.bind(call),
            Trapped::Listen => self.listen(call),
            Trapped::OtherArchitecture => {
                self.tell_other_architecture(&call);
                Ok(Next::Kernel)
            }
        };
        match next {
            Ok(Next::Answered) => None,
            Ok(Next::Listens(process)) => Some(Taken::Listens(process)),
            Ok(Next::Main(waiting)) => self.claim(waiting).map(Taken::Claim),
            Ok(Next::Kernel) => {
                self.calls.let_through(&call);
                None
            }
            Ok(Next::OnPath(process, path, inode)) => {
                self.calls.let_through(&call);
                Some(Taken::OnPath(process, path, inode))
            }
            Err(error) => {
                self.tell_refusal(&call, &error);
                self.calls.let_through(&call);
                None
            }
        }
    }

    /// Main holds this socket for the claim `ticket`. Returns the process that listens on it from now on, if the call
    /// was a listen.
    pub fn shared(&mut self, ticket: u64, held: OwnedFd) -> Option<Pid> {
        let inode = inode_of(&held).ok()?;
        let waiting = self.waiting.remove(&ticket)?;
        self.inodes.insert(inode, waiting.key.clone());
        self.bound.remove(&waiting.inode);
        self.share(&waiting, held.as_fd());
        self.note_replaced(&waiting, inode);
        let listens = (waiting.call.trapped == Trapped::Listen).then_some(waiting.process);
        if let Some(all) = &mut self.held {
            all.insert(waiting.key, held);
        }
        listens
    }

    /// The claim `ticket` is the first of its address. If main got a copy of the program's own socket, it has bound
    /// that.
    pub fn bound(&mut self, ticket: u64) {
        let Some(Waiting { call, key, socket, inode, process, .. }) = self.waiting.remove(&ticket) else { return };
        if self.bound.len() >= MAX_BOUND {
            let leads_there = |inode, bound: &Bound| other_process::leads_to(bound.process, bound.number, inode);
            self.bound.retain(|&inode, bound| leads_there(inode, bound).unwrap_or(true));
        }
        // A socket that is not remembered will not be shared when it listens.
        if self.bound.len() < MAX_BOUND {
            let (number, since) = (call.descriptor(), Instant::now());
            self.bound.insert(inode, Bound { ticket, key, process, number, since });
        }
        match socket {
            Some(_) => self.calls.answer(&call, Ok(())),
            None => self.calls.let_through(&call),
        }
    }

    /// The claim `ticket` is refused: its call fails with `reason`. Without a reason, the kernel carries it out.
    pub fn not_shared(&mut self, ticket: u64, reason: Option<Errno>) {
        let Some(waiting) = self.waiting.remove(&ticket) else { return };
        match reason {
            Some(errno) => self.calls.answer(&waiting.call, Err(errno)),
            None => self.calls.let_through(&waiting.call),
        }
    }

    /// The claim `ticket` has waited, and is to be made again if its caller still waits. Returns it.
    pub fn again(&mut self, ticket: u64) -> Option<Claim> {
        let waiting = self.waiting.remove(&ticket)?;
        self.calls.is_waiting(&waiting.call).then(|| self.claim(waiting)).flatten()
    }

    /// The process and time of the bind with this ticket. None if its socket will not listen any more, because it is
    /// closed or connected.
    pub fn may_listen(&self, ticket: u64) -> Option<(Pid, Instant)> {
        let (inode, bound) = self.bound.iter().find(|(_, bound)| bound.ticket == ticket)?;
        let known = Some((bound.process, bound.number));
        let place = match other_process::leads_to(bound.process, bound.number, *inode) {
            Ok(true) => known,
            // It was copied, or a child has inherited it.
            Ok(false) => other_process::holder_of(*inode, bound.process).unwrap_or(known),
            // The process has changed its rights meanwhile, and cannot be seen.
            Err(_) => known,
        };
        let (process, number) = place?;
        let is_idle = |socket: OwnedFd| socket_options::is_idle(&socket).unwrap_or(true);
        other_process::descriptor_of(process, number).map_or(true, is_idle).then_some((process, bound.since))
    }

    /// The processes that have bound this address and do not listen there yet.
    pub fn bound_by(&self, key: &Key) -> Vec<Pid> {
        self.bound.values().filter(|bound| bound.key == *key).map(|bound| bound.process).collect()
    }

    /// When a call has waited too long.
    pub fn deadline(&self) -> Option<Instant> {
        self.waiting.values().map(|waiting| waiting.since + self.patience).min()
    }

    /// Lets the kernel carry out the calls that main has not answered in time.
    pub fn let_overdue_through(&mut self, now: Instant) {
        let patience = self.patience;
        let is_overdue = |waiting: &Waiting| waiting.since + patience <= now;
        let overdue: Vec<u64> =
            self.waiting.iter().filter(|(_, it)| is_overdue(it)).map(|(ticket, _)| *ticket).collect();
        for waiting in overdue.iter().filter_map(|ticket| self.waiting.remove(ticket)).collect::<Vec<_>>() {
            log::warn!("main does not say whether {} is shared; the kernel decides", waiting.key.address);
            self.calls.let_through(&waiting.call);
        }
    }

    /// Closes the held sockets, so that clients are refused as soon as the last worker has closed its own.
    pub fn let_go(&mut self) {
        self.held = None;
    }

    /// Main answers no more. The kernel carries out the calls that wait and all that come.
    pub fn main_is_gone(&mut self) {
        self.main_is_gone = true;
        for waiting in std::mem::take(&mut self.waiting).into_values() {
            self.calls.let_through(&waiting.call);
        }
    }

    fn bind(&mut self, call: Call) -> io::Result<Next> {
        let Some(waiting) = self.examine(call)? else { return Ok(Next::Kernel) };
        let bound_to = self.bound.get(&waiting.inode).map(|bound| &bound.key);
        if let Some(bound_to) = self.inodes.get(&waiting.inode).or(bound_to) {
            // An interrupted call comes again after everything was done for it. A bind to another address is the
            // program's mistake.
            if *bound_to != waiting.key {
                return Ok(Next::Kernel);
            }
            self.calls.answer(&call, Ok(()));
            return Ok(Next::Answered);
        }
        if let Some(held) = self.held.as_ref().and_then(|held| held.get(&waiting.key)) {
            self.share(&waiting, held.as_fd());
            self.note_replaced(&waiting, 0);
            return Ok(Next::Answered);
        }
        Ok(Next::Main(waiting))
    }

    /// Examines a bind. None if there is nothing to share: it is not TCP, has no port, or its caller may not bind it.
    fn examine(&mut self, call: Call) -> io::Result<Option<Waiting>> {
        let Some(inode) = other_process::socket_inode(call.thread, call.descriptor())? else { return Ok(None) };
        let socket = copy_of(&call)?;
        let seen = match &socket {
            Some(socket) => look_at(socket)?,
            None => look_from_outside(&call)?,
        };
        let Some(Seen { family, network, device, v6_only }) = seen else { return Ok(None) };
        let Some(address) = read_address(&call, family)? else { return Ok(None) };
        // With port 0 each bind gets another port.
        let is_meant = self.only.as_ref().is_none_or(|only| only.contains(&address.port()));
        if address.port() == 0 || !is_meant {
            return Ok(None);
        }
        // If the caller may not bind this port, the kernel refuses it.
        if key::is_privileged(address.port()) && !other_process::may_bind_privileged(call.thread) {
            self.tell_capabilities(&call, address);
            return Ok(None);
        }
        let key = Key::new(network, device, v6_only, address);
        let (process, since) = (other_process::leader_of(call.thread).ok_or(Errno::ESRCH)?, Instant::now());
        // If the caller had ended, all of this might have been read from another process with its pid.
        Ok(self.calls.is_waiting(&call).then_some(Waiting { call, key, socket, inode, process, since }))
    }

    fn claim(&mut self, waiting: Waiting) -> Option<Claim> {
        self.waiting.retain(|_, waiting| self.calls.is_waiting(&waiting.call));
        let copy = waiting.socket.as_ref().map(OwnedFd::try_clone).transpose();
        let (true, Ok(socket)) = (self.is_open(), copy) else {
            self.calls.let_through(&waiting.call);
            return None;
        };
        let Waiting { call, ref key, process, .. } = waiting;
        let backlog = (call.trapped == Trapped::Listen).then_some(call.arguments[1] as i32);
        let claim = Claim { ticket: call.id, key: key.clone(), process, socket, backlog };
        self.waiting.insert(call.id, waiting);
        Some(claim)
    }

    /// Whether main still answers.
    fn is_open(&self) -> bool {
        !self.main_is_gone && self.held.is_some() && self.waiting.len() < MAX_WAITING
    }

    /// Gives the caller the held socket in place of its own, unless its own is the held one.
    fn share(&self, waiting: &Waiting, held: BorrowedFd<'_>) {
        let is_its_own = inode_of(held).is_ok_and(|inode| inode == waiting.inode);
        let given = if is_its_own { Ok(()) } else { self.replace(waiting, held) };
        let answer = given.map_err(|error| {
            let errno = error.raw_os_error().map_or(Errno::EADDRINUSE, Errno::from_raw);
            // Otherwise the call was withdrawn: it comes again, or its caller has ended.
            if errno != Errno::ENOENT && self.calls.is_waiting(&waiting.call) {
                log::warn!("cannot share {} with pid {}: {}", waiting.key.address, waiting.call.thread, words(&error));
            }
            errno
        });
        self.calls.answer(&waiting.call, answer);
    }

    fn note_replaced(&mut self, waiting: &Waiting, held: u64) {
        if waiting.inode != held {
            if self.replaced.len() >= MAX_BOUND {
                self.replaced.clear();
            }
            self.replaced.insert(waiting.inode, waiting.key.clone());
        }
    }

    fn replace(&self, waiting: &Waiting, held: BorrowedFd<'_>) -> io::Result<()> {
        let (call, number) = (&waiting.call, waiting.call.descriptor());
        let wanted = other_process::flags_of(call.thread, number)?;
        let current = OFlag::from_bits_retain(fcntl(held, FcntlArg::F_GETFL)?);
        // O_NONBLOCK is never cleared: a worker that serves would wait in accept for a connection that another worker
        // took.
        if wanted.contains(OFlag::O_NONBLOCK) && !current.contains(OFlag::O_NONBLOCK) {
            fcntl(held, FcntlArg::F_SETFL(current | OFlag::O_NONBLOCK))?;
        }
        // Some programs add their socket to an epoll set before they bind it.
        let watching = epoll_sets::registrations(call.thread, number, waiting.inode)?;
        self.calls.replace_descriptor(call, held, wanted.contains(OFlag::O_CLOEXEC))?;
        match &waiting.socket {
            Some(own) => epoll_sets::hand_over(&watching, number, own.as_fd(), held),
            None => Ok(()),
        }
    }

    /// All workers share one backlog, so it grows to the longest that any of them asked for. A bound socket is shared
    /// from its first listen on.
    fn listen(&mut self, call: Call) -> io::Result<Next> {
        // A socket that cannot be looked at was never shared.
        let Ok(Some(inode)) = other_process::socket_inode(call.thread, call.descriptor()) else {
            return Ok(Next::Kernel);
        };
        let process = other_process::leader_of(call.thread).ok_or(Errno::ESRCH)?;
        if let Some(key) = self.inodes.get(&inode) {
            match self.is_long_enough(key, &call).unwrap_or(false) {
                true => self.calls.answer(&call, Ok(())),
                false => self.calls.let_through(&call),
            }
            return Ok(Next::Listens(process));
        }
        let replaced = self.replaced.get(&inode).and_then(|key| Some((key.clone(), self.held.as_ref()?.get(key)?)));
        if let (Some((key, held)), Some(socket)) = (replaced, copy_of(&call)?)
            && !is_bound(&socket)
        {
            let since = Instant::now();
            self.share(&Waiting { call, key, socket: Some(socket), inode, process, since }, held.as_fd());
            return Ok(Next::Listens(process));
        }
        let Some(bound) = self.bound.get(&inode) else {
            let socket = other_process::descriptor_of(call.thread, call.descriptor());
            let path = socket.ok().and_then(|socket| key::unix_path(&socket));
            return Ok(path.map_or(Next::Kernel, |path| Next::OnPath(process, path, inode)));
        };
        let (key, since) = (bound.key.clone(), Instant::now());
        let Some(socket) = copy_of(&call)? else { return self.listen_on_another(call, key, process) };
        // Inode numbers are used again.
        if key_of(&socket).is_none_or(|now| now.address != key.address) {
            self.bound.remove(&inode);
            return Ok(Next::Kernel);
        }
        Ok(Next::Main(Waiting { call, key, socket: Some(socket), inode, process, since }))
    }

    /// If the program's own socket cannot be copied, a socket of our own takes its place, and main binds that.
    fn listen_on_another(&mut self, call: Call, key: Key, process: Pid) -> io::Result<Next> {
        let wanted = other_process::flags_of(call.thread, call.descriptor())?;
        let socket = unbound(&key)?;
        fcntl(&socket, FcntlArg::F_SETFL(wanted & OFlag::O_NONBLOCK))?;
        let inode = inode_of(&socket)?;
        self.calls.replace_descriptor(&call, socket.as_fd(), wanted.contains(OFlag::O_CLOEXEC))?;
        let (number, since) = (call.descriptor(), Instant::now());
        self.bound.insert(inode, Bound { ticket: call.id, key: key.clone(), process, number, since });
        Ok(Next::Main(Waiting { call, key, socket: Some(socket), inode, process, since }))
    }

    fn is_long_enough(&self, key: &Key, call: &Call) -> io::Result<bool> {
        let current = match self.held.as_ref().and_then(|held| held.get(key)) {
            Some(held) => socket_options::backlog(held)?,
            None => socket_options::backlog(other_process::descriptor_of(call.thread, call.descriptor())?)?,
        };
        let asked = call.arguments[1] as u32;
        Ok(current.is_some_and(|current| current >= asked))
    }

    fn tell_refusal(&mut self, call: &Call, error: &io::Error) {
        // Decided by its length, because little else can be seen. Most binds are not about an internet address.
        let is_address = [LENGTH_V4, LENGTH_V6].contains(&(call.arguments[2] as usize));
        let refused = matches!(error.raw_os_error(), Some(libc::EPERM | libc::EACCES));
        if refused && is_address && !std::mem::replace(&mut self.told_hidden, true) {
            log::warn!(
                "the ports of a program that may not be looked into (pid {}) are not shared; use --listen",
                call.thread
            );
        }
    }

    fn tell_other_architecture(&mut self, call: &Call) {
        if !std::mem::replace(&mut self.told_other_architecture, true) {
            log::warn!(
                "pid {} is a program for another architecture, such as a 32-bit one: its ports are not shared; use \
                 --listen",
                call.thread
            );
        }
    }

    fn tell_capabilities(&mut self, call: &Call, address: std::net::SocketAddr) {
        let program = format!("/proc/{}/exe", call.thread);
        let Some(capabilities) = other_process::file_capabilities(&program) else { return };
        if !std::mem::replace(&mut self.told_capabilities, true) {
            let program = std::fs::read_link(program).unwrap_or_default();
            log::warn!(
                "{address} is refused to pid {}: the capabilities of {} ({capabilities}) have no power in workers that \
                 share ports; use --listen, or --share-ports off",
                call.thread,
                program.display()
            );
        }
    }
}

impl AsFd for Sharing {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.calls.as_fd()
    }
}

/// A copy of the socket that a call is about. None if a container forbids it.
fn copy_of(call: &Call) -> io::Result<Option<OwnedFd>> {
    match other_process::descriptor_of(call.thread, call.descriptor()) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EPERM | libc::ENOSYS)) => Ok(None),
        copy => copy.map(Some),
    }
}

fn inode_of(socket: impl AsFd) -> io::Result<u64> {
    Ok(FileId::of(socket).ok_or(Errno::EBADF)?.inode())
}
