//! Runs that are logged with a real MLflow server, and models that its registry knows.
//!
//! Needs what `cargo xtask test` fetches.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on should fail there"
)]

mod support;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use reqwest::blocking::{Client, RequestBuilder};
use serde_json::{Value, json};
use support::{PATIENCE, Site, assay, free_port};

const ADMIN: (&str, &str) = ("admin", "correct-horse-staple");

/// May read what others made, and change nothing of it.
const READER: (&str, &str) = ("reader", "battery-and-staple");

/// A server with users of its own; gone when dropped.
struct Mlflow {
    server: Child,
    folder: tempfile::TempDir,
    port: u16,
    client: Client,
}

impl Mlflow {
    fn start() -> Self {
        let python = std::env::var("ASSAY_TEST_PYTHON").expect("set by `cargo xtask test`");
        let folder = tempfile::tempdir().unwrap();
        let port = free_port();
        let log = std::fs::File::create(folder.path().join("log.txt")).unwrap();
        let store = format!("sqlite:///{}", folder.path().join("store.db").display());
        let server = Command::new(python)
            .args(["-m", "mlflow", "server", "--app-name", "basic-auth"])
            .args(["--workers", "1", "--port", &port.to_string()])
            .args(["--backend-store-uri", &store, "--artifacts-destination"])
            .arg(folder.path().join("artifacts"))
            .env("MLFLOW_AUTH_ADMIN_PASSWORD", ADMIN.1)
            .env("MLFLOW_FLASK_SERVER_SECRET_KEY", "anything")
            .env("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
            .env("MLFLOW_DISABLE_TELEMETRY", "true")
            // Its users are kept where it runs.
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let mlflow = Self {
            server,
            folder,
            port,
            client: Client::new(),
        };
        mlflow.wait();
        mlflow
    }

    fn wait(&self) {
        let started = Instant::now();
        let health = format!("{}/health", self.url());
        while !matches!(self.client.get(&health).send(), Ok(answer) if answer.status().is_success())
        {
            let log = std::fs::read_to_string(self.folder.path().join("log.txt")).unwrap();
            assert!(
                started.elapsed() < PATIENCE,
                "waited in vain for the server:\n{log}"
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// What the server answers to its administrator.
    fn answer(&self, request: RequestBuilder) -> Vec<u8> {
        let request = request.basic_auth(ADMIN.0, Some(ADMIN.1));
        let answer = request.send().unwrap();
        let status = answer.status();
        let body = answer.bytes().unwrap();
        assert!(
            status.is_success(),
            "{status}: {}",
            String::from_utf8_lossy(&body)
        );
        body.to_vec()
    }

    fn get(&self, what: &str) -> Value {
        let url = format!("{}/api/2.0/mlflow/{what}", self.url());
        serde_json::from_slice(&self.answer(self.client.get(url))).unwrap()
    }

    fn post(&self, what: &str, body: &Value) -> Value {
        let url = format!("{}/api/2.0/mlflow/{what}", self.url());
        let request = self.client.post(url);
        let request = request.header("Content-Type", "application/json");
        serde_json::from_slice(&self.answer(request.body(body.to_string()))).unwrap()
    }

    /// Where an artifact of a run is read and written.
    fn artifact(&self, run: &Value, name: &str) -> String {
        let place = run["info"]["artifact_uri"].as_str().unwrap();
        let path = place.strip_prefix("mlflow-artifacts:/").unwrap();
        let url = self.url();
        format!("{url}/api/2.0/mlflow-artifacts/artifacts/{path}/{name}")
    }

    /// A version of the model "tweets" whose files are below this folder of a run.
    fn register(&self, run: &Value, folder: &str) {
        let (place, id) = (&run["info"]["artifact_uri"], &run["info"]["run_id"]);
        let source = format!("{}{folder}", place.as_str().unwrap());
        let version = json!({ "name": "tweets", "source": source, "run_id": id });
        self.post("model-versions/create", &version);
    }

    /// The variables by which clients find the server and say who they are.
    fn variables(&self, user: (&str, &str)) -> Vec<(&'static str, String)> {
        vec![
            ("MLFLOW_TRACKING_URI", self.url()),
            ("MLFLOW_TRACKING_USERNAME", user.0.to_owned()),
            ("MLFLOW_TRACKING_PASSWORD", user.1.to_owned()),
        ]
    }
}

impl Drop for Mlflow {
    fn drop(&mut self) {
        // The command starts the server as a process of its own, which would outlive it.
        let id = self.server.id();
        let servers = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children"));
        for server in servers.unwrap_or_default().split_whitespace() {
            let _ = Command::new("kill").args(["-KILL", server]).status();
        }
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// Whether the program ended well, and what it said.
fn said(arguments: &[&str], variables: &[(&str, String)]) -> (bool, String) {
    let mut command = assay();
    for name in ["URI", "USERNAME", "PASSWORD", "TOKEN"] {
        command.env_remove(format!("MLFLOW_TRACKING_{name}"));
    }
    let variables = variables.iter().cloned();
    let output = command.args(arguments).envs(variables).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(said).unwrap())
}

/// Asserts that the program refuses, and says all of these.
fn refused(arguments: &[&str], variables: &[(&str, String)], parts: &[&str]) {
    let (well, told) = said(arguments, variables);
    assert!(!well, "{told}");
    for part in parts {
        assert!(told.contains(part), "{part:?} is missing from: {told}");
    }
    for secret in [ADMIN.1, READER.1, "a-wrong-password", "secret-token"] {
        assert!(!told.contains(secret), "{told}");
    }
}

fn numbers(metrics: &Value) -> Vec<(&str, f64)> {
    let metrics = metrics.as_array().unwrap().iter();
    metrics
        .map(|metric| {
            let (name, value) = (metric["key"].as_str(), metric["value"].as_f64());
            (name.unwrap(), value.unwrap())
        })
        .collect()
}

/// The version that a table had after a checkpoint, as its own log has it.
fn version_at(site: &Site, table: &str, checkpoint: u64) -> Option<u64> {
    let config = site.path("assay.toml");
    let (well, history) = said(&["tables", "history", config.to_str().unwrap(), table], &[]);
    assert!(well, "{history}");
    // Its columns are table, version, time (day, hour, zone), epoch and operation, the newest first.
    history.lines().find_map(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        let epoch: u64 = words.get(5)?.parse().ok()?;
        let version = words[1].parse().unwrap();
        (epoch <= checkpoint).then_some(version)
    })
}

#[test]
fn what_models_are_worth_is_logged() {
    let mlflow = Mlflow::start();
    let site = Site::new("[tables]\ncheckpoint_interval_s = 1\n");
    let tweets = [
        ("positive", "@bob what a wonderful day"),
        ("positive", "@bob this is terrible"),
        ("negative", "@eve this is terrible"),
        ("neutral", "@eve it is what it is"),
    ];
    for (number, (label, text)) in tweets.into_iter().enumerate() {
        let tweet = json!({
            "date": "Mon Apr 06 22:19:45 PDT 2009", "user": "ada", "text": text, "sentiment": label,
        });
        let file = site.path("tweets").join(format!("{number}.json"));
        std::fs::write(file, tweet.to_string()).unwrap();
    }
    let running = site.start(&[]);
    running.wait_for("a checkpoint", || {
        let (_, status) = running.get("/v1/status").unwrap();
        let status: Value = serde_json::from_str(&status).unwrap();
        status["processes"][0]["tables"]["versions"]["silver"].as_u64() >= Some(1)
    });
    running.wait_for("all cells of the matrix", || {
        running.number("select count(*) from accuracy") == 4
    });
    let server = format!("http://127.0.0.1:{}", running.port());
    let evaluate = |more: &[&str], variables: &[(&str, String)]| {
        let arguments = ["evaluate", "--server", &server];
        said(&[&arguments[..], more].concat(), variables)
    };

    let admin = mlflow.variables(ADMIN);
    let url = mlflow.url();
    let (well, page) = evaluate(&["--mlflow", &url], &admin[1..]);
    let start = format!("{url}/#/experiments/1/runs/");
    let id = page.trim_end().strip_prefix(&start);
    let id = id.unwrap_or_else(|| panic!("{page}"));
    assert!(well, "{page}");
    let run = mlflow.get(&format!("runs/get?run_id={id}"))["run"].take();
    assert_eq!(run["info"]["status"], "FINISHED");
    assert_eq!(run["info"]["run_name"], "built-in sentiment model");

    let logged = numbers(&run["data"]["metrics"]);
    // By hand: one of two positive tweets is taken for a negative one.
    let expected: [(&str, f64); 17] = [
        ("rows", 4.0),
        ("accuracy", 3.0 / 4.0),
        ("precision/negative", 1.0 / 2.0),
        ("recall/negative", 1.0),
        ("f1/negative", 2.0 / 3.0),
        ("precision/neutral", 1.0),
        ("recall/neutral", 1.0),
        ("f1/neutral", 1.0),
        ("precision/positive", 1.0),
        ("recall/positive", 1.0 / 2.0),
        ("f1/positive", 2.0 / 3.0),
        ("precision/macro", 2.5 / 3.0),
        ("recall/macro", 2.5 / 3.0),
        ("f1/macro", 7.0 / 9.0),
        ("precision/weighted", 3.5 / 4.0),
        ("recall/weighted", 3.0 / 4.0),
        ("f1/weighted", 3.0 / 4.0),
    ];
    assert_eq!(logged.len(), expected.len(), "{logged:?}");
    for (name, value) in expected {
        let close = |metric: &(&str, f64)| metric.0 == name && (metric.1 - value).abs() < 1e-9;
        assert!(logged.iter().any(close), "{name} {value}: {logged:?}");
    }

    let parameters = run["data"]["params"].as_array().unwrap();
    let parameter = |name: &str| {
        let parameter = parameters.iter().find(|parameter| parameter["key"] == name);
        parameter.unwrap()["value"].as_str().unwrap().to_owned()
    };
    assert_eq!(parameter("model"), "built-in sentiment model");
    let scored_by = running.sql("select distinct model from accuracy").remove(0);
    assert_eq!(scored_by["model"], parameter("fingerprint"));
    assert_eq!(parameter("assay_version"), env!("CARGO_PKG_VERSION"));
    let version = mlflow.answer(mlflow.client.get(format!("{url}/version")));
    assert_eq!(parameter("mlflow_version").as_bytes(), version);
    let number = |name: &str| parameter(name).parse::<u64>().unwrap();
    let checkpoint = number("checkpoint_epoch");
    assert!(number("epoch") >= checkpoint);
    let silver = number("silver_delta_version");
    assert_eq!(version_at(&site, "silver", checkpoint), Some(silver));

    let image = mlflow.artifact(&run, "confusion_matrix.png");
    let image = mlflow.answer(mlflow.client.get(image));
    assert!(image.starts_with(b"\x89PNG\r\n\x1a\n"));

    // The same by variables alone, into the experiment that is there now.
    let (well, page) = evaluate(&[], &admin);
    assert!(well && page.starts_with(&start), "{page}");

    let with_server = |more: &[&str], variables: &[(&str, String)], parts: &[&str]| {
        let arguments = ["evaluate", "--server", &server];
        refused(&[&arguments[..], more].concat(), variables, parts);
    };
    let elsewhere = json!({ "name": "elsewhere", "artifact_location": "s3://bucket/folder" });
    let elsewhere = mlflow.post("experiments/create", &elsewhere);
    with_server(
        &["--experiment", "elsewhere"],
        &admin,
        &[
            &url,
            "does not serve the artifacts at s3://bucket/folder",
            "--serve-artifacts",
        ],
    );
    let of_elsewhere = json!({ "experiment_ids": [elsewhere["experiment_id"]] });
    let runs = mlflow.post("runs/search", &of_elsewhere);
    assert_eq!(runs["runs"][0]["info"]["status"], "FAILED");

    let reader = json!({ "username": READER.0, "password": READER.1 });
    mlflow.post("users/create", &reader);
    let denied = [
        "403 Forbidden",
        "/api/2.0/mlflow/runs/create",
        "Permission denied",
    ];
    with_server(&[], &mlflow.variables(READER), &denied);
    let nobody = mlflow.variables((ADMIN.0, "a-wrong-password"));
    with_server(
        &[],
        &nobody,
        &[&url, "401 Unauthorized", "not authenticated"],
    );
    with_server(&["--mlflow", &server], &[], &[&server, "404 Not Found"]);
    with_server(
        &["--mlflow", "sqlite:///mlflow.db"],
        &[],
        &["sqlite:///mlflow.db", "no address"],
    );
    let missing = "http://127.0.0.1:1";
    with_server(
        &["--mlflow", missing],
        &[],
        &[missing, "cannot ask the MLflow server"],
    );
    running.stop();
}

#[test]
fn registered_models_are_those_of_their_files() {
    let mlflow = Mlflow::start();
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/sentiment");
    let experiment = mlflow.post("experiments/create", &json!({ "name": "models" }));
    let run = json!({ "experiment_id": experiment["experiment_id"], "start_time": 1 });
    let run = mlflow.post("runs/create", &run)["run"].take();
    let upload = |file: PathBuf, name: &str| {
        let request = mlflow.client.put(mlflow.artifact(&run, name));
        mlflow.answer(request.body(std::fs::read(file).unwrap()));
    };
    for file in ["model.onnx", "tokenizer.json", "config.json"] {
        upload(directory.join(file), &format!("all/model/{file}"));
    }
    upload(directory.join("config.json"), "half/config.json");
    mlflow.post("registered-models/create", &json!({ "name": "tweets" }));
    mlflow.register(&run, "/all/model");
    mlflow.register(&run, "/all");
    mlflow.register(&run, "/half");
    let alias = json!({ "name": "tweets", "alias": "champion", "version": "1" });
    mlflow.post("registered-models/alias", &alias);

    let variables = mlflow.variables(ADMIN);
    let fingerprint = |model: &str| {
        let (well, told) = said(&["model", "check", model], &variables);
        assert!(well, "{told}");
        let line = told.lines().find(|line| line.starts_with("fingerprint"));
        line.unwrap().to_owned()
    };
    let of_directory = fingerprint(directory.to_str().unwrap());
    for model in ["models:/tweets/1", "models:/tweets@champion"] {
        assert_eq!(fingerprint(model), of_directory);
    }
    // In a folder of what is registered.
    assert_eq!(fingerprint("models:/tweets/2"), of_directory);

    let lines = "[tables]\nenabled = false\n[model]\ndirectory = \"models:/tweets@champion\"\n";
    let site = Site::new(lines);
    let running = site.start_with(&[], &variables);
    running.wait_for("the model's name", || {
        let (_, status) = running.get("/v1/status").unwrap();
        status.contains("\"models:/tweets@champion, version 1\"")
    });
    running.stop();

    let url = mlflow.url();
    let refuses = |model: &str, parts: &[&str]| {
        refused(&["model", "check", model], &variables, parts);
    };
    refuses(
        "models:/nothing/1",
        &[&url, "404 Not Found", "name=nothing"],
    );
    refuses("models:/tweets/9", &[&url, "version=9"]);
    refuses("models:/tweets@nobody", &[&url, "nobody not found"]);
    refuses(
        "models:/tweets/3",
        &[
            "models:/tweets/3",
            "does not hold config.json and model.onnx or ngrams.int8",
        ],
    );
    refuses("models:/tweets", &["write models:/NAME/VERSION"]);
    site.configure("[model]\ndirectory = \"models:/tweets/latest\"\n");
    let config = site.path("assay.toml");
    refused(
        &["run", config.to_str().unwrap()],
        &variables,
        &["assay.toml:2: model.directory", "models:/NAME/VERSION"],
    );
}

#[test]
fn a_server_that_refuses_or_is_missing_is_named() {
    let check = ["model", "check", "models:/tweets/1"];
    refused(
        &check,
        &[],
        &[
            "models:/tweets/1 is a registered model",
            "MLFLOW_TRACKING_URI",
        ],
    );
    let missing = [("MLFLOW_TRACKING_URI", "http://127.0.0.1:1".to_owned())];
    refused(
        &check,
        &missing,
        &["cannot ask the MLflow server http://127.0.0.1:1"],
    );

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let asked = std::thread::spawn(move || {
        let (mut client, _) = listener.accept().unwrap();
        let mut head: Vec<u8> = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            client.read_exact(&mut byte).unwrap();
            head.extend(byte);
        }
        let body = r#"{"error_code": "PERMISSION_DENIED", "message": "this token opens nothing"}"#;
        write!(
            client,
            "HTTP/1.1 403 Forbidden\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        )
        .unwrap();
        String::from_utf8(head).unwrap().to_lowercase()
    });
    let variables = [
        ("MLFLOW_TRACKING_URI", format!("http://127.0.0.1:{port}")),
        ("MLFLOW_TRACKING_TOKEN", "secret-token".to_owned()),
    ];
    refused(
        &check,
        &variables,
        &["403 Forbidden", "this token opens nothing"],
    );
    let head = asked.join().unwrap();
    assert!(
        head.contains("authorization: bearer secret-token\r\n"),
        "{head}"
    );
}
