//! The dashboard, queries, changes, metrics and health over HTTP.
//!
//! | request | answer |
//! |---|---|
//! | `GET /` | the dashboard |
//! | `GET /healthz` | 200 while the process lives |
//! | `GET /readyz` | 200 once the sources have been read to their end and queries show it, 503 before |
//! | `GET /metrics` | what has been counted, for Prometheus |
//! | `POST /v1/sql` | the query in the body answered, in the form that `Accept` asks for |
//! | `POST /v1/sql?at=EPOCH` | the same as of an earlier epoch or time, from the tables |
//! | `GET /v1/relations` | the relations with their columns, and how far each is complete |
//! | `GET /v1/relations/NAME?key=KEY` | a relation's rows, all or those of one key |
//! | `GET /v1/relations/NAME/changes` | a snapshot, then what changes: [`changes`] |
//! | `GET /v1/relations/NAME/diff?from=EPOCH&to=EPOCH` | what changed between two epochs or times |
//! | `GET /v1/explain/NAME?...` | the rows behind a number: [`explain`] |
//! | `GET /v1/live` | queries whose answers are sent again as they change: [`live`] |
//! | `GET /v1/status` | what each process tells of itself |
//! | `GET /v1/source` | whether it is paused, and how many messages wait in each partition of this process |
//! | `POST /v1/source/pause`, `/v1/source/resume` | all processes read nothing until told otherwise, or read on |
//! | `POST /v1/rejects/retry` | all processes try again what could not be used, by their configurations as they are now |
//! | `GET /v1/model` | the model whose scores count, and the one that scores beside it |
//! | `POST /v1/model` | another model scores beside it, and takes its place if `promote` is said: [`model`] |
//! | `POST /v1/model/promote`, `/v1/model/drop` | that model takes its place, or is let go |
//! | `GET /v1/openapi.json` | all of this, for machines |

mod access;
mod changes;
mod dashboard;
mod explain;
mod format;
mod live;
mod model;
mod parameters;

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router, middleware};
use connectors::delta::further;
use dataflows::change::Epoch;
use dataflows::index::{LookUp, Selection};
use metrics_exporter_prometheus::PrometheusHandle;
use serde::Deserialize;
use serde_json::{Value, json};
use sql::{Answer, QueryError, ReadError};
use tokio::net::TcpListener;
use tower_http::compression::CompressionLayer;

pub use self::access::Tokens;
use self::format::Format;
use self::parameters::Parameters;
use super::past;
use super::peek::{Order, Peeker, Readable};
use super::sql::Queries;
use crate::checkpoint::store::TablesPlan;
use crate::wire::{Process, Reading};
use crate::{metrics, status};

/// What answers need.
#[derive(Clone)]
pub struct Server {
    queries: Queries,
    peeker: Peeker,
    process: Arc<Process>,
    metrics: PrometheusHandle,
}

impl Server {
    /// Answers from these.
    pub fn new(
        queries: Queries,
        peeker: Peeker,
        process: Arc<Process>,
        metrics: PrometheusHandle,
    ) -> Self {
        Self {
            queries,
            peeker,
            process,
            metrics,
        }
    }

    /// The tables, which know the past.
    fn tables(&self) -> Result<TablesPlan, Refusal> {
        let unavailable = |error: String| Refusal::new(StatusCode::SERVICE_UNAVAILABLE, error);
        let tables = self.process.plan().tables_plan();
        let tables = tables.map_err(|error| unavailable(error.to_string()))?;
        tables.ok_or_else(|| unavailable("no tables are kept, so the past is not known".to_owned()))
    }

    /// A relation that can be read.
    fn relation(&self, name: &str) -> Result<&Readable, Refusal> {
        let catalog = self.peeker.catalog();
        if catalog.is_empty() {
            return Err(
                ReadError::Unavailable("the dataflow is not running yet".to_owned()).into(),
            );
        }
        catalog.get(name).ok_or_else(|| no_relation(name))
    }
}

/// Answers requests until the process ends.
pub async fn serve(listener: TcpListener, server: Server, tokens: Tokens) {
    let guarded = Router::new()
        .route("/v1/sql", post(run_sql))
        .route("/v1/source", get(tell_source))
        .route("/v1/source/pause", post(pause))
        .route("/v1/source/resume", post(resume))
        .route("/v1/rejects/retry", post(retry_rejects))
        .route("/v1/model", get(model::tell).post(model::load))
        .route("/v1/model/promote", post(model::promote))
        .route("/v1/model/drop", post(model::drop_candidate))
        .route("/v1/relations", get(list))
        .route("/v1/relations/{name}", get(look_up))
        .route("/v1/relations/{name}/changes", get(changes::follow))
        .route("/v1/relations/{name}/diff", get(compare))
        .route("/v1/explain/{name}", get(explain::explain))
        .route("/v1/status", get(tell_status))
        .route_layer(middleware::from_fn_with_state(tokens.clone(), access::ask));
    // A browser cannot send a header with a WebSocket: who opens this one shows the token inside.
    let live = get(live::open).with_state((server.clone(), tokens));
    let routes = Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .route("/metrics", get(scrape))
        .merge(dashboard::routes())
        .merge(guarded)
        .with_state(server)
        .route("/v1/live", live)
        .fallback(async || Refusal::new(StatusCode::NOT_FOUND, "there is nothing here"))
        .method_not_allowed_fallback(async || {
            let message = "this is asked for with another method";
            Refusal::new(StatusCode::METHOD_NOT_ALLOWED, message)
        })
        .layer(CompressionLayer::new());
    if let Err(error) = axum::serve(listener, routes).await {
        tracing::error!(%error, "the HTTP server ended");
    }
}

