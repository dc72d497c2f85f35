//! Samples: a request, the tools its prompt lists, and the right call.

use super::catalogue::{Docs, ParameterSpec, Pool, ToolSpec, World, WorldError};
use super::values::{Phrase, direct, indirect};
use super::vocabulary::{DAYS, OPENINGS};
use didact_core::message::{Message, Role, ToolCall};
use didact_core::seed::Streams;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, RngExt};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeSet;

/// How hard a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// Required parameters only, every value in its own words.
    Easy,
    /// One optional parameter too, at most one value to be derived.
    Medium,
    /// Every parameter, at least two values to be derived, and a sentence that distracts.
    Hard,
}

impl Level {
    /// The name used in files and tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Easy => "easy",
            Self::Medium => "medium",
            Self::Hard => "hard",
        }
    }

    fn needs(self) -> &'static str {
        match self {
            Self::Easy => "a parameter",
            Self::Medium => "it needs an optional parameter",
            Self::Hard => "it needs two parameters with derivable values",
        }
    }
}

/// How samples are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Style {
    /// For models that know English: `book_hotel(city=oslo)`.
    Text,
    /// Every symbol a word of its own, for word-level tokenizers: `book _ hotel ( city = oslo )`.
    Words,
}

/// A parameter that a request supplies.
#[derive(Debug, Clone, PartialEq)]
pub struct Supplied {
    /// Which.
    pub parameter: ParameterSpec,
    /// Its value and how the request words it.
    pub phrase: Phrase,
}

/// One request and its right answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// How hard it is.
    pub level: Level,
    /// Name of the tool the request is about, listed or not.
    pub about: String,
    /// What day it is, an index into [`DAYS`].
    pub today: usize,
    /// The words of the request.
    pub request: String,
    /// The parameters supplied, in the order of the signature.
    pub supplied: Vec<Supplied>,
    /// The right call; `None` when no tool fits.
    pub gold: Option<ToolCall>,
    /// Signatures in the prompt; `None` when prompts list no tools.
    pub listed: Option<Vec<String>>,
}

impl World {
    /// Draws `count` samples about the tools of a pool, all of them with different requests, and different from those in
    /// `seen`, which grows by theirs.
    ///
    /// `set` names the random stream: other sets of the same world are independent. Levels and requests that fit no tool
    /// have exactly their shares, rounded.
    ///
    /// # Errors
    /// [`WorldError::Level`] or [`WorldError::Exhausted`].
    pub fn draw(
        &self,
        streams: &Streams,
        set: &str,
        pool: Pool,
        count: usize,
        seen: &mut BTreeSet<String>,
    ) -> Result<Vec<Sample>, WorldError> {
        let stream = format!("toolworld.{set}");
        let mut rng = streams.rng(&stream, &[]);
        let kinds = self.kinds(count, &mut rng);
        let tools = self.pool(pool);
        let mut decks: Vec<(Level, Deck)> = Vec::new();
        for (level, _) in self.config.levels.shares().into_iter().filter(|(_, share)| *share > 0.0) {
            let able: Vec<usize> = tools.iter().copied().filter(|&t| self.tools()[t].allows(level)).collect();
            if able.is_empty() && kinds.iter().any(|k| k.level == level) {
                return Err(WorldError::Level {
                    pool: pool.as_str(),
                    tools: tools.len(),
                    level: level.as_str(),
                    needs: level.needs(),
                });
            }
            decks.push((level, Deck::new(able)));
        }
        let mut samples = Vec::with_capacity(count);
        for (index, kind) in kinds.iter().enumerate() {
            let (_, deck) =
                decks.iter_mut().find(|(l, _)| *l == kind.level).expect("only levels with a share are drawn");
            let fresh = (0..ATTEMPTS).find_map(|attempt| {
                let mut rng = streams.rng(&stream, &[index as u64, attempt]);
                let sample = self.sample(*kind, deck.deal(&mut rng), pool, &mut rng);
                seen.insert(sample.request.clone()).then_some(sample)
            });
            let Some(sample) = fresh else {
                return Err(WorldError::Exhausted { pool: pool.as_str(), found: samples.len(), wanted: count });
            };
            samples.push(sample);
        }
        Ok(samples)
    }

