//! The client for servers, against a server in this process that does what servers do wrong.
#![cfg(feature = "remote")]

use didact_core::cancel::Cancel;
use didact_core::fault::{Classify, Fault};
use didact_core::files;
use didact_core::generate::{
    Completion, FinishReason, GenerateError, Generator, Prompt, Request, RequestError, Sampling,
};
use didact_core::message::{Message, Role};
use didact_infer::remote::{Backoff, Prices, RemoteError, RemoteGenerator, RemoteOptions};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

/// What the server was asked.
struct Asked {
    path: String,
    headers: Vec<String>,
    body: Value,
}

/// What it does about it.
enum Reply {
    Json(u16, Value),
    /// Status, further headers, body.
    Raw(u16, &'static str, String),
    /// Promises more than it sends.
    Half(&'static str, String),
    /// Says nothing for as long as the client listens.
    Silence,
}

type Script = dyn Fn(usize, &Asked) -> Reply + Send + Sync;

/// A server on a port of its own, which lives as long as the test program.
struct Server {
    url: String,
    asked: Arc<Mutex<Vec<Asked>>>,
    /// Requests being answered now, and the most there ever were.
    busy: Arc<(AtomicUsize, AtomicUsize)>,
}

impl Server {
    fn new(script: impl Fn(usize, &Asked) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}/v1", listener.local_addr().expect("an address"));
        let (asked, busy) = (Arc::new(Mutex::new(Vec::new())), Arc::<(AtomicUsize, AtomicUsize)>::default());
        let script: Arc<Script> = Arc::new(script);
        let server = Self { url, asked: Arc::clone(&asked), busy: Arc::clone(&busy) };
        std::thread::spawn(move || {
            for connection in listener.incoming().map_while(Result::ok) {
                let (script, asked, busy) = (Arc::clone(&script), Arc::clone(&asked), Arc::clone(&busy));
                std::thread::spawn(move || serve(connection, &*script, &asked, &busy));
            }
        });
        server
    }

    fn options(&self) -> RemoteOptions {
        RemoteOptions {
            backoff: Backoff { first: Duration::from_millis(1), most: Duration::from_millis(4) },
            max_attempts: 4,
            ..RemoteOptions::new(&self.url, "m")
        }
    }

    fn generator(&self) -> RemoteGenerator {
        RemoteGenerator::new(self.options()).expect("the options are right")
    }

    fn count(&self) -> usize {
        self.asked.lock().expect("whole").len()
    }
}

fn serve(mut connection: TcpStream, script: &Script, asked: &Mutex<Vec<Asked>>, busy: &(AtomicUsize, AtomicUsize)) {
    let mut reader = BufReader::new(connection.try_clone().expect("a second handle"));
    loop {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).unwrap_or(0) == 0 {
                return;
            }
            let line = line.trim_end().to_owned();
            if line.is_empty() {
                break;
            }
            lines.push(line);
        }
        let length = lines.iter().find_map(|l| l.to_lowercase().strip_prefix("content-length:")?.trim().parse().ok());
        let mut body = vec![0; length.unwrap_or(0)];
        reader.read_exact(&mut body).expect("the body comes");
        let path = lines[0].split(' ').nth(1).unwrap_or_default().to_owned();
        let request = Asked { path, headers: lines, body: serde_json::from_slice(&body).expect("JSON is sent") };
        let now = busy.0.fetch_add(1, Ordering::SeqCst) + 1;
        busy.1.fetch_max(now, Ordering::SeqCst);
        let number = {
            let mut asked = asked.lock().expect("whole");
            asked.push(Asked {
                path: request.path.clone(),
                headers: request.headers.clone(),
                body: request.body.clone(),
            });
            asked.len() - 1
        };
        let reply = script(number, &request);
        busy.0.fetch_sub(1, Ordering::SeqCst);
        let (status, headers, body, promised) = match reply {
            Reply::Json(status, body) => (status, "Content-Type: application/json", body.to_string(), None),
            Reply::Raw(status, headers, body) => (status, headers, body, None),
            Reply::Half(headers, body) => (200, headers, body, Some(100)),
            Reply::Silence => {
                // Until the client gives up and closes.
                let _ = reader.read(&mut [0]);
                return;
            }
        };
        let length = body.len() + promised.unwrap_or(0);
        let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {length}\r\n{headers}\r\n\r\n");
        if connection.write_all((head + &body).as_bytes()).is_err() || promised.is_some() {
            return;
        }
    }
}

