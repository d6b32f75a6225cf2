//! The plan in force, and how it is read again.

pub(crate) mod reread;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::config::Plan;
use crate::sys::descriptors::{Kept, take_over};
use crate::worker::program::Fingerprint;

/// What was asked for, and what each generation runs.
pub(crate) struct Configuration {
    /// The plan that was read last for all generations. The plan of a failed generation is never it.
    pub(crate) plan: Plan,
    /// The plan of each generation that has a process or waits for one.
    pub(crate) plans: BTreeMap<u32, Plan>,
    /// The release of each generation.
    pub(crate) found: BTreeMap<u32, Release>,
}

/// What a generation's first monitor resolved, kept for its later ones.
pub(crate) struct Release {
    pub(crate) directory: OwnedFd,
    pub(crate) program: OwnedFd,
    pub(crate) findings: OwnedFd,
    pub(crate) path: PathBuf,
    /// The user that its workers run as, if it is not ours.
    pub(crate) other_user: Option<u32>,
    /// What the release looked like on disk at that time.
    pub(crate) fingerprint: Fingerprint,
}

/// The configuration as one main hands it on to the next.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Carried {
    pub(crate) plan: Plan,
    pub(crate) plans: BTreeMap<u32, Plan>,
    found: BTreeMap<u32, CarriedRelease>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct CarriedRelease {
    directory: RawFd,
    program: RawFd,
    findings: RawFd,
    #[serde(with = "crate::config::text::path")]
    path: PathBuf,
    other_user: Option<u32>,
    fingerprint: Fingerprint,
}

impl Carried {
    /// All descriptors in it.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = RawFd> {
        self.found.values().flat_map(|found| [found.directory, found.program, found.findings])
    }
}

impl Configuration {
    /// For the next main.
    pub(crate) fn carry<'a>(&'a self, kept: &mut Kept<'a>) -> Carried {
        let found = self.found.iter().map(|(generation, release)| (*generation, release.carry(kept))).collect();
        Carried { plan: self.plan.clone(), plans: self.plans.clone(), found }
    }

    /// What the main before has handed on.
    pub(crate) fn take_over(carried: Carried) -> io::Result<Configuration> {
        let release = |(generation, release)| Ok((generation, Release::take_over(release)?));
        let found = carried.found.into_iter().map(release).collect::<io::Result<_>>()?;
        Ok(Configuration { plan: carried.plan, plans: carried.plans, found })
    }

    /// That of the first generation.
    pub(crate) fn new(plan: Plan) -> Configuration {
        Configuration { plans: BTreeMap::from([(1, plan.clone())]), plan, found: BTreeMap::new() }
    }
}

impl Release {
    fn carry<'a>(&'a self, kept: &mut Kept<'a>) -> CarriedRelease {
        CarriedRelease {
            directory: kept.keep(&self.directory),
            program: kept.keep(&self.program),
            findings: kept.keep(&self.findings),
            path: self.path.clone(),
            other_user: self.other_user,
            fingerprint: self.fingerprint.clone(),
        }
    }

    fn take_over(carried: CarriedRelease) -> io::Result<Release> {
        Ok(Release {
            directory: take_over(carried.directory)?,
            program: take_over(carried.program)?,
            findings: take_over(carried.findings)?,
            path: carried.path,
            other_user: carried.other_user,
            fingerprint: carried.fingerprint,
        })
    }
}
