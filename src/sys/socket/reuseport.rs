//! Steers new connections and datagrams within a SO_REUSEPORT group.
//!
//! Without a program the kernel distributes them over all sockets of the group. The program here is attached to the
//! group by SO_ATTACH_REUSEPORT_CBPF (socket(7)). It distributes them over the sockets at some places, by the peer's
//! address, so that a peer always gets the same one. The places follow the order in which the sockets joined. When a
//! socket leaves, because it was closed or shut down, the last one takes its place.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};

/// The packet from its IP header on (SKF_NET_OFF).
const IP_HEADER: u32 = 0xfff0_0000;

/// The byte of an IP header with its version (and the length in IPv4). The ends of the sender's address and the port,
/// for each version, in a header without options.
const VERSION: u32 = IP_HEADER;
const V4_ADDRESS: u32 = IP_HEADER + 12;
const V4_PORT: u32 = IP_HEADER + 20;
const V6_ADDRESS: u32 = IP_HEADER + 20;
const V6_PORT: u32 = IP_HEADER + 40;

/// An odd number whose bits look random (of the golden ratio). Multiples of it differ in their upper bits even if the
/// factors only differ in their lowest bits.
const SPREAD: u32 = 0x9e37_79b1;

/// Steers to the sockets at these places of the group: at least one, in rising order. Fails if the program would be
/// longer than the kernel allows (some 2000 gaps).
pub fn steer(socket: impl AsFd, places: &[u32]) -> io::Result<()> {
    attach(socket, libc::SO_ATTACH_REUSEPORT_CBPF, program(places))
}

/// Steers to all sockets of the group again.
pub fn steer_to_all(socket: impl AsFd) -> io::Result<()> {
    detach(socket, libc::SO_DETACH_REUSEPORT_BPF)
}

/// Makes an unbound socket the first of a group. Sockets that join the group get nothing before they are steered to. The
/// socket still has its address exclusively, until it is made joinable.
pub fn begin_group(socket: impl AsFd) -> io::Result<()> {
    setsockopt(&socket, sockopt::ReusePort, &true)?;
    let steered = steer(&socket, &[0]);
    setsockopt(&socket, sockopt::ReusePort, &false)?;
    steered
}

fn attach(socket: impl AsFd, name: libc::c_int, mut program: Vec<libc::sock_filter>) -> io::Result<()> {
    let len = u16::try_from(program.len()).map_err(|_| Errno::E2BIG)?;
    let filter = libc::sock_fprog { len, filter: program.as_mut_ptr() };
    let (fd, length) = (socket.as_fd().as_raw_fd(), size_of_val(&filter) as libc::socklen_t);
    // SAFETY: the kernel reads a sock_fprog and the instructions that it points to, which live until then.
    let set = unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, name, (&raw const filter).cast(), length) };
    Ok(Errno::result(set).map(drop)?)
}

fn detach(socket: impl AsFd, name: libc::c_int) -> io::Result<()> {
    let (fd, nothing) = (socket.as_fd().as_raw_fd(), 0_i32);
    let length = size_of_val(&nothing) as libc::socklen_t;
    // SAFETY: the kernel reads a number, and makes nothing of it.
    let set = unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, name, (&raw const nothing).cast(), length) };
    match Errno::result(set) {
        // It had no filter.
        Ok(_) | Err(Errno::ENOENT) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

fn step(code: u32, jt: u8, jf: u8, k: u32) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt, jf, k }
}

