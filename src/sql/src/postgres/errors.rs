//! What clients are told of errors: PostgreSQL's codes, in its manners.

use datafusion::common::DataFusionError;
use datafusion::sql::sqlparser::parser::ParserError;
use pgwire::api::{ClientInfo, ErrorHandler};
use pgwire::error::{ErrorInfo, PgWireError};

use crate::{QueryError, codes};

/// Gives errors the codes that clients go by.
pub(super) struct Explaining;

impl ErrorHandler for Explaining {
    fn on_error<C: ClientInfo>(&self, _: &C, error: &mut PgWireError) {
        let told = std::mem::replace(error, PgWireError::QueryCanceled);
        *error = explained(told);
    }
}

pub(super) fn refusal(code: &str, message: String) -> PgWireError {
    let error = ErrorInfo::new("ERROR".to_owned(), code.to_owned(), message);
    PgWireError::UserError(Box::new(error))
}

pub(super) fn canceled(reason: &str) -> PgWireError {
    refusal(codes::QUERY_CANCELED, reason.to_owned())
}

pub(super) fn fatal(code: &str, message: String) -> PgWireError {
    let error = ErrorInfo::new("FATAL".to_owned(), code.to_owned(), message);
    PgWireError::UserError(Box::new(error))
}

pub(super) fn told(error: &QueryError) -> PgWireError {
    refusal(error.code(), error.to_string())
}

/// An error of the engine, with the code that clients go by.
fn explained(error: PgWireError) -> PgWireError {
    match error {
        PgWireError::ApiError(error) => match error.downcast::<DataFusionError>() {
            Ok(error) => told(&QueryError::from(*error)),
            Err(error) => match error.downcast::<ParserError>() {
                Ok(error) => refusal(codes::SYNTAX_ERROR, error.to_string()),
                Err(error) => PgWireError::ApiError(error),
            },
        },
        other => other,
    }
}

/// An error of the engine, to be [`explained`].
pub(super) fn engine(error: DataFusionError) -> PgWireError {
    PgWireError::ApiError(Box::new(error))
}
