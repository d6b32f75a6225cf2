//! Whether a worker bypasses the listeners that it was given, and where it listens instead.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, RawFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt};
use nix::time::{ClockId, clock_getcpuclockid};
use nix::unistd::Pid;

use super::listeners::{Address, Listeners, address_of};
use super::look::{Look, Sight, look};
use super::proc::{self, Link};
use crate::sys::pidfd::PidFd;

/// Limit of the addresses that are logged.
const MAX_ADDRESSES_LOGGED: usize = 3;

/// The work of a worker that does not accept on the listeners that it was given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bypass {
    /// Other TCP addresses on which it is seen listening, at most a few.
    pub own: Vec<String>,
    /// Processor time that it and its descendants have used so far.
    pub ran: Duration,
}

/// Looks at `worker`, an unreaped child of ours, and at its descendants. None if it accepts on one of `listeners`, or
/// if that cannot be seen. Never waits.
pub fn bypass(worker: Pid, listeners: &Listeners) -> Option<Bypass> {
    matches!(look(worker, listeners), Sight::NotYet(_)).then(|| {
        let (own, family) = own_of_family(worker, listeners);
        let own = own.tcp.into_iter().take(MAX_ADDRESSES_LOGGED).collect();
        // A process that has ended meanwhile does not count.
        let time = |pid: Pid| clock_getcpuclockid(pid).and_then(ClockId::now).map_or(Duration::ZERO, Duration::from);
        Bypass { own, ran: family.into_iter().map(time).sum() }
    })
}

/// The addresses on which a worker and its descendants listen by themselves.
#[derive(Debug, Default)]
pub struct Own {
    /// TCP addresses, as people write them.
    pub tcp: BTreeSet<String>,
    /// Unix paths as they were bound, each with a process that listens there.
    pub paths: Vec<(Pid, PathBuf)>,
}

/// The addresses other than `listeners` on which `worker` and its descendants listen, as far as one look shows.
pub fn own_listeners(worker: Pid, listeners: &Listeners) -> Own {
    own_of_family(worker, listeners).0
}

fn own_of_family(worker: Pid, listeners: &Listeners) -> (Own, Vec<Pid>) {
    let mut look = Look::new(listeners);
    let (mut family, mut found, mut next) = (vec![worker], Own::default(), 0);
    while let Some(&pid) = family.get(next).filter(|_| look.steps > 0) {
        next += 1;
        family.extend(proc::threads(pid).take_while(|_| look.may_go_on()).flat_map(|thread| thread.children()));
        for address in look.own_listeners(pid) {
            match address {
                Address::Tcp(address) => drop(found.tcp.insert(address.to_string())),
                Address::Unix(name) => found.paths.extend(name.path().map(|path| (pid, Path::to_owned(path)))),
                Address::Unknown => {}
            }
        }
    }
    (found, family)
}

impl Look<'_> {
    fn own_listeners(&mut self, pid: Pid) -> Vec<Address> {
        let Some(main_thread) = proc::threads(pid).next() else { return Vec::new() };
        let descriptors = self.shown(main_thread.descriptors());
        let is_own = |link: Link| matches!(link, Link::Socket(inode) if !self.listeners.contains(inode));
        let sockets = descriptors.into_iter().take(self.steps as usize);
        let sockets: Vec<RawFd> = sockets.filter(|&fd| main_thread.link(fd).is_ok_and(is_own)).collect();
        let Ok(process) = PidFd::open(pid) else { return Vec::new() };
        let listening = |fd| {
            let socket = process.copy_of(fd).ok()?;
            let listens = getsockopt(&socket, sockopt::AcceptConn).ok()?;
            listens.then(|| address_of(socket.as_fd()))
        };
        sockets.into_iter().filter_map(listening).collect()
    }
}
