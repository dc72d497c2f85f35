//! What is measured of a document's answers, and how documents' values become one number.

use crate::metrics::answer::{self, Leniency};
use crate::metrics::bleu::{self, Counts, Smoothing, tokens_13a};
use crate::metrics::calibration::{brier, expected_calibration_error, softmax};
use crate::metrics::pass_at_k::pass_at_k;
use crate::metrics::rouge::rouge_l;
use crate::metrics::statistics::{bootstrap_error, mean, standard_error};
use crate::task::{MetricSpec, OutputType, Target, TaskFile};
use didact_core::seed::Streams;
use fancy_regex::Regex;
use serde_json::{Value as Json, json};

/// A metric: its name, where it can be measured, how values are aggregated, whether more is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metric {
    /// Its name, the harness's where it has one.
    pub name: &'static str,
    /// What it is measured of.
    pub output_type: OutputType,
    /// How documents' values become one.
    pub aggregation: Aggregation,
    /// Whether more is better.
    pub higher_is_better: bool,
    /// What it is.
    pub what: &'static str,
}

/// How documents' values become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Aggregation {
    /// The mean.
    Mean,
    /// `exp(-mean)` of log-likelihoods.
    Perplexity,
    /// `exp(-sum of log-likelihoods / sum of weights)`.
    WeightedPerplexity,
    /// `-sum of log-likelihoods / sum of bytes / ln 2`.
    BitsPerByte,
    /// BLEU of the whole as one text.
    Bleu,
    /// Expected calibration error over ten bins.
    CalibrationError,
}

impl Aggregation {
    /// The harness's name for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Mean => "mean",
            Self::Perplexity => "perplexity",
            Self::WeightedPerplexity => "weighted_perplexity",
            Self::BitsPerByte => "bits_per_byte",
            Self::Bleu => "bleu",
            Self::CalibrationError => "calibration_error",
        }
    }
}

const fn metric(
    name: &'static str,
    output_type: OutputType,
    aggregation: Aggregation,
    higher_is_better: bool,
    what: &'static str,
) -> Metric {
    Metric { name, output_type, aggregation, higher_is_better, what }
}

/// Every metric.
pub const METRICS: &[Metric] = &[
    metric("acc", OutputType::Loglikelihood, Aggregation::Mean, true, "the target is what greedy decoding writes"),
    metric("perplexity", OutputType::Loglikelihood, Aggregation::Perplexity, false, "of the target, per document"),
    metric("word_perplexity", OutputType::LoglikelihoodRolling, Aggregation::WeightedPerplexity, false, "per word"),
    metric("byte_perplexity", OutputType::LoglikelihoodRolling, Aggregation::WeightedPerplexity, false, "per byte"),
    metric("token_perplexity", OutputType::LoglikelihoodRolling, Aggregation::WeightedPerplexity, false, "per token"),
    metric("bits_per_byte", OutputType::LoglikelihoodRolling, Aggregation::BitsPerByte, false, "information per byte"),
    metric("acc", OutputType::MultipleChoice, Aggregation::Mean, true, "the likeliest choice is right"),
    metric("acc_norm", OutputType::MultipleChoice, Aggregation::Mean, true, "as acc, per character of the choice"),
    metric("acc_bytes", OutputType::MultipleChoice, Aggregation::Mean, true, "as acc, per byte of the choice"),
    metric("acc_tokens", OutputType::MultipleChoice, Aggregation::Mean, true, "as acc, per token of the choice"),
    metric(
        "acc_mutual_info",
        OutputType::MultipleChoice,
        Aggregation::Mean,
        true,
        "as acc, relative to the choice's likelihood by itself",
    ),
    metric(
        "acc_answer_context",
        OutputType::MultipleChoice,
        Aggregation::Mean,
        true,
        "as acc, relative to the choice's likelihood behind `answer_context`",
    ),
    metric(
        "acc_pair",
        OutputType::MultipleChoice,
        Aggregation::Mean,
        true,
        "the right choice is likelier than every other; a tie is not right",
    ),
    metric(
        "exact_match",
        OutputType::MultipleChoice,
        Aggregation::Mean,
        true,
        "greedy decoding writes the right choice",
    ),
    metric(
        "brier_score",
        OutputType::MultipleChoice,
        Aggregation::Mean,
        false,
        "squared distance of the choices' probabilities",
    ),
    metric(
        "calibration_error",
        OutputType::MultipleChoice,
        Aggregation::CalibrationError,
        false,
        "distance of accuracy from confidence",
    ),
    metric(
        "exact_match",
        OutputType::GenerateUntil,
        Aggregation::Mean,
        true,
        "the answer is a right one, to the letter",
    ),
    metric("f1", OutputType::GenerateUntil, Aggregation::Mean, true, "of the answer's words, as SQuAD measures it"),
    metric("rouge_l", OutputType::GenerateUntil, Aggregation::Mean, true, "longest common run of words with gaps"),
    metric("bleu", OutputType::GenerateUntil, Aggregation::Bleu, true, "of all answers as one text"),
    metric("pass_at_k", OutputType::GenerateUntil, Aggregation::Mean, true, "one of k answers is right; unbiased"),
    metric("verified", OutputType::GenerateUntil, Aggregation::Mean, true, "the task's own check accepts the answer"),
];

