//! P4 and what rests on it: whoever asks, wherever and however, sees one epoch, and sees it change.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on should fail there"
)]

mod support;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use support::numbers::Numbers;
use support::{Running, Site, assay, free_port};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, NoTls};

/// Names that are mentioned, two of which differ in case alone.
const NAMES: [&str; 5] = ["ada", "Ada", "bo", "cy", "dee"];

const LABELS: [&str; 3] = ["negative", "neutral", "positive"];

/// Reads of each reader of [`every_statement_sees_one_epoch_on_every_process`].
fn reads() -> usize {
    let asked = std::env::var("ASSAY_TEST_READS");
    asked.map_or(300, |reads| reads.parse().unwrap())
}

/// Writes, rewrites and removes tweets, each with one to three mentions and a label.
fn change(site: &Site, numbers: &mut Numbers) {
    let file = format!("{:03}.json", numbers.below(60));
    if numbers.below(4) == 0 {
        // It may not be there.
        let _ = std::fs::remove_file(site.path("tweets").join(file));
        return;
    }
    let mentions = (0..=numbers.below(3)).map(|_| NAMES[numbers.below(5) as usize]);
    let mentions = mentions.map(|name| format!("@{name} ")).collect::<String>();
    let tweet = json!({
        "date": "Mon Apr 06 22:19:45 PDT 2009",
        "user": NAMES[numbers.below(5) as usize],
        "text": format!("{mentions}says {}", numbers.below(100)),
        "sentiment": LABELS[numbers.below(3) as usize],
    });
    // Half a file would be a reject for a moment.
    let (written, named) = (site.path("written"), site.path("tweets").join(file));
    std::fs::write(&written, tweet.to_string()).unwrap();
    std::fs::rename(written, named).unwrap();
}

fn postgres(port: u16) -> String {
    format!("[server.postgres]\nenabled = true\nlisten = \"127.0.0.1:{port}\"\n")
}

