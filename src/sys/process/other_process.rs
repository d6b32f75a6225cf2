//! What /proc shows of another process: its descriptors, its sockets, its rights.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::Pid;
use rustix::fs::getxattr;

use crate::sys::process::pidfd::PidFd;
use crate::sys::process::processes::children_in;

/// Descriptors and threads that one search through many processes may look at.
const MAX_STEPS: u32 = 4096;

/// All capabilities, in the order of their bits.
const CAPABILITIES: &str = "chown dac_override dac_read_search fowner fsetid kill setgid setuid setpcap linux_immutable \
    net_bind_service net_broadcast net_admin net_raw ipc_lock ipc_owner sys_module sys_rawio sys_chroot sys_ptrace \
    sys_pacct sys_admin sys_boot sys_nice sys_resource sys_time sys_tty_config mknod lease audit_write audit_control \
    setfcap mac_override mac_admin syslog wake_alarm block_suspend audit_read perfmon bpf checkpoint_restore";

/// There is more to look at than one search may take.
#[derive(Debug)]
pub struct TooMuch;

/// Bit of CAP_NET_BIND_SERVICE in a set of capabilities.
const NET_BIND_SERVICE: u32 = 10;

/// A copy of the descriptor `number` of `thread`. It leads to the same open file.
pub fn descriptor_of(thread: Pid, number: RawFd) -> io::Result<OwnedFd> {
    // Before Linux 6.9 a thread cannot be opened, only its process.
    let process = |_| PidFd::open(leader_of(thread).ok_or(Errno::ESRCH)?);
    PidFd::open_thread(thread).or_else(process)?.copy_of(number)
}

/// The flags of the descriptor `number` of `thread`, and of its open file.
pub fn flags_of(thread: Pid, number: RawFd) -> io::Result<OFlag> {
    let info = fs::read_to_string(format!("/proc/{thread}/fdinfo/{number}"))?;
    let flags = field(&info, "flags:").and_then(|flags| i32::from_str_radix(flags, 8).ok());
    flags.map(OFlag::from_bits_retain).ok_or_else(|| Errno::EBADF.into())
}

/// The inode of the socket behind the descriptor `number` of `thread`. None if it is not a socket.
pub fn socket_inode(thread: Pid, number: RawFd) -> io::Result<Option<u64>> {
    let target = fs::read_link(format!("/proc/{thread}/fd/{number}"))?;
    Ok(target.to_str().and_then(inode_in))
}

/// The inode in the target of a link in /proc/PID/fd, if it is a socket: `socket:[12345]`.
pub fn inode_in(target: &str) -> Option<u64> {
    target.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// The kernel's name for the protocol of the socket behind the descriptor `number` of `thread`, such as "TCPv6". Needs no
/// copy of the descriptor.
pub fn protocol_of(thread: Pid, number: RawFd) -> io::Result<String> {
    let mut name = [0u8; 64];
    let length = getxattr(format!("/proc/{thread}/fd/{number}"), "system.sockprotoname", &mut name)?;
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

/// Whether the kernel lets `thread` bind privileged ports.
pub fn may_bind_privileged(thread: Pid) -> bool {
    let status = fs::read_to_string(format!("/proc/{thread}/status")).unwrap_or_default();
    let effective = field(&status, "CapEff:").and_then(|set| u64::from_str_radix(set, 16).ok()).unwrap_or(0);
    // In a user namespace of its own a process has all capabilities, and none that counts here.
    effective & (1 << NET_BIND_SERVICE) != 0 && is_in_our_namespace(thread, "user")
}

/// The process that a thread belongs to.
pub fn leader_of(thread: Pid) -> Option<Pid> {
    let status = fs::read_to_string(format!("/proc/{thread}/status")).ok()?;
    field(&status, "Tgid:")?.parse().ok().map(Pid::from_raw)
}

/// Whether the descriptor `number` of `process` leads to this socket. Fails if we may not look.
pub fn leads_to(process: Pid, number: RawFd, inode: u64) -> io::Result<bool> {
    match socket_inode(process, number) {
        Ok(found) => Ok(found == Some(inode)),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// A descriptor that leads to this socket, in `first` or one of its or our descendants. Fails if there is more to look at
/// than one search may take.
pub fn holder_of(inode: u64, first: Pid) -> Result<Option<(Pid, RawFd)>, TooMuch> {
    let (mut family, mut seen, mut steps) = (vec![Pid::this(), first], BTreeSet::new(), 0);
    while let Some(process) = family.pop() {
        if !seen.insert(process) {
            continue;
        }
        // Our own descriptors do not count, only our children's.
        let numbers = if process == Pid::this() { Vec::new() } else { numbers_in(process, "fd") };
        for number in numbers {
            steps += 1;
            if leads_to(process, number, inode).unwrap_or(false) {
                return Ok(Some((process, number)));
            }
        }
        for thread in numbers_in(process, "task") {
            steps += 1;
            family.extend(children_in(Path::new(&format!("/proc/{process}/task/{thread}"))));
        }
        if steps > MAX_STEPS {
            return Err(TooMuch);
        }
    }
    Ok(None)
}

fn numbers_in(process: Pid, folder: &str) -> Vec<i32> {
    let entries = fs::read_dir(format!("/proc/{process}/{folder}")).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// The names of the capabilities that executing a program's file gives. None if it gives none.
pub fn file_capabilities(path: impl AsRef<Path>) -> Option<String> {
    let mut data = [0u8; 24];
    let length = getxattr(path.as_ref(), "security.capability", &mut data).ok()?;
    if length < 12 {
        return None;
    }
    // After a version: the permitted and the inheritable ones, 32 bits each, and again for the higher 32.
    let word = |at: usize| u64::from(u32::from_le_bytes([data[at], data[at + 1], data[at + 2], data[at + 3]]));
    let given = word(4) | word(8) | ((word(12) | word(16)) << 32);
    let names = CAPABILITIES.split_ascii_whitespace().enumerate().filter(|(bit, _)| given & (1 << bit) != 0);
    let names: Vec<String> = names.map(|(_, name)| format!("cap_{name}")).collect();
    (!names.is_empty()).then(|| names.join(","))
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
