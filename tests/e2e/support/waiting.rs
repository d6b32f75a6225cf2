//! Waiting for a condition: the only place that sleeps.

use std::time::{Duration, Instant};

const INTERVAL: Duration = Duration::from_millis(5);

/// Waits until `condition` holds. Panics, with `what` was waited for, after `limit`.
#[track_caller]
pub fn eventually(limit: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    eventually_some(limit, what, || condition().then_some(()));
}

/// Waits until `attempt` gives something. Panics, with `what` was waited for, after `limit`.
#[track_caller]
pub fn eventually_some<T>(limit: Duration, what: &str, attempt: impl FnMut() -> Option<T>) -> T {
    eventually_some_every(INTERVAL, limit, what, attempt)
}

/// The same with another pause between two looks, for what lives shorter than the usual one.
#[track_caller]
pub fn eventually_some_every<T>(
    interval: Duration,
    limit: Duration,
    what: &str,
    mut attempt: impl FnMut() -> Option<T>,
) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = attempt() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited {limit:?} in vain: {what}");
        pause(interval);
    }
}

#[allow(clippy::disallowed_methods, reason = "the one short pause between two looks at a condition")]
fn pause(interval: Duration) {
    std::thread::sleep(interval);
}