/// Answers by saying the prompt backwards.
fn backwards(asked: &Asked) -> Value {
    let prompt = asked.body["prompt"].as_str().unwrap_or("?");
    let text: String = prompt.chars().rev().collect();
    let n = asked.body["n"].as_u64().unwrap_or(1);
    let choices = (0..n).map(|i| json!({"index": i, "text": format!("{text}{i}"), "finish_reason": "stop"}));
    json!({"choices": choices.collect::<Value>(), "usage": {"prompt_tokens": 10, "completion_tokens": 3 * n}})
}

fn request(text: &str) -> Request {
    Request { prompt: Prompt::Text(text.into()), sampling: Sampling::default() }
}

fn requests(count: usize) -> Vec<Request> {
    (0..count).map(|i| request(&format!("p{i}"))).collect()
}

fn texts(completion: &Completion) -> Vec<&str> {
    completion.answers.iter().map(|answer| answer.text.as_str()).collect()
}

type Outcome = Option<Result<Completion, RequestError>>;

fn ask(generator: &RemoteGenerator, requests: &[Request]) -> Result<Vec<Outcome>, GenerateError> {
    generator.generate_all(requests, &Cancel::new())
}

fn answered(outcome: &Outcome) -> &Completion {
    outcome.as_ref().expect("it was asked").as_ref().expect("it was answered")
}

fn remote(error: &GenerateError) -> &RemoteError {
    error.source.as_ref().and_then(|e| e.downcast_ref()).expect("the endpoint is at fault")
}

#[test]
fn what_passes_is_asked_again_and_the_others_are_not() {
    // The first attempts meet another trouble each.
    let server = Server::new(|number, asked| match number {
        0 => Reply::Raw(429, "Retry-After: 0", "{\"error\": {\"message\": \"slow down\"}}".into()),
        1 => Reply::Raw(500, "X-A: b", "<html>oops</html>".into()),
        2 => Reply::Raw(200, "Content-Type: application/json", "<html>login</html>".into()),
        3 => Reply::Half("Content-Type: application/json", "{\"choices\": [".into()),
        4 => Reply::Json(200, json!({"choices": []})),
        5 => Reply::Half(
            "Content-Type: text/event-stream",
            "data: {\"choices\":[{\"index\":0,\"text\":\"ha\"}]}\n\n".into(),
        ),
        _ => Reply::Json(200, backwards(asked)),
    });
    let options = RemoteOptions { concurrency: 1, max_attempts: 8, ..server.options() };
    let generator = RemoteGenerator::new(options).expect("the options are right");
    let outcomes = ask(&generator, &requests(3)).expect("the endpoint works");
    let found: Vec<_> = outcomes.iter().map(|outcome| texts(answered(outcome))).collect();
    assert_eq!(found, [["0p0"], ["1p0"], ["2p0"]]);
    assert_eq!(server.count(), 6 + 3);
    assert_eq!(generator.bill().retries, 6);
    assert_eq!(answered(&outcomes[0]).prompt_tokens, 10);
}

#[test]
fn a_refused_request_fails_alone_and_is_not_asked_again() {
    let server = Server::new(|_, asked| match asked.body["prompt"].as_str() {
        Some("p1") => Reply::Json(400, json!({"error": {"message": "too long", "code": "context_length_exceeded"}})),
        _ => Reply::Json(200, backwards(asked)),
    });
    let outcomes = ask(&server.generator(), &requests(3)).expect("the endpoint works");
    assert_eq!(outcomes[1], Some(Err(RequestError::Refused { status: 400, message: "too long".into() })));
    assert_eq!(texts(answered(&outcomes[2])), ["2p0"]);
    assert_eq!(server.count(), 3);
}

#[test]
fn an_unanswered_request_fails_alone_and_several_in_a_row_are_the_endpoint() {
    let server = Server::new(|_, asked| match asked.body["prompt"].as_str() {
        Some("p1") => Reply::Json(503, json!({"error": "no"})),
        _ => Reply::Json(200, backwards(asked)),
    });
    let outcomes = ask(&server.generator(), &requests(3)).expect("the endpoint works");
    let Some(Err(RequestError::Unanswered { attempts: 4, message })) = &outcomes[1] else { panic!("{outcomes:?}") };
    assert_eq!(message, "status 503: no");
    assert_eq!(texts(answered(&outcomes[2])), ["2p0"]);

    let down = Server::new(|_, _| Reply::Json(503, json!({"error": {"message": "down for repair"}})));
    let error = ask(&down.generator(), &requests(100)).expect_err("it answers nothing");
    assert!(matches!(remote(&error), RemoteError::Failing { requests: 4, attempts: 4, .. }), "{error}");
    assert!(error.to_string().contains("down for repair"), "{error}");
    assert!(down.count() < 100, "most requests were never sent");
}

