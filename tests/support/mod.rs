//! What tests of the whole program share: running it, asking it, reading its tables.

#![allow(dead_code, reason = "each test program uses its own part")]

pub(crate) mod buckets;
pub(crate) mod database;
pub(crate) mod models;
pub(crate) mod numbers;
pub(crate) mod services;
pub(crate) mod topics;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{Read, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use arrow::array::RecordBatch;
use connectors::delta::{Deletes, Table, TablesFolder};
use dataflows::pipelines::mentions;
use serde_json::Value;

/// How long anything may take before a test gives up on it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);

/// A folder with a configuration, its tweets and its tables.
pub(crate) struct Site {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) port: u16,
}

impl Site {
    /// A site whose configuration ends with these lines; server and tables are set already.
    pub(crate) fn new(lines: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let site = Self {
            folder,
            port: free_port(),
        };
        std::fs::create_dir(site.path("tweets")).unwrap();
        site.configure(lines);
        site
    }

    pub(crate) fn configure(&self, lines: &str) {
        let text = format!("{lines}\n[server]\nlisten = \"127.0.0.1:{}\"\n", self.port);
        std::fs::write(self.path("assay.toml"), text).unwrap();
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn tweet(&self, name: &str, text: &str) {
        let json = serde_json::json!({
            "date": "Mon Apr 06 22:19:45 PDT 2009", "user": "ada", "text": text, "sentiment": "positive",
        });
        std::fs::write(self.path("tweets").join(name), json.to_string()).unwrap();
    }

    /// Writes, rewrites or removes one of forty tweets, about one of thirty.
    pub(crate) fn change(&self, numbers: &mut numbers::Numbers) {
        let file = format!("{}.json", numbers.below(40));
        match numbers.below(3) {
            // It may not be there.
            0 => drop(std::fs::remove_file(self.path("tweets").join(file))),
            _ => self.tweet(&file, &format!("@user{} hears", numbers.below(30))),
        }
    }

    /// Runs the program to its end.
    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        let config = self.path("assay.toml");
        let output = assay()
            .arg("run")
            .arg(config)
            .args(arguments)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        output
    }

    /// Starts the program and waits until its sources have been read to their end.
    pub(crate) fn start(&self, arguments: &[&str]) -> Running {
        self.start_with(arguments, &[])
    }

    /// The same, with variables.
    pub(crate) fn start_with(&self, arguments: &[&str], variables: &[(&str, String)]) -> Running {
        let running = self.spawn("run", arguments, variables);
        running.wait_for("readiness", || {
            running
                .get("/readyz")
                .is_some_and(|(status, _)| status == 200)
        });
        running
    }

    /// Starts the program as a cluster.
    pub(crate) fn launch(&self, arguments: &[&str]) -> Running {
        self.spawn("launch", arguments, &[])
    }

    /// Starts the program and does not wait.
    pub(crate) fn spawn(
        &self,
        command: &str,
        arguments: &[&str],
        variables: &[(&str, String)],
    ) -> Running {
        let log = std::fs::File::create(self.path("log.txt")).unwrap();
        let config = self.path("assay.toml");
        let child = assay()
            .arg(command)
            .arg(config)
            .args(arguments)
            .envs(variables.iter().cloned())
            .stderr(log)
            .spawn()
            .unwrap();
        self.follow(child)
    }

    /// The program while it runs, however it was started.
    pub(crate) fn follow(&self, child: Child) -> Running {
        Running {
            child,
            port: self.port,
            log: self.path("log.txt"),
        }
    }

    /// All rows of all tables, as text, sorted; without the columns that tell of reading.
    pub(crate) fn tables(&self) -> BTreeMap<&'static str, Vec<String>> {
        tables(&self.path("tables"), &["processing_time", "first_seen"])
    }
}

pub(crate) fn assay() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_assay"));
    command.stdin(Stdio::null());
    command
}

