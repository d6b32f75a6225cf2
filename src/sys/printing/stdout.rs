//! Output that the user asked for.

use std::io::{self, ErrorKind, Write};

use crate::sys::errno::words;

/// Writes `text` as a whole. A reader that is gone has read enough; any other error, as of a full disk, is a line.
pub fn show(text: &str) -> Result<(), String> {
    match write(text) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(why_not(&error)),
        _ => Ok(()),
    }
}

/// Writes `text` as a whole.
pub fn write(text: &str) -> io::Result<()> {
    write_bytes(text.as_bytes())
}

/// Writes `bytes` as a whole.
pub fn write_bytes(bytes: &[u8]) -> io::Result<()> {
    let mut out = io::stdout();
    out.write_all(bytes).and_then(|()| out.flush())
}

/// A line for a failed write.
pub fn why_not(error: &io::Error) -> String {
    format!("cannot write to stdout: {}", words(error))
}
