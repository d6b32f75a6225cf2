//! The logger: workers that write lines in pieces, files that fail, fill up, are rotated and moved, and a logger that is
//! killed between any two changes to its memory. What decides is the real one; memory, pipes and files are played.
//!
//! `PANZER_SIM_SEED=4711 cargo test --test sim logger -- --nocapture` plays one history and prints its trace.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use panzer::config::{LogFormat, Stream};
use panzer::control::logger::Source;
use panzer::logger::decide::delivery::Delivery;
use panzer::logger::decide::lines::{MAX_LINE_BYTES, Style};
use panzer::logger::decide::rotation::fitting;
use panzer::logger::decide::store::{
    COMMIT, FileWord, MAX_FILES, ROOM_BYTES, SourceWord, Store, file_word, source_word,
};

use crate::choices::Choices;
use crate::from_environment;

const HISTORIES: u64 = 150;
const STEPS: u64 = 250;
const PIPE_BYTES: usize = 64 << 10;
/// Limit of the pipes that are open at once, and number of rooms that are played.
const MAX_PIPES: usize = 4;
const ROOMS: usize = 8;

/// Bugs that are planted to check the checker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bug {
    TearsCommits,
    ForgetsRooms,
    ForgetsWhatIsBeingWritten,
    WritesTwice,
    ForgetsDropped,
    NeverWaitsForTheWriter,
    RotatesWithinLines,
    DeliversParts,
    ForgetsTheRest,
}

const BUGS: [Bug; 9] = [
    Bug::TearsCommits,
    Bug::ForgetsRooms,
    Bug::ForgetsWhatIsBeingWritten,
    Bug::WritesTwice,
    Bug::ForgetsDropped,
    Bug::NeverWaitsForTheWriter,
    Bug::RotatesWithinLines,
    Bug::DeliversParts,
    Bug::ForgetsTheRest,
];

/// The logger is killed here.
struct Killed;

/// The memory that outlives the logger.
struct Ground {
    words: RefCell<Vec<u64>>,
    bytes: Vec<u8>,
    /// Number of changes before the logger is killed.
    fuse: Cell<u64>,
}

impl Ground {
    fn new() -> Ground {
        let words = RefCell::new(vec![0; source_word(ROOMS, SourceWord::Id)]);
        Ground { words, bytes: vec![0; Ground::room(ROOMS) - Ground::half(0, 0)], fuse: Cell::new(u64::MAX) }
    }

    fn burn(&self) {
        match self.fuse.get() {
            0 => resume_unwind(Box::new(Killed)),
            left => self.fuse.set(left - 1),
        }
    }

    /// What the kernel does, in one step.
    fn set(&self, word: usize, value: usize) {
        self.words.borrow_mut()[word] = value as u64;
    }

    fn at(range: Range<usize>) -> Range<usize> {
        range.start - Ground::half(0, 0)..range.end - Ground::half(0, 0)
    }

    /// All parts that hold something, and the part that each new one must lie in.
    fn check_target(&self, target: &Range<usize>) {
        let mut parts: Vec<_> = (0..2 * MAX_FILES).map(|half| (Ground::half(0, half), Ground::HALF_BYTES)).collect();
        parts.extend((0..ROOMS).map(|room| (Ground::room(room), ROOM_BYTES)));
        let within = parts.iter().any(|(from, bytes)| *from <= target.start && target.end <= from + bytes);
        assert!(within, "{target:?} is not within a buffer");
        let mut used = Vec::new();
        for file in 0..MAX_FILES {
            let of = |word| self.of_file(file, word);
            used.push(of(FileWord::Written)..of(FileWord::End));
            let half = Ground::half(file, of(FileWord::Half));
            used.push(half..half + of(FileWord::Filled));
        }
        let rooms = (0..ROOMS).filter(|room| self.of_source(*room, SourceWord::Id) > 0);
        used.extend(rooms.map(|room| self.span(room)).map(|(start, taken)| start..taken));
        let hit = used.iter().find(|used| used.start < target.end && target.start < used.end);
        assert!(hit.is_none(), "{target:?} overwrites {hit:?}");
    }
}

impl Store for Ground {
    const HALF_BYTES: usize = 80 << 10;

    fn load(&self, word: usize) -> u64 {
        self.words.borrow()[word]
    }

    fn store(&self, word: usize, value: u64) {
        self.burn();
        self.words.borrow_mut()[word] = value;
    }

