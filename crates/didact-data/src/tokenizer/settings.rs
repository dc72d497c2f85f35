//! Reading a Hugging Face tokenizer directory.

use std::path::{Path, PathBuf};

use didact_core::files;
use serde_json::{Map, Value};

use super::{Parts, ROLES};
use crate::error::DataError;

pub(super) fn read(path: &Path) -> Result<Parts, DataError> {
    let (dir, file) = if path.is_dir() {
        (path.to_path_buf(), path.join("tokenizer.json"))
    } else if path.file_name().is_some_and(|n| n == "tokenizer.json") && path.is_file() {
        (path.parent().map(Path::to_path_buf).unwrap_or_default(), path.to_path_buf())
    } else {
        let found = if path.exists() { "it is another kind of file" } else { "it does not exist" };
        return Err(DataError::NoTokenizer { path: path.to_path_buf(), found: found.into() });
    };
    if !file.exists() {
        let old = ["tokenizer.model", "vocab.json", "vocab.txt"].iter().find(|name| dir.join(name).exists());
        let found = match old {
            Some(name) => format!("it has `{name}`, an older format, but no `tokenizer.json`"),
            None => "it has no `tokenizer.json`".into(),
        };
        return Err(DataError::NoTokenizer { path: path.to_path_buf(), found });
    }
    let bytes = files::read(&file)?;
    let inner = tokenizers::Tokenizer::from_bytes(&bytes)
        .map_err(|e| DataError::Tokenizer { path: file.clone(), cause: e.to_string() })?;

    let mut config = read_object(&dir.join("tokenizer_config.json"))?.unwrap_or_default();
    let map = read_object(&dir.join("special_tokens_map.json"))?.unwrap_or_default();
    let special: Vec<(String, String)> = ROLES
        .iter()
        .filter_map(|role| {
            let text = token_text(config.get(*role)).or_else(|| token_text(map.get(*role)))?;
            Some(((*role).to_owned(), text))
        })
        .collect();

    let mut eos = Vec::new();
    for name in ["generation_config.json", "config.json"] {
        if let Some(object) = read_object(&dir.join(name))? {
            match object.get("eos_token_id") {
                Some(Value::Array(ids)) => eos.extend(ids.iter().filter_map(as_id)),
                Some(id) => eos.extend(as_id(id)),
                None => {}
            }
        }
    }
    let template = find_template(&dir, &mut config)?;
    // The post-processor is what decides in Python; older configurations only say `add_bos_token`.
    let bos = special.iter().find(|(role, _)| role == "bos_token").and_then(|(_, text)| inner.token_to_id(text));
    let first = inner.encode_fast("a", true).ok().and_then(|e| e.get_ids().first().copied());
    let adds_bos = bos.is_some() && (first == bos || config.get("add_bos_token") == Some(&Value::Bool(true)));
    Ok(Parts { inner, path: path.to_path_buf(), config, special, eos, adds_bos, template })
}

fn as_id(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|id| u32::try_from(id).ok())
}

/// A special token is spelled as a string or as an object with `content`.
fn token_text(value: Option<&Value>) -> Option<String> {
    match value? {
        Value::String(text) => Some(text.clone()),
        Value::Object(token) => token.get("content")?.as_str().map(str::to_owned),
        _ => None,
    }
}

/// The template's text and where it came from. It is taken out of the configuration: it is saved as its own file.
fn find_template(dir: &Path, config: &mut Map<String, Value>) -> Result<Option<(String, String)>, DataError> {
    let in_config = config.shift_remove("chat_template");
    let file = dir.join("chat_template.jinja");
    if file.exists() {
        return Ok(Some((files::read_to_string(&file)?, file.display().to_string())));
    }
    let origin = dir.join("tokenizer_config.json");
    let source = match in_config {
        Some(Value::String(source)) => source,
        Some(Value::Array(named)) => {
            let entry = |wanted: Option<&str>| {
                named.iter().find(|t| wanted.is_none() || t.get("name").and_then(Value::as_str) == wanted)
            };
            let Some(template) = entry(Some("default")).or_else(|| entry(None)) else { return Ok(None) };
            let Some(source) = template.get("template").and_then(Value::as_str) else {
                let what = "an entry of `chat_template` has no `template`".into();
                return Err(DataError::Json { path: origin, what });
            };
            source.to_owned()
        }
        None | Some(Value::Null) => return Ok(None),
        Some(_) => {
            let what = "`chat_template` is neither a string nor a list of named templates".into();
            return Err(DataError::Json { path: origin, what });
        }
    };
    Ok(Some((source, origin.display().to_string())))
}

/// A JSON object, or `None` if there is no such file.
fn read_object(path: &PathBuf) -> Result<Option<Map<String, Value>>, DataError> {
    if !path.exists() {
        return Ok(None);
    }
    let text = files::read_to_string(path)?;
    match serde_json::from_str(&text) {
        Ok(Value::Object(object)) => Ok(Some(object)),
        Ok(_) => Err(DataError::Json { path: path.clone(), what: "expected a JSON object".into() }),
        Err(e) => Err(DataError::Json { path: path.clone(), what: format!("not JSON: {e}") }),
    }
}