/// A request that was not answered.
struct Refusal {
    status: StatusCode,
    message: String,
    /// PostgreSQL's code, of queries.
    code: Option<&'static str>,
}

impl Refusal {
    fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
            code: None,
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut body = json!({ "error": self.message });
        if let Some(code) = self.code {
            body["code"] = code.into();
        }
        (self.status, Json(body)).into_response()
    }
}

impl From<QueryError> for Refusal {
    fn from(error: QueryError) -> Self {
        let status = match &error {
            QueryError::Query { .. } => StatusCode::BAD_REQUEST,
            QueryError::Read(_) => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self {
            status,
            message: error.to_string(),
            code: Some(error.code()),
        }
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
    Parameters(At { at }): Parameters<At>,
    headers: HeaderMap,
    query: String,
) -> Result<Response, Refusal> {
    let format = Format::asked_for(&headers)?;
    let (epoch, answer) = match at {
        None => server.queries.answer(&query).await?,
        Some(at) => {
            let limits = server.queries.limits();
            past::answer(&server.tables()?, &query, epoch_of(&at)?, limits).await?
        }
    };
    format.show(epoch, &answer)
}

fn epoch_of(text: &str) -> Result<Epoch, Refusal> {
    past::parse_epoch(text).map_err(|error| Refusal::new(StatusCode::BAD_REQUEST, error))
}

#[derive(Deserialize)]
struct Between {
    from: String,
    to: String,
}

async fn compare(
    State(server): State<Server>,
    Path(name): Path<String>,
    Parameters(Between { from, to }): Parameters<Between>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let format = Format::asked_for(&headers)?;
    let tables = server.tables()?;
    let mut relations = tables.relations.iter();
    if !relations.any(|(relation, _)| *relation == name) {
        return Err(no_relation(&name));
    }
    let (from, to) = (epoch_of(&from)?, epoch_of(&to)?);
    let (epoch, answer) = past::diff(&tables, &name, from, to).await?;
    format.show(epoch, &answer)
}

fn no_relation(name: &str) -> Refusal {
    Refusal::new(
        StatusCode::NOT_FOUND,
        format!("there is no relation \"{name}\""),
    )
}

async fn tell_source(State(server): State<Server>) -> Json<Value> {
    let partitions = status::partitions(&server.process);
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

async fn tell_status(State(server): State<Server>) -> Json<Value> {
    Json(server.process.statuses().now())
}

async fn list(State(server): State<Server>) -> Json<Value> {
    // Before the dataflow stands there are no relations, and no epochs of theirs.
    let complete = server.peeker.progress().await.unwrap_or_default();
    let further = server.peeker.further();
    let relations = server.peeker.catalog().iter().map(|(name, readable)| {
        json!({
            "name": name,
            "columns": columns(&further::shown(&readable.schema, &further)),
            "look_ups": readable.look_ups,
            "epoch": complete.get(name),
        })
    });
    Json(json!({ "relations": relations.collect::<Vec<_>>() }))
}

#[derive(Deserialize)]
struct LookUpQuery {
    key: Option<String>,
}

async fn look_up(
    State(server): State<Server>,
    Path(name): Path<String>,
    Parameters(LookUpQuery { key }): Parameters<LookUpQuery>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let format = Format::asked_for(&headers)?;
    let readable = server.relation(&name)?;
    let look_up = key.map(|key| LookUp {
        column: readable.look_ups[0].to_owned(),
        values: vec![key],
        any_case: false,
    });
    let selection = Selection {
        look_up,
        ..Selection::default()
    };
    let further = server.peeker.further();
    let schema = further::shown(&readable.schema, &further);
    let epoch = server.peeker.pin(vec![name.clone()]).await?;
    let batches = server.peeker.read(epoch, name, selection).all().await?;
    let batches = batches.iter().map(|rows| further::expand(rows, &further));
    let batches = batches.collect::<Result<_, _>>().map_err(unfit)?;
    format.show(epoch, &Answer { schema, batches })
}

fn unfit(error: ArrowError) -> Refusal {
    ReadError::Unavailable(error.to_string()).into()
}

/// Columns with their types, in JSON.
fn columns(schema: &SchemaRef) -> Vec<Value> {
    let column = |field: &Arc<arrow::datatypes::Field>| json!({ "name": field.name(), "type": field.data_type().to_string() });
    schema.fields().iter().map(column).collect()
}
