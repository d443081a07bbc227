//! Rows written to a PostgreSQL table, to try a pipeline out: the connection and its statements.

use tokio_postgres::{Client, NoTls};

use super::quoted;

/// A row to write; `None` deletes the row of this id.
pub type Write<'a> = (i64, Option<[&'a str; 4]>);

/// A connection that writes tweets to a table.
pub struct TweetWriter {
    client: Client,
    table: String,
}

/// Why rows could not be written.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {source}")]
pub struct WriteError {
    what: String,
    source: tokio_postgres::Error,
}

impl TweetWriter {
    /// Connects, and makes the table if there is none.
    ///
    /// # Errors
    /// If the server cannot be reached or refuses the table.
    pub async fn connect(url: &str, table: &str) -> Result<Self, WriteError> {
        let failed = |what: &str| {
            let what = what.to_owned();
            move |source| WriteError { what, source }
        };
        // The URL may hold a password, so it is not shown.
        let (client, connection) = tokio_postgres::connect(url, NoTls)
            .await
            .map_err(failed("cannot connect to PostgreSQL"))?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::warn!(%error, "the connection to PostgreSQL ended");
            }
        });
        let table = quoted(table);
        let create = format!(
            "create table if not exists {table} \
             (id bigint primary key, date text, \"user\" text, text text, sentiment text)"
        );
        client
            .batch_execute(&create)
            .await
            .map_err(failed(&format!("cannot make the table {table}")))?;
        Ok(Self { client, table })
    }

    /// Writes the rows in one transaction: inserts, overwrites or deletes each by its id.
    ///
    /// # Errors
    /// If the server refuses one; then none is written.
    pub async fn write(&mut self, rows: &[Write<'_>]) -> Result<(), WriteError> {
        let failed = |source| WriteError {
            what: format!("cannot write to {}", self.table),
            source,
        };
        let upsert = format!(
            "insert into {} (id, date, \"user\", text, sentiment) values ($1, $2, $3, $4, $5) \
             on conflict (id) do update set date = excluded.date, \"user\" = excluded.\"user\", \
             text = excluded.text, sentiment = excluded.sentiment",
            self.table
        );
        let delete = format!("delete from {} where id = $1", self.table);
        let transaction = self.client.transaction().await.map_err(failed)?;
        let upsert = transaction.prepare(&upsert).await.map_err(failed)?;
        let delete = transaction.prepare(&delete).await.map_err(failed)?;
        for (id, row) in rows {
            match row {
                Some([date, user, text, sentiment]) => {
                    transaction
                        .execute(&upsert, &[id, date, user, text, sentiment])
                        .await
                }
                None => transaction.execute(&delete, &[id]).await,
            }
            .map_err(failed)?;
        }
        transaction.commit().await.map_err(failed)
    }

    /// The greatest id in the table, or 0 if it is empty.
    ///
    /// # Errors
    /// If the server refuses.
    pub async fn greatest_id(&self) -> Result<i64, WriteError> {
        let query = format!("select coalesce(max(id), 0) from {}", self.table);
        let row = self.client.query_one(&query, &[]).await;
        let row = row.map_err(|source| WriteError {
            what: format!("cannot read {}", self.table),
            source,
        })?;
        Ok(row.get(0))
    }
}
