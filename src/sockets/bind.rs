//! Binds the listeners of the plan.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, SockaddrIn6, UnixAddr, bind as bind_socket, setsockopt, socket,
    sockopt,
};
use nix::unistd::Pid;

use super::holder::{self, Prospect};
use super::listener::{DEFAULT_BACKLOG, Listener};
use super::{inherited, unix_path};
use crate::config::{Access, Address, Listen};
use crate::sys::errno::words;
use crate::sys::file_id::{FileId, remove_if_still};
use crate::sys::{reuseport, socket_options};

/// Why an address could not be bound. Each variant has a line for people.
#[derive(Debug)]
pub enum Refusal {
    /// Only draining workers of a dead panzer, or what is ending, hold the address: waiting helps.
    Passing(String),
    /// The address is in use, and no process is seen to hold it. The process that did may just have ended.
    Unseen(String),
    /// A process holds the address, or it cannot be bound at all.
    Final(String),
    /// The address is in use. Its holder was not looked up.
    InUse(Address),
}

impl Refusal {
    /// The line.
    pub fn why(self) -> String {
        match self {
            Refusal::Passing(why) | Refusal::Unseen(why) | Refusal::Final(why) => why,
            Refusal::InUse(address) => {
                format!("cannot listen on {address}: in use; stop the process that has it, or use another address")
            }
        }
    }

    /// Looks up who holds the address. This takes long on a machine with many descriptors, so a process with other work
    /// leaves it to a child. `main` is panzer's pid.
    pub fn looked_up(self, main: Pid) -> Refusal {
        match self {
            Refusal::InUse(address) => in_use(&address, main),
            other => other,
        }
    }
}

/// Whether a socket may share its address with others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Joining {
    /// It has the address for itself.
    No,
    /// Bound exclusively. SO_REUSEPORT is set afterwards.
    First,
    /// It joins the first one.
    Later,
}

/// Binds a listener and listens, or takes the inherited socket. A unix path that a dead process has left is replaced;
/// one that is in use is refused. If each slot has its own queue, the queue of slot 0 is bound first, exclusively.
/// A later one gets no connections before they are steered to it.
pub fn bind(wanted: &Listen, slot: u32) -> Result<Listener, Refusal> {
    if let Some(number) = wanted.inherited {
        return inherited::take(number, wanted).map_err(|error| why_not(&wanted.address, &error));
    }
    let backlog = wanted.backlog.unwrap_or(DEFAULT_BACKLOG);
    let joining = match slot {
        _ if !wanted.per_worker => Joining::No,
        0 => Joining::First,
        _ => Joining::Later,
    };
    let bound = match &wanted.address {
        Address::Any(port) => any(*port, |address, dual_stack| tcp(address, dual_stack, joining, backlog)),
        Address::Tcp(address) => tcp(*address, false, joining, backlog),
        Address::AnyUdp(port) => any(*port, |address, dual_stack| udp(address, dual_stack, joining)),
        Address::Udp(address) => udp(*address, false, joining),
        Address::Unix(path) => unix(path, wanted.access, backlog),
        Address::Abstract(name) => abstract_unix(name, backlog),
        Address::Other { .. } | Address::Host { .. } => Err(io::ErrorKind::Unsupported.into()),
    };
    let listener = bound.map_err(|error| why_not(&wanted.address, &error))?;
    tell_if_capped(wanted, slot);
    if wanted.nonblock
        && let Err(error) = listener.set_nonblock()
    {
        listener.close();
        return Err(why_not(&wanted.address, &error));
    }
    Ok(listener)
}

/// The kernel shortens a queue silently.
pub fn tell_if_capped(wanted: &Listen, slot: u32) {
    let most = std::fs::read_to_string("/proc/sys/net/core/somaxconn");
    let most = most.ok().and_then(|most| most.trim().parse::<u32>().ok());
    if let (Some(backlog), Some(most)) = (wanted.backlog, most)
        && backlog > most
        && slot == 0
    {
        log::warn!(
            "{}: backlog={backlog} becomes {most}, the most that sysctl net.core.somaxconn allows",
            wanted.address
        );
    }
}

/// Both families on one socket. Only IPv4 if the machine has no IPv6.
fn any(port: u16, bind: impl Fn(SocketAddr, bool) -> io::Result<Listener>) -> io::Result<Listener> {
    match bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)), true) {
        Err(error) if error.raw_os_error() == Some(Errno::EAFNOSUPPORT as i32) => {
            bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)), false)
        }
        other => other,
    }
}

fn tcp(address: SocketAddr, dual_stack: bool, joining: Joining, backlog: u32) -> io::Result<Listener> {
    let fd = internet_socket(SockType::Stream, address, dual_stack)?;
    setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    bind_to(&fd, address, joining)?;
    let listener = listening(fd, backlog)?;
    open_to_others(&listener, joining)?;
    Ok(listener)
}

