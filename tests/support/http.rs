//! A small HTTP/1.1 client for servers on this machine: blocking, std only, and exact about how an answer failed.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// An answer takes no longer than this, connecting included.
pub const LONGEST_ANSWER: Duration = Duration::from_secs(5);

/// A longer answer is not one of our servers'.
const LARGEST_ANSWER: usize = 1 << 20;

/// Where a server on this machine listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Address {
        assert!(address.ip().is_loopback(), "{address} is not this machine");
        Address::Tcp(address)
    }
}

/// A port of 127.0.0.1.
impl From<u16> for Address {
    fn from(port: u16) -> Address {
        Address::from(SocketAddr::from(([127, 0, 0, 1], port)))
    }
}

impl<I: Into<IpAddr>> From<(I, u16)> for Address {
    fn from(address: (I, u16)) -> Address {
        Address::from(SocketAddr::from(address))
    }
}

impl From<&Path> for Address {
    fn from(path: &Path) -> Address {
        Address::Unix(path.to_owned())
    }
}

impl From<&Address> for Address {
    fn from(address: &Address) -> Address {
        address.clone()
    }
}

/// Why there was no answer.
#[derive(Debug)]
pub enum Failure {
    /// Nobody listens.
    Refused(io::Error),
    /// The connection was reset, before or after the request.
    Reset(io::Error),
    /// The server closed the connection, or took too long; with so many bytes of the answer received.
    Unanswered { received: usize, why: &'static str },
    /// Anything else, an answer that is no HTTP among it.
    Other(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Refused(error) => write!(f, "refused: {error}"),
            Failure::Reset(error) => write!(f, "reset: {error}"),
            Failure::Unanswered { received, why } => write!(f, "{why} after {received} bytes of the answer"),
            Failure::Other(what) => f.write_str(what),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        use io::ErrorKind::{
            BrokenPipe, ConnectionAborted, ConnectionRefused, ConnectionReset, NotFound, TimedOut, WouldBlock,
        };
        match error.kind() {
            // NotFound: the path of a unix socket.
            ConnectionRefused | NotFound => Failure::Refused(error),
            ConnectionReset | ConnectionAborted | BrokenPipe => Failure::Reset(error),
            TimedOut | WouldBlock => Failure::Unanswered { received: 0, why: "timed out" },
            _ => Failure::Other(error.to_string()),
        }
    }
}

/// What a server answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// HTTP/1.0, where a connection ends with its answer unless both sides say otherwise.
    pub old: bool,
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Response {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The value of the header with this name, in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(this, _)| this.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    /// Whether the server ends the connection with this answer.
    pub fn closes(&self) -> bool {
        match self.header("connection") {
            Some(value) => value.eq_ignore_ascii_case("close"),
            None => self.old,
        }
    }
}

/// Asks once, on a connection of its own.
pub fn get(address: impl Into<Address>, path: &str) -> Result<Response, Failure> {
    Connection::open(&address.into())?.get(path, true)
}

/// A connection to a server.
pub struct Connection {
    stream: Box<dyn Stream>,
    received: Vec<u8>,
}

trait Stream: Read + Write + Send {
    fn wait_no_longer_than(&self, limit: Duration) -> io::Result<()>;
}

impl Stream for TcpStream {
    fn wait_no_longer_than(&self, limit: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(limit))
    }
}

impl Stream for UnixStream {
    fn wait_no_longer_than(&self, limit: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(limit))
    }
}

impl Connection {
    pub fn open(address: &Address) -> Result<Connection, Failure> {
        let stream: Box<dyn Stream> = match address {
            Address::Tcp(address) => {
                let stream = TcpStream::connect_timeout(address, LONGEST_ANSWER)?;
                stream.set_nodelay(true)?;
                stream.set_write_timeout(Some(LONGEST_ANSWER))?;
                Box::new(stream)
            }
            // This waits only while the backlog is full, and we have fewer clients than a backlog has places.
            Address::Unix(path) => Box::new(UnixStream::connect(path)?),
        };
        Ok(Connection { stream, received: Vec::new() })
    }

