//! Which sockets of a SO_REUSEPORT group new connections and datagrams go to.
//!
//! Without a program the kernel deals them out over all sockets of the group. The program here, which is attached to
//! the group by SO_ATTACH_REUSEPORT_CBPF (socket(7)), deals them out over the first so many, by the peer's address, so
//! that a peer always meets the same one. The first are those that joined the group first.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;

/// The packet from its IP header on (SKF_NET_OFF).
const IP_HEADER: u32 = 0xfff0_0000;

/// In which byte an IP header has its version, above the length that IPv4 has there; and where, with no options, each
/// version has the end of the sender's address and its port.
const VERSION: u32 = IP_HEADER;
const V4_ADDRESS: u32 = IP_HEADER + 12;
const V4_PORT: u32 = IP_HEADER + 20;
const V6_ADDRESS: u32 = IP_HEADER + 20;
const V6_PORT: u32 = IP_HEADER + 40;

/// An odd number whose bits look random (of the golden ratio): a multiple of it differs in its upper bits even where
/// what is multiplied differs in the lowest.
const SPREAD: u32 = 0x9e37_79b1;

/// Has what is new go to the first `active` sockets of the group, of which there is at least one.
pub fn steer(socket: impl AsFd, active: u32) -> io::Result<()> {
    let mut program = program(active.max(1));
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    let length = size_of_val(&filter) as libc::socklen_t;
    let (fd, name) = (socket.as_fd().as_raw_fd(), libc::SO_ATTACH_REUSEPORT_CBPF);
    // SAFETY: the kernel reads a sock_fprog and the instructions that it points to, which live until then.
    let set = unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, name, (&raw const filter).cast(), length) };
    Ok(Errno::result(set).map(drop)?)
}

/// Has what is new go to all sockets of the group again.
pub fn steer_to_all(socket: impl AsFd) -> io::Result<()> {
    let (fd, nothing) = (socket.as_fd().as_raw_fd(), 0_i32);
    let length = size_of_val(&nothing) as libc::socklen_t;
    // SAFETY: the kernel reads a number, and makes nothing of it.
    let set = unsafe {
        libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_DETACH_REUSEPORT_BPF, (&raw const nothing).cast(), length)
    };
    match Errno::result(set) {
        // There was none.
        Ok(_) | Err(Errno::ENOENT) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

fn program(active: u32) -> Vec<libc::sock_filter> {
    use libc::{BPF_ABS, BPF_ADD, BPF_ALU, BPF_AND, BPF_B, BPF_H, BPF_JA, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_MISC};
    use libc::{BPF_MOD, BPF_MUL, BPF_RET, BPF_RSH, BPF_TAX, BPF_W, BPF_X};
    /// What libc does not have: return the accumulator.
    const BPF_A: u32 = 0x10;
    let step = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    let load = |size, at| step(BPF_LD | size | BPF_ABS, 0, 0, at);
    let alu = |operation, k| step(BPF_ALU | operation | BPF_K, 0, 0, k);
    vec![
        load(BPF_B, VERSION),
        alu(BPF_AND, 0xf0),
        step(BPF_JMP | BPF_JEQ | BPF_K, 4, 0, 0x60),
        load(BPF_W, V4_ADDRESS),
        step(BPF_MISC | BPF_TAX, 0, 0, 0),
        load(BPF_H, V4_PORT),
        step(BPF_JMP | BPF_JA, 0, 0, 3),
        load(BPF_W, V6_ADDRESS),
        step(BPF_MISC | BPF_TAX, 0, 0, 0),
        load(BPF_H, V6_PORT),
        step(BPF_ALU | BPF_ADD | BPF_X, 0, 0, 0),
        alu(BPF_MUL, SPREAD),
        alu(BPF_RSH, 16),
        alu(BPF_MOD, active),
        step(BPF_RET | BPF_A, 0, 0, 0),
    ]
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
    use std::os::fd::{AsRawFd, OwnedFd};
    use std::time::Duration;

    use nix::sys::socket::*;

    use super::*;

    fn group(count: usize, kind: SockType) -> (Vec<OwnedFd>, u16) {
        let mut sockets: Vec<OwnedFd> = Vec::new();
        let mut port = 0;
        for _ in 0..count {
            let fd = socket(AddressFamily::Inet, kind, SockFlag::SOCK_CLOEXEC, None).unwrap();
            setsockopt(&fd, sockopt::ReusePort, &true).unwrap();
            bind(fd.as_raw_fd(), &SockaddrIn::from(std::net::SocketAddrV4::new(Ipv4Addr::LOCALHOST, port))).unwrap();
            if kind == SockType::Stream {
                listen(&fd, Backlog::new(100).unwrap()).unwrap();
            }
            port = getsockname::<SockaddrIn>(fd.as_raw_fd()).unwrap().port();
            sockets.push(fd);
        }
        (sockets, port)
    }

    #[test]
    fn connections_go_to_the_first_ones_only_and_then_to_all_again() {
        let (sockets, port) = group(4, SockType::Stream);
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let spread = |count: usize| {
            let clients: Vec<TcpStream> = (0..count).map(|_| TcpStream::connect(address).unwrap()).collect();
            let queued = |fd: &OwnedFd| super::super::options::accept_queue(fd).unwrap().unwrap().0;
            let counts: Vec<u32> = sockets.iter().map(queued).collect();
            for (fd, count) in sockets.iter().zip(&counts) {
                let listener = TcpListener::from(fd.try_clone().unwrap());
                (0..*count).for_each(|_| drop(listener.accept().unwrap()));
            }
            drop(clients);
            counts
        };
        for active in [1, 3, 2] {
            steer(&sockets[0], active).unwrap();
            let counts = spread(60);
            let (own, others) = counts.split_at(active as usize);
            assert!(
                own.iter().all(|&count| count > 0) && others.iter().all(|&count| count == 0),
                "{active}: {counts:?}"
            );
        }
        steer_to_all(&sockets[3]).unwrap();
        steer_to_all(&sockets[0]).unwrap();
        assert!(spread(100).iter().all(|&count| count > 0));
    }

    #[test]
    fn datagrams_of_one_peer_stay_together() {
        let (sockets, port) = group(3, SockType::Datagram);
        steer(&sockets[0], 2).unwrap();
        let sockets: Vec<UdpSocket> = sockets.into_iter().map(UdpSocket::from).collect();
        sockets.iter().for_each(|socket| socket.set_read_timeout(Some(Duration::from_millis(1))).unwrap());
        let mut reached = [0; 3];
        for _ in 0..20 {
            let peer = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            (0..3).for_each(|_| assert_eq!(peer.send_to(b"x", (Ipv4Addr::LOCALHOST, port)).unwrap(), 1));
            let mut buffer = [0; 8];
            let got: Vec<usize> =
                sockets.iter().map(|s| (0..4).filter(|_| s.recv(&mut buffer).is_ok()).count()).collect();
            assert!(got.contains(&3) && got[2] == 0, "{got:?}");
            (0..3).for_each(|at| reached[at] += got[at]);
        }
        assert!(reached[0] > 0 && reached[1] > 0, "{reached:?}");
    }
}
