//! Command line, environment and file: reads and checks them, and makes one plan of them.

mod handover;
mod layers;
mod limits;
mod logs;
mod options;
mod plan_shown;
pub(crate) mod refusal;
mod resolve;
mod resources;

use std::ffi::{OsStr, OsString};

use clap::FromArgMatches;

use crate::config::{Listen, Plan};
use crate::worker::env_file;
pub use options::{command, manual};
pub use refusal::Ending;

use options::Options;
use refusal::{refusal, usage};
use resolve::{check_paths, check_placeholders, check_preload, check_values};

/// The plan of this command line, environment and file. `pwd` is the shell's name for the current directory, in which
/// the file is looked for. `inherited` are the sockets that panzer was started with.
pub fn plan(
    arguments: impl IntoIterator<Item = OsString>,
    pwd: Option<&OsStr>,
    inherited: Vec<Listen>,
) -> Result<Plan, Ending> {
    let definition = options::with_variables();
    let layers = layers::gather(&definition, arguments.into_iter().collect(), check_values)?;
    let mut options = Options::from_arg_matches(&layers.matches).map_err(|error| refusal(&error, &[]))?;
    // A program on the command line comes with its own arguments.
    let by_file = options.program.is_none() && options.args.is_empty() && layers.named.program.is_some();
    if by_file {
        options.program = layers.named.program.clone();
        options.args = layers.named.args.clone();
    }
    let check = options.check;
    let plan = options.resolve(pwd, inherited)?;
    check_paths(&plan)?;
    check_placeholders(&plan)?;
    check_preload(&plan)?;
    if check {
        env_file::read(&plan).map_err(|cause| usage(cause.to_string()))?;
        return Err(Ending::Shown(plan_shown::table(&definition, &layers, &plan, by_file)));
    }
    Ok(plan)
}
