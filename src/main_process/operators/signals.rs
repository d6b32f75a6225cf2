//! Performs what signals ask for.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;

use nix::fcntl::OFlag;
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::control::monitor::messages::Urgency;
use crate::main_process::decide::{Change, Event};
use crate::main_process::main::Main;
use crate::signals::Action as Asked;
use crate::sys::signals::Received as Signalled;

impl Main {
    pub(crate) fn on_signal(&mut self, received: Signalled) {
        log::debug!("received {} from pid {}", received.signal.as_str(), received.sender);
        if is_hang_up(received, self.outside.had_terminal) {
            return self.events.push_back(Event::Stop(Urgency::Graceful));
        }
        // The kernel's own SIGCONT comes with the end of a terminal, and asks for nothing.
        if received.signal == Signal::SIGCONT && received.by_kernel {
            return;
        }
        let asked = self.configuration.plan.signals.action(received.signal);
        // A stop must not wait for a file system, and removes the files anyway.
        if !asked.stops() && !self.state.is_stopping() && !self.outside.pid_file.is_lost() {
            self.restore_own_files();
        }
        self.operators.interrupted |= is_interrupt(received, asked);
        match asked {
            Asked::Reload => self.events.push_back(Event::Reload),
            Asked::Detach => self.events.push_back(Event::ReloadRetiring(Urgency::Patient)),
            Asked::RestartWorkers => self.events.push_back(Event::ReloadRetiring(Urgency::Quick)),
            Asked::Stop => self.events.push_back(Event::Stop(Urgency::Graceful)),
            Asked::StopThenNow => self.events.push_back(Event::StopThenNow),
            Asked::StopNow => {
                if Pid::this().as_raw() == 1 && received.signal == Signal::SIGQUIT && !self.state.is_stopping() {
                    log::warn!(
                        "QUIT stops at once, and requests under way are cut; where it is the STOPSIGNAL of the image, \
                         --on QUIT=stop makes it graceful"
                    );
                }
                self.events.push_back(Event::Stop(Urgency::Quick));
            }
            Asked::ScaleUp => self.scale(None, Change::By(1)),
            Asked::ScaleDown => self.scale(None, Change::By(-1)),
            Asked::ScaleDownOldest => self.scale(None, Change::WithoutOldest),
            Asked::Quiet => self.scale(None, Change::ToNone),
            Asked::Restart => self.on_restart_asked(None),
            Asked::Status => {
                self.operators.told_on_stderr = true;
                self.inquire();
            }
            Asked::Dump => {
                self.operators.dumps = true;
                self.inquire();
            }
            Asked::Pass => self.pass_signal(received.signal),
            Asked::Reread => {
                self.outside.service_manager.reading_asked();
                self.logger.reopen();
                self.reread();
            }
            Asked::Reopen => {
                self.outside.service_manager.reading_asked();
                match self.logger.reopen() {
                    true => log::info!("{}: log files opened anew", received.signal.as_str()),
                    // Stderr belongs to the process that started panzer.
                    false => log::info!("{}: nothing is open but stderr, which is not ours", received.signal.as_str()),
                }
            }
            Asked::Ignore if Pid::this().as_raw() == 1 && received.signal == Signal::SIGWINCH => {
                log::warn!("WINCH does nothing; where it is the STOPSIGNAL of the image, use --on WINCH=stop")
            }
            Asked::Ignore => log::debug!("{}: nothing to do", received.signal.as_str()),
        }
    }
}

/// Whether the terminal on which panzer was started was closed.
pub(crate) fn is_hang_up(received: Signalled, had_terminal: bool) -> bool {
    received.signal == Signal::SIGHUP && (received.by_kernel || (had_terminal && !has_terminal()))
}

/// Whether Ctrl-C asked for the end. Then panzer ends by that signal, because a shell that got it too ends its script
/// only if the program did.
pub(crate) fn is_interrupt(received: Signalled, asked: Asked) -> bool {
    received.signal == Signal::SIGINT && received.by_kernel && asked.stops()
}

pub(crate) fn has_terminal() -> bool {
    // Without O_NONBLOCK the open would wait for a line without a carrier.
    File::options().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open("/dev/tty").is_ok()
}
