//! What a client asks for, as requests to the model.

use super::Names;
use super::error::ApiError;
use super::fields::{Fields, id};
use super::tools::Tools;
use didact_core::generate::{Constraint, Prompt, Request, RequestError, Sampling};
use didact_core::message::{Message, Role, Tool, ToolCall};
use didact_data::template::RenderOptions;
use didact_infer::LocalModel;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// Most answers to a prompt.
const MOST_ANSWERS: usize = 128;
/// Most prompts of a request for completions.
const MOST_PROMPTS: usize = 2048;
/// New tokens of a completion when the request does not say; the API's.
const COMPLETION_TOKENS: usize = 16;

/// Fields of both endpoints, and of each.
const FIELDS: [&str; 18] = [
    "model",
    "stream",
    "stream_options",
    "n",
    "max_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "stop",
    "stop_token_ids",
    "ignore_eos",
    "min_tokens",
    "seed",
];
const CHAT_FIELDS: [&str; 9] = [
    "messages",
    "max_completion_tokens",
    "logprobs",
    "top_logprobs",
    "response_format",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "chat_template_kwargs",
];
const COMPLETION_FIELDS: [&str; 6] = ["prompt", "echo", "logprobs", "suffix", "best_of", "response_format"];

/// What parsing needs to know of the server.
#[derive(Debug, Clone, Copy)]
pub(super) struct Context<'a> {
    pub(super) model: &'a LocalModel,
    pub(super) names: &'a Names,
    /// For requests without a seed.
    pub(super) seed: u64,
}

/// What distinguishes the endpoints.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Kind {
    /// `/v1/chat/completions`.
    Chat {
        /// Tools that may be called.
        tools: Option<Tools>,
    },
    /// `/v1/completions`.
    Text {
        /// The prompts, when answers begin with them.
        echo: Option<Vec<String>>,
    },
}

/// A request that was understood.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Job {
    pub(super) kind: Kind,
    /// The model's name in the API.
    pub(super) model: String,
    /// One per prompt, as token ids.
    pub(super) requests: Vec<Request>,
    /// Tokens of all prompts.
    pub(super) prompt_tokens: usize,
    /// Answers per prompt.
    pub(super) n: usize,
    pub(super) wants_log_probs: bool,
    /// Alternatives to each token of the prompts, when these are to be scored too.
    pub(super) reads: Option<usize>,
    pub(super) is_stream: bool,
    /// Whether a stream ends with the counts of tokens.
    pub(super) includes_usage: bool,
}

/// Reads a request for chat completions.
pub(super) fn chat(body: &[u8], context: &Context<'_>) -> Result<Job, ApiError> {
    let mut fields = Fields::read(body)?;
    let (model, adapter) = model(&mut fields, context)?;
    let (is_stream, includes_usage) = streaming(&mut fields)?;
    let messages = fields.list("messages")?.ok_or_else(|| missing("messages"))?;
    let messages = messages.iter().enumerate().map(|(i, m)| message(i, m)).collect::<Result<Vec<_>, _>>()?;
    if messages.is_empty() {
        return Err(ApiError::invalid("messages", "`messages` is empty; at least one is needed"));
    }
    let tools = fields.list("tools")?.unwrap_or_default();
    let choice = fields.take("tool_choice");
    let is_parallel = fields.flag("parallel_tool_calls")?.unwrap_or(true);
    let tools = Tools::read(&tools, choice.as_ref(), is_parallel)?;
    let limit = match (fields.count("max_completion_tokens")?, fields.count("max_tokens")?) {
        (Some(_), Some(_)) => {
            let message = "`max_tokens` is the old name of `max_completion_tokens`; give one of them";
            return Err(ApiError::invalid("max_tokens", message));
        }
        (new, old) => new.or(old),
    };
    let mut sampling = Sampling { adapter, ..sampling(&mut fields, context)? };
    sampling.log_probs = fields.flag("logprobs")?.unwrap_or(false);
    sampling.top_log_probs = fields.count("top_logprobs")?.unwrap_or(0);
    if sampling.top_log_probs > 0 && !sampling.log_probs {
        return Err(ApiError::invalid("top_logprobs", "`top_logprobs` needs `logprobs` to be true"));
    }
    sampling.constraint = format(&mut fields)?;
    if let Some(call) = tools.as_ref().and_then(Tools::constraint) {
        if sampling.constraint.is_some() {
            return Err(ApiError::invalid("response_format", "a tool that must be called decides the format already"));
        }
        sampling.constraint = Some(call);
    }
    let options = render_options(&mut fields)?;
    fields.finish(&[&FIELDS[..], &CHAT_FIELDS].concat())?;

    let text = render(&messages, tools.as_ref(), &options, context)?;
    let ids = encode(&Prompt::Text(text), "messages", context)?;
    sampling.max_tokens = limit.unwrap_or_else(|| context.model.context().saturating_sub(ids.len()).max(1));
    check(&sampling, context)?;
    Ok(Job {
        kind: Kind::Chat { tools },
        model,
        prompt_tokens: ids.len(),
        n: sampling.n,
        wants_log_probs: sampling.log_probs,
        reads: None,
        requests: vec![Request { prompt: Prompt::Ids(ids), sampling }],
        is_stream,
        includes_usage,
    })
}

