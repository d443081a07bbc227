//! Tables in a bucket: the same promises as in a folder, on a server that speaks S3.
//!
//! Needs what `cargo xtask test` fetches.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on should fail there"
)]

mod support;

use support::buckets::Bucket;
use support::{Running, Site, assay};

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
    let start =
        |workers: &str| site.start_with(&["--workers", workers], &bucket.environment(bucket.port));

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
        .envs(bucket.environment(bucket.port))
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
