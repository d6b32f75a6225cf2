//! The plan in force, and how it is read again.

pub(crate) mod reread;

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::config::Plan;
use crate::worker::program::Fingerprint;

/// What was asked for, and what each generation runs.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Configuration {
    /// The plan that was read last for all generations. The plan of a failed generation is never it.
    pub(crate) plan: Plan,
    /// The plan of each generation that has a process or waits for one.
    pub(crate) plans: BTreeMap<u32, Plan>,
    /// The release of each generation.
    pub(crate) found: BTreeMap<u32, Release>,
}

/// What a generation's first monitor resolved, kept for its later ones.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Release {
    #[serde(with = "crate::carry::descriptor")]
    pub(crate) directory: OwnedFd,
    #[serde(with = "crate::carry::descriptor")]
    pub(crate) program: OwnedFd,
    #[serde(with = "crate::carry::descriptor")]
    pub(crate) findings: OwnedFd,
    #[serde(with = "crate::config::text::path")]
    pub(crate) path: PathBuf,
    /// The user that its workers run as, if it is not ours.
    pub(crate) other_user: Option<u32>,
    /// What the release looked like on disk at that time.
    pub(crate) fingerprint: Fingerprint,
}

impl Configuration {
    /// That of the first generation.
    pub(crate) fn new(plan: Plan) -> Configuration {
        Configuration { plans: BTreeMap::from([(1, plan.clone())]), plan, found: BTreeMap::new() }
    }
}
