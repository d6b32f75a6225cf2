//! Shared ports, the monitor's side: each bind and listen of its workers, and of their children, is asked about here.
//!
//! What is not TCP goes through at once. A bind to a TCP address is claimed from main, which alone says who is first:
//! it binds the socket of the first, on which all options stay as they were set, and holds it from then on. Everybody
//! after that gets the held socket in the place of its own. A `listen` may make its backlog longer, never shorter.
//!
//! Every answer may be given twice: a call that a signal interrupts comes again, whatever was done for it before.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, SockaddrIn6, SockaddrStorage, bind, getsockname, setsockopt, socket,
    sockopt,
};
use nix::sys::stat::fstat;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::config::Address;
use crate::sys::epoll_sets;
use crate::sys::foreign;
use crate::sys::options;
use crate::sys::pidfd;
use crate::sys::seccomp::{self, Call, Calls, Trapped};

/// So many binds may wait for main. More threads than this do not bind at once, except to do harm.
const MOST_WAITING: usize = 1024;

/// The lengths of a `sockaddr_in` and a `sockaddr_in6`.
const LENGTH_V4: usize = 16;
const LENGTH_V6: usize = 28;

/// What makes two TCP sockets the same to their clients.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Key {
    /// The network namespace.
    pub network: u64,
    /// The network interface it is bound to; empty where to none.
    pub device: String,
    /// Whether an IPv6 socket leaves IPv4 to others.
    pub v6_only: bool,
    /// The address, and by it the family.
    pub address: SocketAddr,
}

impl Key {
    /// The only way to make one, so that a socket has the same key before its bind and after.
    pub fn new(network: u64, device: String, v6_only: bool, address: SocketAddr) -> Key {
        // Only a socket for all addresses may serve IPv4 besides.
        let v6_only = v6_only && address.ip().is_unspecified();
        let address = match address {
            // The kernel ignores the scope of any other address.
            SocketAddr::V6(v6) if !v6.ip().is_unicast_link_local() => (*v6.ip(), v6.port()).into(),
            other => other,
        };
        // A scope names the interface already, and the kernel binds the socket to that interface.
        let has_scope = matches!(address, SocketAddr::V6(v6) if v6.scope_id() != 0);
        Key { network, device: if has_scope { String::new() } else { device }, v6_only, address }
    }
}

/// A bind that main is to decide.
#[derive(Debug)]
pub struct Claim {
    /// What main's answer refers to.
    pub ticket: u64,
    /// What is claimed.
    pub key: Key,
    /// A copy of the program's own socket, where it could be had.
    pub socket: Option<OwnedFd>,
}

/// What a call of a worker's comes to, beyond its answer.
#[derive(Debug)]
pub enum Taken {
    /// Main is to be asked.
    Claim(Claim),
    /// This thread listens on a shared socket.
    Listens(Pid),
}

/// A bind whose caller waits.
#[derive(Debug)]
struct Bind {
    call: Call,
    key: Key,
    /// A copy of the program's own socket. None where a container forbids that (pidfd_getfd), and nothing else.
    socket: Option<OwnedFd>,
    inode: u64,
}

/// What is seen of a TCP socket before it is bound.
#[derive(Debug)]
struct Seen {
    family: libc::c_int,
    network: u64,
    device: String,
    v6_only: bool,
}

/// The ports that the workers of one generation share with all others.
#[derive(Debug)]
pub struct Sharing {
    calls: Calls,
    /// What main has sent: a later bind needs nobody's leave. None once a stop has begun.
    held: Option<BTreeMap<Key, OwnedFd>>,
    /// The inodes of all held sockets.
    inodes: BTreeMap<u64, Key>,
    waiting: BTreeMap<u64, Bind>,
    main_is_gone: bool,
    told_refusal: bool,
}

/// Whether ports can be shared here; true where workers must give up privileges for it. The error is a line for people.
pub fn try_out() -> Result<bool, String> {
    seccomp::try_out().map_err(|error| match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EBUSY) => "somebody else, such as an outer panzer, already answers for these processes".to_owned(),
        Some(Errno::EPERM | Errno::EACCES) => "seccomp is forbidden here, as by a container".to_owned(),
        Some(Errno::ENOSYS | Errno::EINVAL) => "it takes Linux 5.9 or later, with seccomp".to_owned(),
        _ => error.to_string(),
    })
}

