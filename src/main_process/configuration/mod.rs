//! The plan in force, and reading it again.

pub(crate) mod reread;

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::config::Plan;
use crate::worker::program::Fingerprint;

/// The plan in force, and the plan of each generation.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Configuration {
    /// The plan that was read last for all generations. It is never the plan of a failed generation.
    pub(crate) plan: Plan,
    /// The plan of each generation that has a process or waits for one.
    pub(crate) plans: BTreeMap<u32, Plan>,
    /// The release of each generation.
    pub(crate) found: BTreeMap<u32, Release>,
}

/// The release that a generation's first monitor resolved. Its later monitors use it too.
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
    /// The uid of its workers, if that is not panzer's own.
    pub(crate) other_user: Option<u32>,
    /// The files of the release at that time.
    pub(crate) fingerprint: Fingerprint,
}

impl Configuration {
    /// The plan of a generation, or the one in force if it has none any more.
    pub(crate) fn plan_of(&self, generation: u32) -> &Plan {
        self.plans.get(&generation).unwrap_or(&self.plan)
    }

    /// The configuration of the first generation.
    pub(crate) fn new(plan: Plan) -> Configuration {
        Configuration { plans: BTreeMap::from([(1, plan.clone())]), plan, found: BTreeMap::new() }
    }
}
