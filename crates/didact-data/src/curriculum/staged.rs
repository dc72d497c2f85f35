//! One curriculum after the other: phases over skills, a change of row length in the middle of training.

use didact_core::hash::{Digest, hash_json};
use serde::{Deserialize, Serialize};

use super::{Curriculum, CurriculumError, CurriculumState, Feedback, Pool, Progress, StepRows, in_order, setting};

/// Curricula in turn, each for a number of steps. Each sees only its own progress and the feedback of its own time; one
/// that has nothing left before its time is over is followed by the next.
pub struct Staged {
    parts: Vec<(u64, Box<dyn Curriculum>)>,
    identity: Digest,
    state: State,
}

impl std::fmt::Debug for Staged {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Staged").field("state", &self.state).finish_non_exhaustive()
    }
}

#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
struct State {
    /// The part at work, and steps given before it.
    part: usize,
    before: u64,
    step: u64,
    observed: u64,
}

#[derive(Serialize, Deserialize)]
struct Body {
    state: State,
    parts: Vec<CurriculumState>,
}

const KIND: &str = "staged";

impl Staged {
    /// Curricula with their numbers of steps.
    ///
    /// # Errors
    /// When there is none, or one has no step.
    pub fn new(parts: Vec<(u64, Box<dyn Curriculum>)>) -> Result<Self, CurriculumError> {
        if parts.is_empty() || parts.iter().any(|(steps, _)| *steps == 0) {
            return Err(setting("parts", "none, or one of no steps", "at least one, each of at least one step"));
        }
        let settings: Vec<_> = parts.iter().map(|(steps, part)| (steps, part.state().identity)).collect();
        let identity = hash_json(&serde_json::to_value(settings).expect("plain data"));
        Ok(Self { parts, identity, state: State::default() })
    }

    /// Steps of all parts.
    pub fn total_steps(&self) -> u64 {
        self.parts.iter().map(|(steps, _)| steps).sum()
    }

    fn leave(&mut self) {
        self.state.part += 1;
        self.state.before = self.state.step;
    }

    /// Goes on to the next part when the time of this one is over.
    fn leave_finished(&mut self) {
        let over = |(steps, _): &(u64, Box<dyn Curriculum>)| self.state.step - self.state.before >= *steps;
        if self.parts.get(self.state.part).is_some_and(over) {
            self.leave();
        }
    }
}

impl Curriculum for Staged {
    fn needs_feedback(&self) -> bool {
        self.parts.iter().any(|(_, part)| part.needs_feedback())
    }

    fn steps_per_epoch(&self) -> Option<u64> {
        Some(self.total_steps())
    }

    fn weights(&self) -> Option<Vec<(String, f64)>> {
        self.parts.get(self.state.part).and_then(|(_, part)| part.weights())
    }

    fn next_step(&mut self, progress: &Progress) -> Result<Option<StepRows>, CurriculumError> {
        in_order(self.state.step, progress)?;
        loop {
            self.leave_finished();
            let Some((total_steps, part)) = self.parts.get_mut(self.state.part) else { return Ok(None) };
            let own = Progress { step: self.state.step - self.state.before, total_steps: *total_steps };
            if let Some(mut step) = part.next_step(&own)? {
                step.part = self.state.part as u32;
                self.state.step += 1;
                return Ok(Some(step));
            }
            self.leave();
        }
    }

    fn observe(&mut self, feedback: &Feedback) -> Result<(), CurriculumError> {
        // What is found at a border is news for the part that begins there.
        self.leave_finished();
        if let Some((_, part)) = self.parts.get_mut(self.state.part) {
            let step = feedback.step.saturating_sub(self.state.before);
            part.observe(&Feedback { step, ..feedback.clone() })?;
        }
        self.state.observed += 1;
        Ok(())
    }

    fn pools(&self, part: u32) -> &[Pool] {
        self.parts[part as usize].1.pools(0)
    }

    fn state(&self) -> CurriculumState {
        let body = Body { state: self.state, parts: self.parts.iter().map(|(_, part)| part.state()).collect() };
        CurriculumState {
            kind: KIND.to_owned(),
            identity: self.identity,
            step: self.state.step,
            observed: self.state.observed,
            body: serde_json::to_value(body).expect("plain data"),
        }
    }

    fn restore(&mut self, state: &CurriculumState) -> Result<(), CurriculumError> {
        let Body { state, parts } = state.of(KIND, self.identity)?;
        for ((_, part), saved) in self.parts.iter_mut().zip(&parts) {
            part.restore(saved)?;
        }
        self.state = state;
        Ok(())
    }
}
