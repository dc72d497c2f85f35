//! A model on disk, in whatever layout, seen as named tensors in Hugging Face's naming.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use didact_core::files;
use didact_core::gguf::{GgufFile, GgufTensor};
use didact_core::hash::{Digest, Hasher, hash_file};
use serde_json::Value;

use super::dequantize::dequantize;
use super::dtype::Dtype;
use super::gguf_names::{self, Rearrange};
use super::tensor_file::TensorFile;
use crate::config::{Architecture, ModelConfig};
use crate::error::ModelError;
use crate::shapes::expected_parameters;

/// The weights file of an unsharded directory.
pub(crate) const SINGLE_FILE: &str = "model.safetensors";
/// The index of a sharded one.
pub(crate) const INDEX_FILE: &str = "model.safetensors.index.json";

/// An opened model: configuration read, every tensor found and its shape checked, numbers still on disk.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    path: PathBuf,
    config: ModelConfig,
    files: Files,
    /// Tensors by Hugging Face name.
    tensors: BTreeMap<String, Place>,
}

#[derive(Debug, Clone)]
enum Files {
    Safetensors(Vec<TensorFile>),
    Gguf(Box<GgufFile>),
}

#[derive(Debug, Clone)]
struct Place {
    /// Index into the safetensors files, or into the GGUF directory.
    index: usize,
    /// Name in the file.
    stored: String,
    /// Shape in Hugging Face's layout.
    shape: Vec<usize>,
    rearrange: Rearrange,
}

