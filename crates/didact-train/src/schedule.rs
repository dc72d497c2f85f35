//! The learning rate as a pure function of the step.

use std::f64::consts::PI;

use crate::config::{DecayType, ScheduleStart, Scheduler, TrainConfig, defaults};
use crate::error::ConfigError;

/// Warm-up along a straight line, then one of the [`Scheduler`]s.
///
/// With `W` warm-up steps out of `S`, step `s` (from 0) has the rate
/// `start + (peak − start) · (s + 1) / (W + 1)` for `s < W`, so that no step is spent at a rate of 0 when the warm-up begins
/// there. From step `W` on, with `low = peak · floor`,
///
/// | scheduler | rate |
/// |---|---|
/// | `cosine`, `linear` | `low + (peak − low) · f(p)`, `p = (s − W) / (S − W)`, `f = (1 + cos πp) / 2` or `1 − p` |
/// | `constant` | `peak` |
/// | `inverse_sqrt` | `low + (peak − low) · √(T / (T + s − W))`, `T` the timescale: `W`, or 10,000 without a warm-up |
/// | `wsd` | `peak`, and over the last `D` steps a decay from there to `low` |
/// | `infinite_*` | over `C` steps a cooldown from `peak` to `plateau`; `plateau`; over the last `D` steps a decay to `low` |
///
/// A decay from `a` to `b`, `q` of the way done, is at `b + (a − b) · g(q)` with `g = 1 − q`, `(1 + cos πq) / 2` or `1 − √q`, or
/// (exponential) at `a · (b / a)^q`. A cooldown, `u` of the way done, is half a cosine, or
/// `peak + (plateau − peak) · h(u) / h(1)` with `h(u) = 1 / √(1 + 10u) − 1`.
///
/// So step `W` has exactly `peak`, and step `S` would have exactly `low`. The Hugging Face schedules differ in the warm-up
/// only: theirs is `s / W`.
///
/// # Reference
/// Hu et al., "MiniCPM", 2024 (`wsd`); Hägele et al., "Scaling Laws and Compute-Optimal Training Beyond Fixed Training
/// Durations", NeurIPS 2024 (`1-sqrt`); Ibrahim et al., "Simple and Scalable Strategies to Continually Pre-train Large Language
/// Models", TMLR 2024 (re-warming, infinite schedules).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LearningRate {
    /// Rate at which the warm-up begins.
    pub start: f64,
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
    /// What the shapes with phases need.
    pub phases: Phases,
}

/// The phases of `wsd`, `inverse_sqrt` and the infinite schedules.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Phases {
    /// Steps of the cooldown, C.
    pub cooldown_steps: u64,
    /// Rate after the cooldown, as a share of the peak.
    pub plateau: f64,
    /// Steps of the decay at the end, D.
    pub decay_steps: u64,
    /// Shape of that decay.
    pub decay: DecayType,
    /// Steps after which `inverse_sqrt` has fallen to 1/√2, T.
    pub timescale: u64,
}

impl Default for Phases {
    fn default() -> Self {
        Self {
            cooldown_steps: 0,
            plateau: defaults::CONSTANT_LR_RATIO,
            decay_steps: 0,
            decay: DecayType::Linear,
            timescale: defaults::TIMESCALE,
        }
    }
}

/// Steepness of the inverse-square-root cooldown.
const STEEPNESS: f64 = 10.0;

