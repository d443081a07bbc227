//! What a message says about a row: the fields of its new state, that it is gone, or neither.
//!
//! JSON is read once, from the bytes, without building a tree: only the fields that a row type
//! names are kept, everything else (schemas, `before`, `source`) is skipped over. Any well-formed
//! JSON yields fields; whether their types suit is for the row to say, so that a reject can name
//! the field instead of a byte position.

use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::change::Text;
use crate::record::Timestamp;
use crate::reject::{DECODE, Reject};

/// A message as its source delivered it.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    /// The message's key: the primary key in Kafka, the path of a file.
    pub key: Option<&'a [u8]>,
    /// The message's value; none deletes the row.
    pub value: Option<&'a [u8]>,
    /// Where the message came from, as rejects and rows tell it.
    pub position: &'a str,
    /// When it was read.
    pub received: Timestamp,
}

/// How messages say what changed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Envelope {
    /// Debezium's JSON, with or without the schema part; the key is JSON too.
    Debezium,
    /// The value is the row itself, no value deletes it; the key is plain text.
    Upsert,
}

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
    /// Anything else, by name: "an array".
    Other(&'static str),
}

impl Field<'_> {
    fn describe(&self) -> &'static str {
        match self {
            Field::Missing => "nothing",
            Field::Null => "null",
            Field::Text(_) => "a string",
            Field::Integer(_) => "a whole number",
            Field::Other(name) => name,
        }
    }
}

/// A row of a source, made from the fields it names.
pub trait SourceRow: Sized {
    /// The names of the fields that the row is made from.
    const FIELDS: &'static [&'static str];

    /// The row with these fields, in the order of [`SourceRow::FIELDS`].
    ///
    /// # Errors
    /// Says which field cannot be used and why.
    fn from_fields(key: Text, fields: &[Field<'_>], message: &Message<'_>) -> Result<Self, String>;
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

/// What a message does to its source's rows.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Decoded<R> {
    /// The row of this key is now this, or cannot be used, or is gone.
    Change(Text, Option<Result<R, Reject>>),
    /// The message says nothing about rows.
    Nothing,
}

/// Decodes one message; what cannot be used becomes a reject in the place of its row.
pub fn decode<R: SourceRow>(envelope: Envelope, message: &Message<'_>) -> Decoded<R> {
    let key = match read_key(envelope, message) {
        Ok(key) => key,
        Err(reason) => return refuse(None, reason, message),
    };
    let Some(value) = message.value else {
        // A tombstone without a key marks the end of a row that never had one.
        return key.map_or(Decoded::Nothing, |key| Decoded::Change(key, None));
    };
    let state = match envelope {
        Envelope::Debezium => {
            read_json(value, EnvelopeSeed(R::FIELDS)).and_then(DebeziumEvent::state)
        }
        Envelope::Upsert => read_json(value, RowSeed(R::FIELDS)),
    };
    match (key, state) {
        (key, Err(reason)) => refuse(key, reason, message),
        (None, Ok(_)) => refuse(None, "the message has no key".to_owned(), message),
        (Some(key), Ok(None)) => Decoded::Change(key, None),
        (Some(key), Ok(Some(fields))) => match R::from_fields(key.clone(), &fields, message) {
            Ok(row) => Decoded::Change(key, Some(Ok(row))),
            Err(reason) => refuse(Some(key), reason, message),
        },
    }
}

fn refuse<R>(key: Option<Text>, reason: String, message: &Message<'_>) -> Decoded<R> {
    let reject = Reject {
        position: message.position.into(),
        key,
        stage: DECODE.into(),
        reason: reason.into(),
        raw: message.value.or(message.key).unwrap_or_default().into(),
        first_seen: message.received,
    };
    Decoded::Change(reject.source_key(), Some(Err(reject)))
}

