//! What a terminal is asked, and told by other means than its text.

use std::os::fd::{AsFd, AsRawFd};

use nix::libc;

/// The columns and rows of the window behind `fd`. None where it is no terminal, or one that does not know.
pub fn window(fd: impl AsFd) -> Option<(usize, usize)> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the kernel writes to a structure of the kind that this request is for, which lives on our stack.
    let asked = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::TIOCGWINSZ, &mut size) };
    let is_known = asked == 0 && size.ws_row > 0 && size.ws_col > 0;
    is_known.then(|| (size.ws_col.into(), size.ws_row.into()))
}
