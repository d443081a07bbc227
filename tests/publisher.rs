//! A topic that publishes a relation says what the relation says, each change once, whatever happens.
//!
//! Needs the services of `cargo xtask test`.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on should fail there"
)]

mod support;

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;
use support::Site;
use support::numbers::Numbers;
use support::topics::{breaks, broker, last, messages, relation, sink};

#[test]
fn a_topic_tells_every_change_once_over_changes_and_kills() {
    const TOPIC: &str = "published_changes";
    let tables = "[tables]\ncheckpoint_interval_s = 1\n[model]\nenabled = false\n";
    let site = Site::new(&format!(
        "{tables}{}",
        sink("mention_sentiment", TOPIC, "debezium")
    ));
    let mut numbers = Numbers(5);
    (0..100).for_each(|_| site.change(&mut numbers));
    for _ in 0..4 {
        let running = site.start(&[]);
        let equal = || {
            let last = last(&messages(TOPIC)).into_iter();
            let rows: BTreeMap<_, _> = last
                .map(|(key, value)| (key, value["after"].clone()))
                .collect();
            rows == relation(&running, "mention_sentiment", &["mention"])
        };
        running.wait_for("the topic", equal);
        for _ in 0..5 {
            (0..10).for_each(|_| site.change(&mut numbers));
            running.wait_for("the topic to follow", equal);
        }
        // Changes may be on their way when it dies.
        (0..10).for_each(|_| site.change(&mut numbers));
        running.kill();
    }
    let all = messages(TOPIC);
    assert!(all.len() > 100, "{all:?}");
    assert_eq!(breaks(&all), Vec::<String>::new());
    // What the last one left unsaid is said, and after that there is nothing to say.
    site.run(&["--until-idle"]);
    let all = messages(TOPIC);
    site.run(&["--until-idle"]);
    assert_eq!(messages(TOPIC).len(), all.len());
    assert_eq!(breaks(&all), Vec::<String>::new());
}

#[test]
fn an_epoch_is_seen_whole_or_not_at_all() {
    const TOPIC: &str = "published_epochs";
    let settings = "[tables]\nenabled = false\n[model]\nenabled = false\n";
    let site = Site::new(&format!(
        "{settings}{}",
        sink("mention_sentiment", TOPIC, "upsert")
    ));
    let running = site.start(&[]);
    // Each version of the file mentions ten people, ten others each time.
    for version in 0..20 {
        let names = (0..10).map(|number| format!("@v{version}_{number} "));
        site.tweet("one.json", &names.collect::<String>());
        running.wait_for("the version", || {
            let last = last(&messages(TOPIC));
            let versions: BTreeSet<_> = last
                .values()
                .map(|row| {
                    let mention = row["mention"].as_str().unwrap();
                    mention.split('_').next().unwrap().to_owned()
                })
                .collect();
            assert!(
                [0, 10].contains(&last.len()) && versions.len() < 2,
                "{last:?}"
            );
            versions.contains(&format!("v{version}"))
        });
    }
    running.stop();
}

#[test]
fn assay_reads_what_assay_publishes() {
    for (format, topic) in [
        ("debezium", "published_bronze"),
        ("upsert", "published_rows"),
    ] {
        let site = Site::new(&sink("bronze", topic, format));
        let mut numbers = Numbers(7);
        (0..100).for_each(|_| site.change(&mut numbers));
        let first = site.start(&[]);
        first.wait_for("the topic", || !messages(topic).is_empty());
        let reader = Site::new(&format!(
            "[source]\nkind = \"kafka\"\n[source.columns]\ndate = \"date\"\n[source.kafka]\n\
             topics = [\"{topic}\"]\nformat = \"{format}\"\n[source.kafka.properties]\n\
             \"bootstrap.servers\" = \"{}\"\n[tables]\nenabled = false\n",
            broker()
        ));
        let second = reader.start(&[]);
        let sql = "select mention, total, negative, predicted_negative from mention_sentiment order by mention";
        for _ in 0..5 {
            (0..20).for_each(|_| site.change(&mut numbers));
            second.wait_for("the same counts", || {
                let (first, second) = (first.sql(sql), second.sql(sql));
                !first.is_empty() && first == second
            });
        }
        assert_eq!(second.number("select count(*) from rejects"), 0);
        first.stop();
        second.stop();
    }
}

#[test]
fn a_topic_of_another_is_left_alone() {
    const TOPIC: &str = "published_users";
    let settings = "[tables]\nenabled = false\n[model]\nenabled = false\n";
    let site = Site::new(&format!("{settings}{}", sink("users", TOPIC, "upsert")));
    site.tweet("1.json", "@bob hears");
    let first = site.start(&[]);
    first.wait_for("the topic", || messages(TOPIC).len() == 1);
    let ada = json!({"user": "ada", "tweets": 1, "with_mention": 1, "without_mention": 0});
    assert_eq!(
        last(&messages(TOPIC)),
        BTreeMap::from([(json!({"user": "ada"}).to_string(), ada)])
    );

    // Another relation does not fit.
    let lines = sink("accuracy", TOPIC, "upsert").replace(
        "[sink.kafka.properties]\n",
        "[sink.kafka.properties]\n\"transactional.id\" = \"other\"\n",
    );
    let foreign = Site::new(&format!("{settings}{lines}"));
    foreign.tweet("1.json", "@bob hears");
    let second = foreign.start(&[]);
    second.wait_for("a refusal", || {
        second
            .log()
            .contains("published_users\" holds messages that are no rows of accuracy")
    });
    second.stop();

    // One who takes over is left to it.
    let successor = Site::new(&format!("{settings}{}", sink("users", TOPIC, "upsert")));
    successor.tweet("1.json", "@bob hears");
    successor.tweet("2.json", "@bob hears more");
    let third = successor.start(&[]);
    third.wait_for("the take-over", || messages(TOPIC).len() == 2);
    site.tweet("3.json", "@bob hears nothing");
    first.wait_for("giving up", || {
        first.log().contains("another Assay has taken over")
    });
    assert_eq!(messages(TOPIC).len(), 2);
    third.stop();
    first.stop();
}
