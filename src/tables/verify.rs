//! Derives every relation from bronze again and tells where a table differs, changing nothing.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use dataflows::change::{Epoch, Text};
use dataflows::intake::FormatNow;
use dataflows::pipelines::mentions;
use dataflows::ports::{
    Checkpoint, Committer, Environment, FileRows, Model, Models, Observer, PredictionObserver,
    RejectObserver, Removal, Reply, Score, Sink, Standing, StoredFile, Written,
};
use roaring::RoaringBitmap;

use super::columns;
use super::derive::{derive, process};
use crate::plan::Plan;
use crate::progress::thousands;
use crate::runtime;
use crate::wire::WorkerEnvironment;

/// Rows that are shown of each table, of those it lacks and of those it has too much of.
const SHOWN: usize = 10;

/// Compares all tables with what they should hold; returns what differs, for people, and whether
/// nothing does.
///
/// # Errors
/// If the tables cannot be read.
pub(super) fn verify(plan: &Plan, rescore: bool) -> anyhow::Result<(String, bool)> {
    let runtime = runtime()?;
    let process = process(plan, &runtime)?;
    process.read_tables()?;
    let found = Arc::new(Mutex::new(BTreeMap::new()));
    let shared = Arc::clone(&found);
    derive(&process, move |inner| Rehearsal {
        inner,
        rescore,
        found: shared,
    })?;
    let found = found.lock().unwrap_or_else(PoisonError::into_inner);
    let mut rows = Vec::new();
    let mut differing = String::new();
    let mut equal = true;
    for relation in mentions::RELATIONS {
        let table = found.get(relation).context("a relation was not compared")?;
        equal &= table.missing.count == 0 && table.surplus.count == 0;
        rows.push(vec![
            relation.to_owned(),
            thousands(table.rows as u64),
            thousands(table.missing.count as u64),
            thousands(table.surplus.count as u64),
        ]);
        differing += &table.missing.show(&format!("{relation} lacks"))?;
        differing += &table.surplus.show(&format!("{relation} has too much"))?;
    }
    let mut printed = columns(&["table", "rows", "missing", "surplus"], &rows) + &differing;
    printed += match equal {
        true => "every table holds what follows from bronze\n",
        false => "the next start of Assay mends what differs\n",
    };
    Ok((printed, equal))
}

/// What was found in one table.
#[derive(Default)]
struct Compared {
    rows: usize,
    missing: Rows,
    surplus: Rows,
}

/// Rows that are counted, the first of them kept.
#[derive(Default)]
struct Rows {
    count: usize,
    first: Vec<RecordBatch>,
}

impl Rows {
    fn add(&mut self, rows: &RecordBatch) {
        let kept: usize = self.first.iter().map(RecordBatch::num_rows).sum();
        if kept < SHOWN {
            self.first
                .push(rows.slice(0, rows.num_rows().min(SHOWN - kept)));
        }
    }

    fn show(&self, what: &str) -> anyhow::Result<String> {
        let rows = sql::to_json(&self.first)?;
        let mut shown: String = rows.iter().map(|row| format!("{what}: {row}\n")).collect();
        if self.count > rows.len() {
            shown += &format!(
                "{what}: {} more\n",
                thousands((self.count - rows.len()) as u64)
            );
        }
        Ok(shown)
    }
}

type Found = Arc<Mutex<BTreeMap<&'static str, Compared>>>;

/// An environment in which everything is read and nothing written.
struct Rehearsal {
    inner: WorkerEnvironment,
    rescore: bool,
    found: Found,
}

impl Environment for Rehearsal {
    fn models(&mut self, name: &str) -> Option<Box<dyn Models>> {
        Some(Box::new(OnlyCurrent(self.inner.models(name)?)))
    }

    fn recalls_scores(&self) -> bool {
        !self.rescore
    }

    fn sink(&mut self, relation: &'static str, schema: SchemaRef) -> Option<Box<dyn Sink>> {
        let inner = self.inner.sink(relation, schema)?;
        let found = Arc::clone(&self.found);
        Some(Box::new(ComparingSink {
            inner,
            relation,
            found,
        }))
    }

    fn indexed(&self, _: &'static str) -> bool {
        false
    }

    fn observer(&mut self, _: &'static str) -> Observer {
        Box::new(|_, _| {})
    }

    fn rejected(&mut self) -> RejectObserver {
        Box::new(|_, _| {})
    }

