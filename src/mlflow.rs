//! A client of MLflow's tracking server, over version 2.0 of its REST API: runs that are logged, and models
//! that are registered.
//!
//! Artifacts go through the server too, so it has to serve them itself, which MLflow calls proxied.

use std::fmt;
use std::io::Read as _;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use models::files::ModelFiles;
use reqwest::blocking::{Client, RequestBuilder, Response};
use reqwest::header::CONTENT_TYPE;
use reqwest::redirect::Policy;
use serde_json::{Value, json};
use url::Url;

use crate::now_ms;

/// The variable by which MLflow's own clients know the server's address.
pub const ADDRESS_VARIABLE: &str = "MLFLOW_TRACKING_URI";

/// How long the server may be silent.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Where proxied artifacts are listed, read and written.
const ARTIFACTS: &str = "mlflow-artifacts/artifacts";

/// How the server names the place of an artifact that it serves itself.
const PROXIED: &str = "mlflow-artifacts:/";

/// Characters that are shown of what the server says of an error.
const COMPLAINT: usize = 300;

/// Who asks.
enum Login {
    Nobody,
    Token(String),
    User { name: String, password: String },
}

/// A tracking server.
pub struct TrackingServer {
    address: Url,
    login: Login,
    client: Client,
}

/// What is logged of a run.
pub struct Run {
    /// What the run is called.
    pub name: String,
    /// What was evaluated.
    pub parameters: Vec<(&'static str, String)>,
    /// What came of it.
    pub metrics: Vec<(String, f64)>,
    /// A file's name and content.
    pub artifact: (&'static str, Vec<u8>),
}

impl TrackingServer {
    /// The server at this address, to be asked by whom MLflow's variables name; it is not asked yet.
    ///
    /// # Errors
    /// If it is no address of a server.
    pub fn at(address: &str) -> anyhow::Result<Self> {
        // What is before an @ may be a password.
        let shown = address.rsplit('@').next().unwrap_or_default();
        let url = Url::parse(address).ok();
        let url = url.filter(|url| matches!(url.scheme(), "http" | "https"));
        let mut url = url.with_context(|| {
            format!(
                "\"{shown}\" is no address of an MLflow server; write it as http://127.0.0.1:5000"
            )
        })?;
        ensure!(
            url.username().is_empty() && url.password().is_none(),
            "name the user of the MLflow server in MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, not in \
             its address"
        );
        // What follows the path is of one page, if the address was copied from a browser.
        url.set_query(None);
        url.set_fragment(None);
        let client = Client::builder()
            .timeout(TIMEOUT)
            // A redirection would make a GET of a POST.
            .redirect(Policy::none());
        Ok(Self {
            address: url,
            login: Login::from_environment(),
            client: client.build().context("cannot speak HTTP")?,
        })
    }

    /// The version of MLflow that answers.
    ///
    /// # Errors
    /// If the server cannot be asked, or is none of MLflow's.
    pub fn version(&self) -> anyhow::Result<String> {
        let version = self.body(self.client.get(self.url("version")))?;
        let version = version.trim();
        let number = version.starts_with(|first: char| first.is_ascii_digit());
        match number && version.len() < 40 {
            true => Ok(version.to_owned()),
            false => bail!("{}", self.stranger()),
        }
    }

    /// The id of an experiment, which is made if there is none of that name.
    ///
    /// # Errors
    /// If the server cannot be asked, or refuses.
    pub fn experiment(&self, name: &str) -> anyhow::Result<String> {
        let asked = [("experiment_name", name)];
        if let Ok(found) = self.get("mlflow/experiments/get-by-name", &asked) {
            return Ok(text(&found, "/experiment/experiment_id")?.to_owned());
        }
        // If it was not for want of one that none was found, none is made either, and that is told.
        let made = self.post("mlflow/experiments/create", &json!({ "name": name }))?;
        Ok(text(&made, "/experiment_id")?.to_owned())
    }

    /// Logs a run of an experiment, given by its id; returns the address of the run's page.
    ///
    /// # Errors
    /// If the server cannot be asked, refuses, or does not serve artifacts; what was begun is marked as failed.
    pub fn log(&self, experiment: &str, run: Run) -> anyhow::Result<String> {
        let begun = json!({
            "experiment_id": experiment, "run_name": run.name, "start_time": now_ms(),
        });
        let begun = self.post("mlflow/runs/create", &begun)?;
        let id = text(&begun, "/run/info/run_id")?;
        let logged = self.fill(id, &begun, run);
        let status = match &logged {
            Ok(()) => "FINISHED",
            Err(_) => "FAILED",
        };
        let end = json!({ "run_id": id, "status": status, "end_time": now_ms() });
        let ended = self.post("mlflow/runs/update", &end);
        logged?;
        ended?;
        let address = self.address.as_str().trim_end_matches('/');
        Ok(format!("{address}/#/experiments/{experiment}/runs/{id}"))
    }

    fn fill(&self, id: &str, begun: &Value, run: Run) -> anyhow::Result<()> {
        let now = now_ms();
        let metrics = run
            .metrics
            .iter()
            .map(|(key, value)| json!({ "key": key, "value": value, "timestamp": now, "step": 0 }));
        let parameters = run.parameters.iter();
        let parameters = parameters.map(|(key, value)| json!({ "key": key, "value": value }));
        let batch = json!({
            "run_id": id,
            "metrics": metrics.collect::<Vec<_>>(),
            "params": parameters.collect::<Vec<_>>(),
        });
        self.post("mlflow/runs/log-batch", &batch)?;
        let folder = self.proxied(text(begun, "/run/info/artifact_uri")?)?;
        let (file, content) = run.artifact;
        let place = self.api(&format!("{ARTIFACTS}/{folder}/{file}"));
        self.send(self.client.put(place).body(content))?;
        Ok(())
    }

    /// Downloads the files of a registered model.
    ///
    /// # Errors
    /// If the server cannot be asked, knows no such model, or not all files are there.
    fn model_files(&self, model: &RegisteredModel) -> anyhow::Result<ModelFiles> {
        let name = model.name.as_str();
        let (version, origin) = match &model.choice {
            Choice::Version(version) => (version.clone(), model.to_string()),
            Choice::Alias(alias) => {
                let asked = [("name", name), ("alias", alias.as_str())];
                let found = self.get("mlflow/registered-models/alias", &asked)?;
                let version = text(&found, "/model_version/version")?.to_owned();
                let origin = format!("{model}, version {version}");
                (version, origin)
            }
        };
        let asked = [("name", name), ("version", version.as_str())];
        let found = self.get("mlflow/model-versions/get-download-uri", &asked)?;
        let top = self.proxied(text(&found, "/artifact_uri")?)?;
        let folder = self.model_folder(top.trim_end_matches('/'))?;
        let folder = folder.with_context(|| {
            format!(
                "{origin} does not hold {} and {}, neither at its top nor in one folder below",
                ModelFiles::CONFIG,
                ModelFiles::WEIGHTS.join(" or ")
            )
        })?;
        ModelFiles::from(origin, |file| self.download(&format!("{folder}/{file}")))
    }

    /// The folder that holds a model's files: this one, or one in it.
    fn model_folder(&self, top: &str) -> anyhow::Result<Option<String>> {
        let entries = self.entries(top)?;
        if holds_model(&entries) {
            return Ok(Some(top.to_owned()));
        }
        for entry in entries.iter().filter(|entry| entry["is_dir"] == true) {
            let folder = format!("{top}/{}", text(entry, "/path")?);
            if holds_model(&self.entries(&folder)?) {
                return Ok(Some(folder));
            }
        }
        Ok(None)
    }

    fn entries(&self, folder: &str) -> anyhow::Result<Vec<Value>> {
        let listed = self.get(ARTIFACTS, &[("path", folder)])?;
        Ok(listed["files"].as_array().cloned().unwrap_or_default())
    }

    fn download(&self, file: &str) -> anyhow::Result<Vec<u8>> {
        let place = self.api(&format!("{ARTIFACTS}/{file}"));
        let mut answer = self.send(self.client.get(place))?;
        let mut content = Vec::new();
        // Piece by piece: each may take the timeout, which would be short for a large model.
        let read = answer.read_to_end(&mut content);
        read.with_context(|| self.broke_off())?;
        Ok(content)
    }

    /// The path of artifacts that the server serves itself.
    fn proxied<'place>(&self, place: &'place str) -> anyhow::Result<&'place str> {
        let path = place.strip_prefix(PROXIED);
        let path = path.map(|path| path.strip_prefix("//").unwrap_or(path));
        // Two slashes would begin the name of another server.
        let path = path.filter(|path| !path.starts_with('/'));
        path.with_context(|| {
            format!(
                "the MLflow server {} does not serve the artifacts at {place}: start it with --serve-artifacts and \
                 --artifacts-destination, and use an experiment that was made since",
                self.address
            )
        })
    }

