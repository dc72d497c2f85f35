//! A recipe as written: TOML and overrides, with the place of every key, before it becomes typed settings.
//!
//! Keys are checked against the JSON schema of the settings, so that a key is known exactly when some field has its
//! name, and the nearest known key can be suggested. Spellings of other trainers are renamed here, in one place.

use super::error::{Place, RecipeError};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Settings by their canonical names, and where each was written.
#[derive(Debug, Clone)]
pub(super) struct Document {
    /// The tree.
    pub(super) settings: Map<String, Value>,
    /// Key path -> as spelled, and where.
    places: BTreeMap<String, (String, Place)>,
    origin: String,
}

/// Spellings that other trainers use, by the table they stand in: `(table, spelling, our name)`.
const ALIASES: &[(&str, &str, &str)] = &[
    ("model", "model_name_or_path", "path"),
    ("model", "base_model", "path"),
    ("train", "lr", "learning_rate"),
    ("train", "max_length", "max_seq_len"),
    ("train", "sequence_len", "max_seq_len"),
    ("train", "cutoff_len", "max_seq_len"),
    ("train", "num_epochs", "epochs"),
    ("train", "num_train_epochs", "epochs"),
    ("train", "steps", "max_steps"),
    ("train", "lr_scheduler_type", "lr_scheduler"),
    ("train", "sample_packing", "packing"),
    ("train", "global_batch_size", "batch_size"),
    ("train.lora", "r", "rank"),
    ("train.lora", "lora_r", "rank"),
    ("train.lora", "lora_rank", "rank"),
    ("train.lora", "lora_alpha", "alpha"),
    ("train.lora", "lora_dropout", "dropout"),
    ("train.lora", "lora_target_modules", "target_modules"),
    ("train.lora", "lora_target", "target_modules"),
];

/// Keys of other trainers whose meaning depends on how they count; each is answered with what to write.
const FOREIGN: &[(&str, &str)] = &[
    ("per_device_train_batch_size", "write `train.batch_size`, the sequences per optimiser step all told (per device x devices x accumulation)"),
    ("micro_batch_size", "write `train.batch_size`, the sequences per optimiser step all told (micro-batch x accumulation)"),
    ("bf16", "write `precision = \"bf16\"` at the top"),
    ("fp16", "write `precision = \"bf16\"` or `\"f32\"` at the top"),
    ("resume_from_checkpoint", "the same command continues an interrupted run by itself"),
    ("train_on_inputs", "write `data.train_on = \"all\"` or `\"assistant\"`"),
];

/// One table of the schema.
#[derive(Clone, Copy)]
struct Schema<'a> {
    root: &'a Value,
    node: &'a Value,
}

impl<'a> Schema<'a> {
    fn new(root: &'a Value) -> Self {
        Self { root, node: root }.resolved()
    }

    /// Follows references, and looks through "or null" to the table behind it.
    fn resolved(self) -> Self {
        let mut node = self.node;
        // A schema made from finite types has no longer chains of references.
        for _ in 0..16 {
            if let Some(reference) = node.get("$ref").and_then(Value::as_str) {
                let Some(target) = reference.strip_prefix('#').and_then(|p| self.root.pointer(p)) else { break };
                node = target;
            } else if let Some(choices) = node.get("anyOf").and_then(Value::as_array) {
                let real: Vec<&Value> = choices.iter().filter(|c| c.get("type") != Some(&"null".into())).collect();
                let [only] = real[..] else { break };
                node = only;
            } else {
                break;
            }
        }
        Self { root: self.root, node }
    }

    /// The table's fields; `None` where any key may stand.
    fn fields(self) -> Option<&'a Map<String, Value>> {
        self.node.get("properties").and_then(Value::as_object)
    }

    fn field(self, name: &str) -> Option<Self> {
        let node = self.fields()?.get(name)?;
        Some(Self { root: self.root, node }.resolved())
    }
}

impl Document {
    /// Reads TOML. `schema` is the JSON schema of the settings.
    pub(super) fn parse(text: &str, origin: &str, schema: &Value) -> Result<Self, RecipeError> {
        let table = DeTable::parse(text).map_err(|error| RecipeError::Syntax {
            place: place(origin, text, error.span().map_or(0, |span| span.start)),
            message: error.message().to_owned(),
        })?;
        let mut document =
            Self { settings: Map::new(), places: BTreeMap::new(), origin: origin.to_owned() };
        document.settings = document.table(table.get_ref(), text, "", Schema::new(schema))?;
        Ok(document)
    }

