//! Keeps a table of PostgreSQL equal to a relation, epoch by epoch.

use std::collections::HashMap;
use std::time::Duration;

use arrow::array::{AsArray, RecordBatch};
use arrow::compute::interleave_record_batch;
use arrow::datatypes::Int64Type;
use arrow::error::ArrowError;
use connectors::postgres::{Mirror, MirrorError, MirrorSettings, keys};
use dataflows::change::Epoch;
use dataflows::index::{DIFF, Selection};
use serde_json::Value;
use sql::ReadError;

use crate::metrics;
use crate::query::peek::{FollowError, Peeker};
use crate::wire::Process;

/// How long to wait before the first new attempt, and at most.
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// Which relation is mirrored where.
#[derive(Clone, Debug)]
pub struct MirrorPlan {
    /// The relation; its rows are told apart by its first column.
    pub relation: String,
    /// The table.
    pub settings: MirrorSettings,
}

/// Why the mirror stands still.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Mirror(#[from] MirrorError),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Follow(#[from] FollowError),
    #[error("rows do not fit together: {0}")]
    Rows(#[from] ArrowError),
}

/// Mirrors until the process ends. Whatever fails is begun anew, with a comparison.
pub async fn run(plan: MirrorPlan, process: std::sync::Arc<Process>, peeker: Peeker) {
    if caught_up(&process, &peeker).await.is_err() {
        return;
    }
    let mut pause = PAUSES.0;
    loop {
        match follow(&plan, &peeker, &mut pause).await {
            Ok(()) => return,
            // That is no fault of anyone.
            Err(Failure::Follow(error)) => tracing::info!(%error, "the mirror is compared anew"),
            Err(error) => {
                metrics::sink_failed(SINK);
                tracing::warn!("the mirror in PostgreSQL stands still: {error}");
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSES.1);
    }
}

const SINK: &str = "postgres";

/// Waits until all processes have read their sources to the end and the dataflow shows it: until then, rows
/// are missing that the mirror may hold already, and would lose for a while.
///
/// # Errors
/// If the dataflow has ended.
async fn caught_up(process: &Process, peeker: &Peeker) -> Result<(), ReadError> {
    let processes = process.plan().cluster.hosts.len().max(1);
    let mut statuses = process.statuses().follow();
    loop {
        let told = read_to_end_at(&statuses.borrow_and_update());
        if told.len() == processes
            && let Some(ends) = told.into_iter().collect::<Option<Vec<_>>>()
            && let Some(end) = ends.into_iter().max()
            && peeker.pin(Vec::new()).await? >= end
        {
            return Ok(());
        }
        // The statuses live as long as the process, which tells of itself once a second.
        let _ = statuses.changed().await;
    }
}

/// The epoch at which each process that tells of itself had read its source to the end, if it has.
fn read_to_end_at(status: &Value) -> Vec<Option<Epoch>> {
    let told = status["processes"].as_array().into_iter().flatten();
    told.map(|told| told["source"]["caught_up_at"].as_u64())
        .collect()
}

/// Compares the table with the relation, and then writes what changes; returns when the dataflow has
/// ended.
async fn follow(plan: &MirrorPlan, peeker: &Peeker, pause: &mut Duration) -> Result<(), Failure> {
    let name = &plan.relation;
    let Some(readable) = peeker.catalog().get(name) else {
        let message = "the dataflow is not running yet".to_owned();
        return Err(ReadError::Unavailable(message).into());
    };
    let mut mirror = Mirror::open(&plan.settings, readable.schema.clone()).await?;
    let epoch = peeker.pin(vec![name.clone()]).await?;
    let all = Selection::default();
    let mut changes = peeker.follow(epoch, name.clone(), all.clone());
    let rows = peeker.read(epoch, name.clone(), all).all().await?;
    let (written, removed) = mirror.reset(&rows).await?;
    drop(rows);
    tracing::info!(written, removed, relation = %name, "the mirror in PostgreSQL follows");
    metrics::sink_wrote(SINK, written, removed, epoch);
    *pause = PAUSES.0;
    while let Some(changes) = changes.next().await? {
        let Some((rows, removed)) = folded(&changes.batches)? else {
            metrics::sink_wrote(SINK, 0, 0, changes.complete);
            continue;
        };
        mirror.apply(&rows, &removed).await?;
        metrics::sink_wrote(SINK, rows.num_rows(), removed.len(), changes.complete);
    }
    Ok(())
}

/// What some epochs' changes amount to: the rows of keys that have one at the end, and the keys that have
/// none; `None` if nothing changed.
fn folded(batches: &[RecordBatch]) -> Result<Option<(RecordBatch, Vec<String>)>, ArrowError> {
    // Where a key's row is, if it has one.
    let mut last: HashMap<&str, Option<(usize, usize)>> = HashMap::new();
    for (batch, rows) in batches.iter().enumerate() {
        let diffs = rows
            .column_by_name(DIFF)
            .map(AsArray::as_primitive::<Int64Type>);
        let diffs = diffs.map_or(&[][..], |diffs| diffs.values());
        let keys = keys(rows);
        // A batch is of one epoch, and all of a key's changes are in one batch: the row that goes may
        // come after the one that comes.
        for removes in [true, false] {
            for (row, diff) in diffs.iter().enumerate() {
                if removes == (*diff < 0) {
                    let place = (!removes).then_some((batch, row));
                    last.insert(keys.value(row), place);
                }
            }
        }
    }
    let Some(first) = batches.first().filter(|_| !last.is_empty()) else {
        return Ok(None);
    };
    let columns: Vec<_> = (0..first.num_columns() - 2).collect();
    let places: Vec<_> = last.values().flatten().copied().collect();
    let all: Vec<_> = batches.iter().collect();
    let rows = interleave_record_batch(&all, &places)?.project(&columns)?;
    let removed = last.iter().filter(|(_, place)| place.is_none());
    let removed = removed.map(|(key, _)| (*key).to_owned()).collect();
    Ok(Some((rows, removed)))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Int64Array, StringArray};

    use super::*;

    fn changes(epoch: i64, changes: &[(&str, i64, i64)]) -> RecordBatch {
        let numbers = |numbers: Vec<i64>| Arc::new(Int64Array::from(numbers)) as ArrayRef;
        let keys = StringArray::from_iter_values(changes.iter().map(|change| change.0));
        RecordBatch::try_from_iter([
            ("key", Arc::new(keys) as ArrayRef),
            (
                "n",
                numbers(changes.iter().map(|change| change.1).collect()),
            ),
            ("epoch", numbers(vec![epoch; changes.len()])),
            (
                DIFF,
                numbers(changes.iter().map(|change| change.2).collect()),
            ),
        ])
        .unwrap()
    }

    #[test]
    fn the_last_row_of_each_key_counts_and_those_without_are_removed() {
        let batches = [
            changes(1, &[("a", 2, 1), ("a", 1, -1), ("b", 5, 1)]),
            changes(2, &[("b", 5, -1), ("c", 7, -1)]),
            changes(3, &[("c", 8, 1)]),
        ];
        let (rows, mut removed) = folded(&batches).unwrap().unwrap();
        removed.sort();
        let mut rows: Vec<_> = sql::to_json(&[rows])
            .unwrap()
            .iter()
            .map(|row| row.to_string())
            .collect();
        rows.sort();
        assert_eq!(rows, [r#"{"key":"a","n":2}"#, r#"{"key":"c","n":8}"#]);
        assert_eq!(removed, ["b"]);
        assert!(folded(&[changes(4, &[])]).unwrap().is_none());
    }
}
