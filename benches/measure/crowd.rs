//! Many clients in one thread, with raw requests: as little work beside the server's as can be.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddrV4, TcpStream};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;
use nix::poll::poll;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, connect, setsockopt, socket, sockopt};

use super::page_server::{self, ANSWER, REQUEST};
use super::{LIMIT, Measured};

/// How many connections one wake-up tells of.
const BATCH: usize = 256;

/// What was answered in one period. All of it: the time ends with the last answer.
#[derive(Debug, Default)]
pub(crate) struct Answers {
    /// Requests by the worker's pid.
    pub(crate) by_worker: BTreeMap<u32, u64>,
    /// Of each connection, from connecting to the last byte of its answers, in nanoseconds.
    pub(crate) latencies: Vec<u64>,
    pub(crate) time: Duration,
}

impl Answers {
    /// All of them.
    pub(crate) fn requests(&self) -> f64 {
        self.by_worker.values().sum::<u64>() as f64
    }

    /// Requests a second.
    pub(crate) fn rate(&self) -> f64 {
        self.requests() / self.time.as_secs_f64()
    }
}

/// So many connections at any time, each for `requests` that are sent at once, for `period`. Fails where one request is
/// not answered.
pub(crate) fn ask(port: u16, connections: usize, requests: usize, period: Duration) -> Measured<Answers> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    let begun = Instant::now();
    let mut answers = Answers::default();
    let client = |place| Client::connect(port, requests, &epoll, place).map(Some);
    let mut clients = (0..connections).map(client).collect::<Measured<Vec<_>>>()?;
    let mut open = connections;
    let mut events = [EpollEvent::empty(); BATCH];
    while open > 0 {
        let count = epoll.wait(&mut events, EpollTimeout::try_from(LIMIT)?)?;
        if count == 0 {
            return Err(format!("{open} connections were not answered in {LIMIT:?}").into());
        }
        for event in &events[..count] {
            let place = usize::try_from(event.data())?;
            let Some(asking) = &mut clients[place] else { continue };
            let Some(worker) = asking.go_on(event.events())? else { continue };
            *answers.by_worker.entry(worker).or_default() += u64::try_from(requests)?;
            answers.latencies.push(u64::try_from(asking.begun.elapsed().as_nanos())?);
            // Closed before the next one is opened.
            clients[place] = None;
            if begun.elapsed() < period {
                clients[place] = client(place)?;
            } else {
                open -= 1;
            }
        }
    }
    answers.time = begun.elapsed();
    Ok(answers)
}

/// Waits until somebody listens there.
pub(crate) fn wait_for_listener(port: u16) -> Measured<()> {
    let until = Instant::now() + LIMIT;
    loop {
        match ask(port, 1, 1, Duration::ZERO) {
            Err(_) if Instant::now() < until => drop(poll(&mut [], 5_u16)?),
            other => return other.map(drop),
        }
    }
}

/// One connection.
struct Client {
    stream: TcpStream,
    begun: Instant,
    requests: usize,
    asked: bool,
    answers: Vec<u8>,
    received: usize,
}

impl Client {
    fn connect(port: u16, requests: usize, epoll: &Epoll, place: usize) -> Measured<Client> {
        let begun = Instant::now();
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let fd = socket(AddressFamily::Inet, SockType::Stream, flags, None)?;
        // Nothing of it is left to wait in the kernel when it has been answered.
        setsockopt(&fd, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 })?;
        match connect(fd.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::LOCALHOST, port))) {
            Ok(()) | Err(Errno::EINPROGRESS) => {}
            Err(errno) => return Err(format!("cannot connect to port {port}: {errno}").into()),
        }
        let either = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLET;
        epoll.add(&fd, EpollEvent::new(either, u64::try_from(place)?))?;
        Ok(Client {
            stream: TcpStream::from(fd),
            begun,
            requests,
            asked: false,
            answers: vec![0; requests * ANSWER],
            received: 0,
        })
    }

    /// Asks, or takes what has come. Returns the worker once all its answers have come.
    fn go_on(&mut self, ready: EpollFlags) -> Measured<Option<u32>> {
        if !self.asked {
            self.stream.write_all(&REQUEST.repeat(self.requests))?;
            self.stream.shutdown(Shutdown::Write)?;
            self.asked = true;
        }
        if !ready.intersects(EpollFlags::EPOLLIN | EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP) {
            return Ok(None);
        }
        while self.received < self.answers.len() {
            match self.stream.read(&mut self.answers[self.received..]) {
                Ok(0) => return Err("a connection was closed before its answers were whole".into()),
                Ok(count) => self.received += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Some(page_server::worker(&self.answers).ok_or("an answer that is none of ours")?))
    }
}
