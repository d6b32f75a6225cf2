//! Binding what `--listen` asks for.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, SockaddrIn6, SockaddrLike, UnixAddr, bind as bind_socket,
    listen, setsockopt, socket, sockopt,
};

use super::holder;
use crate::config::{Address, Listen};

/// A socket that listens, and what must be taken away with it.
#[derive(Debug)]
pub struct Listener {
    fd: OwnedFd,
    path: Option<(PathBuf, u64)>,
}

/// Why an address could not be bound, each in a line.
#[derive(Debug)]
pub enum Refusal {
    /// Only draining workers of a panzer that died hold it: waiting helps.
    Passing(String),
    /// It is in use, and nobody is seen to hold it; whoever did may just have ended.
    Unseen(String),
    /// Somebody holds it, or it cannot be bound at all.
    Final(String),
}

impl Listener {
    /// Closes the socket and removes its path, if that is still ours.
    pub fn close(self) {
        if let Some((path, inode)) = &self.path
            && fs::symlink_metadata(path).is_ok_and(|meta| meta.ino() == *inode)
        {
            // Whoever removed it in between did what was wanted.
            let _ = fs::remove_file(path);
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Binds and listens. A unix path that a dead process left is replaced, one that lives is refused.
pub fn bind(wanted: &Listen) -> Result<Listener, Refusal> {
    let bound = match &wanted.address {
        Address::Any(port) => any(*port, wanted.backlog),
        Address::Tcp(address) => tcp(*address, false, wanted.backlog),
        Address::Unix(path) => remove_stale(path).and_then(|()| unix(&UnixAddr::new(path)?, wanted.backlog)),
        Address::Abstract(name) => UnixAddr::new_abstract(name.as_bytes())
            .map_err(io::Error::from)
            .and_then(|address| unix(&address, wanted.backlog)),
    };
    let bound = bound.and_then(|fd| {
        if wanted.nonblock {
            fcntl(&fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        }
        Ok(fd)
    });
    let fd = bound.map_err(|error| why_not(&wanted.address, &error))?;
    let path = match &wanted.address {
        Address::Unix(path) => fs::symlink_metadata(path).ok().map(|meta| (path.clone(), meta.ino())),
        _ => None,
    };
    Ok(Listener { fd, path })
}

/// Both families on one socket; IPv4 alone where the machine has no IPv6.
fn any(port: u16, backlog: u32) -> io::Result<OwnedFd> {
    match tcp(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)), true, backlog) {
        Err(error) if error.raw_os_error() == Some(Errno::EAFNOSUPPORT as i32) => {
            tcp(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)), false, backlog)
        }
        other => other,
    }
}

fn tcp(address: SocketAddr, dual_stack: bool, backlog: u32) -> io::Result<OwnedFd> {
    let family = if address.is_ipv6() { AddressFamily::Inet6 } else { AddressFamily::Inet };
    let fd = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    if address.is_ipv6() {
        // Always said: the system's default differs from machine to machine.
        setsockopt(&fd, sockopt::Ipv6V6Only, &!dual_stack)?;
    }
    match address {
        SocketAddr::V4(address) => listening(fd, &SockaddrIn::from(address), backlog),
        SocketAddr::V6(address) => listening(fd, &SockaddrIn6::from(address), backlog),
    }
}

fn unix(address: &UnixAddr, backlog: u32) -> io::Result<OwnedFd> {
    listening(socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?, address, backlog)
}

fn listening(fd: OwnedFd, address: &dyn SockaddrLike, backlog: u32) -> io::Result<OwnedFd> {
    bind_socket(fd.as_raw_fd(), address)?;
    // nix knows no backlog above 4096 but "as many as the kernel allows", which is what more than that means.
    let backlog =
        i32::try_from(backlog).ok().and_then(|backlog| Backlog::new(backlog).ok()).unwrap_or(Backlog::MAXALLOWABLE);
    listen(&fd, backlog)?;
    Ok(fd)
}

/// Removes the path of a socket on which nobody listens any more. What is no socket is left alone, and refuses the bind.
fn remove_stale(path: &Path) -> io::Result<()> {
    if !is_socket(path) {
        return Ok(());
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        _ => Err(Errno::EADDRINUSE.into()),
    }
}

fn why_not(address: &Address, error: &io::Error) -> Refusal {
    let reason = match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EADDRINUSE) => return in_use(address),
        Some(Errno::EACCES) => match address {
            Address::Unix(_) => "permission denied for its directory".to_owned(),
            _ => "permission denied; ports below 1024 need root or CAP_NET_BIND_SERVICE".to_owned(),
        },
        Some(Errno::EADDRNOTAVAIL) => "this machine has no such address".to_owned(),
        Some(Errno::ENOENT) => "its directory does not exist; create it".to_owned(),
        Some(errno) => errno.desc().to_lowercase(),
        None => error.to_string(),
    };
    Refusal::Final(format!("cannot listen on {address}: {reason}"))
}

fn in_use(address: &Address) -> Refusal {
    let holders = holder::find(address);
    if let Some(holder) = holders.iter().find(|holder| !holder.left_by_dead_main) {
        let (name, pid) = (&holder.name, holder.pid);
        let message = format!("cannot listen on {address}: in use by {name} (pid {pid}); stop it, or listen elsewhere");
        return Refusal::Final(message);
    }
    if let Some(holder) = holders.first() {
        let (name, pid) = (&holder.name, holder.pid);
        return Refusal::Passing(format!("{address} is held by {name} (pid {pid}), a worker of a panzer that died"));
    }
    match address {
        Address::Unix(path) if path.exists() && !is_socket(path) => Refusal::Final(format!(
            "cannot listen on {address}: a file that is no socket is in its place; remove it, or listen elsewhere"
        )),
        _ => Refusal::Unseen(format!(
            "cannot listen on {address}: in use by a process that cannot be seen from here; stop it, or listen elsewhere"
        )),
    }
}

fn is_socket(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket())
}
