//! The acknowledgements of einhorn's workers: a line on a unix socket with a path. The kernel says which process has
//! sent it. There is no reply.

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{getsockopt, sockopt};
use nix::unistd::Pid;
use serde::Deserialize;

use crate::sys::errno::words;
use crate::sys::file_id::{FileId, remove_if_still};
use crate::sys::packets::Sender;
use crate::sys::poller::Poller;

/// Limit of a line, including its end.
const MAX_LINE_BYTES: usize = 4096;

/// Limit of the connections at a time. Others wait in the kernel's queue.
const MAX_CLIENTS: usize = 64;

/// Limit of the strangers that are disconnected before anything else has its turn.
const MAX_STRANGERS_AT_ONCE: usize = 16;

/// A client that has not sent a line within this time is disconnected.
const MAX_SILENCE: Duration = Duration::from_secs(5);

/// Pause after an accept for which there was no descriptor.
const PAUSE: Duration = Duration::from_millis(100);

/// Pause after many strangers.
const PAUSE_AFTER_STRANGERS: Duration = Duration::from_millis(10);

/// A message of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Said {
    /// It is ready.
    Ack,
    /// It is alive.
    Ping,
}

/// The socket on which the workers of one generation acknowledge.
#[derive(Debug)]
pub struct AckSocket {
    listener: UnixListener,
    token: u64,
    path: PathBuf,
    id: FileId,
    clients: Vec<Client>,
    /// Whether the poller watches the listener. If not, and there is room, when to watch it again.
    watched: bool,
    resume: Option<Instant>,
}

#[derive(Debug)]
struct Client {
    stream: UnixStream,
    sender: Sender,
    line: Vec<u8>,
    until: Instant,
}

enum Heard {
    Nothing,
    Line,
    Gone,
}

impl AckSocket {
    /// Binds `path` in place of an old socket. The caller makes sure that no other instance uses this path. Everybody
    /// may connect, but only known processes are listened to. Events wake `poller` with `token`.
    pub fn bind(path: &Path, poller: &Poller, token: u64) -> io::Result<AckSocket> {
        if fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket()) {
            fs::remove_file(path)?;
        }
        let listener = UnixListener::bind(path)?;
        listener.set_nonblocking(true)?;
        let id = FileId::at(path).ok_or(Errno::ENOENT)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o666))?;
        poller.watch(&listener, token)?;
        let path = path.to_owned();
        Ok(AckSocket { listener, token, path, id, clients: Vec::new(), watched: true, resume: None })
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// When to call [`AckSocket::tend`] if nothing happens. None if no client is connected.
    pub fn deadline(&self) -> Option<Instant> {
        self.clients.iter().map(|client| client.until).chain(self.resume).min()
    }

    /// Reads the messages of all processes that are known, according to `is_known`. Returns each message with its
    /// sender. Never waits.
    pub fn tend(
        &mut self,
        poller: &Poller,
        now: Instant,
        is_known: impl Fn(Sender) -> bool,
    ) -> Vec<(Sender, Option<Pid>, Said)> {
        self.accept(poller, now, is_known);
        let mut all = Vec::new();
        self.clients.retain_mut(|client| {
            let heard = client.hear();
            if let (Heard::Line, Some((said, named))) = (&heard, said(&client.line)) {
                all.push((client.sender, named, said));
            }
            let stays = matches!(heard, Heard::Nothing) && now < client.until;
            if !stays {
                poller.forget(&client.stream);
            }
            stays
        });
        self.watch_if_there_is_room(poller, now);
        all
    }

    fn accept(&mut self, poller: &Poller, now: Instant, is_known: impl Fn(Sender) -> bool) {
        if self.resume.is_some_and(|resume| now < resume) {
            return;
        }
        self.resume = None;
        let mut strangers = 0;
        while self.clients.len() < MAX_CLIENTS {
            match self.listener.accept() {
                Ok((stream, _)) => match self.admit(stream, poller, now, &is_known) {
                    Some(client) => self.clients.push(client),
                    None => strangers += 1,
                },
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Otherwise the waiting connection would wake us again at once.
                Err(_) => {
                    self.resume = Some(now + PAUSE);
                    return;
                }
            }
            if strangers == MAX_STRANGERS_AT_ONCE {
                self.resume = Some(now + PAUSE_AFTER_STRANGERS);
                return;
            }
        }
    }

    /// A stranger is disconnected at once, so that it takes no place.
    fn admit(
        &self,
        stream: UnixStream,
        poller: &Poller,
        now: Instant,
        is_known: impl Fn(Sender) -> bool,
    ) -> Option<Client> {
        let peer = getsockopt(&stream, sockopt::PeerCredentials).ok()?;
        let sender = Sender { pid: Pid::from_raw(peer.pid()), user: peer.uid() };
        if !is_known(sender) {
            log::debug!("pid {} is no worker's, and connected to {}", sender.pid, self.path.display());
            return None;
        }
        if let Err(error) = stream.set_nonblocking(true).and_then(|()| poller.watch(&stream, self.token)) {
            log::warn!("what pid {} sends to {} is not heard: {}", sender.pid, self.path.display(), words(&error));
            return None;
        }
        Some(Client { stream, sender, line: Vec::new(), until: now + MAX_SILENCE })
    }

    fn watch_if_there_is_room(&mut self, poller: &Poller, now: Instant) {
        let has_room = self.clients.len() < MAX_CLIENTS && self.resume.is_none_or(|resume| resume <= now);
        if has_room && !self.watched {
            // If it cannot be watched, try again later.
            let failed = poller.watch(&self.listener, self.token).is_err();
            self.resume = failed.then(|| now + PAUSE);
            self.watched = !failed;
        } else if !has_room && self.watched {
            poller.forget(&self.listener);
            self.watched = false;
        }
    }
}