    fn predicted(&mut self) -> PredictionObserver {
        Box::new(|_, _, _| {})
    }

    fn committer(&mut self) -> Option<Box<dyn Committer>> {
        Some(Box::new(Discard))
    }

    fn checkpoint_interval(&self) -> u64 {
        self.inner.checkpoint_interval()
    }

    fn restored_epoch(&self) -> Epoch {
        self.inner.restored_epoch()
    }

    fn format(&self, source: &str) -> FormatNow {
        self.inner.format(source)
    }

    fn replays(&self, source: &str) -> bool {
        self.inner.replays(source)
    }
}

/// Models of which only the current one says anything more: how far the candidate has come and which texts came in a
/// burst is nothing that follows from bronze.
struct OnlyCurrent(Box<dyn Models>);

impl Models for OnlyCurrent {
    fn current(&mut self) -> Box<dyn Model> {
        self.0.current()
    }

    fn candidate(&mut self) -> Option<Box<dyn Model>> {
        Some(Box::new(Silent(self.0.candidate()?.fingerprint())))
    }

    fn find(&mut self, fingerprint: &str) -> Option<Box<dyn Model>> {
        self.0.find(fingerprint)
    }

    fn fast(&mut self) -> Option<Box<dyn Model>> {
        Some(Box::new(Silent(self.0.fast()?.fingerprint())))
    }

    fn is_burst(&mut self, _: usize) -> bool {
        false
    }

    fn replaces(&mut self) -> bool {
        false
    }

    fn note(&mut self, _: Standing) {}
}

struct Silent(Text);

impl Model for Silent {
    fn fingerprint(&self) -> Text {
        self.0.clone()
    }

    fn submit(&mut self, _: Vec<Text>, _: Reply<Vec<(Text, Score)>>) {}
}

struct Discard;

impl Committer for Discard {
    fn commit(&mut self, _: Checkpoint, reply: Reply<()>) {
        reply.send(());
    }
}

/// Takes note of what a table's sink would have been told to write.
struct ComparingSink {
    inner: Box<dyn Sink>,
    relation: &'static str,
    found: Found,
}

impl ComparingSink {
    fn note(&self, note: impl FnOnce(&mut Compared)) {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        note(found.entry(self.relation).or_default());
    }

    /// The rows of a file with these numbers.
    fn rows(&self, removal: &Removal) -> Result<Vec<RecordBatch>, String> {
        let mut rows = Vec::new();
        let mut number = 0;
        for batch in self.inner.read(&removal.file)?.batches {
            for row in 0..batch.num_rows() {
                if removal.rows.contains(number) {
                    rows.push(batch.slice(row, 1));
                }
                number += 1;
            }
        }
        Ok(rows)
    }
}

/// Nothing was written.
const NOTHING: Written = Written {
    file: None,
    actions: Vec::new(),
};

impl Sink for ComparingSink {
    fn files(&self) -> &[StoredFile] {
        self.inner.files()
    }

    fn read(&self, file: &StoredFile) -> Result<FileRows, String> {
        self.inner.read(file)
    }

    fn removed(&self, file: &StoredFile) -> Result<RoaringBitmap, String> {
        self.inner.removed(file)
    }

    fn append(&mut self, rows: RecordBatch, moved: bool, reply: Reply<Written>) {
        if !moved {
            self.note(|compared| compared.missing.add(&rows));
        }
        reply.send(NOTHING);
    }

    fn fetch(&mut self, files: Vec<Text>, reply: Reply<Vec<Option<Vec<RecordBatch>>>>) {
        // Files are left as they are.
        reply.send(vec![None; files.len()]);
    }

    fn remove(&mut self, removals: Vec<Removal>, reply: Reply<Vec<Written>>) {
        for removal in &removals {
            // Its rows were read a moment ago, when they were compared.
            let rows = self.rows(removal).unwrap_or_default();
            self.note(|compared| rows.iter().for_each(|row| compared.surplus.add(row)));
        }
        reply.send(vec![NOTHING; removals.len()]);
    }

    fn compared(&mut self, missing: usize, surplus: usize) {
        let files = self.inner.files().iter();
        let rows: u64 = files
            .map(|file| {
                let removed = self.inner.removed(file).map_or(0, |removed| removed.len());
                u64::from(file.rows) - removed
            })
            .sum();
        self.note(|compared| {
            compared.rows = rows as usize;
            compared.missing.count = missing;
            compared.surplus.count = surplus;
        });
    }
}
