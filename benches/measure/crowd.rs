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

/// What each connection asks. All requests are alike, and so are the lengths of their answers.
#[derive(Debug, Clone)]
pub(crate) struct Question {
    pub(crate) port: u16,
    pub(crate) request: Vec<u8>,
    /// In bytes.
    pub(crate) answer: usize,
    /// So many requests are sent at once,
    pub(crate) at_once: usize,
    /// and again when they are answered, so many times in all; then the connection is closed.
    pub(crate) times: usize,
    /// Whether the server is told after the first requests that there are no more.
    pub(crate) says_end: bool,
    /// The worker that gave an answer, where answers say so. None where this is no answer at all.
    pub(crate) worker: fn(&[u8]) -> Option<u32>,
}

/// So many connections at any time, for `period`. Fails where one request is not answered.
pub(crate) fn ask(question: &Question, connections: usize, period: Duration) -> Measured<Answers> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    let begun = Instant::now();
    let mut answers = Answers::default();
    let client = |place| Client::connect(question, &epoll, place).map(Some);
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
            *answers.by_worker.entry(worker).or_default() += u64::try_from(question.at_once * question.times)?;
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

/// The length in bytes of the answer to this request, head included, once somebody listens there and answers it.
pub(crate) fn length_of_answer(port: u16, request: &[u8]) -> Measured<usize> {
    let until = Instant::now() + LIMIT;
    loop {
        match first_answer(port, request) {
            Err(_) if Instant::now() < until => drop(poll(&mut [], 5_u16)?),
            other => return other,
        }
    }
}

fn first_answer(port: u16, request: &[u8]) -> Measured<usize> {
    const LONGEST_HEAD: usize = 4096;
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.write_all(request)?;
    let mut head = vec![0; LONGEST_HEAD];
    let mut received = 0;
    loop {
        received += match stream.read(&mut head[received..])? {
            0 => return Err("no answer with a length".into()),
            count => count,
        };
        let Some(end) = head[..received].windows(4).position(|bytes| bytes == b"\r\n\r\n") else { continue };
        let text = String::from_utf8_lossy(&head[..end]).to_ascii_lowercase();
        let length = text.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
        return Ok(end + 4 + length.ok_or("an answer without a length")?);
    }
}

/// One connection.
struct Client<'a> {
    question: &'a Question,
    stream: TcpStream,
    begun: Instant,
    /// How many times it has asked.
    asked: usize,
    answers: Vec<u8>,
    received: usize,
}

impl<'a> Client<'a> {
    fn connect(question: &'a Question, epoll: &Epoll, place: usize) -> Measured<Client<'a>> {
        let begun = Instant::now();
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let fd = socket(AddressFamily::Inet, SockType::Stream, flags, None)?;
        // Nothing of it is left to wait in the kernel when it has been answered.
        setsockopt(&fd, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 })?;
        match connect(fd.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::LOCALHOST, question.port))) {
            Ok(()) | Err(Errno::EINPROGRESS) => {}
            Err(errno) => return Err(format!("cannot connect to port {}: {errno}", question.port).into()),
        }
        let either = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLET;
        epoll.add(&fd, EpollEvent::new(either, u64::try_from(place)?))?;
        let answers = vec![0; question.at_once * question.answer];
        Ok(Client { question, stream: TcpStream::from(fd), begun, asked: 0, answers, received: 0 })
    }

    /// Asks, or takes what has come. Returns the worker once all its answers have come.
    fn go_on(&mut self, ready: EpollFlags) -> Measured<Option<u32>> {
        if self.asked == 0 {
            self.ask()?;
        }
        if !ready.intersects(EpollFlags::EPOLLIN | EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP) {
            return Ok(None);
        }
        loop {
            match self.stream.read(&mut self.answers[self.received..]) {
                Ok(0) => return Err("a connection was closed before its answers were whole".into()),
                Ok(count) => self.received += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error.into()),
            }
            if self.received == self.answers.len() {
                let worker = (self.question.worker)(&self.answers).ok_or("an answer that is none of ours")?;
                if self.asked == self.question.times {
                    return Ok(Some(worker));
                }
                self.ask()?;
            }
        }
    }

    fn ask(&mut self) -> Measured<()> {
        self.stream.write_all(&self.question.request.repeat(self.question.at_once))?;
        if self.question.says_end {
            self.stream.shutdown(Shutdown::Write)?;
        }
        self.asked += 1;
        self.received = 0;
        Ok(())
    }
}
