//! Load once, fork many: runs a Rust program's workers under panzer (Linux).
//!
//! ```no_run
//! # fn read_everything() -> String { String::new() }
//! let loaded = read_everything();
//! panzer_mold::Program::new(move |worker| println!("worker {} has {} bytes", worker.index(), loaded.len()))
//!     .option("workers", 8)
//!     .option("listen", 8000)
//!     .run()
//! ```
//!
//! Run without panzer, the program finds panzer and runs under it. Under `panzer --preload` it is the mold: it is loaded
//! once, and forks each worker. README.md has more; panzer-mold(7) has the protocol.
#![warn(missing_docs, clippy::undocumented_unsafe_blocks)]

mod deploy;
mod fork;
mod mold;
mod worker;

use std::fmt::Display;
use std::{env, process};

use mold::Mold;
pub use mold::failed;
pub use worker::{Worker, listeners};

type Step = Box<dyn FnMut(&Worker)>;
type Hook = Box<dyn Fn(&Worker) + Send>;

/// A program: what its workers run, its hooks, and panzer's options.
pub struct Program {
    run: Step,
    before_fork: Option<Box<dyn FnMut()>>,
    after_start: Option<Step>,
    stop: Option<Hook>,
    reload: Option<Hook>,
    become_mold: Option<Box<dyn FnMut()>>,
    hooks: Option<worker::Hooks>,
    options: Vec<(String, String)>,
}

impl Program {
    /// A program whose workers call `run`. A worker whose `run` returns exits with 0; with --refork it may become the mold, and
    /// the workers that it forks call `run` again.
    pub fn new(run: impl FnMut(&Worker) + 'static) -> Program {
        Program {
            run: Box::new(run),
            before_fork: None,
            after_start: None,
            stop: None,
            reload: None,
            become_mold: None,
            hooks: None,
            options: Vec::new(),
        }
    }

    /// Calls this in the mold, before each fork.
    pub fn before_fork(mut self, hook: impl FnMut() + 'static) -> Program {
        self.before_fork = Some(Box::new(hook));
        self
    }

    /// Calls this in the worker, before `run`.
    pub fn after_start(mut self, hook: impl FnMut(&Worker) + 'static) -> Program {
        self.after_start = Some(Box::new(hook));
        self
    }

    /// Calls this on TERM, in a thread of the worker.
    pub fn stop(mut self, hook: impl Fn(&Worker) + Send + 'static) -> Program {
        self.stop = Some(Box::new(hook));
        self
    }

    /// Calls this on USR2, in a thread of the worker.
    pub fn reload(mut self, hook: impl Fn(&Worker) + Send + 'static) -> Program {
        self.reload = Some(Box::new(hook));
        self
    }

    /// Calls this in a worker whose `run` has returned, and which forks the others from now on (--refork).
    pub fn become_mold(mut self, hook: impl FnMut() + 'static) -> Program {
        self.become_mold = Some(Box::new(hook));
        self
    }

    /// One of panzer's options, such as `workers` or `ready_timeout`. An empty value is for an option that takes none.
    /// Options hold if the program is run without panzer. The user's own flags and PANZER_* variables win over them.
    pub fn option(mut self, name: &str, value: impl Display) -> Program {
        self.options.push((name.replace('_', "-"), value.to_string()));
        self
    }

    /// Runs the workers. Does not return.
    pub fn run(mut self) -> ! {
        if let Some(socket) = mold::take() {
            Mold::new(socket, self).serve();
            process::exit(0);
        }
        if env::var_os("PANZER_WORKER_ID").is_some() {
            process::exit(self.work());
        }
        deploy::execute_panzer(&std::mem::take(&mut self.options));
    }
}
