//! Releases: the file and the directory that a generation runs. They are found anew for each generation and then held.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Metadata};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::{AccessFlags, access};
use serde::{Deserialize, Serialize};
use which::WhichConfig;

use super::cause::Cause;
use super::refusal;
use super::spawn::{Image, Program};
use crate::config::Plan;
use crate::sys::errno::words;
use crate::sys::file_id::FileId;

/// One release, held open: directory and program stay what they were when they were found, whatever happens to their paths.
#[derive(Debug)]
pub struct Release {
    /// The workers' working directory.
    pub directory: OwnedFd,
    /// The program's file; only a handle (O_PATH), it may not be readable.
    pub program: OwnedFd,
    /// Path of the program, with all symlinks resolved.
    pub path: PathBuf,
    /// The program's file; none if it cannot be looked at.
    id: Option<FileId>,
}

/// The state of a release on disk, to tell it from a later one: device, inode, size and change time of its directory, its
/// program, and of files among the program's first arguments (an interpreter's script).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint(Vec<(u64, u64, u64, i64)>);

/// Arguments that are looked at for files.
const MAX_ARGUMENTS_LOOKED_AT: usize = 8;

impl Release {
    /// The state on disk now.
    pub fn fingerprint(&self, plan: &Plan) -> Fingerprint {
        let directory = refusal::through_proc(&self.directory);
        let arguments = plan.args.iter().take(MAX_ARGUMENTS_LOOKED_AT).map(|argument| directory.join(&argument.0));
        let files = [refusal::through_proc(&self.program)].into_iter().chain(arguments);
        let files = files.filter_map(|path| fs::metadata(path).ok()).filter(Metadata::is_file);
        let state =
            |meta: Metadata| (meta.dev(), meta.ino(), meta.size(), meta.mtime() * 1_000_000_000 + meta.mtime_nsec());
        // A directory's own size and time change with whatever is written into it.
        let whole = fs::metadata(&directory).map_or((0, 0, 0, 0), |meta| (meta.dev(), meta.ino(), 0, 0));
        Fingerprint(std::iter::once(whole).chain(files.map(state)).collect())
    }

    /// Finds program and directory that `plan` names. `search_path` is `PATH`, for a bare name.
    pub fn resolve(plan: &Plan, search_path: Option<&OsStr>) -> Result<Release, Cause> {
        let directory_path = working_directory(plan);
        let directory = open_directory(&directory_path)?;
        let named = find(&plan.program.0, &plan.start_directory, &directory_path, search_path)?;
        let program = handle(&named, 0).map_err(|error| refusal::explain(errno_of(&error), &named))?;
        check_executable(&program, &named)?;
        let path = resolved_path(&program).unwrap_or(named);
        Ok(Release::held(directory, program, path))
    }

    /// A release that was found before.
    pub fn held(directory: OwnedFd, program: OwnedFd, path: PathBuf) -> Release {
        let id = FileId::of(&program);
        Release { directory, program, path, id }
    }

    /// The image to execute for one more worker of this release.
    pub fn image(&self) -> Image<'_> {
        Image::Release(Program { path: &self.path, file: self.program.as_fd(), id: self.id })
    }

    /// The name of the working directory: as `plan` has it, symlinks and all, where that leads there, else as the kernel
    /// has it.
    pub fn directory_name(&self, plan: &Plan) -> Option<PathBuf> {
        let named: PathBuf = working_directory(plan).components().collect();
        let is_plain = named.components().all(|part| part != Component::ParentDir);
        let leads_there = FileId::behind(&named).is_some_and(|named| Some(named) == FileId::of(&self.directory));
        if is_plain && leads_there { Some(named) } else { resolved_path(&self.directory) }
    }
}

/// The directory that panzer was started in, by the user's name for it: `$PWD` if it leads there, so that each generation
/// follows symlinks in it anew. Also whether `$PWD` does.
pub fn start_directory(pwd: Option<OsString>) -> io::Result<(PathBuf, bool)> {
    let physical = std::env::current_dir()?;
    let here = FileId::from(&fs::metadata(".")?);
    let logical =
        pwd.map(PathBuf::from).filter(|path| path.is_absolute()).filter(|path| FileId::behind(path) == Some(here));
    let is_named = logical.is_some();
    Ok((logical.unwrap_or(physical), is_named))
}

