//! Stages `evaluate-before` and `evaluate-after`: the same measurements on the same data, before and after training.
//!
//! Writes `metrics.json`, `answers.jsonl` (every judged answer), `samples.json` (answers to show), and a log of questions for
//! each task that the recipe names.

use super::tasks::AskedTasks;
use super::{prepare, read_json, read_jsonl, toolworld, train, write_json, write_jsonl};
use crate::error::MethodError;
use crate::meter::Meter;
use crate::mixed::{Mixed, Reading};
use crate::model_source::ModelHandle;
use crate::recipe::{EvalSettings, GenerateSettings};
use didact_core::example::{Example, SourcedExample};
use didact_core::generate::{Generator, Prompt, Request, Sampling};
use didact_core::message::{Message, Role};
use didact_core::progress::Table;
use didact_core::stage::{Stage, StageContext, StageError, StageInput};
use didact_core::verdict::{Item, Verdict, Verifier};
use didact_data::batch::TrainingSet;
use didact_data::template::RenderOptions;
use didact_infer::{EngineWeights, LocalGenerator, Options};
use didact_model::Decoder;
use didact_train::{PairLogProb, PreferenceTable, TokenScore, evaluate_loss, evaluate_tokens, pair_log_probs};
use didact_verify::{Category, ToolCallVerifier};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

/// Kind of the stage.
pub const KIND: &str = "evaluate";
/// Name of the stage that measures the model as it came.
pub const BEFORE: &str = "evaluate-before";
/// Name of the stage that measures it after training.
pub const AFTER: &str = "evaluate-after";
/// Metric names and values.
pub const METRICS: &str = "metrics.json";
/// Judged answers.
pub const ANSWERS: &str = "answers.jsonl";
/// What the model says of each held-out pair, with a preference loss.
pub const PAIRS: &str = "pairs.json";
/// Answers to show.
pub const SAMPLES: &str = "samples.json";

/// Sequences that are written at a time.
pub(crate) const STREAMS: usize = 32;
/// Words of a document that a continuation is asked for.
const OPENING_WORDS: usize = 24;

/// Metrics by name.
pub type Metrics = BTreeMap<String, f64>;

/// Where requests come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Requests {
    /// The test sets of the stage [`toolworld`], judged.
    Tools,
    /// Held-out rows of the user's data, shown and not judged.
    Rows,
}

/// A judged answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JudgedAnswer {
    /// Which test set.
    pub set: String,
    /// Number within the set, from 1.
    pub index: usize,
    /// How hard the request is.
    pub level: String,
    /// The tool it is about.
    pub tool: String,
    /// The request.
    pub request: String,
    /// The right answer.
    pub expected: String,
    /// The model's answer.
    pub answer: String,
    /// What is wrong with it.
    pub verdict: Verdict,
}

/// An answer to show.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shown {
    /// What was asked.
    pub request: String,
    /// What the data says.
    pub expected: String,
    /// What the model says.
    pub answer: String,
}

/// Measures the model.
#[derive(Debug, Clone)]
pub struct EvaluateStage {
    /// [`BEFORE`] or [`AFTER`].
    pub name: &'static str,
    /// The model as it came.
    pub model: ModelHandle,
    /// What is asked.
    pub requests: Requests,
    /// How answers are made.
    pub generate: GenerateSettings,
    /// How losses are measured.
    pub eval: EvalSettings,
    /// Tokens per row of held-out data.
    pub row_len: usize,
    /// Sources whose held-out documents are measured one by one, or `None` for what the stage [`prepare`] wrote.
    pub mixed: Option<Mixed>,
    /// The loss over pairs of answers, where held-out data are pairs.
    pub preference: Option<PreferenceTable>,
    /// Tasks to ask.
    pub tasks: Arc<AskedTasks>,
    /// Refuses what does not fit in memory.
    pub meter: Arc<Meter>,
}

impl EvaluateStage {
    fn is_after(&self) -> bool {
        self.name == AFTER
    }

