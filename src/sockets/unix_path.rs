//! Unix sockets in the file system. They are made with the access that was asked for, never with more for a moment, and
//! removed only while they are ours.

use std::ffi::OsString;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::socket::{UnixAddr, bind as bind_socket};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Uid, fchownat};

use crate::config::Access;
use crate::sys::file_id::{FileId, remove_if_still};
use crate::sys::unix_paths::is_in_use;

/// Whether a socket is at `path`. A symlink is not followed.
pub fn is_socket(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket())
}

/// Binds `fd` to `path`. A socket that no process has any more is replaced. A file that is not a socket is left alone,
/// and the bind fails. Call this before the socket listens, because until then nobody is let in whatever the access.
pub fn bind(fd: &OwnedFd, path: &Path, access: Access) -> io::Result<FileId> {
    remove_stale(path)?;
    // It appears without any access. It is bound under its own name, because others know it by that.
    let (usual, bound) =
        without_access(|| UnixAddr::new(path).and_then(|address| bind_socket(fd.as_raw_fd(), &address)));
    bound?;
    let mode = access.mode.unwrap_or(0o777 & !usual.bits());
    let id = FileId::at(path).ok_or(Errno::ENOENT)?;
    grant(path, access, mode).inspect_err(|_| remove_if_still(path, id))?;
    Ok(id)
}

/// Does this while files are made without any access, and returns the usual umask too. The umask belongs to the whole
/// process, so two threads that changed it at once would take each other's for the usual one.
fn without_access<T>(make: impl FnOnce() -> T) -> (Mode, T) {
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock();
    let usual = umask(Mode::all());
    let made = make();
    umask(usual);
    (usual, made)
}

/// Gives the path that was just made its owner, then its mode. The file is held open meanwhile, so that another file
/// that takes its place is not changed.
fn grant(path: &Path, access: Access, mode: u32) -> io::Result<()> {
    let handle = hold(path)?;
    let through_proc = PathBuf::from(format!("/proc/self/fd/{}", handle.as_raw_fd()));
    let made = fs::metadata(&through_proc)?;
    let is_ours = made.uid() == nix::unistd::geteuid().as_raw() && made.mode() & 0o777 == 0;
    if !made.file_type().is_socket() || !is_ours {
        return Err(io::Error::other("somebody else put a file in its place at the same moment"));
    }
    if access.owner.is_some() || access.group.is_some() {
        own(&handle, access)?;
    }
    fs::set_permissions(&through_proc, Permissions::from_mode(mode))
}

/// Whether our file at `path` could get this owner and group. Tried with a file that nobody sees.
pub(super) fn may_grant(path: &Path, access: Access) -> io::Result<()> {
    if access.owner.is_none() && access.group.is_none() {
        return Ok(());
    }
    let tried = File::options().write(true).mode(0o0).custom_flags(OFlag::O_TMPFILE.bits()).open(folder_of(path));
    match tried {
        Ok(file) => own(&file.into(), access),
        // Some file systems cannot have such a file. Then this cannot be known in advance.
        Err(_) => Ok(()),
    }
}

/// The access of our file at `path` now.
pub(super) fn access(path: &Path, id: FileId) -> Option<Access> {
    let found = fs::symlink_metadata(path).ok().filter(|found| FileId::from(found) == id)?;
    Some(Access { mode: Some(found.mode() & 0o777), owner: Some(found.uid()), group: Some(found.gid()) })
}

/// Changes the access of our file at `path`. While it changes, the mode is the intersection of old and new.
pub(super) fn change(path: &Path, id: FileId, access: Access) -> io::Result<()> {
    let handle = hold(path)?;
    let through_proc = PathBuf::from(format!("/proc/self/fd/{}", handle.as_raw_fd()));
    let found = fs::metadata(&through_proc)?;
    if FileId::from(&found) != id {
        return Err(io::Error::other("another file has taken its place"));
    }
    let (usual, ()) = without_access(|| ());
    let mode = access.mode.unwrap_or(0o777 & !usual.bits());
    // A field without a value is as for any file that we make there.
    let folder = fs::metadata(folder_of(path))?;
    let hands_on = Mode::from_bits_truncate(folder.mode()).contains(Mode::S_ISGID);
    let group = if hands_on { folder.gid() } else { nix::unistd::getegid().as_raw() };
    let (owner, group) = (access.owner.unwrap_or(nix::unistd::geteuid().as_raw()), access.group.unwrap_or(group));
    if (found.uid(), found.gid()) != (owner, group) {
        fs::set_permissions(&through_proc, Permissions::from_mode(mode & found.mode() & 0o777))?;
        own(&handle, Access { mode: None, owner: Some(owner), group: Some(group) })?;
    }
    fs::set_permissions(&through_proc, Permissions::from_mode(mode))
}

/// A second, hidden name beside `path`, by which the path can be put back. A file without any name cannot get one
/// again.
pub(super) fn spare(path: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".panzer");
    path.with_file_name(name)
}

/// Gives our file at `path` its second name. A socket that a killed panzer has left there is replaced.
pub(super) fn keep(path: &Path, id: FileId) -> io::Result<()> {
    let spare = spare(path);
    if FileId::at(&spare) == Some(id) {
        return Ok(());
    }
    if is_socket(&spare) {
        fs::remove_file(&spare)?;
    }
    fs::hard_link(path, &spare)
}

/// Puts `path` back by its second name.
pub(super) fn put_back(path: &Path, id: FileId) -> io::Result<()> {
    let spare = spare(path);
    match FileId::at(&spare) {
        Some(found) if found == id => fs::hard_link(&spare, path),
        _ => Err(io::Error::other("its second name is gone as well")),
    }
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Opens the file at `path`, so that it stays the same file if another takes its place.
fn hold(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    Ok(File::options().read(true).custom_flags(flags.bits()).open(path)?.into())
}

fn own(handle: &OwnedFd, access: Access) -> io::Result<()> {
    let (owner, group) = (access.owner.map(Uid::from_raw), access.group.map(Gid::from_raw));
    fchownat(handle, "", owner, group, AtFlags::AT_EMPTY_PATH).map_err(|errno| match errno {
        Errno::EPERM => io::Error::other("its owner and group cannot be set without root or CAP_CHOWN"),
        other => other.into(),
    })
}

/// Removes the path of a socket that no process has any more.
fn remove_stale(path: &Path) -> io::Result<()> {
    if !is_socket(path) {
        return Ok(());
    }
    let Some(id) = FileId::at(path) else { return Ok(()) };
    if is_in_use(path)? {
        return Err(Errno::EADDRINUSE.into());
    }
    remove_if_still(path, id);
    Ok(())
}
