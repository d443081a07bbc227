//! A topic of Kafka as a sink: what changes, as messages of Debezium or as the last row of each key.

use std::collections::HashMap;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::{Int64Type, SchemaRef};
use connectors::kafka::{Published, Publisher, TopicSettings, Transaction};
use dataflows::change::Epoch;
use dataflows::index::{DIFF, EPOCH};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::task::block_in_place;

use super::{Failure, Sink};
use crate::query::peek::Changes;

/// The shape of messages.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Envelope {
    /// The row, and nothing once it is gone.
    #[default]
    Upsert,
    /// The row before and after, as Debezium has it, and nothing after one that is gone.
    Debezium,
}

/// Which relation is published where, and how.
#[derive(Clone, Debug)]
pub struct PublisherPlan {
    /// The relation.
    pub relation: &'static str,
    /// How many of its first columns tell its rows apart.
    pub key_columns: usize,
    /// The messages' shape.
    pub envelope: Envelope,
    /// The topic.
    pub settings: TopicSettings,
}

pub(super) struct TopicSink {
    publisher: Publisher,
    messages: Messages,
    /// What the topic holds, until it has been compared.
    published: Published,
}

impl Sink for TopicSink {
    type Plan = PublisherPlan;

    const NAME: &'static str = "kafka";

    fn relation(plan: &PublisherPlan) -> &str {
        plan.relation
    }

    async fn open(plan: &PublisherPlan, schema: SchemaRef) -> Result<Self, Failure> {
        let opened = block_in_place(|| Publisher::open(plan.settings.clone()));
        let (publisher, published) = opened?;
        let messages = Messages {
            relation: plan.relation,
            envelope: plan.envelope,
            key_columns: (0..plan.key_columns).collect(),
            columns: (0..schema.fields().len()).collect(),
        };
        Ok(Self {
            publisher,
            messages,
            published,
        })
    }

    async fn reset(
        &mut self,
        epoch: Epoch,
        rows: &[RecordBatch],
    ) -> Result<(usize, usize), Failure> {
        let mut published = std::mem::take(&mut self.published);
        block_in_place(|| {
            let mut output = Output::begin(&self.publisher, &self.messages)?;
            for rows in rows {
                let (keys, rows) = self.messages.json(rows)?;
                for (key, row) in keys.lines().zip(rows.lines()) {
                    let value = published.remove(key.as_bytes());
                    let before = value.as_deref().and_then(|value| self.messages.row(value));
                    if before != Some(row) {
                        output.send(epoch, key.as_bytes(), before, Some(row))?;
                    }
                }
            }
            for (key, value) in &published {
                output.send(epoch, key, self.messages.row(value), None)?;
            }
            output.commit()
        })
    }

    async fn apply(&mut self, changes: &Changes) -> Result<(usize, usize), Failure> {
        if changes.batches.iter().all(|batch| batch.num_rows() == 0) {
            return Ok((0, 0));
        }
        block_in_place(|| {
            let mut output = Output::begin(&self.publisher, &self.messages)?;
            for batch in &changes.batches {
                output.send_epoch(batch)?;
            }
            output.commit()
        })
    }
}

/// A transaction that counts.
struct Output<'sink> {
    transaction: Transaction<'sink>,
    messages: &'sink Messages,
    written: usize,
    removed: usize,
}

impl<'sink> Output<'sink> {
    fn begin(publisher: &'sink Publisher, messages: &'sink Messages) -> Result<Self, Failure> {
        Ok(Self {
            transaction: publisher.begin()?,
            messages,
            written: 0,
            removed: 0,
        })
    }

