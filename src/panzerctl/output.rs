//! Standard output, and what it can show.

use std::io::{self, IsTerminal};

use super::text::Line;
use super::trouble::Trouble;
use crate::sys::stdout;
use crate::sys::terminal::window;

/// Width of a line if the terminal does not say how wide it is.
pub(super) const DEFAULT_COLUMNS: usize = 80;

/// Writes what was asked for.
pub(super) fn print(text: &str) -> Result<(), Trouble> {
    stdout::show(text).map_err(Trouble::Failed)
}

/// Whether standard output is a terminal that understands control sequences.
pub(super) fn is_capable_terminal() -> bool {
    let kind = std::env::var_os("TERM").unwrap_or_default();
    io::stdout().is_terminal() && !kind.is_empty() && kind != "dumb"
}

/// Whether to use colours: on a terminal, unless the user does not want them (<https://no-color.org>).
pub(super) fn is_coloured() -> bool {
    is_capable_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Number of columns of the terminal, or None if standard output is not a terminal.
pub(super) fn columns() -> Option<usize> {
    window(io::stdout()).map(|(columns, _)| columns)
}

/// The lines as text, each cut to `columns`.
pub(super) fn rendered(lines: &[Line], columns: usize) -> String {
    let coloured = is_coloured();
    lines.iter().map(|line| line.render(columns, coloured) + "\n").collect()
}
