//! What happens between a user's command line and main: checked, resolved, and executed anew as main.
//!
//! Main is a fresh image of the same process, under the same pid, so that it carries no page of the parser. A daemon is
//! the same in a child, for which the process that the user started waits.

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
use crate::sockets::{activation, inherited};
use crate::sys::descriptors::{self, FIRST, adopt};
use crate::sys::errno::words;
use crate::sys::file_id::FileId;
use crate::sys::{memfd, processes, signals};

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
    descriptors::fill_standard()?;
    // What a shell left open is no business of the workers.
    descriptors::close_from(FIRST + sockets.len() as RawFd);
    descriptors::silence_stdin()?;
    let json = serde_json::to_vec(&plan).map_err(io::Error::from)?;
    let document = memfd::write(&json)?;
    descriptors::set_inherited(&document, true)?;
    signals::block_all()?;
    // The same command line: it is what `ps` and `pgrep -f` know this instance by.
    let arguments: Vec<CString> = std::env::args_os().map(|argument| c_string(&argument)).collect();
    let starter = if plan.daemonize { Some(daemon::leave()?) } else { None };
    let variables = environment.for_main(document.as_raw_fd(), &next_image(&plan.start_directory), starter.as_ref());
    let executed = execve(&c_string(OWN_IMAGE.as_ref()), &arguments, &variables);
    executed.map_err(|errno| anyhow!("cannot execute {OWN_IMAGE}: {}; is /proc mounted?", words(&errno.into())).into())
}

/// The path that main's next build is looked for at: the one that led to this, no symlink in it resolved, so that an
/// upgrade is followed. Where it does not lead here, the file that this is.
fn next_image(start_directory: &Path) -> PathBuf {
    let own = Path::new(OWN_IMAGE);
    let named = processes::executed_by().map(|path| start_directory.join(path).components().collect::<PathBuf>());
    // A descriptor's path is only this process's own, and only for now.
    let named = named.filter(|path| !path.starts_with("/proc") && !path.starts_with("/dev/fd"));
    let named = named.filter(|path| FileId::behind(path).is_some() && FileId::behind(path) == FileId::behind(own));
    named.or_else(|| fs::read_link(own).ok()).unwrap_or_else(|| own.to_owned())
}

/// What whoever started panzer has opened for it, held where it lies until main takes it there.
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
