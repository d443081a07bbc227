//! Decides what a message does to which row.

use std::borrow::Cow;
use std::cell::Cell;
use std::collections::BTreeSet;
use std::collections::hash_map::Entry;
use std::marker::PhantomData;
use std::sync::Arc;

use foldhash::{HashMap, HashMapExt, HashSet, HashSetExt};
use serde::de::DeserializeSeed;
use serde_json::Value;

use super::avro::Schema;
use super::event::{
    DebeziumEvent, EnvelopeSeed, KeySeed, OF_EVENT, Row, RowSeed, Wanted, key_text, single_key,
};
use super::framing::{self, NEW_KEY, Part};
use super::further::{MOST, Placeholders, column_name, one_text};
use super::repetition::{Identity, Repetitions};
use super::{
    Encoding, Envelope, Field, Format, Message, NO_HEADERS, NotYet, SchemaError, SourceRow,
};
use crate::change::Text;
use crate::operators::upsert::{Patch, State, Upsert};
use crate::record::{Bytes, parted};
use crate::reject::{DECODE, Reject, field_of};
use crate::transactions::transaction_of;

/// How many sets of columns are remembered whose names have been passed on.
const MOST_MET: usize = 10_000;

/// What a message does to a row, or that it could not be used.
///
/// A reject is boxed, because it is large and seldom: rows go through many hands.
pub type RowChange<R> = Upsert<Result<R, Box<Reject>>>;

/// Decodes the messages of one source.
///
/// It remembers up to where each connector has told a partition what its database did, so that one
/// that went back and repeats itself is not heard twice.
pub struct Decoder {
    format: Format,
    /// What is read of rows.
    wanted: Wanted,
    /// Where the key's columns are among the fields.
    key_places: Vec<usize>,
    /// What stands for a further column's value that was not sent.
    placeholders: Placeholders,
    /// Where in a message the row's fields are, as rejects tell it.
    paths: Vec<String>,
    repetitions: Repetitions,
    /// Schemas that have been met, by number.
    schemas: HashMap<u32, Arc<Schema>>,
    /// The columns of each topic's rows.
    columns: HashMap<String, Columns>,
    /// Digests of columns whose names have been passed on.
    met: HashSet<u64>,
    /// A further column of the message that is being decoded which is one too many.
    too_many: Option<String>,
    /// Where the event that is being decoded stands in its transaction.
    in_transaction: Option<InTransaction>,
}

/// Where an event stands in its transaction.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct InTransaction {
    /// The transaction's number.
    pub transaction: Text,
    /// The event's place in the database's log.
    pub at: i64,
    /// Its place in the transaction.
    pub order: i64,
}

impl Decoder {
    /// A decoder for messages of this format.
    pub fn new(format: Format) -> Self {
        let markers: &[&str] = match format.envelope {
            Envelope::Flattened => &MARKERS,
            _ => &[],
        };
        let further = format.further.is_some();
        let wanted = Wanted::new(&format.columns, &format.key_columns, markers, further);
        let key = format.key_columns.iter();
        let key_places = key.filter_map(|name| wanted.place(name)).collect();
        let placeholders = Placeholders::new(&format.unavailable);
        let mut decoder = Self {
            format,
            wanted,
            key_places,
            placeholders,
            paths: Vec::new(),
            repetitions: Repetitions::new(),
            schemas: HashMap::new(),
            columns: HashMap::new(),
            met: HashSet::new(),
            too_many: None,
            in_transaction: None,
        };
        let paths = decoder.format.columns.iter();
        decoder.paths = paths.map(|column| decoder.path(column)).collect();
        decoder
    }

    /// Reads messages by another format from now on.
    pub(crate) fn read_by(&mut self, format: Format) {
        let repetitions = std::mem::replace(&mut self.repetitions, Repetitions::new());
        *self = Self {
            repetitions,
            ..Self::new(format)
        };
    }

