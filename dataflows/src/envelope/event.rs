//! The parts of a message that are wanted, read from whatever it is written in.
//!
//! Each part has a seed, which picks from a map what it knows by name and passes over the rest.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::fmt;
use std::hash::{BuildHasher, Hash, Hasher};
use std::sync::Arc;

use foldhash::fast::FixedState;
use foldhash::{HashMap, HashMapExt};
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;
use smol_str::format_smolstr;
use xxhash_rust::xxh3::{Xxh3Default, xxh3_64};

use super::Field;
use super::further::Columns;
use super::meaning::{Meaning, Meanings, meanings};
use crate::change::Text;

/// Schema parts that are remembered; a topic has one for each change of its table.
const MOST_SCHEMAS: usize = 1_000;

/// What the names of those columns of a flattened row begin with that tell of the event.
pub(super) const OF_EVENT: &str = "__";

/// What is wanted of rows.
pub(super) struct Wanted {
    /// The fields, by name, each once.
    names: Vec<String>,
    /// From which of them on they are no columns of the row, but what a flattened row tells of its event.
    markers_from: usize,
    /// The first of them are told as fields alone, all other columns as further ones if those are wanted.
    own: usize,
    further: bool,
    /// What columns mean, by the digest of the schema that was told.
    meanings: RefCell<HashMap<u64, Arc<Meanings>>>,
}

impl Wanted {
    /// The columns of a row type, those of a key besides, and what is told of an event.
    pub(super) fn new(own: &[String], key: &[String], markers: &[&str], further: bool) -> Self {
        let mut names = own.to_vec();
        for name in key {
            if !names.contains(name) {
                names.push(name.clone());
            }
        }
        let markers_from = names.len();
        names.extend(markers.iter().map(|marker| (*marker).to_owned()));
        Self {
            names,
            markers_from,
            own: own.len(),
            further,
            meanings: RefCell::new(HashMap::new()),
        }
    }

    /// Where a field is among those that are read.
    pub(super) fn place(&self, name: &str) -> Option<usize> {
        self.names.iter().position(|wanted| wanted == name)
    }

    /// Whether a column, with its place among the fields if it is one, is told among the further ones.
    fn is_further(&self, name: &str, place: Option<usize>) -> bool {
        let flattened = self.markers_from < self.names.len();
        self.further
            && place.is_none_or(|place| place >= self.own)
            && !(flattened && name.starts_with(OF_EVENT))
    }

    /// Where the markers begin.
    pub(super) fn markers_from(&self) -> usize {
        self.markers_from
    }

    fn meanings(&self, schema: &RawValue) -> Arc<Meanings> {
        let text = schema.get();
        let mut known = self.meanings.borrow_mut();
        if known.len() > MOST_SCHEMAS {
            known.clear();
        }
        let told = known.entry(xxh3_64(text.as_bytes()));
        Arc::clone(told.or_insert_with(|| Arc::new(meanings(text))))
    }
}

/// What is read of a row.
#[derive(Clone, Debug, Default)]
pub(super) struct Row<'a> {
    /// The fields, in the order of [`Wanted`]'s names.
    pub(super) fields: Vec<Field<'a>>,
    /// Further columns that are not null.
    pub(super) further: Columns<'a>,
}

impl Row<'_> {
    /// Tells rows apart by all that was read of them.
    pub(super) fn digest(&self) -> u128 {
        let mut hasher = Xxh3Default::new();
        for field in &self.fields {
            // As bronze shows it: a number and its text are the same.
            field.shown().hash(&mut hasher);
        }
        let mut further: Vec<_> = self.further.iter().collect();
        further.sort_unstable();
        further.hash(&mut hasher);
        hasher.digest128()
    }
}

/// The parts of a Debezium event that say what its row is now.
#[derive(Default)]
pub(super) struct DebeziumEvent<'a> {
    pub(super) op: Option<Cow<'a, str>>,
    pub(super) before: Option<Row<'a>>,
    pub(super) after: Option<Row<'a>>,
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

