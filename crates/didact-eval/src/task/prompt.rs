//! Prompts: description, examples, question, as the lm-evaluation-harness puts them together.

use super::{Document, Question, Sampler, Task};
use crate::error::EvalError;
use crate::python::PythonRandom;
use didact_core::seed::Streams;
use rand::seq::index;
use serde::{Deserialize, Serialize};

/// Which documents are the examples of which question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Draw {
    /// As the lm-evaluation-harness draws them: one stream of Python's random numbers, in the order of the documents.
    #[default]
    Harness,
    /// From a stream of each document's own: what a document is shown does not depend on the others.
    PerDocument,
    /// The same for all documents, drawn once: prompts have their beginning in common, which is then read once.
    Fixed,
    /// The first ones.
    First,
}

/// How prompts are made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PromptOptions {
    /// Examples before each question.
    pub shots: usize,
    /// Which ones.
    pub draw: Draw,
    /// The seed of the draws; the harness's is 1234.
    pub seed: u64,
    /// Whether the prompt is what a user says, rendered by the model's chat template.
    pub is_chat: bool,
}

/// A prompt in its parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Context {
    /// What begins it: what the system says, the description.
    pub head: String,
    /// Examples, each with its delimiter.
    pub shots: Vec<String>,
    /// The question; several where the choices stand in it.
    pub questions: Vec<String>,
}

impl Context {
    /// What follows the description, without the first `dropped` examples.
    pub fn body(&self, question: usize, dropped: usize) -> String {
        let shots = self.shots.iter().skip(dropped).map(String::as_str);
        shots.chain([self.questions[question].as_str()]).collect()
    }

    /// The whole, without the first `dropped` examples.
    pub fn text(&self, question: usize, dropped: usize) -> String {
        format!("{}{}", self.head, self.body(question, dropped))
    }
}

/// A document's question and prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct Asked {
    /// Number of the document.
    pub doc: usize,
    /// What it asks.
    pub question: Question,
    /// With examples.
    pub context: Context,
}

impl Task {
    /// The first `limit` documents' questions with their prompts.
    ///
    /// # Errors
    /// [`EvalError::Document`] for one that cannot be asked; [`EvalError::Task`] when there are fewer documents than
    /// examples are wanted.
    pub fn ask(&self, limit: Option<usize>, options: &PromptOptions) -> Result<Vec<Asked>, EvalError> {
        let count = self.documents.len().min(limit.unwrap_or(usize::MAX));
        let mut drawer = Drawer::new(self, options)?;
        (0..count)
            .map(|doc| {
                let document = &self.documents[doc];
                let at = |message: String| self.at(doc, message);
                let question = self.question(document).map_err(at)?;
                let shots = drawer.draw(doc)?;
                let shots = shots.into_iter().map(|example| self.example(&self.examples[example]));
                let shots = shots.collect::<Result<_, _>>().map_err(|m| at(format!("an example: {m}")))?;
                let (system, description) = self.head(document).map_err(at)?;
                // Between the two as between examples; behind the system's words also where no description follows, unless
                // they are a turn of their own.
                let is_bare = system.is_empty() || (options.is_chat && description.is_empty());
                let delimiter = if is_bare { "" } else { self.file.fewshot_delimiter.as_str() };
                let head = format!("{system}{delimiter}{description}");
                let context = Context { head, shots, questions: question.texts.clone() };
                Ok(Asked { doc, question, context })
            })
            .collect()
    }

    /// A solved example.
    fn example(&self, document: &Document) -> Result<String, String> {
        let question = self.question(document)?;
        let super::TaskFile { target_delimiter, fewshot_delimiter, .. } = &self.file;
        let (text, answer) = match (&question.target, question.has_several_prompts()) {
            // The right choice is the prompt, and the target follows.
            (super::Target::Choices(right), true) => (&question.texts[right[0]], question.choices[0].as_str()),
            _ => (&question.texts[0], question.answer()),
        };
        Ok(if answer.is_empty() {
            text.clone()
        } else {
            format!("{text}{target_delimiter}{answer}{fewshot_delimiter}")
        })
    }
}

/// Draws examples for one document after the other.
struct Drawer<'a> {
    task: &'a Task,
    options: &'a PromptOptions,
    is_first: bool,
    python: PythonRandom,
    streams: Streams,
    fixed: Option<Vec<usize>>,
}

impl<'a> Drawer<'a> {
    fn new(task: &'a Task, options: &'a PromptOptions) -> Result<Self, EvalError> {
        let there = task.examples.len();
        if options.shots > there {
            let message =
                format!("{} examples are wanted, and there are {there} documents to take them from", options.shots);
            return Err(EvalError::Task { task: task.name().to_owned(), message });
        }
        let is_first = options.draw == Draw::First || task.file.fewshot_config.sampler == Sampler::FirstN;
        let streams = Streams::new(options.seed).child("examples", &[]);
        Ok(Self { task, options, is_first, python: PythonRandom::new(options.seed), streams, fixed: None })
    }

