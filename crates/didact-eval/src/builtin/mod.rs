//! Tasks that need no download, made from a seed, and ready task files for well-known data.

mod arithmetic;
mod novel;
mod scramble;

use crate::error::EvalError;
use crate::task::{Document, Task, TaskFile};
use didact_core::seed::Streams;
use std::path::Path;

/// A task that comes with the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Builtin {
    /// Its name.
    pub name: &'static str,
    /// The set it belongs to.
    pub group: &'static str,
    /// One line for people.
    pub what: &'static str,
    source: Source,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Arithmetic(arithmetic::Kind),
    Scramble(scramble::Kind),
    Novel,
    /// A task file; the data are below `DIDACT_DATA`.
    File(&'static str),
}

/// Seed of the made tasks: the same questions for everyone.
const SEED: u64 = 1234;

const fn arithmetic(name: &'static str, kind: arithmetic::Kind, what: &'static str) -> Builtin {
    Builtin { name, group: "arithmetic", what, source: Source::Arithmetic(kind) }
}

const fn scramble(name: &'static str, kind: scramble::Kind, what: &'static str) -> Builtin {
    Builtin { name, group: "unscramble", what, source: Source::Scramble(kind) }
}

/// The tasks, but for BLiMP's, which are as many as there are files.
pub const BUILTINS: &[Builtin] = &[
    arithmetic("arithmetic_1dc", arithmetic::Kind::Composite, "two operations on three digits"),
    arithmetic("arithmetic_2da", arithmetic::Kind::Sum(2), "sums of numbers of two digits"),
    arithmetic("arithmetic_2ds", arithmetic::Kind::Difference(2), "differences of numbers of two digits"),
    arithmetic("arithmetic_2dm", arithmetic::Kind::Product(2), "products of numbers of two digits"),
    arithmetic("arithmetic_3da", arithmetic::Kind::Sum(3), "sums of numbers of three digits"),
    arithmetic("arithmetic_3ds", arithmetic::Kind::Difference(3), "differences of numbers of three digits"),
    arithmetic("arithmetic_4da", arithmetic::Kind::Sum(4), "sums of numbers of four digits"),
    arithmetic("arithmetic_4ds", arithmetic::Kind::Difference(4), "differences of numbers of four digits"),
    arithmetic("arithmetic_5da", arithmetic::Kind::Sum(5), "sums of numbers of five digits"),
    arithmetic("arithmetic_5ds", arithmetic::Kind::Difference(5), "differences of numbers of five digits"),
    scramble("cycle_letters", scramble::Kind::Cycle, "words whose letters were rotated"),
    scramble("anagrams1", scramble::Kind::Anagram(1), "words shuffled but for the first and last letter"),
    scramble("anagrams2", scramble::Kind::Anagram(2), "words shuffled but for the first and last two letters"),
    scramble("random_insertion", scramble::Kind::Insertion, "words with a character between any two letters"),
    scramble("reversed_words", scramble::Kind::Reversed, "words spelled backwards"),
    Builtin {
        name: "novel_words",
        group: "novel_words",
        what: "a sentence with a word that was just defined (checked by form only)",
        source: Source::Novel,
    },
    Builtin {
        name: "gsm8k",
        group: "gsm8k",
        what: "grade-school mathematics; needs gsm8k/test.jsonl",
        source: Source::File(include_str!("../../tasks/gsm8k.toml")),
    },
    Builtin {
        name: "multiple_choice",
        group: "multiple_choice",
        what: "rows {query, choices, gold}; needs multiple_choice.jsonl",
        source: Source::File(include_str!("../../tasks/multiple_choice.toml")),
    },
    Builtin {
        name: "cloze",
        group: "cloze",
        what: "rows {context, completion}; needs cloze.jsonl",
        source: Source::File(include_str!("../../tasks/cloze.toml")),
    },
    Builtin {
        name: "analogies",
        group: "analogies",
        what: "rows {stem: [a, b], choices: [[c, d], ...], gold}; needs analogies.jsonl",
        source: Source::File(include_str!("../../tasks/analogies.toml")),
    },
];

/// The set of all BLiMP paradigms, and what their names begin with.
pub const BLIMP: &str = "blimp";
const BLIMP_TASK: &str = include_str!("../../tasks/blimp.toml");

impl Builtin {
    /// Makes or reads its documents.
    ///
    /// # Errors
    /// When data that it needs are not there.
    pub fn task(&self) -> Result<Task, EvalError> {
        let streams = Streams::new(SEED).child(self.name, &[]);
        match self.source {
            Source::Arithmetic(kind) => {
                let sets = (
                    arithmetic::documents(kind, 2000, streams),
                    arithmetic::documents(kind, 200, streams.child("train", &[])),
                );
                self.made(arithmetic::TASK, sets)
            }
            Source::Scramble(kind) => self.made(scramble::TASK, scramble::documents(kind, streams)),
            Source::Novel => Ok(self.made(novel::TASK, novel::documents(streams))?.with_verifier(novel::verifier())),
            Source::File(text) => Task::load(parsed(text, self.name), Path::new("")),
        }
    }

