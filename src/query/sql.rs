//! SQL over the live relations: an epoch is chosen first, then everything is read at it.

use std::sync::Arc;
use std::time::Instant;

use arrow::datatypes::Schema;
use connectors::delta::further;
use dataflows::change::Epoch;
use dataflows::index::{LookUp, Selection};
use futures::StreamExt;
use futures::future::BoxFuture;
use sql::{
    Answer, Condition, Limits, Progress, QueryError, ReadError, Relation, Relations, Snapshots,
};
use tokio::runtime::Handle;

use super::peek::{Peeker, Readable};
use crate::{metrics, now_ms};

/// How often a query is asked again whose epoch went while it was planned.
const ATTEMPTS: usize = 3;

/// Answers queries, on threads of their own, so that none keeps the rest of the process waiting.
#[derive(Clone, Debug)]
pub struct Queries {
    peeker: Peeker,
    threads: Handle,
    limits: Limits,
}

impl Queries {
    /// Queries of the relations behind `peeker`, answered on `threads` within `limits`.
    pub fn new(peeker: Peeker, threads: Handle, limits: Limits) -> Self {
        Self {
            peeker,
            threads,
            limits,
        }
    }

    /// What each query may take.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Answers a query; returns the epoch that the answer is of.
    ///
    /// # Errors
    /// If the query is not understood, would change something or takes too much, or the dataflow does
    /// not answer.
    pub async fn answer(&self, query: &str) -> Result<(Epoch, Answer), QueryError> {
        let (queries, query) = (self.clone(), query.to_owned());
        let answer = self.threads.spawn(async move {
            let named = sql::relations_of(&query)?;
            let mut attempt = 1;
            loop {
                let relations = queries.pin(named.clone()).await.map_err(QueryError::Read)?;
                let epoch = relations.epoch();
                match sql::query(&query, relations, queries.limits).await {
                    Err(QueryError::Read(ReadError::Compacted)) if attempt < ATTEMPTS => {
                        attempt += 1
                    }
                    answer => return Ok((epoch, answer?)),
                }
            }
        });
        answer.await.unwrap_or_else(|_| Err(stopping()))
    }

    /// The rows of a relation for which a condition holds, as of the newest complete epoch, as they
    /// come.
    ///
    /// # Errors
    /// The same.
    pub async fn rows(
        &self,
        relation: &str,
        condition: Option<&Condition>,
    ) -> Result<(Epoch, sql::AnswerStream), QueryError> {
        let relations = self.pin(vec![relation.to_owned()]).await;
        let relations = relations.map_err(QueryError::Read)?;
        let epoch = relations.epoch();
        let rows = sql::rows(relation, condition, relations, self.limits).await?;
        Ok((epoch, rows))
    }
}

fn stopping() -> QueryError {
    QueryError::Read(ReadError::Unavailable("Assay is stopping".to_owned()))
}

impl Snapshots for Queries {
    fn relations(&self) -> Vec<Relation> {
        relations(&self.peeker, &self.peeker.further())
    }

    fn pin(&self, named: Vec<String>) -> BoxFuture<'_, Result<Arc<dyn Relations>, ReadError>> {
        Box::pin(async move {
            let epoch = self.peeker.pin(named).await?;
            let queries = self.clone();
            let started = Instant::now();
            let further = queries.peeker.further();
            Ok(Arc::new(AtEpoch {
                queries,
                epoch,
                further,
                started,
            }) as Arc<dyn Relations>)
        })
    }
}

/// All relations, with further columns of these names.
fn relations(peeker: &Peeker, names: &[String]) -> Vec<Relation> {
    let catalog = peeker.catalog().iter();
    let relation = |(name, readable): (&String, &Readable)| Relation {
        name: name.clone(),
        schema: further::shown(&readable.schema, names),
        look_ups: readable
            .look_ups
            .iter()
            .map(|&name| name.to_owned())
            .collect(),
    };
    catalog.map(relation).collect()
}

/// All relations, as they were at one epoch.
#[derive(Debug)]
struct AtEpoch {
    queries: Queries,
    epoch: Epoch,
    /// The names of further columns, the same throughout a statement.
    further: Vec<String>,
    started: Instant,
}

impl Drop for AtEpoch {
    fn drop(&mut self) {
        metrics::queried(self.started.elapsed());
    }
}

impl Relations for AtEpoch {
    fn epoch(&self) -> u64 {
        self.epoch
    }

    fn relations(&self) -> Vec<Relation> {
        relations(&self.queries.peeker, &self.further)
    }

    fn read(&self, relation: &str, selection: sql::Selection) -> sql::RowStream {
        let look_up = selection.look_up.map(|(column, values)| LookUp {
            column,
            values,
            any_case: false,
        });
        let peeker = &self.queries.peeker;
        let Some(readable) = peeker.catalog().get(relation) else {
            let unknown = ReadError::Unavailable(format!("there is no relation \"{relation}\""));
            return futures::stream::iter([Err(unknown)]).boxed();
        };
        let wanted = selection.columns;
        let selection = Selection {
            look_up,
            columns: Some(places(&readable.schema, &wanted)),
            limit: selection.limit,
        };
        let rows = peeker.read(self.epoch, relation.to_owned(), selection);
        let next = async |(mut rows, wanted): (super::peek::RowStream, Vec<String>)| {
            let next = rows.next().await.transpose()?;
            let shown = next.and_then(|rows| {
                let shown = further::select(&rows, &wanted);
                shown.map_err(|error| ReadError::Unavailable(error.to_string()))
            });
            Some((shown, (rows, wanted)))
        };
        futures::stream::unfold((rows, wanted), next).boxed()
    }

    fn progress(&self) -> BoxFuture<'static, Result<Vec<Progress>, ReadError>> {
        let peeker = self.queries.peeker.clone();
        Box::pin(async move {
            let (complete, now) = (peeker.progress().await?, now_ms());
            let rows = complete.into_iter();
            let rows = rows.map(|(relation, epoch)| Progress {
                relation,
                epoch,
                lag_ms: now.saturating_sub(epoch),
            });
            Ok(rows.collect())
        })
    }
}

/// The places of the columns that have to be read for these: their own, and that which holds others if some are held.
fn places(schema: &Schema, wanted: &[String]) -> Vec<usize> {
    let own = wanted.iter().filter_map(|name| schema.index_of(name).ok());
    let mut places: Vec<_> = own.collect();
    if places.len() < wanted.len() {
        places.extend(further::place(schema));
    }
    places
}
