//! `didact serve` as clients meet it: the real program with a tiny model, spoken to over HTTP.
#![expect(clippy::unwrap_used, reason = "tests")]

mod common;

use common::World;
use didact_core::files;
use reqwest::blocking::{Client, Response};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Stdio};
use std::time::Duration;

/// A model whose context is long enough for answers that do not end by themselves while a test looks.
fn world() -> World {
    let world = World::new();
    let path = world.path("model").join("config.json");
    let mut config: Value = serde_json::from_slice(&files::read(&path).unwrap()).unwrap();
    config["max_position_embeddings"] = 100_000.into();
    files::write_atomic(&path, config.to_string().as_bytes()).unwrap();
    world
}

/// A running server, ended with the test.
struct Server {
    child: Child,
    url: String,
    client: Client,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    fn start(world: &World, options: &[&str]) -> Self {
        let fixed = ["serve", "--model", "model", "--port", "0", "--seed", "1", "-q"];
        let mut command = world.command(&[&fixed[..], options].concat());
        command.env("TEST_KEY", "open sesame");
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let Some((_, url)) = line.trim().split_once(" at ") else {
            let mut stderr = String::new();
            child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
            panic!("it does not serve: {line}{stderr}");
        };
        // A test that waits for what does not come fails rather than hangs.
        let client = Client::builder().no_proxy().timeout(Duration::from_mins(1)).build().unwrap();
        Self { child, url: url.to_owned(), client }
    }

    fn post(&self, path: &str, body: &Value) -> Response {
        let request = self.client.post(format!("{}/{path}", self.url)).header("Content-Type", "application/json");
        request.body(body.to_string()).send().unwrap()
    }

    /// A request that must be answered.
    fn ok(&self, path: &str, body: &Value) -> Value {
        let response = self.post(path, body);
        let (status, text) = (response.status(), response.text().unwrap());
        assert_eq!(status, 200, "{body}: {text}");
        serde_json::from_str(&text).unwrap()
    }

    /// A request that must be refused; gives the error.
    fn refused(&self, path: &str, body: &Value, status: u16) -> Value {
        let response = self.post(path, body);
        let (found, text) = (response.status(), response.text().unwrap());
        assert_eq!(found, status, "{body}: {text}");
        error(&text)
    }

    fn events(&self, path: &str, body: &Value) -> Vec<Value> {
        let mut body = body.clone();
        body["stream"] = true.into();
        let response = self.post(path, &body);
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        events(&response.text().unwrap())
    }

    fn get(&self, path: &str) -> Response {
        let base = self.url.strip_suffix("/v1").unwrap();
        self.client.get(format!("{base}{path}")).send().unwrap()
    }

    fn metric(&self, name: &str) -> u64 {
        let text = self.get("/metrics").text().unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("{name} is not in {text}")).parse().unwrap()
    }

    /// Sends a request whose answer has no end in sight, without waiting for it.
    fn begin_endless(&self, stream: bool) -> TcpStream {
        let body = endless(stream).to_string();
        let address = self.url.strip_prefix("http://").unwrap().strip_suffix("/v1").unwrap();
        let mut connection = TcpStream::connect(address).unwrap();
        let head = format!(
            "POST /v1/completions HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        connection.write_all((head + &body).as_bytes()).unwrap();
        while self.metric("didact_active_streams") == 0 {
            std::thread::yield_now();
        }
        connection
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(self.child.id().try_into().unwrap()).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }
}

/// A request that takes far longer than any test.
fn endless(stream: bool) -> Value {
    json!({"model": "model", "prompt": "a", "max_tokens": 90_000, "ignore_eos": true, "temperature": 0, "stream": stream})
}

/// The error of a response, which must have the API's shape.
fn error(text: &str) -> Value {
    let document: Value = serde_json::from_str(text).unwrap();
    let error = &document["error"];
    assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()), "{text}");
    assert!(error["type"].is_string(), "{text}");
    assert!(error.get("param").is_some() && error.get("code").is_some(), "{text}");
    error.clone()
}

