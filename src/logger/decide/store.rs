//! The layout of the logger's memory, and changes to it that survive a kill.
//!
//! | part | content |
//! | --- | --- |
//! | words | see below |
//! | two buffers, of two halves each | formatted lines: one half is filled while the other is written |
//! | a room for each pipe | bytes as they came, from the first that is in no buffer yet |

use super::lines::MAX_LINE_BYTES;

/// Bytes of a pipe's room. A line that has not ended yet can be moved to its beginning without overlapping.
pub const ROOM_BYTES: usize = 2 * MAX_LINE_BYTES;

/// Number of pipes that can be read at once: those of two generations of as many workers as there may be.
pub const MAX_SOURCES: usize = 4 * 4096;

/// Files that are written at the same time: one for each stream.
pub const MAX_FILES: usize = 2;

/// Word of the number of rooms that have ever been used: those behind it are free.
const ROOMS_USED: usize = 0;
/// Word of the number of words that a commit has yet to change.
pub const COMMIT: usize = 1;
/// Word of the layout's version; 0 in new memory.
pub(crate) const LAYOUT_WORD: usize = 15;
const FIRST_FILE: usize = 16;
const FILE_WORDS: usize = 8;
const FIRST_SOURCE: usize = 64;
const SOURCE_WORDS: usize = 4;
pub(crate) const WORDS: usize = FIRST_SOURCE + MAX_SOURCES * SOURCE_WORDS;
const HALVES: usize = (WORDS * size_of::<u64>()).next_multiple_of(4096);

/// Limit of the words that change at once.
const MAX_CHANGES: usize = 6;

// The words of a commit, of files and of rooms lie apart.
const _: () = assert!(COMMIT + 1 + 2 * MAX_CHANGES <= LAYOUT_WORD && LAYOUT_WORD < FIRST_FILE);
const _: () = assert!(FIRST_FILE + MAX_FILES * FILE_WORDS <= FIRST_SOURCE);

/// The words of a file.
#[derive(Debug, Clone, Copy)]
pub enum FileWord {
    /// Place of the first byte that is not written yet. The kernel moves it.
    Written,
    /// Place behind the last byte that is to be written.
    End,
    /// Half that is filled: 0 or 1.
    Half,
    /// Bytes in that half.
    Filled,
    /// Lines that were dropped since the last line about that.
    Dropped,
    /// Their bytes.
    DroppedBytes,
}

/// The words of a pipe's room.
#[derive(Debug, Clone, Copy)]
pub enum SourceWord {
    /// The pipe; 0: the room is free.
    Id,
    /// Place behind the last byte that came from the pipe. The kernel moves it.
    Taken,
    /// Place of the first byte that is in no buffer yet.
    Start,
}

/// Place of a word of a file.
pub const fn file_word(file: usize, word: FileWord) -> usize {
    FIRST_FILE + file * FILE_WORDS + word as usize
}

/// Place of a word of a room.
pub const fn source_word(source: usize, word: SourceWord) -> usize {
    FIRST_SOURCE + source * SOURCE_WORDS + word as usize
}

/// Memory that outlives the logger.
pub trait Store {
    /// Bytes of formatted lines that wait while others are written, for each file. More is dropped.
    const HALF_BYTES: usize;
    /// Bytes of all of it.
    const BYTES: usize = HALVES + MAX_FILES * 2 * Self::HALF_BYTES + MAX_SOURCES * ROOM_BYTES;

    /// Reads a word.
    fn load(&self, word: usize) -> u64;

    /// Changes a word.
    fn store(&self, word: usize, value: u64);

    /// The bytes between two places.
    fn part(&self, from: usize, to: usize) -> &[u8];

    /// Writes bytes that belong to nothing until the next commit.
    fn write(&mut self, at: usize, bytes: &[u8]);

    /// Copies bytes, to where they belong to nothing until the next commit.
    fn copy(&mut self, from: usize, to: usize, at: usize);

    /// Reads a word of a file.
    fn of_file(&self, file: usize, word: FileWord) -> usize {
        self.load(file_word(file, word)) as usize
    }

    /// Reads a word of a room.
    fn of_source(&self, source: usize, word: SourceWord) -> u64 {
        self.load(source_word(source, word))
    }

    /// Place of a half of the buffer of a file.
    fn half(file: usize, half: usize) -> usize {
        HALVES + (2 * file + half) * Self::HALF_BYTES
    }

    /// Place of a room.
    fn room(source: usize) -> usize {
        Self::half(MAX_FILES, 0) + source * ROOM_BYTES
    }

    /// Whether a part of a line has been written, and its rest has not.
    fn has_begun_line(&self, file: usize) -> bool {
        let written = self.of_file(file, FileWord::Written);
        let is_at_start = written == 0 || (0..2).any(|half| Self::half(file, half) == written);
        !is_at_start && self.part(written - 1, written) != b"\n"
    }

    /// Number of rooms that may be in use.
    fn rooms(&self) -> usize {
        (self.load(ROOMS_USED) as usize).min(MAX_SOURCES)
    }

    /// The first and the last byte of a room that are in no buffer yet.
    fn span(&self, room: usize) -> (usize, usize) {
        (self.of_source(room, SourceWord::Start) as usize, self.of_source(room, SourceWord::Taken) as usize)
    }

    /// Gives a free room to a pipe.
    fn begin_room(&self, source: usize, id: u64) {
        let word = |word| source_word(source, word);
        self.commit(&[
            (word(SourceWord::Id), id as usize),
            (word(SourceWord::Taken), Self::room(source)),
            (word(SourceWord::Start), Self::room(source)),
            (ROOMS_USED, self.rooms().max(source + 1)),
        ]);
    }

    /// Frees a room.
    fn end_room(&self, source: usize) {
        self.commit(&[(source_word(source, SourceWord::Id), 0)]);
    }

    /// Changes several words at once: if this process is killed meanwhile, the next one changes those that are left.
    fn commit(&self, changes: &[(usize, usize)]) {
        assert!(changes.len() <= MAX_CHANGES, "a commit has its limit");
        for (at, (word, value)) in changes.iter().enumerate() {
            self.store(COMMIT + 1 + 2 * at, *word as u64);
            self.store(COMMIT + 2 + 2 * at, *value as u64);
        }
        self.store(COMMIT, changes.len() as u64);
        self.apply();
    }

    /// Completes a commit.
    fn apply(&self) {
        let count = (self.load(COMMIT) as usize).min(MAX_CHANGES);
        for at in 0..count {
            let word = self.load(COMMIT + 1 + 2 * at) as usize;
            if word < WORDS {
                self.store(word, self.load(COMMIT + 2 + 2 * at));
            }
        }
        self.store(COMMIT, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::logger::LAYOUT;
    use crate::logger::memory::Memory;

    /// If this fails, raise [`LAYOUT`], also if only the meaning of a word has changed.
    #[test]
    fn each_layout_has_its_version() {
        let words = [FIRST_FILE, FILE_WORDS, FIRST_SOURCE, SOURCE_WORDS, MAX_CHANGES];
        let sizes = (MAX_FILES, Memory::HALF_BYTES, MAX_SOURCES, ROOM_BYTES);
        assert_eq!((LAYOUT, words, sizes), (1, [16, 8, 64, 4, 6], (2, 1 << 22, 4 * 4096, 64 << 10)));
        let last = source_word(0, SourceWord::Start) - source_word(0, SourceWord::Id);
        assert_eq!((last, FileWord::DroppedBytes as usize), (2, 5));
    }
}
