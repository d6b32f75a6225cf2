//! The files of `--env-file`.
//!
//! Each line has `NAME=VALUE`, possibly after `export `. Empty lines, and lines that begin with `#` or `;`, are
//! ignored. A value without quotes goes to the end of its line, without the blanks around it. In `'…'` every character
//! stands for itself. In `"…"` too, but for `\\`, `\"`, `\$`, `` \` ``, `
//! `, `\r` and `\t`. Both kinds of quotes may contain line breaks.
//!
//! A form that systemd, a shell and dotenv read differently is refused: a blank and `#`, a quote in the middle, a
//! backslash at the end of a value without quotes. Nothing is replaced in values. If a name occurs twice, the last line
//! counts.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use super::yaml::{Position, Wrong};
use crate::config::text::Text;

/// Limit of `NAME=VALUE` in Linux, including the closing NUL (MAX_ARG_STRLEN).
const MAX_ENTRY_BYTES: usize = 128 << 10;

/// Limit of the number of variables. No program reads as many.
const MAX_VARIABLES: usize = 4096;

/// Whether panzer itself sets this variable for workers, so that files may not set it.
pub fn is_panzers_own(name: &[u8]) -> bool {
    const OWN: [&[u8]; 4] = [b"LISTEN_PID", b"LISTEN_FDS", b"LISTEN_FDNAMES", b"NOTIFY_SOCKET"];
    is_for_panzer(name) || OWN.contains(&name)
}

/// Whether this variable is meant for panzer. Kubernetes and Docker describe a service that is called "panzer" or
/// "panzer-…" by variables that begin alike. Those are meant for the program.
pub fn is_for_panzer(name: &[u8]) -> bool {
    name.strip_prefix(b"PANZER_").is_some_and(|rest| !describes_service(rest))
}

/// Matches `…SERVICE_HOST`, `…SERVICE_PORT`, `…SERVICE_PORT_NAME`, `…PORT` and `…PORT_80_TCP`, possibly followed by
/// `_ADDR`, `_PORT` or `_PROTO` (kubernetes.io, "Accessing the Service"; the last form is that of Docker's links).
fn describes_service(rest: &[u8]) -> bool {
    let Ok(rest) = std::str::from_utf8(rest) else { return false };
    let after = |word: &str| {
        let at = rest.match_indices(word).map(|(at, _)| at).find(|&at| at == 0 || rest.as_bytes()[at - 1] == b'_')?;
        Some(&rest[at + word.len()..])
    };
    let is_port = |after: &str| {
        let mut parts = after.trim_start_matches('_').split('_');
        let number = parts.next().is_some_and(|part| part.parse::<u16>().is_ok());
        let protocol = parts.next().is_some_and(|part| ["TCP", "UDP", "SCTP"].contains(&part));
        let end = parts.next().is_none_or(|part| ["ADDR", "PORT", "PROTO"].contains(&part));
        after.is_empty() || (number && protocol && end && parts.next().is_none())
    };
    after("SERVICE_HOST").is_some_and(str::is_empty)
        || after("SERVICE_PORT").is_some_and(|name| name.is_empty() || name.starts_with('_'))
        || after("PORT").is_some_and(is_port)
}

/// The variables that `bytes` set, by name. An error message contains no value, because values may be secrets.
pub fn parse(bytes: &[u8]) -> Result<BTreeMap<Text, Text>, Wrong> {
    // Some editors begin a UTF-8 file with a byte order mark. It is not part of the first name.
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let mut reader = Reader { bytes, at: 0 };
    if let Some(at) = bytes.iter().position(|&byte| byte == 0) {
        return reader.wrong(at, "a NUL byte, which no variable can hold");
    }
    let mut variables = BTreeMap::new();
    loop {
        reader.skip(|byte| byte.is_ascii_whitespace());
        match reader.peek() {
            None => return Ok(variables),
            Some(b'#' | b';') => reader.skip(|byte| byte != b'\n'),
            Some(_) => {
                let start = reader.at;
                let (name, value) = reader.variable()?;
                if name.len() + value.len() + 2 > MAX_ENTRY_BYTES {
                    return reader.wrong(start, "longer than the 128 KiB that the kernel passes on");
                }
                variables.insert(name.into(), value.into());
                if variables.len() > MAX_VARIABLES {
                    return reader.wrong(start, &format!("more than the {MAX_VARIABLES} variables allowed"));
                }
            }
        }
    }
}