/// Reads a request for completions.
pub(super) fn completions(body: &[u8], context: &Context<'_>) -> Result<Job, ApiError> {
    let mut fields = Fields::read(body)?;
    let (model, adapter) = model(&mut fields, context)?;
    let (is_stream, includes_usage) = streaming(&mut fields)?;
    let prompts = prompts(&mut fields)?;
    let mut sampling = Sampling { adapter, ..sampling(&mut fields, context)? };
    sampling.max_tokens = fields.count("max_tokens")?.unwrap_or(COMPLETION_TOKENS);
    let alternatives = fields.count("logprobs")?;
    sampling.log_probs = alternatives.is_some();
    sampling.top_log_probs = alternatives.unwrap_or(0);
    let is_echo = fields.flag("echo")?.unwrap_or(false);
    if fields.text("suffix")?.is_some_and(|suffix| !suffix.is_empty()) {
        return Err(ApiError::unsupported("suffix", "models here continue a text and do not fill it in"));
    }
    if fields.count("best_of")?.is_some_and(|best_of| best_of != sampling.n) {
        return Err(ApiError::unsupported("best_of", "all answers are given: `best_of` has to be equal to `n`"));
    }
    sampling.constraint = format(&mut fields)?;
    fields.finish(&[&FIELDS[..], &COMPLETION_FIELDS].concat())?;
    let reads = alternatives.filter(|_| is_echo);
    if reads.is_some() && is_stream {
        return Err(ApiError::unsupported("stream", "log-probabilities of the prompt come in one piece only"));
    }
    // Whoever wants a prompt scored and nothing more asks for no new tokens.
    let checked = if reads.is_some() { sampling.max_tokens.max(1) } else { sampling.max_tokens };
    check(&Sampling { max_tokens: checked, ..sampling.clone() }, context)?;

    let mut requests = Vec::with_capacity(prompts.len());
    let mut echoes = Vec::new();
    for (index, prompt) in prompts.into_iter().enumerate() {
        let ids = encode(&prompt, "prompt", context)?;
        if is_echo {
            let text = match prompt {
                Prompt::Text(text) => text,
                _ => context.model.tokenizer().decode(&ids, true).map_err(|e| ApiError::server(e.to_string()))?,
            };
            echoes.push(text);
        }
        // Equal prompts are drawn independently, and the first one as if it were alone.
        let seed = sampling.seed.wrapping_add(index as u64);
        requests.push(Request { prompt: Prompt::Ids(ids), sampling: Sampling { seed, ..sampling.clone() } });
    }
    let tokens = |request: &Request| if let Prompt::Ids(ids) = &request.prompt { ids.len() } else { 0 };
    Ok(Job {
        kind: Kind::Text { echo: is_echo.then_some(echoes) },
        model,
        prompt_tokens: requests.iter().map(tokens).sum(),
        n: sampling.n,
        wants_log_probs: sampling.log_probs,
        reads,
        requests,
        is_stream,
        includes_usage,
    })
}

fn missing(field: &str) -> ApiError {
    ApiError::invalid(field, format!("`{field}` is missing"))
}

/// The model that is asked for, and its adapter; without a name it is the model itself.
fn model(fields: &mut Fields, context: &Context<'_>) -> Result<(String, Option<String>), ApiError> {
    let names = context.names;
    let name = fields.text("model")?.unwrap_or_else(|| names.model.clone());
    let adapter = names.adapter_of(&name)?.map(str::to_owned);
    Ok((name, adapter))
}

fn streaming(fields: &mut Fields) -> Result<(bool, bool), ApiError> {
    let is_stream = fields.flag("stream")?.unwrap_or(false);
    let options = fields.object("stream_options")?;
    if options.is_some() && !is_stream {
        return Err(ApiError::invalid("stream_options", "`stream_options` needs `stream` to be true"));
    }
    let includes_usage = options.is_some_and(|options| options.get("include_usage") == Some(&Value::Bool(true)));
    Ok((is_stream, includes_usage))
}

