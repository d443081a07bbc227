//! Keeps what is outside equal to a relation, epoch by epoch.
//!
//! A sink is compared with its relation at every start and after every failure and is given the difference,
//! and from then on what changes: so nothing has to be remembered, and whatever fails is begun anew.

mod kafka;
mod postgres;

use std::sync::Arc;
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use connectors::kafka::PublishError;
use connectors::postgres::MirrorError;
use dataflows::change::Epoch;
use serde_json::Value;
use sql::{QueryError, ReadError};

pub use self::kafka::{Envelope, PublisherPlan};
pub use self::postgres::MirrorPlan;
use crate::metrics;
use crate::query::peek::{Changes, FollowError, Peeker};
use crate::wire::Process;

/// How long to wait before the first new attempt, and at most.
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// What is kept equal to which relation.
#[derive(Clone, Debug)]
pub enum SinkPlan {
    /// A table of PostgreSQL.
    Postgres(MirrorPlan),
    /// A topic of Kafka.
    Kafka(PublisherPlan),
}

/// Why a sink stands still.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Mirror(#[from] MirrorError),
    #[error(transparent)]
    Publish(#[from] PublishError),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Follow(#[from] FollowError),
    #[error("rows do not fit together: {0}")]
    Rows(#[from] ArrowError),
    #[error(transparent)]
    Show(#[from] QueryError),
    #[error("rows cannot be told in JSON: {0}")]
    Json(#[from] serde_json::Error),
}

/// Something outside that can be made equal to a relation.
trait Sink: Sized {
    /// What says where it is.
    type Plan;

    /// What it is called in metrics and in the log.
    const NAME: &'static str;

    /// The relation's name.
    fn relation(plan: &Self::Plan) -> &str;

    async fn open(plan: &Self::Plan, schema: SchemaRef) -> Result<Self, Failure>;

    /// Makes it equal to these rows, at once; returns how many were written and how many removed.
    async fn reset(
        &mut self,
        epoch: Epoch,
        rows: &[RecordBatch],
    ) -> Result<(usize, usize), Failure>;

    /// Makes it show some further epochs, at once; returns the same.
    async fn apply(&mut self, changes: &Changes) -> Result<(usize, usize), Failure>;
}

/// Keeps a sink equal to its relation until the dataflow ends.
pub fn run(
    plan: SinkPlan,
    process: Arc<Process>,
    peeker: Peeker,
) -> impl Future<Output = ()> + Send {
    let mut behind = Some(process.sink_behind());
    async move {
        if caught_up(&process, &peeker).await.is_err() {
            return;
        }
        match plan {
            SinkPlan::Postgres(plan) => {
                keep::<postgres::MirrorSink>(&plan, &peeker, &mut behind).await;
            }
            SinkPlan::Kafka(plan) => keep::<kafka::TopicSink>(&plan, &peeker, &mut behind).await,
        }
    }
}

/// Waits until all processes have read their sources to the end and the dataflow shows it: until then, rows
/// are missing that the sink may hold already, and would lose for a while.
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

/// Follows again and again. `behind` is let go once the sink has shown the relation for the first time.
async fn keep<S: Sink>(plan: &S::Plan, peeker: &Peeker, behind: &mut Option<Arc<()>>) {
    let mut pause = PAUSES.0;
    loop {
        let followed = follow::<S>(plan, peeker, || {
            pause = PAUSES.0;
            drop(behind.take());
        });
        let Err(error) = followed.await else {
            return;
        };
        match error {
            // That is no fault of anyone.
            Failure::Follow(error) => {
                tracing::info!(%error, "the sink \"{}\" is compared anew", S::NAME);
            }
            Failure::Publish(error @ PublishError::Replaced(_)) => {
                metrics::sink_failed(S::NAME);
                tracing::error!("{error}: this one publishes nothing more until it is restarted");
                return;
            }
            error => {
                metrics::sink_failed(S::NAME);
                tracing::warn!("the sink \"{}\" stands still: {error}", S::NAME);
            }
        }
        if peeker.progress().await.is_err() {
            return;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSES.1);
    }
}

/// Compares the sink with the relation, tells that it is equal, and then writes what changes; returns when
/// the dataflow has ended.
async fn follow<S: Sink>(
    plan: &S::Plan,
    peeker: &Peeker,
    equal: impl FnOnce(),
) -> Result<(), Failure> {
    let name = S::relation(plan);
    let Some(readable) = peeker.catalog().get(name) else {
        let message = "the dataflow is not running yet".to_owned();
        return Err(ReadError::Unavailable(message).into());
    };
    let mut sink = S::open(plan, readable.schema.clone()).await?;
    let (epoch, rows, mut changes) = peeker.follow_from_now(name).await?;
    let (written, removed) = sink.reset(epoch, &rows).await?;
    drop(rows);
    tracing::info!(written, removed, relation = %name, "the sink \"{}\" follows", S::NAME);
    metrics::sink_wrote(S::NAME, written, removed, epoch);
    equal();
    while let Some(changes) = changes.next().await? {
        let (written, removed) = sink.apply(&changes).await?;
        metrics::sink_wrote(S::NAME, written, removed, changes.complete);
    }
    Ok(())
}
