//! PostgreSQL's protocol: `psql`, drivers and tools read the relations as tables.
//!
//! Each connection has a session of its own, and each statement reads one epoch. Nothing can be changed:
//! [`Guard`] sees every statement first and lets through what reads, so that no part of the engine behind
//! it is asked to write a table, a file or another session's settings.

use std::collections::HashMap;
use std::fmt;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use async_trait::async_trait;
use datafusion::common::{DFSchema, DFSchemaRef, DataFusionError, ParamValues};
use datafusion::logical_expr::{EmptyRelation, LogicalPlan};
use datafusion::prelude::SessionContext;
use datafusion::sql::parser;
use datafusion::sql::sqlparser::ast::{ContextModifier, Set, Statement};
use datafusion_postgres::arrow_pg::datatypes::df;
use datafusion_postgres::datafusion_pg_catalog::pg_catalog::context::EmptyContextProvider;
use datafusion_postgres::datafusion_pg_catalog::pg_catalog::setup_pg_catalog;
use datafusion_postgres::hooks::cursor::CursorStatementHook;
use datafusion_postgres::hooks::set_show::SetShowHook;
use datafusion_postgres::hooks::transactions::TransactionStatementHook;
use datafusion_postgres::hooks::{HookClient, QueryHook};
use datafusion_postgres::{DfSessionService, Parser};
use futures::future::{BoxFuture, Shared};
use futures::{FutureExt, Sink, StreamExt};
use pgwire::api::auth::noop::NoopStartupHandler;
use pgwire::api::auth::sasl::SASLAuthStartupHandler;
use pgwire::api::auth::sasl::scram::{SCRAM_ITERATIONS, ScramAuth, gen_salted_password};
use pgwire::api::auth::{
    AuthSource, DefaultServerParameterProvider, LoginInfo, Password, StartupHandler,
};
use pgwire::api::cancel::CancelHandler;
use pgwire::api::portal::{Format, Portal};
use pgwire::api::query::{ExtendedQueryHandler, SimpleQueryHandler};
use pgwire::api::results::{QueryResponse, Response, Tag};
use pgwire::api::stmt::StoredStatement;
use pgwire::api::store::PortalStore;
use pgwire::api::{ClientInfo, ClientPortalStore, ErrorHandler, PgWireServerHandlers};
use pgwire::error::{ErrorInfo, PgWireError, PgWireResult};
use pgwire::messages::cancel::CancelRequest;
use pgwire::messages::response::TransactionStatus;
use pgwire::messages::{PgWireBackendMessage, PgWireFrontendMessage};
use pgwire::tokio::process_socket;
use pgwire::types::format::FormatOptions;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;

use crate::live::Current;
use crate::session::{self, CATALOG};
use crate::{Limits, QueryError, Snapshots, codes};

/// Connections at one time.
const MOST_CONNECTIONS: usize = 100;

/// Rows between two looks at whether a statement should end.
const ROWS_BETWEEN_LOOKS: usize = 1_000;

/// Who may connect, and how.
#[derive(Clone)]
pub struct Access {
    users: Option<Arc<Users>>,
    encryption: Option<TlsAcceptor>,
}

impl Access {
    /// Access for users with passwords, or for everyone if there are none; encrypted, and then in no
    /// other way, or in the clear.
    ///
    /// # Errors
    /// If the system has no random numbers.
    pub fn new(
        users: Vec<(String, String)>,
        encryption: Option<TlsAcceptor>,
    ) -> Result<Self, getrandom::Error> {
        let known = (!users.is_empty()).then(|| Users::new(users)).transpose()?;
        Ok(Self {
            users: known.map(Arc::new),
            encryption,
        })
    }
}

impl fmt::Debug for Access {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Access")
    }
}

