//! Requests as the API spells them, and its responses as ours.

use super::events::{excerpt, message_of};
use didact_core::generate::{Answer, Constraint, FinishReason, Prompt, Request, RequestError, Sampling, TokenLogProbs};
use didact_core::message::{Message, Tool, ToolCall};
use serde_json::{Map, Value, json};

/// Where a request goes.
pub(super) const COMPLETIONS: &str = "completions";
/// Where a conversation goes.
pub(super) const CHAT: &str = "chat/completions";

/// What else requests say.
#[derive(Debug, Clone)]
pub(super) struct Style {
    pub(super) model: String,
    /// Whether the server gives log-probabilities.
    pub(super) has_log_probs: bool,
    pub(super) uses_max_completion_tokens: bool,
    pub(super) extra: Map<String, Value>,
}

/// The path and body that ask for `n` answers of a request, the first of them its answer number `first`.
///
/// # Errors
/// When the API has no word for a setting.
pub(super) fn body(
    request: &Request,
    n: usize,
    first: usize,
    style: &Style,
) -> Result<(&'static str, Map<String, Value>), RequestError> {
    let mut body = Map::new();
    body.insert("model".into(), style.model.as_str().into());
    let path = match &request.prompt {
        Prompt::Text(text) => {
            body.insert("prompt".into(), text.as_str().into());
            COMPLETIONS
        }
        Prompt::Ids(ids) => {
            body.insert("prompt".into(), ids.clone().into());
            COMPLETIONS
        }
        Prompt::Messages { messages, tools } => {
            body.insert("messages".into(), messages.iter().map(message).collect());
            if !tools.is_empty() {
                body.insert("tools".into(), tools.iter().map(tool).collect());
            }
            CHAT
        }
    };
    let is_chat = path == CHAT;
    body.extend(sampling(&request.sampling, n, first, is_chat && style.uses_max_completion_tokens)?);
    if request.sampling.log_probs && style.has_log_probs {
        // Some servers take 0 alternatives for none at all.
        body.insert("logprobs".into(), if is_chat { true.into() } else { 1.into() });
    }
    body.extend(style.extra.clone());
    Ok((path, body))
}

fn sampling(
    sampling: &Sampling,
    n: usize,
    first: usize,
    uses_max_completion_tokens: bool,
) -> Result<Map<String, Value>, RequestError> {
    if sampling.top_log_probs > 0 {
        let why = "`top_log_probs` needs token ids, and servers name tokens by their text";
        return Err(RequestError::Unsupported(why.into()));
    }
    if sampling.adapter.is_some() {
        let why = "`adapter` is for models of this process; a server has adapters under model names of their own";
        return Err(RequestError::Unsupported(why.into()));
    }
    let mut fields = Map::new();
    let limit = if uses_max_completion_tokens { "max_completion_tokens" } else { "max_tokens" };
    fields.insert(limit.into(), sampling.max_tokens.into());
    fields.insert("temperature".into(), decimal(sampling.temperature));
    // What is not set is not sent: a server that does not know it would refuse.
    let neutral = Sampling::default();
    let mut set = |name: &str, is_set: bool, value: Value| {
        if is_set {
            fields.insert(name.into(), value);
        }
    };
    set("top_p", sampling.top_p.is_some(), sampling.top_p.map_or(Value::Null, decimal));
    set("top_k", sampling.top_k.is_some(), sampling.top_k.into());
    set("min_p", sampling.min_p.is_some(), sampling.min_p.map_or(Value::Null, decimal));
    for (name, value, neutral) in [
        ("repetition_penalty", sampling.repetition_penalty, neutral.repetition_penalty),
        ("presence_penalty", sampling.presence_penalty, neutral.presence_penalty),
        ("frequency_penalty", sampling.frequency_penalty, neutral.frequency_penalty),
    ] {
        set(name, value != neutral, decimal(value));
    }
    let bias = sampling.logit_bias.iter().map(|(id, bias)| (id.to_string(), decimal(*bias)));
    set("logit_bias", !sampling.logit_bias.is_empty(), Value::Object(bias.collect()));
    set("min_tokens", sampling.min_tokens > 0, sampling.min_tokens.into());
    set("stop", !sampling.stop.is_empty(), sampling.stop.clone().into());
    set("stop_token_ids", !sampling.stop_token_ids.is_empty(), sampling.stop_token_ids.clone().into());
    set("ignore_eos", sampling.ignore_eos, true.into());
    set("n", n > 1, n.into());
    // Servers read seeds as numbers of 32 bits, some of them signed.
    let seed = sampling.seed.wrapping_add(first as u64);
    set("seed", true, ((seed ^ (seed >> 31)) & 0x7fff_ffff).into());
    let format = match &sampling.constraint {
        None => None,
        Some(Constraint::Json) => Some(json!({"type": "json_object"})),
        Some(Constraint::JsonSchema(schema)) => {
            let schema = json!({"name": "answer", "strict": true, "schema": schema});
            Some(json!({"type": "json_schema", "json_schema": schema}))
        }
        Some(_) => {
            let why = "the API has JSON and JSON schemas as constraints, but neither expressions nor grammars";
            return Err(RequestError::Unsupported(why.into()));
        }
    };
    set("response_format", format.is_some(), format.into());
    Ok(fields)
}

