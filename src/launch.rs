//! Between a user's command line and main: checks and resolves it, and executes panzer again as main.
//!
//! Main is a new image of the same process, with the same pid, so it contains no page of the parser. A daemon does this
//! in a child, and the process that the user started waits for it.

mod daemon;

use std::convert::Infallible;
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use anyhow::{Error, anyhow};
use nix::unistd::execve;

use crate::cli::{self, Ending};
use crate::config::Listen;
use crate::config::text::c_string;
use crate::control::environment::{Environment, OWN_IMAGE};
use crate::control::log_file;
use crate::sockets::{activation, inherited};
use crate::sys::descriptors::{self, FIRST, adopt};
use crate::sys::errno::words;
use crate::sys::file_id::FileId;
use crate::sys::{memfd, processes, signals, stderr};

/// Becomes main according to the command line. Returns only if that is not possible.
pub fn run(environment: &Environment) -> Ending {
    match become_main(environment) {
        Err(ending) => ending,
        Ok(never) => match never {},
    }
}

fn become_main(environment: &Environment) -> Result<Infallible, Ending> {
    let (sockets, inherited) = inherited_sockets(environment)?;
    let plan = cli::plan(std::env::args_os(), environment.inherited("PWD"), inherited)?;
    stderr::set_json(plan.logs.is_json());
    log_file::check(&plan.logs).map_err(Ending::CannotStart)?;
    descriptors::fill_standard()?;
    // Workers must not get descriptors that a shell left open.
    descriptors::close_from(FIRST + sockets.len() as RawFd);
    descriptors::silence_stdin()?;
    let json = serde_json::to_vec(&plan).map_err(io::Error::from)?;
    let document = memfd::write(&json)?;
    descriptors::set_inherited(&document, true)?;
    signals::block_all()?;
    // With the same command line, because `ps` and `pgrep -f` know this instance by it.
    let arguments: Vec<CString> = std::env::args_os().map(|argument| c_string(&argument)).collect();
    let starter = if plan.daemonize { Some(daemon::leave()?) } else { None };
    let variables = environment.for_main(document.as_raw_fd(), &next_image(&plan.start_directory), starter.as_ref());
    let executed = execve(&c_string(OWN_IMAGE.as_ref()), &arguments, &variables);
    executed.map_err(|errno| anyhow!("cannot execute {OWN_IMAGE}: {}; is /proc mounted?", words(&errno.into())).into())
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
