//! Shared ports by themselves: main's book of them, between a kernel that knows who has bound what, and workers that bind,
//! load, listen, connect, close, become ready and die, with monitors that answer late, never, or end.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use panzer::main_process::decide::Monitor;
use panzer::main_process::decide::shared_ports::{Claimant, Claimed, Shares};
use panzer::sockets::sharing::Key;

use crate::choices::Choices;

const HISTORIES: u64 = 20_000;
const STEPS: u32 = 60;

/// Longer than anybody may wait for what is over.
const LONG: Duration = Duration::from_secs(6);

/// What is wrong on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Planted {
    HoldsFromTheBindOn,
    ForgetsWhoWaitsForAMonitorThatEnds,
    ForgetsWhoWaitsForAListen,
    NeverAsks,
    WaitsForOneThatIsConnected,
    LetsOthersInWhileTheFirstLoads,
}

const ALL: [Planted; 6] = [
    Planted::HoldsFromTheBindOn,
    Planted::ForgetsWhoWaitsForAMonitorThatEnds,
    Planted::ForgetsWhoWaitsForAListen,
    Planted::NeverAsks,
    Planted::WaitsForOneThatIsConnected,
    Planted::LetsOthersInWhileTheFirstLoads,
];

/// What a worker's socket is to the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Socket {
    Bound,
    Connected,
    Listens,
}

#[derive(Debug)]
struct Worker {
    monitor: Monitor,
    port: u16,
    ticket: u64,
    /// Whether its bind waits for an answer.
    asks: bool,
    socket: Option<Socket>,
    starting: bool,
}

struct World {
    shares: Shares<u64>,
    now: Instant,
    workers: BTreeMap<i32, Worker>,
    /// Monitors that do not answer.
    hung: BTreeSet<Monitor>,
    ever_hung: BTreeSet<Monitor>,
    /// Who waits though nobody loads, and since when.
    for_nobody: BTreeMap<i32, Instant>,
    next: i32,
    /// The sockets that have ever listened, by the process that bound each.
    listened: BTreeSet<u64>,
    planted: Option<Planted>,
    waited: u64,
}

fn key(port: u16) -> Key {
    Key::new(1, String::new(), false, ([127, 0, 0, 1], port).into())
}

impl World {
    fn is(&self, planted: Planted) -> bool {
        self.planted == Some(planted)
    }

    fn claim(&mut self, process: i32) -> Result<(), String> {
        let Worker { monitor, port, ticket, .. } = self.workers[&process];
        let first = self.workers.iter().find(|(other, it)| {
            **other != process && it.port == port && it.socket == Some(Socket::Bound) && it.starting
        });
        let first = first.map(|(other, _)| *other);
        let answer = match self.shares.claim(&key(port), (monitor, ticket), process, true, self.now) {
            Claimed::Held(held) => Some(*held),
            Claimed::Waits => {
                self.waited += 1;
                return Ok(());
            }
            Claimed::Kernel => None,
        };
        if let Some(held) = answer {
            return self.given(process, held);
        }
        if let Some(first) = first.filter(|first| !self.ever_hung.contains(&self.workers[first].monitor)) {
            return Err(format!("{process} does not wait for {first}, which is still loading"));
        }
        let is_taken = self.workers.values().any(|other| other.port == port && other.socket.is_some());
        let worker = self.workers.get_mut(&process).unwrap();
        worker.asks = false;
        if !is_taken {
            worker.socket = Some(Socket::Bound);
            self.shares.bound(key(port), (monitor, ticket), process);
            if self.is(Planted::HoldsFromTheBindOn) {
                self.shares.hold(&key(port), process as u64, monitor.generation, self.now);
            }
        }
        Ok(())
    }