    fn work(&self, context: &StageContext<'_>) -> Result<(), MethodError> {
        self.meter.check_running(self.model.config(), STREAMS, self.row_len + self.generate.max_tokens)?;
        let decoder =
            if self.is_after() { self.model.trained(context.input(train::NAME))? } else { self.model.decoder()? };
        let mut metrics = Metrics::new();
        self.losses(context, &decoder, &mut metrics)?;
        let weights = EngineWeights::from_decoder(&decoder);
        drop(decoder);
        let options = Options { precision: self.model.precision(), max_streams: STREAMS, ..Options::default() };
        let generator = LocalGenerator::new(weights, Arc::clone(self.model.tokenizer()), options)?;
        let samples = match &self.requests {
            Requests::Tools => {
                let answers = self.tools(context, &generator, &mut metrics)?;
                write_jsonl(&context.work_dir.join(ANSWERS), &answers)?;
                self.chosen(&answers)
            }
            Requests::Rows => {
                let rows: Vec<SourcedExample> = read_jsonl(&context.input(prepare::NAME).join(prepare::SAMPLE_ROWS))?;
                self.continuations(context, &generator, &rows)?
            }
        };
        write_json(&context.work_dir.join(SAMPLES), &samples)?;
        self.tasks.ask(&generator, &self.eval, context, &mut metrics)?;
        write_json(&context.work_dir.join(METRICS), &metrics)?;
        context.reporter.table(&table(self.name, &metrics));
        Ok(())
    }

    fn losses(&self, context: &StageContext<'_>, decoder: &Decoder, metrics: &mut Metrics) -> Result<(), MethodError> {
        let prepared = context.input(prepare::NAME);
        if let Some(mixed) = &self.mixed {
            self.source_losses(context, mixed, decoder, metrics)?;
        }
        let sets: [(&str, PathBuf, usize); 2] = [
            ("held_out", prepared.join(prepare::HELD_OUT), self.row_len),
            ("plain_text", prepared.join(prepare::PLAIN_TEXT), prepare::PLAIN_TEXT_ROW),
        ];
        for (name, dir, row_len) in sets {
            let row_len = row_len.min(self.model.config().max_position_embeddings);
            let Some(set) = prepare::measuring_set(dir, row_len, self.eval.batch_size)? else { continue };
            if let (Some(table), "held_out") = (&self.preference, name) {
                self.pairs(context, table, decoder, &set, metrics)?;
                continue;
            }
            let loss = evaluate_loss(decoder, &set, 1, &context.cancel)?;
            let Some(loss) = loss else { return Err(stopped(context)) };
            metrics.insert(format!("{name}/loss"), loss.nats_per_token);
            metrics.insert(format!("{name}/perplexity"), loss.perplexity());
            context.reporter.count(self.name, &format!("{name} tokens"), loss.tokens, Some(loss.tokens));
        }
        Ok(())
    }

    /// How the model orders held-out pairs; the model as it came is the reference.
    fn pairs(
        &self,
        context: &StageContext<'_>,
        table: &PreferenceTable,
        decoder: &Decoder,
        set: &TrainingSet,
        metrics: &mut Metrics,
    ) -> Result<(), MethodError> {
        let Some(pairs) = pair_log_probs(decoder, set, 1, &context.cancel)? else { return Err(stopped(context)) };
        write_json(&context.work_dir.join(PAIRS), &pairs)?;
        let reference: Vec<PairLogProb> =
            if self.is_after() { read_json(&context.input(BEFORE).join(PAIRS))? } else { pairs.clone() };
        let (mut count, mut sums) = (0.0, [0.0; 6]);
        for (pair, reference) in pairs.iter().zip(&reference) {
            // A pair that nothing could be trained of lies in no row.
            if pair.chosen.weight == 0.0 || pair.rejected.weight == 0.0 {
                continue;
            }
            count += 1.0;
            let loss = table.of(pair, reference);
            let (chosen, rejected) = (pair.chosen.mean(), pair.rejected.mean());
            let share = |holds: bool| f64::from(u8::from(holds));
            let values = [loss.loss, loss.margin, share(loss.margin > 0.0), share(chosen > rejected), chosen, rejected];
            for (sum, value) in sums.iter_mut().zip(values) {
                *sum += value;
            }
        }
        let names = ["loss", "margin", "accuracy", "likelier_chosen", "chosen_logp", "rejected_logp"];
        for (name, sum) in names.into_iter().zip(sums) {
            // Before training a reference is compared with itself: there is nothing to order by.
            let says_nothing = !self.is_after() && table.needs_reference() && matches!(name, "margin" | "accuracy");
            if count > 0.0 && !says_nothing {
                metrics.insert(format!("held_out_pairs/{name}"), sum / count);
            }
        }
        Ok(())
    }

