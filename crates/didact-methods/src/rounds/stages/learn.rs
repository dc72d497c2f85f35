//! What a round trains on, and the training.

use std::path::Path;

use didact_core::example::{Example, SourcedExample};
use didact_core::seed::Streams;
use didact_core::sequence::Sequence;
use didact_core::stage::StageContext;
use didact_data::batch::TrainingSet;
use didact_data::encode::{EncodeOptions, Encoded, Encoder, LongText, TrainOn as On};
use didact_data::packing::Packing;
use didact_data::store::{Origin, SequenceStore, SequenceWriter};
use didact_train::{Objective, RankedGroup, Session, Trainer};
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};

use super::{Lessons, RoundPlan, RoundStage, Step, TRAINING, imitates, input, newest};
use crate::error::MethodError;
use crate::model_source::ModelHandle;
use crate::recipe::{DataSettings, Start, TrainOn};
use crate::rounds::select::{Group, Scored, Source, example};
use crate::rounds::tasks::{TaskSet, dealt, words};
use crate::stages::rows::{Rows, Side};
use crate::stages::{read_json, read_jsonl, train, write_json};

/// Tasks that stand for a round when it is only looked at.
const STAND_INS: usize = 64;
/// The sequences, inside the stage.
const STORE: &str = "sequences";
/// What became of the groups, and their scores in the order of the sequences.
const ENCODED: &str = "encoded.json";

/// The user's rows, drawn to be learned beside a round's answers.
pub struct RowsOfData<'a> {
    /// Where they are.
    pub settings: &'a DataSettings,
    /// Shuffles them.
    pub streams: &'a Streams,
}

impl RowsOfData<'_> {
    /// `count` rows for a round, each as a group of one answer that is right.
    ///
    /// # Errors
    /// As [`Rows::visit`].
    pub fn drawn(&self, count: usize, round: u64) -> Result<Vec<Group>, MethodError> {
        let mut all = Vec::new();
        Rows::new(self.settings, None, *self.streams).visit(&mut |side, row| {
            if side == Side::Train {
                let id = format!("{} row {}", row.path, row.row);
                let answers = vec![Scored { example: row.example, score: 1.0, category: "data".to_owned() }];
                all.push(Group { id, round, source: Source::Data, answers, target: 0 });
            }
            Ok(())
        })?;
        all.shuffle(&mut self.streams.rng("mixed rows", &[round]));
        all.truncate(count);
        Ok(all)
    }
}

/// Groups as sequences: their scores in the order of the store, and what was lost on the way.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(super) struct EncodedGroups {
    groups: Vec<RankedGroup>,
    /// Answers that nothing could be trained of within `train.max_seq_len`.
    answers_dropped: usize,
    /// Groups whose target was one of them.
    groups_dropped: usize,
}

/// Encodes groups into a store, or takes up what an interrupted attempt left.
pub(super) fn encode(
    plan: &RoundPlan,
    groups: Vec<Group>,
    dir: &Path,
) -> Result<(SequenceStore, EncodedGroups), MethodError> {
    let (store, record) = (dir.join(STORE), dir.join(ENCODED));
    if record.is_file() {
        return Ok((SequenceStore::open(store)?, read_json(&record)?));
    }
    let options = |train_on| EncodeOptions {
        train_on,
        max_seq_len: Some(plan.train.max_seq_len),
        long_text: LongText::Truncate,
        ..EncodeOptions::default()
    };
    let of_data = match plan.data.train_on {
        TrainOn::Assistant => On::Assistant,
        TrainOn::LastAssistant => On::LastAssistant,
        TrainOn::All => On::All,
    };
    let tokenizer = plan.model.tokenizer();
    let (answers, rows) =
        (Encoder::new(tokenizer, options(On::LastAssistant))?, Encoder::new(tokenizer, options(of_data))?);
    let mut writer = SequenceWriter::create(&store)?;
    let mut found = EncodedGroups::default();
    for (row, group) in (1..).zip(groups) {
        let origin = Origin { source: &group.id, path: TRAINING, row };
        let sourced =
            |example: Example| SourcedExample { example, source: group.id.clone(), path: TRAINING.to_owned(), row };
        if group.source == Source::Data {
            for scored in &group.answers {
                for encoded in rows.encode(&sourced(scored.example.clone()))?.into_iter().filter(Encoded::has_targets) {
                    writer.push(&Sequence::joined(vec![encoded.sequence]), origin)?;
                    found.groups.push(RankedGroup { scores: vec![1.0], reference: 0 });
                }
            }
            continue;
        }
        let (mut parts, mut scores, mut target) = (Vec::new(), Vec::new(), None);
        for (number, scored) in group.answers.iter().enumerate() {
            let last = answers.encode(&sourced(scored.example.clone()))?.pop();
            let Some(encoded) = last.filter(Encoded::has_targets) else {
                found.answers_dropped += 1;
                continue;
            };
            if number == group.target {
                target = Some(parts.len());
            }
            parts.push(encoded.sequence);
            scores.push(scored.score);
        }
        match target {
            Some(reference) => {
                writer.push(&Sequence::joined(parts), origin)?;
                found.groups.push(RankedGroup { scores, reference });
            }
            None => found.groups_dropped += 1,
        }
    }
    writer.finish()?;
    write_json(&record, &found)?;
    Ok((SequenceStore::open(store)?, found))
}

