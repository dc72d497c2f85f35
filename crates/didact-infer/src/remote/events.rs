//! Answers that come as a stream of events, put together to what they would have been in one piece.

use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// Why a stream is of no use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum StreamError {
    /// It ended too early.
    #[error("the event stream broke off after {events} events")]
    Half { events: usize },
    /// An event is not JSON.
    #[error("event {event} is no JSON object: {found}")]
    Garbage { event: usize, found: String },
    /// The server reports an error in it.
    #[error("the server broke the stream off: {message}")]
    Failed { message: String },
}

/// An answer in pieces.
#[derive(Debug, Default)]
pub(super) struct Stream {
    /// Bytes of a line that is not complete yet.
    line: Vec<u8>,
    /// Lines of `data:` of an event that is not complete yet.
    data: Vec<String>,
    events: usize,
    is_done: bool,
    choices: BTreeMap<u64, Choice>,
    usage: Option<Value>,
    /// The first event, for what all of them say (`id`, `model`).
    head: Map<String, Value>,
}

#[derive(Debug, Default)]
struct Choice {
    /// `text` of completions.
    text: Option<String>,
    /// `delta.content` of chats.
    content: Option<String>,
    calls: BTreeMap<u64, Call>,
    /// Lists of `logprobs`, by name.
    log_probs: Map<String, Value>,
    finish_reason: Value,
}

#[derive(Debug, Default)]
struct Call {
    id: String,
    name: String,
    arguments: String,
}

impl Stream {
    /// Takes the next bytes, cut anywhere.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<(), StreamError> {
        for &byte in bytes {
            if byte != b'\n' {
                self.line.push(byte);
                continue;
            }
            let line = String::from_utf8_lossy(&self.line).trim_end_matches('\r').to_owned();
            self.line.clear();
            if line.is_empty() {
                self.end_event()?;
            } else if let Some(data) = line.strip_prefix("data:") {
                self.data.push(data.strip_prefix(' ').unwrap_or(data).to_owned());
            }
        }
        Ok(())
    }

    /// The answer in one piece, when the connection has ended.
    pub(super) fn finish(mut self) -> Result<Value, StreamError> {
        if !self.line.is_empty() {
            // The last line may come without its end.
            self.push(b"\n")?;
        }
        self.end_event()?;
        // Not every server says `[DONE]`.
        let is_whole = !self.choices.is_empty() && self.choices.values().all(|choice| !choice.finish_reason.is_null());
        if !self.is_done && !is_whole {
            return Err(StreamError::Half { events: self.events });
        }
        let mut answer = self.head;
        let choices: Vec<Value> = self.choices.into_iter().map(|(index, choice)| choice.whole(index)).collect();
        answer.insert("choices".into(), choices.into());
        if let Some(usage) = self.usage {
            answer.insert("usage".into(), usage);
        }
        Ok(Value::Object(answer))
    }

    fn end_event(&mut self) -> Result<(), StreamError> {
        if self.data.is_empty() || self.is_done {
            return Ok(());
        }
        let data = std::mem::take(&mut self.data).join("\n");
        if data.trim() == "[DONE]" {
            self.is_done = true;
            return Ok(());
        }
        let garbage = || StreamError::Garbage { event: self.events + 1, found: excerpt(&data) };
        let Ok(Value::Object(mut event)) = serde_json::from_str(&data) else { return Err(garbage()) };
        if let Some(error) = event.get("error").filter(|error| !error.is_null()) {
            return Err(StreamError::Failed { message: message_of(error) });
        }
        self.events += 1;
        if let Some(usage) = event.remove("usage").filter(|usage| !usage.is_null()) {
            self.usage = Some(usage);
        }
        if let Some(Value::Array(choices)) = event.remove("choices") {
            for choice in choices {
                let index = choice["index"].as_u64().unwrap_or(0);
                self.choices.entry(index).or_default().add(choice);
            }
        }
        if self.head.is_empty() {
            self.head = event;
        }
        Ok(())
    }
}

impl Choice {
    fn add(&mut self, mut piece: Value) {
        if let Some(text) = piece["text"].as_str() {
            self.text.get_or_insert_default().push_str(text);
        }
        if let Some(content) = piece["delta"]["content"].as_str() {
            self.content.get_or_insert_default().push_str(content);
        }
        for call in piece["delta"]["tool_calls"].as_array().into_iter().flatten() {
            let known = self.calls.entry(call["index"].as_u64().unwrap_or(0)).or_default();
            let append = |to: &mut String, piece: &Value| to.push_str(piece.as_str().unwrap_or_default());
            append(&mut known.id, &call["id"]);
            append(&mut known.name, &call["function"]["name"]);
            append(&mut known.arguments, &call["function"]["arguments"]);
        }
        if let Value::Object(lists) = piece["logprobs"].take() {
            for (name, list) in lists {
                let Value::Array(list) = list else { continue };
                if let Value::Array(known) = self.log_probs.entry(name).or_insert_with(|| json!([])) {
                    known.extend(list);
                }
            }
        }
        if !piece["finish_reason"].is_null() {
            self.finish_reason = piece["finish_reason"].take();
        }
    }