    /// The loss of each source's held-out documents, their mean, and by documents' lengths.
    fn source_losses(
        &self,
        context: &StageContext<'_>,
        mixed: &Mixed,
        decoder: &Decoder,
        metrics: &mut Metrics,
    ) -> Result<(), MethodError> {
        let opened = mixed.open(context.input(prepare::NAME))?;
        let row_len = match &mixed.reading {
            Reading::Length(table) => table.max,
            _ => self.row_len,
        };
        let row_len = row_len.min(self.model.config().max_position_embeddings);
        let (mut sum, mut sets) = (0.0, 0);
        for (name, set) in mixed.measuring_sets(&opened, row_len, self.eval.batch_size)? {
            let scores = evaluate_tokens(decoder, &set, 1, &context.cancel)?;
            let Some(scores) = scores else { return Err(stopped(context)) };
            let loss = mean(scores.iter().map(|score| score.nll)).unwrap_or_default();
            metrics.insert(format!("{name}/loss"), loss);
            metrics.insert(format!("{name}/perplexity"), loss.exp());
            metrics.insert(format!("{name}/bits_per_byte"), {
                let bytes = self.bytes(&set)?;
                loss * scores.len() as f64 / std::f64::consts::LN_2 / bytes.max(1) as f64
            });
            if let Reading::Length(table) = &mixed.reading {
                let lengths: Vec<u32> = set.sequences().extents()?.into_iter().map(|(length, _)| length).collect();
                let mut from = 0;
                let mut edge = table.min as u32;
                while from <= table.max as u32 {
                    let until = if edge > table.max as u32 { u32::MAX } else { edge };
                    let in_band = |score: &&TokenScore| (from..until).contains(&lengths[score.sequence as usize]);
                    if let Some(loss) = mean(scores.iter().filter(in_band).map(|score| score.nll)) {
                        let name = if until == u32::MAX { format!("{from}-") } else { format!("{from}-{}", until - 1) };
                        metrics.insert(format!("documents of {name} tokens/loss"), loss);
                    }
                    (from, edge) = (edge, edge.saturating_mul(BAND));
                }
            }
            let tokens = scores.len() as u64;
            context.reporter.count(self.name, &format!("{name} tokens"), tokens, Some(tokens));
            sum += loss;
            sets += 1;
        }
        if sets > 1 {
            metrics.insert("mean/loss".into(), sum / f64::from(sets));
        }
        Ok(())
    }

    /// Bytes of the text that a set's tokens stand for.
    fn bytes(&self, set: &TrainingSet) -> Result<u64, MethodError> {
        let sequences = set.sequences();
        let text = |index: usize| -> Result<u64, MethodError> {
            Ok(self.model.tokenizer().decode(&sequences.sequence(index)?.ids, true)?.len() as u64)
        };
        (0..sequences.len()).try_fold(0, |sum, index| Ok(sum + text(index)?))
    }

    /// Asks every request of the test sets and judges the answers.
    fn tools(
        &self,
        context: &StageContext<'_>,
        generator: &LocalGenerator,
        metrics: &mut Metrics,
    ) -> Result<Vec<JudgedAnswer>, MethodError> {
        let mut judged = Vec::new();
        for (set, file) in [("held_out_tools", toolworld::HELD_OUT), ("trained_tools", toolworld::TRAINED)] {
            let rows: Vec<toolworld::Row> = read_jsonl(&context.input(toolworld::NAME).join(file))?;
            let prompts: Vec<String> =
                rows.iter().map(|row| self.prompt(&row.messages)).collect::<Result<_, MethodError>>()?;
            let answers = self.answers(context, generator, set, prompts)?;
            let last = |row: &toolworld::Row| row.messages.last().map(|m| m.content.clone()).unwrap_or_default();
            let items: Vec<Item> = rows
                .iter()
                .enumerate()
                .map(|(i, row)| Item { id: format!("{set}-{}", i + 1), prompt: user(row), reference: json!(last(row)) })
                .collect();
            let pairs: Vec<(&Item, &str)> = items.iter().zip(answers.iter().map(String::as_str)).collect();
            let mut verdicts = vec![None; pairs.len()];
            ToolCallVerifier
                .verify(&pairs, &mut |i, verdict| verdicts[i] = Some(verdict), &context.cancel)
                .expect("comparing text needs nothing that could be missing");
            let first = judged.len();
            for (i, ((row, answer), verdict)) in rows.iter().zip(&answers).zip(verdicts).enumerate() {
                let Some(verdict) = verdict else { return Err(stopped(context)) };
                judged.push(JudgedAnswer {
                    set: set.into(),
                    index: i + 1,
                    level: row.level.clone(),
                    tool: row.tool.clone(),
                    request: user(row),
                    expected: last(row),
                    answer: answer.clone(),
                    verdict,
                });
            }
            count(set, &judged[first..], metrics);
        }
        Ok(judged)
    }