/// A port on which nobody listens, nor on the few after it: none of those that systems hand out by
/// themselves, lest a connection made meanwhile take it.
pub(crate) fn free_port() -> u16 {
    static CALLS: AtomicU32 = AtomicU32::new(0);
    loop {
        let place = std::process::id() * 100 + CALLS.fetch_add(1, Ordering::Relaxed);
        let port = 20_000 + (place % 1_200) as u16 * 8;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// The program while it runs; killed when dropped.
pub(crate) struct Running {
    child: Child,
    port: u16,
    log: PathBuf,
}

impl Running {
    /// The number of the process that was started.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// The port at which it answers over HTTP.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn sql(&self, sql: &str) -> Vec<Value> {
        self.answer(sql)["rows"].as_array().unwrap().clone()
    }

    pub(crate) fn answer(&self, sql: &str) -> Value {
        let (status, body) = request(self.port, "POST", "/v1/sql", sql).expect("an answer");
        assert_eq!(status, 200, "{body}");
        serde_json::from_str(&body).unwrap()
    }

    /// The single number that a query answers.
    pub(crate) fn number(&self, sql: &str) -> i64 {
        let row = self.sql(sql).remove(0);
        row.as_object()
            .unwrap()
            .values()
            .next()
            .unwrap()
            .as_i64()
            .unwrap()
    }

    /// The epoch of the last checkpoint.
    pub(crate) fn checkpointed(&self) -> u64 {
        let (_, metrics) = self.get("/metrics").unwrap();
        let mut lines = metrics.lines();
        let name = "assay_checkpoint_timestamp_seconds ";
        let seconds = lines.find_map(|line| line.strip_prefix(name));
        seconds.map_or(0, |seconds| {
            (seconds.parse::<f64>().unwrap() * 1_000.0).round() as u64
        })
    }

    pub(crate) fn get(&self, path: &str) -> Option<(u16, String)> {
        request(self.port, "GET", path, "")
    }

    /// Polls until the condition holds.
    pub(crate) fn wait_for(&self, what: &str, condition: impl Fn() -> bool) {
        let started = Instant::now();
        while !condition() {
            assert!(
                started.elapsed() < PATIENCE,
                "waited in vain for {what}; the log says:\n{}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// What a command of the program prints that asks this one.
    pub(crate) fn ask(&self, arguments: &[&str]) -> String {
        let server = format!("http://127.0.0.1:{}", self.port);
        let output = assay().args(arguments).args(["--server", &server]).output();
        let output = output.unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// What it has logged.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits until it has ended.
    pub(crate) fn ended(mut self) -> std::process::ExitStatus {
        self.child.wait().unwrap()
    }

    /// Sends SIGTERM and expects a clean end.
    pub(crate) fn stop(mut self) {
        let signal = Command::new("kill")
            .args(["-TERM", &self.child.id().to_string()])
            .status()
            .unwrap();
        assert!(signal.success());
        let status = self.child.wait().unwrap();
        assert!(
            status.success(),
            "{status}: {}",
            std::fs::read_to_string(&self.log).unwrap()
        );
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A request over HTTP/1.0; `None` if no one answers.
pub(crate) fn request(port: u16, method: &str, path: &str, body: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.0\r\nHost: localhost\r\nContent-Type: application/json\r\n\
         Content-Length: {length}\r\n\r\n{body}"
    )
    .ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some((status, body.to_owned()))
}

/// All rows of all Delta tables in a folder, as text, sorted, without some columns.
pub(crate) fn tables(folder: &Path, without: &[&str]) -> BTreeMap<&'static str, Vec<String>> {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let folder = TablesFolder::open(folder.to_str().unwrap()).unwrap();
    let mut tables = BTreeMap::new();
    for (relation, schema) in mentions::schemas() {
        let table = runtime
            .block_on(Table::open(&folder, relation, schema, Deletes::Vectors))
            .unwrap();
        let batches = runtime.block_on(table.rows()).unwrap();
        let mut rows: Vec<_> = batches
            .iter()
            .flat_map(|batch| lines(batch, without))
            .collect();
        rows.sort();
        tables.insert(relation, rows);
    }
    tables
}

fn lines(batch: &RecordBatch, without: &[&str]) -> Vec<String> {
    let rows = sql::to_json(std::slice::from_ref(batch)).unwrap();
    let schema = batch.schema();
    let columns: Vec<_> = schema
        .fields()
        .iter()
        .filter(|field| !without.contains(&field.name().as_str()))
        .collect();
    let line = |row: &Value| {
        columns.iter().fold(String::new(), |mut line, column| {
            write!(line, "{}={} ", column.name(), row[column.name()]).unwrap();
            line
        })
    };
    rows.iter().map(line).collect()
}
