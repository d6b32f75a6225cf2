//! The memory of the logger, which outlives it: what has been read and not been written yet.
//!
//! | part | content |
//! | --- | --- |
//! | words | see below |
//! | two buffers, of two halves each | formatted lines: one half is filled while the other is written |
//! | a room for each pipe | bytes as they came, from the first that is in no buffer yet |

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::SeqCst;

use super::decide::lines::MAX_LINE_BYTES;
use crate::control::logger::{LAYOUT, MEMORY_BYTES};
use crate::sys::shared_memory::{self, Bytes};

/// Bytes of formatted lines that wait while others are written, for each file. What comes beyond is dropped.
pub(crate) const HALF_BYTES: usize = 1 << 22;

/// Bytes of a pipe's room. A line that has not ended yet can be moved to its beginning without overlapping.
pub(crate) const ROOM_BYTES: usize = 2 * MAX_LINE_BYTES;

/// Number of pipes that can be read at once: those of two generations of as many workers as there may be.
pub(crate) const MAX_SOURCES: usize = 4 * 4096;

/// Files that are written at the same time: one for each stream.
pub(crate) const MAX_FILES: usize = 2;

/// Word of the number of rooms that have ever been used: those behind it are free.
const ROOMS_USED: usize = 0;
const COMMIT: usize = 1;
/// Word of [`LAYOUT`]; 0 in new memory.
const LAYOUT_WORD: usize = 15;
const FIRST_FILE: usize = 16;
const FILE_WORDS: usize = 8;
const FIRST_SOURCE: usize = 64;
const SOURCE_WORDS: usize = 4;
const WORDS: usize = FIRST_SOURCE + MAX_SOURCES * SOURCE_WORDS;
const HALVES: usize = (WORDS * size_of::<u64>()).next_multiple_of(4096);
const ROOMS: usize = HALVES + MAX_FILES * 2 * HALF_BYTES;
const BYTES: usize = ROOMS + MAX_SOURCES * ROOM_BYTES;

/// Limit of the words that change at once.
const MAX_CHANGES: usize = 6;

const _: () = assert!(BYTES as u64 <= MEMORY_BYTES);
// The words of a commit, of files and of rooms lie apart.
const _: () = assert!(COMMIT + 1 + 2 * MAX_CHANGES <= LAYOUT_WORD && LAYOUT_WORD < FIRST_FILE);
const _: () = assert!(FIRST_FILE + MAX_FILES * FILE_WORDS <= FIRST_SOURCE);

/// The words of a file.
#[derive(Debug, Clone, Copy)]
pub(crate) enum FileWord {
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
pub(crate) enum SourceWord {
    /// The pipe; 0: the room is free.
    Id,
    /// Place behind the last byte that came from the pipe. The kernel moves it.
    Taken,
    /// Place of the first byte that is in no buffer yet.
    Start,
}

/// The memory, seen by one thread.
#[derive(Debug)]
pub(crate) struct Memory {
    fd: OwnedFd,
    bytes: Bytes,
    words: &'static [AtomicU64],
}

impl Memory {
    /// Goes on with what the logger before has left. Main does not give it memory of another layout.
    pub(crate) fn open(fd: OwnedFd) -> io::Result<Memory> {
        let bytes = Bytes::map(&fd, BYTES)?;
        let memory = Memory { fd, bytes, words: bytes.words(WORDS) };
        let layout = memory.words[LAYOUT_WORD].load(SeqCst);
        if layout != 0 && layout != u64::from(LAYOUT) {
            log::error!("lines are lost: they wait in memory of layout {layout}, and this build has {LAYOUT}");
            Bytes::free(&memory.fd, 0, BYTES);
        }
        memory.words[LAYOUT_WORD].store(LAYOUT.into(), SeqCst);
        memory.apply();
        Ok(memory)
    }

    /// A handle for another thread, which uses the parts of one file only.
    pub(crate) fn share(&self) -> io::Result<Memory> {
        Ok(Memory { fd: self.fd.try_clone()?, bytes: self.bytes, words: self.words })
    }

    pub(crate) fn part(&self, from: usize, to: usize) -> &[u8] {
        self.bytes.part(from, to)
    }

    /// Writes bytes that belong to nothing until the next commit.
    pub(crate) fn write(&mut self, at: usize, bytes: &[u8]) {
        self.bytes.write(at, bytes);
    }

    /// Copies bytes, to where they belong to nothing until the next commit.
    pub(crate) fn copy(&mut self, from: usize, to: usize, at: usize) {
        let mut bytes = self.bytes;
        bytes.write(at, self.bytes.part(from, to));
    }

    pub(crate) fn file_word(file: usize, word: FileWord) -> usize {
        FIRST_FILE + file * FILE_WORDS + word as usize
    }

    pub(crate) fn source_word(source: usize, word: SourceWord) -> usize {
        FIRST_SOURCE + source * SOURCE_WORDS + word as usize
    }

    pub(crate) fn of_file(&self, file: usize, word: FileWord) -> usize {
        self.word(Memory::file_word(file, word)).load(SeqCst) as usize
    }

    pub(crate) fn of_source(&self, source: usize, word: SourceWord) -> u64 {
        self.word(Memory::source_word(source, word)).load(SeqCst)
    }

