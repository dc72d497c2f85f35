//! What must not change a model's outputs: packing, padding, merging an adapter, runs and threads.

use std::path::PathBuf;

use burn::tensor::Device;
use didact_core::seed::Streams;
use didact_kernels::Precision;
use didact_model::gradients::{GradientBuffer, GradientDtype, record};
use didact_model::lora::{LoraConfig, TargetModules};
use didact_model::{Checkpoint, Decoder, DecoderInput, ForwardMode, ModelError, loss};

const ARCHITECTURES: [&str; 4] = ["llama", "qwen2", "qwen3", "gpt2"];
/// Losses of tokens (a few nats) by two orders of the same `f32` sums.
const SAME_LOSS: f32 = 1e-5;
/// Logits (up to about 3) of a merged adapter: the rounding of `W + s·B·A` to `f32`, carried through two layers.
const MERGED_LOGITS: f32 = 2e-5;
/// Gradients, relative to the tensor's largest element.
const SAME_GRADIENT: f32 = 2e-5;

fn decoder(architecture: &str) -> Decoder {
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../golden").join(architecture);
    Decoder::load(&Checkpoint::open(directory).expect("a fixture"), &Device::flex()).expect("a complete fixture")
}

fn adapter(dropout: f64) -> LoraConfig {
    LoraConfig { rank: 4, alpha: 8.0, dropout, target_modules: TargetModules::AllLinear, use_rslora: false }
}

/// Documents of made-up tokens, laid out in rows: each row lists documents, padded to `len`.
struct Batch {
    ids: Vec<u32>,
    segments: Vec<u32>,
    positions: Vec<u32>,
    targets: Vec<u32>,
    weights: Vec<f32>,
    rows: usize,
    len: usize,
}

fn document(number: u32, len: u32) -> Vec<u32> {
    (0..=len).map(|i| (number * 67 + i * i * 31 + i * 7) % 250).collect()
}

impl Batch {
    /// `rows` of (document number, tokens); uneven weights, one of them 0, on every document's tokens.
    fn new(rows: &[&[(u32, u32)]], len: usize) -> Self {
        let mut batch = Self {
            ids: Vec::new(),
            segments: Vec::new(),
            positions: Vec::new(),
            targets: Vec::new(),
            weights: Vec::new(),
            rows: rows.len(),
            len,
        };
        for row in rows {
            let mut filled = 0;
            for (segment, &(number, tokens)) in row.iter().enumerate() {
                let text = document(number, tokens);
                for i in 0..tokens as usize {
                    batch.push(text[i], segment as u32, i as u32, text[i + 1], [1.0, 0.5, 0.0, 2.0][i % 4]);
                }
                filled += tokens as usize;
            }
            for i in filled..len {
                batch.push(0, u32::MAX, (i - filled) as u32, 0, 0.0);
            }
        }
        batch
    }

    fn push(&mut self, id: u32, segment: u32, position: u32, target: u32, weight: f32) {
        self.ids.push(id);
        self.segments.push(segment);
        self.positions.push(position);
        self.targets.push(target);
        self.weights.push(weight);
    }

    fn input(&self) -> DecoderInput<'_> {
        let Self { ids, segments, positions, rows, len, .. } = self;
        DecoderInput { ids, segments, positions, rows: *rows, len: *len }
    }

    fn loss(&self, decoder: &Decoder, mode: ForwardMode) -> loss::LossSum {
        loss::next_token(decoder, &self.input(), &self.targets, &self.weights, &mode)
    }

    fn logits(&self, decoder: &Decoder) -> Vec<f32> {
        let logits = decoder.logits(decoder.hidden(&self.input(), &ForwardMode::Eval));
        logits.into_data().try_into_vec().expect("f32")
    }
}

const TRAIN: ForwardMode = ForwardMode::Train { dropout_key: 11 };

/// The loss and the gradient of every trainable parameter, by name.
fn train_pass(decoder: &Decoder, batch: &Batch) -> (Vec<f32>, Vec<(String, Vec<f32>)>) {
    let loss = batch.loss(decoder, TRAIN);
    let mut gradients = loss.loss_sum.backward();
    let all = decoder
        .parameters()
        .trainable()
        .map(|(id, p)| {
            let gradient = decoder.parameters().take_gradient(&mut gradients, id);
            (p.name().to_owned(), gradient.unwrap_or_else(|| panic!("`{}` has no gradient", p.name())))
        })
        .collect();
    (loss.per_token, all)
}

