//! The control socket, main's side: clients, their lines and their limits. What a request means is not known here.
//!
//! Nobody is waited for: a client that sends no line, or reads no answer, is given up at its deadline, and one that
//! floods is read a little at a time, so that the others are served in between.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::os::fd::RawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::geteuid;
use serde::{Deserialize, Serialize};

use super::client::{self, Client};
use super::requests::{Answer, Line, MAX_REQUEST_BYTES, Outcome, Request, VERSION};
use super::socket::{self, Socket};
use crate::sys::descriptors::{Kept, take_over};
use crate::sys::poller::Poller;

/// The listener is watched under this.
pub const LISTENER: u64 = 1 << 32;

/// Most clients at a time, where there are descriptors for them.
const MOST_CLIENTS: usize = 64;

/// Descriptors that are left for everything else: a reload needs some, too.
const RESERVED: u64 = 26;

/// How long a client may be without a complete line, or without reading its answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// One that sent nothing for this long makes room for another when there is none.
const IDLE: Duration = Duration::from_millis(20);

/// So does one that has not read its answer for this long.
const DEAF: Duration = Duration::from_millis(200);

/// If all places are taken by those who have waited for their answer for this long, whoever comes is told to try again.
const LONG_WAIT: Duration = Duration::from_secs(1);

/// If no descriptor is left, nobody is accepted for this long.
const PAUSE: Duration = Duration::from_millis(200);

/// If no place is left, and one will be soon, those who come wait in the kernel's queue for this long.
const MOMENT: Duration = Duration::from_millis(5);

/// How many bytes may wait for all clients together; only a single answer may be longer. A line that several wait for
/// counts once.
const MAX_OUTPUT_BYTES: usize = 3 << 20;

/// So many who came too late are told so.
const LONGEST_FAREWELL: usize = 1024;

/// So many are accepted before anything else has its turn.
const ACCEPTED_AT_ONCE: usize = 32;

/// The control socket and all who are connected to it.
#[derive(Debug)]
pub struct Server {
    socket: Socket,
    most: usize,
    clients: BTreeMap<u64, Client>,
    next: u64,
    paused_until: Option<Instant>,
}

/// The control socket as one main hands it on to the next, with all who are connected.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Carried {
    listener: RawFd,
    #[serde(with = "crate::config::text::path")]
    path: PathBuf,
    identity: (u64, u64),
    clients: BTreeMap<u64, client::Carried>,
    next: u64,
}

impl Carried {
    /// All descriptors that go with it.
    pub fn descriptors(&self) -> impl Iterator<Item = RawFd> {
        self.clients.values().map(|client| client.stream).chain([self.listener])
    }
}

impl Server {
    /// For the next main.
    pub fn carry<'a>(&'a self, kept: &mut Kept<'a>) -> Carried {
        let Socket { listener, path, identity } = &self.socket;
        let listener = kept.keep(listener);
        let client = |(id, client): (&u64, &'a Client)| (*id, client.carry(kept));
        let clients = self.clients.iter().map(client).collect();
        Carried { listener, path: path.clone(), identity: *identity, clients, next: self.next }
    }

    /// What the main before has handed on.
    pub fn take_over(carried: Carried, poller: &Poller) -> io::Result<Server> {
        let listener = UnixListener::from(take_over(carried.listener)?);
        poller.watch(&listener, LISTENER)?;
        let client = |(id, client): (u64, client::Carried)| {
            let client = Client::take_over(client)?;
            // Whatever it is watched for, `tend` puts right.
            poller.watch(&client.stream, id)?;
            Ok((id, client))
        };
        Ok(Server {
            socket: Socket { listener, path: carried.path, identity: carried.identity },
            most: most_clients(),
            clients: carried.clients.into_iter().map(client).collect::<io::Result<_>>()?,
            next: carried.next,
            paused_until: None,
        })
    }

    /// Binds, with mode 0600 from the first moment. A socket that nobody listens on any more is replaced; what is no
    /// socket, or a link, is refused. Not to be called with more than one thread: it changes the umask for a moment.
    pub fn bind(path: &Path, poller: &Poller) -> Result<Server, String> {
        let socket = Socket::bind(path)?;
        poller.watch(&socket.listener, LISTENER).map_err(|error| socket::why(path, &error))?;
        Ok(Server { socket, most: most_clients(), clients: BTreeMap::new(), next: LISTENER + 1, paused_until: None })
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.socket.path
    }

