//! Every task that can be asked for by name: those of `didact-eval`, and those made by this crate's generators.

use crate::recipe::ToolworldSettings;
use crate::synthetic::{addition, lego};
use crate::toolworld::{Pool, Style, World};
use didact_core::message::Role;
use didact_core::seed::Streams;
use didact_eval::EvalError;
use didact_eval::builtin::{self, BLIMP, BLIMP_PARADIGMS, BUILTINS};
use didact_eval::results::Group;
use didact_eval::task::{Document, Task, TaskFile};
use didact_verify::ToolCallVerifier;
use serde_json::json;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

/// Seed of the made tasks: the same questions for everyone.
const SEED: u64 = 1234;
/// Questions of a made task, and solved ones for examples.
const ASKED: usize = 500;
const EXAMPLES: usize = 100;
/// Variables of LEGO's chains, and digits of Addition's numbers.
const VARIABLES: usize = 5;
const DIGITS: usize = 3;

/// A task that can be asked for by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// The set it belongs to.
    pub group: &'static str,
    /// One line for people.
    pub what: String,
}

/// Every name but BLiMP's paradigms, which are listed as one.
pub fn list() -> Vec<Listed> {
    let listed = |name: &str, group, what: &str| Listed { name: name.to_owned(), group, what: what.to_owned() };
    let mut all: Vec<Listed> = BUILTINS.iter().map(|b| listed(b.name, b.group, b.what)).collect();
    for depth in 1..=VARIABLES {
        let what = format!("the value of variable {depth} of a chain of {VARIABLES}");
        all.push(Listed { name: format!("lego_{depth}"), group: "lego", what });
    }
    for place in 1..=DIGITS {
        let what = format!("digit {place}, from the ones, of a sum of numbers of {DIGITS} digits");
        all.push(Listed { name: format!("addition_{place}"), group: "addition", what });
    }
    all.push(listed("toolworld", "toolworld", "which tool to call with which arguments (most useful with --chat)"));
    all.push(listed("blimp_PARADIGM", BLIMP, "minimal pairs of English grammar, 67 paradigms; needs blimp/BLiMP.zip"));
    all
}

/// Tasks, and the sets that were asked for.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// The tasks, each once.
    pub tasks: Vec<Task>,
    /// Sets with more than one task.
    pub groups: Vec<Group>,
}

impl Selection {
    fn add(&mut self, task: Task) {
        if self.tasks.iter().all(|known| known.name() != task.name()) {
            self.tasks.push(task);
        }
    }

    fn add_group(&mut self, name: &str, tasks: Vec<Task>) {
        let names = tasks.iter().map(|task| task.name().to_owned()).collect();
        if tasks.len() > 1 && self.groups.iter().all(|group| group.name != name) {
            self.groups.push(Group { name: name.to_owned(), tasks: names });
        }
        for task in tasks {
            self.add(task);
        }
    }
}

/// The tasks of these names: a task's, a set's, a task file (`.toml`, `.yaml`, `.yml`), or a folder of such files.
///
/// # Errors
/// For a name that means nothing, and for data that cannot be read.
pub fn select<S: AsRef<str>>(names: &[S]) -> Result<Selection, EvalError> {
    let mut selection = Selection::default();
    for name in names.iter().map(|name| name.as_ref().trim()).filter(|name| !name.is_empty()) {
        let path = Path::new(name);
        let is_file = |path: &Path| path.extension().is_some_and(|e| e == "toml" || e == "yaml" || e == "yml");
        if let Some(task) = named(name)? {
            selection.add(task);
        } else if let Some(tasks) = group(name)? {
            selection.add_group(name, tasks);
        } else if is_file(path) {
            selection.add(Task::open(path)?);
        } else if path.is_dir() {
            let files = didact_core::files::list_dir(path)?;
            let tasks: Vec<Task> =
                files.iter().filter(|file| is_file(file)).map(|file| Task::open(file)).collect::<Result<_, _>>()?;
            if tasks.is_empty() {
                let message = "there is no task file (.toml, .yaml) in this folder".to_owned();
                return Err(EvalError::TaskFile { path: path.to_owned(), message });
            }
            let tags: BTreeSet<&String> = tasks.iter().flat_map(|task| &task.file.tag).collect();
            for tag in tags {
                let own = tasks.iter().filter(|task| task.file.tag.contains(tag)).cloned().collect();
                selection.add_group(tag, own);
            }
            for task in tasks {
                selection.add(task);
            }
        } else {
            return Err(no_task(name));
        }
    }
    Ok(selection)
}