    /// Decodes one message; what cannot be used becomes a reject in the place of its row. Returns where
    /// it stands in its transaction, if transactions are shown whole and it is part of one.
    ///
    /// # Errors
    /// If the message cannot be decoded yet; nothing has come of it then.
    pub fn decode<R: SourceRow>(
        &mut self,
        message: &Message<'_>,
        changes: &mut Vec<RowChange<R>>,
    ) -> Result<Option<InTransaction>, NotYet> {
        let from = changes.len();
        let told = match (
            self.written(Part::Key, message),
            self.written(Part::Value, message),
        ) {
            (Err(SchemaError::Unavailable(reason)), _)
            | (_, Err(SchemaError::Unavailable(reason))) => return Err(NotYet(reason)),
            (Err(SchemaError::Unknown(reason)), _) => Err((None, reason)),
            (Ok(key), Err(SchemaError::Unknown(reason))) => {
                Err((self.read_key(key.as_ref()).unwrap_or_default(), reason))
            }
            (Ok(key), Ok(value)) => self.told(key.as_ref(), value.as_ref(), message, changes),
        };
        let too_many = self.too_many.take();
        match (told, too_many) {
            (Ok(()), None) => {}
            (Ok(()), Some(column)) => {
                let key = changes.drain(from..).last().map(|change| change.key);
                changes.push(self.refused(key, too_many_for(&column), message));
            }
            (Err((key, reason)), _) => {
                let key = key.map(|key| self.of_topic(key, message));
                changes.push(self.refused(key, reason, message));
            }
        }
        Ok(self.in_transaction.take())
    }

    /// A message's whole value, without the schema that may stand before it, for those who want to look
    /// into it; `None` if it has none that can be read.
    ///
    /// # Errors
    /// If it cannot be decoded yet.
    pub fn tree(&mut self, message: &Message<'_>) -> Result<Option<Value>, NotYet> {
        match self.written(Part::Value, message) {
            Err(SchemaError::Unavailable(reason)) => Err(NotYet(reason)),
            Err(SchemaError::Unknown(_)) => Ok(None),
            Ok(value) => Ok(value.and_then(|value| value.tree())),
        }
    }