/// The key that rows are told apart by; a JSON object of one column is that column's value.
fn read_key(envelope: Envelope, message: &Message<'_>) -> Result<Option<Text>, String> {
    let Some(bytes) = message.key else {
        return Ok(None);
    };
    let text = std::str::from_utf8(bytes).map_err(|_| "the key is not UTF-8".to_owned())?;
    if envelope == Envelope::Upsert {
        return Ok(Some(text.into()));
    }
    let mut json = serde_json::Deserializer::from_str(text);
    let parsed = KeySeed
        .deserialize(&mut json)
        .and_then(|key| json.end().map(|()| key));
    match parsed {
        Ok(key) => Ok(key.map(Text::from)),
        // Keys of connectors without a JSON converter are plain strings, and may begin as JSON does.
        Err(_) => Ok(Some(text.into())),
    }
}

fn read_json<'a, S: DeserializeSeed<'a>>(bytes: &'a [u8], seed: S) -> Result<S::Value, String> {
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let value = seed
        .deserialize(&mut json)
        .map_err(|error| not_json(bytes, &error))?;
    json.end().map_err(|error| not_json(bytes, &error))?;
    Ok(value)
}

fn not_json(bytes: &[u8], error: &serde_json::Error) -> String {
    match std::str::from_utf8(bytes) {
        Ok(_) => format!("not a JSON object: {error}"),
        Err(at) => format!("not UTF-8 at byte {}", at.valid_up_to()),
    }
}

/// The parts of a Debezium event that say what its row is now.
#[derive(Default)]
struct DebeziumEvent<'a> {
    op: Option<Cow<'a, str>>,
    after: Option<Vec<Field<'a>>>,
}

impl<'a> DebeziumEvent<'a> {
    /// The fields of the row's new state; `before` is never consulted, since under the default
    /// replica identity it is null or holds zero values.
    fn state(self) -> Result<Option<Vec<Field<'a>>>, String> {
        match (self.op.as_deref(), self.after) {
            (Some("c" | "r" | "u"), Some(after)) => Ok(Some(after)),
            (Some("c" | "r" | "u"), None) => Err("field \"after\": expected an object".to_owned()),
            (Some("d"), _) => Ok(None),
            (Some(op), _) => Err(format!("field \"op\": unknown operation \"{op}\"")),
            (None, _) => Err("field \"op\": missing; is this a Debezium event?".to_owned()),
        }
    }
}

struct EnvelopeSeed(&'static [&'static str]);

impl<'de> DeserializeSeed<'de> for EnvelopeSeed {
    type Value = DebeziumEvent<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for EnvelopeSeed {
    type Value = DebeziumEvent<'de>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a Debezium event")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut event = DebeziumEvent::default();
        while let Some(name) = map.next_key_seed(NameSeed)? {
            match name.as_ref() {
                "payload" => event = map.next_value_seed(EnvelopeSeed(self.0))?,
                "after" => event.after = map.next_value_seed(RowSeed(self.0))?,
                "op" => {
                    event.op = match map.next_value_seed(FieldSeed)? {
                        Field::Text(op) => Some(op),
                        _ => None,
                    }
                }
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(event)
    }
}

/// Reads a map's name without copying it, unless it holds escapes.
struct NameSeed;

impl<'de> DeserializeSeed<'de> for NameSeed {
    type Value = Cow<'de, str>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for NameSeed {
    type Value = Cow<'de, str>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a field name")
    }

    fn visit_borrowed_str<E: Error>(self, name: &'de str) -> Result<Self::Value, E> {
        Ok(Cow::Borrowed(name))
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<Self::Value, E> {
        Ok(Cow::Owned(name.to_owned()))
    }
}

/// Reads an object's wanted fields, in the order of their names; null yields none.
struct RowSeed(&'static [&'static str]);

impl<'de> DeserializeSeed<'de> for RowSeed {
    type Value = Option<Vec<Field<'de>>>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for RowSeed {
    type Value = Option<Vec<Field<'de>>>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut fields = vec![Field::Missing; self.0.len()];
        while let Some(name) = map.next_key_seed(NameSeed)? {
            match self.0.iter().position(|wanted| *wanted == name) {
                Some(index) => fields[index] = map.next_value_seed(FieldSeed)?,
                None => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(Some(fields))
    }
}

/// Reads any value as a field.
struct FieldSeed;

impl<'de> DeserializeSeed<'de> for FieldSeed {
    type Value = Field<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for FieldSeed {
    type Value = Field<'de>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a value")
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(Field::Null)
    }

    fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Field::Text(Cow::Borrowed(text)))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Field::Text(Cow::Owned(text.to_owned())))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Self::Value, E> {
        Ok(Field::Integer(number))
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Self::Value, E> {
        Ok(i64::try_from(number).map_or(Field::Other("a number beyond 64 bits"), Field::Integer))
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<Self::Value, E> {
        Ok(Field::Other("a fraction"))
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<Self::Value, E> {
        Ok(Field::Other("a boolean"))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Field::Other("an array"))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Field::Other("an object"))
    }
}

/// Reads a JSON key: a scalar, or an object of key columns, or either within a `payload`.
struct KeySeed;

impl<'de> DeserializeSeed<'de> for KeySeed {
    type Value = Option<String>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for KeySeed {
    type Value = Option<String>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a key")
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Some(text.to_owned()))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Self::Value, E> {
        Ok(Some(number.to_string()))
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Self::Value, E> {
        Ok(Some(number.to_string()))
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Self::Value, E> {
        Ok(Some(value.to_string()))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut columns: Vec<(Cow<'de, str>, serde_json::Value)> = Vec::new();
        while let Some(name) = map.next_key_seed(NameSeed)? {
            match name.as_ref() {
                "schema" => drop(map.next_value::<IgnoredAny>()?),
                "payload" => return finish(map.next_value_seed(KeySeed)?, map),
                _ => columns.push((name, map.next_value()?)),
            }
        }
        match columns.as_slice() {
            [] => Ok(None),
            [(_, serde_json::Value::String(text))] => Ok(Some(text.clone())),
            [(_, value)] => Ok(Some(value.to_string())),
            // The order of columns is the connector's, and the same for every event of a table.
            _ => {
                let object: serde_json::Map<_, _> = columns
                    .into_iter()
                    .map(|(name, value)| (name.into_owned(), value))
                    .collect();
                Ok(Some(serde_json::Value::Object(object).to_string()))
            }
        }
    }
}

/// Passes over what follows in a map whose answer is known.
fn finish<'de, T, A: MapAccess<'de>>(value: T, mut map: A) -> Result<T, A::Error> {
    while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq)]
    struct Note {
        key: Text,
        text: Text,
    }

    impl SourceRow for Note {
        const FIELDS: &'static [&'static str] = &["text"];

        fn from_fields(key: Text, fields: &[Field<'_>], _: &Message<'_>) -> Result<Self, String> {
            Ok(Note {
                key,
                text: required_text("text", &fields[0])?,
            })
        }
    }

    fn decode_note(envelope: Envelope, key: Option<&str>, value: Option<&[u8]>) -> Decoded<Note> {
        let message = Message {
            key: key.map(str::as_bytes),
            value,
            position: "notes/0/7",
            received: Timestamp(5),
        };
        decode(envelope, &message)
    }

    fn debezium(key: &str, value: &str) -> Decoded<Note> {
        decode_note(Envelope::Debezium, Some(key), Some(value.as_bytes()))
    }

    fn note(key: &str, text: &str) -> Decoded<Note> {
        let row = Note {
            key: key.into(),
            text: text.into(),
        };
        Decoded::Change(key.into(), Some(Ok(row)))
    }

    fn reason(decoded: Decoded<Note>) -> String {
        match decoded {
            Decoded::Change(_, Some(Err(reject))) => reject.reason.to_string(),
            other => panic!("expected a reject, found {other:?}"),
        }
    }

    #[test]
    fn events_with_and_without_the_schema_part_are_equal() {
        let event = r#"{"before":null,"after":{"id":1,"text":"caf\u00e9"},"source":{"lsn":[1,{}]},"op":"c"}"#;
        let wrapped = format!(r#"{{"schema":{{"type":"struct"}},"payload":{event}}}"#);
        assert_eq!(debezium(r#"{"id":1}"#, event), note("1", "café"));
        assert_eq!(
            debezium(r#"{"schema":{},"payload":{"id":1}}"#, &wrapped),
            note("1", "café")
        );
    }

    #[test]
    fn deletes_and_tombstones_remove_the_row_of_their_key() {
        let gone = Decoded::Change("1".into(), None);
        assert_eq!(
            debezium(
                r#"{"id":1}"#,
                r#"{"before":{"text":""},"after":null,"op":"d"}"#
            ),
            gone
        );
        assert_eq!(
            decode_note(Envelope::Debezium, Some(r#"{"id":1}"#), None),
            gone
        );
        assert_eq!(
            decode_note(Envelope::Debezium, None, None),
            Decoded::Nothing
        );
    }

    #[test]
    fn keys_of_one_column_are_its_value_and_of_several_an_object() {
        let text = |key| match debezium(key, r#"{"op":"d"}"#) {
            Decoded::Change(key, _) => key.to_string(),
            Decoded::Nothing => "nothing".to_owned(),
        };
        assert_eq!(text(r#"{"id":"a b"}"#), "a b");
        assert_eq!(text("17"), "17");
        assert_eq!(text("plain"), "plain");
        assert_eq!(text("2009-04-06"), "2009-04-06");
        assert_eq!(text(r#"{"a":1,"b":"x"}"#), r#"{"a":1,"b":"x"}"#);
        assert_eq!(
            decode_note(Envelope::Upsert, Some("17"), None),
            Decoded::Change("17".into(), None)
        );
    }

    #[test]
    fn what_cannot_be_used_says_why_and_keeps_its_place() {
        let event = |after: &str| debezium("1", &format!(r#"{{"op":"u","after":{after}}}"#));
        assert_eq!(
            reason(event("{}")),
            "field \"text\": expected a string, found nothing"
        );
        assert_eq!(
            reason(event(r#"{"text":5}"#)),
            "field \"text\": expected a string, found a whole number"
        );
        assert_eq!(
            reason(event(r#"{"text":[{}]}"#)),
            "field \"text\": expected a string, found an array"
        );
        assert_eq!(reason(event("null")), "field \"after\": expected an object");
        assert_eq!(
            reason(debezium("1", r#"{"op":"x"}"#)),
            "field \"op\": unknown operation \"x\""
        );
        assert_eq!(
            reason(debezium("1", "{}")),
            "field \"op\": missing; is this a Debezium event?"
        );
        assert!(reason(debezium("1", "{\"op\":")).starts_with("not a JSON object: "));
        assert!(reason(debezium("1", "[]")).starts_with("not a JSON object: "));
        let invalid = decode_note(Envelope::Upsert, Some("1"), Some(b"{\"text\":\"\xff\"}"));
        assert_eq!(reason(invalid), "not UTF-8 at byte 9");
        let keyless = decode_note(
            Envelope::Debezium,
            None,
            Some(b"{\"op\":\"c\",\"after\":{}}"),
        );
        assert_eq!(reason(keyless), "the message has no key");
    }

    #[test]
    fn a_message_without_a_key_is_rejected_under_its_position() {
        let message = Message {
            key: Some(b"\xff"),
            value: None,
            position: "t/0/1",
            received: Timestamp(0),
        };
        let Decoded::Change(key, Some(Err(reject))) = decode::<Note>(Envelope::Debezium, &message)
        else {
            panic!("expected a reject");
        };
        assert_eq!(
            (&*key, &*reject.reason, &*reject.raw),
            ("t/0/1", "the key is not UTF-8", &b"\xff"[..])
        );
    }
}
