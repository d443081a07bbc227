//! Rows of relations, and their one translation to and from Arrow.
//!
//! [`record!`](crate::record!) declares a row type with its columns; the schema, the batch and the
//! way back are derived from the types of its fields, so a column exists in exactly one place.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, BinaryArray, Float64Array, Int64Array, RecordBatch, RecordBatchOptions,
    StringArray, TimestampMicrosecondArray,
};
use arrow::datatypes::{DataType, Field, SchemaRef, TimeUnit};
use differential_dataflow::ExchangeData;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3Default;

use crate::change::Text;

/// A row of a relation that can be indexed, written to a table and read back.
pub trait Record: ExchangeData + Hash {
    /// The relation's name, as in SQL and in the tables' folder.
    const RELATION: &'static str;

    /// The columns by whose values rows are found, the first column first.
    const LOOK_UPS: &'static [&'static str];

    /// The value of the first column.
    fn key(&self) -> Text {
        self.look_up(0)
    }

    /// The value of a column of [`Record::LOOK_UPS`], by its place there.
    fn look_up(&self, look_up: usize) -> Text;

    /// The relation's columns, in order.
    fn schema() -> SchemaRef;

    /// Some columns of the rows, by the columns' places in [`Record::schema`], in the order given.
    fn columns(rows: &[&Self], columns: &[usize]) -> RecordBatch;

    /// The rows as one Arrow batch, in the order given.
    fn to_batch(rows: &[Self]) -> RecordBatch {
        let rows: Vec<_> = rows.iter().collect();
        let columns: Vec<_> = (0..Self::schema().fields().len()).collect();
        Self::columns(&rows, &columns)
    }

    /// The rows of a batch whose columns are those of [`Record::schema`].
    ///
    /// # Errors
    /// Names the column that is absent or has another type.
    fn from_batch(batch: &RecordBatch) -> Result<Vec<Self>, String>;
}

/// A 128-bit digest of a row, equal on every worker of a run.
///
/// Rows are told apart by digest alone: at 10^12 rows the odds of one collision are 10^-15.
pub fn digest<D: Hash>(row: &D) -> u128 {
    let mut hasher = Xxh3Default::new();
    row.hash(&mut hasher);
    hasher.digest128()
}

/// The 64-bit hash by which data is placed on workers.
pub fn place<K: Hash + ?Sized>(key: &K) -> u64 {
    let mut hasher = Xxh3Default::new();
    key.hash(&mut hasher);
    hasher.finish()
}

/// The same for texts, equal for texts that differ only in case.
pub fn place_any_case(text: &str) -> u64 {
    let as_is = text.is_ascii() && !text.bytes().any(|byte| byte.is_ascii_uppercase());
    match as_is {
        true => place(text),
        false => place(text.to_lowercase().as_str()),
    }
}

/// Microseconds since 1970, in UTC.
#[derive(
    Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, Deserialize,
)]
pub struct Timestamp(pub i64);

/// A confidence in parts per million: an integer, because floats have no total order and would
/// not cancel. Tables show it as a number out of 100.
#[derive(
    Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, Deserialize,
)]
pub struct Confidence(pub u32);

impl Confidence {
    /// The confidence as a number out of 100.
    pub fn points(self) -> f64 {
        f64::from(self.0) / PARTS_PER_POINT
    }
}

/// Where a row was read: `topic/partition/offset`, or the path of a file.
///
/// The offset is kept apart: without it most such texts are short enough to stand in the row itself.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, Deserialize)]
pub struct Origin {
    name: Text,
    offset: Option<u64>,
}

impl Origin {
    /// A message of a partition, or a file, which has no offset.
    pub fn new(name: &str, offset: Option<u64>) -> Self {
        let name = name.into();
        Self { name, offset }
    }
}

impl From<&str> for Origin {
    fn from(text: &str) -> Self {
        let (name, offset) = parted(text);
        Self::new(name, offset)
    }
}

