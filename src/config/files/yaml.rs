//! The configuration file: a YAML mapping of option names to scalars, lists and maps, each with its position.
//!
//! It knows no options. The options are defined elsewhere, and so is the meaning of a key.

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use granit_parser::{Event, Parser, ScalarStyle, Span};
use nix::fcntl::OFlag;

use crate::sys::errno::words;

/// Limit of the size of the file.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Limit of the length of a line in a snippet.
const MAX_SNIPPET_COLUMNS: usize = 72;

/// A position in the file. Line and column count from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// The line.
    pub line: usize,
    /// The column, in characters.
    pub column: usize,
}

/// A scalar as it is written, but without quotes and escapes: `0800` stays `0800`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scalar {
    /// Its text.
    pub text: String,
    /// Its position.
    pub place: Position,
    /// Whether it is written without quotes. Only then it can be null.
    pub plain: bool,
}

impl Scalar {
    /// Whether it is null.
    pub fn is_null(&self) -> bool {
        self.plain && ["", "~", "null", "Null", "NULL"].contains(&self.text.as_str())
    }
}

/// The value of a key of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// One value.
    Scalar(Scalar),
    /// Several values.
    List(Vec<Scalar>),
    /// Several named values, as in `env`.
    Map(Vec<(Scalar, Scalar)>),
}

/// One key of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: Scalar,
    /// Its value.
    pub value: Value,
    /// Position of the value.
    pub place: Position,
}

/// An error in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrong {
    /// Its position.
    pub place: Position,
    /// The fault, and what to do about it.
    pub why: String,
}

/// The text of the file at `path`; none if there is no file. Fails, in words, if it cannot be read, is not a regular file, is
/// larger than 1 MiB or is not UTF-8.
pub fn read(path: &Path) -> Result<Option<String>, String> {
    let Some(bytes) = read_bytes(path)? else { return Ok(None) };
    String::from_utf8(bytes).map(Some).map_err(|error| {
        let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = 1 + good.iter().filter(|&&byte| byte == b'\n').count();
        format!("it is not UTF-8 in line {line}")
    })
}

/// The bytes of the file at `path`, which need not be UTF-8.
pub fn read_bytes(path: &Path) -> Result<Option<Vec<u8>>, String> {
    // Otherwise the open would wait if a pipe is at this path.
    let flags = (OFlag::O_NONBLOCK | OFlag::O_CLOEXEC | OFlag::O_NOCTTY).bits();
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(None),
        opened => opened.map_err(|error| cannot_read(&error))?,
    };
    let meta = file.metadata().map_err(|error| cannot_read(&error))?;
    if !meta.is_file() {
        return Err("it is not a regular file".to_owned());
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(|error| cannot_read(&error))?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(format!("it is larger than {} KiB", MAX_FILE_BYTES / 1024));
    }
    Ok(Some(bytes))
}

fn cannot_read(error: &std::io::Error) -> String {
    format!("it cannot be read: {}", words(error))
}

/// The keys of the file, in the order of the file. An empty file has none.
pub fn parse(text: &str) -> Result<Vec<Entry>, Wrong> {
    let mut events = Events { parser: Parser::new_from_str(text) };
    loop {
        let (event, place) = events.next()?;
        match event {
            Event::StreamStart | Event::DocumentStart(..) => {}
            Event::StreamEnd => return Ok(Vec::new()),
            Event::MappingStart(_, anchor, tag) => {
                plain_node(anchor, tag.is_some(), place)?;
                let entries = events.entries()?;
                events.end()?;
                return Ok(entries);
            }
            // A document that consists of comments.
            Event::Scalar(text, ScalarStyle::Plain, 0, None) if text.is_empty() || text == "~" => {
                events.end()?;
                return Ok(Vec::new());
            }
            _ => return wrong(place, "not a list of 'option: value'; write one option a line, as in 'workers: 8'"),
        }
    }
}

struct Events<'a> {
    parser: Parser<'a, granit_parser::StrInput<'a>>,
}