/// A document's value of a metric.
#[derive(Debug, Clone, PartialEq)]
pub enum Measured {
    /// A number.
    Number(f64),
    /// A log-likelihood, and of how many words, bytes or tokens.
    Weighted(f64, f64),
    /// A confidence, and whether the answer was right.
    Confidence(f64, bool),
    /// An answer's counts against its references.
    Bleu(Counts),
}

impl Measured {
    /// As the log of samples has it. `None` for what cannot be read back.
    pub fn json(&self) -> Option<Json> {
        Some(match self {
            Self::Number(number) => json!(number),
            Self::Weighted(log_likelihood, weight) => json!([log_likelihood, weight]),
            Self::Confidence(confidence, is_right) => json!([confidence, is_right]),
            Self::Bleu(_) => return None,
        })
    }

    /// From the log of samples.
    pub fn from_json(value: &Json) -> Option<Self> {
        match value {
            Json::Array(pair) => match pair.as_slice() {
                [a, Json::Bool(b)] => Some(Self::Confidence(a.as_f64()?, *b)),
                [a, b] => Some(Self::Weighted(a.as_f64()?, b.as_f64()?)),
                _ => None,
            },
            Json::Bool(is_right) => Some(Self::Number(f64::from(u8::from(*is_right)))),
            other => other.as_f64().map(Self::Number),
        }
    }
}

/// The value of a metric over documents. `NaN` for none.
pub fn aggregate(aggregation: Aggregation, values: &[&Measured]) -> f64 {
    if values.is_empty() {
        return f64::NAN;
    }
    let numbers = || values.iter().filter_map(|value| if let Measured::Number(x) = value { Some(*x) } else { None });
    let weighted = || {
        values.iter().fold((0.0, 0.0), |(sum, weights), value| match value {
            Measured::Weighted(log_likelihood, weight) => (sum + log_likelihood, weights + weight),
            _ => (sum, weights),
        })
    };
    match aggregation {
        Aggregation::Mean => mean(&numbers().collect::<Vec<_>>()),
        Aggregation::Perplexity => (-mean(&numbers().collect::<Vec<_>>())).exp(),
        Aggregation::WeightedPerplexity => {
            let (sum, weights) = weighted();
            (-sum / weights).exp()
        }
        Aggregation::BitsPerByte => {
            let (sum, weights) = weighted();
            -sum / weights / std::f64::consts::LN_2
        }
        Aggregation::Bleu => {
            let mut counts = Counts::default();
            for value in values {
                if let Measured::Bleu(own) = value {
                    counts.add(own);
                }
            }
            counts.score(Smoothing::Exponential, false)
        }
        Aggregation::CalibrationError => {
            let answers = values.iter().filter_map(|value| match value {
                Measured::Confidence(confidence, is_right) => Some((*confidence, *is_right)),
                _ => None,
            });
            expected_calibration_error(&answers.collect::<Vec<_>>(), 10)
        }
    }
}

/// Draws for a standard error that has no formula.
pub(crate) const DRAWS: usize = 1000;

/// The standard error of a metric over documents: `s / √n` of means, by bootstrap of anything else. `None` for fewer than
/// two documents.
pub fn error(aggregation: Aggregation, values: &[Measured], streams: &Streams) -> Option<f64> {
    if aggregation == Aggregation::Mean {
        let numbers = values.iter().filter_map(|value| if let Measured::Number(x) = value { Some(*x) } else { None });
        return standard_error(&numbers.collect::<Vec<_>>());
    }
    bootstrap_error(values, |drawn| aggregate(aggregation, drawn), DRAWS, streams)
}