    /// A part of a message as it was written.
    fn written<'m>(
        &mut self,
        part: Part,
        message: &Message<'m>,
    ) -> Result<Option<Written<'m>>, SchemaError> {
        let bytes = match part {
            Part::Key => message.key,
            Part::Value => message.value,
        };
        let (Some(bytes), Encoding::Avro(schemas)) = (bytes, &self.format.encoding) else {
            let schema = None;
            return Ok(bytes.map(|bytes| Written { schema, bytes }));
        };
        let Some((number, bytes)) = framing::numbered(part, bytes, message.headers) else {
            return match part {
                // Producers of plain keys are common.
                Part::Key => Ok(Some(Written {
                    schema: None,
                    bytes,
                })),
                Part::Value => Err(SchemaError::Unknown(NO_SCHEMA_NUMBER.to_owned())),
            };
        };
        let schema = match self.schemas.entry(number) {
            Entry::Occupied(known) => Arc::clone(known.get()),
            Entry::Vacant(entry) => Arc::clone(entry.insert(schemas.schema(number)?)),
        };
        let schema = Some(schema);
        Ok(Some(Written { schema, bytes }))
    }

    /// What a message tells of rows, which a deleting and an inserting part of one event may make two.
    fn told<R: SourceRow>(
        &mut self,
        key: Option<&Written<'_>>,
        value: Option<&Written<'_>>,
        message: &Message<'_>,
        changes: &mut Vec<RowChange<R>>,
    ) -> Result<(), Refused> {
        let key = match self.format.envelope {
            Envelope::Append => Some(message.position()),
            _ => self.read_key(key).map_err(|reason| (None, reason))?,
        };
        let Some(value) = value else {
            // A tombstone follows the event that deleted the row; without a key, or with a key that
            // is not ours, it says nothing.
            let deletes = match self.format.envelope {
                Envelope::Debezium | Envelope::Flattened => {
                    self.format.key_columns.is_empty() && !self.format.keyless
                }
                Envelope::Upsert => true,
                Envelope::Append => false,
            };
            let key = key.filter(|_| deletes);
            changes.extend(key.map(|key| self.change(key, 0, Told::Gone, message)));
            return Ok(());
        };
        match self.format.envelope {
            Envelope::Debezium => self.debezium(key, value, message, changes),
            Envelope::Flattened => self.flattened(key, value, message, changes),
            Envelope::Upsert | Envelope::Append => self.row(key, value, message, changes),
        }
    }

    /// The change of a row, from what a message told of its key at a place in the database's log, 0 if that is not
    /// known.
    fn change<R: SourceRow>(
        &self,
        key: Text,
        at: i64,
        told: Told<'_>,
        message: &Message<'_>,
    ) -> RowChange<R> {
        let key = self.of_topic(key, message);
        let state = match told {
            Told::Gone => State::Gone,
            Told::Left(to) => State::Left(self.of_topic(to, message)),
            // The intake makes a copy for every other worker.
            Told::Truncated => State::Truncated(0),
            Told::Now(row) => match self.state(&key, row, message) {
                State::Row(row) if self.format.keyless => State::More(row),
                state => state,
            },
            Told::Fewer => {
                let reject = self.reject(Some(key.clone()), LACKING.to_owned(), message);
                State::Fewer(Err(Box::new(reject)))
            }
        };
        Upsert { key, at, state }
    }

    fn state<R: SourceRow>(
        &self,
        key: &Text,
        row: Row<'_>,
        message: &Message<'_>,
    ) -> State<Result<R, Box<Reject>>> {
        let Row {
            mut fields,
            further,
        } = row;
        let own = self.format.columns.len();
        fields.truncate(own);
        let mut absent = 0;
        let mut absent_name = None;
        for (index, field) in fields.iter_mut().enumerate() {
            if matches!(field, Field::Text(text) if *text == self.format.unavailable) {
                absent |= 1 << index;
                absent_name = Some(self.paths[index].clone());
                *field = Field::Text(Cow::Borrowed(""));
            }
        }
        let further = match self.format.further {
            Some(_) => {
                let (further, not_sent) = one_text(further, self.format.taken, &self.placeholders);
                if let Some(name) = not_sent {
                    absent |= 1 << own;
                    absent_name.get_or_insert_with(|| self.path(&name));
                }
                further
            }
            None => None,
        };
        let refused = |reason| Err(Box::new(self.reject(Some(key.clone()), reason, message)));
        let row = R::from_fields(key.clone(), &fields, further, &self.paths, message);
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

    /// Where in a message a row's column is.
    fn path(&self, column: &str) -> String {
        match self.format.envelope {
            Envelope::Debezium => format!("after.{column}"),
            _ => column.to_owned(),
        }
    }

    /// A key among those of all topics.
    fn of_topic(&self, key: Text, message: &Message<'_>) -> Text {
        match self.format.several_topics {
            true => format!("{}/{key}", message.topic()).into(),
            false => key,
        }
    }

    fn read_key(&self, key: Option<&Written<'_>>) -> Result<Option<Text>, String> {
        match key {
            None => Ok(None),
            Some(Written {
                schema: Some(schema),
                bytes,
            }) => {
                let key = schema.read(bytes, KeySeed);
                key.map_err(|reason| format!("the key is {reason}"))
            }
            Some(Written { bytes, .. }) => plain_key(self.format.json_keys, bytes),
        }
    }

    fn debezium<R: SourceRow>(
        &mut self,
        own_key: Option<Text>,
        value: &Written<'_>,
        message: &Message<'_>,
        changes: &mut Vec<RowChange<R>>,
    ) -> Result<(), Refused> {
        let by_columns = !self.format.key_columns.is_empty() || self.format.keyless;
        let columns = Cell::new(0);
        let mut event = DebeziumEvent::default();
        let read = value.read(EnvelopeSeed {
            row: RowSeed::new(&self.wanted, value.is_json(), Some(&columns)),
            before: by_columns,
            transaction: self.format.transactions.is_some(),
            event: &mut event,
        });
        let row = match read.and_then(|()| event.take_row()) {
            Ok(row) => row,
            Err(reason) => return Err((own_key, reason)),
        };
        let before = event.before.take();
        let op = event.op.as_deref();
        let digests = || [before.as_ref(), row.as_ref()].map(|row| row.map(Row::digest));
        let identity = Identity {
            op,
            key: message.key,
            rows: self.format.keyless.then(digests),
        };
        if self
            .repetitions
            .contain(message.origin, &event.order, &identity)
        {
            return Ok(());
        }
        let at = event.order.lsn;
        // What a snapshot reads is part of none.
        if let (Some(transaction), false) = (&event.transaction, op == Some("r")) {
            self.in_transaction = transaction["id"].as_str().map(|id| InTransaction {
                transaction: transaction_of(id),
                at,
                order: transaction["total_order"].as_i64().unwrap_or_default(),
            });
        }
        match op {
            Some("m") => return Ok(()),
            Some("t") => {
                changes.push(self.change("".into(), at, Told::Truncated, message));
                return Ok(());
            }
            _ => {}
        }
        if row.is_some() {
            self.watch_columns(columns.get(), value, message);
        }
        if self.format.keyless {
            let told_before = before.is_some() || matches!(op, Some("c" | "r"));
            if !told_before {
                return Err((own_key, NO_BEFORE.to_owned()));
            }
            self.copies(before, row, at, message, changes);
            return Ok(());
        }
        let key = self.key(own_key, row.as_ref().or(before.as_ref()))?;
        let Some(row) = row else {
            let told = self.gone(&key, message);
            changes.push(self.change(key, at, told, message));
            return Ok(());
        };
        // A key that is not the table's own may change by an update; the old row then is gone.
        let old_key = before.and_then(|before| self.key_of(&before).ok());
        if let Some(old_key) = old_key.filter(|old| *old != key) {
            changes.push(self.change(old_key, at, Told::Gone, message));
        }
        changes.push(self.change(key, at, Told::Now(row), message));
        Ok(())
    }

    /// What an event of a table without a key tells: of the row as it was there is a copy less, of the row as it is
    /// one more.
    fn copies<R: SourceRow>(
        &self,
        before: Option<Row<'_>>,
        row: Option<Row<'_>>,
        at: i64,
        message: &Message<'_>,
        changes: &mut Vec<RowChange<R>>,
    ) {
        let key = |row: &Row<'_>| Text::from(format!("{:032x}", row.digest()));
        let fewer = before.map(|row| (key(&row), Told::Fewer));
        let more = row.map(|row| (key(&row), Told::Now(row)));
        let told = fewer.into_iter().chain(more);
        changes.extend(told.map(|(key, told)| self.change(key, at, told, message)));
    }

    fn flattened<R: SourceRow>(
        &mut self,
        own_key: Option<Text>,
        value: &Written<'_>,
        message: &Message<'_>,
        changes: &mut Vec<RowChange<R>>,
    ) -> Result<(), Refused> {
        let refused = |reason| (own_key.clone(), reason);
        let columns = Cell::new(0);
        let row = value.read(RowSeed::new(&self.wanted, value.is_json(), Some(&columns)));
        let row = row.map_err(refused)?;
        let row = row.ok_or_else(|| refused("expected an object, found null".to_owned()))?;
        let marker = |place: usize| row.fields.get(self.wanted.markers_from() + place);
        let at = match marker(LSN) {
            Some(Field::Integer(lsn)) => *lsn,
            _ => 0,
        };
        let is = |place, wanted: &str| matches!(marker(place), Some(Field::Text(text)) if text == wanted);
        if is(OP, "t") {
            changes.push(self.change("".into(), at, Told::Truncated, message));
            return Ok(());
        }
        let key = self.key(own_key.clone(), Some(&row))?;
        let gone = is(OP, "d")
            || is(DELETED, "true")
            || matches!(marker(DELETED), Some(Field::Boolean(true)));
        let told = match gone {
            true => self.gone(&key, message),
            false => {
                self.watch_columns(columns.get(), value, message);
                Told::Now(row)
            }
        };
        changes.push(self.change(key, at, told, message));
        Ok(())
    }

    fn row<R: SourceRow>(
        &mut self,
        key: Option<Text>,
        value: &Written<'_>,
        message: &Message<'_>,
        changes: &mut Vec<RowChange<R>>,
    ) -> Result<(), Refused> {
        let columns = Cell::new(0);
        let row = value.read(RowSeed::new(&self.wanted, value.is_json(), Some(&columns)));
        match row {
            Err(reason) => return Err((key, reason)),
            Ok(None) => changes.extend(key.map(|key| self.change(key, 0, Told::Gone, message))),
            Ok(Some(row)) => {
                let key = self.key(key, Some(&row))?;
                self.meet(columns.get(), value);
                changes.push(self.change(key, 0, Told::Now(row), message));
            }
        }
        Ok(())
    }

    /// The change that stands for a message that cannot be used.
    fn refused<R>(&self, key: Option<Text>, reason: String, message: &Message<'_>) -> RowChange<R> {
        let reject = self.reject(key, reason, message);
        Upsert::row(reject.source_key(), Err(Box::new(reject)))
    }

    fn reject(&self, key: Option<Text>, reason: String, message: &Message<'_>) -> Reject {
        let raw = match (&self.format.encoding, message.value) {
            // Kept so that it can be tried again without its headers.
            (Encoding::Avro(_), Some(value)) => {
                framing::framed(Part::Value, value, message.headers).map(Bytes::from)
            }
            _ => None,
        };
        let as_it_came = || message.value.or(message.key).unwrap_or_default().into();
        Reject {
            position: message.position(),
            key,
            stage: DECODE.into(),
            field: field_of(&reason),
            reason: reason.into(),
            raw: raw.unwrap_or_else(as_it_came),
            first_seen: message.received,
        }
    }

    /// The key of a row: the message's own, or what the row's key columns make.
    fn key(&self, own: Option<Text>, row: Option<&Row<'_>>) -> Result<Text, Refused> {
        let key = match row {
            _ if self.format.key_columns.is_empty() => own,
            Some(row) => Some(self.key_of(row).map_err(|reason| (own, reason))?),
            None => None,
        };
        key.ok_or_else(|| (None, NO_KEY.to_owned()))
    }

    /// Tells when the columns of a table have changed; `digest` is that of a row's names.
    fn watch_columns(&mut self, digest: u64, value: &Written<'_>, message: &Message<'_>) {
        self.meet(digest, value);
        let topic = message.topic();
        let known = self.columns.get(topic);
        if known.is_some_and(|known| known.digest == digest) {
            return;
        }
        let names = self.columns_of(value);
        if let Some(known) = known {
            let list = |names: &BTreeSet<String>, others| -> String {
                let names: Vec<_> = names.difference(others).map(String::as_str).collect();
                names.join(", ")
            };
            let (added, gone) = (list(&names, &known.names), list(&known.names, &names));
            tracing::info!(topic, added, gone, "the columns of a table have changed");
        }
        let columns = Columns { digest, names };
        self.columns.insert(topic.to_owned(), columns);
    }

    /// The names of all columns of a message's row.
    fn columns_of(&self, value: &Written<'_>) -> BTreeSet<String> {
        let event = value.tree().unwrap_or_default();
        let row = match self.format.envelope {
            Envelope::Debezium => &event["after"],
            _ => &event,
        };
        let columns = row.as_object().into_iter();
        columns.flat_map(|row| row.keys().cloned()).collect()
    }

    /// Takes note of further columns; `digest` is that of a row's names.
    fn meet(&mut self, digest: u64, value: &Written<'_>) {
        let Some(further) = &self.format.further else {
            return;
        };
        if self.met.len() > MOST_MET {
            self.met.clear();
        }
        if self.met.contains(&digest) {
            return;
        }
        let flattened = self.format.envelope == Envelope::Flattened;
        let names = self.columns_of(value).into_iter();
        let names = names.filter(|name| {
            !(self.format.columns.contains(name) || flattened && name.starts_with(OF_EVENT))
        });
        let written = names.map(|name| column_name(&name, self.format.taken).into_owned());
        match further.admit(written.collect()) {
            Ok(()) => drop(self.met.insert(digest)),
            Err(column) => self.too_many = Some(column),
        }
    }

    /// A row that was deleted, or whose key has changed: then another event tells of it under its new key.
    fn gone<'w>(&self, key: &Text, message: &Message<'_>) -> Told<'w> {
        let header = (message.headers)(NEW_KEY);
        let to = header.and_then(|header| match self.format.key_columns.as_slice() {
            [] => plain_key(true, &header).ok()?,
            _ => {
                let row = RowSeed::new(&self.wanted, true, None);
                self.key_of(&read_json(&header, row).ok()??).ok()
            }
        });
        match to.filter(|to| to != key) {
            Some(to) => Told::Left(to),
            None => Told::Gone,
        }
    }

    /// The key that a row's key columns make: the value of one, an object of several.
    fn key_of(&self, row: &Row<'_>) -> Result<Text, String> {
        let mut values = Vec::new();
        for (name, place) in self.format.key_columns.iter().zip(&self.key_places) {
            let value = match &row.fields[*place] {
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
        Ok(key_text(values))
    }
}

/// Tries messages again that could not be used once, and may be now that other columns or another
/// format are asked for.
pub struct Retry(Decoder);

impl Retry {
    /// Tries by this format.
    pub fn new(format: Format) -> Self {
        Self(Decoder::new(Format {
            // The key has been read already.
            json_keys: false,
            ..format
        }))
    }

    /// What a message that was rejected does to a row, if it is of use now: it tells its row, or that
    /// which was not sent of it is all that is lacking.
    pub fn row<R: SourceRow>(&mut self, reject: &Reject) -> Option<RowChange<R>> {
        if is_lacking(reject) {
            return None;
        }
        let (origin, offset) = parted(&reject.position);
        let mut message = Message {
            key: None,
            value: Some(&reject.raw),
            headers: NO_HEADERS,
            origin,
            offset,
            received: reject.first_seen,
        };
        let prefix = format!("{}/", message.topic());
        let key = reject.key.as_deref();
        let own_key = key.map(|key| match self.0.format.several_topics {
            true => key.strip_prefix(&prefix).unwrap_or(key),
            false => key,
        });
        message.key = own_key.map(str::as_bytes);
        // Rejects come in no order, so none repeats another.
        self.0.repetitions.clear();
        let mut told = Vec::new();
        self.0.decode(&message, &mut told).ok()?;
        let told = told.pop()?;
        let state = match told.state {
            usable @ (State::More(Ok(_)) | State::Row(Ok(_)) | State::Patch(_)) => usable,
            _ => return None,
        };
        Some(Upsert { state, ..told })
    }
}

/// A part of a message as it was written: in Avro if it has a schema, else in JSON or as plain text.
struct Written<'m> {
    schema: Option<Arc<Schema>>,
    bytes: &'m [u8],
}

