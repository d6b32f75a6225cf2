//! A terminal that is painted in place, and given back as it was.

use std::io::{self, IsTerminal, Write};

use nix::sys::termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};

use super::super::status::{USUAL_COLUMNS, is_coloured};
use super::super::table::Room;
use super::super::text::{Line, width};
use crate::sys::terminal::window;

/// The screen that scrolling and history know nothing of, without a cursor; and back.
const ENTER: &str = "\x1b[?1049h\x1b[?25l\x1b[2J";
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";

/// Where a terminal does not know how many rows it has.
const USUAL_ROWS: usize = 24;

#[derive(Debug)]
pub(super) struct Screen {
    /// How the keyboard was, where there is one.
    keyboard: Option<Termios>,
    entered: bool,
}

impl Screen {
    pub(super) fn enter() -> Screen {
        let mut screen = Screen { keyboard: None, entered: false };
        screen.take();
        screen
    }

    /// Keys are read as they are pressed, and not shown. Ctrl-C stays a signal.
    pub(super) fn take(&mut self) {
        let keyboard = io::stdin().is_terminal().then(|| tcgetattr(io::stdin()).ok()).flatten();
        if let Some(before) = &keyboard {
            let mut quiet = before.clone();
            quiet.local_flags.remove(LocalFlags::ECHO | LocalFlags::ICANON);
            // Only the look of things: where it fails, keys are shown.
            let _ = tcsetattr(io::stdin(), SetArg::TCSANOW, &quiet);
        }
        self.keyboard = keyboard;
        self.entered = true;
        // A terminal that is gone ends us by its hang-up.
        let _ = write(ENTER);
    }

    /// Gives the terminal back.
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
        let (columns, rows) = window(io::stdout()).unwrap_or((USUAL_COLUMNS, USUAL_ROWS));
        Room { columns, rows: Some(rows) }
    }

    /// In one write, over what is there: nothing is cleared that is not written at once, so nothing flickers.
    pub(super) fn paint(&self, lines: &[Line]) -> io::Result<()> {
        let (room, coloured) = (self.room(), is_coloured());
        let mut out = String::from("\x1b[H");
        for (at, line) in lines.iter().enumerate() {
            out.push_str(if at > 0 { "\r\n" } else { "" });
            out.push_str(&line.render(room.columns, coloured));
            // Behind a full line the cursor still stands on its last letter, which would be cleared.
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

fn write(text: &str) -> io::Result<()> {
    let mut out = io::stdout();
    out.write_all(text.as_bytes())?;
    out.flush()
}
