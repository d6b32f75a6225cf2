//! `panzerctl status --watch` and `panzerctl top`: show the state at each interval, in place on a terminal.

mod run;
mod screen;

pub(super) use run::{top, watch};
