//! Main: owns the listeners, starts a monitor for each generation, and retires the old one when the new one is ready.
//!
//! | room | subject |
//! | --- | --- |
//! | [`decide`] | generations, reloads, restarts: pure decisions without clock, IO or pids |
//! | `processes` | monitors and other children: the one room that knows pids |
//! | `listeners` | the sockets that main holds, shares and guards |
//! | `configuration` | the plan in force, and how it is read again |
//! | `restart` | main becomes another build of itself |
//! | `operators` | people: signals, requests, status, messages |
//! | `outside` | who started panzer, and the files by which panzer is found |
//!
//! [`run`] has the loop: it collects events, `decide` turns each event into actions, and `perform` performs them
//! through the other rooms. Main never runs the program's code, and waits for nothing but its poller. What may hang,
//! such as a path on a dead file system or an exec, is left to a monitor or a planner.

pub mod decide;
pub mod processes;
pub mod restart;
pub mod run;

mod configuration;
mod listeners;
mod main;
mod operators;
mod outside;
mod perform;
mod start;
