//! Log files: no symbolic link is followed, and a new file never has more rights than asked for.

use std::ffi::OsString;
use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};

use crate::config::LogFile;

/// Opens it for writing, and creates it if it is missing. A FIFO that nobody reads is refused with `ENXIO`.
pub fn open(log: &LogFile) -> io::Result<File> {
    let access = log.access;
    let restricts = access.owner.is_some() || access.group.is_some() || access.mode.is_some();
    let first_mode = if restricts { 0o600 & access.mode.unwrap_or(0o600) } else { 0o666 };
    let mut options = File::options();
    // Without O_NONBLOCK the open of a FIFO would wait for a reader.
    let flags = OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    options.write(true).mode(first_mode).custom_flags(flags.bits());
    let file = match options.clone().create_new(true).open(&log.path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => options.open(&log.path),
        other => other,
    };
    let file = file.map_err(|error| explain(error, &log.path))?;
    if restricts && file.metadata()?.is_file() {
        fchown(&file, access.owner, access.group)?;
        file.set_permissions(Permissions::from_mode(access.mode.unwrap_or(0o640)))?;
    }
    fcntl(&file, FcntlArg::F_SETFL(OFlag::empty()))?;
    Ok(file)
}

/// The name of the `number`th rotated file.
pub fn older(path: &Path, number: u32, compressed: bool) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(format!(".{number}{}", if compressed { ".gz" } else { "" }));
    name.into()
}

/// Whether this is the refusal of a FIFO that nobody reads.
pub fn lacks_reader(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::ENXIO as i32)
}

fn explain(error: io::Error, path: &Path) -> io::Error {
    if error.raw_os_error() == Some(Errno::ELOOP as i32) {
        return io::Error::other(format!(
            "{} is a symbolic link, which panzer does not follow; name the file itself",
            path.display()
        ));
    }
    error
}
