//! Why exec refused a program, in words. The errno alone does not say whether the file, its interpreter or its
//! architecture is the reason.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::statvfs::{FsFlags, statvfs};

use super::cause::Cause;
use super::identity::Identity;
use super::step::Step;

use crate::sys::errno::words;

/// The part of a file that the kernel itself looks at.
const HEAD_BYTES: usize = 256;

/// Machines an ELF header may name (`e_machine`, from the ELF specification's registry).
const MACHINES: [(u16, &str); 8] = [
    (3, "x86"),
    (8, "MIPS"),
    (21, "PowerPC64"),
    (22, "S/390"),
    (40, "arm"),
    (62, "x86_64"),
    (183, "aarch64"),
    (243, "RISC-V"),
];

/// Why a child did not execute its program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused {
    /// Which step of becoming its identity failed; none: the exec or what leads to it.
    pub step: Option<Step>,
    /// The errno of the kernel.
    pub errno: Errno,
}

impl Refused {
    pub(super) const BYTES: usize = 8;

    pub(super) fn to_bytes(self) -> [u8; Refused::BYTES] {
        let step = self.step.map_or(0, |step| step as i32);
        let mut bytes = [0; Refused::BYTES];
        bytes[..4].copy_from_slice(&step.to_ne_bytes());
        bytes[4..].copy_from_slice(&(self.errno as i32).to_ne_bytes());
        bytes
    }

    pub(super) fn from_bytes([a, b, c, d, rest @ ..]: [u8; Refused::BYTES]) -> Refused {
        let step = Step::from_number(i32::from_ne_bytes([a, b, c, d]));
        Refused { step, errno: Errno::from_raw(i32::from_ne_bytes(rest)) }
    }
}

impl From<Errno> for Refused {
    fn from(errno: Errno) -> Refused {
        Refused { step: None, errno }
    }
}

/// Why a child that should run as `identity` did not execute `path`. A short-lived child finds out, because the file system
/// may hang.
pub fn explain_child(refused: Refused, path: &Path, identity: &Identity) -> Cause {
    match refused {
        Refused { step: Some(step), errno } => identity.explain(step, errno),
        Refused { errno: Errno::EACCES, .. } => match identity.barrier(path) {
            Some(why) => Cause::CannotExecute(Cause::bounded(format!("{} cannot be executed: {why}", path.display()))),
            None => explain(Errno::EACCES, path),
        },
        Refused { errno, .. } => explain(errno, path),
    }
}

/// The meaning of `errno` after an exec of `path`, and what to do.
pub fn explain(errno: Errno, path: &Path) -> Cause {
    let shown = path.display();
    let text = match errno {
        Errno::ENOENT if !path.exists() => {
            return Cause::NotFound(Cause::bounded(format!(
                "{shown} was not found ({}); check the path",
                words(&errno.into())
            )));
        }
        Errno::ENOENT => match interpreter(path) {
            Some(interpreter) => format!("{shown} cannot be executed: its interpreter {interpreter} was not found"),
            None => format!("{shown} cannot be executed: its dynamic loader was not found"),
        },
        Errno::EACCES => format!("{shown} cannot be executed: {}", why_denied(path)),
        Errno::ENOEXEC => format!("{shown} cannot be executed: {}", why_no_program(path)),
        Errno::EAGAIN => {
            format!("{shown} cannot be executed: its user has as many processes as it may (--rlimit NPROC)")
        }
        Errno::ETXTBSY => format!("{shown} cannot be executed: it is still open for writing (text file busy)"),
        other => format!("{shown} cannot be executed: {}", words(&other.into())),
    };
    Cause::CannotExecute(Cause::bounded(text))
}

/// A path that leads to exactly the file of this handle.
pub fn through_proc(handle: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", handle.as_raw_fd()))
}

fn head(path: &Path) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(HEAD_BYTES);
    File::open(path).ok()?.take(HEAD_BYTES as u64).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

fn interpreter(path: &Path) -> Option<String> {
    let head = head(path)?;
    let line = head.strip_prefix(b"#!")?.split(|&byte| byte == b'\n').next()?;
    let line = String::from_utf8_lossy(line);
    let name = line.trim().split([' ', '\t']).next().unwrap_or_default();
    // A file from Windows asks for "/bin/sh\r". The last letter is invisible.
    Some(format!("{name:?}").trim_matches('"').to_owned())
}

fn why_denied(path: &Path) -> String {
    let Ok(meta) = fs::metadata(path) else { return words(&Errno::EACCES.into()) };
    let mode = meta.permissions().mode() & 0o7777;
    if meta.is_dir() {
        "it is a directory".to_owned()
    } else if !meta.is_file() {
        "it is not a regular file".to_owned()
    } else if mode & 0o111 == 0 {
        format!("it is not executable (mode {mode:04o}); chmod +x it")
    } else if statvfs(path).is_ok_and(|fs| fs.flags().contains(FsFlags::ST_NOEXEC)) {
        "its file system is mounted noexec".to_owned()
    } else if let Some(interpreter) = interpreter(path) {
        format!("permission denied for it or its interpreter {interpreter}")
    } else {
        format!("permission denied (mode {mode:04o})")
    }
}

fn why_no_program(path: &Path) -> String {
    let Some(head) = head(path) else { return "it is not an executable program (exec format error)".to_owned() };
    if head.is_empty() {
        return "it is empty".to_owned();
    }
    if head.starts_with(b"\x7fELF") && head.len() >= 20 {
        let number = if head[5] == 2 {
            u16::from_be_bytes([head[18], head[19]])
        } else {
            u16::from_le_bytes([head[18], head[19]])
        };
        let machine = MACHINES.iter().find(|known| known.0 == number).map_or("another machine", |known| known.1);
        if machine != std::env::consts::ARCH {
            return format!("it is built for {machine}, and this machine is {}", std::env::consts::ARCH);
        }
        return "its ELF file is damaged or incomplete (exec format error)".to_owned();
    }
    if path.as_os_str().as_bytes().ends_with(b".sh") || head.is_ascii() {
        return "it has no #! line that names its interpreter (exec format error)".to_owned();
    }
    "it is not an executable program (exec format error)".to_owned()
}
