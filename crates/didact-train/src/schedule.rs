//! The learning rate as a pure function of the step.

use std::f64::consts::PI;

use crate::config::{Scheduler, TrainConfig};

/// Warm-up along a straight line, then one of the [`Scheduler`]s.
///
/// With `W` warm-up steps out of `S`, step `s` (from 0) has the rate
///
/// - `peak · (s + 1) / (W + 1)` for `s < W`, so that no step is spent at a rate of 0;
/// - `peak · (floor + (1 − floor) · f(p))` with `p = (s − W) / (S − W)` from there on, where `f` is
///   `(1 + cos πp) / 2`, `1 − p` or `1`. Step `W` has exactly `peak`, step `S` would have `peak · floor`.
///
/// The Hugging Face schedules differ in the warm-up only: theirs is `s / W`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LearningRate {
    /// Highest rate.
    pub peak: f64,
    /// Lowest rate after the warm-up, as a share of `peak`.
    pub floor: f64,
    /// Steps of warm-up, W.
    pub warmup_steps: u64,
    /// Steps in all, S.
    pub total_steps: u64,
    /// Shape after the warm-up.
    pub scheduler: Scheduler,
}

impl LearningRate {
    /// The schedule of a configuration, over `total_steps`.
    pub fn new(config: &TrainConfig, total_steps: u64) -> Self {
        Self {
            peak: config.learning_rate,
            floor: config.min_lr_ratio,
            warmup_steps: config.resolved_warmup_steps(total_steps),
            total_steps,
            scheduler: config.lr_scheduler,
        }
    }

    /// The rate of step `step`, from 0. After the last step it stays at the lowest rate.
    pub fn at(&self, step: u64) -> f64 {
        let (warmup, total) = (self.warmup_steps, self.total_steps.max(self.warmup_steps));
        if step < warmup {
            return self.peak * (step + 1) as f64 / (warmup + 1) as f64;
        }
        let progress = match total - warmup {
            0 => 1.0,
            length => ((step - warmup) as f64 / length as f64).min(1.0),
        };
        let share = match self.scheduler {
            Scheduler::Cosine => f64::midpoint(1.0, (PI * progress).cos()),
            Scheduler::Linear => 1.0 - progress,
            Scheduler::Constant => return self.peak,
        };
        self.peak * (self.floor + (1.0 - self.floor) * share)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn schedule(scheduler: Scheduler) -> LearningRate {
        LearningRate { peak: 0.5, floor: 0.0, warmup_steps: 3, total_steps: 11, scheduler }
    }

    #[test]
    fn warmup_rises_in_equal_steps_to_the_peak_at_the_joint() {
        for scheduler in [Scheduler::Cosine, Scheduler::Linear, Scheduler::Constant] {
            let s = schedule(scheduler);
            assert_eq!([s.at(0), s.at(1), s.at(2), s.at(3)], [0.125, 0.25, 0.375, 0.5]);
        }
    }

    #[test]
    fn the_shapes_have_their_closed_form_at_start_middle_and_end() {
        let s = schedule(Scheduler::Linear);
        assert_eq!([s.at(3), s.at(5), s.at(7), s.at(10), s.at(11), s.at(99)], [0.5, 0.375, 0.25, 0.0625, 0.0, 0.0]);
        let s = schedule(Scheduler::Cosine);
        assert_eq!([s.at(3), s.at(11), s.at(99)], [0.5, 0.0, 0.0]);
        // cos(π/2) is 6e-17 in f64; cos(π/4) is 1/√2.
        assert!((s.at(7) - 0.25).abs() < 1e-16);
        assert!((s.at(5) - 0.25 * (1.0 + 0.5f64.sqrt())).abs() < 1e-15);
        let s = schedule(Scheduler::Constant);
        assert_eq!([s.at(3), s.at(10), s.at(99)], [0.5; 3]);
    }

    #[test]
    fn the_floor_is_where_the_schedule_ends() {
        let s = LearningRate { floor: 0.1, ..schedule(Scheduler::Cosine) };
        assert_eq!(s.at(3), 0.5);
        assert!((s.at(11) - 0.05).abs() < 1e-17);
    }

    #[test]
    fn no_warmup_starts_at_the_peak_and_all_warmup_never_divides_by_zero() {
        let s = LearningRate { warmup_steps: 0, ..schedule(Scheduler::Linear) };
        assert_eq!(s.at(0), 0.5);
        let s = LearningRate { warmup_steps: 11, ..schedule(Scheduler::Cosine) };
        assert_eq!(s.at(10), 0.5 * 11.0 / 12.0);
        assert_eq!(s.at(11), 0.0);
    }

    proptest! {
        #[test]
        fn rates_are_positive_before_the_end_and_never_rise_after_the_joint(
            warmup in 0u64..50, rest in 1u64..200, floor in 0.0f64..1.0, linear: bool,
        ) {
            let scheduler = if linear { Scheduler::Linear } else { Scheduler::Cosine };
            let s = LearningRate { peak: 1e-3, floor, warmup_steps: warmup, total_steps: warmup + rest, scheduler };
            for step in 0..warmup + rest {
                prop_assert!(s.at(step) > 0.0 && s.at(step) <= s.peak);
                if step >= warmup {
                    prop_assert!(s.at(step + 1) <= s.at(step));
                }
            }
        }
    }
}
