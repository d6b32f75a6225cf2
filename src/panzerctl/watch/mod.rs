//! `panzerctl status --watch`: shows the state at each interval, in place on a terminal.

mod run;
mod screen;

pub(super) use run::watch;
