//! Removes a person's rows from every relation, and on request from every file, and proves it.
//!
//! Rows of the source (bronze, and rejects that never became a row) are taken out directly, by one
//! checkpoint; everything else follows from them, as at any start. A purge then rewrites the files
//! that still hold removed rows, drops all earlier versions, and looks through every file that is left.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, ensure};
use arrow::array::{AsArray, BooleanArray, RecordBatch};
use arrow::compute::filter_record_batch;
use connectors::delta::{DataFile, FileRemoval, Table, TablesFolder, further, of_relation};
use dataflows::pipelines::mentions::{Bronze, RELATIONS, Silver};
use dataflows::record::Record;
use dataflows::reject::{DECODE, Reject};
use roaring::RoaringBitmap;
use serde::Serialize;
use serde_json::Value;
use sql::Condition;

use super::derive::{derive, process};
use super::{commit, raw, rewrite};
use crate::checkpoint::store::{Store, TablesPlan};
use crate::plan::{Plan, SourcePlan};
use crate::query::past;
use crate::runtime;

/// What was removed from where.
#[derive(Debug, Serialize)]
pub struct Receipt {
    /// Which rows of bronze were to go.
    pub condition: String,
    /// When, in UTC.
    pub time: String,
    /// The folder of the tables.
    pub tables: String,
    /// For every relation how many rows went, and how many came in place of them.
    pub relations: BTreeMap<String, Changed>,
    /// What a purge did, if one was asked for.
    pub purge: Option<Purged>,
}

/// How a relation changed.
#[derive(Debug, Default, Serialize)]
pub struct Changed {
    /// Rows that went.
    pub rows_removed: u64,
    /// Rows that came: counts without what was forgotten.
    pub rows_added: u64,
}

/// What a purge did and found.
#[derive(Debug, Serialize)]
pub struct Purged {
    /// Files that were removed.
    pub files_removed: usize,
    /// Files that are left, every one of which was decoded and looked through.
    pub files_scanned: usize,
    /// The places in them where something of the forgotten rows is left: none, if all went well.
    pub traces: Vec<String>,
}

/// Forgets the rows of bronze for which a condition holds, and writes a receipt.
///
/// # Errors
/// If the condition is not understood, the source still holds the rows, someone else writes the
/// tables, or a purge left a trace.
pub fn run(plan: &Plan, text: &str, purge: bool, receipt: &Path) -> anyhow::Result<()> {
    let tables = plan.tables_plan()?;
    let tables = tables.context("the configuration keeps no tables")?;
    let runtime = runtime()?;
    let condition = runtime.block_on(RowCondition::parse(text, &tables))?;

    let (before, forgotten) = runtime.block_on(async {
        let mut store = Store::write(&tables).await?;
        let forgotten = Forgotten::find(&tables, &store, &condition, purge).await?;
        ensure_gone_from_source(&plan.source, &forgotten)?;
        let before = store.epoch();
        remove(&mut store, &condition, &forgotten).await?;
        store.release().await;
        anyhow::Ok((before, forgotten))
    })?;
    let process = process(plan, &runtime)?;
    process.open_tables()?;
    derive(&process, |environment| environment)?;
    process.close_tables();

    let receipt_of = async {
        let relations = changed_since(&tables, before).await?;
        let purge = match purge {
            true => Some(purge_all(&tables, &condition, &forgotten).await?),
            false => None,
        };
        anyhow::Ok(Receipt {
            condition: text.to_owned(),
            time: chrono::Utc::now().format("%Y-%m-%dT%H:%M:%SZ").to_string(),
            tables: tables.folder.location().to_owned(),
            relations,
            purge,
        })
    };
    let told = runtime.block_on(receipt_of)?;
    let text = serde_json::to_string_pretty(&told)? + "\n";
    std::fs::write(receipt, &text).with_context(|| {
        format!(
            "cannot write the receipt \"{}\":\n{text}",
            receipt.display()
        )
    })?;
    print!("{text}");
    if told.purge.is_some_and(|purged| !purged.traces.is_empty()) {
        return Err(TracesLeft.into());
    }
    Ok(())
}

/// A condition on rows of bronze, further columns included.
struct RowCondition {
    condition: Condition,
    further: Vec<String>,
}

impl RowCondition {
    async fn parse(text: &str, tables: &TablesPlan) -> anyhow::Result<Self> {
        let (folder, schema) = (&tables.folder, Bronze::schema());
        let bronze = Table::open_existing(folder, Bronze::RELATION, schema, tables.deletes).await?;
        let further = bronze.map_or_else(|| Ok(Vec::new()), |bronze| bronze.further())?;
        let condition = Condition::parse(text, &further::shown(&Bronze::schema(), &further))
            .with_context(|| format!("cannot understand the condition \"{text}\""))?;
        Ok(Self { condition, further })
    }