impl<'a> DebeziumEvent<'a> {
    /// The row as it is, if there is one.
    pub(super) fn take_row(&mut self) -> Result<Option<Row<'a>>, String> {
        match (self.op.as_deref(), self.after.take()) {
            (Some("c" | "r" | "u"), Some(after)) => Ok(Some(after)),
            (Some("c" | "r" | "u"), None) => Err("field \"after\": expected an object".to_owned()),
            (Some("d" | "t" | "m"), _) => Ok(None),
            (Some(op), _) => Err(format!("field \"op\": unknown operation \"{op}\"")),
            (None, _) => Err("field \"op\": missing; is this a Debezium event?".to_owned()),
        }
    }
}

/// Reads an event into its place: it is too large to be handed from one to the next.
pub(super) struct EnvelopeSeed<'n, 'a> {
    /// What is wanted of the row as it is.
    pub(super) row: RowSeed<'n>,
    /// Whether the row as it was is wanted.
    pub(super) before: bool,
    /// Whether it is wanted where the event stands in its transaction.
    pub(super) transaction: bool,
    /// Where the event goes; it must be empty.
    pub(super) event: &'n mut DebeziumEvent<'a>,
}

impl<'de> DeserializeSeed<'de> for EnvelopeSeed<'_, 'de> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for EnvelopeSeed<'_, 'de> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a Debezium event")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let event = self.event;
        let mut schema = None;
        while let Some(name) = map.next_key_seed(NameSeed)? {
            match name.as_ref() {
                "schema" if self.row.json => schema = Some(map.next_value::<&RawValue>()?),
                "payload" => {
                    let meanings = schema.map(|schema| self.row.wanted.meanings(schema));
                    *event = DebeziumEvent::default();
                    map.next_value_seed(EnvelopeSeed {
                        row: self.row.meaning(meanings.as_deref()),
                        before: self.before,
                        transaction: self.transaction,
                        event,
                    })?;
                }
                "after" => event.after = map.next_value_seed(self.row)?,
                "before" if self.before => {
                    let columns = None;
                    event.before = map.next_value_seed(RowSeed {
                        columns,
                        ..self.row
                    })?;
                }
                "transaction" if self.transaction => event.transaction = Some(map.next_value()?),
                "source" => map.next_value_seed(OrderSeed {
                    json: self.row.json,
                    order: &mut event.order,
                })?,
                "op" => {
                    event.op = match map.next_value_seed(FieldSeed)? {
                        Field::Text(op) => Some(op),
                        _ => None,
                    }
                }
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(())
    }
}

/// Reads an event's place in the log from what it tells of its source.
struct OrderSeed<'n, 'a> {
    json: bool,
    order: &'n mut EventOrder<'a>,
}

impl<'de> DeserializeSeed<'de> for OrderSeed<'_, 'de> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for OrderSeed<'_, 'de> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("what is told of an event's source")
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let order = self.order;
        while let Some(name) = map.next_key_seed(NameSeed)? {
            match name.as_ref() {
                "name" => {
                    if let Field::Text(name) = map.next_value_seed(FieldSeed)? {
                        order.connector = name;
                    }
                }
                "lsn" => order.lsn = number(map.next_value_seed(FieldSeed)?),
                "ts_ms" => order.committed_ms = number(map.next_value_seed(FieldSeed)?),
                "sequence" if self.json => {
                    order.commit = commit_in_json(map.next_value::<&RawValue>()?.get());
                }
                "sequence" => {
                    order.commit = match map.next_value_seed(FieldSeed)? {
                        Field::Text(sequence) => commit_of(&sequence),
                        _ => None,
                    }
                }
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(())
    }
}

fn number(field: Field<'_>) -> i64 {
    match field {
        Field::Integer(number) => number,
        _ => 0,
    }
}

/// The last commit before an event, of what PostgreSQL's connector tells of its place: the first of two numbers, of
/// `["24023119","24023128"]`; 0 where it is null. Other connectors tell other things.
fn commit_of(sequence: &str) -> Option<i64> {
    let first = sequence.strip_prefix('[')?;
    if first.starts_with("null,") {
        return Some(0);
    }
    let first = first.trim_start_matches(['\\', '"']);
    let end = first.bytes().position(|byte| !byte.is_ascii_digit())?;
    let closed = first[end..].trim_start_matches(['\\', '"']);
    closed.starts_with(',').then(|| first[..end].parse().ok())?
}

