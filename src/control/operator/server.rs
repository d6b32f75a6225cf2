//! Main's side of the control socket: the clients, their lines and their limits. Main itself executes the requests.
//!
//! The server never waits for a client. A client that sends no line, or does not read its answer, is given up at its
//! deadline. Of a client that floods the server, only a little is read at a time, so that the others are served too.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::geteuid;
use serde::{Deserialize, Serialize};

use super::client::{self, CLIENT_TIMEOUT, Client, Phase};
use super::requests::{Answer, Line, MAX_REQUEST_BYTES, Request, VERSION};
use super::socket::{self, Socket};
use crate::config::{ControlAccess, Right};
use crate::sys::errno::words;
use crate::sys::poller::Poller;
use crate::sys::socket_options;

/// Token under which the listener is watched. Clients have higher ones.
pub const LISTENER: u64 = 1 << 32;

/// Limit of clients at a time. There are fewer if descriptors are short.
const MAX_CLIENTS: usize = 64;

/// Descriptors that clients leave for everything else, such as a reload.
const RESERVED_DESCRIPTORS: u64 = 26;

/// A client that has sent nothing for this time makes room for another client if all places are taken.
const IDLE_AFTER: Duration = Duration::from_millis(20);

/// So does a client that has not read its answer for this time.
const DEAF_AFTER: Duration = Duration::from_millis(200);

/// If every client has waited for its answer for longer than this, a new client is refused instead of kept waiting.
const REFUSE_AFTER: Duration = Duration::from_secs(1);

/// Pause before the next accept if no descriptor is left.
const DESCRIPTOR_PAUSE: Duration = Duration::from_millis(200);

/// Pause before the next accept if all places are taken, and one will be free soon.
const ROOM_PAUSE: Duration = Duration::from_millis(5);

/// Limit of the bytes that wait for all clients together; only a single answer may be longer. A line that several
/// clients wait for counts once.
const MAX_OUTPUT_BYTES: usize = 3 << 20;

/// Limit of the clients in the kernel's queue that are still answered at the end.
const MAX_FAREWELLS: usize = 1024;

/// Limit of the clients that are accepted in one turn of main's loop.
const MAX_ACCEPTED_AT_ONCE: usize = 32;

/// The control socket and its clients.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Server {
    #[serde(flatten)]
    socket: Socket,
    #[serde(skip)]
    max_clients: usize,
    clients: BTreeMap<u64, Client>,
    /// Token of the last client.
    #[serde(rename = "next")]
    last_token: u64,
    /// When to accept again.
    #[serde(skip)]
    paused_until: Option<Instant>,
    /// A descriptor that gives way to a client if no other is left.
    #[serde(skip)]
    spare: Option<File>,
    /// Whether it was logged that it had to.
    #[serde(skip)]
    spare_told: bool,
}

impl Server {
    /// Goes on after a restart in place.
    pub fn resume(&mut self, poller: &Poller) -> io::Result<()> {
        self.max_clients = max_clients();
        poller.watch(&self.socket.listener, LISTENER)?;
        self.clients.iter_mut().try_for_each(|(id, client)| {
            client.resume();
            poller.watch(&client.stream, *id)
        })
    }

    /// Binds the socket with the mode that `access` needs, and never with more. A socket on which no process listens any more is replaced;
    /// a symlink, or a file that is not a socket, is refused. Changes the umask for a moment, so call it with one thread
    /// only.
    pub fn bind(path: &Path, access: ControlAccess, poller: &Poller) -> Result<Server, String> {
        let socket = Socket::bind(path, access)?;
        poller.watch(&socket.listener, LISTENER).map_err(|error| socket::why(path, &error))?;
        Ok(Server {
            socket,
            max_clients: max_clients(),
            clients: BTreeMap::new(),
            last_token: LISTENER,
            paused_until: None,
            // Opened by the first `tend`: after a restart in place everything else is to be where it was.
            spare: None,
            spare_told: false,
        })
    }

    /// Path of the socket.
    pub fn path(&self) -> &Path {
        &self.socket.path
    }