    fn whole(self, index: u64) -> Value {
        let mut whole = json!({"index": index, "finish_reason": self.finish_reason});
        if !self.log_probs.is_empty() {
            whole["logprobs"] = self.log_probs.into();
        }
        if let Some(text) = self.text {
            whole["text"] = text.into();
        } else {
            let mut message = json!({"role": "assistant", "content": self.content});
            if !self.calls.is_empty() {
                let calls = self.calls.into_values().map(|call| {
                    let function = json!({"name": call.name, "arguments": call.arguments});
                    json!({"id": call.id, "type": "function", "function": function})
                });
                message["tool_calls"] = calls.collect();
            }
            whole["message"] = message;
        }
        whole
    }
}

/// What an error object of the API says; servers disagree about its shape.
pub(super) fn message_of(error: &Value) -> String {
    let text = error.as_str().or_else(|| error["message"].as_str()).or_else(|| error["detail"].as_str());
    text.map_or_else(|| excerpt(&error.to_string()), excerpt)
}

/// The beginning of a foreign text, on one line.
pub(super) fn excerpt(text: &str) -> String {
    const LENGTH: usize = 300;
    let mut line: String = text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).take(LENGTH).collect();
    if text.trim().chars().nth(LENGTH).is_some() {
        line.push('…');
    }
    if line.is_empty() { "nothing".into() } else { line }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CHAT: &str = concat!(
        ": a comment\n",
        "data: {\"id\":\"c1\",\"model\":\"m\",\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"finish_reason\":null}],\"usage\":null}\n\n",
        "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"né\"},\"logprobs\":{\"content\":[{\"token\":\"né\",\"logprob\":-1.5}]},\"finish_reason\":null}]}\r\n\r\n",
        "event: message\ndata: {\"choices\":[{\"index\":1,\"delta\":{\"tool_calls\":[{\"index\":0,\"id\":\"x\",\"function\":{\"name\":\"f\",\"arguments\":\"{\\\"a\\\":\"}}]}}]}\n\n",
        "data: {\"choices\":[{\"index\":1,\"delta\":{\"tool_calls\":[{\"index\":0,\"function\":{\"arguments\":\"1}\"}}]},\"finish_reason\":\"tool_calls\"},{\"index\":0,\"delta\":{\"content\":\"!\"},\"finish_reason\":\"stop\"}]}\n\n",
        "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":4}}\n\n",
        "data: [DONE]\n\n",
    );

    fn read(text: &[u8], cuts: &[usize]) -> Result<Value, StreamError> {
        let mut stream = Stream::default();
        let mut from = 0;
        for &cut in cuts {
            stream.push(&text[from..cut])?;
            from = cut;
        }
        stream.push(&text[from..])?;
        stream.finish()
    }

    #[test]
    fn pieces_become_the_answer_that_would_have_come_in_one() {
        let whole = read(CHAT.as_bytes(), &[]).expect("it is whole");
        let expected = json!({
            "id": "c1", "model": "m",
            "choices": [
                {"index": 0, "finish_reason": "stop", "logprobs": {"content": [{"token": "né", "logprob": -1.5}]},
                 "message": {"role": "assistant", "content": "né!"}},
                {"index": 1, "finish_reason": "tool_calls", "message": {"role": "assistant", "content": null, "tool_calls":
                    [{"id": "x", "type": "function", "function": {"name": "f", "arguments": "{\"a\":1}"}}]}},
            ],
            "usage": {"prompt_tokens": 3, "completion_tokens": 4},
        });
        assert_eq!(whole, expected);
    }

    #[test]
    fn half_a_stream_garbage_and_reported_errors_are_told_apart() {
        let half = CHAT.find("\"!\"").expect("it is there");
        let garbage_or_half = read(&CHAT.as_bytes()[..half], &[]);
        assert!(matches!(garbage_or_half, Err(StreamError::Garbage { event: 4, .. })), "{garbage_or_half:?}");
        let half = CHAT.find("event: message").expect("it is there");
        assert_eq!(read(&CHAT.as_bytes()[..half], &[]), Err(StreamError::Half { events: 2 }));
        assert_eq!(read(b"", &[]), Err(StreamError::Half { events: 0 }));
        assert!(matches!(read(b"data: <html>\n\n", &[]), Err(StreamError::Garbage { event: 1, .. })));
        let failed = read(b"data: {\"error\":{\"message\":\"out of memory\"}}\n\n", &[]);
        assert_eq!(failed, Err(StreamError::Failed { message: "out of memory".into() }));
        // Every choice ended: the missing `[DONE]` takes nothing away.
        let done = CHAT.find("data: [DONE]").expect("it is there");
        assert!(read(&CHAT.as_bytes()[..done], &[]).is_ok());
    }

    proptest! {
        #[test]
        fn where_the_bytes_are_cut_does_not_matter(mut cuts in prop::collection::vec(0..CHAT.len(), 0..12)) {
            cuts.sort_unstable();
            prop_assert_eq!(read(CHAT.as_bytes(), &cuts), read(CHAT.as_bytes(), &[]));
        }

        #[test]
        fn no_bytes_crash_it(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(&bytes, &[]);
            let _ = read(&[b"data: ", &bytes[..], b"\n\n"].concat(), &[]);
        }
    }
}