impl<'m> Written<'m> {
    fn is_json(&self) -> bool {
        self.schema.is_none()
    }

    fn read<S: DeserializeSeed<'m>>(&'m self, seed: S) -> Result<S::Value, String> {
        match &self.schema {
            Some(schema) => schema.read(self.bytes, seed),
            None => read_json(self.bytes, seed),
        }
    }

    /// All of it, without the schema that may stand before it.
    fn tree(&'m self) -> Option<Value> {
        match self.read(PhantomData).ok()? {
            Value::Object(mut parts) if parts.len() == 2 && parts.contains_key("schema") => {
                let payload = parts.remove("payload");
                payload.or(Some(Value::Object(parts)))
            }
            value => Some(value),
        }
    }
}

const NO_SCHEMA_NUMBER: &str = "the value does not tell the number of its schema; is it written in Avro, with a registry? \
     Apicurio's converter needs use-id=contentId";

/// A message that cannot be used: the key of its row, if it has one, and why.
type Refused = (Option<Text>, String);

const NO_KEY: &str = "the message has no key; name the columns that tell rows apart in source.kafka.key, or \"*\" \
     for a table without any";

/// Why a row that went before it came is a reject until it comes.
const LACKING: &str = "a row of a table without a key has gone that has not been told yet";

/// Whether this stands for a row that went before it came.
pub fn is_lacking(reject: &Reject) -> bool {
    *reject.reason == *LACKING
}

