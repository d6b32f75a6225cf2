//! A server as most are: one thread that accepts, reads, puts a page together from files, answers and closes. It makes
//! some fourteen system calls a request and computes nothing, so that a filter in front of each call shows.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::{AsRawFd, FromRawFd};
use std::path::Path;
use std::process;

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, bind, listen, setsockopt, socket, sockopt,
};

use super::Measured;
use super::crowd::Question;

/// The first inherited descriptor.
const INHERITED: i32 = 3;

/// So many files make a page.
const FILES: usize = 3;
/// In bytes.
const FILE: usize = 512;

/// An answer's length in bytes: every one is as long as any other.
const ANSWER: usize = PAGE_AT + FILES * FILE;

/// All requests are alike, so that one can be told from the next by its length.
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";

const HEAD: &str = "HTTP/1.1 200 OK\r\nContent-Length: 1536\r\nX-Worker: ";
/// The digits of a pid and the spaces before it.
const PID: usize = 10;
const BREAK: &str = "\r\n\r\n";
const PAGE_AT: usize = HEAD.len() + PID + BREAK.len();

// As the head says.
const _: () = assert!(FILES * FILE == 1536);

/// Writes the file that pages are made of.
pub(crate) fn write_page(path: &Path) -> Measured<()> {
    Ok(std::fs::write(path, [b'.'; FILE])?)
}

/// So many requests at once, on each connection to this port.
pub(crate) fn question(port: u16, at_once: usize) -> Question {
    Question { port, request: REQUEST.to_vec(), answer: ANSWER, at_once, times: 1, says_end: true, worker }
}

/// The pid of the worker that gave this answer.
fn worker(answer: &[u8]) -> Option<u32> {
    let rest = answer.strip_prefix(HEAD.as_bytes())?;
    std::str::from_utf8(rest.get(..PID)?).ok()?.trim_start().parse().ok()
}

/// Answers all requests of a connection with the file named first, then those of the next, until it is killed; on the
/// port named second, or on the inherited listener.
pub(crate) fn serve(arguments: &[String]) -> Measured<()> {
    let file = arguments.first().ok_or("no file to serve")?;
    let listener = match arguments.get(1) {
        Some(port) => bound(port.parse()?)?,
        // SAFETY: panzer puts the listener there, and nobody else in this process knows of it.
        None => unsafe { TcpListener::from_raw_fd(INHERITED) },
    };
    let mut answer = [0; ANSWER];
    answer[..PAGE_AT].copy_from_slice(format!("{HEAD}{:>PID$}{BREAK}", process::id()).as_bytes());
    let mut request = [0; REQUEST.len()];
    loop {
        let (mut connection, _) = listener.accept()?;
        // A client that goes away is its own affair.
        while connection.read_exact(&mut request).is_ok() {
            for place in answer[PAGE_AT..].chunks_exact_mut(FILE) {
                let mut file = File::open(file)?;
                file.metadata()?;
                file.read_exact(place)?;
            }
            if connection.write_all(&answer).is_err() {
                break;
            }
        }
    }
}

/// As the standard library binds, with room for every client in the queue.
fn bound(port: u16) -> Measured<TcpListener> {
    let fd = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    bind(fd.as_raw_fd(), &SockaddrIn::from(std::net::SocketAddrV4::new(Ipv4Addr::LOCALHOST, port)))?;
    listen(&fd, Backlog::MAXCONN)?;
    Ok(TcpListener::from(fd))
}
