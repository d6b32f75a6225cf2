//! The listeners on which a worker may accept.

use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::sys::socket::{
    SockType, SockaddrLike, SockaddrStorage, UnixAddr, getpeername, getsockname, getsockopt, sockopt,
};

use crate::sys::file_id::FileId;

/// Listeners as other processes see them.
#[derive(Debug, Default)]
pub struct Listeners(Vec<(u64, Address)>);

/// The address of a socket.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Address {
    Tcp(SocketAddr),
    Unix(UnixAddr),
    Unknown,
}

impl Listeners {
    /// The sockets among `sockets` that accept connections: TCP and unix streams.
    pub fn among(sockets: impl IntoIterator<Item = impl AsFd>) -> Listeners {
        let streams = sockets.into_iter().filter(|socket| is_stream(socket.as_fd()));
        let known = streams.filter_map(|socket| Some((inode_of(socket.as_fd())?, address_of(socket.as_fd()))));
        Listeners(known.collect())
    }

    /// Adds a socket that a worker has bound.
    pub fn add(&mut self, socket: impl AsFd) {
        if let Some(inode) = inode_of(socket.as_fd()).filter(|inode| !self.contains(*inode)) {
            self.0.push((inode, address_of(socket.as_fd())));
        }
    }

    /// Whether there is no listener.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether one of them has this inode.
    pub fn contains(&self, inode: u64) -> bool {
        self.0.iter().any(|(listener, _)| *listener == inode)
    }

    /// Whether `socket` is a connection that one of them has accepted. The address of its own end shows that.
    pub(super) fn gave(&self, socket: BorrowedFd<'_>) -> bool {
        let is_connected = || getpeername::<SockaddrStorage>(socket.as_raw_fd()).is_ok();
        let own = address_of(socket);
        self.0.iter().any(|(_, listener)| covers(listener, &own)) && is_stream(socket) && is_connected()
    }
}

fn is_stream(socket: BorrowedFd<'_>) -> bool {
    matches!(getsockopt(&socket, sockopt::SockType), Ok(SockType::Stream | SockType::SeqPacket))
}

fn inode_of(socket: BorrowedFd<'_>) -> Option<u64> {
    FileId::of(socket).map(FileId::inode)
}

pub(super) fn address_of(socket: BorrowedFd<'_>) -> Address {
    let Ok(name) = getsockname::<SockaddrStorage>(socket.as_raw_fd()) else { return Address::Unknown };
    if let Some(v4) = name.as_sockaddr_in() {
        return Address::Tcp(SocketAddr::from((v4.ip(), v4.port())));
    }
    if let Some(v6) = name.as_sockaddr_in6() {
        return Address::Tcp(SocketAddr::from((v6.ip(), v6.port())));
    }
    match name.as_unix_addr() {
        // The client's end has no name.
        Some(unix) if unix.len() > UnixAddr::new_unnamed().len() => Address::Unix(*unix),
        _ => Address::Unknown,
    }
}

fn covers(listener: &Address, own: &Address) -> bool {
    match (listener, own) {
        (Address::Tcp(listener), Address::Tcp(own)) => {
            let same_host = listener.ip().is_unspecified() || listener.ip().to_canonical() == own.ip().to_canonical();
            listener.port() == own.port() && same_host
        }
        (Address::Unix(listener), Address::Unix(own)) => listener == own,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_covers_what_came_through_it() {
        let tcp = |text: &str| Address::Tcp(text.parse().unwrap());
        for (listener, own, expected) in [
            ("[::]:80", "[::ffff:10.0.0.1]:80", true),
            ("0.0.0.0:80", "10.0.0.1:80", true),
            ("10.0.0.1:80", "10.0.0.1:80", true),
            ("10.0.0.1:80", "10.0.0.2:80", false),
            ("0.0.0.0:80", "10.0.0.1:81", false),
        ] {
            assert_eq!(covers(&tcp(listener), &tcp(own)), expected, "{listener} {own}");
        }
        assert!(!covers(&Address::Unknown, &Address::Unknown));
    }
}
