//! PostgreSQL, spoken to in SQL.

use tokio_postgres::{Client, NoTls, Row};

use super::services::Services;

/// A connection.
pub(crate) struct Database {
    runtime: tokio::runtime::Runtime,
    client: Client,
}

impl Database {
    pub(crate) fn connect(services: &Services) -> Self {
        Self::connect_to(services.postgres())
    }

    pub(crate) fn connect_to(url: &str) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let connecting = tokio_postgres::connect(url, NoTls);
        let (client, connection) = runtime.block_on(connecting).unwrap();
        runtime.spawn(connection);
        Self { runtime, client }
    }

    pub(crate) fn run(&self, sql: &str) {
        let done = self.runtime.block_on(self.client.batch_execute(sql));
        done.unwrap_or_else(|error| panic!("{error:?} from {sql}"));
    }

    pub(crate) fn query(&self, sql: &str) -> Vec<Row> {
        let rows = self.runtime.block_on(self.client.query(sql, &[]));
        rows.unwrap_or_else(|error| panic!("{error:?} from {sql}"))
    }

    /// The rows of a query, each column as text.
    pub(crate) fn texts(&self, sql: &str) -> Vec<Vec<Option<String>>> {
        let rows = self.query(sql).into_iter();
        rows.map(|row| (0..row.len()).map(|column| row.get(column)).collect())
            .collect()
    }
}
