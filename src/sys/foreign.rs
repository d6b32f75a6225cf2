//! Looking into another process through /proc: its descriptors, its sockets, its rights.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{OwnedFd, RawFd};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::Pid;

use super::pidfd::PidFd;

/// Bit of CAP_NET_BIND_SERVICE in a set of capabilities.
const NET_BIND_SERVICE: u32 = 10;

/// A copy of the descriptor `number` of `thread`. It leads to the same open file.
pub fn descriptor_of(thread: Pid, number: RawFd) -> io::Result<OwnedFd> {
    // Before Linux 6.9 a thread cannot be opened, only its process.
    let process = |_| PidFd::open(leader_of(thread).ok_or(Errno::ESRCH)?);
    PidFd::open_thread(thread).or_else(process)?.copy_of(number)
}

/// The flags of the descriptor `number` of `thread`, and of what it leads to.
pub fn flags_of(thread: Pid, number: RawFd) -> io::Result<OFlag> {
    let info = fs::read_to_string(format!("/proc/{thread}/fdinfo/{number}"))?;
    let flags = field(&info, "flags:").and_then(|flags| i32::from_str_radix(flags, 8).ok());
    flags.map(OFlag::from_bits_retain).ok_or_else(|| Errno::EBADF.into())
}

/// The inode of the socket that the descriptor `number` of `thread` leads to. None for what is no socket.
pub fn socket_inode(thread: Pid, number: RawFd) -> io::Result<Option<u64>> {
    let target = fs::read_link(format!("/proc/{thread}/fd/{number}"))?;
    let inode = |target: &str| target.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok();
    Ok(target.to_str().and_then(inode))
}

/// The protocol of the socket that the descriptor `number` of `thread` leads to, by the kernel's name for it: "TCPv6".
/// For where a copy of the descriptor cannot be had.
pub fn protocol_of(thread: Pid, number: RawFd) -> io::Result<String> {
    let path = CString::new(format!("/proc/{thread}/fd/{number}")).map_err(io::Error::other)?;
    let mut name = [0u8; 64];
    // SAFETY: two strings that end in null, and at most as many bytes are written as the name has room for.
    let length = unsafe {
        libc::getxattr(path.as_ptr(), c"system.sockprotoname".as_ptr(), name.as_mut_ptr().cast(), name.len())
    };
    let length = Errno::result(length)? as usize;
    let name = name[..length].split(|&byte| byte == 0).next().unwrap_or_default();
    Ok(String::from_utf8_lossy(name).into_owned())
}

/// Whether `thread` is in our network namespace.
pub fn is_in_our_network(thread: Pid) -> bool {
    is_in_our_namespace(thread, "net")
}

fn is_in_our_namespace(thread: Pid, kind: &str) -> bool {
    let namespace = |whose: &str| fs::read_link(format!("/proc/{whose}/ns/{kind}")).ok();
    namespace(&thread.to_string()) == namespace("self")
}

/// Whether the kernel lets `thread` bind ports that are not for everybody.
pub fn may_bind_privileged(thread: Pid) -> bool {
    let status = fs::read_to_string(format!("/proc/{thread}/status")).unwrap_or_default();
    let effective = field(&status, "CapEff:").and_then(|set| u64::from_str_radix(set, 16).ok()).unwrap_or(0);
    // In a user namespace of its own a process has all capabilities, and none that counts here.
    effective & (1 << NET_BIND_SERVICE) != 0 && is_in_our_namespace(thread, "user")
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
    use std::os::fd::AsRawFd;

    #[test]
    fn a_process_is_looked_into_by_any_of_its_threads() {
        let look = || {
            let thread = nix::unistd::gettid();
            let file = fs::File::open("/dev/null").unwrap();
            let copy = descriptor_of(thread, file.as_raw_fd()).unwrap();
            assert_eq!(fs::read_link(format!("/proc/self/fd/{}", copy.as_raw_fd())).unwrap().as_os_str(), "/dev/null");
            assert!(flags_of(thread, file.as_raw_fd()).unwrap().contains(OFlag::O_CLOEXEC));
            assert_eq!(socket_inode(thread, file.as_raw_fd()).unwrap(), None);
            assert!(is_in_our_network(thread));
            assert_eq!(leader_of(thread), Some(Pid::this()));
        };
        look();
        std::thread::spawn(look).join().unwrap();
    }

    #[test]
    fn a_socket_is_known_from_outside() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let number = listener.as_raw_fd();
        let inode = nix::sys::stat::fstat(&listener).unwrap().st_ino;
        assert_eq!(socket_inode(Pid::this(), number).unwrap(), Some(inode));
        assert_eq!(protocol_of(Pid::this(), number).unwrap(), "TCP");
        let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        assert_eq!(protocol_of(Pid::this(), udp.as_raw_fd()).unwrap(), "UDP");
    }
}