    fn table(
        &mut self,
        table: &DeTable<'_>,
        text: &str,
        path: &str,
        schema: Schema<'_>,
    ) -> Result<Map<String, Value>, RecipeError> {
        // In the order of the file, so that of two spellings the second is the one complained about.
        let mut entries: Vec<(&Spanned<_>, &Spanned<DeValue<'_>>)> = table.iter().collect();
        entries.sort_by_key(|(key, _)| key.span().start);
        let mut settings = Map::new();
        for (key, value) in entries {
            let place = place(&self.origin, text, key.span().start);
            let spelled = key.get_ref().as_ref();
            let (name, field) = self.known(path, spelled, schema, &place)?;
            let full = join(path, &name);
            if let Some((first, first_place)) = self.places.get(&full) {
                return Err(RecipeError::Twice {
                    first: first.clone(),
                    first_place: Box::new(first_place.clone()),
                    second: join(path, spelled),
                    second_place: Box::new(place),
                });
            }
            self.places.insert(full.clone(), (join(path, spelled), place));
            let value = match (value.get_ref(), field) {
                (DeValue::Table(inner), Some(field)) => Value::Object(self.table(inner, text, &full, field)?),
                (other, _) => plain(other, &full, |message| RecipeError::Value {
                    place: crate::recipe::document::place(&self.origin, text, value.span().start),
                    key: full.clone(),
                    message,
                })?,
            };
            settings.insert(name, value);
        }
        Ok(settings)
    }

    /// The canonical name of a key, and its schema unless anything may stand there.
    fn known<'a>(
        &self,
        table: &str,
        spelled: &str,
        schema: Schema<'a>,
        place: &Place,
    ) -> Result<(String, Option<Schema<'a>>), RecipeError> {
        let Some(fields) = schema.fields() else { return Ok((spelled.to_owned(), None)) };
        let alias = ALIASES.iter().find(|(t, s, _)| *t == table && *s == spelled).map(|(_, _, name)| *name);
        let name = if fields.contains_key(spelled) { spelled } else { alias.unwrap_or(spelled) };
        if let Some(field) = schema.field(name) {
            return Ok((name.to_owned(), Some(field)));
        }
        let key = join(table, spelled);
        if let Some((_, advice)) = FOREIGN.iter().find(|(k, _)| *k == spelled) {
            return Err(RecipeError::Foreign { place: place.clone(), key, advice });
        }
        Err(RecipeError::UnknownKey {
            place: place.clone(),
            nearest: nearest_key(table, spelled, schema),
            key,
            known: fields.keys().map(|k| join(table, k)).collect(),
        })
    }

    /// Applies one `--set key.path=value`. The value is TOML; what is not TOML is a string.
    pub(super) fn set(&mut self, key: &str, value: &str, schema: &Value) -> Result<(), RecipeError> {
        let text = format!("{key}={value}");
        let place = Place::Override(text.clone());
        let refuse = |message: &str| RecipeError::Override { text: text.clone(), message: message.to_owned() };
        let mut names = Vec::new();
        let (mut path, mut spelled_path) = (String::new(), String::new());
        let mut schema = Some(Schema::new(schema));
        for part in key.split('.') {
            if part.is_empty() {
                return Err(refuse("the key is empty or has an empty part"));
            }
            let part = part.replace('-', "_");
            let (name, field) = match schema {
                Some(table) => self.known(&path, &part, table, &place)?,
                None => (part.clone(), None),
            };
            path = join(&path, &name);
            spelled_path = join(&spelled_path, &part);
            names.push(name);
            schema = field;
        }
        let is_table = schema.is_some_and(|s| s.fields().is_some());
        let value = parse_value(value);
        let remove = is_table && matches!(&value, Value::Bool(false) | Value::Null)
            || is_table && value.as_str().is_some_and(|v| v == "none");
        let (last, tables) = names.split_last().expect("a key has at least one part");
        let mut table = &mut self.settings;
        for name in tables {
            let inner = table.entry(name.clone()).or_insert_with(|| Value::Object(Map::new()));
            let Value::Object(inner) = inner else { return Err(refuse("part of the key is a value, not a table")) };
            table = inner;
        }
        let below = format!("{path}.");
        self.places.retain(|known, _| !known.starts_with(&below));
        if remove {
            table.remove(last);
            self.places.remove(&path);
        } else {
            table.insert(last.clone(), value);
            self.places.insert(path, (spelled_path, place));
        }
        Ok(())
    }

