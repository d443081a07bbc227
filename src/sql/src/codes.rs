//! PostgreSQL's codes for errors (appendix A of its manual).

use datafusion::common::{DataFusionError, SchemaError};

pub(crate) const CANNOT_CONNECT_NOW: &str = "57P03";
pub(crate) const DATATYPE_MISMATCH: &str = "42804";
pub(crate) const FEATURE_NOT_SUPPORTED: &str = "0A000";
pub(crate) const IN_FAILED_TRANSACTION: &str = "25P02";
pub(crate) const INSUFFICIENT_PRIVILEGE: &str = "42501";
pub(crate) const OUT_OF_MEMORY: &str = "53200";
pub(crate) const QUERY_CANCELED: &str = "57014";
pub(crate) const READ_ONLY: &str = "25006";
pub(crate) const TOO_MANY_CONNECTIONS: &str = "53300";
pub(crate) const INVALID_AUTHORIZATION: &str = "28000";
pub(crate) const SYNTAX_ERROR: &str = "42601";
const UNDEFINED_COLUMN: &str = "42703";
const AMBIGUOUS_COLUMN: &str = "42702";
const UNDEFINED_FUNCTION: &str = "42883";
const UNDEFINED_TABLE: &str = "42P01";
const DATA_EXCEPTION: &str = "22000";
const SYNTAX_OR_ACCESS: &str = "42000";
const INTERNAL: &str = "XX000";

/// The code for what DataFusion found.
pub(crate) fn code_of(error: &DataFusionError) -> &'static str {
    match error.find_root() {
        DataFusionError::SQL(..) => SYNTAX_ERROR,
        DataFusionError::SchemaError(error, _) => match &**error {
            SchemaError::AmbiguousReference { .. } => AMBIGUOUS_COLUMN,
            _ => UNDEFINED_COLUMN,
        },
        // DataFusion tells these two apart from other mistakes by their words alone.
        DataFusionError::Plan(text) if text.starts_with("table '") => UNDEFINED_TABLE,
        DataFusionError::Plan(text) if text.starts_with("Invalid function") => UNDEFINED_FUNCTION,
        DataFusionError::Plan(_) => SYNTAX_OR_ACCESS,
        DataFusionError::NotImplemented(_) => FEATURE_NOT_SUPPORTED,
        DataFusionError::ResourcesExhausted(_) => OUT_OF_MEMORY,
        DataFusionError::ArrowError(..) | DataFusionError::Execution(_) => DATA_EXCEPTION,
        _ => INTERNAL,
    }
}