/// By what a socket would be claimed that is bound already. None where it is no TCP socket.
pub fn key_of(socket: &impl AsFd) -> Option<Key> {
    let Seen { network, device, v6_only, .. } = look_at(socket).ok()??;
    let name = getsockname::<SockaddrStorage>(socket.as_fd().as_raw_fd()).ok()?;
    let v4 = name.as_sockaddr_in().map(|name| SocketAddr::from(SocketAddrV4::from(*name)));
    let address = v4.or(name.as_sockaddr_in6().map(|name| SocketAddr::from(SocketAddrV6::from(*name))))?;
    Some(Key::new(network, device, v6_only, address))
}

/// Whether what is held by this key, in our own network, is what `--listen` asks for by this address.
pub fn is_at(key: &Key, address: &Address) -> bool {
    let is_same = match address {
        Address::Any(port) => key.address == (Ipv6Addr::UNSPECIFIED, *port).into() && !key.v6_only,
        // One for both families is more than was asked for.
        Address::Tcp(address) => {
            key.address == *address && (key.v6_only || !address.ip().is_unspecified() || address.is_ipv4())
        }
        _ => false,
    };
    let here = || socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).ok();
    is_same && key.device.is_empty() && here().is_some_and(|here| options::network_namespace(here) == key.network)
}

/// Binds a program's socket to what it claims, with whatever options it has.
pub fn bind_as_claimed(socket: &OwnedFd, key: &Key) -> Result<(), Errno> {
    match key.address {
        SocketAddr::V4(address) => bind(socket.as_raw_fd(), &SockaddrIn::from(address)),
        SocketAddr::V6(address) => bind(socket.as_raw_fd(), &SockaddrIn6::from(address)),
    }
}

/// Binds a socket of our own to what was claimed, for a program whose own cannot be had.
pub fn bind_own(key: &Key) -> Result<OwnedFd, Errno> {
    if key.address.is_ipv4() {
        return bound(key, AddressFamily::Inet, false);
    }
    match bound(key, AddressFamily::Inet6, false) {
        // Whether the program leaves IPv4 alone cannot be seen. Where that is taken, it has a socket there too.
        Err(Errno::EADDRINUSE) => bound(key, AddressFamily::Inet6, true),
        other => other,
    }
}

fn bound(key: &Key, family: AddressFamily, v6_only: bool) -> Result<OwnedFd, Errno> {
    let socket = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    if family == AddressFamily::Inet6 {
        setsockopt(&socket, sockopt::Ipv6V6Only, &v6_only)?;
    }
    bind_as_claimed(&socket, key)?;
    Ok(socket)
}

impl Sharing {
    /// Begins for this process, for good, and all that it will start. It can bind nothing itself from here on.
    pub fn begin() -> io::Result<Sharing> {
        let (calls, _) = seccomp::trap()?;
        Ok(Sharing {
            calls,
            held: Some(BTreeMap::new()),
            inodes: BTreeMap::new(),
            waiting: BTreeMap::new(),
            main_is_gone: false,
            told_refusal: false,
        })
    }

    /// Whether `inode` is that of a shared socket.
    pub fn is_shared(&self, inode: u64) -> bool {
        self.inodes.contains_key(&inode)
    }

    /// Takes one call, and either answers it or gives what main is to be asked. Once for each time that this is ready.
    pub fn take_call(&mut self) -> Option<Taken> {
        let call = self.calls.receive()?;
        let examined = match call.trapped {
            Trapped::Bind => self.examine(call),
            Trapped::Listen => return self.listen(&call).then_some(Taken::Listens(call.thread)),
        };
        match examined {
            Ok(Some(bind)) => self.bind(bind).map(Taken::Claim),
            Ok(None) => {
                self.calls.let_through(&call);
                None
            }
            Err(error) => {
                self.tell_refusal(&call, &error);
                self.calls.let_through(&call);
                None
            }
        }
    }

    /// Main holds the socket that was claimed with `ticket`: it is this one. None where the descriptor did not arrive.
    pub fn shared(&mut self, ticket: u64, held: Option<OwnedFd>) {
        let Some(bind) = self.waiting.remove(&ticket) else { return };
        let Some((held, inode)) = held.and_then(|held| inode_of(&held).ok().map(|inode| (held, inode))) else {
            log::warn!("cannot share {}: the monitor has no descriptor left", bind.key.address);
            return self.calls.let_through(&bind.call);
        };
        self.inodes.insert(inode, bind.key.clone());
        self.share(&bind, held.as_fd());
        if let Some(all) = &mut self.held {
            all.insert(bind.key, held);
        }
    }

