//! Number of connections that wait to be accepted, and its limit, by address.

use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::socket::AddressFamily;
use nix::sys::stat::fstat;

use super::held::AllHeld;
use crate::control::operator::status::Queue;
use crate::main_process::decide::shared_ports::Shares;
use crate::sys::socket_options;

/// The queues of each address together, in the order of the addresses; then those of the shared ports.
pub(crate) fn all(held: &AllHeld, shares: &Shares<impl AsFd>) -> Vec<Queue> {
    let mut given: Vec<Queue> = Vec::new();
    // The sockets of an address stand together.
    let mut before = None;
    for held in held.iter() {
        let is_another = before.replace(held).is_none_or(|before| !before.is_of(&held.listen));
        if is_another {
            given.push(Queue { address: held.listen.address.to_string(), ..Queue::default() });
        }
        given.last_mut().into_iter().for_each(|sum| add(sum, held.listener.as_fd()));
    }
    let only_shared = shares.held().filter(|(key, _)| held.is_claimed(key).is_none());
    let shared = only_shared.map(|(key, socket)| {
        let mut queue = Queue { address: key.address.to_string(), ..Queue::default() };
        add(&mut queue, socket.as_fd());
        queue
    });
    given.into_iter().chain(shared).collect()
}

fn add(sum: &mut Queue, socket: BorrowedFd<'_>) {
    sum.queues += 1;
    if socket_options::kind(socket).is_ok_and(|(family, ..)| family == AddressFamily::Unix as i32) {
        sum.inode = fstat(socket).map(|stat| stat.st_ino).ok();
    }
    // A datagram socket has no accept queue.
    let Some((queued, limit)) = socket_options::accept_queue(socket).ok().flatten() else { return };
    sum.queued = Some(sum.queued.unwrap_or_default().saturating_add(queued));
    sum.limit = Some(sum.limit.unwrap_or_default().saturating_add(limit));
    sum.fullest = sum.fullest.max(Some(queued));
}
