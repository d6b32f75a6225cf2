//! A log file, read from its last lines on, also while it is rotated, moved or opened anew.

use std::fs::File;
use std::io::{self, BufRead, BufReader, ErrorKind, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use flate2::bufread::MultiGzDecoder;
use nix::errno::Errno;
use nix::fcntl::OFlag;

use super::line::Filter;
use crate::control::log_file::older;
use crate::sys::errno::words;
use crate::sys::file_id::FileId;

/// Limit of a piece that is read as one line. Panzer's own lines are shorter.
const MAX_LINE_BYTES: usize = 1 << 20;

const BLOCK_BYTES: usize = 64 << 10;

/// How often the beginning is tried again if the file is rotated meanwhile.
const MAX_TRIES: u32 = 5;

/// Takes each line, without its line feed.
pub(super) type Emit<'a> = &'a mut dyn FnMut(&[u8]) -> io::Result<()>;

/// An open file.
#[derive(Debug)]
struct Part {
    file: File,
    id: FileId,
    is_compressed: bool,
    /// Place of the first byte that was not read yet; in a compressed file, the number of lines that are left out.
    at: u64,
    /// The beginning of a line whose end was not written yet.
    rest: Vec<u8>,
}

/// A log file that is followed.
#[derive(Debug)]
pub(super) struct Tail {
    pub(super) path: PathBuf,
    filter: Filter,
    present: Option<Part>,
    /// The newest rotated file, as long as the present one was the present one.
    neighbour: Option<FileId>,
}

impl Tail {
    pub(super) fn new(path: PathBuf, filter: Filter) -> Tail {
        Tail { path, filter, present: None, neighbour: None }
    }

    /// Reads the last `count` lines, also from rotated files. What is not a whole line yet is kept back.
    pub(super) fn begin(&mut self, count: u64, emit: Emit<'_>) -> io::Result<()> {
        let mut parts = Vec::new();
        for _ in 0..MAX_TRIES {
            parts = self.last_parts(count)?;
            let present = parts.first().filter(|(number, _)| *number == 0).map(|(_, part)| part.id);
            if FileId::at(&self.path) == present {
                break;
            }
        }
        while let Some((number, mut part)) = parts.pop() {
            part.read(self.filter, emit)?;
            match number {
                0 => self.present = Some(part),
                _ => part.finish(self.filter, emit)?,
            }
        }
        self.neighbour = open_older(&self.path, 1)?.map(|part| part.id);
        Ok(())
    }

    /// The files that hold the last `count` lines, the newest first, each with its number.
    fn last_parts(&self, count: u64) -> io::Result<Vec<(u32, Part)>> {
        let (mut parts, mut missing) = (Vec::<(u32, Part)>::new(), count);
        for number in 0.. {
            let part = if number == 0 { open(&self.path, false)? } else { open_older(&self.path, number)? };
            let Some(mut part) = part else {
                if number == 0 {
                    continue;
                }
                break;
            };
            // A rotation meanwhile gives a file its next name.
            if parts.iter().all(|(_, other)| other.id != part.id) {
                missing -= part.skip_to_last(missing, self.filter)?;
                parts.push((number, part));
            }
            if missing == 0 {
                break;
            }
        }
        Ok(parts)
    }

    /// Reads the lines that have come. Returns whether some may be missing, because the file was rotated too often.
    pub(super) fn follow(&mut self, emit: Emit<'_>) -> io::Result<bool> {
        let Some(present) = &mut self.present else {
            self.present = open(&self.path, false)?;
            return self.present.as_mut().map_or(Ok(()), |part| part.read(self.filter, emit)).map(|()| false);
        };
        present.read(self.filter, emit)?;
        let next = open(&self.path, false)?;
        // Until the next file has content, panzer may still write to this one.
        let next = match next {
            Some(next) if next.id != present.id && next.length()? > 0 => next,
            _ => {
                self.neighbour = open_older(&self.path, 1)?.map(|part| part.id);
                return Ok(false);
            }
        };
        let between = rotated_since(&self.path, present.id, self.neighbour)?;
        present.read(self.filter, emit)?;
        present.finish(self.filter, emit)?;
        let is_lacking = between.is_none();
        for mut part in between.into_iter().flatten().rev().chain([next]) {
            part.read(self.filter, emit)?;
            if let Some(mut before) = self.present.replace(part) {
                before.finish(self.filter, emit)?;
            }
        }
        self.neighbour = open_older(&self.path, 1)?.map(|part| part.id);
        Ok(is_lacking)
    }

    /// Reads a last line without a line feed.
    pub(super) fn finish(&mut self, emit: Emit<'_>) -> io::Result<()> {
        self.present.as_mut().map_or(Ok(()), |part| part.finish(self.filter, emit))
    }

    pub(super) fn is_there(&self) -> bool {
        self.present.is_some() || self.neighbour.is_some()
    }
}

impl Part {
    fn length(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// Leaves out all but the last lines, at most `count`. Returns their number.
    fn skip_to_last(&mut self, count: u64, filter: Filter) -> io::Result<u64> {
        if self.is_compressed {
            let mut all = 0;
            self.read_compressed(&mut |line| {
                all += u64::from(filter.keeps(line));
                Ok(())
            })?;
            self.at = all.saturating_sub(count);
            return Ok(all - self.at);
        }
        let (mut end, mut found) = (self.length()?, 0);
        self.at = end;
        // The beginning of the block that was read last, up to its first line feed.
        let mut head = Vec::new();
        while end > 0 && found < count {
            let base = end.saturating_sub(BLOCK_BYTES as u64);
            let mut block = vec![0; (end - base) as usize];
            self.file.read_exact_at(&mut block, base)?;
            block.append(&mut head);
            while found < count
                && let Some(at) = memchr::memrchr(b'\n', &block[..block.len().saturating_sub(1)])
            {
                if filter.keeps(&block[at + 1..]) {
                    (self.at, found) = (base + at as u64 + 1, found + 1);
                }
                block.truncate(at + 1);
            }
            let is_line = base == 0 || block.len() > MAX_LINE_BYTES;
            if found < count && is_line && filter.keeps(&block) {
                (self.at, found) = (base, found + 1);
            }
            (head, end) = (if is_line { Vec::new() } else { block }, base);
        }
        Ok(found)
    }

    /// Reads the whole lines that have come.
    fn read(&mut self, filter: Filter, emit: Emit<'_>) -> io::Result<()> {
        if self.is_compressed {
            let mut left_out = self.at;
            return self.read_compressed(&mut |line| match filter.keeps(line) {
                true if left_out > 0 => {
                    left_out -= 1;
                    Ok(())
                }
                true => emit(line),
                false => Ok(()),
            });
        }
        if self.length()? < self.at {
            // Somebody made it shorter.
            (self.at, self.rest) = (0, Vec::new());
        }
        let mut block = vec![0; BLOCK_BYTES];
        loop {
            let length = self.file.read_at(&mut block, self.at)?;
            if length == 0 {
                return Ok(());
            }
            self.at += length as u64;
            self.rest.extend_from_slice(&block[..length]);
            let whole = memchr::memrchr(b'\n', &self.rest).map_or(0, |at| at + 1);
            let whole = if self.rest.len() - whole > MAX_LINE_BYTES { self.rest.len() } else { whole };
            let lines: Vec<u8> = self.rest.drain(..whole).collect();
            let lines = lines.strip_suffix(b"\n").unwrap_or(&lines);
            if whole > 0 {
                lines.split(|byte| *byte == b'\n').filter(|line| filter.keeps(line)).try_for_each(&mut *emit)?;
            }
        }
    }

    fn read_compressed(&mut self, each: Emit<'_>) -> io::Result<()> {
        io::Seek::rewind(&mut self.file)?;
        let mut lines = BufReader::new(MultiGzDecoder::new(BufReader::new(self.file.try_clone()?)));
        let mut line = Vec::new();
        while (&mut lines).take(MAX_LINE_BYTES as u64).read_until(b'\n', &mut line)? > 0 {
            each(line.strip_suffix(b"\n").unwrap_or(&line))?;
            line.clear();
        }
        Ok(())
    }

    fn finish(&mut self, filter: Filter, emit: Emit<'_>) -> io::Result<()> {
        let rest = std::mem::take(&mut self.rest);
        if rest.is_empty() || !filter.keeps(&rest) { Ok(()) } else { emit(&rest) }
    }
}

/// Opens a file to read it. None: there is none. No symbolic link is followed: root may read what the link's owner may not.
fn open(path: &Path, is_compressed: bool) -> io::Result<Option<Part>> {
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let file = match File::options().read(true).custom_flags(flags.bits()).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(explain(&error, path)),
    };
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other(format!("{} is not a regular file, so it has no last lines", path.display())));
    }
    Ok(Some(Part { file, id: FileId::from(&metadata), is_compressed, at: 0, rest: Vec::new() }))
}