fn working_directory(plan: &Plan) -> PathBuf {
    plan.start_directory.join(plan.chdir.as_deref().unwrap_or(Path::new("")))
}

fn open_directory(path: &Path) -> Result<OwnedFd, Cause> {
    handle(path, libc_flags(OFlag::O_DIRECTORY)).map_err(|error| {
        Cause::CannotStart(format!(
            "the working directory {} cannot be entered: {}; create it or correct --chdir",
            path.display(),
            words(&error)
        ))
    })
}

fn handle(path: &Path, more: i32) -> io::Result<OwnedFd> {
    let flags = libc_flags(OFlag::O_PATH | OFlag::O_CLOEXEC) | more;
    Ok(File::options().read(true).custom_flags(flags).open(path)?.into())
}

fn libc_flags(flags: OFlag) -> i32 {
    flags.bits()
}

/// Commands of panzerctl that are given to panzer by mistake.
const OF_PANZERCTL: [&str; 7] = ["list", "logs", "reload", "restart", "scale", "status", "stop"];

/// A relative path is looked for in the start directory, then in `--chdir`, as other supervisors do.
fn find(program: &OsStr, start: &Path, chdir: &Path, search_path: Option<&OsStr>) -> Result<PathBuf, Cause> {
    let folders = if start == chdir { vec![start] } else { vec![start, chdir] };
    // Without the "." of "./app", which says nothing in a message.
    let beside: Vec<PathBuf> = folders.iter().map(|folder| folder.join(program).components().collect()).collect();
    if program.as_bytes().contains(&b'/') {
        let is_there = |path: &&PathBuf| fs::metadata(path).map_or_else(|error| !is_missing(&error), |_| true);
        return match (beside.iter().find(is_there), &beside[..]) {
            (Some(path), _) => Ok(path.clone()),
            (None, [first, second]) if first != second => Err(Cause::NotFound(Cause::bounded(format!(
                "{} was not found, nor {} (--chdir); check the path",
                first.display(),
                second.display()
            )))),
            (None, _) => Ok(beside[0].clone()),
        };
    }
    let directories = search_path.unwrap_or(OsStr::new("/usr/local/bin:/usr/bin:/bin"));
    let found = WhichConfig::new()
        .binary_name(program.to_owned())
        .custom_path_list(directories.to_owned())
        .custom_cwd(start.to_owned())
        .first_result();
    if let Ok(found) = found {
        return Ok(found);
    }
    // which(1) does not tell what is missing from what is not executable; a shell does, by 127 and 126.
    let candidates = std::env::split_paths(directories).map(|directory| start.join(directory).join(program));
    if let Some(candidate) = candidates.into_iter().find(|candidate| candidate.is_file()) {
        return Err(refusal::explain(Errno::EACCES, &candidate));
    }
    let is_beside = beside.iter().any(|path| path.is_file());
    let shown = program.display();
    let tip = match program.to_str() {
        _ if is_beside => format!("did you mean ./{shown}?"),
        Some(line) if line.contains(' ') => {
            format!("give the arguments apart, as in panzer -- {line}, or in args of a file")
        }
        Some(command) if OF_PANZERCTL.contains(&command) => format!("did you mean panzerctl {command}?"),
        _ => "install it, or give its path".to_owned(),
    };
    Err(Cause::NotFound(format!("{shown} was not found in PATH; {tip}")))
}

fn is_missing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn may_execute(path: &Path) -> bool {
    access(path, AccessFlags::X_OK).is_ok()
}

/// Reports what exec would refuse at once before anything is forked.
fn check_executable(program: &OwnedFd, named: &Path) -> Result<(), Cause> {
    let by_handle = refusal::through_proc(program);
    let is_file = fs::metadata(&by_handle).is_ok_and(|meta| meta.is_file());
    if is_file && may_execute(&by_handle) { Ok(()) } else { Err(refusal::explain(Errno::EACCES, named)) }
}

fn resolved_path(program: &OwnedFd) -> Option<PathBuf> {
    fs::read_link(refusal::through_proc(program)).ok().filter(|path| path.exists())
}

fn errno_of(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(0))
}
