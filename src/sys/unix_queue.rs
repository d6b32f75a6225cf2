//! What the kernel knows of unix sockets and no socket option tells: the accept queue of one, and which one is bound to a
//! path. Asked by sock_diag(7).

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};

/// `SOCK_DIAG_BY_FAMILY`, `NLM_F_REQUEST`, `NLM_F_DUMP`, `NLMSG_DONE`; and of unix_diag.h, what is to be shown and the
/// kinds of attributes that show it.
const BY_FAMILY: u16 = 20;
const REQUEST: u16 = 1;
const DUMP: u16 = 0x300;
const DONE: u16 = 3;
const SHOW_NAME_AND_FILE: u32 = 0x3;
const SHOW_QUEUE: u32 = 0x10;
const NAME: u16 = 0;
const FILE: u16 = 1;
const QUEUE: u16 = 4;

/// `TCP_LISTEN` and `TCP_CLOSE`, which unix sockets use as well: the second is that of one that does neither listen nor
/// is connected.
const LISTENS: u8 = 10;
const IDLE: u8 = 7;

/// Length of the longest answer that is read at once: the kernel's own (NLMSG_GOODSIZE) is shorter.
const LONGEST: usize = 32 << 10;

/// Lengths of netlink's head, of a request, and of an answer's head before its attributes.
const HEAD: usize = 16;
const ASKED: usize = 24;
const ANSWERED: usize = HEAD + 16;

/// How many connections wait in the unix socket with this inode, and how many may. None where it does not listen. Fails
/// where there is no such socket in our network namespace, or the kernel does not tell (`CONFIG_UNIX_DIAG`).
pub fn accept_queue(inode: u32) -> io::Result<Option<(u32, u32)>> {
    let netlink = ask(REQUEST, u32::MAX, inode, SHOW_QUEUE)?;
    let mut answer = [0; 512];
    // The kernel has answered by the time it has read the question.
    let length = recv(netlink.as_raw_fd(), &mut answer, MsgFlags::MSG_DONTWAIT)?;
    let found = messages(&answer[..length]).next().filter(|(kind, _)| *kind == BY_FAMILY);
    let (_, found) = found.ok_or(Errno::ENODATA)?;
    if found.get(HEAD + 2) != Some(&LISTENS) {
        return Ok(None);
    }
    let queue = attributes(found).find(|(kind, _)| *kind == QUEUE).and_then(|(_, value)| two_words(value));
    queue.map(Some).ok_or_else(|| Errno::ENODATA.into())
}

/// Whether a socket of our network namespace that neither listens nor is connected is bound to what is at `path`. Fails
/// where nothing is there, or the kernel does not tell.
pub fn is_bound(path: &Path) -> io::Result<bool> {
    let file = fs::symlink_metadata(path)?;
    let device = (libc::major(file.dev()) << 20) | libc::minor(file.dev());
    let name = path.file_name().unwrap_or_default().as_bytes();
    // Some file systems show another device to the kernel itself: there the name decides.
    let is_it = |message: &[u8]| {
        let of = |wanted: u16| attributes(message).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
        let Some((inode, on)) = of(FILE).and_then(two_words) else { return false };
        let named = of(NAME).is_some_and(|text| text.split(|&byte| byte == b'/' || byte == 0).any(|part| part == name));
        inode == file.ino() as u32 && (on == device || named)
    };
    let netlink = ask(REQUEST | DUMP, 1 << IDLE, 0, SHOW_NAME_AND_FILE)?;
    let mut answer = vec![0; LONGEST];
    loop {
        let length = recv(netlink.as_raw_fd(), &mut answer, MsgFlags::MSG_DONTWAIT)?;
        for (kind, message) in messages(&answer[..length]) {
            match kind {
                BY_FAMILY if is_it(message) => return Ok(true),
                BY_FAMILY => {}
                DONE => return Ok(false),
                _ => return Err(Errno::ENODATA.into()),
            }
        }
    }
}

fn ask(flags: u16, states: u32, inode: u32, show: u32) -> io::Result<OwnedFd> {
    let netlink = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkSockDiag)?;
    let any_cookie = [u32::MAX; 2];
    let mut question = Vec::with_capacity(HEAD + ASKED);
    question.extend(((HEAD + ASKED) as u32).to_ne_bytes());
    question.extend([BY_FAMILY, flags].map(u16::to_ne_bytes).concat());
    // The message's number, and who asks: nobody else hears the answer.
    question.extend([0; 8]);
    question.extend([libc::AF_UNIX as u8, 0, 0, 0]);
    question.extend([states, inode, show].map(u32::to_ne_bytes).concat());
    question.extend(any_cookie.map(u32::to_ne_bytes).concat());
    send(netlink.as_raw_fd(), &question, MsgFlags::empty())?;
    Ok(netlink)
}

fn short(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn two_words(bytes: &[u8]) -> Option<(u32, u32)> {
    let word = |at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    Some((word(0)?, word(4)?))
}

/// Each message with its kind: "length kind flags number sender", and a body, padded to words.
fn messages(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (length, _) = two_words(rest)?;
        let kind = short(rest, 4)?;
        let message = rest.get(..length as usize).filter(|message| message.len() >= HEAD)?;
        rest = rest.get(message.len().next_multiple_of(4)..).unwrap_or_default();
        Some((kind, message))
    })
}

/// The attributes behind "family type state pad inode cookie": "length kind" and a value, padded to words.
fn attributes(message: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = message.get(ANSWERED..).unwrap_or_default();
    std::iter::from_fn(move || {
        let (length, kind) = (usize::from(short(rest, 0)?), short(rest, 2)?);
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
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

    #[test]
    fn a_path_that_is_bound_is_told_from_one_that_was() {
        use nix::sys::socket::{UnixAddr, bind};
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("bound");
        let kept = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
        bind(kept.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
        let link = directory.path().join("link");
        fs::hard_link(&path, &link).unwrap();
        assert!(is_bound(&path).unwrap() && is_bound(&link).unwrap());
        drop(kept);
        assert!(!is_bound(&path).unwrap());
        // One that listens is known by its answer, and one that only was connected holds nothing.
        let path = directory.path().join("listens");
        let listener = UnixListener::bind(&path).unwrap();
        let client = UnixStream::connect(&path).unwrap();
        let accepted = listener.accept().unwrap();
        drop(listener);
        assert!(!is_bound(&path).unwrap());
        drop((client, accepted));
        assert!(is_bound(&directory.path().join("nothing")).is_err());
    }
}
