//! The real model, where there is one: `DIDACT_TEST_MODEL` is the path of the pulled SmolLM2-135M-Instruct.
#![expect(clippy::unwrap_used, reason = "tests")]

use didact_model::{Architecture, Checkpoint, RopeScaling, parameter_count};

#[test]
#[ignore = "needs DIDACT_TEST_MODEL"]
fn real_model_has_the_shape_its_makers_state() {
    let path = std::env::var("DIDACT_TEST_MODEL").expect("DIDACT_TEST_MODEL is the path of the pulled model");
    let checkpoint = Checkpoint::open(path).unwrap();
    let c = checkpoint.config();
    assert_eq!(c.model_type, Architecture::Llama);
    assert_eq!((c.num_hidden_layers, c.hidden_size, c.intermediate_size), (30, 576, 1536));
    assert_eq!((c.num_attention_heads, c.num_key_value_heads, c.head_dim), (9, 3, 64));
    assert_eq!((c.vocab_size, c.max_position_embeddings), (49152, 8192));
    assert!(c.tie_word_embeddings);
    let rope = c.rope.as_ref().unwrap();
    assert_eq!((rope.theta, &rope.scaling), (100_000.0, &RopeScaling::Default));
    assert_eq!(c.norm_eps, 1e-5);
    assert_eq!(parameter_count(c), 134_515_008);
    for name in checkpoint.names().map(str::to_owned).collect::<Vec<_>>() {
        let values = checkpoint.tensor_f32(&name).unwrap();
        assert!(values.iter().any(|&x| x != 0.0), "{name}");
    }
}
