//! A socket that main holds, and its path in the file system if it has one.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::sys::socket::{SockaddrStorage, getsockname, setsockopt, sockopt};
use serde::{Deserialize, Serialize};

use super::unix_path;
use crate::config::Access;
use crate::sys::descriptors::set_nonblocking;
use crate::sys::file_id::{FileId, remove_if_still};
use crate::sys::{reuseport, socket_options};

/// Length of the accept queue if none was given. The kernel caps it at `net.core.somaxconn`, which has this default.
pub(super) const DEFAULT_BACKLOG: u32 = 4096;

/// A socket that listens, with the path that is removed with it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listener {
    #[serde(with = "crate::carry::descriptor")]
    pub(super) fd: OwnedFd,
    #[serde(default, with = "crate::config::text::path")]
    pub(super) path: Option<(PathBuf, FileId)>,
}

impl Listener {
    /// A listener without a path to remove.
    pub fn without_path(fd: OwnedFd) -> Listener {
        Listener { fd, path: None }
    }

    /// Sets the length of its accept queue.
    pub fn set_backlog(&self, backlog: Option<u32>) -> io::Result<()> {
        socket_options::listen(&self.fd, backlog.unwrap_or(DEFAULT_BACKLOG))
    }

    /// Makes it non-blocking, for all processes that hold it.
    pub fn set_nonblock(&self) -> io::Result<()> {
        set_nonblocking(&self.fd)
    }

    /// Whether its path may get this access, as far as this can be seen without changing it.
    pub fn may_have(&self, access: Access) -> io::Result<()> {
        self.path.as_ref().map_or(Ok(()), |(path, _)| unix_path::may_grant(path, access))
    }

    /// Gives its path this access, if the path is still ours. In between the path never has more than its old and its
    /// new access.
    pub fn set_access(&self, access: Access) -> io::Result<()> {
        self.path.as_ref().map_or(Ok(()), |(path, id)| unix_path::change(path, *id, access))
    }

    /// The access of its path now. None: it has no path, or lost it.
    pub fn access(&self) -> Option<Access> {
        self.path.as_ref().and_then(|(path, id)| unix_path::access(path, *id))
    }

    /// Its port, if it has one.
    pub fn port(&self) -> Option<u16> {
        let name = getsockname::<SockaddrStorage>(self.fd.as_raw_fd()).ok()?;
        name.as_sockaddr_in().map(|name| name.port()).or(name.as_sockaddr_in6().map(|name| name.port()))
    }

    /// Lets others of this user join it at its address, or no longer. The kernel never takes this back for TCP, and it
    /// never lets other users join. New connections stay with this socket until they are steered to the others.
    pub fn set_joinable(&self, joinable: bool) -> io::Result<()> {
        if joinable {
            // Refused where it is no group yet (an earlier build bound it): it is steered once another one has joined.
            let _ = reuseport::steer(&self.fd, &[0]);
        }
        Ok(setsockopt(&self.fd, sockopt::ReusePort, &joinable)?)
    }

    /// Closes the socket and removes its path, if that is still ours.
    pub fn close(self) {
        self.remove_path();
    }

    /// Its path, if it has one that is ours.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_ref().map(|(path, _)| path.as_path())
    }

    /// Prepares for [`Listener::put_path_back`].
    pub fn keep_path(&self) -> io::Result<()> {
        self.path.as_ref().map_or(Ok(()), |(path, id)| unix_path::keep(path, *id))
    }

    /// Puts its path back after it was removed.
    pub fn put_path_back(&self) -> io::Result<()> {
        self.path.as_ref().map_or(Ok(()), |(path, id)| unix_path::put_back(path, *id))
    }

    /// Removes its path if that is still ours, so that another socket can be bound there.
    pub fn remove_path(&self) {
        if let Some((path, id)) = &self.path {
            remove_if_still(path, *id);
            remove_if_still(&unix_path::spare(path), *id);
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
