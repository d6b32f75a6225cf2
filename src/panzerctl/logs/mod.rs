//! `panzerctl logs`: the last lines that workers wrote, and those that follow.

mod line;
mod run;
mod tail;

pub(super) use line::Filter;
pub(super) use run::{last_lines, show};