    /// Binds the socket again if its file is gone, and then returns the path. Connected clients stay connected.
    pub fn restore(&mut self, poller: &Poller) -> Result<Option<PathBuf>, String> {
        let path = self.socket.path.clone();
        if self.socket.is_there() {
            return Ok(None);
        }
        let new = Socket::bind(&path, self.socket.access.clone())?;
        let paused = self.paused_until.is_some();
        if !paused {
            poller.watch(&new.listener, LISTENER).map_err(|error| socket::why(&path, &error))?;
            poller.forget(&self.socket.listener);
        }
        self.socket = new;
        Ok(Some(path))
    }

    /// Removes the socket, and answers every client whose request nobody will execute any more.
    pub fn end(&mut self) {
        self.socket.remove();
        let now = Instant::now();
        let late = std::iter::from_fn(|| self.socket.listener.accept().ok()).take(MAX_FAREWELLS);
        let late = late.map(|(stream, _)| Client::new(stream, now)).collect::<Vec<_>>();
        let waiting = std::mem::take(&mut self.clients).into_values().filter(|client| client.phase != Phase::Asked);
        for mut client in late.into_iter().chain(waiting) {
            if client.stream.set_nonblocking(true).is_ok() {
                client.refuse("panzer has ended", now);
            }
        }
    }

    /// When to call [`Server::tend`], or [`Server::requests`].
    pub fn deadline(&self) -> Option<Instant> {
        self.clients.values().filter_map(Client::deadline).chain(self.paused_until).min()
    }

    /// The poller reports `token`.
    pub fn on_ready(&mut self, token: u64, poller: &Poller, now: Instant) {
        if token == LISTENER {
            return self.accept(poller, now);
        }
        let Some(client) = self.clients.get_mut(&token) else { return };
        if !client.flush(now) || !client.read() || (client.phase == Phase::Asked && client.is_gone()) {
            self.remove(token, poller);
        }
    }

    /// Gives up clients that are too slow, and removes those that are done.
    pub fn tend(&mut self, poller: &Poller, now: Instant) {
        self.spare = self.spare.take().or_else(spare);
        if self.paused_until.take_if(|until| *until <= now).is_some()
            && poller.watch(&self.socket.listener, LISTENER).is_err()
        {
            self.paused_until = Some(now + DESCRIPTOR_PAUSE);
        }
        for client in self.clients.values_mut().filter(|client| client.since + CLIENT_TIMEOUT <= now) {
            match client.phase {
                Phase::Reading if client.has_line() => {}
                Phase::Reading => {
                    client.refuse(format!("no complete line within {}s", CLIENT_TIMEOUT.as_secs()), now);
                    client.give_up();
                }
                Phase::Asked if client.output.is_empty() => {}
                Phase::Asked | Phase::Answering | Phase::Leaving => client.give_up(),
            }
        }
        self.clients.retain(|_, client| {
            let is_over = client.is_over();
            if is_over {
                poller.forget(&client.stream);
            }
            !is_over
        });
        for (token, client) in &mut self.clients {
            let wanted = client.wanted();
            if wanted != client.watched && poller.watch_for(&client.stream, *token, wanted.0, wanted.1).is_ok() {
                client.watched = wanted;
            }
        }
    }

    /// The requests that have come, at most one of each client. A client may ask again when it has read its last line.
    pub fn requests(&mut self, now: Instant) -> Vec<(u64, Request)> {
        let mut requests = Vec::new();
        for (id, client) in self.clients.iter_mut().filter(|(_, client)| client.phase == Phase::Reading) {
            match client.next_line().map(|line| read_request(&line)) {
                Some(Ok(request)) if client.right == Right::Looking && !request.command.only_looks() => {
                    client.refuse("you may only look (group-read): ask for status, list or metrics", now);
                }
                Some(Ok(request)) => {
                    (client.phase, client.since) = (Phase::Asked, now);
                    requests.push((*id, request));
                }
                Some(Err(why)) => client.refuse(why, now),
                None if client.is_too_long() => {
                    client.refuse(format!("a line of more than {MAX_REQUEST_BYTES} bytes"), now);
                    client.phase = Phase::Leaving;
                }
                None => {}
            }
        }
        requests
    }

