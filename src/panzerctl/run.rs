//! Runs one command.

use std::ffi::OsString;
use std::io;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};

use super::command_line::{Command, Options};
use super::follow::follow;
use super::logs::{self, Filter};
use super::output::print;
use super::trouble::Trouble;
use super::watch::{top, watch};
use super::{metrics, status};
use crate::cli::refusal::in_one_line;
use crate::control::operator::requests::{Request, Wanted};
use crate::sys::{printable, stdout};

const SEE_HELP: &str = "see panzerctl --help";
const TOO_MANY: &str = "--name NAME selects an instance; see panzerctl --help";

/// The definition of the command line.
pub fn command() -> clap::Command {
    Options::command()
}

/// Runs the command. Returns the exit code.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> u8 {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let options = match Options::try_parse_from(&arguments) {
        Ok(options) => options,
        Err(error) => {
            match error.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => match error.print() {
                    // A reader that is gone has read enough.
                    Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                        return fail(1, &stdout::why_not(&error));
                    }
                    _ => return 0,
                },
                ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => drop(error.print()),
                _ => return fail(2, &printable::line(&in_one_line(&error, &arguments, SEE_HELP, TOO_MANY))),
            }
            return 2;
        }
    };
    let Err(trouble) = perform(&options) else { return 0 };
    let (code, why) = trouble.into_parts();
    fail(code, &why)
}

fn fail(code: u8, why: &str) -> u8 {
    eprintln!("panzerctl: {}", printable::message(why));
    code
}

fn perform(options: &Options) -> Result<(), Trouble> {
    let plain = Request::new;
    let request = match options.command {
        Command::List => return status::list(options),
        Command::Status { json, watch: true, interval, .. } => return watch(options, json, interval),
        Command::Status { json, wait_ready, .. } => {
            let status = if wait_ready { status::wait_ready(options) } else { status::of_chosen(options) };
            return status.and_then(|status| status::show(&status, json));
        }
        Command::Top { interval } => return top(options, interval),
        Command::Logs { follow, lines, worker, generation } => {
            return logs::show(options, follow, lines, Filter { worker, generation });
        }
        Command::Metrics => return status::of_chosen(options).and_then(|status| print(&metrics::render(&status))),
        Command::Reload { no_wait, drained } => Request { no_wait, drained, ..plain(Wanted::Reload) },
        Command::Drain { now, generation, no_wait } => Request { now, generation, no_wait, ..plain(Wanted::Drain) },
        Command::Restart => plain(Wanted::Restart),
        Command::Stop { no_wait } => Request { no_wait, ..plain(Wanted::Stop) },
        Command::Exit { no_wait } => Request { no_wait, ..plain(Wanted::Exit) },
        Command::Scale { ref count } => Request { count: Some(count.clone()), ..plain(Wanted::Scale) },
        Command::Quiet => plain(Wanted::Quiet),
        Command::Signal { signal, worker } => {
            Request { signal: Some(signal.as_str().to_owned()), worker, ..plain(Wanted::Signal) }
        }
        Command::Reopen => plain(Wanted::Reopen),
    };
    follow(options, &request)
}
