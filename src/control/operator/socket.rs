//! The control socket's place in the file system: bound without following links, removed by its owner only.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::stat::{Mode, umask};

use crate::sys::unix_paths::is_in_use;

/// The socket, and the file that is ours to remove.
#[derive(Debug)]
pub(super) struct Socket {
    pub(super) listener: UnixListener,
    pub(super) path: PathBuf,
    /// Device and inode.
    pub(super) identity: (u64, u64),
}

impl Socket {
    /// See [`super::Server::bind`].
    pub(super) fn bind(path: &Path) -> Result<Socket, String> {
        remove_stale(path)?;
        let before = umask(Mode::from_bits_truncate(0o177));
        let bound = UnixListener::bind(path);
        umask(before);
        let listener = bound.map_err(|error| why(path, &error))?;
        let made = listener.set_nonblocking(true).and_then(|()| fs::symlink_metadata(path));
        let meta = made.map_err(|error| why(path, &error))?;
        Ok(Socket { listener, path: path.to_owned(), identity: (meta.dev(), meta.ino()) })
    }

    /// Whether its file is still there.
    pub(super) fn is_there(&self) -> bool {
        fs::symlink_metadata(&self.path).is_ok_and(|meta| (meta.dev(), meta.ino()) == self.identity)
    }

    /// Removes the file, if it is still ours.
    pub(super) fn remove(&self) {
        if self.is_there() {
            // Whoever removed it in between did what was wanted.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// That it cannot be listened on, and why.
pub(super) fn why(path: &Path, error: &io::Error) -> String {
    format!("cannot listen on the control socket {}: {}", path.display(), reason(error))
}

fn remove_stale(path: &Path) -> Result<(), String> {
    let shown = path.display();
    let Ok(meta) = fs::symlink_metadata(path) else { return Ok(()) };
    if meta.file_type().is_symlink() {
        return Err(format!(
            "cannot listen on the control socket {shown}: it is a symlink, which is not followed; remove it"
        ));
    }
    if !meta.file_type().is_socket() {
        return Err(format!(
            "cannot listen on the control socket {shown}: a file that is no socket is in its place; remove it"
        ));
    }
    // One that cannot be asked for is left alone.
    if is_in_use(path).unwrap_or(true) {
        return Err(format!(
            "the control socket {shown} belongs to a process that runs; stop it, or give another --control"
        ));
    }
    fs::remove_file(path).map_err(|error| format!("cannot replace {shown}: {}", reason(&error)))
}

fn reason(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(errno) => Errno::from_raw(errno).desc().to_lowercase(),
        None if error.kind() == ErrorKind::InvalidInput => {
            "its path is longer than 107 bytes; give --control".to_owned()
        }
        None => error.to_string(),
    }
}
