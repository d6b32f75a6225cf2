//! How a line of a worker is written.

use std::fmt::Write;

use serde::Serialize;

use crate::config::LogFormat;
use crate::control::logger::Source;

/// Limit of a line, in bytes. A longer one is cut into lines of this length.
pub const MAX_LINE_BYTES: usize = 32 << 10;

/// Number of bytes that can be written as whole lines now, none of which is too long; or as one line, if one is. 0: none.
pub(crate) fn whole(bytes: &[u8]) -> usize {
    let mut length = 0;
    loop {
        let rest = &bytes[length..];
        match memchr::memrchr(b'\n', &rest[..rest.len().min(MAX_LINE_BYTES + 1)]) {
            Some(at) => length += at + 1,
            None if length == 0 && rest.len() > MAX_LINE_BYTES => return cut(&rest[..MAX_LINE_BYTES]),
            None => return length,
        }
    }
}

/// Where a line is cut that has begun with `bytes`: not within a character, if it is UTF-8.
fn cut(bytes: &[u8]) -> usize {
    let begins = |at: &usize| bytes[*at] & 0xc0 != 0x80;
    let last = (bytes.len().saturating_sub(4)..bytes.len()).rev().find(begins);
    let width = |at: usize| match bytes[at] {
        0xf0.. => 4,
        0xe0.. => 3,
        0xc0.. => 2,
        _ => 1,
    };
    last.filter(|at| at + width(*at) > bytes.len()).unwrap_or(bytes.len())
}

/// How lines are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Style {
    /// Text or JSON.
    pub format: LogFormat,
    /// Whether text begins with its time and source.
    pub prefix: bool,
    /// Whether that is coloured.
    pub colour: bool,
}

impl Style {
    /// Whether lines are written as they are.
    pub(crate) fn is_plain(self) -> bool {
        self.format == LogFormat::Text && !self.prefix
    }
}

/// Colours of workers, as numbers of ANSI escapes.
const COLOURS: [u8; 6] = [36, 33, 32, 35, 34, 31];

#[derive(Serialize)]
struct Object<'a> {
    time: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    worker: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    generation: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stream: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dropped: Option<u64>,
    line: &'a str,
}

/// The part of each line that does not depend on its text.
pub(crate) fn head(style: Style, time: &str, source: &Source) -> String {
    let mut head = String::new();
    let name = source.worker.map_or_else(|| "mold".to_owned(), |worker| format!("worker {worker}"));
    let (generation, stream) = (source.generation, source.stream);
    // Writing to a string does not fail.
    let _ = match (style.format, style.colour) {
        (LogFormat::Json, _) => {
            let worker = source.worker.map_or_else(|| "null".to_owned(), |worker| worker.to_string());
            write!(head, r#"{{"time":"{time}","worker":{worker},"generation":{generation},"stream":"{stream}","line":"#)
        }
        (LogFormat::Text, true) => {
            let colour = COLOURS[source.worker.unwrap_or_default() as usize % COLOURS.len()];
            write!(head, "\x1b[{colour}m{time} {name} [gen {generation}] {stream} |\x1b[0m ")
        }
        (LogFormat::Text, false) => write!(head, "{time} {name} [gen {generation}] {stream} | "),
    };
    head
}

/// Writes one line, which has no line feed, behind what `out` holds.
pub(crate) fn append(out: &mut Vec<u8>, style: Style, head: &str, line: &[u8]) {
    if !style.is_plain() {
        out.extend_from_slice(head.as_bytes());
    }
    match style.format {
        LogFormat::Json => {
            // Writing to memory does not fail.
            let _ = serde_json::to_writer(&mut *out, &String::from_utf8_lossy(line));
            out.extend_from_slice(b"}\n");
        }
        LogFormat::Text => {
            out.extend_from_slice(line);
            out.push(b'\n');
        }
    }
}

/// The line that says how many lines were dropped.
pub(crate) fn dropped(style: Style, time: &str, lines: u64, bytes: u64) -> Vec<u8> {
    let noun = if lines == 1 { "line" } else { "lines" };
    let text = format!("panzer: {lines} {noun} ({bytes} bytes) dropped: this log could not be written fast enough");
    match style.format {
        LogFormat::Json => {
            let (worker, generation, stream) = (None, None, None);
            let object = Object { time, worker, generation, stream, dropped: Some(lines), line: &text };
            let mut json = serde_json::to_vec(&object).unwrap_or_default();
            json.push(b'\n');
            json
        }
        LogFormat::Text => format!("{time} {text}\n").into_bytes(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::config::Stream;

    const SOURCE: Source = Source { pair: 1, stream: Stream::Stderr, worker: Some(3), generation: 2 };

    fn written(style: Style, line: &[u8]) -> String {
        let mut out = Vec::new();
        append(&mut out, style, &head(style, "12:00", &SOURCE), line);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_line_is_written_in_each_style() {
        let plain = Style::default();
        assert_eq!(written(plain, b"a b"), "a b\n");
        assert_eq!(written(Style { prefix: true, ..plain }, b"a"), "12:00 worker 3 [gen 2] stderr | a\n");
        let coloured = written(Style { prefix: true, colour: true, ..plain }, b"a");
        assert_eq!(coloured, "\x1b[35m12:00 worker 3 [gen 2] stderr |\x1b[0m a\n");
        let json = written(Style { format: LogFormat::Json, ..plain }, b"a\"\xff\x01");
        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(value["line"], "a\"\u{fffd}\u{1}");
        assert_eq!((&value["worker"], &value["stream"]), (&3.into(), &"stderr".into()));
    }

    #[test]
    fn no_line_is_too_long_and_none_is_cut_without_need() {
        let lines =
            |lengths: &[usize]| lengths.iter().flat_map(|length| [vec![b'x'; *length], vec![b'\n']].concat()).collect();
        let open = |text: Vec<u8>| text[..text.len() - 1].to_vec();
        let most = MAX_LINE_BYTES;
        let all: [(Vec<u8>, usize); 7] = [
            (Vec::new(), 0),
            (lines(&[3, 5]), 10),
            (open(lines(&[3, 5])), 4),
            (lines(&[most]), most + 1),
            (open(lines(&[most])), 0),
            (lines(&[most + 1]), most),
            (lines(&[2, most + 1, 2]), 3),
        ];
        for (at, (bytes, expected)) in all.iter().enumerate() {
            assert_eq!(whole(bytes), *expected, "{at}");
        }
    }

    #[test]
    fn a_line_is_not_cut_within_a_character() {
        for (text, expected) in [("abc", 3), ("ab\u{e9}", 4), ("ab\u{20ac}", 5), ("ab\u{1f600}", 6)] {
            assert_eq!(cut(text.as_bytes()), expected, "{text}");
            let part = &text.as_bytes()[..text.len() - 1];
            assert_eq!(cut(part), 2, "a part of {text}");
        }
        assert_eq!(cut(&[0x80; 9]), 9);
        assert_eq!(cut(&[0xff; 9]), 8);
    }

    #[test]
    fn what_was_dropped_is_counted_in_each_style() {
        let text = String::from_utf8(dropped(Style::default(), "12:00", 2, 7)).unwrap();
        assert!(text.starts_with("12:00 panzer: 2 lines (7 bytes) dropped"));
        let json = dropped(Style { format: LogFormat::Json, ..Style::default() }, "12:00", 1, 7);
        assert_eq!(serde_json::from_slice::<serde_json::Value>(&json).unwrap()["dropped"], 1);
    }
}