    /// The template's text up to where the answer begins.
    fn prompt(&self, messages: &[Message]) -> Result<String, MethodError> {
        let is_answer = messages.last().is_some_and(|m| m.role == Role::Assistant);
        let asked = &messages[..messages.len() - usize::from(is_answer)];
        let template = self
            .model
            .tokenizer()
            .template()
            .ok_or_else(|| didact_data::DataError::NoTemplate { model: self.model.name().to_owned() })?;
        Ok(template.render(asked, &[], &RenderOptions::default().with_generation_prompt())?)
    }

    /// Greedy answers, in the order of the prompts.
    fn answers(
        &self,
        context: &StageContext<'_>,
        generator: &LocalGenerator,
        set: &str,
        prompts: Vec<String>,
    ) -> Result<Vec<String>, MethodError> {
        let sampling = Sampling { max_tokens: self.generate.max_tokens, ..Sampling::default() };
        let requests: Vec<Request> = prompts
            .into_iter()
            .map(|text| Request { prompt: Prompt::Text(text), sampling: sampling.clone() })
            .collect();
        let total = requests.len() as u64;
        let mut done = 0;
        let mut answers = vec![None; requests.len()];
        generator.generate(
            &requests,
            &mut |index, answer| {
                answers[index] = Some(answer);
                done += 1;
                context.reporter.count(self.name, set, done, Some(total));
            },
            &context.cancel,
        )?;
        if context.cancel.is_cancelled() {
            return Err(stopped(context));
        }
        let mut texts = Vec::with_capacity(answers.len());
        for (index, answer) in answers.into_iter().enumerate() {
            let Some(answer) = answer else { return Err(stopped(context)) };
            let completion =
                answer.map_err(|source| MethodError::Request { set: set.into(), index: index + 1, source })?;
            texts.push(completion.answers.into_iter().next().map(|a| a.text).unwrap_or_default());
        }
        Ok(texts)
    }

    /// The first answers of the held-out set and of the other, in turn.
    fn chosen(&self, answers: &[JudgedAnswer]) -> Vec<Shown> {
        let of = |set: &'static str| answers.iter().filter(move |a| a.set == set);
        let mixed = of("held_out_tools").zip(of("trained_tools")).flat_map(|(a, b)| [a, b]);
        let show = |a: &JudgedAnswer| Shown {
            request: a.request.clone(),
            expected: a.expected.clone(),
            answer: a.answer.clone(),
        };
        mixed.take(self.generate.samples).map(show).collect()
    }

    /// Greedy answers to rows of the user's data.
    fn continuations(
        &self,
        context: &StageContext<'_>,
        generator: &LocalGenerator,
        rows: &[SourcedExample],
    ) -> Result<Vec<Shown>, MethodError> {
        let mut shown = Vec::new();
        let mut prompts = Vec::new();
        for row in rows.iter().take(self.generate.samples) {
            // Of a pair the better answer is what should be said.
            let example = match &row.example {
                Example::Preference { chosen, .. } => chosen.as_ref(),
                example => example,
            };
            let (request, expected, prompt) = match example {
                Example::Preference { .. } => continue,
                Example::Chat { messages, .. } => {
                    let Some(answer) = messages.iter().rposition(|m| m.role == Role::Assistant) else { continue };
                    let prompt = self.prompt(&messages[..=answer])?;
                    let asked = messages[..answer].iter().rev().find(|m| m.role == Role::User);
                    (asked.map(|m| m.content.clone()).unwrap_or_default(), messages[answer].content.clone(), prompt)
                }
                Example::Completion { prompt, completion } => (prompt.clone(), completion.clone(), prompt.clone()),
                Example::Text { text } => {
                    let (opening, rest) = opening(text);
                    (opening.clone(), rest, opening)
                }
            };
            if prompt.trim().is_empty() {
                continue;
            }
            shown.push(Shown { request, expected, answer: String::new() });
            prompts.push(prompt);
        }
        let answers = self.answers(context, generator, "samples", prompts)?;
        for (sample, answer) in shown.iter_mut().zip(answers) {
            sample.answer = answer;
        }
        Ok(shown)
    }
}