/// The events of a stream, which must end as the API's do.
fn events(text: &str) -> Vec<Value> {
    let mut events: Vec<&str> = text.split("\n\n").filter(|event| !event.is_empty()).collect();
    assert_eq!(events.pop(), Some("data: [DONE]"), "{text}");
    events.iter().map(|event| serde_json::from_str(event.strip_prefix("data: ").unwrap()).unwrap()).collect()
}

fn chat(text: &str) -> Value {
    json!({"model": "model", "messages": [{"role": "user", "content": text}], "max_tokens": 12, "seed": 3})
}

/// What the events of choice `index` say, put together.
fn told(events: &[Value], index: u64) -> (String, Value) {
    let mut text = String::new();
    let mut finish_reason = Value::Null;
    for choice in events.iter().flat_map(|event| event["choices"].as_array().unwrap()).filter(|c| c["index"] == index) {
        text += choice["delta"]["content"].as_str().or_else(|| choice["text"].as_str()).unwrap_or_default();
        assert!(finish_reason.is_null(), "nothing comes after the end of an answer");
        finish_reason = choice["finish_reason"].clone();
    }
    (text, finish_reason)
}

#[test]
fn chats_and_completions_are_answered_as_the_command_line_answers_them() {
    let world = world();
    let server = Server::start(&world, &[]);
    let answer = server.ok("chat/completions", &chat("hi"));
    assert_eq!(answer["object"], "chat.completion");
    assert_eq!(answer["model"], "model");
    let choice = &answer["choices"][0];
    assert_eq!(choice["message"]["role"], "assistant");
    assert!(choice["message"]["content"].is_string() && choice["logprobs"].is_null(), "{answer}");
    let usage = &answer["usage"];
    assert_eq!(
        usage["total_tokens"].as_u64(),
        usage["prompt_tokens"].as_u64().zip(usage["completion_tokens"].as_u64()).map(|(a, b)| a + b)
    );
    assert_eq!(
        server.ok("chat/completions", &chat("hi"))["choices"],
        answer["choices"],
        "the same seed, the same answer"
    );
    // Parts of text are text, and `developer` is the new name of `system`.
    let parts = json!({"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}], "max_tokens": 12, "seed": 3,
                       "user": "somebody", "metadata": {"a": "b"}, "top_p": null});
    assert_eq!(server.ok("chat/completions", &parts)["choices"], answer["choices"]);

    let request = json!({"model": "model", "prompt": "add 1", "max_tokens": 8, "temperature": 0, "logprobs": 2});
    let completion = server.ok("completions", &request);
    let arguments = ["generate", "--model", "model", "--prompt", "add 1", "--max-tokens", "8"];
    let generated = &world.json(&arguments, 0)["completions"][0];
    let choice = &completion["choices"][0];
    assert_eq!(choice["text"], generated["text"]);
    let scores = &choice["logprobs"];
    let sum: f64 = scores["token_logprobs"].as_array().unwrap().iter().map(|p| p.as_f64().unwrap()).sum();
    // Sums of at most 8 f32 values.
    assert!((sum - generated["sum_logprob"].as_f64().unwrap()).abs() < 1e-4, "{choice} {generated}");
    assert_eq!(
        scores["tokens"].as_array().unwrap().len() as u64,
        completion["usage"]["completion_tokens"].as_u64().unwrap()
    );
    assert_eq!(scores["text_offset"][0], 0);
    for (top, (token, p)) in scores["top_logprobs"]
        .as_array()
        .unwrap()
        .iter()
        .zip(scores["tokens"].as_array().unwrap().iter().zip(scores["token_logprobs"].as_array().unwrap()))
    {
        let best = top.as_object().unwrap().values().map(|p| p.as_f64().unwrap()).fold(f64::NEG_INFINITY, f64::max);
        assert_eq!(top[token.as_str().unwrap()], *p);
        assert_eq!(best, p.as_f64().unwrap(), "greedy decoding takes the likeliest token");
    }
    let several = json!({"model": "model", "prompt": ["add 1", [97, 98]], "max_tokens": 3, "n": 2, "temperature": 1, "echo": true, "seed": 5});
    let several = server.ok("completions", &several);
    let choices = several["choices"].as_array().unwrap();
    assert_eq!(choices.iter().map(|c| c["index"].as_u64().unwrap()).collect::<Vec<_>>(), [0, 1, 2, 3]);
    assert!(choices[1]["text"].as_str().unwrap().starts_with("add 1"), "{several}");
}