impl From<&[u8]> for Text {
    fn from(bytes: &[u8]) -> Text {
        Text(OsStr::from_bytes(bytes).to_owned())
    }
}

impl From<Vec<u8>> for Text {
    fn from(bytes: Vec<u8>) -> Text {
        Text::from(bytes.as_slice())
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

fn is_blank(byte: u8) -> bool {
    byte == b' ' || byte == b'\t'
}

impl<'a> Reader<'a> {
    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn skip(&mut self, skipped: impl Fn(u8) -> bool) {
        while self.peek().is_some_and(&skipped) {
            self.at += 1;
        }
    }

    fn take(&mut self, taken: impl Fn(u8) -> bool) -> &'a [u8] {
        let start = self.at;
        self.skip(taken);
        &self.bytes[start..self.at]
    }

    fn variable(&mut self) -> Result<(&'a [u8], Vec<u8>), Wrong> {
        if self.bytes[self.at..].strip_prefix(b"export").is_some_and(|rest| rest.first().copied().is_some_and(is_blank))
        {
            self.at += b"export".len();
            self.skip(is_blank);
        }
        let start = self.at;
        let name = self.take(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte));
        self.skip(is_blank);
        if name.is_empty() || name[0].is_ascii_digit() || self.peek() != Some(b'=') {
            let why = "not NAME=VALUE, with a name of letters, digits, '_', '.' and '-' that begins with no digit";
            return self.wrong(start, why);
        }
        if is_panzers_own(name) {
            let name = String::from_utf8_lossy(name);
            return self.wrong(start, &format!("panzer sets {name} itself; remove the line"));
        }
        self.at += 1;
        self.skip(is_blank);
        let value = match self.peek() {
            Some(b'\'' | b'"') => self.quoted()?,
            _ => self.bare()?,
        };
        Ok((name, value))
    }

    fn bare(&mut self) -> Result<Vec<u8>, Wrong> {
        let start = self.at;
        let value = self.take(|byte| byte != b'\n').trim_ascii_end();
        for (at, &byte) in value.iter().enumerate() {
            let is_comment = byte == b'#' && (at == 0 || is_blank(value[at - 1]));
            let is_joined = byte == b'\\' && at + 1 == value.len();
            if is_comment || is_joined || byte == b'\'' || byte == b'"' {
                let byte = char::from(byte);
                return self
                    .wrong(start + at, &format!("{byte} is read in different ways here; put the value in quotes"));
            }
        }
        Ok(value.to_vec())
    }

    fn quoted(&mut self) -> Result<Vec<u8>, Wrong> {
        let start = self.at;
        let quote = self.bytes[start];
        self.at += 1;
        let mut value = Vec::new();
        loop {
            let at = self.at;
            self.at += 1;
            match self.bytes.get(at) {
                None => return self.wrong(start, "this quote is never closed"),
                Some(&byte) if byte == quote => break,
                Some(b'\\') if quote == b'"' => {
                    value.push(match self.bytes.get(self.at) {
                        Some(&byte @ (b'\\' | b'"' | b'$' | b'`')) => byte,
                        Some(b'n') => b'\n',
                        Some(b'r') => b'\r',
                        Some(b't') => b'\t',
                        _ => return self.wrong(at, "an unknown escape; write \\\\ for a backslash, or take '…'"),
                    });
                    self.at += 1;
                }
                Some(&byte) => value.push(byte),
            }
        }
        let after = self.at;
        let blanks = self.take(|byte| is_blank(byte) || byte == b'\r');
        match self.peek() {
            None | Some(b'\n') => Ok(value),
            Some(b'#') if !blanks.is_empty() => {
                self.skip(|byte| byte != b'\n');
                Ok(value)
            }
            Some(_) => {
                self.wrong(after, "something follows the closing quote; put the whole value in one pair of them")
            }
        }
    }

