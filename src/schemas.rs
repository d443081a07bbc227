//! Schemas of messages, as a registry knows them.

use std::sync::Arc;

use connectors::registry::{Registry, RegistryError};
use dataflows::envelope::avro::Schema;
use dataflows::envelope::{SchemaError, Schemas};

/// The schemas of a registry.
#[derive(Debug)]
pub struct RegistrySchemas(pub Registry);

impl Schemas for RegistrySchemas {
    fn schema(&self, number: u32) -> Result<Arc<Schema>, SchemaError> {
        let text = self.0.schema(number).map_err(|error| match error {
            RegistryError::Unknown(reason) => SchemaError::Unknown(reason),
            RegistryError::Unavailable(reason) => SchemaError::Unavailable(reason),
        })?;
        let schema = Schema::parse(&text.schema, &text.references);
        let schema =
            schema.map_err(|error| SchemaError::Unknown(format!("schema {number}: {error}")))?;
        tracing::debug!(number, "a schema that was not met before");
        Ok(Arc::new(schema))
    }
}
