//! The tables of recipes that work in rounds. Defaults are here and nowhere else.

use didact_train::{Ranking, TrainConfig};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::settings::{
    DataSettings, EvalSettings, ExportSettings, GenerateSettings, ModelSource, Paths, PrecisionChoice, default_seed,
    recipe_settings,
};
use super::{RecipeError, Refuse, check_data};

/// How tasks are written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum TaskFormat {
    /// JSON lines: `{"id", "prompt" or "messages", "reference", "answer"}`.
    #[default]
    Rows,
    /// VerilogEval's folder (version 2) or `.jsonl` file (version 1); each task's own solution is its answer.
    VerilogEval,
}

/// What the model is asked: the table `[tasks]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TasksTable {
    /// The file, or for VerilogEval a folder.
    pub path: Option<String>,
    /// How it is written.
    pub format: TaskFormat,
    /// What is said to the model; `{prompt}` stands for the task's own words. Tasks of messages are asked as they are.
    pub instruction: String,
    /// Whether a prompt that is a text is asked as the user's turn of a conversation. When not given: if the model has a
    /// chat template.
    pub chat: Option<bool>,
    /// Tasks to measure on and never to train on, from a file of their own.
    pub held_out_path: Option<String>,
    /// Share of the tasks to hold out when `held_out_path` is not given.
    pub held_out: f64,
    /// At most this many are held out.
    pub held_out_tasks: usize,
}

/// What stands for a task's own words.
pub const PROMPT: &str = "{prompt}";

impl Default for TasksTable {
    fn default() -> Self {
        Self {
            path: None,
            format: TaskFormat::default(),
            instruction: PROMPT.to_owned(),
            chat: None,
            held_out_path: None,
            held_out: 0.2,
            held_out_tasks: 200,
        }
    }
}

/// Who says whether an answer is right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum CheckerKind {
    /// The answer is the reference, or one of a list of them.
    #[default]
    Exact,
    /// The last number is the reference.
    Number,
    /// The reference, a regular expression, matches.
    Regex,
    /// Members of a list.
    Set,
    /// Calls of tools.
    ToolCall,
    /// A Verilog module against a test bench, in the simulator.
    Verilog,
}

/// How answers are judged: the table `[verify]`. What the keys mean is what the options of `didact verify` mean.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct VerifyTable {
    /// By whom.
    pub kind: CheckerKind,
    /// `exact`, `number`, `regex`, `set`: only what follows the last of these marks counts, to the end of its line.
    pub after: Option<String>,
    /// `exact`, `number`, `regex`, `set`: only the last line counts.
    pub last_line: bool,
    /// `exact`, `set`: upper and lower case are the same.
    pub ignore_case: bool,
    /// `exact`: any space is as good as another, and punctuation at the end does not count. `tool-call`: `"4"` is as good as
    /// `4`.
    pub loose: bool,
    /// `number`: largest difference.
    pub tolerance: f64,
    /// `regex`: a match anywhere will do.
    pub anywhere: bool,
    /// `verilog`: most seconds for the compiler.
    pub compile_seconds: u64,
    /// `verilog`: most seconds for the simulation.
    pub simulate_seconds: u64,
}

impl Default for VerifyTable {
    fn default() -> Self {
        Self {
            kind: CheckerKind::default(),
            after: None,
            last_line: false,
            ignore_case: false,
            loose: false,
            tolerance: 0.0,
            anywhere: false,
            compile_seconds: 10,
            simulate_seconds: 10,
        }
    }
}