/// Length of a band of documents over that of the band before.
const BAND: u32 = 4;

fn mean(values: impl Iterator<Item = f32>) -> Option<f64> {
    let (mut sum, mut count) = (0.0, 0u64);
    for value in values {
        sum += f64::from(value);
        count += 1;
    }
    (count > 0).then(|| sum / count as f64)
}

fn stopped(context: &StageContext<'_>) -> MethodError {
    MethodError::Stopped { run_dir: context.run.root().to_owned() }
}

/// The first words of a document, and as many more.
fn opening(text: &str) -> (String, String) {
    let words: Vec<&str> = text.split_whitespace().take(2 * OPENING_WORDS).collect();
    let (first, rest) = words.split_at(words.len() / 2);
    (first.join(" "), rest.join(" "))
}

fn user(row: &toolworld::Row) -> String {
    row.messages.iter().find(|m| m.role == Role::User).map(|m| m.content.clone()).unwrap_or_default()
}

/// Counts answers by category and by level, as shares of their set.
fn count(set: &str, answers: &[JudgedAnswer], metrics: &mut Metrics) {
    let share = |part: usize, whole: usize| part as f64 / whole.max(1) as f64;
    for category in Category::ALL {
        let part = answers.iter().filter(|a| a.verdict.category == category.as_str()).count();
        metrics.insert(format!("{set}/{}", category.as_str()), share(part, answers.len()));
    }
    for level in ["easy", "medium", "hard"] {
        let of_level: Vec<&JudgedAnswer> = answers.iter().filter(|a| a.level == level).collect();
        if !of_level.is_empty() {
            let right = of_level.iter().filter(|a| a.verdict.is_right()).count();
            metrics.insert(format!("{set}/exact_{level}"), share(right, of_level.len()));
        }
    }
}

fn table(name: &str, metrics: &Metrics) -> Table {
    let rows = metrics.iter().map(|(name, value)| vec![name.clone(), format!("{value:.4}")]).collect();
    Table { title: name.to_owned(), columns: vec!["metric".into(), "value".into()], rows }
}

impl Stage for EvaluateStage {
    fn name(&self) -> &str {
        self.name
    }

    fn kind(&self) -> &'static str {
        KIND
    }

    fn version(&self) -> u32 {
        1
    }

    fn settings(&self) -> Value {
        let mut settings = json!({ "generate": self.generate, "eval": self.eval, "row_len": self.row_len });
        if let Some(mixed) = &self.mixed {
            settings["reading"] = json!(mixed.reading);
        }
        if let Some(preference) = &self.preference {
            settings["preference"] = json!(preference);
        }
        if let Some(digest) = self.tasks.digest() {
            settings["tasks"] = json!(digest);
        }
        settings
    }

    fn inputs(&self) -> Vec<StageInput> {
        let mut inputs = vec![
            StageInput::Stage(prepare::NAME.into()),
            StageInput::Content { label: "model".into(), digest: self.model.digest() },
            StageInput::Content { label: "tokenizer".into(), digest: self.model.tokenizer_digest() },
        ];
        if self.requests == Requests::Tools {
            inputs.push(StageInput::Stage(toolworld::NAME.into()));
        }
        if self.is_after() {
            inputs.push(StageInput::Stage(train::NAME.into()));
            if self.preference.is_some() {
                inputs.push(StageInput::Stage(BEFORE.into()));
            }
        }
        inputs
    }

    fn run(&self, context: &StageContext<'_>) -> Result<(), StageError> {
        self.work(context).map_err(MethodError::into_stage_error)
    }
}
