//! A table that holds what a relation holds.
//!
//! Nothing is remembered of what was written before: whoever opens the table compares it with the relation
//! and writes the difference, and from then on each epoch's changes, in one transaction each. So a table is
//! never half an epoch, and a crash, on either side, costs a comparison and no row.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use arrow::array::{Array, AsArray, RecordBatch, StringArray, UInt64Array};
use arrow::compute::{concat_batches, take_record_batch};
use arrow::datatypes::{
    DataType, Float64Type, Int64Type, SchemaRef, TimeUnit, TimestampMicrosecondType,
};
use arrow::error::ArrowError;
use rustls_native_certs::load_native_certs;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Config, NoTls, Row, Transaction};
use tokio_postgres_rustls::MakeRustlsConnect;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use super::quoted;
use crate::web::told;

/// Rows of one statement.
const ROWS_A_STATEMENT: usize = 10_000;

/// Where a mirror stands.
#[derive(Clone)]
pub struct MirrorSettings {
    /// `postgres://user:password@host:port/database`, or the same as words of `key=value`.
    pub url: String,
    /// The table, with its schema if it has one.
    pub table: String,
    /// Whether to speak in the clear.
    pub unencrypted: bool,
    /// The certificates, in PEM, of those who may have issued the server's; the system's if none.
    pub authority: Option<Vec<u8>>,
}

impl fmt::Debug for MirrorSettings {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The URL may hold a password.
        write!(formatter, "MirrorSettings({})", self.table)
    }
}

/// Why a mirror cannot follow its relation.
#[derive(Debug, thiserror::Error)]
pub enum MirrorError {
    /// The server cannot be reached, or refuses something.
    #[error("{what}: {why}")]
    Postgres {
        /// What was tried.
        what: String,
        /// What the server, or the connection, says.
        why: String,
    },
    /// Someone else writes this mirror.
    #[error("table {0} is written by another Assay")]
    Busy(String),
    /// A column has a type that the mirror does not know.
    #[error("column \"{0}\" has a type that cannot be mirrored")]
    Type(String),
    /// Rows do not fit together.
    #[error(transparent)]
    Rows(#[from] ArrowError),
}

fn failed(what: impl Into<String>) -> impl FnOnce(tokio_postgres::Error) -> MirrorError {
    let what = what.into();
    move |error| MirrorError::Postgres {
        what,
        why: told(&error),
    }
}

/// An open mirror. Its rows are told apart by the relation's first column.
pub struct Mirror {
    client: Client,
    schema: SchemaRef,
    /// The table's name, quoted.
    table: String,
}

impl Mirror {
    /// Connects, makes the table if there is none, and makes sure that no one else writes it.
    ///
    /// # Errors
    /// If the server cannot be reached, has no such table and refuses to make one, or another writes it.
    pub async fn open(settings: &MirrorSettings, schema: SchemaRef) -> Result<Self, MirrorError> {
        let client = connect(settings).await?;
        let mirror = Self {
            client,
            table: quoted(&settings.table),
            schema,
        };
        mirror.lock().await?;
        mirror.make().await?;
        Ok(mirror)
    }

    /// Takes a lock that goes with the connection.
    async fn lock(&self) -> Result<(), MirrorError> {
        let lock = "select pg_try_advisory_lock(hashtextextended($1, 0))";
        let locked = self.client.query_one(lock, &[&self.table]).await;
        let locked = locked.map_err(failed("cannot lock the mirror"))?;
        match locked.get(0) {
            true => Ok(()),
            false => Err(MirrorError::Busy(self.table.clone())),
        }
    }

