//! Words of hidden classes, whose labels every document gives out anew: what can be learned is only how to learn from the
//! document itself.
//!
//! A document is a start token and pairs `word label`. The labels are a random permutation over the classes, drawn for each
//! document, so that the first word's label cannot be known, and a later one's can once its class, or all the others, has
//! been seen. How well one can do is known exactly: [`best_accuracy`].

use didact_core::seed::Streams;
use didact_core::sequence::Sequence;
use rand::RngExt;
use rand::seq::SliceRandom;

/// Classes, and as many labels.
pub const CLASSES: usize = 4;
/// Words of a class.
const WORDS: usize = 8;
/// Pairs of a document.
pub const PAIRS: usize = 12;
/// The token that begins a document.
const START: u32 = 0;
/// The first label.
const FIRST_LABEL: u32 = 1;
const FIRST_WORD: u32 = FIRST_LABEL + CLASSES as u32;
/// Tokens of the vocabulary, some of them unused.
pub const VOCABULARY: usize = 40;
/// Tokens of a document.
pub const LENGTH: usize = 1 + 2 * PAIRS;

/// What a document's labels are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Labels {
    /// Of the words' classes, by the document's permutation.
    OfClasses,
    /// Drawn anew for every pair: nothing can be known.
    Random,
}

/// The classes of the words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Classes {
    /// Words of each class.
    words: Vec<Vec<u32>>,
}

/// Words and their labels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// `word label`, [`PAIRS`] times.
    pub pairs: Vec<[u32; 2]>,
}

impl Classes {
    /// Draws which words belong together.
    pub fn new(streams: &Streams) -> Self {
        let mut words: Vec<u32> = (FIRST_WORD..FIRST_WORD + (CLASSES * WORDS) as u32).collect();
        words.shuffle(&mut streams.rng("classes", &[]));
        Self { words: words.chunks(WORDS).map(<[u32]>::to_vec).collect() }
    }

    /// Documents without end.
    pub fn documents(&self, labels: Labels, streams: &Streams) -> impl Iterator<Item = Document> + '_ {
        let streams = *streams;
        (0..).map(move |number| {
            let mut rng = streams.rng("document", &[number]);
            let mut own: Vec<u32> = all_labels().collect();
            own.shuffle(&mut rng);
            let pair = |_| {
                let class = rng.random_range(0..CLASSES);
                let word = self.words[class][rng.random_range(0..WORDS)];
                // Drawn in either case, so that the words are the same.
                let drawn = FIRST_LABEL + rng.random_range(0..CLASSES as u32);
                [word, if labels == Labels::Random { drawn } else { own[class] }]
            };
            Document { pairs: (0..PAIRS).map(pair).collect() }
        })
    }
}

/// The labels.
pub fn all_labels() -> impl Iterator<Item = u32> {
    FIRST_LABEL..FIRST_LABEL + CLASSES as u32
}

impl Document {
    /// The document as it is learned: its labels only.
    pub fn lesson(&self) -> Sequence {
        let mut ids = vec![START];
        ids.extend(self.pairs.iter().flatten());
        let weight = (0..ids.len()).map(|at| f32::from(u8::from(at > 0 && at % 2 == 0))).collect();
        Sequence::single(ids, weight)
    }

    /// A prompt of `shots` pairs, from the first on, and the word of the next one.
    ///
    /// # Panics
    /// If the document has no such pair.
    pub fn prompt(&self, shots: usize) -> Vec<u32> {
        prompt(&self.pairs[..shots], self.pairs[shots][0])
    }

    /// The label that follows [`prompt`](Self::prompt).
    pub fn answer(&self, shots: usize) -> u32 {
        self.pairs[shots][1]
    }
}

/// Examples, and a word whose label is asked for.
pub fn prompt(examples: &[[u32; 2]], word: u32) -> Vec<u32> {
    let mut ids = vec![START];
    ids.extend(examples.iter().flatten());
    ids.push(word);
    ids
}

/// How often the label after `shots` examples can be told at best: always if the word's class was seen, else one of the
/// labels that are left.
pub fn best_accuracy(shots: usize) -> f64 {
    // How likely it is that so many different classes were seen.
    let mut seen = [0.0; CLASSES + 1];
    seen[0] = 1.0;
    for _ in 0..shots {
        for classes in (0..CLASSES).rev() {
            let new = seen[classes] * (CLASSES - classes) as f64 / CLASSES as f64;
            seen[classes + 1] += new;
            seen[classes] -= new;
        }
    }
    let told = |classes: usize| {
        let share = classes as f64 / CLASSES as f64;
        if classes == CLASSES { 1.0 } else { share + (1.0 - share) / (CLASSES - classes) as f64 }
    };
    (0..=CLASSES).map(|classes| seen[classes] * told(classes)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn the_best_accuracy_is_the_published_one_and_what_a_solver_gets() {
        let expected =
            [(0, 0.250), (1, 0.500), (2, 0.688), (3, 0.828), (4, 0.910), (6, 0.977), (8, 0.994), (11, 0.999)];
        for (shots, best) in expected {
            assert!((best_accuracy(shots) - best).abs() < 1e-3, "{shots}: {}", best_accuracy(shots));
        }
        let streams = Streams::new(3);
        let classes = Classes::new(&streams);
        let class = |word: u32| classes.words.iter().position(|words| words.contains(&word)).expect("has a class");
        let shots = 3;
        let documents: Vec<Document> = classes.documents(Labels::OfClasses, &streams).take(4000).collect();
        let expected_hits: f64 = documents
            .iter()
            .map(|document| {
                let known: BTreeMap<usize, u32> =
                    document.pairs[..shots].iter().map(|&[word, label]| (class(word), label)).collect();
                match known.get(&class(document.pairs[shots][0])) {
                    Some(&label) => f64::from(u8::from(label == document.answer(shots))),
                    None => 1.0 / (CLASSES - known.len()) as f64,
                }
            })
            .sum();
        assert!((expected_hits / 4000.0 - best_accuracy(shots)).abs() < 0.02);
    }

    #[test]
    fn labels_are_learned_words_are_not_and_random_labels_change_nothing_else() {
        let streams = Streams::new(1);
        let classes = Classes::new(&streams);
        let of = |labels| classes.documents(labels, &streams).take(50).collect::<Vec<_>>();
        let (real, random) = (of(Labels::OfClasses), of(Labels::Random));
        let words = |documents: &[Document]| -> Vec<u32> {
            documents.iter().flat_map(|d| d.pairs.iter().map(|pair| pair[0])).collect()
        };
        assert_eq!(words(&real), words(&random));
        assert_ne!(real, random);
        let lesson = real[0].lesson();
        assert_eq!(lesson.ids.len(), LENGTH);
        assert_eq!(lesson.total_weight(), PAIRS as f64);
        for (at, (&id, &weight)) in lesson.ids.iter().zip(&lesson.weight).enumerate() {
            assert_eq!(weight == 1.0, all_labels().any(|label| label == id), "at {at}");
            assert!((id as usize) < VOCABULARY);
        }
        for shots in 0..PAIRS {
            let prompt = real[0].prompt(shots);
            assert_eq!(prompt, lesson.ids[..2 * shots + 2]);
            assert_eq!(real[0].answer(shots), lesson.ids[2 * shots + 2]);
        }
    }
}
