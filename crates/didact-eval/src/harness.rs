//! Asking a model all questions of some tasks, and measuring what it says.
//!
//! All tasks' requests go to the generator together, so that it can batch over them; equal ones are its business. A prompt that is too long for the model loses whole examples from its front, one by one, which is
//! counted; a question that is too long even by itself is an error.

use crate::error::EvalError;
use crate::measure::{ChoiceScores, Measured, Metric, Response, aggregate, error};
use crate::python;
use crate::task::prompt::{Asked, Draw, PromptOptions};
use crate::task::{Document, OutputType, Paths, Target, Task};
use didact_core::cancel::Cancel;
use didact_core::generate::{Generator, Prompt, Request, RequestError, Sampling, TokenLogProbs};
use didact_core::message::{Message, Role};
use didact_core::progress::Reporter;
use didact_core::seed::Streams;
use didact_core::verdict::Item;
use didact_data::tokenizer::Tokenizer;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// A model to be asked.
#[derive(Clone, Copy)]
pub struct Model<'a> {
    /// Answers.
    pub generator: &'a dyn Generator,
    /// Cuts long texts into windows for perplexities; a server has none.
    pub windows: Option<Windows<'a>>,
}

/// How long texts are cut into windows.
#[derive(Debug, Clone, Copy)]
pub struct Windows<'a> {
    /// The model's tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// Its context in tokens.
    pub context: usize,
    /// The token that stands before a text: the one that begins texts, or else the one that ends them.
    pub prefix: u32,
}

/// How tasks are asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EvalOptions {
    /// Examples before each question; each task's own number if `None`. A task that says 0 stays at that.
    pub shots: Option<usize>,
    /// Which examples.
    pub draw: Draw,
    /// Seed of draws; the harness's is 1234.
    pub seed: u64,
    /// Documents of each task.
    pub limit: Option<usize>,
    /// Whether prompts are rendered by the model's chat template.
    pub is_chat: bool,
}

impl Default for EvalOptions {
    fn default() -> Self {
        Self { shots: None, draw: Draw::Harness, seed: 1234, limit: None, is_chat: false }
    }
}

/// What a task came to.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskResult {
    /// The task.
    pub task: String,
    /// Its name in tables.
    pub alias: String,
    /// Its declaration.
    pub config: Value,
    /// Its version.
    pub version: Value,
    /// Examples before each question.
    pub shots: usize,
    /// Documents it has.
    pub original: usize,
    /// Questions whose prompt lost examples because it was too long, and examples lost.
    pub shortened: (usize, usize),
    /// Questions with two equal choices: what is right cannot be told by one of them.
    pub ambiguous: usize,
    /// What was measured.
    pub scores: Vec<Score>,
    /// Every question.
    pub samples: Vec<Sample>,
}

/// A metric's values.
#[derive(Debug, Clone, PartialEq)]
pub struct Score {
    /// The metric's key: its name, or `pass@k`.
    pub name: String,
    /// The filter.
    pub filter: String,
    /// The metric.
    pub metric: Metric,
    /// Per document.
    pub values: Vec<Measured>,
    /// Over all.
    pub value: f64,
    /// Its standard error.
    pub error: Option<f64>,
}

/// A question and what became of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// Number of the document.
    pub doc: usize,
    /// The document.
    pub document: Document,
    /// The target as the document has it.
    pub target: Value,
    /// What was asked, one entry per request.
    pub arguments: Vec<Vec<Value>>,
    /// What was answered, per request and repeat.
    pub responses: Vec<Vec<Value>>,
    /// The same after each filter, per request.
    pub filtered: Vec<Vec<Value>>,
    /// Why the task's verifier judged as it did.
    pub verdict: Option<String>,
}

