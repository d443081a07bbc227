//! PostgreSQL's protocol: `psql`, drivers and tools read the relations as tables.
//!
//! Each connection has a session of its own, and each statement reads one epoch. Nothing can be changed:
//! [`Guard`] sees every statement first and lets through what reads, so that no part of the engine behind
//! it is asked to write a table, a file or another session's settings.

mod access;
mod errors;
mod guard;
mod statements;

use std::sync::Arc;
use std::time::Duration;

use datafusion_postgres::DfSessionService;
use datafusion_postgres::datafusion_pg_catalog::pg_catalog::context::EmptyContextProvider;
use datafusion_postgres::datafusion_pg_catalog::pg_catalog::setup_pg_catalog;
use datafusion_postgres::hooks::QueryHook;
use datafusion_postgres::hooks::cursor::CursorStatementHook;
use datafusion_postgres::hooks::set_show::SetShowHook;
use datafusion_postgres::hooks::transactions::TransactionStatementHook;
use pgwire::api::auth::StartupHandler;
use pgwire::api::cancel::CancelHandler;
use pgwire::api::query::{ExtendedQueryHandler, SimpleQueryHandler};
use pgwire::api::{ErrorHandler, PgWireServerHandlers};
use pgwire::tokio::process_socket;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

pub use self::access::Access;
use self::access::{MOST_CONNECTIONS, Startup};
use self::errors::Explaining;
use self::guard::Guard;
use self::statements::{Cancels, Statements};
use crate::live::Current;
use crate::session::{self, CATALOG};
use crate::{Limits, QueryError, Snapshots};

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
        let readable = !snapshots.relations().is_empty();
        let known = Arc::clone(snapshots);
        let context = session::session(Arc::new(move || known.relations()), &current, limits)?;
        setup_pg_catalog(&context, CATALOG, EmptyContextProvider).map_err(|error| *error)?;
        let guard = Guard::new(Arc::clone(snapshots), current);
        let hooks: Vec<Arc<dyn QueryHook>> = vec![
            Arc::new(guard),
            Arc::new(CursorStatementHook),
            Arc::new(SetShowHook),
            Arc::new(TransactionStatementHook),
        ];
        let service = DfSessionService::new_with_hooks(Arc::new(context), hooks);
        let statements = Statements::new(service, limits.time, Arc::clone(cancels));
        Ok(Self {
            statements: Arc::new(statements),
            startup: Arc::new(Startup::new(access, readable, places)),
            cancels: Arc::clone(cancels),
        })
    }
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