/// Serves connections until the process ends.
pub async fn serve(
    listener: TcpListener,
    access: Access,
    limits: Limits,
    snapshots: Arc<dyn Snapshots>,
) {
    let cancels = Arc::<Cancels>::default();
    let places = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    loop {
        let (socket, client) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, as a rule: others will be closed.
                tracing::warn!(%error, "a PostgreSQL connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let connection = Connection::new(&access, limits, &snapshots, &cancels, &places);
        let encryption = access.encryption.clone();
        tokio::spawn(async move {
            let connection = match connection {
                Ok(connection) => connection,
                Err(error) => {
                    return tracing::error!(%error, "a PostgreSQL session could not be made");
                }
            };
            if let Err(error) = process_socket(socket, encryption, Arc::new(connection)).await {
                tracing::debug!(%error, %client, "a PostgreSQL connection broke");
            }
        });
    }
}

/// All that one connection has to itself.
struct Connection {
    statements: Arc<Statements>,
    startup: Arc<Startup>,
    cancels: Arc<Cancels>,
}

impl Connection {
    fn new(
        access: &Access,
        limits: Limits,
        snapshots: &Arc<dyn Snapshots>,
        cancels: &Arc<Cancels>,
        places: &Arc<Semaphore>,
    ) -> Result<Self, QueryError> {
        let current = Arc::<Current>::default();
        let relations = snapshots.relations();
        let readable = !relations.is_empty();
        let context = session::session(relations, &current, limits)?;
        setup_pg_catalog(&context, CATALOG, EmptyContextProvider).map_err(|error| *error)?;
        let guard = Guard {
            snapshots: Arc::clone(snapshots),
            current,
            cursors: Mutex::default(),
        };
        let hooks: Vec<Arc<dyn QueryHook>> = vec![
            Arc::new(guard),
            Arc::new(CursorStatementHook),
            Arc::new(SetShowHook),
            Arc::new(TransactionStatementHook),
        ];
        let service = DfSessionService::new_with_hooks(Arc::new(context), hooks);
        let scram = access.users.as_ref().map(|users| {
            let users = Arc::new(KnownUsers(Arc::clone(users)));
            let parameters = Arc::new(parameters());
            SASLAuthStartupHandler::new(parameters).with_scram(ScramAuth::new(users))
        });
        Ok(Self {
            statements: Arc::new(Statements {
                service,
                most_time: limits.time,
                cancels: Arc::clone(cancels),
                registered: Mutex::default(),
            }),
            startup: Arc::new(Startup {
                scram,
                encrypted_only: access.encryption.is_some(),
                readable,
                place: Arc::clone(places).try_acquire_owned().ok(),
            }),
            cancels: Arc::clone(cancels),
        })
    }
}

fn parameters() -> DefaultServerParameterProvider {
    let mut parameters = DefaultServerParameterProvider::default();
    parameters.is_superuser = false;
    parameters.default_transaction_read_only = true;
    parameters
}

impl PgWireServerHandlers for Connection {
    fn simple_query_handler(&self) -> Arc<impl SimpleQueryHandler> {
        Arc::clone(&self.statements)
    }

    fn extended_query_handler(&self) -> Arc<impl ExtendedQueryHandler> {
        Arc::clone(&self.statements)
    }

    fn startup_handler(&self) -> Arc<impl StartupHandler> {
        Arc::clone(&self.startup)
    }

    fn cancel_handler(&self) -> Arc<impl CancelHandler> {
        Arc::clone(&self.cancels)
    }

    fn error_handler(&self) -> Arc<impl ErrorHandler> {
        Arc::new(Explaining)
    }
}

/// Gives errors the codes that clients go by.
struct Explaining;

impl ErrorHandler for Explaining {
    fn on_error<C: ClientInfo>(&self, _: &C, error: &mut PgWireError) {
        let told = std::mem::replace(error, PgWireError::QueryCanceled);
        *error = explained(told);
    }
}

// ---- who may connect -----------------------------------------------------------------------

/// The passwords of users, salted, as SCRAM has them.
struct Users {
    by_name: HashMap<String, (Vec<u8>, Vec<u8>)>,
    /// From which the salts of users are made that do not exist, so that asking does not tell who does.
    secret: [u8; 16],
}

impl Users {
    fn new(users: Vec<(String, String)>) -> Result<Self, getrandom::Error> {
        let random = || {
            let mut bytes = [0; 16];
            getrandom::fill(&mut bytes).map(|()| bytes)
        };
        let mut by_name = HashMap::new();
        for (name, password) in users {
            let salt = random()?;
            let salted = gen_salted_password(&password, &salt, SCRAM_ITERATIONS);
            by_name.insert(name, (salt.to_vec(), salted));
        }
        let secret = random()?;
        Ok(Self { by_name, secret })
    }
}

impl fmt::Debug for KnownUsers {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("KnownUsers")
    }
}

struct KnownUsers(Arc<Users>);

#[async_trait]
impl AuthSource for KnownUsers {
    async fn get_password(&self, login: &LoginInfo) -> PgWireResult<Password> {
        let user = login.user().unwrap_or_default();
        let (salt, salted) = match self.0.by_name.get(user) {
            Some(known) => known.clone(),
            None => {
                let salt = gen_salted_password(user, &self.0.secret, 1)[..16].to_vec();
                // No password salts to this: it is not known, and differs with each start.
                let salted = gen_salted_password(user, &self.0.secret, 2);
                (salt, salted)
            }
        };
        Ok(Password::new(Some(salt), salted))
    }
}