/// Asks a model all questions.
///
/// # Errors
/// [`EvalError`]: a document that cannot be asked or answered, a broken generator, [`EvalError::Stopped`].
pub fn evaluate(
    tasks: &[Task],
    model: Model<'_>,
    options: &EvalOptions,
    reporter: &dyn Reporter,
    cancel: &Cancel,
) -> Result<Vec<TaskResult>, EvalError> {
    let mut units = Vec::new();
    let mut shots_of = Vec::new();
    for (number, task) in tasks.iter().enumerate() {
        let own = task.file.num_fewshot;
        let shots = if own == Some(0) { 0 } else { options.shots.or(own).unwrap_or(0) };
        if task.file.output_type == OutputType::LoglikelihoodRolling && shots > 0 {
            let message = "whole texts are scored without examples: `num_fewshot = 0`".to_owned();
            return Err(EvalError::Task { task: task.name().to_owned(), message });
        }
        shots_of.push(shots);
        let prompts = PromptOptions { shots, draw: options.draw, seed: options.seed, is_chat: options.is_chat };
        for asked in task.ask(options.limit, &prompts)? {
            units.push(Unit::new(number, task, asked, model, options)?);
        }
    }
    let (mut scored, mut generated) = (Vec::new(), Vec::new());
    for (number, unit) in units.iter().enumerate() {
        let is_text = tasks[unit.task].file.output_type == OutputType::GenerateUntil;
        if is_text { generated.push(number) } else { scored.push(number) }
    }
    let mut asking = Asking { tasks, units, options, reporter, cancel };
    asking.score(model.generator, scored)?;
    asking.generate(model.generator, generated)?;
    let units = asking.units;
    let mut results = Vec::new();
    let mut rest = units.into_iter().peekable();
    for (number, (task, shots)) in tasks.iter().zip(shots_of).enumerate() {
        let mut own = Vec::new();
        while let Some(unit) = rest.next_if(|unit| unit.task == number) {
            own.push(unit);
        }
        results.push(measure(task, shots, own, options, cancel)?);
    }
    Ok(results)
}

/// A question on its way.
struct Unit {
    /// Number of its task.
    task: usize,
    asked: Asked,
    wants: Vec<Want>,
    /// Examples that were left out.
    dropped: usize,
    replies: Vec<Option<Reply>>,
}

/// A request, in parts that survive the loss of examples.
enum Want {
    /// The continuation of the prompt with this question's number.
    Behind { question: usize, continuation: String },
    /// The continuation of a text of its own.
    After { prompt: String, continuation: String },
    /// Tokens after tokens.
    Ids { prompt: Vec<u32>, continuation: Vec<u32> },
    /// Text.
    Generate(Box<Sampling>),
}

#[derive(Clone)]
enum Reply {
    Score { log_likelihood: f64, tokens: usize, is_greedy: bool },
    Answers(Vec<String>),
}

impl Unit {
    fn new(
        number: usize,
        task: &Task,
        asked: Asked,
        model: Model<'_>,
        options: &EvalOptions,
    ) -> Result<Self, EvalError> {
        let file = &task.file;
        let question = &asked.question;
        let mut wants = Vec::new();
        match file.output_type {
            OutputType::Loglikelihood => {
                let continuation = question.answer().to_owned();
                if continuation.is_empty() {
                    return Err(task.at(asked.doc, "the target is empty"));
                }
                wants.push(Want::Behind { question: 0, continuation });
            }
            OutputType::LoglikelihoodRolling => {
                let windows = model.windows.ok_or_else(|| {
                    task.at(
                        asked.doc,
                        "whole texts are cut into windows by the model's tokenizer, which a server does not give",
                    )
                })?;
                let wrong = |error: didact_data::DataError| task.at(asked.doc, error.to_string());
                let ids = windows.tokenizer.encode(question.answer()).map_err(wrong)?;
                if ids.is_empty() {
                    return Err(task.at(asked.doc, "the text is empty"));
                }
                let pairs = rolling(&ids, windows.prefix, windows.context);
                wants.extend(pairs.into_iter().map(|(prompt, continuation)| Want::Ids { prompt, continuation }));
            }
            OutputType::MultipleChoice => {
                // A template's own text ends where the answer begins.
                let delimiter = if options.is_chat { "" } else { file.target_delimiter.as_str() };
                let several = question.has_several_prompts();
                let count = if several { question.texts.len() } else { question.choices.len() };
                let choice = |i: usize| format!("{delimiter}{}", question.choices[if several { 0 } else { i }]);
                for i in 0..count {
                    wants.push(Want::Behind { question: if several { i } else { 0 }, continuation: choice(i) });
                }
                if task.measures.needs_alone() {
                    wants.extend((0..count).map(|i| Want::After { prompt: String::new(), continuation: choice(i) }));
                }
                if let (true, Some(context)) = (task.measures.needs_context(), &file.answer_context) {
                    wants.extend((0..count).map(|i| Want::After { prompt: context.clone(), continuation: choice(i) }));
                }
            }
            OutputType::GenerateUntil => wants.push(Want::Generate(Box::new(sampling(task, asked.doc, options)?))),
        }
        let replies = vec![None; wants.len()];
        Ok(Self { task: number, asked, wants, dropped: 0, replies })
    }

