//! What is done to answers before they are measured.

use crate::task::{FilterSpec, OutputType, TaskFile};
use fancy_regex::Regex;
use std::collections::BTreeMap;

/// The name that the harness gives to answers as they are.
pub const NONE: &str = "none";

/// A task's filters: each pipeline gives answers that are measured by themselves.
#[derive(Debug, Clone)]
pub(crate) struct Filters {
    pipelines: Vec<(String, Vec<Filter>)>,
}

#[derive(Debug, Clone)]
enum Filter {
    Regex { pattern: Box<Regex>, which: i64, fallback: String },
    Trim,
    Lowercase,
    Uppercase,
    Map { values: BTreeMap<String, String>, default: String },
    First(usize),
    Majority,
}

impl Filters {
    /// The filters of a task.
    pub(crate) fn new(file: &TaskFile) -> Result<Self, String> {
        if file.filter_list.is_empty() {
            return Ok(Self { pipelines: vec![(NONE.into(), Vec::new())] });
        }
        let is_text = file.output_type == OutputType::GenerateUntil;
        let pipeline = |pipeline: &crate::task::FilterPipeline| -> Result<_, String> {
            let filters = pipeline.filter.iter().map(|spec| Filter::new(spec, is_text));
            let filters =
                filters.collect::<Result<_, _>>().map_err(|why| format!("filter `{}`: {why}", pipeline.name))?;
            Ok((pipeline.name.clone(), filters))
        };
        Ok(Self { pipelines: file.filter_list.iter().map(pipeline).collect::<Result<_, _>>()? })
    }

    /// Names of the pipelines.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.pipelines.iter().map(|(name, _)| name.as_str())
    }

    /// The answers to one question after a pipeline.
    pub(crate) fn apply(&self, pipeline: usize, answers: &[String]) -> Vec<String> {
        let start = answers.to_vec();
        self.pipelines[pipeline].1.iter().fold(start, |answers, filter| filter.apply(answers))
    }
}

impl Filter {
    fn new(spec: &FilterSpec, is_text: bool) -> Result<Self, String> {
        if !is_text && !matches!(spec, FilterSpec::TakeFirst {}) {
            return Err("only `take_first` means something where no text is generated".into());
        }
        Ok(match spec {
            FilterSpec::Regex { regex_pattern, group_select, fallback } => Self::Regex {
                pattern: Box::new(Regex::new(regex_pattern).map_err(|error| format!("`{regex_pattern}`: {error}"))?),
                which: *group_select,
                fallback: fallback.clone(),
            },
            FilterSpec::RemoveWhitespace {} => Self::Trim,
            FilterSpec::Lowercase {} => Self::Lowercase,
            FilterSpec::Uppercase {} => Self::Uppercase,
            FilterSpec::Map { mapping_dict, default_value } => {
                Self::Map { values: mapping_dict.clone(), default: default_value.clone() }
            }
            FilterSpec::TakeFirst {} => Self::First(1),
            FilterSpec::TakeFirstK { k: 0 } => return Err("`k` begins at 1".into()),
            FilterSpec::TakeFirstK { k } => Self::First(*k),
            FilterSpec::MajorityVote {} => Self::Majority,
        })
    }

    fn apply(&self, mut answers: Vec<String>) -> Vec<String> {
        let each = |change: &dyn Fn(&str) -> String| answers.iter().map(|answer| change(answer)).collect();
        match self {
            Self::Regex { pattern, which, fallback } => {
                each(&|answer| found(pattern, *which, answer).unwrap_or_else(|| fallback.clone()))
            }
            Self::Trim => each(&|answer| answer.trim().to_owned()),
            Self::Lowercase => each(&str::to_lowercase),
            Self::Uppercase => each(&str::to_uppercase),
            Self::Map { values, default } => each(&|answer| values.get(answer).unwrap_or(default).clone()),
            Self::First(k) => {
                answers.truncate(*k);
                answers
            }
            Self::Majority => {
                let count = |answer: &String| answers.iter().filter(|other| *other == answer).count();
                // The last of the maxima would be the latest: looked through from behind, it is the first.
                answers.iter().rev().max_by_key(|answer| count(answer)).cloned().into_iter().collect()
            }
        }
    }
}

/// The chosen match of Python's `findall`: the whole, or the first group that is not empty.
fn found(pattern: &Regex, which: i64, answer: &str) -> Option<String> {
    // A pattern that looks back too far gives up: that is no match.
    let matches: Vec<_> = pattern.captures_iter(answer).map_while(Result::ok).collect();
    let index = if which < 0 { matches.len().checked_sub(which.unsigned_abs() as usize)? } else { which as usize };
    let captures = matches.get(index)?;
    let text = match captures.len() {
        1 => captures.get(0)?.as_str(),
        2 => captures.get(1).map_or("", |group| group.as_str()),
        n => (1..n).filter_map(|i| captures.get(i)).map(|group| group.as_str()).find(|text| !text.is_empty())?,
    };
    Some(text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filtered(toml: &str, answers: &[&str]) -> Vec<String> {
        let file = TaskFile::from_toml(&format!("task = \"t\"\nfilter_list = [{{ name = \"f\", filter = [{toml}] }}]"));
        let filters = Filters::new(&file.expect("a task")).expect("filters");
        filters.apply(0, &answers.iter().map(|&a| a.to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn a_pattern_finds_what_pythons_findall_does() {
        let strict = r#"{ function = "regex", regex_pattern = '#### (\-?[0-9\.\,]+)' }"#;
        assert_eq!(filtered(strict, &["so #### 1,200. and #### 5", "none"]), ["1,200.", "[invalid]"]);
        let flexible = r#"{ function = "regex", group_select = -1, regex_pattern = '(-?[$0-9.,]{2,})|(-?[0-9]+)' }"#;
        assert_eq!(filtered(flexible, &["6 of 12 is 7", "x 3.5"]), ["7", "3.5"]);
        let whole = r#"{ function = "regex", regex_pattern = '(?<=is )\w+', group_select = 1, fallback = "?" }"#;
        assert_eq!(filtered(whole, &["a is b is c ", "a is b"]), ["c", "?"]);
    }

    #[test]
    fn answers_are_chosen_and_changed_in_order() {
        let vote = r#"{ function = "lowercase" }, { function = "remove_whitespace" }, { function = "majority_vote" }"#;
        assert_eq!(filtered(vote, &[" B", "a", "A ", "b"]), ["b"], "of equals the first");
        assert_eq!(filtered(r#"{ function = "take_first_k", k = 2 }"#, &["x", "y", "z"]), ["x", "y"]);
        let map =
            r#"{ function = "map", mapping_dict = { yes = "1" }, default_value = "0" }, { function = "take_first" }"#;
        assert_eq!(filtered(map, &["yes", "no"]), ["1"]);
    }
}
