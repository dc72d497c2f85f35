//! `didact chat`: a conversation in the terminal.

mod lines;

use super::local::{ModelFiles, NamedAdapter};
use crate::cli::Global;
use crate::output::{Output, Status, usage};
use clap::Args;
use didact_core::files;
use didact_core::generate::{FinishReason, Prompt, Request, RequestError, Sampling};
use didact_core::message::{Message, Role};
use didact_infer::{Event, LocalModel, Options, Scheduler};
use lines::{Line, Lines};
use serde_json::json;
use signal_hook::consts::SIGINT;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const HELP: &str = "\
/reset         forget the conversation; the system message stays
/system TEXT   put TEXT in the place of the system message; without TEXT take it away
/save FILE     write the conversation as a row of data: {\"messages\": [...]}
/help          this list
/exit          end, as Ctrl-D does
Ctrl-C ends an answer; what was written of it stays. A line that ends in \\ goes on in the next one.";

const COMMANDS: [&str; 5] = ["/reset", "/system", "/save", "/help", "/exit"];

/// Options of `didact chat`.
#[derive(Debug, Args)]
pub(crate) struct ChatArgs {
    /// A model directory, a .gguf file, or a name that `model pull` knows
    #[arg(long, value_name = "PATH")]
    model: String,
    /// A LoRA adapter's directory, used beside the weights without merging
    #[arg(long, value_name = "DIR")]
    adapter: Option<NamedAdapter>,
    /// A system message
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Most new tokens of an answer [default: as many as the model's context has room for]
    #[arg(long, value_name = "N")]
    max_tokens: Option<usize>,
    /// 0 always takes the likeliest token
    #[arg(long, value_name = "T", default_value_t = 0.7)]
    temperature: f32,
    /// Draw from the likeliest tokens whose probabilities sum to this
    #[arg(long, value_name = "P")]
    top_p: Option<f32>,
    /// Draw from this many likeliest tokens
    #[arg(long, value_name = "K")]
    top_k: Option<u32>,
    /// Draw from tokens at least this share as likely as the likeliest one
    #[arg(long, value_name = "P")]
    min_p: Option<f32>,
}

pub(crate) fn run(args: &ChatArgs, global: &Global, output: &Output) -> anyhow::Result<Status> {
    if output.is_json() {
        return Err(usage("a conversation is no JSON document", "leave --json out, or use `didact generate`"));
    }
    let sampling = Sampling {
        temperature: args.temperature,
        top_p: args.top_p,
        top_k: args.top_k,
        min_p: args.min_p,
        max_tokens: args.max_tokens.unwrap_or(1),
        seed: global.seed.unwrap_or_default(),
        log_probs: false,
        adapter: args.adapter.as_ref().map(|adapter| adapter.name.clone()),
        ..Sampling::default()
    };
    didact_infer::check(&sampling).map_err(|error| usage(error.to_string(), "see `didact chat --help`"))?;
    let files = ModelFiles::open(&args.model, output)?;
    if files.tokenizer().template().is_none() {
        let message = format!("`{}` has no chat template", args.model);
        return Err(usage(message, "continue texts with `didact generate --prompt`"));
    }
    let model = files.load_beside(args.adapter.as_slice(), global)?;
    let scheduler = Scheduler::new(Arc::clone(&model), Options::default())?;
    let interrupt = Interrupt::watch()?;
    let system = args.system.as_deref().map(|text| Message::new(Role::System, text));
    let limit = args.max_tokens;
    let mut chat = Chat { model, scheduler, sampling, limit, system, turns: Vec::new(), interrupt, output };
    let mut lines = Lines::new(&COMMANDS)?;
    if lines.is_interactive() {
        output.note("/help shows what there is beside talking");
    }
    loop {
        match lines.read()? {
            Line::Text(line) if chat.obey(line.trim())? => {}
            Line::Text(_) | Line::End => return Ok(Status::Done),
            Line::Interrupted => return Ok(Status::Stopped),
        }
    }
}

/// Ctrl-C while an answer is being written ends the answer; at other times it ends the program.
struct Interrupt {
    is_answering: Arc<AtomicBool>,
    is_asked: Arc<AtomicBool>,
}

impl Interrupt {
    fn watch() -> std::io::Result<Self> {
        let this = Self { is_answering: Arc::default(), is_asked: Arc::default() };
        let (is_answering, is_asked) = (Arc::clone(&this.is_answering), Arc::clone(&this.is_asked));
        let mut signals = signal_hook::iterator::Signals::new([SIGINT])?;
        std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
            for signal in signals.forever() {
                // Asked twice for the same thing: the answer does not come to an end.
                if !is_answering.load(Ordering::SeqCst) || is_asked.swap(true, Ordering::SeqCst) {
                    signal_hook::low_level::exit(128 + signal);
                }
            }
        })?;
        Ok(this)
    }

    fn begin(&self) {
        self.is_asked.store(false, Ordering::SeqCst);
        self.is_answering.store(true, Ordering::SeqCst);
    }

    /// Whether the answer is to end.
    fn is_asked(&self) -> bool {
        self.is_asked.load(Ordering::SeqCst)
    }

    fn end(&self) {
        self.is_answering.store(false, Ordering::SeqCst);
    }
}