/// The sequences as a training set: a row for each group, as long as the longest.
pub(super) fn training_set(plan: &RoundPlan, store: SequenceStore, streams: Streams) -> TrainingSet {
    let row_len = (store.summary().longest as usize).max(plan.train.max_seq_len + 1);
    TrainingSet::new(store, row_len, Packing::None, plan.train.batch_size, streams)
}

impl RoundPlan {
    /// A round's training with stand-ins for the answers, which are not known before the round: each task's own answer, or
    /// else its prompt's words. With the number of groups that a round has at most.
    ///
    /// # Errors
    /// When a task cannot be encoded.
    pub fn stand_ins(&self, tasks: &TaskSet, dir: &Path) -> Result<(TrainingSet, usize), MethodError> {
        let per_round = dealt(tasks.train.len(), self.rounds.tasks, 1, &self.streams);
        let answers = if imitates(&self.lessons) { 1 } else { self.rounds.samples + 1 };
        let groups = per_round.iter().take(STAND_INS).filter_map(|&task| {
            let task = &tasks.train[task];
            let answer = task.answer.clone().unwrap_or_else(|| words(&task.prompt));
            let scored = Scored { example: example(&task.prompt, &answer)?, score: 1.0, category: String::new() };
            let answers = vec![scored; answers];
            Some(Group { id: task.id.clone(), round: 1, source: Source::Round, answers, target: 0 })
        });
        let (store, _) = encode(self, groups.collect(), dir)?;
        Ok((training_set(self, store, self.streams), per_round.len()))
    }
}

/// The model to train in a round.
fn beginning(plan: &RoundPlan, context: &StageContext<'_>, round: u64) -> Result<didact_model::Decoder, MethodError> {
    let model: &ModelHandle = &plan.model;
    if plan.rounds.start == Start::Last
        && let Some(dir) = newest(context, round - 1)
    {
        return model.trained(dir);
    }
    let mut decoder = model.decoder()?;
    if let Some(lora) = &plan.train.lora {
        decoder.add_lora(&lora.to_model(), &context.streams)?;
    }
    Ok(decoder)
}

impl RoundStage {
    /// Trains on what was chosen; with nothing chosen, writes nothing, and the model stays as it is.
    pub(super) fn learn(&self, context: &StageContext<'_>, round: u64) -> Result<(), MethodError> {
        let plan = &self.plan;
        let groups: Vec<Group> = read_jsonl(&input(context, Step::Select(round)).join(TRAINING))?;
        let (store, encoded) = encode(plan, groups, &context.work_dir)?;
        if encoded.groups.is_empty() {
            let text = format!("round {round}: nothing was worth learning; the model stays as it is");
            context.reporter.message(didact_core::progress::Level::Warning, &text);
            return Ok(());
        }
        let set = training_set(plan, store, context.streams);
        plan.meter.check_training(plan.model.config(), &train::shape(&plan.train, &set, plan.model.precision()))?;
        let mut decoder = beginning(plan, context, round)?;
        let objective = match &plan.lessons {
            lessons if imitates(lessons) => Objective::NextToken,
            Lessons::Itertl(table) => Objective::Ranking { ranking: &table.ranking, groups: &encoded.groups },
            Lessons::Toolace(_) => Objective::NextToken,
        };
        let trainer = Trainer::new(&mut decoder, &set, Vec::new(), &plan.train, Session::from(context));
        let outcome = trainer.with_objective(objective).run()?;
        train::keep(&plan.model, &plan.meter, context, decoder, &outcome)
    }
}
