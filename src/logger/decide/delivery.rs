//! From the rooms of pipes into the buffers of files, or nowhere.

use std::collections::BTreeMap;

use super::lines::{self, MAX_LINE_BYTES, Style};
use super::store::{FileWord, MAX_FILES, MAX_SOURCES, ROOM_BYTES, SourceWord, Store, file_word, source_word};
use crate::config::Stream;
use crate::control::logger::Source;

/// Bytes that are kept of what each worker wrote last.
pub(crate) const LAST_BYTES: usize = 1024;

/// How a file is written, and the lines that it lacks of which no message has been logged yet.
#[derive(Debug, Clone, Copy, Default)]
pub struct Output {
    /// How lines are written.
    pub style: Style,
    /// Lines and their bytes.
    pub lacks: (usize, usize),
}

/// The way of lines from rooms into buffers, and from there to the writers of files.
#[derive(Debug)]
pub struct Delivery<S> {
    /// The memory, which the next logger gets.
    pub memory: S,
    /// Whether both streams go to one file.
    pub is_joint: bool,
    /// The files.
    pub outputs: [Output; MAX_FILES],
    /// Whether the writer of each file has nothing to write. It gets something to write when this becomes false.
    pub idle: [bool; MAX_FILES],
    /// The last lines of each worker, by the number of its pair.
    pub last: BTreeMap<u64, Vec<u8>>,
    /// Rooms that the logger before has filled and whose pipe has not come yet.
    left: BTreeMap<u64, usize>,
    /// The time, as it is written.
    now: fn() -> String,
    formatted: Vec<u8>,
}

impl<S: Store> Delivery<S> {
    /// Goes on with the memory of the logger before. It may have been killed while a writer wrote.
    pub fn new(memory: S, now: fn() -> String) -> Delivery<S> {
        let left = (0..memory.rooms()).map(|room| (memory.of_source(room, SourceWord::Id), room));
        let left = left.filter(|(id, _)| *id > 0).collect();
        let idle = |file| memory.of_file(file, FileWord::Written) >= memory.of_file(file, FileWord::End);
        let idle = std::array::from_fn(idle);
        let (outputs, last, formatted) = ([Output::default(); MAX_FILES], BTreeMap::new(), Vec::new());
        Delivery { memory, is_joint: false, outputs, idle, last, left, now, formatted }
    }

    /// The room of a pipe: that which the logger before has filled, or a free one. None if there is no free one.
    pub fn begin(&mut self, source: &Source) -> Option<usize> {
        if let Some(room) = self.left.remove(&source.id()) {
            // It may be full, and reading into a full room looks like the end of the pipe.
            self.deliver_lines(room, source);
            return Some(room);
        }
        let room = (0..MAX_SOURCES).find(|room| self.memory.of_source(*room, SourceWord::Id) == 0)?;
        self.memory.begin_room(room, source.id());
        Some(room)
    }

    /// The file that a stream is written to.
    fn file_of(&self, stream: Stream) -> usize {
        if self.is_joint { 0 } else { stream as usize }
    }

    /// Whether all lines of a file have been written, if its writer is idle.
    pub fn is_empty(&self, file: usize) -> bool {
        self.memory.of_file(file, FileWord::Filled) == 0 && self.memory.of_file(file, FileWord::Dropped) == 0
    }

    /// Delivers the whole lines of a room, and makes place for what follows.
    pub fn deliver_lines(&mut self, room: usize, source: &Source) {
        loop {
            let (start, taken) = self.memory.span(room);
            match lines::whole(self.memory.part(start, taken)) {
                0 => break,
                length => self.deliver(room, source, start + length),
            }
        }
        let ((start, taken), base) = (self.memory.span(room), S::room(room));
        let length = taken - start;
        let left = base + ROOM_BYTES - taken;
        // Only if both places do not overlap: a logger that is killed here has changed nothing.
        if start > base && start - base >= length && (length == 0 || left < MAX_LINE_BYTES) {
            self.memory.copy(start, taken, base);
            let word = |word| source_word(room, word);
            self.memory.commit(&[(word(SourceWord::Start), base), (word(SourceWord::Taken), base + length)]);
        }
    }

    /// Delivers what has no line feed and will get none.
    pub fn deliver_rest(&mut self, room: usize, source: &Source) {
        let (start, taken) = self.memory.span(room);
        if start < taken {
            self.deliver(room, source, taken);
        }
    }

    /// Delivers the lines of a room up to `to`: into a half of the buffer of its file, or nowhere. The last one may lack
    /// its line feed, and gets one.
    fn deliver(&mut self, room: usize, source: &Source, to: usize) {
        self.remember(source.pair, room, to);
        let file = self.file_of(source.stream);
        let style = self.outputs[file].style;
        let head = if style.is_plain() { String::new() } else { lines::head(style, &(self.now)(), source) };
        let start_word = source_word(room, SourceWord::Start);
        loop {
            let start = self.memory.of_source(room, SourceWord::Start) as usize;
            if start >= to {
                break;
            }
            self.report_dropped(file);
            let filled = self.memory.of_file(file, FileWord::Filled);
            let place = S::half(file, self.memory.of_file(file, FileWord::Half)) + filled;
            let (used, length) = match style.is_plain() {
                true => self.copy_lines(start, to, place, S::HALF_BYTES - filled),
                false => self.format_lines((start, to), place, S::HALF_BYTES - filled, style, &head),
            };
            if used > 0 {
                let filled_word = file_word(file, FileWord::Filled);
                self.memory.commit(&[(start_word, start + used), (filled_word, filled + length)]);
            } else if !self.hand_over(file) {
                self.drop_lines(file, (start_word, start), to);
                break;
            }
        }
        self.hand_over(file);
    }

