use super::vocabulary::{NOUNS, VERBS};
use super::*;
use didact_core::message::Role;
use didact_core::seed::Streams;
use didact_verify::tool_call::{Category, ToolCallVerifier, compare, parse_calls};
use serde_json::{Value, json};
use std::collections::BTreeSet;

fn documented() -> WorldConfig {
    WorldConfig { nouns_per_verb: 12, held_out_per_verb: 3, docs: Some(Docs::default()), ..WorldConfig::default() }
}

fn draw(config: &WorldConfig, seed: u64, pool: Pool, count: usize) -> (World, Vec<Sample>) {
    let streams = Streams::new(seed);
    let world = World::new(config, &streams).expect("a valid configuration");
    let samples = world.draw(&streams, "test", pool, count, &mut BTreeSet::new()).expect("enough requests");
    (world, samples)
}

#[test]
fn catalogue_has_the_pages_shape() {
    let world = World::new(&WorldConfig::default(), &Streams::new(1)).expect("defaults are valid");
    assert_eq!(world.tools().len(), 32);
    for (verb, _) in VERBS {
        assert_eq!(world.tools().iter().filter(|t| t.verb == verb).count(), 4);
    }
    let names: BTreeSet<String> = world.tools().iter().map(ToolSpec::name).collect();
    assert_eq!(names.len(), 32);
    for tool in world.tools() {
        let required = tool.parameters.iter().filter(|p| p.required).count();
        assert!((1..=2).contains(&required), "{}", tool.signature());
        assert!(tool.parameters.len() - required <= 2, "{}", tool.signature());
        let unique: BTreeSet<&str> = tool.parameters.iter().map(|p| p.name).collect();
        assert_eq!(unique.len(), tool.parameters.len());
    }
}

#[test]
fn same_seed_same_world_other_seed_other_world() {
    let texts = |seed| {
        let (_, samples) = draw(&documented(), seed, Pool::Trained, 50);
        samples.iter().map(|s| s.messages(Style::Text)).collect::<Vec<_>>()
    };
    assert_eq!(texts(7), texts(7));
    assert_ne!(texts(7), texts(8));
}

#[test]
fn a_sample_does_not_depend_on_how_many_follow() {
    let (_, few) = draw(
        &WorldConfig { none_share: 0.0, levels: LevelMix { easy: 1.0, ..LevelMix::default() }, ..documented() },
        3,
        Pool::Trained,
        20,
    );
    let (_, many) = draw(
        &WorldConfig { none_share: 0.0, levels: LevelMix { easy: 1.0, ..LevelMix::default() }, ..documented() },
        3,
        Pool::Trained,
        60,
    );
    assert_eq!(few[..], many[..20]);
}

#[test]
fn every_right_answer_parses_and_scores_exact_in_both_styles() {
    for docs in [None, Some(Docs::default())] {
        let config = WorldConfig { docs, ..WorldConfig::default() };
        let (_, samples) = draw(&config, 11, Pool::Trained, 600);
        for sample in &samples {
            for style in [Style::Text, Style::Words] {
                let answer = style.answer(sample.gold.as_ref());
                let found = parse_calls(&style.readable(&answer)).unwrap_or_else(|e| panic!("{answer}: {e}"));
                let right: Vec<_> = sample.gold.iter().cloned().collect();
                assert_eq!(compare(&right, &found).category, Category::Exact, "{answer}");
            }
            let reference = json!(Style::Text.answer(sample.gold.as_ref()));
            assert!(ToolCallVerifier.judge(&reference, reference.as_str().expect("a string")).is_right());
        }
    }
}

#[test]
fn every_value_can_be_worked_out_from_the_request() {
    let (_, samples) = draw(&documented(), 5, Pool::Trained, 900);
    let mut derived = 0;
    for sample in &samples {
        assert!(sample.request.starts_with(&format!("today is {} .", DAYS[sample.today])));
        for supplied in &sample.supplied {
            let phrase = &supplied.phrase;
            assert!(sample.request.contains(&phrase.text), "{} in {}", phrase.text, sample.request);
            let found = derive(&phrase.text, supplied.parameter.kind, sample.today);
            assert_eq!(found.as_ref(), Some(&phrase.value), "{}", phrase.text);
            let own_words = phrase.value.as_str().map_or_else(|| phrase.value.to_string(), str::to_owned);
            assert_eq!(phrase.derived, own_words != phrase.text, "{}", phrase.text);
            derived += usize::from(phrase.derived);
        }
        let arguments: Vec<&str> = sample.supplied.iter().map(|s| s.parameter.name).collect();
        if let Some(gold) = &sample.gold {
            assert_eq!(gold.arguments.keys().collect::<Vec<_>>(), arguments);
            assert_eq!(gold.name, sample.about);
        }
    }
    assert!(derived > 600, "{derived} derived values in 300 medium and 300 hard samples");
}