/// A setting as it was written: 0.7, not 0.699999988079071.
fn decimal(value: f32) -> Value {
    value.to_string().parse::<f64>().map_or(Value::Null, Value::from)
}

fn message(message: &Message) -> Value {
    let mut wire = Map::new();
    wire.insert("role".into(), message.role.as_str().into());
    let is_silent = message.content.is_empty() && !message.tool_calls.is_empty();
    wire.insert("content".into(), if is_silent { Value::Null } else { message.content.as_str().into() });
    if let Some(name) = &message.name {
        wire.insert("name".into(), name.as_str().into());
    }
    if !message.tool_calls.is_empty() {
        let calls = message.tool_calls.iter().enumerate().map(|(index, call)| {
            let function = json!({"name": call.name, "arguments": Value::Object(call.arguments.clone()).to_string()});
            let id = call.id.clone().unwrap_or_else(|| format!("call_{index}"));
            json!({"id": id, "type": "function", "function": function})
        });
        wire.insert("tool_calls".into(), calls.collect());
    }
    if let Some(id) = &message.tool_call_id {
        wire.insert("tool_call_id".into(), id.as_str().into());
    }
    Value::Object(wire)
}

fn tool(Tool(tool): &Tool) -> Value {
    if tool.get("function").is_some() { tool.clone() } else { json!({"type": "function", "function": tool}) }
}

/// What was used, as the server counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Usage {
    pub(super) prompt_tokens: u64,
    pub(super) completion_tokens: u64,
}

/// The usage that a response states.
pub(super) fn usage(response: &Value) -> Option<Usage> {
    let count = |name: &str| response["usage"][name].as_u64();
    // A response to scoring may leave out what was not generated.
    Some(Usage {
        prompt_tokens: count("prompt_tokens")?,
        completion_tokens: count("completion_tokens").unwrap_or_default(),
    })
}

/// The answers of a response, in the order of their indices; what is wrong with it otherwise.
pub(super) fn answers(response: &Value) -> Result<Vec<Answer>, String> {
    if let Some(error) = response.get("error").filter(|error| !error.is_null()) {
        return Err(message_of(error));
    }
    let choices = response["choices"].as_array().filter(|choices| !choices.is_empty());
    let choices = choices.ok_or_else(|| format!("there are no choices in {}", excerpt(&response.to_string())))?;
    let mut choices: Vec<&Value> = choices.iter().collect();
    choices.sort_by_key(|choice| choice["index"].as_u64());
    choices.into_iter().map(answer).collect()
}

fn answer(choice: &Value) -> Result<Answer, String> {
    let text = match (choice["text"].as_str(), choice.get("message")) {
        (Some(text), _) => text.to_owned(),
        (None, Some(Value::Object(message))) => spoken(message),
        (None, _) => return Err(format!("a choice has neither text nor message: {}", excerpt(&choice.to_string()))),
    };
    let finish_reason = match choice["finish_reason"].as_str() {
        Some("length") => FinishReason::Length,
        _ => FinishReason::Stop,
    };
    let log_probs = log_probs(&choice["logprobs"]).into_iter().map(|p| p.unwrap_or(f64::NAN) as f32).collect();
    Ok(Answer { text, ids: Vec::new(), log_probs, top_log_probs: Vec::new(), finish_reason })
}