impl Checkpoint {
    /// Opens a Hugging Face directory (`config.json` with `model.safetensors`, or with shards and their index), a
    /// `.gguf` file, or a directory that holds one `.gguf` file and no `config.json`.
    ///
    /// # Errors
    /// [`ModelError`] if there is no model, it is damaged or not supported, or its tensors are not exactly those that
    /// the configuration calls for.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, ModelError> {
        let path = path.as_ref();
        match locate(path)? {
            Location::Gguf(file) => Self::open_gguf(&file),
            Location::Directory(dir) => Self::open_directory(&dir),
        }
    }

    fn open_directory(dir: &Path) -> Result<Self, ModelError> {
        let config_path = dir.join("config.json");
        let config = ModelConfig::from_json(&config_path, &files::read_to_string(&config_path)?)?;
        let (shards, source) = if dir.join(SINGLE_FILE).exists() {
            (vec![TensorFile::open(&dir.join(SINGLE_FILE))?], dir.join(SINGLE_FILE))
        } else if dir.join(INDEX_FILE).exists() {
            (open_shards(dir)?, dir.to_owned())
        } else {
            let pickled = ["pytorch_model.bin", "pytorch_model.bin.index.json"].iter().any(|f| dir.join(f).exists());
            let why = if pickled {
                "its weights are pickled (pytorch_model.bin), which is not read because loading a pickle runs code; \
                 convert them to safetensors"
                    .to_owned()
            } else {
                format!("it has config.json, but neither {SINGLE_FILE} nor {INDEX_FILE}")
            };
            return Err(ModelError::NoModel { path: dir.to_owned(), why });
        };
        let mut tensors = BTreeMap::new();
        let prefix = if needs_prefix(&config, &shards) { "transformer." } else { "" };
        for (index, shard) in shards.iter().enumerate() {
            for (stored, entry) in &shard.tensors {
                if is_derived(&config, stored) {
                    continue;
                }
                if Dtype::from_safetensors(entry.dtype).is_none() {
                    return Err(shard.wrong_dtype(stored, entry));
                }
                let place =
                    Place { index, stored: stored.clone(), shape: entry.shape.clone(), rearrange: Rearrange::None };
                tensors.insert(format!("{prefix}{stored}"), place);
            }
        }
        let checkpoint = Self { path: dir.to_owned(), config, files: Files::Safetensors(shards), tensors };
        checkpoint.check(&source)?;
        Ok(checkpoint)
    }

    fn open_gguf(path: &Path) -> Result<Self, ModelError> {
        let file = GgufFile::open(path)?;
        let config = ModelConfig::from_gguf(&file)?;
        let mut tensors = BTreeMap::new();
        let mut unexpected = Vec::new();
        for (index, tensor) in file.tensors.iter().enumerate() {
            if gguf_names::is_redundant(&tensor.name) {
                continue;
            }
            let Some((name, rearrange)) = gguf_names::translate(&config, &tensor.name) else {
                unexpected.push(tensor.name.clone());
                continue;
            };
            if config.tie_word_embeddings && name == "lm_head.weight" {
                continue;
            }
            let mut shape = tensor.shape.clone();
            if rearrange == Rearrange::Transpose {
                shape.reverse();
            }
            tensors.insert(name, Place { index, stored: tensor.name.clone(), shape, rearrange });
        }
        if let Some(first) = unexpected.first() {
            return Err(ModelError::UnexpectedTensors {
                path: path.to_owned(),
                count: unexpected.len(),
                first: first.clone(),
                model_type: config.model_type.model_type().to_owned(),
            });
        }
        let checkpoint = Self { path: path.to_owned(), config, files: Files::Gguf(Box::new(file)), tensors };
        checkpoint.check(path)?;
        Ok(checkpoint)
    }

    /// Compares what is there with what the configuration calls for.
    fn check(&self, source: &Path) -> Result<(), ModelError> {
        let expected = expected_parameters(&self.config);
        let missing: Vec<_> = expected.iter().filter(|p| !self.tensors.contains_key(&p.name)).collect();
        if let Some(first) = missing.first() {
            return Err(ModelError::MissingTensors {
                path: source.to_owned(),
                missing: missing.len(),
                total: expected.len(),
                first: first.name.clone(),
            });
        }
        for p in &expected {
            let found = &self.tensors[&p.name];
            if found.shape != p.shape {
                return Err(ModelError::Shape {
                    path: self.file_of(found).to_owned(),
                    tensor: found.stored.clone(),
                    found: found.shape.clone(),
                    expected: p.shape.clone(),
                });
            }
        }
        if self.tensors.len() > expected.len() {
            let known: std::collections::BTreeSet<_> = expected.iter().map(|p| p.name.as_str()).collect();
            let extra: Vec<_> = self.tensors.iter().filter(|(name, _)| !known.contains(name.as_str())).collect();
            return Err(ModelError::UnexpectedTensors {
                path: source.to_owned(),
                count: extra.len(),
                first: extra.first().map(|(_, place)| place.stored.clone()).unwrap_or_default(),
                model_type: self.config.model_type.model_type().to_owned(),
            });
        }
        Ok(())
    }

    fn file_of(&self, place: &Place) -> &Path {
        match &self.files {
            Files::Safetensors(shards) => &shards[place.index].path,
            Files::Gguf(file) => file.path(),
        }
    }

    /// The directory or GGUF file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether this is a GGUF file.
    pub fn is_gguf(&self) -> bool {
        matches!(self.files, Files::Gguf(_))
    }

    /// The GGUF file behind this model, if it is one.
    pub fn gguf(&self) -> Option<&GgufFile> {
        match &self.files {
            Files::Gguf(file) => Some(file),
            Files::Safetensors(_) => None,
        }
    }

    /// The configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The tensors' names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    fn place(&self, name: &str) -> Result<&Place, ModelError> {
        self.tensors.get(name).ok_or_else(|| ModelError::NoTensor { path: self.path.clone(), tensor: name.to_owned() })
    }

    /// A tensor's shape, row-major.
    ///
    /// # Errors
    /// [`ModelError::NoTensor`] if there is none of that name.
    pub fn shape(&self, name: &str) -> Result<&[usize], ModelError> {
        Ok(&self.place(name)?.shape)
    }

    /// How a tensor is stored: `F32`, `BF16`, `Q4_1` and so on.
    ///
    /// # Errors
    /// [`ModelError::NoTensor`] if there is none of that name.
    pub fn dtype(&self, name: &str) -> Result<&'static str, ModelError> {
        let place = self.place(name)?;
        Ok(match &self.files {
            Files::Safetensors(shards) => Dtype::from_safetensors(shards[place.index].tensors[&place.stored].dtype)
                .expect("the dtype was checked on opening")
                .name(),
            Files::Gguf(file) => file.tensors[place.index].kind.name(),
        })
    }

    /// Bytes that a tensor takes on disk.
    ///
    /// # Errors
    /// [`ModelError::NoTensor`] if there is none of that name.
    pub fn stored_bytes(&self, name: &str) -> Result<u64, ModelError> {
        let place = self.place(name)?;
        Ok(match &self.files {
            Files::Safetensors(shards) => {
                let entry = &shards[place.index].tensors[&place.stored];
                let bytes = Dtype::from_safetensors(entry.dtype).map_or(0, Dtype::bytes);
                (entry.shape.iter().product::<usize>() * bytes) as u64
            }
            Files::Gguf(file) => file.tensors[place.index].bytes as u64,
        })
    }

    /// Reads one tensor, row-major, in Hugging Face's row order.
    ///
    /// # Errors
    /// [`ModelError::NoTensor`], or [`ModelError::NonFinite`] if a number is infinite or not a number.
    pub fn tensor_f32(&self, name: &str) -> Result<Vec<f32>, ModelError> {
        let place = self.place(name)?;
        let values = match &self.files {
            Files::Safetensors(shards) => {
                shards[place.index].read(&place.stored).expect("the tensor was found on opening")?
            }
            Files::Gguf(file) => read_gguf(file, &file.tensors[place.index], place.rearrange),
        };
        if let Some(index) = values.iter().position(|x| !x.is_finite()) {
            return Err(ModelError::NonFinite {
                path: self.file_of(place).to_owned(),
                tensor: place.stored.clone(),
                index,
                value: values[index],
            });
        }
        Ok(values)
    }

    /// A digest of the configuration and of every weights file's content.
    ///
    /// # Errors
    /// [`ModelError::File`] if a file cannot be read any more.
    pub fn source_digest(&self) -> Result<Digest, ModelError> {
        let mut hasher = Hasher::new();
        match &self.files {
            Files::Safetensors(shards) => {
                hasher.field("config", &files::read(self.path.join("config.json"))?);
                for shard in shards {
                    hasher.field("weights", hash_file(&shard.path)?.to_string().as_bytes());
                }
            }
            Files::Gguf(file) => {
                hasher.field("gguf", hash_file(file.path())?.to_string().as_bytes());
            }
        }
        Ok(hasher.finish())
    }
}

