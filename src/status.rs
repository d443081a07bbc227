//! What each process tells of itself, once a second, to all processes: any of them can be asked about all.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use serde_json::{Value, json};
use tokio::sync::watch;

use crate::now_ms;

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
    /// A process has told of itself, in JSON; what is no JSON is passed over.
    pub fn note(&self, process: usize, status: &str) {
        let Ok(status) = serde_json::from_str(status) else {
            return;
        };
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
    }

    /// All processes now, in JSON.
    pub fn now(&self) -> String {
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.now().to_string()
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