    fn prompt(&self, question: usize, is_chat: bool) -> Prompt {
        let context = &self.asked.context;
        if !is_chat {
            return Prompt::Text(context.text(question, self.dropped));
        }
        let head = Some(context.head.clone()).filter(|head| !head.is_empty());
        let mut messages: Vec<Message> = head.into_iter().map(|head| Message::new(Role::System, head)).collect();
        messages.push(Message::new(Role::User, context.body(question, self.dropped)));
        Prompt::Messages { messages, tools: Vec::new() }
    }

    /// The pair of a request, none for one that is no pair.
    fn pair(&self, want: &Want, is_chat: bool) -> Option<(Prompt, Prompt)> {
        Some(match want {
            Want::Behind { question, continuation } => {
                (self.prompt(*question, is_chat), Prompt::Text(continuation.clone()))
            }
            Want::After { prompt, continuation } => (Prompt::Text(prompt.clone()), Prompt::Text(continuation.clone())),
            Want::Ids { prompt, continuation } => (Prompt::Ids(prompt.clone()), Prompt::Ids(continuation.clone())),
            Want::Generate(_) => return None,
        })
    }
}

/// How a task's text is generated.
fn sampling(task: &Task, doc: usize, options: &EvalOptions) -> Result<Sampling, EvalError> {
    let file = &task.file;
    let arguments = &file.generation_kwargs;
    let is_sampled = arguments.do_sample.unwrap_or(arguments.temperature.is_some_and(|t| t > 0.0));
    if file.repeats > 1 && !is_sampled {
        let message = "`repeats` of a greedy answer are the same: set `generation_kwargs.do_sample`".to_owned();
        return Err(EvalError::Task { task: task.name().to_owned(), message });
    }
    let until = arguments.until.clone().map_or_else(|| vec![file.fewshot_delimiter.clone()], Paths::into_vec);
    Ok(Sampling {
        temperature: if is_sampled { arguments.temperature.unwrap_or(1.0) } else { 0.0 },
        top_p: arguments.top_p.filter(|_| is_sampled),
        top_k: arguments.top_k.filter(|_| is_sampled),
        max_tokens: arguments.max_gen_toks.unwrap_or(256),
        stop: until.into_iter().filter(|text| !text.is_empty()).collect(),
        n: file.repeats,
        seed: options.seed.wrapping_add(doc as u64),
        log_probs: false,
        ..Sampling::default()
    })
}

/// Windows over a text such that every token is predicted once: the first behind `prefix`, each other one behind the token
/// before it, and the last one with as much before it as fits.
fn rolling(ids: &[u32], prefix: u32, context: usize) -> Vec<(Vec<u32>, Vec<u32>)> {
    let first = ids.len().min(context);
    let mut windows = vec![(vec![prefix], ids[..first].to_vec())];
    let mut predicted = first;
    while predicted < ids.len() {
        let length = (ids.len() - predicted).min(context);
        let end = predicted + length;
        windows.push((ids[end - context - 1..predicted].to_vec(), ids[predicted..end].to_vec()));
        predicted = end;
    }
    windows
}

