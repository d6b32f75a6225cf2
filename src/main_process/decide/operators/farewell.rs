//! The wait before the first signal of a graceful stop: workers go on serving, until balancers know that they end.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// Whether main waits so, and until when.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Farewell {
    #[serde(with = "crate::carry::moment::option")]
    until: Option<Instant>,
    /// Whether main has waited: the stop begins at once from now on.
    is_over: bool,
}

impl Farewell {
    /// A graceful stop is asked for. Returns false if it is to begin at once.
    pub fn begin(&mut self, wait: Duration, now: Instant) -> bool {
        let begins = self.until.is_none() && !self.is_over && !wait.is_zero();
        if begins {
            self.until = Some(now + wait);
        }
        begins
    }

    /// A quick stop begins, or the program has ended by itself.
    pub fn end(&mut self) {
        self.until = None;
    }

    /// Whether main waits.
    pub fn is_under_way(&self) -> bool {
        self.until.is_some()
    }

    /// Whether there is nothing to be handed on.
    pub(crate) fn is_unused(&self) -> bool {
        *self == Farewell::default()
    }

    /// When the stop begins.
    pub fn deadline(&self) -> Option<Instant> {
        self.until
    }

    /// Whether the stop begins now. True once.
    pub fn is_due(&mut self, now: Instant) -> bool {
        let is_due = self.until.take_if(|until| *until <= now).is_some();
        self.is_over |= is_due;
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stop_is_put_off_once_and_begins_once() {
        let (mut farewell, now, wait) = (Farewell::default(), Instant::now(), Duration::from_secs(5));
        assert!(!farewell.begin(Duration::ZERO, now));
        assert!(farewell.begin(wait, now));
        assert!(!farewell.begin(wait, now + wait / 2), "asking again puts nothing off");
        assert_eq!(farewell.deadline(), Some(now + wait));
        assert!(!farewell.is_due(now + wait / 2));
        assert!(farewell.is_due(now + wait) && !farewell.is_due(now + wait));
        assert!(!farewell.is_under_way() && !farewell.begin(wait, now + wait), "it has waited");
    }
}