    fn part(&self, from: usize, to: usize) -> &[u8] {
        &self.bytes[Ground::at(from..to)]
    }

    fn write(&mut self, at: usize, bytes: &[u8]) {
        self.burn();
        let target = at..at + bytes.len();
        self.check_target(&target);
        self.bytes[Ground::at(target)].copy_from_slice(bytes);
    }

    fn copy(&mut self, from: usize, to: usize, at: usize) {
        let bytes = self.part(from, to).to_vec();
        self.write(at, &bytes);
    }
}

/// A worker's pipe.
struct Pipe {
    source: Source,
    holds: Vec<u8>,
    /// What the worker has yet to write.
    pending: Vec<u8>,
    lines: u32,
    is_open: bool,
    /// The room that the logger has for it.
    room: Option<usize>,
}

impl Pipe {
    /// The worker ends.
    fn close(&mut self) {
        self.is_open = false;
        self.pending.clear();
    }
}

/// A log, all the files that it has had, and the state of its writer.
#[derive(Default)]
struct Log {
    files: Vec<Vec<u8>>,
    is_idle: bool,
    fails: bool,
}

struct World {
    choices: Choices,
    bug: Option<Bug>,
    trace: Vec<String>,
    style: Style,
    is_joint: bool,
    limit: u64,
    delivery: Delivery<Ground>,
    logs: [Log; MAX_FILES],
    pipes: Vec<Pipe>,
    /// All that each worker has written.
    sent: Vec<(Source, Vec<u8>)>,
    kills: u32,
    drops: u64,
}

fn now() -> String {
    "T".to_owned()
}

impl World {
    fn new(mut choices: Choices, bug: Option<Bug>) -> World {
        let style = choices.among(&[(false, false), (true, false), (false, true)]);
        let format = if style.1 { LogFormat::Json } else { LogFormat::Text };
        let (is_joint, limit) = (choices.one_in(2), choices.among(&[0, 100_000, 1_000, 100]));
        let logs = std::array::from_fn(|_| Log { files: vec![Vec::new()], is_idle: true, fails: false });
        let mut world = World {
            choices,
            bug,
            trace: Vec::new(),
            style: Style { format, prefix: style.0, colour: false },
            is_joint,
            limit,
            delivery: Delivery::new(Ground::new(), now),
            logs,
            pipes: Vec::new(),
            sent: Vec::new(),
            kills: 0,
            drops: 0,
        };
        world.configure();
        world
    }

    fn memory(&self) -> &Ground {
        &self.delivery.memory
    }

    fn configure(&mut self) {
        self.delivery.is_joint = self.is_joint;
        self.delivery.outputs.iter_mut().for_each(|output| output.style = self.style);
    }