    /// Sends what changed in one epoch. All of a key's changes are in one batch: the row that goes may come
    /// after the one that comes.
    fn send_epoch(&mut self, changes: &RecordBatch) -> Result<(), Failure> {
        let (Some(epochs), Some(diffs)) = (numbers(changes, EPOCH), numbers(changes, DIFF)) else {
            return Ok(());
        };
        let (keys, rows) = self.messages.json(changes)?;
        let mut by_key: HashMap<&str, (u64, Option<&str>, Option<&str>)> = HashMap::new();
        let rows = keys.lines().zip(rows.lines());
        for ((key, row), (epoch, diff)) in rows.zip(epochs.iter().zip(diffs)) {
            let change = by_key.entry(key).or_default();
            change.0 = epoch.unsigned_abs();
            match *diff < 0 {
                true => change.1 = Some(row),
                false => change.2 = Some(row),
            }
        }
        for (key, (epoch, before, after)) in by_key {
            self.send(epoch, key.as_bytes(), before, after)?;
        }
        Ok(())
    }

    fn send(
        &mut self,
        epoch: Epoch,
        key: &[u8],
        before: Option<&str>,
        after: Option<&str>,
    ) -> Result<(), Failure> {
        match after {
            Some(_) => self.written += 1,
            None => self.removed += 1,
        }
        if let Some(value) = self.messages.value(epoch, before, after)? {
            self.transaction.send(epoch, key, Some(value.as_bytes()))?;
        }
        // So that a compacted topic forgets it.
        if after.is_none() {
            self.transaction.send(epoch, key, None)?;
        }
        Ok(())
    }

    fn commit(self) -> Result<(usize, usize), Failure> {
        self.transaction.commit()?;
        Ok((self.written, self.removed))
    }
}

fn numbers<'rows>(rows: &'rows RecordBatch, column: &str) -> Option<&'rows [i64]> {
    let column = rows.column_by_name(column)?;
    let column = column.as_primitive_opt::<Int64Type>()?;
    Some(column.values())
}

/// How rows become messages.
struct Messages {
    relation: &'static str,
    envelope: Envelope,
    key_columns: Vec<usize>,
    columns: Vec<usize>,
}

/// A message in Debezium's envelope.
#[derive(Serialize)]
struct Change<'rows> {
    before: Option<&'rows RawValue>,
    after: Option<&'rows RawValue>,
    source: Origin,
    op: &'static str,
    ts_ms: Epoch,
}

/// What a message says of where it is from.
#[derive(Serialize)]
struct Origin {
    version: &'static str,
    connector: &'static str,
    name: &'static str,
    ts_ms: Epoch,
    db: &'static str,
    table: &'static str,
}

#[derive(Deserialize)]
struct Changed<'message> {
    #[serde(borrow)]
    after: Option<&'message RawValue>,
}

impl Messages {
    /// The rows' keys and the rows, in JSON, each on a line of its own.
    fn json(&self, rows: &RecordBatch) -> Result<(String, String), Failure> {
        let lines = |columns: &[usize]| -> Result<String, Failure> {
            Ok(sql::to_json_lines(&rows.project(columns)?)?)
        };
        Ok((lines(&self.key_columns)?, lines(&self.columns)?))
    }

    /// The row that a message tells of, if it can be read.
    fn row<'message>(&self, value: &'message [u8]) -> Option<&'message str> {
        match self.envelope {
            Envelope::Upsert => std::str::from_utf8(value).ok(),
            Envelope::Debezium => {
                let changed: Changed<'_> = serde_json::from_slice(value).ok()?;
                changed.after.map(RawValue::get)
            }
        }
    }

    fn value(
        &self,
        epoch: Epoch,
        before: Option<&str>,
        after: Option<&str>,
    ) -> Result<Option<String>, Failure> {
        if self.envelope == Envelope::Upsert {
            return Ok(after.map(str::to_owned));
        }
        let change = Change {
            before: before.map(serde_json::from_str).transpose()?,
            after: after.map(serde_json::from_str).transpose()?,
            source: Origin {
                version: env!("CARGO_PKG_VERSION"),
                connector: "assay",
                name: "assay",
                ts_ms: epoch,
                db: "assay",
                table: self.relation,
            },
            op: match (before, after) {
                (None, Some(_)) => "c",
                (Some(_), Some(_)) => "u",
                (_, None) => "d",
            },
            ts_ms: epoch,
        };
        Ok(Some(serde_json::to_string(&change)?))
    }
}
