//! Tools: how a model is told about them, and its calls found in what it writes.

use super::error::ApiError;
use didact_core::generate::Constraint;
use didact_core::message::{Message, Role, Tool, ToolCall};
use didact_methods::toolworld;
use didact_verify::parse_calls;
use didact_verify::tool_call::render_call;
use serde_json::{Value, json};

/// Begins a call in the notation of most chat templates.
const TAG: &str = "<tool_call>";

/// What `tool_choice` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ToolChoice {
    /// The model decides.
    Auto,
    /// No calls.
    None,
    /// At least one call of any tool.
    Required,
    /// A call of this tool.
    Named(String),
}

/// The tools of a request.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Tools {
    list: Vec<Tool>,
    names: Vec<String>,
    choice: ToolChoice,
    /// Most calls of an answer.
    most: usize,
}

impl Tools {
    /// Reads `tools` and `tool_choice`; `None` when there is nothing to call.
    pub(super) fn read(tools: &[Value], choice: Option<&Value>, is_parallel: bool) -> Result<Option<Self>, ApiError> {
        let choice = match choice {
            None => ToolChoice::Auto,
            Some(Value::String(text)) => match text.as_str() {
                "auto" => ToolChoice::Auto,
                "none" => ToolChoice::None,
                "required" => ToolChoice::Required,
                other => return Err(wrong_choice(&format!("is `{other}`"))),
            },
            Some(value) => {
                let name = value["function"]["name"].as_str();
                ToolChoice::Named(name.ok_or_else(|| wrong_choice("names no function"))?.to_owned())
            }
        };
        let mut names = Vec::with_capacity(tools.len());
        for (index, tool) in tools.iter().enumerate() {
            let at = |field: &str| format!("tools[{index}]{field}");
            if tool["type"] != "function" {
                return Err(ApiError::unsupported(at(".type"), "only tools of type `function` can be called here"));
            }
            let name = tool["function"]["name"].as_str().filter(|name| !name.is_empty());
            let name = name.ok_or_else(|| ApiError::invalid(at(".function.name"), "a tool needs a name"))?;
            if !matches!(tool["function"].get("parameters"), None | Some(Value::Object(_) | Value::Null)) {
                return Err(ApiError::invalid(at(".function.parameters"), "expected a JSON schema, an object"));
            }
            if names.iter().any(|known| known == name) {
                return Err(ApiError::invalid(at(".function.name"), format!("there are two tools `{name}`")));
            }
            names.push(name.to_owned());
        }
        match &choice {
            ToolChoice::Required if names.is_empty() => {
                return Err(wrong_choice("is `required`, but there are no tools"));
            }
            ToolChoice::Named(name) if !names.contains(name) => {
                return Err(wrong_choice(&format!("names `{name}`, which is none of the tools")));
            }
            _ => {}
        }
        if names.is_empty() || choice == ToolChoice::None {
            return Ok(None);
        }
        let most = if is_parallel { usize::MAX } else { 1 };
        Ok(Some(Self { list: tools.iter().cloned().map(Tool).collect(), names, choice, most }))
    }

    /// As templates take them.
    pub(super) fn list(&self) -> &[Tool] {
        &self.list
    }

    /// What the text of the answer must be, when there has to be a call.
    pub(super) fn constraint(&self) -> Option<Constraint> {
        let call = |Tool(tool): &Tool| {
            let function = &tool["function"];
            let parameters = match function.get("parameters") {
                Some(schema @ Value::Object(_)) => schema.clone(),
                _ => json!({"type": "object"}),
            };
            json!({"type": "object", "properties": {"name": {"const": function["name"]}, "arguments": parameters},
                   "required": ["name", "arguments"], "additionalProperties": false})
        };
        let mut calls: Vec<Value> = match &self.choice {
            ToolChoice::Auto | ToolChoice::None => return None,
            ToolChoice::Required => self.list.iter().map(call).collect(),
            ToolChoice::Named(name) => {
                self.list.iter().filter(|Tool(tool)| tool["function"]["name"] == name.as_str()).map(call).collect()
            }
        };
        let mut schema = if calls.len() == 1 { calls.remove(0) } else { json!({"anyOf": calls}) };
        // A program reads it: no indentation.
        schema["x-guidance"] = json!({"whitespace_pattern": " "});
        Some(Constraint::JsonSchema(schema))
    }