    /// Binds anew where the socket's file is not there any more; who is connected stays so. Returns the path where it did.
    pub fn restore(&mut self, poller: &Poller) -> Result<Option<PathBuf>, String> {
        let path = self.socket.path.clone();
        if self.socket.is_there() {
            return Ok(None);
        }
        let new = Socket::bind(&path)?;
        let paused = self.paused_until.is_some();
        if !paused {
            poller.watch(&new.listener, LISTENER).map_err(|error| socket::why(&path, &error))?;
            poller.forget(&self.socket.listener);
        }
        self.socket = new;
        Ok(Some(path))
    }

    /// Removes the socket, and tells whoever has come by then that nobody is there any more to do what he wants.
    pub fn end(&mut self) {
        self.socket.remove();
        let now = Instant::now();
        let late = std::iter::from_fn(|| self.socket.listener.accept().ok()).take(LONGEST_FAREWELL);
        let late = late.map(|(stream, _)| Client::new(stream, now)).collect::<Vec<_>>();
        let waiting = std::mem::take(&mut self.clients).into_values().filter(|client| !client.busy);
        for mut client in late.into_iter().chain(waiting) {
            // One that does not read is not waited for.
            if client.stream.set_nonblocking(true).is_ok() {
                client.put(Outcome::refused("panzer has ended"), now);
            }
        }
    }

