//! Conversations: what of the rendered text is whose, and what of it is trained.

use std::ops::Range;

use didact_core::example::SourcedExample;
use didact_core::message::{Message, Role, Tool};
use minijinja::Value;

use super::fields::{check_fields, differing};
use super::spans::{common_prefix, common_suffix, straddling, tokens_in};
use super::{Answer, Draft, Encoder, TokenRole, TrainOn};
use crate::error::DataError;
use crate::template::{ChatTemplate, RenderOptions, message_value, tools_value};

/// A conversation ready to be rendered up to any turn.
pub(super) struct Conversation<'a> {
    pub(super) template: &'a ChatTemplate,
    pub(super) messages: &'a [Message],
    pub(super) values: Vec<Value>,
    pub(super) tools: Value,
    /// Without generation prompt.
    pub(super) options: RenderOptions,
    with_prompt: RenderOptions,
}

impl Conversation<'_> {
    /// The first `count` messages as text.
    pub(super) fn render_to(&self, count: usize) -> Result<String, DataError> {
        self.template.render_values(&self.values[..count], &self.tools, &self.options)
    }

    /// What the model sees before it writes message `index`.
    fn render_before(&self, index: usize) -> Result<String, DataError> {
        self.template.render_values(&self.values[..index], &self.tools, &self.with_prompt)
    }

    /// Where the content of message `index` stands in `text`, which renders the first `count` messages: what changes
    /// when it changes. `None` if nothing does.
    fn content_span(&self, text: &str, count: usize, index: usize) -> Option<Range<usize>> {
        let mut changed = self.messages[index].clone();
        changed.content = differing(&changed.content).to_owned();
        let mut values = self.values[..count].to_vec();
        values[index] = message_value(&changed);
        // A template that refuses the other content tells nothing about where this one stands.
        let other = self.template.render_values(&values, &self.tools, &self.options).ok()?;
        if other == text {
            return None;
        }
        let start = common_prefix(text, &other);
        let suffix = common_suffix(text, &other).min(text.len() - start);
        Some(start..text.len() - suffix)
    }
}

/// An assistant turn in a rendered text.
#[derive(Debug, Clone, PartialEq)]
struct Turn {
    /// Which message it is; `None` if the template's tags cannot be matched with messages.
    message: Option<usize>,
    /// What the model writes, in bytes of the text.
    span: Range<usize>,
    weight: f32,
    /// Whether the span is the template's own, by `{% generation %}`.
    is_tagged: bool,
}