/// The log-likelihoods of a multiple-choice question.
#[derive(Debug, Clone, PartialEq)]
pub struct ChoiceScores {
    /// The choices.
    pub choices: Vec<String>,
    /// Log-likelihood of each behind its prompt.
    pub conditional: Vec<f64>,
    /// Tokens of each.
    pub tokens: Vec<usize>,
    /// Whether greedy decoding writes it.
    pub is_greedy: Vec<bool>,
    /// Log-likelihoods without a prompt, if some metric asks for them.
    pub alone: Vec<f64>,
    /// Log-likelihoods behind the answer context, if some metric asks for them.
    pub behind_context: Vec<f64>,
}

/// What a model said of a document.
#[derive(Debug, Clone, PartialEq)]
pub enum Response {
    /// Of one target.
    Target {
        /// Its log-likelihood.
        log_likelihood: f64,
        /// Whether greedy decoding writes it.
        is_greedy: bool,
    },
    /// Of a whole text.
    Text {
        /// Its log-likelihood.
        log_likelihood: f64,
        /// Its tokens.
        tokens: usize,
    },
    /// Of choices.
    Choices(ChoiceScores),
    /// Answers.
    Answers(Vec<String>),
}

/// The metrics of a task, ready to measure.
#[derive(Debug, Clone)]
pub(crate) struct Measures {
    measures: Vec<Measure>,
}

#[derive(Debug, Clone)]
struct Measure {
    metric: Metric,
    leniency: Leniency,
    ignored: Vec<Regex>,
    k: Vec<usize>,
}

impl Measures {
    /// Those that a task names, or the usual ones of its output type.
    pub(crate) fn new(file: &TaskFile) -> Result<Self, String> {
        let usual: &[&str] = match file.output_type {
            OutputType::Loglikelihood => &["perplexity", "acc"],
            OutputType::LoglikelihoodRolling => &["word_perplexity", "byte_perplexity", "bits_per_byte"],
            OutputType::MultipleChoice => &["acc", "acc_norm"],
            OutputType::GenerateUntil => &["exact_match"],
        };
        let usual = usual.iter().map(|name| MetricSpec {
            metric: (*name).to_owned(),
            aggregation: None,
            higher_is_better: None,
            ignore_case: false,
            ignore_punctuation: false,
            ignore_numbers: false,
            regexes_to_ignore: Vec::new(),
            k: Vec::new(),
        });
        let named = if file.metric_list.is_empty() { usual.collect() } else { file.metric_list.clone() };
        let measure = |spec: &MetricSpec| {
            let of_type = METRICS.iter().filter(|metric| metric.output_type == file.output_type);
            let Some(metric) = of_type.clone().find(|metric| metric.name == spec.metric) else {
                let names: Vec<&str> = of_type.map(|metric| metric.name).collect();
                return Err(format!("there is no metric `{}` here; there are {}", spec.metric, names.join(", ")));
            };
            // The harness calls the mean of Brier scores by their name.
            let is_known = |name: &str| name == metric.aggregation.as_str() || name == metric.name;
            let wanted = spec.aggregation.as_deref().is_none_or(is_known);
            if !wanted || spec.higher_is_better.is_some_and(|better| better != metric.higher_is_better) {
                let (how, more) = (metric.aggregation.as_str(), metric.higher_is_better);
                return Err(format!("`{}` is aggregated by `{how}`, with higher_is_better = {more}", metric.name));
            }
            let is_lenient = spec.ignore_case
                || spec.ignore_punctuation
                || spec.ignore_numbers
                || !spec.regexes_to_ignore.is_empty();
            if is_lenient && !matches!(metric.name, "exact_match" | "pass_at_k") {
                return Err(format!("`{}` takes no `ignore_...`", metric.name));
            }
            if (metric.name == "pass_at_k") == spec.k.is_empty() {
                return Err(format!("`k` belongs to `pass_at_k` and to nothing else, here `{}`", metric.name));
            }
            if let Some(k) = spec.k.iter().find(|k| !(1..=file.repeats).contains(*k)) {
                return Err(format!(
                    "`pass_at_k` of k = {k} needs `repeats` to be as much, and it is {}",
                    file.repeats
                ));
            }
            if metric.name == "acc_answer_context" && file.answer_context.is_none() {
                return Err("`acc_answer_context` needs `answer_context`".into());
            }
            let regex = |text: &String| Regex::new(text).map_err(|error| format!("`regexes_to_ignore`: {error}"));
            Ok(Measure {
                metric: *metric,
                leniency: Leniency {
                    ignore_case: spec.ignore_case,
                    ignore_punctuation: spec.ignore_punctuation,
                    ignore_numbers: spec.ignore_numbers,
                },
                ignored: spec.regexes_to_ignore.iter().map(regex).collect::<Result<_, _>>()?,
                k: spec.k.clone(),
            })
        };
        Ok(Self { measures: named.iter().map(measure).collect::<Result<_, _>>()? })
    }

