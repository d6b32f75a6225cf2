//! One process of a server without panzer, told to stop under load while somebody else holds its listener.
//!
//! A server that binds its own port cannot be given one that is held already. So the test takes a copy of the listener
//! out of the running server, and from the moment that the server is told to stop, a stand-in answers on that copy.
//! What waits in the accept queue is then lost by nobody: whatever is lost, the server had accepted and did not answer.

use std::fs;
use std::io::{self, Read, Write};
use std::net::TcpListener;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{SockaddrIn, SockaddrIn6, SockaddrStorage, getsockname, getsockopt, sockopt};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::Server;
use crate::support::{descendants, descriptor_of, eventually, free_port, get, with_real_interpreter};
use crate::zero_loss::START;
use crate::zero_loss::clients::{BothKinds, Seen};

/// After the server has ended the load goes on until so many more are answered.
const ANSWERS_AFTER: u64 = 10;

/// One process of the server, in a folder of its own. Killed where the test fails.
struct Process {
    child: Child,
    port: u16,
    _folder: TempDir,
}

/// Stops the server `stops` times, each time another process of it, with so many clients of each kind, and adds up what
/// they have seen.
pub fn stop_under_load(server: &Server, stops: u32, clients: usize) -> Seen {
    let mut next = Process::start(server);
    let ending: Vec<Ending> = (0..stops)
        .map(|_| {
            // The next one starts meanwhile, as a new release does beside the old one.
            let current = std::mem::replace(&mut next, Process::start(server));
            current.stop_under_load(server.stop, clients)
        })
        .collect();
    let mut seen = Seen::default();
    ending.into_iter().for_each(|ending| seen.add(ending.join().unwrap()));
    seen
}

/// The clients of a server that has ended, each at its last request. Who found the queue full waits for a second.
type Ending = JoinHandle<Seen>;

impl Process {
    fn start(server: &Server) -> Process {
        let folder = tempfile::Builder::new().prefix("panzer-e2e-").tempdir().unwrap();
        let port = free_port();
        for (name, content) in server.files {
            fs::write(folder.path().join(name), content.replace("PORT", &port.to_string())).unwrap();
        }
        // Panzer's placeholders, as in the name of a pid file; here each has its own folder.
        let plain = |word: String| word.replace("{generation}", "0").replace("{worker}", "0");
        let words: Vec<String> = server.command(port, folder.path()).into_iter().map(plain).collect();
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).current_dir(&folder).env("PATH", with_real_interpreter()).env("HOME", folder.path());
        // Its own group, so that children of a server whose test fails are found.
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        Process { child: command.spawn().unwrap(), port, _folder: folder }
    }

    fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    fn stop_under_load(mut self, signal: Signal, clients: usize) -> Ending {
        eventually(START, "the server answers", || get(self.port, "/").is_ok());
        let listener = self.copy_of_listener();
        let load = BothKinds::of(clients, self.port);
        kill(Pid::from_raw(self.pid()), signal).unwrap();
        let stand_in = StandIn::start(listener);
        eventually(START, "the server ends", || self.child.try_wait().unwrap().is_some());
        let by_then = load.answered();
        eventually(START, "the stand-in answers", || load.answered() >= by_then + ANSWERS_AFTER);
        thread::spawn(|| {
            let seen = load.stop();
            stand_in.stop();
            seen
        })
    }

    /// A copy of the socket that listens on its port, from whichever of its processes has it. (Where thousands of
    /// connections have ended, the kernel's table of sockets takes longer to read than all that is measured here.)
    fn copy_of_listener(&self) -> OwnedFd {
        let family = std::iter::once(self.pid()).chain(descendants(self.pid()).into_iter().map(|one| one.pid));
        family.flat_map(descriptors_of).find(|copy| listens_on(copy, self.port)).expect("it listens")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // One that has been waited for is not signalled again.
        if self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            let _ = kill(Pid::from_raw(-self.pid()), Signal::SIGKILL);
            let _ = self.child.wait();
        }
    }
}

/// Copies of all descriptors that a process has.
fn descriptors_of(pid: i32) -> impl Iterator<Item = OwnedFd> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    entries.filter_map(move |entry| descriptor_of(pid, entry.file_name().to_str()?.parse().ok()?).ok())
}

fn listens_on(descriptor: &OwnedFd, port: u16) -> bool {
    let address = getsockname::<SockaddrStorage>(descriptor.as_raw_fd());
    let found = address.ok().and_then(|address| {
        let v4 = address.as_sockaddr_in().map(SockaddrIn::port);
        v4.or_else(|| address.as_sockaddr_in6().map(SockaddrIn6::port))
    });
    found == Some(port) && getsockopt(descriptor, sockopt::AcceptConn).unwrap_or(false)
}

/// Answers each connection's first request, in a thread.
struct StandIn {
    listener: OwnedFd,
    thread: JoinHandle<()>,
}

impl StandIn {
    fn start(listener: OwnedFd) -> StandIn {
        let own = TcpListener::from(listener.try_clone().unwrap());
        StandIn { listener, thread: thread::spawn(move || answer_all(&own)) }
    }

    /// To be called when the server has ended: it shuts the listener down for everybody.
    fn stop(self) {
        nix::sys::socket::shutdown(self.listener.as_raw_fd(), nix::sys::socket::Shutdown::Both).unwrap();
        self.thread.join().unwrap();
    }
}

fn answer_all(listener: &TcpListener) {
    const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\nConnection: close\r\n\r\nstand-in\n";
    loop {
        // Whether accept waits is the server's choice, and the same for all who hold the socket.
        let mut fds = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
        let _ = poll(&mut fds, PollTimeout::NONE);
        match listener.accept() {
            Ok((mut connection, _)) => {
                let mut request = [0; 4096];
                connection.set_nonblocking(false).unwrap();
                connection.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
                // A client that goes away is its own affair.
                let _ = connection.read(&mut request).and_then(|_| connection.write_all(ANSWER));
            }
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => return,
            Err(_) => {}
        }
    }
}
