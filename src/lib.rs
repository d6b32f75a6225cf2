//! Panzer runs N copies of any program behind shared listening sockets, keeps that number constant, and replaces the
//! program with a new release without refusing, resetting or losing one connection.
//!
//! # The processes
//!
//! ```text
//! panzer (main)                  owns the listeners; its pid never changes
//! ├── panzer: logger             only with --log: writes what the workers print
//! ├── panzer: monitor [gen 3]    a retired generation, draining its workers
//! │   └── my_app (worker 1)
//! └── panzer: monitor [gen 4]    the serving generation
//!     ├── my_app (worker 0)
//!     └── my_app (worker 1)
//! ```
//!
//! The process that a user starts checks its command line ([`launch`]) and goes on as **main** ([`main_process`]), with the
//! resolved [`config::Plan`]. A monitor is a copy of main that shows another command line and environment ([`sys::shown`]);
//! where the kernel refuses that, and in all other roles, panzer executes itself. [`control::environment`] has the protocol.
//! A daemon's main is a child, and the parent waits until it serves. Heap, stack and text of the parser are given back once
//! main sleeps ([`sys::trim_memory`]). Main starts one **monitor** ([`monitor`]) for each generation. A monitor keeps its
//! slots filled with **workers** ([`worker`]), which are the user's program and nothing else.
//!
//! With `--preload` the monitor starts the program once, as the **mold**, which loads itself and forks a worker whenever it
//! is asked to ([`control::mold`]). The mold forks twice, so that each worker falls to the monitor, a subreaper.
//! With `--refork`, a worker that is warm becomes the mold (`monitor::refork`).
//!
//! Main and a monitor talk over a SOCK_SEQPACKET pair ([`control::monitor`]): orders go down, reports go up. If main is
//! gone, the channel ends, and the monitor stops its workers gracefully and exits. If a monitor is gone, main adopts its
//! workers, as main is a subreaper. [`worker::kin`] finds out whose worker an adopted process is.
//!
//! A planner resolves the plan of each new generation: it is a child of main that contains the parser
//! ([`main_process::processes::planner`]). A generation keeps its plan until it ends. Only its [`config::Tuning`] can change
//! meanwhile: number of workers, delays, waits and limits. The plan of a generation that failed is discarded.
//!
//! A command of the user ([`config::Hook`]) runs below a child of main that ends whatever the command leaves
//! ([`main_process::processes::hook`]); `main_process::decide::hooks` says when.
//!
//! With `--log`, each worker writes to pipes of its own. The monitor makes them, main holds the ends to read from, and the
//! **logger** ([`logger`]) reads them. It keeps what is not written yet in memory that main holds as well, so another logger
//! goes on at the same byte.
//!
//! Main can become another build of itself by an exec in place ([`main_process::restart`]). First a child of the new build
//! proves that it can read what main knows. Then the document with that knowledge, which has a version, goes over. It names
//! children by their pids and descriptors by their numbers.
//!
//! Operators talk to main over its control socket ([`control::operator`]), one JSON object a line; [`panzerctl`] is the
//! other end. [`signals`] has the table of what each signal asks for. Signals and requests ask for the same things, and main
//! performs them in the same way.
//!
//! # How each process works
//!
//! Each process that `ps` shows has a folder. In each, `decide` decides (it is pure) and `run` performs:
//!
//! ```text
//! signals, children, messages, deadlines ── run ──▶ Event ──▶ state.on(now, event) ──▶ Vec<Action> ── run ──▶ the world
//!                                            ▲                                                          │
//!                                            └────── an action that failed is an event, queued ◀────────┘
//! ```
//!
//! `decide` has no clock, no IO and no pids, and knows nothing about sockets. `tests/sim` plays both states through random
//! histories. Each process has one loop, and sleeps in one place ([`sys::poller`]) until the earliest deadline. Without a
//! deadline it sleeps until something happens: an idle panzer never wakes. Workers that are starting are looked at, or
//! probed, with rising pauses ([`readiness::watch`]). Once all are ready, nobody is looked at.
//!
//! # Three ways through the rooms of main
//!
//! | room | what it holds |
//! | --- | --- |
//! | `run`, `perform`, `start` | the loop, the match over actions, the beginning |
//! | `decide` | generations, reloads, drains, restarts: what to do |
//! | `processes` | monitors, planners, orphans: everything with a pid |
//! | `listeners` | the sockets: held, shared, guarded, one for each worker |
//! | `configuration` | the plans in force, and reading them again |
//! | `operators` | signals, requests, status, messages |
//! | `restart` | the next build |
//! | `outside` | the service manager, a daemon's parent, the pid file, cgroups |
//!
//! **One USR1.** `run` reads the signal; `operators::signals` turns it into `Event::Reload`; `decide::reload` begins a
//! generation; `perform` has `configuration` resolve its plan (a planner of `processes`), and then has
//! `processes::monitor` start it on the sockets of `listeners::held`. Its monitor's reports come back as events
//! (`processes::reports`), until `decide` says that it serves.
//!
//! **One dead worker.** `monitor::run` reaps it; `monitor::processes` knows which slot it was; `monitor::decide` chooses the
//! delay and asks for the next one; `monitor::perform` spawns it ([`worker::spawn`]). Main gets a report and counts it.
//!
//! **One claimed port.** The kernel stops a worker's bind(2); [`sockets::sharing`] reads it in the monitor;
//! `monitor::claims` asks main; `processes::reports` hands the claim to `listeners::claims`, and `decide::shared_ports`
//! says who is first; the answer goes back as an order.
//!
//! # Invariants
//!
//! 1. At most one generation is starting. The serving one is untouched until the new one is wholly ready and has lived
//!    through its bake. If anything happens to the new one until then, the reload has failed, and nothing else changes.
//!    With `--surge`, the serving generation stops one worker for each worker of the new one that has become ready: never
//!    fewer are ready than wanted, and never more are alive than those and one share. At most `--max-draining`
//!    generations drain at their own pace.
//! 2. A slot has at most one live process, and one beside it while a worker that has reached a limit is replaced
//!    (`monitor::decide::recycling`). A pid in `main_process::processes` or `monitor::processes` is an unreaped child,
//!    and only such a pid is ever signalled, and only if a worker started it. What a worker leaves behind ends with that
//!    worker, and with no other.
//! 3. After a stop nothing is spawned, and the end comes within the schedule.
//! 4. Main holds every listener from start to stop, so no accept queue is ever closed in between. This includes the queues
//!    of single slots ([`sockets::queues`]). A listener that a reload drops is closed once no generation has it any more.
//!    One exception: a unix listener that a worker shut down stays dead. It is bound anew, and the generations that lack
//!    the new one are replaced. If a program binds its own port ([`sockets::sharing`]), main holds that socket in the same
//!    way from listen(2) on; before that, nobody holds it.
//! 5. A worker starts clean: default dispositions, an empty mask, descriptors 0-2 and the listeners from 3, only the
//!    documented variables of panzer's, its own process group. Everything that panzer opens is close-on-exec. [`launch`]
//!    closes what a shell left open.
//! 6. Main and monitors wait only in their poller. A send that would block, or fails for now, is queued
//!    ([`control::monitor`]). A message that would block is counted and dropped ([`sys::stderr`]). What workers write to is
//!    opened anew for each ([`sys::output`]). A monitor, a planner or a short-lived child does what may hang on a dead file
//!    system.
//!
//! # What knows what
//!
//! Imports run downward: `bin` → `launch` and the processes → `control`, `sockets`, `readiness`, `worker` → `config`,
//! `signals`, `backoff`, `sys`. The processes never import each other: they share only the protocol. No file imports one
//! that imports it, however far around. `unsafe` is in [`sys`] and [`worker`] only. `tests/tidy.rs` checks all this.

pub mod backoff;
pub mod carry;
pub mod cli;
pub mod config;
pub mod control;
pub mod launch;
pub mod logger;
pub mod main_process;
pub mod monitor;
pub mod panzerctl;
pub mod readiness;
pub mod signals;
pub mod sockets;
pub mod sys;
pub mod worker;
