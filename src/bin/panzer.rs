//! The panzer binary: takes its role, and turns an error into one line and an exit code.

use std::process::ExitCode;

use panzer::cli::Ending;
use panzer::control::environment::{Environment, Role};
use panzer::launch::Launched;
use panzer::sys::errno::chain;
use panzer::sys::{stderr, stdout};
use panzer::{launch, logger, main_process, monitor};

const FAILED: u8 = 1;
const USAGE: u8 = 2;
const CANNOT_START: u8 = 125;

fn main() -> ExitCode {
    let environment = Environment::take();
    ExitCode::from(end(match environment.role() {
        Err(error) => Err((USAGE, chain(&error))),
        Ok(Some(Role::Main)) => apart(|| main_process::run::go_on(environment, run_monitor)),
        Ok(Some(Role::Monitor)) => Ok(run_monitor(&environment)),
        Ok(Some(Role::Preflight)) => apart(|| main_process::restart::prove::run(&environment).map(|()| 0)),
        Ok(Some(Role::Planner)) => apart(|| main_process::processes::planner::run(&environment).map(|()| 0)),
        Ok(Some(Role::Hook)) => apart(|| main_process::processes::hook::run(&environment).map(|()| 0)),
        Ok(Some(Role::Logger)) => apart(|| logger::run::run(&environment).map(|()| 0)),
        Ok(None) => launched(environment),
    }))
}

fn end(ended: Result<u8, (u8, String)>) -> u8 {
    ended.unwrap_or_else(|(code, why)| {
        stderr::last_words(&why);
        code
    })
}

fn run_monitor(environment: &Environment) -> u8 {
    end(apart(|| monitor::run::run(environment).map(|()| 0)))
}

/// Not inline: what one role has on the stack would be there in every other, for good.
#[inline(never)]
fn apart(role: impl FnOnce() -> anyhow::Result<u8>) -> Result<u8, (u8, String)> {
    role().map_err(failed)
}

/// The same for what the parser has there.
#[inline(never)]
fn launched(environment: Environment) -> Result<u8, (u8, String)> {
    match launch::run(environment) {
        Ok(Launched { plan, environment, waiting }) => {
            apart(|| main_process::run::run(plan, environment, run_monitor, waiting))
        }
        Err(Ending::Shown(text)) => stdout::show(&text).map(|()| 0).map_err(|why| (FAILED, why)),
        Err(Ending::Usage(why)) => Err((USAGE, why)),
        Err(Ending::Left(code, None)) => Ok(code),
        Err(Ending::Left(code, Some(why))) => Err((code, why)),
        Err(Ending::CannotStart(why)) => Err((CANNOT_START, why)),
    }
}

fn failed(error: anyhow::Error) -> (u8, String) {
    (FAILED, chain(&error))
}
