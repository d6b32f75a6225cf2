//! Main becomes another build of itself, by an exec in place.

pub(crate) mod document;
pub(crate) mod hand_over;
pub(crate) mod preflight;
pub mod prove;
pub(crate) mod take_over;

use self::preflight::NextBuild;
use crate::main_process::decide::restart::Restart;

/// State of a restart in place.
#[derive(Default)]
pub(crate) struct Restarting {
    pub(crate) restart: Restart,
    /// The build that has proved itself and is to take over.
    pub(crate) next_build: Option<NextBuild>,
}
