//! Lines that a process writes, collected by a thread for as long as anybody holds the other end.

use std::io::{BufRead, BufReader, Read};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

use super::patterns::matches;

/// A place among the lines: what came after it is new.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mark(usize);

impl Mark {
    /// Behind the line at this mark.
    pub fn next(self) -> Mark {
        Mark(self.0 + 1)
    }
}

#[derive(Debug, Default)]
struct State {
    lines: Vec<String>,
    ended: bool,
}

/// The lines so far.
#[derive(Debug, Clone, Default)]
pub struct Lines(Arc<(Mutex<State>, Condvar)>);

impl Lines {
    /// Collects what comes from `source`.
    pub fn collect(source: impl Read + Send + 'static) -> Lines {
        let lines = Lines::default();
        let filled = lines.clone();
        thread::spawn(move || filled.fill(BufReader::new(source)));
        lines
    }

    fn fill(&self, source: impl BufRead) {
        for line in source.split(b'\n').map_while(Result::ok) {
            self.lock().lines.push(String::from_utf8_lossy(&line).into_owned());
            self.0.1.notify_all();
        }
        self.lock().ended = true;
        self.0.1.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A test that panicked meanwhile leaves the lines as good as they were.
        self.0.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Waits until `look` finds something, or everybody has closed the other end, or the time is over.
    fn wait<T>(&self, limit: Duration, mut look: impl FnMut(&State) -> Option<T>) -> Option<T> {
        let mut found = None;
        let unsuccessful = |state: &mut State| {
            found = look(state);
            found.is_none() && !state.ended
        };
        drop(self.0.1.wait_timeout_while(self.lock(), limit, unsuccessful));
        found
    }

    /// Everything so far.
    pub fn all(&self) -> Vec<String> {
        self.lock().lines.clone()
    }

    /// The end of what is there now.
    pub fn mark(&self) -> Mark {
        Mark(self.lock().lines.len())
    }

    /// What came from `from` on, up to `to`.
    pub fn between(&self, from: Mark, to: Mark) -> Vec<String> {
        self.lock().lines[from.0..to.0].to_vec()
    }

    /// Waits for a line from `from` on that matches one of `patterns`. Returns where it is, and the line.
    pub fn wait_for(&self, from: Mark, patterns: &[&str], limit: Duration) -> Option<(Mark, String)> {
        self.wait(limit, |state| {
            let mut lines = state.lines.iter().enumerate().skip(from.0);
            let found = lines.find(|(_, line)| patterns.iter().any(|pattern| matches(pattern, line)));
            found.map(|(at, line)| (Mark(at), line.clone()))
        })
    }

    /// Waits until everybody has closed the other end. False where somebody has not.
    pub fn wait_for_end(&self, limit: Duration) -> bool {
        self.wait(limit, |state| state.ended.then_some(())).is_some()
    }
}