    /// Whether the choices are also scored without a prompt.
    pub(crate) fn needs_alone(&self) -> bool {
        self.measures.iter().any(|measure| measure.metric.name == "acc_mutual_info")
    }

    /// Whether the choices are also scored behind the answer context.
    pub(crate) fn needs_context(&self) -> bool {
        self.measures.iter().any(|measure| measure.metric.name == "acc_answer_context")
    }

    /// Whether answers are given to the task's verifier.
    pub(crate) fn needs_verifier(&self) -> bool {
        self.measures.iter().any(|measure| measure.metric.name == "verified")
    }

    /// Names of the values, with their metrics.
    pub(crate) fn names(&self) -> Vec<(String, Metric)> {
        self.measures.iter().flat_map(Measure::names).collect()
    }

    /// A document's values, in the order of [`Measures::names`]. `text` is the measured text of rolling likelihoods;
    /// `verified` the score that the task's verifier gave the first answer.
    pub(crate) fn of(&self, response: &Response, target: &Target, text: &str, verified: Option<f64>) -> Vec<Measured> {
        self.measures.iter().flat_map(|measure| measure.of(response, target, text, verified)).collect()
    }
}

impl Measure {
    fn names(&self) -> Vec<(String, Metric)> {
        if self.k.is_empty() {
            return vec![(self.metric.name.to_owned(), self.metric)];
        }
        self.k.iter().map(|k| (format!("pass@{k}"), self.metric)).collect()
    }

    fn of(&self, response: &Response, target: &Target, text: &str, verified: Option<f64>) -> Vec<Measured> {
        let number = |x: f64| vec![Measured::Number(x)];
        let truth = |is_right: bool| number(f64::from(u8::from(is_right)));
        match response {
            Response::Target { log_likelihood, is_greedy } => {
                if self.metric.name == "acc" {
                    truth(*is_greedy)
                } else {
                    number(*log_likelihood)
                }
            }
            Response::Text { log_likelihood, tokens } => {
                let weight = match self.metric.name {
                    "word_perplexity" => words(text),
                    "token_perplexity" => *tokens,
                    _ => text.len(),
                };
                vec![Measured::Weighted(*log_likelihood, weight as f64)]
            }
            Response::Choices(scores) => vec![self.of_choices(scores, target)],
            Response::Answers(answers) => self.of_answers(answers, target, verified),
        }
    }

    fn of_choices(&self, scores: &ChoiceScores, target: &Target) -> Measured {
        let right: &[usize] = if let Target::Choices(right) = target { right } else { &[] };
        let ChoiceScores { choices, conditional, tokens, is_greedy, alone, behind_context } = scores;
        // Where the choices are prompts, one text follows all of them: its length changes nothing.
        let length = |i: usize, of: fn(&str) -> usize| choices.get(i).map_or(1, |choice| of(choice)) as f64;
        let best = |value: &dyn Fn(usize) -> f64| largest(conditional.len(), value);
        let truth = |is_right: bool| Measured::Number(f64::from(u8::from(is_right)));
        match self.metric.name {
            "acc_norm" => truth(right.contains(&best(&|i| conditional[i] / length(i, |c| c.chars().count())))),
            "acc_bytes" => truth(right.contains(&best(&|i| conditional[i] / length(i, str::len)))),
            "acc_tokens" => truth(right.contains(&best(&|i| conditional[i] / tokens[i] as f64))),
            "acc_mutual_info" => truth(right.contains(&best(&|i| conditional[i] - alone[i]))),
            "acc_answer_context" => truth(right.contains(&best(&|i| conditional[i] - behind_context[i]))),
            "acc_pair" => {
                truth(right.iter().any(|&r| (0..conditional.len()).all(|i| i == r || conditional[r] > conditional[i])))
            }
            "exact_match" => truth(right.iter().any(|&r| is_greedy[r])),
            "brier_score" => Measured::Number(brier(&softmax(conditional), right[0])),
            "calibration_error" => {
                let likely = softmax(conditional);
                let best = best(&|i| conditional[i]);
                Measured::Confidence(likely[best], right.contains(&best))
            }
            _ => truth(right.contains(&best(&|i| conditional[i]))),
        }
    }