#[test]
fn a_prompt_is_scored_as_the_command_line_scores_it() {
    let world = world();
    let server = Server::start(&world, &[]);
    world.write("pairs.jsonl", "{\"prompt\": \"add 1\", \"continuation\": \" is it\"}\n");
    let scored = &world.json(&["score", "--model", "model", "--input", "pairs.jsonl"], 0)["results"][0];
    // As the lm-evaluation-harness asks, and with nothing generated.
    for max_tokens in [0, 1] {
        let request = json!({"model": "model", "prompt": "add 1 is it", "max_tokens": max_tokens, "temperature": 0,
                             "echo": true, "logprobs": 1});
        let answer = server.ok("completions", &request);
        let choice = &answer["choices"][0];
        assert!(choice["text"].as_str().unwrap().starts_with("add 1 is it"), "{answer}");
        let list = |name: &str| choice["logprobs"][name].as_array().unwrap().clone();
        let (log_probs, top, offsets) = (list("token_logprobs"), list("top_logprobs"), list("text_offset"));
        assert!(log_probs[0].is_null() && top[0].is_null(), "{choice}");
        assert_eq!(answer["usage"]["completion_tokens"].as_u64().unwrap() as usize, log_probs.len() - 11);
        // Tokens are bytes: the continuation has 6.
        assert_eq!((offsets[5].as_u64(), scored["tokens"].as_u64()), (Some(5), Some(6)));
        let sum: f64 = log_probs[5..11].iter().map(|p| p.as_f64().unwrap()).sum();
        // Sums of six f32 values, computed in passes of other shapes.
        assert!((sum - scored["sum_logprob"].as_f64().unwrap()).abs() < 1e-4, "{choice} {scored}");
        let is_greedy = (5..11).all(|i| {
            let best =
                top[i].as_object().unwrap().values().map(|p| p.as_f64().unwrap()).fold(f64::NEG_INFINITY, f64::max);
            log_probs[i].as_f64().unwrap() >= best
        });
        assert_eq!(json!(is_greedy), scored["greedy"]);
    }
    let request = json!({"prompt": "a", "echo": true, "logprobs": 1, "stream": true});
    assert_eq!(server.refused("completions", &request, 400)["param"], "stream");
}

#[test]
fn a_stream_says_in_pieces_what_the_whole_says() {
    let world = world();
    let server = Server::start(&world, &[]);
    let mut request = chat("hi");
    request["n"] = 3.into();
    request["logprobs"] = true.into();
    request["top_logprobs"] = 2.into();
    let whole = server.ok("chat/completions", &request);
    request["stream_options"] = json!({"include_usage": true});
    let events = server.events("chat/completions", &request);
    let (usage, events) = events.split_last().unwrap();
    assert_eq!((&usage["usage"], usage["choices"].as_array().map(Vec::len)), (&whole["usage"], Some(0)));
    assert_eq!(events[0]["object"], "chat.completion.chunk");
    assert!(events.iter().all(|event| event["id"] == events[0]["id"] && event["usage"].is_null()));
    let mut texts = Vec::new();
    for choice in whole["choices"].as_array().unwrap() {
        let index = choice["index"].as_u64().unwrap();
        let (text, finish_reason) = told(events, index);
        assert_eq!(json!(text), choice["message"]["content"]);
        assert_eq!(finish_reason, choice["finish_reason"]);
        let scores: Vec<Value> = events
            .iter()
            .flat_map(|event| event["choices"].as_array().unwrap())
            .filter(|c| c["index"] == index)
            .flat_map(|c| c["logprobs"]["content"].as_array().cloned().unwrap_or_default())
            .collect();
        assert_eq!(json!(scores), choice["logprobs"]["content"]);
        assert_eq!(scores[0]["top_logprobs"].as_array().unwrap().len(), 2);
        assert!(scores[0]["bytes"].is_array());
        texts.push(text);
    }
    texts.dedup();
    assert_eq!(texts.len(), 3, "the answers to one request differ");

    let request = json!({"model": "model", "prompt": "add 1", "max_tokens": 8, "temperature": 0});
    let events = server.events("completions", &request);
    assert_eq!(json!(told(&events, 0).0), server.ok("completions", &request)["choices"][0]["text"]);
    assert!(events.iter().all(|event| event.get("usage").is_none()));
}