/// The parts of the text that stands for an [`Origin`].
pub(crate) fn parted(text: &str) -> (&str, Option<u64>) {
    let apart = text.rsplit_once('/');
    let apart = apart.and_then(|(name, offset)| Some((name, Some(plain_number(offset)?))));
    apart.unwrap_or((text, None))
}

/// A number that is written as this text and in no other way.
fn plain_number(text: &str) -> Option<u64> {
    let plain =
        text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    plain.then(|| text.parse().ok())?
}

impl fmt::Display for Origin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.offset {
            Some(offset) => write!(formatter, "{}/{offset}", self.name),
            None => formatter.write_str(&self.name),
        }
    }
}

/// Bytes that were not understood, kept as they came.
pub type Bytes = Arc<[u8]>;

/// A type that can stand in a column of a relation.
pub trait Column: Sized {
    /// Whether the column may hold nulls.
    const NULLABLE: bool = false;

    /// The Arrow type of the column.
    fn data_type() -> DataType;

    /// The column's declaration.
    fn field(name: &str) -> Field {
        Field::new(name, Self::data_type(), Self::NULLABLE)
    }

    /// The column's values in order.
    fn write<'a>(values: impl Iterator<Item = &'a Self>) -> ArrayRef
    where
        Self: 'a;

    /// The values of an array, or `None` if it has another type.
    fn read(array: &dyn Array) -> Option<Vec<Self>>;
}

impl Column for Text {
    fn data_type() -> DataType {
        DataType::Utf8
    }

    fn write<'a>(values: impl Iterator<Item = &'a Self>) -> ArrayRef {
        Arc::new(StringArray::from_iter_values(values))
    }

    fn read(array: &dyn Array) -> Option<Vec<Self>> {
        let array = array.as_any().downcast_ref::<StringArray>()?;
        Some(
            array
                .iter()
                .map(|text| text.unwrap_or_default().into())
                .collect(),
        )
    }
}

impl Column for Origin {
    fn data_type() -> DataType {
        DataType::Utf8
    }

    fn write<'a>(values: impl Iterator<Item = &'a Self>) -> ArrayRef {
        Arc::new(StringArray::from_iter_values(values.map(Self::to_string)))
    }

    fn read(array: &dyn Array) -> Option<Vec<Self>> {
        let array = array.as_any().downcast_ref::<StringArray>()?;
        Some(
            array
                .iter()
                .map(|text| text.unwrap_or_default().into())
                .collect(),
        )
    }
}

impl Column for Option<Text> {
    const NULLABLE: bool = true;

    fn data_type() -> DataType {
        DataType::Utf8
    }

    fn write<'a>(values: impl Iterator<Item = &'a Self>) -> ArrayRef {
        Arc::new(values.map(Option::as_deref).collect::<StringArray>())
    }

    fn read(array: &dyn Array) -> Option<Vec<Self>> {
        let array = array.as_any().downcast_ref::<StringArray>()?;
        Some(array.iter().map(|text| text.map(Text::from)).collect())
    }
}

/// Further columns of a row, as [`crate::envelope::further`] writes them: in tables and queries each is a column
/// of its own, which is what the mark [`FURTHER`] asks for.
#[derive(Clone, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, Deserialize)]
pub struct Further(pub Option<Text>);

/// The mark, in a field's metadata, of a column that holds others: objects of JSON with texts by name.
pub const FURTHER: &str = "assay.further";

impl Column for Further {
    const NULLABLE: bool = true;

    fn data_type() -> DataType {
        <Option<Text>>::data_type()
    }

    fn field(name: &str) -> Field {
        let mark = [(FURTHER.to_owned(), String::new())];
        Field::new(name, Self::data_type(), true).with_metadata(mark.into())
    }

    fn write<'a>(values: impl Iterator<Item = &'a Self>) -> ArrayRef {
        <Option<Text>>::write(values.map(|further| &further.0))
    }

    fn read(array: &dyn Array) -> Option<Vec<Self>> {
        let texts = <Option<Text>>::read(array)?;
        Some(texts.into_iter().map(Self).collect())
    }
}

