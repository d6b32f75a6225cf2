//! What a generation's first monitor looks up, beside its program, for those that follow it: by then the system may say
//! something else.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};

use super::cause::Cause;
use super::env_file;
use super::identity::Identity;
use crate::config::{Plan, Text};
use crate::sys::document;

/// What workers of a generation get in whichever life of its monitor.
#[derive(Debug, Serialize, Deserialize)]
pub struct Findings {
    /// The variables of its files.
    #[serde(with = "crate::carry::pairs")]
    pub variables: BTreeMap<Text, Text>,
    /// As whom they run.
    pub identity: Identity,
}

impl Findings {
    /// Looks up what `plan` names, as it is now.
    pub fn look_up(plan: &Plan) -> Result<Findings, Cause> {
        Ok(Findings { variables: env_file::read(plan)?, identity: Identity::resolve(&plan.identity)? })
    }

    /// Writes them down.
    pub fn to_document(&self) -> io::Result<OwnedFd> {
        document::write(&serde_json::to_vec(self)?)
    }

    /// Reads what [`Findings::to_document`] wrote.
    pub fn from_document(document: OwnedFd) -> Result<Findings, Cause> {
        let read = || -> io::Result<Findings> { Ok(serde_json::from_slice(&document::read(document)?)?) };
        read().map_err(|error| Cause::CannotStart(format!("what its first monitor found cannot be read: {error}")))
    }
}