impl VerifyTable {
    /// A key that another kind of checker reads is a mistake, not a wish to be passed over.
    fn check(&self, refuse: &Refuse<'_>) -> Result<(), RecipeError> {
        use CheckerKind::{Exact, Number, Regex, Set, ToolCall, Verilog};
        let compared: &[CheckerKind] = &[Exact, Number, Regex, Set];
        let unset = Self::default();
        let given: [(&str, bool, &[CheckerKind]); 8] = [
            ("after", self.after.is_some(), compared),
            ("last_line", self.last_line, compared),
            ("ignore_case", self.ignore_case, &[Exact, Set]),
            ("loose", self.loose, &[Exact, ToolCall]),
            ("tolerance", self.tolerance != 0.0, &[Number]),
            ("anywhere", self.anywhere, &[Regex]),
            ("compile_seconds", self.compile_seconds != unset.compile_seconds, &[Verilog]),
            ("simulate_seconds", self.simulate_seconds != unset.simulate_seconds, &[Verilog]),
        ];
        for (key, is_given, kinds) in given {
            if is_given && !kinds.contains(&self.kind) {
                let message = format!("has no meaning for `verify.kind = {}`; remove it", json(&self.kind));
                return Err(refuse(&format!("verify.{key}"), message));
            }
        }
        if self.after.is_some() && self.last_line {
            return Err(refuse("verify.last_line", "excludes `verify.after`; remove one of them".into()));
        }
        if !(self.tolerance >= 0.0 && self.tolerance.is_finite()) {
            return Err(refuse("verify.tolerance", format!("is {}, expected a number from 0 up", self.tolerance)));
        }
        for (key, seconds) in [("compile_seconds", self.compile_seconds), ("simulate_seconds", self.simulate_seconds)] {
            if seconds == 0 {
                return Err(refuse(&format!("verify.{key}"), "is 0, expected at least 1".into()));
            }
        }
        Ok(())
    }
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

/// Which model a round trains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Start {
    /// That of the round before.
    #[default]
    Last,
    /// The model as it came, so that nothing adds up but the data.
    Base,
}

/// How rounds go: the table `[rounds]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RoundsTable {
    /// Rounds at most.
    pub count: u64,
    /// Tasks asked in a round, each once before any comes again; 0 asks all of them in every round.
    pub tasks: usize,
    /// Answers to each.
    pub samples: usize,
    /// Their temperature.
    pub temperature: f32,
    /// Their top-p.
    pub top_p: f32,
    /// Which model a round trains.
    pub start: Start,
    /// What was chosen in earlier rounds comes again: this share of it, drawn anew in each round.
    pub replay: f64,
    /// Rows of `[data]` beside what was chosen, as a share of it.
    pub mix: f64,
    /// Rounds in a row without a gain beyond noise after which no more are done; 0 never stops early.
    pub patience: u64,
    /// Answers in all, over all rounds, that may be sampled to train on; 0 is no limit. A round that would go beyond is not
    /// begun.
    pub max_answers: u64,
    /// Answers to each held-out task.
    pub eval_samples: usize,
    /// Their temperature; 0 is greedy and needs `eval_samples = 1`.
    pub eval_temperature: f32,
}

impl Default for RoundsTable {
    fn default() -> Self {
        Self {
            count: 3,
            tasks: 0,
            samples: 3,
            temperature: 0.8,
            top_p: 0.95,
            start: Start::Last,
            replay: 0.0,
            mix: 0.0,
            patience: 2,
            max_answers: 0,
            eval_samples: 10,
            eval_temperature: 0.4,
        }
    }
}

/// What a round of `itertl` learns from its answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Lesson {
    /// To rank them, and the likelihood of one.
    #[default]
    Ranking,
    /// To imitate the best one (rejection sampling).
    Best,
}

/// Which answer's likelihood is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    /// The task's own, which is taken to be right, as the paper does.
    #[default]
    Reference,
    /// The one with the best score; the task's own is judged like any other.
    Best,
}

/// The method's own table `[itertl]`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ItertlTable {
    /// What is learned from a round's answers.
    pub lesson: Lesson,
    /// Whose likelihood is trained.
    pub target: Target,
    /// Leave out answers that are not code of their own: those that the checker rejects, or that do not elaborate.
    pub filter: bool,
    /// The ranking loss.
    pub ranking: Ranking,
}

/// Which tasks a round of `toolace-r` learns from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum SelectRule {
    /// Those that the model solved at least once.
    #[default]
    Solvable,
    /// Those that it solved as often as `band` says.
    Band,
    /// All of them.
    All,
}