    /// Main could not bind what was claimed with `ticket`; without a reason, it is none of its business.
    pub fn not_shared(&mut self, ticket: u64, reason: Option<Errno>) {
        let Some(bind) = self.waiting.remove(&ticket) else { return };
        match reason {
            Some(errno) => self.calls.answer(&bind.call, Err(errno)),
            None => self.calls.let_through(&bind.call),
        }
    }

    /// Closes what is held here, so that clients are refused as soon as the last worker has closed its own.
    pub fn let_go(&mut self) {
        self.held = None;
    }

    /// Nobody answers any more: what waits, and whatever comes, is for the kernel alone.
    pub fn main_is_gone(&mut self) {
        self.main_is_gone = true;
        for bind in std::mem::take(&mut self.waiting).into_values() {
            self.calls.let_through(&bind.call);
        }
    }

    /// What is to be bound. None where there is nothing to share: no TCP, no port, nobody who might.
    fn examine(&self, call: Call) -> io::Result<Option<Bind>> {
        let Some(inode) = foreign::socket_inode(call.thread, descriptor(&call))? else { return Ok(None) };
        let (socket, seen) = match foreign::descriptor_of(call.thread, descriptor(&call)) {
            Ok(socket) => {
                let seen = look_at(&socket)?;
                (Some(socket), seen)
            }
            Err(error) if matches!(error.raw_os_error(), Some(libc::EPERM | libc::ENOSYS)) => {
                (None, look_from_outside(&call)?)
            }
            Err(error) => return Err(error),
        };
        let Some(Seen { family, network, device, v6_only }) = seen else { return Ok(None) };
        let Some(address) = read_address(&call, family)? else { return Ok(None) };
        // Port 0 is a different one for each. And a port that the caller must not bind the kernel refuses to it.
        let may_bind = || !is_privileged(address.port()) || foreign::may_bind_privileged(call.thread);
        if address.port() == 0 || !may_bind() {
            return Ok(None);
        }
        let key = Key::new(network, device, v6_only, address);
        // Had the caller ended, all of this might have been read from somebody else under its pid.
        Ok(self.calls.is_waiting(&call).then_some(Bind { call, key, socket, inode }))
    }

    fn bind(&mut self, bind: Bind) -> Option<Claim> {
        if let Some(bound_to) = self.inodes.get(&bind.inode) {
            // An interrupted call comes again after all was done for it; another address is the program's mistake.
            if *bound_to == bind.key {
                self.calls.answer(&bind.call, Ok(()));
            } else {
                self.calls.let_through(&bind.call);
            }
            return None;
        }
        if let Some(held) = self.held.as_ref().and_then(|held| held.get(&bind.key)) {
            self.share(&bind, held.as_fd());
            return None;
        }
        self.claim(bind)
    }

    fn claim(&mut self, bind: Bind) -> Option<Claim> {
        self.waiting.retain(|_, waiting| self.calls.is_waiting(&waiting.call));
        if self.main_is_gone || self.waiting.len() >= MOST_WAITING {
            self.calls.let_through(&bind.call);
            return None;
        }
        let socket = bind.socket.as_ref().and_then(|socket| socket.try_clone().ok());
        let claim = Claim { ticket: bind.call.id, key: bind.key.clone(), socket };
        self.waiting.insert(bind.call.id, bind);
        Some(claim)
    }

    /// Gives the caller the held socket in the place of its own, unless it is its own that is held.
    fn share(&self, bind: &Bind, held: BorrowedFd<'_>) {
        let is_its_own = inode_of(held).is_ok_and(|inode| inode == bind.inode);
        let given = if is_its_own { Ok(()) } else { self.replace(bind, held) };
        let answer = given.map_err(|error| {
            let errno = error.raw_os_error().map_or(Errno::EADDRINUSE, Errno::from_raw);
            // Withdrawn: the call comes again, or its caller has ended.
            if errno != Errno::ENOENT && self.calls.is_waiting(&bind.call) {
                log::warn!("cannot share {} with pid {}: {error}", bind.key.address, bind.call.thread);
            }
            errno
        });
        self.calls.answer(&bind.call, answer);
    }

