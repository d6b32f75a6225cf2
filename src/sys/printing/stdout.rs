//! What somebody asked to be shown.

use std::io::{self, ErrorKind, Write};

use crate::sys::errno::words;

/// Writes `text` as a whole. A reader that is gone has read enough; any other error, as of a full disk, is a line.
pub fn show(text: &str) -> Result<(), String> {
    let mut out = io::stdout();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(format!("cannot write to stdout: {}", words(&error)))
        }
        _ => Ok(()),
    }
}
