//! Performs a restart in place: writes down what main knows, and executes the next build, which reads it.
//!
//! The process stays the same: children stay its own, descriptors stay open, signals stay blocked and pending. An exec
//! that fails leaves everything as it was.

use std::ffi::CString;
use std::io;
use std::os::fd::AsRawFd;
use std::time::Instant;

use anyhow::Context;
use nix::fcntl::AtFlags;
use nix::unistd::execveat;

use super::document::{self, build};
use super::preflight::{NextBuild, Preflight};
use crate::carry::descriptor::Written;
use crate::config::text::c_string;
use crate::control::operator::requests::Outcome;
use crate::main_process::decide::restart::{Action, Event};
use crate::main_process::main::Main;
use crate::sys::descriptors::set_inherited;
use crate::sys::errno::{chain, words};
use crate::sys::memfd;
use crate::sys::processes::Exit;

impl Main {
    /// A restart is wanted. The client, if there is one, gets the outcome.
    pub(crate) fn on_restart_asked(&mut self, client: Option<u64>) {
        let refused = match () {
            () if self.is_ending() => Some("panzer is being stopped"),
            () if self.outside.daemon_parent.waits() => {
                Some("the start of this daemon is not done yet; try again when it serves")
            }
            () => None,
        };
        if let Some(why) = refused {
            match client {
                Some(client) => self.operators.clients.answer(client, Outcome::refused(why)),
                None => log::warn!("no restart: {why}"),
            }
            return;
        }
        if let Some(client) = client {
            self.operators.clients.wants_restart(client);
        }
        self.go_on_with_restart(Event::Asked);
    }

    pub(crate) fn go_on_with_restart(&mut self, event: Event) {
        for action in self.restarting.restart.on(Instant::now(), event) {
            match action {
                Action::Begin => {
                    if let Err(error) = self.begin_preflight() {
                        self.go_on_with_restart(Event::NotBegun(chain(&error)));
                    }
                }
                Action::Kill => self.children.preflight().into_iter().for_each(Preflight::kill),
                Action::Refuse(why) => self.refuse_restart(&why),
                Action::GiveUp => self.end_restart("panzer is being stopped"),
            }
        }
    }

    fn begin_preflight(&mut self) -> anyhow::Result<()> {
        let image = self.environment.image()?;
        log::info!("restart: trying {}", image.display());
        let document = document::write(self, Written::Unchanged).and_then(|bytes| memfd::write(&bytes));
        let document = document.context("the state cannot be handed on")?;
        let preflight = Preflight::begin(&image, &document, &self.environment);
        self.children.add_preflight(preflight.context("it could not be started")?);
        Ok(())
    }

    pub(crate) fn on_preflight_ended(&mut self, preflight: Preflight, exit: Exit) {
        let shown = preflight.shown(exit).map(|build| self.restarting.next_build = Some(build));
        self.go_on_with_restart(Event::Ended(shown));
    }

    fn refuse_restart(&mut self, why: &str) {
        let image = self.environment.image().unwrap_or_default();
        let why = format!("restart refused: {}: {why}; panzer {} goes on", image.display(), build());
        log::error!("{why}");
        self.end_restart(&why);
    }

    /// Answers the clients that wait for the restart. Does what was left to the next main.
    fn end_restart(&mut self, why: &str) {
        self.restarting.next_build = None;
        self.operators.clients.restarted(Outcome::refused(why));
        if self.operators.want_status() {
            self.inquire();
        }
    }

    /// Becomes the next build if it has proved itself. Not while an answer is waited for, because the next main would not
    /// know the question.
    pub(crate) fn give_way_if_proven(&mut self) {
        let waits = self.operators.inquiry.is_some() || self.children.is_planning() || self.logger.held.is_some();
        if !self.restarting.restart.is_proven() || waits {
            return;
        }
        let executed = match self.restarting.next_build.take() {
            Some(next) => self.give_way(&next),
            None => Err(io::Error::other("it was lost")),
        };
        if let Err(error) = executed {
            self.go_on_with_restart(Event::NotExecuted(format!("it cannot take over: {}", words(&error))));
        }
    }

    /// Returns only if the exec fails. No other program may get the descriptors then.
    fn give_way(&self, next: &NextBuild) -> io::Result<()> {
        let executed = self.execute(next);
        document::write(self, Written::Closed)?;
        executed
    }

    fn execute(&self, next: &NextBuild) -> io::Result<()> {
        let document = memfd::write(&document::write(self, Written::Inherited)?)?;
        let path = self.environment.image().map_err(io::Error::other)?;
        let arguments: Vec<CString> = std::env::args_os().map(|argument| c_string(&argument)).collect();
        let variables = self.environment.for_next_main(document.as_raw_fd(), &path);
        set_inherited(&document, true)?;
        log::debug!("restart: executing panzer {}", next.build);
        Ok(execveat(&next.image, c"", &arguments, &variables, AtFlags::AT_EMPTY_PATH).map(drop)?)
    }
}
