//! Panzer runs N copies of any program behind shared listening sockets, keeps that number constant, and replaces the
//! program with a new release without refusing, resetting or losing one connection.
//!
//! # The processes
//!
//! ```text
//! panzer (main)                  owns the listeners; its pid never changes
//! ├── panzer: monitor [gen 3]    a retired generation, draining its workers
//! │   └── my_app (worker 1)
//! └── panzer: monitor [gen 4]    the serving generation
//!     ├── my_app (worker 0)
//!     └── my_app (worker 1)
//! ```
//!
//! The binary is executed once for each role, by the environment protocol in [`control::environment`]. A user's command
//! line is checked in [`launch`], which turns the process into **main** ([`main_process`]) by an exec of itself with the
//! resolved [`config::Plan`]: under the same pid, without a page of the parser; of a daemon, in a child that the process
//! waits for until it serves. Main starts one **monitor** ([`monitor`]) for each generation, and a monitor keeps its
//! slots filled with **workers** ([`worker`]), which are the user's program and nothing else.
//!
//! Main and a monitor talk over a SOCK_SEQPACKET pair ([`control::monitor`]): orders go down, reports go up. The end of
//! that channel is the end of the other: a monitor whose main is gone stops its workers
//! gracefully and exits. What outlives a monitor is adopted by main, which is a subreaper; whose a process is that has
//! outlived its parent is found out in [`worker::kin`].
//!
//! What a generation is to be is found out anew for each by a planner, a child of main with the parser in it
//! ([`main_process::processes::planner`]): command line, environment and file become a [`config::Plan`]. A generation runs by its own
//! to its end, and only the count of its workers, delays, waits and limits ([`config::Tuning`]) can change meanwhile. What
//! a generation that fails was to run by counts for no other.
//!
//! Main can become another build of itself, by an exec in place: that first shows in a child ([`main_process::restart::preflight`])
//! that it can read what main knows, which then goes over in a document with a version. Nothing that is carried over is
//! named by anything but numbers that stay: children by their pids, descriptors by theirs.
//!
//! Operators talk to main over its control socket ([`control::operator`]), a JSON object a line; [`panzerctl`] is the
//! other end. What a signal asks of main is in one table, [`signals`], by whose habits it is sent.
//! Both ask for the same things, and main does them in the same way.
//!
//! # How each process works
//!
//! One folder per process that `ps` shows; in each, a pure `decide` that decides and a `run` that performs:
//!
//! ```text
//! signals, children, messages, deadlines ── run ──▶ Event ──▶ state.on(now, event) ──▶ Vec<Action> ── run ──▶ the world
//!                                            ▲                                                          │
//!                                            └────── an action that failed is an event, queued ◀────────┘
//! ```
//!
//! What main decides is in [`main_process::decide`]. It speaks of generations (`decide::generation`); how one follows another (`decide::reload`),
//! or replaces it share by share (`decide::reload_by_shares`), what monitors tell (`decide::reports`), how many workers
//! are wanted (`decide::worker_count`), and which queues of single slots must first run empty (`decide::queue_emptying`)
//! have a file each. A monitor's speaks of slots, and of how their workers become ready (`monitor::decide`).
//!
//! Of sockets no state knows anything. Which listeners main holds, and in which order the kernel has them, is in
//! `listeners::held`; how they change with a reload in `listeners::follow_plan`; and which queues of single slots get
//! what is new in `listeners::per_worker`.
//!
//! A state has no clock, no IO and no pids; `tests/sim` drives both through random histories. There is one loop per
//! process, it sleeps in one place ([`sys::poller`]) until the earliest deadline, and where there is none it sleeps for
//! ever: an idle panzer never wakes. Workers that are starting are looked at, or probed, with rising pauses
//! ([`readiness::watch`]); once all are ready nobody is.
//!
//! # Invariants
//!
//! 1. At most one generation is starting, and the serving one is untouched until the new one is wholly ready and has
//!    lived through its bake. Whatever happens to the new one until then is a failed reload, and nothing more. By
//!    shares (`--surge`) it gives up as many workers as the new one has shown ready, and no more: never fewer are ready
//!    than are wanted, and never more alive than those and one share. Of those that drain, no more than
//!    `--max-draining` take their time.
//! 2. At most one live process per slot. A pid in `main_process::processes` or `monitor::processes` is an unreaped child,
//!    and nothing else is ever signalled; nor is a child that no worker has started. What a worker leaves behind ends with
//!    that worker, and with no other.
//! 3. After a stop nothing is spawned, and the end comes within the schedule.
//! 4. Every listener is held by main from start to stop, so no accept queue is ever closed in between.
//!    One that a reload drops from the configuration is closed once no generation has it any more.
//!    That goes for the queues of each slot as well, where there are such ([`sockets::queues`]).
//!    Only a unix listener that a worker shut down, which nothing undoes, is bound anew, and the generations replaced
//!    that lack the new one.
//!    Where a program binds its own, the monitor is asked by the kernel, and main about who is first
//!    ([`sockets::sharing`]): once its socket listens it is held in the same way, and before that by nobody.
//! 5. A worker starts clean: default dispositions, an empty mask, descriptors 0-2 and the listeners from 3, no variable
//!    of panzer's but the documented ones, its own process group. All that panzer opens is close-on-exec; what a shell
//!    left open is closed in [`launch`].
//! 6. Neither main nor a monitor waits for anything but its poller: a send that would block, or fails for now, is queued
//!    ([`control::monitor`]), a message that would block is counted and dropped ([`sys::stderr`]; what workers write to
//!    is opened anew for each, [`sys::output`]), and what may hang on a dead file system is done by a monitor, by a
//!    planner, which reads the configuration, or by the child itself.
//!
//! # What knows what
//!
//! Imports run downward: `bin` → `launch` and the processes → `control`, `sockets`, `readiness`, `worker` → `config`,
//! `signals`, `backoff`, `sys`. The processes never import each other: what they share is the protocol. `unsafe` is in
//! [`sys`] and [`worker::spawn`] only. `tests/tidy.rs` holds this picture against the code.

pub mod backoff;
pub mod carry;
pub mod cli;
pub mod config;
pub mod control;
pub mod launch;
pub mod main_process;
pub mod monitor;
pub mod panzerctl;
pub mod readiness;
pub mod signals;
pub mod sockets;
pub mod sys;
pub mod worker;