    /// Sends a line to all of `ids`.
    pub fn send_all(&mut self, ids: impl IntoIterator<Item = u64>, answer: &Answer, now: Instant) {
        let (line, is_last) = (client::line(answer), matches!(answer.line, Line::Last(_)));
        for id in ids {
            if let Some(client) = self.clients.get_mut(&id) {
                client.put_line(line.clone(), is_last, now);
            }
        }
        // A client that reads at all has read by now, or will before others have asked for this much again.
        while self.waiting_bytes() > MAX_OUTPUT_BYTES.max(line.len()) {
            let Some(client) = self.deaf_since(now).and_then(|id| self.clients.get_mut(&id)) else { return };
            // `tend` removes it.
            client.give_up();
        }
    }

    fn waiting_bytes(&self) -> usize {
        let lines = self.clients.values().flat_map(|client| &client.output.lines);
        let distinct: BTreeMap<*const u8, usize> = lines.map(|line| (line.as_ptr(), line.len())).collect();
        distinct.into_values().sum()
    }

    /// Among the clients that have not read their answer since `then`, the one that has not for the longest time.
    fn deaf_since(&self, then: Instant) -> Option<u64> {
        let deaf = self.clients.iter().filter(|(_, client)| !client.output.is_empty() && client.since <= then);
        deaf.min_by_key(|(_, client)| client.since).map(|(id, _)| *id)
    }

    /// Whether this client is still there.
    pub fn has(&self, id: u64) -> bool {
        self.clients.contains_key(&id)
    }

    /// A process that main has just forked may hold a copy of the socket, so closing it would not end the watch.
    fn remove(&mut self, id: u64, poller: &Poller) -> Option<Client> {
        self.clients.remove(&id).inspect(|client| poller.forget(&client.stream))
    }

    fn accept(&mut self, poller: &Poller, now: Instant) {
        for _ in 0..MAX_ACCEPTED_AT_ONCE {
            let leaves_soon = |client: &Client| client.phase != Phase::Asked || client.since + REFUSE_AFTER > now;
            if !self.make_room(poller, now) && self.clients.values().any(leaves_soon) {
                return self.pause(ROOM_PAUSE, poller, now);
            }
            match self.socket.listener.accept() {
                Ok((stream, _)) => {
                    self.spare_told &= self.spare.is_none();
                    self.add(stream, poller, now);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::ConnectionAborted => {}
                // No descriptor is left but the spare one, which the next try gets.
                Err(error) if self.spare.take().is_some() => {
                    if !std::mem::replace(&mut self.spare_told, true) {
                        let why = words(&error);
                        log::warn!(
                            "clients of the control socket are served one by one, for lack of descriptors: {why}"
                        );
                    }
                }
                // The listener stays ready, so watching it would be a busy loop.
                Err(_) => return self.pause(DESCRIPTOR_PAUSE, poller, now),
            }
        }
    }

    fn pause(&mut self, pause: Duration, poller: &Poller, now: Instant) {
        poller.forget(&self.socket.listener);
        self.paused_until = Some(now + pause);
    }

    fn add(&mut self, stream: UnixStream, poller: &Poller, now: Instant) {
        let mut client = Client::new(stream, now);
        self.last_token += 1;
        let set = client.stream.set_nonblocking(true);
        let watched = set.and_then(|()| poller.watch(&client.stream, self.last_token));
        let refusal = match self.right_of(&client.stream) {
            Err(why) => Some(why),
            Ok(_) if self.clients.len() >= self.max_clients => {
                Some(format!("there are {} clients already; try again", self.max_clients))
            }
            Ok(right) => {
                client.right = right;
                watched.err().map(|error| format!("your requests cannot be waited for: {}", words(&error)))
            }
        };
        match refusal {
            // The buffer of a new socket has room for the line.
            Some(why) => client.refuse(why, now),
            None => drop(self.clients.insert(self.last_token, client)),
        }
    }

    /// The rights of the process at the other end, or why it has none.
    fn right_of(&self, stream: &UnixStream) -> Result<Right, String> {
        let unknown = |_| "your user cannot be determined".to_owned();
        let peer = getsockopt(stream, PeerCredentials).map_err(unknown)?;
        if [0, geteuid().as_raw()].contains(&peer.uid()) {
            return Ok(Right::Everything);
        }
        let mut groups = socket_options::peer_groups(stream).unwrap_or_default();
        groups.push(peer.gid());
        let right = self.socket.access.right_of(peer.uid(), &groups);
        right.ok_or_else(|| format!("uid {} is neither the owner of this panzer nor root", peer.uid()))
    }

    /// If all places are taken, removes clients that are gone; else the client that was idle for longest; else the one
    /// that has not read its answer for longest. Returns false if no client can be removed.
    fn make_room(&mut self, poller: &Poller, now: Instant) -> bool {
        if self.clients.len() < self.max_clients {
            return true;
        }
        // A client that is gone is kept if its request has come, even unread.
        let is_gone = |client: &mut Client| !client.read() || (client.is_gone() && !client.has_line());
        let gone = self.clients.iter_mut().filter_map(|(id, client)| is_gone(client).then_some(*id));
        gone.collect::<Vec<_>>().into_iter().for_each(|id| drop(self.remove(id, poller)));
        if self.clients.len() < self.max_clients {
            return true;
        }
        let is_idle =
            |client: &Client| client.phase == Phase::Reading && !client.has_line() && client.since + IDLE_AFTER <= now;
        let idle = self.clients.iter().filter(|(_, client)| is_idle(client));
        if let Some(longest) = idle.min_by_key(|(_, client)| client.since).map(|(id, _)| *id) {
            if let Some(mut client) = self.remove(longest, poller) {
                client.refuse("too many clients, and this one was silent", now);
            }
            return true;
        }
        let deaf = now.checked_sub(DEAF_AFTER).and_then(|then| self.deaf_since(then));
        deaf.is_some_and(|id| self.remove(id, poller).is_some())
    }
}

fn read_request(line: &[u8]) -> Result<Request, String> {
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
    }
    let invalid = |error: serde_json::Error| format!("not a request: {error}");
    let Versioned { version } = serde_json::from_slice(line).map_err(invalid)?;
    if version != VERSION {
        return Err(format!("version {version} is not known here; this panzer speaks version {VERSION}"));
    }
    serde_json::from_slice(line).map_err(invalid)
}

