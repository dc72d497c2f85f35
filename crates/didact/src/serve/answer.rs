//! What the model wrote, in the shape of the API.

use super::request::{Job, Kind};
use super::tools::{ToolWatch, Tools};
use didact_core::generate::{Answer, FinishReason, Prompt, TokenLogProb};
use didact_core::message::ToolCall;
use didact_data::tokenizer::Tokenizer;
use didact_infer::{Reading, Written};
use serde_json::{Map, Value, json};
use std::ops::Range;

/// In the place of log-probabilities that JSON cannot say.
const LEAST_LOG_PROB: f32 = -9999.0;

/// The frame of every response to one request.
#[derive(Debug)]
pub(super) struct Frame<'a> {
    pub(super) job: &'a Job,
    pub(super) tokenizer: &'a Tokenizer,
    /// Unique among this server's responses.
    pub(super) id: String,
    /// Seconds since 1970.
    pub(super) created: u64,
    /// The model's name in the API.
    pub(super) model: &'a str,
}

/// Log-probabilities of some of an answer's tokens.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Scores {
    ids: Vec<u32>,
    log_probs: Vec<f32>,
    top: Vec<Vec<TokenLogProb>>,
}

impl Scores {
    /// Those of an answer's tokens from number `from` on.
    fn of(answer: &Answer, from: usize) -> Self {
        let Answer { ids, log_probs, top_log_probs, .. } = answer;
        Self::of_written(Written { ids, log_probs, top_log_probs }, from..ids.len())
    }

    /// Those of some of the tokens of an answer that is being written.
    pub(super) fn of_written(written: Written<'_>, tokens: Range<usize>) -> Self {
        Self {
            ids: written.ids.get(tokens.clone()).unwrap_or_default().to_vec(),
            log_probs: written.log_probs.get(tokens.clone()).unwrap_or_default().to_vec(),
            top: written.top_log_probs.get(tokens).unwrap_or_default().to_vec(),
        }
    }

    /// Those of a prompt, of whose first token nothing is known, and of the answer behind it.
    fn of_reading(ids: &[u32], reading: &Reading, answer: Self) -> Self {
        let mut scores = Self { ids: ids.to_vec(), log_probs: vec![f32::NAN], top: Vec::new() };
        scores.log_probs.extend(&reading.log_probs);
        if !reading.top_log_probs.is_empty() || !answer.top.is_empty() {
            scores.top.push(Vec::new());
            scores.top.extend(reading.top_log_probs.iter().cloned());
        }
        scores.extend(answer);
        scores
    }

    fn extend(&mut self, more: Self) {
        self.ids.extend(more.ids);
        self.log_probs.extend(more.log_probs);
        self.top.extend(more.top);
    }
}