#[test]
fn what_no_request_can_help_ends_the_batch() {
    for (status, body) in [
        (401, json!({"error": {"message": "no such key"}})),
        (404, json!({"error": {"message": "no such model"}})),
        (429, json!({"error": {"message": "no money", "code": "insufficient_quota"}})),
        (308, json!({})),
    ] {
        let server = Server::new(move |_, _| Reply::Json(status, body.clone()));
        let options = RemoteOptions { concurrency: 1, ..server.options() };
        let generator = RemoteGenerator::new(options).expect("the options are right");
        let error = ask(&generator, &requests(5)).expect_err("it refuses everything");
        assert!(matches!(remote(&error), RemoteError::Refused { .. }), "{status}: {error}");
        assert_eq!(server.count(), 1, "{status}");
    }
    let port = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address").port();
    let mut options = Server::new(|_, _| Reply::Silence).options();
    options.base_url = format!("http://127.0.0.1:{port}/v1");
    let error = ask(&RemoteGenerator::new(options).expect("it is right"), &requests(1)).expect_err("nobody is there");
    assert!(matches!(remote(&error), RemoteError::Unreachable { attempts: 4, .. }), "{error}");
}

#[test]
fn a_silent_server_runs_into_the_time_limit() {
    let server =
        Server::new(|number, asked| if number == 0 { Reply::Silence } else { Reply::Json(200, backwards(asked)) });
    for stream in [false, true] {
        let options = RemoteOptions { timeout: Duration::from_millis(100), stream, ..server.options() };
        let generator = RemoteGenerator::new(options).expect("the options are right");
        let outcomes = ask(&generator, &requests(1)).expect("it answers in the end");
        assert_eq!(texts(answered(&outcomes[0])), ["0p0"]);
        server.asked.lock().expect("whole").clear();
    }
}

#[test]
fn streams_are_put_together_and_half_a_stream_is_asked_for_again() {
    let piece = |text: &str, end: Value| {
        let choice = json!({"index": 0, "delta": {"content": text}, "finish_reason": end});
        format!("data: {}\n\n", json!({"choices": [choice]}))
    };
    let half = piece("wr", Value::Null);
    let whole = piece("ri", Value::Null) + &piece("ght", json!("length")) + "data: [DONE]\n\n";
    let server = Server::new(move |number, _| match number {
        0 => Reply::Raw(200, "Content-Type: text/event-stream", half.clone()),
        1 => Reply::Raw(200, "Content-Type: text/event-stream", "data: {\"error\": \"crashed\"}\n\n".into()),
        _ => Reply::Raw(200, "Content-Type: text/event-stream; charset=utf-8", whole.clone()),
    });
    let generator = RemoteGenerator::new(RemoteOptions { stream: true, ..server.options() }).expect("it is right");
    let messages = vec![Message::new(Role::User, "hi")];
    let request = Request { prompt: Prompt::Messages { messages, tools: Vec::new() }, sampling: Sampling::default() };
    let outcomes = ask(&generator, &[request]).expect("the endpoint works");
    let answer = &answered(&outcomes[0]).answers[0];
    assert_eq!((answer.text.as_str(), answer.finish_reason), ("right", FinishReason::Length));
    let asked = server.asked.lock().expect("whole");
    assert_eq!(asked.len(), 3);
    assert_eq!(asked[0].path, "/v1/chat/completions");
    assert_eq!(asked[0].body["stream_options"], json!({"include_usage": true}));
    assert_eq!(generator.bill().paid.uncounted, 1, "the stream did not say what it used");
}

#[test]
fn a_server_that_gives_fewer_answers_is_asked_for_the_rest() {
    let server = Server::new(|_, asked| {
        let mut answer = backwards(asked);
        answer["choices"].as_array_mut().expect("a list").truncate(2);
        Reply::Json(200, answer)
    });
    let sampling = Sampling { n: 5, temperature: 1.0, seed: 40, ..Sampling::default() };
    let outcomes = ask(&server.generator(), &[Request { sampling, ..request("ab") }]).expect("the endpoint works");
    assert_eq!(texts(answered(&outcomes[0])), ["ba0", "ba1", "ba0", "ba1", "ba0"]);
    let asked = server.asked.lock().expect("whole");
    let sent: Vec<_> = asked.iter().map(|a| (a.body["n"].as_u64(), a.body["seed"].as_u64())).collect();
    assert_eq!(sent, [(Some(5), Some(40)), (Some(3), Some(42)), (None, Some(44))]);
}

