//! The tiny models, and the real one where there is one, against the Python library's logits, losses and gradients.

use std::path::PathBuf;

use didact_model::verify::verify;

fn check(architecture: &str) {
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../golden").join(architecture);
    let checks = verify(&directory, &directory.join("golden.json")).expect("the golden is complete");
    let worst = |part: &str| {
        checks.iter().filter(|c| c.name.starts_with(part)).map(|c| c.max_abs.min(c.max_rel)).fold(0.0, f64::max)
    };
    let failed: Vec<_> = checks.iter().filter(|c| !c.ok).collect();
    assert!(failed.is_empty(), "{failed:#?}");
    // Logits, loss, the list of names, and at least a dozen gradients each by norm and in full.
    assert!(checks.len() > 27, "only {} checks", checks.len());
    assert!(worst("logits") < 1e-4);
}

#[test]
fn llama_equals_the_reference() {
    check("llama");
}

#[test]
fn qwen2_equals_the_reference() {
    check("qwen2");
}

#[test]
fn qwen3_equals_the_reference() {
    check("qwen3");
}

#[test]
fn gpt2_equals_the_reference() {
    check("gpt2");
}

#[test]
#[ignore = "needs DIDACT_TEST_MODEL"]
fn smollm2_equals_the_reference() {
    let path = std::env::var("DIDACT_TEST_MODEL").expect("DIDACT_TEST_MODEL is the path of the pulled model");
    let golden = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../golden/smollm2.json");
    let checks = verify(path.as_ref(), &golden).expect("the model and the golden can be read");
    let failed: Vec<_> = checks.iter().filter(|c| !c.ok).collect();
    assert!(failed.is_empty(), "{failed:#?}");
    // Four prompts: mean loss, largest logits, likeliest token.
    assert_eq!(checks.len(), 12);
}