#[test]
fn a_stop_string_and_a_bias_do_what_they_say() {
    let world = world();
    let server = Server::start(&world, &[]);
    let mut request = json!({"model": "model", "prompt": "add 1", "max_tokens": 8, "temperature": 0});
    let whole = server.ok("completions", &request)["choices"][0]["text"].as_str().unwrap().to_owned();
    let last = whole.chars().rev().find(char::is_ascii).unwrap();
    request["stop"] = last.to_string().into();
    let stopped = server.ok("completions", &request);
    let begin = &whole[..whole.find(last).unwrap()];
    assert_eq!(stopped["choices"][0]["text"], begin);
    assert_eq!(stopped["choices"][0]["finish_reason"], "stop");
    assert_eq!(told(&server.events("completions", &request), 0).0, begin);
    request["stop"] = Value::Null;
    request["logit_bias"] = json!({"98": 100});
    request["logprobs"] = 0.into();
    let biased = server.ok("completions", &request);
    let tokens = biased["choices"][0]["logprobs"]["tokens"].as_array().unwrap().clone();
    assert!(tokens.iter().all(|token| *token == tokens[0]), "{biased}");
}

#[test]
fn what_is_wrong_is_said_in_the_shape_of_the_api() {
    let world = world();
    let server = Server::start(&world, &["--max-request-bytes", "20000"]);
    let with = |name: &str, value: Value| {
        let mut request = chat("hi");
        request[name] = value;
        request
    };
    for (request, status, param, code) in [
        (with("model", json!("gpt-5")), 404, json!("model"), json!("model_not_found")),
        (with("temprature", json!(1)), 400, json!("temprature"), json!("unknown_parameter")),
        (with("temperature", json!(-1)), 400, json!("temperature"), Value::Null),
        (with("temperature", json!("hot")), 400, json!("temperature"), Value::Null),
        (with("n", json!(0)), 400, json!("n"), Value::Null),
        (with("top_logprobs", json!(2)), 400, json!("top_logprobs"), Value::Null),
        (with("stream_options", json!({})), 400, json!("stream_options"), Value::Null),
        (with("messages", json!([])), 400, json!("messages"), Value::Null),
        (with("messages", json!([{"role": "king", "content": "hi"}])), 400, json!("messages[0].role"), Value::Null),
        (with("messages", json!([{"role": "user"}])), 400, json!("messages[0].content"), Value::Null),
        (
            with("messages", json!([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}])),
            400,
            json!("messages[0].content"),
            json!("unsupported_value"),
        ),
        (with("tool_choice", json!("required")), 400, json!("tool_choice"), Value::Null),
        (with("tools", json!([{"type": "web_search"}])), 400, json!("tools[0].type"), json!("unsupported_value")),
        (with("response_format", json!({"type": "yaml"})), 400, json!("response_format.type"), Value::Null),
        (with("logit_bias", json!({"x": 1})), 400, json!("logit_bias.x"), Value::Null),
    ] {
        let error = server.refused("chat/completions", &request, status);
        assert_eq!((&error["param"], &error["code"]), (&param, &code), "{error}");
        assert_eq!(error["type"], "invalid_request_error");
    }
    let suggested = server.refused("chat/completions", &with("temprature", json!(1)), 400);
    assert!(suggested["message"].as_str().unwrap().contains("`temperature`"), "{suggested}");
    server.refused("completions", &json!({"model": "model"}), 400);
    server.refused("completions", &json!({"prompt": [1, "a"]}), 400);
    let unknown = server.refused("completions", &json!({"prompt": [99999]}), 400);
    assert!(unknown["message"].as_str().unwrap().contains("99999"), "{unknown}");
    let embeddings = server.refused("embeddings", &json!({"input": "x", "model": "model"}), 400);
    assert!(embeddings["message"].as_str().unwrap().contains("no embeddings"), "{embeddings}");
    server.refused("completions", &json!({"prompt": "x".repeat(30_000)}), 413);

    let url = |path: &str| format!("{}/{path}", server.url);
    let raw = |body: &'static str, kind: &str| {
        let sent = server.client.post(url("completions")).header("Content-Type", kind).body(body).send().unwrap();
        (sent.status().as_u16(), error(&sent.text().unwrap()))
    };
    assert_eq!(raw("{\"prompt\": ", "application/json").0, 400);
    assert_eq!(raw("[]", "application/json").0, 400);
    assert_eq!(raw("{\"prompt\": \"a\"}", "text/plain").0, 415);
    let wrong_verb = server.client.get(url("completions")).send().unwrap();
    assert_eq!((wrong_verb.status().as_u16(), &wrong_verb.headers()["allow"]), (405, &"POST".parse().unwrap()));
    error(&wrong_verb.text().unwrap());
    let nowhere = server.get("/v2/completions");
    assert_eq!(nowhere.status(), 404);
    error(&nowhere.text().unwrap());
    // A name that somebody else made mean this machine.
    let rebound = server.client.get(url("models")).header("Host", "evil.example").send().unwrap();
    assert_eq!(rebound.status(), 403);
    // Nothing of this has harmed the server.
    server.ok("chat/completions", &chat("hi"));
}