fn no_task(name: &str) -> EvalError {
    let names = list().into_iter().flat_map(|listed| [listed.name, listed.group.to_owned()]);
    let near = names.map(|known| (strsim::jaro_winkler(&known, name), known)).max_by(|a, b| a.0.total_cmp(&b.0));
    let similar = near.filter(|(likeness, _)| *likeness > 0.85).map(|(_, known)| known);
    EvalError::NoTask { name: name.to_owned(), similar }
}

fn named(name: &str) -> Result<Option<Task>, EvalError> {
    if let Some(builtin) = BUILTINS.iter().find(|builtin| builtin.name == name) {
        return builtin.task().map(Some);
    }
    if let Some(paradigm) = name.strip_prefix("blimp_").filter(|paradigm| BLIMP_PARADIGMS.contains(paradigm)) {
        return builtin::blimp(paradigm).map(Some);
    }
    let number = |prefix: &str, most: usize| {
        name.strip_prefix(prefix)
            .and_then(|rest| rest.parse::<usize>().ok())
            .filter(|number| (1..=most).contains(number))
    };
    if let Some(depth) = number("lego_", VARIABLES) {
        return lego_task(depth).map(Some);
    }
    if let Some(place) = number("addition_", DIGITS) {
        return addition_task(place).map(Some);
    }
    if name == "toolworld" { toolworld_task().map(Some) } else { Ok(None) }
}

fn group(name: &str) -> Result<Option<Vec<Task>>, EvalError> {
    if name == BLIMP {
        return BLIMP_PARADIGMS.iter().map(|paradigm| builtin::blimp(paradigm)).collect::<Result<_, _>>().map(Some);
    }
    let members: Vec<String> =
        list().into_iter().filter(|listed| listed.group == name).map(|listed| listed.name).collect();
    let tasks: Vec<Task> = members.iter().filter_map(|member| named(member).transpose()).collect::<Result<_, _>>()?;
    Ok((!tasks.is_empty()).then_some(tasks))
}

fn rows(values: impl IntoIterator<Item = serde_json::Value>) -> Vec<Document> {
    values.into_iter().filter_map(|value| value.as_object().cloned()).collect()
}

/// A task over made rows, the last [`EXAMPLES`] of which are for examples.
fn made(name: &str, group: &str, toml: &str, mut documents: Vec<Document>) -> Result<Task, EvalError> {
    let mut file =
        TaskFile::from_toml(&format!("task = \"{name}\"\ntraining_split = \"train\"\ntest_split = \"test\"\n{toml}"))
            .expect("the made tasks' declarations are tested");
    file.tag = vec![group.to_owned()];
    let examples = documents.split_off(documents.len().saturating_sub(EXAMPLES));
    Task::new(file, documents, examples)
}

fn lego_task(depth: usize) -> Result<Task, EvalError> {
    let texts = lego::texts(VARIABLES, depth - 1, ASKED + EXAMPLES, &Streams::new(SEED));
    let documents = rows(texts.iter().map(|text| {
        let (question, answer) = text.trim_end_matches(", ").rsplit_once(' ').unwrap_or((text, ""));
        json!({ "question": question, "answer": answer })
    }));
    let toml = "output_type = \"multiple_choice\"\ndoc_to_text = \"question\"\ndoc_to_choice = [\"0\", \"1\"]\n\
                doc_to_target = \"answer\"\nfewshot_delimiter = \",\\n\"\nmetric_list = [{ metric = \"acc\" }]\nmetadata = { version = 1 }";
    made(&format!("lego_{depth}"), "lego", toml, documents)
}