    fn get(&self, what: &str, asked: &[(&str, &str)]) -> anyhow::Result<Value> {
        self.value(self.client.get(self.api(what)).query(asked))
    }

    fn post(&self, what: &str, body: &Value) -> anyhow::Result<Value> {
        let request = self.client.post(self.api(what));
        let request = request.header(CONTENT_TYPE, "application/json");
        self.value(request.body(body.to_string()))
    }

    fn value(&self, request: RequestBuilder) -> anyhow::Result<Value> {
        let body = self.body(request)?;
        serde_json::from_str(&body).with_context(|| self.stranger())
    }

    fn body(&self, request: RequestBuilder) -> anyhow::Result<String> {
        let body = self.send(request)?.text();
        body.with_context(|| self.broke_off())
    }

    /// Asks, and returns what is answered unless that is an error.
    fn send(&self, request: RequestBuilder) -> anyhow::Result<Response> {
        let request = match &self.login {
            Login::Nobody => request,
            Login::Token(token) => request.bearer_auth(token),
            Login::User { name, password } => request.basic_auth(name, Some(password)),
        };
        let answer = request.send().map_err(reqwest::Error::without_url);
        let answer =
            answer.with_context(|| format!("cannot ask the MLflow server {}", self.address))?;
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        let path = answer.url().path().to_owned();
        let said = complaint(&answer.text().unwrap_or_default());
        bail!(
            "the MLflow server {} answers {status} to {path}{said}",
            self.address
        )
    }

