//! Queries, metrics and health over HTTP.
//!
//! | request | answer |
//! |---|---|
//! | `GET /healthz` | 200 while the process lives |
//! | `GET /readyz` | 200 once the sources have been read to their end and queries show it, 503 before |
//! | `GET /metrics` | what has been counted, for Prometheus |
//! | `POST /v1/sql` | the query in the body answered: `{"epoch", "columns", "rows"}` |
//! | `POST /v1/sql?at=EPOCH` | the same as of an earlier epoch or time, from the tables |
//! | `GET /v1/source` | whether it is paused, and how many messages wait in each partition of this process |
//! | `POST /v1/rejects/retry` | all processes try again what could not be used, by their configurations as they are now |
//! | `POST /v1/source/pause`, `/v1/source/resume` | all processes read nothing until told otherwise, or read on |
//! | `GET /v1/relations` | the relations with their columns |
//! | `GET /v1/relations/NAME?key=KEY` | a relation's rows, all or those of one key |
//! | `GET /v1/relations/NAME/diff?from=EPOCH&to=EPOCH` | what changed between two epochs or times |

use std::net::SocketAddr;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use dataflows::change::Epoch;
use metrics_exporter_prometheus::PrometheusHandle;
use serde::Deserialize;
use serde_json::{Value, json};
use sql::{QueryError, ReadError};
use tokio::net::TcpListener;

use super::past;
use super::peek::{Order, Peeker};
use crate::checkpoint::store::TablesPlan;
use crate::metrics;
use crate::wire::{Process, Reading};

#[derive(Clone)]
struct Server {
    peeker: Peeker,
    process: Arc<Process>,
    metrics: PrometheusHandle,
}

impl Server {
    /// The tables, which know the past.
    fn tables(&self) -> Result<TablesPlan, Refusal> {
        let unavailable = |error: String| Refusal(StatusCode::SERVICE_UNAVAILABLE, error);
        let tables = self.process.plan().tables_plan();
        let tables = tables.map_err(|error| unavailable(error.to_string()))?;
        tables.ok_or_else(|| unavailable("no tables are kept, so the past is not known".to_owned()))
    }
}

/// Binds the address; port 0 takes any that is free.
///
/// # Errors
/// If the address is taken or not this host's; the message names it.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, String> {
    TcpListener::bind(address).await.map_err(|error| {
        format!("cannot listen on {address}: {error}; set server.listen to another")
    })
}

/// Answers requests until the process ends.
pub async fn serve(
    listener: TcpListener,
    peeker: Peeker,
    process: Arc<Process>,
    metrics: PrometheusHandle,
) {
    let server = Server {
        peeker,
        process,
        metrics,
    };
    let routes = Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .route("/metrics", get(scrape))
        .route("/v1/sql", post(run_sql))
        .route("/v1/source", get(tell_source))
        .route("/v1/source/pause", post(pause))
        .route("/v1/source/resume", post(resume))
        .route("/v1/rejects/retry", post(retry_rejects))
        .route("/v1/relations", get(list))
        .route("/v1/relations/{name}", get(look_up))
        .route("/v1/relations/{name}/diff", get(compare))
        .with_state(server);
    if let Err(error) = axum::serve(listener, routes).await {
        tracing::error!(%error, "the HTTP server ended");
    }
}

/// A request that was not answered.
struct Refusal(StatusCode, String);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.0, Json(json!({ "error": self.1 }))).into_response()
    }
}

