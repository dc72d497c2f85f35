//! The engine against the reference implementation's logits and against itself: cut, batched, in both precisions.

use didact_infer::{Engine, EngineWeights, KvCache, Span};
use didact_kernels::Precision;
use didact_model::peft::Adapter;
use didact_model::{Checkpoint, Decoder, DecoderInput, ForwardMode};
use std::path::PathBuf;

const MODELS: [&str; 4] = ["llama", "qwen2", "qwen3", "gpt2"];

/// Logits against the reference implementation, on the tiny models.
const MODEL_F32: f32 = 1e-4;

fn golden(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../golden")).join(name)
}

fn checkpoint(name: &str) -> Checkpoint {
    Checkpoint::open(golden(name)).expect("the golden model opens")
}

fn engine(name: &str, precision: Precision) -> Engine {
    Engine::new(EngineWeights::from_checkpoint(&checkpoint(name)).expect("the golden model loads"), precision)
}

/// The reference's inputs `[B][T]` and logits `[B][T][V]`.
fn reference(name: &str) -> (Vec<Vec<u32>>, Vec<Vec<Vec<f32>>>) {
    let text = std::fs::read_to_string(golden(name).join("golden.json")).expect("the golden is there");
    let value: serde_json::Value = serde_json::from_str(&text).expect("the golden is JSON");
    let ids = serde_json::from_value(value["inputs"]["input_ids"].clone()).expect("ids");
    (ids, serde_json::from_value(value["outputs"]["logits"].clone()).expect("logits"))
}

/// Logits after each token, reading the ids in pieces of these sizes (and the rest).
fn logits(engine: &Engine, ids: &[u32], pieces: &[usize]) -> Vec<f32> {
    let mut cache = engine.cache();
    let (mut out, mut rest) = (Vec::new(), ids);
    let mut sizes = pieces.iter();
    while !rest.is_empty() {
        let (now, later) = rest.split_at(sizes.next().copied().unwrap_or(rest.len()).min(rest.len()));
        let mut spans = [Span { cache: &mut cache, ids: now, logits_from: 0 }];
        engine.forward(&mut spans, |_, scores| out.extend_from_slice(scores));
        rest = later;
    }
    assert_eq!(cache.len(), ids.len());
    out
}

fn worst(got: &[f32], want: &[f32]) -> f32 {
    assert_eq!(got.len(), want.len());
    got.iter().zip(want).map(|(g, w)| (g - w).abs()).fold(0.0, f32::max)
}

#[test]
fn logits_agree_with_the_reference_implementation() {
    for name in MODELS {
        let engine = engine(name, Precision::F32);
        let (inputs, wanted) = reference(name);
        for (ids, want) in inputs.iter().zip(&wanted) {
            let error = worst(&logits(&engine, ids, &[]), &want.concat());
            assert!(error <= MODEL_F32, "{name}: {error:e}");
        }
    }
}

#[test]
fn logits_agree_with_the_training_decoder() {
    for name in MODELS {
        let decoder = Decoder::load(&checkpoint(name), &burn::tensor::Device::flex()).expect("the golden model loads");
        let engine = Engine::new(EngineWeights::from_decoder(&decoder), Precision::F32);
        let (inputs, _) = reference(name);
        let ids = &inputs[0];
        let positions: Vec<u32> = (0..ids.len() as u32).collect();
        let segments = vec![0; ids.len()];
        let input = DecoderInput { ids, segments: &segments, positions: &positions, rows: 1, len: ids.len() };
        let want = decoder.logits(decoder.hidden(&input, &ForwardMode::Eval));
        let want: Vec<f32> = want.into_data().try_to_vec().expect("logits are f32");
        let error = worst(&logits(&engine, ids, &[]), &want);
        assert!(error <= MODEL_F32, "{name}: {error:e}");
    }
}

#[test]
fn bf16_stays_near_f32() {
    for name in MODELS {
        let (inputs, _) = reference(name);
        let exact = logits(&engine(name, Precision::F32), &inputs[0], &[]);
        let rounded = logits(&engine(name, Precision::Bf16), &inputs[0], &[]);
        let (low, high) = exact.iter().fold((f32::MAX, f32::MIN), |(l, h), &x| (l.min(x), h.max(x)));
        let error = worst(&rounded, &exact);
        // 3 % of the logits' range, the goldens' tolerance for bf16 multiplies.
        assert!(error <= 0.03 * (high - low), "{name}: {error} of {}", high - low);
        assert!(error > 0.0, "{name}: bf16 changed nothing");
    }
}

#[test]
fn a_prompt_read_in_any_pieces_gives_the_same_bits() {
    for name in MODELS {
        for precision in [Precision::F32, Precision::Bf16] {
            let engine = engine(name, precision);
            let (inputs, _) = reference(name);
            let whole = logits(&engine, &inputs[0], &[]);
            for pieces in [&[1; 64][..], &[3, 1, 5], &[7, 7, 7], &[2]] {
                assert!(logits(&engine, &inputs[0], pieces) == whole, "{name} {precision} in pieces {pieces:?}");
            }
        }
    }
}