#[test]
fn adapters_are_models_of_their_own_or_answer_for_the_model() {
    let world = world();
    world.adapter("adapter");
    let answer = |server: &Server, model: &str| {
        let request = json!({"model": model, "prompt": "add 3", "max_tokens": 8, "temperature": 0, "logprobs": 0});
        let answer = server.ok("completions", &request);
        assert_eq!(answer["model"], model);
        // Scores of a given text come from the adapter as well.
        let read = json!({"model": model, "prompt": "add 3 is it", "max_tokens": 0, "echo": true, "logprobs": 0});
        let read = server.ok("completions", &read);
        (answer["choices"][0]["logprobs"].clone(), read["choices"][0]["logprobs"].clone())
    };
    let named = Server::start(&world, &["--adapter", "tuned=adapter"]);
    let models: Value = serde_json::from_str(&named.get("/v1/models").text().unwrap()).unwrap();
    assert_eq!((&models["data"][0]["id"], &models["data"][1]["id"]), (&json!("model"), &json!("tuned")));
    assert_eq!(named.get("/v1/models/tuned").status(), 200);
    let (base, tuned) = (answer(&named, "model"), answer(&named, "tuned"));
    assert!(base.0 != tuned.0 && base.1 != tuned.1, "{base:?}");
    let unknown = named.refused("completions", &json!({"model": "other", "prompt": "x"}), 404);
    assert!(unknown["message"].as_str().unwrap().contains("`model`, `tuned`"), "{unknown}");
    let plain = Server::start(&world, &[]);
    assert_eq!(answer(&plain, "model"), base);
    let alone = Server::start(&world, &["--adapter", "adapter"]);
    assert_eq!(answer(&alone, "model"), tuned);
    let two = ["serve", "--model", "model", "--adapter", "adapter", "--adapter", "model=adapter"];
    assert!(world.refused(&two, 2).contains("two would answer for `model`"));
    let two = ["serve", "--model", "model", "--adapter", "a=adapter", "--adapter", "a=adapter"];
    assert!(world.refused(&two, 2).contains("two adapters are called `a`"));
}

#[test]
fn a_served_model_scores_as_a_local_one_does() {
    let world = world();
    let server = Server::start(&world, &[]);
    world.write(
        "pairs.jsonl",
        "{\"prompt\": \"add 1\", \"continuation\": \" is it\"}\n{\"prompt\": \"add 1\", \"continuation\": \"!\"}\n",
    );
    let local = world.json(&["score", "--model", "model", "--input", "pairs.jsonl"], 0);
    let remote = ["score", "--endpoint", &server.url, "--model", "model", "--input", "pairs.jsonl"];
    let kept = [&remote[..], &["--journal", "kept.jsonl"]].concat();
    for paid in [2, 0] {
        let scored = world.json(&kept, 0);
        assert_eq!(scored["bill"]["paid"]["responses"], paid);
        for i in 0..2 {
            let (mine, theirs) = (&local["results"][i], &scored["results"][i]);
            assert_eq!((&mine["tokens"], &mine["greedy"]), (&theirs["tokens"], &theirs["greedy"]));
            let [mine, theirs] = [mine, theirs].map(|row| row["sum_logprob"].as_f64().unwrap());
            // Sums of up to six f32 values, computed in passes of other shapes.
            assert!((mine - theirs).abs() < 1e-4, "{mine} {theirs}");
        }
    }
}