impl<'a> Events<'a> {
    fn next(&mut self) -> Result<(Event<'a>, Position), Wrong> {
        loop {
            match self.parser.next_event() {
                Some(Ok((Event::Comment(..), _))) => {}
                Some(Ok((event, span))) => return Ok((event, place(&span))),
                Some(Err(error)) => {
                    let marker = error.marker();
                    let place = Position { line: marker.line(), column: marker.col() + 1 };
                    return wrong(place, &format!("not YAML: {}", error.info()));
                }
                None => return Ok((Event::StreamEnd, Position { line: 1, column: 1 })),
            }
        }
    }

    /// The entries of the outermost mapping.
    fn entries(&mut self) -> Result<Vec<Entry>, Wrong> {
        let (mut entries, mut known) = (Vec::new(), BTreeSet::new());
        while let Some(key) = self.key(&mut known)? {
            let (event, place) = self.next()?;
            let value = match event {
                Event::SequenceStart(_, anchor, tag) => {
                    plain_node(anchor, tag.is_some(), place)?;
                    Value::List(self.list()?)
                }
                Event::MappingStart(_, anchor, tag) => {
                    plain_node(anchor, tag.is_some(), place)?;
                    Value::Map(self.map()?)
                }
                other => Value::Scalar(scalar(other, place)?),
            };
            entries.push(Entry { key, value, place });
        }
        Ok(entries)
    }

    fn list(&mut self) -> Result<Vec<Scalar>, Wrong> {
        let mut items = Vec::new();
        loop {
            match self.next()? {
                (Event::SequenceEnd, _) => return Ok(items),
                (event, place) => items.push(scalar(event, place)?),
            }
        }
    }

    fn map(&mut self) -> Result<Vec<(Scalar, Scalar)>, Wrong> {
        let (mut pairs, mut known) = (Vec::new(), BTreeSet::new());
        while let Some(key) = self.key(&mut known)? {
            let (event, place) = self.next()?;
            pairs.push((key, scalar(event, place)?));
        }
        Ok(pairs)
    }

    /// The next key of a mapping, or none at its end.
    fn key(&mut self, known: &mut BTreeSet<String>) -> Result<Option<Scalar>, Wrong> {
        let (event, place) = self.next()?;
        if event == Event::MappingEnd {
            return Ok(None);
        }
        let key = scalar(event, place)?;
        if !known.insert(key.text.clone()) {
            return wrong(place, &format!("'{}' is given twice", key.text));
        }
        Ok(Some(key))
    }

    /// Checks that the document ends here.
    fn end(&mut self) -> Result<(), Wrong> {
        loop {
            match self.next()? {
                (Event::DocumentEnd, _) => {}
                (Event::StreamEnd, _) => return Ok(()),
                (_, place) => return wrong(place, "a second document; a configuration is one"),
            }
        }
    }
}

fn scalar(event: Event<'_>, place: Position) -> Result<Scalar, Wrong> {
    match event {
        Event::Scalar(text, style, anchor, tag) => {
            plain_node(anchor, tag.is_some(), place)?;
            if text.contains('\0') {
                return wrong(place, "a value cannot hold a NUL byte");
            }
            Ok(Scalar { text: text.into_owned(), place, plain: style == ScalarStyle::Plain })
        }
        Event::Alias(_) => wrong(place, "aliases are not supported; write the value itself"),
        _ => wrong(place, "nested too deep; here stands a single value"),
    }
}

fn plain_node(anchor: usize, tagged: bool, place: Position) -> Result<(), Wrong> {
    if anchor != 0 {
        return wrong(place, "anchors are not supported; write the value itself");
    }
    if tagged {
        return wrong(place, "tags are not supported; write the value itself, in quotes if need be");
    }
    Ok(())
}

fn place(span: &Span) -> Position {
    Position { line: span.start.line(), column: span.start.col() + 1 }
}

fn wrong<T>(place: Position, why: &str) -> Result<T, Wrong> {
    Err(Wrong { place, why: why.to_owned() })
}