const NO_BEFORE: &str = "the message does not tell the row as it was; set replica identity full";

/// What a flattened row tells of its event, and the places of these fields after the others.
const MARKERS: [&str; 3] = ["__op", "__deleted", "__lsn"];
const OP: usize = 0;
const DELETED: usize = 1;
const LSN: usize = 2;

/// What a message told of one row.
enum Told<'a> {
    Now(Row<'a>),
    /// There is one copy less.
    Fewer,
    Gone,
    /// It has this key now.
    Left(Text),
    /// So are all rows of the table.
    Truncated,
}

/// Why a message is refused that has this further column, which is one too many.
fn too_many_for(column: &str) -> String {
    format!(
        "field \"{column}\": there are {MOST} further columns already; does the row hold data in its names?"
    )
}

/// The columns of a topic's last row.
struct Columns {
    digest: u64,
    names: BTreeSet<String>,
}

/// The key that rows are told apart by; a JSON object of one column is that column's value.
fn plain_key(json: bool, bytes: &[u8]) -> Result<Option<Text>, String> {
    let text = std::str::from_utf8(bytes).map_err(|_| "the key is not UTF-8".to_owned())?;
    if !json {
        return Ok(Some(text.into()));
    }
    if let Some(key) = single_key(text) {
        return Ok(Some(key));
    }
    let mut json = serde_json::Deserializer::from_str(text);
    let parsed = KeySeed
        .deserialize(&mut json)
        .and_then(|key| json.end().map(|()| key));
    match parsed {
        Ok(key) => Ok(key),
        // Keys of connectors without a JSON converter are plain strings, and may begin as JSON does.
        Err(_) => Ok(Some(text.into())),
    }
}

fn read_json<'a, S: DeserializeSeed<'a>>(bytes: &'a [u8], seed: S) -> Result<S::Value, String> {
    // Looked at once for all of it, which is faster than string by string.
    let text = simdutf8::compat::from_utf8(bytes);
    let text = text.map_err(|at| format!("not UTF-8 at byte {}", at.valid_up_to()))?;
    let mut json = serde_json::Deserializer::from_str(text);
    let value = seed.deserialize(&mut json);
    let value = value.and_then(|value| json.end().map(|()| value));
    value.map_err(|error| format!("not a JSON object: {error}"))
}
