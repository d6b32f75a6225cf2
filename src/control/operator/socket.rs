//! The control socket in the file system: bound without following a symlink, removed only by its owner.

use std::fs;
use std::io;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use serde::{Deserialize, Serialize};

use crate::config::ControlAccess;
use crate::sockets::unix_path;
use crate::sys::errno::words;
use crate::sys::file_id::{FileId, remove_if_still};
use crate::sys::socket_options;

/// The socket, and the file that it owns.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Socket {
    #[serde(with = "crate::carry::descriptor")]
    pub(super) listener: UnixListener,
    #[serde(with = "crate::config::text::path")]
    pub(super) path: PathBuf,
    #[serde(rename = "identity")]
    pub(super) id: FileId,
    #[serde(default, skip_serializing_if = "ControlAccess::is_usual")]
    pub(super) access: ControlAccess,
}

impl Socket {
    /// The error is the reason in a line.
    pub(super) fn bind(path: &Path, access: ControlAccess) -> Result<Socket, String> {
        Socket::listen(path, access).map_err(|error| why(path, &error))
    }

    fn listen(path: &Path, access: ControlAccess) -> io::Result<Socket> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
        let id = unix_path::bind(&fd, path, access.of_file())?;
        socket_options::listen(&fd, u32::MAX).inspect_err(|_| remove_if_still(path, id))?;
        Ok(Socket { listener: fd.into(), path: path.to_owned(), id, access })
    }

    /// Whether the file is still there.
    pub(super) fn is_there(&self) -> bool {
        FileId::at(&self.path) == Some(self.id)
    }

    /// Removes the file, if it is still ours.
    pub(super) fn remove(&self) {
        remove_if_still(&self.path, self.id);
    }
}

/// Why there is no control socket at `path`.
pub(super) fn why(path: &Path, error: &io::Error) -> String {
    let shown = path.display();
    let reason = match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EADDRINUSE) if unix_path::is_socket(path) => {
            return format!(
                "the control socket {shown} belongs to a process that runs; stop it, or give another --control"
            );
        }
        Some(Errno::EADDRINUSE) if fs::symlink_metadata(path).is_ok_and(|meta| meta.is_symlink()) => {
            "it is a symlink, which is not followed; remove it".to_owned()
        }
        Some(Errno::EADDRINUSE) => "a file that is not a socket is in its place; remove it".to_owned(),
        Some(Errno::ENAMETOOLONG) => "its path is longer than 107 bytes; give --control".to_owned(),
        _ => words(error),
    };
    format!("cannot listen on the control socket {shown}: {reason}")
}
