//! Socket options that nix does not know, or whose values it restricts.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;

/// The cookie of a socket's network namespace (SO_NETNS_COOKIE); libc does not have it yet.
const NETNS_COOKIE: libc::c_int = 71;

/// Offsets in the kernel's `tcp_info`: the state of the connection and, for a listener, its queue and the limit of the
/// queue.
const TCP_STATE: usize = 0;
const TCP_UNACKED: usize = 24;
const TCP_SACKED: usize = 28;
const TCP_CLOSE: u8 = 7;
const TCP_LISTEN: u8 = 10;

/// Domain, type and protocol of a socket. Fails if it is not a socket.
pub fn kind(socket: impl AsFd) -> io::Result<(libc::c_int, libc::c_int, libc::c_int)> {
    let number = |name| Ok::<_, io::Error>(libc::c_int::from_ne_bytes(whole(&socket, libc::SOL_SOCKET, name)?));
    Ok((number(libc::SO_DOMAIN)?, number(libc::SO_TYPE)?, number(libc::SO_PROTOCOL)?))
}

/// Whether an IPv6 socket leaves IPv4 to others.
pub fn v6_only(socket: impl AsFd) -> io::Result<bool> {
    Ok(libc::c_int::from_ne_bytes(whole(&socket, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY)?) != 0)
}

/// The network interface to which a socket is bound; empty if none.
pub fn device(socket: impl AsFd) -> io::Result<String> {
    let mut name = [0; libc::IFNAMSIZ];
    let length = get(&socket, libc::SOL_SOCKET, libc::SO_BINDTODEVICE, &mut name)?;
    let name = name[..length].split(|&byte| byte == 0).next().unwrap_or_default();
    Ok(String::from_utf8_lossy(name).into_owned())
}

/// A number for the network namespace of a socket; 0 before Linux 5.14, which has no such number.
pub fn network_namespace(socket: impl AsFd) -> u64 {
    whole(&socket, libc::SOL_SOCKET, NETNS_COOKIE).map_or(0, u64::from_ne_bytes)
}

/// Limit of the connections that may wait in a TCP socket that listens. None if it does not listen.
pub fn backlog(socket: impl AsFd) -> io::Result<Option<u32>> {
    Ok(accept_queue(socket)?.map(|(_, limit)| limit))
}

/// Number and limit of the connections that wait in a TCP socket that listens. None if it does not listen.
pub fn accept_queue(socket: impl AsFd) -> io::Result<Option<(u32, u32)>> {
    let mut info = [0; TCP_SACKED + 4];
    let length = get(&socket, libc::IPPROTO_TCP, libc::TCP_INFO, &mut info)?;
    let field = |at: usize| u32::from_ne_bytes([info[at], info[at + 1], info[at + 2], info[at + 3]]);
    let listens = length == info.len() && info[TCP_STATE] == TCP_LISTEN;
    Ok(listens.then(|| (field(TCP_UNACKED), field(TCP_SACKED))))
}

/// Whether a TCP socket is neither connected nor listening.
pub fn is_idle(socket: impl AsFd) -> io::Result<bool> {
    let mut info = [0; TCP_STATE + 1];
    get(&socket, libc::IPPROTO_TCP, libc::TCP_INFO, &mut info)?;
    Ok(info[TCP_STATE] == TCP_CLOSE)
}

/// The supplementary groups that the process at the other end of a unix socket had when it connected.
pub fn peer_groups(socket: impl AsFd) -> io::Result<Vec<u32>> {
    // As many as a process can be in (NGROUPS_MAX).
    let mut bytes = vec![0; 4 << 16];
    let length = get(&socket, libc::SOL_SOCKET, libc::SO_PEERGROUPS, &mut bytes)?;
    Ok(bytes[..length]
        .chunks_exact(4)
        .map(|group| u32::from_ne_bytes([group[0], group[1], group[2], group[3]]))
        .collect())
}

/// Whether somebody has called shutdown() on this datagram socket for reading.
pub fn is_shut_down(socket: impl AsFd) -> bool {
    let mut polled = libc::pollfd { fd: socket.as_fd().as_raw_fd(), events: libc::POLLRDHUP, revents: 0 };
    // SAFETY: the kernel reads and writes one pollfd, and does not wait.
    unsafe { libc::poll(&raw mut polled, 1, 0) == 1 && polled.revents & libc::POLLRDHUP != 0 }
}

/// Listens, or changes the longest accept queue of a socket that listens. The kernel caps the length.
pub fn listen(socket: impl AsFd, backlog: u32) -> io::Result<()> {
    Ok(rustix::net::listen(socket, i32::try_from(backlog).unwrap_or(i32::MAX))?)
}

fn whole<const LENGTH: usize>(socket: &impl AsFd, level: libc::c_int, name: libc::c_int) -> io::Result<[u8; LENGTH]> {
    let mut value = [0; LENGTH];
    match get(socket, level, name, &mut value)? {
        length if length == LENGTH => Ok(value),
        _ => Err(Errno::EINVAL.into()),
    }
}

pub(super) fn get(socket: &impl AsFd, level: libc::c_int, name: libc::c_int, value: &mut [u8]) -> io::Result<usize> {
    let mut length = value.len() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes, which is what the value has room for.
    let asked =
        unsafe { libc::getsockopt(socket.as_fd().as_raw_fd(), level, name, value.as_mut_ptr().cast(), &mut length) };
    Errno::result(asked)?;
    Ok(length as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn a_listener_tells_its_backlog_and_others_have_none() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(7).unwrap()).unwrap();
        assert_eq!(backlog(&listener).unwrap(), Some(7));
        assert_eq!(kind(&listener).unwrap(), (libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_TCP));
        assert_eq!(device(&listener).unwrap(), "");
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert_eq!(backlog(&client).unwrap(), None);
        assert_eq!(network_namespace(&listener), network_namespace(&client));
    }
}
