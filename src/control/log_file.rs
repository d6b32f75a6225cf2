//! Log files: no symbolic link is followed, and a new file never has more rights than asked for.

use std::ffi::OsString;
use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};
use rustix::fs::{FlockOperation, flock};

use crate::config::{LogFile, Logs, Stream, size};
use crate::control::logger::MEMORY_BYTES;
use crate::sys::errno::words;

/// Tries to lock a file that somebody else has locked, and the pause between two.
const LOCK_TRIES: u32 = 50;
const LOCK_PAUSE: Duration = Duration::from_millis(1);

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

/// Fails if logs cannot be written: later, that is only reported.
pub fn check(logs: &Logs) -> Result<(), String> {
    let files: Vec<&LogFile> = Stream::BOTH.into_iter().filter_map(|stream| logs.of(stream)).collect();
    for log in files.iter().filter(|log| log.own_descriptor().is_none()) {
        match open(log) {
            Err(error) if !lacks_reader(&error) => return Err(format!("cannot open the log {log}: {}", words(&error))),
            _ => {}
        }
    }
    if files.is_empty() {
        return Ok(());
    }
    for limit in &LIMITS {
        let most = limit.most().map_err(|errno| words(&errno.into()))?;
        if most < MEMORY_BYTES {
            let [needed, most] = [MEMORY_BYTES, most].map(size::show);
            return Err(format!(
                "--log needs memory that {} of up to {needed}, and {} {most} here ({}); raise that limit",
                limit.counts, limit.have, limit.names
            ));
        }
    }
    Ok(())
}

/// A limit that the memory of the logger must fit into.
struct Limit {
    resource: Resource,
    counts: &'static str,
    have: &'static str,
    names: &'static str,
}

const LIMITS: [Limit; 2] = [
    Limit {
        resource: Resource::RLIMIT_FSIZE,
        counts: "counts as a file",
        have: "files may have",
        names: "ulimit -f, LimitFSIZE=",
    },
    Limit {
        resource: Resource::RLIMIT_AS,
        counts: "takes address space",
        have: "a process may have",
        names: "ulimit -v, LimitAS=",
    },
];

impl Limit {
    /// The limit that this process would have if it raised it.
    fn most(&self) -> nix::Result<u64> {
        let (soft, hard) = getrlimit(self.resource)?;
        self.raise();
        let (most, _) = getrlimit(self.resource)?;
        setrlimit(self.resource, soft, hard)?;
        Ok(most)
    }

    fn raise(&self) {
        // If neither is allowed, what does not fit says so.
        let _ = setrlimit(self.resource, RLIM_INFINITY, RLIM_INFINITY)
            .or_else(|_| getrlimit(self.resource).and_then(|(_, hard)| setrlimit(self.resource, hard, hard)));
    }
}

/// Raises the limits that the memory of the logger must fit into, as far as this process may.
pub fn raise_limits() {
    LIMITS.iter().for_each(Limit::raise);
}

/// Keeps other panzers from writing to this file and from rotating it, until it is dropped.
#[derive(Debug)]
pub struct Lock<'a>(&'a File);

impl Lock<'_> {
    /// Anybody who may read the file could hold the lock for ever, so after a moment it goes without.
    #[expect(clippy::disallowed_methods, reason = "whoever writes a file has a thread for that")]
    pub fn take(file: &File) -> Lock<'_> {
        for _ in 0..LOCK_TRIES {
            if flock(file, FlockOperation::NonBlockingLockExclusive).is_ok() {
                break;
            }
            thread::sleep(LOCK_PAUSE);
        }
        Lock(file)
    }
}

impl Drop for Lock<'_> {
    fn drop(&mut self) {
        // It fails only if there is no lock.
        let _ = flock(self.0, FlockOperation::Unlock);
    }
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
    if lacks_reader(&error) && !path.metadata().is_ok_and(|found| found.file_type().is_fifo()) {
        return io::Error::other("it is neither a file nor a FIFO; name another one");
    }
    if error.raw_os_error() == Some(Errno::ELOOP as i32) {
        return io::Error::other(format!(
            "{} is a symbolic link, which panzer does not follow; name the file itself",
            path.display()
        ));
    }
    error
}