/// Requests on their way to the generator and back.
struct Asking<'a> {
    tasks: &'a [Task],
    units: Vec<Unit>,
    options: &'a EvalOptions,
    reporter: &'a dyn Reporter,
    cancel: &'a Cancel,
}

/// Where the answer to a request belongs: unit and request.
type Place = (usize, usize);

impl Asking<'_> {
    /// Likelihoods of the units' pairs.
    fn score(&mut self, generator: &dyn Generator, units: Vec<usize>) -> Result<(), EvalError> {
        self.until_short_enough(units, "likelihoods", |asking, units, sink| {
            let (mut places, mut pairs) = (Vec::new(), Vec::new());
            for &unit in units {
                for (request, want) in asking.units[unit].wants.iter().enumerate() {
                    if let Some(pair) = asking.units[unit].pair(want, asking.options.is_chat) {
                        places.push((unit, request));
                        pairs.push(pair);
                    }
                }
            }
            let total = pairs.len();
            let mut sink = |index: usize, scored: Result<TokenLogProbs, RequestError>| {
                sink(places[index], total, scored.map(|scored| score_of(&scored)));
            };
            Ok(generator.score(&pairs, &mut sink, asking.cancel)?)
        })
    }

    /// Answers to the units' prompts.
    fn generate(&mut self, generator: &dyn Generator, units: Vec<usize>) -> Result<(), EvalError> {
        self.until_short_enough(units, "answers", |asking, units, sink| {
            let (mut places, mut requests) = (Vec::new(), Vec::new());
            for &unit in units {
                for (request, want) in asking.units[unit].wants.iter().enumerate() {
                    if let Want::Generate(sampling) = want {
                        places.push((unit, request));
                        let prompt = asking.units[unit].prompt(0, asking.options.is_chat);
                        requests.push(Request { prompt, sampling: (**sampling).clone() });
                    }
                }
            }
            let total = requests.len();
            let mut sink = |index: usize, completion: Result<didact_core::generate::Completion, RequestError>| {
                let texts =
                    completion.map(|c| Reply::Answers(c.answers.into_iter().map(|answer| answer.text).collect()));
                sink(places[index], total, texts);
            };
            Ok(generator.generate(&requests, &mut sink, asking.cancel)?)
        })
    }

    /// Asks; units whose prompt is too long are asked again with an example less, until all are answered.
    fn until_short_enough(
        &mut self,
        mut units: Vec<usize>,
        what: &str,
        ask: impl Fn(&Self, &[usize], &mut dyn FnMut(Place, usize, Result<Reply, RequestError>)) -> Result<(), EvalError>,
    ) -> Result<(), EvalError> {
        while !units.is_empty() {
            let mut replies = Vec::new();
            let mut failed: std::collections::BTreeMap<usize, RequestError> = std::collections::BTreeMap::new();
            let reporter = self.reporter;
            ask(self, &units, &mut |place: Place, total, reply| {
                match reply {
                    Ok(reply) => replies.push((place, reply)),
                    Err(error) => _ = failed.entry(place.0).or_insert(error),
                }
                let done = replies.len() + failed.len();
                if done.is_multiple_of(16) || done == total {
                    reporter.count("eval", what, done as u64, Some(total as u64));
                }
            })?;
            for ((unit, request), reply) in replies {
                self.units[unit].replies[request] = Some(reply);
            }
            if self.cancel.is_cancelled() {
                return Err(EvalError::Stopped);
            }
            for (&number, error) in &failed {
                let unit = &mut self.units[number];
                let is_too_long = matches!(error, RequestError::PromptTooLong { .. });
                if !is_too_long || unit.dropped == unit.asked.context.shots.len() {
                    return Err(self.tasks[unit.task].at(unit.asked.doc, error.to_string()));
                }
                unit.dropped += 1;
                unit.replies.fill(None);
            }
            units = failed.into_keys().collect();
        }
        Ok(())
    }
}

fn score_of(scored: &TokenLogProbs) -> Reply {
    let log_likelihood = scored.log_probs.iter().fold(0.0, |sum, &p| sum + f64::from(p));
    Reply::Score { log_likelihood, tokens: scored.log_probs.len(), is_greedy: scored.is_greedy }
}