    /// Where a key, or else the nearest table around it, was written.
    pub(super) fn place(&self, path: &str) -> Place {
        let mut path = path;
        loop {
            if let Some((_, place)) = self.places.get(path) {
                return place.clone();
            }
            match path.rsplit_once('.') {
                Some((table, _)) => path = table,
                None => return Place::Absent { origin: self.origin.clone() },
            }
        }
    }
}

/// The text of an override's value as TOML, or else as a string.
fn parse_value(text: &str) -> Value {
    let parsed = DeValue::parse(text).ok().and_then(|v| plain(v.get_ref(), "", |m| m).ok());
    parsed.unwrap_or_else(|| Value::String(text.to_owned()))
}

/// TOML to JSON.
fn plain<E>(value: &DeValue<'_>, path: &str, refuse: impl Fn(String) -> E + Copy) -> Result<Value, E> {
    Ok(match value {
        DeValue::String(s) => Value::String(s.to_string()),
        DeValue::Boolean(b) => Value::Bool(*b),
        DeValue::Integer(i) => {
            let parsed = i64::from_str_radix(&i.as_str().replace('_', ""), i.radix());
            Value::from(parsed.map_err(|_| refuse(format!("`{}` does not fit 64 bits", i.as_str())))?)
        }
        DeValue::Float(f) => {
            let parsed: f64 = f.as_str().replace('_', "").parse().map_err(|_| refuse(format!("`{}` is no number", f.as_str())))?;
            let number = serde_json::Number::from_f64(parsed);
            Value::Number(number.ok_or_else(|| refuse(format!("`{}` is not a finite number", f.as_str())))?)
        }
        DeValue::Datetime(d) => Value::String(d.to_string()),
        DeValue::Array(items) => {
            let items: Result<Vec<Value>, E> = items.iter().map(|v| plain(v.get_ref(), path, refuse)).collect();
            Value::Array(items?)
        }
        DeValue::Table(table) => {
            let mut entries: Vec<_> = table.iter().collect();
            entries.sort_by_key(|(key, _)| key.span().start);
            let mut object = Map::new();
            for (key, value) in entries {
                object.insert(key.get_ref().to_string(), plain(value.get_ref(), path, refuse)?);
            }
            Value::Object(object)
        }
    })
}

pub(super) fn join(table: &str, key: &str) -> String {
    if table.is_empty() { key.to_owned() } else { format!("{table}.{key}") }
}

fn place(origin: &str, text: &str, byte: usize) -> Place {
    let before = &text[..byte.min(text.len())];
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    Place::File { origin: origin.to_owned(), line, column }
}

/// The known key most like the unknown one: in its own table first, then anywhere (the right key in the wrong table).
fn nearest_key(table: &str, spelled: &str, schema: Schema<'_>) -> Option<String> {
    let own: Vec<String> = schema.fields()?.keys().cloned().collect();
    let aliases = ALIASES.iter().filter(|(t, _, _)| *t == table).map(|(_, spelling, _)| (*spelling).to_owned());
    if let Some(name) = nearest(spelled, own.into_iter().chain(aliases)) {
        return Some(join(table, &name));
    }
    let mut everywhere = Vec::new();
    collect(Schema::new(schema.root), "", &mut everywhere);
    let aliased = ALIASES.iter().map(|(t, s, name)| (join(t, name), (*s).to_owned()));
    let named = everywhere.into_iter().map(|path| {
        let last = path.rsplit('.').next().unwrap_or(&path).to_owned();
        (path, last)
    });
    named.chain(aliased).find(|(_, last)| last == spelled).map(|(path, _)| path)
}

fn collect(schema: Schema<'_>, path: &str, into: &mut Vec<String>) {
    let Some(fields) = schema.fields() else { return };
    for name in fields.keys() {
        let full = join(path, name);
        if let Some(field) = schema.field(name) {
            collect(field, &full, into);
        }
        into.push(full);
    }
}

/// The most similar of some names, if it is similar enough to be meant.
pub(super) fn nearest(name: &str, known: impl IntoIterator<Item = String>) -> Option<String> {
    known
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(name, &candidate), candidate))
        .filter(|(distance, candidate)| *distance <= 1 + name.len().max(candidate.len()) / 4)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}
