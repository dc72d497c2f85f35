//! From an example to a sequence with a loss weight per token.
//!
//! Running text is trained in full, a completion after its prompt, a conversation where the assistant speaks. What the
//! assistant says is found out from the template, never by searching for strings: by its `{% generation %}` tags where
//! it has them, else by rendering the conversation up to a turn without it, with the opening that the model is given
//! at inference, and with the turn: what came on top is what the model writes, its end-of-turn token included.

pub mod chain;
mod chat;
mod fields;
mod spans;

use didact_core::example::{Example, SourcedExample};
use didact_core::message::Role;
use didact_core::sequence::Sequence;
use serde::{Deserialize, Serialize};

use crate::error::{DataError, place};
use crate::template::RenderOptions;
use crate::tokenizer::Tokenizer;

/// Which parts of an example are trained, where it does not say so itself by weights on its messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TrainOn {
    /// Every assistant turn, every completion, all running text.
    #[default]
    #[serde(alias = "completion")]
    Assistant,
    /// The last assistant turn of each conversation; otherwise as `Assistant`.
    LastAssistant,
    /// Every token, prompts and templates included.
    All,
}

/// What happens to running text longer than a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LongText {
    /// It becomes several sequences. Each begins with the last token of the one before, so that no target is lost.
    #[default]
    Split,
    /// The rest is cut off, and counted.
    Truncate,
    /// It stays in one piece, for packing that cuts by itself.
    Whole,
}

/// How examples become sequences.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct EncodeOptions {
    /// What is trained.
    pub train_on: TrainOn,
    /// Most targets of a sequence: it has at most one token more. `None` for no limit.
    pub max_seq_len: Option<usize>,
    /// What happens to running text beyond `max_seq_len`. Conversations and completions are cut.
    pub long_text: LongText,
    /// Whether text and completions begin with the beginning-of-sequence token; `None` as the tokenizer says.
    pub add_bos: Option<bool>,
    /// Whether text and completions end with the end-of-sequence token; `None` if the tokenizer has one.
    pub add_eos: Option<bool>,
    /// How conversations are rendered. `add_generation_prompt` is not read.
    pub render: RenderOptions,
}

/// What a token belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TokenRole {
    /// What a system message says.
    System,
    /// What a user message says.
    User,
    /// What the assistant writes, end-of-turn token included.
    Assistant,
    /// What a tool answered.
    Tool,
    /// The prompt of a completion.
    Prompt,
    /// A completion.
    Completion,
    /// Running text.
    Text,
    /// What the chat template puts around the messages.
    Template,
}

impl TokenRole {
    /// The role's name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::Tool => "tool",
            Self::Prompt => "prompt",
            Self::Completion => "completion",
            Self::Text => "text",
            Self::Template => "template",
        }
    }
}

impl From<Role> for TokenRole {
    fn from(role: Role) -> Self {
        match role {
            Role::System => Self::System,
            Role::User => Self::User,
            Role::Assistant => Self::Assistant,
            Role::Tool => Self::Tool,
        }
    }
}

/// Which kind of example a sequence was made from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ExampleKind {
    /// Running text.
    Text,
    /// Prompt and completion.
    Completion,
    /// A conversation.
    Chat,
    /// Two answers to one prompt: segment 0 is the better one with its prompt, segment 1 the worse one with its own copy.
    Preference,
}

/// A sequence, what its tokens are, and what became of the example on the way.
#[derive(Debug, Clone, PartialEq)]
pub struct Encoded {
    /// Ids, weights, segments.
    pub sequence: Sequence,
    /// What each token belongs to.
    pub role: Vec<TokenRole>,
    /// Which kind of example it was.
    pub kind: ExampleKind,
    /// The source, from the example.
    pub source: String,
    /// The file, from the example.
    pub path: String,
    /// The row, from the example.
    pub row: u64,
    /// Number of this sequence, from 0, and how many the example became.
    pub part: (u32, u32),
    /// Tokens cut off at `max_seq_len`.
    pub truncated_tokens: u64,
    /// Loss weight of the tokens cut off.
    pub truncated_weight: f64,
    /// Answers (assistant turns, completions) that lost trained tokens to the cut.
    pub truncated_answers: u32,
    /// Answers that say nothing: no text, no tool call. They are not trained.
    pub empty_answers: u32,
    /// Whether every trained answer that was not cut ends with a trained end-of-turn token; `None` without such answers.
    pub end_of_turn_trained: Option<bool>,
    /// Whether it begins with two beginning-of-sequence tokens.
    pub double_bos: bool,
    /// Tokens that reach over the border of an answer: their first byte decides.
    pub straddling: u32,
}

