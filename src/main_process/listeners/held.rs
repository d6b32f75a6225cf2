//! The listeners that main holds.
//!
//! The per-slot sockets of one address form a SO_REUSEPORT group. This list mirrors the kernel's order, because the BPF
//! program addresses sockets by index: a new socket is appended; when one leaves (closed or shut down), the last one
//! moves into its place.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, RawFd};

use serde::{Deserialize, Serialize};

use crate::config::{Address, Listen, Plan};
use crate::sockets::sharing::{Key, is_at};
use crate::sockets::{Listener, queues};
use crate::sys::socket_options;

/// A listener that main holds.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Held {
    /// Number of this listener. No other has it as long as this one is held.
    pub(crate) number: u64,
    /// Name of this listener in messages and in the guard.
    pub(crate) name: String,
    /// The settings that it has now. In the first listener of an address, `per_worker` says whether others may join it.
    pub(crate) listen: Listen,
    /// The slot whose queue this is; 0 if all slots share it.
    pub(crate) slot: u32,
    /// Whether a worker has shut it down, and it does not listen again yet.
    silent: bool,
    pub(crate) listener: Listener,
}

/// What identifies a listener in a plan. The descriptor belongs to it, because several inherited ones may have the same
/// address.
type HeldKey<'a> = (&'a Address, Option<RawFd>, u32);

fn key_of(listen: &Listen, slot: u32) -> HeldKey<'_> {
    (&listen.address, listen.inherited, slot)
}

impl Held {
    /// Whether `listen` asks for this listener, or for a group that it belongs to.
    pub(crate) fn is_of(&self, listen: &Listen) -> bool {
        key_of(&self.listen, 0) == key_of(listen, 0)
    }

    /// Whether it was shut down, as far as main knows.
    pub(crate) fn is_silent(&self) -> bool {
        self.silent
    }
}

/// All held listeners.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct AllHeld(Vec<Held>);

impl AllHeld {
    /// Replaces port 0 by the port that the kernel chose when the listener was first bound.
    pub(crate) fn with_port(&self, listen: &Listen) -> Listen {
        let is_it = |held: &&Held| {
            let other = &held.listen;
            other.free_port && other.name == listen.name && other.address.with_port(0) == listen.address
        };
        let bound = self.iter().find(is_it).filter(|_| listen.lacks_port());
        bound.map_or(listen.clone(), |held| Listen { address: held.listen.address.clone(), ..listen.clone() })
    }

    /// The same for all listeners of a plan.
    pub(crate) fn settle_ports(&self, plan: &mut Plan) {
        plan.listen.iter_mut().for_each(|listen| *listen = self.with_port(listen));
    }

    /// Adds a listener that has just been bound, and so is the last of its group. Returns its number.
    pub(crate) fn add(&mut self, mut listen: Listen, slot: u32, listener: Listener) -> u64 {
        if let Some(port) = listener.port().filter(|_| listen.lacks_port()) {
            listen.address = listen.address.with_port(port);
        }
        let whose = if listen.per_worker { format!(" (the queue of worker {slot})") } else { String::new() };
        let name = format!("{}{whose}", listen.address);
        let number = self.0.iter().map(|held| held.number + 1).max().unwrap_or_default();
        let place = self.end_of_group(&listen.address);
        self.0.insert(place, Held { number, name, listen, slot, silent: false, listener });
        number
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Held> {
        self.0.iter()
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Held> {
        self.0.iter_mut()
    }

    pub(crate) fn by_number(&self, number: u64) -> Option<&Held> {
        self.iter().find(|held| held.number == number)
    }

    /// The listener for all slots that a worker means if it binds `key`.
    pub(crate) fn is_claimed(&self, key: &Key) -> Option<&Held> {
        self.iter().find(|held| !held.listen.per_worker && is_at(key, &held.listen.address, &held.listener))
    }

    /// The listener that `listen` asks for; the queue of slot 0 if there are several.
    pub(crate) fn first(&self, listen: &Listen) -> Option<&Held> {
        self.iter().find(|held| held.slot == 0 && held.is_of(listen))
    }

    /// Whether any slot but the first has a queue of its own.
    pub(crate) fn has_groups(&self) -> bool {
        self.iter().any(|held| held.slot > 0)
    }

    /// The listeners of `listen` that are not held, with their slots, for this number of workers.
    pub(crate) fn missing<'a>(&self, listen: &'a [Listen], workers: u32) -> Vec<(&'a Listen, u32)> {
        let held = self.by_key();
        queues::all(listen, workers).filter(|(listen, slot)| !held.contains_key(&key_of(listen, *slot))).collect()
    }

    /// The sockets of `listen` for this number of workers, in their order, without the first `before`.
    pub(crate) fn sockets(&self, listen: &[Listen], workers: u32, before: usize) -> io::Result<Vec<BorrowedFd<'_>>> {
        let held = self.by_key();
        let socket = |(listen, slot): (&Listen, u32)| match held.get(&key_of(listen, slot)) {
            Some(held) => Ok(held.listener.as_fd()),
            None => Err(io::Error::other(format!("{} of worker {slot} is not held", listen.address))),
        };
        queues::all(listen, workers).skip(before).map(socket).collect()
    }