    /// Numbers of the examples of a document.
    fn draw(&mut self, doc: usize) -> Result<Vec<usize>, EvalError> {
        let (task, shots) = (self.task, self.options.shots);
        if shots == 0 {
            return Ok(Vec::new());
        }
        let document = &task.documents[doc];
        let there = task.examples.len();
        let excludes = task.file.excludes_itself();
        let is_other = |&example: &usize| !excludes || task.examples[example] != *document;
        let too_few = || {
            let message =
                format!("{shots} examples are wanted, and fewer than that are left without the document itself");
            task.at(doc, message)
        };
        let mut drawn: Vec<usize> = if self.is_first {
            (0..there).filter(is_other).take(shots).collect()
        } else {
            match self.options.draw {
                Draw::Harness => {
                    // One more is drawn where the document itself may be among them.
                    let n = shots + usize::from(excludes);
                    if n > there {
                        return Err(too_few());
                    }
                    let mut drawn: Vec<usize> = self.python.sample(there, n).into_iter().filter(is_other).collect();
                    if drawn.len() < shots {
                        // Copies of the document were drawn, too.
                        let others: Vec<usize> = (0..there).filter(is_other).collect();
                        if others.len() < shots {
                            return Err(too_few());
                        }
                        drawn = self.python.sample(others.len(), shots).into_iter().map(|i| others[i]).collect();
                    }
                    drawn
                }
                Draw::PerDocument => {
                    let others: Vec<usize> = (0..there).filter(is_other).collect();
                    if others.len() < shots {
                        return Err(too_few());
                    }
                    let mut rng = self.streams.rng("document", &[doc as u64]);
                    index::sample(&mut rng, others.len(), shots).into_iter().map(|i| others[i]).collect()
                }
                Draw::Fixed => {
                    // A few more than are needed, for documents that are among them.
                    let streams = &self.streams;
                    let fixed = self.fixed.get_or_insert_with(|| {
                        index::sample(&mut streams.rng("fixed", &[]), there, there.min(2 * shots + 8)).into_vec()
                    });
                    fixed.iter().copied().filter(is_other).collect()
                }
                Draw::First => unreachable!("handled above"),
            }
        };
        drawn.truncate(shots);
        if drawn.len() < shots { Err(too_few()) } else { Ok(drawn) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::TaskFile;
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn task(toml: &str, n: usize) -> Task {
        let text = format!("task = \"t\"\ndoc_to_text = \"Q: {{{{q}}}}\\nA:\"\ndoc_to_target = \"a\"\n{toml}");
        let rows: Vec<Document> = (0..n)
            .map(|i| json!({"q": format!("{i}+1"), "a": (i + 1).to_string()}).as_object().expect("an object").clone())
            .collect();
        Task::new(TaskFile::from_toml(&text).expect("a task"), rows.clone(), rows).expect("it is one")
    }

    fn options(shots: usize, draw: Draw) -> PromptOptions {
        PromptOptions { shots, draw, seed: 1234, is_chat: false }
    }

    #[test]
    fn description_examples_and_question_stand_in_that_order() {
        let task = task("description = \"Add.\\n\\n\"\nfewshot_config = { sampler = \"first_n\" }", 3);
        let asked = task.ask(Some(1), &options(2, Draw::Harness)).expect("it asks");
        // No split is named for either, which the harness takes as the same: document 0 is not its own example.
        let text = "Add.\n\nQ: 1+1\nA: 2\n\nQ: 2+1\nA: 3\n\nQ: 0+1\nA:";
        assert_eq!(asked[0].context.text(0, 0), text);
        assert_eq!(asked[0].context.text(0, 1), "Add.\n\nQ: 2+1\nA: 3\n\nQ: 0+1\nA:");
        assert_eq!(asked[0].context.body(0, 2), "Q: 0+1\nA:");
    }

    #[test]
    fn the_harness_draw_is_one_python_stream() {
        // With another split for the examples exactly as many are drawn: sample(range(1000), 5) = 989, 796, ...
        let task = task("test_split = \"test\"\ntraining_split = \"train\"", 1000);
        let asked = task.ask(Some(2), &options(5, Draw::Harness)).expect("it asks");
        let first: Vec<&str> = asked[0].context.shots.iter().map(String::as_str).collect();
        let expected = [989, 796, 451, 119, 7].map(|i| format!("Q: {i}+1\nA: {}\n\n", i + 1));
        assert_eq!(first, expected);
        assert_eq!(asked[1].context.shots[0], "Q: 92+1\nA: 93\n\n");
    }

    #[test]
    fn too_few_documents_are_an_error() {
        let task = task("", 3);
        let message = |shots| task.ask(None, &options(shots, Draw::Harness)).expect_err("it fails").to_string();
        assert!(message(4).contains("4 examples are wanted, and there are 3"), "{}", message(4));
        assert!(message(3).contains("doc 0"), "{}", message(3));
    }

    proptest! {
        #[test]
        fn no_document_is_its_own_example_and_none_comes_twice(
            n in 2usize..30, shots in 1usize..8, draw in prop::sample::select(vec![Draw::Harness, Draw::PerDocument, Draw::Fixed, Draw::First])
        ) {
            prop_assume!(shots < n);
            let task = task("", n);
            for asked in task.ask(None, &options(shots, draw)).expect("it asks") {
                prop_assert_eq!(asked.context.shots.len(), shots);
                let own = format!("Q: {}+1\n", asked.doc);
                prop_assert!(asked.context.shots.iter().all(|shot| !shot.starts_with(&own)));
                let different: std::collections::BTreeSet<&String> = asked.context.shots.iter().collect();
                prop_assert_eq!(different.len(), shots);
            }
        }

        #[test]
        fn a_limit_changes_no_prompt(limit in 1usize..10, draw in prop::sample::select(vec![Draw::Harness, Draw::PerDocument, Draw::Fixed])) {
            let task = task("", 12);
            let all = task.ask(None, &options(3, draw)).expect("it asks");
            prop_assert_eq!(&task.ask(Some(limit), &options(3, draw)).expect("it asks")[..], &all[..limit]);
        }
    }
}