    /// A worker gets the held socket in the place of its own.
    fn given(&mut self, process: i32, held: u64) -> Result<(), String> {
        let worker = self.workers.get_mut(&process).unwrap();
        (worker.asks, worker.socket) = (false, Some(Socket::Listens));
        if !self.listened.contains(&held) {
            Err(format!("{process} gets the socket of {held}, which does not listen"))
        } else {
            Ok(())
        }
    }

    fn answer(&mut self, claimants: Vec<Claimant>, held: Option<u64>) -> Result<(), String> {
        for (monitor, ticket) in claimants {
            let asks = self.workers.iter().find(|(_, it)| (it.monitor, it.ticket) == (monitor, ticket));
            let Some(process) = asks.filter(|(_, it)| it.asks).map(|(process, _)| *process) else { continue };
            match held {
                Some(held) => self.given(process, held)?,
                None => {
                    let worker = self.workers.get_mut(&process).unwrap();
                    // From here on it waits for another one, if at all.
                    worker.ticket += 1000;
                    self.for_nobody.remove(&process);
                    self.claim(process)?;
                }
            }
        }
        Ok(())
    }

    fn listens(&mut self, process: i32) -> Result<(), String> {
        let Worker { monitor, port, .. } = self.workers[&process];
        self.workers.get_mut(&process).unwrap().socket = Some(Socket::Listens);
        self.listened.insert(process as u64);
        if self.shares.take(&key(port), monitor.generation, self.now).is_some() {
            return Ok(());
        }
        let waiting = self.shares.hold(&key(port), process as u64, monitor.generation, self.now).unwrap_or_default();
        let waiting = if self.is(Planted::ForgetsWhoWaitsForAListen) { Vec::new() } else { waiting };
        self.answer(waiting, Some(process as u64))
    }

    fn tend(&mut self) -> Result<(), String> {
        if self.is(Planted::NeverAsks) {
            return Ok(());
        }
        let due = self.shares.due(self.now);
        self.answer(due.again, None)?;
        for bound in due.looks {
            if self.hung.contains(&bound.0) {
                continue;
            }
            let by = self.workers.values().find(|it| (it.monitor, it.ticket) == bound);
            let may_listen = by.is_some_and(|it| {
                let idle = it.socket == Some(Socket::Bound)
                    || (self.is(Planted::WaitsForOneThatIsConnected) && it.socket == Some(Socket::Connected));
                idle && it.starting && !self.is(Planted::LetsOthersInWhileTheFirstLoads)
            });
            let again = self.shares.looked(bound, may_listen, self.now);
            self.answer(again, None)?;
        }
        Ok(())
    }

    fn monitor_ends(&mut self, monitor: Monitor) -> Result<(), String> {
        self.workers.retain(|_, it| it.monitor != monitor);
        let again = self.shares.monitor_ended(monitor);
        self.shares.release(monitor.generation, self.now);
        let again = if self.is(Planted::ForgetsWhoWaitsForAMonitorThatEnds) { Vec::new() } else { again };
        self.answer(again, None)
    }

    fn step(&mut self, choices: &mut Choices) -> Result<(), String> {
        self.now += Duration::from_millis(choices.below(400));
        let processes: Vec<i32> = self.workers.keys().copied().collect();
        let any = |choices: &mut Choices| processes.get(choices.below(processes.len().max(1) as u64) as usize).copied();
        match choices.below(10) {
            0..=2 => {
                let monitor = Monitor { generation: 1 + choices.below(3) as u32, life: 1 };
                let (port, process) = (80 + choices.below(2) as u16, self.next);
                self.next += 1;
                let (ticket, asks) = (process as u64, true);
                let worker = Worker { monitor, port, ticket, asks, socket: None, starting: true };
                self.workers.insert(process, worker);
                self.claim(process)?;
            }
            kind @ 3..=8 => {
                let Some(process) = any(choices) else { return Ok(()) };
                let worker = self.workers.get_mut(&process).unwrap();
                match (kind, worker.socket) {
                    (3 | 4, Some(Socket::Bound)) => self.listens(process)?,
                    (5, Some(Socket::Bound)) => worker.socket = Some(Socket::Connected),
                    (6, Some(_)) => worker.socket = None,
                    (7, _) => worker.starting = false,
                    (8, _) => drop(self.workers.remove(&process)),
                    _ => {}
                }
            }
            _ => {
                let monitor = Monitor { generation: 1 + choices.below(3) as u32, life: 1 };
                match choices.below(3) {
                    0 => self.monitor_ends(monitor)?,
                    1 => {
                        self.hung.insert(monitor);
                        self.ever_hung.insert(monitor);
                    }
                    _ => drop(self.hung.remove(&monitor)),
                }
            }
        }
        self.tend()
    }

