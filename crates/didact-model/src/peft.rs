//! LoRA adapters in the layout of the Python library PEFT: `adapter_config.json` and `adapter_model.safetensors`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use didact_core::files;
use serde_json::{Map, Value, json};

use crate::config::{Architecture, ModelConfig};
use crate::decoder::Decoder;
use crate::error::ModelError;
use crate::export::{TensorWriter, Written, write_json};
use crate::lora::{LinearLayer, LoraConfig, TargetModules, linear_layers, merge_branch};
use crate::shapes::{ParameterSpec, expected_parameters};
use crate::weights::{Checkpoint, Dtype, TensorFile};

const CONFIG_FILE: &str = "adapter_config.json";
const TENSOR_FILE: &str = "adapter_model.safetensors";
/// What PEFT puts before a module's path.
const PREFIX: &str = "base_model.model.";

/// The settings of a LoRA adapter, under PEFT's names.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterConfig {
    /// Rank, R.
    pub r: usize,
    /// The update is scaled by `lora_alpha / r`, or `lora_alpha / sqrt(r)` with `use_rslora`.
    pub lora_alpha: f64,
    /// Dropout on the adapter's input while it was trained; no effect afterwards.
    pub lora_dropout: f64,
    /// Last part of the names of the adapted linear layers, such as `q_proj`.
    pub target_modules: Vec<String>,
    /// Scale by the square root of the rank (arXiv:2312.03732).
    pub use_rslora: bool,
    /// What the adapter was trained on: a path or hub id, for the reader's information.
    pub base_model_name_or_path: Option<String>,
}

impl AdapterConfig {
    /// The factor of the update.
    pub fn scale(&self) -> f64 {
        scale(self.lora_alpha, self.r, self.use_rslora)
    }
}

fn scale(alpha: f64, rank: usize, rslora: bool) -> f64 {
    if rslora { alpha / (rank as f64).sqrt() } else { alpha / rank as f64 }
}

/// The two matrices of one adapted linear layer: the layer computes `x W^T + scale * (x A^T) B^T`.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraPair {
    /// The layer's path, such as `model.layers.0.self_attn.q_proj`.
    pub module: String,
    /// Rank, R; a `rank_pattern` may give layers different ones.
    pub rank: usize,
    /// Factor of the update, all told.
    pub scale: f64,
    /// Input size, I.
    pub inputs: usize,
    /// Output size, O.
    pub outputs: usize,
    /// Down-projection, `[R, I]`.
    pub a: Vec<f32>,
    /// Up-projection, `[O, R]`.
    pub b: Vec<f32>,
}

/// An adapter: its settings and one pair per adapted layer, sorted by path.
#[derive(Debug, Clone, PartialEq)]
pub struct Adapter {
    /// The settings.
    pub config: AdapterConfig,
    /// The matrices.
    pub pairs: Vec<LoraPair>,
}