    fn replace(&self, bind: &Bind, held: BorrowedFd<'_>) -> io::Result<()> {
        let (call, number) = (&bind.call, descriptor(&bind.call));
        let wanted = foreign::flags_of(call.thread, number)?;
        let current = OFlag::from_bits_retain(fcntl(held, FcntlArg::F_GETFL)?);
        // Never the other way round: a worker that serves would wait in accept for a connection that another took.
        if wanted.contains(OFlag::O_NONBLOCK) && !current.contains(OFlag::O_NONBLOCK) {
            fcntl(held, FcntlArg::F_SETFL(current | OFlag::O_NONBLOCK))?;
        }
        // Some put their socket into an epoll set before they bind it.
        let watching = epoll_sets::registrations(call.thread, number, bind.inode)?;
        self.calls.replace_descriptor(call, held, wanted.contains(OFlag::O_CLOEXEC))?;
        match &bind.socket {
            Some(own) => epoll_sets::hand_over(&watching, number, own.as_fd(), held),
            None => Ok(()),
        }
    }

    /// A backlog is everybody's: it grows to the longest that anybody asked for. Returns whether the socket is shared.
    fn listen(&self, call: &Call) -> bool {
        // What cannot be looked at was never shared.
        let inode = foreign::socket_inode(call.thread, descriptor(call)).ok().flatten();
        let key = inode.and_then(|inode| self.inodes.get(&inode));
        let long_enough = |key: &Key| -> io::Result<bool> {
            let current = match self.held.as_ref().and_then(|held| held.get(key)) {
                Some(held) => options::backlog(held)?,
                None => options::backlog(foreign::descriptor_of(call.thread, descriptor(call))?)?,
            };
            let asked = call.arguments[1] as u32;
            Ok(current.is_some_and(|current| current >= asked))
        };
        if key.is_some_and(|key| long_enough(key).unwrap_or(false)) {
            self.calls.answer(call, Ok(()));
        } else {
            self.calls.let_through(call);
        }
        key.is_some()
    }

    fn tell_refusal(&mut self, call: &Call, error: &io::Error) {
        // By its length, as little else can be seen: most binds are none of an internet address.
        let is_address = [LENGTH_V4, LENGTH_V6].contains(&(call.arguments[2] as usize));
        let refused = matches!(error.raw_os_error(), Some(libc::EPERM | libc::EACCES));
        if refused && is_address && !std::mem::replace(&mut self.told_refusal, true) {
            log::warn!(
                "the ports of a program that may not be looked into (pid {}) are not shared; use --listen",
                call.thread
            );
        }
    }
}

impl AsFd for Sharing {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.calls.as_fd()
    }
}

/// The descriptor that a call is about.
fn descriptor(call: &Call) -> RawFd {
    call.arguments[0] as RawFd
}

/// What tells a socket that is to be bound from others. None where it is no TCP.
fn look_at(socket: &impl AsFd) -> io::Result<Option<Seen>> {
    let Some(family) = tcp_family(socket)? else { return Ok(None) };
    Ok(Some(Seen {
        family,
        network: options::network_namespace(socket),
        device: options::device(socket)?,
        v6_only: family == libc::AF_INET6 && options::v6_only(socket)?,
    }))
}

/// The same, as far as it shows without a copy of the socket.
fn look_from_outside(call: &Call) -> io::Result<Option<Seen>> {
    let family = match foreign::protocol_of(call.thread, descriptor(call))?.as_str() {
        "TCP" | "MPTCP" => libc::AF_INET,
        "TCPv6" | "MPTCPv6" => libc::AF_INET6,
        _ => return Ok(None),
    };
    let ours = foreign::is_in_our_network(call.thread);
    Ok(ours.then(|| Seen { family, network: 0, device: String::new(), v6_only: false }))
}

/// The family of a TCP socket. None for anything else.
fn tcp_family(socket: &impl AsFd) -> io::Result<Option<libc::c_int>> {
    let kind = match options::kind(socket) {
        Ok(kind) => kind,
        Err(error) if error.raw_os_error() == Some(libc::ENOTSOCK) => return Ok(None),
        Err(error) => return Err(error),
    };
    Ok(match kind {
        (family @ (libc::AF_INET | libc::AF_INET6), libc::SOCK_STREAM, libc::IPPROTO_TCP | libc::IPPROTO_MPTCP) => {
            Some(family)
        }
        _ => None,
    })
}

