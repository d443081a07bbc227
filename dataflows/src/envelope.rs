//! What a message says about a row: the fields of its new state, that it is gone, or neither.
//!
//! JSON is read once, from the bytes, without building a tree: only the fields that a row type
//! names are kept, everything else (schemas, `before`, `source`) is skipped over. Any well-formed
//! JSON yields fields; whether their types suit is for the row to say, so that a reject can name
//! the field instead of a byte position.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::fmt;
use std::hash::BuildHasher;

use foldhash::fast::RandomState;
use foldhash::{HashMap, HashMapExt};
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

use serde_json::Value;
use serde_json::value::RawValue;

use crate::change::Text;
use crate::operators::upsert::{Patch, State, Upsert};
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

/// What a source's messages look like, and what of them is wanted.
#[derive(Clone, Debug)]
pub struct Format {
    /// How they say what changed.
    pub envelope: Envelope,
    /// Whether a message's key is JSON, as Kafka's converters write it, or else plain text.
    pub json_keys: bool,
    /// The source's columns for the fields of the row, in the order of [`SourceRow::FIELDS`].
    pub columns: Vec<String>,
    /// The columns that rows are told apart by; none for the message's key.
    pub key_columns: Vec<String>,
    /// Whether there are several topics, whose keys must be told apart.
    pub several_topics: bool,
    /// What stands for a value that the source did not send because it had not changed.
    pub unavailable: String,
}