impl Adapter {
    /// Reads an adapter directory and checks it against the model that it is for.
    ///
    /// # Errors
    /// [`ModelError`] if a file is missing or damaged, the adapter is not plain LoRA on linear layers, or a matrix
    /// does not fit the model.
    pub fn read(dir: &Path, model: &ModelConfig) -> Result<Self, ModelError> {
        let path = dir.join(CONFIG_FILE);
        if !path.exists() {
            let why = format!("there is no {CONFIG_FILE}, so it is not an adapter");
            return Err(ModelError::NoModel { path: dir.to_owned(), why });
        }
        let text = files::read_to_string(&path)?;
        let raw: Map<String, Value> =
            serde_json::from_str(&text).map_err(|source| ModelError::Json { path: path.clone(), source })?;
        let settings = read_settings(&path, &raw)?;
        let file = TensorFile::open(&dir.join(TENSOR_FILE))?;
        let known: BTreeMap<String, (usize, usize)> =
            linear_layers(model).into_iter().map(|l| (l.path, (l.inputs, l.outputs))).collect();
        let adapter_error = |problem: String| ModelError::Adapter { path: file.path.clone(), problem };
        let mut modules = BTreeSet::new();
        for name in file.tensors.keys() {
            let part = name
                .strip_prefix(PREFIX)
                .and_then(|n| n.strip_suffix(".lora_A.weight").or_else(|| n.strip_suffix(".lora_B.weight")));
            let Some(module) = part else {
                return Err(adapter_error(format!(
                    "tensor `{name}` is not a lora_A or lora_B weight of a linear layer"
                )));
            };
            if !known.contains_key(module) {
                return Err(adapter_error(format!(
                    "tensor `{name}` is for `{module}`, which is no linear layer of this {} model",
                    model.model_type.model_type()
                )));
            }
            modules.insert(module.to_owned());
        }
        if modules.is_empty() {
            return Err(adapter_error("it holds no tensors".into()));
        }
        let mut pairs = Vec::with_capacity(modules.len());
        for module in modules {
            let (inputs, outputs) = known[&module];
            let read = |half: &str| -> Result<(Vec<usize>, Vec<f32>), ModelError> {
                let name = format!("{PREFIX}{module}.{half}.weight");
                let values = file.read(&name).ok_or_else(|| adapter_error(format!("tensor `{name}` is missing")))??;
                if let Some(index) = values.iter().position(|x| !x.is_finite()) {
                    let value = values[index];
                    return Err(ModelError::NonFinite { path: file.path.clone(), tensor: name, index, value });
                }
                Ok((file.tensors[&name].shape.clone(), values))
            };
            let (a_shape, a) = read("lora_A")?;
            let (b_shape, b) = read("lora_B")?;
            let rank = pattern(&raw, "rank_pattern", &module).map_or(settings.r, |r| r as usize);
            let alpha = pattern(&raw, "alpha_pattern", &module).unwrap_or(settings.lora_alpha);
            for (half, found, expected) in
                [("lora_A", a_shape, vec![rank, inputs]), ("lora_B", b_shape, vec![outputs, rank])]
            {
                if found != expected {
                    let tensor = format!("{PREFIX}{module}.{half}.weight");
                    return Err(ModelError::Shape { path: file.path.clone(), tensor, found, expected });
                }
            }
            let scale = scale(alpha, rank, settings.use_rslora);
            pairs.push(LoraPair { module, rank, scale, inputs, outputs, a, b });
        }
        Ok(Self { config: settings, pairs })
    }
}

impl Adapter {
    /// The adapter that a decoder carries, if it carries one; `base` says what it was trained on.
    pub fn from_decoder(decoder: &Decoder, base: Option<String>) -> Option<Self> {
        let lora = decoder.lora()?;
        let layers = linear_layers(decoder.config());
        let target_modules = match &lora.config.target_modules {
            TargetModules::Named(names) => names.clone(),
            // PEFT resolves "all-linear" to the layers' last names before saving.
            TargetModules::AllLinear => {
                let last = |b: &crate::lora::LoraBranchIds| b.path.rsplit('.').next().map(str::to_owned);
                Vec::from_iter(lora.branches.iter().filter_map(last).collect::<BTreeSet<_>>())
            }
        };
        let config = AdapterConfig {
            r: lora.config.rank,
            lora_alpha: lora.config.alpha,
            lora_dropout: lora.config.dropout,
            target_modules,
            use_rslora: lora.config.use_rslora,
            base_model_name_or_path: base,
        };
        let parameters = decoder.parameters();
        let pair = |branch: &crate::lora::LoraBranchIds| {
            let layer = layers.iter().find(|l| l.path == branch.path).expect("branches sit on linear layers");
            LoraPair {
                module: branch.path.clone(),
                rank: config.r,
                scale: config.scale(),
                inputs: layer.inputs,
                outputs: layer.outputs,
                a: parameters.get(branch.a).to_vec(),
                b: parameters.get(branch.b).to_vec(),
            }
        };
        let mut pairs: Vec<LoraPair> = lora.branches.iter().map(pair).collect();
        pairs.sort_by(|x, y| x.module.cmp(&y.module));
        Some(Self { config, pairs })
    }

    /// Puts this adapter on a decoder, to be trained further or used.
    ///
    /// # Errors
    /// [`ModelError::Adapter`] if its layers have different ranks or scales, which a decoder does not do (merging
    /// does); [`ModelError::LoraSetting`] for settings that training cannot use.
    ///
    /// # Panics
    /// If the decoder has an adapter already.
    pub fn attach(&self, decoder: &mut Decoder) -> Result<(), ModelError> {
        let config = &self.config;
        if let Some(pair) = self.pairs.iter().find(|p| p.rank != config.r || p.scale != config.scale()) {
            let problem = format!(
                "`{}` has rank {} and scale {}, the others {} and {}; merge it with `didact model merge` instead",
                pair.module,
                pair.rank,
                pair.scale,
                config.r,
                config.scale()
            );
            return Err(ModelError::Adapter { path: CONFIG_FILE.into(), problem });
        }
        let lora = LoraConfig {
            rank: config.r,
            alpha: config.lora_alpha,
            dropout: config.lora_dropout,
            // Whole paths: the settings may name layers that the adapter has no matrices for.
            target_modules: TargetModules::Named(self.pairs.iter().map(|p| p.module.clone()).collect()),
            use_rslora: config.use_rslora,
        };
        decoder.attach_lora(&lora, |layer, _| {
            let pair = self.pairs.iter().find(|p| p.module == layer.path).expect("targets are the pairs' modules");
            Ok((pair.a.clone(), pair.b.clone()))
        })
    }

