//! A line of a log: whose it is, and how it is shown.

use serde::Deserialize;

use crate::sys::printable;

/// Which lines are shown. None: of all.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Filter {
    pub(crate) worker: Option<u32>,
    pub(crate) generation: Option<u32>,
}

/// The facts at the beginning of a line.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
struct Origin {
    worker: Option<u32>,
    generation: Option<u32>,
    /// Number of lines that are missing here. They may be anybody's.
    dropped: Option<u64>,
}

impl Filter {
    pub(super) fn is_everything(self) -> bool {
        self.worker.is_none() && self.generation.is_none()
    }

    pub(super) fn keeps(self, line: &[u8]) -> bool {
        if self.is_everything() {
            return true;
        }
        let Some(origin) = origin(line) else { return false };
        let fits = |wanted: Option<u32>, found: Option<u32>| wanted.is_none() || wanted == found;
        origin.dropped.is_some() || (fits(self.worker, origin.worker) && fits(self.generation, origin.generation))
    }
}

/// Reads the beginning that panzer gives to a line with `--log-prefix`, or its JSON.
fn origin(line: &[u8]) -> Option<Origin> {
    if line.starts_with(b"{") {
        return serde_json::from_slice(line).ok();
    }
    let text = String::from_utf8_lossy(&line[..line.len().min(100)]);
    let words: Vec<&str> = text.split(' ').take(7).collect();
    match words[..] {
        [_, "worker", worker, "[gen", generation, _, "|"] => Some(Origin {
            worker: Some(worker.parse().ok()?),
            generation: Some(generation.strip_suffix(']')?.parse().ok()?),
            dropped: None,
        }),
        [_, "mold", "[gen", generation, _, "|", ..] => {
            Some(Origin { generation: Some(generation.strip_suffix(']')?.parse().ok()?), ..Origin::default() })
        }
        [_, "panzer:", count, ..] => Some(Origin { dropped: Some(count.parse().ok()?), ..Origin::default() }),
        _ => None,
    }
}

/// The line as a terminal may get it: nothing in it moves the cursor or changes a title. Colours stay if `coloured`, and
/// end with the line.
pub(super) fn on_terminal(line: &[u8], coloured: bool) -> String {
    let text = String::from_utf8_lossy(line);
    let mut rest = text.strip_suffix('\r').unwrap_or(&text);
    let (mut shown, mut has_colours) = (String::with_capacity(rest.len()), false);
    while let Some(at) = rest.find("\x1b[") {
        let parameters = rest[at + 2..].bytes().take_while(|byte| matches!(byte, b'0'..=b'9' | b';' | b':')).count();
        let end = at + 2 + parameters;
        shown.push_str(&without_controls(&rest[..at]));
        if rest[end..].starts_with('m') {
            if coloured {
                shown.push_str(&rest[at..=end]);
                has_colours = true;
            }
            rest = &rest[end + 1..];
        } else {
            shown.push_str(&without_controls(&rest[at..end]));
            rest = &rest[end..];
        }
    }
    shown.push_str(&without_controls(rest));
    if has_colours {
        shown.push_str("\x1b[0m");
    }
    shown
}

fn without_controls(text: &str) -> String {
    text.split('\t').map(printable::line).collect::<Vec<_>>().join("\t")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_chosen_by_what_their_beginning_says() {
        let filter = |worker, generation| Filter { worker, generation };
        let prefixed = "2026-01-01T00:00:00.000Z worker 3 [gen 2] stdout | text";
        let json = r#"{"time":"x","worker":3,"generation":2,"stream":"stdout","line":"text"}"#;
        for line in [prefixed, json] {
            let keeps = |worker, generation| filter(worker, generation).keeps(line.as_bytes());
            assert!(keeps(None, None) && keeps(Some(3), None) && keeps(None, Some(2)) && keeps(Some(3), Some(2)));
            assert!(!keeps(Some(2), None) && !keeps(Some(3), Some(3)) && !keeps(None, Some(3)), "{line}");
        }
        let mold = b"x mold [gen 2] stderr | worker 3 [gen 3] stdout | a";
        assert!(filter(None, Some(2)).keeps(mold) && !filter(Some(3), None).keeps(mold));
        for dropped in [&b"x panzer: 7 lines (9 bytes) dropped: this"[..], br#"{"dropped":7,"line":"x"}"#] {
            assert!(filter(Some(9), Some(9)).keeps(dropped));
        }
        for other in [&b"plain"[..], b"", b"{", b"a worker x [gen 2] stdout | a", b"\xff\xfe worker"] {
            assert!(filter(None, None).keeps(other) && !filter(Some(3), None).keeps(other));
        }
    }

    #[test]
    fn a_terminal_gets_colours_and_nothing_else_that_acts() {
        let shown = |line: &str| on_terminal(line.as_bytes(), true);
        assert_eq!(shown("a\tb\x1b]0;title\x07\r"), "a\tb?]0;title?");
        assert_eq!(shown("\x1b[1;31mred\x1b[2Jx"), "\x1b[1;31mred?[2Jx\x1b[0m");
        assert_eq!(on_terminal(b"\x1b[31mred\x1b[0m \xff\x9b", false), "red \u{fffd}\u{fffd}");
        assert_eq!(shown("\x1b[\x1b[1"), "?[?[1");
    }
}
