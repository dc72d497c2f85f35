//! Reading the fields of a request's body, each once, with its own complaint.

use super::error::ApiError;
use serde_json::{Map, Value};

/// Fields that decide nothing about an answer. They are accepted so that clients that send them work.
const IGNORED: [&str; 7] =
    ["user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"];

/// What is left to be read of a body. A field that is `null` is as if it were not there.
#[derive(Debug)]
pub(super) struct Fields(Map<String, Value>);

impl Fields {
    /// A body, which must be a JSON object.
    pub(super) fn read(body: &[u8]) -> Result<Self, ApiError> {
        match serde_json::from_slice(body) {
            Ok(Value::Object(map)) => Ok(Self(map)),
            Ok(_) => Err(ApiError::malformed(400, "the body is no JSON object")),
            Err(error) => Err(ApiError::malformed(400, format!("the body is not JSON: {error}"))),
        }
    }

    pub(super) fn take(&mut self, name: &str) -> Option<Value> {
        self.0.remove(name).filter(|value| !value.is_null())
    }

    fn typed<T>(
        &mut self,
        name: &str,
        expected: &str,
        read: impl FnOnce(&Value) -> Option<T>,
    ) -> Result<Option<T>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let found = read(&value);
        found.map(Some).ok_or_else(|| ApiError::invalid(name, format!("`{name}` is {value}, expected {expected}")))
    }

    pub(super) fn flag(&mut self, name: &str) -> Result<Option<bool>, ApiError> {
        self.typed(name, "true or false", Value::as_bool)
    }

    pub(super) fn count(&mut self, name: &str) -> Result<Option<usize>, ApiError> {
        self.typed(name, "a whole number from 0", |value| value.as_u64().map(|n| n as usize))
    }

    pub(super) fn number(&mut self, name: &str) -> Result<Option<f32>, ApiError> {
        self.typed(name, "a number", |value| value.as_f64().map(|n| n as f32))
    }

    pub(super) fn text(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        self.typed(name, "a string", |value| value.as_str().map(str::to_owned))
    }

    pub(super) fn list(&mut self, name: &str) -> Result<Option<Vec<Value>>, ApiError> {
        self.typed(name, "a list", |value| value.as_array().cloned())
    }

    pub(super) fn object(&mut self, name: &str) -> Result<Option<Map<String, Value>>, ApiError> {
        self.typed(name, "an object", |value| value.as_object().cloned())
    }

    /// A seed: any whole number.
    pub(super) fn seed(&mut self, name: &str) -> Result<Option<u64>, ApiError> {
        self.typed(name, "a whole number", |value| value.as_u64().or_else(|| value.as_i64().map(|n| n as u64)))
    }

    /// One string or several.
    pub(super) fn texts(&mut self, name: &str) -> Result<Option<Vec<String>>, ApiError> {
        self.typed(name, "a string or a list of strings", |value| match value {
            Value::String(text) => Some(vec![text.clone()]),
            Value::Array(list) => list.iter().map(|text| text.as_str().map(str::to_owned)).collect(),
            _ => None,
        })
    }

    /// Token ids.
    pub(super) fn ids(&mut self, name: &str) -> Result<Option<Vec<u32>>, ApiError> {
        self.typed(name, "a list of token ids", |value| value.as_array()?.iter().map(id).collect())
    }

    /// Refuses what nobody has read, so that no setting is silently without effect. `known` are the fields that the
    /// endpoint has, for a hint.
    pub(super) fn finish(mut self, known: &[&str]) -> Result<(), ApiError> {
        for name in IGNORED {
            self.0.remove(name);
        }
        let Some((name, _)) = self.0.into_iter().find(|(_, value)| !value.is_null()) else { return Ok(()) };
        let near = known.iter().filter(|known| strsim::damerau_levenshtein(known, &name) <= 2);
        let near = near.min_by_key(|known| strsim::damerau_levenshtein(known, &name));
        Err(ApiError::unknown(&name, &near.map_or_else(String::new, |near| format!("; did you mean `{near}`?"))))
    }
}

/// A token id.
pub(super) fn id(value: &Value) -> Option<u32> {
    value.as_u64()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_typed_and_what_nobody_knows_is_refused() {
        let read = |text: &str| Fields::read(text.as_bytes()).expect("it is an object");
        let mut fields = read(r#"{"n": 2, "seed": -1, "stop": "x", "top_p": null, "user": "u", "temprature": 1}"#);
        assert_eq!(fields.count("n"), Ok(Some(2)));
        assert_eq!(fields.seed("seed"), Ok(Some(u64::MAX)));
        assert_eq!(fields.texts("stop"), Ok(Some(vec!["x".to_owned()])));
        assert_eq!(fields.number("top_p"), Ok(None));
        let error = fields.finish(&["temperature", "n"]).expect_err("it is misspelt");
        assert_eq!(error.param.as_deref(), Some("temprature"));
        assert!(error.message.contains("did you mean `temperature`"), "{}", error.message);
        for (text, name) in [(r#"{"n": -1}"#, "n"), (r#"{"n": 1.5}"#, "n"), (r#"{"n": "1"}"#, "n")] {
            assert_eq!(read(text).count(name).expect_err("it is no count").param.as_deref(), Some("n"));
        }
        for body in ["[]", "1", "{", "", "\u{0}"] {
            assert_eq!(Fields::read(body.as_bytes()).expect_err("it is no object").status, 400, "{body}");
        }
    }
}
