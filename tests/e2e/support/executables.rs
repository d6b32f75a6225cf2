//! Files that are to be executed.

use std::fs::{self, File, Permissions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use super::waiting::eventually;

/// Sets the mode of a file that was just written, and waits until nobody has it open for writing: a process that another
/// test has just forked has it until its exec, and until then an exec of the file itself fails with ETXTBSY.
pub fn set_mode(path: impl AsRef<Path>, mode: u32) {
    let path = path.as_ref();
    let file = File::open(path).expect("the file was just written");
    eventually(Duration::from_secs(60), "nobody writes to the file", || !is_written(&file));
    fs::set_permissions(path, Permissions::from_mode(mode)).expect("the file is ours");
}

/// Writes a file that is to be executed, new or in the place of what is there, and waits as `set_mode` does.
pub fn write_executable(path: impl AsRef<Path>, content: impl AsRef<[u8]>) {
    fs::write(&path, content).expect("the folder is ours");
    set_mode(path, 0o755);
}

/// Copies a file that is to be executed, and waits as `set_mode` does.
pub fn copy_executable(from: impl AsRef<Path>, to: impl AsRef<Path>) {
    #[allow(clippy::disallowed_methods, reason = "this waits until the copy can be executed")]
    fs::copy(from, &to).expect("the folder is ours");
    set_mode(to, 0o755);
}

/// Whether somebody has it open for writing: then there is no read lease to be had.
fn is_written(file: &File) -> bool {
    // SAFETY: plain calls on an open descriptor, without pointers.
    let leased = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, libc::F_RDLCK) };
    let busy = leased != 0 && std::io::Error::last_os_error().raw_os_error() == Some(libc::EAGAIN);
    // SAFETY: as above.
    unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, libc::F_UNLCK) };
    busy
}