    fn of_answers(&self, answers: &[String], target: &Target, verified: Option<f64>) -> Vec<Measured> {
        let references: &[String] = if let Target::Texts(texts) = target { texts } else { &[] };
        let first = answers.first().map_or("", String::as_str);
        let is_right = |answer: &str| {
            let references: Vec<String> = references.iter().map(|text| self.without_ignored(text)).collect();
            answer::exact_match(&self.without_ignored(answer), &references, self.leniency)
        };
        let value = match self.metric.name {
            "f1" => answer::f1(first, references),
            "rouge_l" => rouge_l(first, references),
            "bleu" => {
                let references: Vec<Vec<String>> = references.iter().map(|text| tokens_13a(text)).collect();
                return vec![Measured::Bleu(bleu::Counts::new(&tokens_13a(first), &references))];
            }
            "pass_at_k" => {
                let right = answers.iter().filter(|answer| is_right(answer)).count();
                // A filter may have left fewer answers than were asked for.
                let of = |k: &usize| Measured::Number(pass_at_k(answers.len(), right, (*k).min(answers.len())));
                return self.k.iter().map(of).collect();
            }
            "verified" => verified.unwrap_or(0.0),
            _ => f64::from(u8::from(is_right(first))),
        };
        vec![Measured::Number(value)]
    }

    fn without_ignored(&self, text: &str) -> String {
        self.ignored.iter().fold(text.to_owned(), |text, regex| regex.replace_all(&text, "").into_owned())
    }
}

/// Number of the first largest value, as NumPy's `argmax` has it.
fn largest(n: usize, value: &dyn Fn(usize) -> f64) -> usize {
    let mut best = 0;
    for i in 1..n {
        if value(i) > value(best) {
            best = i;
        }
    }
    best
}