    fn api(&self, path: &str) -> Url {
        self.url(&format!("api/2.0/{path}"))
    }

    fn url(&self, path: &str) -> Url {
        let mut url = self.address.clone();
        // An address that begins with http has a path.
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path.split('/'));
        }
        url
    }

    fn stranger(&self) -> String {
        format!("{} does not answer as an MLflow server does", self.address)
    }

    fn broke_off(&self) -> String {
        format!("the MLflow server {} broke off", self.address)
    }
}

impl Login {
    /// As MLflow's own clients have it: a user goes before a token.
    fn from_environment() -> Self {
        let user = variable("MLFLOW_TRACKING_USERNAME").zip(variable("MLFLOW_TRACKING_PASSWORD"));
        match (user, variable("MLFLOW_TRACKING_TOKEN")) {
            (Some((name, password)), _) => Self::User { name, password },
            (None, Some(token)) => Self::Token(token),
            (None, None) => Self::Nobody,
        }
    }
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn text<'answer>(answer: &'answer Value, pointer: &str) -> anyhow::Result<&'answer str> {
    let found = answer.pointer(pointer).and_then(Value::as_str);
    found.with_context(|| format!("the MLflow server's answer lacks {pointer}"))
}

fn holds_model(entries: &[Value]) -> bool {
    let there = |file: &&str| entries.iter().any(|entry| entry["path"] == **file);
    there(&ModelFiles::CONFIG) && ModelFiles::WEIGHTS.iter().any(there)
}

/// What a server says of an error: MLflow's message, or the first line of a text, if it is one for people.
fn complaint(body: &str) -> String {
    let json: Value = serde_json::from_str(body).unwrap_or_default();
    let said = json["message"].as_str().unwrap_or(body).trim();
    let line = said.lines().next().unwrap_or_default();
    match line.is_empty() || line.starts_with('<') {
        true => String::new(),
        false => format!(": {}", line.chars().take(COMPLAINT).collect::<String>()),
    }
}

/// A model of MLflow's registry: `models:/NAME/VERSION` or `models:/NAME@ALIAS`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RegisteredModel {
    name: String,
    choice: Choice,
}

#[derive(Clone, Debug, Eq, PartialEq)]
enum Choice {
    Version(String),
    Alias(String),
}

/// The registered model that stands where a directory could, or what is wrong with how it is written.
pub fn registered(directory: &Path) -> Option<Result<RegisteredModel, String>> {
    let named = directory.starts_with("models:");
    named.then(|| directory.to_string_lossy().parse())
}