    /// Nobody waits for what is over, and nothing is done where nobody waits.
    fn check(&mut self) -> Result<(), String> {
        let asking = self.workers.iter().filter(|(_, it)| it.asks);
        let loads = |process: i32, port: u16| {
            let other = |(other, it): (&i32, &Worker)| {
                *other != process && it.port == port && it.socket == Some(Socket::Bound) && it.starting
            };
            self.workers.iter().any(other)
        };
        let for_nobody = asking.filter(|(process, it)| !loads(**process, it.port));
        let since = |process: i32| self.for_nobody.get(&process).copied().unwrap_or(self.now);
        self.for_nobody = for_nobody.map(|(process, _)| (*process, since(*process))).collect();
        if let Some((process, since)) = self.for_nobody.iter().find(|(_, since)| self.now > **since + LONG) {
            return Err(format!("{process} has waited for {:?}, for nobody", self.now - *since));
        }
        match self.shares.held().find(|(_, held)| !self.listened.contains(held)) {
            Some((_, held)) => Err(format!("{held} is held and does not listen")),
            None => Ok(()),
        }
    }

    /// With the time that all need, each is answered.
    fn settle(&mut self) -> Result<(), String> {
        self.workers.values_mut().for_each(|worker| worker.starting = false);
        self.hung.clear();
        for _ in 0..20_000 {
            let Some(next) = self.shares.deadline(Some(u32::MAX)).filter(|_| self.workers.values().any(|it| it.asks))
            else {
                break;
            };
            self.now = self.now.max(next);
            self.shares.close_abandoned(Some(u32::MAX), self.now);
            self.tend()?;
            if self.is(Planted::NeverAsks) {
                break;
            }
        }
        match self.workers.iter().find(|(_, it)| it.asks) {
            Some((process, _)) => Err(format!("{process} waits for ever")),
            None => Ok(()),
        }
    }
}

fn play(seed: u64, planted: Option<Planted>) -> Result<u64, String> {
    let mut choices = Choices::from_seed(seed);
    let mut world = World {
        shares: Shares::new(Duration::from_secs(60)),
        now: Instant::now(),
        workers: BTreeMap::new(),
        hung: BTreeSet::new(),
        ever_hung: BTreeSet::new(),
        for_nobody: BTreeMap::new(),
        next: 1,
        listened: BTreeSet::new(),
        planted,
        waited: 0,
    };
    for _ in 0..STEPS {
        world.step(&mut choices)?;
        world.check()?;
    }
    world.settle()?;
    Ok(world.waited)
}

#[test]
fn shared_ports_keep_every_invariant() {
    let mut waited = 0;
    for seed in 0..HISTORIES {
        match play(seed, None) {
            Ok(one) => waited += one,
            Err(violation) => panic!("seed {seed}: {violation}"),
        }
    }
    assert!(waited > HISTORIES, "these histories prove little: {waited} waited");
}

#[test]
fn every_bug_planted_in_shared_ports_is_found() {
    for planted in ALL {
        let found = (0..HISTORIES).find_map(|seed| play(seed, Some(planted)).err());
        println!("{planted:?}: {}", found.unwrap_or_else(|| panic!("{planted:?} is not found")));
    }
}
