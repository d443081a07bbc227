//! Queries whose answers are sent again as they change: `GET /v1/live`, by WebSocket.
//!
//! | the client sends | and is sent |
//! |---|---|
//! | `{"token": "..."}` | nothing; the first message, where tokens are asked for |
//! | `{"id": 1, "sql": "select ..."}` | `{"id": 1, "epoch", "columns", "rows"}` now, and whenever the answer is another |
//! | `{"id": 2, "status": true}` | `{"id": 2, "history": [...]}`, then `{"id": 2, "status": {...}}` each second |
//! | `{"id": 3, "events": true}` | `{"id": 3, "events": [...]}`: what was logged, and then what is |
//! | `{"id": 1, "end": true}` | nothing more of that number |
//!
//! A query is answered again when one of its relations has changed, and not so often that answering takes
//! more than a tenth of the time. What cannot be answered is told as `{"id", "error"}`.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use dataflows::change::Epoch;
use dataflows::index::Selection;
use futures::future::select_all;
use serde::Deserialize;
use serde_json::{Value, json};
use sql::QueryError;
use tokio::sync::mpsc::{Sender, channel};
use tokio::task::{AbortHandle, JoinSet};

use super::access::same_origin;
use super::{Refusal, Server, Tokens, columns};
use crate::events;

/// An answer is not looked for again sooner than this.
const SHORTEST_PAUSE: Duration = Duration::from_millis(250);

/// How many times longer than it takes to answer a query it then rests.
const REST: u32 = 9;

/// How long to wait before a relation that could not be read is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Messages that may wait for a client to take them.
const WAITING: usize = 64;

/// Queries of one client.
const MOST_QUERIES: usize = 100;

/// WebSocket's code for a client that did not show a token: one of those free for applications (RFC 6455,
/// 7.4.2), made from HTTP's.
const UNAUTHORIZED: u16 = 4401;

/// What a client says.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Said {
    id: Option<u64>,
    token: Option<String>,
    sql: Option<String>,
    #[serde(default)]
    status: bool,
    #[serde(default)]
    events: bool,
    #[serde(default)]
    end: bool,
}

pub(super) async fn open(
    State((server, tokens)): State<(Server, Tokens)>,
    headers: HeaderMap,
    socket: WebSocketUpgrade,
) -> Response {
    if !same_origin(&headers) {
        let message = "pages of other sites may not ask";
        return Refusal::new(StatusCode::FORBIDDEN, message).into_response();
    }
    socket.on_upgrade(move |socket| talk(socket, server, tokens))
}

async fn talk(mut socket: WebSocket, server: Server, tokens: Tokens) {
    let (sender, mut messages) = channel(WAITING);
    let mut tasks = JoinSet::new();
    let mut running: HashMap<u64, AbortHandle> = HashMap::new();
    let mut admitted = tokens.admit(None);
    loop {
        tokio::select! {
            said = socket.recv() => {
                let text = match said {
                    Some(Ok(Message::Text(text))) => text,
                    Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                    Some(Ok(_)) => continue,
                };
                let said: Said = match serde_json::from_str(&text) {
                    Ok(said) => said,
                    Err(error) => {
                        let told = json!({ "error": format!("not understood: {error}") });
                        if socket.send(message(&told)).await.is_err() { return }
                        continue;
                    }
                };
                admitted = admitted || tokens.admit(said.token.as_deref());
                if !admitted {
                    return turn_away(socket).await;
                }
                let Some(id) = said.id else { continue };
                if let Some(task) = running.remove(&id) {
                    task.abort();
                }
                if running.len() < MOST_QUERIES && !said.end {
                    let talking = Talking { id, server: server.clone(), sender: sender.clone() };
                    running.insert(id, tasks.spawn(talking.answer(said)));
                }
            }
            Some(told) = messages.recv() => {
                if socket.send(message(&told)).await.is_err() { return }
            }
            // Ended tasks are taken away.
            Some(_) = tasks.join_next() => {}
        }
    }
}

fn message(value: &Value) -> Message {
    Message::Text(value.to_string().into())
}