impl Encoded {
    /// Whether there is anything to train. A sequence without is to be counted and left out.
    pub fn has_targets(&self) -> bool {
        self.sequence.weight.iter().any(|&w| w != 0.0)
    }

    /// Number of tokens with a weight.
    pub fn trained_tokens(&self) -> usize {
        self.sequence.weight.iter().filter(|&&w| w != 0.0).count()
    }

    /// The sequence in pieces of equal weight and role, for people to look at. The pieces' texts together are the whole
    /// text; a character spread over two pieces is shown in the second.
    ///
    /// # Errors
    /// [`DataError::Tokenize`] if the tokens cannot be decoded.
    pub fn pieces(&self, tokenizer: &Tokenizer) -> Result<Vec<Piece>, DataError> {
        let mut decoder = tokenizer.incremental_decoder(false);
        let mut pieces: Vec<Piece> = Vec::new();
        for ((&id, &weight), &role) in self.sequence.ids.iter().zip(&self.sequence.weight).zip(&self.role) {
            let text = decoder.push(tokenizer, id)?;
            match pieces.last_mut() {
                Some(last) if last.weight == weight && last.role == role => {
                    last.text.push_str(&text);
                    last.tokens += 1;
                }
                _ => pieces.push(Piece { text, tokens: 1, weight, role }),
            }
        }
        if let Some(last) = pieces.last_mut() {
            last.text.push_str(&decoder.finish(tokenizer)?);
        }
        Ok(pieces)
    }
}

/// Neighbouring tokens of equal weight and role.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Piece {
    /// Their text, special tokens spelled out.
    pub text: String,
    /// How many they are.
    pub tokens: u64,
    /// The loss weight of each.
    pub weight: f32,
    /// What they belong to.
    pub role: TokenRole,
}

/// Makes sequences of examples. Examples do not influence each other, so any number of threads may share one.
#[derive(Debug, Clone)]
pub struct Encoder<'t> {
    tokenizer: &'t Tokenizer,
    options: EncodeOptions,
    bos: Option<u32>,
    eos: Option<u32>,
    /// Spellings of the added tokens, longest first.
    added: Vec<String>,
}

/// An answer among the tokens of a sequence.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Answer {
    /// Its tokens.
    tokens: std::ops::Range<usize>,
    /// Whether its last token ends the turn; `None` if that does not apply.
    ends: Option<bool>,
}

/// Tokens with weights before the cut.
#[derive(Debug, Default)]
pub(crate) struct Draft {
    ids: Vec<u32>,
    weight: Vec<f32>,
    role: Vec<TokenRole>,
    answers: Vec<Answer>,
    empty_answers: u32,
    straddling: u32,
}

impl<'t> Encoder<'t> {
    /// An encoder for a tokenizer and its chat template.
    ///
    /// # Errors
    /// [`DataError::Setting`] for `max_seq_len = 0`, or for asking for a special token that the tokenizer does not have.
    pub fn new(tokenizer: &'t Tokenizer, options: EncodeOptions) -> Result<Self, DataError> {
        if options.max_seq_len == Some(0) {
            let (found, expected) = ("0".into(), "at least 1");
            return Err(DataError::Setting { key: "max_seq_len", found, expected });
        }
        let expected = "false, since the tokenizer has no such token";
        let bos = match (options.add_bos, tokenizer.bos()) {
            (Some(true), None) => return Err(DataError::Setting { key: "add_bos", found: "true".into(), expected }),
            (Some(false), _) => None,
            (Some(true), bos) => bos,
            (None, bos) => bos.filter(|_| tokenizer.adds_bos()),
        };
        let eos = tokenizer.special_tokens().iter().find(|(role, _)| role == "eos_token");
        let eos = eos.and_then(|(_, text)| tokenizer.token_id(text)).or(tokenizer.eos_ids().first().copied());
        let eos = match (options.add_eos, eos) {
            (Some(true), None) => return Err(DataError::Setting { key: "add_eos", found: "true".into(), expected }),
            (Some(false), _) => None,
            (_, eos) => eos,
        };
        let vocabulary = tokenizer.inner().get_added_vocabulary().get_added_tokens_decoder();
        let mut added: Vec<(u32, String)> = vocabulary.iter().map(|(id, t)| (*id, t.content.clone())).collect();
        added.sort_by(|a, b| b.1.len().cmp(&a.1.len()).then(a.0.cmp(&b.0)));
        let added = added.into_iter().map(|(_, text)| text).filter(|text| !text.is_empty()).collect();
        Ok(Self { tokenizer, options, bos, eos, added })
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &'t Tokenizer {
        self.tokenizer
    }

