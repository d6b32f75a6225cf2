//! What happens to messages between main and its monitors. Either one arrives after those before it, perhaps late, or
//! the channel has failed: then the monitor is ended, by main or by itself, and nothing that came later was read.

use std::time::Duration;

use nix::sys::signal::Signal;
use panzer::worker::cause::Cause;

use crate::check::{Checked, Violation};
use crate::planted::Planted;
use crate::world::{Node, World};

/// What becomes of the next messages in one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It cannot be sent or taken for so long (no memory, no descriptor, a queue that is full), and all others wait.
    PutOff(Duration),
    /// It cannot be sent at all, or the queue stays full: whoever sends gives the channel up.
    NotSent,
    /// It arrives cut: whoever receives gives the channel up.
    Cut,
}

impl World {
    /// A fault of one of the channels of this monitor, from its next message on.
    pub(crate) fn trouble_channel(&mut self, index: usize) {
        let fault = match self.choices.below(4) {
            0..=1 => Fault::PutOff(self.choices.millis(&[20, 300, 3_000, 10_000])),
            2 => Fault::NotSent,
            _ => Fault::Cut,
        };
        let of_orders = self.choices.below(2) == 0;
        self.log(|_| {
            format!("{} of monitor {index} are to be {fault:?}", if of_orders { "orders" } else { "reports" })
        });
        let node = &mut self.monitors[index];
        let faults = if of_orders { &mut node.order_fault } else { &mut node.report_fault };
        *faults = Some(fault);
    }

    /// An order is sent. Returns how late it can be read; none if it never is.
    pub(crate) fn order_leaves(&mut self, index: usize) -> Result<Option<Duration>, Violation> {
        match self.monitors[index].order_fault.take() {
            None => Ok(Some(Duration::ZERO)),
            Some(Fault::PutOff(delay)) => {
                self.monitors[index].looping.punctual = false;
                Ok(Some(delay))
            }
            Some(_) if self.planted == Some(Planted::LosesOrders) => Ok(None),
            Some(Fault::NotSent) => self.kill_cut_off(index).map(|()| None),
            Some(Fault::Cut) => self.exit_cut_off(index).map(|()| None),
        }
    }

    /// The same for a report.
    pub(crate) fn report_leaves(&mut self, index: usize) -> Result<Option<Duration>, Violation> {
        match self.monitors[index].report_fault.take() {
            None => Ok(Some(Duration::ZERO)),
            Some(Fault::PutOff(delay)) => {
                self.monitors[index].looping.punctual = false;
                Ok(Some(delay))
            }
            Some(_) if self.planted == Some(Planted::LosesReports) => Ok(None),
            Some(Fault::NotSent) => self.exit_cut_off(index).map(|()| None),
            Some(Fault::Cut) => self.kill_cut_off(index).map(|()| None),
        }
    }

    /// Main ends a monitor that it cannot talk to.
    fn kill_cut_off(&mut self, index: usize) -> Checked {
        self.log(|_| format!("main gives up the channel of monitor {index}"));
        let process = self.monitors[index].looping.process;
        if self.main_runs() && self.is_running(process) {
            self.kill(self.main.looping.process, self.kernel.process(process).pid, Signal::SIGKILL)?;
        }
        Ok(())
    }

    /// A monitor that cannot talk to main ends.
    fn exit_cut_off(&mut self, index: usize) -> Checked {
        self.log(|_| format!("monitor {index} gives up its channel"));
        self.end(self.monitors[index].looping.process, Cause::Exited(1))
    }

    /// Faults cease.
    pub(crate) fn mend_channels(&mut self) {
        for node in &mut self.monitors {
            (node.order_fault, node.report_fault) = (None, None);
        }
    }

    /// Whether this monitor has ended within its own turn.
    pub(crate) fn has_ended(&mut self, index: usize) -> bool {
        let process = self.looping(Node::Monitor(index)).process;
        !self.is_running(process)
    }
}