/// The line at `place`, with a mark below it, for the end of a message. Empty if there is no such line.
pub fn snippet(text: &str, place: Position) -> String {
    let Some(line) = text.lines().nth(place.line.saturating_sub(1)) else { return String::new() };
    let shown: String =
        line.chars().take(MAX_SNIPPET_COLUMNS).map(|letter| if letter.is_control() { ' ' } else { letter }).collect();
    let number = place.line.to_string();
    let margin = " ".repeat(number.len());
    let mut block = format!("\n{margin} |\n{number} | {shown}");
    if place.column <= MAX_SNIPPET_COLUMNS {
        block.push_str(&format!("\n{margin} | {}^", " ".repeat(place.column.saturating_sub(1))));
    }
    block
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Vec<(String, String)> {
        let text_of = |scalar: &Scalar| scalar.text.clone();
        let shown = |value: &Value| match value {
            Value::Scalar(scalar) => text_of(scalar),
            Value::List(items) => format!("[{}]", items.iter().map(text_of).collect::<Vec<_>>().join(" ")),
            Value::Map(pairs) => pairs.iter().map(|(key, value)| format!("{}={} ", key.text, value.text)).collect(),
        };
        parse(text).unwrap().iter().map(|entry| (entry.key.text.clone(), shown(&entry.value))).collect()
    }

    fn refused(text: &str) -> (usize, usize, String) {
        let wrong = parse(text).unwrap_err();
        (wrong.place.line, wrong.place.column, wrong.why)
    }

    #[test]
    fn values_stay_as_they_are_written() {
        let text = "# comment\nworkers: 0800\nlisten: [8080, \"[::1]:80\"]\nenv:\n  A: \"1\"\n  B: {worker}\n";
        assert!(parse(text).is_err(), "a brace begins a map, which is no value here");
        let text = "# comment\nworkers: 0800\nlisten: [8080, \"[::1]:80\"]\nenv:\n  A: on\n  B: \"{worker}\"\n";
        let expected = [("workers", "0800"), ("listen", "[8080 [::1]:80]"), ("env", "A=on B={worker} ")];
        assert_eq!(parsed(text), expected.map(|(key, value)| (key.to_owned(), value.to_owned())));
        for empty in ["", "\n", "# nothing\n", "---\n", "---\n# nothing\n...\n"] {
            assert_eq!(parse(empty), Ok(Vec::new()), "{empty:?}");
        }
        assert!(matches!(&parse("a:\n").unwrap()[0].value, Value::Scalar(scalar) if scalar.is_null()));
        assert!(matches!(&parse("a: ''\n").unwrap()[0].value, Value::Scalar(scalar) if !scalar.is_null()));
    }

    #[test]
    fn what_is_wrong_has_its_place() {
        assert_eq!(refused("a: 1\nb: 2\na: 3\n"), (3, 1, "'a' is given twice".to_owned()));
        assert_eq!(refused("env:\n  K: 1\n  K: 2\n"), (3, 3, "'K' is given twice".to_owned()));
        assert_eq!(refused("a: &x 1\nb: *x\n").0, 1);
        assert!(refused("a: !!str 1\n").2.contains("tags"));
        assert!(refused("a: [[1]]\n").2.contains("too deep"));
        assert!(refused("a: {b: [1]}\n").2.contains("too deep"));
        assert_eq!(refused("a: [1, 2\nb: 3\n").0, 2);
        assert!(refused("- a\n- b\n").2.contains("one option a line"));
        assert!(refused("a: 1\n---\nb: 2\n").2.contains("second document"));
        assert!(refused("a: \"x\\0y\"\n").2.contains("NUL"));
    }

    #[test]
    fn a_bomb_is_refused_at_its_first_anchor() {
        let mut bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n".to_owned();
        for (last, next) in ["ab", "bc", "cd", "de", "ef", "fg", "gh", "hi"].map(|pair| pair.split_at(1)) {
            bomb.push_str(&format!(
                "{next}: &{next} [*{last}, *{last}, *{last}, *{last}, *{last}, *{last}, *{last}]\n"
            ));
        }
        assert_eq!(refused(&bomb).0, 1);
        assert!(parse(&"[".repeat(500_000)).is_err());
        assert!(parse(&"a:\n ".repeat(1000)).is_err());
    }

    #[test]
    fn a_snippet_marks_its_place() {
        let place = Position { line: 2, column: 4 };
        assert_eq!(snippet("a: 1\nb: 2\n", place), "\n  |\n2 | b: 2\n  |    ^");
        assert_eq!(snippet("a: 1", place), "");
        assert!(snippet(&"x".repeat(500), Position { line: 1, column: 400 }).len() < 100);
    }
}
