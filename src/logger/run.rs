//! The logger's loop, with its one place to sleep.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;
use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::decide::delivery::{Delivery, LAST_BYTES};
use super::decide::lines::Style;
use super::decide::store::{FileWord, MAX_FILES, MAX_SOURCES, Store};
use super::memory::Memory;
use super::writer::{Job, Signal, Writer};
use crate::config::{Logs, Stream};
use crate::control::environment::Environment;
use crate::control::log_file;
use crate::control::logger::{Order, Report, Source};
use crate::control::monitor::channel::{Channel, Received};
use crate::sys::descriptors::{self, Kind, kind};
use crate::sys::poller::Poller;
use crate::sys::{printable, processes, signals, stderr};

const CHANNEL: u64 = 0;
const DONE: u64 = 1;
const STDERR: u64 = 2;
/// A pipe is watched under this and the number of its room.
const FIRST_PIPE: u64 = 16;

/// Orders that are read before the loop looks at anything else.
const MAX_ORDERS_A_TURN: usize = 256;

/// Time for writing what is left when everything has ended.
const FINISH_TIMEOUT: Duration = Duration::from_secs(3);

/// Limit of reads in a row from one pipe. A full pipe is read with two.
const MAX_READS: usize = 32;

/// Lines of it that are reported.
const MAX_LAST_LINES: usize = 5;
/// Time between two messages about lines that were dropped. The file itself says so each time.
const DROPPED_INTERVAL: Duration = Duration::from_secs(10);
/// Bytes that are kept of what workers wrote last that have ended.
const MAX_ENDED_BYTES: usize = 1 << 18;
/// What the memory of one of them takes beside its bytes, about.
const LAST_ENTRY_BYTES: usize = 64;

/// Takes the role of the logger, until main asks it to finish, or main and all who write are gone.
pub fn run(environment: &Environment) -> anyhow::Result<()> {
    let (channel, memory) = environment.take_logger()?;
    signals::block_all().context("cannot block signals")?;
    processes::set_name();
    stderr::start(log::LevelFilter::Info);
    log_file::raise_limits();
    // It holds two pipes for each worker. Where more are not allowed, it makes do.
    descriptors::raise_limit();
    let mut logger = Logger::new(Channel::new(channel), memory).context("the logger cannot start")?;
    logger.run().context("the logger cannot go on")
}

/// A pipe that is read.
#[derive(Debug)]
struct Pipe {
    source: Source,
    fd: OwnedFd,
}

/// When the logger ends.
#[derive(Debug, Default)]
struct Ends {
    /// How long those who write may go on once main is gone.
    patience: Duration,
    /// Until when they may, if main is gone.
    alone: Option<Instant>,
    /// Until when what is left is written.
    finishing: Option<Instant>,
    /// Number of pipes when no descriptor was left for another one. With fewer, the next logger has room for all.
    full: Option<usize>,
}

/// All that the logger holds.
struct Logger {
    channel: Channel,
    poller: Poller,
    delivery: Delivery<Memory>,
    signal: Arc<Signal>,
    writers: Vec<Sender<Job>>,
    logs: Logs,
    /// When the last message about lines that each file lacks was logged.
    logged: [Option<Instant>; MAX_FILES],
    /// The pipes, by the numbers of their rooms.
    pipes: BTreeMap<usize, Pipe>,
    /// Pairs that have ended, the oldest first.
    ended: VecDeque<u64>,
    /// Bytes of their last lines.
    ended_bytes: usize,
    ends: Ends,
}