#[test]
fn models_health_and_metrics_tell_what_there_is() {
    let world = world();
    let server = Server::start(&world, &["--name", "tiny"]);
    let models: Value = serde_json::from_str(&server.get("/v1/models").text().unwrap()).unwrap();
    assert_eq!((&models["data"][0]["id"], &models["data"][0]["object"]), (&json!("tiny"), &json!("model")));
    assert_eq!(server.get("/v1/models/tiny").status(), 200);
    assert_eq!(server.get("/v1/models/huge").status(), 404);
    assert_eq!(server.get("/health").text().unwrap(), "{\"status\":\"ok\"}");
    let mut request = chat("hi");
    request["model"] = "tiny".into();
    let usage = server.ok("chat/completions", &request)["usage"].clone();
    assert_eq!(json!(server.metric("didact_prompt_tokens_total")), usage["prompt_tokens"]);
    assert_eq!(json!(server.metric("didact_generated_tokens_total")), usage["completion_tokens"]);
    assert_eq!(server.metric("didact_requests_total{endpoint=\"chat\",code=\"200\"}"), 1);
    assert_eq!(server.metric("didact_request_seconds_count"), 1);
    assert_eq!(server.metric("didact_active_requests"), 0);
}

#[test]
fn a_key_is_asked_for_and_neither_shown_nor_guessed() {
    let world = world();
    let server = Server::start(&world, &["--api-key-env", "TEST_KEY"]);
    let url = format!("{}/models", server.url);
    for (header, status) in [
        (None, 401),
        (Some("Bearer wrong"), 401),
        (Some("Bearer "), 401),
        (Some("open sesame"), 401),
        (Some("Bearer open sesame"), 200),
    ] {
        let mut request = server.client.get(&url);
        if let Some(header) = header {
            request = request.header("Authorization", header);
        }
        let response = request.send().unwrap();
        assert_eq!(response.status(), status, "{header:?}");
        let text = response.text().unwrap();
        assert!(!text.contains("sesame"), "{text}");
        if status == 401 {
            assert_eq!(error(&text)["code"], "invalid_api_key");
        }
    }
    assert_eq!(server.get("/health").status(), 200);
    assert_eq!(server.get("/metrics").status(), 401);
    let stderr = world.refused(&["serve", "--model", "model", "--api-key-env", "NO_SUCH_VARIABLE"], 2);
    assert!(stderr.contains("NO_SUCH_VARIABLE"), "{stderr}");
}

#[test]
fn fifty_clients_at_once_get_what_each_would_get_alone() {
    let world = world();
    // Fewer places than clients: some wait.
    let server = Server::start(&world, &["--max-concurrent", "16"]);
    let request = |i: usize| {
        let mut request = chat(&format!("add {i}"));
        request["seed"] = i.into();
        request["max_tokens"] = (4 + i % 13).into();
        request
    };
    let together: Vec<Value> = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..50)
            .map(|i| {
                let (server, request) = (&server, request(i));
                scope.spawn(move || {
                    if i % 2 == 0 {
                        return server.ok("chat/completions", &request)["choices"][0]["message"]["content"].clone();
                    }
                    told(&server.events("chat/completions", &request), 0).0.into()
                })
            })
            .collect();
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    });
    for (i, answer) in together.iter().enumerate().step_by(7) {
        assert_eq!(
            server.ok("chat/completions", &request(i))["choices"][0]["message"]["content"],
            *answer,
            "client {i}"
        );
    }
    assert_eq!(server.metric("didact_queue_length"), 0);
}