fn assert_near(what: &str, actual: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(actual.len(), expected.len(), "{what}");
    let worst = actual.iter().zip(expected).map(|(a, e)| (a - e).abs()).fold(0.0, f32::max);
    assert!(worst <= tolerance, "{what}: worst difference {worst:e}, tolerance {tolerance:e}");
}

fn assert_same_gradients(actual: &[(String, Vec<f32>)], expected: &[(String, Vec<f32>)]) {
    for ((name, actual), (other, expected)) in actual.iter().zip(expected) {
        assert_eq!(name, other);
        let scale = expected.iter().fold(0.0f32, |m, g| m.max(g.abs()));
        assert_near(name, actual, expected, SAME_GRADIENT * scale);
    }
}

#[test]
fn packed_documents_have_the_losses_and_gradients_of_separate_rows() {
    for architecture in ARCHITECTURES {
        let decoder = decoder(architecture);
        let packed = Batch::new(&[&[(1, 5), (2, 7)], &[(3, 4), (4, 2), (5, 6)]], 12);
        let separate = Batch::new(&[&[(1, 5)], &[(2, 7)], &[(3, 4)], &[(4, 2)], &[(5, 6)]], 7);
        let (packed_loss, packed_gradients) = train_pass(&decoder, &packed);
        let (separate_loss, separate_gradients) = train_pass(&decoder, &separate);
        assert_near(architecture, &packed_loss, &separate_loss, SAME_LOSS);
        assert_same_gradients(&packed_gradients, &separate_gradients);
    }
}

#[test]
fn a_document_sees_nothing_of_its_neighbours_or_of_padding() {
    for architecture in ARCHITECTURES {
        let decoder = decoder(architecture);
        let alone = Batch::new(&[&[(1, 9)]], 9).loss(&decoder, ForwardMode::Eval).per_token;
        for (rows, len) in [(&[&[(1, 9)][..]][..], 30), (&[&[(1, 9), (7, 5)][..], &[(8, 14)][..]][..], 16)] {
            let others = Batch::new(rows, len).loss(&decoder, ForwardMode::Eval).per_token;
            assert_near(architecture, &others[..alone.len()], &alone, SAME_LOSS);
        }
    }
}

#[test]
fn tokens_see_what_is_before_them_and_not_what_is_after() {
    for architecture in ARCHITECTURES {
        let decoder = decoder(architecture);
        let mut batch = Batch::new(&[&[(1, 9)]], 9);
        let before = batch.logits(&decoder);
        batch.ids[4] = (batch.ids[4] + 1) % 250;
        let after = batch.logits(&decoder);
        let v = before.len() / 9;
        assert_eq!(before[..4 * v], after[..4 * v], "{architecture}");
        for position in 4..9 {
            assert_ne!(before[position * v..(position + 1) * v], after[position * v..(position + 1) * v]);
        }
    }
}

/// An adapter whose `B` is not zero.
fn trained_adapter(decoder: &mut Decoder, config: &LoraConfig) {
    decoder.add_lora(config, &Streams::new(3)).expect("valid settings");
    let branches = decoder.lora().expect("just added").branches.clone();
    for (number, branch) in branches.iter().enumerate() {
        decoder.parameters_mut().data_mut(branch.b, |b| {
            b.iter_mut().enumerate().for_each(|(i, b)| *b = (((i * 7 + number * 3) % 11) as f32 - 5.0) * 0.01);
        });
    }
}

#[test]
fn a_fresh_adapter_changes_nothing_and_freezes_the_rest() {
    for architecture in ARCHITECTURES {
        let batch = Batch::new(&[&[(1, 5), (2, 7)]], 12);
        let mut decoder = decoder(architecture);
        let before = batch.logits(&decoder);
        decoder.add_lora(&adapter(0.0), &Streams::new(3)).expect("valid settings");
        assert_eq!(before, batch.logits(&decoder), "{architecture}");
        let loss = batch.loss(&decoder, TRAIN);
        let gradients = loss.loss_sum.backward();
        for (id, parameter) in decoder.parameters().iter() {
            let is_adapter = parameter.name().contains("lora_");
            assert_eq!(parameter.is_trainable(), is_adapter);
            let gradient = decoder.parameters().gradient(&gradients, id);
            assert_eq!(gradient.is_some(), is_adapter, "{}", parameter.name());
        }
        decoder.remove_lora();
        assert!(decoder.parameters().iter().all(|(_, p)| p.is_trainable()));
        assert_eq!(before, batch.logits(&decoder), "{architecture}");
    }
}

