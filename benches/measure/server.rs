//! A server as panzer knows nothing about: it takes the inherited listener, needs a while to start, and ends gracefully.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpListener;
use std::os::fd::{AsFd, FromRawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll, ppoll};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use super::Measured;

/// What the program needs to start. It waits, as for a database: at a start that computes, it would be the two or
/// three processors of a small machine that a load competes for, whoever supervises it.
pub(crate) const START: Duration = Duration::from_millis(200);

/// The first inherited descriptor.
const LISTENER: i32 = 3;

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nok\n";

extern "C" fn interrupt(_signal: i32) {}

/// Answers every connection at once, one after the other, until TERM: then it ends what it is at, and accepts no more.
pub(crate) fn serve() -> Measured<()> {
    let action = SigAction::new(SigHandler::Handler(interrupt), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler does nothing.
    unsafe { sigaction(Signal::SIGTERM, &action)? };
    // Let in only where we wait, so that none is missed in between.
    SigSet::from(Signal::SIGTERM).thread_block()?;
    // SAFETY: panzer puts the listener there, and nobody else in this process knows of it.
    let listener = unsafe { TcpListener::from_raw_fd(LISTENER) };
    // Another worker may be faster.
    listener.set_nonblocking(true)?;
    poll(&mut [], PollTimeout::try_from(START)?)?;
    tell_ready()?;
    loop {
        let mut fds = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
        match ppoll(&mut fds, None, Some(SigSet::empty())) {
            Err(Errno::EINTR) => return Ok(()),
            other => drop(other?),
        }
        match listener.accept() {
            Ok((mut connection, _)) => {
                connection.set_nonblocking(false)?;
                let mut request = [0; 4096];
                // The request comes in one piece. A client that goes away is its own affair.
                let _ = connection.read(&mut request).and_then(|_| connection.write_all(ANSWER));
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn tell_ready() -> Measured<()> {
    let path = std::env::var("NOTIFY_SOCKET")?;
    let name = path.strip_prefix('@').ok_or("NOTIFY_SOCKET is not abstract")?;
    UnixDatagram::unbound()?.send_to_addr(b"READY=1", &SocketAddr::from_abstract_name(name)?)?;
    Ok(())
}