async fn connect(port: u16) -> Client {
    let address = format!("host=127.0.0.1 port={port} user=reader dbname=assay");
    let (client, connection) = tokio_postgres::connect(&address, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

/// In any one statement, what was derived agrees with what it was derived from, for each who is mentioned and each who
/// tweets. Returns how many epochs were met, and how many pairs of numbers compared.
async fn read_again_and_again(port: u16, reads: usize) -> (usize, usize) {
    let client = connect(port).await;
    let statement = client
        .prepare(
            "select assay_epoch(), name, sum(derived)::bigint, sum(counted)::bigint from ( \
             select 'total ' || mention as name, total as derived, 0 as counted from mention_sentiment \
             union all select 'total ' || mention, 0, 1 from gold \
             union all select 'mentions ' || mention, 1, 0 from gold \
             union all select 'mentions ' || mention, 0, 1 from silver \
             union all select 'tweets ' || \"user\", tweets, 0 from users \
             union all select 'tweets ' || \"user\", 0, 1 from bronze) group by name",
        )
        .await
        .unwrap();
    let (mut last, mut epochs, mut compared) = (0, 0, 0);
    for _ in 0..reads {
        let rows = client.query(&statement, &[]).await.unwrap();
        let epoch = rows.first().map_or(last, |row| row.get(0));
        for row in &rows {
            let [derived, counted] = [2, 3].map(|column| row.get::<_, i64>(column));
            let name = row.get::<_, &str>(1);
            assert_eq!(derived, counted, "{name} at {epoch}");
            assert_eq!(row.get::<_, i64>(0), epoch);
        }
        compared += rows.len();
        assert!(epoch >= last, "{epoch} was read after {last}");
        epochs += usize::from(epoch > last);
        last = epoch;
    }
    (epochs, compared)
}

#[test]
fn every_statement_sees_one_epoch_on_every_process() {
    let first = free_port();
    let site = Site::new(&format!(
        "tick_ms = 10\n[model]\nenabled = false\n{}",
        postgres(first)
    ));
    let mut numbers = Numbers(4);
    (0..60).for_each(|_| change(&site, &mut numbers));
    let running = site.launch(&["--processes", "2", "--workers", "2"]);
    running.wait_for("readiness", || {
        let ready = running.get("/readyz");
        ready.is_some_and(|(status, _)| status == 200)
    });
    let done = Arc::new(AtomicBool::new(false));
    std::thread::scope(|scope| {
        let changing = Arc::clone(&done);
        scope.spawn(|| {
            let changing = changing;
            while !changing.load(Ordering::Relaxed) {
                change(&site, &mut numbers);
                // At leisure, so that each epoch has few changes and there are many epochs.
                std::thread::sleep(Duration::from_millis(4));
            }
        });
        let runtime = tokio::runtime::Runtime::new().unwrap();
        // The second process answers at the port that follows.
        let readers = [first, first, first + 1, first + 1]
            .map(|port| runtime.spawn(async move { read_again_and_again(port, reads()).await }));
        for reader in readers {
            let read = runtime.block_on(reader);
            done.store(read.is_err(), Ordering::Relaxed);
            let (epochs, compared) = read.unwrap();
            eprintln!("{compared} pairs of numbers were equal at {epochs} epochs");
            assert!(epochs > 10 && compared > epochs, "the stream moved on");
        }
        done.store(true, Ordering::Relaxed);
    });
    running.stop();
}

#[test]
fn clients_of_postgresql_prepare_cancel_and_cannot_write() {
    let port = free_port();
    let site = Site::new(&format!("[model]\nenabled = false\n{}", postgres(port)));
    let mut numbers = Numbers(5);
    (0..200).for_each(|_| change(&site, &mut numbers));
    let running = site.start(&["--workers", "2"]);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let client = connect(port).await;
        let by_name = client
            .prepare("select total from mention_sentiment where mention = $1 and total > $2")
            .await
            .unwrap();
        for name in NAMES {
            let rows = client.query(&by_name, &[&name, &0_i64]).await.unwrap();
            let counted = format!("select count(*) from gold where mention = '{name}'");
            let expected = running.number(&counted);
            assert_eq!(rows[0].get::<_, i64>(0), expected, "{name}");
        }
        for (sql, code) in [
            ("drop table gold", SqlState::READ_ONLY_SQL_TRANSACTION),
            ("delete from gold", SqlState::READ_ONLY_SQL_TRANSACTION),
            (
                "copy gold to '/tmp/gold.csv'",
                SqlState::READ_ONLY_SQL_TRANSACTION,
            ),
            (
                "select * into stolen from gold",
                SqlState::READ_ONLY_SQL_TRANSACTION,
            ),
            (
                "set datafusion.execution.batch_size = 1",
                SqlState::INSUFFICIENT_PRIVILEGE,
            ),
            ("select * from nowhere", SqlState::UNDEFINED_TABLE),
        ] {
            let error = client.execute(sql, &[]).await.unwrap_err();
            assert_eq!(error.code(), Some(&code), "{sql}: {error}");
            let error = client.batch_execute(sql).await.unwrap_err();
            assert_eq!(error.code(), Some(&code), "{sql}: {error}");
        }
        let (cancel, endless) = (
            client.cancel_token(),
            "select count(*) from generate_series(1, 1000000000000)",
        );
        let (ended, ()) = tokio::join!(client.query(endless, &[]), async {
            // A cancel that comes before the query is for nothing, as PostgreSQL has it.
            tokio::time::sleep(Duration::from_millis(500)).await;
            cancel.cancel_query(NoTls).await.unwrap();
        });
        assert_eq!(ended.unwrap_err().code(), Some(&SqlState::QUERY_CANCELED));
        client
            .batch_execute("set statement_timeout = '100ms'")
            .await
            .unwrap();
        let error = client.query(endless, &[]).await.unwrap_err();
        assert_eq!(error.code(), Some(&SqlState::QUERY_CANCELED), "{error}");
        let options =
            format!("host=127.0.0.1 port={port} user=reader options='-c statement_timeout=100'");
        let (hasty, connection) = tokio_postgres::connect(&options, NoTls).await.unwrap();
        tokio::spawn(connection);
        let error = hasty.query(endless, &[]).await.unwrap_err();
        assert_eq!(error.code(), Some(&SqlState::QUERY_CANCELED), "{error}");
        let large = "select a.value from generate_series(1, 100000000) a order by 1 desc";
        let error = connect(port).await.query(large, &[]).await.unwrap_err();
        assert_eq!(error.code(), Some(&SqlState::OUT_OF_MEMORY), "{error}");
    });
    let (_, metrics) = running.get("/metrics").unwrap();
    assert!(metrics.contains("assay_query_seconds_count"), "{metrics}");
    running.stop();
}

/// Rows as a follower knows them, with how often each is there.
type Rows = BTreeMap<String, i64>;

fn add(rows: &mut Rows, row: &Value, diff: i64) {
    let count = rows.entry(row.to_string()).or_default();
    *count += diff;
    if *count == 0 {
        rows.remove(&row.to_string());
    }
}

fn rows_of(running: &Running, relation: &str) -> Rows {
    let mut rows = Rows::new();
    for row in running.sql(&format!("select * from {relation}")) {
        add(&mut rows, &row, 1);
    }
    rows
}

