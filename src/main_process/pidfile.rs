//! The pid file: its lock, not its content, says that an instance lives.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::RawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::config::Plan;
use crate::control::places;
use crate::sys::descriptors::{Kept, take_over};

/// So many instances of one program may run with names made up for them.
const MOST_INSTANCES: u32 = 1000;

/// The pid file of this instance, locked for as long as it lives.
#[derive(Debug)]
pub(super) struct PidFile {
    path: PathBuf,
    file: Flock<File>,
}

/// A pid file as one main hands it on to the next: the lock belongs to what is open, not to who opened it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Carried {
    #[serde(with = "crate::config::text::path")]
    path: PathBuf,
    pub(super) fd: RawFd,
}

/// Claims the file that `plan` names, or the first free one of the program's name in the runtime directory.
pub(super) fn claim(plan: &Plan) -> Result<PidFile, String> {
    if let Some(path) = &plan.pid_file {
        let path = plan.start_directory.join(path);
        return match PidFile::lock(&path) {
            Err(error) => Err(why_not(&path, &error, "stop it, or give another --pid")),
            Ok(file) => Ok(file),
        };
    }
    let directory = places::make_runtime_directory().map_err(|(path, error)| {
        format!(
            "cannot use the directory {} for the pid file: {error}; give --pid or set RUNTIME_DIRECTORY",
            path.display()
        )
    })?;
    if let Some(name) = &plan.name {
        let path = directory.join(format!("{name}.pid"));
        return PidFile::lock(&path).map_err(|error| why_not(&path, &error, "stop it, or give another --name"));
    }
    let program = Path::new(&plan.program.0).file_name().unwrap_or(&plan.program.0).to_string_lossy().into_owned();
    for instance in 1..=MOST_INSTANCES {
        let name = if instance == 1 { format!("{program}.pid") } else { format!("{program}-{instance}.pid") };
        let path = directory.join(name);
        match PidFile::lock(&path) {
            Err(error) if is_locked(&error) => {}
            Err(error) => return Err(why_not(&path, &error, "give --pid or --name")),
            Ok(file) => return Ok(file),
        }
    }
    Err(format!("{MOST_INSTANCES} instances of {program} run already; give --name"))
}

impl PidFile {
    fn lock(path: &Path) -> io::Result<PidFile> {
        loop {
            let flags = (OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).bits();
            let file =
                OpenOptions::new().read(true).write(true).create(true).mode(0o644).custom_flags(flags).open(path)?;
            if !file.metadata()?.is_file() {
                return Err(io::Error::other("it is no regular file"));
            }
            let mut file = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| errno)?;
            // The one who held it may have removed it between our open and our lock.
            if leads_to(path, &file) {
                file.set_len(0)?;
                writeln!(file, "{}", Pid::this())?;
                return Ok(PidFile { path: path.to_owned(), file });
            }
        }
    }

    /// For the next main.
    pub(super) fn carry<'a>(&'a self, kept: &mut Kept<'a>) -> Carried {
        let file: &File = &self.file;
        Carried { path: self.path.clone(), fd: kept.keep(file) }
    }

    /// What the main before has handed on. Fails where it is not locked, and somebody else has locked it.
    pub(super) fn take_over(carried: Carried) -> io::Result<PidFile> {
        let file = File::from(take_over(carried.fd)?);
        let file = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| errno)?;
        Ok(PidFile { path: carried.path, file })
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Removes it, if it is still ours, while it is still locked.
    pub(super) fn remove(&self) {
        if leads_to(&self.path, &self.file) {
            // Whoever removed it in between did what was wanted.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn leads_to(path: &Path, file: &File) -> bool {
    let identity = |meta: fs::Metadata| (meta.dev(), meta.ino());
    match (fs::symlink_metadata(path), file.metadata()) {
        (Ok(there), Ok(ours)) => identity(there) == identity(ours),
        _ => false,
    }
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
    format!("cannot write {shown}: {}", reason(error))
}

fn reason(error: &io::Error) -> String {
    error.raw_os_error().map_or_else(|| error.to_string(), |errno| Errno::from_raw(errno).desc().to_lowercase())
}

fn holder(path: &Path) -> String {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(32).read_to_string(&mut text));
    match (read, text.trim().parse::<u32>()) {
        (Ok(_), Ok(pid)) => format!(" (pid {pid})"),
        _ => String::new(),
    }
}
