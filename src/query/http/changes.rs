//! What changes in a relation: `GET /v1/relations/NAME/changes`, as server-sent events, or by WebSocket
//! where the request asks for one.
//!
//! | parameter | meaning |
//! |---|---|
//! | `where` | a condition in SQL; only rows for which it holds are told of |
//! | `after` | an epoch: no snapshot, but what changed after it, if that is remembered (for a minute) |
//! | `snapshot` | `false` to begin with what changes from now on |
//!
//! | event | data |
//! |---|---|
//! | `snapshot` | `{"epoch", "rows": [...]}`: rows as of an epoch, in any number of such events; whoever held rows before drops them |
//! | `changes` | `{"complete", "changes": [{"epoch", "diff", "row"}, ...]}`: all that changed up to and with the epoch `complete`, possibly nothing |
//! | `end` | `{"reason"}`: no more will come, because the client was too slow or Assay ends |
//!
//! A `changes` event has the epoch as its id, so a browser that lost the connection goes on after the last
//! one it saw; if that is no longer remembered, a new snapshot comes. By WebSocket the same objects come as
//! messages, with the event's name as `"type"`.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use arrow::array::{AsArray, RecordBatch};
use arrow::compute::filter_record_batch;
use arrow::datatypes::Int64Type;
use arrow::error::ArrowError;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use connectors::delta::further;
use dataflows::change::Epoch;
use dataflows::index::Selection;
use futures::{StreamExt, stream};
use serde::Deserialize;
use serde_json::json;
use sql::{Condition, QueryError, ReadError};
use tokio::sync::mpsc::{Receiver, Sender, channel};

use super::parameters::Parameters;
use super::{Refusal, Server};
use crate::query::peek::{ChangeStream, Changes, FollowError};

/// Events that may wait for a client to take them; what comes meanwhile waits unformatted.
const EVENTS_WAITING: usize = 16;

/// How often the complete epoch is told while nothing changes.
const PROGRESS: Duration = Duration::from_secs(1);

/// How long the last word may wait for a client that was too slow.
const LAST_WORD: Duration = Duration::from_secs(30);

#[derive(Deserialize)]
pub(super) struct Asked {
    #[serde(rename = "where")]
    condition: Option<String>,
    after: Option<Epoch>,
    #[serde(default = "yes")]
    snapshot: bool,
}

fn yes() -> bool {
    true
}

pub(super) async fn follow(
    State(server): State<Server>,
    Path(name): Path<String>,
    Parameters(asked): Parameters<Asked>,
    headers: HeaderMap,
    socket: Result<WebSocketUpgrade, axum::extract::ws::rejection::WebSocketUpgradeRejection>,
) -> Result<Response, Refusal> {
    let further = server.peeker.further();
    let schema = further::shown(&server.relation(&name)?.schema, &further);
    let condition = asked.condition.as_deref();
    let condition = condition.map(|text| Condition::parse(text, &schema));
    let condition = condition.transpose()?;
    // A browser that connects again tells the last event that it saw.
    let seen = headers.get("last-event-id");
    let seen = seen.and_then(|id| id.to_str().ok()?.parse().ok());
    let following = Following {
        relation: name,
        server,
        condition,
        further,
        after: seen.or(asked.after),
        snapshot: asked.snapshot,
    };
    if let Ok(socket) = socket {
        let events = following.start();
        return Ok(socket.on_upgrade(move |socket| pass_on(socket, events)));
    }
    let events = stream::unfold(following.start(), async |mut events| {
        let event = events.recv().await?;
        Some((Ok::<_, Infallible>(event.into_sse()), events))
    });
    let alive = KeepAlive::default();
    Ok(Sse::new(events).keep_alive(alive).into_response())
}

async fn pass_on(mut socket: WebSocket, mut events: Receiver<Told>) {
    while let Some(event) = events.recv().await {
        if socket.send(event.into_message()).await.is_err() {
            return;
        }
    }
    // Whoever went away needs no farewell.
    let _ = socket.send(Message::Close(None)).await;
}

/// Something that is told.
struct Told {
    event: &'static str,
    /// The members of a JSON object, without its braces.
    members: String,
    id: Option<Epoch>,
}

impl Told {
    fn into_sse(self) -> Event {
        let event = Event::default().event(self.event);
        let event = event.data(format!("{{{}}}", self.members));
        match self.id {
            Some(id) => event.id(id.to_string()),
            None => event,
        }
    }

    fn into_message(self) -> Message {
        let (event, members) = (self.event, self.members);
        Message::Text(format!("{{\"type\":\"{event}\",{members}}}").into())
    }
}

/// Someone who follows a relation.
struct Following {
    server: Server,
    relation: String,
    condition: Option<Condition>,
    /// The further columns that the condition may name.
    further: Vec<String>,
    after: Option<Epoch>,
    snapshot: bool,
}

/// Why there is nothing more to tell.
enum End {
    /// The client has gone.
    Gone,
    /// For this reason, which the client is told.
    Because(String),
}

impl From<QueryError> for End {
    fn from(error: QueryError) -> Self {
        Self::Because(error.to_string())
    }
}

impl From<ReadError> for End {
    fn from(error: ReadError) -> Self {
        QueryError::Read(error).into()
    }
}

impl Following {
    fn start(self) -> Receiver<Told> {
        let (sender, events) = channel(EVENTS_WAITING);
        tokio::spawn(async move {
            if let Err(End::Because(reason)) = self.tell(&sender).await {
                let members = format!("\"reason\":{}", json!(reason));
                let last = told("end", members, None);
                // Whoever does not read it in time does not read.
                let _ = sender.send_timeout(last, LAST_WORD).await;
            }
        });
        events
    }

