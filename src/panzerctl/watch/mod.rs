//! `panzerctl status --watch`: the state again and again, in place on a terminal.

mod question;
mod run;
mod screen;

pub(super) use run::watch;
