//! The pid file, and the lock file beside it. The lock shows that the instance lives. Everybody may read the pid file,
//! and a process that can read a file can lock it. So the lock is another file, which only the owner can open.

use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::{Pid, geteuid};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::config::Plan;
use crate::control::files::{self, lock_beside};
use crate::sys::errno::words;
use crate::sys::file_id::FileId;
use crate::sys::poller::Poller;
use crate::sys::processes;

/// Limit of the length of a pid file: a pid and a line end.
const MAX_CONTENT_BYTES: u64 = 32;

/// Limit of the instances of one program that get a generated name.
const MAX_INSTANCES: u32 = 1000;

/// Time for which a lock is tried again whose owner has ended. A child that main had just forked when it was killed holds
/// the lock until its exec.
const LOCK_OF_DEAD_MAIN_TIMEOUT: Duration = Duration::from_secs(3);
const LOCK_RETRY: Duration = Duration::from_millis(5);

/// The pid file of this instance. Its place is locked as long as the instance lives.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PidFile {
    #[serde(with = "crate::config::text::path")]
    path: PathBuf,
    /// The locked file. The lock belongs to the open file, so the next main has it too.
    #[serde(rename = "fd", with = "crate::carry::descriptor")]
    lock: OwnedFd,
    /// Whether it was removed and could not be made again. This is logged once.
    #[serde(skip)]
    lost: bool,
}

/// Claims the file that `plan` names, or the first free one for the program's name in the runtime directory.
pub(crate) fn claim(plan: &Plan) -> Result<PidFile, String> {
    if let Some(path) = &plan.pid_file {
        let path = plan.start_directory.join(path);
        return match PidFile::lock(&path) {
            Err(error) => Err(why_not(&path, &error, "stop it, or give another --pid")),
            Ok(file) => Ok(file),
        };
    }
    let directory = files::make_runtime_directory().map_err(|(path, error)| {
        format!(
            "cannot use the directory {} for the pid file: {error}; give --pid or set RUNTIME_DIRECTORY",
            path.display()
        )
    })?;
    if let Some(name) = &plan.name {
        let path = directory.join(format!("{name}.pid"));
        return PidFile::lock(&path).map_err(|error| why_not(&path, &error, "stop it, or give another --name"));
    }
    // A path such as / has no last part; it cannot be executed, and somebody else says so.
    let program = Path::new(&plan.program.0).file_name().unwrap_or("panzer".as_ref()).to_string_lossy();
    for instance in 1..=MAX_INSTANCES {
        let name = if instance == 1 { format!("{program}.pid") } else { format!("{program}-{instance}.pid") };
        let path = directory.join(name);
        match PidFile::lock(&path) {
            Err(error) if is_locked(&error) => {}
            Err(error) => return Err(why_not(&path, &error, "give --pid or --name")),
            Ok(file) => return Ok(file),
        }
    }
    Err(format!("{MAX_INSTANCES} instances of {program} run already; give --name"))
}

impl PidFile {
    fn lock(path: &Path) -> io::Result<PidFile> {
        if !holds_a_pid(path)? {
            return Err(io::Error::other("it is there and holds no pid; remove it, or give another --pid"));
        }
        let beside = lock_beside(path);
        // A user who may not create files there may have been given the pid file itself.
        let in_its_place = |error: io::Error| match error.kind() {
            ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem if path.exists() => lock(path, false),
            _ => Err(error),
        };
        let until = Instant::now() + LOCK_OF_DEAD_MAIN_TIMEOUT;
        let lock = loop {
            match lock(&beside, true).or_else(in_its_place) {
                Err(error) if is_locked(&error) && is_of_dead_main(path) && Instant::now() < until => {
                    Poller::new()?.wait(Some(Instant::now() + LOCK_RETRY))?;
                }
                other => break other?,
            }
        };
        let file = PidFile { path: path.to_owned(), lock, lost: false };
        if let Err(error) = file.write() {
            file.unlock();
            return Err(error);
        }
        Ok(file)
    }

    /// Writes the file. It appears at once, with its whole content.
    fn write(&self) -> io::Result<()> {
        let content = format!("{}\n", Pid::this());
        let new = files::beside(&self.path, ".pid.new");
        let replaced = remove(&new).and_then(|()| {
            let mut file = open().write(true).create_new(true).mode(0o644).open(&new)?;
            file.write_all(content.as_bytes()).and_then(|()| fs::rename(&new, &self.path))
        });
        match replaced {
            Err(error) if error.kind() == ErrorKind::PermissionDenied && self.path.exists() => {
                let mut file = open().write(true).open(&self.path)?;
                file.set_len(0).and_then(|()| file.write_all(content.as_bytes()))
            }
            Err(error) => remove(&new).and(Err(error)),
            Ok(()) => Ok(()),
        }
    }

    /// Goes on after a restart in place. Fails if another process has the lock. If only the pid file itself could be
    /// locked before, tries again to lock a file of its own.
    pub(crate) fn resume(&mut self) -> io::Result<()> {
        flock(&self.lock, FlockOperation::NonBlockingLockExclusive)?;
        if leads_to(&self.path, &self.lock) {
            self.lock = lock(&lock_beside(&self.path), true).or_else(|_| self.lock.try_clone())?;
        }
        Ok(())
    }