impl Logger {
    fn new(channel: Channel, memory: OwnedFd) -> io::Result<Logger> {
        let delivery = Delivery::new(Memory::open(memory)?, now);
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let signal = Arc::new(Signal {
            done: EventFd::from_value_and_flags(0, flags)?,
            idle: delivery.idle.map(AtomicBool::new),
        });
        let poller = Poller::new()?;
        poller.watch(&channel, CHANNEL)?;
        poller.watch(&signal.done, DONE)?;
        let mut writers = Vec::new();
        for file in 0..MAX_FILES {
            let writer = Writer::start(file, delivery.memory.share()?, signal.clone())?;
            if !delivery.idle[file] {
                let _ = writer.send(Job::Write);
            }
            writers.push(writer);
        }
        Ok(Logger {
            channel,
            poller,
            delivery,
            signal,
            writers,
            logs: Logs::default(),
            logged: [None; MAX_FILES],
            pipes: BTreeMap::new(),
            ended: VecDeque::new(),
            ended_bytes: 0,
            ends: Ends::default(),
        })
    }

    fn run(&mut self) -> io::Result<()> {
        loop {
            if self.ends.alone.is_some_and(|until| self.pipes.is_empty() || until <= Instant::now()) {
                self.finish();
            }
            if self.ends.finishing.is_some() && self.all_written() {
                // Lines that have come since then.
                self.deliver_rests();
            }
            if let Some(until) = self.ends.finishing
                && (self.all_written() || until <= Instant::now())
            {
                self.report_lost();
                return Ok(());
            }
            if self.ends.full.is_some_and(|full| self.pipes.len() < full) {
                return Err(io::Error::other("there is room for the pipe that had none, which the next logger gets"));
            }
            self.channel.rearm(&self.poller, CHANNEL);
            stderr::rearm(&self.poller, STDERR);
            self.log_dropped(false);
            let deadlines = [self.channel.deadline(), self.ends.alone, self.ends.finishing].into_iter();
            let deadlines = deadlines.chain((0..MAX_FILES).map(|file| self.due(file)));
            for token in self.poller.wait(deadlines.flatten().min())? {
                match token {
                    CHANNEL => {
                        self.channel.flush();
                        self.take_orders()?;
                    }
                    DONE => {
                        let _ = self.signal.done.read();
                        self.deliver(|delivery| (0..MAX_FILES).for_each(|file| delivery.tend(file)));
                    }
                    STDERR => stderr::catch_up(),
                    token => drop(self.read((token - FIRST_PIPE) as usize)),
                }
            }
            if self.channel.deadline().is_some_and(|deadline| deadline <= Instant::now()) {
                self.channel.flush();
                self.take_orders()?;
            }
        }
    }

