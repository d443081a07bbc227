//! What was logged of late, kept for those who look at a running Assay.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::{LazyLock, Mutex, PoisonError};

use serde_json::{Value, json};
use tokio::sync::broadcast;
use tracing::field::{Field, Visit};
use tracing::{Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use crate::now_ms;

/// Events that are kept.
const KEPT: usize = 500;

/// One event of the log.
#[derive(Clone, Debug)]
pub struct Event {
    time: u64,
    level: Level,
    message: String,
    fields: BTreeMap<&'static str, String>,
}

impl Event {
    /// The event in JSON, as one of this process.
    pub fn shown(&self, process: usize) -> Value {
        json!({
            "time": self.time,
            "level": self.level.as_str(),
            "message": self.message,
            "fields": self.fields,
            "process": process,
        })
    }
}

struct Events {
    kept: Mutex<VecDeque<Event>>,
    sender: broadcast::Sender<Event>,
}

/// The log is the process's, and so is what is kept of it.
static EVENTS: LazyLock<Events> = LazyLock::new(|| Events {
    kept: Mutex::default(),
    sender: broadcast::Sender::new(KEPT),
});

/// The events that are kept, the oldest first, and those that follow.
pub fn follow() -> (Vec<Event>, broadcast::Receiver<Event>) {
    let kept = EVENTS.kept.lock().unwrap_or_else(PoisonError::into_inner);
    (kept.iter().cloned().collect(), EVENTS.sender.subscribe())
}

/// Keeps what is logged.
pub struct Keep;

impl<S: Subscriber> Layer<S> for Keep {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        let mut seen = Event {
            time: now_ms(),
            level: *event.metadata().level(),
            message: String::new(),
            fields: BTreeMap::new(),
        };
        event.record(&mut seen);
        let mut kept = EVENTS.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() == KEPT {
            kept.pop_front();
        }
        kept.push_back(seen.clone());
        // No one may be looking.
        let _ = EVENTS.sender.send(seen);
    }
}

impl Visit for Event {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => self.message = value.to_owned(),
            name => drop(self.fields.insert(name, value.to_owned())),
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.record_str(field, &format!("{value:?}"));
    }
}
