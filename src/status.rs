//! What each process tells of itself, once a second, to all processes: any of them can be asked about all.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use dataflows::pipelines::mentions::RELATIONS;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::wire::{Process, Reading};
use crate::{metrics, now_ms};

/// Samples that are kept: a quarter of an hour.
const KEPT: usize = 180;

/// Seconds between two of them.
const KEPT_EVERY: u64 = 5;

/// What all processes have told of themselves of late.
#[derive(Debug, Default)]
pub struct Statuses {
    told: Mutex<Told>,
    newest: watch::Sender<Value>,
}

#[derive(Debug, Default)]
struct Told {
    processes: BTreeMap<usize, Value>,
    history: VecDeque<Value>,
    kept_at: u64,
}

impl Statuses {
    /// A process has told of itself, in JSON; what is no JSON is passed over. Returns the further columns that it
    /// has met.
    pub fn note(&self, process: usize, status: &str) -> Vec<String> {
        let Ok(status) = serde_json::from_str::<Value>(status) else {
            return Vec::new();
        };
        let further = status["source"]["further_columns"].as_array();
        let further = further.into_iter().flatten();
        let further = further.filter_map(|name| name.as_str().map(str::to_owned));
        let further = further.collect();
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.processes.insert(process, status);
        let now = told.now();
        let second = now["time"].as_u64().unwrap_or_default() / 1_000;
        if second >= told.kept_at + KEPT_EVERY {
            told.kept_at = second;
            if told.history.len() == KEPT {
                told.history.pop_front();
            }
            told.history.push_back(now.clone());
        }
        self.newest.send_replace(now);
        further
    }

    /// All processes now, in JSON.
    pub fn now(&self) -> Value {
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.now()
    }

    /// What each process told of itself last, in their order.
    pub fn processes(&self) -> Vec<Value> {
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.processes.values().cloned().collect()
    }

    /// Samples of the last quarter of an hour, the oldest first.
    pub fn history(&self) -> Vec<Value> {
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.history.iter().cloned().collect()
    }

    /// Follows the newest.
    pub fn follow(&self) -> watch::Receiver<Value> {
        self.newest.subscribe()
    }
}

impl Told {
    fn now(&self) -> Value {
        let processes: Vec<_> = self.processes.values().collect();
        json!({ "time": now_ms(), "processes": processes })
    }
}

/// What a process tells of itself.
pub fn of(process: &Process) -> Value {
    let plan = process.plan();
    let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
    let stages = RELATIONS.iter().filter_map(|name| {
        let stage = process.progress().stage(name)?;
        Some(json!({
            "name": name,
            "inserted": load(&stage.inserted),
            "retracted": load(&stage.retracted),
            "busy_ms": load(&stage.busy_us) / 1_000,
            "lag_ms": load(&stage.lag_ms),
        }))
    });
    let scoring = process.scoring().map(|scoring| {
        json!({
            "scored": scoring.scored,
            "waiting": scoring.waiting,
            "busy_ms": metrics::inference_ms(),
        })
    });
    let checkpoint = metrics::last_checkpoint();
    json!({
        "process": plan.cluster.process,
        "workers": plan.cluster.workers,
        "started": process.started(),
        "version": env!("CARGO_PKG_VERSION"),
        "memory_bytes": metrics::resident_bytes(),
        "read": process.progress().read(),
        "source": {
            "kind": plan.source.kind(),
            "state": match process.reading() {
                Reading::On => "on",
                Reading::Paused => "paused",
                Reading::TooManyRejects => "too many rejects",
            },
            "further_columns": process.further().all(),
            "caught_up_at": *process.watch_caught_up().borrow(),
            "partitions": partitions(process),
        },
        "stages": stages.collect::<Vec<_>>(),
        "scoring": scoring,
        "model": process.swap().map(|swap| swap.tell()),
        "checkpoint": checkpoint.map(|(epoch, took)| json!({
            "epoch": epoch,
            "took_ms": took.as_millis() as u64,
        })),
        "tables": process.versions().map(|(epoch, versions)| json!({
            "epoch": epoch,
            "versions": versions,
        })),
    })
}

/// How many messages wait in each partition that a process reads.
pub fn partitions(process: &Process) -> Vec<Value> {
    let lags = process.lags().into_iter();
    lags.map(|(partition, waiting)| json!({ "partition": &*partition, "waiting": waiting }))
        .collect()
}