impl Column for i64 {
    fn data_type() -> DataType {
        DataType::Int64
    }

    fn write<'a>(values: impl Iterator<Item = &'a Self>) -> ArrayRef {
        Arc::new(Int64Array::from_iter_values(values.copied()))
    }

    fn read(array: &dyn Array) -> Option<Vec<Self>> {
        let array = array.as_any().downcast_ref::<Int64Array>()?;
        Some(array.values().to_vec())
    }
}

impl Column for Timestamp {
    fn data_type() -> DataType {
        DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
    }

    fn write<'a>(values: impl Iterator<Item = &'a Self>) -> ArrayRef {
        let array = TimestampMicrosecondArray::from_iter_values(values.map(|at| at.0));
        Arc::new(array.with_timezone("UTC"))
    }

    fn read(array: &dyn Array) -> Option<Vec<Self>> {
        let array = array.as_any().downcast_ref::<TimestampMicrosecondArray>()?;
        Some(array.values().iter().copied().map(Timestamp).collect())
    }
}

/// How many parts of [`Confidence`] make one point out of 100.
const PARTS_PER_POINT: f64 = 10_000.0;

impl Column for Confidence {
    fn data_type() -> DataType {
        DataType::Float64
    }

    fn write<'a>(values: impl Iterator<Item = &'a Self>) -> ArrayRef {
        Arc::new(Float64Array::from_iter_values(
            values.map(|confidence| confidence.points()),
        ))
    }

    fn read(array: &dyn Array) -> Option<Vec<Self>> {
        let array = array.as_any().downcast_ref::<Float64Array>()?;
        let parts = |points: &f64| Confidence((points * PARTS_PER_POINT).round() as u32);
        Some(array.values().iter().map(parts).collect())
    }
}

impl Column for Bytes {
    fn data_type() -> DataType {
        DataType::Binary
    }

    fn write<'a>(values: impl Iterator<Item = &'a Self>) -> ArrayRef {
        Arc::new(BinaryArray::from_iter_values(values))
    }

    fn read(array: &dyn Array) -> Option<Vec<Self>> {
        let array = array.as_any().downcast_ref::<BinaryArray>()?;
        Some(
            array
                .iter()
                .map(|bytes| bytes.unwrap_or_default().into())
                .collect(),
        )
    }
}

/// The values of the named column of a batch.
///
/// # Errors
/// If the column is absent or has another type.
pub fn read_column<C: Column>(batch: &RecordBatch, name: &str) -> Result<Vec<C>, String> {
    let column = batch
        .column_by_name(name)
        .ok_or_else(|| format!("column \"{name}\" is missing"))?;
    C::read(column).ok_or_else(|| {
        format!(
            "column \"{name}\" has type {}, not {}",
            column.data_type(),
            C::data_type()
        )
    })
}

/// A batch of some columns of a relation, as they stand in its schema.
///
/// # Panics
/// If the arrays are not those columns, or not of so many rows.
pub fn batch_of<R: Record>(rows: usize, columns: &[usize], arrays: Vec<ArrayRef>) -> RecordBatch {
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    let schema = R::schema()
        .project(columns)
        .expect("columns are of the schema");
    RecordBatch::try_new_with_options(schema.into(), arrays, &options)
        .expect("a row's columns match its schema")
}

/// A shared row: what collections carry, so that a row is stored once however many operators
/// remember it.
impl<R: Record + Sync> Record for Arc<R> {
    const RELATION: &'static str = R::RELATION;
    const LOOK_UPS: &'static [&'static str] = R::LOOK_UPS;

    fn look_up(&self, look_up: usize) -> Text {
        R::look_up(self, look_up)
    }

    fn schema() -> SchemaRef {
        R::schema()
    }

    fn columns(rows: &[&Self], columns: &[usize]) -> RecordBatch {
        let rows: Vec<&R> = rows.iter().map(|row| &***row).collect();
        R::columns(&rows, columns)
    }

    fn from_batch(batch: &RecordBatch) -> Result<Vec<Self>, String> {
        Ok(R::from_batch(batch)?.into_iter().map(Arc::new).collect())
    }
}

