//! Rows of a Parquet file.

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{
    DataType, Float16Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type, UInt16Type,
    UInt32Type, UInt64Type,
};
use arrow::util::display::array_value_to_string;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};
use serde_json::{Map, Value};

use super::RowCause;
use super::file::RawValue;

/// Rows decoded at a time: enough to amortise decoding, few enough that long documents fit.
const BATCH_ROWS: usize = 128;

/// Reads rows, a few at a time.
pub(super) struct Table {
    batches: ParquetRecordBatchReader,
    /// Most bytes of one row.
    limit: usize,
    batch: Option<RecordBatch>,
    /// Next row within the batch.
    next: usize,
    count: u64,
    is_over: bool,
}

impl std::fmt::Debug for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Table").field("count", &self.count).finish_non_exhaustive()
    }
}

impl Table {
    pub(super) fn open(path: &Path, limit: usize) -> Result<Self, RowCause> {
        let file = File::open(path).map_err(super::lines::unreadable)?;
        if file.metadata().map_err(super::lines::unreadable)?.len() == 0 {
            return Err(RowCause::NoRows);
        }
        let batches = guarded(|| {
            ParquetRecordBatchReaderBuilder::try_new(file)
                .and_then(|builder| builder.with_batch_size(BATCH_ROWS).build())
                .map_err(|error| RowCause::Unreadable(error.to_string()))
        })?;
        Ok(Self { batches, limit, batch: None, next: 0, count: 0, is_over: false })
    }

    /// The next row's number, from 1, and what it holds.
    pub(super) fn next_row(&mut self) -> Option<(u64, Result<RawValue, RowCause>)> {
        if self.is_over {
            return None;
        }
        let batch = loop {
            if let Some(batch) = self.batch.as_ref().filter(|batch| self.next < batch.num_rows()) {
                break batch;
            }
            let batches = &mut self.batches;
            let next = guarded(|| batches.next().transpose().map_err(|error| RowCause::Unreadable(error.to_string())));
            match next {
                Ok(None) => return None,
                Ok(Some(batch)) => (self.batch, self.next) = (Some(batch), 0),
                Err(cause) => {
                    self.is_over = true;
                    return Some((self.count + 1, Err(cause)));
                }
            }
        };
        let row = self.next;
        self.next += 1;
        self.count += 1;
        let mut object = Map::new();
        for (field, column) in batch.schema_ref().fields().iter().zip(batch.columns()) {
            object.insert(field.name().clone(), value(column, row));
        }
        let size: usize = object.values().map(size).sum();
        let row =
            if size > self.limit { Err(RowCause::TooLong { limit: self.limit }) } else { Ok(RawValue::Object(object)) };
        Some((self.count, row))
    }
}

/// Bytes of all text in a value.
fn size(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len(),
        Value::Array(items) => items.iter().map(size).sum(),
        Value::Object(entries) => entries.iter().map(|(key, value)| key.len() + size(value)).sum(),
        _ => 0,
    }
}

/// Runs a call into the Parquet reader, which answers some damaged files with a panic.
fn guarded<T>(call: impl FnOnce() -> Result<T, RowCause>) -> Result<T, RowCause> {
    catch_unwind(AssertUnwindSafe(call))
        .unwrap_or_else(|_| Err(RowCause::Unreadable("it is not a valid Parquet file".to_owned())))
}

/// One value as JSON. What JSON cannot say comes as its text (times, decimals), or as an object that gives its size (bytes).
fn value(array: &dyn Array, row: usize) -> Value {
    if array.is_null(row) {
        return Value::Null;
    }
    match array.data_type() {
        DataType::Null => Value::Null,
        DataType::Boolean => array.as_boolean().value(row).into(),
        DataType::Int8 => array.as_primitive::<Int8Type>().value(row).into(),
        DataType::Int16 => array.as_primitive::<Int16Type>().value(row).into(),
        DataType::Int32 => array.as_primitive::<Int32Type>().value(row).into(),
        DataType::Int64 => array.as_primitive::<Int64Type>().value(row).into(),
        DataType::UInt8 => array.as_primitive::<UInt8Type>().value(row).into(),
        DataType::UInt16 => array.as_primitive::<UInt16Type>().value(row).into(),
        DataType::UInt32 => array.as_primitive::<UInt32Type>().value(row).into(),
        DataType::UInt64 => array.as_primitive::<UInt64Type>().value(row).into(),
        DataType::Float16 => f64::from(array.as_primitive::<Float16Type>().value(row)).into(),
        DataType::Float32 => f64::from(array.as_primitive::<Float32Type>().value(row)).into(),
        DataType::Float64 => array.as_primitive::<Float64Type>().value(row).into(),
        DataType::Utf8 => array.as_string::<i32>().value(row).into(),
        DataType::LargeUtf8 => array.as_string::<i64>().value(row).into(),
        DataType::Utf8View => array.as_string_view().value(row).into(),
        DataType::Binary => bytes(array.as_binary::<i32>().value(row)),
        DataType::LargeBinary => bytes(array.as_binary::<i64>().value(row)),
        DataType::BinaryView => bytes(array.as_binary_view().value(row)),
        DataType::List(_) => list(&array.as_list::<i32>().value(row)),
        DataType::LargeList(_) => list(&array.as_list::<i64>().value(row)),
        DataType::FixedSizeList(..) => list(&array.as_fixed_size_list().value(row)),
        DataType::Struct(fields) => {
            let columns = array.as_struct().columns();
            // A column has one type for all rows: keys that a row does not have come as nulls, and are dropped again.
            let entries = fields.iter().zip(columns).map(|(field, column)| (field.name().clone(), value(column, row)));
            Value::Object(entries.filter(|(_, value)| !value.is_null()).collect())
        }
        DataType::Map(..) => {
            let entries = array.as_map().value(row);
            let (keys, values) = (entries.column(0), entries.column(1));
            let name = |i: usize| match value(keys, i) {
                Value::String(name) => name,
                other => other.to_string(),
            };
            Value::Object((0..entries.len()).map(|i| (name(i), value(values, i))).collect())
        }
        DataType::Dictionary(..) => {
            let dictionary = array.as_any_dictionary();
            value(dictionary.values().as_ref(), dictionary.normalized_keys()[row])
        }
        _ => array_value_to_string(array, row).map_or(Value::Null, Value::String),
    }
}

fn list(items: &dyn Array) -> Value {
    Value::Array((0..items.len()).map(|i| value(items, i)).collect())
}

/// Bytes as text when they are text.
fn bytes(bytes: &[u8]) -> Value {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.into(),
        Err(_) => serde_json::json!({ "bytes": bytes.len() }),
    }
}