#[test]
fn a_client_that_leaves_frees_its_place() {
    let world = world();
    let server = Server::start(&world, &["--max-concurrent", "1"]);
    for (left, stream) in [(1, true), (2, false)] {
        let connection = server.begin_endless(stream);
        drop(connection);
        // There is one place: this would wait for the endless answer.
        server.ok("chat/completions", &chat("hi"));
        assert_eq!(server.metric("didact_abandoned_total"), left);
        assert_eq!(server.metric("didact_active_streams"), 0);
    }
}

#[test]
fn who_finds_the_queue_full_is_told_when_to_come_back() {
    let world = world();
    let server = Server::start(&world, &["--max-concurrent", "1", "--max-queue", "0"]);
    let _busy = server.begin_endless(true);
    let response = server.post("chat/completions", &chat("hi"));
    assert_eq!(response.status(), 429);
    assert_eq!(response.headers()["retry-after"], "1");
    let error = error(&response.text().unwrap());
    assert_eq!((&error["type"], &error["code"]), (&json!("rate_limit_error"), &json!("rate_limit_exceeded")));
}

#[test]
fn a_request_has_its_time_and_no_more() {
    let world = world();
    let server = Server::start(&world, &["--timeout", "2"]);
    assert_eq!(server.refused("completions", &endless(false), 504)["code"], "timeout");
    let response = server.post("completions", &endless(true));
    assert_eq!(response.status(), 200, "it had begun");
    let text = response.text().unwrap();
    let last = text.trim_end().rsplit("\n\n").next().unwrap();
    assert_eq!(error(last.strip_prefix("data: ").unwrap())["code"], "timeout");
    assert_eq!(server.metric("didact_active_requests"), 0);
}

#[test]
fn a_stop_gives_what_is_under_way_its_time_and_then_gives_it_up() {
    let world = world();
    let mut server = Server::start(&world, &["--shutdown-timeout", "0.2"]);
    let response = server.post("completions", &endless(true));
    assert_eq!(response.status(), 200);
    server.signal(rustix::process::Signal::TERM);
    let text = response.text().unwrap();
    let last = text.trim_end().rsplit("\n\n").next().unwrap();
    assert_eq!(error(last.strip_prefix("data: ").unwrap())["code"], "shutting_down");
    assert_eq!(server.child.wait().unwrap().code(), Some(143));

    // What can finish in time does.
    let mut server = Server::start(&world, &["--shutdown-timeout", "60"]);
    let mut request = endless(true);
    request["max_tokens"] = 2000.into();
    let response = server.post("completions", &request);
    server.signal(rustix::process::Signal::INT);
    let events = events(&response.text().unwrap());
    assert_eq!(told(&events, 0).1, "length");
    assert_eq!(server.child.wait().unwrap().code(), Some(130));
}

fn tools() -> Value {
    let parameters = json!({"type": "object", "properties": {"city": {"enum": ["oslo"]}}, "required": ["city"],
                            "additionalProperties": false});
    json!([{"type": "function", "function": {"name": "weather", "parameters": parameters}}])
}

#[test]
fn tools_are_told_to_the_model_and_its_calls_come_back_as_calls() {
    let world = world();
    let server = Server::start(&world, &[]);
    let plain = server.ok("chat/completions", &chat("hi"));
    let mut request = chat("hi");
    request["tools"] = tools();
    request["max_tokens"] = 80.into();
    let told_about = server.ok("chat/completions", &request);
    let tokens = |answer: &Value| answer["usage"]["prompt_tokens"].as_u64().unwrap();
    // Tokens are bytes here: the signature alone has 13.
    assert!(tokens(&told_about) > tokens(&plain) + 13, "{told_about}");
    // The model knows nothing: it has to be made to call.
    request["tool_choice"] = json!({"type": "function", "function": {"name": "weather"}});
    request["temperature"] = 0.into();
    let called = server.ok("chat/completions", &request);
    let choice = &called["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls", "{called}");
    assert!(choice["message"]["content"].is_null());
    let call = &choice["message"]["tool_calls"][0];
    assert_eq!((&call["type"], &call["function"]["name"]), (&json!("function"), &json!("weather")));
    let arguments: Value = serde_json::from_str(call["function"]["arguments"].as_str().unwrap()).unwrap();
    assert_eq!(arguments, json!({"city": "oslo"}));
    let events = server.events("chat/completions", &request);
    let streamed: Vec<&Value> =
        events.iter().filter_map(|e| e["choices"][0]["delta"]["tool_calls"].as_array()).flatten().collect();
    assert_eq!(streamed.len(), 1);
    assert_eq!((&streamed[0]["function"], &streamed[0]["index"]), (&call["function"], &json!(0)));
    assert_eq!(told(&events, 0), (String::new(), json!("tool_calls")));
    // The conversation goes on with what the tool said.
    request["tool_choice"] = "none".into();
    request["messages"] = json!([
        {"role": "user", "content": "hi"},
        choice["message"],
        {"role": "tool", "tool_call_id": call["id"], "content": "rain"},
    ]);
    server.ok("chat/completions", &request);
}

