//! Asks a schema registry that speaks as Confluent's does: Confluent's own, Apicurio's, Karapace, Redpanda's.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use reqwest::StatusCode;
use reqwest::blocking::{Client, RequestBuilder};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use url::Url;

use crate::web::{client, told};

/// For how long a failure counts as what the registry would say again.
const UNKNOWN_FOR: Duration = Duration::from_secs(10);
const UNAVAILABLE_FOR: Duration = Duration::from_millis(500);

/// Where the registry is, and how to be let in.
#[derive(Clone)]
pub struct RegistrySettings {
    /// Where the API's paths begin, such as `https://registry:8081`.
    pub url: Url,
    /// A user and the password, if it asks for them.
    pub user: Option<(String, String)>,
    /// The certificates, in PEM, of those who may have issued its own; none for the system's.
    pub authority: Option<Vec<u8>>,
}

/// A schema's text, and those of all schemas that it refers to, each after what it refers to itself.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SchemaText {
    /// The schema.
    pub schema: String,
    /// What it refers to.
    pub references: Vec<String>,
}

/// Why a schema is not to be had.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum RegistryError {
    /// The registry has none of this number, or none in Avro.
    #[error("{0}")]
    Unknown(String),
    /// The registry does not answer, or not as one does; it may later.
    #[error("{0}")]
    Unavailable(String),
}

/// A registry's client, for threads that may wait.
pub struct Registry {
    settings: RegistrySettings,
    client: Client,
    /// What could not be had a moment ago, by number, so that a flood of messages is no flood of requests.
    failures: Mutex<HashMap<u32, (Instant, RegistryError)>>,
}

impl fmt::Debug for Registry {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Registry({})", self.settings.url)
    }
}

#[derive(Deserialize)]
struct Answer {
    schema: String,
    #[serde(rename = "schemaType")]
    schema_type: Option<String>,
    #[serde(default)]
    references: Vec<Reference>,
}

#[derive(Deserialize)]
struct Reference {
    subject: String,
    version: i64,
}

impl Registry {
    /// A client of this registry; it is not asked yet.
    ///
    /// # Errors
    /// If the certificates are not PEM.
    pub fn new(settings: RegistrySettings) -> Result<Self, String> {
        Ok(Self {
            client: client(settings.authority.as_deref())?,
            settings,
            failures: Mutex::default(),
        })
    }

    /// The schema of this number.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub fn schema(&self, number: u32) -> Result<SchemaText, RegistryError> {
        if let Some(failure) = self.recent_failure(number) {
            return Err(failure);
        }
        let found = self.fetch(number);
        if let Err(error) = &found {
            let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
            failures.insert(number, (Instant::now(), error.clone()));
        }
        found
    }

    fn recent_failure(&self, number: u32) -> Option<RegistryError> {
        let failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let (at, error) = failures.get(&number)?;
        let lasts = match error {
            RegistryError::Unknown(_) => UNKNOWN_FOR,
            RegistryError::Unavailable(_) => UNAVAILABLE_FOR,
        };
        (at.elapsed() < lasts).then(|| error.clone())
    }

    fn fetch(&self, number: u32) -> Result<SchemaText, RegistryError> {
        let what = format!("schema {number}");
        let answer: Answer = self.get(&["schemas", "ids", &number.to_string()], &what)?;
        let kind = answer.schema_type.as_deref().unwrap_or("AVRO");
        if kind != "AVRO" {
            let message = format!("{what} of the registry is {kind}, not AVRO");
            return Err(RegistryError::Unknown(message));
        }
        let (mut references, mut seen) = (Vec::new(), BTreeSet::new());
        self.gather(answer.references, &mut references, &mut seen)?;
        let schema = answer.schema;
        Ok(SchemaText { schema, references })
    }

    fn gather(
        &self,
        wanted: Vec<Reference>,
        texts: &mut Vec<String>,
        seen: &mut BTreeSet<(String, i64)>,
    ) -> Result<(), RegistryError> {
        for Reference { subject, version } in wanted {
            if !seen.insert((subject.clone(), version)) {
                continue;
            }
            let what = format!("version {version} of the schema \"{subject}\"");
            let path = ["subjects", &subject, "versions", &version.to_string()];
            let answer: Answer = self.get(&path, &what)?;
            self.gather(answer.references, texts, seen)?;
            texts.push(answer.schema);
        }
        Ok(())
    }

    fn get<T: DeserializeOwned>(&self, path: &[&str], what: &str) -> Result<T, RegistryError> {
        let mut url = self.settings.url.clone();
        // The configuration's check has seen that it has a path.
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path);
        }
        let unavailable = |why: String| {
            let registry = &self.settings.url;
            RegistryError::Unavailable(format!("the schema registry \"{registry}\" {why}"))
        };
        let answer = self.request(url).send();
        let answer =
            answer.map_err(|error| unavailable(format!("cannot be asked: {}", told(&error))))?;
        match answer.status() {
            StatusCode::OK => {
                let body = answer.bytes();
                let body =
                    body.map_err(|error| unavailable(format!("broke off: {}", told(&error))))?;
                serde_json::from_slice(&body)
                    .map_err(|error| unavailable(format!("does not answer as one does: {error}")))
            }
            StatusCode::NOT_FOUND => {
                let message = format!("the schema registry does not know {what}");
                Err(RegistryError::Unknown(message))
            }
            status => Err(unavailable(format!(
                "answers {status} when asked for {what}"
            ))),
        }
    }

    fn request(&self, url: Url) -> RequestBuilder {
        let request = self.client.get(url);
        match &self.settings.user {
            Some((user, password)) => request.basic_auth(user, Some(password)),
            None => request,
        }
    }
}
