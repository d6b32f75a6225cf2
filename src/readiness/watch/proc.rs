//! Reads and parses /proc of one process.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};

use nix::unistd::Pid;

use crate::sys::other_process::inode_in;
use crate::sys::pidfd;
use crate::sys::processes::children_in;

/// Limit of what is read of one file: an epoll set of some 10,000 descriptors.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Limit of the descriptors of one process that are listed.
const MAX_DESCRIPTORS: usize = 4096;

/// A thread, by its folder in /proc.
#[derive(Debug)]
pub(super) struct Thread {
    pid: Pid,
    folder: PathBuf,
}

/// The target of a descriptor.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Link {
    Socket(u64),
    EpollSet,
    Ring,
    #[default]
    Other,
}

/// Whether this kernel, and this mount of /proc, show the call in which a thread is.
pub(super) fn shows_calls() -> bool {
    Path::new("/proc/self/syscall").exists()
}

/// The threads of `pid`, the main thread first. None if it has ended.
pub(super) fn threads(pid: Pid) -> impl Iterator<Item = Thread> {
    let entries = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    entries.map(move |entry| Thread { pid, folder: entry.path() })
}

impl Thread {
    /// The call in which it is, as /proc shows it.
    pub(super) fn call(&self) -> io::Result<String> {
        read_text(&self.folder.join("syscall"))
    }

    /// The processes that it has started.
    pub(super) fn children(&self) -> Vec<Pid> {
        children_in(&self.folder)
    }

    pub(super) fn descriptors(&self) -> io::Result<Vec<RawFd>> {
        let entries = fs::read_dir(self.folder.join("fd"))?;
        let numbers = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        Ok(numbers.take(MAX_DESCRIPTORS).collect())
    }

    pub(super) fn link(&self, fd: RawFd) -> io::Result<Link> {
        let target = fs::read_link(self.folder.join("fd").join(fd.to_string()))?;
        Ok(parse_link(&target.to_string_lossy()))
    }

    pub(super) fn info(&self, fd: RawFd) -> io::Result<String> {
        read_text(&self.folder.join("fdinfo").join(fd.to_string()))
    }

    pub(super) fn memory(&self, address: usize, length: usize) -> io::Result<Vec<u8>> {
        pidfd::read_memory(self.pid, address, length)
    }
}

fn read_text(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(MAX_FILE_BYTES).read_to_string(&mut text)?;
    Ok(text)
}

fn parse_link(target: &str) -> Link {
    match target {
        "anon_inode:[eventpoll]" => Link::EpollSet,
        "anon_inode:[io_uring]" => Link::Ring,
        _ => inode_in(target).map_or(Link::Other, Link::Socket),
    }
}

/// The inode of the descriptor itself, from its `fdinfo`. Older kernels do not show it.
pub(super) fn own_inode(info: &str) -> Option<u64> {
    info.lines().find_map(|line| line.strip_prefix("ino:")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_read() {
        assert_eq!(parse_link("socket:[12345]"), Link::Socket(12345));
        assert_eq!(parse_link("anon_inode:[eventpoll]"), Link::EpollSet);
        assert_eq!(parse_link("anon_inode:[io_uring]"), Link::Ring);
        for other in ["/tmp/socket:[1]", "socket:[x]", "socket:[1", "pipe:[1]", ""] {
            assert_eq!(parse_link(other), Link::Other, "{other}");
        }
    }

    #[test]
    fn the_inode_of_a_set_is_read() {
        let info = "pos:\t0\nflags:\t02000002\nmnt_id:\t15\nino:\t1057\n";
        assert_eq!(own_inode(info), Some(1057));
        assert_eq!(own_inode("pos:\t0\n"), None);
    }
}