async fn turn_away(mut socket: WebSocket) {
    let close = CloseFrame {
        code: UNAUTHORIZED,
        reason: "unauthorized".into(),
    };
    // Whoever went away needs no farewell.
    let _ = socket
        .send(message(&json!({ "error": "unauthorized" })))
        .await;
    let _ = socket.send(Message::Close(Some(close))).await;
}

/// One number of one client.
struct Talking {
    id: u64,
    server: Server,
    sender: Sender<Value>,
}

/// The client has gone.
struct Gone;

impl Talking {
    async fn answer(self, said: Said) {
        // A client that has gone is told nothing.
        let _: Result<(), Gone> = if let Some(query) = said.sql {
            self.answer_again(&query).await
        } else if said.status {
            self.tell_status().await
        } else if said.events {
            self.tell_events().await
        } else {
            let message = "say \"sql\", \"status\", \"events\" or \"end\"";
            self.send(json!({ "error": message })).await
        };
    }

    async fn send(&self, mut told: Value) -> Result<(), Gone> {
        told["id"] = self.id.into();
        self.sender.send(told).await.map_err(|_| Gone)
    }

    async fn answer_again(&self, query: &str) -> Result<(), Gone> {
        let mut last = None;
        loop {
            let started = Instant::now();
            let answered = self.server.queries.answer(query).await;
            let shown = answered.and_then(|(epoch, answer)| {
                let rows = Value::from(sql::to_json(&answer.batches)?);
                Ok((epoch, columns(&answer.schema), rows))
            });
            let pause = SHORTEST_PAUSE.max(started.elapsed() * REST);
            let epoch = match shown {
                Ok((epoch, columns, rows)) => {
                    if last.as_ref() != Some(&rows) {
                        let told = json!({ "epoch": epoch, "columns": columns, "rows": rows });
                        last = Some(rows);
                        self.send(told).await?;
                    }
                    epoch
                }
                Err(error @ QueryError::Query { .. }) => {
                    return self.send(json!({ "error": error.to_string() })).await;
                }
                Err(QueryError::Read(error)) => {
                    self.send(json!({ "error": error.to_string() })).await?;
                    last = None;
                    tokio::time::sleep(RETRY).await;
                    continue;
                }
            };
            tokio::time::sleep(pause).await;
            self.changed(query, epoch).await;
        }
    }

    /// Waits until a relation that a query names has changed after an epoch.
    async fn changed(&self, query: &str, epoch: Epoch) {
        let named = sql::relations_of(query).unwrap_or_default();
        let catalog = self.server.peeker.catalog();
        let relations = named.into_iter().filter(|name| catalog.contains_key(name));
        let none_of_it = Selection {
            columns: Some(Vec::new()),
            ..Selection::default()
        };
        let waits: Vec<_> = relations
            .map(|name| {
                let mut changes = self.server.peeker.follow(epoch, name, none_of_it.clone());
                Box::pin(async move {
                    // What has ended or is not remembered is asked for anew as well.
                    while let Ok(Some(changes)) = changes.next().await {
                        if !changes.batches.is_empty() {
                            return;
                        }
                    }
                })
            })
            .collect();
        if waits.is_empty() {
            // It reads nothing that changes with the source.
            return tokio::time::sleep(RETRY).await;
        }
        select_all(waits).await;
    }

    async fn tell_status(&self) -> Result<(), Gone> {
        let statuses = self.server.process.statuses();
        let mut told = statuses.follow();
        let history: Vec<Value> = statuses.history();
        self.send(json!({ "history": history })).await?;
        while told.changed().await.is_ok() {
            let status = told.borrow_and_update().clone();
            self.send(json!({ "status": status })).await?;
        }
        Ok(())
    }

    async fn tell_events(&self) -> Result<(), Gone> {
        let (kept, mut events) = events::follow();
        let process = self.server.process.plan().cluster.process;
        let shown = |events: Vec<events::Event>| {
            let events = events.into_iter().map(|event| event.shown(process));
            json!({ "events": events.collect::<Vec<_>>() })
        };
        self.send(shown(kept)).await?;
        loop {
            match events.recv().await {
                Ok(event) => self.send(shown(vec![event])).await?,
                // Some were too many to keep; those that follow are told.
                Err(tokio::sync::broadcast::error::RecvError::Lagged(_)) => {}
                Err(_) => return Ok(()),
            }
        }
    }
}