#[test]
fn a_merged_adapter_gives_the_logits_of_the_unmerged_one() {
    for architecture in ARCHITECTURES {
        for use_rslora in [false, true] {
            let batch = Batch::new(&[&[(1, 5), (2, 7)]], 12);
            let mut adapted = decoder(architecture);
            let base = batch.logits(&adapted);
            trained_adapter(&mut adapted, &LoraConfig { use_rslora, ..adapter(0.5) });
            let unmerged = batch.logits(&adapted);
            let change = base.iter().zip(&unmerged).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(change > 100.0 * MERGED_LOGITS, "the adapter does too little to test: {change:e}");

            let mut merged = decoder(architecture);
            for (name, shape, values) in adapted.merged() {
                let id = merged.parameters().id(&name).expect("the same model");
                assert_eq!(merged.parameters().get(id).shape(), shape);
                merged.parameters_mut().data_mut(id, |data| data.copy_from_slice(&values));
            }
            assert_near(architecture, &batch.logits(&merged), &unmerged, MERGED_LOGITS);
        }
    }
}

#[test]
fn chosen_layers_get_adapters_and_unknown_names_are_refused() {
    let mut llama = decoder("llama");
    let named = |names: &[&str]| LoraConfig {
        target_modules: TargetModules::Named(names.iter().map(|&n| n.to_owned()).collect()),
        ..adapter(0.0)
    };
    let error = llama.add_lora(&named(&["q_proj", "query"]), &Streams::new(3)).expect_err("no such layer");
    assert_eq!(
        error.to_string(),
        "`query` is no linear layer of a llama model; its linear layers are \
         q_proj k_proj v_proj o_proj gate_proj up_proj down_proj"
    );
    llama.add_lora(&named(&["q_proj", "layers.1.mlp.down_proj"]), &Streams::new(3)).expect("there are such layers");
    let names: Vec<_> = llama.parameters().trainable().map(|(_, p)| p.name().to_owned()).collect();
    assert_eq!(
        names,
        [
            "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight",
            "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight",
            "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight",
            "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight",
            "base_model.model.model.layers.1.mlp.down_proj.lora_A.weight",
            "base_model.model.model.layers.1.mlp.down_proj.lora_B.weight",
        ]
    );
}

#[test]
fn lora_settings_out_of_range_are_refused_by_name() {
    for (config, message) in [
        (LoraConfig { rank: 0, ..adapter(0.0) }, "lora setting `rank` is 0, expected a whole number from 1 to 65536"),
        (LoraConfig { alpha: -1.0, ..adapter(0.0) }, "lora setting `alpha` is -1, expected a number above 0"),
        (adapter(1.0), "lora setting `dropout` is 1, expected a number from 0 up to, not including, 1"),
    ] {
        assert_eq!(config.validate().expect_err("out of range").to_string(), message);
    }
}

#[test]
fn gradients_have_the_same_bits_in_every_run_and_with_any_number_of_threads() {
    let batch = Batch::new(&[&[(1, 70), (2, 60)], &[(3, 100)], &[(4, 33), (5, 90)]], 130);
    for architecture in ARCHITECTURES {
        for precision in [Precision::F32, Precision::Bf16] {
            for with_adapter in [false, true] {
                let mut decoder = decoder(architecture);
                decoder.set_precision(precision);
                if architecture == "gpt2" {
                    // Its learned positions end at 64.
                    continue;
                }
                if with_adapter {
                    trained_adapter(&mut decoder, &adapter(0.25));
                }
                let run = |threads: usize| {
                    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
                    pool.install(|| train_pass(&decoder, &batch))
                };
                let expected = run(2);
                assert_eq!(run(2), expected, "{architecture}, a second run");
                assert_eq!(run(1), expected, "{architecture}, one thread");
                assert_eq!(run(3), expected, "{architecture}, three threads");
            }
        }
    }
}

#[test]
fn dropout_follows_its_key_and_stops_when_evaluating() {
    let batch = Batch::new(&[&[(1, 12)]], 12);
    let mut llama = decoder("llama");
    trained_adapter(&mut llama, &adapter(0.5));
    let loss = |key| batch.loss(&llama, ForwardMode::Train { dropout_key: key }).per_token;
    assert_eq!(loss(1), loss(1));
    assert_ne!(loss(1), loss(2));
    let eval = batch.loss(&llama, ForwardMode::Eval).per_token;
    assert_ne!(loss(1), eval);
    let mut without = decoder("llama");
    trained_adapter(&mut without, &adapter(0.0));
    assert_eq!(batch.loss(&without, TRAIN).per_token, eval);
}

