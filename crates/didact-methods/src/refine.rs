//! Adaptive refinement: a model reads its own answer and writes it again, until it stays the same.
//!
//! # Reference
//! Zeng et al., "ToolACE-R: Model-aware Iterative Training and Adaptive Refinement for Tool Learning", arXiv 2504.01400. No
//! feedback comes from outside: what ends it is that the answer does not change. Only the last answer is shown.

use std::collections::{BTreeMap, BTreeSet};

use didact_core::cancel::Cancel;
use didact_core::generate::{Answer, Completion, Generator, Prompt, Request, RequestError, Sampling};
use didact_core::message::{Message, Role, ToolCall};
use didact_verify::parse_calls;
use serde::{Deserialize, Serialize};

use crate::error::MethodError;

/// What a model is asked after its answer, in words of our own.
pub const INSTRUCTION: &str = "Look at your last answer again and check it against what was asked: is it the right function, \
                               are all required arguments there and none that was not asked for, are the values right? If \
                               something is wrong, write the corrected answer. If nothing is wrong, write exactly the same \
                               answer again. Write the answer only.";

/// Why a refinement ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ending {
    /// The answer stayed the same.
    Stable,
    /// An earlier answer came again: the most frequent of them is taken, the earliest of equals.
    Cycle,
    /// The most steps were made.
    Limit,
}

/// A refined answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Refined {
    /// The answer in the end.
    pub answer: Answer,
    /// The first answer, for comparison.
    pub first: Answer,
    /// How often the model was asked, the first answer included.
    pub calls: usize,
    /// Tokens written in all.
    pub tokens: usize,
    /// Tokens of the first prompt.
    pub prompt_tokens: usize,
    /// Why it ended.
    pub ending: Ending,
}

/// How to refine.
pub struct Refinement<'a> {
    /// Steps after the first answer at most; 0 is the first answer alone.
    pub max_steps: usize,
    /// Whether it ends when the answer stays the same; otherwise `max_steps` are made.
    pub adaptive: bool,
    /// The prompt of a step: that of the first answer, by its number, and the last answer.
    pub again: &'a dyn Fn(usize, &Answer) -> Prompt,
    /// What makes two answers the same.
    pub canonical: &'a dyn Fn(&Answer) -> String,
}

/// A prompt with an answer and the request to look at it again. Neither recipes nor commands refine prompts of token ids,
/// which are given back as they are.
pub fn followed(prompt: &Prompt, answer: &str, instruction: &str) -> Prompt {
    match prompt {
        Prompt::Messages { messages, tools } => {
            let mut messages = messages.clone();
            messages.push(Message::new(Role::Assistant, answer));
            messages.push(Message::new(Role::User, instruction));
            Prompt::Messages { messages, tools: tools.clone() }
        }
        Prompt::Text(text) => Prompt::Text(format!("{text}{answer}\n\n{instruction}\n\n")),
        Prompt::Ids(ids) => Prompt::Ids(ids.clone()),
    }
}

/// An answer's calls with sorted arguments, so that order does not matter; of what holds no calls, the text.
pub fn canonical_calls(text: &str) -> String {
    let sorted = |call: &ToolCall| {
        let arguments: BTreeMap<&String, String> =
            call.arguments.iter().map(|(name, value)| (name, value.to_string())).collect();
        format!("{}{arguments:?}", call.name)
    };
    match parse_calls(text) {
        Ok(calls) if !calls.is_empty() => calls.iter().map(sorted).collect::<Vec<_>>().join(";"),
        _ => text.split_whitespace().collect::<Vec<_>>().join(" "),
    }
}

/// One prompt on its way.
struct Way {
    answers: Vec<(String, Answer)>,
    calls: usize,
    tokens: usize,
    prompt_tokens: usize,
    ending: Option<Ending>,
}

impl Way {
    /// Takes an answer; says whether and how that ends it.
    fn take(&mut self, canonical: String, answer: Answer, adaptive: bool) {
        self.calls += 1;
        self.tokens += answer.ids.len().max(answer.log_probs.len());
        if adaptive {
            if self.answers.last().is_some_and(|(last, _)| *last == canonical) {
                self.ending = Some(Ending::Stable);
            } else if self.answers.iter().any(|(known, _)| *known == canonical) {
                self.ending = Some(Ending::Cycle);
            }
        }
        self.answers.push((canonical, answer));
    }

    fn finish(mut self) -> Option<Refined> {
        let first = self.answers.first()?.1.clone();
        let ending = self.ending.unwrap_or(Ending::Limit);
        let chosen = if ending == Ending::Cycle {
            let count = |wanted: &str| self.answers.iter().filter(|(known, _)| known == wanted).count();
            let best = (0..self.answers.len()).reduce(|best, other| {
                if count(&self.answers[other].0) > count(&self.answers[best].0) { other } else { best }
            })?;
            self.answers.swap_remove(best).1
        } else {
            self.answers.pop()?.1
        };
        let Self { calls, tokens, prompt_tokens, .. } = self;
        Some(Refined { answer: chosen, first, calls, tokens, prompt_tokens, ending })
    }
}

