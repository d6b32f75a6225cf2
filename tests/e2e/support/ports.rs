//! Ports that no other test has, of this run or of another one on the same machine.

use std::net::{Ipv4Addr, Ipv6Addr, TcpListener};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::sync::Mutex;

/// Below the ports that the kernel gives to outgoing connections (32768 and up), so that none of those is in the way.
const FIRST: u16 = 20_000;
const COUNT: u16 = 12_000;

/// The claims of this process: an abstract unix socket for each port, which the kernel takes back when we end.
static CLAIMS: Mutex<Vec<UnixListener>> = Mutex::new(Vec::new());

/// A port that nobody listens on, and that `free_port` gives to nobody else until this process has ended.
pub fn free_port() -> u16 {
    let mut claims = CLAIMS.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    // Each process begins elsewhere, so that two of them seldom meet.
    let start = std::process::id().wrapping_mul(97) as u16 % COUNT;
    for step in 0..COUNT {
        let port = FIRST + (start + step) % COUNT;
        let name = SocketAddr::from_abstract_name(format!("panzer-test-port-{port}")).expect("a short name");
        let Ok(claim) = UnixListener::bind_addr(&name) else { continue };
        if is_free(port) {
            claims.push(claim);
            return port;
        }
    }
    panic!("no port is free from {FIRST} on");
}

fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok() && TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).is_ok()
}