/// The gradients of some batches, one after the other, as they are recorded in buffers of a number type.
fn recorded(decoder: &Decoder, batches: &[&Batch], dtype: GradientDtype) -> Vec<(String, Vec<f32>)> {
    let parameters = decoder.parameters();
    let ids: Vec<_> = parameters.trainable().map(|(id, _)| id).collect();
    let mut buffers: Vec<_> = ids.iter().map(|&id| GradientBuffer::new(parameters.get(id).elements(), dtype)).collect();
    // The second time, buffers hold the sums of the first.
    for _ in 0..2 {
        buffers.iter_mut().for_each(GradientBuffer::clear);
        for (number, batch) in batches.iter().enumerate() {
            let mut left = record(parameters, &ids, &mut buffers, || batch.loss(decoder, TRAIN).loss_sum.backward());
            for (&id, buffer) in ids.iter().zip(&mut buffers) {
                if let Some(gradient) = parameters.take_gradient(&mut left, id) {
                    // Only the output projection's, and only where its buffer holds an earlier sum.
                    let name = parameters.get(id).name();
                    assert!(number > 0 && (name.contains("embed") || name.contains("head") || name.contains("wte")));
                    buffer.add(&gradient);
                }
            }
        }
    }
    let mut all = Vec::new();
    for (&id, buffer) in ids.iter().zip(&mut buffers) {
        assert!(buffer.is_filled());
        buffer.change(|values| all.push((parameters.get(id).name().to_owned(), values.to_vec())));
    }
    all
}

#[test]
fn recorded_gradients_are_those_that_burn_returns_and_add_up() {
    let [first, second] = [[(1, 12), (2, 9)], [(3, 4), (4, 17)]].map(|row| Batch::new(&[&row[..]], 21));
    for architecture in ARCHITECTURES {
        for is_adapted in [false, true] {
            let mut decoder = decoder(architecture);
            if is_adapted {
                decoder.add_lora(&adapter(0.25), &Streams::new(3)).expect("valid settings");
            }
            let returned = train_pass(&decoder, &first).1;
            let alone = recorded(&decoder, &[&first], GradientDtype::F32);
            assert_eq!(alone, returned, "{architecture}");
            let mut sum = returned;
            for ((_, sum), (_, more)) in sum.iter_mut().zip(train_pass(&decoder, &second).1) {
                sum.iter_mut().zip(more).for_each(|(s, m)| *s += m);
            }
            let both = recorded(&decoder, &[&first, &second], GradientDtype::F32);
            assert_same_gradients(&both, &sum);
            for ((name, half), (_, full)) in recorded(&decoder, &[&first], GradientDtype::Bf16).iter().zip(&alone) {
                // A tied embedding's two parts are rounded one after the other.
                if name.contains("embed") || name.contains("wte") {
                    let scale = full.iter().fold(0.0f32, |most, g| most.max(g.abs()));
                    assert_near(name, half, full, 0.01 * scale);
                    continue;
                }
                let rounded: Vec<f32> = full.iter().map(|&g| half::bf16::from_f32(g).to_f32()).collect();
                assert_eq!(*half, rounded, "{architecture} {name}");
            }
        }
    }
}

#[test]
fn activation_checkpointing_changes_no_bit() {
    let batch = Batch::new(&[&[(1, 12), (2, 9)], &[(3, 21)]], 21);
    for architecture in ARCHITECTURES {
        for precision in [Precision::F32, Precision::Bf16] {
            let mut decoder = decoder(architecture);
            decoder.set_precision(precision);
            decoder.add_lora(&adapter(0.25), &Streams::new(3)).expect("valid settings");
            for _ in 0..2 {
                let plain = train_pass(&decoder, &batch);
                decoder.set_activation_checkpointing(true);
                assert_eq!(train_pass(&decoder, &batch), plain, "{architecture} {precision:?}");
                decoder.set_activation_checkpointing(false);
                // And with all parameters.
                if decoder.lora().is_some() {
                    decoder.remove_lora();
                }
            }
        }
    }
}

