//! The program that panzer runs as worker, and the other parts that this executable plays.

use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::{Measured, bare, logs, page_server, server, stamps};

/// What the first argument makes of this executable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role<'a> {
    /// The worker, where there is no C compiler: does the same as `worker.c`.
    Worker,
    /// The loop that panzer's respawn is compared with, for this program.
    BareRespawn(&'a [String]),
    /// A server on the inherited listener.
    Server,
    /// A server that is asked as fast as it answers, with its file and the port, if it binds its own.
    PageServer(&'a [String]),
    /// A writer of lines, with its folder and whether it stays.
    Writer(&'a [String]),
}

const WORKER: &str = "play-worker";
pub(crate) const BARE_RESPAWN: &str = "play-bare-respawn";
pub(crate) const SERVER: &str = "play-server";
pub(crate) const PAGE_SERVER: &str = "play-page-server";
pub(crate) const WRITER: &str = "play-writer";

impl<'a> Role<'a> {
    /// The role that the arguments ask for, if they do.
    pub(crate) fn named_by(arguments: &'a [String]) -> Option<Role<'a>> {
        let (name, rest) = arguments.split_first()?;
        match name.as_str() {
            WORKER => Some(Role::Worker),
            BARE_RESPAWN => Some(Role::BareRespawn(rest)),
            SERVER => Some(Role::Server),
            PAGE_SERVER => Some(Role::PageServer(rest)),
            WRITER => Some(Role::Writer(rest)),
            _ => None,
        }
    }

    /// Plays it until it ends or is killed.
    pub(crate) fn play(self) -> Measured<()> {
        match self {
            Role::Worker => {
                stamps::write_own()?;
                loop {
                    nix::unistd::pause();
                }
            }
            Role::BareRespawn(command) => bare::respawn_for_ever(command),
            Role::Server => server::serve(),
            Role::PageServer(arguments) => page_server::serve(arguments),
            Role::Writer(arguments) => logs::write(arguments),
        }
    }
}

/// What is run as worker.
#[derive(Debug)]
pub(crate) struct Program {
    command: Vec<String>,
    what: String,
    _directory: TempDir,
}

impl Program {
    /// Compiles `worker.c`; where that cannot be, the worker is this executable.
    pub(crate) fn build() -> Measured<Program> {
        let directory = tempfile::tempdir()?;
        let (command, what) = match compile(directory.path()) {
            Some(path) => (vec![text(&path)?], "worker.c, static, without libc".to_owned()),
            None => (vec![own_executable()?, WORKER.to_owned()], "this executable (no C compiler)".to_owned()),
        };
        Ok(Program { command, what, _directory: directory })
    }

    /// The program and its arguments.
    pub(crate) fn command(&self) -> &[String] {
        &self.command
    }

    /// Said above the table, as it has a share in every figure.
    pub(crate) fn what(&self) -> &str {
        &self.what
    }
}

fn compile(directory: &Path) -> Option<PathBuf> {
    if !cfg!(target_arch = "x86_64") {
        return None;
    }
    let source = directory.join("worker.c");
    let program = directory.join("worker");
    std::fs::write(&source, include_str!("worker.c")).ok()?;
    let flags = ["-O2", "-static", "-nostdlib", "-ffreestanding", "-fno-stack-protector"];
    let compiled = Command::new("cc").args(flags).arg("-o").args([&program, &source]).output().ok()?;
    compiled.status.success().then_some(program)
}

/// This executable, by its path.
pub(crate) fn own_executable() -> Measured<String> {
    text(&std::env::current_exe()?)
}

fn text(path: &Path) -> Measured<String> {
    Ok(path.to_str().ok_or("a path that is not UTF-8")?.to_owned())
}

/// A command as exec takes it.
pub(crate) fn c_strings(command: &[String]) -> Measured<Vec<CString>> {
    Ok(command.iter().map(|word| CString::new(word.as_bytes())).collect::<Result<_, _>>()?)
}