impl Format {
    /// Messages of one topic or folder whose columns are named as the row's fields.
    pub fn new<R: SourceRow>(envelope: Envelope) -> Self {
        let columns = R::FIELDS.iter().map(|name| (*name).to_owned());
        Self {
            envelope,
            json_keys: true,
            columns: columns.collect(),
            key_columns: Vec::new(),
            several_topics: false,
            unavailable: UNAVAILABLE.to_owned(),
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
    /// True or false.
    Boolean(bool),
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
            Field::Boolean(_) => "a boolean",
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

/// What a message does to a row, or that it could not be used.
pub type RowChange<R> = Upsert<Result<R, Reject>>;

/// Decodes the messages of one source.
///
/// It remembers up to where each connector has told a partition what its database did, so that one
/// that went back and repeats itself is not heard twice.
pub struct Decoder {
    format: Format,
    /// The names of all fields that are read: the row's, the key's, and those of a flattened row.
    names: Vec<String>,
    /// By a hash of the partition and the connector's name: several may fill one topic.
    heard: HashMap<u64, Heard>,
    hashing: RandomState,
}

impl Decoder {
    /// A decoder for messages of this format.
    pub fn new(format: Format) -> Self {
        let mut names = [format.columns.clone(), format.key_columns.clone()].concat();
        if format.envelope == Envelope::Flattened {
            names.extend(MARKERS.map(str::to_owned));
        }
        let heard = HashMap::new();
        Self {
            format,
            names,
            heard,
            hashing: RandomState::default(),
        }
    }

    /// Decodes one message; what cannot be used becomes a reject in the place of its row.
    pub fn decode<R: SourceRow>(&mut self, message: &Message<'_>, changes: &mut Vec<RowChange<R>>) {
        let told = match self.format.envelope {
            Envelope::Debezium => self.debezium(message),
            Envelope::Flattened => self.flattened(message),
            Envelope::Upsert => self.row(message, self.message_key(message)),
            Envelope::Append => self.row(message, Ok(Some(message.position.into()))),
        };
        match told {
            Ok(told) => {
                for told in told.into_iter().flatten() {
                    let change = self.change(told, message);
                    changes.push(change);
                }
            }
            Err((key, reason)) => {
                let key = key.map(|key| self.of_topic(key, message));
                let reject = reject(key, reason, message);
                let key = reject.source_key();
                changes.push(Upsert::row(key, Err(reject)));
            }
        }
    }

    /// Tries a message again that could not be used once, and may be now that other columns or
    /// another format are asked for; returns its row, if it has one.
    pub fn retry<R: SourceRow>(&self, reject: &Reject) -> Option<(Text, R)> {
        let format = Format {
            // The key has been read already.
            json_keys: false,
            ..self.format.clone()
        };
        let mut message = Message {
            key: None,
            value: Some(&reject.raw),
            position: &reject.position,
            received: reject.first_seen,
        };
        let prefix = format!("{}/", topic(&message));
        let key = reject.key.as_deref();
        let own_key = key.map(|key| match format.several_topics {
            true => key.strip_prefix(&prefix).unwrap_or(key),
            false => key,
        });
        message.key = own_key.map(str::as_bytes);
        let mut told = Vec::new();
        Self::new(format).decode(&message, &mut told);
        match told.pop()? {
            Upsert {
                key,
                state: State::Row(Ok(row)),
                ..
            } => Some((key, row)),
            _ => None,
        }
    }

    /// The change of a row, from what a message told.
    fn change<R: SourceRow>(&self, told: Told<'_>, message: &Message<'_>) -> RowChange<R> {
        let (key, at) = (self.of_topic(told.key, message), told.at);
        let state = match told.fields {
            RowFields::Gone => State::Gone,
            // The intake makes a copy for every other worker.
            RowFields::Truncated => State::Truncated(0),
            RowFields::Now(fields) => self.state(&key, fields, message),
        };
        Upsert { key, at, state }
    }

    fn state<R: SourceRow>(
        &self,
        key: &Text,
        mut fields: Vec<Field<'_>>,
        message: &Message<'_>,
    ) -> State<Result<R, Reject>> {
        fields.truncate(self.format.columns.len());
        let mut absent = 0;
        let mut absent_name = None;
        for (index, field) in fields.iter_mut().enumerate() {
            if matches!(field, Field::Text(text) if *text == self.format.unavailable) {
                absent |= 1 << index;
                absent_name = Some(&self.format.columns[index]);
                *field = Field::Text(Cow::Borrowed(""));
            }
        }
        let refused = |reason| Err(reject(Some(key.clone()), reason, message));
        let row = R::from_fields(key.clone(), &fields, message);
        match (row, absent_name) {
            (Err(reason), _) => State::Row(refused(reason)),
            (Ok(row), None) => State::Row(Ok(row)),
            (Ok(row), Some(name)) => State::Patch(Box::new(Patch {
                row: Ok(row),
                absent,
                otherwise: refused(format!(
                    "field \"{name}\": not sent, and no earlier row is known; set replica identity full"
                )),
            })),
        }
    }

    /// A key among those of all topics.
    fn of_topic(&self, key: Text, message: &Message<'_>) -> Text {
        match self.format.several_topics {
            true => format!("{}/{key}", topic(message)).into(),
            false => key,
        }
    }

    fn message_key(&self, message: &Message<'_>) -> Result<Option<Text>, String> {
        read_key(self.format.json_keys, message)
    }

    fn debezium<'a>(&mut self, message: &Message<'a>) -> Result<[Option<Told<'a>>; 2], Refused> {
        let by_columns = !self.format.key_columns.is_empty();
        let own_key = self.message_key(message).map_err(|reason| (None, reason))?;
        let Some(value) = message.value else {
            // A tombstone follows the event that deleted the row; without a key, or with a key that
            // is not ours, it says nothing.
            let key = own_key.filter(|_| !by_columns);
            return Ok([key.map(|key| Told::gone(key, 0)), None]);
        };
        let wanted = EnvelopeSeed {
            names: &self.names,
            before: by_columns,
        };
        let mut event = read_json(value, wanted).map_err(|reason| (own_key.clone(), reason))?;
        let at = event.order.lsn;
        let (before, after) = match event.rows() {
            Err(reason) => return Err((own_key, reason)),
            Ok(rows) => rows,
        };
        if self.repeated(&event.order, event.op.as_deref(), message) {
            return Ok([None, None]);
        }
        match event.op.as_deref() {
            Some("m") => return Ok([None, None]),
            Some("t") => return Ok([Some(Told::truncated(at)), None]),
            _ => {}
        }
        let key = self.key(own_key, after.as_deref().or(before.as_deref()))?;
        let Some(fields) = after else {
            return Ok([Some(Told::gone(key, at)), None]);
        };
        // A key that is not the table's own may change by an update; the old row then is gone.
        let old_key = before.filter(|_| by_columns);
        let old_key = old_key.and_then(|before| self.key_of(&before).ok());
        let left = old_key
            .filter(|old| *old != key)
            .map(|old| Told::gone(old, at));
        let fields = RowFields::Now(fields);
        Ok([left, Some(Told { key, at, fields })])
    }

    fn flattened<'a>(&self, message: &Message<'a>) -> Result<[Option<Told<'a>>; 2], Refused> {
        let own_key = self.message_key(message).map_err(|reason| (None, reason))?;
        let Some(value) = message.value else {
            let key = own_key.filter(|_| self.format.key_columns.is_empty());
            return Ok([key.map(|key| Told::gone(key, 0)), None]);
        };
        let refused = |reason| (own_key.clone(), reason);
        let fields = read_json(value, RowSeed(&self.names)).map_err(refused)?;
        let fields = fields.ok_or_else(|| refused("expected an object, found null".to_owned()))?;
        let marker = |place: usize| fields.get(self.names.len() - MARKERS.len() + place);
        let at = match marker(LSN) {
            Some(Field::Integer(lsn)) => *lsn,
            _ => 0,
        };
        let is = |place, wanted: &str| matches!(marker(place), Some(Field::Text(text)) if text == wanted);
        if is(OP, "t") {
            return Ok([Some(Told::truncated(at)), None]);
        }
        let key = self.key(own_key.clone(), Some(&fields))?;
        let gone = is(OP, "d")
            || is(DELETED, "true")
            || matches!(marker(DELETED), Some(Field::Boolean(true)));
        let told = match gone {
            true => Told::gone(key, at),
            false => Told {
                key,
                at,
                fields: RowFields::Now(fields),
            },
        };
        Ok([Some(told), None])
    }

    fn row<'a>(
        &self,
        message: &Message<'a>,
        key: Result<Option<Text>, String>,
    ) -> Result<[Option<Told<'a>>; 2], Refused> {
        let key = key.map_err(|reason| (None, reason))?;
        let Some(value) = message.value else {
            let deletes = self.format.envelope == Envelope::Upsert;
            let key = key.filter(|_| deletes);
            return Ok([key.map(|key| Told::gone(key, 0)), None]);
        };
        let refused = |reason| (key.clone(), reason);
        let fields = read_json(value, RowSeed(&self.names)).map_err(refused)?;
        let Some(fields) = fields else {
            return Ok([key.map(|key| Told::gone(key, 0)), None]);
        };
        let key = self.key(key.clone(), Some(&fields))?;
        Ok([
            Some(Told {
                key,
                at: 0,
                fields: RowFields::Now(fields),
            }),
            None,
        ])
    }

