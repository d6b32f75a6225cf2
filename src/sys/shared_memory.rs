//! Memory that outlives the process which uses it: a memfd, mapped, and two system calls that move bytes and write down in
//! that memory how far they have come.
//!
//! A process that is killed at any moment has either made such a call, and the memory says so, or has not.

use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::AtomicU64;

use nix::errno::Errno;
use nix::libc;
use nix::sys::mman::{MapFlags, ProtFlags, mmap};
use nix::sys::stat::fstat;
use nix::unistd::ftruncate;

use super::memfd;

/// Memory of no size yet.
pub fn create() -> io::Result<OwnedFd> {
    Ok(memfd::empty()?)
}

/// A view of such memory as bytes, for as long as the process runs.
#[derive(Debug, Clone, Copy)]
pub struct Bytes {
    at: NonNull<u8>,
    length: usize,
}

// SAFETY: it is an address and a length; who reads and writes which part is for its users to agree on, see below.
unsafe impl Send for Bytes {}

impl Bytes {
    /// Maps `length` bytes of `fd`, which are zeros at first. What is not written to takes no room.
    pub fn map(fd: impl AsFd, length: usize) -> io::Result<Bytes> {
        if fstat(&fd)?.st_size < length as libc::off_t {
            ftruncate(&fd, length as libc::off_t)?;
        }
        let size = NonZeroUsize::new(length).ok_or(Errno::EINVAL)?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let flags = MapFlags::MAP_SHARED | MapFlags::MAP_NORESERVE;
        // SAFETY: a new mapping, at an address that the kernel chooses; it is never unmapped.
        let at = unsafe { mmap(None, size, protection, flags, fd, 0) }?;
        Ok(Bytes { at: at.cast(), length })
    }

    /// The first `count` words, which several threads and the kernel may change.
    pub fn words(self, count: usize) -> &'static [AtomicU64] {
        assert!(count * size_of::<AtomicU64>() <= self.length, "within the mapping");
        // SAFETY: within the mapping, which begins at a page and is never unmapped; an atomic may be changed by anybody.
        unsafe { std::slice::from_raw_parts(self.at.as_ptr().cast(), count) }
    }

    /// A part. Nobody may write there as long as it is looked at.
    pub fn part(&self, from: usize, to: usize) -> &[u8] {
        assert!(from <= to && to <= self.length, "within the mapping");
        // SAFETY: within the mapping, and nobody writes there, as said above.
        unsafe { std::slice::from_raw_parts(self.at.as_ptr().add(from), to - from) }
    }

    /// Writes a part. Nobody may look at it meanwhile.
    pub fn write(&mut self, from: usize, bytes: &[u8]) {
        assert!(from + bytes.len() <= self.length, "within the mapping");
        // SAFETY: within the mapping; what is written lies elsewhere or is moved as a whole.
        unsafe { ptr::copy(bytes.as_ptr(), self.at.as_ptr().add(from), bytes.len()) }
    }

    /// Gives the memory of a part back. It reads as zeros then.
    pub fn free(fd: impl AsFd, from: usize, to: usize) {
        let (mode, at, length) =
            (libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, from as libc::off_t, (to - from) as libc::off_t);
        // SAFETY: changes the file only. If it is refused, the memory stays in use.
        let _ = unsafe { libc::fallocate(fd.as_fd().as_raw_fd(), mode, at, length) };
    }
}

/// Moves what a pipe holds, `most` bytes of it, into `memory`, at the place that `offset` says; `offset` lies in shared
/// memory, and the kernel writes there how far it has come. Never waits. Returns 0 at the pipe's end.
pub fn take(pipe: BorrowedFd<'_>, memory: &OwnedFd, offset: &AtomicU64, most: usize) -> nix::Result<usize> {
    let (pipe, memory) = (pipe.as_raw_fd(), memory.as_raw_fd());
    // SAFETY: the descriptors are open, and an offset has the size of the atomic that it is written to.
    let moved =
        unsafe { libc::splice(pipe, ptr::null_mut(), memory, offset.as_ptr().cast(), most, libc::SPLICE_F_NONBLOCK) };
    Errno::result(moved).map(|moved| moved as usize)
}

/// Writes `count` bytes of `memory` from `offset` on into a regular file, at its position. The kernel writes to `offset`
/// how far it has come.
pub fn put(file: impl AsFd, memory: &OwnedFd, offset: &AtomicU64, count: usize) -> nix::Result<usize> {
    let (file, memory) = (file.as_fd().as_raw_fd(), memory.as_raw_fd());
    // SAFETY: as above.
    let written = unsafe { libc::sendfile(file, memory, offset.as_ptr().cast(), count) };
    Errno::result(written).map(|written| written as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::io::{Read, Seek, Write};
    use std::sync::atomic::Ordering::Relaxed;

    #[test]
    fn both_calls_say_in_the_memory_how_far_they_have_come() {
        let fd = create().unwrap();
        let bytes = Bytes::map(&fd, 3 * 4096).unwrap();
        let words = bytes.words(2);
        words[0].store(4096, Relaxed);
        words[1].store(4096, Relaxed);
        let (reader, mut writer) = std::io::pipe().unwrap();
        assert_eq!(take(reader.as_fd(), &fd, &words[0], 100), Err(Errno::EAGAIN));
        writer.write_all(b"seven\n!").unwrap();
        assert_eq!(take(reader.as_fd(), &fd, &words[0], 100), Ok(7));
        drop(writer);
        assert_eq!(take(reader.as_fd(), &fd, &words[0], 100), Ok(0));
        assert_eq!((words[0].load(Relaxed), bytes.part(4096, 4103)), (4103, &b"seven\n!"[..]));
        let mut file = tempfile::tempfile().unwrap();
        assert_eq!(put(&file, &fd, &words[1], 6), Ok(6));
        assert_eq!(words[1].load(Relaxed), 4102);
        let mut text = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "seven\n");
        Bytes::free(&fd, 4096, 8192);
        assert_eq!(bytes.part(4096, 4103), [0; 7]);
    }
}