fn sampling(fields: &mut Fields, context: &Context<'_>) -> Result<Sampling, ApiError> {
    let neutral = Sampling::default();
    let n = fields.count("n")?.unwrap_or(1);
    if !(1..=MOST_ANSWERS).contains(&n) {
        return Err(ApiError::invalid("n", format!("`n` is {n}, expected 1 to {MOST_ANSWERS}")));
    }
    let mut logit_bias = BTreeMap::new();
    for (token, bias) in fields.object("logit_bias")?.unwrap_or_default() {
        let bias = bias.as_f64().filter(|bias| (-100.0..=100.0).contains(bias));
        let (Ok(token), Some(bias)) = (token.parse(), bias) else {
            let message = "expected token ids as keys and numbers from -100 to 100 as values";
            return Err(ApiError::invalid(format!("logit_bias.{token}"), message));
        };
        logit_bias.insert(token, bias as f32);
    }
    let top_k = fields.count("top_k")?;
    Ok(Sampling {
        temperature: fields.number("temperature")?.unwrap_or(1.0),
        top_k: top_k.map(|k| k.try_into().unwrap_or(u32::MAX)),
        top_p: fields.number("top_p")?.filter(|&p| p != 1.0),
        min_p: fields.number("min_p")?,
        repetition_penalty: fields.number("repetition_penalty")?.unwrap_or(neutral.repetition_penalty),
        presence_penalty: fields.number("presence_penalty")?.unwrap_or(neutral.presence_penalty),
        frequency_penalty: fields.number("frequency_penalty")?.unwrap_or(neutral.frequency_penalty),
        logit_bias,
        min_tokens: fields.count("min_tokens")?.unwrap_or(0),
        stop: fields.texts("stop")?.unwrap_or_default(),
        stop_token_ids: fields.ids("stop_token_ids")?.unwrap_or_default(),
        ignore_eos: fields.flag("ignore_eos")?.unwrap_or(false),
        n,
        seed: fields.seed("seed")?.unwrap_or(context.seed),
        ..neutral
    })
}

/// Checks settings, and compiles a schema, before anything waits for a place.
fn check(sampling: &Sampling, context: &Context<'_>) -> Result<(), ApiError> {
    context.model.samplers().prepare(sampling).map(drop).map_err(|error| ApiError::of_request(&error, "prompt"))
}

fn format(fields: &mut Fields) -> Result<Option<Constraint>, ApiError> {
    let Some(format) = fields.object("response_format")? else { return Ok(None) };
    match format.get("type").and_then(Value::as_str) {
        Some("text") => Ok(None),
        Some("json_object") => Ok(Some(Constraint::Json)),
        Some("json_schema") => match format.get("json_schema").and_then(|given| given.get("schema")) {
            Some(schema @ Value::Object(_)) => Ok(Some(Constraint::JsonSchema(schema.clone()))),
            _ => Err(ApiError::invalid("response_format.json_schema.schema", "expected a JSON schema, an object")),
        },
        _ => {
            let message = "expected `text`, `json_object` or `json_schema`";
            Err(ApiError::invalid("response_format.type", message))
        }
    }
}

/// Variables for the template, as other servers take them.
fn render_options(fields: &mut Fields) -> Result<RenderOptions, ApiError> {
    let mut options = RenderOptions::default().with_generation_prompt();
    let mut variables = fields.object("chat_template_kwargs")?.unwrap_or_default();
    options.enable_thinking = match variables.remove("enable_thinking") {
        None | Some(Value::Null) => None,
        Some(Value::Bool(on)) => Some(on),
        Some(_) => {
            return Err(ApiError::invalid("chat_template_kwargs.enable_thinking", "expected true or false"));
        }
    };
    options.variables = variables;
    Ok(options)
}

fn prompts(fields: &mut Fields) -> Result<Vec<Prompt>, ApiError> {
    let value = fields.take("prompt").ok_or_else(|| missing("prompt"))?;
    let wrong = || ApiError::invalid("prompt", "expected a string, a list of token ids, or a list of one of them");
    let ids = |list: &[Value]| list.iter().map(id).collect::<Option<Vec<u32>>>().map(Prompt::Ids);
    let prompts = match &value {
        Value::String(text) => vec![Prompt::Text(text.clone())],
        Value::Array(list) if list.iter().all(Value::is_number) && !list.is_empty() => {
            vec![ids(list).ok_or_else(wrong)?]
        }
        Value::Array(list) => list
            .iter()
            .map(|prompt| match prompt {
                Value::String(text) => Some(Prompt::Text(text.clone())),
                Value::Array(list) => ids(list),
                _ => None,
            })
            .collect::<Option<Vec<_>>>()
            .ok_or_else(wrong)?,
        _ => return Err(wrong()),
    };
    if prompts.is_empty() || prompts.len() > MOST_PROMPTS {
        let message = format!("there are {} prompts, expected 1 to {MOST_PROMPTS}", prompts.len());
        return Err(ApiError::invalid("prompt", message));
    }
    Ok(prompts)
}