    /// The key of a row: the message's own, or what the row's key columns make.
    fn key(&self, own: Option<Text>, fields: Option<&[Field<'_>]>) -> Result<Text, Refused> {
        let key = match fields {
            _ if self.format.key_columns.is_empty() => own,
            Some(fields) => Some(self.key_of(fields).map_err(|reason| (own, reason))?),
            None => None,
        };
        key.ok_or_else(|| (None, NO_KEY.to_owned()))
    }

    /// The key that a row's key columns make: the value of one, an object of several.
    fn key_of(&self, fields: &[Field<'_>]) -> Result<Text, String> {
        let names = self.format.key_columns.iter();
        let columns = names.zip(&fields[self.format.columns.len()..]);
        let mut values = Vec::new();
        for (name, field) in columns {
            let value = match field {
                Field::Text(text) => Value::from(text.as_ref()),
                Field::Integer(number) => Value::from(*number),
                Field::Boolean(value) => Value::from(*value),
                other => {
                    let found = other.describe();
                    return Err(format!(
                        "key column \"{name}\": expected a value, found {found}"
                    ));
                }
            };
            values.push((name.clone(), value));
        }
        Ok(key_text(values).into())
    }

    /// Whether an event tells again what its partition has told, because its connector went back;
    /// otherwise takes note of it.
    ///
    /// PostgreSQL's events come in the order of commits and, within one, of the log. An event at or
    /// before the last one in that order is a repetition, unless it was made later: then the
    /// database itself went back, to a backup.
    fn repeated(
        &mut self,
        order: &EventOrder<'_>,
        op: Option<&str>,
        message: &Message<'_>,
    ) -> bool {
        let streamed = matches!(op, Some("c" | "u" | "d" | "t"));
        if !streamed || order.lsn == 0 || order.commit.is_none() {
            return false;
        }
        let teller = self
            .hashing
            .hash_one((partition(message), &order.connector));
        let heard = self.heard.entry(teller).or_default();
        // One change of a key is two events at the same place.
        let event = self.hashing.hash_one((op, message.key));
        let now = (order.commit, order.lsn);
        match now.cmp(&heard.last) {
            _ if order.committed_ms > heard.committed_ms => {}
            Ordering::Less => return true,
            Ordering::Equal if heard.events.contains(&event) => return true,
            Ordering::Equal | Ordering::Greater => {}
        }
        if now != heard.last {
            heard.events.clear();
        }
        heard.last = now;
        heard.committed_ms = order.committed_ms;
        heard.events.push(event);
        false
    }
}

/// A message that cannot be used: the key of its row, if it has one, and why.
type Refused = (Option<Text>, String);

const NO_KEY: &str =
    "the message has no key; name the columns that tell rows apart in source.kafka.key";

/// What a flattened row tells of its event, and the places of these fields after the others.
const MARKERS: [&str; 3] = ["__op", "__deleted", "__lsn"];
const OP: usize = 0;
const DELETED: usize = 1;
const LSN: usize = 2;

/// What a message told of one row.
struct Told<'a> {
    key: Text,
    /// The place in the database's log, 0 if not known.
    at: i64,
    fields: RowFields<'a>,
}

enum RowFields<'a> {
    Now(Vec<Field<'a>>),
    Gone,
    Truncated,
}

impl Told<'_> {
    fn gone(key: Text, at: i64) -> Self {
        let fields = RowFields::Gone;
        Self { key, at, fields }
    }