    /// Copies whole lines. Returns the bytes that were used, and those that were written.
    fn copy_lines(&mut self, start: usize, to: usize, place: usize, space: usize) -> (usize, usize) {
        let bytes = self.memory.part(start, to);
        let ends = bytes.ends_with(b"\n");
        if bytes.len() + usize::from(!ends) <= space {
            let used = bytes.len();
            self.memory.copy(start, to, place);
            if !ends {
                self.memory.write(place + used, b"\n");
            }
            return (used, used + usize::from(!ends));
        }
        let whole = memchr::memrchr(b'\n', &bytes[..space.min(bytes.len())]).map_or(0, |at| at + 1);
        self.memory.copy(start, start + whole, place);
        (whole, whole)
    }

    /// The line in the wanted form.
    fn format_lines(
        &mut self,
        (start, to): (usize, usize),
        place: usize,
        space: usize,
        style: Style,
        head: &str,
    ) -> (usize, usize) {
        let bytes = self.memory.part(start, to);
        self.formatted.clear();
        let (mut used, mut fits) = (0, 0);
        while used < bytes.len() {
            let rest = &bytes[used..];
            let end = memchr::memchr(b'\n', rest);
            lines::append(&mut self.formatted, style, head, &rest[..end.unwrap_or(rest.len())]);
            if self.formatted.len() > space {
                break;
            }
            (used, fits) = (used + end.map_or(rest.len(), |end| end + 1), self.formatted.len());
        }
        self.memory.write(place, &self.formatted[..fits]);
        (used, fits)
    }

    fn drop_lines(&mut self, file: usize, (start_word, start): (usize, usize), to: usize) {
        let bytes = self.memory.part(start, to);
        let lines = memchr::memchr_iter(b'\n', bytes).count() + usize::from(!bytes.ends_with(b"\n"));
        let more = |word, more| (file_word(file, word), self.memory.of_file(file, word) + more);
        self.memory.commit(&[
            (start_word, to),
            more(FileWord::Dropped, lines),
            more(FileWord::DroppedBytes, bytes.len()),
        ]);
    }

    /// Says in the file how many lines it lacks here, once there is room for that.
    fn report_dropped(&mut self, file: usize) {
        let dropped = self.memory.of_file(file, FileWord::Dropped);
        if dropped == 0 {
            return;
        }
        let bytes = self.memory.of_file(file, FileWord::DroppedBytes);
        let line = lines::dropped(self.outputs[file].style, &(self.now)(), dropped as u64, bytes as u64);
        let filled = self.memory.of_file(file, FileWord::Filled);
        if filled + line.len() > S::HALF_BYTES {
            return;
        }
        let place = S::half(file, self.memory.of_file(file, FileWord::Half)) + filled;
        self.memory.write(place, &line);
        let word = |word| file_word(file, word);
        self.memory.commit(&[
            (word(FileWord::Filled), filled + line.len()),
            (word(FileWord::Dropped), 0),
            (word(FileWord::DroppedBytes), 0),
        ]);
        let lacks = &mut self.outputs[file].lacks;
        *lacks = (lacks.0 + dropped, lacks.1 + bytes);
    }

    /// Gives the filled half to the writer, if that has nothing else to write. Returns whether it did.
    fn hand_over(&mut self, file: usize) -> bool {
        let filled = self.memory.of_file(file, FileWord::Filled);
        if filled == 0 || !std::mem::take(&mut self.idle[file]) {
            return false;
        }
        let half = self.memory.of_file(file, FileWord::Half) & 1;
        let start = S::half(file, half);
        let word = |word| file_word(file, word);
        self.memory.commit(&[
            (word(FileWord::Written), start),
            (word(FileWord::End), start + filled),
            (word(FileWord::Half), 1 - half),
            (word(FileWord::Filled), 0),
        ]);
        true
    }

    /// Says what a file lacks, and gives its writer the next half.
    pub fn tend(&mut self, file: usize) {
        self.report_dropped(file);
        self.hand_over(file);
    }

    fn remember(&mut self, pair: u64, room: usize, to: usize) {
        let start = self.memory.of_source(room, SourceWord::Start) as usize;
        let last = self.last.entry(pair).or_default();
        last.extend_from_slice(self.memory.part(start.max(to.saturating_sub(LAST_BYTES)), to));
        if !last.ends_with(b"\n") {
            last.push(b'\n');
        }
        let surplus = last.len().saturating_sub(LAST_BYTES);
        last.drain(..surplus);
    }
}