/// The method's own table `[toolace]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ToolaceTable {
    /// Which tasks are learned from.
    pub select: SelectRule,
    /// `select = "band"`: the smallest and the largest share of right answers.
    pub band: [f64; 2],
    /// Whether the model's own attempts, with the request to look at them again, are learned, too.
    pub attempts: bool,
    /// Share of the tasks of which a right attempt is learned to be kept as it is.
    pub right_attempts: f64,
    /// Share of the tasks to learn in the first round as the data has them, if most answers cannot even be read.
    pub warmup: f64,
    /// What is said after an attempt, in training, in evaluation, and by `didact generate --refine`.
    pub instruction: String,
    /// Steps of refinement when held-out tasks are measured, at most; 0 does not refine.
    pub refine_steps: usize,
}

impl Default for ToolaceTable {
    fn default() -> Self {
        Self {
            select: SelectRule::Solvable,
            band: [0.01, 0.99],
            attempts: true,
            right_attempts: 1.0,
            warmup: 0.2,
            instruction: crate::refine::INSTRUCTION.to_owned(),
            refine_steps: 5,
        }
    }
}

recipe_settings! {
    /// The recipe `toolace-r`.
    ToolaceSettings {
        /// What the model is asked.
        tasks: TasksTable,
        /// How answers are judged.
        verify: VerifyTable,
        /// How rounds go.
        rounds: RoundsTable,
        /// What is learned.
        toolace: ToolaceTable,
        /// Rows to mix in.
        data: DataSettings,
    }
}

/// Ranges and rules between keys; opens nothing.
pub(super) fn check_toolace(settings: &ToolaceSettings, refuse: &Refuse<'_>) -> Result<(), RecipeError> {
    let ToolaceSettings { tasks, verify, rounds, toolace, data, train, eval, .. } = settings;
    check_rounds(tasks, verify, rounds, data, (train, eval), refuse)?;
    let [low, high] = toolace.band;
    if !(0.0 <= low && low <= high && high <= 1.0) {
        let message = format!("is [{low}, {high}], expected two shares from 0 to 1, the smaller first");
        return Err(refuse("toolace.band", message));
    }
    if toolace.select != SelectRule::Band && toolace.band != ToolaceTable::default().band {
        return Err(refuse("toolace.band", "is read only with `toolace.select = \"band\"`; remove it".into()));
    }
    for (key, share) in [("right_attempts", toolace.right_attempts), ("warmup", toolace.warmup)] {
        if !(0.0..=1.0).contains(&share) {
            return Err(refuse(&format!("toolace.{key}"), format!("is {share}, expected a share from 0 to 1")));
        }
    }
    if toolace.instruction.trim().is_empty() {
        return Err(refuse("toolace.instruction", "is empty".into()));
    }
    Ok(())
}

recipe_settings! {
    /// The recipe `itertl`.
    ItertlSettings {
        /// What the model is asked.
        tasks: TasksTable,
        /// How answers are judged.
        verify: VerifyTable,
        /// How rounds go.
        rounds: RoundsTable,
        /// What is learned.
        itertl: ItertlTable,
        /// Rows to mix in.
        data: DataSettings,
    }
}

/// Ranges and rules between keys; opens nothing.
pub(super) fn check_itertl(settings: &ItertlSettings, refuse: &Refuse<'_>) -> Result<(), RecipeError> {
    let ItertlSettings { tasks, verify, rounds, data, train, eval, .. } = settings;
    check_rounds(tasks, verify, rounds, data, (train, eval), refuse)?;
    if let Err((key, found, expected)) = settings.itertl.ranking.validate() {
        return Err(refuse(&format!("itertl.ranking.{key}"), format!("is {found}, expected {expected}")));
    }
    if settings.itertl.lesson == Lesson::Best && settings.itertl.ranking != Ranking::default() {
        return Err(refuse("itertl.ranking", "has no meaning for `itertl.lesson = \"best\"`; remove it".into()));
    }
    if settings.itertl.filter && settings.verify.kind != CheckerKind::Verilog {
        return Err(refuse("itertl.filter", "knows answers in Verilog only; set it to false".into()));
    }
    Ok(())
}