fn message(index: usize, value: &Value) -> Result<Message, ApiError> {
    let at = |field: &str| format!("messages[{index}].{field}");
    let Value::Object(map) = value else {
        return Err(ApiError::invalid(format!("messages[{index}]"), "expected an object with `role` and `content`"));
    };
    let role = match map.get("role").and_then(Value::as_str) {
        Some("system" | "developer") => Role::System,
        Some("user") => Role::User,
        Some("assistant") => Role::Assistant,
        Some("tool") => Role::Tool,
        _ => return Err(ApiError::invalid(at("role"), "expected system, developer, user, assistant or tool")),
    };
    let mut message = Message::new(role, "");
    for (name, value) in map.iter().filter(|(_, value)| !value.is_null()) {
        let text = || value.as_str().map(str::to_owned);
        let expected = |what: &str| ApiError::invalid(at(name), format!("expected {what}"));
        match name.as_str() {
            // What a client got from an API and sends back as it is.
            "role" | "refusal" | "annotations" => {}
            "content" => message.content = content(value, &at("content"))?,
            "name" => message.name = Some(text().ok_or_else(|| expected("a string"))?),
            "tool_call_id" => message.tool_call_id = Some(text().ok_or_else(|| expected("a string"))?),
            "reasoning_content" => message.reasoning_content = Some(text().ok_or_else(|| expected("a string"))?),
            "tool_calls" if role == Role::Assistant => {
                let calls = value.as_array().ok_or_else(|| expected("a list"))?;
                let calls = calls.iter().enumerate().map(|(i, c)| call(&at(&format!("tool_calls[{i}]")), c));
                message.tool_calls = calls.collect::<Result<_, _>>()?;
            }
            _ => return Err(ApiError::unknown(&at(name), "")),
        }
    }
    if map.get("content").is_none_or(Value::is_null) && message.tool_calls.is_empty() {
        return Err(ApiError::invalid(at("content"), "it is missing"));
    }
    Ok(message)
}

/// Text, or parts that are all text.
fn content(value: &Value, at: &str) -> Result<String, ApiError> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Array(parts) => {
            let parts = parts.iter().map(|part| match (part["type"].as_str(), part["text"].as_str()) {
                (Some("text"), Some(text)) => Ok(text),
                (Some(kind), _) if kind != "text" => Err(ApiError::unsupported(
                    at,
                    format!("a part is of type `{kind}`, but this model reads text only"),
                )),
                _ => Err(ApiError::invalid(at, "expected parts like {\"type\": \"text\", \"text\": \"...\"}")),
            });
            Ok(parts.collect::<Result<Vec<_>, _>>()?.join("\n"))
        }
        _ => Err(ApiError::invalid(at, "expected a string or a list of parts")),
    }
}

fn call(at: &str, value: &Value) -> Result<ToolCall, ApiError> {
    let function = &value["function"];
    let name =
        function["name"].as_str().ok_or_else(|| ApiError::invalid(format!("{at}.function.name"), "it is missing"))?;
    let wrong = || ApiError::invalid(format!("{at}.function.arguments"), "expected a string that holds a JSON object");
    let arguments: Map<String, Value> = match &function["arguments"] {
        Value::String(text) if text.trim().is_empty() => Map::new(),
        Value::String(text) => serde_json::from_str(text).map_err(|_| wrong())?,
        Value::Object(map) => map.clone(),
        _ => return Err(wrong()),
    };
    Ok(ToolCall { id: value["id"].as_str().map(str::to_owned), name: name.to_owned(), arguments })
}

/// The conversation as text; tools are written out for a template that does not show them.
fn render(
    messages: &[Message],
    tools: Option<&Tools>,
    options: &RenderOptions,
    context: &Context<'_>,
) -> Result<String, ApiError> {
    let template = context
        .model
        .tokenizer()
        .template()
        .ok_or_else(|| ApiError::invalid("messages", "this model has no chat template; use /v1/completions"))?;
    let render = |messages: &[Message], tools: &[Tool]| {
        let text = template.render(messages, tools, options);
        text.map_err(|error| ApiError::of_request(&RequestError::Template(error.to_string()), "messages"))
    };
    let Some(tools) = tools else { return render(messages, &[]) };
    let text = render(messages, tools.list())?;
    if text == render(messages, &[])? { render(&tools.written_out(messages), &[]) } else { Ok(text) }
}

fn encode(prompt: &Prompt, field: &str, context: &Context<'_>) -> Result<Vec<u32>, ApiError> {
    context.model.encode_to_continue(prompt).map_err(|error| ApiError::of_request(&error, field))
}
