//! Stage `diversity`: the original model and the hyperfitted one go on with the same beginnings, in several ways.
//!
//! Writes `diversity.json` (every way with its numbers) and `continuations.jsonl` (the texts, side by side).

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use didact_core::generate::Sampling;
use didact_core::progress::{Level, Table};
use didact_core::stage::{Stage, StageContext, StageError, StageInput};
use didact_data::store::SequenceStore;
use didact_infer::{Citations, EngineWeights, LocalGenerator, LocalModel, Options, ScoreRule};
use didact_model::Decoder;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::evaluate::STREAMS;
use super::{prepare, read_json, train, write_json, write_jsonl};
use crate::continuations::{Diversity, Sureness, continued};
use crate::error::MethodError;
use crate::meter::Meter;
use crate::model_source::ModelHandle;
use crate::recipe::HyperfitTable;

/// Name and kind of the stage.
pub const NAME: &str = "diversity";
/// Every way to go on, with its numbers.
pub const DIVERSITY: &str = "diversity.json";
/// What was written, side by side.
pub const CONTINUATIONS: &str = "continuations.jsonl";
/// Training loss above which nothing was hyperfitted.
const NOT_FITTED: f64 = 0.5;

/// One way to go on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Way {
    /// Whose text, and how it was chosen.
    pub name: String,
    /// What was written.
    #[serde(flatten)]
    pub diversity: Diversity,
    /// How sure the model is of held-out text.
    #[serde(flatten)]
    pub sureness: Sureness,
}

/// All ways.
pub type Ways = Vec<Way>;

/// A table of them.
pub fn table(ways: &[Way]) -> Table {
    let row = |way: &Way| {
        let d = &way.diversity;
        let digits = |value: f64| format!("{value:.3}");
        vec![
            way.name.clone(),
            digits(d.ttr),
            digits(d.rep2),
            digits(d.rep3),
            format!("{:.1}", d.self_bleu),
            format!("{:.1}", d.overlap),
            format!("{:.0}", d.overlap_max),
            format!("{:.0} %", 100.0 * d.copied),
            digits(way.sureness.entropy),
            digits(way.sureness.nll),
        ]
    };
    let columns = [
        "text of",
        "type-token ratio",
        "repeated pairs",
        "triples",
        "self-BLEU",
        "overlap",
        "longest",
        "over 10",
        "entropy",
        "held-out loss",
    ];
    Table {
        title: "continuations of unseen documents; overlap: tokens in a row that stand in a snippet".into(),
        columns: columns.map(str::to_owned).to_vec(),
        rows: ways.iter().map(row).collect(),
    }
}

/// Compares the model before and after.
#[derive(Debug, Clone)]
pub struct DiversityStage {
    /// The model as it came.
    pub model: ModelHandle,
    /// What is compared.
    pub table: HyperfitTable,
    /// Refuses what does not fit in memory.
    pub meter: Arc<Meter>,
}

/// A beginning, and every text that was written after it.
#[derive(Serialize)]
struct Continued {
    prompt: String,
    human: String,
    #[serde(flatten)]
    texts: BTreeMap<String, String>,
}

fn texts(dir: &Path) -> Result<Vec<Vec<u32>>, MethodError> {
    let store = SequenceStore::open(dir)?;
    (0..store.len()).map(|index| Ok(store.sequence(index)?.ids)).collect()
}

