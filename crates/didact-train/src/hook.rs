//! What a method may do at named moments of training, so that the loop knows no method.

use didact_core::fault::Classify;
use didact_data::batch::Batch;
use didact_model::Decoder;
use serde_json::Value;

use crate::accumulate::GradientBuffers;

/// A step that is about to be done.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepPlan {
    /// The step, from 0.
    pub step: u64,
    /// Steps in all.
    pub total_steps: u64,
    /// Its learning rate.
    pub learning_rate: f64,
}

/// A step that is done.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepResult {
    /// Steps done, from 1.
    pub step: u64,
    /// Mean loss in nats per unit of weight; `None` when no token had a weight.
    pub loss: Option<f64>,
    /// L2 norm of the gradient before clipping.
    pub grad_norm: f64,
    /// The learning rate.
    pub learning_rate: f64,
    /// Weight of the step's tokens.
    pub weight: f64,
}

/// A hook's result.
pub type HookResult = Result<(), Box<dyn Classify>>;

/// Called by the loop at its named moments. All do nothing unless written.
///
/// Whatever a hook does must follow from its arguments and its own state alone: that is what keeps resuming exact.
pub trait Hook {
    /// Unique among the hooks of a training; its state is saved under it.
    fn name(&self) -> &str;

    /// Before the batches of a step are worked through; they may be changed.
    ///
    /// # Errors
    /// What the hook says; training stops.
    fn before_step(&mut self, _plan: &StepPlan, _decoder: &Decoder, _batches: &mut Vec<Batch>) -> HookResult {
        Ok(())
    }

    /// With the gradients of the mean loss, before they are measured and clipped: the place for projections and
    /// penalties.
    ///
    /// # Errors
    /// What the hook says; training stops.
    fn after_gradients(
        &mut self,
        _plan: &StepPlan,
        _decoder: &Decoder,
        _gradients: &mut GradientBuffers,
    ) -> HookResult {
        Ok(())
    }

    /// After the update.
    ///
    /// # Errors
    /// What the hook says; training stops.
    fn after_step(&mut self, _result: &StepResult, _decoder: &mut Decoder) -> HookResult {
        Ok(())
    }

    /// Before a checkpoint is written.
    ///
    /// # Errors
    /// What the hook says; training stops.
    fn on_checkpoint(&mut self, _step: u64) -> HookResult {
        Ok(())
    }

    /// What the checkpoint keeps for this hook.
    fn state(&self) -> Value {
        Value::Null
    }

    /// Takes up what [`state`](Self::state) gave.
    ///
    /// # Errors
    /// When it is not this hook's state.
    fn restore(&mut self, _state: &Value) -> HookResult {
        Ok(())
    }
}
