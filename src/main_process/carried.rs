//! What main knows, as one main hands it on to the next: a document with a version. Descriptors go by their numbers, and
//! lie where they lay.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::RawFd;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::ack_paths::AckPaths;
use super::counters::Counters;
use super::emptying::Emptyings;
use super::shares::Shares;
use super::state::Generations;
use super::{children, guard, held, operators, pidfile, unix_guard, upward};
use crate::config::Plan;
use crate::sys::descriptors::FIRST;

/// The version of this document. It goes up with whatever an older build could not read or would not know of; a build
/// reads its own version and those before that it still knows.
const VERSION: u32 = 1;

/// The build that this is.
pub(super) fn build() -> &'static str {
    // As text in the binary, where strings(1) finds it and a test makes another build of this one: so short a one may
    // otherwise become a part of some instruction.
    std::hint::black_box(env!("CARGO_PKG_VERSION"))
}

/// Everything that is not made anew.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Carried {
    pub(super) version: u32,
    /// The build that wrote it.
    pub(super) build: String,
    pub(super) plan: Plan,
    /// What each generation runs by.
    pub(super) plans: BTreeMap<u32, Plan>,
    pub(super) had_terminal: bool,
    /// Whether HUP is left to whoever had it ignored.
    pub(super) ignores_hang_up: bool,
    pub(super) pid_file: pidfile::Carried,
    pub(super) held: Vec<held::Carried>,
    /// The queues of so many slots get what is new.
    pub(super) active: u32,
    pub(super) emptyings: Emptyings,
    pub(super) shares_ports: bool,
    pub(super) shares: Shares<RawFd>,
    pub(super) too_many_told: bool,
    pub(super) guard: Vec<guard::Carried>,
    pub(super) dead: BTreeMap<u64, unix_guard::Dead>,
    pub(super) ack_paths: AckPaths,
    pub(super) children: children::Carried,
    pub(super) found: BTreeMap<u32, Found>,
    pub(super) manager_told: upward::Told,
    pub(super) told_on_stderr: bool,
    pub(super) dumps: bool,
    pub(super) operators: operators::Carried,
    pub(super) counters: Counters,
    pub(super) state: Generations,
}

/// What a generation's first monitor found.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Found {
    pub(super) directory: RawFd,
    pub(super) program: RawFd,
    pub(super) variables: RawFd,
    pub(super) path: PathBuf,
    pub(super) other_user: Option<u32>,
}

/// Writes the version and the build that every document begins with.
pub(super) fn head() -> (u32, String) {
    (VERSION, build().to_owned())
}

/// Reads a document and checks it. The error is a line.
pub(super) fn read(bytes: &[u8]) -> Result<Carried, String> {
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
        build: String,
    }
    let versioned: Versioned =
        serde_json::from_slice(bytes).map_err(|error| format!("the state is broken: {error}"))?;
    if versioned.version != VERSION {
        return Err(format!(
            "the state that panzer {} hands on has version {}, and panzer {} reads version {VERSION}; stop panzer and \
             start it anew",
            versioned.build,
            versioned.version,
            build()
        ));
    }
    let carried: Carried = serde_json::from_slice(bytes)
        .map_err(|error| format!("the state that panzer {} hands on is not known here: {error}", versioned.build))?;
    carried.check_descriptors()?;
    Ok(carried)
}

impl Carried {
    /// Each is taken over once, and none is stdin, stdout or stderr.
    fn check_descriptors(&self) -> Result<(), String> {
        let mut seen = BTreeSet::new();
        let wrong = self.descriptors().into_iter().find(|&number| number < FIRST || !seen.insert(number));
        match wrong {
            Some(number) => {
                Err(format!("the state is broken: descriptor {number} cannot be handed on twice, or at all"))
            }
            None => Ok(()),
        }
    }

    fn descriptors(&self) -> Vec<RawFd> {
        let mut all: Vec<RawFd> = self.held.iter().map(|held| held.listener.fd).collect();
        all.extend(self.shares.held().map(|(_, &fd)| fd));
        all.extend(self.found.values().flat_map(|found| [found.directory, found.program, found.variables]));
        all.extend(self.children.descriptors());
        all.extend(self.operators.server.descriptors());
        all.extend(self.guard.iter().map(|guarded| guarded.fd));
        all.push(self.pid_file.fd);
        all
    }
}
