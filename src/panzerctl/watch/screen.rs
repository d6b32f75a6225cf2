//! A terminal that is painted in place, and restored afterwards.

use std::io::{self, IsTerminal};

use nix::sys::termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};

use crate::panzerctl::output::{DEFAULT_COLUMNS, is_coloured};
use crate::panzerctl::table::Room;
use crate::panzerctl::text::{Line, width};
use crate::sys::stdout::write;
use crate::sys::terminal::window;

/// Switches to the alternate screen, which has no history, and hides the cursor; and back.
const ENTER: &str = "\x1b[?1049h\x1b[?25l\x1b[2J";
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";

/// Height if the terminal does not say how high it is.
const DEFAULT_ROWS: usize = 24;

#[derive(Debug)]
pub(super) struct Screen {
    /// The keyboard's settings before, if there is a keyboard.
    keyboard: Option<Termios>,
    entered: bool,
}

impl Screen {
    pub(super) fn enter() -> Screen {
        let mut screen = Screen { keyboard: None, entered: false };
        screen.take();
        screen
    }

    /// Takes the terminal. Keys are read when they are pressed, and not shown. Ctrl-C stays a signal.
    pub(super) fn take(&mut self) {
        let keyboard = io::stdin().is_terminal().then(|| tcgetattr(io::stdin()).ok()).flatten();
        if let Some(before) = &keyboard {
            let mut quiet = before.clone();
            quiet.local_flags.remove(LocalFlags::ECHO | LocalFlags::ICANON);
            // If this fails, keys are shown, which does no harm.
            let _ = tcsetattr(io::stdin(), SetArg::TCSANOW, &quiet);
        }
        self.keyboard = keyboard;
        self.entered = true;
        // If the terminal is gone, its hang-up signal ends us.
        let _ = write(ENTER);
    }

    /// Restores the terminal.
    pub(super) fn leave(&mut self) {
        if !std::mem::take(&mut self.entered) {
            return;
        }
        let _ = write(LEAVE);
        if let Some(before) = self.keyboard.take() {
            let _ = tcsetattr(io::stdin(), SetArg::TCSANOW, &before);
        }
    }

    pub(super) fn has_keys(&self) -> bool {
        self.keyboard.is_some()
    }

    pub(super) fn room(&self) -> Room {
        let (columns, rows) = window(io::stdout()).unwrap_or((DEFAULT_COLUMNS, DEFAULT_ROWS));
        Room { columns, rows: Some(rows) }
    }

    /// Paints over the old lines in one write. Nothing is cleared before it is written again, so nothing flickers.
    pub(super) fn paint(&self, lines: &[Line]) -> io::Result<()> {
        let (room, coloured) = (self.room(), is_coloured());
        let mut out = String::from("\x1b[H");
        for (at, line) in lines.iter().enumerate() {
            out.push_str(if at > 0 { "\r\n" } else { "" });
            out.push_str(&line.render(room.columns, coloured));
            // After a full line the cursor is still on the last letter, and clearing would remove it.
            if width(&line.render(room.columns, false)) < room.columns {
                out.push_str("\x1b[K");
            }
        }
        let is_full = room.rows.is_some_and(|rows| lines.len() >= rows);
        write(&(out + if is_full { "" } else { "\r\n\x1b[J" }))
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.leave();
    }
}