fn addition_task(place: usize) -> Result<Task, EvalError> {
    let texts = addition::texts(DIGITS, place - 1, ASKED + EXAMPLES, &Streams::new(SEED));
    let documents = rows(texts.iter().map(|text| {
        let (question, answer) = text.rsplit_once(' ').unwrap_or((text, ""));
        json!({ "question": question, "answer": answer })
    }));
    let toml = "output_type = \"multiple_choice\"\ndoc_to_text = \"question\"\n\
                doc_to_choice = [\"0\", \"1\", \"2\", \"3\", \"4\", \"5\", \"6\", \"7\", \"8\", \"9\"]\n\
                doc_to_target = \"answer\"\nfewshot_delimiter = \"\\n\"\nmetric_list = [{ metric = \"acc\" }]\nmetadata = { version = 1 }";
    made(&format!("addition_{place}"), "addition", toml, documents)
}

/// The requests that the recipe `quickstart` is tested with, in its prompts.
fn toolworld_task() -> Result<Task, EvalError> {
    let wrong = |message: String| EvalError::Task { task: "toolworld".into(), message };
    let streams = Streams::new(SEED);
    let settings = ToolworldSettings::default();
    let world = World::new(&settings.world(), &streams).map_err(|error| wrong(error.to_string()))?;
    let mut seen = BTreeSet::new();
    let samples = world
        .draw(&streams, "eval", Pool::HeldOut, ASKED + EXAMPLES, &mut seen)
        .map_err(|error| wrong(error.to_string()))?;
    let documents = rows(samples.iter().map(|sample| {
        let messages = sample.messages(Style::Text);
        let of = |role: Role| messages.iter().find(|message| message.role == role).map_or("", |message| message.content.as_str());
        json!({ "tools": of(Role::System), "request": of(Role::User), "call": of(Role::Assistant), "level": sample.level.as_str() })
    }));
    let toml = "system = \"{{tools}}\"\ndoc_to_text = \"request\"\ndoc_to_target = \"call\"\ntarget_delimiter = \"\\n\"\n\
                generation_kwargs = { until = [\"\\n\\n\"], max_gen_toks = 64 }\nmetric_list = [{ metric = \"verified\" }]\n\
                filter_list = [{ name = \"none\", filter = [{ function = \"remove_whitespace\" }, { function = \"take_first\" }] }]\n\
                metadata = { version = 1 }";
    Ok(made("toolworld", "toolworld", toml, documents)?.with_verifier(Arc::new(ToolCallVerifier)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use didact_eval::task::Target;
    use didact_eval::task::prompt::{Draw, PromptOptions};

    #[test]
    fn made_tasks_ask_and_their_answers_are_choices() {
        let selection = select(&["lego", "addition", "toolworld"]).expect("they are there");
        assert_eq!(selection.tasks.len(), VARIABLES + DIGITS + 1);
        let groups: Vec<&str> = selection.groups.iter().map(|group| group.name.as_str()).collect();
        assert_eq!(groups, ["lego", "addition"], "a set of one task needs no mean");
        for task in &selection.tasks {
            assert_eq!((task.documents.len(), task.examples.len()), (ASKED, EXAMPLES), "{}", task.name());
            let options = PromptOptions { shots: 1, draw: Draw::Harness, seed: 1, is_chat: false };
            for asked in task.ask(Some(10), &options).expect("it asks") {
                match asked.question.target {
                    Target::Choices(right) => assert_eq!(right.len(), 1),
                    Target::Texts(texts) => assert!(!texts[0].is_empty()),
                }
            }
        }
        let lego = &selection.tasks[2].documents[0];
        assert!(lego["question"].as_str().expect("text").ends_with(" = val"), "{lego:?}");
    }

    #[test]
    fn names_are_found_once_and_mistakes_are_understood() {
        let selection = select(&["arithmetic_2da", "arithmetic", "arithmetic_2da"]).expect("they are there");
        assert_eq!(selection.tasks.len(), 10);
        let error = select(&["arithmetik"]).expect_err("no such task").to_string();
        assert!(error.contains("did you mean `arithmetic`"), "{error}");
        assert!(select(&["zzz"]).expect_err("no such task").to_string().ends_with("`zzz`"));
    }
}