impl RegisteredModel {
    /// Downloads the model's files from the server that the environment names.
    ///
    /// # Errors
    /// If none is named, it cannot be asked, it knows no such model, or not all files are there.
    pub fn files(&self) -> anyhow::Result<ModelFiles> {
        let address = variable(ADDRESS_VARIABLE).with_context(|| {
            format!(
                "{self} is a registered model: set {ADDRESS_VARIABLE} to the address of the MLflow server that has it"
            )
        })?;
        TrackingServer::at(&address)?.model_files(self)
    }
}

impl FromStr for RegisteredModel {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let path = text.strip_prefix("models:/").unwrap_or_default();
        let found = match path.split_once('/') {
            Some((name, version)) => {
                let number = version.bytes().all(|digit| digit.is_ascii_digit());
                number.then(|| (name, version, Choice::Version(version.to_owned())))
            }
            None => {
                let parts = path.rsplit_once('@');
                parts.map(|(name, alias)| (name, alias, Choice::Alias(alias.to_owned())))
            }
        };
        match found {
            Some((name, chosen, choice)) if !name.is_empty() && !chosen.is_empty() => Ok(Self {
                name: name.to_owned(),
                choice,
            }),
            _ => Err(format!(
                "\"{text}\" names no registered model: write models:/NAME/VERSION or models:/NAME@ALIAS"
            )),
        }
    }
}

impl fmt::Display for RegisteredModel {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = &self.name;
        match &self.choice {
            Choice::Version(version) => write!(formatter, "models:/{name}/{version}"),
            Choice::Alias(alias) => write!(formatter, "models:/{name}@{alias}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registered_model_is_told_from_a_directory() {
        for written in [
            "models:/tweets/12",
            "models:/my tweets@champion",
            "models:/a@b@c",
        ] {
            let model = registered(Path::new(written)).unwrap().unwrap();
            assert_eq!(model.to_string(), written);
        }
        for wrong in [
            "models:/tweets",
            "models:/tweets/",
            "models:/tweets/latest",
            "models:/@champion",
            "models:/tweets@",
            "models://tweets/1",
            "models:/a/b/1",
        ] {
            let error = registered(Path::new(wrong)).unwrap().unwrap_err();
            assert!(error.contains("models:/NAME/VERSION"), "{error}");
        }
        for directory in ["models/tweets", "/models:/tweets/1", ""] {
            assert!(registered(Path::new(directory)).is_none(), "{directory}");
        }
    }

    #[test]
    fn an_address_is_checked_and_its_password_not_repeated() {
        let told = |address: &str| TrackingServer::at(address).err().unwrap().to_string();
        assert!(told("sqlite:///mlflow.db").contains("\"sqlite:///mlflow.db\" is no address"));
        for secret in ["postgresql://me:secret@db/mlflow", "https://me:secret@host"] {
            assert!(!told(secret).contains("secret"), "{}", told(secret));
        }
        let server = TrackingServer::at("http://host:5000/mlflow/#/experiments/1").unwrap();
        assert_eq!(
            server.api("a b").as_str(),
            "http://host:5000/mlflow/api/2.0/a%20b"
        );
    }

    #[test]
    fn only_artifacts_that_the_server_serves_are_used() {
        let server = TrackingServer::at("http://host").unwrap();
        for place in ["mlflow-artifacts:/1/a", "mlflow-artifacts:///1/a"] {
            assert_eq!(server.proxied(place).unwrap(), "1/a");
        }
        for place in ["mlflow-artifacts://other/1/a", "s3://bucket/1/a", "/1/a"] {
            let error = server.proxied(place).unwrap_err().to_string();
            assert!(
                error.contains(place) && error.contains("http://host/"),
                "{error}"
            );
        }
    }

    #[test]
    fn what_the_server_says_is_repeated_and_its_pages_are_not() {
        let said = complaint(r#"{"error_code": "X", "message": "No such thing.\n[SQL: ...]"}"#);
        assert_eq!(said, ": No such thing.");
        assert_eq!(complaint("Permission denied\n"), ": Permission denied");
        assert_eq!(complaint("<!doctype html>\n<title>404"), "");
        assert_eq!(complaint(""), "");
    }
}