    /// Lets the logger act, as src/logger/run.rs does. It may be killed meanwhile. Returns whether it was.
    fn act(&mut self, act: impl FnOnce(&mut Delivery<Ground>)) -> bool {
        let is_blind = self.bug == Some(Bug::NeverWaitsForTheWriter);
        let idle = self.logs.each_ref().map(|log| log.is_idle || is_blind);
        self.delivery.idle = idle;
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| act(&mut self.delivery))) {
            self.restart(panic);
            return true;
        }
        for file in (0..MAX_FILES).filter(|file| idle[*file] && !self.delivery.idle[*file]) {
            self.logs[file].is_idle = false;
        }
        for file in 0..MAX_FILES {
            self.drops += self.memory().of_file(file, FileWord::Dropped) as u64;
            if self.bug == Some(Bug::ForgetsDropped) {
                self.memory().set(file_word(file, FileWord::Dropped), 0);
            }
        }
        false
    }

    /// The next logger, with the memory of the one that was killed.
    fn restart(&mut self, panic: Box<dyn Any + Send>) {
        if !panic.is::<Killed>() {
            resume_unwind(panic);
        }
        self.kills += 1;
        self.trace.push("the logger is killed".to_owned());
        let ground = std::mem::replace(&mut self.delivery, Delivery::new(Ground::new(), now)).memory;
        ground.fuse.set(u64::MAX);
        if self.bug == Some(Bug::TearsCommits) {
            ground.set(COMMIT, 0);
        }
        ground.apply();
        for room in (0..ROOMS).filter(|_| self.bug == Some(Bug::ForgetsRooms)) {
            ground.set(source_word(room, SourceWord::Id), 0);
        }
        self.delivery = Delivery::new(ground, now);
        self.configure();
        for (file, log) in self.logs.iter_mut().enumerate() {
            log.is_idle = self.delivery.idle[file] || self.bug == Some(Bug::ForgetsWhatIsBeingWritten);
        }
        // Main holds the pipes, and gives them in its own order.
        self.pipes.iter_mut().for_each(|pipe| pipe.room = None);
        for at in 0..self.pipes.len() {
            self.give(at);
        }
    }

    /// Main gives the logger a pipe.
    fn give(&mut self, at: usize) {
        let source = self.pipes[at].source;
        let mut room = None;
        if !self.act(|delivery| room = delivery.begin(&source)) {
            self.pipes[at].room = room;
        }
    }

    fn begin_worker(&mut self) {
        if self.pipes.len() == MAX_PIPES {
            return;
        }
        let number = self.sent.len() as u32;
        let stream = self.choices.among(&Stream::BOTH);
        let source = Source { pair: u64::from(number) + 1, stream, worker: Some(number), generation: 1 };
        self.sent.push((source, Vec::new()));
        let (holds, pending) = (Vec::new(), Vec::new());
        self.pipes.push(Pipe { source, holds, pending, lines: 0, is_open: true, room: None });
        self.trace.push(format!("worker {number} begins, on {stream}"));
        self.give(self.pipes.len() - 1);
    }

    /// A worker writes some of its lines, cut at any byte.
    fn write(&mut self, at: usize) {
        let choices = &mut self.choices;
        let pipe = &mut self.pipes[at];
        if pipe.pending.is_empty() && pipe.is_open {
            let most = MAX_LINE_BYTES;
            let (count, bytes) = match choices.below(12) {
                0..=7 => (1 + choices.below(5), 5 + choices.below(100) as usize),
                8..=9 => (50, 400),
                10 => (1, choices.among(&[most - 1, most, most + 1, 2 * most, 2 * most + 1, 100_000])),
                _ => (2, most),
            };
            for _ in 0..count {
                pipe.pending.extend_from_slice(&line(&pipe.source, pipe.lines, bytes));
                pipe.lines += 1;
            }
        }
        let room = PIPE_BYTES - pipe.holds.len();
        let whole = pipe.pending.len().min(room);
        let cut = if choices.one_in(3) { choices.below(whole as u64 + 1) as usize } else { whole };
        let bytes = first(&mut pipe.pending, cut);
        self.sent[pipe.source.worker.unwrap() as usize].1.extend_from_slice(&bytes);
        pipe.holds.extend_from_slice(&bytes);
    }

    /// The logger reads a pipe once.
    fn read(&mut self, at: usize) {
        let (source, Some(room)) = (self.pipes[at].source, self.pipes[at].room) else { return };
        if self.pipes[at].holds.is_empty() {
            if !self.pipes[at].is_open {
                self.end(at, room, &source);
            }
            return;
        }
        let (_, taken) = self.memory().span(room);
        let left = Ground::room(room) + ROOM_BYTES - taken;
        assert!(left > 0, "a full room is read into, which looks like the end of the pipe");
        let most = left.min(self.pipes[at].holds.len());
        let count = if self.choices.one_in(3) { 1 + self.choices.below(most as u64) as usize } else { most };
        let bytes = first(&mut self.pipes[at].holds, count);
        self.delivery.memory.bytes[Ground::at(taken..taken + count)].copy_from_slice(&bytes);
        self.memory().set(source_word(room, SourceWord::Taken), taken + count);
        let is_hasty = self.bug == Some(Bug::DeliversParts);
        self.act(|delivery| {
            delivery.deliver_lines(room, &source);
            if is_hasty {
                delivery.deliver_rest(room, &source);
            }
        });
    }

    /// Nobody writes to this pipe any more.
    fn end(&mut self, at: usize, room: usize, source: &Source) {
        let forgets = self.bug == Some(Bug::ForgetsTheRest);
        let killed = self.act(|delivery| {
            if !forgets {
                delivery.deliver_rest(room, source);
            }
            delivery.memory.end_room(room);
        });
        if !killed {
            self.pipes.remove(at);
        }
    }

    /// A writer writes once, as src/logger/writer.rs does.
    fn put(&mut self, file: usize) {
        let memory = &self.delivery.memory;
        let log = &mut self.logs[file];
        if log.is_idle || log.fails {
            return;
        }
        let (from, to) = (memory.of_file(file, FileWord::Written), memory.of_file(file, FileWord::End));
        let part = memory.part(from, to);
        let length = log.files.last().unwrap().len() as u64;
        let has_begun = memory.has_begun_line(file) && self.bug != Some(Bug::RotatesWithinLines);
        let mut count = fitting(part, has_begun, length, self.limit);
        if count == 0 {
            self.trace.push(format!("log {file} is rotated"));
            log.files.push(Vec::new());
            return;
        }
        // The disk is full: some of it is written.
        if self.choices.one_in(6) {
            count = self.choices.below(count as u64) as usize;
            log.fails = true;
        }
        log.files.last_mut().unwrap().extend_from_slice(&part[..count]);
        if self.bug == Some(Bug::WritesTwice) && self.choices.one_in(4) {
            return self.restart(Box::new(Killed));
        }
        memory.set(file_word(file, FileWord::Written), from + count);
        if from + count == to {
            log.is_idle = true;
            self.act(|delivery| (0..MAX_FILES).for_each(|file| delivery.tend(file)));
        }
    }

    /// Somebody has moved the file, and has it opened anew.
    fn reopen(&mut self, file: usize) {
        let files = &mut self.logs[file].files;
        // The rest of a line of which the full disk took a part follows in the new file.
        if files.last().unwrap().last().is_none_or(|last| *last == b'\n') {
            files.push(Vec::new());
        }
    }

    fn step(&mut self) {
        let file = self.choices.below(MAX_FILES as u64) as usize;
        let pipes = self.pipes.len() as u64;
        match self.choices.below(20) {
            0 => self.begin_worker(),
            1 => {
                let fuse = self.choices.among(&[30, 0, 1, 2, 3, 5, 8, 13, 100]);
                self.memory().fuse.set(fuse);
            }
            2 => self.logs[file].fails = true,
            3..=4 => self.logs[file].fails = false,
            5 => self.reopen(file),
            6..=9 => self.put(file),
            _ if pipes == 0 => self.begin_worker(),
            kind => {
                let at = self.choices.below(pipes) as usize;
                match kind {
                    10 if self.choices.one_in(3) => self.pipes[at].close(),
                    10..=14 => self.write(at),
                    _ => self.read(at),
                }
            }
        }
    }

    fn live(&mut self) {
        for _ in 0..STEPS {
            self.step();
        }
        self.memory().fuse.set(u64::MAX);
        self.pipes.iter_mut().for_each(Pipe::close);
        for _ in 0..STEPS * 20 {
            if self.pipes.is_empty() && (0..MAX_FILES).all(|file| self.is_done(file)) {
                break;
            }
            (0..self.pipes.len()).rev().for_each(|at| self.read(at));
            for file in 0..MAX_FILES {
                self.logs[file].fails = false;
                self.put(file);
            }
        }
        assert!(self.pipes.is_empty(), "a pipe is not read to its end");
        assert!((0..MAX_FILES).all(|file| self.is_done(file)), "lines are left in a buffer");
        (0..MAX_FILES).for_each(|file| self.check(file));
    }

    /// Whether all lines have been written.
    fn is_done(&self, file: usize) -> bool {
        self.logs[file].is_idle && self.delivery.is_empty(file)
    }

    /// Whole lines in their order, none twice, and what is missing is counted.
    fn check(&self, file: usize) {
        let (mut missing, mut counted) = ((0, 0), (0, 0));
        let mut written: BTreeMap<u8, VecDeque<String>> = BTreeMap::new();
        for bytes in self.logs[file].files.iter().filter(|bytes| !bytes.is_empty()) {
            assert!(bytes.ends_with(b"\n"), "log {file} ends within a line");
            let lines = std::str::from_utf8(bytes).unwrap().lines();
            for text in lines.map(|line| self.text_of(line)) {
                match text.strip_prefix("panzer: ") {
                    Some(said) => {
                        let mut words = said.split([' ', '(']).filter_map(|word| word.parse::<usize>().ok());
                        counted.0 += words.next().unwrap();
                        counted.1 += words.next().unwrap();
                    }
                    None => written.entry(text.as_bytes()[0]).or_default().push_back(text),
                }
            }
        }
        let is_its = |source: &Source| self.is_joint && file == 0 || !self.is_joint && source.stream as usize == file;
        for (source, sent) in self.sent.iter().filter(|(source, _)| is_its(source)) {
            let mut written = written.remove(&letter(source)).unwrap_or_default();
            for sent in sent.split_inclusive(|byte| *byte == b'\n') {
                for line in pieces(sent) {
                    let text = line.strip_suffix(b"\n").unwrap_or(line);
                    match written.front().is_some_and(|written| written.as_bytes() == text) {
                        true => drop(written.pop_front()),
                        false => missing = (missing.0 + 1, missing.1 + line.len()),
                    }
                }
            }
            assert!(written.is_empty(), "not a line of worker {:?}, or twice: {:.60?}", source.worker, written);
        }
        assert!(written.is_empty(), "lines of nobody in log {file}: {:.60?}", written.values().next());
        assert_eq!(missing, counted, "lines and bytes that log {file} lacks, and those that it says it lacks");
    }

    fn text_of(&self, line: &str) -> String {
        if self.style.format == LogFormat::Json {
            return serde_json::from_str::<serde_json::Value>(line).unwrap()["line"].as_str().unwrap().to_owned();
        }
        let line = line.strip_prefix("T ").unwrap_or(line);
        let text = line.split_once(" | ").map_or(line, |(_, text)| text);
        assert!(self.style.prefix == (line != text) || text.starts_with("panzer: "), "half a line: {line:.60}");
        text.to_owned()
    }
}

