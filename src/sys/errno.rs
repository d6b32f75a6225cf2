//! Why a system call failed, in words that stand within a sentence.

use std::io;

use nix::errno::Errno;

/// The words for `error`, such as "permission denied", without its number. For an errno: `words(&errno.into())`.
pub fn words(error: &io::Error) -> String {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EMFILE) => "too many open files (ulimit -n, LimitNOFILE=)".to_owned(),
        Some(Errno::ENFILE) => "too many open files in the system (sysctl fs.file-max)".to_owned(),
        Some(Errno::EFBIG) => "file too large (ulimit -f, LimitFSIZE=)".to_owned(),
        Some(Errno::ENOSYS) => {
            "this kernel, or a seccomp profile, lacks a system call (strace -f shows which)".to_owned()
        }
        Some(errno) => errno.desc().to_lowercase(),
        None => error.to_string(),
    }
}

/// `error` of the start of a process, where EAGAIN means a limit.
pub fn of_start(error: io::Error) -> io::Error {
    match error.raw_os_error() == Some(Errno::EAGAIN as i32) {
        true => io::Error::other("no further process is allowed (ulimit -u, TasksMax=, pids.max)"),
        false => error,
    }
}

/// `error`, of a step for which the kernel itself never asks for a right, so that EPERM means a filter of system calls.
pub fn unless_forbidden(error: io::Error) -> io::Error {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EPERM) => io::Error::new(
            io::ErrorKind::PermissionDenied,
            "operation not permitted (if a seccomp profile forbids a system call, as in a container, strace -f shows which)",
        ),
        _ => error,
    }
}

/// `error` and its causes in one line, each failed system call in words. Never with a backtrace.
pub fn chain(error: &anyhow::Error) -> String {
    let shown = |cause: &(dyn std::error::Error + 'static)| {
        let errno = cause.downcast_ref::<Errno>().map(|errno| words(&io::Error::from(*errno)));
        errno.or_else(|| cause.downcast_ref().map(words)).unwrap_or_else(|| cause.to_string())
    };
    error.chain().map(shown).collect::<Vec<_>>().join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_number_is_left() {
        assert_eq!(words(&Errno::EPERM.into()), "operation not permitted");
        assert_eq!(words(&io::Error::from_raw_os_error(2)), "no such file or directory");
        assert_eq!(words(&Errno::EFBIG.into()), "file too large (ulimit -f, LimitFSIZE=)");
        assert!(words(&of_start(Errno::EAGAIN.into())).contains("ulimit -u"));
        let error = anyhow::Error::from(Errno::EPERM).context("cannot open x");
        assert_eq!(chain(&error), "cannot open x: operation not permitted");
        let error = anyhow::Error::from(io::Error::from(Errno::EPERM)).context("y");
        assert_eq!(chain(&error), "y: operation not permitted");
        assert_eq!(words(&io::Error::other("it is not a regular file")), "it is not a regular file");
    }
}