fn open_older(path: &Path, number: u32) -> io::Result<Option<Part>> {
    // A file loses its plain name only after it has got the other one.
    match open(&older(path, number, false), false)? {
        None => open(&older(path, number, true), true),
        part => Ok(part),
    }
}

/// The files that were rotated after the file `read`, the newest first. `neighbour` is the file that was rotated before it.
/// None: that cannot be known any more.
fn rotated_since(path: &Path, read: FileId, neighbour: Option<FileId>) -> io::Result<Option<Vec<Part>>> {
    let mut newer = Vec::new();
    for number in 1.. {
        let Some(part) = open_older(path, number)? else { break };
        if part.id == read {
            return Ok(Some(newer));
        }
        if Some(part.id) == neighbour {
            // The one that was read is compressed now, or was moved away.
            newer.pop();
            return Ok(Some(newer));
        }
        newer.push(part);
    }
    // It was the oldest, and is compressed now.
    newer.pop();
    Ok(neighbour.is_none().then_some(newer))
}

fn explain(error: &io::Error, path: &Path) -> io::Error {
    let path = path.display();
    let errno = Errno::from_raw(error.raw_os_error().unwrap_or_default());
    io::Error::other(match errno {
        Errno::EACCES => format!(
            "{path} is not open to your user; read it as its owner, or let a group in (panzer --log \
             FILE,mode=0640,group=GROUP)"
        ),
        Errno::ELOOP => format!("{path} is a symbolic link, which is not followed"),
        _ => format!("cannot read {path}: {}", words(error)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    fn lines(tail: &mut Tail, act: impl FnOnce(&mut Tail, Emit<'_>)) -> Vec<String> {
        let mut lines = Vec::new();
        act(tail, &mut |line| {
            lines.push(String::from_utf8_lossy(line).into_owned());
            Ok(())
        });
        lines
    }

    fn followed(tail: &mut Tail) -> Vec<String> {
        lines(tail, |tail, emit| assert!(!tail.follow(emit).unwrap()))
    }

    fn begun(tail: &mut Tail, count: u64) -> Vec<String> {
        lines(tail, |tail, emit| tail.begin(count, emit).unwrap())
    }

    fn compress(path: &Path, number: u32) {
        let mut packed = GzEncoder::new(Vec::new(), Compression::default());
        packed.write_all(&fs::read(older(path, number, false)).unwrap()).unwrap();
        fs::write(older(path, number, true), packed.finish().unwrap()).unwrap();
        fs::remove_file(older(path, number, false)).unwrap();
    }

    /// A file of five lines, behind one rotated file of three, behind a compressed one of two.
    fn three_files() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.log");
        fs::write(older(&path, 2, false), "0\n1\n").unwrap();
        compress(&path, 2);
        fs::write(older(&path, 1, false), "2\n3\n4\n").unwrap();
        fs::write(&path, "5\n6\n7\n8\n9\nno end").unwrap();
        (folder, path)
    }

    #[test]
    fn the_last_lines_are_found_in_whatever_file() {
        let (_folder, path) = three_files();
        for count in [0, 1, 3, 6, 7, 9, 10, 11, 12, 1000] {
            let mut tail = Tail::new(path.clone(), Filter::default());
            let mut found = begun(&mut tail, count);
            found.extend(lines(&mut tail, |tail, emit| tail.finish(emit).unwrap()));
            let all: Vec<String> = (0..10).map(|number| number.to_string()).chain(["no end".to_owned()]).collect();
            assert_eq!(found, all[all.len() - all.len().min(count as usize)..], "{count}");
        }
        fs::remove_file(&path).unwrap();
        assert_eq!(begun(&mut Tail::new(path, Filter::default()), 2), ["3", "4"]);
    }

    #[test]
    fn lines_that_are_longer_than_a_block_are_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.log");
        let long: Vec<String> = (0..9).map(|number| number.to_string().repeat(number * 40_000)).collect();
        fs::write(&path, long.join("\n") + "\n").unwrap();
        for count in 0..9 {
            assert_eq!(begun(&mut Tail::new(path.clone(), Filter::default()), count), long[9 - count as usize..]);
        }
    }

    #[test]
    fn a_file_is_followed_over_rotations_moves_and_cuts() {
        let (_folder, path) = three_files();
        let mut tail = Tail::new(path.clone(), Filter::default());
        begun(&mut tail, 1);
        let append = |text: &str| {
            let file = File::options().append(true).create(true).open(&path);
            file.unwrap().write_all(text.as_bytes()).unwrap();
        };
        append(" yet\na\nb");
        assert_eq!(followed(&mut tail), ["no end yet", "a"]);
        let rotate = || {
            for number in (1..9).rev() {
                for packed in [false, true] {
                    let _ = fs::rename(older(&path, number, packed), older(&path, number + 1, packed));
                }
            }
            fs::rename(&path, older(&path, 1, false)).unwrap();
        };
        append("\nc\n");
        rotate();
        append("d\n");
        rotate();
        append("e\n");
        assert_eq!(followed(&mut tail), ["b", "c", "d", "e"]);
        // Compressed at once.
        rotate();
        compress(&path, 1);
        append("f\n");
        rotate();
        append("g\n");
        assert_eq!(followed(&mut tail), ["f", "g"]);
        // Moved away and still written to, as it is not reopened yet.
        let mut old = File::options().append(true).open(&path).unwrap();
        fs::rename(&path, path.with_extension("moved")).unwrap();
        old.write_all(b"h\n").unwrap();
        assert_eq!(followed(&mut tail), ["h"]);
        fs::write(&path, "").unwrap();
        old.write_all(b"i\n").unwrap();
        assert_eq!(followed(&mut tail), ["i"]);
        append("j\n");
        assert_eq!(followed(&mut tail), ["j"]);
        fs::write(&path, "").unwrap();
        assert_eq!(followed(&mut tail), [] as [&str; 0]);
        append("k\n");
        assert_eq!(followed(&mut tail), ["k"]);
    }
}