#[test]
fn wordings_mean_what_a_reader_takes_them_to_mean() {
    let wed = 2;
    for (text, kind, value) in [
        ("tomorrow", Kind::Day, json!("thu")),
        ("5 days from today", Kind::Day, json!("mon")),
        ("the day before mon", Kind::Day, json!("sun")),
        ("the day after sun", Kind::Day, json!("mon")),
        ("fri", Kind::Day, json!("fri")),
        ("4 plus 3", Kind::Number, json!(7)),
        ("twice 6", Kind::Number, json!(12)),
        ("a dozen", Kind::Number, json!(12)),
        ("17", Kind::Number, json!(17)),
        ("cheap", Kind::Level, json!("low")),
        ("medium", Kind::Level, json!("mid")),
        ("premium", Kind::Level, json!("high")),
        ("oslo", Kind::City, json!("oslo")),
    ] {
        assert_eq!(derive(text, kind, wed), Some(value), "{text}");
    }
    for (text, kind) in
        [("oslo", Kind::Name), ("21", Kind::Number), ("someday", Kind::Day), ("12 plus 12", Kind::Number)]
    {
        assert_eq!(derive(text, kind, wed), None, "{text}");
    }
}

#[test]
fn levels_ask_for_what_they_say() {
    let (world, samples) = draw(&documented(), 21, Pool::Trained, 300);
    for level in [Level::Easy, Level::Medium, Level::Hard] {
        let of_level: Vec<_> = samples.iter().filter(|s| s.level == level).collect();
        assert_eq!(of_level.len(), 100);
        for sample in of_level {
            let tool = world.tools().iter().find(|t| t.name() == sample.about).expect("in the catalogue");
            let required = tool.parameters.iter().filter(|p| p.required).count();
            let sentences = sample.request.matches(" .").count();
            match level {
                Level::Easy => {
                    assert_eq!((sample.supplied.len(), sample.derived_values(), sentences), (required, 0, 2));
                }
                Level::Medium => {
                    assert_eq!((sample.supplied.len(), sentences), (required + 1, 2));
                    assert!(sample.derived_values() <= 1);
                }
                Level::Hard => {
                    assert_eq!((sample.supplied.len(), sentences), (tool.parameters.len(), 3));
                    assert!(sample.derived_values() >= 2);
                }
            }
        }
    }
    assert_eq!(samples.iter().filter(|s| s.gold.is_none()).count(), 24, "8 % of each level");
}

#[test]
fn held_out_tools_and_requests_occur_nowhere_in_training() {
    let streams = Streams::new(42);
    let world = World::new(&documented(), &streams).expect("valid");
    let mut seen = BTreeSet::new();
    let train = world.draw(&streams, "train", Pool::Trained, 1200, &mut seen).expect("enough");
    let held_out = world.draw(&streams, "held_out", Pool::HeldOut, 100, &mut seen).expect("enough");
    let trained = world.draw(&streams, "trained", Pool::Trained, 100, &mut seen).expect("enough");

    let training: String = train.iter().flat_map(|s| s.messages(Style::Text)).map(|m| m.content + "\n").collect();
    let names: Vec<String> = world.tools().iter().filter(|t| t.held_out).map(ToolSpec::name).collect();
    assert_eq!(names.len(), 24);
    for name in &names {
        assert!(!training.contains(&format!("{name}(")), "{name} is in training");
    }
    for tool in world.tools().iter().filter(|t| t.held_out) {
        for verb in tool.verb_phrases {
            for noun in tool.noun_phrases {
                // `set up the alarm` is not a request for the pair `set`, `the alarm`: whole wordings are compared.
                assert!(!training.contains(&format!(" {verb} {noun} ")), "{verb} {noun} is in training");
            }
        }
    }
    for sample in held_out.iter().chain(&trained) {
        for message in sample.messages(Style::Text).iter().filter(|m| m.role == Role::User) {
            assert!(!training.contains(&message.content), "{} is in training", message.content);
        }
    }
    assert!(held_out.iter().all(|s| names.contains(&s.about)));
    assert!(trained.iter().all(|s| !names.contains(&s.about)));
    let asked: BTreeSet<&String> = held_out.iter().map(|s| &s.about).collect();
    assert_eq!(asked.len(), 24, "each held-out tool is asked for");
}