    /// Every parameter of `base` with this adapter folded in, one at a time: `W + scale * B A`.
    pub fn merged_into<'a>(
        &'a self,
        base: &'a Checkpoint,
    ) -> impl Iterator<Item = Result<(String, Vec<usize>, Vec<f32>), ModelError>> + 'a {
        let layers: BTreeMap<String, LinearLayer> =
            linear_layers(base.config()).into_iter().map(|l| (l.path.clone(), l)).collect();
        expected_parameters(base.config()).into_iter().map(move |spec| {
            let mut values = base.tensor_f32(&spec.name)?;
            if let Some(path) = spec.name.strip_suffix(".weight")
                && let Some(pair) = self.pairs.iter().find(|p| p.module == path)
                && let Some(layer) = layers.get(path)
            {
                merge_branch(&mut values, &pair.a, &pair.b, layer, pair.rank, pair.scale);
            }
            Ok((spec.name, spec.shape, values))
        })
    }
}

/// Writes an adapter directory that `PeftModel.from_pretrained` loads: matrices in f32, `adapter_config.json` last.
///
/// # Errors
/// [`ModelError::Write`] if a pair's matrices do not have the sizes that it states, [`ModelError::File`] if writing
/// fails.
pub fn save_adapter(
    dir: &Path,
    model: &ModelConfig,
    config: &AdapterConfig,
    pairs: impl IntoIterator<Item = LoraPair>,
) -> Result<Written, ModelError> {
    let mut pairs: Vec<LoraPair> = pairs.into_iter().collect();
    pairs.sort_by(|x, y| x.module.cmp(&y.module));
    let spec = |name: String, shape: [usize; 2]| ParameterSpec { name, shape: shape.to_vec(), decay: true };
    let specs: Vec<ParameterSpec> = pairs
        .iter()
        .flat_map(|p| {
            [
                spec(format!("{PREFIX}{}.lora_A.weight", p.module), [p.rank, p.inputs]),
                spec(format!("{PREFIX}{}.lora_B.weight", p.module), [p.outputs, p.rank]),
            ]
        })
        .collect();
    files::create_dir_all(dir)?;
    let mut writer = TensorWriter::create(&dir.join(TENSOR_FILE), &specs, Dtype::F32, &[("format", "pt")])?;
    for (i, pair) in pairs.iter().enumerate() {
        writer.write(2 * i, &[pair.rank, pair.inputs], &pair.a)?;
        writer.write(2 * i + 1, &[pair.outputs, pair.rank], &pair.b)?;
    }
    let mut bytes = writer.finish()?;
    bytes += write_json(&dir.join(CONFIG_FILE), &settings_json(model, config, &pairs))?;
    Ok(Written { tensors: specs.len(), bytes, files: vec![TENSOR_FILE.into()] })
}

fn settings_json(model: &ModelConfig, config: &AdapterConfig, pairs: &[LoraPair]) -> Value {
    let mut ranks = Map::new();
    let mut alphas = Map::new();
    for p in pairs {
        if p.rank != config.r {
            ranks.insert(p.module.clone(), json!(p.rank));
        }
        let plain = scale(config.lora_alpha, p.rank, config.use_rslora);
        if (p.scale - plain).abs() > 1e-12 * plain.abs() {
            let root = if config.use_rslora { (p.rank as f64).sqrt() } else { p.rank as f64 };
            alphas.insert(p.module.clone(), json!(p.scale * root));
        }
    }
    // PEFT's alpha is written as a whole number where it is one.
    let alpha =
        if config.lora_alpha.fract() == 0.0 { json!(config.lora_alpha as i64) } else { json!(config.lora_alpha) };
    json!({
        "alpha_pattern": alphas,
        "base_model_name_or_path": config.base_model_name_or_path,
        "bias": "none",
        "fan_in_fan_out": model.model_type == Architecture::Gpt2,
        "inference_mode": true,
        "init_lora_weights": true,
        "layers_pattern": null,
        "layers_to_transform": null,
        "lora_alpha": alpha,
        "lora_dropout": config.lora_dropout,
        "modules_to_save": null,
        "peft_type": "LORA",
        "r": config.r,
        "rank_pattern": ranks,
        "revision": null,
        "target_modules": config.target_modules,
        "task_type": "CAUSAL_LM",
        "use_dora": false,
        "use_rslora": config.use_rslora,
    })
}

