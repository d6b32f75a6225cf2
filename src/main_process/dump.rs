//! The state of everything, written to a file.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::fcntl::OFlag;

/// Writes `text` to `NAME.dump`, beside the pid file, in place of what was there, and says so. A symlink there is not
/// followed.
pub(super) fn write(pid_file: &Path, text: &str) {
    let path = pid_file.with_extension("dump");
    let written = || -> io::Result<()> {
        let flags = (OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC).bits();
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).custom_flags(flags).open(&path)?;
        file.write_all(text.as_bytes())
    };
    match written() {
        Ok(()) => log::info!("the state is in {}", path.display()),
        Err(error) => log::warn!("the state cannot be written to {}: {error}", path.display()),
    }
}