fn program(places: &[u32]) -> Vec<libc::sock_filter> {
    use libc::{BPF_ABS, BPF_ADD, BPF_ALU, BPF_AND, BPF_B, BPF_H, BPF_JA, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_MISC};
    use libc::{BPF_MOD, BPF_MUL, BPF_RET, BPF_RSH, BPF_TAX, BPF_W, BPF_X};
    /// Returns the accumulator. libc has no constant for it.
    const BPF_A: u32 = 0x10;
    let load = |size, at| step(BPF_LD | size | BPF_ABS, 0, 0, at);
    let alu = |operation, k| step(BPF_ALU | operation | BPF_K, 0, 0, k);
    let count = places.len().max(1) as u32;
    let mut program = vec![
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
        alu(BPF_MOD, count),
    ];
    // Traffic that falls to a place that is not served is passed on to one that is served.
    let beyond = places.iter().filter(|&&place| place >= count);
    let gaps = (0..count).filter(|place| places.binary_search(place).is_err());
    for (gap, &place) in gaps.zip(beyond) {
        program.push(step(BPF_JMP | BPF_JEQ | BPF_K, 0, 1, gap));
        program.push(step(BPF_RET | BPF_K, 0, 0, place));
    }
    program.push(step(BPF_RET | BPF_A, 0, 0, 0));
    program
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
    use std::os::fd::{AsRawFd, OwnedFd};
    use std::time::Duration;

    use nix::sys::socket::*;

    use super::*;
    use crate::sys::soon;

    fn group(count: usize, kind: SockType) -> (Vec<OwnedFd>, u16) {
        let mut sockets: Vec<OwnedFd> = Vec::new();
        let mut port = 0;
        for _ in 0..count {
            let fd = join(kind, port).unwrap();
            port = getsockname::<SockaddrIn>(fd.as_raw_fd()).unwrap().port();
            sockets.push(fd);
        }
        (sockets, port)
    }

    fn join(kind: SockType, port: u16) -> nix::Result<OwnedFd> {
        let fd = socket(AddressFamily::Inet, kind, SockFlag::SOCK_CLOEXEC, None)?;
        setsockopt(&fd, sockopt::ReusePort, &true)?;
        bind(fd.as_raw_fd(), &SockaddrIn::from(std::net::SocketAddrV4::new(Ipv4Addr::LOCALHOST, port)))?;
        if kind == SockType::Stream {
            listen(&fd, Backlog::new(100)?)?;
        }
        Ok(fd)
    }

    #[test]
    fn connections_go_to_certain_ones_only_and_then_to_all_again() {
        let (sockets, port) = group(4, SockType::Stream);
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let spread = |count: usize| {
            let clients: Vec<TcpStream> = (0..count).map(|_| TcpStream::connect(address).unwrap()).collect();
            let queued = |fd: &OwnedFd| crate::sys::socket::socket_options::accept_queue(fd).unwrap().unwrap().0;
            // The last step of a handshake may come after its client has gone on.
            let counts: Vec<u32> = soon(|| {
                let counts: Vec<u32> = sockets.iter().map(queued).collect();
                (counts.iter().sum::<u32>() as usize == count).then_some(counts)
            });
            for (fd, count) in sockets.iter().zip(&counts) {
                let listener = TcpListener::from(fd.try_clone().unwrap());
                (0..*count).for_each(|_| drop(listener.accept().unwrap()));
            }
            drop(clients);
            counts
        };
        for places in [&[0][..], &[0, 1, 2], &[0, 1], &[1, 3], &[3], &[0, 2, 3], &[2]] {
            steer(&sockets[0], places).unwrap();
            let counts = spread(60);
            let as_meant = |(place, count): (u32, &u32)| (*count > 0) == places.contains(&place);
            assert!((0..).zip(&counts).all(as_meant), "{places:?}: {counts:?}");
        }
        steer_to_all(&sockets[3]).unwrap();
        steer_to_all(&sockets[0]).unwrap();
        assert!(spread(100).iter().all(|&count| count > 0));
    }

    /// The order of main's listeners relies on this.
    #[test]
    fn the_last_takes_the_place_of_one_that_leaves_and_who_comes_back_is_the_last() {
        let (sockets, port) = group(4, SockType::Stream);
        let at = |place: u32| {
            steer(&sockets[3], &[place]).unwrap();
            let _client = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
            let queued = |fd: &OwnedFd| {
                crate::sys::socket::socket_options::accept_queue(fd).unwrap().is_some_and(|(some, _)| some > 0)
            };
            let found = soon(|| sockets.iter().position(queued));
            drop(TcpListener::from(sockets[found].try_clone().unwrap()).accept().unwrap());
            found
        };
        assert_eq!([0, 1, 2, 3].map(at), [0, 1, 2, 3]);
        shutdown(sockets[1].as_raw_fd(), Shutdown::Both).unwrap();
        assert_eq!([0, 1, 2].map(at), [0, 3, 2]);
        listen(&sockets[1], Backlog::new(100).unwrap()).unwrap();
        assert_eq!([0, 1, 2, 3].map(at), [0, 3, 2, 1]);
    }

    #[test]
    fn who_joins_a_group_gets_nothing_before_it_is_steered_there() {
        let first = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None).unwrap();
        begin_group(&first).unwrap();
        bind(first.as_raw_fd(), &SockaddrIn::from(std::net::SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0))).unwrap();
        let port = getsockname::<SockaddrIn>(first.as_raw_fd()).unwrap().port();
        assert!(join(SockType::Datagram, port).is_err(), "it has its address for itself");
        setsockopt(&first, sockopt::ReusePort, &true).unwrap();
        let second = UdpSocket::from(join(SockType::Datagram, port).unwrap());
        let first = UdpSocket::from(first);
        let reached = |socket: &UdpSocket| {
            for _ in 0..20 {
                let peer = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
                peer.send_to(b"x", (Ipv4Addr::LOCALHOST, port)).unwrap();
                socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
                assert!(socket.recv(&mut [0; 8]).is_ok());
            }
        };
        reached(&first);
        steer(&first, &[1]).unwrap();
        reached(&second);
    }

    #[test]
    fn datagrams_of_one_peer_stay_together() {
        let (sockets, port) = group(3, SockType::Datagram);
        steer(&sockets[0], &[0, 1]).unwrap();
        let sockets: Vec<UdpSocket> = sockets.into_iter().map(UdpSocket::from).collect();
        sockets.iter().for_each(|socket| socket.set_nonblocking(true).unwrap());
        let mut reached = [0; 3];
        for _ in 0..20 {
            let peer = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            (0..3).for_each(|_| assert_eq!(peer.send_to(b"x", (Ipv4Addr::LOCALHOST, port)).unwrap(), 1));
            let mut buffer = [0; 8];
            let mut got = vec![0; sockets.len()];
            soon(|| {
                let more = sockets.iter().map(|socket| (0..4).filter(|_| socket.recv(&mut buffer).is_ok()).count());
                got.iter_mut().zip(more).for_each(|(all, more)| *all += more);
                (got.iter().sum::<usize>() >= 3).then_some(())
            });
            assert!(got.contains(&3) && got[2] == 0, "{got:?}");
            (0..3).for_each(|at| reached[at] += got[at]);
        }
        assert!(reached[0] > 0 && reached[1] > 0, "{reached:?}");
    }
}