    /// When somebody is given up, or accepted again.
    pub fn deadline(&self) -> Option<Instant> {
        let client = |client: &Client| match client {
            client if client.may_ask() && client.has_line() => Some(client.since),
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
        if !client.flush(now) || !client.read() || (client.busy && client.is_gone()) {
            self.remove(token, poller);
        }
    }

    /// Gives up whom there is no patience with any more, and whom nothing is left to be told.
    pub fn tend(&mut self, poller: &Poller, now: Instant) {
        if self.paused_until.take_if(|until| *until <= now).is_some()
            && poller.watch(&self.socket.listener, LISTENER).is_err()
        {
            self.paused_until = Some(now + PAUSE);
        }
        for client in self.clients.values_mut().filter(|client| client.since + PATIENCE <= now) {
            let is_deaf = !client.output.is_empty();
            if !is_deaf && !client.busy && !client.has_line() {
                client.put(Outcome::refused(format!("no complete line within {}s", PATIENCE.as_secs())), now);
                client.give_up();
            } else if is_deaf {
                client.give_up();
            }
        }
        self.clients.retain(|_, client| {
            let over = client.closing || (client.ended && !client.busy && !client.has_line());
            let stays = !(over && client.output.is_empty());
            if !stays {
                poller.forget(&client.stream);
            }
            stays
        });
        for (token, client) in &mut self.clients {
            let wanted = (client.may_ask() && !client.ended, !client.output.is_empty());
            if wanted != client.watched && poller.watch_for(&client.stream, *token, wanted.0, wanted.1).is_ok() {
                client.watched = wanted;
            }
        }
    }

    /// The requests that have come, at most one of each client, which gets no other until it has read its last line.
    pub fn requests(&mut self, now: Instant) -> Vec<(u64, Request)> {
        let mut requests = Vec::new();
        for (id, client) in &mut self.clients {
            if !client.may_ask() {
                continue;
            }
            match client.next_line().map(|line| read_request(&line)) {
                None => {}
                Some(Ok(request)) => {
                    client.busy = true;
                    client.since = now;
                    requests.push((*id, request));
                }
                Some(Err(why)) => client.put(Outcome::refused(why), now),
            }
            if client.input.len() >= MAX_REQUEST_BYTES && !client.has_line() {
                client.put(Outcome::refused(format!("a line of more than {MAX_REQUEST_BYTES} bytes")), now);
                client.closing = true;
                client.input = Vec::new();
            }
        }
        requests
    }

    /// Sends a line to all of `ids`; after the last line of an answer, a client may ask again.
    pub fn send_all(&mut self, ids: impl IntoIterator<Item = u64>, answer: &Answer, now: Instant) {
        let line = client::line(answer);
        for id in ids {
            let Some(client) = self.clients.get_mut(&id) else { continue };
            client.put_line(line.clone(), now);
            if let Line::Last(_) = answer.line {
                client.busy = false;
                client.since = now;
            }
        }
        // Who reads has read by now, or will before others have asked for as much again.
        while self.waiting_bytes() > MAX_OUTPUT_BYTES.max(line.len()) {
            let Some(client) = self.deaf_since(now).and_then(|id| self.clients.get_mut(&id)) else { return };
            // `tend` removes it.
            client.give_up();
        }
    }

    fn waiting_bytes(&self) -> usize {
        let lines = self.clients.values().flat_map(|client| &client.output);
        let distinct: BTreeMap<*const u8, usize> = lines.map(|line| (line.as_ptr(), line.len())).collect();
        distinct.into_values().sum()
    }

    /// Of those that have not read their answer since then, the one that has not for longest.
    fn deaf_since(&self, then: Instant) -> Option<u64> {
        let deaf = self.clients.iter().filter(|(_, client)| !client.output.is_empty() && client.since <= then);
        deaf.min_by_key(|(_, client)| client.since).map(|(id, _)| *id)
    }

    /// Whether this client is still there.
    pub fn has(&self, id: u64) -> bool {
        self.clients.contains_key(&id)
    }

    /// A process that main has just forked may hold a copy of the client's socket: closing ours does not end its watch.
    fn remove(&mut self, id: u64, poller: &Poller) -> Option<Client> {
        self.clients.remove(&id).inspect(|client| poller.forget(&client.stream))
    }

    fn accept(&mut self, poller: &Poller, now: Instant) {
        for _ in 0..ACCEPTED_AT_ONCE {
            let is_passing = |client: &Client| !client.busy || client.since + LONG_WAIT > now;
            if !self.make_room(poller, now) && self.clients.values().any(is_passing) {
                // Somebody's request is on its way, or has just come: there will be room in a moment.
                return self.pause(MOMENT, poller, now);
            }
            match self.socket.listener.accept() {
                Ok((stream, _)) => self.add(stream, poller, now),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::ConnectionAborted => {}
                // No descriptor is left, and the listener stays ready: it is left alone for a while.
                Err(_) => return self.pause(PAUSE, poller, now),
            }
        }
    }

    fn pause(&mut self, pause: Duration, poller: &Poller, now: Instant) {
        poller.forget(&self.socket.listener);
        self.paused_until = Some(now + pause);
    }

    fn add(&mut self, stream: UnixStream, poller: &Poller, now: Instant) {
        let mut client = Client::new(stream, now);
        let peer = getsockopt(&client.stream, PeerCredentials).map(|peer| peer.uid());
        let refusal = match peer {
            Ok(uid) if uid != 0 && uid != geteuid().as_raw() => {
                Some(format!("uid {uid} is neither the owner of this panzer nor root"))
            }
            Err(_) => Some("who asks cannot be seen".to_owned()),
            Ok(_) if self.clients.len() >= self.most => {
                Some(format!("there are {} clients already; try again", self.most))
            }
            Ok(_) => None,
        };
        let set = client.stream.set_nonblocking(true);
        self.next += 1;
        let watched = set.and_then(|()| poller.watch(&client.stream, self.next));
        let failure = watched.err().map(|error| format!("it cannot be waited for what you say: {error}"));
        if let Some(refusal) = refusal.or(failure) {
            // A fresh socket has room for it.
            return client.put(Outcome::refused(refusal), now);
        }
        self.clients.insert(self.next, client);
    }

    /// If all places are taken, those that are gone lose theirs, then whoever has been silent for longest, then whoever
    /// has not read its answer for longest. False if all the others are waited for.
    fn make_room(&mut self, poller: &Poller, now: Instant) -> bool {
        if self.clients.len() < self.most {
            return true;
        }
        // A request that has come counts, though nobody has looked yet.
        let is_gone = |client: &mut Client| !client.read() || (client.is_gone() && !client.has_line());
        let gone = self.clients.iter_mut().filter_map(|(id, client)| is_gone(client).then_some(*id));
        gone.collect::<Vec<_>>().into_iter().for_each(|id| drop(self.remove(id, poller)));
        if self.clients.len() < self.most {
            return true;
        }
        let is_idle = |client: &Client| client.may_ask() && !client.has_line() && client.since + IDLE <= now;
        let idle = self.clients.iter().filter(|(_, client)| is_idle(client));
        if let Some(longest) = idle.min_by_key(|(_, client)| client.since).map(|(id, _)| *id) {
            if let Some(mut client) = self.remove(longest, poller) {
                client.put(Outcome::refused("too many clients, and this one was silent"), now);
            }
            return true;
        }
        let deaf = now.checked_sub(DEAF).and_then(|then| self.deaf_since(then));
        deaf.is_some_and(|id| self.remove(id, poller).is_some())
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn a_client_that_left_wakes_nobody_though_a_child_holds_a_copy_of_its_socket() {
        let folder = tempfile::tempdir().unwrap();
        let (path, poller) = (folder.path().join("socket"), Poller::new().unwrap());
        let mut server = Server::bind(&path, &poller).unwrap();
        let epoll = &poller;
        let wait = || epoll.wait(Some(Instant::now())).unwrap();
        let client = UnixStream::connect(&path).unwrap();
        wait().into_iter().for_each(|token| server.look_at(token, &poller, Instant::now()));
        let id = *server.clients.keys().next().unwrap();
        // As a child has it that was forked and does not come to its exec.
        let copy = server.clients[&id].stream.try_clone().unwrap();
        server.clients.get_mut(&id).unwrap().busy = true;
        server.tend(&poller, Instant::now());
        drop(client);
        assert_eq!(wait(), [id]);
        server.look_at(id, &poller, Instant::now());
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
            server.look_at(token, poller, now);
        }
        server.requests(now).into_iter().map(|(id, _)| id).collect()
    }

    const REQUEST: &[u8] = b"{\"version\":1,\"command\":\"status\"}\n";

    #[test]
    fn those_that_connect_and_leave_take_nobodys_place() {
        let folder = tempfile::tempdir().unwrap();
        let (path, poller) = (folder.path().join("socket"), Poller::new().unwrap());
        let mut server = Server::bind(&path, &poller).unwrap();
        let (now, mut asked) = (Instant::now(), 0);
        for round in 0..20 {
            drop(crowd(&path, 90));
            let mut one = UnixStream::connect(&path).unwrap();
            one.set_nonblocking(true).unwrap();
            one.write_all(REQUEST).unwrap();
            drop(crowd(&path, 20));
            for turns in 0..100 {
                let later = now + MOMENT * (round * 100 + turns);
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
        let mut server = Server::bind(&path, &poller).unwrap();
        let now = Instant::now();
        let mut deaf = crowd(&path, MOST_CLIENTS);
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
        assert_eq!(asked, MOST_CLIENTS, "a request counts until its answer was read");
        // One that comes now is answered at once, whoever else is there.
        let mut one = UnixStream::connect(&path).unwrap();
        one.write_all(REQUEST).unwrap();
        let later = now + DEAF;
        let ids = (0..100).find_map(|_| Some(turn(&mut server, &poller, later)).filter(|ids| !ids.is_empty()));
        server.send_all([ids.unwrap()[0]], &Outcome::done().into(), later);
        let mut answer = [0; 999];
        let length = one.read(&mut answer).unwrap();
        assert!(String::from_utf8_lossy(&answer[..length]).contains("\"ok\":true"));
        turn(&mut server, &poller, now + PATIENCE);
        assert_eq!(server.waiting_bytes(), 0);
    }

    #[test]
    fn an_answer_for_many_is_kept_once() {
        let folder = tempfile::tempdir().unwrap();
        let (path, poller) = (folder.path().join("socket"), Poller::new().unwrap());
        let mut server = Server::bind(&path, &poller).unwrap();
        let mut all = crowd(&path, 30);
        all.iter_mut().for_each(|one| one.write_all(REQUEST).unwrap());
        let now = Instant::now();
        let mut ids = Vec::new();
        while ids.len() < all.len() {
            ids.extend(turn(&mut server, &poller, now));
        }
        let long = Outcome { error: Some("x".repeat(1_000_000)), ..Outcome::done() }.into();
        server.send_all(ids, &long, now);
        assert!(server.waiting_bytes() <= 1_000_100);
        // Nobody of them is let go of.
        assert!(server.clients.values().all(|client| !client.closing));
    }
}
