//! Looking into another process: its descriptors, its memory, its rights. All of it takes what ptrace takes.

use std::fs;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;

use super::descriptors::adopt;

/// Bit of CAP_NET_BIND_SERVICE in a set of capabilities.
const NET_BIND_SERVICE: u32 = 10;

/// A copy of the descriptor `number` of the process that `thread` belongs to. It leads to the same open file.
pub fn descriptor_of(thread: Pid, number: RawFd) -> io::Result<OwnedFd> {
    let process = open(thread)?;
    // SAFETY: three integers; nothing of ours is touched.
    let copy = unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), number, 0) };
    Errno::result(copy)?;
    adopt(copy as RawFd)
}

/// A descriptor that stands for the thread, or for its process where the kernel knows no other (before 6.9).
fn open(thread: Pid) -> io::Result<OwnedFd> {
    const A_THREAD: libc::c_int = libc::O_EXCL;
    let leader = |_| pidfd_open(leader_of(thread).ok_or(Errno::ESRCH)?, 0);
    pidfd_open(thread, A_THREAD).or_else(leader)
}

fn pidfd_open(pid: Pid, flags: libc::c_int) -> io::Result<OwnedFd> {
    // SAFETY: two integers; nothing of ours is touched.
    let number = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), flags) };
    Errno::result(number)?;
    adopt(number as RawFd)
}

/// Reads memory of the process into all of `bytes`.
pub fn read_memory(thread: Pid, address: u64, bytes: &mut [u8]) -> io::Result<()> {
    let length = bytes.len();
    let remote = [RemoteIoVec { base: address as usize, len: length }];
    match process_vm_readv(thread, &mut [IoSliceMut::new(bytes)], &remote)? {
        read if read == length => Ok(()),
        _ => Err(Errno::EFAULT.into()),
    }
}

/// Whether the descriptor `number` of `thread` is closed by an exec.
pub fn closes_on_exec(thread: Pid, number: RawFd) -> io::Result<bool> {
    let info = fs::read_to_string(format!("/proc/{thread}/fdinfo/{number}"))?;
    let flags = field(&info, "flags:").and_then(|flags| i32::from_str_radix(flags, 8).ok());
    Ok(flags.is_some_and(|flags| flags & libc::O_CLOEXEC != 0))
}

/// Whether the kernel lets `thread` bind ports that are not for everybody.
pub fn may_bind_privileged(thread: Pid) -> bool {
    let status = fs::read_to_string(format!("/proc/{thread}/status")).unwrap_or_default();
    let effective = field(&status, "CapEff:").and_then(|set| u64::from_str_radix(set, 16).ok()).unwrap_or(0);
    // In a user namespace of its own a process has all capabilities, and none that counts here.
    let namespace = |whose: &str| fs::read_link(format!("/proc/{whose}/ns/user")).ok();
    effective & (1 << NET_BIND_SERVICE) != 0 && namespace(&thread.to_string()) == namespace("self")
}

fn leader_of(thread: Pid) -> Option<Pid> {
    let status = fs::read_to_string(format!("/proc/{thread}/status")).ok()?;
    field(&status, "Tgid:")?.parse().ok().map(Pid::from_raw)
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn a_process_is_looked_into_by_any_of_its_threads() {
        let look = || {
            let thread = nix::unistd::gettid();
            let file = fs::File::open("/dev/null").unwrap();
            let copy = descriptor_of(thread, file.as_fd().as_raw_fd()).unwrap();
            assert_eq!(fs::read_link(format!("/proc/self/fd/{}", copy.as_raw_fd())).unwrap().as_os_str(), "/dev/null");
            assert!(closes_on_exec(thread, file.as_raw_fd()).unwrap());
            let (text, mut bytes) = (*b"memory", [0; 6]);
            read_memory(thread, text.as_ptr() as u64, &mut bytes).unwrap();
            assert_eq!(bytes, text);
            assert_eq!(leader_of(thread), Some(Pid::this()));
        };
        look();
        std::thread::spawn(look).join().unwrap();
    }
}
