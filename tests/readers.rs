//! What others read from the tables is what Assay answers: Spark, Polars and delta-rs count and sum
//! the same rows, after updates and deletes and after small files have been compacted.
//!
//! Needs what `cargo xtask test` fetches.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on should fail there"
)]

mod support;

use std::process::Command;

use serde_json::Value;
use support::{Running, Site, assay};

/// Changes tweets and waits until their tables have heard of it.
fn change(site: &Site, running: &Running, round: usize) {
    for number in (round..400).step_by(7) {
        let name = format!("{number:06}.json");
        match number % 3 {
            0 => drop(std::fs::remove_file(site.path("tweets").join(name))),
            _ => site.tweet(&name, &format!("@bo @cy in round {round}, {}", number % 11)),
        }
    }
    let text = format!("@bo marks round {round}");
    site.tweet("marker.json", &text);
    let sql = format!("select count(*) from bronze where text = '{text}'");
    running.wait_for("the round", || running.number(&sql) == 1);
    let epoch = running.answer(&sql)["epoch"].as_u64().unwrap();
    running.wait_for("its checkpoint", || running.checkpointed() >= epoch);
}

#[test]
fn others_read_what_assay_answers() {
    let variable = |name: &str| std::env::var(name).expect("set by `cargo xtask test`");
    let site = Site::new("[tables]\ncheckpoint_interval_s = 1\n");
    let tweets = site.path("tweets").display().to_string();
    let generated = assay()
        .args(["generate", "tweets", "--count", "400", "--files", &tweets])
        .status();
    assert!(generated.unwrap().success());
    let running = site.start(&[]);
    for round in 0..12 {
        change(&site, &running, round);
    }
    let vectors = std::fs::read_dir(site.path("tables/gold")).unwrap();
    let vectors = vectors.filter(|file| {
        let name = file.as_ref().unwrap().file_name();
        name.to_string_lossy().starts_with("deletion_vector_")
    });
    assert!(vectors.count() > 0, "rows were removed by deletion vectors");

    let output = Command::new(variable("ASSAY_TEST_PYTHON"))
        .arg(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/readers/read.py"
        ))
        .arg(site.path("tables"))
        .arg(variable("ASSAY_TEST_SPARK_JARS"))
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let read: Value = serde_json::from_slice(&output.stdout).unwrap();
    for (relation, question) in read["questions"].as_object().unwrap() {
        let own = &running.answer(question.as_str().unwrap());
        let columns = own["columns"].as_array().unwrap().iter();
        let row = &own["rows"][0];
        let own: Vec<_> = columns
            .map(|column| &row[column.as_str().or(column["name"].as_str()).unwrap()])
            .collect();
        for (reader, answers) in read["answers"].as_object().unwrap() {
            let theirs: Vec<_> = answers[relation].as_array().unwrap().iter().collect();
            assert_eq!(theirs, own, "{reader} on {relation}");
        }
    }
    running.stop();
}