    fn take_orders(&mut self) -> io::Result<()> {
        for _ in 0..MAX_ORDERS_A_TURN {
            match self.channel.receive::<Order>() {
                Received::Message(Order::Settings { logs, patience }, _) => self.follow(&logs, patience),
                Received::Message(Order::Take(source), pipes) => {
                    pipes.into_iter().try_for_each(|pipe| self.add(source, pipe))?;
                }
                Received::Message(Order::Last { pair }, _) => self.report_last(pair),
                Received::Message(Order::Reopen, _) => self.order_writers(|| Job::Reopen),
                Received::Message(Order::Finish, _) => self.finish(),
                Received::Cut(_) => {
                    log::error!("a worker's output waits: the logger has no descriptor left (ulimit -n, LimitNOFILE=)");
                    self.ends.full = Some(self.pipes.len());
                }
                Received::Failed(why) => return Err(io::Error::other(why)),
                Received::Garbage(_) | Received::MoreGarbage => {}
                Received::Nothing => return Ok(()),
                Received::Gone => {
                    self.poller.forget(&self.channel);
                    self.ends.alone = Some(Instant::now() + self.ends.patience);
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn order_writers(&self, job: impl Fn() -> Job) {
        // A writer ends with the process only.
        self.writers.iter().for_each(|writer| drop(writer.send(job())));
    }

    fn follow(&mut self, logs: &Logs, patience: Duration) {
        self.ends.patience = patience;
        stderr::set_json(logs.is_json());
        self.logs.clone_from(logs);
        self.delivery.is_joint = logs.is_joint();
        for stream in Stream::BOTH {
            let (stdout, stderr) = (io::stdout(), io::stderr());
            let is_terminal = match logs.of(stream).and_then(|log| log.own_descriptor()) {
                Some(1) => kind(stdout.as_fd()) == Kind::Terminal,
                Some(_) => kind(stderr.as_fd()) == Kind::Terminal,
                None => false,
            };
            self.delivery.outputs[stream as usize].style =
                Style { format: logs.log_format, prefix: logs.log_prefix, colour: is_terminal };
        }
        self.order_writers(|| Job::Settings(Box::new(logs.clone())));
    }

    /// Lets the delivery act, and wakes the writers that it has given something to write.
    fn deliver(&mut self, act: impl FnOnce(&mut Delivery<Memory>)) {
        let idle = self.signal.idle.each_ref().map(|idle| idle.load(SeqCst));
        self.delivery.idle = idle;
        act(&mut self.delivery);
        for file in (0..MAX_FILES).filter(|file| idle[*file] && !self.delivery.idle[*file]) {
            self.signal.idle[file].store(false, SeqCst);
            // A writer ends with the process only.
            let _ = self.writers[file].send(Job::Write);
        }
    }

    fn add(&mut self, source: Source, fd: OwnedFd) -> io::Result<()> {
        let mut room = None;
        self.deliver(|delivery| room = delivery.begin(&source));
        let room = room.ok_or_else(|| io::Error::other(format!("more than {MAX_SOURCES} pipes are open")))?;
        self.delivery.last.entry(source.pair).or_default();
        self.poller.watch(&fd, FIRST_PIPE + room as u64)?;
        self.pipes.insert(room, Pipe { source, fd });
        Ok(())
    }

    /// Reads a pipe once. Returns whether there may be more.
    fn read(&mut self, room: usize) -> bool {
        let Some(pipe) = self.pipes.get(&room) else { return false };
        let source = pipe.source;
        match self.delivery.memory.take(pipe.fd.as_fd(), room) {
            Ok(0) => {
                self.end(room);
                false
            }
            Ok(_) => {
                self.deliver(|delivery| delivery.deliver_lines(room, &source));
                true
            }
            Err(Errno::EINTR) => true,
            Err(Errno::EAGAIN) => false,
            Err(errno) => {
                log::error!("a pipe of a worker cannot be read: {}", crate::sys::errno::words(&errno.into()));
                self.end(room);
                false
            }
        }
    }

    /// Reads what a pipe holds. A process that writes to it for ever is not waited for.
    fn read_all(&mut self, room: usize) {
        for _ in 0..MAX_READS {
            if !self.read(room) {
                return;
            }
        }
    }

    /// Nobody writes to this pipe any more.
    fn end(&mut self, room: usize) {
        let Some(pipe) = self.pipes.remove(&room) else { return };
        self.deliver(|delivery| delivery.deliver_rest(room, &pipe.source));
        self.poller.forget(&pipe.fd);
        self.delivery.memory.end_room(room);
        self.delivery.memory.free(room);
        self.channel.send(&Report::Ended { id: pipe.source.id() });
        let pair = pipe.source.pair;
        if !self.pipes.values().any(|other| other.source.pair == pair) {
            self.ended.push_back(pair);
            let last = self.delivery.last.entry(pair).or_default();
            last.shrink_to_fit();
            self.ended_bytes += last.len() + LAST_ENTRY_BYTES;
        }
        while self.ended_bytes > MAX_ENDED_BYTES
            && let Some(oldest) = self.ended.pop_front()
        {
            let last = self.delivery.last.remove(&oldest).map_or(0, |last| last.len() + LAST_ENTRY_BYTES);
            self.ended_bytes = self.ended_bytes.saturating_sub(last);
        }
    }

    /// Reports what a worker wrote last, also if it is not a whole line.
    fn report_last(&mut self, pair: u64) {
        let rooms: Vec<usize> =
            self.pipes.iter().filter(|(_, pipe)| pipe.source.pair == pair).map(|(room, _)| *room).collect();
        rooms.iter().for_each(|room| self.read_all(*room));
        let mut text = self.delivery.last.get(&pair).cloned().unwrap_or_default();
        for room in rooms.into_iter().filter(|room| self.pipes.contains_key(room)) {
            let (start, taken) = self.delivery.memory.span(room);
            text.extend_from_slice(self.delivery.memory.part(start.max(taken.saturating_sub(LAST_BYTES)), taken));
        }
        let text = String::from_utf8_lossy(&text);
        let mut lines: Vec<String> = text.lines().filter(|line| !line.trim().is_empty()).map(printable::line).collect();
        lines.drain(..lines.len().saturating_sub(MAX_LAST_LINES));
        self.channel.send(&Report::Last { pair, lines });
    }

    /// Reads all that is there, for the last time.
    fn finish(&mut self) {
        if self.ends.finishing.is_some() {
            return;
        }
        self.ends.finishing = Some(Instant::now() + FINISH_TIMEOUT);
        for room in self.pipes.keys().copied().collect::<Vec<_>>() {
            self.read_all(room);
        }
        self.deliver_rests();
    }

    fn deliver_rests(&mut self) {
        let rooms: Vec<_> = self.pipes.iter().map(|(room, pipe)| (*room, pipe.source)).collect();
        self.deliver(|delivery| rooms.iter().for_each(|(room, source)| delivery.deliver_rest(*room, source)));
    }

    fn all_written(&self) -> bool {
        (0..MAX_FILES).all(|file| self.delivery.is_empty(file) && self.signal.idle[file].load(SeqCst))
    }

    /// When the next message about dropped lines of a file is due.
    fn due(&self, file: usize) -> Option<Instant> {
        let lacks = self.delivery.outputs[file].lacks.0 > 0;
        lacks.then(|| self.logged[file].map_or_else(Instant::now, |logged| logged + DROPPED_INTERVAL))
    }

    /// Logs how many lines were dropped, if that is due.
    fn log_dropped(&mut self, all: bool) {
        for file in 0..MAX_FILES {
            if self.due(file).is_some_and(|due| all || due <= Instant::now()) {
                let (lines, bytes) = std::mem::take(&mut self.delivery.outputs[file].lacks);
                self.logged[file] = Some(Instant::now());
                let name = self.logs.of(Stream::BOTH[file]).map_or_else(String::new, ToString::to_string);
                let (noun, were) = if lines == 1 { ("line", "was") } else { ("lines", "were") };
                log::warn!(
                    "{lines} {noun} ({bytes} bytes) {were} dropped: the log {name} could not be written fast enough"
                );
            }
        }
    }

    fn report_lost(&mut self) {
        self.log_dropped(true);
        for file in (0..MAX_FILES).filter(|_| !self.all_written()) {
            let memory = &self.delivery.memory;
            let filled = memory.of_file(file, FileWord::Filled);
            let half = Memory::half(file, memory.of_file(file, FileWord::Half) & 1);
            let mut bytes = memory.part(half, half + filled).to_vec();
            if !self.signal.idle[file].load(SeqCst) {
                let of_file = |word| memory.of_file(file, word);
                bytes.extend_from_slice(memory.part(of_file(FileWord::Written), of_file(FileWord::End)));
            }
            let lines = memchr::memchr_iter(b'\n', &bytes).count() + memory.of_file(file, FileWord::Dropped);
            if lines > 0 {
                let name = self.logs.of(Stream::BOTH[file]).map_or_else(String::new, ToString::to_string);
                let (noun, are) = if lines == 1 { ("line", "is") } else { ("lines", "are") };
                log::error!("{lines} {noun} {are} lost: the log {name} could not be written until the end");
            }
        }
    }
}

fn now() -> String {
    humantime::format_rfc3339_millis(SystemTime::now()).to_string()
}
