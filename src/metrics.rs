//! Every metric's name, unit and help, once; and the functions that move them.
//!
//! Prometheus' rules: base units, `_total` for counters, one name for a thing with labels for the
//! differences. Counters move once a batch.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use dataflows::ports::PredictionObserver;
use metrics::{
    Gauge, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use models::evaluation::{Confusion, Scores};

const RECORDS: &str = "assay_source_records_total";
const SOURCE_RETRIES: &str = "assay_source_retries_total";
const SOURCE_LAG: &str = "assay_source_lag_records";
const HELD_BACK: &str = "assay_source_held_back_records";
const ROWS: &str = "assay_rows_total";
const REJECTS: &str = "assay_rejects_total";
const EPOCH_LAG: &str = "assay_epoch_lag_seconds";
const SCORED: &str = "assay_scored_texts_total";
const WAITING: &str = "assay_waiting_texts";
const INFERENCE: &str = "assay_inference_seconds";
const CHECKPOINT: &str = "assay_checkpoint_seconds";
const CHECKPOINT_BYTES: &str = "assay_checkpoint_bytes_total";
const CHECKPOINT_EPOCH: &str = "assay_checkpoint_timestamp_seconds";
const STORAGE_RETRIES: &str = "assay_storage_retries_total";
const COMPARED: &str = "assay_table_differences_total";
const MENDED_FILES: &str = "assay_table_mended_files_total";
const SINK_ROWS: &str = "assay_sink_rows_total";
const SINK_FAILURES: &str = "assay_sink_failures_total";
const SINK_EPOCH: &str = "assay_sink_timestamp_seconds";
const QUERY: &str = "assay_query_seconds";
const ACCURACY: &str = "assay_model_accuracy_ratio";
const PRECISION: &str = "assay_model_precision_ratio";
const RECALL: &str = "assay_model_recall_ratio";
const F1: &str = "assay_model_f1_ratio";
const PREDICTED: &str = "assay_model_predicted_rows";
const UNSCORABLE: &str = "assay_unscorable_texts_total";
const MEMORY: &str = "process_resident_memory_bytes";

/// Bounds of the checkpoint histogram, in seconds.
const CHECKPOINT_BUCKETS: [f64; 10] = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0];

/// Bounds of the histogram of inference, in seconds a batch.
const INFERENCE_BUCKETS: [f64; 8] = [0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0];

/// Bounds of the histogram of queries, in seconds each.
const QUERY_BUCKETS: [f64; 10] = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0];

/// Starts counting; the handle renders what has been counted.
///
/// # Errors
/// If the process counts already.
pub fn install() -> Result<PrometheusHandle, BuildError> {
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Full(CHECKPOINT.to_owned()), &CHECKPOINT_BUCKETS)?
        .set_buckets_for_metric(Matcher::Full(INFERENCE.to_owned()), &INFERENCE_BUCKETS)?
        .set_buckets_for_metric(Matcher::Full(QUERY.to_owned()), &QUERY_BUCKETS)?
        .install_recorder()?;
    describe_counter!(
        RECORDS,
        Unit::Count,
        "Messages read from a source, by worker."
    );
    describe_counter!(
        SOURCE_RETRIES,
        Unit::Count,
        "Failed attempts to read a source."
    );
    describe_gauge!(
        SOURCE_LAG,
        Unit::Count,
        "Messages that wait in a source, by partition."
    );
    describe_counter!(
        ROWS,
        Unit::Count,
        "Rows added to or taken from a relation, by worker."
    );
    describe_counter!(
        REJECTS,
        Unit::Count,
        "Rows and messages that could not be used, by stage and reason."
    );
    describe_gauge!(
        HELD_BACK,
        Unit::Count,
        "Messages held back until their transactions are complete."
    );
    describe_gauge!(
        EPOCH_LAG,
        Unit::Seconds,
        "How far a relation is behind the clock."
    );
    describe_counter!(SCORED, Unit::Count, "Texts scored by the model.");
    describe_gauge!(WAITING, Unit::Count, "Texts that wait for the model.");
    describe_histogram!(
        INFERENCE,
        Unit::Seconds,
        "Thread time that the model takes for a batch."
    );
    describe_histogram!(CHECKPOINT, Unit::Seconds, "Time to commit a checkpoint.");
    describe_counter!(
        CHECKPOINT_BYTES,
        Unit::Bytes,
        "Bytes of data files written for checkpoints."
    );
    describe_gauge!(
        CHECKPOINT_EPOCH,
        Unit::Seconds,
        "The epoch of the last checkpoint."
    );
    describe_counter!(
        STORAGE_RETRIES,
        Unit::Count,
        "Failed attempts to write tables or manifests."
    );
    describe_counter!(
        COMPARED,
        Unit::Count,
        "Rows in which a table differed from its relation at start."
    );
    describe_counter!(
        MENDED_FILES,
        Unit::Count,
        "Files that were lost from a table or changed by someone else, and mended."
    );
    describe_counter!(
        SINK_ROWS,
        Unit::Count,
        "Rows written to a sink or removed from it."
    );
    describe_counter!(
        SINK_FAILURES,
        Unit::Count,
        "Times that a sink failed and was begun anew."
    );
    describe_gauge!(SINK_EPOCH, Unit::Seconds, "The epoch that a sink shows.");
    describe_histogram!(
        QUERY,
        Unit::Seconds,
        "Time from the epoch that a query was given to its end."
    );
    describe_gauge!(
        ACCURACY,
        "Of the rows of gold that were given a label, the share predicted right."
    );
    describe_gauge!(
        PRECISION,
        "Of those predicted as a label, the share that are."
    );
    describe_gauge!(
        RECALL,
        "Of those that are a label, the share predicted as such."
    );
    describe_gauge!(F1, "The harmonic mean of precision and recall.");
    describe_gauge!(PREDICTED, "Rows of gold by predicted label.");
    describe_counter!(UNSCORABLE, "Texts that the model could not score.");
    describe_gauge!(MEMORY, Unit::Bytes, "Memory in use.");
    Ok(handle)
}

