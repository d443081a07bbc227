//! Tables in a bucket: the same promises as in a folder, on a server that speaks S3.
//!
//! Needs what `cargo xtask test` fetches.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on should fail there"
)]

mod support;

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use support::{PATIENCE, Running, Site, assay, free_port, request};

/// A server with one bucket, in memory; gone when dropped.
struct Bucket {
    server: Child,
    port: u16,
}

impl Bucket {
    fn start() -> Self {
        let python = std::env::var("ASSAY_TEST_PYTHON").expect("set by `cargo xtask test`");
        let port = free_port();
        let server = Command::new(Path::new(&python).with_file_name("moto_server"))
            .args(["-H", "127.0.0.1", "-p", &port.to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let bucket = Self { server, port };
        let started = Instant::now();
        while request(port, "PUT", "/kept", "").is_none_or(|(status, _)| status != 200) {
            assert!(
                started.elapsed() < PATIENCE,
                "waited in vain for the server"
            );
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        bucket
    }

    /// The usual variables.
    fn environment(&self) -> [(&'static str, String); 5] {
        [
            (
                "AWS_ENDPOINT_URL",
                format!("http://127.0.0.1:{}", self.port),
            ),
            ("AWS_ALLOW_HTTP", "true".to_owned()),
            ("AWS_REGION", "us-east-1".to_owned()),
            ("AWS_ACCESS_KEY_ID", "anyone".to_owned()),
            ("AWS_SECRET_ACCESS_KEY", "anything".to_owned()),
        ]
    }
}

impl Drop for Bucket {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

const LINES: &str = "[model]\nenabled = false\n[tables]\npath = \"s3://kept/some/tables\"\n\
                     checkpoint_interval_s = 1\n";

fn sums(running: &Running) -> Vec<serde_json::Value> {
    running.sql(
        "select count(*), sum(total), sum(positive), min(min_timestamp) from mention_sentiment",
    )
}

#[test]
fn tables_in_a_bucket_survive_kills_and_refuse_a_second_writer() {
    let bucket = Bucket::start();
    let site = Site::new(LINES);
    let tweets = site.path("tweets").display().to_string();
    let generated = assay()
        .args(["generate", "tweets", "--count", "200", "--files", &tweets])
        .status();
    assert!(generated.unwrap().success());
    let start = |workers: &str| site.start_with(&["--workers", workers], &bucket.environment());

    let running = start("2");
    for round in 0..3 {
        let text = format!("@bo in round {round}");
        for number in 1..30 {
            site.tweet(&format!("{number:06}.json"), &text);
        }
        let sql = format!("select count(*) from bronze where text = '{text}'");
        running.wait_for("the round", || running.number(&sql) == 29);
        let epoch = running.answer(&sql)["epoch"].as_u64().unwrap();
        running.wait_for("its checkpoint", || running.checkpointed() >= epoch);
    }
    let before = sums(&running);

    let second = assay()
        .arg("run")
        .arg(site.path("assay.toml"))
        .envs(bucket.environment())
        .env("ASSAY__SERVER__ENABLED", "false")
        .output()
        .unwrap();
    let message = String::from_utf8(second.stderr).unwrap();
    assert_eq!(second.status.code(), Some(2), "{message}");
    assert!(message.contains("written by another process"), "{message}");
    running.kill();

    // The source says nothing new, so what is answered is what the tables kept.
    let running = start("3");
    assert_eq!(sums(&running), before);
    let (_, metrics) = running.get("/metrics").unwrap();
    let differences = metrics
        .lines()
        .filter(|line| line.starts_with("assay_table_differences"));
    assert!(
        differences.clone().all(|line| line.ends_with(" 0")),
        "{differences:?}"
    );
    running.stop();
}
