//! Tokens for the mechanism OAUTHBEARER, fetched as OpenID Connect has it: a client shows its id and secret
//! at an endpoint and is given a token (RFC 6749, section 4.4), which it shows the broker (RFC 7628).
//!
//! librdkafka can do this itself, but only with a library for HTTP of its own; its properties have the same
//! names here.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use rdkafka::client::OAuthToken;
use reqwest::blocking::Client;
use serde::Deserialize;

use crate::web::{client, told};

/// How long a token lasts that does not say.
const UNTOLD_LIFETIME: Duration = Duration::from_secs(300);

/// The properties that are read here, and not by librdkafka.
pub(super) const PROPERTIES: [&str; 6] = [
    "sasl.oauthbearer.method",
    "sasl.oauthbearer.token.endpoint.url",
    "sasl.oauthbearer.client.id",
    "sasl.oauthbearer.client.secret",
    "sasl.oauthbearer.scope",
    "https.ca.location",
];

/// Where tokens come from.
pub(super) struct Tokens {
    client: Client,
    endpoint: String,
    id: String,
    secret: String,
    scope: Option<String>,
}

#[derive(Deserialize)]
struct Answer {
    access_token: String,
    expires_in: Option<u64>,
}

/// What a token says of itself, if it is a JSON Web Token (RFC 7519).
#[derive(Default, Deserialize)]
struct Claims {
    sub: Option<String>,
    exp: Option<f64>,
}

impl Tokens {
    /// What the properties say about tokens; `None` if another mechanism is used.
    ///
    /// # Errors
    /// Names the property that is missing or cannot be used.
    pub(super) fn of(properties: &BTreeMap<String, String>) -> Result<Option<Self>, String> {
        let given = |name: &str| properties.get(name).cloned();
        let mechanism = given("sasl.mechanism").or_else(|| given("sasl.mechanisms"));
        if mechanism.is_none_or(|mechanism| mechanism != "OAUTHBEARER") {
            return Ok(None);
        }
        if given("sasl.oauthbearer.method").is_some_and(|method| method != "oidc") {
            return Err("\"sasl.oauthbearer.method\" must be \"oidc\"".to_owned());
        }
        let needed = |name: &str| given(name).ok_or_else(|| format!("\"{name}\" is missing"));
        let refused = |why: &dyn std::fmt::Display| format!("\"https.ca.location\": {why}");
        let authority = given("https.ca.location").map(std::fs::read).transpose();
        let authority = authority.map_err(|error| refused(&error))?;
        let client = client(authority.as_deref()).map_err(|error| refused(&error))?;
        Ok(Some(Self {
            client,
            endpoint: needed("sasl.oauthbearer.token.endpoint.url")?,
            id: needed("sasl.oauthbearer.client.id")?,
            secret: needed("sasl.oauthbearer.client.secret")?,
            scope: given("sasl.oauthbearer.scope"),
        }))
    }

    /// A token for the broker.
    ///
    /// # Errors
    /// If the endpoint does not give one; the message does not hold the secret.
    pub(super) fn fetch(&self) -> Result<OAuthToken, String> {
        let mut form = vec![("grant_type", "client_credentials")];
        form.extend(self.scope.as_deref().map(|scope| ("scope", scope)));
        let refused = |why: String| format!("no token from \"{}\": {why}", self.endpoint);
        let request = self.client.post(&self.endpoint).form(&form);
        let answer = request.basic_auth(&self.id, Some(&self.secret)).send();
        let answer = answer.map_err(|error| refused(told(&error)))?;
        let status = answer.status();
        if !status.is_success() {
            return Err(refused(format!("it answers {status}")));
        }
        let body = answer.bytes().map_err(|error| refused(told(&error)))?;
        let answer: Answer =
            serde_json::from_slice(&body).map_err(|error| refused(error.to_string()))?;
        Ok(self.token(answer))
    }

    fn token(&self, answer: Answer) -> OAuthToken {
        let claims = claims(&answer.access_token).unwrap_or_default();
        let lasts = answer
            .expires_in
            .map_or(UNTOLD_LIFETIME, Duration::from_secs);
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let ends = claims.exp.map_or(now + lasts, Duration::from_secs_f64);
        OAuthToken {
            token: answer.access_token,
            principal_name: claims.sub.unwrap_or_else(|| self.id.clone()),
            lifetime_ms: ends.as_millis() as i64,
        }
    }
}

fn claims(token: &str) -> Option<Claims> {
    let payload = BASE64_URL_SAFE_NO_PAD
        .decode(token.split('.').nth(1)?)
        .ok()?;
    let claims: Claims = serde_json::from_slice(&payload).ok()?;
    claims
        .exp
        .is_none_or(|exp| (0.0..1e12).contains(&exp))
        .then_some(claims)
}