    fn holds(&self, rows: &RecordBatch) -> anyhow::Result<Vec<bool>> {
        let rows = further::expand(rows, &self.further)?;
        Ok(self.condition.holds(&rows)?)
    }

    fn literals(&self) -> &[String] {
        self.condition.literals()
    }
}

/// A purge did not remove everything.
#[derive(Debug, thiserror::Error)]
#[error("something of the forgotten rows is left; the receipt says where")]
struct TracesLeft;

/// What tells of the rows that go, and of nothing that stays.
#[derive(Debug, Default)]
struct Forgotten {
    keys: HashSet<String>,
    users: HashSet<String>,
    texts: HashSet<String>,
    /// Where the rows came from.
    sources: BTreeSet<String>,
}

impl Forgotten {
    /// Reads what tells of the rows, those included that earlier versions of bronze still hold.
    async fn find(
        tables: &TablesPlan,
        store: &Store,
        condition: &RowCondition,
        earlier: bool,
    ) -> anyhow::Result<Self> {
        let mut goes = Self::default();
        let mut stays = Self::default();
        for rows in rows_of(tables, store, Bronze::RELATION, earlier).await? {
            goes.add(&filter(&rows, condition.holds(&rows)?)?)?;
        }
        for rows in rows_of(tables, store, Bronze::RELATION, false).await? {
            let held = condition.holds(&rows)?;
            stays.add(&filter(&rows, held.iter().map(|held| !held))?)?;
        }
        // A tweet without its mentions is a text of its own.
        for rows in rows_of(tables, store, Silver::RELATION, earlier).await? {
            for row in Silver::from_batch(&rows).map_err(anyhow::Error::msg)? {
                if goes.keys.contains(&*row.key) {
                    goes.texts.insert(row.cleaned_text.to_string());
                }
            }
        }
        for rows in rows_of(tables, store, Silver::RELATION, false).await? {
            for row in Silver::from_batch(&rows).map_err(anyhow::Error::msg)? {
                if !goes.keys.contains(&*row.key) || stays.keys.contains(&*row.key) {
                    stays.texts.insert(row.cleaned_text.to_string());
                }
            }
        }
        goes.keys.retain(|key| !stays.keys.contains(key));
        goes.users.retain(|user| !stays.users.contains(user));
        goes.texts.retain(|text| !stays.texts.contains(text));
        Ok(goes)
    }

    fn add(&mut self, rows: &RecordBatch) -> anyhow::Result<()> {
        for row in Bronze::from_batch(rows).map_err(anyhow::Error::msg)? {
            self.keys.insert(row.key.to_string());
            self.users.extend(row.user.as_deref().map(str::to_owned));
            self.texts.insert(row.text.to_string());
            self.sources.insert(row.source_file.to_string());
        }
        Ok(())
    }

    /// Whether a reject that never became a row is of theirs: by its key, or because its bytes hold
    /// one of the texts or, quoted, what the condition names.
    fn owns(&self, reject: &Reject, condition: &RowCondition) -> bool {
        if *reject.stage != *DECODE {
            return false;
        }
        let named = condition.literals().iter();
        let mut quoted = named.map(|name| Value::from(name.as_str()).to_string());
        let raw = String::from_utf8_lossy(&reject.raw);
        self.keys.contains(&*reject.source_key())
            || quoted.any(|name| raw.contains(&name))
            || self.texts.iter().any(|text| raw.contains(text.as_str()))
    }
}

/// The rows of a relation: those of now, or all that any file in its folder still holds.
async fn rows_of(
    tables: &TablesPlan,
    store: &Store,
    relation: &str,
    earlier: bool,
) -> anyhow::Result<Vec<RecordBatch>> {
    if !earlier {
        return Ok(table(store, relation)?.rows().await?);
    }
    let mut rows = Vec::new();
    for file in data_files(&tables.folder, relation).await? {
        rows.extend(rows_in(tables, &file).await?);
    }
    Ok(rows)
}

/// The rows that were written to a data file, with the columns of their relation.
async fn rows_in(tables: &TablesPlan, file: &str) -> anyhow::Result<Vec<RecordBatch>> {
    let mut relations = tables.relations.iter();
    let relation = relations.find(|(relation, _)| *relation == relation_of(file));
    let (_, schema) = relation.with_context(|| format!("\"{file}\" is of no relation"))?;
    let rows = tables.folder.read_rows(file).await?;
    let rows = rows.iter().map(|rows| of_relation(rows, schema));
    Ok(rows.collect::<Result<_, _>>()?)
}

