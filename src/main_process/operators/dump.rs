//! The status, written to a file.

use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use nix::fcntl::OFlag;

use crate::control::files;
use crate::sys::errno::words;

/// Writes `text` to `NAME.dump` beside the pid file, and logs it. The new file replaces the old one at once and belongs
/// to us alone, whoever owned the old one, whatever its mode was, and wherever a symlink led.
pub(crate) fn write(pid_file: &Path, text: &str) {
    let path = files::beside(pid_file, ".dump");
    match replace(&path, &files::beside(pid_file, ".dump.new"), text) {
        Ok(()) => log::info!("the state is in {}", path.display()),
        Err(error) => log::warn!("the state cannot be written to {}: {}", path.display(), words(&error)),
    }
}

fn replace(path: &Path, new: &Path, text: &str) -> io::Result<()> {
    match fs::remove_file(new) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let flags = (OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC).bits();
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).custom_flags(flags).open(new)?;
    // Whatever the umask is.
    file.set_permissions(Permissions::from_mode(0o600))?;
    let written = file.write_all(text.as_bytes()).and_then(|()| fs::rename(new, path));
    if written.is_err() {
        let _ = fs::remove_file(new);
    }
    written
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn whatever_was_there_is_replaced_and_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let (path, new, other) = (folder.path().join("dump"), folder.path().join("new"), folder.path().join("other"));
        fs::write(&other, "theirs").unwrap();
        let beginnings: [&dyn Fn(); 3] =
            [&|| {}, &|| fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap(), &|| {
                fs::remove_file(&path).unwrap();
                symlink(&other, &path).unwrap();
                symlink(&other, &new).unwrap();
            }];
        for begin in beginnings {
            begin();
            replace(&path, &new, "ours").unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), "ours");
            assert_eq!(fs::symlink_metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
            assert!(!new.exists());
        }
        assert_eq!(fs::read_to_string(&other).unwrap(), "theirs");
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(replace(&path, &new, "ours").is_err());
        assert!(!new.exists());
    }
}
