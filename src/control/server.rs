//! The control socket, main's side: clients, their lines and their limits. What a request means is not known here.
//!
//! Nobody is waited for: a client that sends no line, or reads no answer, is given up at its deadline, and one that
//! floods is read a little at a time, so that the others are served in between.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::sys::stat::{Mode, umask};
use nix::unistd::geteuid;

use super::requests::{Answer, LONGEST_REQUEST, Request, VERSION};
use crate::sys::poller::Poller;

/// The listener is watched under this.
pub const LISTENER: u64 = 1 << 32;

/// Most clients at a time, where there are descriptors for them.
const MOST_CLIENTS: usize = 64;

/// Descriptors that are left for everything else: a reload needs some, too.
const RESERVED: u64 = 26;

/// How long a client may be without a complete line, or without reading its answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// One that was idle for this long makes room for another when there is none.
const IDLE: Duration = Duration::from_millis(20);

/// Where no descriptor is left, nobody is accepted for this long.
const PAUSE: Duration = Duration::from_millis(200);

/// So much may wait for one client, and for all of them.
const MOST_OUTPUT: usize = 4 << 20;
const MOST_OUTPUT_OF_ALL: usize = 8 << 20;

/// So many who came too late are told so.
const LONGEST_FAREWELL: usize = 1024;

/// So many are accepted before anything else has its turn.
const ACCEPTED_AT_ONCE: usize = 32;

/// The control socket and all who are connected to it.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    path: PathBuf,
    identity: (u64, u64),
    most: usize,
    clients: BTreeMap<u64, Client>,
    next: u64,
    paused_until: Option<Instant>,
}

#[derive(Debug)]
struct Client {
    stream: UnixStream,
    input: Vec<u8>,
    output: Vec<u8>,
    /// It asked for something and has no last line yet.
    busy: bool,
    /// It will send no more.
    ended: bool,
    /// It is closed once it has read its answer.
    closing: bool,
    since: Instant,
    watched: (bool, bool),
}

impl Server {
    /// Binds, with mode 0600 from the first moment. A socket that nobody listens on any more is replaced; what is no
    /// socket, or a link, is refused. Not to be called with more than one thread: it changes the umask for a moment.
    pub fn bind(path: &Path, poller: &Poller) -> Result<Server, String> {
        let why =
            |error: &io::Error| format!("cannot listen on the control socket {}: {}", path.display(), reason(error));
        remove_stale(path)?;
        let before = umask(Mode::from_bits_truncate(0o177));
        let bound = UnixListener::bind(path);
        umask(before);
        let listener = bound.map_err(|error| why(&error))?;
        let made = || {
            listener.set_nonblocking(true)?;
            poller.watch(&listener, LISTENER)?;
            fs::symlink_metadata(path)
        };
        let meta = made().map_err(|error| why(&error))?;
        Ok(Server {
            listener,
            path: path.to_owned(),
            identity: (meta.dev(), meta.ino()),
            most: most_clients(),
            clients: BTreeMap::new(),
            next: LISTENER + 1,
            paused_until: None,
        })
    }

    /// Removes the socket, and tells whoever has come by then that nobody is there any more to do what he wants.
    pub fn end(&mut self) {
        self.remove();
        let now = Instant::now();
        let late = std::iter::from_fn(|| self.listener.accept().ok()).take(LONGEST_FAREWELL);
        let late = late.map(|(stream, _)| Client::new(stream, now)).collect::<Vec<_>>();
        let waiting = std::mem::take(&mut self.clients).into_values().filter(|client| !client.busy);
        for mut client in late.into_iter().chain(waiting) {
            // One that does not read is not waited for.
            if client.stream.set_nonblocking(true).is_ok() {
                client.put(&Answer::refused("panzer has ended"), now);
            }
        }
    }