    fn truncated(at: i64) -> Self {
        let (key, fields) = ("".into(), RowFields::Truncated);
        Self { key, at, fields }
    }
}

/// The last event that a connector told a partition.
#[derive(Default)]
struct Heard {
    /// The commit before its own, and its place in the log.
    last: (Option<i64>, i64),
    committed_ms: i64,
    /// The events at that very place.
    events: Vec<u64>,
}

/// `topic/partition`, of a position `topic/partition/offset`.
fn partition<'a>(message: &Message<'a>) -> &'a str {
    message
        .position
        .rsplit_once('/')
        .map_or("", |(partition, _)| partition)
}

fn topic<'a>(message: &Message<'a>) -> &'a str {
    partition(message)
        .rsplit_once('/')
        .map_or("", |(topic, _)| topic)
}

fn reject(key: Option<Text>, reason: String, message: &Message<'_>) -> Reject {
    Reject {
        position: message.position.into(),
        key,
        stage: DECODE.into(),
        reason: reason.into(),
        raw: message.value.or(message.key).unwrap_or_default().into(),
        first_seen: message.received,
    }
}

/// The key that rows are told apart by; a JSON object of one column is that column's value.
fn read_key(json: bool, message: &Message<'_>) -> Result<Option<Text>, String> {
    let Some(bytes) = message.key else {
        return Ok(None);
    };
    let text = std::str::from_utf8(bytes).map_err(|_| "the key is not UTF-8".to_owned())?;
    if !json {
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
    before: Option<Vec<Field<'a>>>,
    after: Option<Vec<Field<'a>>>,
    order: EventOrder<'a>,
}

/// Where an event stands in its database's log.
#[derive(Default)]
struct EventOrder<'a> {
    /// The connector's name for its database.
    connector: Cow<'a, str>,
    /// The last commit before the event's own transaction; events come in this order first.
    commit: Option<i64>,
    /// The event's place; events of a transaction come in this order. 0 if not known.
    lsn: i64,
    /// When its transaction was committed, in milliseconds since 1970.
    committed_ms: i64,
}

/// The fields of a row as it was, and as it is.
type BeforeAndAfter<'a> = (Option<Vec<Field<'a>>>, Option<Vec<Field<'a>>>);