    /// The options.
    pub fn options(&self) -> &EncodeOptions {
        &self.options
    }

    /// The sequences an example becomes: one, or several for long text and for conversations whose earlier turns look
    /// different once they are over. A sequence in which nothing is left to train is given as well: see
    /// [`Encoded::has_targets`] and [`LossLedger::add`](crate::ledger::LossLedger::add).
    ///
    /// # Errors
    /// [`DataError`] that names file and row: the template fails or leaves out part of the data, or the border of a
    /// turn cannot be found.
    pub fn encode(&self, example: &SourcedExample) -> Result<Vec<Encoded>, DataError> {
        self.encode_to(example, self.limit())
    }

    /// As [`encode`](Self::encode), with at most `limit` tokens a sequence.
    fn encode_to(&self, example: &SourcedExample, limit: usize) -> Result<Vec<Encoded>, DataError> {
        if let Example::Preference { chosen, rejected } = &example.example {
            return self.pair(chosen, rejected, example, limit).map(|pair| vec![pair]);
        }
        let (kind, drafts) = match &example.example {
            Example::Text { text } => (ExampleKind::Text, self.text(text)),
            Example::Completion { prompt, completion } => {
                (ExampleKind::Completion, self.completion(prompt, completion))
            }
            Example::Chat { messages, tools } => (ExampleKind::Chat, self.chat(messages, tools, example)),
            Example::Preference { .. } => (ExampleKind::Preference, Ok(Vec::new())),
        };
        let drafts = drafts.map_err(|e| e.at_row(&example.path, example.row))?;
        let parts = u32::try_from(drafts.len()).unwrap_or(u32::MAX);
        Ok(drafts.into_iter().zip(0..).map(|(draft, i)| self.finish(draft, kind, example, (i, parts), limit)).collect())
    }

    /// Both answers of a pair in one sequence, so that they stay together whatever becomes of the order of sequences. Each
    /// has a segment of its own, sees nothing of the other, and is cut at half of a row; a pair of which one answer has
    /// nothing to train has nothing to train at all.
    fn pair(
        &self,
        chosen: &Example,
        rejected: &Example,
        example: &SourcedExample,
        limit: usize,
    ) -> Result<Encoded, DataError> {
        let side = |answer: &Example| -> Result<Encoded, DataError> {
            let answer = SourcedExample { example: answer.clone(), ..example.clone() };
            let mut sequences = self.encode_to(&answer, limit / 2)?;
            match (sequences.pop(), sequences.is_empty()) {
                (Some(only), true) => Ok(only),
                _ => Err(DataError::Example {
                    place: Self::place(example),
                    cause: "an answer of a pair must be one turn after its prompt".to_owned(),
                }),
            }
        };
        let (mut pair, worse) = (side(chosen)?, side(rejected)?);
        let is_whole = pair.has_targets() && worse.has_targets();
        let (better_tokens, worse_tokens) = (pair.sequence.len(), worse.sequence.len());
        pair.kind = ExampleKind::Preference;
        pair.sequence.ids.extend(worse.sequence.ids);
        pair.sequence.weight.extend(worse.sequence.weight);
        pair.sequence.segment = [vec![0; better_tokens], vec![1; worse_tokens]].concat();
        if !is_whole {
            pair.sequence.weight.fill(0.0);
        }
        pair.role.extend(worse.role);
        pair.truncated_tokens += worse.truncated_tokens;
        pair.truncated_weight += worse.truncated_weight;
        pair.truncated_answers += worse.truncated_answers;
        pair.empty_answers += worse.empty_answers;
        pair.end_of_turn_trained = match (pair.end_of_turn_trained, worse.end_of_turn_trained) {
            (Some(a), Some(b)) => Some(a && b),
            (a, b) => a.or(b),
        };
        pair.double_bos |= worse.double_bos;
        pair.straddling += worse.straddling;
        Ok(pair)
    }

    /// Most tokens of a sequence.
    fn limit(&self) -> usize {
        self.options.max_seq_len.map_or(usize::MAX, |targets| targets.saturating_add(1))
    }

    /// The ids of running text, of any length, with what belongs at its beginning and end.
    ///
    /// # Errors
    /// [`DataError::Tokenize`].
    pub(crate) fn text_ids(&self, text: &str) -> Result<Vec<u32>, DataError> {
        let mut ids = self.tokenizer.encode(text)?;
        self.begin(&mut ids);
        if !text.is_empty() {
            ids.extend(self.eos);
        }
        Ok(ids)
    }

