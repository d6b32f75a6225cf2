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

use super::decide::lines::Style;
use super::memory::{FileWord, MAX_FILES, MAX_SOURCES, Memory, SourceWord};
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

/// Bytes that are kept of what each worker wrote last.
pub(super) const LAST_BYTES: usize = 1024;
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
    log_file::raise_file_size();
    // It holds two pipes for each worker. Where more are not allowed, it makes do.
    descriptors::raise_limit();
    let mut logger = Logger::new(Channel::new(channel), memory).context("the logger cannot start")?;
    logger.run().context("the logger cannot go on")
}

/// A pipe that is read.
#[derive(Debug)]
pub(super) struct Pipe {
    pub(super) source: Source,
    fd: OwnedFd,
}

/// How a file is written, and the lines that it lacks of which no message has been logged yet.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Output {
    pub(super) style: Style,
    pub(super) lacks: (usize, usize),
    /// When the last message about that was logged.
    logged: Option<Instant>,
}

impl Output {
    /// When the next message about lines that were dropped is due.
    fn due(&self, now: Instant) -> Option<Instant> {
        (self.lacks.0 > 0).then(|| self.logged.map_or(now, |logged| logged + DROPPED_INTERVAL))
    }
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
pub(super) struct Logger {
    channel: Channel,
    poller: Poller,
    pub(super) memory: Memory,
    pub(super) signal: Arc<Signal>,
    pub(super) writers: Vec<Sender<Job>>,
    pub(super) logs: Logs,
    pub(super) outputs: [Output; MAX_FILES],
    /// The pipes, by the numbers of their rooms.
    pub(super) pipes: BTreeMap<usize, Pipe>,
    /// Rooms that the logger before has filled and whose pipe has not come yet.
    left: BTreeMap<u64, usize>,
    /// The last lines of each worker, by the number of its pair.
    pub(super) last: BTreeMap<u64, Vec<u8>>,
    /// Pairs that have ended, the oldest first.
    ended: VecDeque<u64>,
    /// Bytes of their last lines.
    ended_bytes: usize,
    ends: Ends,
    pub(super) formatted: Vec<u8>,
}

impl Logger {
    fn new(channel: Channel, memory: OwnedFd) -> io::Result<Logger> {
        let memory = Memory::open(memory)?;
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let signal = Arc::new(Signal {
            done: EventFd::from_value_and_flags(0, flags)?,
            idle: [const { AtomicBool::new(true) }; MAX_FILES],
        });
        let poller = Poller::new()?;
        poller.watch(&channel, CHANNEL)?;
        poller.watch(&signal.done, DONE)?;
        let left = (0..memory.rooms()).map(|room| (memory.of_source(room, SourceWord::Id), room));
        let left = left.filter(|(id, _)| *id > 0).collect();
        let mut writers = Vec::new();
        for file in 0..MAX_FILES {
            let writer = Writer::start(file, memory.share()?, signal.clone())?;
            // The logger before was killed while it wrote this.
            if memory.of_file(file, FileWord::Written) < memory.of_file(file, FileWord::End) {
                signal.idle[file].store(false, SeqCst);
                let _ = writer.send(Job::Write);
            }
            writers.push(writer);
        }
        Ok(Logger {
            channel,
            poller,
            memory,
            signal,
            writers,
            logs: Logs::default(),
            outputs: [Output::default(); MAX_FILES],
            pipes: BTreeMap::new(),
            left,
            last: BTreeMap::new(),
            ended: VecDeque::new(),
            ended_bytes: 0,
            ends: Ends::default(),
            formatted: Vec::new(),
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
            let deadlines = deadlines.chain(self.outputs.iter().map(|output| output.due(Instant::now())));
            for token in self.poller.wait(deadlines.flatten().min())? {
                match token {
                    CHANNEL => {
                        self.channel.flush();
                        self.take_orders()?;
                    }
                    DONE => {
                        let _ = self.signal.done.read();
                        (0..MAX_FILES).for_each(|file| self.tend(file));
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
        for stream in Stream::BOTH {
            let (stdout, stderr) = (io::stdout(), io::stderr());
            let is_terminal = match logs.of(stream).and_then(|log| log.own_descriptor()) {
                Some(1) => kind(stdout.as_fd()) == Kind::Terminal,
                Some(_) => kind(stderr.as_fd()) == Kind::Terminal,
                None => false,
            };
            self.outputs[stream as usize].style =
                Style { format: logs.log_format, prefix: logs.log_prefix, colour: is_terminal };
        }
        self.order_writers(|| Job::Settings(Box::new(logs.clone())));
    }

    /// The file that a stream is written to.
    pub(super) fn file_of(&self, stream: Stream) -> usize {
        if self.logs.is_joint() { 0 } else { stream as usize }
    }

    fn add(&mut self, source: Source, fd: OwnedFd) -> io::Result<()> {
        let room = match self.left.remove(&source.id()) {
            Some(room) => room,
            None => {
                let free = (0..MAX_SOURCES).find(|room| self.memory.of_source(*room, SourceWord::Id) == 0);
                let room = free.ok_or_else(|| io::Error::other(format!("more than {MAX_SOURCES} pipes are open")))?;
                self.memory.begin_room(room, source.id());
                room
            }
        };
        self.last.entry(source.pair).or_default();
        self.poller.watch(&fd, FIRST_PIPE + room as u64)?;
        self.pipes.insert(room, Pipe { source, fd });
        Ok(())
    }

    /// Reads a pipe once. Returns whether there may be more.
    fn read(&mut self, room: usize) -> bool {
        let Some(pipe) = self.pipes.get(&room) else { return false };
        match self.memory.take(pipe.fd.as_fd(), room) {
            Ok(0) => {
                self.end(room);
                false
            }
            Ok(_) => {
                self.deliver_lines(room);
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
        self.deliver_rest(room);
        let Some(pipe) = self.pipes.remove(&room) else { return };
        self.poller.forget(&pipe.fd);
        self.memory.end_room(room);
        self.channel.send(&Report::Ended { id: pipe.source.id() });
        let pair = pipe.source.pair;
        if !self.pipes.values().any(|other| other.source.pair == pair) {
            self.ended.push_back(pair);
            let last = self.last.entry(pair).or_default();
            last.shrink_to_fit();
            self.ended_bytes += last.len() + LAST_ENTRY_BYTES;
        }
        while self.ended_bytes > MAX_ENDED_BYTES
            && let Some(oldest) = self.ended.pop_front()
        {
            let last = self.last.remove(&oldest).map_or(0, |last| last.len() + LAST_ENTRY_BYTES);
            self.ended_bytes = self.ended_bytes.saturating_sub(last);
        }
    }

    pub(super) fn span(&self, room: usize) -> (usize, usize) {
        let word = |word| self.memory.of_source(room, word) as usize;
        (word(SourceWord::Start), word(SourceWord::Taken))
    }

    /// Reports what a worker wrote last, also if it is not a whole line.
    fn report_last(&mut self, pair: u64) {
        let rooms: Vec<usize> =
            self.pipes.iter().filter(|(_, pipe)| pipe.source.pair == pair).map(|(room, _)| *room).collect();
        rooms.iter().for_each(|room| self.read_all(*room));
        let mut text = self.last.get(&pair).cloned().unwrap_or_default();
        for room in rooms.into_iter().filter(|room| self.pipes.contains_key(room)) {
            let (start, taken) = self.span(room);
            text.extend_from_slice(self.memory.part(start.max(taken.saturating_sub(LAST_BYTES)), taken));
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
        self.pipes.keys().copied().collect::<Vec<_>>().into_iter().for_each(|room| self.deliver_rest(room));
    }

    fn all_written(&self) -> bool {
        (0..MAX_FILES).all(|file| {
            self.memory.of_file(file, FileWord::Filled) == 0
                && self.memory.of_file(file, FileWord::Dropped) == 0
                && self.signal.idle[file].load(SeqCst)
        })
    }

    /// Logs how many lines were dropped, if that is due.
    fn log_dropped(&mut self, all: bool) {
        let now = Instant::now();
        for (stream, output) in Stream::BOTH.into_iter().zip(&mut self.outputs) {
            if output.due(now).is_some_and(|due| all || due <= now) {
                let (lines, bytes) = std::mem::take(&mut output.lacks);
                output.logged = Some(now);
                let name = self.logs.of(stream).map_or_else(String::new, ToString::to_string);
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
            let place = |half| Memory::half(file, half);
            let filled = self.memory.of_file(file, FileWord::Filled);
            let half = place(self.memory.of_file(file, FileWord::Half) & 1);
            let mut bytes = self.memory.part(half, half + filled).to_vec();
            if !self.signal.idle[file].load(SeqCst) {
                let of_file = |word| self.memory.of_file(file, word);
                bytes.extend_from_slice(self.memory.part(of_file(FileWord::Written), of_file(FileWord::End)));
            }
            let lines = memchr::memchr_iter(b'\n', &bytes).count() + self.memory.of_file(file, FileWord::Dropped);
            if lines > 0 {
                let name = self.logs.of(Stream::BOTH[file]).map_or_else(String::new, ToString::to_string);
                let (noun, are) = if lines == 1 { ("line", "is") } else { ("lines", "are") };
                log::error!("{lines} {noun} {are} lost: the log {name} could not be written until the end");
            }
        }
    }
}

pub(super) fn now() -> String {
    humantime::format_rfc3339_millis(SystemTime::now()).to_string()
}
