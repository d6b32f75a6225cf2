//! How many connections wait to be accepted, and how many may, by address.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::socket::AddressFamily;
use nix::sys::stat::fstat;

use super::shares::Shares;
use crate::config::{Listen, MOST_WORKERS};
use crate::control::requests::Queue;
use crate::sockets::{Listener, queues};
use crate::sys::options;

/// Of each address its queues together, in the order of the addresses; then those of the shared ports.
pub(super) fn all(listen: &[Listen], listeners: &[Listener], shares: &Shares<impl AsFd>) -> Vec<Queue> {
    // By where it stands among the addresses, which is their order.
    let mut given: BTreeMap<*const Listen, Queue> = BTreeMap::new();
    // The sockets say where to end: there may be more or fewer than workers are wanted just now.
    for (listener, (listen, _)) in listeners.iter().zip(queues::all(listen, MOST_WORKERS)) {
        let empty = || Queue { address: listen.address.to_string(), ..Queue::default() };
        add(given.entry(listen).or_insert_with(empty), listener.as_fd());
    }
    let shared = shares.held().map(|(key, socket)| {
        let mut queue = Queue { address: key.address.to_string(), ..Queue::default() };
        add(&mut queue, socket.as_fd());
        queue
    });
    given.into_values().chain(shared).collect()
}

fn add(sum: &mut Queue, socket: BorrowedFd<'_>) {
    sum.queues += 1;
    if options::kind(socket).is_ok_and(|(family, ..)| family == AddressFamily::Unix as i32) {
        sum.inode = fstat(socket).map(|stat| stat.st_ino).ok();
    }
    // Datagrams have none.
    let Some((queued, limit)) = options::accept_queue(socket).ok().flatten() else { return };
    sum.queued = Some(sum.queued.unwrap_or_default().saturating_add(queued));
    sum.limit = Some(sum.limit.unwrap_or_default().saturating_add(limit));
    sum.fullest = sum.fullest.max(Some(queued));
}