fn letter(source: &Source) -> u8 {
    b'A' + source.worker.unwrap() as u8
}

/// Takes the first bytes.
fn first(bytes: &mut Vec<u8>, count: usize) -> Vec<u8> {
    let rest = bytes.split_off(count);
    std::mem::replace(bytes, rest)
}

/// A line of a worker. Each block says where it belongs, and so do the pieces of a line that is too long.
fn line(source: &Source, number: u32, bytes: usize) -> Vec<u8> {
    const BLOCK_BYTES: usize = 1024;
    let letter = char::from(letter(source));
    let mut line = Vec::new();
    for block in 0..=bytes / BLOCK_BYTES {
        line.extend_from_slice(format!("{letter}{number:03x}{block:04x}").as_bytes());
        line.resize((block + 1) * BLOCK_BYTES, b'.');
    }
    line.truncate(bytes);
    line.push(b'\n');
    line
}

/// The lines in which a line is written that may be too long.
fn pieces(line: &[u8]) -> Vec<&[u8]> {
    let mut rest = line;
    let mut pieces = Vec::new();
    while rest.strip_suffix(b"\n").unwrap_or(rest).len() > MAX_LINE_BYTES {
        let (piece, more) = rest.split_at(MAX_LINE_BYTES);
        pieces.push(piece);
        rest = more;
    }
    pieces.push(rest);
    pieces
}