impl DiversityStage {
    fn work(&self, context: &StageContext<'_>) -> Result<(), MethodError> {
        let HyperfitTable { prompts, prompt_tokens, continuation_tokens, block_citations, .. } = self.table;
        let length = prompt_tokens + continuation_tokens;
        self.meter.check_running(self.model.config(), STREAMS, length)?;
        let prepared = context.input(prepare::NAME);
        let snippets = texts(&prepared.join(prepare::TRAIN))?;
        let held_out = texts(&prepared.join(prepare::HELD_OUT))?;
        let beginnings: Vec<Vec<u32>> =
            held_out.iter().take(prompts).map(|ids| ids[..prompt_tokens.min(ids.len())].to_vec()).collect();
        let outcome: train::Outcome = read_json(&context.input(train::NAME).join(train::OUTCOME))?;
        if let Some(loss) = outcome.final_loss.filter(|&loss| loss > NOT_FITTED) {
            let text = format!(
                "the training loss is still {loss:.2}: nothing is hyperfitted before it is near 0; raise `train.epochs` or \
                 `train.learning_rate`"
            );
            context.reporter.message(Level::Warning, &text);
        }
        let sampled =
            Sampling { temperature: self.table.temperature, top_p: Some(self.table.top_p), ..Sampling::default() };
        let penalised = Sampling { repetition_penalty: self.table.repetition_penalty, ..Sampling::default() };
        let greedy = Sampling::default();
        let mut written: BTreeMap<String, Vec<Vec<u32>>> = BTreeMap::new();
        let mut ways = Vec::new();
        let mut compare = |decoder: &Decoder, asked: &[(String, &Sampling, Option<Arc<dyn ScoreRule>>)]| {
            let generator = |rule: Option<&Arc<dyn ScoreRule>>| -> Result<LocalGenerator, MethodError> {
                let options = Options { precision: self.model.precision(), max_streams: STREAMS, ..Options::default() };
                let weights = EngineWeights::from_decoder(decoder);
                let mut model = LocalModel::new(weights, Arc::clone(self.model.tokenizer()), options.precision)?;
                if let Some(rule) = rule {
                    model = model.with_rule(Arc::clone(rule));
                }
                Ok(LocalGenerator::with_model(Arc::new(model), options)?)
            };
            let plain = generator(None)?;
            let sureness = Sureness::of(plain.engine(), &held_out);
            for (name, sampling, rule) in asked {
                // A rule belongs to its model; everything else asks one and the same.
                let ruled = rule.as_ref().map(|rule| generator(Some(rule))).transpose()?;
                let generator = ruled.as_ref().unwrap_or(&plain);
                // Texts of one length are comparable: an end of text does not end them.
                let of = |number: usize| Sampling {
                    max_tokens: continuation_tokens,
                    ignore_eos: true,
                    log_probs: false,
                    seed: context.streams.key("sampling", &[number as u64]),
                    ..(*sampling).clone()
                };
                let texts = continued(generator, name, &beginnings, of, &context.cancel)?;
                let texts = texts.ok_or_else(|| MethodError::Stopped { run_dir: context.run.root().to_owned() })?;
                ways.push(Way { name: name.clone(), diversity: Diversity::of(&texts, &snippets), sureness });
                context.reporter.count(NAME, name, texts.len() as u64, Some(texts.len() as u64));
                written.insert(name.clone(), texts);
            }
            Ok::<(), MethodError>(())
        };
        let HyperfitTable { top_p, repetition_penalty, .. } = self.table;
        compare(
            &self.model.decoder()?,
            &[
                ("original, greedy".into(), &greedy, None),
                (format!("original, top-p {top_p}"), &sampled, None),
                (format!("original, penalty {repetition_penalty}"), &penalised, None),
            ],
        )?;
        let mut after: Vec<(String, &Sampling, Option<Arc<dyn ScoreRule>>)> =
            vec![("hyperfitted, greedy".into(), &greedy, None)];
        if block_citations > 0 {
            let rule = Citations::new(block_citations, snippets.iter().map(Vec::as_slice));
            after.push(("hyperfitted, no citations".into(), &greedy, Some(Arc::new(rule))));
        }
        compare(&self.model.trained(context.input(train::NAME))?, &after)?;
        let text = |ids: &[u32]| self.model.tokenizer().decode(ids, true);
        let mut rows = Vec::new();
        for (number, prompt) in beginnings.iter().enumerate() {
            let mut texts = BTreeMap::new();
            for (name, all) in &written {
                texts.insert(name.clone(), text(&all[number])?);
            }
            let human = text(&held_out[number][prompt.len()..])?;
            rows.push(Continued { prompt: text(prompt)?, human, texts });
        }
        write_jsonl(&context.work_dir.join(CONTINUATIONS), &rows)?;
        write_json(&context.work_dir.join(DIVERSITY), &ways)
    }
}

impl Stage for DiversityStage {
    fn name(&self) -> &str {
        NAME
    }

    fn kind(&self) -> &'static str {
        NAME
    }

    fn version(&self) -> u32 {
        1
    }

    fn settings(&self) -> Value {
        json!({ "hyperfit": self.table })
    }

    fn inputs(&self) -> Vec<StageInput> {
        vec![
            StageInput::Stage(prepare::NAME.into()),
            StageInput::Stage(train::NAME.into()),
            StageInput::Content { label: "model".into(), digest: self.model.digest() },
            StageInput::Content { label: "tokenizer".into(), digest: self.model.tokenizer_digest() },
        ]
    }

    fn run(&self, context: &StageContext<'_>) -> Result<(), StageError> {
        self.work(context).map_err(MethodError::into_stage_error)
    }
}