    async fn tell(&self, sender: &Sender<Told>) -> Result<(), End> {
        let mut after = self.after;
        loop {
            let changes = match after {
                // Of another run, of which nothing is remembered.
                Some(epoch) if epoch < self.server.process.started() => {
                    self.again(&mut after)?;
                    continue;
                }
                Some(epoch) => self.changes_after(epoch),
                None => self.begin(sender).await?,
            };
            match self.tell_changes(changes, sender).await? {
                // What is no longer remembered is made good by a snapshot, of whoever wants one.
                FollowError::Forgotten => self.again(&mut after)?,
                error => return Err(End::Because(error.to_string())),
            }
        }
    }

    /// Begins anew with a snapshot, for whoever wants one.
    fn again(&self, after: &mut Option<Epoch>) -> Result<(), End> {
        match after.take() {
            Some(_) if self.snapshot => Ok(()),
            _ => Err(End::Because(FollowError::Forgotten.to_string())),
        }
    }

    fn changes_after(&self, epoch: Epoch) -> ChangeStream {
        let name = self.relation.clone();
        self.server.peeker.follow(epoch, name, Selection::default())
    }

    /// Tells the rows as they are, if that is wanted, and returns what changes after them.
    async fn begin(&self, sender: &Sender<Told>) -> Result<ChangeStream, End> {
        if !self.snapshot {
            let named = vec![self.relation.clone()];
            let epoch = self.server.peeker.pin(named).await?;
            return Ok(self.changes_after(epoch));
        }
        let rows = self
            .server
            .queries
            .rows(&self.relation, self.condition.as_ref());
        let (epoch, mut rows) = rows.await?;
        // Begun before the rows are told, which may take longer than changes are remembered.
        let changes = self.changes_after(epoch);
        let mut any = false;
        while let Some(batch) = rows.next().await {
            let lines = json_lines(&batch?)?.join(",");
            any = true;
            self.send(sender, "snapshot", snapshot(epoch, &lines), None)
                .await?;
        }
        if !any {
            self.send(sender, "snapshot", snapshot(epoch, ""), None)
                .await?;
        }
        let members = format!("\"complete\":{epoch},\"changes\":[]");
        self.send(sender, "changes", members, Some(epoch)).await?;
        Ok(changes)
    }

    async fn tell_changes(
        &self,
        mut changes: ChangeStream,
        sender: &Sender<Told>,
    ) -> Result<FollowError, End> {
        let mut told_at = Instant::now();
        loop {
            let Changes { complete, batches } = match changes.next().await {
                Ok(Some(changes)) => changes,
                Ok(None) => return Err(End::Because("Assay has come to its end".to_owned())),
                Err(error) => return Ok(error),
            };
            let mut lines = Vec::new();
            for batch in &batches {
                lines.extend(self.change_lines(batch)?);
            }
            if lines.is_empty() && told_at.elapsed() < PROGRESS {
                continue;
            }
            told_at = Instant::now();
            let changes = lines.join(",");
            let members = format!("\"complete\":{complete},\"changes\":[{changes}]");
            self.send(sender, "changes", members, Some(complete))
                .await?;
        }
    }

    async fn send(
        &self,
        sender: &Sender<Told>,
        event: &'static str,
        members: String,
        id: Option<Epoch>,
    ) -> Result<(), End> {
        let told = told(event, members, id);
        sender.send(told).await.map_err(|_| End::Gone)
    }

    /// The changes of a batch for which the condition holds, each as JSON.
    fn change_lines(&self, batch: &RecordBatch) -> Result<Vec<String>, End> {
        let unfit = |error: ArrowError| End::Because(error.to_string());
        // The last two columns are the epoch and the diff.
        let columns = batch.num_columns() - 2;
        let rows = batch.project(&(0..columns).collect::<Vec<_>>());
        let mut rows = rows.map_err(unfit)?;
        let mut numbers = batch.project(&[columns, columns + 1]).map_err(unfit)?;
        if let Some(condition) = &self.condition {
            // It knows columns by their places when it was understood.
            let judged = further::expand(&rows, &self.further).map_err(unfit)?;
            let holds = condition.holds(&judged)?.into();
            rows = filter_record_batch(&rows, &holds).map_err(unfit)?;
            numbers = filter_record_batch(&numbers, &holds).map_err(unfit)?;
        }
        let number = |column: usize| numbers.column(column).as_primitive::<Int64Type>();
        let (epochs, diffs) = (number(0), number(1));
        let further = self.server.peeker.further();
        let rows = json_lines(&further::expand(&rows, &further).map_err(unfit)?)?;
        debug_assert_eq!(rows.len(), epochs.len());
        let numbers = epochs.values().iter().zip(diffs.values());
        let lines = rows.iter().zip(numbers);
        Ok(lines
            .map(|(row, (epoch, diff))| {
                format!("{{\"epoch\":{epoch},\"diff\":{diff},\"row\":{row}}}")
            })
            .collect())
    }
}

fn told(event: &'static str, members: String, id: Option<Epoch>) -> Told {
    Told { event, members, id }
}

fn snapshot(epoch: Epoch, rows: &str) -> String {
    format!("\"epoch\":{epoch},\"rows\":[{rows}]")
}

/// Each row as a JSON object.
fn json_lines(rows: &RecordBatch) -> Result<Vec<String>, End> {
    let text = sql::to_json_lines(rows)?;
    Ok(text.lines().map(str::to_owned).collect())
}