    /// The path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it was removed and could not be made again.
    pub(crate) fn is_lost(&self) -> bool {
        self.lost
    }

    /// Makes the file and its lock again if they are missing. Returns the path if it did. The error is a line.
    pub(crate) fn restore(&mut self) -> Result<Option<PathBuf>, String> {
        let locks_itself = leads_to(&self.path, &self.lock);
        let is_locked = locks_itself || leads_to(&lock_beside(&self.path), &self.lock);
        if is_locked && self.path.exists() {
            return Ok(None);
        }
        self.lost = true;
        let made = if is_locked { Ok(()) } else { self.lock_anew() };
        made.and_then(|()| self.write()).map_err(|error| why_not(&self.path, &error, "stop one of the two"))?;
        self.lost = false;
        Ok(Some(self.path.clone()))
    }

    fn lock_anew(&mut self) -> io::Result<()> {
        // The old lock is held until there is a new one.
        self.lock = lock(&lock_beside(&self.path), true)?;
        Ok(())
    }

    /// Removes the file if it is still ours, and then the lock file, while it is still locked.
    pub(crate) fn remove(&self) {
        if content(&self.path).is_ok_and(|content| content.trim() == Pid::this().to_string()) {
            // If another process was faster, the file is gone as wanted.
            let _ = fs::remove_file(&self.path);
        }
        self.unlock();
    }

    fn unlock(&self) {
        let lock = lock_beside(&self.path);
        if leads_to(&lock, &self.lock) {
            let _ = fs::remove_file(lock);
        }
    }
}

/// Options to open a file that may belong to another user: they follow no link, and do not block.
fn open() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.custom_flags((OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).bits());
    options
}

/// Locks this file. With `of_its_own` it is created if it is missing, and must not belong to another user.
fn lock(path: &Path, of_its_own: bool) -> io::Result<OwnedFd> {
    loop {
        let file = open().read(true).write(true).create(of_its_own).mode(0o600).open(path)?;
        let meta = file.metadata()?;
        if !meta.is_file() {
            return Err(io::Error::other(format!("{} is not a regular file", path.display())));
        }
        let is_ours = [0, geteuid().as_raw()].contains(&meta.uid()) && meta.mode() & 0o077 == 0;
        if of_its_own && (!is_ours || meta.len() > 0) {
            return Err(io::Error::other(format!("its lock {} is no file of ours; remove that", path.display())));
        }
        flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        // The process that held the lock may have removed the file between our open and our lock.
        if leads_to(path, &file) {
            return Ok(file.into());
        }
    }
}

/// Whether the path is free, or has a file that may be a pid file: empty, or a number.
fn holds_a_pid(path: &Path) -> io::Result<bool> {
    match content(path) {
        Ok(content) => Ok(content.trim().bytes().all(|byte| byte.is_ascii_digit())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(true),
        // ENXIO is the refusal of a socket.
        Err(error) if error.kind() == ErrorKind::InvalidData || error.raw_os_error() == Some(Errno::ENXIO as i32) => {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// The content of a regular file, if it is not longer than a pid.
fn content(path: &Path) -> io::Result<String> {
    let file = open().read(true).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut content = String::new();
    match file.take(MAX_CONTENT_BYTES + 1).read_to_string(&mut content)? as u64 {
        0..=MAX_CONTENT_BYTES => Ok(content),
        _ => Err(ErrorKind::InvalidData.into()),
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn leads_to(path: &Path, file: impl AsFd) -> bool {
    FileId::at(path).is_some_and(|there| FileId::of(file) == Some(there))
}

/// Whether the process that wrote the file has ended.
fn is_of_dead_main(path: &Path) -> bool {
    let pid = content(path).ok().and_then(|content| content.trim().parse().ok());
    pid.is_some_and(|pid| !processes::is_alive(Pid::from_raw(pid)))
}

fn is_locked(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::EWOULDBLOCK as i32)
}

fn why_not(path: &Path, error: &io::Error, remedy: &str) -> String {
    let shown = path.display();
    if is_locked(error) {
        return format!("{shown} belongs to a panzer that runs{}; {remedy}", holder(path));
    }
    if error.raw_os_error() == Some(Errno::ELOOP as i32) {
        return format!("cannot write {shown}: it is a symlink, which is not followed; remove it");
    }
    format!("cannot write {shown}: {}", words(error))
}

fn holder(path: &Path) -> String {
    match content(path).map(|content| content.trim().parse::<u32>()) {
        Ok(Ok(pid)) => format!(" (pid {pid})"),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lock_of_a_main_that_has_just_been_killed_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("app.pid");
        let held = lock(&lock_beside(&path), true).unwrap();
        // Its owner lives.
        fs::write(&path, Pid::this().to_string()).unwrap();
        assert!(PidFile::lock(&path).is_err_and(|error| is_locked(&error)));
        // Its owner has ended, and a child of it keeps the lock for a moment.
        fs::write(&path, i32::MAX.to_string()).unwrap();
        let child = std::thread::spawn(move || {
            let waited = Poller::new().unwrap().wait(Some(Instant::now() + 4 * LOCK_RETRY));
            drop(held);
            waited.unwrap();
        });
        assert_eq!(PidFile::lock(&path).unwrap().path(), path);
        child.join().unwrap();
    }
}
