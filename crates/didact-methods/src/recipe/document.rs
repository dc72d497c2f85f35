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

/// Spellings that other trainers use and our key path; those below `train` are [`didact_train::config::ALIASES`].
const ALIASES: &[(&str, &str)] = &[
    ("model.model_name_or_path", "model.path"),
    ("model.base_model", "model.path"),
    ("model_name_or_path", "model.path"),
    ("base_model", "model.path"),
];

/// Keys of other trainers that stand for something else here, wherever they are written, and what to write.
const FOREIGN: &[(&str, &str)] = &[
    ("bf16", "write `precision = \"bf16\"` at the top"),
    ("fp16", "write `precision = \"bf16\"` or `\"f32\"` at the top"),
    ("resume_from_checkpoint", "the same command continues an interrupted run by itself"),
    ("train_on_inputs", "write `data.train_on = \"all\"` or `\"assistant\"`"),
];

/// The key path that a spelling stands for, if it is an alias.
fn alias(spelled: &str) -> Option<String> {
    if let Some((_, path)) = ALIASES.iter().find(|(alias, _)| *alias == spelled) {
        return Some((*path).to_owned());
    }
    let below = spelled.strip_prefix("train.")?;
    let (_, path) = didact_train::config::ALIASES.iter().find(|(alias, _)| *alias == below)?;
    Some(join("train", path))
}

/// What to write instead of a key that means something else elsewhere.
fn advice(spelled: &str) -> Option<String> {
    let last = spelled.rsplit('.').next().unwrap_or(spelled);
    if let Some((_, advice)) = FOREIGN.iter().find(|(key, _)| *key == last) {
        return Some((*advice).to_owned());
    }
    let (_, instead) = didact_train::config::AMBIGUOUS.iter().find(|(key, _)| *key == last)?;
    Some(format!("write {instead}"))
}

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

    /// The field at a key path.
    fn at(self, path: &str) -> Option<Self> {
        path.split('.').try_fold(self, Self::field)
    }

    fn field(self, name: &str) -> Option<Self> {
        let node = self.fields()?.get(name)?;
        Some(Self { root: self.root, node }.resolved())
    }
}

/// The value of the top-level key `recipe`, if it is a string, and the key's place.
pub(super) fn method_name(text: &str, origin: &str) -> Result<(Option<String>, Place), RecipeError> {
    let table = parse(text, origin)?;
    let entry = table.get_ref().iter().find(|(key, _)| key.get_ref() == "recipe");
    Ok(match entry {
        Some((key, value)) => (value.get_ref().as_str().map(str::to_owned), place(origin, text, key.span().start)),
        None => (None, Place::Absent { origin: origin.to_owned() }),
    })
}

fn parse<'a>(text: &'a str, origin: &str) -> Result<Spanned<DeTable<'a>>, RecipeError> {
    DeTable::parse(text).map_err(|error| RecipeError::Syntax {
        place: place(origin, text, error.span().map_or(0, |span| span.start)),
        message: error.message().to_owned(),
    })
}

impl Document {
    /// Reads TOML. `schema` is the JSON schema of the settings.
    pub(super) fn parse(text: &str, origin: &str, schema: &Value) -> Result<Self, RecipeError> {
        let table = parse(text, origin)?;
        let mut document = Self { settings: Map::new(), places: BTreeMap::new(), origin: origin.to_owned() };
        document.table(table.get_ref(), text, "", Schema::new(schema))?;
        Ok(document)
    }

