//! The size of a terminal's window.

use std::os::fd::AsFd;

use rustix::termios::tcgetwinsize;

/// The columns and rows of the window behind `fd`. None if it is not a terminal, or one that does not know its size.
pub fn window(fd: impl AsFd) -> Option<(usize, usize)> {
    let size = tcgetwinsize(fd).ok().filter(|size| size.ws_row > 0 && size.ws_col > 0)?;
    Some((size.ws_col.into(), size.ws_row.into()))
}
