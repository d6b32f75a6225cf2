//! Tests that use the processors all the time take turns.

use std::sync::{Condvar, Mutex, MutexGuard};
use std::thread::available_parallelism;

static TAKEN: Mutex<usize> = Mutex::new(0);
static FREED: Condvar = Condvar::new();

/// The turn of a test, until it is dropped.
#[must_use]
pub struct Turn(());

/// Waits until few other tests put a server under load. More of them at once take as long in all, and each of their answers
/// takes longer, as well as everything that other tests wait for.
pub fn turn_under_load() -> Turn {
    let most = available_parallelism().map_or(1, usize::from) + 1;
    let mut taken = FREED.wait_while(lock(), |taken| *taken >= most).unwrap_or_else(|poisoned| poisoned.into_inner());
    *taken += 1;
    Turn(())
}

impl Drop for Turn {
    fn drop(&mut self) {
        *lock() -= 1;
        FREED.notify_one();
    }
}

fn lock() -> MutexGuard<'static, usize> {
    TAKEN.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