/// Answers requests and refines each answer; requests ask for one answer each. `None` where a stop came first.
///
/// # Errors
/// When the generator is broken.
pub fn refine(
    generator: &dyn Generator,
    requests: &[Request],
    refinement: &Refinement<'_>,
    cancel: &Cancel,
) -> Result<Vec<Option<Result<Refined, RequestError>>>, MethodError> {
    let new = || Way { answers: Vec::new(), calls: 0, tokens: 0, prompt_tokens: 0, ending: None };
    let mut ways: Vec<Way> = requests.iter().map(|_| new()).collect();
    let mut failed: BTreeMap<usize, RequestError> = BTreeMap::new();
    let mut lost: BTreeSet<usize> = BTreeSet::new();
    let mut open: Vec<usize> = (0..requests.len()).collect();
    for step in 0..=refinement.max_steps {
        if open.is_empty() {
            break;
        }
        let asked: Vec<Request> = open
            .iter()
            .map(|&index| {
                let Request { prompt, sampling } = &requests[index];
                let prompt = match ways[index].answers.last() {
                    None => prompt.clone(),
                    Some((_, last)) => (refinement.again)(index, last),
                };
                Request { prompt, sampling: Sampling { n: 1, ..sampling.clone() } }
            })
            .collect();
        let answers = generator.generate_all(&asked, cancel)?;
        for (&index, answer) in open.iter().zip(answers) {
            match answer {
                None => {
                    lost.insert(index);
                }
                // A longer prompt may not fit any more: what there is stays.
                Some(Err(_)) if step > 0 => ways[index].ending = Some(Ending::Limit),
                Some(Err(error)) => {
                    failed.insert(index, error);
                }
                Some(Ok(Completion { answers, prompt_tokens })) => match answers.into_iter().next() {
                    Some(answer) if !cancel.is_cancelled() => {
                        let way = &mut ways[index];
                        if step == 0 {
                            way.prompt_tokens = prompt_tokens;
                        }
                        way.take((refinement.canonical)(&answer), answer, refinement.adaptive);
                    }
                    _ => {
                        lost.insert(index);
                    }
                },
            }
        }
        open.retain(|index| ways[*index].ending.is_none() && !failed.contains_key(index) && !lost.contains(index));
    }
    let finished = ways.into_iter().enumerate().map(|(index, way)| {
        if let Some(error) = failed.remove(&index) {
            return Some(Err(error));
        }
        if lost.contains(&index) { None } else { way.finish().map(Ok) }
    });
    Ok(finished.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use didact_core::generate::{FinishReason, GenerateError, TokenLogProbs};
    use std::sync::Mutex;

    /// Says, for each prompt, what its script says next.
    struct Scripted {
        scripts: Mutex<BTreeMap<String, Vec<&'static str>>>,
    }

    impl Generator for Scripted {
        fn generate(
            &self,
            requests: &[Request],
            sink: &mut dyn FnMut(usize, Result<Completion, RequestError>),
            _: &Cancel,
        ) -> Result<(), GenerateError> {
            for (index, request) in requests.iter().enumerate() {
                let Prompt::Text(text) = &request.prompt else { continue };
                let name = text.chars().take(1).collect::<String>();
                let mut scripts = self.scripts.lock().expect("nobody panicked");
                let script = scripts.get_mut(&name).expect("there is a script");
                let text = if script.is_empty() { "end".to_owned() } else { script.remove(0).to_owned() };
                let finish_reason = FinishReason::Stop;
                let answer = Answer { text, ids: vec![1, 2], log_probs: vec![], top_log_probs: vec![], finish_reason };
                sink(index, Ok(Completion { answers: vec![answer], prompt_tokens: 3 }));
            }
            Ok(())
        }

        fn score(
            &self,
            _: &[(Prompt, Prompt)],
            _: &mut dyn FnMut(usize, Result<TokenLogProbs, RequestError>),
            _: &Cancel,
        ) -> Result<(), GenerateError> {
            Ok(())
        }
    }

    fn refined(scripts: &[(&str, &[&'static str])], max_steps: usize, adaptive: bool) -> Vec<(String, usize, Ending)> {
        let generator = Scripted {
            scripts: Mutex::new(scripts.iter().map(|(name, script)| ((*name).to_owned(), script.to_vec())).collect()),
        };
        let requests: Vec<Request> = scripts
            .iter()
            .map(|(name, _)| Request { prompt: Prompt::Text((*name).to_owned()), sampling: Sampling::default() })
            .collect();
        let again = |index: usize, last: &Answer| followed(&requests[index].prompt, &last.text, "again");
        let canonical = |answer: &Answer| canonical_calls(&answer.text);
        let refinement = Refinement { max_steps, adaptive, again: &again, canonical: &canonical };
        let found = refine(&generator, &requests, &refinement, &Cancel::new()).expect("works");
        let all = found.into_iter().map(|way| way.expect("nobody stops it").expect("is answered"));
        all.map(|way| {
            assert_eq!(way.tokens, 2 * way.calls);
            (way.answer.text, way.calls, way.ending)
        })
        .collect()
    }

    #[test]
    fn it_ends_when_the_answer_stays_or_comes_again() {
        let scripts: [(&str, &[&'static str]); 4] = [
            ("a", &["f(x=1)", "f(x=2)", "f(x=2)"]),
            ("b", &["f(x=1, y=2)", "f(y=2, x=1)"]),
            ("c", &["one", "two", "one"]),
            ("d", &["1", "2", "3", "4", "5", "6", "7"]),
        ];
        let found = refined(&scripts, 5, true);
        let expected = [
            ("f(x=2)", 3, Ending::Stable),
            ("f(y=2, x=1)", 2, Ending::Stable),
            ("one", 3, Ending::Cycle),
            ("6", 6, Ending::Limit),
        ];
        assert_eq!(found, expected.map(|(text, calls, ending)| (text.to_owned(), calls, ending)));
    }

    #[test]
    fn no_steps_are_the_first_answer_and_a_fixed_number_goes_on_regardless() {
        assert_eq!(refined(&[("a", &["x", "x", "x"])], 0, true), [("x".to_owned(), 1, Ending::Limit)]);
        assert_eq!(refined(&[("a", &["x", "x", "y"])], 2, false), [("y".to_owned(), 3, Ending::Limit)]);
    }
}
