//! From a user's command line to main: checks and resolves it, and leaves nothing behind but the plan. A daemon's main is a
//! child, and the process that the user started waits for it.

mod daemon;

use std::fs;
use std::os::fd::{IntoRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use anyhow::{Error, anyhow};
use nix::sys::resource::{Resource, getrlimit};
use nix::unistd::Pid;

use crate::cli::{self, Ending};
use crate::config::{Listen, Plan, size};
use crate::control::environment::{Environment, OWN_IMAGE};
use crate::control::log_file;
use crate::sockets::{activation, inherited};
use crate::sys::descriptors::{self, FIRST, adopt};
use crate::sys::file_id::FileId;
use crate::sys::{processes, signals, stderr};

/// Least limit of the stack of a process.
const LEAST_STACK_BYTES: u64 = 256 << 10;

/// What main begins with.
pub struct Launched {
    /// Its plan.
    pub plan: Plan,
    /// Its environment.
    pub environment: Environment,
    /// The pipe on which the parent of a daemon waits.
    pub waiting: Option<OwnedFd>,
}

/// Makes this process, or the child that a daemon is, ready to be main as the command line says.
pub fn run(environment: Environment) -> Result<Launched, Ending> {
    check_stack()?;
    let (sockets, inherited) = inherited_sockets(&environment)?;
    let plan = cli::plan(std::env::args_os(), environment.inherited("PWD"), inherited)?;
    stderr::set_json(plan.logs.is_json());
    check_file_systems()?;
    log_file::check(&plan.logs).map_err(Ending::CannotStart)?;
    descriptors::fill_standard()?;
    // Workers must not get descriptors that a shell left open.
    let _ = descriptors::close_from(FIRST + sockets.len() as RawFd);
    descriptors::silence_stdin()?;
    // Main finds them by their numbers.
    for socket in sockets {
        let _ = socket.into_raw_fd();
    }
    signals::block_all()?;
    let started = Pid::this();
    let waiting = if plan.daemonize { Some(daemon::leave()?) } else { None };
    let environment = environment.into_main(&next_image(&plan.start_directory), started);
    Ok(Launched { plan, environment, waiting })
}

/// The parser of the command line needs some stack. Beyond the limit the kernel would end this process without a word.
fn check_stack() -> Result<(), Ending> {
    let (limit, _) = getrlimit(Resource::RLIMIT_STACK).map_err(anyhow::Error::from)?;
    if limit < LEAST_STACK_BYTES {
        let [least, limit] = [LEAST_STACK_BYTES, limit].map(size::show);
        return Err(Ending::CannotStart(format!(
            "panzer needs a stack of {least}, and the limit is {limit} (ulimit -s, LimitSTACK=); raise it; --rlimit \
             STACK=SIZE limits only the workers"
        )));
    }
    Ok(())
}

/// A bare chroot may lack what panzer needs all the time.
fn check_file_systems() -> Result<(), Ending> {
    let needed =
        [("/proc/self/fd", "mount -t proc proc /proc"), ("/dev/null", "mount -o bind /dev DIR/dev for a chroot")];
    match needed.iter().find(|(path, _)| fs::metadata(path).is_err()) {
        Some((path, remedy)) => Err(Ending::CannotStart(format!("cannot start: {path} is missing; {remedy}"))),
        None => Ok(()),
    }
}

/// The path at which a restart looks for the next build: the one that led to this file, with its symlinks, so that an
/// upgrade is followed. If it does not lead here, the path of this file.
fn next_image(start_directory: &Path) -> PathBuf {
    let own = Path::new(OWN_IMAGE);
    let named = processes::executed_by().map(|path| start_directory.join(path).components().collect::<PathBuf>());
    // The path of a descriptor exists only for this process, and only now.
    let named = named.filter(|path| !path.starts_with("/proc") && !path.starts_with("/dev/fd"));
    let named = named.filter(|path| FileId::behind(path).is_some() && FileId::behind(path) == FileId::behind(own));
    named.or_else(|| fs::read_link(own).ok()).unwrap_or_else(|| own.to_owned())
}

/// The sockets that panzer inherited, held at their numbers until main takes them over.
fn inherited_sockets(environment: &Environment) -> anyhow::Result<(Vec<OwnedFd>, Vec<Listen>)> {
    let names = activation::passed(|name| environment.of_manager(name)).map_err(Error::msg)?;
    let count = names.len();
    let wrong = |number: RawFd, why: String| {
        anyhow!("LISTEN_FDS={count}, but descriptor {number} {why}; correct what starts panzer, or unset LISTEN_FDS")
    };
    let socket = |(number, name)| {
        let socket = adopt(number).map_err(|_| wrong(number, "is not open".to_owned()))?;
        let listen = inherited::describe(&socket, name).map_err(|why| wrong(number, why))?;
        Ok((socket, listen))
    };
    (FIRST..).zip(names).map(socket).collect()
}
