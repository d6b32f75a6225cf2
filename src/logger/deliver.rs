//! From the rooms of pipes into the buffers of files, or nowhere.

use std::sync::atomic::Ordering::SeqCst;

use super::decide::lines::{self, MAX_LINE_BYTES, Style};
use super::memory::{FileWord, HALF_BYTES, Memory, ROOM_BYTES, SourceWord};
use super::run::{LAST_BYTES, Logger, now};
use super::writer::Job;

impl Logger {
    /// Delivers the whole lines of a room, and makes place for what follows.
    pub(super) fn deliver_lines(&mut self, room: usize) {
        loop {
            let (start, taken) = self.span(room);
            match lines::whole(self.memory.part(start, taken)) {
                0 => break,
                length => self.deliver(room, start + length),
            }
        }
        let ((start, taken), base) = (self.span(room), Memory::room(room));
        let length = taken - start;
        let left = base + ROOM_BYTES - taken;
        // Only if both places do not overlap: a logger that is killed here has changed nothing.
        if start > base && start - base >= length && (length == 0 || left < MAX_LINE_BYTES) {
            self.memory.copy(start, taken, base);
            let word = |word| Memory::source_word(room, word);
            self.memory.commit(&[(word(SourceWord::Start), base), (word(SourceWord::Taken), base + length)]);
        }
    }

    /// Delivers what has no line feed and will get none.
    pub(super) fn deliver_rest(&mut self, room: usize) {
        let (start, taken) = self.span(room);
        if start < taken {
            self.deliver(room, taken);
        }
    }

    /// Delivers the lines of a room up to `to`: into a half of the buffer of its file, or nowhere. The last one may lack
    /// its line feed, and gets one.
    fn deliver(&mut self, room: usize, to: usize) {
        let Some(source) = self.pipes.get(&room).map(|pipe| pipe.source) else { return };
        self.remember(source.pair, room, to);
        let file = self.file_of(source.stream);
        let style = self.outputs[file].style;
        let head = if style.is_plain() { String::new() } else { lines::head(style, &now(), &source) };
        let start_word = Memory::source_word(room, SourceWord::Start);
        loop {
            let start = self.memory.of_source(room, SourceWord::Start) as usize;
            if start >= to {
                break;
            }
            self.report_dropped(file);
            let filled = self.memory.of_file(file, FileWord::Filled);
            let place = Memory::half(file, self.memory.of_file(file, FileWord::Half)) + filled;
            let (used, length) = match style.is_plain() {
                true => self.copy_lines(start, to, place, HALF_BYTES - filled),
                false => self.format_lines((start, to), place, HALF_BYTES - filled, style, &head),
            };
            if used > 0 {
                let filled_word = Memory::file_word(file, FileWord::Filled);
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
        let more = |word, more| (Memory::file_word(file, word), self.memory.of_file(file, word) + more);
        self.memory.commit(&[
            (start_word, to),
            more(FileWord::Dropped, lines),
            more(FileWord::DroppedBytes, bytes.len()),
        ]);
    }

    /// Says in the file how many lines it lacks here, once there is room for that.
    pub(super) fn report_dropped(&mut self, file: usize) {
        let dropped = self.memory.of_file(file, FileWord::Dropped);
        if dropped == 0 {
            return;
        }
        let bytes = self.memory.of_file(file, FileWord::DroppedBytes);
        let line = lines::dropped(self.outputs[file].style, &now(), dropped as u64, bytes as u64);
        let filled = self.memory.of_file(file, FileWord::Filled);
        if filled + line.len() > HALF_BYTES {
            return;
        }
        let place = Memory::half(file, self.memory.of_file(file, FileWord::Half)) + filled;
        self.memory.write(place, &line);
        let word = |word| Memory::file_word(file, word);
        self.memory.commit(&[
            (word(FileWord::Filled), filled + line.len()),
            (word(FileWord::Dropped), 0),
            (word(FileWord::DroppedBytes), 0),
        ]);
        let lacks = &mut self.outputs[file].lacks;
        *lacks = (lacks.0 + dropped, lacks.1 + bytes);
    }

    /// Gives the filled half to the writer, if that has nothing else to write. Returns whether it did.
    pub(super) fn hand_over(&mut self, file: usize) -> bool {
        let filled = self.memory.of_file(file, FileWord::Filled);
        if filled == 0 || !self.signal.idle[file].swap(false, SeqCst) {
            return false;
        }
        let half = self.memory.of_file(file, FileWord::Half) & 1;
        let start = Memory::half(file, half);
        let word = |word| Memory::file_word(file, word);
        self.memory.commit(&[
            (word(FileWord::Written), start),
            (word(FileWord::End), start + filled),
            (word(FileWord::Half), 1 - half),
            (word(FileWord::Filled), 0),
        ]);
        // A writer ends with the process only.
        let _ = self.writers[file].send(Job::Write);
        true
    }

    pub(super) fn tend(&mut self, file: usize) {
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
