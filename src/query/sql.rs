//! SQL over the live relations: an epoch is chosen first, then everything is read at it.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use dataflows::change::Epoch;
use futures::future::BoxFuture;
use sql::{Answer, QueryError, ReadError, Relations};

use super::peek::Peeker;

/// How often a query is asked again whose epoch went while it was planned.
const ATTEMPTS: usize = 3;

/// Answers a query; returns the epoch that the answer is of.
///
/// # Errors
/// If the query is not understood or would change something, or the dataflow does not answer.
pub async fn answer(peeker: &Peeker, query: &str) -> Result<(Epoch, Answer), QueryError> {
    let named = sql::relations_of(query)?;
    let mut attempt = 1;
    loop {
        let epoch = peeker.pin(named.clone()).await.map_err(QueryError::Read)?;
        let relations = Arc::new(AtEpoch {
            peeker: peeker.clone(),
            epoch,
        });
        match sql::query(query, relations).await {
            Err(QueryError::Read(ReadError::Compacted)) if attempt < ATTEMPTS => attempt += 1,
            answer => return Ok((epoch, answer?)),
        }
    }
}

/// All relations, as they were at one epoch.
#[derive(Debug)]
struct AtEpoch {
    peeker: Peeker,
    epoch: Epoch,
}

impl Relations for AtEpoch {
    fn schemas(&self) -> Vec<(String, SchemaRef)> {
        self.peeker.schemas().into_iter().collect()
    }

    fn read(
        &self,
        relation: String,
        key: Option<String>,
    ) -> BoxFuture<'_, Result<Vec<RecordBatch>, ReadError>> {
        Box::pin(self.peeker.read(self.epoch, relation, key))
    }
}
