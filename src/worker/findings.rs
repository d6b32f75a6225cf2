//! Lookups made once per generation (users, groups, env files) and reused by its later monitors, so that all its workers
//! agree.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};

use super::cause::Cause;
use super::env_file;
use super::identity::Identity;
use super::program::Release;
use crate::config::{Plan, Text};
use crate::sys::errno::words;
use crate::sys::memfd;

/// Facts that all workers of a generation get, whichever monitor starts them.
#[derive(Debug, Serialize, Deserialize)]
pub struct Findings {
    /// The variables of its files.
    #[serde(with = "crate::carry::pairs")]
    pub variables: BTreeMap<Text, Text>,
    /// As whom they run.
    pub identity: Identity,
    /// Their `PWD`: the working directory by the user's name for it. None if it has no name.
    #[serde(default)]
    pub directory: Option<Text>,
}

impl Findings {
    /// Looks up what `plan` names, as it is now. `inherited_path` is panzer's own `PATH`; the workers' own counts first.
    pub fn look_up(plan: &Plan, inherited_path: Option<&OsStr>) -> Result<(Release, Findings), Cause> {
        let variables = env_file::read(plan)?;
        let search_path = search_path(plan, &variables)?;
        let release = Release::resolve(plan, search_path.as_deref().or(inherited_path))?;
        let directory = release.directory_name(plan).map(|path| Text(path.into()));
        Ok((release, Findings { variables, identity: Identity::resolve(&plan.identity)?, directory }))
    }

    /// Writes them down.
    pub fn to_document(&self) -> io::Result<OwnedFd> {
        memfd::write(&serde_json::to_vec(self)?)
    }

    /// Reads what [`Findings::to_document`] wrote.
    pub fn from_document(document: OwnedFd) -> Result<Findings, Cause> {
        let read = || -> io::Result<Findings> { Ok(serde_json::from_slice(&memfd::read(document)?)?) };
        read().map_err(|error| {
            Cause::CannotStart(format!("what its first monitor found cannot be read: {}", words(&error)))
        })
    }
}

/// The workers' `PATH`, if `--env` or a file sets it.
fn search_path(plan: &Plan, from_files: &BTreeMap<Text, Text>) -> Result<Option<OsString>, Cause> {
    let is_path = |name: &Text| name.0 == "PATH";
    let by_option = plan.env.iter().rfind(|(name, _)| is_path(name)).map(|(_, value)| plan.expand(value, 0, 1));
    let by_option = by_option.transpose().map_err(Cause::CannotStart)?;
    let by_file = from_files.iter().find(|(name, _)| is_path(name)).map(|(_, value)| value.clone());
    Ok(by_option.or(by_file).map(|path| path.0))
}