    /// The conversation for a template that does not show tools: their signatures stand in the system message, calls in
    /// the turns that made them, in the notation of the recipes that teach tool use.
    pub(super) fn written_out(&self, messages: &[Message]) -> Vec<Message> {
        let signatures: Vec<String> = self.list.iter().map(signature).collect();
        let listing = toolworld::listing(&signatures);
        let mut messages = messages.to_vec();
        for message in &mut messages {
            let calls = std::mem::take(&mut message.tool_calls);
            if !calls.is_empty() {
                let calls: Vec<String> = calls.iter().map(render_call).collect();
                let text = [std::mem::take(&mut message.content), calls.join("\n")].join("\n");
                text.trim().clone_into(&mut message.content);
            }
        }
        match messages.first_mut().filter(|first| first.role == Role::System) {
            Some(system) => system.content = format!("{}\n\n{listing}", system.content),
            None => messages.insert(0, Message::new(Role::System, listing)),
        }
        messages
    }

    /// An answer's text and the calls in it.
    pub(super) fn split(&self, text: &str) -> (String, Vec<ToolCall>) {
        if let Some(at) = text.find(TAG) {
            return match parse_calls(&text[at..]) {
                Ok(calls) if !calls.is_empty() => (text[..at].trim_end().to_owned(), self.at_most(calls)),
                _ => (text.to_owned(), Vec::new()),
            };
        }
        match parse_calls(text) {
            // In a notation without marks only the names tell a call from prose.
            Ok(calls) if !calls.is_empty() && calls.iter().all(|call| self.names.contains(&call.name)) => {
                (String::new(), self.at_most(calls))
            }
            _ => (text.to_owned(), Vec::new()),
        }
    }

    fn at_most(&self, mut calls: Vec<ToolCall>) -> Vec<ToolCall> {
        calls.truncate(self.most);
        calls
    }

    /// Whether a text that begins like this may, as a whole, turn out to be a call without marks.
    fn may_be_bare(&self, text: &str) -> bool {
        let text = text.trim_start();
        if text.is_empty() || text.starts_with(['{', '[', '`']) {
            return true;
        }
        self.names.iter().any(|name| match text.strip_prefix(name.as_str()) {
            Some(rest) => rest.trim_start().is_empty() || rest.trim_start().starts_with('('),
            None => name.starts_with(text),
        })
    }
}

fn wrong_choice(problem: &str) -> ApiError {
    let message = format!("`tool_choice` {problem}; expected `auto`, `none`, `required` or the name of a function");
    ApiError::invalid("tool_choice", message)
}

/// A tool as `name(a, b?)`, a parameter that may be left out marked by `?`.
fn signature(Tool(tool): &Tool) -> String {
    let function = &tool["function"];
    let parameters = &function["parameters"];
    let required = parameters["required"].as_array();
    let names = parameters["properties"].as_object().into_iter().flatten().map(|(name, _)| {
        let is_required = required.is_some_and(|required| required.iter().any(|r| r == name.as_str()));
        format!("{name}{}", if is_required { "" } else { "?" })
    });
    format!("{}({})", function["name"].as_str().unwrap_or_default(), names.collect::<Vec<_>>().join(", "))
}

/// Tells, while an answer is being written, what of it is surely no call and can be shown.
#[derive(Debug)]
pub(super) struct ToolWatch<'a> {
    tools: &'a Tools,
    text: String,
    /// Bytes that were given out.
    shown: usize,
}

impl<'a> ToolWatch<'a> {
    pub(super) fn new(tools: &'a Tools) -> Self {
        Self { tools, text: String::new(), shown: 0 }
    }

    /// Takes more of the answer; gives what can be shown now.
    pub(super) fn push(&mut self, piece: &str) -> String {
        self.text.push_str(piece);
        if self.shown == 0 && self.tools.may_be_bare(&self.text) {
            return String::new();
        }
        let sure = self.text.find(TAG).unwrap_or_else(|| {
            let tail = (1..TAG.len()).rev().find(|&n| self.text.ends_with(&TAG[..n])).unwrap_or(0);
            self.text.len() - tail
        });
        // Space before a call is no part of the text.
        let sure = self.text[..sure].trim_end().len();
        let out = self.text.get(self.shown..sure).unwrap_or_default().to_owned();
        self.shown = self.shown.max(sure);
        out
    }