    async fn make(&self) -> Result<(), MirrorError> {
        let look = format!("select {} from {} limit 0", self.columns(), self.table);
        let error = match self.client.batch_execute(&look).await {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        if error.code() != Some(&SqlState::UNDEFINED_TABLE) {
            return Err(failed(format!("cannot read {}", self.table))(error));
        }
        let definition = self.definition()?;
        let made = self.client.batch_execute(&definition).await;
        made.map_err(failed(format!(
            "cannot make the table; make it by hand: {definition}"
        )))
    }

    fn definition(&self) -> Result<String, MirrorError> {
        let mut columns = Vec::new();
        for (place, field) in self.schema.fields().iter().enumerate() {
            let key = if place == 0 { " primary key" } else { "" };
            let (kind, null) = (
                type_of(field.name(), field.data_type())?,
                if field.is_nullable() { "" } else { " not null" },
            );
            columns.push(format!("{} {kind}{null}{key}", quoted_name(field.name())));
        }
        Ok(format!(
            "create table {} ({})",
            self.table,
            columns.join(", ")
        ))
    }

    fn columns(&self) -> String {
        let names = self.schema.fields().iter();
        let names: Vec<_> = names.map(|field| quoted_name(field.name())).collect();
        names.join(", ")
    }

    /// Makes the table equal to these rows, in one transaction; returns how many rows were written and
    /// how many removed.
    ///
    /// # Errors
    /// If the server refuses; then nothing has changed.
    pub async fn reset(&mut self, rows: &[RecordBatch]) -> Result<(usize, usize), MirrorError> {
        let rows = concat_batches(&self.schema, rows)?;
        let (columns, table) = (self.readable()?, self.table.clone());
        let schema = Arc::clone(&self.schema);
        let transaction = self.client.transaction().await;
        let transaction = transaction.map_err(failed("cannot begin a transaction"))?;
        let held = transaction
            .query(&format!("select {columns} from {table}"), &[])
            .await
            .map_err(failed(format!("cannot read {table}")))?;
        let mut wanted: HashMap<&str, usize> = HashMap::with_capacity(rows.num_rows());
        for (row, key) in rows.column(0).as_string::<i32>().iter().enumerate() {
            wanted.insert(key.unwrap_or_default(), row);
        }
        let mut surplus = Vec::new();
        for row in &held {
            let key: &str = row
                .try_get(0)
                .map_err(failed(format!("cannot read {table}")))?;
            match wanted.get(key) {
                Some(place) if equal(row, &rows, *place, &schema) => drop(wanted.remove(key)),
                Some(_) => {}
                None => surplus.push(key.to_owned()),
            }
        }
        let mut places: Vec<_> = wanted.into_values().map(|place| place as u64).collect();
        places.sort_unstable();
        let missing = take_record_batch(&rows, &UInt64Array::from(places))?;
        let written = (missing.num_rows(), surplus.len());
        write(transaction, &table, &schema, &missing, &surplus).await?;
        Ok(written)
    }

    /// Overwrites rows, and removes those of some keys, in one transaction.
    ///
    /// # Errors
    /// If the server refuses; then nothing has changed.
    pub async fn apply(
        &mut self,
        rows: &RecordBatch,
        removed: &[String],
    ) -> Result<(), MirrorError> {
        let transaction = self.client.transaction().await;
        let transaction = transaction.map_err(failed("cannot begin a transaction"))?;
        write(transaction, &self.table, &self.schema, rows, removed).await
    }

    /// The columns as they are compared: times as microseconds.
    fn readable(&self) -> Result<String, MirrorError> {
        let mut columns = Vec::new();
        for field in self.schema.fields() {
            let name = quoted_name(field.name());
            columns.push(match type_of(field.name(), field.data_type())? {
                "timestamptz" => format!("(extract(epoch from {name}) * 1000000)::int8"),
                _ => name,
            });
        }
        Ok(columns.join(", "))
    }
}

fn quoted_name(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// PostgreSQL's type for a column.
fn type_of(name: &str, kind: &DataType) -> Result<&'static str, MirrorError> {
    match kind {
        DataType::Utf8 => Ok("text"),
        DataType::Int64 => Ok("int8"),
        DataType::Float64 => Ok("float8"),
        DataType::Timestamp(TimeUnit::Microsecond, Some(_)) => Ok("timestamptz"),
        _ => Err(MirrorError::Type(name.to_owned())),
    }
}

async fn connect(settings: &MirrorSettings) -> Result<Client, MirrorError> {
    const WHAT: &str = "cannot connect to PostgreSQL";
    let mut config: Config = settings
        .url
        .parse()
        .map_err(failed("the URL is no URL of PostgreSQL"))?;
    config.application_name("assay");
    if settings.unencrypted {
        let (client, connection) = config.connect(NoTls).await.map_err(failed(WHAT))?;
        tokio::spawn(connection);
        return Ok(client);
    }
    // Anything less would fall back to the clear when someone in between says so.
    config.ssl_mode(tokio_postgres::config::SslMode::Require);
    let tls = MakeRustlsConnect::new(encryption(settings.authority.as_deref())?);
    let (client, connection) = config.connect(tls).await.map_err(failed(WHAT))?;
    tokio::spawn(connection);
    Ok(client)
}

/// TLS that believes these authorities, or the system's.
fn encryption(authority: Option<&[u8]>) -> Result<ClientConfig, MirrorError> {
    let unfit = |why: String| MirrorError::Postgres {
        what: "cannot encrypt".to_owned(),
        why,
    };
    let mut believed = RootCertStore::empty();
    match authority {
        Some(pem) => {
            for certificate in CertificateDer::pem_slice_iter(pem) {
                let certificate = certificate.map_err(|error| unfit(error.to_string()))?;
                let added = believed.add(certificate);
                added.map_err(|error| unfit(error.to_string()))?;
            }
        }
        None => drop(believed.add_parsable_certificates(load_native_certs().certs)),
    }
    if believed.is_empty() {
        return Err(unfit("there is no authority to believe".to_owned()));
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| unfit(error.to_string()))?;
    Ok(config
        .with_root_certificates(believed)
        .with_no_client_auth())
}

/// Whether a row of the table equals a row of the relation; a row that cannot be read does not.
fn equal(held: &Row, rows: &RecordBatch, place: usize, schema: &SchemaRef) -> bool {
    let fields = schema.fields().iter().enumerate();
    fields.into_iter().all(|(column, field)| {
        let wanted = rows.column(column);
        let null = wanted.is_null(place);
        match field.data_type() {
            DataType::Utf8 => {
                let wanted = wanted.as_string::<i32>();
                held.try_get::<_, Option<&str>>(column)
                    .is_ok_and(|held| held == (!null).then(|| wanted.value(place)))
            }
            DataType::Float64 => {
                let wanted = wanted.as_primitive::<Float64Type>();
                held.try_get::<_, Option<f64>>(column)
                    .is_ok_and(|held| held == (!null).then(|| wanted.value(place)))
            }
            _ => {
                let wanted = match field.data_type() {
                    DataType::Int64 => wanted.as_primitive::<Int64Type>().values(),
                    _ => wanted.as_primitive::<TimestampMicrosecondType>().values(),
                };
                held.try_get::<_, Option<i64>>(column)
                    .is_ok_and(|held| held == (!null).then(|| wanted[place]))
            }
        }
    })
}

type Parameter = Box<dyn ToSql + Send + Sync>;

/// A column's values as one parameter.
fn parameter(rows: &RecordBatch, column: usize) -> Parameter {
    let values = rows.column(column);
    match values.data_type() {
        DataType::Utf8 => {
            let values = values.as_string::<i32>().iter();
            Box::new(
                values
                    .map(|value| value.map(str::to_owned))
                    .collect::<Vec<_>>(),
            )
        }
        DataType::Float64 => Box::new(
            values
                .as_primitive::<Float64Type>()
                .iter()
                .collect::<Vec<_>>(),
        ),
        DataType::Int64 => Box::new(
            values
                .as_primitive::<Int64Type>()
                .iter()
                .collect::<Vec<_>>(),
        ),
        _ => {
            let values = values.as_primitive::<TimestampMicrosecondType>();
            Box::new(values.iter().collect::<Vec<_>>())
        }
    }
}

async fn write(
    transaction: Transaction<'_>,
    table: &str,
    schema: &SchemaRef,
    rows: &RecordBatch,
    removed: &[String],
) -> Result<(), MirrorError> {
    let key = quoted_name(schema.field(0).name());
    let what = || format!("cannot write to {table}");
    if !removed.is_empty() {
        let delete = format!("delete from {table} where {key} = any($1)");
        transaction
            .execute(&delete, &[&removed])
            .await
            .map_err(failed(what()))?;
    }
    let upsert = upsert(table, schema)?;
    for start in (0..rows.num_rows()).step_by(ROWS_A_STATEMENT) {
        let some = rows.slice(start, ROWS_A_STATEMENT.min(rows.num_rows() - start));
        let parameters: Vec<_> = (0..some.num_columns())
            .map(|column| parameter(&some, column))
            .collect();
        let parameters: Vec<_> = parameters
            .iter()
            .map(|parameter| &**parameter as &(dyn ToSql + Sync))
            .collect();
        transaction
            .execute(&upsert, &parameters)
            .await
            .map_err(failed(what()))?;
    }
    transaction.commit().await.map_err(failed(what()))
}

/// The statement that writes rows, given as one array a column, over those of their keys.
fn upsert(table: &str, schema: &SchemaRef) -> Result<String, MirrorError> {
    let (mut names, mut values, mut arrays, mut aliases, mut updates) =
        (vec![], vec![], vec![], vec![], vec![]);
    for (place, field) in schema.fields().iter().enumerate() {
        let (name, value) = (quoted_name(field.name()), format!("c{place}"));
        let kind = type_of(field.name(), field.data_type())?;
        let (array, value) = match kind {
            // Whole seconds apart, since a float holds no microsecond of a distant year.
            "timestamptz" => {
                let seconds = format!("to_timestamp(({value} - {value} % 1000000) / 1000000)");
                (
                    "int8",
                    format!("{seconds} + {value} % 1000000 * interval '1 microsecond'"),
                )
            }
            kind => (kind, value),
        };
        arrays.push(format!("${}::{array}[]", place + 1));
        aliases.push(format!("c{place}"));
        if place > 0 {
            updates.push(format!("{name} = excluded.{name}"));
        }
        names.push(name);
        values.push(value);
    }
    let update = match updates.as_slice() {
        [] => "nothing".to_owned(),
        updates => format!("update set {}", updates.join(", ")),
    };
    Ok(format!(
        "insert into {table} ({}) select {} from unnest({}) as given({}) on conflict ({}) do {update}",
        names.join(", "),
        values.join(", "),
        arrays.join(", "),
        aliases.join(", "),
        names[0],
    ))
}

/// The keys of rows, which are their first column.
pub fn keys(rows: &RecordBatch) -> &StringArray {
    rows.column(0).as_string()
}