struct Startup {
    /// Asks for a password, if one is needed.
    scram: Option<SASLAuthStartupHandler<DefaultServerParameterProvider>>,
    encrypted_only: bool,
    /// Whether the relations are known, which a session keeps from its start.
    readable: bool,
    /// A place among the connections; none if there was none left.
    place: Option<tokio::sync::OwnedSemaphorePermit>,
}

#[async_trait]
impl StartupHandler for Startup {
    async fn on_startup<C>(
        &self,
        client: &mut C,
        message: PgWireFrontendMessage,
    ) -> PgWireResult<()>
    where
        C: ClientInfo + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::Error: fmt::Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        if self.place.is_none() {
            let message = format!("there are {MOST_CONNECTIONS} connections already");
            return Err(fatal(codes::TOO_MANY_CONNECTIONS, message));
        }
        if !self.readable {
            let message = "the dataflow is not running yet";
            return Err(fatal(codes::CANNOT_CONNECT_NOW, message.to_owned()));
        }
        if self.encrypted_only && !client.is_secure() {
            let message = "connect with encryption: sslmode=require or stricter";
            return Err(fatal(codes::INVALID_AUTHORIZATION, message.to_owned()));
        }
        match &self.scram {
            Some(scram) => scram.on_startup(client, message).await,
            None => StartupHandler::on_startup(&Everyone, client, message).await,
        }
    }
}

/// Lets everyone in.
struct Everyone;

impl NoopStartupHandler for Everyone {}

// ---- what may be said ----------------------------------------------------------------------

/// Lets through what reads, and chooses the epoch that it reads.
struct Guard {
    snapshots: Arc<dyn Snapshots>,
    current: Arc<Current>,
    /// The columns of cursors, by which what is fetched from them is described.
    cursors: Mutex<HashMap<String, DFSchemaRef>>,
}

/// What is to be done with a statement.
#[derive(Debug, PartialEq)]
enum Verdict {
    /// It reads relations.
    Reads,
    /// It is to read relations by and by: cursors with their queries.
    Declares(Vec<(String, Statement)>),
    /// It sets something of the session, said as the hook for that understands it.
    Sets(Box<Set>),
    /// It concerns the session alone.
    Session,
    /// It clears what drivers keep by name, of which nothing is kept.
    Clears(&'static str),
}

fn judge(statement: &Statement) -> Result<Verdict, (&'static str, String)> {
    match statement {
        Statement::Query(_) => Ok(Verdict::Reads),
        Statement::Explain { statement, .. } => judge(statement),
        Statement::Declare { stmts } => {
            let cursors = stmts.iter().filter_map(|declared| {
                let name = declared.names.first()?.value.clone();
                Some((name, Statement::Query(declared.for_query.clone()?)))
            });
            Ok(Verdict::Declares(cursors.collect()))
        }
        Statement::Set(set) if is_engines(set) => {
            let message = "the engine's settings are not yours to set".to_owned();
            Err((codes::INSUFFICIENT_PRIVILEGE, message))
        }
        Statement::Set(set) => Ok(Verdict::Sets(Box::new(plainly(set.clone())))),
        Statement::ShowVariable { .. }
        | Statement::ShowTables { .. }
        | Statement::ShowColumns { .. }
        | Statement::ExplainTable { .. }
        | Statement::StartTransaction { .. }
        | Statement::Commit { .. }
        | Statement::Rollback { .. }
        | Statement::Fetch { .. }
        | Statement::Close { .. } => Ok(Verdict::Session),
        Statement::Deallocate { .. } => Ok(Verdict::Clears("DEALLOCATE")),
        Statement::Discard { .. } => Ok(Verdict::Clears("DISCARD ALL")),
        refused => {
            let words = refused.to_string();
            let verb = words.split(' ').next().unwrap_or_default().to_uppercase();
            // Drivers and pools say these, and there is nothing to go back to.
            let mut nothing = ["RESET", "SAVEPOINT", "RELEASE"].into_iter();
            if let Some(tag) = nothing.find(|tag| *tag == verb) {
                return Ok(Verdict::Clears(tag));
            }
            let message = format!(
                "cannot execute {verb}: relations follow their source, and can only be read"
            );
            Err((codes::READ_ONLY, message))
        }
    }
}

/// The same in other words: a session's setting is any setting, and a time zone has a statement of its own.
fn plainly(set: Set) -> Set {
    match set {
        Set::SingleAssignment {
            scope: None | Some(ContextModifier::Session),
            hivevar,
            variable,
            values,
        } => match values.as_slice() {
            [value] if variable.to_string().eq_ignore_ascii_case("timezone") => Set::SetTimeZone {
                local: false,
                value: value.clone(),
            },
            _ => Set::SingleAssignment {
                scope: None,
                hivevar,
                variable,
                values,
            },
        },
        other => other,
    }
}

/// Refuses what follows a failure within a transaction, until that ends.
fn goes_on(statement: &Statement, client: &dyn HookClient) -> PgWireResult<()> {
    let ends = matches!(
        statement,
        Statement::Commit { .. } | Statement::Rollback { .. }
    );
    if ends || client.transaction_status() != TransactionStatus::Error {
        return Ok(());
    }
    let message = "current transaction is aborted, commands ignored until end of transaction block";
    Err(refusal(codes::IN_FAILED_TRANSACTION, message.to_owned()))
}

fn is_engines(set: &Set) -> bool {
    let text = set.to_string().to_lowercase();
    text.contains("datafusion.")
}

impl Guard {
    /// Chooses the epoch that a statement reads.
    async fn pin(&self, context: &SessionContext, statement: &Statement) -> PgWireResult<()> {
        let statement = parser::Statement::Statement(Box::new(statement.clone()));
        // What cannot be resolved is told better when it is planned.
        let named = context.state().resolve_table_references(&statement);
        let named = named.unwrap_or_default().into_iter();
        let named = named.map(|name| name.table().to_owned()).collect();
        let relations = self.snapshots.pin(named).await;
        let relations = relations.map_err(|error| told(&QueryError::Read(error)))?;
        self.current.set(relations);
        Ok(())
    }