impl Frame<'_> {
    fn tools(&self) -> Option<&Tools> {
        if let Kind::Chat { tools } = &self.job.kind { tools.as_ref() } else { None }
    }

    fn is_chat(&self) -> bool {
        matches!(self.job.kind, Kind::Chat { .. })
    }

    /// A response, or one event of a stream.
    fn response(&self, is_event: bool, choices: Value) -> Value {
        let object = match (self.is_chat(), is_event) {
            (true, false) => "chat.completion",
            (true, true) => "chat.completion.chunk",
            (false, _) => "text_completion",
        };
        json!({"id": self.id, "object": object, "created": self.created, "model": self.model,
               "system_fingerprint": concat!("didact-", env!("CARGO_PKG_VERSION")), "choices": choices})
    }

    fn usage(&self, generated: usize) -> Value {
        let prompt = self.job.prompt_tokens;
        json!({"prompt_tokens": prompt, "completion_tokens": generated, "total_tokens": prompt + generated})
    }

    /// All answers in one piece, those of the first prompt first.
    pub(super) fn whole(&self, answers: &[Answer], readings: &[Reading]) -> Value {
        let choices = answers.iter().enumerate();
        let choices = choices.map(|(index, answer)| self.choice(index, answer, &readings[index / self.job.n]));
        let mut response = self.response(false, choices.collect());
        response["usage"] = self.usage(answers.iter().map(|answer| answer.ids.len()).sum());
        response
    }

    fn choice(&self, index: usize, answer: &Answer, reading: &Reading) -> Value {
        let mut scores = Scores::of(answer, 0);
        if self.job.reads.is_some()
            && let Prompt::Ids(ids) = &self.job.requests[index / self.job.n].prompt
        {
            scores = Scores::of_reading(ids, reading, scores);
        }
        let log_probs = if self.job.wants_log_probs { self.log_probs(&scores, &mut 0) } else { Value::Null };
        let mut choice = json!({"index": index, "logprobs": log_probs});
        let mut finish_reason = reason(answer.finish_reason);
        match &self.job.kind {
            Kind::Text { echo } => {
                let begin = echo.as_ref().map_or("", |echo| echo[index / self.job.n].as_str());
                choice["text"] = format!("{begin}{}", answer.text).into();
            }
            Kind::Chat { tools } => {
                let (content, calls) = match tools {
                    Some(tools) => tools.split(&answer.text),
                    None => (answer.text.clone(), Vec::new()),
                };
                let is_silent = content.is_empty() && !calls.is_empty();
                let content = if is_silent { Value::Null } else { content.into() };
                let mut message = json!({"role": "assistant", "content": content, "refusal": null});
                if !calls.is_empty() {
                    message["tool_calls"] = self.calls(index, &calls, false);
                    finish_reason = "tool_calls";
                }
                choice["message"] = message;
            }
        }
        choice["finish_reason"] = finish_reason.into();
        choice
    }

    /// Calls as the API lists them; in events each carries its number.
    fn calls(&self, choice: usize, calls: &[ToolCall], is_event: bool) -> Value {
        let calls = calls.iter().enumerate().map(|(number, call)| {
            let arguments = Value::Object(call.arguments.clone()).to_string();
            let id = format!("call_{}_{choice}_{number}", self.id.rsplit('-').next().unwrap_or_default());
            let mut call =
                json!({"id": id, "type": "function", "function": {"name": call.name, "arguments": arguments}});
            if is_event {
                call["index"] = number.into();
            }
            call
        });
        calls.collect()
    }

    /// A token's text and its bytes, which need not be whole characters.
    fn token(&self, id: u32) -> (String, Vec<u8>) {
        if let Some(bytes) = self.tokenizer.token_bytes(id) {
            return (String::from_utf8_lossy(&bytes).into_owned(), bytes);
        }
        let text = self.tokenizer.decode(&[id], false).unwrap_or_default();
        (text.clone(), text.into_bytes())
    }

    /// Log-probabilities as chats or completions list them; `chars` is the first token's place in the text, in
    /// characters, and afterwards that of the next one.
    fn log_probs(&self, scores: &Scores, chars: &mut usize) -> Value {
        // What is not known is no number, what is impossible is infinite.
        let finite = |p: f32| match p {
            p if p.is_nan() => Value::Null,
            p if p.is_finite() => p.into(),
            _ => LEAST_LOG_PROB.into(),
        };
        if self.is_chat() {
            let entry = |id: u32, log_prob: f32| {
                let (text, bytes) = self.token(id);
                json!({"token": text, "logprob": finite(log_prob), "bytes": bytes})
            };
            let content = scores.ids.iter().zip(&scores.log_probs).enumerate().map(|(i, (&id, &log_prob))| {
                let mut token = entry(id, log_prob);
                let top = scores.top.get(i).into_iter().flatten().map(|top| entry(top.id, top.log_prob));
                token["top_logprobs"] = top.collect();
                token
            });
            return json!({"content": content.collect::<Value>(), "refusal": null});
        }
        let (mut tokens, mut top_log_probs, mut offsets) = (Vec::new(), Vec::new(), Vec::new());
        for (i, &id) in scores.ids.iter().enumerate() {
            let (text, bytes) = self.token(id);
            // A token that begins inside a character stands where that one does.
            let begins_inside = bytes.first().is_some_and(|&byte| is_continuation(byte));
            offsets.push(chars.saturating_sub(usize::from(begins_inside)));
            *chars += bytes.iter().filter(|&&byte| !is_continuation(byte)).count();
            if let Some(top) = scores.top.get(i) {
                let mut map = Map::new();
                for top in top {
                    map.insert(self.token(top.id).0, finite(top.log_prob));
                }
                let own = finite(scores.log_probs[i]);
                top_log_probs.push(if own.is_null() {
                    Value::Null
                } else {
                    map.insert(text.clone(), own);
                    Value::Object(map)
                });
            }
            tokens.push(text);
        }
        let top_log_probs = if top_log_probs.is_empty() { Value::Null } else { top_log_probs.into() };
        json!({"tokens": tokens, "token_logprobs": scores.log_probs.iter().map(|&p| finite(p)).collect::<Vec<_>>(),
               "top_logprobs": top_log_probs, "text_offset": offsets})
    }
}

fn is_continuation(byte: u8) -> bool {
    byte & 0xc0 == 0x80
}

fn reason(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Length => "length",
        FinishReason::Stop | FinishReason::Cancelled => "stop",
    }
}