/// Plays a history. Returns the number of kills, and whether lines were dropped; or what is wrong, and the trace.
fn play(seed: u64, bug: Option<Bug>) -> Result<(u32, bool), (String, Vec<String>)> {
    let mut world = World::new(Choices::from_seed(seed), bug);
    let lived = catch_unwind(AssertUnwindSafe(|| world.live()));
    let text = |panic: Box<dyn Any + Send>| match (panic.downcast_ref::<String>(), panic.downcast_ref::<&str>()) {
        (Some(text), _) => text.clone(),
        (_, text) => text.copied().unwrap_or_default().to_owned(),
    };
    lived.map(|()| (world.kills, world.drops > 0)).map_err(|panic| (text(panic), world.trace))
}

#[test]
fn the_logger_keeps_every_line_or_counts_it() {
    let one = from_environment("PANZER_SIM_SEED");
    let seeds = one.map_or(0..HISTORIES, |seed| seed..seed + 1);
    let (mut kills, mut drops) = (0, 0);
    for seed in seeds {
        let (killed, dropped) =
            play(seed, None).unwrap_or_else(|(what, trace)| panic!("{}\nseed {seed}: {what}", trace.join("\n")));
        (kills, drops) = (kills + killed, drops + u32::from(dropped));
    }
    assert!(one.is_some() || kills > 400 && drops > 40, "these histories prove little: {kills} kills, {drops}");
    println!("{kills} kills, and {drops} histories with drops");
}

#[test]
fn every_planted_bug_of_the_logger_is_found() {
    for bug in BUGS {
        let found = (0..HISTORIES).find_map(|seed| play(seed, Some(bug)).err());
        println!("{bug:?}: {}", found.unwrap_or_else(|| panic!("{bug:?} is not found")).0);
    }
}
