//! Main restarted in place (invariant 10): what it knows is written down and read back, and nothing that follows differs.

use panzer::main_process::decide::Generations;

use crate::check::{Checked, hold};
use crate::choices::Choices;
use crate::history::play_with;
use crate::planted::Planted;
use crate::world::World;

/// So many histories are played with and without.
const COMPARED: u64 = 3_000;

/// Hardly any is longer.
const MOST_WRITTEN: usize = 8 << 10;

/// How often main is restarted: at every so-many-th step at which it looks around; 0: never.
pub(crate) fn draw(choices: &mut Choices) -> u32 {
    choices.among(&[0, 0, 0, 0, 0, 0, 1, 7])
}

impl World {
    /// As an exec of main does it, with nothing under way.
    pub(crate) fn restart_if_due(&mut self) -> Checked {
        if self.restarts == 0 || !self.steps.is_multiple_of(self.restarts) {
            return Ok(());
        }
        self.main.check.tally.restarts += 1;
        // What was read back is as it was: it would be written and read as before.
        if self.main.as_read.as_ref() == Some(&self.main.state) {
            return Ok(());
        }
        let mut written = Vec::with_capacity(MOST_WRITTEN);
        serde_json::to_writer(&mut written, &self.main.state).unwrap();
        let written = String::from_utf8(written).unwrap();
        let written = Planted::written(self.planted, written, &self.spec.main);
        let read = serde_json::from_str::<Generations>(&written);
        let read = read.map_err(|error| crate::check::Violation::new(10, format!("cannot be read: {error}")))?;
        let before = std::mem::replace(&mut self.main.state, read);
        let after = &self.main.state;
        hold(before == *after, 10, || format!("main is another after a restart: {before:?}, then {after:?}"))?;
        // They are equal, and what was before is needed no more.
        self.main.as_read = Some(before);
        Ok(())
    }
}

#[test]
fn a_restart_at_any_step_leaves_what_follows_as_it_was() {
    let trace = |seed, restarts| match play_with(Choices::from_seed(seed), Some(restarts), None, true) {
        Ok((_, trace)) => trace,
        Err(failure) => panic!("\n{}", crate::report::describe(seed, &failure)),
    };
    for seed in 0..COMPARED {
        let (without, with) = (trace(seed, 0), trace(seed, 1));
        let differs = without.iter().zip(&with).find(|(one, other)| one != other);
        assert!(differs.is_none() && without.len() == with.len(), "history {seed}: {differs:?}");
    }
}