#[test]
fn no_more_requests_than_allowed_are_on_their_way() {
    let gate = Arc::new((Mutex::new(0), Condvar::new()));
    let waiting = Arc::clone(&gate);
    // The first three wait for each other, so that there are three at a time at least once.
    let server = Server::new(move |_, asked| {
        let (count, changed) = &*waiting;
        let mut count = count.lock().expect("whole");
        *count += 1;
        changed.notify_all();
        let _count = changed.wait_while(count, |count| *count < 3).expect("whole");
        Reply::Json(200, backwards(asked))
    });
    let generator = RemoteGenerator::new(RemoteOptions { concurrency: 3, ..server.options() }).expect("it is right");
    let outcomes = ask(&generator, &requests(20)).expect("the endpoint works");
    assert!(outcomes.iter().all(|outcome| matches!(outcome, Some(Ok(_)))));
    assert_eq!(server.busy.1.load(Ordering::SeqCst), 3);
}

#[test]
fn equal_requests_are_asked_once() {
    let server = Server::new(|_, asked| Reply::Json(200, backwards(asked)));
    let mut many = requests(2);
    many.extend(requests(2));
    many.push(Request { sampling: Sampling { seed: 1, ..Sampling::default() }, ..request("p0") });
    let outcomes = ask(&server.generator(), &many).expect("the endpoint works");
    assert_eq!(outcomes[0], outcomes[2]);
    assert!(outcomes.iter().all(|outcome| matches!(outcome, Some(Ok(_)))));
    assert_eq!(server.count(), 3, "another seed is another request");
}

#[test]
fn what_was_paid_for_is_never_asked_for_again() {
    let directory = tempfile::tempdir().expect("a directory");
    let journal = directory.path().join("answers.jsonl");
    // Everything works but for the last request, which ends the batch as a kill would.
    let is_broken = Arc::new(AtomicUsize::new(1));
    let broken = Arc::clone(&is_broken);
    let server = Server::new(move |_, asked| match asked.body["prompt"].as_str() {
        Some("p3") if broken.load(Ordering::SeqCst) == 1 => Reply::Json(401, json!({"error": "key revoked"})),
        _ => Reply::Json(200, backwards(asked)),
    });
    let options = RemoteOptions {
        concurrency: 1,
        journal: Some(journal.clone()),
        prices: Some(Prices { prompt_per_million: 1e5, completion_per_million: 1e6 }),
        ..server.options()
    };
    let first = RemoteGenerator::new(options.clone()).expect("the options are right");
    ask(&first, &requests(4)).expect_err("the key is revoked");
    assert_eq!(first.bill().paid.responses, 3);
    drop(first);
    // The process died while it wrote the next record.
    let mut bytes = files::read(&journal).expect("there is a journal");
    assert!(!String::from_utf8_lossy(&bytes).contains("Bearer"));
    bytes.extend_from_slice(b"{\"request\":\"abc");
    files::write_atomic(&journal, &bytes).expect("it is written");

    is_broken.store(0, Ordering::SeqCst);
    let before = server.count();
    let second = RemoteGenerator::new(options.clone()).expect("a torn end is dropped");
    let outcomes = ask(&second, &requests(4)).expect("the endpoint works");
    assert_eq!(outcomes.iter().map(|o| texts(answered(o))[0]).collect::<Vec<_>>(), ["0p0", "1p0", "2p0", "3p0"]);
    assert_eq!(server.count() - before, 1, "only what was missing is asked for");
    let bill = second.bill();
    assert_eq!((bill.kept.responses, bill.paid.responses), (3, 1));
    assert_eq!((bill.kept.prompt_tokens, bill.paid.completion_tokens), (30, 3));
    // 10 tokens at 0.1 each and 3 at 1 each.
    assert_eq!(bill.paid.cost, Some(4.0));
    drop(second);

    let other = RemoteOptions { model: "another".into(), ..options };
    let third = RemoteGenerator::new(other).expect("the options are right");
    ask(&third, &requests(1)).expect("the endpoint works");
    assert_eq!(third.bill().paid.responses, 1, "another model's answer is another answer");
}

#[test]
fn a_file_of_something_else_is_no_journal_and_stays_as_it_is() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("data.jsonl");
    files::write_atomic(&path, b"{\"prompt\": \"mine\"}\n{\"prompt\": \"also mine\"}\n").expect("it is written");
    let server = Server::new(|_, _| Reply::Silence);
    let error = RemoteGenerator::new(RemoteOptions { journal: Some(path.clone()), ..server.options() })
        .expect_err("it is none");
    assert!(matches!(error, RemoteError::NotAJournal { .. }) && error.fault() == Fault::Input, "{error}");
    assert!(files::read_to_string(&path).expect("it is there").contains("also mine"));
}

