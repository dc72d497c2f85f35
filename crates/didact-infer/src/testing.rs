//! A generator for this crate's tests.

use didact_core::cancel::Cancel;
use didact_core::generate::{
    Answer, Completion, FinishReason, GenerateError, Generator, Prompt, Request, RequestError, Sampling, TokenLogProbs,
};
use std::sync::{Mutex, PoisonError};

/// Answers and scores by the length of texts, the last request first, does not like the letter x, and remembers what it was
/// asked.
#[derive(Debug)]
pub(crate) struct Lengths {
    asked: Mutex<Vec<String>>,
    /// Answers after which nothing comes any more.
    most: usize,
}

impl Default for Lengths {
    fn default() -> Self {
        Self::dying_after(usize::MAX)
    }
}

impl Lengths {
    pub(crate) fn dying_after(most: usize) -> Self {
        Self { asked: Mutex::default(), most }
    }

    pub(crate) fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn length(&self, prompt: &Prompt) -> Result<usize, RequestError> {
        let Prompt::Text(text) = prompt else { return Err(RequestError::EmptyPrompt) };
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).push(text.clone());
        if text.contains('x') { Err(RequestError::EmptyPrompt) } else { Ok(text.len()) }
    }
}

impl Generator for Lengths {
    fn generate(
        &self,
        requests: &[Request],
        sink: &mut dyn FnMut(usize, Result<Completion, RequestError>),
        _: &Cancel,
    ) -> Result<(), GenerateError> {
        for (index, request) in requests.iter().enumerate().rev().take(self.most) {
            let answer = |n: usize| Answer {
                text: n.to_string(),
                ids: vec![n as u32],
                log_probs: vec![-0.1],
                top_log_probs: Vec::new(),
                finish_reason: FinishReason::Stop,
            };
            let completion = |n| Completion { answers: vec![answer(n)], prompt_tokens: n };
            sink(index, self.length(&request.prompt).map(completion));
        }
        Ok(())
    }

    fn score(
        &self,
        pairs: &[(Prompt, Prompt)],
        sink: &mut dyn FnMut(usize, Result<TokenLogProbs, RequestError>),
        _: &Cancel,
    ) -> Result<(), GenerateError> {
        for (index, (_, continuation)) in pairs.iter().enumerate() {
            let score = |n| TokenLogProbs { ids: vec![n as u32], log_probs: vec![-(n as f32) / 3.0], is_greedy: true };
            sink(index, self.length(continuation).map(score));
        }
        Ok(())
    }
}

pub(crate) fn request(text: &str) -> Request {
    Request { prompt: Prompt::Text(text.into()), sampling: Sampling::default() }
}

pub(crate) fn pair(prompt: &str, continuation: &str) -> (Prompt, Prompt) {
    (Prompt::Text(prompt.into()), Prompt::Text(continuation.into()))
}