    /// Answers a query that came as text.
    async fn answer(
        &self,
        context: &SessionContext,
        statement: &Statement,
        client: &mut dyn HookClient,
    ) -> PgWireResult<Option<Response>> {
        self.pin(context, statement).await?;
        let plan = self.understood(context, statement).await?;
        let frame = context.execute_logical_plan(plan).await.map_err(engine)?;
        let options = Arc::new(FormatOptions::from_client_metadata(client.metadata()));
        let answer = df::encode_dataframe(frame, &Format::UnifiedText, Some(options)).await?;
        Ok(Some(Response::Query(answer)))
    }

    /// Opens cursors; the hook for cursors fetches from them.
    async fn declare(
        &self,
        context: &SessionContext,
        cursors: Vec<(String, Statement)>,
        client: &mut dyn HookClient,
    ) -> PgWireResult<Option<Response>> {
        for (name, query) in cursors {
            self.pin(context, &query).await?;
            let plan = self.understood(context, &query).await?;
            let schema = Arc::clone(plan.schema());
            let rows = context.execute_logical_plan(plan.clone()).await;
            let options = Arc::new(FormatOptions::from_client_metadata(client.metadata()));
            let rows = rows.map_err(engine)?;
            let rows = df::encode_dataframe(rows, &Format::UnifiedText, Some(options)).await?;
            // With its plan, by which clients are told the columns.
            let statement = (query.to_string(), Some((query, plan)));
            let statement = StoredStatement::new(name.clone(), statement, Vec::new());
            let portal = Portal::new_cursor(name.clone(), Arc::new(statement));
            portal.start(rows).await;
            client.portal_store().put_portal(Arc::new(portal));
            let mut cursors = self.cursors.lock().unwrap_or_else(PoisonError::into_inner);
            cursors.insert(name, schema);
        }
        Ok(Some(Response::Execution(Tag::new("DECLARE CURSOR"))))
    }

    /// What is fetched from a cursor, as far as its columns go.
    fn fetched(&self, cursor: &str) -> Option<LogicalPlan> {
        let cursors = self.cursors.lock().unwrap_or_else(PoisonError::into_inner);
        let schema = cursors.get(cursor).cloned()?;
        Some(LogicalPlan::EmptyRelation(EmptyRelation {
            produce_one_row: false,
            schema,
        }))
    }