/// Messages read.
pub fn records(source: &'static str, worker: usize, count: usize) {
    counter!(RECORDS, "source" => source, "worker" => worker.to_string()).increment(count as u64);
}

/// A source failed and will be tried again.
pub fn source_failed(source: &'static str) {
    counter!(SOURCE_RETRIES, "source" => source).increment(1);
}

/// Messages that wait.
pub fn source_lag(partition: &str, waiting: i64) {
    gauge!(SOURCE_LAG, "partition" => partition.to_owned()).set(waiting as f64);
}

/// Counts the rows of one relation on one worker.
pub struct RowCounters {
    inserted: metrics::Counter,
    retracted: metrics::Counter,
}

impl RowCounters {
    /// The counters of a relation on a worker.
    pub fn new(relation: &'static str, worker: usize) -> Self {
        let counter = |change: &'static str| counter!(ROWS, "relation" => relation, "worker" => worker.to_string(), "change" => change);
        Self {
            inserted: counter("insert"),
            retracted: counter("retract"),
        }
    }

    /// Counts a batch.
    pub fn add(&self, inserted: usize, retracted: usize) {
        self.inserted.increment(inserted as u64);
        self.retracted.increment(retracted as u64);
    }
}

/// A row or message could not be used; the reason without what differs from row to row.
pub fn rejected(stage: &str, reason: String) {
    counter!(REJECTS, "stage" => stage.to_owned(), "reason" => reason).increment(1);
}

/// Messages that a worker holds back until their transactions are complete.
pub fn held_back(source: &'static str, worker: usize, count: usize) {
    let labels = [
        ("source", source.to_owned()),
        ("worker", worker.to_string()),
    ];
    gauge!(HELD_BACK, &labels).set(count as f64);
}

/// How far a relation is behind the clock.
pub fn epoch_lag(relation: &'static str, lag: Duration) {
    gauge!(EPOCH_LAG, "relation" => relation).set(lag.as_secs_f64());
}

/// Microseconds of thread time that the model has taken.
static INFERENCE_US: AtomicU64 = AtomicU64::new(0);

/// The last checkpoint: its epoch, and how long committing it took.
static LAST_CHECKPOINT: Mutex<Option<(u64, Duration)>> = Mutex::new(None);

/// Milliseconds of thread time that the model has taken.
pub fn inference_ms() -> u64 {
    INFERENCE_US.load(Ordering::Relaxed) / 1_000
}

/// The last checkpoint that this process committed: its epoch, and how long that took.
pub fn last_checkpoint() -> Option<(u64, Duration)> {
    *LAST_CHECKPOINT
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
}

