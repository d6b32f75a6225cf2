//! The queues of single workers on their way from main to a monitor: orders are lost, or arrive without their descriptor,
//! and so do the reports that ask for them again.

use panzer::config::Listen;
use panzer::sockets::queues::{Placed, all};

use crate::choices::Choices;

const HISTORIES: u64 = 5_000;
const STEPS: u32 = 40;

/// What is wrong on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Planted {
    /// A queue lies behind those that came before, whatever its place.
    TakesTheNextPlace,
    /// A worker is started with the queues that are there.
    StartsWithoutItsQueue,
    NeverAsksAgain,
}

const ALL: [Planted; 3] = [Planted::TakesTheNextPlace, Planted::StartsWithoutItsQueue, Planted::NeverAsksAgain];

/// An address and a slot: what a socket is made for.
type Queue = (usize, u32);

struct World {
    listen: Vec<Listen>,
    workers: u32,
    /// Number of sockets that main has sent, with those that the monitor began with.
    sent: usize,
    placed: Placed<Queue>,
    /// Number of sockets at the monitor, for the planted bug.
    arrived: usize,
    started: Vec<bool>,
    planted: Option<Planted>,
}

impl World {
    fn new(choices: &mut Choices, planted: Option<Planted>) -> World {
        let texts = ["81,per-worker", "unix:@app", "82,per-worker", "83"];
        let count = 1 + choices.below(4) as usize;
        let listen: Vec<Listen> = texts[..count].iter().map(|text| text.parse().unwrap()).collect();
        let workers = 1 + choices.below(3) as u32;
        let mut world = World {
            listen,
            workers,
            sent: 0,
            placed: Placed::new(Vec::new()),
            arrived: 0,
            started: Vec::new(),
            planted,
        };
        let queues = world.queues();
        (world.sent, world.arrived) = (queues.len(), queues.len());
        world.placed = Placed::new(queues);
        world.started = vec![false; workers as usize];
        world
    }

    /// All sockets for the workers that are wanted, in their order.
    fn queues(&self) -> Vec<Queue> {
        let index = |wanted: &Listen| self.listen.iter().position(|listen| listen == wanted).unwrap();
        all(&self.listen, self.workers).map(|(listen, slot)| (index(listen), slot)).collect()
    }

    fn scale(&mut self, choices: &mut Choices) {
        self.workers += 1 + choices.below(3) as u32;
        self.started.resize(self.workers as usize, false);
        for (place, queue) in self.queues().into_iter().enumerate().skip(self.sent) {
            self.send(place, queue, choices);
        }
        self.sent = self.queues().len();
    }

    fn send(&mut self, place: usize, queue: Queue, choices: &mut Choices) {
        // Lost, or without its descriptor.
        if choices.below(3) == 0 {
            return;
        }
        let place = if self.planted == Some(Planted::TakesTheNextPlace) { self.arrived } else { place };
        self.arrived += 1;
        assert!(self.placed.put(place, queue));
    }

    /// Starts a worker, or asks for what it lacks.
    fn start(&mut self, slot: u32, choices: &mut Choices) -> Result<(), String> {
        let given = match self.placed.of_slot(&self.listen, slot) {
            Ok(given) => given.into_iter().copied().collect(),
            Err(_) if self.planted == Some(Planted::StartsWithoutItsQueue) => Vec::new(),
            Err(place) => {
                let asks = self.planted != Some(Planted::NeverAsksAgain) && choices.below(3) > 0;
                if let Some(queue) = self.queues().get(place).copied().filter(|_| asks) {
                    self.send(place, queue, choices);
                }
                return Ok(());
            }
        };
        let of = |(index, listen): (usize, &Listen)| (index, if listen.per_worker { slot } else { 0 });
        let meant: Vec<Queue> = self.listen.iter().enumerate().map(of).collect();
        self.started[slot as usize] = true;
        if given == meant { Ok(()) } else { Err(format!("worker {slot} is given {given:?} instead of {meant:?}")) }
    }

    fn run(&mut self, choices: &mut Choices) -> Result<(), String> {
        for _ in 0..STEPS {
            match choices.below(4) {
                0 if self.workers < 12 => self.scale(choices),
                _ => self.start(choices.below(u64::from(self.workers)) as u32, choices)?,
            }
        }
        // What is tried again and again arrives some time.
        for _ in 0..200 {
            (0..self.workers).try_for_each(|slot| self.start(slot, choices))?;
        }
        match self.started.iter().position(|started| !started) {
            Some(slot) => Err(format!("worker {slot} is never started")),
            None => Ok(()),
        }
    }
}

fn play(seed: u64, planted: Option<Planted>) -> Result<(), String> {
    let mut choices = Choices::from_seed(seed);
    World::new(&mut choices, planted).run(&mut choices)
}

#[test]
fn each_worker_has_its_own_queue_or_none_whatever_gets_lost() {
    for seed in 0..HISTORIES {
        play(seed, None).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
    }
}

#[test]
fn what_is_wrong_with_queues_on_purpose_is_found() {
    for planted in ALL {
        assert!((0..1000).any(|seed| play(seed, Some(planted)).is_err()), "{planted:?} is not found");
    }
}
