//! When a file is rotated.

/// Number of bytes of `lines` that still go into a file which has `length` bytes; 0: rotate first. `limit` 0 means no
/// limit. Lines stay whole, so a line that is longer than the limit has a file of its own. `begun`: a full disk took a part
/// of the first one, whose rest follows in the same file.
pub fn fitting(lines: &[u8], begun: bool, length: u64, limit: u64) -> usize {
    let room = usize::try_from(limit.saturating_sub(length)).unwrap_or(usize::MAX);
    if limit == 0 || lines.len() <= room {
        return lines.len();
    }
    let whole = memchr::memrchr(b'\n', &lines[..room]).map_or(0, |at| at + 1);
    if whole > 0 || (length > 0 && !begun) {
        return whole;
    }
    memchr::memchr(b'\n', lines).map_or(lines.len(), |at| at + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_stay_whole() {
        let lines = b"one\ntwo\nthree\n";
        for (length, limit, bytes) in [(0, 0, 14), (0, 14, 14), (0, 13, 8), (3, 8, 4), (10, 11, 0), (12, 11, 0)] {
            assert_eq!(fitting(lines, false, length, limit), bytes, "{length} of {limit}");
        }
        assert_eq!(fitting(lines, false, 0, 2), 4);
        assert_eq!(fitting(lines, true, 3, 2), 4);
        assert_eq!(fitting(b"no end", false, 0, 2), 6);
    }
}
