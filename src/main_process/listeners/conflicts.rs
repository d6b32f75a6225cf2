//! Addresses that a new generation may have wanted and the old one still has. They are logged if the release is
//! rejected.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use nix::errno::Errno;

use crate::config::Plan;
use crate::main_process::decide::Rejected;
use crate::sys::errno::words;
use crate::worker::cause::Cause;

/// Conflicts by generation.
#[derive(Debug, Default)]
pub(crate) struct Conflicts {
    /// The last bind that was refused, and the errno.
    pub(crate) refused: BTreeMap<u32, (SocketAddr, Errno)>,
    /// Addresses on which workers listen and that main does not hold, as of the last reload.
    pub(crate) own: BTreeMap<u32, Vec<String>>,
}

impl Conflicts {
    /// A generation is gone.
    pub(crate) fn forget(&mut self, generation: u32) {
        self.refused.remove(&generation);
        self.own.remove(&generation);
    }

    /// What stood in the way of a release whose worker has exited, if that is known, and what helps. It completes the
    /// reason.
    pub(crate) fn remedy(&self, generation: u32, why: &Rejected, plan: &Plan) -> String {
        let serving = why.serving;
        if !matches!(why.cause, Cause::Exited(_)) {
            return String::new();
        }
        let refused = self.refused.get(&generation).map(|(address, errno)| {
            format!(
                ", after its generation was refused {address} ({}); generation {serving} may have it",
                words(&(*errno).into())
            )
        });
        let own = self.own.get(&serving).filter(|own| !own.is_empty());
        let own = own.map(|own| format!("; generation {serving} listens on {} by itself", own.join(", ")));
        let both_name = plan.names_slots_only();
        if refused.is_none() && own.is_none() && !both_name {
            return String::new();
        }
        let port = "a port by --share-ports on";
        let remedy = match both_name {
            true => format!("put {{generation}} beside {{worker}} into names, or share {port}"),
            false => format!("share {port}, or name it by {{generation}}"),
        };
        let seen = refused.or(own).unwrap_or_default();
        format!("{seen}; if it wanted what generation {serving} still has: {remedy}")
    }
}