    fn by_key(&self) -> BTreeMap<HeldKey<'_>, &Held> {
        self.iter().map(|held| (key_of(&held.listen, held.slot), held)).collect()
    }

    /// Each group, in the kernel's order.
    pub(crate) fn groups(&self) -> Vec<Vec<&Held>> {
        let mut groups: BTreeMap<&Address, Vec<&Held>> = BTreeMap::new();
        for held in self.iter().filter(|held| held.listen.per_worker && !held.silent) {
            groups.entry(&held.listen.address).or_default().push(held);
        }
        groups.into_values().collect()
    }

    /// Removes a listener, which is then closed and so leaves its group.
    pub(crate) fn remove(&mut self, number: u64) -> Option<Held> {
        let at = self.leave(|held| held.number == number)?;
        Some(self.0.remove(at))
    }

    /// A worker has shut down the listener with this name. It has left its group.
    pub(crate) fn fell_silent(&mut self, name: &str) {
        if let Some(at) = self.leave(|held| held.name == name && !held.silent) {
            self.0[at].silent = true;
        }
    }

    /// Finds all listeners that were shut down, reported or not. The next socket that joins stands behind those that
    /// are left.
    pub(crate) fn look_who_is_silent(&mut self) {
        let grouped = self.has_groups();
        let is_silent = |held: &Held| {
            held.listen.address.accepts() && socket_options::backlog(&held.listener).is_ok_and(|it| it.is_none())
        };
        while let Some(at) = self.leave(|held| grouped && held.listen.per_worker && !held.silent && is_silent(held)) {
            self.0[at].silent = true;
        }
    }

    /// The listener with this name listens again, as the last of its group.
    pub(crate) fn listens_again(&mut self, name: &str) {
        let Some(from) = self.0.iter().position(|held| held.name == name && held.silent) else { return };
        let mut held = self.0.remove(from);
        held.silent = false;
        let place = self.end_of_group(&held.listen.address);
        self.0.insert(place, held);
    }

    /// Does what the kernel does: the last socket takes the place of the one that leaves. The one that leaves stands
    /// behind it then. Returns its position.
    fn leave(&mut self, leaves: impl Fn(&Held) -> bool) -> Option<usize> {
        let at = self.0.iter().position(leaves)?;
        if self.0[at].silent {
            return Some(at);
        }
        let address = &self.0[at].listen.address;
        let last = self.0.iter().rposition(|held| held.listen.address == *address && !held.silent)?;
        self.0.swap(at, last);
        Some(last)
    }

    /// The position behind the listening sockets of an address, and before those that were shut down. The end of the
    /// list if there are none.
    fn end_of_group(&self, address: &Address) -> usize {
        let last = self.0.iter().rposition(|held| held.listen.address == *address && !held.silent);
        let silent = || self.0.iter().position(|held| held.listen.address == *address);
        last.map(|last| last + 1).or_else(silent).unwrap_or(self.0.len())
    }

    /// Closes all listeners.
    pub(crate) fn close(&mut self) {
        self.0.drain(..).for_each(|held| held.listener.close());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;

    fn add(all: &mut AllHeld, listen: &str, slot: u32) -> u64 {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        all.add(listen.parse().unwrap(), slot, Listener::without_path(socket.into()))
    }

    fn order(all: &AllHeld) -> Vec<u32> {
        all.groups().into_iter().flatten().map(|held| held.slot).collect()
    }

    const OWN: &str = "81,per-worker";

    #[test]
    fn they_stand_as_the_kernel_has_them() {
        let mut all = AllHeld::default();
        for listen in ["80", OWN, "82"] {
            add(&mut all, listen, 0);
        }
        let numbers: Vec<u64> = (1..5).map(|slot| add(&mut all, OWN, slot)).collect();
        let name = |slot: u32| format!("port 81 (the queue of worker {slot})");
        assert_eq!(order(&all), [0, 1, 2, 3, 4]);
        all.fell_silent(&name(1));
        all.fell_silent(&name(1));
        assert_eq!(order(&all), [0, 4, 2, 3]);
        all.fell_silent(&name(2));
        assert_eq!(order(&all), [0, 4, 3]);
        all.listens_again(&name(1));
        add(&mut all, OWN, 5);
        assert_eq!(order(&all), [0, 4, 3, 1, 5]);
        all.listens_again(&name(2));
        assert_eq!(order(&all), [0, 4, 3, 1, 5, 2]);
        all.remove(numbers[2]).unwrap();
        assert_eq!(order(&all), [0, 4, 2, 1, 5]);
        all.fell_silent(&name(0));
        assert_eq!(order(&all), [5, 4, 2, 1]);
        all.listens_again(&name(0));
        assert_eq!(order(&all), [5, 4, 2, 1, 0]);
    }

    #[test]
    fn a_generation_gets_its_own_in_its_own_order() {
        let mut all = AllHeld::default();
        for listen in ["80", OWN, "82"] {
            add(&mut all, listen, 0);
        }
        add(&mut all, OWN, 1);
        let wanted: Vec<Listen> = ["82", "83", OWN].iter().map(|text| text.parse().unwrap()).collect();
        let missing: Vec<_> =
            all.missing(&wanted, 3).into_iter().map(|(listen, slot)| (listen.clone(), slot)).collect();
        assert_eq!(missing, [(wanted[1].clone(), 0), (wanted[2].clone(), 2)]);
        assert!(all.sockets(&wanted, 2, 0).is_err());
        add(&mut all, "83", 0);
        assert_eq!(all.sockets(&wanted, 2, 0).unwrap().len(), 4);
        assert_eq!(all.sockets(&wanted, 2, 3).unwrap().len(), 1);
    }
}