    /// Removes the socket, if it is still ours.
    fn remove(&self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|meta| (meta.dev(), meta.ino()) == self.identity) {
            // Whoever removed it in between did what was wanted.
            let _ = fs::remove_file(&self.path);
        }
    }

    /// When somebody is given up, or accepted again.
    pub fn deadline(&self) -> Option<Instant> {
        let client = |client: &Client| match client {
            client if !client.busy && client.has_line() => Some(client.since),
            client if client.busy && client.output.is_empty() => None,
            client => Some(client.since + PATIENCE),
        };
        self.clients.values().filter_map(client).chain(self.paused_until).min()
    }

    /// What is watched under `token` is ready.
    pub fn look_at(&mut self, token: u64, poller: &Poller, now: Instant) {
        if token == LISTENER {
            return self.accept(poller, now);
        }
        let Some(client) = self.clients.get_mut(&token) else { return };
        if !client.flush(now) || !client.read(now) || (client.busy && client.is_gone()) {
            self.clients.remove(&token);
        }
    }

    /// Gives up whom there is no patience with any more, and whom nothing is left to be told.
    pub fn tend(&mut self, poller: &Poller, now: Instant) {
        if self.paused_until.take_if(|until| *until <= now).is_some() {
            let _ = poller.watch(&self.listener, LISTENER);
        }
        for client in self.clients.values_mut() {
            let waits = !client.busy || !client.output.is_empty();
            if waits && !client.has_line() && client.since + PATIENCE <= now {
                if client.output.is_empty() {
                    client.put(&Answer::refused(format!("no complete line within {}s", PATIENCE.as_secs())), now);
                }
                client.output.clear();
                client.closing = true;
            }
        }
        self.clients.retain(|_, client| {
            let over = client.closing || (client.ended && !client.busy && !client.has_line());
            !(over && client.output.is_empty())
        });
        for (token, client) in &mut self.clients {
            let wanted = (!client.busy && !client.ended && !client.closing, !client.output.is_empty());
            if wanted != client.watched && poller.watch_for(&client.stream, *token, wanted.0, wanted.1).is_ok() {
                client.watched = wanted;
            }
        }
    }

    /// The requests that have come, at most one of each client, which gets no other until it has its last line.
    pub fn requests(&mut self, now: Instant) -> Vec<(u64, Request)> {
        let mut requests = Vec::new();
        for (id, client) in &mut self.clients {
            if client.busy || client.closing {
                continue;
            }
            match client.next_line().map(|line| read_request(&line)) {
                None => {}
                Some(Ok(request)) => {
                    client.busy = true;
                    requests.push((*id, request));
                }
                Some(Err(why)) => client.put(&Answer::refused(why), now),
            }
            if client.input.len() >= LONGEST_REQUEST && !client.has_line() {
                client.put(&Answer::refused(format!("a line of more than {LONGEST_REQUEST} bytes")), now);
                client.closing = true;
                client.input = Vec::new();
            }
        }
        requests
    }

    /// Sends a line; the last one of an answer makes room for the next request.
    pub fn send(&mut self, id: u64, answer: &Answer, now: Instant) {
        let waiting: usize = self.clients.values().map(|client| client.output.len()).sum();
        let Some(client) = self.clients.get_mut(&id) else { return };
        client.put(answer, now);
        if answer.ok.is_some() {
            client.busy = false;
            client.since = now;
        }
        if client.output.len() > MOST_OUTPUT || waiting + client.output.len() > MOST_OUTPUT_OF_ALL {
            self.clients.remove(&id);
        }
    }

    /// Whether this client is still there.
    pub fn has(&self, id: u64) -> bool {
        self.clients.contains_key(&id)
    }

    fn accept(&mut self, poller: &Poller, now: Instant) {
        for _ in 0..ACCEPTED_AT_ONCE {
            match self.listener.accept() {
                Ok((stream, _)) => self.add(stream, poller, now),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::ConnectionAborted => {}
                // No descriptor is left, and the listener stays ready: it is left alone for a while.
                Err(_) => {
                    poller.forget(&self.listener);
                    self.paused_until = Some(now + PAUSE);
                    return;
                }
            }
        }
    }

    fn add(&mut self, stream: UnixStream, poller: &Poller, now: Instant) {
        let mut client = Client::new(stream, now);
        let peer = getsockopt(&client.stream, PeerCredentials).map(|peer| peer.uid());
        let refusal = match peer {
            Ok(uid) if uid != 0 && uid != geteuid().as_raw() => {
                Some(format!("uid {uid} is neither the owner of this panzer nor root"))
            }
            Err(_) => Some("who asks cannot be seen".to_owned()),
            Ok(_) if !self.make_room(now) => Some(format!("there are {} clients already; try again", self.most)),
            Ok(_) => None,
        };
        let set = client.stream.set_nonblocking(true);
        if let Some(refusal) = refusal {
            // A fresh socket has room for it.
            return client.put(&Answer::refused(refusal), now);
        }
        self.next += 1;
        if set.and_then(|()| poller.watch(&client.stream, self.next)).is_ok() {
            self.clients.insert(self.next, client);
        }
    }

    /// Where all places are taken, whoever has been silent for longest loses his.
    fn make_room(&mut self, now: Instant) -> bool {
        if self.clients.len() < self.most {
            return true;
        }
        let idle = self.clients.iter().filter(|(_, client)| !client.busy && client.since + IDLE <= now);
        let Some(longest) = idle.min_by_key(|(_, client)| client.since).map(|(id, _)| *id) else { return false };
        if let Some(mut client) = self.clients.remove(&longest) {
            client.put(&Answer::refused("too many clients, and this one was silent"), now);
        }
        true
    }
}

