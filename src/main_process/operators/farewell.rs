//! A graceful stop begins with a wait, if `--stop` says so: panzer says everywhere that it ends, and workers go on serving
//! until balancers have noticed.

use std::time::{Duration, Instant};

use crate::config::duration::show;
use crate::control::monitor::messages::Urgency;
use crate::control::operator::requests::Wanted;
use crate::main_process::decide::{Event, Overview};
use crate::main_process::main::Main;

/// Longest time that a stop may take beyond its schedule.
const GRACE: Duration = Duration::from_secs(5);

/// Why nothing new begins.
const ENDING: &str = "panzer is being stopped";

impl Main {
    /// Whether panzer is being stopped, or is about to be.
    pub(crate) fn is_ending(&self) -> bool {
        self.state.is_stopping() || self.operators.farewell.is_under_way()
    }

    /// Passes an event on to the state, unless it is a stop that begins later, or comes after one.
    pub(crate) fn unless_put_off(&mut self, event: Event) -> Option<Event> {
        let (is_stopping, waits) = (self.state.is_stopping(), self.operators.farewell.is_under_way());
        match event {
            Event::StopThenNow if waits => self.stop_now(),
            Event::Stop(Urgency::Quick) if waits => self.stop_now(),
            Event::Stop(_) if waits => None,
            Event::Stop(Urgency::Graceful) | Event::StopThenNow if !is_stopping && self.state.is_ready() => {
                let stop = &self.configuration.plan.tuning.stop;
                if !self.operators.farewell.begin(stop.lead(), Instant::now()) {
                    return Some(event);
                }
                log::info!("stopping in {}: workers serve on until then, so that balancers notice", show(stop.lead()));
                None
            }
            Event::Reload | Event::ReloadRetiring(_) if waits => {
                log::info!("no reload: {ENDING}");
                None
            }
            Event::ReloadFor(client) if waits => {
                self.operators.clients.promised(client, None, None);
                None
            }
            Event::Scale(request, _) if waits => {
                let from = self.state.workers();
                request.into_iter().for_each(|client| self.operators.clients.scaled(client, from, Err(ENDING)));
                None
            }
            event => Some(event),
        }
    }

    fn stop_now(&mut self) -> Option<Event> {
        self.operators.farewell.end();
        Some(Event::Stop(Urgency::Quick))
    }

    /// Begins the stop that was put off, once its time has come.
    pub(crate) fn end_farewell(&mut self) {
        if self.state.is_stopping() {
            self.operators.farewell.end();
        }
        if self.operators.farewell.is_due(Instant::now()) {
            self.events.push_back(Event::Stop(Urgency::Graceful));
        }
    }

    /// Why a request is refused before a stop.
    pub(crate) fn refused_before_stop(&self, wanted: Wanted) -> Option<&'static str> {
        let begins = matches!(wanted, Wanted::Scale | Wanted::Quiet | Wanted::Restart);
        (begins && self.operators.farewell.is_under_way()).then_some(ENDING)
    }

    /// How things stand, for the service manager.
    pub(crate) fn overview(&self) -> Overview {
        let overview = self.state.overview();
        let leaves = self.operators.farewell.deadline();
        let stops = leaves.map(|at| at + self.configuration.plan.tuning.stop.total() + GRACE);
        // At the end it waits for hooks.
        let hooks = self.exit.and_then(|_| self.operators.hooks.deadline());
        Overview {
            stopping: overview.stopping || leaves.is_some(),
            leaving: leaves.is_some(),
            busy_until: overview.busy_until.max(hooks).max(stops),
            ..overview
        }
    }
}