impl<'a> DebeziumEvent<'a> {
    /// The fields of the row as it was and as it is. What it was is of use for nothing but its key:
    /// under the default replica identity the rest is null or holds zero values.
    fn rows(&mut self) -> Result<BeforeAndAfter<'a>, String> {
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
struct EnvelopeSeed<'n> {
    names: &'n [String],
    /// Whether the row as it was is wanted.
    before: bool,
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
                "after" => event.after = map.next_value_seed(RowSeed(self.names))?,
                "before" if self.before => {
                    event.before = map.next_value_seed(RowSeed(self.names))?;
                }
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
                // As it stands there: to take the escapes out would need an allocation.
                "sequence" => order.commit = commit_of(map.next_value::<&RawValue>()?.get()),
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

/// The first of PostgreSQL's two numbers, of `"[\"24023119\",\"24023128\"]"`; 0 where it is null.
fn commit_of(sequence: &str) -> Option<i64> {
    let first = sequence.strip_prefix("\"[")?.split(',').next()?;
    match first {
        "null" => Some(0),
        quoted => quoted.trim_matches(['\\', '"']).parse().ok(),
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
struct RowSeed<'n>(&'n [String]);

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
        let mut fields = vec![Field::Missing; self.0.len()];
        let mut after_schema = false;
        let mut first = true;
        while let Some(name) = map.next_key_seed(NameSeed)? {
            if after_schema && name == "payload" {
                return finish(map.next_value_seed(self)?, map);
            }
            after_schema = std::mem::take(&mut first) && name == "schema";
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
fn key_text(mut columns: Vec<(String, Value)>) -> String {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Debug, PartialEq)]
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

    type Told = Vec<RowChange<Note>>;

    fn format(envelope: Envelope) -> Format {
        Format::new::<Note>(envelope)
    }

    fn decode_with(decoder: &mut Decoder, key: Option<&str>, value: Option<&[u8]>) -> Told {
        let message = Message {
            key: key.map(str::as_bytes),
            value,
            position: "notes/0/7",
            received: Timestamp(5),
        };
        let mut told = Vec::new();
        decoder.decode(&message, &mut told);
        told
    }

    fn decode_note(envelope: Envelope, key: Option<&str>, value: Option<&[u8]>) -> Told {
        decode_with(&mut Decoder::new(format(envelope)), key, value)
    }

    fn debezium(key: &str, value: &str) -> Told {
        decode_note(Envelope::Debezium, Some(key), Some(value.as_bytes()))
    }

    fn note(key: &str, text: &str) -> Told {
        let row = Note {
            key: key.into(),
            text: text.into(),
        };
        vec![Upsert::row(key.into(), Ok(row))]
    }

    fn gone(key: &str) -> Told {
        vec![Upsert::gone(key.into())]
    }

    fn reason(told: Told) -> String {
        match told.as_slice() {
            [
                Upsert {
                    state: State::Row(Err(reject)),
                    ..
                },
            ] => reject.reason.to_string(),
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
        let gone = gone("1");
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
        assert_eq!(decode_note(Envelope::Debezium, None, None), []);
    }

    #[test]
    fn keys_of_one_column_are_its_value_and_of_several_an_object() {
        let text = |key| debezium(key, r#"{"op":"d"}"#).remove(0).key.to_string();
        assert_eq!(text(r#"{"id":"a b"}"#), "a b");
        assert_eq!(text("17"), "17");
        assert_eq!(text("plain"), "plain");
        assert_eq!(text("2009-04-06"), "2009-04-06");
        assert_eq!(text(r#"{"a":1,"b":"x"}"#), r#"{"a":1,"b":"x"}"#);
        assert_eq!(decode_note(Envelope::Upsert, Some("17"), None), gone("17"));
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
        assert!(reason(keyless).starts_with("the message has no key"));
    }

    #[test]
    fn a_message_without_a_key_is_rejected_under_its_position() {
        let message = Message {
            key: Some(b"\xff"),
            value: None,
            position: "t/0/1",
            received: Timestamp(0),
        };
        let mut told: Told = Vec::new();
        Decoder::new(format(Envelope::Debezium)).decode(&message, &mut told);
        let [
            Upsert {
                key,
                state: State::Row(Err(reject)),
                ..
            },
        ] = told.as_slice()
        else {
            panic!("expected a reject");
        };
        assert_eq!(
            (&**key, &*reject.reason, &*reject.raw),
            ("t/0/1", "the key is not UTF-8", &b"\xff"[..])
        );
    }

    #[test]
    fn other_formats_tell_the_same_rows() {
        let told =
            |envelope, key, value: &str| decode_note(envelope, Some(key), Some(value.as_bytes()));
        let flattened = |value| told(Envelope::Flattened, r#"{"id":1}"#, value);
        assert_eq!(
            flattened(r#"{"id":1,"text":"a","__deleted":"false","__op":"c"}"#),
            note("1", "a")
        );
        assert_eq!(
            flattened(r#"{"schema":{},"payload":{"text":"a"}}"#),
            note("1", "a")
        );
        assert_eq!(
            flattened(r#"{"id":1,"text":"","__deleted":"true"}"#),
            gone("1")
        );
        assert_eq!(
            flattened(r#"{"id":1,"text":"","__deleted":true}"#),
            gone("1")
        );
        assert_eq!(
            decode_note(Envelope::Flattened, Some(r#"{"id":1}"#), None),
            gone("1")
        );
        assert_eq!(
            told(Envelope::Upsert, "k", r#"{"text":"a"}"#),
            note("k", "a")
        );
        assert_eq!(told(Envelope::Upsert, "k", "null"), gone("k"));
        assert_eq!(
            told(Envelope::Append, "k", r#"{"text":"a"}"#),
            note("notes/0/7", "a")
        );
        assert_eq!(decode_note(Envelope::Append, Some("k"), None), []);
    }

    #[test]
    fn columns_may_be_named_otherwise_and_make_the_key() {
        let by_columns = |names: &[&str]| {
            let names = names.iter().map(|name| (*name).to_owned());
            Decoder::new(Format {
                columns: vec!["body".to_owned()],
                key_columns: names.collect(),
                ..format(Envelope::Debezium)
            })
        };
        let event = |op: &str, before: &str, after: &str| {
            format!(r#"{{"op":"{op}","before":{before},"after":{after}}}"#)
        };
        let told =
            |decoder: &mut Decoder, event: &str| decode_with(decoder, None, Some(event.as_bytes()));
        let mut one = by_columns(&["id"]);
        let insert = event("c", "null", r#"{"id":7,"body":"a"}"#);
        assert_eq!(told(&mut one, &insert), note("7", "a"));
        let delete = event("d", r#"{"id":7,"body":""}"#, "null");
        assert_eq!(told(&mut one, &delete), gone("7"));
        // A tombstone comes after, with a key that is not ours.
        assert_eq!(decode_with(&mut one, Some("1"), None), []);
        let moved = event("u", r#"{"id":7,"body":"a"}"#, r#"{"id":8,"body":"a"}"#);
        assert_eq!(told(&mut one, &moved), [gone("7"), note("8", "a")].concat());
        let mut two = by_columns(&["id", "place"]);
        let insert = event("c", "null", r#"{"place":"x","id":7,"body":"a"}"#);
        assert_eq!(
            told(&mut two, &insert),
            note(r#"{"id":7,"place":"x"}"#, "a")
        );
        let lacking = event("c", "null", r#"{"id":7,"body":"a"}"#);
        assert_eq!(
            reason(told(&mut two, &lacking)),
            "key column \"place\": expected a value, found nothing"
        );
    }

    #[test]
    fn keys_of_several_topics_are_told_apart() {
        let several = Format {
            several_topics: true,
            ..format(Envelope::Debezium)
        };
        let mut decoder = Decoder::new(several);
        let told = decode_with(&mut decoder, Some(r#"{"id":1}"#), None);
        assert_eq!(told, gone("notes/1"));
        let told = decode_with(
            &mut decoder,
            None,
            Some(br#"{"op":"t","source":{"lsn":9}}"#),
        );
        let truncated = Upsert {
            key: "notes/".into(),
            at: 9,
            state: State::Truncated(0),
        };
        assert_eq!(told, [truncated]);
    }

    #[test]
    fn a_reject_is_tried_again_by_another_rule() {
        let named = |column: &str, key: &[&str], several_topics| {
            Decoder::new(Format {
                columns: vec![column.to_owned()],
                key_columns: key.iter().map(|name| (*name).to_owned()).collect(),
                several_topics,
                ..format(Envelope::Debezium)
            })
        };
        let event = r#"{"op":"c","after":{"id":7,"body":"a"}}"#;
        let refused = |decoder: &mut Decoder, key| {
            let told = decode_with(decoder, key, Some(event.as_bytes()));
            match told.into_iter().next().unwrap().state {
                State::Row(Err(reject)) => reject,
                other => panic!("expected a reject, found {other:?}"),
            }
        };
        let row = |key: &str| Note {
            key: key.into(),
            text: "a".into(),
        };
        for (several, key) in [(false, "7"), (true, "notes/7")] {
            let reject = refused(&mut named("text", &[], several), Some(r#"{"id":7}"#));
            assert_eq!(named("text", &[], several).retry::<Note>(&reject), None);
            let retried = named("body", &[], several).retry::<Note>(&reject);
            assert_eq!(retried, Some((key.into(), row(key))));
        }
        let keyless = refused(&mut named("body", &[], false), None);
        let retried = named("body", &["id"], false).retry::<Note>(&keyless);
        assert_eq!(retried, Some(("7".into(), row("7"))));
    }

    #[test]
    fn what_says_nothing_of_rows_is_passed_over() {
        let message = r#"{"op":"m","message":{"prefix":"x","content":""},"source":{"lsn":9}}"#;
        assert_eq!(debezium("1", message), []);
    }

    #[test]
    fn a_value_that_was_not_sent_is_to_be_completed() {
        let told = debezium(
            "1",
            r#"{"op":"u","after":{"text":"__debezium_unavailable_value"}}"#,
        );
        let [
            Upsert {
                state: State::Patch(patch),
                ..
            },
        ] = told.as_slice()
        else {
            panic!("expected a patch, found {told:?}");
        };
        assert_eq!(patch.absent, 1);
        let reason = &patch.otherwise.as_ref().unwrap_err().reason;
        assert!(reason.contains("replica identity full"), "{reason}");
    }

    #[test]
    fn a_connector_that_repeats_itself_is_not_heard_twice() {
        let mut decoder = Decoder::new(format(Envelope::Debezium));
        let mut heard = |key: &str, op: &str, commit: &str, lsn: i64, at: i64| {
            let sequence = Value::from(format!("[{commit},\"{lsn}\"]"));
            let event = format!(
                r#"{{"op":"{op}","after":{{"text":"a"}},"source":{{"lsn":{lsn},"ts_ms":{at},"sequence":{sequence}}}}}"#
            );
            !decode_with(&mut decoder, Some(key), Some(event.as_bytes())).is_empty()
        };
        assert!(heard("1", "c", "null", 10, 5));
        // Of two transactions the one that was committed later may have begun earlier in the log.
        assert!(heard("2", "c", "\"20\"", 30, 6));
        assert!(heard("3", "c", "\"40\"", 15, 7));
        // A change of a key is two events at one place.
        assert!(heard("3", "d", "\"40\"", 16, 7));
        assert!(heard("4", "c", "\"40\"", 16, 7));
        for (key, op, commit, lsn, at) in [
            ("2", "c", "\"20\"", 30, 6),
            ("3", "c", "\"40\"", 15, 7),
            ("3", "d", "\"40\"", 16, 7),
            ("4", "c", "\"40\"", 16, 7),
        ] {
            assert!(!heard(key, op, commit, lsn, at), "{key} {op}");
        }
        assert!(heard("5", "c", "\"40\"", 17, 7));
        // A snapshot tells what is, whenever it was changed.
        assert!(heard("1", "r", "null", 9, 8));
        // A database that was put back to a backup goes on from an earlier place, at a later time.
        assert!(heard("6", "c", "\"11\"", 12, 9));
        assert!(heard("7", "c", "\"11\"", 13, 9));
    }
}