#[test]
fn neighbours_in_a_batch_do_not_show() {
    for name in MODELS {
        let engine = engine(name, Precision::F32);
        let (inputs, _) = reference(name);
        let sequences: Vec<&[u32]> = vec![&inputs[0][..9], &inputs[1][..4], &inputs[0][3..8], &inputs[1][..1]];
        let mut caches: Vec<KvCache> = sequences.iter().map(|_| engine.cache()).collect();
        // All read their first tokens together, then the rest; the second pass wants every row's logits.
        let mut together = vec![Vec::new(); sequences.len()];
        for pass in 0..2 {
            let mut owners = Vec::new();
            let mut spans: Vec<Span> = caches
                .iter_mut()
                .zip(&sequences)
                .enumerate()
                .map(|(i, (cache, ids))| {
                    let half = ids.len() / 2;
                    let ids = if pass == 0 { &ids[..half] } else { &ids[half..] };
                    owners.extend(vec![i; ids.len()]);
                    Span { cache, ids, logits_from: 0 }
                })
                .collect();
            let vocab = engine.config().vocab_size;
            engine.forward(&mut spans, |rows, scores| {
                for (row, scores) in rows.zip(scores.chunks(vocab)) {
                    together[owners[row]].extend_from_slice(scores);
                }
            });
        }
        for (ids, got) in sequences.iter().zip(&together) {
            assert!(logits(&engine, ids, &[]) == *got, "{name}: {ids:?}");
        }
    }
}

#[test]
fn logits_are_computed_only_where_asked_for() {
    let engine = engine("llama", Precision::F32);
    let (inputs, _) = reference("llama");
    let ids = &inputs[0];
    let whole = logits(&engine, ids, &[]);
    let vocab = engine.config().vocab_size;
    let (mut a, mut b) = (engine.cache(), engine.cache());
    let mut spans = [
        Span { cache: &mut a, ids: &ids[..5], logits_from: 5 },
        Span { cache: &mut b, ids, logits_from: ids.len() - 2 },
    ];
    let mut got = Vec::new();
    engine.forward(&mut spans, |rows, scores| {
        assert_eq!(rows, 0..2);
        got.extend_from_slice(scores);
    });
    assert_eq!(got, whole[whole.len() - 2 * vocab..]);
}

#[test]
fn a_cut_cache_goes_on_as_if_the_rest_had_never_been() {
    let engine = engine("qwen3", Precision::F32);
    let (inputs, _) = reference("qwen3");
    let ids = &inputs[0];
    let mut cache = engine.cache();
    let read = |cache: &mut KvCache, ids: &[u32]| {
        let mut out = Vec::new();
        engine.forward(&mut [Span { cache, ids, logits_from: 0 }], |_, scores| out.extend_from_slice(scores));
        out
    };
    let first = read(&mut cache, ids);
    cache.truncate(4);
    let vocab = engine.config().vocab_size;
    assert_eq!(read(&mut cache, &ids[4..]), first[4 * vocab..]);
}

#[test]
fn an_adapter_beside_the_weights_gives_the_logits_of_the_merged_weights() {
    for name in ["llama", "gpt2"] {
        let base = checkpoint(name);
        let adapter = Adapter::read(&golden("peft").join(name), base.config()).expect("the golden adapter opens");
        let mut merged = EngineWeights::from_checkpoint(&base).expect("the golden model loads");
        for (tensor, _, values) in adapter.merged_into(&base).map(|tensor| tensor.expect("it merges")) {
            merged.tensor_mut(&tensor).expect("the model has it").copy_from_slice(&values);
        }
        let (inputs, _) = reference(name);
        let ids = &inputs[0];
        let plain = engine(name, Precision::F32);
        let packed = plain.adapter(&adapter).expect("it fits");
        let want = logits(&Engine::new(merged, Precision::F32), ids, &[]);
        let without = logits(&plain, ids, &[]);
        // In one pass with the same tokens read without it, and in pieces.
        for pieces in [&[64][..], &[3, 1, 5]] {
            let (mut with, mut base) = (plain.cache_with(&packed), plain.cache());
            let (mut got, mut other) = (Vec::new(), Vec::new());
            let mut rest = &ids[..];
            for piece in pieces.iter().copied().chain([ids.len()]) {
                let (now, later) = rest.split_at(piece.min(rest.len()));
                rest = later;
                let mut spans = [
                    Span { cache: &mut base, ids: now, logits_from: 0 },
                    Span { cache: &mut with, ids: now, logits_from: 0 },
                ];
                let (rows, vocab) = (now.len(), plain.config().vocab_size);
                plain.forward(&mut spans, |_, scores| {
                    let (first, second) = scores.split_at(rows * vocab);
                    other.extend_from_slice(first);
                    got.extend_from_slice(second);
                });
            }
            assert!(other == without, "{name}: an adapter of other rows shows");
            // The branch is summed apart from the layer.
            let error = worst(&got, &want);
            assert!(error <= MODEL_F32, "{name}: {error:e}");
            assert!(worst(&got, &without) > 100.0 * MODEL_F32, "{name}: the adapter does nothing");
        }
    }
}