impl From<QueryError> for Refusal {
    fn from(error: QueryError) -> Self {
        let status = match &error {
            QueryError::Query(_) => StatusCode::BAD_REQUEST,
            QueryError::Read(_) => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self(status, error.to_string())
    }
}

impl From<ReadError> for Refusal {
    fn from(error: ReadError) -> Self {
        QueryError::Read(error).into()
    }
}

async fn ready(State(server): State<Server>) -> (StatusCode, &'static str) {
    if server.process.reading() == Reading::TooManyRejects {
        return (
            StatusCode::SERVICE_UNAVAILABLE,
            "the source is paused: too much of what it says cannot be used\n",
        );
    }
    // The end of the sources was met at an epoch, which has to be complete to be seen.
    let caught_up = *server.process.watch_caught_up().borrow();
    let complete = server.peeker.pin(Vec::new()).await.ok();
    match (caught_up, complete) {
        (Some(end), Some(complete)) if complete >= end => (StatusCode::OK, "ready\n"),
        _ => (
            StatusCode::SERVICE_UNAVAILABLE,
            "the sources are still being read for the first time\n",
        ),
    }
}

async fn scrape(State(server): State<Server>) -> impl IntoResponse {
    metrics::memory();
    server.metrics.run_upkeep();
    (
        [(
            header::CONTENT_TYPE,
            "text/plain; version=0.0.4; charset=utf-8",
        )],
        server.metrics.render(),
    )
}

#[derive(Deserialize)]
struct At {
    at: Option<String>,
}

async fn run_sql(
    State(server): State<Server>,
    Query(At { at }): Query<At>,
    body: String,
) -> Result<Json<Value>, Refusal> {
    let (epoch, answer) = match at {
        None => super::sql::answer(&server.peeker, &body).await?,
        Some(at) => past::answer(&server.tables()?, &body, epoch_of(&at)?).await?,
    };
    show(epoch, &answer.schema, &answer.batches)
}

fn epoch_of(text: &str) -> Result<Epoch, Refusal> {
    past::parse_epoch(text).map_err(|error| Refusal(StatusCode::BAD_REQUEST, error))
}

#[derive(Deserialize)]
struct Between {
    from: String,
    to: String,
}

async fn compare(
    State(server): State<Server>,
    Path(name): Path<String>,
    Query(Between { from, to }): Query<Between>,
) -> Result<Json<Value>, Refusal> {
    let tables = server.tables()?;
    if !tables
        .relations
        .iter()
        .any(|(relation, _)| *relation == name)
    {
        return Err(no_relation(&name));
    }
    let (from, to) = (epoch_of(&from)?, epoch_of(&to)?);
    let (epoch, answer) = past::diff(&tables, &name, from, to).await?;
    show(epoch, &answer.schema, &answer.batches)
}

fn no_relation(name: &str) -> Refusal {
    Refusal(
        StatusCode::NOT_FOUND,
        format!("there is no relation \"{name}\""),
    )
}

async fn tell_source(State(server): State<Server>) -> Json<Value> {
    let lags = server.process.lags().into_iter();
    let lags =
        lags.map(|(partition, waiting)| json!({ "partition": &*partition, "waiting": waiting }));
    let partitions: Vec<_> = lags.collect();
    Json(json!({ "paused": server.process.reading() != Reading::On, "partitions": partitions }))
}

async fn pause(State(server): State<Server>) -> Json<Value> {
    server.peeker.order(Order::Pause);
    Json(json!({ "ordered": "pause" }))
}

async fn resume(State(server): State<Server>) -> Json<Value> {
    server.peeker.order(Order::Resume);
    Json(json!({ "ordered": "resume" }))
}

async fn retry_rejects(State(server): State<Server>) -> Json<Value> {
    server.peeker.order(Order::RetryRejects);
    Json(json!({ "ordered": "retry" }))
}

async fn list(State(server): State<Server>) -> Json<Value> {
    let schemas = server.peeker.schemas();
    let relations = schemas
        .iter()
        .map(|(name, schema)| json!({ "name": name, "columns": columns(schema) }));
    Json(json!({ "relations": relations.collect::<Vec<_>>() }))
}

#[derive(Deserialize)]
struct LookUp {
    key: Option<String>,
}

async fn look_up(
    State(server): State<Server>,
    Path(name): Path<String>,
    Query(look_up): Query<LookUp>,
) -> Result<Json<Value>, Refusal> {
    let mut schemas = server.peeker.schemas();
    if schemas.is_empty() {
        return Err(ReadError::Unavailable("the dataflow is not running yet".to_owned()).into());
    }
    let Some(schema) = schemas.remove(&name) else {
        return Err(no_relation(&name));
    };
    let epoch = server.peeker.pin(vec![name.clone()]).await?;
    let batches = server.peeker.read(epoch, name, look_up.key).await?;
    show(epoch, &schema, &batches)
}

fn show(epoch: u64, schema: &SchemaRef, batches: &[RecordBatch]) -> Result<Json<Value>, Refusal> {
    let rows = sql::to_json(batches)?;
    Ok(Json(
        json!({ "epoch": epoch, "columns": columns(schema), "rows": rows }),
    ))
}

fn columns(schema: &SchemaRef) -> Vec<Value> {
    let column = |field: &Arc<arrow::datatypes::Field>| json!({ "name": field.name(), "type": field.data_type().to_string() });
    schema.fields().iter().map(column).collect()
}