/// What all recipes that work in rounds have in common.
fn check_rounds(
    tasks: &TasksTable,
    verify: &VerifyTable,
    rounds: &RoundsTable,
    data: &DataSettings,
    (train, eval): (&TrainConfig, &EvalSettings),
    refuse: &Refuse<'_>,
) -> Result<(), RecipeError> {
    if *eval != EvalSettings::default() {
        return Err(refuse("eval", "is not read by recipes that work in rounds; see `rounds.eval_samples`".into()));
    }
    if tasks.path.is_none() {
        return Err(refuse("tasks.path", "missing; name the file of tasks".into()));
    }
    if !tasks.instruction.contains(PROMPT) {
        return Err(refuse("tasks.instruction", format!("does not contain `{PROMPT}`, where the task's words go")));
    }
    if tasks.held_out_path.is_none() && !(tasks.held_out > 0.0 && tasks.held_out <= 0.5) {
        let message = format!("is {}, expected a share above 0, up to 0.5: rounds are judged by it", tasks.held_out);
        return Err(refuse("tasks.held_out", message));
    }
    if tasks.held_out_tasks < 2 {
        let message = format!("is {}, expected at least 2: rounds are judged by them", tasks.held_out_tasks);
        return Err(refuse("tasks.held_out_tasks", message));
    }
    if (verify.kind == CheckerKind::Verilog) != (tasks.format == TaskFormat::VerilogEval)
        && tasks.format == TaskFormat::VerilogEval
    {
        return Err(refuse("verify.kind", "must be `verilog` for tasks of VerilogEval".into()));
    }
    verify.check(refuse)?;
    for (key, value) in
        [("count", rounds.count), ("samples", rounds.samples as u64), ("eval_samples", rounds.eval_samples as u64)]
    {
        if value == 0 {
            return Err(refuse(&format!("rounds.{key}"), "is 0, expected at least 1".into()));
        }
    }
    for (key, temperature) in [("temperature", rounds.temperature), ("eval_temperature", rounds.eval_temperature)] {
        let sampled = didact_core::generate::Sampling {
            temperature,
            top_p: Some(rounds.top_p),
            ..didact_core::generate::Sampling::default()
        };
        if let Err(didact_core::generate::RequestError::Setting { name, value, expected }) =
            didact_infer::check(&sampled)
        {
            let key = if name == "temperature" { key } else { name.as_str() };
            return Err(refuse(&format!("rounds.{key}"), format!("is {value}: {expected}")));
        }
    }
    for (key, temperature, samples) in [
        ("temperature", rounds.temperature, rounds.samples),
        ("eval_temperature", rounds.eval_temperature, rounds.eval_samples),
    ] {
        if temperature == 0.0 && samples > 1 {
            let message = format!("is 0, and {samples} greedy answers to a task would be the same one");
            return Err(refuse(&format!("rounds.{key}"), message));
        }
    }
    for (key, share) in [("replay", rounds.replay), ("mix", rounds.mix)] {
        if !(0.0..=1.0).contains(&share) {
            return Err(refuse(&format!("rounds.{key}"), format!("is {share}, expected a share from 0 to 1")));
        }
    }
    if rounds.mix > 0.0 {
        check_data("data", data, refuse)?;
    } else if data.path.as_ref().is_some_and(|paths: &Paths| !paths.list().is_empty()) {
        return Err(refuse("data.path", "is read only with `rounds.mix` above 0".into()));
    }
    if train.packing != didact_data::packing::Packing::None {
        return Err(refuse("train.packing", "must be `none`: a row holds the answers to one task".into()));
    }
    if train.eval_steps.is_some() || train.load_best {
        return Err(refuse("train.eval_steps", "rounds are measured between trainings; remove it".into()));
    }
    Ok(())
}
