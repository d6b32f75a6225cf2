//! The memory of the logger, which outlives it: what has been read and not been written yet.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::SeqCst;

use super::decide::store::{FileWord, LAYOUT_WORD, ROOM_BYTES, SourceWord, Store, WORDS, file_word, source_word};
use crate::control::logger::{LAYOUT, MEMORY_BYTES};
use crate::sys::shared_memory::{self, Bytes};

const _: () = assert!(Memory::BYTES as u64 <= MEMORY_BYTES);

/// The memory, seen by one thread.
#[derive(Debug)]
pub(crate) struct Memory {
    fd: OwnedFd,
    bytes: Bytes,
    words: &'static [AtomicU64],
}

impl Store for Memory {
    const HALF_BYTES: usize = 1 << 22;

    fn load(&self, word: usize) -> u64 {
        self.words[word].load(SeqCst)
    }

    fn store(&self, word: usize, value: u64) {
        self.words[word].store(value, SeqCst);
    }

    fn part(&self, from: usize, to: usize) -> &[u8] {
        self.bytes.part(from, to)
    }

    fn write(&mut self, at: usize, bytes: &[u8]) {
        self.bytes.write(at, bytes);
    }

    fn copy(&mut self, from: usize, to: usize, at: usize) {
        let mut bytes = self.bytes;
        bytes.write(at, self.bytes.part(from, to));
    }
}

impl Memory {
    /// Goes on with what the logger before has left. Main does not give it memory of another layout.
    pub(crate) fn open(fd: OwnedFd) -> io::Result<Memory> {
        let bytes = Bytes::map(&fd, Memory::BYTES)?;
        let memory = Memory { fd, bytes, words: bytes.words(WORDS) };
        let layout = memory.load(LAYOUT_WORD);
        if layout != 0 && layout != u64::from(LAYOUT) {
            log::error!("lines are lost: they wait in memory of layout {layout}, and this build has {LAYOUT}");
            Bytes::free(&memory.fd, 0, Memory::BYTES);
        }
        memory.store(LAYOUT_WORD, LAYOUT.into());
        memory.apply();
        Ok(memory)
    }

    /// A handle for another thread, which uses the parts of one file only.
    pub(crate) fn share(&self) -> io::Result<Memory> {
        Ok(Memory { fd: self.fd.try_clone()?, bytes: self.bytes, words: self.words })
    }

    /// Moves what the pipe holds into its room. Returns 0 at the pipe's end.
    pub(crate) fn take(&self, pipe: BorrowedFd<'_>, source: usize) -> nix::Result<usize> {
        let taken = &self.words[source_word(source, SourceWord::Taken)];
        let left = Memory::room(source) + ROOM_BYTES - taken.load(SeqCst) as usize;
        shared_memory::take(pipe, &self.fd, taken, left)
    }

    /// Writes at most `count` bytes into a regular file.
    pub(crate) fn put(&self, to: impl AsFd, file: usize, count: usize) -> nix::Result<usize> {
        shared_memory::put(to, &self.fd, &self.words[file_word(file, FileWord::Written)], count)
    }

    /// Gives the memory of a free room back.
    pub(crate) fn free(&self, source: usize) {
        Bytes::free(&self.fd, Memory::room(source), Memory::room(source) + ROOM_BYTES);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logger::decide::store::COMMIT;

    #[test]
    fn memory_of_another_layout_is_not_read() {
        let fd = shared_memory::create().unwrap();
        let memory = Memory::open(fd.try_clone().unwrap()).unwrap();
        memory.begin_room(3, 7);
        assert_eq!(Memory::open(fd.try_clone().unwrap()).unwrap().rooms(), 4);
        memory.store(LAYOUT_WORD, u64::from(LAYOUT) + 1);
        let next = Memory::open(fd).unwrap();
        assert_eq!((next.rooms(), next.of_source(3, SourceWord::Id)), (0, 0));
    }

    #[test]
    fn a_commit_that_was_cut_short_is_completed_by_the_next_logger() {
        let fd = shared_memory::create().unwrap();
        let memory = Memory::open(fd.try_clone().unwrap()).unwrap();
        let (filled, dropped) = (file_word(1, FileWord::Filled), file_word(1, FileWord::Dropped));
        memory.commit(&[(filled, 7), (dropped, 9)]);
        // This commit was killed before its second word.
        memory.store(dropped, 0);
        memory.store(COMMIT, 2);
        let next = Memory::open(fd).unwrap();
        assert_eq!((next.of_file(1, FileWord::Filled), next.of_file(1, FileWord::Dropped)), (7, 9));
    }
}