impl Client {
    fn new(stream: UnixStream, now: Instant) -> Client {
        Client {
            stream,
            input: Vec::new(),
            output: Vec::new(),
            busy: false,
            ended: false,
            closing: false,
            since: now,
            watched: (true, false),
        }
    }

    fn has_line(&self) -> bool {
        self.input.contains(&b'\n')
    }

    fn next_line(&mut self) -> Option<Vec<u8>> {
        let end = self.input.iter().position(|&byte| byte == b'\n')?;
        Some(self.input.drain(..=end).collect())
    }

    fn put(&mut self, answer: &Answer, now: Instant) {
        if self.output.is_empty() {
            self.since = now;
        }
        // What is made of strings and numbers can be written.
        let _ = serde_json::to_writer(&mut self.output, answer);
        self.output.push(b'\n');
        if !self.flush(now) {
            self.closing = true;
            self.output.clear();
        }
    }

    /// Writes as much as the client takes. False where it is gone.
    fn flush(&mut self, now: Instant) -> bool {
        while !self.output.is_empty() {
            match self.stream.write(&self.output) {
                Ok(written) => {
                    self.output.drain(..written);
                    self.since = now;
                }
                Err(error) => return error.kind() == ErrorKind::WouldBlock,
            }
        }
        self.output = Vec::new();
        true
    }

    /// Reads a little. False where it is gone.
    fn read(&mut self, _now: Instant) -> bool {
        if self.busy || self.ended || self.closing || self.input.len() >= LONGEST_REQUEST {
            return true;
        }
        let mut bytes = [0; LONGEST_REQUEST];
        match self.stream.read(&mut bytes[..LONGEST_REQUEST - self.input.len()]) {
            Ok(0) => self.ended = true,
            Ok(count) => self.input.extend_from_slice(&bytes[..count]),
            Err(error) => return error.kind() == ErrorKind::WouldBlock,
        }
        true
    }

    /// Whether the other end is wholly closed; one that only sends no more still wants its answer.
    fn is_gone(&self) -> bool {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        use std::os::fd::AsFd;
        let mut fds = [PollFd::new(self.stream.as_fd(), PollFlags::empty())];
        poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }
}

fn read_request(line: &[u8]) -> Result<Request, String> {
    #[derive(serde::Deserialize)]
    struct Versioned {
        version: u32,
    }
    let version = serde_json::from_slice::<Versioned>(line).map_err(|error| format!("no request: {error}"))?.version;
    if version != VERSION {
        return Err(format!("version {version} is not known here; this panzer speaks version {VERSION}"));
    }
    serde_json::from_slice(line).map_err(|error| format!("no request: {error}"))
}

fn most_clients() -> usize {
    let soft = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft);
    (soft.saturating_sub(RESERVED) as usize / 2).clamp(2, MOST_CLIENTS)
}

fn remove_stale(path: &Path) -> Result<(), String> {
    let shown = path.display();
    let Ok(meta) = fs::symlink_metadata(path) else { return Ok(()) };
    if meta.file_type().is_symlink() {
        return Err(format!(
            "cannot listen on the control socket {shown}: it is a symlink, which is not followed; remove it"
        ));
    }
    if !meta.file_type().is_socket() {
        return Err(format!(
            "cannot listen on the control socket {shown}: a file that is no socket is in its place; remove it"
        ));
    }
    match is_listened_on(path) {
        false => fs::remove_file(path).map_err(|error| format!("cannot replace {shown}: {}", reason(&error))),
        true => {
            Err(format!("the control socket {shown} belongs to a panzer that runs; stop it, or give another --control"))
        }
    }
}

/// Asked without waiting: whoever is stopped may have a full queue.
fn is_listened_on(path: &Path) -> bool {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
    use std::os::fd::AsRawFd;
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let Ok(asking) = socket(AddressFamily::Unix, SockType::Stream, flags, None) else { return true };
    let connected = UnixAddr::new(path).and_then(|address| connect(asking.as_raw_fd(), &address));
    connected != Err(Errno::ECONNREFUSED)
}

fn reason(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(errno) => Errno::from_raw(errno).desc().to_lowercase(),
        None if error.kind() == ErrorKind::InvalidInput => {
            "its path is longer than 107 bytes; give --control".to_owned()
        }
        None => error.to_string(),
    }
}
