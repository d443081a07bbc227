//! Who may ask: those who show a token, if there are tokens.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};

use super::Refusal;

/// The tokens that let someone ask; everyone may if there are none. Kept as digests, so that what can be
/// learnt from the time of a look-up says nothing of a token.
#[derive(Clone, Default)]
pub struct Tokens(Arc<HashSet<[u8; 32]>>);

impl fmt::Debug for Tokens {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} tokens", self.0.len())
    }
}

impl Tokens {
    /// These tokens.
    pub fn new(tokens: &[String]) -> Self {
        let digests = tokens.iter().map(|token| Sha256::digest(token).into());
        Self(Arc::new(digests.collect()))
    }

    /// Whether there are none, so that everyone may ask.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a token, or none, lets someone ask.
    pub fn admit(&self, token: Option<&str>) -> bool {
        let known = |token: &str| self.0.contains::<[u8; 32]>(&Sha256::digest(token).into());
        self.0.is_empty() || token.is_some_and(known)
    }
}

/// Whether a request comes from a page of this server, or from no page. Browsers let any page send orders
/// and open WebSockets anywhere, and tell only which page it was.
pub(super) fn same_origin(headers: &HeaderMap) -> bool {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    match (text(header::ORIGIN), text(header::HOST)) {
        (None, _) => true,
        (Some(origin), Some(host)) => {
            let authority = origin.split_once("://").map(|(_, authority)| authority);
            authority == Some(host)
        }
        (Some(_), None) => false,
    }
}

/// Lets a request pass, or asks for a token (RFC 6750).
pub(super) async fn ask(State(tokens): State<Tokens>, request: Request, next: Next) -> Response {
    if !same_origin(request.headers()) {
        let message = "pages of other sites may not ask";
        return Refusal::new(StatusCode::FORBIDDEN, message).into_response();
    }
    let shown = request.headers().get(header::AUTHORIZATION);
    let shown = shown.and_then(|value| value.to_str().ok());
    let token = shown.and_then(|value| value.strip_prefix("Bearer "));
    if tokens.admit(token.map(str::trim)) {
        return next.run(request).await;
    }
    let refusal = Refusal::new(
        StatusCode::UNAUTHORIZED,
        "show a token, as \"Authorization: Bearer TOKEN\"",
    );
    let asked = [(header::WWW_AUTHENTICATE, "Bearer")];
    (asked, refusal.into_response()).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_asked_for_if_there_are_any() {
        let tokens = Tokens::new(&["one".to_owned(), "two".to_owned()]);
        assert!(tokens.admit(Some("two")));
        assert!(!tokens.admit(Some("three")) && !tokens.admit(Some("")) && !tokens.admit(None));
        assert!(Tokens::default().admit(None));
        assert_eq!(format!("{tokens:?}"), "2 tokens");
    }

    #[test]
    fn pages_of_other_sites_are_told_apart() {
        let headers = |origin: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, "127.0.0.1:8080".parse().unwrap());
            if !origin.is_empty() {
                headers.insert(header::ORIGIN, origin.parse().unwrap());
            }
            headers
        };
        assert!(same_origin(&headers("")) && same_origin(&headers("http://127.0.0.1:8080")));
        for other in ["http://evil.example", "http://127.0.0.1:9090", "null"] {
            assert!(!same_origin(&headers(other)), "{other}");
        }
    }
}
