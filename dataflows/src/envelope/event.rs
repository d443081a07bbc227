//! The parts of a message that are wanted, read from whatever it is written in.
//!
//! Each part has a seed, which picks from a map what it knows by name and passes over the rest.

use std::borrow::Cow;
use std::cell::Cell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::Field;

/// The parts of a Debezium event that say what its row is now.
#[derive(Default)]
pub(super) struct DebeziumEvent<'a> {
    pub(super) op: Option<Cow<'a, str>>,
    pub(super) before: Option<Vec<Field<'a>>>,
    pub(super) after: Option<Vec<Field<'a>>>,
    pub(super) order: EventOrder<'a>,
    /// What is told of its transaction, if that is wanted.
    pub(super) transaction: Option<Value>,
}

/// Where an event stands in its database's log.
#[derive(Default)]
pub(super) struct EventOrder<'a> {
    /// The connector's name for its database.
    pub(super) connector: Cow<'a, str>,
    /// The last commit before the event's own transaction; events come in this order first.
    pub(super) commit: Option<i64>,
    /// The event's place; events of a transaction come in this order. 0 if not known.
    pub(super) lsn: i64,
    /// When its transaction was committed, in milliseconds since 1970.
    pub(super) committed_ms: i64,
}

/// The fields of a row as it was, and as it is.
pub(super) type BeforeAndAfter<'a> = (Option<Vec<Field<'a>>>, Option<Vec<Field<'a>>>);

impl<'a> DebeziumEvent<'a> {
    /// The fields of the row as it was and as it is. What it was is of use for nothing but its key:
    /// under the default replica identity the rest is null or holds zero values.
    pub(super) fn rows(&mut self) -> Result<BeforeAndAfter<'a>, String> {
        match (self.op.as_deref(), self.after.take()) {
            (Some("c" | "r" | "u"), Some(after)) => Ok((self.before.take(), Some(after))),
            (Some("c" | "r" | "u"), None) => Err("field \"after\": expected an object".to_owned()),
            (Some("d" | "t" | "m"), _) => Ok((self.before.take(), None)),
            (Some(op), _) => Err(format!("field \"op\": unknown operation \"{op}\"")),
            (None, _) => Err("field \"op\": missing; is this a Debezium event?".to_owned()),
        }
    }
}

#[derive(Clone, Copy)]
pub(super) struct EnvelopeSeed<'n> {
    pub(super) names: &'n [String],
    /// Whether the row as it was is wanted.
    pub(super) before: bool,
    /// Whether it is wanted where the event stands in its transaction.
    pub(super) transaction: bool,
    /// Where a digest of the names of the row's columns goes.
    pub(super) columns: &'n Cell<u64>,
}

impl<'de> DeserializeSeed<'de> for EnvelopeSeed<'_> {
    type Value = DebeziumEvent<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for EnvelopeSeed<'_> {
    type Value = DebeziumEvent<'de>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a Debezium event")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut event = DebeziumEvent::default();
        while let Some(name) = map.next_key_seed(NameSeed)? {
            match name.as_ref() {
                "payload" => event = map.next_value_seed(self)?,
                "after" => {
                    let (names, columns) = (self.names, Some(self.columns));
                    event.after = map.next_value_seed(RowSeed { names, columns })?;
                }
                "before" if self.before => {
                    event.before = map.next_value_seed(RowSeed::of(self.names))?;
                }
                "transaction" if self.transaction => event.transaction = Some(map.next_value()?),
                "source" => event.order = map.next_value_seed(OrderSeed)?,
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

/// Reads an event's place in the log from what it tells of its source.
struct OrderSeed;

impl<'de> DeserializeSeed<'de> for OrderSeed {
    type Value = EventOrder<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for OrderSeed {
    type Value = EventOrder<'de>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("what is told of an event's source")
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(EventOrder::default())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut order = EventOrder::default();
        while let Some(name) = map.next_key_seed(NameSeed)? {
            match name.as_ref() {
                "name" => {
                    if let Field::Text(name) = map.next_value_seed(FieldSeed)? {
                        order.connector = name;
                    }
                }
                "lsn" => order.lsn = number(map.next_value_seed(FieldSeed)?),
                "ts_ms" => order.committed_ms = number(map.next_value_seed(FieldSeed)?),
                "sequence" => {
                    if let Field::Text(sequence) = map.next_value_seed(FieldSeed)? {
                        order.commit = commit_of(&sequence);
                    }
                }
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(order)
    }
}

fn number(field: Field<'_>) -> i64 {
    match field {
        Field::Integer(number) => number,
        _ => 0,
    }
}

/// The first of PostgreSQL's two numbers, of `["24023119","24023128"]`; 0 where it is null.
fn commit_of(sequence: &str) -> Option<i64> {
    let first = sequence.strip_prefix('[')?.split(',').next()?;
    match first {
        "null" => Some(0),
        quoted => quoted.trim_matches('"').parse().ok(),
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

/// Reads an object's wanted fields, in the order of their names; null yields none. What follows a
/// schema is the object itself, as converters write it that tell schemas.
#[derive(Clone, Copy)]
pub(super) struct RowSeed<'n> {
    pub(super) names: &'n [String],
    /// Where a digest of the names of all columns goes, wanted or not, in their order.
    pub(super) columns: Option<&'n Cell<u64>>,
}

impl<'n> RowSeed<'n> {
    /// Wants these fields and nothing else.
    pub(super) fn of(names: &'n [String]) -> Self {
        let columns = None;
        Self { names, columns }
    }
}

impl<'de> DeserializeSeed<'de> for RowSeed<'_> {
    type Value = Option<Vec<Field<'de>>>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for RowSeed<'_> {
    type Value = Option<Vec<Field<'de>>>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut fields = vec![Field::Missing; self.names.len()];
        let mut after_schema = false;
        let mut first = true;
        while let Some(name) = map.next_key_seed(NameSeed)? {
            if after_schema && name == "payload" {
                return finish(map.next_value_seed(self)?, map);
            }
            after_schema = std::mem::take(&mut first) && name == "schema";
            if let Some(columns) = self.columns {
                columns.set(xxh3_64_with_seed(name.as_bytes(), columns.get()));
            }
            match self.names.iter().position(|wanted| *wanted == name) {
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

    fn visit_f64<E: Error>(self, number: f64) -> Result<Self::Value, E> {
        Ok(Field::Fraction(number))
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Self::Value, E> {
        Ok(Field::Boolean(value))
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
pub(super) struct KeySeed;

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
        let mut columns: Vec<(String, Value)> = Vec::new();
        while let Some(name) = map.next_key_seed(NameSeed)? {
            match name.as_ref() {
                "schema" => drop(map.next_value::<IgnoredAny>()?),
                "payload" => return finish(map.next_value_seed(KeySeed)?, map),
                _ => columns.push((name.into_owned(), map.next_value()?)),
            }
        }
        Ok((!columns.is_empty()).then(|| key_text(columns)))
    }
}

/// Columns of a key as one text: the value of one, an object of several. The order of columns is the
/// connector's, and the same for every event of a table.
pub(super) fn key_text(mut columns: Vec<(String, Value)>) -> String {
    match columns.as_mut_slice() {
        [(_, Value::String(text))] => std::mem::take(text),
        [(_, value)] => value.to_string(),
        _ => Value::Object(columns.into_iter().collect()).to_string(),
    }
}

/// Passes over what follows in a map whose answer is known.
fn finish<'de, T, A: MapAccess<'de>>(value: T, mut map: A) -> Result<T, A::Error> {
    while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
    Ok(value)
}