    /// What each of `count` samples is to be, in random order.
    fn kinds(&self, count: usize, rng: &mut impl Rng) -> Vec<SampleKind> {
        let shares = self.config.levels.shares();
        let total: f64 = shares.iter().map(|(_, share)| share).sum();
        let mut kinds = Vec::with_capacity(count);
        let (mut before, mut sum) = (0, 0.0);
        for (level, share) in shares {
            sum += share;
            let end = (count as f64 * sum / total).round() as usize;
            let none = ((end - before) as f64 * self.config.none_share).round() as usize;
            kinds.extend((before..end).map(|i| SampleKind { level, none: i - before < none }));
            before = end;
        }
        kinds.shuffle(rng);
        kinds
    }

    fn sample(&self, kind: SampleKind, tool: usize, pool: Pool, rng: &mut impl Rng) -> Sample {
        let listing = self.config.docs.as_ref();
        // Without a listing, only a pair that is no tool can be the subject of a request that fits none.
        let stranger = if kind.none && listing.is_none() {
            self.strangers.iter().filter(|t| t.allows(kind.level)).collect::<Vec<_>>().choose(rng).copied()
        } else {
            None
        };
        let subject = stranger.unwrap_or(&self.tools()[tool]);
        let today = rng.random_range(0..DAYS.len());
        let supplied = supply(subject, kind.level, today, rng);
        let request = word(subject, &supplied, kind.level, today, rng);
        let arguments: Map<String, Value> =
            supplied.iter().map(|s| (s.parameter.name.to_owned(), s.phrase.value.clone())).collect();
        let gold = (!kind.none).then(|| ToolCall { id: None, name: subject.name(), arguments });
        let listed = listing.map(|docs| self.listing(docs, tool, kind.none, pool, rng));
        Sample { level: kind.level, about: subject.name(), today, request, supplied, gold, listed }
    }

    /// Signatures of the tool (unless the sample fits none) and its distractors, shuffled.
    fn listing(&self, docs: &Docs, tool: usize, none: bool, pool: Pool, rng: &mut impl Rng) -> Vec<String> {
        let verb = self.tools()[tool].verb;
        // Samples about trained tools never mention a held-out one; samples about held-out tools may list any.
        let mut others: Vec<usize> = (0..self.tools().len())
            .filter(|&t| t != tool && (pool == Pool::HeldOut || !self.tools()[t].held_out))
            .collect();
        others.shuffle(rng);
        let (siblings, strangers): (Vec<usize>, Vec<usize>) =
            others.into_iter().partition(|&t| self.tools()[t].verb == verb);
        let siblings: Vec<usize> = siblings.into_iter().take(docs.siblings).collect();
        // Where there is no tool to list, one more distractor takes its place: the length must not tell.
        let places = docs.distractors + usize::from(none);
        let mut listed: Vec<usize> = siblings.into_iter().chain(strangers).take(places).collect();
        if !none {
            listed.push(tool);
        }
        listed.shuffle(rng);
        listed.into_iter().map(|t| self.tools()[t].signature()).collect()
    }
}

/// How often a request that was seen before is drawn again.
const ATTEMPTS: u64 = 200;

#[derive(Debug, Clone, Copy)]
struct SampleKind {
    level: Level,
    none: bool,
}

/// Deals every item once before any comes again.
struct Deck {
    items: Vec<usize>,
    next: usize,
}

impl Deck {
    fn new(items: Vec<usize>) -> Self {
        Self { next: items.len(), items }
    }

    fn deal(&mut self, rng: &mut impl Rng) -> usize {
        if self.next == self.items.len() {
            self.items.shuffle(rng);
            self.next = 0;
        }
        self.next += 1;
        self.items[self.next - 1]
    }
}

