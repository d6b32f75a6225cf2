//! The identity of a TCP socket to its clients, and how to read that from a socket.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, SockaddrIn6, SockaddrStorage, UnixAddr, bind, getsockname,
    setsockopt, socket, sockopt,
};
use serde::{Deserialize, Serialize};

use crate::config::Address;
use crate::sys::seccomp::Call;
use crate::sys::{other_process, pidfd, socket_options};

/// The lengths of a `sockaddr_in` and a `sockaddr_in6`.
pub(super) const LENGTH_V4: usize = 16;
pub(super) const LENGTH_V6: usize = 28;

/// The identity of a TCP socket to its clients.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Key {
    /// The network namespace.
    pub network: u64,
    /// The network interface that it is bound to; empty if it is bound to none.
    pub device: String,
    /// Whether an IPv6 socket leaves IPv4 to others.
    pub v6_only: bool,
    /// The address, which also says the family.
    pub address: SocketAddr,
}

impl Key {
    /// The only constructor, so that a socket has the same key before and after its bind.
    pub fn new(network: u64, device: String, v6_only: bool, address: SocketAddr) -> Key {
        // Only a socket for all addresses can serve IPv4 too.
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

/// The properties of a TCP socket before its bind.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) family: libc::c_int,
    pub(super) network: u64,
    pub(super) device: String,
    pub(super) v6_only: bool,
}

/// The key of a bound socket. None if it is not a TCP socket.
pub fn key_of(socket: &impl AsFd) -> Option<Key> {
    let Seen { network, device, v6_only, .. } = look_at(socket).ok()??;
    let name = getsockname::<SockaddrStorage>(socket.as_fd().as_raw_fd()).ok()?;
    let v4 = name.as_sockaddr_in().map(|name| SocketAddr::from(SocketAddrV4::from(*name)));
    let address = v4.or(name.as_sockaddr_in6().map(|name| SocketAddr::from(SocketAddrV6::from(*name))))?;
    Some(Key::new(network, device, v6_only, address))
}

/// Whether a `--listen` with this address asks for the socket with this key, in the network of the socket `here`.
pub fn is_at(key: &Key, address: &Address, here: impl AsFd) -> bool {
    let is_same = match address {
        Address::Any(port) => key.address == (Ipv6Addr::UNSPECIFIED, *port).into() && !key.v6_only,
        // A socket of both families is more than was asked for.
        Address::Tcp(address) => {
            key.address == *address && (key.v6_only || !address.ip().is_unspecified() || address.is_ipv4())
        }
        _ => false,
    };
    is_same && key.device.is_empty() && socket_options::network_namespace(here) == key.network
}

/// Binds a program's socket to the claimed address. The socket keeps its options.
pub fn bind_as_claimed(socket: &OwnedFd, key: &Key) -> Result<(), Errno> {
    match key.address {
        SocketAddr::V4(address) => bind(socket.as_raw_fd(), &SockaddrIn::from(address)),
        SocketAddr::V6(address) => bind(socket.as_raw_fd(), &SockaddrIn6::from(address)),
    }
}

/// Binds a socket of our own to the claimed address, for a program whose own socket cannot be copied.
pub fn bind_own(key: &Key) -> Result<OwnedFd, Errno> {
    let socket = unbound(key)?;
    bind_unbound(&socket, key)?;
    Ok(socket)
}

/// A socket of our own that can be bound to the claimed address.
pub(super) fn unbound(key: &Key) -> Result<OwnedFd, Errno> {
    let family = if key.address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    Ok(socket)
}

/// Binds such a socket.
pub fn bind_unbound(socket: &OwnedFd, key: &Key) -> Result<(), Errno> {
    if key.address.is_ipv4() {
        return bind_as_claimed(socket, key);
    }
    setsockopt(socket, sockopt::Ipv6V6Only, &false)?;
    match bind_as_claimed(socket, key) {
        // Nobody can see whether the program leaves IPv4 alone. If IPv4 is taken, the program has a socket there too.
        Err(Errno::EADDRINUSE) => {
            setsockopt(socket, sockopt::Ipv6V6Only, &true)?;
            bind_as_claimed(socket, key)
        }
        other => other,
    }
}

/// Whether a socket is bound to a port.
pub fn is_bound(socket: &impl AsFd) -> bool {
    key_of(socket).is_some_and(|key| key.address.port() != 0)
}

/// Looks at a socket before its bind. None if it is not a TCP socket.
pub(super) fn look_at(socket: &impl AsFd) -> io::Result<Option<Seen>> {
    let Some(family) = tcp_family(socket)? else { return Ok(None) };
    Ok(Some(Seen {
        family,
        network: socket_options::network_namespace(socket),
        device: socket_options::device(socket)?,
        v6_only: family == libc::AF_INET6 && socket_options::v6_only(socket)?,
    }))
}

/// The same without a copy of the socket, as far as possible.
pub(super) fn look_from_outside(call: &Call) -> io::Result<Option<Seen>> {
    let family = match other_process::protocol_of(call.thread, call.descriptor())?.as_str() {
        "TCP" | "MPTCP" => libc::AF_INET,
        "TCPv6" | "MPTCPv6" => libc::AF_INET6,
        _ => return Ok(None),
    };
    let ours = other_process::is_in_our_network(call.thread);
    Ok(ours.then(|| Seen { family, network: 0, device: String::new(), v6_only: false }))
}

/// The family of a TCP socket. None for anything else.
fn tcp_family(socket: &impl AsFd) -> io::Result<Option<libc::c_int>> {
    let kind = match socket_options::kind(socket) {
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

/// The address of a bind by a socket of `family`. None if the kernel would refuse it.
pub(super) fn read_address(call: &Call, family: libc::c_int) -> io::Result<Option<SocketAddr>> {
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
            // After four bytes of flow information, which a listener does not use.
            let ip: [u8; 16] = rest[4..20].try_into().ok()?;
            let scope = u32::from_ne_bytes(rest[20..].try_into().ok()?);
            Some(SocketAddrV6::new(Ipv6Addr::from(ip), port, 0, scope).into())
        }
        _ => None,
    }
}

/// Whether a bind to this port needs a privilege.
pub(super) fn is_privileged(port: u16) -> bool {
    const DEFAULT_FIRST: u16 = 1024;
    let first = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start");
    port < first.ok().and_then(|first| first.trim().parse().ok()).unwrap_or(DEFAULT_FIRST)
}

/// The path of a unix socket that can listen. None for any other socket.
pub(super) fn unix_path(socket: &impl AsFd) -> Option<PathBuf> {
    let (family, kind, _) = socket_options::kind(socket).ok()?;
    let may_listen = family == libc::AF_UNIX && kind != libc::SOCK_DGRAM;
    let name = may_listen.then(|| getsockname::<UnixAddr>(socket.as_fd().as_raw_fd()).ok())??;
    name.path().map(Path::to_owned)
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
