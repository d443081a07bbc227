//! What may be said: statements that read, and at which epoch.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use datafusion::common::{DFSchema, DFSchemaRef, ParamValues};
use datafusion::logical_expr::{EmptyRelation, LogicalPlan};
use datafusion::prelude::SessionContext;
use datafusion::sql::parser;
use datafusion::sql::sqlparser::ast::{ContextModifier, Set, Statement};
use datafusion_postgres::arrow_pg::datatypes::df;
use datafusion_postgres::hooks::set_show::SetShowHook;
use datafusion_postgres::hooks::{HookClient, QueryHook};
use pgwire::api::ClientInfo;
use pgwire::api::portal::{Format, Portal};
use pgwire::api::results::{Response, Tag};
use pgwire::api::stmt::StoredStatement;
use pgwire::api::store::PortalStore;
use pgwire::error::PgWireResult;
use pgwire::messages::response::TransactionStatus;
use pgwire::types::format::FormatOptions;

use super::errors::{engine, refusal, told};
use crate::live::Current;
use crate::{QueryError, Snapshots, codes, session, views};

/// Lets through what reads, and chooses the epoch that it reads.
pub(super) struct Guard {
    snapshots: Arc<dyn Snapshots>,
    current: Arc<Current>,
    /// The columns of cursors, by which what is fetched from them is described.
    cursors: Mutex<HashMap<String, DFSchemaRef>>,
}

/// What is to be done with a statement.
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
    pub(super) fn new(snapshots: Arc<dyn Snapshots>, current: Arc<Current>) -> Self {
        Self {
            snapshots,
            current,
            cursors: Mutex::default(),
        }
    }

    /// Chooses the epoch that a statement reads.
    async fn pin(&self, context: &SessionContext, statement: &Statement) -> PgWireResult<()> {
        let statement = parser::Statement::Statement(Box::new(statement.clone()));
        // What cannot be resolved is told better when it is planned.
        let named = context.state().resolve_table_references(&statement);
        let named = named.unwrap_or_default().into_iter();
        let named = named.map(|name| name.table().to_owned()).collect();
        let relations = self.snapshots.pin(views::expanded(named)).await;
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