    /// Takes up the keys of the table at `path`.
    fn table(&mut self, table: &DeTable<'_>, text: &str, path: &str, schema: Schema<'_>) -> Result<(), RecipeError> {
        // In the order of the file, so that of two spellings the second is the one complained about.
        let mut entries: Vec<(&Spanned<_>, &Spanned<DeValue<'_>>)> = table.iter().collect();
        entries.sort_by_key(|(key, _)| key.span().start);
        for (key, value) in entries {
            let here = place(&self.origin, text, key.span().start);
            let spelled = join(path, key.get_ref().as_ref());
            let (name, field) = known(&spelled, schema, &here)?;
            if let (DeValue::Table(inner), Some(field)) = (value.get_ref(), field.filter(|f| f.fields().is_some())) {
                self.places.entry(name.clone()).or_insert_with(|| (spelled.clone(), here.clone()));
                self.assign(&name, None);
                self.table(inner, text, &name, field)?;
                continue;
            }
            if let Some((first, first_place)) = self.places.get(&name) {
                return Err(RecipeError::Twice {
                    first: first.clone(),
                    first_place: Box::new(first_place.clone()),
                    second: spelled,
                    second_place: Box::new(here),
                });
            }
            let value_place = || place(&self.origin, text, value.span().start);
            let plain = plain(value.get_ref(), &|message| RecipeError::Value {
                place: value_place(),
                key: spelled.clone(),
                message,
            })?;
            self.places.insert(name.clone(), (spelled, here));
            self.assign(&name, Some(plain));
        }
        Ok(())
    }

    /// Puts a value at a key path, making the tables on the way; without a value, makes the table itself.
    fn assign(&mut self, path: &str, value: Option<Value>) {
        let mut table = &mut self.settings;
        let mut names = path.split('.').peekable();
        while let Some(name) = names.next() {
            if names.peek().is_none()
                && let Some(value) = value
            {
                table.insert(name.to_owned(), value);
                return;
            }
            let inner = table.entry(name).or_insert_with(|| Value::Object(Map::new()));
            if !inner.is_object() {
                *inner = Value::Object(Map::new());
            }
            let Value::Object(inner) = inner else { return };
            table = inner;
        }
    }

    /// Applies one `--set key.path=value`. The value is TOML; what is not TOML is a string.
    pub(super) fn set(&mut self, key: &str, value: &str, schema: &Value) -> Result<(), RecipeError> {
        let text = format!("{key}={value}");
        let here = Place::Override(text.clone());
        let key = key.trim().replace('-', "_");
        if key.split('.').any(str::is_empty) {
            let message = "the key is empty or has an empty part".to_owned();
            return Err(RecipeError::Override { text, message });
        }
        let mut schema = Some(Schema::new(schema));
        let mut path = String::new();
        for part in key.split('.') {
            let spelled = join(&path, part);
            (path, schema) = match schema {
                Some(table) => known(&spelled, table, &here)?,
                None => (spelled, None),
            };
        }
        let is_table = schema.is_some_and(|s| s.fields().is_some());
        let value = parse_value(value.trim());
        let below = format!("{path}.");
        self.places.retain(|known, _| !known.starts_with(&below));
        let switches_off = matches!(&value, Value::Bool(false)) || value.as_str().is_some_and(|v| v == "none");
        if is_table && switches_off {
            self.places.remove(&path);
            self.remove(&path);
        } else {
            self.assign(&path, Some(value));
            self.places.insert(path, (key, here));
        }
        Ok(())
    }

    fn remove(&mut self, path: &str) {
        let (tables, last) = path.rsplit_once('.').map_or(("", path), |(tables, last)| (tables, last));
        let mut table = &mut self.settings;
        for name in tables.split('.').filter(|name| !name.is_empty()) {
            let Some(Value::Object(inner)) = table.get_mut(name) else { return };
            table = inner;
        }
        table.remove(last);
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
    let parsed = DeValue::parse(text).ok().and_then(|v| plain(v.get_ref(), &|message| message).ok());
    parsed.unwrap_or_else(|| Value::String(text.to_owned()))
}

/// TOML to JSON.
fn plain<E>(value: &DeValue<'_>, refuse: &dyn Fn(String) -> E) -> Result<Value, E> {
    Ok(match value {
        DeValue::String(s) => Value::String(s.to_string()),
        DeValue::Boolean(b) => Value::Bool(*b),
        DeValue::Integer(i) => {
            let parsed = i64::from_str_radix(&i.as_str().replace('_', ""), i.radix());
            Value::from(parsed.map_err(|_| refuse(format!("`{}` does not fit 64 bits", i.as_str())))?)
        }
        DeValue::Float(f) => {
            let parsed: f64 = f.as_str().replace('_', "").parse().unwrap_or(f64::NAN);
            let number = serde_json::Number::from_f64(parsed);
            Value::Number(number.ok_or_else(|| refuse(format!("`{}` is not a finite number", f.as_str())))?)
        }
        DeValue::Datetime(d) => Value::String(d.to_string()),
        DeValue::Array(items) => {
            let items: Result<Vec<Value>, E> = items.iter().map(|v| plain(v.get_ref(), refuse)).collect();
            Value::Array(items?)
        }
        DeValue::Table(table) => {
            let mut entries: Vec<_> = table.iter().collect();
            entries.sort_by_key(|(key, _)| key.span().start);
            let mut object = Map::new();
            for (key, value) in entries {
                object.insert(key.get_ref().to_string(), plain(value.get_ref(), refuse)?);
            }
            Value::Object(object)
        }
    })
}

/// The canonical key path of a spelling below the table of `schema`, and its schema unless anything may stand there.
fn known<'a>(spelled: &str, schema: Schema<'a>, place: &Place) -> Result<(String, Option<Schema<'a>>), RecipeError> {
    let Some(fields) = schema.fields() else { return Ok((spelled.to_owned(), None)) };
    let (table, key) = spelled.rsplit_once('.').unwrap_or(("", spelled));
    if let Some(field) = schema.field(key) {
        return Ok((spelled.to_owned(), Some(field)));
    }
    if let Some(path) = alias(spelled)
        && let Some(field) = Schema::new(schema.root).at(&path)
    {
        return Ok((path, Some(field)));
    }
    if let Some(advice) = advice(spelled) {
        return Err(RecipeError::Foreign { place: place.clone(), key: spelled.to_owned(), advice });
    }
    Err(RecipeError::UnknownKey {
        place: place.clone(),
        nearest: nearest_key(table, key, schema),
        key: spelled.to_owned(),
        known: fields.keys().map(|k| join(table, k)).collect(),
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
fn nearest_key(table: &str, key: &str, schema: Schema<'_>) -> Option<String> {
    if let Some(name) = nearest(key, schema.fields()?.keys().cloned()) {
        return Some(join(table, &name));
    }
    let mut everywhere = Vec::new();
    collect(Schema::new(schema.root), "", &mut everywhere);
    let last = |path: &str| path.rsplit('.').next().unwrap_or(path) == key;
    everywhere.into_iter().find(|path| last(path)).or_else(|| {
        let spellings = ALIASES.iter().map(|(alias, path)| ((*alias).to_owned(), (*path).to_owned()));
        let train =
            didact_train::config::ALIASES.iter().map(|(alias, path)| (join("train", alias), join("train", path)));
        spellings.chain(train).find(|(alias, _)| last(alias)).map(|(_, path)| path)
    })
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

/// The most similar of some names, if it is similar enough to be meant: few letters differ, or one begins with the other.
pub(super) fn nearest(name: &str, known: impl IntoIterator<Item = String>) -> Option<String> {
    known
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(name, &candidate), candidate))
        .filter(|(distance, candidate)| {
            let is_beginning = name.len() >= 4 && candidate.starts_with(name);
            is_beginning || *distance <= 1 + name.len().max(candidate.len()) / 4
        })
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}
