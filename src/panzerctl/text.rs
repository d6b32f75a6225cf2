//! Text that fits a terminal: cut, wrapped and coloured; and quantities in a few characters.

use crate::sys::printable;

/// The meaning of a text's colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tone {
    Plain,
    Heading,
    Good,
    Passing,
    Bad,
    Faint,
}

impl Tone {
    fn code(self) -> &'static str {
        match self {
            Tone::Plain => "",
            Tone::Heading => "1",
            Tone::Good => "32",
            Tone::Passing => "33",
            Tone::Bad => "31",
            Tone::Faint => "2",
        }
    }
}

/// A line in pieces, each with its tone. Control characters in the texts are replaced.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Line(Vec<(Tone, String)>);

impl Line {
    pub(super) fn new(tone: Tone, text: impl AsRef<str>) -> Line {
        Line::default().with(tone, text)
    }

    pub(super) fn with(mut self, tone: Tone, text: impl AsRef<str>) -> Line {
        self.0.push((tone, printable::line(text.as_ref())));
        self
    }

    /// At most `columns` wide, without spaces at its end.
    pub(super) fn render(&self, columns: usize, coloured: bool) -> String {
        let whole: usize = self.0.iter().map(|(_, text)| width(text)).sum();
        let mut left = columns;
        let mut out = String::new();
        for (tone, text) in &self.0 {
            let is_cut = whole > columns && width(text) >= left;
            let text = if is_cut { cut(&format!("{text}…"), left) } else { text.clone() };
            left -= width(&text);
            match tone.code() {
                code if coloured && !code.is_empty() && !text.trim().is_empty() => {
                    out.push_str(&format!("\x1b[{code}m{text}\x1b[0m"));
                }
                _ => out.push_str(&text),
            }
            if is_cut {
                break;
            }
        }
        out.truncate(out.trim_end().len());
        out
    }
}

/// Number of columns that a text takes, or more: most scripts from Hangul on are written wide.
pub(super) fn width(text: &str) -> usize {
    let columns = |letter: char| if matches!(letter, '\u{1100}'..='\u{115f}' | '\u{2e80}'..) { 2 } else { 1 };
    text.chars().map(columns).sum()
}

/// At most `columns` columns. If something is missing, the last one is an ellipsis.
pub(super) fn cut(text: &str, columns: usize) -> String {
    if width(text) <= columns {
        return text.to_owned();
    }
    let mut out = String::new();
    for letter in text.chars() {
        if width(&out) + width(letter.encode_utf8(&mut [0; 4])) + 1 > columns {
            break;
        }
        out.push(letter);
    }
    if columns > 0 { out.trim_end().to_owned() + "…" } else { out }
}

/// At most `max_lines` lines of at most `columns` columns.
pub(super) fn wrap(text: &str, columns: usize, max_lines: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in printable::line(text).split_whitespace() {
        match lines.last_mut() {
            Some(line) if width(line) + 1 + width(word) <= columns => *line += &format!(" {word}"),
            _ => lines.push(word.to_owned()),
        }
    }
    if lines.len() > max_lines {
        lines.truncate(max_lines);
        lines.last_mut().into_iter().for_each(|last| last.push('…'));
    }
    lines.iter().map(|line| cut(line, columns)).collect()
}

/// `5s`, `1m30s`, `3h03m`, `3d11h`.
pub(super) fn time(millis: u64) -> String {
    let seconds = millis / 1000;
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{}h{:02}m", seconds / 3_600, seconds / 60 % 60),
        _ => format!("{}d{:02}h", seconds / 86_400, seconds / 3_600 % 24),
    }
}

/// A number of bytes, in at most six characters.
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [char; 5] = ['K', 'M', 'G', 'T', 'P'];
    let mut amount = bytes as f64 / 1024.0;
    let mut units = UNITS.iter();
    let mut unit = units.next().unwrap_or(&'K');
    while amount >= 1000.0 {
        let Some(next) = units.next() else { break };
        (amount, unit) = (amount / 1024.0, next);
    }
    if *unit == 'K' { format!("{}K", amount as u64) } else { format!("{amount:.1}{unit}") }
}

/// A count in at most six characters: whole below a million, then in millions or billions.
pub(super) fn count(number: u32) -> String {
    match number {
        0..1_000_000 => number.to_string(),
        1_000_000..1_000_000_000 => format!("{:.1}M", f64::from(number / 100_000) / 10.0),
        _ => format!("{:.1}G", f64::from(number / 100_000_000) / 10.0),
    }
}

/// A share in percent, in at most five characters for up to 999 CPUs.
pub(super) fn percent(share: f64) -> String {
    if share < 999.95 { format!("{share:.1}") } else { format!("{share:.0}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_cut_to_its_columns_and_coloured_only_where_asked_for() {
        let line = Line::new(Tone::Good, "ready").with(Tone::Plain, " and more").with(Tone::Bad, " of it");
        assert_eq!(line.render(80, false), "ready and more of it");
        assert_eq!(line.render(80, true), "\x1b[32mready\x1b[0m and more\x1b[31m of it\x1b[0m");
        assert_eq!(line.render(20, false), "ready and more of it");
        assert_eq!(line.render(19, false), "ready and more of…");
        assert_eq!(line.render(14, false), "ready and mor…");
        assert_eq!(line.render(5, false), "read…");
        assert_eq!(line.render(0, false), "");
        assert_eq!(Line::new(Tone::Plain, "a\x1b[2J\n").render(80, true), "a?[2J?");
    }

    #[test]
    fn a_cut_text_is_never_too_wide() {
        assert_eq!(cut("abcdef", 6), "abcdef");
        assert_eq!(cut("abcdef", 4), "abc…");
        assert_eq!(cut("日本語", 5), "日本…");
        assert_eq!(cut("日本語", 4), "日…");
        assert_eq!(wrap("one two three four", 9, 2), ["one two", "three…"]);
        assert_eq!(wrap("one two three four", 10, 2), ["one two", "three four"]);
        assert_eq!(wrap(&"x".repeat(30), 10, 2), ["xxxxxxxxx…"]);
    }

    #[test]
    fn quantities_take_few_characters() {
        assert_eq!([size(0), size(700 << 20), size(1000 << 20), size(3 << 40)], ["0K", "700.0M", "1.0G", "3.0T"]);
        assert_eq!([count(99_999), count(1_234_567), count(u32::MAX)], ["99999", "1.2M", "4.2G"]);
        assert_eq!(
            [percent(0.0), percent(99.96), percent(999.96), percent(12_800.0)],
            ["0.0", "100.0", "1000", "12800"]
        );
        assert_eq!([time(5_000), time(90_000), time(11_000_000), time(300_000_000)], ["5s", "1m30s", "3h03m", "3d11h"]);
    }
}