/// Draws the values that a request of that level supplies.
fn supply(tool: &ToolSpec, level: Level, today: usize, rng: &mut impl Rng) -> Vec<Supplied> {
    let mut chosen: Vec<&ParameterSpec> = match level {
        Level::Easy => tool.parameters.iter().filter(|p| p.required).collect(),
        Level::Medium => {
            let optional: Vec<&ParameterSpec> = tool.parameters.iter().filter(|p| !p.required).collect();
            let one = optional.choose(rng).copied();
            tool.parameters.iter().filter(|p| p.required || one == Some(*p)).collect()
        }
        Level::Hard => tool.parameters.iter().collect(),
    };
    let mut derivable: Vec<&str> = chosen.iter().filter(|p| p.kind.is_derivable()).map(|p| p.name).collect();
    derivable.shuffle(rng);
    let derived = match level {
        Level::Easy => 0,
        Level::Medium => rng.random_range(0..=derivable.len().min(1)),
        Level::Hard => rng.random_range(2..=derivable.len()),
    };
    chosen
        .drain(..)
        .map(|parameter| {
            let phrase = if derivable[..derived].contains(&parameter.name) {
                indirect(parameter.kind, today, rng)
            } else {
                direct(parameter.kind, rng)
            };
            Supplied { parameter: parameter.clone(), phrase }
        })
        .collect()
}

/// Words the request.
fn word(tool: &ToolSpec, supplied: &[Supplied], level: Level, today: usize, rng: &mut impl Rng) -> String {
    let pick = |choices: &[&'static str], rng: &mut _| *choices.choose(rng).expect("there is always a choice");
    let mut clauses: Vec<String> =
        supplied.iter().map(|s| pick(&s.parameter.clauses, rng).replace("{}", &s.phrase.text)).collect();
    clauses.shuffle(rng);
    let mut sentences = vec![format!("today is {}", DAYS[today])];
    let opening = pick(&OPENINGS, rng);
    let verb = pick(&tool.verb_phrases, rng);
    let noun = pick(&tool.noun_phrases, rng);
    sentences.push(format!("{opening} {verb} {noun} {}", clauses.join(" ")));
    if level == Level::Hard {
        let kind = supplied.choose(rng).expect("every tool has a parameter").parameter.kind;
        let sentence = kind.distraction().replace("{}", &direct(kind, rng).text);
        let place = rng.random_range(1..=sentences.len());
        sentences.insert(place, sentence);
    }
    sentences.into_iter().map(|s| s + " .").collect::<Vec<_>>().join(" ")
}

impl Style {
    /// The text of a right answer.
    pub fn answer(self, gold: Option<&ToolCall>) -> String {
        let Some(call) = gold else { return "none".into() };
        match self {
            Self::Text => didact_verify::tool_call::render_call(call),
            Self::Words => {
                let value = |v: &Value| v.as_str().map_or_else(|| v.to_string(), str::to_owned);
                let arguments: Vec<String> =
                    call.arguments.iter().map(|(name, v)| format!("{name} = {}", value(v))).collect();
                format!("{} ( {} )", call.name.replace('_', " _ "), arguments.join(" , "))
            }
        }
    }

    /// A model's answer in the notation that [`didact_verify::parse_calls`] reads.
    pub fn readable(self, answer: &str) -> String {
        match self {
            Self::Text => answer.to_owned(),
            Self::Words => answer.replace(" _ ", "_"),
        }
    }

    fn spell(self, text: &str) -> String {
        match self {
            Self::Text => text.replace(" .", "."),
            Self::Words => {
                text.replace('_', " _ ").replace('(', " ( ").replace(')', " )").replace(',', " ,").replace('?', " ?")
            }
        }
    }
}

/// How a prompt lists tools, by their signatures such as `book_hotel(city, price?)`, and asks for a call. What serves a
/// trained model tells it about tools in the same words.
pub fn listing(signatures: &[String]) -> String {
    format!("Answer with one call of these tools, such as f(a=1, b=x), or none:\n{}", signatures.join("\n"))
}

impl Sample {
    /// The conversation: what is listed (system), the request (user), the right answer (assistant).
    pub fn messages(&self, style: Style) -> Vec<Message> {
        let mut messages = Vec::with_capacity(3);
        if let Some(listed) = &self.listed {
            let signatures: Vec<String> = listed.iter().map(|s| style.spell(s)).collect();
            let text = match style {
                Style::Text => listing(&signatures),
                Style::Words => signatures.join(" ; "),
            };
            messages.push(Message::new(Role::System, text));
        }
        messages.push(Message::new(Role::User, style.spell(&self.request)));
        messages.push(Message::new(Role::Assistant, style.answer(self.gold.as_ref())));
        messages
    }

    /// How many values have to be derived.
    pub fn derived_values(&self) -> usize {
        self.supplied.iter().filter(|s| s.phrase.derived).count()
    }
}