impl Encoder<'_> {
    pub(super) fn chat(
        &self,
        messages: &[Message],
        tools: &[Tool],
        example: &SourcedExample,
    ) -> Result<Vec<Draft>, DataError> {
        let wrong = |cause: String| DataError::Example { place: Self::place(example), cause };
        if messages.is_empty() {
            return Err(wrong("`messages` is empty".into()));
        }
        for (i, message) in messages.iter().enumerate() {
            if let Some(weight) = message.weight.filter(|w| !w.is_finite() || *w < 0.0) {
                return Err(wrong(format!("`weight` of message {} is {weight}, expected a number from 0 up", i + 1)));
            }
        }
        let model = || DataError::NoTemplate { model: self.tokenizer.path().display().to_string() };
        let template = self.tokenizer.template().ok_or_else(model)?;
        let mut options = self.options.render.clone();
        options.add_generation_prompt = false;
        let chat = Conversation {
            template,
            messages,
            values: messages.iter().map(message_value).collect(),
            tools: tools_value(tools),
            with_prompt: options.clone().with_generation_prompt(),
            options,
        };
        let full = template.render_marked_values(&chat.values, &chat.tools, &chat.options)?;
        check_fields(&chat, tools, &full.text, example)?;

        if template.has_generation_tag() {
            let turns = self.tagged_turns(&chat, &full.text, full.spans, example)?;
            return Ok(vec![self.draft(&chat, &full.text, messages.len(), &turns, 0..messages.len(), example)?]);
        }
        if let Some(turns) = self.preserved_turns(&chat, &full.text, example)? {
            return Ok(vec![self.draft(&chat, &full.text, messages.len(), &turns, 0..messages.len(), example)?]);
        }
        // Earlier turns look different once they are over. Each is trained as it looked when it was the last.
        let mut drafts = Vec::new();
        let mut since = 0;
        for (index, message) in messages.iter().enumerate() {
            let weight = self.weight_of(messages, index);
            if message.role != Role::Assistant || weight == 0.0 {
                continue;
            }
            let text = chat.render_to(index + 1)?;
            let span = Self::last_turn(&chat, &text, index, example)?;
            let turn = Turn { message: Some(index), span, weight, is_tagged: false };
            drafts.push(self.draft(&chat, &text, index + 1, &[turn], since..index, example)?);
            since = index + 1;
        }
        let is_own = |m: &Message| m.role != Role::Assistant && m.weight.is_some_and(|w| w > 0.0);
        if let Some(i) = messages[since..].iter().position(is_own) {
            return Err(wrong(format!(
                "message {} has a `weight`, but no trained answer follows it, and this template makes one sequence per answer",
                since + i + 1
            )));
        }
        Ok(drafts)
    }

    /// The loss weight of an assistant turn: the message's own, else by the rule.
    fn weight_of(&self, messages: &[Message], index: usize) -> f32 {
        let message = &messages[index];
        if let Some(weight) = message.weight {
            return weight;
        }
        let is_last = || messages[index + 1..].iter().all(|m| m.role != Role::Assistant);
        match self.options.train_on {
            TrainOn::LastAssistant if !is_last() => 0.0,
            _ => 1.0,
        }
    }

    /// Turns as the template's tags mark them.
    fn tagged_turns(
        &self,
        chat: &Conversation<'_>,
        text: &str,
        spans: Vec<Range<usize>>,
        example: &SourcedExample,
    ) -> Result<Vec<Turn>, DataError> {
        let messages = chat.messages;
        let assistants: Vec<usize> = (0..messages.len()).filter(|&i| messages[i].role == Role::Assistant).collect();
        let is_by_rule =
            self.options.train_on != TrainOn::LastAssistant && assistants.iter().all(|&i| messages[i].weight.is_none());
        if spans.len() == assistants.len() {
            let turn = |(span, index): (Range<usize>, usize)| Turn {
                message: Some(index),
                span,
                weight: self.weight_of(messages, index),
                is_tagged: true,
            };
            return Ok(spans.into_iter().zip(assistants).map(turn).collect());
        }
        if is_by_rule {
            let turn = |span| Turn { message: None, span, weight: 1.0, is_tagged: true };
            return Ok(spans.into_iter().map(turn).collect());
        }
        // Several marks in a turn: a mark belongs to the message within whose text it stands.
        let mut turns = Vec::new();
        for span in spans {
            let mut owner = None;
            for &index in &assistants {
                if chat.render_to(index).is_ok_and(|before| text.starts_with(&before) && before.len() <= span.start) {
                    owner = Some(index);
                }
            }
            let index = owner.ok_or_else(|| DataError::Border {
                place: Self::place(example),
                message: assistants.first().map_or(1, |i| i + 1),
                cause: "the template's {% generation %} tags cannot be matched with the assistant's messages".into(),
            })?;
            turns.push(Turn { message: Some(index), span, weight: self.weight_of(messages, index), is_tagged: true });
        }
        Ok(turns)
    }

    /// Turns by growing prefixes: what the text with a turn has on top of the text that the model is given to write it.
    /// `None` if a turn to be trained looks different in the whole conversation from what it was when it was written.
    fn preserved_turns(
        &self,
        chat: &Conversation<'_>,
        text: &str,
        example: &SourcedExample,
    ) -> Result<Option<Vec<Turn>>, DataError> {
        let count = chat.messages.len();
        let mut turns = Vec::new();
        for index in 0..count {
            if chat.messages[index].role != Role::Assistant {
                continue;
            }
            let weight = self.weight_of(chat.messages, index);
            let span = if index + 1 == count {
                Some(Self::last_turn(chat, text, index, example)?)
            } else {
                self.preserved_turn(chat, text, index, example)?
            };
            match span {
                Some(span) => turns.push(Turn { message: Some(index), span, weight, is_tagged: false }),
                None if weight == 0.0 => {}
                None => return Ok(None),
            }
        }
        Ok(Some(turns))
    }

    fn preserved_turn(
        &self,
        chat: &Conversation<'_>,
        text: &str,
        index: usize,
        example: &SourcedExample,
    ) -> Result<Option<Range<usize>>, DataError> {
        let before = Self::before(chat, index, example)?;
        let with = chat.render_to(index + 1)?;
        if !text.starts_with(&before) {
            return Ok(None);
        }
        if text.starts_with(&with) && with.starts_with(&before) {
            return Ok(Some(before.len()..with.len()));
        }
        // The template may close the last turn with more than the others, such as an end-of-text token. If the texts
        // part only after the token that ends the turn, and only such tokens are left, nothing else differs.
        let alike = common_prefix(text, &with);
        if alike <= before.len() {
            return Ok(None);
        }
        let ends = self.added.iter().filter_map(|t| text[before.len()..alike].rfind(t.as_str()).map(|i| i + t.len()));
        let Some(end) = ends.max().map(|end| before.len() + end) else { return Ok(None) };
        Ok(self.is_only_added(&with[end..]).then_some(before.len()..end))
    }

    fn is_only_added(&self, text: &str) -> bool {
        let mut rest = text.to_owned();
        for token in &self.added {
            rest = rest.replace(token.as_str(), "");
        }
        rest.trim().is_empty()
    }

    /// The last turn of a text: everything after what the model is given to write it.
    fn last_turn(
        chat: &Conversation<'_>,
        text: &str,
        index: usize,
        example: &SourcedExample,
    ) -> Result<Range<usize>, DataError> {
        let before = Self::before(chat, index, example)?;
        if text.starts_with(&before) {
            return Ok(before.len()..text.len());
        }
        let alike = common_prefix(text, &before);
        let excerpt = |s: &str| s[alike..].chars().take(24).collect::<String>();
        Err(DataError::Border {
            place: Self::place(example),
            message: index + 1,
            cause: format!(
                "the model is given a text that goes on with {:?} after byte {alike}, the finished turn with {:?}",
                excerpt(&before),
                excerpt(text)
            ),
        })
    }

    fn before(chat: &Conversation<'_>, index: usize, example: &SourcedExample) -> Result<String, DataError> {
        chat.render_before(index).map_err(|e| DataError::Border {
            place: Self::place(example),
            message: index + 1,
            cause: format!("the template does not render the messages before it: {e}"),
        })
    }

    /// Tokens, roles and weights of a text that renders the first `count` messages. Of the other messages, those in
    /// `own_weights` are trained if they carry a weight themselves.
    fn draft(
        &self,
        chat: &Conversation<'_>,
        text: &str,
        count: usize,
        turns: &[Turn],
        own_weights: Range<usize>,
        example: &SourcedExample,
    ) -> Result<Draft, DataError> {
        let tokens = self.tokenizer.encode_with_spans(text)?;
        let mut draft = Draft {
            ids: tokens.iter().map(|t| t.id).collect(),
            weight: vec![0.0; tokens.len()],
            role: vec![TokenRole::Template; tokens.len()],
            ..Draft::default()
        };
        if self.options.train_on == TrainOn::All {
            draft.weight.fill(1.0);
        }
        for (index, message) in chat.messages[..count].iter().enumerate() {
            if message.content.trim().is_empty() || turns.iter().any(|t| t.message == Some(index)) {
                continue;
            }
            let span = chat.content_span(text, count, index);
            let own_weight = message.weight.filter(|_| message.role != Role::Assistant && own_weights.contains(&index));
            match span {
                Some(span) => {
                    let range = tokens_in(&tokens, &span);
                    draft.role[range.clone()].fill(message.role.into());
                    if let Some(weight) = own_weight {
                        draft.straddling += straddling(&tokens, &span);
                        draft.weight[range].fill(weight);
                    }
                }
                // An assistant turn was looked at as the last of its conversation; the template may shorten old ones.
                None if message.role == Role::Assistant => {}
                None => {
                    return Err(DataError::Unrendered {
                        place: Self::place(example),
                        origin: chat.template.origin().to_owned(),
                        field: "content".into(),
                        of: format!(" of message {} ({})", index + 1, message.role.as_str()),
                    });
                }
            }
        }
        for turn in turns {
            let all = tokens_in(&tokens, &turn.span);
            let ends_turn = |i: usize| {
                let id = tokens[i].id;
                self.tokenizer.is_added(id) || self.tokenizer.eos_ids().contains(&id)
            };
            // What follows the end-of-turn token, a line break as a rule, is the template's.
            let end = all.clone().rev().find(|&i| ends_turn(i)).map(|i| i + 1);
            let is_blank_after = |end: usize| {
                let from = tokens.get(end).map_or(turn.span.end, |t| t.start.min(turn.span.end));
                text.get(from..turn.span.end).is_none_or(|rest| rest.trim().is_empty())
            };
            let (range, ends) = match end.filter(|&end| is_blank_after(end)) {
                Some(end) if turn.is_tagged => (all.clone(), end > all.start),
                Some(end) => (all.start..end, true),
                None => (all.clone(), false),
            };
            draft.role[range.clone()].fill(TokenRole::Assistant);
            let trained_end = tokens.get(range.end).map_or(turn.span.end, |t| t.start.min(turn.span.end));
            draft.straddling += straddling(&tokens, &(turn.span.start..trained_end.max(turn.span.start)));
            let is_empty = turn.message.is_some_and(|i| {
                let message = &chat.messages[i];
                let has_reasoning = message.reasoning_content.as_ref().is_some_and(|r| !r.trim().is_empty());
                message.content.trim().is_empty() && message.tool_calls.is_empty() && !has_reasoning
            });
            draft.empty_answers += u32::from(is_empty);
            let weight = if is_empty { 0.0 } else { turn.weight };
            if self.options.train_on != TrainOn::All || is_empty || turn.weight != 1.0 {
                draft.weight[range.clone()].fill(weight);
            }
            if weight != 0.0 {
                draft.answers.push(Answer { tokens: range, ends: Some(ends) });
            }
        }
        Ok(draft)
    }
}
