//! What stands behind the question mark of a request.

use axum::extract::rejection::QueryRejection;
use axum::extract::{FromRequestParts, Query};
use axum::http::StatusCode;
use axum::http::request::Parts;
use serde::de::DeserializeOwned;

use super::Refusal;

/// Parameters, refused in the words of all refusals.
pub(super) struct Parameters<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Parameters<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        let query = Query::from_request_parts(parts, state).await;
        let refused =
            |error: QueryRejection| Refusal::new(StatusCode::BAD_REQUEST, error.body_text());
        query
            .map(|Query(parameters)| Self(parameters))
            .map_err(refused)
    }
}
