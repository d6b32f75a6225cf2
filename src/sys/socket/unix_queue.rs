//! The accept queue of a unix socket. No socket option shows it, so the kernel is asked through sock_diag(7).

use std::io;
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};

/// `SOCK_DIAG_BY_FAMILY`, `NLM_F_REQUEST`, `UDIAG_SHOW_RQLEN` and `UNIX_DIAG_RQLEN` of the kernel's headers.
const BY_FAMILY: u16 = 20;
const REQUEST: u16 = 1;
const SHOW_QUEUE: u32 = 0x10;
const QUEUE: u16 = 4;

/// Lengths of netlink's head, of a request, and of an answer's head before its attributes.
const HEADER_BYTES: usize = 16;
const REQUEST_BYTES: usize = 24;
const ANSWER_HEADER_BYTES: usize = HEADER_BYTES + 16;

/// `TCP_LISTEN`, which unix sockets use as well.
const LISTENS: u8 = 10;

/// Number and limit of the connections that wait in the unix socket with this inode. None if it does not listen. Fails
/// if our network namespace has no such socket, or if the kernel does not support this (`CONFIG_UNIX_DIAG`).
pub fn accept_queue(inode: u32) -> io::Result<Option<(u32, u32)>> {
    let netlink = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkSockDiag)?;
    send(netlink.as_raw_fd(), &question(inode), MsgFlags::empty())?;
    let mut answer = [0; 512];
    // The kernel has answered by the time it has read the question.
    let length = recv(netlink.as_raw_fd(), &mut answer, MsgFlags::MSG_DONTWAIT)?;
    read(&answer[..length]).ok_or_else(|| Errno::ENODATA.into())
}

fn question(inode: u32) -> Vec<u8> {
    let all_states = u32::MAX;
    let any_cookie = [u32::MAX; 2];
    let mut question = Vec::with_capacity(HEADER_BYTES + REQUEST_BYTES);
    question.extend(((HEADER_BYTES + REQUEST_BYTES) as u32).to_ne_bytes());
    question.extend([BY_FAMILY, REQUEST].map(u16::to_ne_bytes).concat());
    // Number of the message and port of the sender; both may be 0.
    question.extend([0; 8]);
    question.extend([libc::AF_UNIX as u8, 0, 0, 0]);
    question.extend([all_states, inode, SHOW_QUEUE].map(u32::to_ne_bytes).concat());
    question.extend(any_cookie.map(u32::to_ne_bytes).concat());
    question
}

/// None if it is not an answer, for example an error.
fn read(answer: &[u8]) -> Option<Option<(u32, u32)>> {
    let short = |bytes: &[u8], at: usize| Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
    let long = |bytes: &[u8], at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    if short(answer, 4)? != BY_FAMILY {
        return None;
    }
    // "family type state pad inode cookie", then attributes: "length kind" and a value, padded to words.
    if *answer.get(HEADER_BYTES + 2)? != LISTENS {
        return Some(None);
    }
    let mut rest = answer.get(ANSWER_HEADER_BYTES..)?;
    loop {
        let (length, kind) = (usize::from(short(rest, 0)?), short(rest, 2)?);
        if kind == QUEUE {
            return Some(Some((long(rest, 4)?, long(rest, 8)?)));
        }
        rest = rest.get(length.max(4).next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::os::unix::net::{UnixListener, UnixStream};

    fn inode(socket: impl AsFd) -> u32 {
        nix::sys::stat::fstat(socket).unwrap().st_ino as u32
    }

    #[test]
    fn a_listener_tells_its_queue_and_others_have_none() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("listens");
        let listener = UnixListener::bind(&path).unwrap();
        nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(7).unwrap()).unwrap();
        let clients = [UnixStream::connect(&path).unwrap(), UnixStream::connect(&path).unwrap()];
        assert_eq!(accept_queue(inode(&listener)).unwrap(), Some((2, 7)));
        assert_eq!(accept_queue(inode(&clients[0])).unwrap(), None);
        assert!(accept_queue(u32::MAX).is_err());
    }
}