/// `assay subscribe`, and what it has printed.
fn subscribe(running: &Running, relation: &str) -> (Child, Arc<Mutex<Rows>>) {
    let server = format!("http://127.0.0.1:{}", running.port());
    let mut child = assay()
        .args(["subscribe", relation, "--json", "--server", &server])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let printed = BufReader::new(child.stdout.take().unwrap());
    let rows = Arc::<Mutex<Rows>>::default();
    let held = Arc::clone(&rows);
    std::thread::spawn(move || {
        for line in printed.lines().map_while(Result::ok) {
            let change: Value = serde_json::from_str(&line).unwrap();
            let diff = change["diff"].as_i64().unwrap();
            add(&mut held.lock().unwrap(), &change["row"], diff);
        }
    });
    (child, rows)
}

#[test]
fn whoever_follows_a_relation_ends_with_its_rows() {
    let site = Site::new("[model]\nenabled = false\n[tables]\nenabled = false\n");
    let mut numbers = Numbers(6);
    (0..60).for_each(|_| change(&site, &mut numbers));
    let running = site.start(&["--workers", "2"]);
    let relations = ["gold", "mention_sentiment", "users"];
    let mut followers: Vec<_> = relations
        .iter()
        .map(|relation| subscribe(&running, relation))
        .collect();
    for _ in 0..5 {
        (0..40).for_each(|_| change(&site, &mut numbers));
        for (relation, (_, rows)) in relations.iter().zip(&followers) {
            running.wait_for(relation, || {
                *rows.lock().unwrap() == rows_of(&running, relation)
            });
        }
    }
    for (child, _) in &mut followers {
        child.kill().unwrap();
        child.wait().unwrap();
    }
    running.stop();
}

/// Server-sent events: each with its name, its id and its data.
struct Events(BufReader<TcpStream>);

impl Events {
    fn open(running: &Running, path: &str, headers: &str) -> Self {
        let mut stream = TcpStream::connect(("127.0.0.1", running.port())).unwrap();
        stream.set_read_timeout(Some(support::PATIENCE)).unwrap();
        write!(stream, "GET {path} HTTP/1.0\r\n{headers}\r\n").unwrap();
        let mut events = Self(BufReader::new(stream));
        while events.line() != "" {}
        events
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        assert!(self.0.read_line(&mut line).unwrap() > 0, "events end");
        line.trim_end().to_owned()
    }

    fn next(&mut self) -> (String, String, Value) {
        let (mut name, mut id, mut data) = (String::new(), String::new(), Value::Null);
        loop {
            let line = self.line();
            match line.split_once(": ") {
                Some(("event", text)) => text.clone_into(&mut name),
                Some(("id", text)) => text.clone_into(&mut id),
                Some(("data", text)) => data = serde_json::from_str(text).unwrap(),
                _ if !name.is_empty() => return (name, id, data),
                // A comment that keeps the connection alive.
                _ => {}
            }
        }
    }
}

#[test]
fn a_follower_goes_on_after_the_last_event_it_saw() {
    let site = Site::new("[model]\nenabled = false\n[tables]\nenabled = false\n");
    site.tweet("1.json", "@bo one");
    let running = site.start(&[]);
    let path = "/v1/relations/silver/changes?where=mention%20%3D%20%27bo%27";
    let mut events = Events::open(&running, path, "");
    let (name, _, snapshot) = events.next();
    assert_eq!(
        (name.as_str(), snapshot["rows"].as_array().unwrap().len()),
        ("snapshot", 1)
    );
    let (name, seen, none) = events.next();
    assert_eq!((name.as_str(), &none["changes"]), ("changes", &json!([])));
    drop(events);

    site.tweet("2.json", "@bo two @cy");
    std::fs::remove_file(site.path("tweets/1.json")).unwrap();
    let caught_up = "select count(*) from silver where key = '1.json'";
    running.wait_for("the removal", || running.number(caught_up) == 0);
    let mut events = Events::open(&running, path, &format!("Last-Event-ID: {seen}\r\n"));
    let mut changes = Vec::new();
    while changes.len() < 2 {
        let (name, _, data) = events.next();
        assert_eq!(name, "changes", "{data}");
        changes.extend(data["changes"].as_array().unwrap().clone());
    }
    changes.sort_by_key(|change| change["diff"].as_i64());
    let told = |change: &Value| {
        json!([
            change["diff"],
            change["row"]["key"],
            change["row"]["mention"]
        ])
    };
    let told: Vec<_> = changes.iter().map(told).collect();
    assert_eq!(
        told,
        [json!([-1, "1.json", "bo"]), json!([1, "2.json", "bo"])]
    );

    let (status, error) = running
        .get("/v1/relations/silver/changes?where=nix")
        .unwrap();
    assert!(status == 400 && error.contains("nix"), "{error}");
    running.stop();
}

