//! The role of a pre-flight: the new build reads what main knows, as if it took over.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;

use anyhow::{Context, Error};
use nix::fcntl::OFlag;

use super::document;
use super::preflight::Proof;
use crate::carry::descriptor::Read;
use crate::control::environment::{Environment, OWN_IMAGE};
use crate::control::monitor::channel::Channel;
use crate::sys::memfd;

/// Takes the role of a pre-flight.
pub fn run(environment: &Environment) -> anyhow::Result<()> {
    let (state, channel) = environment.take_preflight()?;
    let bytes = memfd::read(state).context("the state cannot be read")?;
    document::read(&bytes, Read::StandIns).map_err(Error::msg)?;
    let image: OwnedFd = File::options()
        .read(true)
        .custom_flags((OFlag::O_PATH | OFlag::O_CLOEXEC).bits())
        .open(OWN_IMAGE)
        .context(format!("cannot open {OWN_IMAGE}"))?
        .into();
    let proof = Proof { build: document::build().to_owned() };
    let mut channel = Channel::new(channel);
    channel.send_along(&proof, vec![image]);
    channel.finish().context("main cannot be told")
}