fn table<'s>(store: &'s Store, relation: &str) -> anyhow::Result<&'s Table> {
    store
        .table(relation)
        .with_context(|| format!("there is no table \"{relation}\""))
}

fn filter(rows: &RecordBatch, keep: impl IntoIterator<Item = bool>) -> anyhow::Result<RecordBatch> {
    let keep: Vec<bool> = keep.into_iter().collect();
    Ok(filter_record_batch(rows, &BooleanArray::from(keep))?)
}

/// All data files in the folder of a relation, current or not.
async fn data_files(folder: &TablesFolder, relation: &str) -> anyhow::Result<Vec<String>> {
    let files = folder.files(&[relation]).await?.into_iter();
    Ok(files
        .filter(|file| is_data(file) && relation_of(file) == relation)
        .collect())
}

fn is_data(file: &str) -> bool {
    file.ends_with(".parquet") && !file.contains("/_delta_log/")
}

fn relation_of(file: &str) -> &str {
    file.split('/').next().unwrap_or_default()
}

/// A folder tells all that is in it at every start: what is to be forgotten must not be in it.
fn ensure_gone_from_source(source: &SourcePlan, forgotten: &Forgotten) -> anyhow::Result<()> {
    let SourcePlan::Files(folder) = source else {
        return Ok(());
    };
    let files = forgotten.sources.iter().map(|file| folder.join(file));
    let there: Vec<PathBuf> = files.filter(|file| file.exists()).collect();
    let first = there
        .iter()
        .take(10)
        .map(|file| format!("\n  {}", file.display()));
    ensure!(
        there.is_empty(),
        "{} files of the source hold these rows and would bring them back; remove them first:{}",
        there.len(),
        first.collect::<String>()
    );
    Ok(())
}

/// Takes the rows out of the relations that come from the source, by one checkpoint.
async fn remove(
    store: &mut Store,
    condition: &RowCondition,
    forgotten: &Forgotten,
) -> anyhow::Result<()> {
    let of_condition = |rows: &RecordBatch| condition.holds(rows);
    let of_rejects = |rows: &RecordBatch| {
        let rejects = Reject::from_batch(rows).map_err(anyhow::Error::msg)?;
        Ok(rejects
            .iter()
            .map(|reject| forgotten.owns(reject, condition))
            .collect())
    };
    let bronze = remove_from(table(store, Bronze::RELATION)?, of_condition).await?;
    let rejects = remove_from(table(store, Reject::RELATION)?, of_rejects).await?;
    let mut changes = BTreeMap::new();
    for (relation, actions) in [(Bronze::RELATION, bronze), (Reject::RELATION, rejects)] {
        if !actions.is_empty() {
            changes.insert(relation.to_owned(), raw(&actions)?);
        }
    }
    Ok(commit(store, changes).await?)
}

async fn remove_from(
    table: &Table,
    goes: impl Fn(&RecordBatch) -> anyhow::Result<Vec<bool>>,
) -> anyhow::Result<Vec<connectors::delta::Action>> {
    let data = Arc::new(table.data_files());
    let mut removals = Vec::new();
    for file in table.files().await? {
        let batches = data.read(&file.entry.path).await?;
        let batches = batches.with_context(|| format!("file \"{}\" has gone", file.entry.path))?;
        let removed_before = removed(&data, &file).await?;
        let mut rows = RoaringBitmap::new();
        let mut number = 0;
        for batch in &batches {
            for goes in goes(batch)? {
                if goes && !removed_before.contains(number) {
                    rows.insert(number);
                }
                number += 1;
            }
        }
        if !rows.is_empty() {
            let moved = false;
            removals.push(FileRemoval {
                file,
                removed_before,
                rows,
                moved,
            });
        }
    }
    let changed = data.remove(&removals).await?;
    Ok(changed
        .into_iter()
        .flat_map(|changed| changed.actions)
        .collect())
}

async fn removed(
    data: &Arc<connectors::delta::DataFiles>,
    file: &DataFile,
) -> anyhow::Result<RoaringBitmap> {
    let (data, file) = (Arc::clone(data), file.clone());
    Ok(tokio::task::spawn_blocking(move || data.removed(&file)).await??)
}