    fn wrong<T>(&self, at: usize, why: &str) -> Result<T, Wrong> {
        let before = &self.bytes[..at];
        let line_starts = before.iter().rposition(|&byte| byte == b'\n').map_or(0, |newline| newline + 1);
        let line = 1 + before.iter().filter(|&&byte| byte == b'\n').count();
        let column = 1 + String::from_utf8_lossy(&before[line_starts..]).chars().count();
        Err(Wrong { place: Position { line, column }, why: why.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Vec<(String, String)> {
        let shown = |text: Text| text.0.into_string().unwrap();
        parse(text.as_bytes()).unwrap().into_iter().map(|(name, value)| (shown(name), shown(value))).collect()
    }

    fn refused(text: &str) -> (usize, usize, String) {
        let wrong = parse(text.as_bytes()).unwrap_err();
        (wrong.place.line, wrong.place.column, wrong.why)
    }

    #[test]
    fn values_are_read() {
        for (line, value) in [
            ("A=", ""),
            ("A=b", "b"),
            ("  export\tA = b c \r\n", "b c"),
            ("A=b#c{worker}$HOME\\n", "b#c{worker}$HOME\\n"),
            ("A='b \"#\\\n$c'", "b \"#\\\n$c"),
            ("A=\"b'\\\"\\\\\\$\\n\\t# c\n\" # why\nA2=x".split("\nA2").next().unwrap(), "b'\"\\$\n\t# c\n"),
            ("A=1\nA=2\n", "2"),
            ("# A=1\n\n; B=2\nA='3'", "3"),
            ("\u{feff}A=4", "4"),
        ] {
            assert_eq!(parsed(line), [("A".to_owned(), value.to_owned())], "{line:?}");
        }
        assert_eq!(
            parsed("export=1\nx.y-z=\u{e9}"),
            [("export", "1"), ("x.y-z", "\u{e9}")].map(|(a, b)| (a.into(), b.into()))
        );
        assert_eq!(parse(b"A=\xff").unwrap().into_iter().next().unwrap().1, Text::from(&b"\xff"[..]));
    }

    #[test]
    fn what_describes_a_service_is_not_for_panzer() {
        for name in [
            "PANZER_SERVICE_HOST",
            "PANZER_SERVICE_PORT",
            "PANZER_SERVICE_PORT_HTTP",
            "PANZER_WEB_SERVICE_HOST",
            "PANZER_PORT",
            "PANZER_PORT_8000_TCP",
            "PANZER_WEB_PORT_53_UDP_PROTO",
            "PANZER_PORT_8000_TCP_ADDR",
            "PANZERS",
        ] {
            assert!(!is_panzers_own(name.as_bytes()), "{name}");
        }
        for name in ["PANZER_WORKERS", "PANZER_SHARE_PORTS", "PANZER_PORT_8000", "PANZER_PORT_X_TCP", "PANZER_REPORT"] {
            assert!(is_panzers_own(name.as_bytes()), "{name}");
        }
    }

    #[test]
    fn what_is_wrong_has_its_place_and_gives_no_secret_away() {
        for (text, line, column) in [
            ("A", 1, 1),
            ("\u{feff}A", 1, 1),
            ("A=1\n=2", 2, 1),
            ("\u{e9}=1", 1, 1),
            ("export 1A=2", 1, 8),
            ("A=1\n A B=2", 2, 2),
            ("A='secret\n\n", 1, 3),
            ("A=\"secret\\x\"", 1, 10),
            ("A='\u{e9}'secret", 1, 6),
            ("A='b'#c", 1, 6),
            ("A=secret #c", 1, 10),
            ("A=#c", 1, 3),
            ("A=it's", 1, 5),
            ("A=secret\\\nB=1", 1, 9),
            ("A=1\n\nB=secret\0", 3, 9),
            ("PANZER_X=secret", 1, 1),
            ("LISTEN_FDS=secret", 1, 1),
            ("export NOTIFY_SOCKET=secret", 1, 8),
        ] {
            let (found_line, found_column, why) = refused(text);
            assert_eq!((found_line, found_column), (line, column), "{text:?}: {why}");
            assert!(!why.contains("secret"), "{why}");
        }
        let long = |length| format!("A={}", "x".repeat(length));
        assert!(parse(long(MAX_ENTRY_BYTES - 3).as_bytes()).is_ok());
        assert!(refused(&long(MAX_ENTRY_BYTES - 2)).2.contains("128 KiB"));
        let many: String = (0..=MAX_VARIABLES).map(|number| format!("A{number}=\n")).collect();
        assert_eq!(refused(&many).0, MAX_VARIABLES + 1);
    }
}