#[test]
fn the_key_comes_from_a_variable_and_shows_nowhere() {
    // Every test program is started by cargo with this variable.
    let variable = "CARGO_PKG_NAME";
    let server = Server::new(|_, asked| Reply::Json(200, backwards(asked)));
    let options = RemoteOptions { api_key_env: Some(variable.into()), ..server.options() };
    let generator = RemoteGenerator::new(options.clone()).expect("the variable is set");
    ask(&generator, &requests(1)).expect("the endpoint works");
    let asked = server.asked.lock().expect("whole");
    let header = asked[0].headers.iter().find(|line| line.to_lowercase().starts_with("authorization:"));
    assert_eq!(header.map(|line| line.split_once(": ").expect("a header").1), Some("Bearer didact-infer"));
    assert!(!format!("{generator:?}").contains("Bearer"), "{generator:?}");

    let options = RemoteOptions { api_key_env: Some("DIDACT_TEST_NO_SUCH_KEY".into()), ..options };
    let error = RemoteGenerator::new(options).expect_err("it is not set");
    assert_eq!(error.fault(), Fault::Input);
    assert!(error.to_string().contains("DIDACT_TEST_NO_SUCH_KEY"), "{error}");
}

#[test]
fn a_stop_gives_up_what_is_on_its_way() {
    let cancel = Cancel::new();
    let raised = cancel.clone();
    let server = Server::new(move |number, asked| {
        if number == 0 {
            return Reply::Json(200, backwards(asked));
        }
        raised.cancel();
        Reply::Silence
    });
    let generator = RemoteGenerator::new(RemoteOptions { concurrency: 1, ..server.options() }).expect("it is right");
    let outcomes = generator.generate_all(&requests(5), &cancel).expect("a stop is no failure");
    assert!(matches!(outcomes[0], Some(Ok(_))));
    assert!(outcomes[1..].iter().all(Option::is_none), "{outcomes:?}");
}

#[test]
fn an_answer_without_end_is_cut_off() {
    let server = Server::new(|_, _| Reply::Raw(200, "Content-Type: application/json", " ".repeat(10_000)));
    let options = RemoteOptions { max_answer_bytes: 1000, ..server.options() };
    let outcomes = ask(&RemoteGenerator::new(options).expect("it is right"), &requests(1)).expect("others may work");
    let Some(Err(RequestError::Refused { message, .. })) = &outcomes[0] else { panic!("{outcomes:?}") };
    assert!(message.contains("1000 bytes"), "{message}");
}

#[test]
fn continuations_are_scored_by_servers_that_can() {
    let server = Server::new(|_, asked| {
        assert_eq!((&asked.body["echo"], &asked.body["logprobs"]), (&json!(true), &json!(1)));
        let log_probs = json!({"tokens": ["a", "b", "c", "x"], "token_logprobs": [null, -1.0, -2.0, -9.0],
            "text_offset": [0, 1, 2, 3], "top_logprobs": [null, {"b": -1.0}, {"z": -0.1, "c": -2.0}, {"x": -9.0}]});
        Reply::Json(
            200,
            json!({"choices": [{"index": 0, "text": "abcx", "logprobs": log_probs, "finish_reason": "length"}]}),
        )
    });
    let text = |text: &str| Prompt::Text(text.into());
    let pairs = [(text("a"), text("bc")), (text("a"), Prompt::Ids(vec![1]))];
    let mut scores = vec![None; 2];
    let generator = server.generator();
    generator.score(&pairs, &mut |i, score| scores[i] = Some(score), &Cancel::new()).expect("the endpoint works");
    let score = scores[0].as_ref().expect("asked").as_ref().expect("scored");
    assert_eq!((&score.log_probs[..], score.is_greedy), (&[-1.0, -2.0][..], false));
    assert!(matches!(scores[1], Some(Err(RequestError::Unsupported(_)))));
}

#[test]
fn options_out_of_range_are_refused() {
    let options = Server::new(|_, _| Reply::Silence).options();
    let cases = [
        RemoteOptions { concurrency: 0, ..options.clone() },
        RemoteOptions { max_attempts: 0, ..options.clone() },
        RemoteOptions { base_url: "127.0.0.1:80".into(), ..options.clone() },
        RemoteOptions { prices: Some(Prices { prompt_per_million: -1.0, completion_per_million: 0.0 }), ..options },
    ];
    for options in cases {
        assert_eq!(RemoteGenerator::new(options).expect_err("it is out of range").fault(), Fault::Input);
    }
}