/// Measures a task's answered questions.
fn measure(
    task: &Task,
    shots: usize,
    units: Vec<Unit>,
    options: &EvalOptions,
    cancel: &Cancel,
) -> Result<TaskResult, EvalError> {
    let filters: Vec<String> = task.filters.names().map(str::to_owned).collect();
    let names = task.measures.names();
    // Per filter and metric, per document.
    let mut values: Vec<Vec<Vec<Measured>>> = vec![vec![Vec::new(); names.len()]; filters.len()];
    let mut samples = Vec::new();
    let (mut shortened, mut ambiguous) = ((0, 0), 0);
    for unit in units {
        let document = &task.documents[unit.asked.doc];
        shortened.0 += usize::from(unit.dropped > 0);
        shortened.1 += unit.dropped;
        let question = &unit.asked.question;
        let candidates = if question.has_several_prompts() { &question.texts } else { &question.choices };
        ambiguous += usize::from((1..candidates.len()).any(|i| candidates[..i].contains(&candidates[i])));
        let response = response(task, &unit)?;
        let text = question.answer();
        let mut sample = Sample {
            doc: unit.asked.doc,
            document: document.clone(),
            target: task.raw_target(document).map_err(|message| task.at(unit.asked.doc, message))?,
            arguments: unit.wants.iter().map(|want| arguments(&unit, want, options.is_chat)).collect(),
            responses: Vec::new(),
            filtered: vec![Vec::new(); filters.len()],
            verdict: None,
        };
        for (number, own) in values.iter_mut().enumerate() {
            let (response, target) = if let Response::Answers(answers) = &response {
                let filtered = task.filters.apply(number, answers);
                sample.filtered[number] = vec![if filtered.len() == 1 { json!(filtered[0]) } else { json!(filtered) }];
                // The right choice's text is what is to be written.
                let target = match &question.target {
                    Target::Choices(right) => {
                        Target::Texts(right.iter().map(|&i| question.choices[i].clone()).collect())
                    }
                    texts @ Target::Texts(_) => texts.clone(),
                };
                (Response::Answers(filtered), target)
            } else {
                let scores = unit.replies.iter().filter_map(|reply| reply_json(reply.as_ref()));
                sample.filtered[number] = scores.collect();
                (response.clone(), question.target.clone())
            };
            let verified = match (&task.verifier, &response) {
                (Some(verifier), Response::Answers(answers)) if task.measures.needs_verifier() => {
                    let item = Item {
                        id: unit.asked.doc.to_string(),
                        prompt: question.texts[0].clone(),
                        reference: sample.target.clone(),
                    };
                    let answer = answers.first().map_or("", String::as_str);
                    let mut verdict = None;
                    verifier.verify(&[(&item, answer)], &mut |_, found| verdict = Some(found), cancel)?;
                    let verdict = verdict.ok_or(EvalError::Stopped)?;
                    sample.verdict = Some(format!("{}: {}", verdict.category, verdict.reason));
                    verdict.score
                }
                _ => None,
            };
            for (metric, value) in own.iter_mut().zip(task.measures.of(&response, &target, text, verified)) {
                metric.push(value);
            }
        }
        sample.responses = match &response {
            Response::Answers(answers) => vec![answers.iter().map(|answer| json!(answer)).collect()],
            _ => unit.replies.iter().filter_map(|reply| Some(vec![reply_json(reply.as_ref())?])).collect(),
        };
        samples.push(sample);
    }
    let streams = Streams::new(options.seed).child("standard error", &[]);
    let mut scores = Vec::new();
    for (filter, values) in filters.iter().zip(values) {
        for ((name, metric), values) in names.iter().zip(values) {
            let value = aggregate(metric.aggregation, &values.iter().collect::<Vec<_>>());
            let error = error(metric.aggregation, &values, &streams);
            scores.push(Score { name: name.clone(), filter: filter.clone(), metric: *metric, values, value, error });
        }
    }
    Ok(TaskResult {
        task: task.name().to_owned(),
        alias: task.file.task_alias.clone().unwrap_or_else(|| task.name().to_owned()),
        config: serde_json::to_value(&task.file).expect("a declaration is plain data"),
        version: task.file.metadata.get("version").cloned().unwrap_or_else(|| json!("Yaml")),
        shots,
        original: task.documents.len(),
        shortened,
        ambiguous,
        scores,
        samples,
    })
}

