//! Another process's memory, and copies of its descriptors.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::stat::fstat;
use nix::sys::statfs::{FsType, fstatfs};
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;
use rustix::process::{PidfdFlags, PidfdGetfdFlags, Signal, pidfd_getfd, pidfd_open, pidfd_send_signal};

/// The file system of pidfds (PIDFS_MAGIC), which libc does not have yet.
const PIDFS: FsType = FsType(0x5049_4446);

/// A process, held by a descriptor: it never comes to mean another one.
#[derive(Debug)]
pub struct PidFd(OwnedFd);

impl AsFd for PidFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl PidFd {
    /// Fails with ESRCH if `pid` has ended and been reaped.
    pub fn open(pid: Pid) -> io::Result<PidFd> {
        PidFd::open_with(pid, PidfdFlags::empty())
    }

    /// Stands for one thread, and for its table of descriptors if it has its own. Fails with EINVAL before Linux 6.9.
    pub fn open_thread(thread: Pid) -> io::Result<PidFd> {
        // PIDFD_THREAD, which rustix does not have yet.
        PidFd::open_with(thread, PidfdFlags::from_bits_retain(libc::O_EXCL as u32))
    }

    fn open_with(pid: Pid, flags: PidfdFlags) -> io::Result<PidFd> {
        let pid = rustix::process::Pid::from_raw(pid.as_raw()).ok_or(Errno::ESRCH)?;
        Ok(PidFd(pidfd_open(pid, flags)?))
    }

    /// Sends it SIGKILL.
    pub fn kill(&self) {
        // It fails if the process has ended, or is none of ours.
        let _ = pidfd_send_signal(&self.0, Signal::KILL);
    }

    /// A copy of its descriptor `number`, close-on-exec. Fails with EPERM if we may not trace the process, with EBADF if
    /// nothing is open there.
    pub fn copy_of(&self, number: RawFd) -> io::Result<OwnedFd> {
        Ok(pidfd_getfd(&self.0, number, PidfdGetfdFlags::empty())?)
    }
}

/// A number that no other process has had since the machine started. None before Linux 6.9.
pub fn own_id() -> Option<u64> {
    let own = PidFd::open(Pid::this()).ok()?;
    let has_ids = fstatfs(&own.0).ok()?.filesystem_type() == PIDFS;
    fstat(&own.0).ok().filter(|_| has_ids).map(|stat| stat.st_ino)
}

/// Up to `length` bytes of the memory of `pid`, from `address` on; fewer if the memory ends before. Fails with EPERM if we
/// may not trace the process.
pub fn read_memory(pid: Pid, address: usize, length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    let count =
        process_vm_readv(pid, &mut [IoSliceMut::new(&mut bytes)], &[RemoteIoVec { base: address, len: length }])?;
    bytes.truncate(count);
    Ok(bytes)
}