#[test]
fn updates_are_in_place() {
    let batch = Batch::new(&[&[(1, 12)]], 12);
    let mut llama = decoder("llama");
    let addresses = |decoder: &Decoder| -> Vec<usize> {
        decoder.parameters().iter().map(|(id, _)| decoder.parameters().with_data(id, |d| d.as_ptr() as usize)).collect()
    };
    let before = addresses(&llama);
    let mut losses = Vec::new();
    for _ in 0..3 {
        let loss = batch.loss(&llama, TRAIN);
        losses.push(loss.value());
        let mut gradients = loss.loss_sum.backward();
        drop(loss);
        let ids: Vec<_> = llama.parameters().trainable().map(|(id, _)| id).collect();
        let taken: Vec<_> = ids
            .iter()
            .map(|&id| llama.parameters().take_gradient(&mut gradients, id).expect("all are trained"))
            .collect();
        drop(gradients);
        for (id, gradient) in ids.into_iter().zip(taken) {
            llama.parameters_mut().data_mut(id, |data| {
                data.iter_mut().zip(&gradient).for_each(|(w, g)| *w -= 0.003 * g);
            });
        }
    }
    assert_eq!(addresses(&llama), before);
    assert!(losses[0] > losses[1] && losses[1] > losses[2], "{losses:?}");
}

#[test]
#[should_panic(expected = "is still in use: drop the loss and its tensors before updating")]
fn updating_while_the_graph_lives_is_refused() {
    let mut llama = decoder("llama");
    let loss = Batch::new(&[&[(1, 12)]], 12).loss(&llama, TRAIN);
    let id = llama.parameters().id("model.layers.0.mlp.down_proj.weight").expect("a llama has it");
    llama.parameters_mut().data_mut(id, |_| ());
    drop(loss);
}

#[test]
fn a_batch_without_weights_has_no_loss_and_gradients_of_zero() {
    let mut batch = Batch::new(&[&[(1, 6)]], 6);
    batch.weights.fill(0.0);
    let llama = decoder("llama");
    let loss = batch.loss(&llama, TRAIN);
    assert_eq!((loss.value(), loss.total_weight), (0.0, 0.0));
    assert_eq!((loss.per_token.len(), loss.at.len()), (0, 0));
    let gradients = loss.loss_sum.backward();
    let id = llama.parameters().id("model.layers.0.mlp.down_proj.weight").expect("a llama has it");
    let gradient = llama.parameters().gradient(&gradients, id).expect("still a function of the parameters");
    assert!(gradient.iter().all(|&g| g == 0.0));
}

#[test]
fn inputs_that_do_not_fit_are_named() {
    let gpt2 = decoder("gpt2");
    let mut batch = Batch::new(&[&[(1, 6)]], 6);
    let message = |batch: &Batch| -> String {
        let error: ModelError = batch.input().check(gpt2.config()).expect_err("does not fit");
        error.to_string()
    };
    batch.ids[2] = 260;
    assert_eq!(message(&batch), "a batch's token id is 260, the model expects 259 (at most, for an id or position)");
    batch.ids[2] = 0;
    batch.positions[5] = 64;
    assert_eq!(message(&batch), "a batch's position is 64, the model expects 63 (at most, for an id or position)");
    batch.segments.pop();
    assert_eq!(
        message(&batch),
        "a batch's number of segments is 5, the model expects 6 (at most, for an id or position)"
    );
}

#[test]
fn a_model_from_scratch_depends_on_its_seed_only() {
    let config = decoder("gpt2").config().clone();
    let values = |seed: u64| -> Vec<(String, Vec<f32>)> {
        let made = Decoder::init(&config, &Streams::new(seed), &Device::flex());
        made.parameters().iter().map(|(_, p)| (p.name().to_owned(), p.to_vec())).collect()
    };
    let made = values(1);
    assert_eq!(made, values(1));
    assert_ne!(made, values(2));
    for (name, values) in made {
        let mean = values.iter().sum::<f32>() / values.len() as f32;
        let deviation = (values.iter().map(|v| v * v).sum::<f32>() / values.len() as f32).sqrt();
        let expected = match name.as_str() {
            n if n.ends_with("bias") => 0.0,
            n if n.contains("ln_") => 1.0,
            n if n.ends_with("c_proj.weight") => 0.02 / 2.0,
            _ => 0.02,
        };
        // Six standard errors of the smallest matrix, of 2304 numbers.
        assert!((deviation - expected).abs() <= 0.09 * expected, "{name}: {deviation}, expected {expected}");
        if expected == 0.02 {
            assert!(mean.abs() < 0.003, "{name}: mean {mean}");
        }
    }
}
