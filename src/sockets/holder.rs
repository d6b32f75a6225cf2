//! Finds out through /proc who holds an address that is in use. Only messages need it.

use std::fs;
use std::net::IpAddr;

use nix::unistd::Pid;

use crate::config::Address;
use crate::sys::printable;
use crate::sys::processes::{is_alive, is_exiting};

/// The files that list the sockets of a protocol.
const TCP: [&str; 2] = ["/proc/net/tcp", "/proc/net/tcp6"];
const UDP: [&str; 2] = ["/proc/net/udp", "/proc/net/udp6"];

/// States there: of a TCP socket that listens, of one that has ended and keeps its port for a minute, and of any UDP socket.
const LISTENS: &str = "0A";
const TIME_WAIT: &str = "06";
const UNCONNECTED: &str = "07";

/// State of a unix socket that is bound and not connected, whether it listens or not (SS_UNCONNECTED).
const UNIX_UNCONNECTED: &str = "01";

/// A process that holds a bound socket.
#[derive(Debug)]
pub(super) struct Holder {
    pub(super) pid: i32,
    pub(super) name: String,
    pub(super) prospect: Prospect,
}

/// How long the process will hold the address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Prospect {
    /// No reason is known why it should give the address up.
    Stays,
    /// It is a worker of a dead main, so it will end soon.
    LeftByDeadMain,
    /// It has run its last instruction. The kernel closes its descriptors last.
    Exiting,
}

/// Every process that is seen to hold `address`, or an address that collides with it.
pub(super) fn find(address: &Address) -> Vec<Holder> {
    let inodes = match address {
        Address::Any(_) | Address::Tcp(_) => {
            let listening = tcp_inodes(address, |state| state == LISTENS);
            // A client may have got the port by chance.
            if listening.is_empty() { tcp_inodes(address, |state| state != TIME_WAIT) } else { listening }
        }
        Address::AnyUdp(port) => port_inodes(UDP, |state| state == UNCONNECTED, *port, None),
        Address::Udp(udp) => port_inodes(UDP, |state| state == UNCONNECTED, udp.port(), Some(udp.ip())),
        Address::Unix(path) => unix_inodes(&path.to_string_lossy()),
        Address::Abstract(name) => unix_inodes(&format!("@{name}")),
        Address::Other { .. } | Address::Host { .. } => Vec::new(),
    };
    if inodes.is_empty() {
        return Vec::new();
    }
    let links: Vec<String> = inodes.iter().map(|inode| format!("socket:[{inode}]")).collect();
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|&pid| holds(pid, &links)).map(describe).collect()
}

/// Whether a connection that has ended keeps the port.
pub(super) fn is_kept_by_ended_connection(address: &Address) -> bool {
    !tcp_inodes(address, |state| state == TIME_WAIT).is_empty()
}

fn tcp_inodes(address: &Address, is_wanted: fn(&str) -> bool) -> Vec<String> {
    match address {
        Address::Any(port) => port_inodes(TCP, is_wanted, *port, None),
        Address::Tcp(tcp) => port_inodes(TCP, is_wanted, tcp.port(), Some(tcp.ip())),
        _ => Vec::new(),
    }
}

fn port_inodes(tables: [&str; 2], is_wanted: fn(&str) -> bool, port: u16, wanted: Option<IpAddr>) -> Vec<String> {
    let mut inodes = Vec::new();
    for table in tables {
        for line in fs::read_to_string(table).unwrap_or_default().lines().skip(1) {
            // "sl local_address rem_address st … inode …", addresses as HEX:PORT
            let fields: Vec<&str> = line.split_ascii_whitespace().collect();
            let (Some(local), Some(found), Some(inode)) = (fields.get(1), fields.get(3), fields.get(9)) else {
                continue;
            };
            if !is_wanted(found) {
                continue;
            }
            let Some((host, local_port)) = local.split_once(':') else { continue };
            let wildcard = host.bytes().all(|byte| byte == b'0');
            let same_host = wildcard || wanted.is_none_or(|ip| ip.is_unspecified() || host.ends_with(&hex(ip)));
            if u16::from_str_radix(local_port, 16) == Ok(port) && same_host {
                inodes.push((*inode).to_owned());
            }
        }
    }
    inodes
}

/// An address as in /proc/net/tcp: 32-bit words in the machine's byte order.
fn hex(ip: IpAddr) -> String {
    let octets = match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let words = octets.chunks_exact(4).map(|word| u32::from_ne_bytes([word[0], word[1], word[2], word[3]]));
    words.map(|word| format!("{word:08X}")).collect()
}

fn unix_inodes(path: &str) -> Vec<String> {
    let table = fs::read_to_string("/proc/net/unix").unwrap_or_default();
    // "Num RefCount Protocol Flags Type St Inode Path"
    let rows = table.lines().skip(1).filter_map(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        (*fields.get(5)? == UNIX_UNCONNECTED && *fields.get(7)? == path).then(|| fields[6].to_owned())
    });
    rows.collect()
}

fn holds(pid: i32, links: &[String]) -> bool {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let mut targets = descriptors.filter_map(|entry| fs::read_link(entry.path()).ok());
    targets.any(|target| links.iter().any(|link| target.as_os_str() == link.as_str()))
}

fn describe(pid: i32) -> Holder {
    let name = fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
    let name = printable::line(String::from_utf8_lossy(&name).trim());
    let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    let main = environment.split(|&byte| byte == 0).find_map(|entry| entry.strip_prefix(b"PANZER_MAIN_PID="));
    let main = main.and_then(|pid| std::str::from_utf8(pid).ok()?.parse::<i32>().ok());
    // After the environment: it disappears with the memory, and by then the process is seen to be exiting. A process
    // that has no environment and is not exiting was started without one.
    let prospect = if is_exiting(Pid::from_raw(pid)) {
        Prospect::Exiting
    } else if main.is_some_and(|main| !is_alive(Pid::from_raw(main))) {
        Prospect::LeftByDeadMain
    } else {
        Prospect::Stays
    };
    Holder { pid, name, prospect }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    /// How often this process is found. Another test's child may have copies of its descriptors until it executes. While
    /// other sockets of the machine come and go, the kernel's table may leave one out, so it is read again then.
    fn ours(address: &Address) -> usize {
        let count = || find(address).iter().filter(|holder| holder.pid == std::process::id() as i32).count();
        (0..5).map(|_| count()).find(|count| *count > 0).unwrap_or(0)
    }

    #[test]
    fn a_holder_is_found_by_its_address_alone() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let found = |ip: &str| ours(&Address::Tcp((ip.parse::<IpAddr>().unwrap(), address.port()).into()));
        assert_eq!([found("127.0.0.1"), found("0.0.0.0"), found("127.0.0.2")], [1, 1, 0]);
        assert_eq!(ours(&Address::Any(address.port())), 1);
    }

    #[test]
    fn a_holder_of_a_port_for_datagrams_is_found() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        assert_eq!([ours(&Address::Udp(address)), ours(&Address::AnyUdp(address.port()))], [1, 1]);
        assert_eq!(ours(&Address::Tcp(address)), 0);
    }
}
