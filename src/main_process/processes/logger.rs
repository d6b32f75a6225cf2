//! Main's side of the logger: main holds the pipes of all workers and the logger's memory, so a logger may die and the next
//! one goes on where it was.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::carry::descriptor::Descriptor;
use crate::config::Logs;
use crate::control::logger::{LAYOUT, Order, Source};
use crate::control::monitor::channel::Channel;
use crate::main_process::decide::logger::LoggerLife;
use crate::main_process::decide::{Monitor, Note, Verdict};
use crate::sys::poller::Poller;
use crate::worker::spawn::Child;

/// Bits of a pair's number for the monitor's life and for the serial number of its pairs.
const LIFE_BITS: u32 = 12;
pub(crate) const SERIAL_BITS: u32 = 24;

/// The logger's process.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Process {
    #[serde(flatten)]
    pub(crate) child: Child,
    pub(crate) channel: Channel,
}

/// A pipe that main holds.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Pipe {
    #[serde(flatten)]
    pub(crate) source: Source,
    pub(crate) fd: Descriptor,
}

/// The rejection of a generation, while the last lines of a worker that was not ready are waited for.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) generation: u32,
    pub(crate) slot: u32,
    /// See [`Source::pair`].
    pub(crate) pair: u64,
    pub(crate) until: Instant,
    pub(crate) verdict: Verdict,
    pub(crate) note: Option<Note>,
}

/// The logger, and what it reads.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Logger {
    pub(crate) process: Option<Process>,
    pub(crate) memory: Option<Descriptor>,
    /// [`LAYOUT`] of that memory.
    #[serde(default)]
    pub(crate) layout: u32,
    #[serde(with = "crate::carry::pairs")]
    pub(crate) pipes: BTreeMap<u64, Pipe>,
    #[serde(skip)]
    pub(crate) life: LoggerLife,
    /// Settings of the logger.
    #[serde(skip)]
    pub(crate) settings: Option<(Logs, Duration)>,
    /// Workers whose last lines are awaited.
    #[serde(skip)]
    pub(crate) asked: Vec<u64>,
    /// A rejection that is not reported yet.
    #[serde(skip)]
    pub(crate) held: Option<Held>,
    /// Until when its end is waited for.
    #[serde(skip)]
    pub(crate) ending: Option<Instant>,
}

impl Logger {
    /// Whether there is nothing to hand over.
    pub(crate) fn is_unused(&self) -> bool {
        self.process.is_none() && self.pipes.is_empty()
    }

    pub(crate) fn pid(&self) -> Option<Pid> {
        self.process.as_ref().map(|process| process.child.pid)
    }

    /// Goes on after a restart in place. If this build has another layout, the logger writes what it has and ends, and the
    /// next one begins with new memory.
    pub(crate) fn resume(&mut self, poller: &Poller, token: u64) -> io::Result<()> {
        let Some(process) = &mut self.process else { return Ok(()) };
        self.life = LoggerLife::running(Instant::now());
        process.channel.resume();
        if self.layout != LAYOUT {
            self.memory = None;
            process.channel.send(&Order::Finish);
        }
        poller.watch(&process.channel, token)
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        let channel = self.process.as_ref().and_then(|process| process.channel.deadline());
        let start = self.life.deadline().filter(|_| !self.pipes.is_empty());
        let held = self.held.as_ref().map(|held| held.until);
        [channel, start, held, self.ending].into_iter().flatten().min()
    }

    pub(crate) fn send(&mut self, order: &Order) {
        if let Some(process) = &mut self.process {
            process.channel.send(order);
        }
    }

    pub(crate) fn send_pipe(&mut self, id: u64) -> io::Result<()> {
        let (Some(process), Some(pipe)) = (&mut self.process, self.pipes.get(&id)) else { return Ok(()) };
        process.channel.send_along(&Order::Take(pipe.source), vec![pipe.fd.as_fd().try_clone_to_owned()?]);
        Ok(())
    }

    /// Opens the files anew. Returns false if there are none.
    pub(crate) fn reopen(&mut self) -> bool {
        self.send(&Order::Reopen);
        self.process.is_some()
    }
}

/// The number of a pair, which no other worker of this main has.
pub(crate) fn pair_of(monitor: Monitor, serial: u64) -> u64 {
    let bits = |number: u64, bits: u32| number & ((1 << bits) - 1);
    u64::from(monitor.generation) << (LIFE_BITS + SERIAL_BITS)
        | bits(monitor.life.into(), LIFE_BITS) << SERIAL_BITS
        | bits(serial, SERIAL_BITS)
}