/// Declares a relation's row type: `record! { "name"; pub struct Row { key: Text, ... } }`.
///
/// The first field is the key by which rows are looked up; `record! { "name", by other; ... }` has them
/// looked up by that column too. `record! { "name", by other; pub struct Row on Base as base { ... } }` declares a row
/// that adds columns to those of another, whose row it shares in its field `base` and whose fields are its own.
#[macro_export]
macro_rules! record {
    (
        $relation:literal, by $by:ident;
        $(#[$meta:meta])*
        $vis:vis struct $row:ident on $base_type:ident as $base:ident {
            $( $(#[$field_meta:meta])* $field:ident : $type:ty, )*
        }
    ) => {
        $(#[$meta])*
        #[derive(
            Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, serde::Serialize, serde::Deserialize,
        )]
        $vis struct $row {
            /// The row whose columns come first.
            $vis $base: std::sync::Arc<$base_type>,
            $( $(#[$field_meta])* $vis $field: $type, )*
        }

        impl std::ops::Deref for $row {
            type Target = $base_type;

            fn deref(&self) -> &$base_type {
                &self.$base
            }
        }

        impl $crate::record::Record for $row {
            const RELATION: &'static str = $relation;

            const LOOK_UPS: &'static [&'static str] =
                &[<$base_type as $crate::record::Record>::LOOK_UPS[0], stringify!($by)];

            fn look_up(&self, look_up: usize) -> $crate::change::Text {
                match look_up {
                    0 => self.$base.look_up(0),
                    _ => self.$by.clone(),
                }
            }

            fn schema() -> arrow::datatypes::SchemaRef {
                use $crate::record::Column;
                let base = $base_type::schema();
                let own = [$( <$type>::field(stringify!($field)).into(), )*];
                let fields = base.fields().iter().cloned().chain(own);
                std::sync::Arc::new(arrow::datatypes::Schema::new(fields.collect::<Vec<_>>()))
            }

            fn columns(rows: &[&Self], columns: &[usize]) -> arrow::array::RecordBatch {
                use arrow::array::ArrayRef;
                use $crate::record::Column;
                let bases: Vec<&$base_type> = rows.iter().map(|row| &*row.$base).collect();
                let first = $base_type::schema().fields().len();
                let own: &[fn(&[&Self]) -> ArrayRef] =
                    &[$( |rows| <$type>::write(rows.iter().map(|row| &row.$field)), )*];
                let array = |column: &usize| match column.checked_sub(first) {
                    None => ArrayRef::clone($base_type::columns(&bases, &[*column]).column(0)),
                    Some(own_column) => own[own_column](rows),
                };
                let arrays = columns.iter().map(array).collect();
                $crate::record::batch_of::<Self>(rows.len(), columns, arrays)
            }

            fn from_batch(batch: &arrow::array::RecordBatch) -> Result<Vec<Self>, String> {
                use $crate::record::read_column;
                let bases = $base_type::from_batch(batch)?;
                $( let mut $field = read_column::<$type>(batch, stringify!($field))?.into_iter(); )*
                let rows = bases.into_iter().map(|base| {
                    Some(Self { $base: base.into(), $( $field: $field.next()?, )* })
                });
                rows.collect::<Option<_>>().ok_or_else(|| "columns differ in length".to_owned())
            }
        }
    };
    (
        $relation:literal $(, by $by:ident)?;
        $(#[$meta:meta])*
        $vis:vis struct $row:ident {
            $(#[$first_meta:meta])* $first:ident : $first_type:ty,
            $( $(#[$field_meta:meta])* $field:ident : $type:ty, )*
        }
    ) => {
        $(#[$meta])*
        #[derive(
            Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, serde::Serialize, serde::Deserialize,
        )]
        $vis struct $row {
            $(#[$first_meta])* $vis $first: $first_type,
            $( $(#[$field_meta])* $vis $field: $type, )*
        }

        impl $crate::record::Record for $row {
            const RELATION: &'static str = $relation;

            const LOOK_UPS: &'static [&'static str] =
                &[stringify!($first), $( stringify!($by), )?];

            fn look_up(&self, look_up: usize) -> $crate::change::Text {
                [&self.$first, $( &self.$by, )?][look_up].clone()
            }

            fn schema() -> arrow::datatypes::SchemaRef {
                use $crate::record::Column;
                std::sync::Arc::new(arrow::datatypes::Schema::new(vec![
                    <$first_type>::field(stringify!($first)),
                    $( <$type>::field(stringify!($field)), )*
                ]))
            }

            fn columns(rows: &[&Self], columns: &[usize]) -> arrow::array::RecordBatch {
                use arrow::array::ArrayRef;
                use $crate::record::Column;
                let writers: &[fn(&[&Self]) -> ArrayRef] = &[
                    |rows| <$first_type>::write(rows.iter().map(|row| &row.$first)),
                    $( |rows| <$type>::write(rows.iter().map(|row| &row.$field)), )*
                ];
                let arrays = columns.iter().map(|column| writers[*column](rows)).collect();
                $crate::record::batch_of::<Self>(rows.len(), columns, arrays)
            }

            fn from_batch(batch: &arrow::array::RecordBatch) -> Result<Vec<Self>, String> {
                use $crate::record::read_column;
                let first = read_column::<$first_type>(batch, stringify!($first))?;
                $( let mut $field = read_column::<$type>(batch, stringify!($field))?.into_iter(); )*
                let rows = first.into_iter().map(|first| {
                    Some(Self { $first: first, $( $field: $field.next()?, )* })
                });
                rows.collect::<Option<_>>().ok_or_else(|| "columns differ in length".to_owned())
            }
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    record! { "samples";
        /// One of each column type.
        struct Sample {
            key: Text,
            note: Option<Text>,
            count: i64,
            at: Timestamp,
            confidence: Confidence,
            raw: Bytes,
        }
    }

    fn sample(key: &str) -> Sample {
        Sample {
            key: key.into(),
            note: (key.len().is_multiple_of(2)).then(|| "even".into()),
            count: -7,
            at: Timestamp(1_239_085_185_000_000),
            confidence: Confidence(987_654),
            raw: [0xff, 0x00].as_slice().into(),
        }
    }

    #[test]
    fn rows_survive_the_way_through_arrow() {
        let rows = vec![sample("a"), sample("ab"), sample("")];
        assert_eq!(Sample::from_batch(&Sample::to_batch(&rows)), Ok(rows));
    }

    #[test]
    fn origins_are_told_as_they_were() {
        for text in [
            "tweets.public.tweets/0/4711",
            "t/0/0",
            "t/0/007",
            "t/0/-7",
            "t/0/+7",
            "t/0/",
            "/",
            "",
            "7",
            "a/18446744073709551615",
            "a/18446744073709551616",
            "folder/file.jsonl",
        ] {
            let origin = Origin::from(text);
            assert_eq!(origin.to_string(), text);
            assert_eq!(
                Origin::read(&Origin::write([&origin].into_iter())),
                Some(vec![origin])
            );
        }
    }

    #[test]
    fn every_confidence_survives_the_way_through_a_float() {
        let all: Vec<_> = (0..=1_000_000).map(Confidence).collect();
        assert_eq!(Confidence::read(&Confidence::write(all.iter())), Some(all));
    }

    #[test]
    fn a_missing_column_is_named() {
        let batch = Sample::to_batch(&[sample("a")]).project(&[0]).unwrap();
        assert_eq!(
            Sample::from_batch(&batch),
            Err("column \"note\" is missing".to_owned())
        );
    }
}