/// The same of a JSON string as it is written, which is seldom so that its escapes need to be resolved.
fn commit_in_json(raw: &str) -> Option<i64> {
    let escaped = raw.strip_prefix('"')?;
    let resolved = || serde_json::from_str::<String>(raw).ok();
    commit_of(escaped).or_else(|| commit_of(&resolved()?))
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

/// Reads what is wanted of an object; null yields none. What follows a schema is the object itself, as
/// converters write it that tell schemas.
#[derive(Clone, Copy)]
pub(super) struct RowSeed<'n> {
    pub(super) wanted: &'n Wanted,
    /// Whether it is written in JSON, in which alone schemas stand before what they are of.
    pub(super) json: bool,
    /// Where a digest of the names of all columns goes, wanted or not, in their order.
    pub(super) columns: Option<&'n Cell<u64>>,
    meanings: Option<&'n Meanings>,
}

impl<'n> RowSeed<'n> {
    pub(super) fn new(wanted: &'n Wanted, json: bool, columns: Option<&'n Cell<u64>>) -> Self {
        let meanings = None;
        Self {
            wanted,
            json,
            columns,
            meanings,
        }
    }

    fn meaning<'m>(self, meanings: Option<&'m Meanings>) -> RowSeed<'m>
    where
        'n: 'm,
    {
        let meanings = meanings.filter(|meanings| !meanings.is_empty());
        RowSeed { meanings, ..self }
    }

    /// Reads the value of a column.
    fn column<'de, A: MapAccess<'de>>(
        &self,
        name: Cow<'de, str>,
        map: &mut A,
        row: &mut Row<'de>,
    ) -> Result<(), A::Error> {
        self.count(&name);
        let place = self.wanted.place(&name);
        match (
            place,
            self.wanted.is_further(&name, place),
            self.meaning_of(&name),
        ) {
            (None, false, _) => drop(map.next_value::<IgnoredAny>()?),
            (Some(place), false, None) => row.fields[place] = map.next_value_seed(FieldSeed)?,
            _ => {
                let value = match self.json {
                    true => Whole::Json(map.next_value()?),
                    false => Whole::Tree(map.next_value()?),
                };
                self.whole(name, value, row).map_err(A::Error::custom)?;
            }
        }
        Ok(())
    }

    /// Takes the value of a column that was read whole.
    fn whole<'de>(
        &self,
        name: Cow<'de, str>,
        value: Whole<'de>,
        row: &mut Row<'de>,
    ) -> serde_json::Result<()> {
        let place = self.wanted.place(&name);
        let told = self
            .meaning_of(&name)
            .and_then(|meaning| value.told(meaning));
        if let Some(place) = place {
            row.fields[place] = match &told {
                Some(told) => Field::Text(Cow::Owned(told.clone())),
                None => value.field()?,
            };
        }
        if self.wanted.is_further(&name, place) {
            let text = match told {
                Some(told) => Some(Cow::Owned(told)),
                None => value.text()?,
            };
            row.further.extend(text.map(|text| (name, text)));
        }
        Ok(())
    }

    fn meaning_of(&self, name: &str) -> Option<Meaning> {
        self.meanings?.get(name).copied()
    }

    /// Adds a name to the digest of all.
    fn count(&self, name: &str) {
        if let Some(columns) = self.columns {
            let mut hasher = FixedState::with_seed(columns.get()).build_hasher();
            hasher.write(name.as_bytes());
            columns.set(hasher.finish());
        }
    }
}

impl<'de> DeserializeSeed<'de> for RowSeed<'_> {
    type Value = Option<Row<'de>>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for RowSeed<'_> {
    type Value = Option<Row<'de>>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut row = Row {
            fields: vec![Field::Missing; self.wanted.names.len()],
            further: Vec::new(),
        };
        let mut name = map.next_key_seed(NameSeed)?;
        if self.json && name.as_deref() == Some("schema") {
            let schema: &RawValue = map.next_value()?;
            name = map.next_key_seed(NameSeed)?;
            if name.as_deref() == Some("payload") {
                let meanings = self.wanted.meanings(schema);
                return finish(map.next_value_seed(self.meaning(Some(&meanings)))?, map);
            }
            // It is a column that is called so.
            self.count("schema");
            self.whole(Cow::Borrowed("schema"), Whole::Json(schema), &mut row)
                .map_err(A::Error::custom)?;
        }
        while let Some(column) = name {
            self.column(column, &mut map, &mut row)?;
            name = map.next_key_seed(NameSeed)?;
        }
        Ok(Some(row))
    }
}

