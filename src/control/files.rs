//! The files of an instance: `NAME.pid`, and beside it `NAME.sock`, `NAME.pid.lock` and `NAME.dump`.

use std::ffi::OsString;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;

use crate::sys::errno::words;

/// The control socket beside this pid file.
pub fn socket_beside(pid_file: &Path) -> PathBuf {
    beside(pid_file, ".sock")
}

/// The file beside this pid file that the instance locks for its whole life.
pub fn lock_beside(pid_file: &Path) -> PathBuf {
    let mut path = pid_file.as_os_str().to_owned();
    path.push(".lock");
    PathBuf::from(path)
}

/// The path of this pid file with another ending.
pub fn beside(pid_file: &Path, ending: &str) -> PathBuf {
    let path = pid_file.as_os_str().as_bytes();
    let stem = path.strip_suffix(b".pid").unwrap_or(path);
    PathBuf::from(OsString::from_vec([stem, ending.as_bytes()].concat()))
}

/// The name of the instance with this pid file.
pub fn name_of(pid_file: &Path) -> String {
    let name = pid_file.file_name().unwrap_or_default().to_string_lossy().into_owned();
    name.strip_suffix(".pid").map(str::to_owned).unwrap_or(name)
}

/// The first folder of `$RUNTIME_DIRECTORY` (systemd joins several with colons), else `/run/panzer` for root, else
/// `$XDG_RUNTIME_DIR/panzer`, else a folder of ours in /tmp.
pub fn runtime_directory() -> PathBuf {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let uid = geteuid();
    match (variable("RUNTIME_DIRECTORY"), variable("XDG_RUNTIME_DIR")) {
        (Some(given), _) => std::env::split_paths(&given).next().unwrap_or(given),
        (None, _) if uid.is_root() => PathBuf::from("/run/panzer"),
        (None, Some(user)) => user.join("panzer"),
        (None, None) => std::env::temp_dir().join(format!("panzer-{uid}")),
    }
}

/// Whether RUNTIME_DIRECTORY names the folder, which is then used as it is.
pub fn is_folder_given() -> bool {
    std::env::var_os("RUNTIME_DIRECTORY").is_some_and(|folder| !folder.is_empty())
}

/// Whether only root or our own user can put files into this folder, and the path is not a symlink.
pub fn is_trusted(folder: &Path) -> bool {
    [0, geteuid().as_raw()].into_iter().any(|user| belongs_to(folder, user))
}

/// Whether only root and this user can put files into this folder, which is theirs, and the path is not a symlink.
pub fn belongs_to(folder: &Path, user: u32) -> bool {
    fs::symlink_metadata(folder).is_ok_and(|meta| meta.is_dir() && meta.mode() & 0o022 == 0 && meta.uid() == user)
}

/// The runtime directory, created if it is missing. The error is the path and why it cannot be used.
pub fn make_runtime_directory() -> Result<PathBuf, (PathBuf, String)> {
    let path = runtime_directory();
    let uid = geteuid();
    match DirBuilder::new().mode(if uid.is_root() { 0o755 } else { 0o700 }).create(&path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err((path, words(&error))),
        _ => {}
    }
    let is_given = is_folder_given();
    match fs::metadata(&path) {
        Ok(meta) if !meta.is_dir() => Err((path, "it is not a directory".to_owned())),
        Ok(meta) if meta.uid() != uid.as_raw() && !(is_given && uid.is_root()) => {
            Err((path, "it belongs to somebody else".to_owned()))
        }
        Ok(_) if !is_given && !is_trusted(&path) => {
            Err((path, "it is a link, or others than its owner can put files there".to_owned()))
        }
        Ok(_) => Ok(path),
        Err(error) => Err((path, words(&error))),
    }
}