impl LearningRate {
    /// The schedule of a configuration, over `total_steps`.
    ///
    /// # Errors
    /// When the training is shorter than the phases asked for.
    pub fn new(config: &TrainConfig, total_steps: u64) -> Result<Self, ConfigError> {
        let scheduler = config.lr_scheduler;
        let begins_constant = config.schedule_start == ScheduleStart::Constant;
        let warmup_steps = if begins_constant { 0 } else { config.resolved_warmup_steps(total_steps) };
        if let Some(found) = config.warmup_steps.filter(|&steps| steps > 0 && steps >= total_steps) {
            return Err(too_long("warmup_steps", found, total_steps));
        }
        let steps = |given: Option<u64>, ratio: Option<f64>, usual: f64| {
            given.unwrap_or_else(|| (ratio.unwrap_or(usual) * total_steps as f64).round() as u64)
        };
        let usual_decay = if scheduler == Scheduler::Wsd { defaults::WSD_DECAY_RATIO } else { defaults::ANNEAL_RATIO };
        let decay_steps =
            if scheduler.has_decay() { steps(config.decay_steps, config.decay_ratio, usual_decay) } else { 0 };
        let cooldown_steps = if scheduler.is_infinite() && !begins_constant {
            steps(config.cooldown_steps, config.cooldown_ratio, defaults::COOLDOWN_RATIO)
        } else {
            0
        };
        let phases = warmup_steps + cooldown_steps + decay_steps;
        if scheduler.has_decay() && phases > total_steps {
            let key = if config.decay_steps.is_some() { "decay_steps" } else { "max_steps" };
            let found = if config.decay_steps.is_some() { decay_steps } else { total_steps };
            return Err(ConfigError::Range {
                key: key.to_owned(),
                found: found.to_string(),
                expected: format!(
                    "room for {warmup_steps} steps of warm-up, {cooldown_steps} of cooldown and {decay_steps} of decay in \
                     {total_steps} steps"
                ),
            });
        }
        let usual = if scheduler.is_infinite() { DecayType::Exponential } else { DecayType::OneMinusSqrt };
        let timescale =
            config.lr_timescale.unwrap_or(if warmup_steps > 0 { warmup_steps } else { defaults::TIMESCALE });
        Ok(Self {
            start: config.warmup_start_lr.unwrap_or(0.0),
            peak: config.learning_rate,
            floor: config.min_lr_ratio,
            warmup_steps,
            total_steps,
            scheduler,
            phases: Phases {
                cooldown_steps,
                plateau: config.constant_lr_ratio.unwrap_or(defaults::CONSTANT_LR_RATIO),
                decay_steps,
                decay: config.decay_type.unwrap_or(usual),
                timescale,
            },
        })
    }

    /// The step before which training that is to go on later branches off: the last one without the final decay. `None`
    /// where there is no such decay, or nothing before it.
    pub fn trunk_step(&self) -> Option<u64> {
        let begin = self.total_steps.saturating_sub(self.phases.decay_steps);
        (self.scheduler.has_decay() && self.phases.decay_steps > 0 && begin > 0).then_some(begin)
    }

    /// The rate of step `step`, from 0. After the last step it stays where the schedule ends.
    pub fn at(&self, step: u64) -> f64 {
        let (warmup, total) = (self.warmup_steps, self.total_steps.max(self.warmup_steps));
        if step < warmup {
            return self.start + (self.peak - self.start) * (step + 1) as f64 / (warmup + 1) as f64;
        }
        let past = step - warmup;
        let fall = |share: f64| self.peak * (self.floor + (1.0 - self.floor) * share);
        match self.scheduler {
            Scheduler::Cosine => fall(half_cosine(way(past, total - warmup))),
            Scheduler::Linear => fall(1.0 - way(past, total - warmup)),
            Scheduler::Constant => self.peak,
            Scheduler::InverseSqrt => {
                let timescale = self.phases.timescale.max(1) as f64;
                fall((timescale / (timescale + past as f64)).sqrt())
            }
            Scheduler::Wsd => self.ended(step, self.peak),
            Scheduler::InfiniteCosine | Scheduler::InfiniteInverseSqrt => {
                let plateau = self.peak * self.phases.plateau;
                if past >= self.phases.cooldown_steps {
                    return self.ended(step, plateau);
                }
                let done = way(past, self.phases.cooldown_steps);
                let share = if self.scheduler == Scheduler::InfiniteCosine {
                    half_cosine(done)
                } else {
                    let h = |u: f64| 1.0 / (1.0 + STEEPNESS * u).sqrt() - 1.0;
                    1.0 - h(done) / h(1.0)
                };
                plateau + (self.peak - plateau) * share
            }
        }
    }

    /// `rate`, or what the final decay makes of it.
    fn ended(&self, step: u64, rate: f64) -> f64 {
        let Phases { decay_steps, decay, .. } = self.phases;
        let begin = self.total_steps.saturating_sub(decay_steps);
        if decay_steps == 0 || step <= begin {
            return rate;
        }
        let done = way(step - begin, decay_steps);
        let low = self.peak * self.floor;
        let share = match decay {
            DecayType::Linear => 1.0 - done,
            DecayType::Cosine => half_cosine(done),
            DecayType::OneMinusSqrt => 1.0 - done.sqrt(),
            DecayType::Exponential => return rate * (low / rate).powf(done),
        };
        low + (rate - low) * share
    }
}

fn too_long(key: &str, found: u64, total_steps: u64) -> ConfigError {
    ConfigError::Range {
        key: key.to_owned(),
        found: found.to_string(),
        expected: format!("less than the {total_steps} steps of the training"),
    }
}

/// The share of `length` that is done, at most 1.
fn way(done: u64, length: u64) -> f64 {
    if length == 0 { 1.0 } else { (done as f64 / length as f64).min(1.0) }
}

