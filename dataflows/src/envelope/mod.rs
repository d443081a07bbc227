//! What a message says about a row: the fields of its new state, that it is gone, or neither.
//!
//! ```text
//!  bytes ── json, avro ──▶ event: the parts that are wanted ── decoder ──▶ changes of rows
//! ```
//!
//! A message is read once, from its bytes, without building a tree: only the fields that a row type
//! names are kept, everything else (schemas, `before`, `source`) is skipped over. Any well-formed
//! message yields fields; whether their types suit is for the row to say, so that a reject can name
//! the field instead of a byte position.

pub mod avro;
mod decoder;
mod event;
mod framing;
pub mod further;
mod meaning;
mod repetition;

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use smol_str::format_smolstr;

use crate::change::Text;
use crate::record::{Origin, Timestamp};
use crate::transactions::TransactionTopic;

pub use self::decoder::{Decoder, InTransaction, Retry, RowChange, is_lacking};
pub use self::framing::HEADERS;
use self::further::FurtherNames;

/// A message as its source delivered it.
#[derive(Clone, Copy)]
pub struct Message<'a> {
    /// The message's key: the primary key in Kafka, the path of a file.
    pub key: Option<&'a [u8]>,
    /// The message's value; none deletes the row.
    pub value: Option<&'a [u8]>,
    /// The headers, by name.
    pub headers: Headers<'a>,
    /// Where the message came from: a partition, `topic/number`, or else a file.
    pub origin: &'a str,
    /// Its offset in the partition.
    pub offset: Option<u64>,
    /// When it was read.
    pub received: Timestamp,
}

impl Message<'_> {
    /// Where the message came from, as rows tell it.
    pub fn origin(&self) -> Origin {
        Origin::new(self.origin, self.offset)
    }

    /// The same as rejects tell it.
    fn position(&self) -> Text {
        format_smolstr!("{}", self.origin())
    }

    /// The topic that the message is of; empty for a file.
    pub(crate) fn topic(&self) -> &str {
        let partition = self.offset.and_then(|_| self.origin.rsplit_once('/'));
        partition.map_or("", |(topic, _)| topic)
    }
}

/// Looks a header up. Few messages are asked for any, so that none are copied before.
pub type Headers<'a> = &'a dyn Fn(&str) -> Option<Vec<u8>>;

/// The headers of a message that has none.
pub const NO_HEADERS: Headers<'static> = &|_| None;

/// How messages say what changed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Envelope {
    /// Debezium's envelope: what was done, and the row before and after.
    Debezium,
    /// Debezium's rows alone, as its `ExtractNewRecordState` makes them; `__deleted` or no value
    /// deletes.
    Flattened,
    /// The value is the row itself, no value deletes it.
    Upsert,
    /// The value is a row, and each message another one.
    Append,
}

/// How keys and values are written.
#[derive(Clone, Debug, Default)]
pub enum Encoding {
    /// As JSON, with or without a schema part.
    #[default]
    Json,
    /// In Avro's binary form, each with the number of the schema that it was written with. Keys without
    /// such a number are read as JSON keys are.
    Avro(Arc<dyn Schemas>),
}

/// The schemas that a source's messages are written with.
pub trait Schemas: fmt::Debug + Send + Sync {
    /// The schema of this number.
    ///
    /// # Errors
    /// See [`SchemaError`].
    fn schema(&self, number: u32) -> Result<Arc<avro::Schema>, SchemaError>;
}

/// Why a schema is not to be had.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum SchemaError {
    /// There is none, or none that is understood: what was written with it is rejected.
    Unknown(String),
    /// Those who know do not answer: the message is to be tried again.
    Unavailable(String),
}

/// A message cannot be decoded yet, for this reason; nothing was made of it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NotYet(pub String);