/// What an assistant's message says; its calls in the notation that `didact_verify` reads.
fn spoken(message: &Map<String, Value>) -> String {
    let mut text = message.get("content").and_then(Value::as_str).unwrap_or_default().to_owned();
    for call in message.get("tool_calls").and_then(Value::as_array).into_iter().flatten() {
        let arguments = call["function"]["arguments"].as_str().unwrap_or("{}");
        let name = call["function"]["name"].as_str();
        let call = name.and_then(|name| {
            let arguments = serde_json::from_str(if arguments.trim().is_empty() { "{}" } else { arguments }).ok()?;
            Some(ToolCall { id: None, name: name.to_owned(), arguments })
        });
        // The model's mistake is the model's answer: it is handed on as it is, to be judged.
        let inner = call.map_or_else(
            || json!({"name": name, "arguments": arguments}).to_string(),
            |call| json!({"name": call.name, "arguments": call.arguments}).to_string(),
        );
        if !text.is_empty() {
            text.push('\n');
        }
        text.push_str("<tool_call>\n");
        text.push_str(&inner);
        text.push_str("\n</tool_call>");
    }
    text
}

/// Log-probability of each token, in the form of completions (`token_logprobs`) or of chats (`content`).
fn log_probs(value: &Value) -> Vec<Option<f64>> {
    if let Some(list) = value["token_logprobs"].as_array() {
        return list.iter().map(Value::as_f64).collect();
    }
    value["content"].as_array().into_iter().flatten().map(|token| token["logprob"].as_f64()).collect()
}

/// The body that has a server score a continuation: it echoes the prompt with the log-probability of each of its tokens.
/// One token is generated since some servers will not generate none.
pub(super) fn scoring(
    prompt: &Prompt,
    continuation: &Prompt,
    style: &Style,
) -> Result<Map<String, Value>, RequestError> {
    let whole: Value = match (prompt, continuation) {
        (Prompt::Text(first), Prompt::Text(second)) => format!("{first}{second}").into(),
        (Prompt::Ids(first), Prompt::Ids(second)) => [&first[..], second].concat().into(),
        _ => {
            let what = "a server scores a text after a text or token ids after token ids";
            return Err(RequestError::Unsupported(what.into()));
        }
    };
    let mut body = Map::new();
    for (name, value) in [
        ("model", style.model.as_str().into()),
        ("prompt", whole),
        ("max_tokens", 1.into()),
        ("temperature", 0.into()),
        ("echo", true.into()),
        ("logprobs", 1.into()),
    ] {
        body.insert(name.into(), value);
    }
    body.extend(style.extra.clone());
    Ok(body)
}

/// Whether the list of an echoed text ends with what was expected after the text, so that each log-probability is one of the
/// distribution after its own token (<https://github.com/abetlen/llama-cpp-python/issues/1983>).
fn is_shifted(choice: &Value, whole: &str, offsets: &[usize]) -> bool {
    let written = choice["text"].as_str().and_then(|text| text.strip_prefix(whole)).unwrap_or_default();
    let last = choice["logprobs"]["top_logprobs"].as_array().and_then(|list| list.last()?.as_object());
    let best = last.into_iter().flatten().filter_map(|(token, p)| Some((token, p.as_f64()?)));
    let best = best.max_by(|(_, a), (_, b)| a.total_cmp(b));
    let is_of_the_text = offsets.last().is_some_and(|&last| last < whole.chars().count());
    is_of_the_text && !written.is_empty() && best.is_some_and(|(token, _)| token == written)
}