struct Chat<'a> {
    model: Arc<LocalModel>,
    scheduler: Scheduler,
    sampling: Sampling,
    /// Most tokens of an answer, if not as many as there is room for.
    limit: Option<usize>,
    system: Option<Message>,
    turns: Vec<Message>,
    interrupt: Interrupt,
    output: &'a Output,
}

impl Chat<'_> {
    /// Does what a line says; `false` to end.
    fn obey(&mut self, line: &str) -> anyhow::Result<bool> {
        let (command, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let rest = rest.trim();
        match command {
            "/exit" | "/quit" => return Ok(false),
            "/help" => self.output.note(HELP),
            "/reset" => {
                self.turns.clear();
                self.output.note("the conversation is forgotten");
            }
            "/system" => {
                self.system = (!rest.is_empty()).then(|| Message::new(Role::System, rest));
                self.output.note(if rest.is_empty() {
                    "there is no system message now"
                } else {
                    "the system message is set"
                });
            }
            "/save" if rest.is_empty() => self.output.warn("name a file: /save FILE"),
            "/save" => {
                let row = json!({"messages": self.messages()});
                match files::write_atomic(rest, format!("{row}\n").as_bytes()) {
                    Ok(()) => self.output.note(&format!("{} messages are in `{rest}`", self.messages().len())),
                    // The conversation is not lost over a name.
                    Err(error) => self.output.warn(&error.to_string()),
                }
            }
            // Paths and the like may be talked about.
            _ if command.starts_with('/') && command[1..].chars().all(|c| c.is_ascii_lowercase()) => {
                self.output.warn(&format!("there is no `{command}`; /help shows what there is"));
            }
            _ => self.talk(line)?,
        }
        Ok(true)
    }

    fn messages(&self) -> Vec<Message> {
        self.system.iter().chain(&self.turns).cloned().collect()
    }

    /// Takes what the user says and writes the answer.
    fn talk(&mut self, text: &str) -> anyhow::Result<()> {
        self.turns.push(Message::new(Role::User, text));
        let answered = self.answer()?;
        match answered {
            Ok(text) => {
                self.turns.push(Message::new(Role::Assistant, text));
                // Equal questions are answered anew.
                self.sampling.seed = self.sampling.seed.wrapping_add(1);
            }
            Err(error) => {
                self.turns.pop();
                let hint = match error {
                    RequestError::PromptTooLong { .. } => "; /reset begins anew",
                    _ => "",
                };
                self.output.warn(&format!("{error}{hint}"));
            }
        }
        Ok(())
    }

    fn answer(&mut self) -> anyhow::Result<Result<String, RequestError>> {
        let prompt = Prompt::Messages { messages: self.messages(), tools: Vec::new() };
        let ids = match self.model.encode_to_continue(&prompt) {
            Ok(ids) => ids,
            Err(error) => return Ok(Err(error)),
        };
        let room = self.model.context() - ids.len();
        let sampling = Sampling { max_tokens: self.limit.unwrap_or(room), ..self.sampling.clone() };
        let id = match self.scheduler.submit(Request { prompt: Prompt::Ids(ids), sampling }) {
            Ok(id) => id,
            Err(error) => return Ok(Err(error)),
        };
        self.interrupt.begin();
        let (mut events, mut answer) = (Vec::new(), String::new());
        let outcome = loop {
            if self.interrupt.is_asked() {
                self.scheduler.cancel(id);
                self.output.piece("");
                self.output.note("the answer was ended");
                break Ok(());
            }
            let goes_on = self.scheduler.step(&mut events)?;
            let mut failed = None;
            for event in events.drain(..) {
                match event {
                    Event::Text { text, .. } => {
                        self.output.inline(&text);
                        answer.push_str(&text);
                    }
                    Event::Answer { value, .. } if value.finish_reason == FinishReason::Length => {
                        self.output.note("\nthe answer is as long as it may be");
                    }
                    Event::Failed { error, .. } => failed = Some(error),
                    _ => {}
                }
            }
            if let Some(error) = failed {
                break Err(error);
            }
            if !goes_on {
                self.output.piece("");
                break Ok(());
            }
        };
        self.interrupt.end();
        Ok(outcome.map(|()| answer))
    }
}