/// What a unit's replies come to.
fn response(task: &Task, unit: &Unit) -> Result<Response, EvalError> {
    let missing = || task.at(unit.asked.doc, "it was not answered");
    let score = |index: usize| match unit.replies.get(index).cloned().flatten() {
        Some(Reply::Score { log_likelihood, tokens, is_greedy }) => Ok((log_likelihood, tokens, is_greedy)),
        _ => Err(missing()),
    };
    let range = |from: usize, to: usize| (from..to).map(score).collect::<Result<Vec<_>, _>>();
    Ok(match task.file.output_type {
        OutputType::Loglikelihood => {
            let (log_likelihood, _, is_greedy) = score(0)?;
            Response::Target { log_likelihood, is_greedy }
        }
        OutputType::LoglikelihoodRolling => {
            let windows = range(0, unit.wants.len())?;
            let (log_likelihood, tokens) =
                windows.iter().fold((0.0, 0), |(sum, n), window| (sum + window.0, n + window.1));
            Response::Text { log_likelihood, tokens }
        }
        OutputType::MultipleChoice => {
            let question = &unit.asked.question;
            let n = if question.has_several_prompts() { question.texts.len() } else { question.choices.len() };
            let own = range(0, n)?;
            let alone_from = n;
            let alone_to = n + if task.measures.needs_alone() { n } else { 0 };
            let likelihoods = |scores: Vec<(f64, usize, bool)>| scores.into_iter().map(|score| score.0).collect();
            Response::Choices(ChoiceScores {
                // Where the choices are prompts, their texts are what the harness measures lengths of.
                choices: if question.has_several_prompts() { question.texts.clone() } else { question.choices.clone() },
                conditional: own.iter().map(|score| score.0).collect(),
                tokens: own.iter().map(|score| score.1).collect(),
                is_greedy: own.iter().map(|score| score.2).collect(),
                alone: likelihoods(range(alone_from, alone_to)?),
                behind_context: likelihoods(range(alone_to, unit.wants.len())?),
            })
        }
        OutputType::GenerateUntil => match unit.replies.first().cloned().flatten() {
            Some(Reply::Answers(answers)) => Response::Answers(answers),
            _ => return Err(missing()),
        },
    })
}

fn reply_json(reply: Option<&Reply>) -> Option<Value> {
    match reply {
        Some(Reply::Score { log_likelihood, is_greedy, .. }) => Some(json!([log_likelihood, is_greedy])),
        Some(Reply::Answers(answers)) => Some(json!(answers)),
        None => None,
    }
}

/// A request as the harness logs it.
fn arguments(unit: &Unit, want: &Want, is_chat: bool) -> Vec<Value> {
    let text = |prompt: Prompt| match prompt {
        Prompt::Text(text) => json!(text),
        Prompt::Ids(ids) => json!(ids),
        Prompt::Messages { messages, .. } => json!(messages),
    };
    match want {
        Want::Generate(sampling) => {
            let arguments = json!({
                "until": sampling.stop, "do_sample": sampling.temperature > 0.0, "temperature": sampling.temperature,
                "max_gen_toks": sampling.max_tokens,
            });
            vec![text(unit.prompt(0, is_chat)), arguments]
        }
        Want::Ids { .. } => vec![json!(unit.asked.question.answer())],
        other => unit
            .pair(other, is_chat)
            .map_or_else(Vec::new, |(prompt, continuation)| vec![text(prompt), text(continuation)]),
    }
}

/// A leaf as the harness's logs have it: Python's text of it.
pub(crate) fn stringified(value: &Value) -> Value {
    match value {
        Value::Array(items) => Value::Array(items.iter().map(stringified).collect()),
        other => Value::String(python::str(other)),
    }
}