/// The address that a socket of `family` is to be bound to. None where it is none that the kernel would take.
fn read_address(call: &Call, family: libc::c_int) -> io::Result<Option<SocketAddr>> {
    let [_, pointer, length, ..] = call.arguments;
    let needed = if family == libc::AF_INET { LENGTH_V4 } else { LENGTH_V6 };
    if (length as u32 as usize) < needed {
        return Ok(None);
    }
    let mut bytes = pidfd::read_memory(call.thread, pointer as usize, needed)?;
    if bytes.len() < needed {
        return Ok(None);
    }
    bytes.resize(LENGTH_V6, 0);
    Ok(bytes.first_chunk().and_then(parse).filter(|address| address.is_ipv4() == (family == libc::AF_INET)))
}

/// Reads a `sockaddr_in` or a `sockaddr_in6`.
fn parse(bytes: &[u8; LENGTH_V6]) -> Option<SocketAddr> {
    let [f0, f1, p0, p1, rest @ ..] = bytes;
    let port = u16::from_be_bytes([*p0, *p1]);
    match libc::c_int::from(u16::from_ne_bytes([*f0, *f1])) {
        libc::AF_INET => {
            let ip: [u8; 4] = rest[..4].try_into().ok()?;
            Some((Ipv4Addr::from(ip), port).into())
        }
        libc::AF_INET6 => {
            // After four bytes of flow information, which a listener does not have.
            let ip: [u8; 16] = rest[4..20].try_into().ok()?;
            let scope = u32::from_ne_bytes(rest[20..].try_into().ok()?);
            Some(SocketAddrV6::new(Ipv6Addr::from(ip), port, 0, scope).into())
        }
        _ => None,
    }
}

/// Whether a port is not for everybody.
fn is_privileged(port: u16) -> bool {
    const USUAL: u16 = 1024;
    let first = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start");
    port < first.ok().and_then(|first| first.trim().parse().ok()).unwrap_or(USUAL)
}

fn inode_of(socket: impl AsFd) -> io::Result<u64> {
    Ok(fstat(socket)?.st_ino)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(family: libc::c_int, port: u16, rest: &[u8]) -> [u8; LENGTH_V6] {
        let mut bytes = [0; LENGTH_V6];
        bytes[..2].copy_from_slice(&(family as u16).to_ne_bytes());
        bytes[2..4].copy_from_slice(&port.to_be_bytes());
        bytes[4..4 + rest.len()].copy_from_slice(rest);
        bytes
    }

    #[test]
    fn an_address_is_read_as_the_program_wrote_it() {
        assert_eq!(parse(&bytes(libc::AF_INET, 80, &[127, 0, 0, 1])), Some("127.0.0.1:80".parse().unwrap()));
        let mut v6 = [0; 24];
        v6[..4].copy_from_slice(&[9; 4]);
        v6[19] = 1;
        v6[20..].copy_from_slice(&2u32.to_ne_bytes());
        assert_eq!(parse(&bytes(libc::AF_INET6, 8080, &v6)), Some("[::1%2]:8080".parse().unwrap()));
        assert_eq!(parse(&bytes(libc::AF_UNIX, 0, b"/run/x")), None);
        assert_eq!(parse(&bytes(libc::AF_UNSPEC, 80, &[])), None);
    }

    #[test]
    fn a_socket_has_one_key_before_its_bind_and_after() {
        for (v6_only, address) in [(true, "[::1]:0"), (false, "[::1]:0"), (true, "[::]:0"), (false, "127.0.0.1:0")] {
            let address: SocketAddr = address.parse().unwrap();
            let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
            let bare = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
            if family == AddressFamily::Inet6 {
                setsockopt(&bare, sockopt::Ipv6V6Only, &v6_only).unwrap();
            }
            let seen = look_at(&bare).unwrap().unwrap();
            bind_as_claimed(&bare, &Key::new(0, String::new(), false, address)).unwrap();
            let after = key_of(&bare).unwrap();
            assert_eq!(Key::new(seen.network, seen.device, seen.v6_only, after.address), after);
        }
        let scoped = |device: &str| Key::new(1, device.to_owned(), true, "[fe80::1%3]:80".parse().unwrap());
        assert_eq!(scoped("eth0"), scoped(""));
    }

    #[test]
    fn a_key_travels() {
        let address = "[fe80::1%3]:80".parse().unwrap();
        let key = Key::new(u64::MAX, "eth0".to_owned(), true, address);
        let text = serde_json::to_string(&key).unwrap();
        assert_eq!(serde_json::from_str::<Key>(&text).unwrap(), key);
    }
}