#[test]
fn a_number_is_explained_by_as_many_rows() {
    for fold_case in [false, true] {
        let lines = format!("[mentions]\nfold_case = {fold_case}\n[tables]\nenabled = false\n");
        let site = Site::new(&lines);
        let mut numbers = Numbers(7);
        (0..90).for_each(|_| change(&site, &mut numbers));
        let running = site.start(&["--workers", "2"]);
        for row in running.sql("select * from mention_sentiment") {
            let mention = row["mention"].as_str().unwrap();
            for (column, value) in row.as_object().unwrap() {
                let Some(value) = value.as_i64() else {
                    continue;
                };
                let path =
                    format!("/v1/explain/mention_sentiment?mention={mention}&column={column}");
                let (status, answer) = running.get(&path).unwrap();
                assert_eq!(status, 200, "{answer}");
                let answer: Value = serde_json::from_str(&answer).unwrap();
                let rows = answer["rows"].as_array().unwrap();
                let counts =
                    [&answer["value"], &answer["count"], &json!(rows.len())].map(Value::as_i64);
                assert_eq!(counts, [Some(value); 3], "{column} of {mention}");
                for row in rows {
                    let text = row["text"].as_str().unwrap().to_lowercase();
                    assert!(
                        text.contains(&format!("@{}", mention.to_lowercase())),
                        "{row}"
                    );
                    assert_eq!(row["source_file"], row["key"], "{row}");
                }
            }
        }
        let shown = running.ask(&[
            "explain",
            "mention_sentiment",
            "--mention",
            "bo",
            "--column",
            "total",
            "--limit",
            "1",
        ]);
        assert!(
            shown.contains("(1 of ") && shown.contains("total of bo is"),
            "{shown}"
        );
        running.stop();
    }
}

#[test]
fn tokens_are_asked_for_but_health_is_told() {
    let site = Site::new("[model]\nenabled = false\n[tables]\nenabled = false\n");
    std::fs::write(site.path("tokens.txt"), "# of the test\nopen sesame\n").unwrap();
    let variable = [("ASSAY__SERVER__TOKENS_FILE", "tokens.txt".to_owned())];
    let running = site.start_with(&[], &variable);
    for path in ["/v1/relations", "/v1/status", "/v1/relations/gold/changes"] {
        assert_eq!(running.get(path).unwrap().0, 401, "{path}");
    }
    for path in ["/healthz", "/metrics", "/", "/dashboard.js"] {
        assert_eq!(running.get(path).unwrap().0, 200, "{path}");
    }
    let answer = running.ask(&["query", "select 1 as one", "--token", "open sesame"]);
    assert!(answer.contains("one"), "{answer}");
    running.stop();
}

#[test]
fn a_report_says_what_queries_say() {
    let site = Site::new("[tables]\nenabled = false\n");
    for number in 0..30 {
        let text = format!("@user{} hears something wonderful", number % 3);
        site.tweet(&format!("{number}.json"), &text);
    }
    // Neither a column that is empty nor a name that is markup upsets it.
    let odd = r#"{"user": "<b>ada</b>", "text": "@odd & strange", "date": "2009-04-07T05:19:45Z"}"#;
    std::fs::write(site.path("tweets").join("odd.json"), odd).unwrap();
    std::fs::write(site.path("tweets").join("broken.json"), "{").unwrap();
    let running = site.start(&[]);
    let folder = site.path("report");
    let server = format!("http://127.0.0.1:{}", running.port());
    let report = || {
        let mut command = assay();
        command.args(["report", "--server", &server, "--out"]);
        command.arg(&folder).output().unwrap()
    };
    let output = report();
    assert!(output.status.success(), "{output:?}");
    let page = std::fs::read_to_string(folder.join("index.html")).unwrap();
    for shown in [
        "<dt>Rows of bronze</dt><dd>31</dd>",
        "<dt>Rejects</dt><dd>1</dd>",
        "<th scope=\"row\">&lt;b&gt;ada&lt;/b&gt;</th><td>1</td><td>1</td><td>0</td>",
        "<th scope=\"row\">sentiment</th><td>1</td><td>3.2 %</td>",
        "<td>broken.json",
    ] {
        assert!(page.contains(shown), "{shown} is missing from {page}");
    }
    let mut charts = 0;
    for part in page.split("<img src=\"").skip(1) {
        let file = folder.join(part.split('"').next().unwrap());
        let image = std::io::BufReader::new(std::fs::File::open(&file).unwrap());
        let mut image = png::Decoder::new(image).read_info().unwrap();
        let mut pixels = vec![0; image.output_buffer_size().unwrap()];
        image.next_frame(&mut pixels).unwrap();
        let dark = pixels.iter().filter(|part| **part < 128).count();
        assert!(dark > 1_000, "{} is empty", file.display());
        charts += 1;
    }
    assert!(charts >= 5, "{page}");
    running.stop();
    let output = report();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && told.contains("cannot ask"),
        "{told}"
    );
}