/// A response as a stream of events.
#[derive(Debug)]
pub(super) struct EventWriter<'a> {
    frame: &'a Frame<'a>,
    choices: Vec<ChoiceWriter<'a>>,
    generated: usize,
}

#[derive(Debug)]
struct ChoiceWriter<'a> {
    is_begun: bool,
    watch: Option<ToolWatch<'a>>,
    /// Of tokens whose text is held back.
    pending: Scores,
    /// Tokens whose scores are known.
    scored: usize,
    /// Characters of the tokens whose scores were sent.
    chars: usize,
}

impl<'a> EventWriter<'a> {
    pub(super) fn new(frame: &'a Frame<'a>) -> Self {
        let choice = || ChoiceWriter {
            is_begun: false,
            watch: frame.tools().map(ToolWatch::new),
            pending: Scores::default(),
            scored: 0,
            chars: 0,
        };
        let choices = (0..frame.job.requests.len() * frame.job.n).map(|_| choice()).collect();
        Self { frame, choices, generated: 0 }
    }

    fn event(&self, index: usize, piece: Value, log_probs: Value, finish_reason: Option<&str>) -> Value {
        let name = if self.frame.is_chat() { "delta" } else { "text" };
        let choice = json!({"index": index, name: piece, "logprobs": log_probs, "finish_reason": finish_reason});
        let mut event = self.frame.response(true, json!([choice]));
        if self.frame.job.includes_usage {
            event["usage"] = Value::Null;
        }
        event
    }

    /// A piece of text, with the scores that are known by now.
    fn piece(&mut self, index: usize, text: &str) -> Value {
        let choice = &mut self.choices[index];
        let scores = std::mem::take(&mut choice.pending);
        let log_probs =
            if scores.ids.is_empty() { Value::Null } else { self.frame.log_probs(&scores, &mut choice.chars) };
        let piece = if self.frame.is_chat() { json!({"content": text}) } else { text.into() };
        self.event(index, piece, log_probs, None)
    }

    /// What comes before an answer's first piece.
    fn begin(&mut self, index: usize, events: &mut Vec<Value>) {
        if std::mem::replace(&mut self.choices[index].is_begun, true) {
            return;
        }
        match &self.frame.job.kind {
            Kind::Chat { .. } => {
                let piece = json!({"role": "assistant", "content": ""});
                events.push(self.event(index, piece, Value::Null, None));
            }
            Kind::Text { echo: Some(echo) } => {
                events.push(self.piece(index, &echo[index / self.frame.job.n]));
            }
            Kind::Text { echo: None } => {}
        }
    }

    /// Events for a piece of text.
    pub(super) fn text(&mut self, index: usize, text: &str, scores: Scores) -> Vec<Value> {
        let mut events = Vec::new();
        self.begin(index, &mut events);
        let choice = &mut self.choices[index];
        choice.scored += scores.ids.len();
        choice.pending.extend(scores);
        let shown = match &mut choice.watch {
            Some(watch) => watch.push(text),
            None => text.to_owned(),
        };
        if !shown.is_empty() {
            events.push(self.piece(index, &shown));
        }
        events
    }

    /// Events for the end of an answer.
    pub(super) fn end(&mut self, index: usize, answer: &Answer) -> Vec<Value> {
        let mut events = Vec::new();
        self.begin(index, &mut events);
        self.generated += answer.ids.len();
        let mut finish_reason = reason(answer.finish_reason);
        let choice = &mut self.choices[index];
        if self.frame.job.wants_log_probs {
            choice.pending.extend(Scores::of(answer, choice.scored));
        }
        if let Some(watch) = self.choices[index].watch.take() {
            let (rest, calls) = watch.finish();
            if !rest.is_empty() {
                events.push(self.piece(index, &rest));
            }
            if !calls.is_empty() {
                finish_reason = "tool_calls";
                let calls = json!({"tool_calls": self.frame.calls(index, &calls, true)});
                events.push(self.event(index, calls, Value::Null, None));
            }
        }
        if !self.choices[index].pending.ids.is_empty() {
            events.push(self.piece(index, ""));
        }
        let piece = if self.frame.is_chat() { json!({}) } else { "".into() };
        events.push(self.event(index, piece, Value::Null, Some(finish_reason)));
        events
    }

    /// The event with the counts of tokens, if it was asked for.
    pub(super) fn usage(&self) -> Option<Value> {
        self.frame.job.includes_usage.then(|| {
            let mut event = self.frame.response(true, json!([]));
            event["usage"] = self.frame.usage(self.generated);
            event
        })
    }
}