#[test]
fn prompts_list_the_right_tool_its_siblings_and_strangers() {
    for pool in [Pool::Trained, Pool::HeldOut] {
        let (world, samples) = draw(&documented(), 9, pool, 200);
        for sample in samples {
            let listed = sample.listed.as_ref().expect("docs are on");
            assert_eq!(listed.len(), 5);
            assert_eq!(listed.iter().collect::<BTreeSet<_>>().len(), 5);
            let about = world.tools().iter().find(|t| t.name() == sample.about).expect("in the catalogue");
            assert_eq!(listed.contains(&about.signature()), sample.gold.is_some());
            let verb = sample.about.split('_').next().expect("names are verb_noun");
            let siblings = listed.iter().filter(|s| s.starts_with(&format!("{verb}_"))).count();
            assert_eq!(siblings, 2 + usize::from(sample.gold.is_some()));
        }
    }
}

#[test]
fn without_docs_a_request_that_fits_no_tool_is_about_none_of_the_catalogue() {
    let (world, samples) = draw(&WorldConfig::default(), 13, Pool::Trained, 300);
    let names: BTreeSet<String> = world.tools().iter().map(ToolSpec::name).collect();
    let mut none = 0;
    for sample in &samples {
        assert_eq!(names.contains(&sample.about), sample.gold.is_some());
        none += usize::from(sample.gold.is_none());
    }
    assert_eq!(none, 24);
    assert_eq!(samples[0].messages(Style::Words).len(), 2, "no system turn");
}

#[test]
fn words_style_uses_few_words() {
    let (_, samples) = draw(&WorldConfig::default(), 17, Pool::Trained, 3000);
    let text: Vec<String> = samples.iter().flat_map(|s| s.messages(Style::Words)).map(|m| m.content).collect();
    let words: BTreeSet<&str> = text.iter().flat_map(|t| t.split_whitespace()).collect();
    assert!((200..300).contains(&words.len()), "{} words", words.len());
    assert!(words.iter().all(|w| !w.contains(['_', '(', ',']) || w.len() == 1), "symbols stand alone");
}

#[test]
fn a_documented_sample_reads_like_this() {
    let (_, samples) = draw(&documented(), 1, Pool::Trained, 3);
    let shown: Vec<String> = samples
        .iter()
        .flat_map(|s| s.messages(Style::Text))
        .map(|m| format!("{}: {}", m.role.as_str(), m.content))
        .collect();
    insta::assert_snapshot!(shown.join("\n"));
}

#[test]
fn impossible_settings_are_refused_by_name() {
    let refused = |config: WorldConfig| World::new(&config, &Streams::new(1)).expect_err("refused").to_string();
    assert_eq!(
        refused(WorldConfig { nouns_per_verb: 13, ..documented() }),
        "`toolworld.nouns_per_verb` is 13, expected 2 to 12"
    );
    assert_eq!(
        refused(WorldConfig { held_out_per_verb: 12, ..documented() }),
        "`toolworld.held_out_per_verb` is 12, expected fewer than `toolworld.nouns_per_verb`"
    );
    assert_eq!(
        refused(WorldConfig { none_share: f64::NAN, ..documented() }),
        "`toolworld.none_share` is NaN, expected a share from 0 to below 1"
    );
    assert_eq!(
        refused(WorldConfig { docs: Some(Docs { distractors: 2, siblings: 3 }), ..documented() }),
        "`toolworld.docs.siblings` is 3, expected at most `toolworld.docs.distractors`"
    );
    let streams = Streams::new(1);
    let no_held_out = WorldConfig { held_out_per_verb: 0, ..documented() };
    let world = World::new(&no_held_out, &streams).expect("valid");
    let error = world.draw(&streams, "x", Pool::HeldOut, 1, &mut BTreeSet::new()).expect_err("none are held out");
    assert!(error.to_string().starts_with("none of the 0 held-out tools"), "{error}");
}

#[test]
fn vocabulary_is_unambiguous() {
    let mut phrases: Vec<&str> = VERBS.iter().flat_map(|(_, p)| p.iter().copied()).collect();
    phrases.extend(NOUNS.iter().flat_map(|(_, p)| p.iter().copied()));
    assert_eq!(phrases.iter().collect::<BTreeSet<_>>().len(), phrases.len());
    let kinds = [Kind::City, Kind::Day, Kind::Level, Kind::Name, Kind::Language, Kind::Unit];
    let words: Vec<&str> = kinds.iter().flat_map(|k| k.words().iter().copied()).collect();
    assert_eq!(words.iter().collect::<BTreeSet<_>>().len(), words.len(), "a value belongs to one kind");
    assert_eq!(json!(words).as_array().map(Vec::len), Some(20 + 7 + 3 + 20 + 10 + 6));
    assert!(words.iter().all(|w| derive(w, Kind::Number, 0).is_none_or(|v: Value| v.is_null())));
}