    fn text(&self, text: &str) -> Result<Vec<Draft>, DataError> {
        let ids = self.text_ids(text)?;
        let limit = match self.options.long_text {
            LongText::Split => self.limit(),
            LongText::Truncate | LongText::Whole => usize::MAX,
        };
        let mut drafts = Vec::new();
        let mut start = 0usize;
        loop {
            let end = ids.len().min(start.saturating_add(limit));
            let piece = ids[start..end].to_vec();
            let (weight, role) = (vec![1.0; piece.len()], vec![TokenRole::Text; piece.len()]);
            drafts.push(Draft { ids: piece, weight, role, ..Draft::default() });
            if end == ids.len() {
                break;
            }
            start = end - 1;
        }
        Ok(drafts)
    }

    fn completion(&self, prompt: &str, completion: &str) -> Result<Vec<Draft>, DataError> {
        let mut draft = Draft::default();
        // The prompt is tokenised on its own, as it is at inference. A tokenizer that treats the beginning of a text
        // specially must see both together.
        let (mut ids, completion_ids) = if self.tokenizer.is_byte_level() {
            (self.tokenizer.encode(prompt)?, self.tokenizer.encode(completion)?)
        } else {
            let tokens = self.tokenizer.encode_with_spans(&format!("{prompt}{completion}"))?;
            draft.straddling = u32::from(tokens.iter().any(|t| t.start < prompt.len() && prompt.len() < t.end));
            let border = tokens.iter().position(|t| t.start >= prompt.len()).unwrap_or(tokens.len());
            let ids: Vec<u32> = tokens.iter().map(|t| t.id).collect();
            (ids[..border].to_vec(), ids[border..].to_vec())
        };
        self.begin(&mut ids);
        let border = ids.len();
        let is_empty = completion.trim().is_empty();
        ids.extend(completion_ids);
        ids.extend(self.eos);
        draft.role = vec![TokenRole::Completion; ids.len()];
        draft.role[..border].fill(TokenRole::Prompt);
        draft.weight = vec![if is_empty { 0.0 } else { 1.0 }; ids.len()];
        draft.weight[..border].fill(if self.options.train_on == TrainOn::All { 1.0 } else { 0.0 });
        draft.empty_answers = u32::from(is_empty);
        if !is_empty {
            draft.answers.push(Answer { tokens: border..ids.len(), ends: Some(self.eos.is_some()) });
        }
        draft.ids = ids;
        Ok(vec![draft])
    }

    /// Puts the beginning-of-sequence token in front, unless the text has it already.
    fn begin(&self, ids: &mut Vec<u32>) {
        if let Some(bos) = self.bos
            && ids.first() != Some(&bos)
        {
            ids.insert(0, bos);
        }
    }

    /// Cuts a draft to length and counts what is lost.
    fn finish(
        &self,
        draft: Draft,
        kind: ExampleKind,
        example: &SourcedExample,
        part: (u32, u32),
        limit: usize,
    ) -> Encoded {
        let Draft { mut ids, mut weight, mut role, answers, empty_answers, straddling } = draft;
        let is_whole = kind == ExampleKind::Text && self.options.long_text == LongText::Whole;
        let kept = if is_whole { ids.len() } else { ids.len().min(limit) };
        let truncated_tokens = (ids.len() - kept) as u64;
        let truncated_weight = weight[kept..].iter().map(|&w| f64::from(w)).sum();
        let is_cut = |a: &Answer| {
            a.tokens.end > kept && weight[a.tokens.start.max(kept)..a.tokens.end].iter().any(|&w| w != 0.0)
        };
        let truncated_answers = answers.iter().filter(|a| is_cut(a)).count() as u32;
        let ends: Vec<bool> = answers.iter().filter(|a| !is_cut(a)).filter_map(|a| a.ends).collect();
        let end_of_turn_trained = (!ends.is_empty()).then(|| ends.iter().all(|&e| e));
        ids.truncate(kept);
        weight.truncate(kept);
        role.truncate(kept);
        let bos = self.tokenizer.bos();
        let double_bos = bos.is_some() && ids.len() > 1 && ids[..2].iter().all(|&id| Some(id) == bos);
        Encoded {
            sequence: Sequence::single(ids, weight),
            role,
            kind,
            source: example.source.clone(),
            path: example.path.clone(),
            row: example.row,
            part,
            truncated_tokens,
            truncated_weight,
            truncated_answers,
            empty_answers,
            end_of_turn_trained,
            double_bos,
            straddling,
        }
    }

    fn place(example: &SourcedExample) -> String {
        place(&example.path, example.row)
    }
}

#[cfg(test)]
mod tests;