    fn made(&self, toml: &str, (asked, examples): (Vec<Document>, Vec<Document>)) -> Result<Task, EvalError> {
        let mut file = parsed(toml, self.name);
        file.tag = vec![self.group.to_owned()];
        // A question may be drawn as an example, too: such examples are left out.
        let examples = examples.into_iter().filter(|example| !asked.contains(example)).collect();
        Task::new(file, asked, examples)
    }
}

/// A task file that comes with the program, under a name.
fn parsed(toml: &str, name: &str) -> TaskFile {
    let mut file = TaskFile::from_toml(toml).expect("the task files that come with the program are tested");
    name.clone_into(&mut file.task);
    file
}

/// One of BLiMP's paradigms: `blimp_adjunct_island` reads `data/adjunct_island.jsonl` in `blimp/BLiMP.zip`.
///
/// # Errors
/// When the data are not there.
pub fn blimp(paradigm: &str) -> Result<Task, EvalError> {
    let text = BLIMP_TASK.replace("PARADIGM", paradigm);
    Task::load(parsed(&text, &format!("{BLIMP}_{paradigm}")), Path::new(""))
}

/// The 67 paradigms of BLiMP.
pub const BLIMP_PARADIGMS: &[&str] = &[
    "adjunct_island",
    "anaphor_gender_agreement",
    "anaphor_number_agreement",
    "animate_subject_passive",
    "animate_subject_trans",
    "causative",
    "complex_NP_island",
    "coordinate_structure_constraint_complex_left_branch",
    "coordinate_structure_constraint_object_extraction",
    "determiner_noun_agreement_1",
    "determiner_noun_agreement_2",
    "determiner_noun_agreement_irregular_1",
    "determiner_noun_agreement_irregular_2",
    "determiner_noun_agreement_with_adj_2",
    "determiner_noun_agreement_with_adj_irregular_1",
    "determiner_noun_agreement_with_adj_irregular_2",
    "determiner_noun_agreement_with_adjective_1",
    "distractor_agreement_relational_noun",
    "distractor_agreement_relative_clause",
    "drop_argument",
    "ellipsis_n_bar_1",
    "ellipsis_n_bar_2",
    "existential_there_object_raising",
    "existential_there_quantifiers_1",
    "existential_there_quantifiers_2",
    "existential_there_subject_raising",
    "expletive_it_object_raising",
    "inchoative",
    "intransitive",
    "irregular_past_participle_adjectives",
    "irregular_past_participle_verbs",
    "irregular_plural_subject_verb_agreement_1",
    "irregular_plural_subject_verb_agreement_2",
    "left_branch_island_echo_question",
    "left_branch_island_simple_question",
    "matrix_question_npi_licensor_present",
    "npi_present_1",
    "npi_present_2",
    "only_npi_licensor_present",
    "only_npi_scope",
    "passive_1",
    "passive_2",
    "principle_A_c_command",
    "principle_A_case_1",
    "principle_A_case_2",
    "principle_A_domain_1",
    "principle_A_domain_2",
    "principle_A_domain_3",
    "principle_A_reconstruction",
    "regular_plural_subject_verb_agreement_1",
    "regular_plural_subject_verb_agreement_2",
    "sentential_negation_npi_licensor_present",
    "sentential_negation_npi_scope",
    "sentential_subject_island",
    "superlative_quantifiers_1",
    "superlative_quantifiers_2",
    "tough_vs_raising_1",
    "tough_vs_raising_2",
    "transitive",
    "wh_island",
    "wh_questions_object_gap",
    "wh_questions_subject_gap",
    "wh_questions_subject_gap_long_distance",
    "wh_vs_that_no_gap",
    "wh_vs_that_no_gap_long_distance",
    "wh_vs_that_with_gap",
    "wh_vs_that_with_gap_long_distance",
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::prompt::{Draw, PromptOptions};

    #[test]
    fn every_made_task_asks_with_and_without_examples() {
        for builtin in BUILTINS.iter().filter(|b| !matches!(b.source, Source::File(_))) {
            let task = builtin.task().unwrap_or_else(|error| panic!("{}: {error}", builtin.name));
            for shots in [0, 2] {
                let options = PromptOptions { shots, draw: Draw::Harness, seed: 1234, is_chat: false };
                let asked = task.ask(Some(20), &options).unwrap_or_else(|error| panic!("{}: {error}", builtin.name));
                assert_eq!(asked.len(), 20, "{}", builtin.name);
            }
            assert!(task.documents.len() >= 200, "{}: {}", builtin.name, task.documents.len());
        }
    }

    #[test]
    fn every_task_file_is_one() {
        for builtin in BUILTINS {
            if let Source::File(text) = builtin.source {
                TaskFile::from_toml(text).unwrap_or_else(|error| panic!("{}: {error}", builtin.name));
            }
        }
        TaskFile::from_toml(BLIMP_TASK).expect("a task");
        assert_eq!(BLIMP_PARADIGMS.len(), 67);
    }
}
