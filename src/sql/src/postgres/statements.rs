//! What is answered: each statement within its time, and until it is cancelled.

use std::collections::HashMap;
use std::fmt;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use async_trait::async_trait;
use datafusion_postgres::{DfSessionService, Parser};
use futures::future::{BoxFuture, Shared};
use futures::{FutureExt, Sink, StreamExt};
use pgwire::api::cancel::CancelHandler;
use pgwire::api::portal::Portal;
use pgwire::api::query::{ExtendedQueryHandler, SimpleQueryHandler};
use pgwire::api::results::{QueryResponse, Response};
use pgwire::api::store::PortalStore;
use pgwire::api::{ClientInfo, ClientPortalStore};
use pgwire::error::{PgWireError, PgWireResult};
use pgwire::messages::PgWireBackendMessage;
use pgwire::messages::cancel::CancelRequest;
use tokio::sync::watch;
use tokio::time::Instant;

use super::access::STATEMENT_TIMEOUT;
use super::errors::canceled;

/// Rows between two looks at whether a statement should end.
const ROWS_BETWEEN_LOOKS: usize = 1_000;

/// Answers statements, each within its time and until it is cancelled.
pub(super) struct Statements {
    service: DfSessionService,
    most_time: Duration,
    cancels: Arc<Cancels>,
    registered: Mutex<Option<Registered>>,
}

/// Resolves when a statement should end, to the reason.
type Ending = Shared<BoxFuture<'static, &'static str>>;

impl Statements {
    pub(super) fn new(
        service: DfSessionService,
        most_time: Duration,
        cancels: Arc<Cancels>,
    ) -> Self {
        Self {
            service,
            most_time,
            cancels,
            registered: Mutex::default(),
        }
    }

    fn ending<C: ClientInfo>(&self, client: &C) -> Ending {
        let asked = client_timeout(client);
        let time = asked.map_or(self.most_time, |asked| asked.min(self.most_time));
        let until = Instant::now() + time;
        let mut cancelled = self.cancelled(client);
        async move {
            let cancelled = async {
                // The sender lives as long as the connection.
                let _ = cancelled.changed().await;
            };
            tokio::select! {
                () = tokio::time::sleep_until(until) => "canceling statement due to statement timeout",
                () = cancelled => "canceling statement due to user request",
            }
        }
        .boxed()
        .shared()
    }

    fn cancelled<C: ClientInfo>(&self, client: &C) -> watch::Receiver<()> {
        let mut registered = self
            .registered
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let registered = registered.get_or_insert_with(|| {
            let (pid, secret) = client.pid_and_secret_key();
            let key = (pid, secret.to_bytes().to_vec());
            Registered::new(&self.cancels, key)
        });
        let mut cancelled = registered.signal.subscribe();
        cancelled.mark_unchanged();
        cancelled
    }

    async fn run<T>(
        &self,
        ending: &Ending,
        answer: impl Future<Output = PgWireResult<T>>,
    ) -> PgWireResult<T> {
        tokio::select! {
            biased;
            reason = tokio::task::unconstrained(ending.clone()) => Err(canceled(reason)),
            answer = pin!(answer) => answer,
        }
    }
}

/// The time that a client has set for its statements.
fn client_timeout<C: ClientInfo>(client: &C) -> Option<Duration> {
    let milliseconds = client.metadata().get(STATEMENT_TIMEOUT)?.parse().ok()?;
    Some(Duration::from_millis(milliseconds))
}

/// Rows that end when they should.
fn bounded(response: Response, ending: Ending) -> Response {
    let Response::Query(mut answer) = response else {
        return response;
    };
    let tag = answer.command_tag().to_owned();
    let fields = answer.row_schema();
    let mut rows = std::mem::replace(answer.data_rows(), futures::stream::empty().boxed());
    let (mut given, mut waited, mut ended) = (0_usize, false, false);
    let mut ending = tokio::task::unconstrained(ending);
    let bounded = futures::stream::poll_fn(move |context| {
        if ended {
            return Poll::Ready(None);
        }
        // First, and whatever the rows leave of what a task may do at a time: a query that computes and
        // computes would never come to its end otherwise.
        let looks = waited || given.is_multiple_of(ROWS_BETWEEN_LOOKS);
        if looks && let Poll::Ready(reason) = Pin::new(&mut ending).poll(context) {
            ended = true;
            return Poll::Ready(Some(Err(canceled(reason))));
        }
        let next = rows.poll_next_unpin(context);
        waited = next.is_pending();
        given += usize::from(!waited);
        next
    });
    let mut answer = QueryResponse::new(fields, bounded);
    answer.set_command_tag(&tag);
    Response::Query(answer)
}

#[async_trait]
impl SimpleQueryHandler for Statements {
    async fn do_query<C>(&self, client: &mut C, query: &str) -> PgWireResult<Vec<Response>>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore,
        C::Error: fmt::Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let ending = self.ending(client);
        let answers = SimpleQueryHandler::do_query(&self.service, client, query);
        let answers = self.run(&ending, answers).await?;
        let bound = |answer| bounded(answer, ending.clone());
        Ok(answers.into_iter().map(bound).collect())
    }
}

#[async_trait]
impl ExtendedQueryHandler for Statements {
    type Statement = <DfSessionService as ExtendedQueryHandler>::Statement;
    type QueryParser = Parser;

    fn query_parser(&self) -> Arc<Self::QueryParser> {
        self.service.query_parser()
    }

    async fn do_query<C>(
        &self,
        client: &mut C,
        portal: &Portal<Self::Statement>,
        most_rows: usize,
    ) -> PgWireResult<Response>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore<Statement = Self::Statement>,
        C::Error: fmt::Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let ending = self.ending(client);
        let answer = ExtendedQueryHandler::do_query(&self.service, client, portal, most_rows);
        let answer = self.run(&ending, answer).await?;
        Ok(bounded(answer, ending))
    }
}

/// The connections whose statements can be cancelled, by what their clients were told at the start.
#[derive(Default)]
pub(super) struct Cancels(Mutex<HashMap<ConnectionKey, watch::Sender<()>>>);

type ConnectionKey = (i32, Vec<u8>);

#[async_trait]
impl CancelHandler for Cancels {
    async fn on_cancel_request(&self, request: CancelRequest) {
        let key = (request.pid, request.secret_key.to_bytes().to_vec());
        let connections = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(signal) = connections.get(&key) {
            signal.send_replace(());
        }
    }
}

/// A connection's place among those.
struct Registered {
    signal: watch::Sender<()>,
    key: ConnectionKey,
    cancels: Arc<Cancels>,
}

impl Registered {
    fn new(cancels: &Arc<Cancels>, key: ConnectionKey) -> Self {
        let signal = watch::Sender::new(());
        let mut connections = cancels.0.lock().unwrap_or_else(PoisonError::into_inner);
        connections.insert(key.clone(), signal.clone());
        let cancels = Arc::clone(cancels);
        Self {
            signal,
            key,
            cancels,
        }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        let mut connections = self
            .cancels
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        connections.remove(&self.key);
    }
}