    /// Refuses what does more than read, once the engine has understood it: `select into` makes a table.
    async fn understood(
        &self,
        context: &SessionContext,
        statement: &Statement,
    ) -> PgWireResult<LogicalPlan> {
        let statement = parser::Statement::Statement(Box::new(statement.clone()));
        let plan = context.state().statement_to_plan(statement).await;
        let plan = plan.map_err(engine)?;
        session::reads_alone(&plan).map_err(|error| told(&error))?;
        Ok(plan)
    }
}

/// An error of the engine, to be [`explained`].
fn engine(error: DataFusionError) -> PgWireError {
    PgWireError::ApiError(Box::new(error))
}

#[async_trait]
impl QueryHook for Guard {
    async fn handle_simple_query(
        &self,
        statement: &Statement,
        context: &SessionContext,
        client: &mut dyn HookClient,
    ) -> Option<PgWireResult<Response>> {
        if let Err(error) = goes_on(statement, client) {
            return Some(Err(error));
        }
        let answer = match judge(statement) {
            Ok(Verdict::Reads) => self.answer(context, statement, client).await,
            Ok(Verdict::Declares(cursors)) => self.declare(context, cursors, client).await,
            Ok(Verdict::Sets(set)) => {
                let set = Statement::Set(*set);
                return SetShowHook.handle_simple_query(&set, context, client).await;
            }
            Ok(Verdict::Session) => Ok(None),
            Ok(Verdict::Clears(tag)) => Ok(Some(Response::Execution(Tag::new(tag)))),
            Err((code, message)) => Err(refusal(code, message)),
        };
        answer.transpose()
    }

    async fn handle_extended_parse_query(
        &self,
        statement: &Statement,
        _: &SessionContext,
        _: &(dyn ClientInfo + Send + Sync),
    ) -> Option<PgWireResult<LogicalPlan>> {
        if let Statement::Fetch { name, .. } = statement {
            return self.fetched(&name.value).map(Ok);
        }
        match judge(statement) {
            Ok(Verdict::Clears(_)) => Some(Ok(LogicalPlan::EmptyRelation(EmptyRelation {
                produce_one_row: false,
                schema: Arc::new(DFSchema::empty()),
            }))),
            Ok(_) => None,
            Err((code, message)) => Some(Err(refusal(code, message))),
        }
    }

    async fn handle_extended_query(
        &self,
        statement: &Statement,
        plan: &LogicalPlan,
        _: &ParamValues,
        context: &SessionContext,
        client: &mut dyn HookClient,
    ) -> Option<PgWireResult<Response>> {
        if let Err(error) = goes_on(statement, client) {
            return Some(Err(error));
        }
        match judge(statement) {
            Ok(Verdict::Reads) => {
                let pinned = match session::reads_alone(plan) {
                    Ok(()) => self.pin(context, statement).await,
                    Err(error) => Err(told(&error)),
                };
                pinned.err().map(Err)
            }
            _ => self.handle_simple_query(statement, context, client).await,
        }
    }
}

// ---- what is answered ----------------------------------------------------------------------

/// Answers statements, each within its time and until it is cancelled.
struct Statements {
    service: DfSessionService,
    most_time: Duration,
    cancels: Arc<Cancels>,
    registered: Mutex<Option<Registered>>,
}

/// Resolves when a statement should end, to the reason.
type Ending = Shared<BoxFuture<'static, &'static str>>;

impl Statements {
    fn ending<C: ClientInfo>(&self, client: &C) -> Ending {
        let asked = datafusion_postgres_timeout(client);
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

/// The time that a client has set for its statements, where the hook for SET keeps it.
fn datafusion_postgres_timeout<C: ClientInfo>(client: &C) -> Option<Duration> {
    let milliseconds = client
        .metadata()
        .get("statement_timeout_ms")?
        .parse()
        .ok()?;
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
struct Cancels(Mutex<HashMap<ConnectionKey, watch::Sender<()>>>);

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

// ---- what went wrong -----------------------------------------------------------------------

fn refusal(code: &str, message: String) -> PgWireError {
    let error = ErrorInfo::new("ERROR".to_owned(), code.to_owned(), message);
    PgWireError::UserError(Box::new(error))
}

fn canceled(reason: &str) -> PgWireError {
    refusal(codes::QUERY_CANCELED, reason.to_owned())
}

fn fatal(code: &str, message: String) -> PgWireError {
    let error = ErrorInfo::new("FATAL".to_owned(), code.to_owned(), message);
    PgWireError::UserError(Box::new(error))
}

fn told(error: &QueryError) -> PgWireError {
    refusal(error.code(), error.to_string())
}

/// An error of the engine, with the code that clients go by.
fn explained(error: PgWireError) -> PgWireError {
    match error {
        PgWireError::ApiError(error) => match error.downcast::<DataFusionError>() {
            Ok(error) => told(&QueryError::from(*error)),
            Err(error) => {
                match error.downcast::<datafusion::sql::sqlparser::parser::ParserError>() {
                    Ok(error) => refusal(codes::SYNTAX_ERROR, error.to_string()),
                    Err(error) => PgWireError::ApiError(error),
                }
            }
        },
        other => other,
    }
}
