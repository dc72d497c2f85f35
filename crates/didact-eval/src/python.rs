//! What the lm-evaluation-harness takes from Python: its random numbers, and how it prints values.

use rand_mt::Mt;
use serde_json::Value;
use std::fmt::Write;

/// `random.Random(seed)`: the Mersenne twister, seeded by an array of the seed's 32-bit words.
#[derive(Debug, Clone)]
pub struct PythonRandom {
    twister: Mt,
}

impl PythonRandom {
    /// The generator of a seed.
    pub fn new(seed: u64) -> Self {
        let (low, high) = (seed as u32, (seed >> 32) as u32);
        let key: &[u32] = if high == 0 { &[low] } else { &[low, high] };
        Self { twister: Mt::new_with_key(key.iter().copied()) }
    }

    /// A number below `n`, all equally likely: as many bits as `n` has, drawn again while they are too many.
    fn below(&mut self, n: u32) -> u32 {
        let bits = u32::BITS - n.leading_zeros();
        loop {
            let drawn = self.twister.next_u32() >> (u32::BITS - bits);
            if drawn < n {
                return drawn;
            }
        }
    }

    /// `sample(range(n), k)`: `k` different numbers below `n`, in the order in which they were drawn.
    ///
    /// # Panics
    /// If `k` is above `n`, or `n` beyond 32 bits.
    pub fn sample(&mut self, n: usize, k: usize) -> Vec<usize> {
        assert!(k <= n, "sample: {k} of {n}");
        let size = u32::try_from(n).expect("a set of fewer than 2^32 documents");
        // Where a set of the drawn is smaller than a list of all (CPython's `Random.sample`).
        let set_size = if k > 5 { 21 + 4_usize.pow(ceil_log4(3 * k)) } else { 21 };
        let mut drawn = Vec::with_capacity(k);
        if n <= set_size {
            let mut pool: Vec<usize> = (0..n).collect();
            for i in 0..k {
                let j = self.below(size - i as u32) as usize;
                drawn.push(pool[j]);
                pool[j] = pool[n - i - 1];
            }
        } else {
            let mut seen = std::collections::BTreeSet::new();
            while drawn.len() < k {
                let j = self.below(size) as usize;
                if seen.insert(j) {
                    drawn.push(j);
                }
            }
        }
        drawn
    }
}

/// ⌈log₄ x⌉.
fn ceil_log4(x: usize) -> u32 {
    let mut power = 0;
    while 4_usize.pow(power) < x {
        power += 1;
    }
    power
}

/// `str(value)` of a JSON value read by Python: strings as they are, `True`, `None`, `['a', 1]`, `{'k': 1.0}`.
pub fn str(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => repr(other),
    }
}

fn repr(value: &Value) -> String {
    match value {
        Value::Null => "None".into(),
        Value::Bool(true) => "True".into(),
        Value::Bool(false) => "False".into(),
        Value::Number(number) if number.is_f64() => float(number.as_f64().unwrap_or(f64::NAN)),
        Value::Number(number) => number.to_string(),
        Value::String(text) => quoted(text),
        Value::Array(items) => format!("[{}]", items.iter().map(repr).collect::<Vec<_>>().join(", ")),
        Value::Object(object) => {
            let items = object.iter().map(|(key, value)| format!("{}: {}", quoted(key), repr(value)));
            format!("{{{}}}", items.collect::<Vec<_>>().join(", "))
        }
    }
}

/// A string's `repr`: in single quotes unless it holds some and no double ones.
fn quoted(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut out = String::from(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => {
                out.push('\\');
                out.push(c);
            }
            c if c.is_ascii_control() => _ = write!(out, "\\x{:02x}", c as u32),
            c => out.push(c),
        }
    }
    out.push(quote);
    out
}

/// `repr` of a float: the shortest digits that read back, with an exponent below 1e-4 and from 1e16.
pub fn float(x: f64) -> String {
    if x.is_nan() {
        return "nan".into();
    }
    if x.is_infinite() {
        return if x > 0.0 { "inf".into() } else { "-inf".into() };
    }
    let size = x.abs();
    if size != 0.0 && !(1e-4..1e16).contains(&size) {
        let text = format!("{x:e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |e| ('-', e));
        return format!("{digits}e{sign}{exponent:0>2}");
    }
    format!("{x:?}")
}

/// `json.dumps(value, indent=2, ensure_ascii=False)`, which the harness's hashes are taken of.
pub fn dumps(value: &Value) -> String {
    let mut out = String::new();
    dump(value, 0, &mut out);
    out
}

fn dump(value: &Value, depth: usize, out: &mut String) {
    let line = |depth: usize, out: &mut String| {
        out.push('\n');
        out.push_str(&"  ".repeat(depth));
    };
    match value {
        Value::Number(number) if number.is_f64() => out.push_str(&float(number.as_f64().unwrap_or(f64::NAN))),
        Value::Array(items) if !items.is_empty() => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                out.push_str(if i > 0 { "," } else { "" });
                line(depth + 1, out);
                dump(item, depth + 1, out);
            }
            line(depth, out);
            out.push(']');
        }
        Value::Object(object) if !object.is_empty() => {
            out.push('{');
            for (i, (key, item)) in object.iter().enumerate() {
                out.push_str(if i > 0 { "," } else { "" });
                line(depth + 1, out);
                out.push_str(&Value::from(key.as_str()).to_string());
                out.push_str(": ");
                dump(item, depth + 1, out);
            }
            line(depth, out);
            out.push('}');
        }
        other => out.push_str(&other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Values of CPython 3.
    #[test]
    fn samples_are_pythons() {
        let mut random = PythonRandom::new(1234);
        assert_eq!(random.sample(1000, 5), [989, 796, 451, 119, 7]);
        assert_eq!(random.sample(1000, 5), [92, 932, 965, 961, 826]);
        assert_eq!(random.sample(1000, 5), [596, 35, 687, 709, 85]);
        let mut random = PythonRandom::new(1234);
        assert_eq!(random.sample(10, 4), [7, 1, 0, 9]);
        assert_eq!(random.sample(30, 8), [29, 25, 18, 1, 21, 22, 2, 3]);
    }

    #[test]
    fn values_print_as_in_python() {
        let value = json!({"a": [1, 2.0, true, null, "it's"], "b": 1e-7, "c": 1e16, "d": "a\"'\n"});
        assert_eq!(str(&value), r#"{'a': [1, 2.0, True, None, "it's"], 'b': 1e-07, 'c': 1e+16, 'd': 'a"\'\n'}"#);
        assert_eq!(str(&json!("it's")), "it's");
        assert_eq!(
            (float(-12.5), float(0.0001), float(f64::NEG_INFINITY)),
            ("-12.5".into(), "0.0001".into(), "-inf".into())
        );
        assert_eq!(dumps(&json!({"a": [1, {}], "é": "x"})), "{\n  \"a\": [\n    1,\n    {}\n  ],\n  \"é\": \"x\"\n}");
    }
}