/// A batch of texts went through the model.
pub fn inference(texts: usize, took: Duration) {
    INFERENCE_US.fetch_add(took.as_micros() as u64, Ordering::Relaxed);
    counter!(SCORED).increment(texts as u64);
    histogram!(INFERENCE).record(took.as_secs_f64());
}

/// Texts that wait for the model.
pub fn waiting_texts(waiting: u64) {
    gauge!(WAITING).set(waiting as f64);
}

/// A checkpoint was committed.
pub fn checkpoint(took: Duration, epoch: u64) {
    histogram!(CHECKPOINT).record(took.as_secs_f64());
    gauge!(CHECKPOINT_EPOCH).set(epoch as f64 / 1_000.0);
    *LAST_CHECKPOINT
        .lock()
        .unwrap_or_else(PoisonError::into_inner) = Some((epoch, took));
}

/// A data file was written.
pub fn data_file(bytes: u64) {
    counter!(CHECKPOINT_BYTES).increment(bytes);
}

/// A write failed and will be tried again.
pub fn storage_failed() {
    counter!(STORAGE_RETRIES).increment(1);
}

/// A table differed from its relation at start.
pub fn compared(relation: &str, missing: usize, surplus: usize) {
    let differing = |kind: &'static str, count: usize| {
        counter!(COMPARED, "relation" => relation.to_owned(), "difference" => kind)
            .increment(count as u64);
    };
    differing("missing", missing);
    differing("surplus", surplus);
}

/// A sink shows an epoch, for which rows were written and removed.
pub fn sink_wrote(sink: &'static str, written: usize, removed: usize, epoch: u64) {
    let rows = |change: &'static str, count: usize| {
        counter!(SINK_ROWS, "sink" => sink, "change" => change).increment(count as u64);
    };
    rows("write", written);
    rows("remove", removed);
    gauge!(SINK_EPOCH, "sink" => sink).set(epoch as f64 / 1_000.0);
}

/// What the labels of a model are worth now; those that were met and are gone are worth nothing.
pub fn model_does(model: &str, confusion: &Confusion, met: &BTreeSet<&str>) {
    gauge!(ACCURACY, "model" => model.to_owned()).set(confusion.accuracy());
    let mut scores = confusion.scores_and_means();
    let gone = met
        .iter()
        .filter(|label| confusion.given(label) + confusion.predicted(label) == 0);
    scores.extend(gone.map(|label| Scores {
        label: (*label).to_owned(),
        ..Scores::default()
    }));
    for scores in scores {
        let set = |name: &'static str, value: f64| {
            let labels = [("model", model.to_owned()), ("label", scores.label.clone())];
            gauge!(name, &labels).set(value);
        };
        set(PRECISION, scores.precision);
        set(RECALL, scores.recall);
        set(F1, scores.f1);
    }
}

/// A query was answered, or given up.
pub fn queried(took: Duration) {
    histogram!(QUERY).record(took.as_secs_f64());
}

/// Counts rows of gold by what is predicted.
pub fn predictions() -> PredictionObserver {
    // Few: a model has a handful of labels.
    let mut known: Vec<(String, String, Gauge)> = Vec::new();
    Box::new(move |model, label, diff| {
        let found = known
            .iter()
            .find(|(of, called, _)| of == model && called == label);
        match found {
            Some((_, _, gauge)) => gauge.increment(diff as f64),
            None => {
                let labels = [("model", model.to_owned()), ("label", label.to_owned())];
                let gauge = gauge!(PREDICTED, &labels);
                gauge.increment(diff as f64);
                known.push((model.to_owned(), label.to_owned(), gauge));
            }
        }
    })
}

/// The model could not score a text.
pub fn unscorable() {
    counter!(UNSCORABLE).increment(1);
}

/// A sink failed and will be begun anew.
pub fn sink_failed(sink: &'static str) {
    counter!(SINK_FAILURES, "sink" => sink).increment(1);
}

/// Files of a table were not as they had been left.
pub fn mended_files(relation: &str, files: usize) {
    counter!(MENDED_FILES, "relation" => relation.to_owned()).increment(files as u64);
}

/// Shows the memory in use, where the system tells it.
pub fn memory() {
    if let Some(bytes) = resident_bytes() {
        gauge!(MEMORY).set(bytes as f64);
    }
}

/// The memory in use, where the system tells it.
pub fn resident_bytes() -> Option<u64> {
    let pages = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = pages.split(' ').nth(1)?.parse().ok()?;
    Some(pages * 4_096)
}
