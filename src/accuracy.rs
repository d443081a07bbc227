//! Tells Prometheus how well models do, as labels and predictions change.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::Int64Type;
use dataflows::index::DIFF;
use dataflows::pipelines::mentions::meaning;
use models::evaluation::Confusion;

use crate::metrics;
use crate::query::peek::Peeker;

const RELATION: &str = "accuracy";

/// How long to wait before looking again whether the relation can be followed.
const PAUSE: Duration = Duration::from_secs(1);

/// How often each label was predicted where each was given, by model.
type Counts = BTreeMap<[String; 3], i64>;

/// Follows the relation until the dataflow ends.
pub async fn tell(peeker: Peeker) {
    while follow(&peeker).await.is_err() {
        tokio::time::sleep(PAUSE).await;
    }
}

async fn follow(peeker: &Peeker) -> anyhow::Result<()> {
    let (_, rows, mut changes) = peeker.follow_from_now(RELATION).await?;
    let mut counts = Counts::new();
    rows.iter().for_each(|rows| add(&mut counts, rows));
    show(&counts);
    while let Some(changes) = changes.next().await? {
        for rows in &changes.batches {
            add(&mut counts, rows);
        }
        if !changes.batches.is_empty() {
            show(&counts);
        }
    }
    Ok(())
}

/// Adds rows, or changes of rows.
fn add(counts: &mut Counts, rows: &RecordBatch) {
    let texts = [0, 1, 2].map(|column| rows.column(column).as_string::<i32>());
    let numbers = rows.column(3).as_primitive::<Int64Type>();
    let diffs = rows.column_by_name(DIFF);
    let diffs = diffs.map(AsArray::as_primitive::<Int64Type>);
    for row in 0..rows.num_rows() {
        let diff = diffs.map_or(1, |diffs| diffs.value(row));
        let count = counts.entry(texts.map(|column| column.value(row).to_owned()));
        *count.or_default() += diff * numbers.value(row);
    }
}

fn show(counts: &Counts) {
    let mut models: BTreeMap<&str, (Confusion, BTreeSet<&str>)> = BTreeMap::new();
    for ([model, given, predicted], rows) in counts {
        let (confusion, met) = models.entry(model).or_default();
        let (given, predicted) = (meaning(given), meaning(predicted));
        met.extend([given, predicted]);
        // A label that no row has any more must not count in the averages.
        if *rows > 0 {
            confusion.add(given, predicted, rows.unsigned_abs());
        }
    }
    for (model, (confusion, met)) in models {
        metrics::model_does(model, &confusion, &met);
    }
}
