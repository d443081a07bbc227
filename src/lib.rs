//! Assay keeps scores and counts true while the data underneath them changes.
//!
//! This crate introduces three that do not know one another: `connectors` bring messages and keep
//! tables, `dataflows` derive relations from them, `models` score texts. It reads from top to bottom:
//!
//! - [`cli`], [`config`], [`plan`]: what the user typed, what the user wrote, what will run.
//! - [`cluster`]: starts everything that the plan asks for, and ends it; [`peers`] brings its processes
//!   together, [`launch`] starts them on one machine.
//! - [`wire`]: the only module that knows all three crates.
//! - [`ingest`], [`worker`]: a thread a source, a thread a worker.
//! - [`checkpoint`], [`query`]: what is durable, what is read; [`tables`] looks after what is durable.
//! - [`metrics`], [`progress`]: what is told meanwhile.
//! - [`doctor`]: looks at everything before anything runs.
//! - [`model`], [`evaluate`]: what a model is worth, before it is used and while it is; [`mlflow`] keeps both.
//! - [`demo`], [`generate`]: a pipeline to try without any data of one's own.

pub mod accuracy;
pub mod charts;
pub mod checkpoint;
pub mod cli;
pub mod cluster;
pub mod config;
pub mod demo;
pub mod doctor;
pub mod evaluate;
pub mod events;
pub mod generate;
pub mod ingest;
pub mod launch;
pub mod metrics;
pub mod mlflow;
pub mod model;
pub mod monitor;
pub mod peers;
pub mod plan;
pub mod progress;
pub mod query;
pub mod report;
pub mod schemas;
pub mod sinks;
pub mod stages;
pub mod status;
pub mod swap;
pub mod tables;
pub mod wire;
pub mod worker;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// Milliseconds since 1970, as the system's clock has it.
pub fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as u64)
}

/// Threads for what waits for others: storage, sockets, signals.
///
/// # Errors
/// If the system gives none.
pub fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
}

/// A request to stop, seen by every thread of the process.
#[derive(Debug, Default)]
pub struct Stop(AtomicBool);

impl Stop {
    /// Asks everything to end: sources first, then what is under way, then a last checkpoint.
    pub fn request(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Whether the end was asked for.
    pub fn requested(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// Ends the process because of a mistake that the user can mend.
pub const EXIT_USAGE: i32 = 2;

/// Ends the process because something failed.
pub const EXIT_FAILURE: i32 = 1;

/// Says why, and ends the process: for threads that cannot go on, when nothing else may either.
///
/// Every process of a cluster ends when one does; each starts again from the last checkpoint.
pub fn give_up(error: &dyn std::fmt::Display, code: i32) -> ! {
    eprintln!("assay: {error}");
    std::process::exit(code)
}