/// How every relation has changed since an epoch.
async fn changed_since(
    tables: &TablesPlan,
    epoch: u64,
) -> anyhow::Result<BTreeMap<String, Changed>> {
    let mut relations = BTreeMap::new();
    for relation in RELATIONS {
        let (_, answer) = past::diff(tables, relation, epoch, past::NEWEST).await?;
        let mut changed = Changed::default();
        for batch in &answer.batches {
            let diffs = batch
                .column(0)
                .as_primitive::<arrow::datatypes::Int64Type>();
            for diff in diffs.values() {
                match diff {
                    0.. => changed.rows_added += diff.unsigned_abs(),
                    _ => changed.rows_removed += diff.unsigned_abs(),
                }
            }
        }
        relations.insert(relation.to_owned(), changed);
    }
    Ok(relations)
}

/// Removes everything but the current rows from the storage, and looks whether it is so.
async fn purge_all(
    tables: &TablesPlan,
    condition: &RowCondition,
    forgotten: &Forgotten,
) -> anyhow::Result<Purged> {
    let mut store = Store::write(tables).await?;
    rewrite(&mut store).await?;
    let removed = store.drop_history().await?;
    let purged = scan(tables, condition, forgotten).await;
    store.release().await;
    let (files_scanned, traces) = purged?;
    Ok(Purged {
        files_removed: removed.files,
        files_scanned,
        traces,
    })
}

/// Decodes every file and tells where something of the forgotten rows is left.
async fn scan(
    tables: &TablesPlan,
    condition: &RowCondition,
    forgotten: &Forgotten,
) -> anyhow::Result<(usize, Vec<String>)> {
    let files = tables.folder.files(&RELATIONS).await?;
    let mut traces = BTreeSet::new();
    for file in &files {
        let found = match file {
            file if is_data(file) => {
                let mut found = false;
                for rows in rows_in(tables, file).await? {
                    found |= in_rows(relation_of(file), &rows, condition, forgotten)?;
                }
                found
            }
            file if file.ends_with(".parquet") => {
                let rows = tables.folder.read_rows(file).await?;
                sql::to_json(&rows)?
                    .iter()
                    .any(|value| in_value(value, forgotten))
            }
            file if file.ends_with(".json") || file.ends_with("_last_checkpoint") => {
                let bytes = tables.folder.read(file).await?;
                let mut lines = bytes.split(|byte| *byte == b'\n');
                lines.any(|line| {
                    serde_json::from_slice(line).is_ok_and(|value| in_value(&value, forgotten))
                })
            }
            // A deletion vector holds numbers alone.
            _ => false,
        };
        if found {
            traces.insert(file.clone());
        }
    }
    Ok((files.len(), traces.into_iter().collect()))
}

/// Whether rows of a relation's file tell of something forgotten.
fn in_rows(
    relation: &str,
    rows: &RecordBatch,
    condition: &RowCondition,
    forgotten: &Forgotten,
) -> anyhow::Result<bool> {
    if relation == Bronze::RELATION && condition.holds(rows)?.contains(&true) {
        return Ok(true);
    }
    if relation == Reject::RELATION {
        let rejects = Reject::from_batch(rows).map_err(anyhow::Error::msg)?;
        if rejects
            .iter()
            .any(|reject| forgotten.owns(reject, condition))
        {
            return Ok(true);
        }
    }
    let schema = rows.schema();
    let mut columns = schema.fields().iter().zip(rows.columns());
    Ok(columns.any(|(field, column)| {
        let known = match field.name().as_str() {
            "key" => &forgotten.keys,
            "user" => &forgotten.users,
            "text" | "cleaned_text" => &forgotten.texts,
            _ => return false,
        };
        let mut values = column
            .as_string_opt::<i32>()
            .into_iter()
            .flatten()
            .flatten();
        values.any(|value| known.contains(value))
    }))
}

/// Statistics cut long texts short; a beginning of so many characters tells whose text it is.
const TELLING_BEGINNING: usize = 24;

/// Whether a value of a log or manifest holds a forgotten text, or enough of its beginning.
fn in_value(value: &Value, forgotten: &Forgotten) -> bool {
    match value {
        Value::String(text) => {
            let begins = || {
                text.chars().count() >= TELLING_BEGINNING
                    && forgotten
                        .texts
                        .iter()
                        .any(|forgotten| forgotten.starts_with(text.as_str()))
            };
            // Statistics are JSON within JSON.
            let inner = || {
                serde_json::from_str::<Value>(text).is_ok_and(|inner| {
                    (inner.is_object() || inner.is_array()) && in_value(&inner, forgotten)
                })
            };
            forgotten.texts.contains(text) || begins() || inner()
        }
        Value::Array(values) => values.iter().any(|value| in_value(value, forgotten)),
        Value::Object(values) => values.values().any(|value| in_value(value, forgotten)),
        _ => false,
    }
}