#[test]
fn a_response_format_is_kept() {
    let world = world();
    let server = Server::start(&world, &[]);
    let mut request = chat("hi");
    request["max_tokens"] = 200.into();
    let schema = json!({"type": "object", "properties": {"n": {"enum": [1, 22]}}, "required": ["n"], "additionalProperties": false});
    request["response_format"] =
        json!({"type": "json_schema", "json_schema": {"name": "x", "strict": true, "schema": schema}});
    let answer = server.ok("chat/completions", &request);
    let content: Value = serde_json::from_str(answer["choices"][0]["message"]["content"].as_str().unwrap()).unwrap();
    assert!(content == json!({"n": 1}) || content == json!({"n": 22}), "{answer}");
    request["response_format"]["json_schema"]["schema"] = json!({"type": "no such type"});
    let error = server.refused("chat/completions", &request, 400);
    assert_eq!(error["param"], "response_format");
    server.ok("chat/completions", &chat("hi"));
}

#[test]
fn didact_asks_a_server_as_it_would_its_own_model_and_pays_once() {
    let world = world();
    let server = Server::start(&world, &["--api-key-env", "TEST_KEY"]);
    let message = json!([{"role": "user", "content": "hi"}]);
    let rows = (0..6).map(|i| json!({"prompt": format!("add {i}")})).chain([json!({"messages": message})]);
    world.write("prompts.jsonl", &rows.map(|row| row.to_string() + "\n").collect::<String>());
    let common =
        ["generate", "--model", "model", "--input", "prompts.jsonl", "--max-tokens", "6", "--temperature", "0.8"];
    let local = world.json(&common, 0);
    let remote = |expected: i32, key: &str| {
        let more = ["--endpoint", &server.url, "--api-key-env", "KEY", "--journal", "answers.jsonl", "--json"];
        let output = world.command(&[&common[..], &more].concat()).env("KEY", key).output().unwrap();
        let (stdout, stderr) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
        assert_eq!(output.status.code(), Some(expected), "{stderr}");
        assert!(!stdout.contains("sesame") && !stderr.contains("sesame"), "{stdout}{stderr}");
        serde_json::from_str::<Value>(&stdout).unwrap()
    };
    let refused = remote(2, "wrong sesame");
    assert!(refused["error"].as_str().unwrap().contains("API key"), "{refused}");
    let texts = |report: &Value| -> Vec<Value> {
        report["completions"].as_array().unwrap().iter().map(|row| row["text"].clone()).collect()
    };
    let first = remote(0, "open sesame");
    assert_eq!(texts(&first), texts(&local));
    assert_eq!((&first["bill"]["paid"]["responses"], &first["bill"]["kept"]["responses"]), (&json!(7), &json!(0)));
    assert_eq!(first["prompt_tokens"], local["prompt_tokens"]);
    let again = remote(0, "open sesame");
    assert_eq!(texts(&again), texts(&local));
    assert_eq!((&again["bill"]["paid"]["responses"], &again["bill"]["kept"]["responses"]), (&json!(0), &json!(7)));
    let journal = files::read_to_string(world.path("answers.jsonl")).unwrap();
    assert!(!journal.contains("sesame"), "{journal}");
}
