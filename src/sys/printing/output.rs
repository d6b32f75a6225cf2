//! Stdout and stderr as workers get them: open file descriptions of their own, and rights to open them by a path.
//!
//! | it leads to | opened anew for each worker | who may open /dev/stdout, if workers run as another user |
//! | --- | --- | --- |
//! | a pipe without a name | yes | whoever holds it, or may look into a process that does |
//! | a pipe with a name | yes | whoever its owner lets |
//! | a terminal of panzer's own user | yes | the workers' group, to write, until panzer ends |
//! | another user's terminal | if that is not refused | whoever its owner lets |
//! | a socket | no: it cannot be | nobody: it cannot be opened |
//! | a file | no: the position in it is shared on purpose | whoever its owner lets |
//! | /dev/null and the like | no | as before |

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use nix::sys::stat::{FileStat, Mode, fchmod, fstat};
use nix::sys::statfs::{FsType, fstatfs};
use nix::unistd::{Gid, fchown, geteuid};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use serde::{Deserialize, Serialize};

use crate::sys::descriptors::{self, Kind, kind, open_anew};
use crate::sys::errno::words;

/// The file system of pipes without a name (PIPEFS_MAGIC in linux/magic.h).
const PIPES: FsType = FsType(0x5049_5045);

/// Group and mode that the terminals at stdout and stderr had before panzer changed them.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct TerminalRights([Option<(u32, u32)>; 2]);

impl TerminalRights {
    /// As they are now.
    pub fn now() -> TerminalRights {
        TerminalRights(both().map(|fd| own_terminal(fd).map(|stat| (stat.st_gid, stat.st_mode & 0o7777))))
    }

    /// Puts back what [`open_to_group`] has changed.
    pub fn restore(self) {
        for (fd, before) in both().into_iter().zip(self.0) {
            let now = own_terminal(fd).map(|stat| stat.st_gid);
            if let (Some((group, mode)), Some(now)) = (before, now)
                && group != now
            {
                let restored = fchmod(fd, Mode::from_bits_truncate(mode))
                    .and_then(|()| fchown(fd, None, Some(Gid::from_raw(group))));
                if let Err(errno) = restored {
                    log::warn!("the terminal's group cannot be restored: {}", words(&errno.into()));
                }
            }
        }
    }
}

/// Lets processes of `group` open stdout and stderr by a path such as /dev/stdout, if these belong to us: see the
/// table.
pub fn open_to_group(group: u32) {
    for fd in both() {
        let Ok(stat) = fstat(fd) else { continue };
        let writable = |bits| fchmod(fd, Mode::from_bits_truncate(stat.st_mode & 0o7777 | bits));
        let opened = if kind(fd) == Kind::Pipe && fstatfs(fd).is_ok_and(|system| system.filesystem_type() == PIPES) {
            writable(0o022)
        } else if own_terminal(fd).is_some() {
            fchown(fd, None, Some(Gid::from_raw(group))).and_then(|()| writable(0o020))
        } else {
            continue;
        };
        if let Err(errno) = opened {
            log::debug!("stdout or stderr cannot be opened to group {group}: {}", words(&errno.into()));
        }
    }
}

/// Stdout and stderr, those that are wanted and are pipes, opened anew in blocking mode. Then other processes that share
/// them cannot change the flags of the one that gets these, nor it theirs. None if it cannot be opened, too.
pub fn pipes_anew(wanted: [bool; 2]) -> [Option<OwnedFd>; 2] {
    let [stdout, stderr] = both().map(|fd| move || blocking_anew(fd, Kind::Pipe));
    [wanted[0].then(stdout).flatten(), wanted[1].then(stderr).flatten()]
}

/// Opens them anew where they are terminals, for a child: to open a terminal may take time. One that cannot be opened stays.
/// Async-signal-safe, and leaves errno alone.
pub fn open_terminals_anew() {
    for fd in both() {
        if let Some(anew) = blocking_anew(fd, Kind::Terminal) {
            let _ = descriptors::put(anew.as_raw_fd(), fd.as_raw_fd());
        }
    }
}

fn blocking_anew(fd: BorrowedFd<'_>, wanted: Kind) -> Option<OwnedFd> {
    if kind(fd) != wanted {
        return None;
    }
    let kept = OFlags::ACCMODE | OFlags::APPEND | OFlags::DIRECT;
    let flags = fcntl_getfl(fd).ok()? & kept;
    let anew = open_anew(fd, flags).ok()?;
    fcntl_setfl(&anew, flags).ok()?;
    Some(anew)
}

/// A terminal that belongs to us. Another user's terminal is not touched.
fn own_terminal(fd: BorrowedFd<'_>) -> Option<FileStat> {
    fstat(fd).ok().filter(|stat| kind(fd) == Kind::Terminal && stat.st_uid == geteuid().as_raw())
}

fn both() -> [BorrowedFd<'static>; 2] {
    // SAFETY: stdout and stderr are open for as long as the process runs: the launcher has filled them.
    [libc::STDOUT_FILENO, libc::STDERR_FILENO].map(|number| unsafe { BorrowedFd::borrow_raw(number) })
}