/// What a source's messages look like, and what of them is wanted.
#[derive(Clone, Debug)]
pub struct Format {
    /// How they say what changed.
    pub envelope: Envelope,
    /// How they are written.
    pub encoding: Encoding,
    /// Whether a message's key is JSON, as Kafka's converters write it, or else plain text.
    pub json_keys: bool,
    /// The source's columns for the fields of the row, in the order of [`SourceRow::FIELDS`].
    pub columns: Vec<String>,
    /// The columns that rows are told apart by; none for the message's key.
    pub key_columns: Vec<String>,
    /// Whether rows are told apart by all that is read of them, and equal ones counted.
    pub keyless: bool,
    /// Whether there are several topics, whose keys must be told apart.
    pub several_topics: bool,
    /// What stands for a value that the source did not send because it had not changed.
    pub unavailable: String,
    /// What tells of the ends of transactions, if they are shown whole.
    pub transactions: Option<TransactionTopic>,
    /// The names that further columns cannot have, in lower case: those of the row type's own.
    pub taken: &'static [&'static str],
    /// Where the names go of columns that the row type does not ask for, if they are kept as well.
    pub further: Option<Arc<FurtherNames>>,
}

impl Format {
    /// Messages of one topic or folder whose columns are named as the row's fields.
    pub fn new<R: SourceRow>(envelope: Envelope) -> Self {
        let columns = R::FIELDS.iter().map(|name| (*name).to_owned());
        Self {
            envelope,
            encoding: Encoding::Json,
            json_keys: true,
            columns: columns.collect(),
            key_columns: Vec::new(),
            keyless: false,
            several_topics: false,
            unavailable: UNAVAILABLE.to_owned(),
            transactions: None,
            taken: R::COLUMNS,
            further: None,
        }
    }
}

/// What Debezium sends, unless told otherwise, for a large value that did not change.
pub const UNAVAILABLE: &str = "__debezium_unavailable_value";

/// The value of one field, as the JSON had it.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Field<'a> {
    /// The row does not have the field.
    #[default]
    Missing,
    /// The field is null.
    Null,
    /// A string.
    Text(Cow<'a, str>),
    /// A whole number.
    Integer(i64),
    /// Any other number.
    Fraction(f64),
    /// True or false.
    Boolean(bool),
    /// Anything else, by name: "an array".
    Other(&'static str),
}

impl Field<'_> {
    /// The field as text; nothing if it is null or missing.
    fn shown(&self) -> Option<Cow<'_, str>> {
        match self {
            Field::Missing | Field::Null => None,
            Field::Text(text) => Some(Cow::Borrowed(text)),
            Field::Integer(number) => Some(Cow::Owned(number.to_string())),
            Field::Fraction(number) => Some(Cow::Owned(number.to_string())),
            Field::Boolean(value) => Some(Cow::Owned(value.to_string())),
            Field::Other(name) => Some(Cow::Borrowed(name)),
        }
    }

    fn describe(&self) -> &'static str {
        match self {
            Field::Missing => "nothing",
            Field::Null => "null",
            Field::Text(_) => "a string",
            Field::Integer(_) => "a whole number",
            Field::Fraction(_) => "a fraction",
            Field::Boolean(_) => "a boolean",
            Field::Other(name) => name,
        }
    }
}

/// A row of a source, made from the fields it names.
pub trait SourceRow: Sized {
    /// The names of the fields that the row is made from.
    const FIELDS: &'static [&'static str];

    /// The names of the row type's own columns, which further ones cannot have.
    const COLUMNS: &'static [&'static str] = &[];

    /// The row with these fields, in the order of [`SourceRow::FIELDS`], and what further columns the source
    /// has, if they are kept (see [`further`]); `paths` tell where in the message each was looked for.
    ///
    /// # Errors
    /// Says which field cannot be used and why.
    fn from_fields(
        key: Text,
        fields: &[Field<'_>],
        further: Option<Text>,
        paths: &[String],
        message: &Message<'_>,
    ) -> Result<Self, String>;
}

/// The field's text, or `None` if it is null or missing.
///
/// # Errors
/// If the field is no string.
pub fn optional_text(name: &str, field: &Field<'_>) -> Result<Option<Text>, String> {
    match field {
        Field::Missing | Field::Null => Ok(None),
        Field::Text(text) => Ok(Some(text.as_ref().into())),
        other => Err(format!(
            "field \"{name}\": expected a string, found {}",
            other.describe()
        )),
    }
}

/// The field's text.
///
/// # Errors
/// If the field is no string, or null, or missing.
pub fn required_text(name: &str, field: &Field<'_>) -> Result<Text, String> {
    optional_text(name, field)?.ok_or_else(|| {
        format!(
            "field \"{name}\": expected a string, found {}",
            field.describe()
        )
    })
}

#[cfg(test)]
mod tests;
