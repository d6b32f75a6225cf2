//! Per-slot queues (`per-worker`): which socket belongs to which slot.
//!
//! The first `listen.len()` sockets are the shared ones and the queues of slot 0. The queues of slots 1, 2, … follow. A
//! queue that is sent comes with its place, so that a lost one does not move the others.

use nix::sys::resource::{Resource, getrlimit};

use crate::config::{Listen, MAX_LISTENERS, MAX_WORKERS, Plan, Stream};

/// Number of descriptors that main and a monitor need besides sockets and workers, with a reserve.
const OTHERS: u64 = 128;

/// All sockets in their order, each with its address and its slot.
pub fn all(listen: &[Listen], workers: u32) -> impl Iterator<Item = (&Listen, u32)> {
    let further = (1..workers).flat_map(|slot| per_worker(listen).map(move |listen| (listen, slot)));
    listen.iter().map(|listen| (listen, 0)).chain(further)
}

/// The places of the sockets of `slot`, in the order of the addresses.
pub fn of_slot(listen: &[Listen], slot: u32) -> Vec<usize> {
    let earlier = (slot as usize).saturating_sub(1) * per_worker(listen).count();
    let mut own = listen.len() + earlier..;
    let place = |(at, listen): (usize, &Listen)| if listen.per_worker && slot > 0 { own.next() } else { Some(at) };
    listen.iter().enumerate().filter_map(place).collect()
}

/// The sockets of a monitor, each at its place. Some may not have come yet.
#[derive(Debug)]
pub struct Placed<S>(Vec<Option<S>>);

impl<S> Placed<S> {
    /// These sockets have the first places.
    pub fn new(sockets: Vec<S>) -> Placed<S> {
        Placed(sockets.into_iter().map(Some).collect())
    }

    /// Puts a socket at its place. False if there is no such place.
    pub fn put(&mut self, place: usize, socket: S) -> bool {
        if place >= MAX_LISTENERS * MAX_WORKERS as usize {
            return false;
        }
        self.0.resize_with(self.0.len().max(place + 1), || None);
        self.0[place] = Some(socket);
        true
    }

    /// The sockets of `slot`, in the order of the addresses; or the place of a socket that has not come.
    pub fn of_slot(&self, listen: &[Listen], slot: u32) -> Result<Vec<&S>, usize> {
        let at = |place: usize| self.0.get(place).and_then(Option::as_ref).ok_or(place);
        of_slot(listen, slot).into_iter().map(at).collect()
    }

    /// Closes all sockets.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}

/// If the workers' queues and pipes take more descriptors than this process may have, a message about that.
pub fn shortage(plan: &Plan) -> Option<String> {
    let (allowed, _) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
    let workers = u64::from(plan.workers);
    let sockets = per_worker(&plan.listen).next().map_or(0, |_| all(&plan.listen, plan.workers).count() as u64);
    let pipes = workers * Stream::BOTH.into_iter().filter(|stream| plan.logs.of(*stream).is_some()).count() as u64;
    // Main has each socket twice, because its guard has a copy, and once more while it starts a process that gets them.
    // During a reload it has the pipes of two generations.
    let (what, needed) = match (sockets, pipes) {
        (0, 0) => return None,
        // If only few descriptors are allowed, half of them must do.
        (0, _) if 4 * pipes <= allowed => return None,
        (0, _) => (format!("the output of {workers} workers takes {pipes} pipes"), 2 * pipes + OTHERS / 2),
        _ => {
            let needed = 3 * sockets + 2 * pipes + workers + OTHERS;
            (format!("per-worker queues for {workers} workers are {sockets} sockets"), needed)
        }
    };
    (needed > allowed).then(|| {
        format!(
            "{what}, for which {needed} open files must be allowed, and {allowed} are; raise that (ulimit -n, or \
             LimitNOFILE= of a systemd unit), or take fewer workers"
        )
    })
}

fn per_worker(listen: &[Listen]) -> impl Iterator<Item = &Listen> {
    listen.iter().filter(|listen| listen.per_worker)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listen() -> Vec<Listen> {
        ["81,per-worker", "unix:@app", "udp:53,per-worker"].iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn what_a_slot_gets_was_made_for_it() {
        let listen = listen();
        let all: Vec<_> = all(&listen, 4).collect();
        assert_eq!(all.len(), 3 + 3 * 2);
        for slot in 0..4 {
            for (wanted, at) in listen.iter().zip(of_slot(&listen, slot)) {
                let slot = if wanted.per_worker { slot } else { 0 };
                assert_eq!(all[at], (wanted, slot));
            }
        }
    }

    #[test]
    fn one_more_worker_moves_no_socket() {
        let listen = listen();
        let fewer: Vec<_> = all(&listen, 3).collect();
        assert!(all(&listen, 4).collect::<Vec<_>>().starts_with(&fewer));
    }
}