    /// The rest, when the answer is complete.
    pub(super) fn finish(self) -> (String, Vec<ToolCall>) {
        let (content, calls) = self.tools.split(&self.text);
        (content.get(self.shown..).unwrap_or_default().to_owned(), calls)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Map;

    fn function(name: &str) -> Value {
        let parameters = json!({"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
                                "required": ["city"]});
        json!({"type": "function", "function": {"name": name, "description": "d", "parameters": parameters}})
    }

    fn tools() -> Tools {
        let tools = Tools::read(&[function("weather"), function("book")], None, true);
        tools.expect("they are right").expect("there are some")
    }

    #[test]
    fn calls_are_found_in_each_notation_and_prose_is_left_alone() {
        let tools = tools();
        let weather = |city: &str| ToolCall {
            id: None,
            name: "weather".into(),
            arguments: Map::from_iter([("city".into(), json!(city))]),
        };
        let tagged =
            "Let me see.\n<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"oslo\"}}\n</tool_call>";
        for (text, content, calls) in [
            (tagged, "Let me see.", vec![weather("oslo")]),
            ("weather(city=oslo)", "", vec![weather("oslo")]),
            ("[{\"name\": \"weather\", \"arguments\": {\"city\": \"oslo\"}}]", "", vec![weather("oslo")]),
            ("weather(city=oslo)\nweather(city=rome)", "", vec![weather("oslo"), weather("rome")]),
            ("The weather is fine.", "The weather is fine.", vec![]),
            ("rain(city=oslo)", "rain(city=oslo)", vec![]),
            ("none", "none", vec![]),
            ("<tool_call>{\"name\": </tool_call>", "<tool_call>{\"name\": </tool_call>", vec![]),
        ] {
            assert_eq!(tools.split(text), (content.to_owned(), calls), "{text}");
        }
    }

    #[test]
    fn what_is_shown_while_an_answer_is_written_adds_up_to_its_text() {
        let tools = tools();
        let texts = [
            "The weather is <b>fine</b>, and <tool_cal is no tag.",
            "Let me see. \n <tool_call>{\"name\": \"weather\", \"arguments\": {}}</tool_call>",
            "weather(city=oslo)",
            "weather is what it is",
            "w",
            "  \n",
            "{\"not\": \"a call\"}",
            "broken <tool_call>{\"name\"",
            "ünï <tool",
            "",
        ];
        for text in texts {
            let expected = tools.split(text);
            for width in 1..=text.chars().count().max(1) {
                let mut watch = ToolWatch::new(&tools);
                let mut shown = String::new();
                let chars: Vec<char> = text.chars().collect();
                for piece in chars.chunks(width) {
                    shown += &watch.push(&piece.iter().collect::<String>());
                }
                let (rest, calls) = watch.finish();
                assert_eq!((shown + &rest, calls), expected, "{text:?} in pieces of {width}");
            }
        }
        // Prose is not held back.
        let mut watch = ToolWatch::new(&tools);
        assert_eq!(watch.push("we"), "");
        assert_eq!(watch.push(" know"), "we know");
        assert_eq!(watch.push(" <"), "");
        assert_eq!(watch.push("3"), " <3");
    }

    #[test]
    fn a_template_without_tools_is_told_about_them_in_the_system_message() {
        let mut call = Message::new(Role::Assistant, "");
        call.tool_calls.push(ToolCall {
            id: None,
            name: "book".into(),
            arguments: Map::from_iter([("city".into(), json!("oslo"))]),
        });
        let messages = [Message::new(Role::System, "Be brief."), Message::new(Role::User, "hi"), call];
        let written = tools().written_out(&messages);
        assert!(written[0].content.starts_with("Be brief.\n\n"), "{written:?}");
        assert!(written[0].content.ends_with("weather(city, days?)\nbook(city, days?)"), "{written:?}");
        assert_eq!((written[2].content.as_str(), written[2].tool_calls.len()), ("book(city=oslo)", 0));
        assert_eq!(tools().written_out(&messages[1..])[0].role, Role::System);
    }

    #[test]
    fn a_required_call_is_a_constraint_and_wrong_choices_are_named() {
        let read = |choice: Value| Tools::read(&[function("weather"), function("book")], Some(&choice), true);
        let named =
            read(json!({"type": "function", "function": {"name": "book"}})).expect("it is one").expect("it is one");
        let Some(Constraint::JsonSchema(schema)) = named.constraint() else { panic!("a named tool has to be called") };
        assert_eq!(schema["properties"]["name"]["const"], "book");
        let required = read(json!("required")).expect("it is right").expect("there are some");
        let Some(Constraint::JsonSchema(schema)) = required.constraint() else { panic!("a tool has to be called") };
        assert_eq!(schema["anyOf"].as_array().map(Vec::len), Some(2));
        assert_eq!(read(json!("auto")).expect("it is right").expect("there are some").constraint(), None);
        assert_eq!(read(json!("none")), Ok(None));
        for wrong in [json!("always"), json!({"function": {"name": "swim"}}), json!(7)] {
            assert_eq!(read(wrong).expect_err("it is wrong").param.as_deref(), Some("tool_choice"));
        }
        let twice = Tools::read(&[function("a"), function("a")], None, true).expect_err("it is there twice");
        assert_eq!(twice.param.as_deref(), Some("tools[1].function.name"));
        let kind = Tools::read(&[json!({"type": "web_search"})], None, true).expect_err("it is no function");
        assert_eq!(kind.param.as_deref(), Some("tools[0].type"));
    }
}