    /// Asks for `path`, and whether the connection is to end then.
    pub fn get(&mut self, path: &str, close: bool) -> Result<Response, Failure> {
        self.send(path, close)?;
        self.receive()
    }

    /// The first half of `get`.
    pub fn send(&mut self, path: &str, close: bool) -> Result<(), Failure> {
        let connection = if close { "close" } else { "keep-alive" };
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: {connection}\r\n\r\n");
        Ok(self.stream.write_all(request.as_bytes())?)
    }

    /// The second half of `get`.
    pub fn receive(&mut self) -> Result<Response, Failure> {
        let deadline = Instant::now() + LONGEST_ANSWER;
        let head_end = loop {
            match self.received.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                Some(at) => break at,
                None => self.read_more(deadline)?,
            }
        };
        let mut response = read_head(&self.received[..head_end])
            .ok_or_else(|| Failure::Other(format!("no HTTP: {:?}", String::from_utf8_lossy(&self.received))))?;
        let body_end = self.read_body(head_end + 4, &mut response, deadline)?;
        self.received.drain(..body_end);
        Ok(response)
    }

    /// Reads until the body that begins at `start` is whole. Returns where it ends.
    fn read_body(&mut self, start: usize, response: &mut Response, deadline: Instant) -> Result<usize, Failure> {
        if response.header("transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked")) {
            loop {
                if let Some((body, length)) = dechunk(&self.received[start..]) {
                    response.body = body;
                    return Ok(start + length);
                }
                self.read_more(deadline)?;
            }
        }
        let length = response.header("content-length").and_then(|length| length.parse::<usize>().ok());
        let length = length.ok_or_else(|| Failure::Other("an answer without a length".to_owned()))?;
        while self.received.len() < start + length {
            self.read_more(deadline)?;
        }
        response.body = self.received[start..start + length].to_vec();
        Ok(start + length)
    }

    fn read_more(&mut self, deadline: Instant) -> Result<(), Failure> {
        let received = self.received.len();
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Failure::Unanswered { received, why: "timed out" });
        }
        if received > LARGEST_ANSWER {
            return Err(Failure::Other(format!("an answer of more than {LARGEST_ANSWER} bytes")));
        }
        self.stream.wait_no_longer_than(left)?;
        let mut bytes = [0; 4096];
        match self.stream.read(&mut bytes) {
            Ok(0) => Err(Failure::Unanswered { received, why: "closed by the server" }),
            Ok(count) => {
                self.received.extend_from_slice(&bytes[..count]);
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            Err(error) => match Failure::from(error) {
                Failure::Unanswered { why, .. } => Err(Failure::Unanswered { received, why }),
                other => Err(other),
            },
        }
    }

    /// How much of an answer is there so far.
    pub fn received(&self) -> usize {
        self.received.len()
    }
}

fn read_head(head: &[u8]) -> Option<Response> {
    let head = std::str::from_utf8(head).ok()?;
    let mut lines = head.split("\r\n");
    let (minor, rest) = lines.next()?.strip_prefix("HTTP/1.")?.split_once(' ')?;
    let status = rest.split(' ').next()?.parse().ok()?;
    let header = |line: &str| line.split_once(':').map(|(name, value)| (name.to_owned(), value.trim().to_owned()));
    Some(Response { old: minor == "0", status, headers: lines.filter_map(header).collect(), body: Vec::new() })
}

/// The body, and how many bytes it took, once its last chunk is there. None of our servers sends trailers.
fn dechunk(bytes: &[u8]) -> Option<(Vec<u8>, usize)> {
    let mut body = Vec::new();
    let mut at = 0;
    loop {
        let line_end = at + bytes.get(at..)?.windows(2).position(|two| two == b"\r\n")?;
        let size = usize::from_str_radix(std::str::from_utf8(&bytes[at..line_end]).ok()?, 16).ok()?;
        let chunk = bytes.get(line_end + 2..line_end + 2 + size)?;
        body.extend_from_slice(chunk);
        at = line_end + 2 + size + 2;
        if bytes.len() < at {
            return None;
        }
        if size == 0 {
            return Some((body, at));
        }
    }
}