    pub(crate) fn word(&self, at: usize) -> &'static AtomicU64 {
        &self.words[at]
    }

    pub(crate) fn half(file: usize, half: usize) -> usize {
        HALVES + (2 * file + half) * HALF_BYTES
    }

    pub(crate) fn room(source: usize) -> usize {
        ROOMS + source * ROOM_BYTES
    }

    /// Moves what the pipe holds into its room. Returns 0 at the pipe's end.
    pub(crate) fn take(&self, pipe: BorrowedFd<'_>, source: usize) -> nix::Result<usize> {
        let taken = self.word(Memory::source_word(source, SourceWord::Taken));
        let left = Memory::room(source) + ROOM_BYTES - taken.load(SeqCst) as usize;
        shared_memory::take(pipe, &self.fd, taken, left)
    }

    /// Writes at most `count` bytes into a regular file.
    pub(crate) fn put(&self, to: impl AsFd, file: usize, count: usize) -> nix::Result<usize> {
        shared_memory::put(to, &self.fd, self.word(Memory::file_word(file, FileWord::Written)), count)
    }

    /// Number of rooms that may be in use.
    pub(crate) fn rooms(&self) -> usize {
        (self.word(ROOMS_USED).load(SeqCst) as usize).min(MAX_SOURCES)
    }

    /// Gives a free room to a pipe.
    pub(crate) fn begin_room(&self, source: usize, id: u64) {
        let word = |word| Memory::source_word(source, word);
        self.commit(&[
            (word(SourceWord::Id), id as usize),
            (word(SourceWord::Taken), Memory::room(source)),
            (word(SourceWord::Start), Memory::room(source)),
            (ROOMS_USED, self.rooms().max(source + 1)),
        ]);
    }

    /// Frees a room, and gives its memory back.
    pub(crate) fn end_room(&self, source: usize) {
        self.commit(&[(Memory::source_word(source, SourceWord::Id), 0)]);
        Bytes::free(&self.fd, Memory::room(source), Memory::room(source) + ROOM_BYTES);
    }

    /// Changes several words at once: if this process is killed meanwhile, the next one changes those that are left.
    pub(crate) fn commit(&self, changes: &[(usize, usize)]) {
        assert!(changes.len() <= MAX_CHANGES, "a commit has its limit");
        for (at, (word, value)) in changes.iter().enumerate() {
            self.words[COMMIT + 1 + 2 * at].store(*word as u64, SeqCst);
            self.words[COMMIT + 2 + 2 * at].store(*value as u64, SeqCst);
        }
        self.words[COMMIT].store(changes.len() as u64, SeqCst);
        self.apply();
    }

    fn apply(&self) {
        let count = (self.words[COMMIT].load(SeqCst) as usize).min(MAX_CHANGES);
        for at in 0..count {
            let word = self.words[COMMIT + 1 + 2 * at].load(SeqCst) as usize;
            if let Some(word) = self.words.get(word) {
                word.store(self.words[COMMIT + 2 + 2 * at].load(SeqCst), SeqCst);
            }
        }
        self.words[COMMIT].store(0, SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If this fails, raise [`LAYOUT`], also if only the meaning of a word has changed.
    #[test]
    fn each_layout_has_its_version() {
        let words = [FIRST_FILE, FILE_WORDS, FIRST_SOURCE, SOURCE_WORDS, MAX_CHANGES];
        let sizes = (MAX_FILES, HALF_BYTES, MAX_SOURCES, ROOM_BYTES);
        assert_eq!((LAYOUT, words, sizes), (1, [16, 8, 64, 4, 6], (2, 1 << 22, 4 * 4096, 64 << 10)));
        let last = Memory::source_word(0, SourceWord::Start) - Memory::source_word(0, SourceWord::Id);
        assert_eq!((last, FileWord::DroppedBytes as usize), (2, 5));
    }

    #[test]
    fn memory_of_another_layout_is_not_read() {
        let fd = shared_memory::create().unwrap();
        let memory = Memory::open(fd.try_clone().unwrap()).unwrap();
        memory.begin_room(3, 7);
        assert_eq!(Memory::open(fd.try_clone().unwrap()).unwrap().rooms(), 4);
        memory.words[LAYOUT_WORD].store(u64::from(LAYOUT) + 1, SeqCst);
        let next = Memory::open(fd).unwrap();
        assert_eq!((next.rooms(), next.of_source(3, SourceWord::Id)), (0, 0));
    }

    #[test]
    fn a_commit_that_was_cut_short_is_completed_by_the_next_logger() {
        let fd = shared_memory::create().unwrap();
        let memory = Memory::open(fd.try_clone().unwrap()).unwrap();
        let (filled, dropped) = (Memory::file_word(1, FileWord::Filled), Memory::file_word(1, FileWord::Dropped));
        memory.commit(&[(filled, 7), (dropped, 9)]);
        // This commit was killed before its second word.
        memory.word(dropped).store(0, SeqCst);
        memory.word(COMMIT).store(2, SeqCst);
        let next = Memory::open(fd).unwrap();
        assert_eq!((next.of_file(1, FileWord::Filled), next.of_file(1, FileWord::Dropped)), (7, 9));
    }
}
