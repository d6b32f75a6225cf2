//! What is written for people: stderr, stdout, what workers inherit, and what is fit to be shown.

mod outlet;
pub mod output;
pub mod printable;
pub mod stderr;
pub mod stdout;
pub mod terminal;
