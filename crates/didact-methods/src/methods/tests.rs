use super::*;
use crate::reproduce::verdict::decide;
use crate::reproduce::{Claim, Outcome, Results, Role, Size, Verdict, effects};
use std::collections::{BTreeMap, BTreeSet};

#[test]
fn methods_are_described_and_found_by_their_names() {
    let mut slugs = BTreeSet::new();
    for entry in methods() {
        assert!(slugs.insert(entry.slug), "`{}` is there twice", entry.slug);
        assert_eq!(entry.reproduction.slug(), entry.slug);
        assert_eq!(method(entry.slug).expect("is found").arxiv, entry.arxiv);
        for text in [entry.paper, entry.authors, entry.arxiv, entry.needs, entry.summary] {
            assert!(!text.is_empty(), "`{}` says everything", entry.slug);
        }
        // A typing mistake at the end.
        let error = method(&format!("{}x", entry.slug)).expect_err("is no method");
        assert!(matches!(error, ReproduceError::NoSuchMethod { nearest: Some(name), .. } if name == entry.slug));
    }
    let error = method("nothing-at-all-like-it").expect_err("is no method");
    assert!(matches!(error, ReproduceError::NoSuchMethod { nearest: None, .. }));
}

#[test]
fn arms_come_after_what_they_need_and_claims_are_about_arms() {
    for entry in methods() {
        let claim = entry.reproduction.claim();
        for size in [Size::S, Size::M] {
            let mut names = BTreeSet::new();
            for arm in entry.reproduction.arms(size) {
                let path = format!("{}, size {}, arm {}", entry.slug, size.as_str(), arm.name);
                assert!(arm.name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-'), "{path}");
                assert!(arm.needs.iter().all(|need| names.contains(need)), "{path} needs {:?}", arm.needs);
                assert!(names.insert(arm.name), "{path} is there twice");
                let expected = match arm.name {
                    name if name == claim.method => Role::Method,
                    name if name == claim.baseline => Role::Baseline,
                    _ => continue,
                };
                assert_eq!(arm.role, expected, "{path}");
            }
            for name in [claim.method, claim.baseline] {
                assert!(names.contains(name), "{}, size {}: no arm `{name}`", entry.slug, size.as_str());
            }
        }
    }
}

/// Results in which the method of a claim is better at every seed.
fn in_favour(claim: &Claim) -> Results {
    let seeds = vec![1, 2, 3, 4, 5];
    let sign = if claim.higher_is_better { 1.0 } else { -1.0 };
    let outcomes = |gain: f64| -> Vec<Outcome> {
        let of = |seed: &u64| {
            let value = 2.0 + 0.3 * *seed as f64 + sign * gain * (1.0 + 0.1 * *seed as f64);
            Outcome { values: BTreeMap::from([(claim.metric.to_owned(), value)]), ..Outcome::default() }
        };
        seeds.iter().map(of).collect()
    };
    let arms = [(claim.method.to_owned(), outcomes(0.1)), (claim.baseline.to_owned(), outcomes(0.0))];
    Results::new(seeds.clone(), BTreeMap::from(arms))
}

#[test]
fn the_verdict_of_every_claim_flips_when_its_arms_are_swapped() {
    for claim in methods().iter().map(|entry| entry.reproduction.claim()) {
        let results = in_favour(&claim);
        let verdict = |claim: &Claim| decide(&effects(claim, &results).expect("is measured")).verdict;
        assert_eq!(verdict(&claim), Verdict::Holds, "{}", claim.text);
        assert_eq!(verdict(&claim.swapped()), Verdict::Fails, "{}", claim.text);
    }
}