enum Location {
    Gguf(PathBuf),
    Directory(PathBuf),
}

fn locate(path: &Path) -> Result<Location, ModelError> {
    let none = |why: String| ModelError::NoModel { path: path.to_owned(), why };
    if path.is_file() {
        if path.extension().is_some_and(|e| e == "gguf") {
            return Ok(Location::Gguf(path.to_owned()));
        }
        return Err(none("a file must end in .gguf".into()));
    }
    if !path.is_dir() {
        return Err(none("it does not exist".into()));
    }
    if path.join("config.json").exists() {
        return Ok(Location::Directory(path.to_owned()));
    }
    if path.join("adapter_config.json").exists() {
        return Err(none("it holds an adapter; merge it into its base with `didact model merge`".into()));
    }
    let entries = std::fs::read_dir(path).map_err(|e| none(format!("it cannot be listed: {e}")))?;
    let mut found: Vec<PathBuf> =
        entries.filter_map(|e| Some(e.ok()?.path())).filter(|p| p.extension().is_some_and(|e| e == "gguf")).collect();
    found.sort();
    match found.as_slice() {
        [] => Err(none("there is neither config.json nor a .gguf file".into())),
        [one] => Ok(Location::Gguf(one.clone())),
        many => {
            let names: Vec<_> = many.iter().filter_map(|p| p.file_name()?.to_str()).collect();
            Err(none(format!("there are several .gguf files ({}); name one", names.join(", "))))
        }
    }
}

/// GPT-2 files made from the bare model lack the prefix.
fn needs_prefix(config: &ModelConfig, shards: &[TensorFile]) -> bool {
    config.model_type == Architecture::Gpt2
        && !shards.iter().any(|s| s.tensors.keys().any(|n| n.starts_with("transformer.")))
}

/// Tensors that older files hold although they follow from the configuration, or repeat another tensor.
fn is_derived(config: &ModelConfig, name: &str) -> bool {
    (config.model_type == Architecture::Gpt2 && (name.ends_with(".attn.bias") || name.ends_with(".attn.masked_bias")))
        || name.ends_with(".rotary_emb.inv_freq")
        || (config.tie_word_embeddings && name == "lm_head.weight")
}

fn open_shards(dir: &Path) -> Result<Vec<TensorFile>, ModelError> {
    let path = dir.join(INDEX_FILE);
    let text = files::read_to_string(&path)?;
    let index: Value = serde_json::from_str(&text).map_err(|source| ModelError::Json { path: path.clone(), source })?;
    let bad = |key: &str, found: String, expected: &str| ModelError::KeyValue {
        path: path.clone(),
        key: key.to_owned(),
        found,
        expected: expected.to_owned(),
    };
    let Some(map) = index.get("weight_map").and_then(Value::as_object).filter(|m| !m.is_empty()) else {
        return Err(bad("weight_map", "absent or empty".into(), "an object from tensor to shard"));
    };
    let mut by_shard: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (tensor, shard) in map {
        match shard.as_str() {
            // A name, never a path: an index must not reach outside its directory.
            Some(name) if !name.contains(['/', '\\']) && !name.is_empty() && name != ".." => {
                by_shard.entry(name).or_default().push(tensor);
            }
            _ => return Err(bad("weight_map", format!("{shard} for `{tensor}`"), "a file name in the same directory")),
        }
    }
    let mut shards = Vec::with_capacity(by_shard.len());
    for (name, tensors) in by_shard {
        let file = dir.join(name);
        if !file.exists() {
            return Err(ModelError::MissingShard { path, shard: name.to_owned(), tensor: tensors[0].to_owned() });
        }
        let shard = TensorFile::open(&file)?;
        let content = |tensor: &str, found: &str, expected: String| ModelError::ShardContent {
            path: file.clone(),
            tensor: tensor.to_owned(),
            found: found.to_owned(),
            expected,
        };
        for tensor in tensors {
            if !shard.tensors.contains_key(tensor) {
                return Err(content(tensor, "not in this shard", "it is".into()));
            }
        }
        for tensor in shard.tensors.keys() {
            let assigned = map.get(tensor).and_then(Value::as_str);
            if assigned != Some(name) {
                let expected = assigned.map_or("nothing of it".into(), |s| format!("it is in `{s}`"));
                return Err(content(tensor, "in this shard", expected));
            }
        }
        shards.push(shard);
    }
    Ok(shards)
}

fn read_gguf(file: &GgufFile, tensor: &GgufTensor, how: Rearrange) -> Vec<f32> {
    let values = dequantize(tensor.kind, file.bytes(tensor));
    let rows = tensor.shape[0];
    gguf_names::rearrange(values, rows, tensor.elements() / rows, how)
}