/// Without SO_REUSEADDR, because with it others could take the port of a datagram socket.
fn udp(address: SocketAddr, dual_stack: bool, joining: Joining) -> io::Result<Listener> {
    let fd = internet_socket(SockType::Datagram, address, dual_stack)?;
    bind_to(&fd, address, joining)?;
    let listener = Listener::without_path(fd);
    open_to_others(&listener, joining)?;
    Ok(listener)
}

fn internet_socket(kind: SockType, address: SocketAddr, dual_stack: bool) -> io::Result<OwnedFd> {
    let family = if address.is_ipv6() { AddressFamily::Inet6 } else { AddressFamily::Inet };
    let fd = socket(family, kind, SockFlag::SOCK_CLOEXEC, None)?;
    if address.is_ipv6() {
        // Set explicitly, because the system's default varies.
        setsockopt(&fd, sockopt::Ipv6V6Only, &!dual_stack)?;
    }
    Ok(fd)
}

/// After bind and listen, so that the bind fails if any other process has the address.
fn open_to_others(listener: &Listener, joining: Joining) -> nix::Result<()> {
    if joining == Joining::First { setsockopt(&listener.fd, sockopt::ReusePort, &true) } else { Ok(()) }
}

fn bind_to(fd: &OwnedFd, address: SocketAddr, joining: Joining) -> nix::Result<()> {
    match joining {
        Joining::Later => setsockopt(fd, sockopt::ReusePort, &true)?,
        // Others may join it later, and no connection is to go to one that has no worker yet. Where the kernel has no
        // such programs, steering says so.
        Joining::No | Joining::First => _ = reuseport::begin_group(fd),
    }
    match address {
        SocketAddr::V4(address) => bind_socket(fd.as_raw_fd(), &SockaddrIn::from(address)),
        SocketAddr::V6(address) => bind_socket(fd.as_raw_fd(), &SockaddrIn6::from(address)),
    }
}

fn unix(path: &Path, access: Access, backlog: u32) -> io::Result<Listener> {
    let fd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    let id = unix_path::bind(&fd, path, access)?;
    let listener = listening(fd, backlog).inspect_err(|_| remove_if_still(path, id))?;
    Ok(Listener { path: Some((path.to_owned(), id)), ..listener })
}

fn abstract_unix(name: &str, backlog: u32) -> io::Result<Listener> {
    let fd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    bind_socket(fd.as_raw_fd(), &UnixAddr::new_abstract(name.as_bytes())?)?;
    listening(fd, backlog)
}

fn listening(fd: OwnedFd, backlog: u32) -> io::Result<Listener> {
    socket_options::listen(&fd, backlog)?;
    Ok(Listener::without_path(fd))
}

fn why_not(address: &Address, error: &io::Error) -> Refusal {
    let reason = match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EADDRINUSE) => return Refusal::InUse(address.clone()),
        Some(Errno::EACCES) => match address {
            Address::Unix(_) => "permission denied for its directory".to_owned(),
            _ => "permission denied; ports below 1024 need root or CAP_NET_BIND_SERVICE".to_owned(),
        },
        Some(Errno::EADDRNOTAVAIL) => "this machine has no such address".to_owned(),
        Some(Errno::ENOENT) => "its directory does not exist; create it".to_owned(),
        _ => words(error),
    };
    Refusal::Final(format!("cannot listen on {address}: {reason}"))
}

fn in_use(address: &Address, main: Pid) -> Refusal {
    let holders = holder::find(address);
    if let Some(holder) = holders.iter().find(|holder| holder.prospect == Prospect::Stays) {
        if holder.pid == main.as_raw() {
            return Refusal::Final(format!(
                "cannot listen on {address}: another --listen of this panzer covers that address already; drop one of them"
            ));
        }
        let (name, pid) = (&holder.name, holder.pid);
        let message = format!("cannot listen on {address}: in use by {name} (pid {pid}); stop it, or listen elsewhere");
        return Refusal::Final(message);
    }
    if let Some(holder) = holders.first() {
        let (name, pid) = (&holder.name, holder.pid);
        let who = match holder.prospect {
            Prospect::LeftByDeadMain => "a worker of a panzer that died",
            _ => "which is exiting",
        };
        return Refusal::Passing(format!("{address} is held by {name} (pid {pid}), {who}"));
    }
    match address {
        Address::Unix(path) if FileId::at(path).is_some() && !unix_path::is_socket(path) => Refusal::Final(format!(
            "cannot listen on {address}: a file that is not a socket is in its place; remove it, or listen elsewhere"
        )),
        _ if holder::is_kept_by_ended_connection(address) => Refusal::Passing(format!(
            "{address} is held by a connection that has ended less than a minute ago (TIME_WAIT)"
        )),
        _ => Refusal::Unseen(format!(
            "cannot listen on {address}: in use by a process that cannot be seen from here; stop it, or listen elsewhere"
        )),
    }
}