/// The score of a continuation out of the response to [`scoring`].
pub(super) fn score(prompt: &Prompt, continuation: &Prompt, response: &Value) -> Result<TokenLogProbs, String> {
    let list = &response["choices"][0]["logprobs"];
    let log_probs = log_probs(list);
    let of_the_prompt = "the server does not give log-probabilities of the prompt; it cannot score";
    let range = match (prompt, continuation) {
        (Prompt::Ids(first), Prompt::Ids(second)) => first.len()..first.len() + second.len(),
        (Prompt::Text(first), Prompt::Text(second)) => {
            // Offsets are in characters. A token belongs to the continuation when part of it does.
            let (start, end) = (first.chars().count(), first.chars().count() + second.chars().count());
            let offsets: Option<Vec<usize>> = list["text_offset"]
                .as_array()
                .map(|list| list.iter().filter_map(|o| Some(o.as_u64()? as usize)).collect());
            let offsets = offsets.filter(|offsets| offsets.len() == log_probs.len()).ok_or(of_the_prompt)?;
            if is_shifted(&response["choices"][0], &format!("{first}{second}"), &offsets) {
                return Err("the server's log-probabilities stand one token too early; it cannot score".into());
            }
            let ends = |i: usize| offsets.get(i + 1).copied().unwrap_or(usize::MAX);
            let from = (0..offsets.len()).find(|&i| ends(i) > start).unwrap_or(offsets.len());
            let to = (from..offsets.len()).find(|&i| offsets[i] >= end).unwrap_or(offsets.len());
            from..to
        }
        _ => return Err("this pair was not sent".into()),
    };
    let own = log_probs.get(range.clone()).ok_or(of_the_prompt)?;
    let own: Option<Vec<f64>> = own.iter().copied().collect();
    let own = own.ok_or("a token of the continuation has no log-probability")?;
    let best = |i: usize| {
        let top = list["top_logprobs"][i].as_object().into_iter().flatten();
        top.filter_map(|(_, p)| p.as_f64()).fold(f64::NEG_INFINITY, f64::max)
    };
    Ok(TokenLogProbs {
        ids: if let Prompt::Ids(ids) = continuation { ids.clone() } else { Vec::new() },
        is_greedy: own.iter().zip(range).all(|(&p, i)| p >= best(i)),
        log_probs: own.into_iter().map(|p| p as f32).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use didact_core::message::Role;

    fn style() -> Style {
        Style { model: "m".into(), has_log_probs: false, uses_max_completion_tokens: false, extra: Map::new() }
    }

    #[test]
    fn a_request_says_what_is_set_and_nothing_else() {
        let sampling = Sampling { temperature: 0.7, seed: 5, stop: vec!["\n".into()], n: 3, ..Sampling::default() };
        let request = Request { prompt: Prompt::Text("hi".into()), sampling: sampling.clone() };
        let (path, body) = self::body(&request, 2, 1, &style()).expect("the API can say it");
        let expected = json!({"model": "m", "prompt": "hi", "max_tokens": 128, "temperature": 0.7, "stop": ["\n"],
                              "n": 2, "seed": 6});
        assert_eq!((path, Value::Object(body)), (COMPLETIONS, expected));

        let mut call = Message::new(Role::Assistant, "");
        let arguments = Map::from_iter([("a".into(), json!(1))]);
        call.tool_calls.push(ToolCall { id: None, name: "f".into(), arguments });
        let tools = vec![Tool(json!({"name": "f"}))];
        let prompt = Prompt::Messages { messages: vec![Message::new(Role::User, "hi"), call], tools };
        let style = Style { has_log_probs: true, uses_max_completion_tokens: true, ..style() };
        let (path, body) = self::body(&Request { prompt, sampling }, 1, 0, &style).expect("the API can say it");
        let expected = json!({
            "model": "m",
            "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": null, "tool_calls": [
                {"id": "call_0", "type": "function", "function": {"name": "f", "arguments": "{\"a\":1}"}}]}],
            "tools": [{"type": "function", "function": {"name": "f"}}],
            "max_completion_tokens": 128, "temperature": 0.7, "stop": ["\n"], "seed": 5, "logprobs": true,
        });
        assert_eq!((path, Value::Object(body)), (CHAT, expected));
    }

    #[test]
    fn settings_that_the_api_cannot_say_are_refused_and_the_others_sent() {
        let of = |sampling: Sampling| {
            let request = Request { prompt: Prompt::Text("hi".into()), sampling };
            self::body(&request, 1, 0, &style()).map(|(_, body)| Value::Object(body))
        };
        let schema = json!({"type": "integer"});
        let body = of(Sampling {
            min_p: Some(0.1),
            frequency_penalty: 0.5,
            logit_bias: [(7, -1.5)].into(),
            constraint: Some(Constraint::JsonSchema(schema.clone())),
            ..Sampling::default()
        })
        .expect("the API can say it");
        assert_eq!(body["min_p"], 0.1);
        assert_eq!(body["frequency_penalty"], 0.5);
        assert!(body.get("presence_penalty").is_none() && body.get("repetition_penalty").is_none(), "{body}");
        assert_eq!(body["logit_bias"], json!({"7": -1.5}));
        assert_eq!(body["response_format"]["json_schema"]["schema"], schema);
        for sampling in [
            Sampling { top_log_probs: 2, ..Sampling::default() },
            Sampling { adapter: Some("mine".into()), ..Sampling::default() },
            Sampling { constraint: Some(Constraint::Regex("a+".into())), ..Sampling::default() },
        ] {
            assert!(matches!(of(sampling), Err(RequestError::Unsupported(_))));
        }
    }

    #[test]
    fn answers_come_in_order_with_their_calls_as_text() {
        let call = json!({"type": "function", "function": {"name": "f", "arguments": "{\"a\": 1}"}});
        let response = json!({"choices": [
            {"index": 1, "message": {"content": null, "tool_calls": [call]}, "finish_reason": "tool_calls"},
            {"index": 0, "message": {"content": "hi"}, "finish_reason": "length",
             "logprobs": {"content": [{"token": "hi", "logprob": -0.5}]}},
        ]});
        let answers = answers(&response).expect("it is an answer");
        assert_eq!(answers[0].text, "hi");
        assert_eq!((answers[0].finish_reason, &answers[0].log_probs[..]), (FinishReason::Length, &[-0.5][..]));
        assert_eq!(answers[1].text, "<tool_call>\n{\"name\":\"f\",\"arguments\":{\"a\":1}}\n</tool_call>");
    }

    #[test]
    fn what_is_no_answer_says_why() {
        for (response, expected) in [
            (json!([1]), "no choices"),
            (json!({"choices": []}), "no choices"),
            (json!({"choices": [{"index": 0}]}), "neither text nor message"),
            (json!({"error": "overloaded"}), "overloaded"),
        ] {
            let error = answers(&response).expect_err("it is none");
            assert!(error.contains(expected), "{response}: {error}");
        }
    }

    #[test]
    fn a_continuation_is_scored_from_the_tokens_that_are_its_own() {
        let response = json!({"choices": [{"text": "né so.", "logprobs": {
            "tokens": ["né", " s", "o", "."], "token_logprobs": [null, -1.0, -2.0, -4.0], "text_offset": [0, 2, 4, 5],
            "top_logprobs": [null, {" s": -1.0}, {"i": -0.5, "o": -2.0}, {".": -4.0}]}}]});
        let text = |text: &str| Prompt::Text(text.into());
        let of = |first: &str, second: &str| score(&text(first), &text(second), &response);
        let scored = of("né", " so").expect("it scores");
        assert_eq!((scored.log_probs, scored.is_greedy), (vec![-1.0, -2.0], false));
        let scored = of("né", " s").expect("it scores");
        assert_eq!((scored.log_probs, scored.is_greedy), (vec![-1.0], true));
        // A token across the border counts.
        assert_eq!(of("né ", "so").expect("it scores").log_probs, [-1.0, -2.0]);
        assert!(of("", "né").is_err(), "nothing predicts the first token");
        let ids = score(&Prompt::Ids(vec![7, 8]), &Prompt::Ids(vec![9]), &response).expect("it scores");
        assert_eq!((ids.ids, ids.log_probs), (vec![9], vec![-2.0]));
        assert!(score(&text("a"), &text("b"), &json!({"choices": [{"text": "x"}]})).is_err());
        // The last entry is of the text, but expects what was written after it.
        let response = json!({"choices": [{"text": "ab c", "logprobs": {
            "tokens": ["a", "b"], "token_logprobs": [null, -9.0], "text_offset": [0, 1],
            "top_logprobs": [null, {" c": -0.1, "b": -9.0}]}}]});
        assert!(score(&text("a"), &text("b"), &response).expect_err("it is not b's").contains("too early"));
    }
}
