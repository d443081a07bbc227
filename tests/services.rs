//! The whole line against real services: rows of PostgreSQL, through Debezium and Kafka, into the
//! tables. Needs `cargo xtask services up`; `cargo xtask test` brings it along.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on should fail there"
)]

mod support;

use std::collections::BTreeMap;
use std::path::Path;

use assay::generate::tweets::GeneratedTweet;
use serde_json::Value;
use support::Site;
use support::services::{Rows, Services};

const NO_MODEL: &str = "[model]\nenabled = false\n[tables]\ncheckpoint_interval_s = 1\n";

const OF_READING: [&str; 4] = ["source_file", "processing_time", "position", "first_seen"];

fn tables(site: &Site) -> BTreeMap<&'static str, Vec<String>> {
    support::tables(&site.path("tables"), &OF_READING)
}

#[test]
fn changes_in_postgres_reach_the_tables_whatever_is_killed() {
    let services = Services::find();
    let mut rows = Rows::new(&services, "changes");
    rows.change(300);
    let connector = services.capture("changes", true);
    let site = services.site(&connector.topic(), NO_MODEL);

    let running = site.start(&["--workers", "2"]);
    running.wait_for("the snapshot", || count(&running) == rows.rows.len());
    rows.change(200);
    // Once the stream has followed, it is killed in the middle of more.
    running.wait_for("the changes", || count(&running) == rows.rows.len());
    rows.change(200);
    running.kill();
    rows.change(200);
    let running = site.start(&["--workers", "3"]);
    // A row that comes last tells that all before it have come: its partition alone is not enough, so
    // one goes to each key of many.
    let last: Vec<_> = (0..60).map(|n| (1_000_000 + n, Some(marker(n)))).collect();
    rows.write(&last);
    running.wait_for("the last rows", || {
        running.number("select count(*) from users where \"user\" = 'marker' and tweets = 60") == 1
    });
    running.stop();

    let interrupted = tables(&site);
    assert_eq!(interrupted["bronze"], rows.bronze());
    let fresh = services.site(&connector.topic(), NO_MODEL);
    fresh.run(&["--until-idle"]);
    assert_eq!(tables(&fresh), interrupted);
}

fn count(running: &support::Running) -> usize {
    running.number("select count(*) from bronze") as usize
}

fn marker(number: i64) -> GeneratedTweet {
    GeneratedTweet {
        date: "Mon Apr 06 22:19:45 PDT 2009".to_owned(),
        user: "marker".to_owned(),
        text: format!("@last one {number}"),
        sentiment: "neutral".to_owned(),
    }
}

#[test]
fn updates_and_deletes_undo_what_was_counted() {
    let services = Services::find();
    let mut rows = Rows::new(&services, "undo");
    let tweet = |text: &str, sentiment: &str| {
        let marker = marker(0);
        Some(GeneratedTweet {
            text: text.to_owned(),
            sentiment: sentiment.to_owned(),
            ..marker
        })
    };
    rows.write(&[
        (1, tweet("@bo hello", "positive")),
        (2, tweet("@bo and @cy", "negative")),
    ]);
    let connector = services.capture("undo", false);
    let site = services.site(&connector.topic(), "");
    let running = site.start(&[]);
    let counts = |mention: &str| {
        let sql = format!(
            "select positive, negative, neutral, predicted_positive + predicted_negative + predicted_neutral as all \
             from mention_sentiment where mention = '{mention}'"
        );
        let numbers = |row: &Value| {
            ["positive", "negative", "neutral", "all"].map(|name| row[name].as_i64().unwrap())
        };
        running.sql(&sql).first().map(numbers)
    };
    running.wait_for("the snapshot", || {
        counts("bo") == Some([1, 1, 0, 2]) && counts("cy") == Some([0, 1, 0, 1])
    });
    rows.write(&[(3, tweet("@cy is here", "positive"))]);
    running.wait_for("the insert", || counts("cy") == Some([1, 1, 0, 2]));
    rows.write(&[(2, tweet("@bo alone", "neutral"))]);
    running.wait_for("the update", || {
        counts("bo") == Some([1, 0, 1, 2]) && counts("cy") == Some([1, 0, 0, 1])
    });
    rows.write(&[(3, None), (1, None)]);
    running.wait_for("the deletes", || {
        counts("cy").is_none() && counts("bo") == Some([0, 0, 1, 1])
    });
    // The group is told how far the tables are, for those who watch its lag.
    let (_, metrics) = running.get("/metrics").unwrap();
    assert!(
        metrics.contains("assay_source_lag_records{partition=\"undo.public.undo/0\"}"),
        "{metrics}"
    );
    running.stop();
}

#[test]
fn real_tweets_give_the_same_tables_through_files_and_through_kafka() {
    let services = Services::find();
    let real =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data/tweets/tweets_1000.jsonl");
    let tweets: Vec<GeneratedTweet> = match std::fs::read_to_string(&real) {
        Ok(text) => text.lines().map(to_tweet).collect(),
        Err(_) => {
            println!("the real tweets are not here, so invented ones take their place");
            assay::generate::tweets::TweetGenerator::new(5)
                .take(1_000)
                .collect()
        }
    };
    let by_file = Site::new("");
    let lines: String = tweets.iter().map(|tweet| tweet.to_json() + "\n").collect();
    std::fs::write(by_file.path("tweets/all.jsonl"), lines).unwrap();
    by_file.run(&["--until-idle"]);

    let mut rows = Rows::new(&services, "tweets");
    let numbered = (1..).zip(tweets.iter().cloned().map(Some));
    rows.write(&numbered.collect::<Vec<_>>());
    let connector = services.capture("tweets", false);
    let by_kafka = services.site(&connector.topic(), "");
    let running = by_kafka.start(&["--workers", "2"]);
    running.wait_for("all tweets", || count(&running) == tweets.len());
    running.stop();

    // A file's rows are keyed by its line, a table's rows by their id: the line's number.
    let renamed = |mut tables: BTreeMap<&'static str, Vec<String>>| {
        for lines in tables.values_mut() {
            lines
                .iter_mut()
                .for_each(|line| *line = line.replace("key=\"all.jsonl#", "key=\""));
            lines.sort();
        }
        tables
    };
    assert_eq!(renamed(tables(&by_kafka)), renamed(tables(&by_file)));
}

fn to_tweet(line: &str) -> GeneratedTweet {
    let row: Value = serde_json::from_str(line).unwrap();
    let text = |name: &str| row[name].as_str().unwrap_or_default().replace('\0', "");
    GeneratedTweet {
        date: text("date"),
        user: text("user"),
        text: text("text"),
        sentiment: text("sentiment"),
    }
}

#[test]
fn a_missing_topic_is_told_with_exit_code_2() {
    let services = Services::find();
    let site = services.site("no.such.topic", NO_MODEL);
    let output = support::assay()
        .arg("run")
        .arg(site.path("assay.toml"))
        .output()
        .unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{message}");
    assert!(
        message.contains("kafka topic \"no.such.topic\" does not exist"),
        "{message}"
    );
}