/// A value that is read whole, because its meaning or all of its text is wanted.
enum Whole<'a> {
    Json(&'a RawValue),
    Tree(Value),
}

impl<'a> Whole<'a> {
    /// The value as people write it, if it means more than is written.
    fn told(&self, meaning: Meaning) -> Option<String> {
        match self {
            Self::Json(raw) => meaning.of_json(&serde_json::from_str(raw.get()).ok()?),
            Self::Tree(value) => meaning.of_json(value),
        }
    }

    fn field(&self) -> serde_json::Result<Field<'a>> {
        match self {
            Self::Json(raw) => {
                FieldSeed.deserialize(&mut serde_json::Deserializer::from_str(raw.get()))
            }
            Self::Tree(value) => Ok(match value {
                Value::Null => Field::Null,
                Value::Bool(value) => Field::Boolean(*value),
                Value::Number(number) => match number.as_i64() {
                    Some(number) => Field::Integer(number),
                    None => Field::Fraction(number.as_f64().unwrap_or(f64::NAN)),
                },
                Value::String(text) => Field::Text(Cow::Owned(text.clone())),
                Value::Array(_) => Field::Other("an array"),
                Value::Object(_) => Field::Other("an object"),
            }),
        }
    }

    /// The value as text: strings as they are, null as none, anything else as JSON has it.
    fn text(self) -> serde_json::Result<Option<Cow<'a, str>>> {
        match self {
            Self::Json(raw) => match raw.get().as_bytes().first() {
                Some(b'n') => Ok(None),
                Some(b'"') => {
                    let text =
                        NameSeed.deserialize(&mut serde_json::Deserializer::from_str(raw.get()));
                    text.map(Some)
                }
                _ => Ok(Some(Cow::Borrowed(raw.get()))),
            },
            Self::Tree(Value::Null) => Ok(None),
            Self::Tree(Value::String(text)) => Ok(Some(Cow::Owned(text))),
            Self::Tree(value) => Ok(Some(Cow::Owned(value.to_string()))),
        }
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
    type Value = Option<Text>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for KeySeed {
    type Value = Option<Text>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a key")
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Some(text.into()))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Self::Value, E> {
        Ok(Some(format_smolstr!("{number}")))
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Self::Value, E> {
        Ok(Some(format_smolstr!("{number}")))
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Self::Value, E> {
        Ok(Some(format_smolstr!("{value}")))
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

/// Reads the JSON key of a table with one key column, a number or a text: `{"id":17}`. Such are most keys, and so they
/// are read without what others need.
pub(super) fn single_key(json: &str) -> Option<Text> {
    let object = json.strip_prefix("{\"")?.strip_suffix('}')?;
    let end = object.bytes().position(|byte| byte == b'"')?;
    let (name, value) = (&object[..end], object[end + 1..].strip_prefix(':')?);
    let plain = |text: &str| !text.bytes().any(|byte| matches!(byte, b'"' | b'\\'));
    let value = value.trim_ascii();
    if !plain(name) || matches!(name, "schema" | "payload") {
        return None;
    }
    match value.strip_prefix('"') {
        Some(text) => {
            let text = text.strip_suffix('"')?;
            let printed = plain(text) && !text.bytes().any(|byte| byte < b' ');
            printed.then(|| text.into())
        }
        None => {
            let digits = value.strip_prefix('-').unwrap_or(value).as_bytes();
            // Of 64 bits, and as they are written by themselves.
            let whole = (1..=18).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit);
            (whole && (value == "0" || !digits.starts_with(b"0"))).then(|| value.into())
        }
    }
}

/// Columns of a key as one text: the value of one, an object of several. The order of columns is the
/// connector's, and the same for every event of a table.
pub(super) fn key_text(columns: Vec<(String, Value)>) -> Text {
    match columns.as_slice() {
        [(_, Value::String(text))] => text.into(),
        [(_, value)] => format_smolstr!("{value}"),
        _ => format_smolstr!("{}", Value::Object(columns.into_iter().collect())),
    }
}

/// Passes over what follows in a map whose answer is known.
fn finish<'de, T, A: MapAccess<'de>>(value: T, mut map: A) -> Result<T, A::Error> {
    while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
    Ok(value)
}