fn max_clients() -> usize {
    let soft = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft);
    (soft.saturating_sub(RESERVED_DESCRIPTORS) as usize / 2).clamp(2, MAX_CLIENTS)
}

/// None if there is no descriptor left for it.
fn spare() -> Option<File> {
    File::open("/dev/null").ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::operator::requests::Outcome;
    use crate::sys::soon;
    use std::io::{Read, Write};

    #[test]
    fn a_client_that_left_wakes_nobody_though_a_child_holds_a_copy_of_its_socket() {
        let folder = tempfile::tempdir().unwrap();
        let (path, poller) = (folder.path().join("socket"), Poller::new().unwrap());
        let mut server = Server::bind(&path, ControlAccess::default(), &poller).unwrap();
        let epoll = &poller;
        let wait = || epoll.wait(Some(Instant::now())).unwrap();
        let client = UnixStream::connect(&path).unwrap();
        wait().into_iter().for_each(|token| server.on_ready(token, &poller, Instant::now()));
        let id = *server.clients.keys().next().unwrap();
        // As a child has it that was forked and does not come to its exec.
        let copy = server.clients[&id].stream.try_clone().unwrap();
        server.clients.get_mut(&id).unwrap().phase = Phase::Asked;
        server.tend(&poller, Instant::now());
        drop(client);
        assert_eq!(wait(), [id]);
        server.on_ready(id, &poller, Instant::now());
        assert!(!server.has(id));
        assert_eq!(wait(), [] as [u64; 0]);
        drop(copy);
    }

    fn crowd(path: &Path, count: usize) -> Vec<UnixStream> {
        (0..count).map(|_| UnixStream::connect(path).unwrap()).collect()
    }

    /// One turn of main's loop, but for what requests ask for.
    fn turn(server: &mut Server, poller: &Poller, now: Instant) -> Vec<u64> {
        server.tend(poller, now);
        let epoll = poller;
        for token in epoll.wait(Some(Instant::now())).unwrap() {
            server.on_ready(token, poller, now);
        }
        server.requests(now).into_iter().map(|(id, _)| id).collect()
    }

    const REQUEST: &[u8] = b"{\"version\":1,\"command\":\"status\"}\n";

    #[test]
    fn those_that_connect_and_leave_take_nobodys_place() {
        let folder = tempfile::tempdir().unwrap();
        let (path, poller) = (folder.path().join("socket"), Poller::new().unwrap());
        let mut server = Server::bind(&path, ControlAccess::default(), &poller).unwrap();
        let (now, mut asked) = (Instant::now(), 0);
        for round in 0..20 {
            drop(crowd(&path, 90));
            let mut one = UnixStream::connect(&path).unwrap();
            one.set_nonblocking(true).unwrap();
            one.write_all(REQUEST).unwrap();
            drop(crowd(&path, 20));
            for turns in 0..100 {
                let later = now + ROOM_PAUSE * (round * 100 + turns);
                let ids = turn(&mut server, &poller, later);
                ids.iter().for_each(|id| server.send_all([*id], &Outcome::done().into(), later));
                asked += ids.len();
                if !ids.is_empty() {
                    break;
                }
            }
            let mut answer = String::new();
            let _ = one.read_to_string(&mut answer);
            assert!(answer.contains("\"ok\":true"), "round {round}: {answer}");
        }
        assert_eq!(asked, 20);
    }

    #[test]
    fn those_that_do_not_read_are_bounded_together_and_delay_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let (path, poller) = (folder.path().join("socket"), Poller::new().unwrap());
        let mut server = Server::bind(&path, ControlAccess::default(), &poller).unwrap();
        let now = Instant::now();
        let mut deaf = crowd(&path, MAX_CLIENTS);
        deaf.iter_mut().for_each(|one| one.write_all(&REQUEST.repeat(9)).unwrap());
        let long = Outcome { error: Some("x".repeat(700_000)), ..Outcome::done() }.into();
        let mut asked = 0;
        for _ in 0..100 {
            for id in turn(&mut server, &poller, now) {
                asked += 1;
                server.send_all([id], &long, now);
                assert!(server.waiting_bytes() <= MAX_OUTPUT_BYTES);
            }
        }
        assert_eq!(asked, MAX_CLIENTS, "a request counts until its answer was read");
        // One that comes now is answered at once, whoever else is there.
        let mut one = UnixStream::connect(&path).unwrap();
        one.write_all(REQUEST).unwrap();
        one.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let later = now + DEAF_AFTER;
        let ids = (0..100).find_map(|_| Some(turn(&mut server, &poller, later)).filter(|ids| !ids.is_empty()));
        server.send_all([ids.unwrap()[0]], &Outcome::done().into(), later);
        let mut answer = [0; 999];
        let length = one.read(&mut answer).unwrap();
        assert!(String::from_utf8_lossy(&answer[..length]).contains("\"ok\":true"));
        turn(&mut server, &poller, now + CLIENT_TIMEOUT);
        assert_eq!(server.waiting_bytes(), 0);
    }

    #[test]
    fn an_answer_for_many_is_kept_once() {
        let folder = tempfile::tempdir().unwrap();
        let (path, poller) = (folder.path().join("socket"), Poller::new().unwrap());
        let mut server = Server::bind(&path, ControlAccess::default(), &poller).unwrap();
        let mut all = crowd(&path, 30);
        all.iter_mut().for_each(|one| one.write_all(REQUEST).unwrap());
        let now = Instant::now();
        let mut ids = Vec::new();
        soon(|| {
            ids.extend(turn(&mut server, &poller, now));
            (ids.len() == all.len()).then_some(())
        });
        let long = Outcome { error: Some("x".repeat(1_000_000)), ..Outcome::done() }.into();
        server.send_all(ids, &long, now);
        assert!(server.waiting_bytes() <= 1_000_100);
        // Nobody of them is let go of.
        assert!(server.clients.values().all(|client| client.phase != Phase::Leaving));
    }
}