fn read_settings(path: &Path, raw: &Map<String, Value>) -> Result<AdapterConfig, ModelError> {
    let unsupported = |key: &str, value: &Value, supported: &str| ModelError::Unsupported {
        path: path.to_owned(),
        key: key.to_owned(),
        value: value.to_string(),
        supported: supported.to_owned(),
    };
    let wrong = |key: &str, found: String, expected: &str| ModelError::KeyValue {
        path: path.to_owned(),
        key: key.to_owned(),
        found,
        expected: expected.to_owned(),
    };
    let shown = |key: &str| raw.get(key).map_or("missing".into(), Value::to_string);
    match raw.get("peft_type") {
        Some(Value::String(s)) if s == "LORA" => {}
        other => return Err(unsupported("peft_type", other.unwrap_or(&Value::Null), "\"LORA\"")),
    }
    for (key, plain, supported) in [
        ("use_dora", json!(false), "false"),
        ("bias", json!("none"), "\"none\""),
        ("lora_bias", json!(false), "false"),
        ("modules_to_save", json!([]), "null"),
        ("trainable_token_indices", json!([]), "null"),
        ("target_parameters", json!([]), "null"),
        ("layer_replication", json!([]), "null"),
        ("alora_invocation_tokens", json!([]), "null"),
        ("use_qalora", json!(false), "false"),
        ("use_bdlora", json!(false), "null"),
        ("kasa_config", Value::Null, "null"),
        ("monteclora_config", Value::Null, "null"),
        ("velora_config", Value::Null, "null"),
    ] {
        if let Some(value) = raw.get(key)
            && !value.is_null()
            && *value != plain
        {
            return Err(unsupported(key, value, supported));
        }
    }
    // The other ways to begin change the base model's weights as well, which the adapter's files do not hold.
    if let Some(start @ Value::String(name)) = raw.get("init_lora_weights")
        && !matches!(name.as_str(), "gaussian" | "eva" | "orthogonal")
    {
        return Err(unsupported("init_lora_weights", start, "true false \"gaussian\" \"eva\" \"orthogonal\""));
    }
    let r = raw.get("r").and_then(Value::as_u64).filter(|r| (1..=65536).contains(r));
    let r = r.ok_or_else(|| wrong("r", shown("r"), "a rank from 1 to 65536"))? as usize;
    let lora_alpha = raw.get("lora_alpha").and_then(Value::as_f64).filter(|a| a.is_finite());
    let lora_alpha = lora_alpha.ok_or_else(|| wrong("lora_alpha", shown("lora_alpha"), "a number"))?;
    let target_modules = match raw.get("target_modules") {
        Some(Value::Array(list)) => {
            let mut names: Vec<String> = list.iter().filter_map(|v| v.as_str().map(str::to_owned)).collect();
            names.sort();
            names
        }
        // A pattern; which layers it met is seen from the tensors.
        Some(Value::String(pattern)) => vec![pattern.clone()],
        _ => Vec::new(),
    };
    Ok(AdapterConfig {
        r,
        lora_alpha,
        lora_dropout: raw.get("lora_dropout").and_then(Value::as_f64).unwrap_or(0.0),
        target_modules,
        use_rslora: raw.get("use_rslora").and_then(Value::as_bool).unwrap_or(false),
        base_model_name_or_path: raw.get("base_model_name_or_path").and_then(Value::as_str).map(str::to_owned),
    })
}

/// The value of a `rank_pattern` or `alpha_pattern` for a module: keys are whole paths or their ends.
fn pattern(raw: &Map<String, Value>, key: &str, module: &str) -> Option<f64> {
    let map = raw.get(key)?.as_object()?;
    let met = |name: &str| module == name || module.strip_suffix(name).is_some_and(|rest| rest.ends_with('.'));
    map.iter().find(|(name, _)| met(name)).and_then(|(_, value)| value.as_f64())
}