/// Words of a text as Python's `re.split(r"\s+", text)` counts them: white space at an end makes an empty word.
fn words(text: &str) -> usize {
    let mut count = 1;
    let mut was_space = false;
    for c in text.chars() {
        count += usize::from(c.is_whitespace() && !was_space);
        was_space = c.is_whitespace();
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measures(toml: &str) -> Result<Measures, String> {
        Measures::new(&TaskFile::from_toml(&format!("task = \"t\"\n{toml}")).expect("a task"))
    }

    fn choices(conditional: &[f64]) -> Response {
        Response::Choices(ChoiceScores {
            choices: vec!["é".into(), "four".into(), "xyz".into()],
            conditional: conditional.to_vec(),
            tokens: vec![1, 2, 3],
            is_greedy: vec![true, false, false],
            alone: vec![-1.0, -9.0, -1.0],
            behind_context: vec![-1.0, -1.0, -9.0],
        })
    }

    #[test]
    fn each_normalisation_has_its_own_winner() {
        let toml = "output_type = \"multiple_choice\"\nanswer_context = \"A:\"\nmetric_list = [{ metric = \"acc\" }, \
                    { metric = \"acc_norm\" }, { metric = \"acc_bytes\" }, { metric = \"acc_tokens\" }, \
                    { metric = \"acc_mutual_info\" }, { metric = \"acc_answer_context\" }, { metric = \"exact_match\" }]";
        let measures = measures(toml).expect("they are");
        // Per character: -3, -1.25, -1.3; per byte -1.5, -1.25, -1.3; per token -3, -2.5, -1.3; less alone -2, 4, -2.9; behind
        // the context -2, -4, 5.1.
        let response = choices(&[-3.0, -5.0, -3.9]);
        let right = |choice: usize| -> Vec<f64> {
            let values = measures.of(&response, &Target::Choices(vec![choice]), "", None);
            values.iter().map(|value| if let Measured::Number(x) = value { *x } else { f64::NAN }).collect()
        };
        assert_eq!(right(0), [1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]);
        assert_eq!(right(1), [0.0, 1.0, 1.0, 0.0, 1.0, 0.0, 0.0]);
        assert_eq!(right(2), [0.0, 0.0, 0.0, 1.0, 0.0, 1.0, 0.0]);
        assert!(measures.needs_alone() && measures.needs_context() && !measures.needs_verifier());
    }

    #[test]
    fn a_tie_is_right_for_the_first_choice_and_never_for_a_pair() {
        let toml = "output_type = \"multiple_choice\"\nmetric_list = [{ metric = \"acc\" }, { metric = \"acc_pair\" }]";
        let measures = measures(toml).expect("they are");
        let of = |right: usize| measures.of(&choices(&[-2.0, -2.0, -3.0]), &Target::Choices(vec![right]), "", None);
        assert_eq!(of(0), [Measured::Number(1.0), Measured::Number(0.0)]);
        assert_eq!(of(1), [Measured::Number(0.0), Measured::Number(0.0)]);
    }

    #[test]
    fn perplexities_are_weighted_by_words_bytes_and_tokens() {
        let toml = "output_type = \"loglikelihood_rolling\"\nmetric_list = [{ metric = \"word_perplexity\" }, \
                    { metric = \"byte_perplexity\" }, { metric = \"token_perplexity\" }, { metric = \"bits_per_byte\" }]";
        let measures = measures(toml).expect("they are");
        let of = |text: &str, log_likelihood: f64, tokens: usize| {
            let response = Response::Text { log_likelihood, tokens };
            measures.of(&response, &Target::Texts(Vec::new()), text, None)
        };
        let (a, b) = (of("two words", -6.0, 3), of(" é\n", -2.0, 1));
        // Words: 2 and, with the empty ones at both ends, 3. Bytes: 9 and 4.
        let value = |i: usize, how: Aggregation| aggregate(how, &[&a[i], &b[i]]);
        assert!((value(0, Aggregation::WeightedPerplexity) - (8.0_f64 / 5.0).exp()).abs() < 1e-12);
        assert!((value(1, Aggregation::WeightedPerplexity) - (8.0_f64 / 13.0).exp()).abs() < 1e-12);
        assert!((value(2, Aggregation::WeightedPerplexity) - 2.0_f64.exp()).abs() < 1e-12);
        assert!((value(3, Aggregation::BitsPerByte) - 8.0 / 13.0 / std::f64::consts::LN_2).abs() < 1e-12);
    }

    #[test]
    fn answers_are_compared_as_the_metric_says() {
        let toml = "repeats = 4\nmetric_list = [{ metric = \"exact_match\", ignore_case = true, regexes_to_ignore = [',', '\\$'] }, \
                    { metric = \"pass_at_k\", k = [1, 2] }, { metric = \"f1\" }, { metric = \"verified\" }, { metric = \"bleu\" }]";
        let measures = measures(toml).expect("they are");
        let names: Vec<String> = measures.names().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["exact_match", "pass@1", "pass@2", "f1", "verified", "bleu"]);
        let answers = Response::Answers(["$1,200 Euro", "x", "1200 euro", "y"].map(String::from).to_vec());
        let values = measures.of(&answers, &Target::Texts(vec!["1200 euro".into()]), "", Some(0.5));
        let numbers: Vec<f64> =
            values[..5].iter().map(|v| if let Measured::Number(x) = v { *x } else { f64::NAN }).collect();
        assert_eq!(numbers, [1.0, 0.25, 0.5, 1.0, 0.5]);
    }

    #[test]
    fn metrics_that_do_not_fit_are_refused() {
        let message = |toml: &str| measures(toml).expect_err("it does not fit");
        assert!(message("metric_list = [{ metric = \"acc_norm\" }]").contains("exact_match"));
        assert!(message("metric_list = [{ metric = \"f1\", ignore_case = true }]").contains("ignore_"));
        assert!(message("metric_list = [{ metric = \"pass_at_k\", k = [2] }]").contains("repeats"));
        assert!(message("metric_list = [{ metric = \"exact_match\", aggregation = \"median\" }]").contains("`mean`"));
        let toml = "output_type = \"multiple_choice\"\nmetric_list = [{ metric = \"acc_answer_context\" }]";
        assert!(message(toml).contains("answer_context"));
    }
}