/// From 1 to 0, flat at both ends.
fn half_cosine(done: f64) -> f64 {
    f64::midpoint(1.0, (PI * done).cos())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn schedule(scheduler: Scheduler) -> LearningRate {
        LearningRate {
            start: 0.0,
            peak: 0.5,
            floor: 0.0,
            warmup_steps: 3,
            total_steps: 11,
            scheduler,
            phases: Phases::default(),
        }
    }

    fn of(config: &TrainConfig, total_steps: u64) -> LearningRate {
        LearningRate::new(config, total_steps).expect("the phases fit")
    }

    fn infinite(lr_scheduler: Scheduler) -> TrainConfig {
        TrainConfig {
            learning_rate: 3e-4,
            lr_scheduler,
            min_lr_ratio: 0.1,
            warmup_ratio: Some(0.01),
            ..TrainConfig::default()
        }
    }

    const ALL: [Scheduler; 7] = [
        Scheduler::Cosine,
        Scheduler::Linear,
        Scheduler::Constant,
        Scheduler::InverseSqrt,
        Scheduler::Wsd,
        Scheduler::InfiniteCosine,
        Scheduler::InfiniteInverseSqrt,
    ];

    #[test]
    fn warmup_rises_in_equal_steps_to_the_peak_at_the_joint() {
        for scheduler in ALL {
            let phases = Phases { cooldown_steps: 2, ..Phases::default() };
            let s = LearningRate { phases, ..schedule(scheduler) };
            assert_eq!([s.at(0), s.at(1), s.at(2), s.at(3)], [0.125, 0.25, 0.375, 0.5], "{scheduler:?}");
        }
    }

    #[test]
    fn a_warmup_from_the_current_rate_goes_on_from_it() {
        let s = LearningRate { start: 0.1, ..schedule(Scheduler::Cosine) };
        for (step, expected) in [(0, 0.2), (1, 0.3), (2, 0.4), (3, 0.5)] {
            assert!((s.at(step) - expected).abs() < 1e-15);
        }
        let config = TrainConfig { warmup_start_lr: Some(3e-5), warmup_steps: Some(9), ..infinite(Scheduler::Cosine) };
        assert!((of(&config, 100).at(0) - (3e-5 + 2.7e-5)).abs() < 1e-18);
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
        let s =
            LearningRate { phases: Phases { timescale: 3, ..Phases::default() }, ..schedule(Scheduler::InverseSqrt) };
        assert_eq!([s.at(3), s.at(12)], [0.5, 0.25]);
    }

    #[test]
    fn the_floor_is_where_the_schedule_ends() {
        for scheduler in [Scheduler::Cosine, Scheduler::Linear, Scheduler::Wsd, Scheduler::InfiniteCosine] {
            let phases = Phases { decay_steps: 4, ..Phases::default() };
            let s = LearningRate { floor: 0.1, phases, ..schedule(scheduler) };
            assert!((s.at(11) - 0.05).abs() < 1e-16, "{scheduler:?}: {}", s.at(11));
            assert_eq!(s.at(11), s.at(99));
        }
        assert_eq!(LearningRate { floor: 0.1, ..schedule(Scheduler::Cosine) }.at(3), 0.5);
    }

    #[test]
    fn infinite_schedules_have_the_values_of_their_reference() {
        // For 3e-4, 1.65e-4 and 3e-5 over 1,000 steps: 1 % warm-up, 60 % cooldown, 25 % constant.
        let near = |found: f64, expected: f64| {
            assert!((found / expected - 1.0).abs() < 4e-4, "{found:e} against {expected:e}");
        };
        for (scheduler, at_310) in [(Scheduler::InfiniteCosine, 2.325e-4), (Scheduler::InfiniteInverseSqrt, 1.856e-4)] {
            let s = of(&infinite(scheduler), 1000);
            assert_eq!((s.warmup_steps, s.phases.cooldown_steps, s.phases.decay_steps), (10, 600, 140));
            near(s.at(310), at_310);
            assert!((s.at(10) - 3e-4).abs() < 1e-18, "the cooldown begins at the peak");
            for step in [610, 700, 859, 860] {
                assert!((s.at(step) - 1.65e-4).abs() < 1e-18, "{step}");
            }
            near(s.at(900), 1.014e-4);
            near(s.at(1000), 3e-5);
            // No jump at a joint: the largest change there is the last step of the warm-up, a tenth.
            for joint in [10, 610, 860] {
                assert!((s.at(joint) / s.at(joint - 1) - 1.0).abs() < 0.101, "{joint}");
            }
            assert_eq!(s.trunk_step(), Some(860));
        }
    }

    #[test]
    fn a_stage_that_begins_on_the_plateau_changes_nothing_there() {
        let config = TrainConfig {
            schedule_start: ScheduleStart::Constant,
            warmup_ratio: None,
            decay_steps: Some(20),
            ..infinite(Scheduler::InfiniteCosine)
        };
        let s = of(&config, 100);
        for step in [0, 1, 79, 80] {
            assert!((s.at(step) - 1.65e-4).abs() < 1e-18);
        }
        assert!(s.at(81) < 1.65e-4 && (s.at(100) - 3e-5).abs() < 1e-18);
        assert_eq!(s.trunk_step(), Some(80));
    }

    #[test]
    fn wsd_stands_still_and_then_falls_in_its_form() {
        let wsd = |decay_type| {
            let lr_scheduler = Scheduler::Wsd;
            let config =
                TrainConfig { decay_steps: Some(4), decay_type, warmup_steps: Some(2), ..infinite(lr_scheduler) };
            of(&config, 20)
        };
        for (decay_type, quarter) in [
            (None, 0.5),
            (Some(DecayType::OneMinusSqrt), 0.5),
            (Some(DecayType::Linear), 0.75),
            (Some(DecayType::Cosine), 0.25 * (2.0 + 2f64.sqrt())),
        ] {
            let s = wsd(decay_type);
            assert_eq!([s.at(2), s.at(15), s.at(16)], [3e-4; 3]);
            assert!((s.at(17) - (3e-5 + 2.7e-4 * quarter)).abs() < 1e-16, "{decay_type:?}");
            assert!((s.at(20) - 3e-5).abs() < 1e-18);
        }
        let s = wsd(Some(DecayType::Exponential));
        assert!((s.at(18) - 3e-4 * 0.1f64.sqrt()).abs() < 1e-16);
        assert_eq!(s.trunk_step(), Some(16));
        assert_eq!(of(&infinite(Scheduler::Wsd), 100).phases.decay_steps, 10);
        assert_eq!(of(&infinite(Scheduler::Cosine), 100).trunk_step(), None);
    }

    #[test]
    fn phases_that_do_not_fit_are_refused_with_their_lengths() {
        let refused = |config: TrainConfig, total| LearningRate::new(&config, total).expect_err("too long").to_string();
        let config = TrainConfig { warmup_steps: Some(10), ..TrainConfig::default() };
        assert_eq!(refused(config, 10), "`train.warmup_steps` is 10, expected less than the 10 steps of the training");
        let config = TrainConfig {
            warmup_steps: Some(3),
            warmup_ratio: None,
            decay_steps: Some(5),
            ..infinite(Scheduler::InfiniteCosine)
        };
        assert_eq!(
            refused(config, 10),
            "`train.decay_steps` is 5, expected room for 3 steps of warm-up, 6 of cooldown and 5 of decay in 10 steps"
        );
    }

    #[test]
    fn no_warmup_starts_at_the_peak_and_all_warmup_never_divides_by_zero() {
        for scheduler in ALL {
            let s = LearningRate { warmup_steps: 0, ..schedule(scheduler) };
            let expected = if scheduler.is_infinite() { 0.5 * s.phases.plateau } else { 0.5 };
            assert_eq!(s.at(0), expected, "{scheduler:?}");
            for (warmup, total) in [(11, 11), (0, 0), (0, 1), (1, 1)] {
                let s = LearningRate { warmup_steps: warmup, total_steps: total, ..schedule(scheduler) };
                assert!((0..14).all(|step| s.at(step).is_finite()), "{scheduler:?} {warmup} {total}");
            }
        }
        let s = LearningRate { warmup_steps: 11, ..schedule(Scheduler::Cosine) };
        assert_eq!(s.at(10), 0.5 * 11.0 / 12.0);
        assert_eq!(s.at(11), 0.0);
    }

    proptest! {
        #[test]
        fn rates_are_positive_before_the_end_and_never_rise_after_the_joint(
            warmup in 0u64..50, cooldown in 0u64..50, decay in 0u64..50, rest in 1u64..200, floor in 0.001f64..0.5,
            scheduler in prop::sample::select(ALL.to_vec()),
            decay_type in prop::sample::select(vec![
                DecayType::Linear, DecayType::Cosine, DecayType::OneMinusSqrt, DecayType::Exponential,
            ]),
        ) {
            let total_steps = warmup + cooldown + decay + rest;
            let phases =
                Phases { cooldown_steps: cooldown, decay_steps: decay, decay: decay_type, timescale: 7, plateau: 0.55 };
            let s =
                LearningRate { start: 0.0, peak: 1e-3, floor, warmup_steps: warmup, total_steps, scheduler, phases };
            for step in 0..total_steps {
                prop_assert!(s.at(step) > 0.0 && s.at(step) <= s.peak * (1.0 + 1e-12));
                if step >= warmup {
                    prop_assert!(s.at(step + 1) <= s.at(step) * (1.0 + 1e-12));
                }
            }
        }
    }
}