impl Client {
    /// Reads up to the end of the first line, which is left out.
    fn hear(&mut self) -> Heard {
        let mut bytes = [0; MAX_LINE_BYTES];
        let room = MAX_LINE_BYTES - self.line.len();
        match self.stream.read(&mut bytes[..room]) {
            Ok(0) => Heard::Gone,
            Ok(count) => {
                self.line.extend_from_slice(&bytes[..count]);
                match self.line.iter().position(|&byte| byte == b'\n') {
                    Some(end) => {
                        self.line.truncate(end);
                        Heard::Line
                    }
                    None if self.line.len() == MAX_LINE_BYTES => Heard::Gone,
                    None => Heard::Nothing,
                }
            }
            Err(error) if [io::ErrorKind::WouldBlock, io::ErrorKind::Interrupted].contains(&error.kind()) => {
                Heard::Nothing
            }
            Err(_) => Heard::Gone,
        }
    }
}

impl Drop for AckSocket {
    fn drop(&mut self) {
        remove_if_still(&self.path, self.id);
    }
}

#[derive(Deserialize)]
struct Message {
    command: String,
    pid: Option<i32>,
}

/// A line is JSON. Einhorn's own library sends YAML, with its line ends written as %0A. The pid in it only matters if
/// the sender has ended; otherwise the kernel says who has sent it.
fn said(line: &[u8]) -> Option<(Said, Option<Pid>)> {
    let said = |command: &str| match command {
        "worker:ack" => Some(Said::Ack),
        "worker:ping" => Some(Said::Ping),
        _ => None,
    };
    if let Ok(message) = serde_json::from_slice::<Message>(line) {
        return Some((said(&message.command)?, message.pid.map(Pid::from_raw)));
    }
    let text = String::from_utf8_lossy(line).replace("%0A", "\n");
    let value = |key| text.lines().find_map(|line| Some(line.strip_prefix(key)?.trim().trim_matches(['"', '\''])));
    let pid = value("pid:").and_then(|pid| pid.parse().ok()).map(Pid::from_raw);
    Some((said(value("command:")?)?, pid))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn socket(folder: &tempfile::TempDir) -> (AckSocket, Poller) {
        let poller = Poller::new().unwrap();
        (AckSocket::bind(&folder.path().join("ack.sock"), &poller, 1).unwrap(), poller)
    }

    #[test]
    fn what_is_said_is_known_in_both_forms() {
        for (name, meant) in [("ack", Said::Ack), ("ping", Said::Ping)] {
            for line in [
                format!(r#"{{"command":"worker:{name}","pid":17}}"#),
                format!("--- %0Acommand: worker:{name}%0Apid: 17%0A"),
                format!("---%0Apid: 17%0Acommand: \"worker:{name}\"%0A"),
            ] {
                assert_eq!(said(line.as_bytes()), Some((meant, Some(Pid::from_raw(17)))), "{line}");
            }
        }
        for other in [&br#"{"command":"worker:fly","pid":17}"#[..], b"", b"worker:ack", b"{}", b"\xff", b"--- %0Aack"] {
            assert_eq!(said(other), None, "{other:?}");
        }
    }

    #[test]
    fn a_line_may_come_in_pieces_and_only_so_long() {
        let folder = tempfile::tempdir().unwrap();
        let (mut socket, poller) = socket(&folder);
        let mut client = UnixStream::connect(socket.path()).unwrap();
        let mut endless = UnixStream::connect(socket.path()).unwrap();
        let now = Instant::now();
        client.write_all(br#"{"command":"worker:"#).unwrap();
        endless.write_all(&[b' '; MAX_LINE_BYTES]).unwrap();
        assert_eq!(socket.tend(&poller, now, |_| true), []);
        assert_eq!(socket.clients.len(), 1, "the endless one is let go of");
        let us = Sender { pid: Pid::this(), user: nix::unistd::geteuid().as_raw() };
        client.write_all(b"ack\",\"pid\":1}\n").unwrap();
        assert_eq!(socket.tend(&poller, now, |_| true), [(us, Some(Pid::from_raw(1)), Said::Ack)]);
        assert!(socket.clients.is_empty() && socket.deadline().is_none());
        let path = socket.path().to_owned();
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn strangers_and_the_silent_are_let_go_of() {
        let folder = tempfile::tempdir().unwrap();
        let (mut socket, poller) = socket(&folder);
        let mut stranger = UnixStream::connect(socket.path()).unwrap();
        stranger.write_all(b"{\"command\":\"worker:ack\"}\n").unwrap();
        let now = Instant::now();
        assert_eq!(socket.tend(&poller, now, |_| false), []);
        assert_eq!(socket.deadline(), None);
        let _silent = UnixStream::connect(socket.path()).unwrap();
        assert_eq!(socket.tend(&poller, now, |_| true), []);
        assert_eq!(socket.deadline(), Some(now + MAX_SILENCE));
        assert_eq!(socket.tend(&poller, now + MAX_SILENCE, |_| true), []);
        assert_eq!(socket.deadline(), None);
    }

    #[test]
    fn a_crowd_of_strangers_leaves_time_for_others() {
        let folder = tempfile::tempdir().unwrap();
        let (mut socket, poller) = socket(&folder);
        let crowd: Vec<_> = (0..100).map(|_| UnixStream::connect(socket.path()).unwrap()).collect();
        let (now, looked) = (Instant::now(), std::cell::Cell::new(0));
        let is_known = |_: Sender| {
            looked.set(looked.get() + 1);
            false
        };
        assert_eq!(socket.tend(&poller, now, is_known), []);
        assert_eq!(looked.get(), MAX_STRANGERS_AT_ONCE);
        assert!(!socket.watched && socket.deadline() == Some(now + PAUSE_AFTER_STRANGERS));
        assert_eq!(socket.tend(&poller, now, is_known), []);
        assert_eq!(looked.get(), MAX_STRANGERS_AT_ONCE);
        assert_eq!(socket.tend(&poller, now + PAUSE_AFTER_STRANGERS, is_known), []);
        assert_eq!(looked.get(), 2 * MAX_STRANGERS_AT_ONCE);
        drop(crowd);
    }

    #[test]
    fn a_crowd_has_its_turn_one_after_the_other() {
        let folder = tempfile::tempdir().unwrap();
        let (mut socket, poller) = socket(&folder);
        let mut crowd: Vec<_> = (0..MAX_CLIENTS + 1).map(|_| UnixStream::connect(socket.path()).unwrap()).collect();
        let now = Instant::now();
        assert_eq!(socket.tend(&poller, now, |_| true), []);
        assert_eq!((socket.clients.len(), socket.watched), (MAX_CLIENTS, false));
        crowd.iter_mut().for_each(|one| one.write_all(b"{\"command\":\"worker:ack\"}\n").unwrap());
        assert_eq!(socket.tend(&poller, now, |_| true).len(), MAX_CLIENTS);
        assert!(socket.watched);
        // The last connection waited in the kernel's queue.
        assert_eq!(socket.tend(&poller, now, |_| true).len(), 1);
    }
}
