//! The model of a running Assay is changed: everything moves in one epoch, and nothing is scored twice.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on should fail there"
)]

mod support;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::Value;
use support::models::{contrary, fussy, model};
use support::numbers::Numbers;
use support::{Running, Site, assay};

const MOODS: [&str; 4] = [
    "what a wonderful day",
    "this is terrible",
    "the meeting is at nine",
    "I hate waiting",
];

fn change(site: &Site, numbers: &mut Numbers) {
    let file = format!("{}.json", numbers.below(120));
    match numbers.below(4) {
        // It may not be there.
        0 => drop(std::fs::remove_file(site.path("tweets").join(file))),
        _ => {
            let mood = MOODS[numbers.below(4) as usize];
            let (user, number) = (numbers.below(30), numbers.below(60));
            site.tweet(&file, &format!("@user{user} {mood}, number {number}"));
        }
    }
}

fn ready(running: &Running) {
    running.wait_for("readiness", || {
        let ready = running.get("/readyz");
        ready.is_some_and(|(status, _)| status == 200)
    });
}

/// How many texts models have scored since the start, on the process that was asked.
fn scored(running: &Running) -> u64 {
    let (_, metrics) = running.get("/metrics").unwrap();
    let count = metrics
        .lines()
        .find_map(|line| line.strip_prefix("assay_scored_texts_total "));
    count.map_or(0, |count| count.parse().unwrap())
}

/// Waits until all scores are in the tables.
fn kept(site: &Site, running: &Running) {
    let scores = running.number("select count(*) from scores") as usize;
    running.wait_for("a checkpoint", || site.tables()["scores"].len() == scores);
}

fn status(running: &Running) -> Value {
    let (_, told) = running.get("/v1/model").unwrap();
    serde_json::from_str(&told).unwrap()
}

/// What a command says that is refused.
fn refused(running: &Running, arguments: &[&str]) -> String {
    let server = format!("http://127.0.0.1:{}", running.port());
    let command = assay().args(arguments).args(["--server", &server]).output();
    let output = command.unwrap();
    assert!(!output.status.success(), "{output:?}");
    String::from_utf8(output.stderr).unwrap()
}

/// Labels by text, as a model says them.
fn labels(running: &Running, model: &str) -> Vec<(String, String)> {
    let sql = format!("select text, label from scores where model = '{model}' order by text");
    let text = |row: &Value, name: &str| row[name].as_str().unwrap().to_owned();
    let rows = running.sql(&sql);
    rows.iter()
        .map(|row| (text(row, "text"), text(row, "label")))
        .collect()
}

fn turned(label: &str) -> &str {
    match label {
        "positive" => "negative",
        "negative" => "positive",
        other => other,
    }
}

/// Looks again and again whether all rows are of one model, and all relations agree, until told to end; returns
/// how often it looked.
fn watch(running: &Running, done: &AtomicBool) -> usize {
    let sql = "select (select count(distinct model) from gold) as models, \
               (select count(*) from gold where predicted_sentiment = 'negative') as negative, \
               (select coalesce(sum(predicted_negative), 0) from mention_sentiment) as counted, \
               (select count(distinct model) from accuracy) as of_accuracy";
    let mut looks = 0;
    while !done.load(Ordering::Relaxed) {
        let row = &running.sql(sql)[0];
        assert_eq!(
            (&row["models"], &row["of_accuracy"]),
            (&1.into(), &1.into()),
            "{row}"
        );
        assert_eq!(row["negative"], row["counted"], "{row}");
        looks += 1;
        // The stream is to have the cores as well.
        std::thread::sleep(Duration::from_millis(20));
    }
    looks
}

fn the_model_is_changed_under_load(start: impl Fn(&Site) -> Running) {
    let site = Site::new("[tables]\ncheckpoint_interval_s = 1\n");
    let other = contrary(&site.path(""), "contrary");
    let mut numbers = Numbers(21);
    (0..200).for_each(|_| change(&site, &mut numbers));
    let running = start(&site);
    ready(&running);
    let before = status(&running)["fingerprint"].as_str().unwrap().to_owned();
    let planned = running.ask(&["model", "plan", other.to_str().unwrap()]);
    assert!(
        planned.contains("has scored 0") && planned.contains("keep their label"),
        "{planned}"
    );

    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watching = scope.spawn(|| watch(&running, &done));
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                change(&site, &mut numbers);
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        running.ask(&[
            "model",
            "set",
            "sentiment",
            other.to_str().unwrap(),
            "--wait",
        ]);
        assert_eq!(
            running.number(&format!(
                "select count(*) from gold where model = '{before}'"
            )),
            0
        );
        done.store(true, Ordering::Relaxed);
        assert!(watching.join().unwrap() > 5);
    });
    // When this has been read, so has all that came before it.
    site.tweet("last.json", "@user1 the last of all");
    let last = "select count(*) from gold where cleaned_text = 'the last of all'";
    running.wait_for("the last tweet", || running.number(last) == 1);
    let now = status(&running)["fingerprint"].as_str().unwrap().to_owned();
    assert_ne!(now, before);
    assert_eq!(
        running.number("select count(distinct model) from scores"),
        1
    );
    let chosen = labels(&running, &now);
    running.stop();

    // The choice holds, and nothing is scored again.
    let running = start(&site);
    ready(&running);
    assert_eq!(status(&running)["fingerprint"], now.as_str());
    assert_eq!(
        (labels(&running, &now), scored(&running)),
        (chosen.clone(), 0)
    );
    let refusal = refused(
        &running,
        &["model", "set", "sentiment", other.to_str().unwrap()],
    );
    assert!(refusal.contains("is the model already"), "{refusal}");
    running.stop();
    let verified = assay()
        .args(["tables", "verify"])
        .arg(site.path("assay.toml"))
        .output()
        .unwrap();
    let verified = String::from_utf8(verified.stdout).unwrap();
    assert!(verified.contains("every table holds"), "{verified}");

    // A configuration that names another model counts more.
    site.configure(&format!(
        "[model]\ndirectory = \"{}\"\nlabels = {{ neutral = \"NEU\" }}\n",
        other.display()
    ));
    let running = start(&site);
    ready(&running);
    let configured = status(&running)["fingerprint"].as_str().unwrap().to_owned();
    assert!(configured != now && configured != before);
    for ((_, label), (_, as_chosen)) in labels(&running, &configured).iter().zip(&chosen) {
        assert_eq!(
            label,
            if as_chosen == "neutral" {
                "NEU"
            } else {
                as_chosen
            }
        );
    }
    running.stop();
}

#[test]
fn the_model_is_changed_while_the_stream_goes_on() {
    the_model_is_changed_under_load(|site| site.start(&["--workers", "2"]));
}

#[test]
fn the_model_is_changed_on_several_processes_in_one_epoch() {
    the_model_is_changed_under_load(|site| site.launch(&["--processes", "2", "--workers", "1"]));
}

#[test]
fn a_shadow_is_looked_at_and_promoted_without_scoring_again() {
    let site = Site::new("[tables]\ncheckpoint_interval_s = 1\n");
    let other = contrary(&site.path(""), "contrary");
    let other = other.to_str().unwrap();
    let mut numbers = Numbers(23);
    (0..150).for_each(|_| change(&site, &mut numbers));
    let running = site.start(&["--workers", "2"]);
    ready(&running);
    let before = status(&running)["fingerprint"].as_str().unwrap().to_owned();
    running.ask(&["model", "shadow", other, "--wait"]);
    let shadow = status(&running)["candidate"]["fingerprint"]
        .as_str()
        .unwrap()
        .to_owned();
    assert_eq!(
        running.number(&format!(
            "select count(*) from gold where model <> '{before}'"
        )),
        0
    );
    let expected: Vec<_> = labels(&running, &before)
        .into_iter()
        .map(|(text, label)| (text, turned(&label).to_owned()))
        .collect();
    assert_eq!(labels(&running, &shadow), expected);
    let differ = "select count(*) from gold g join scores s on g.cleaned_text = s.text \
                  where s.model <> g.model and s.label <> g.predicted_sentiment";
    let differs = "select coalesce(sum(rows), 0) from model_agreement where not agrees";
    assert_eq!(running.number(differs), running.number(differ));
    assert!(running.number(differs) > 0);

    // Killed as soon as this is durable, it goes on where it was.
    kept(&site, &running);
    running.kill();
    let running = site.start(&["--workers", "1"]);
    ready(&running);
    running.wait_for("the candidate", || {
        status(&running)["candidate"]["begun"] == true
    });
    assert_eq!(
        (labels(&running, &shadow), scored(&running)),
        (expected.clone(), 0)
    );
    site.tweet(
        "more.json",
        "@user1 a text that came later, which is terrible",
    );
    running.wait_for("the new text", || {
        labels(&running, &shadow).len() > expected.len()
    });
    assert_eq!(scored(&running), 2);

    running.ask(&["model", "promote", "--wait"]);
    assert_eq!(scored(&running), 2);
    assert_eq!(labels(&running, &before), []);
    let verified = running.number(
        "select count(*) from gold g join scores s \
                                   on g.cleaned_text = s.text and g.predicted_sentiment = s.label",
    );
    assert_eq!(verified, running.number("select count(*) from gold"));
    assert_eq!(running.number("select count(*) from model_agreement"), 0);

    // One that is let go leaves nothing.
    let third = model(&site.path(""), "third", |config| {
        config["id2label"] = serde_json::json!({"0": "NEG", "1": "NEU", "2": "POS"});
    });
    running.ask(&["model", "shadow", third.to_str().unwrap(), "--wait"]);
    assert_eq!(
        running.number("select count(distinct model) from scores"),
        2
    );
    running.ask(&["model", "drop"]);
    running.wait_for("its end", || {
        running.number("select count(distinct model) from scores") == 1
    });
    let refusal = refused(&running, &["model", "promote"]);
    assert!(refusal.contains("no model is tried"), "{refusal}");
    running.stop();
}

#[test]
fn a_model_that_cannot_be_used_leaves_the_old_one() {
    let site = Site::new("");
    site.tweet("one.json", "@user1 what a wonderful day");
    let running = site.start(&[]);
    ready(&running);
    let before = status(&running)["fingerprint"].clone();
    let missing = site.path("missing");
    let refusal = refused(
        &running,
        &["model", "set", "sentiment", missing.to_str().unwrap()],
    );
    assert!(
        refusal.contains("cannot read") && refusal.contains("config.json"),
        "{refusal}"
    );
    let unfit = model(&site.path(""), "unfit", |config| {
        config["id2label"] = serde_json::json!({"0": "only"});
    });
    let refusal = refused(&running, &["model", "shadow", unfit.to_str().unwrap()]);
    assert!(refusal.contains("config.json names 1 labels"), "{refusal}");

    // The contrary of it is fine, and is let go again.
    let fine = contrary(&site.path(""), "fine");
    let told = status(&running);
    assert_eq!(
        (told["fingerprint"].clone(), told["candidate"].clone()),
        (before.clone(), Value::Null)
    );
    running.ask(&["model", "shadow", fine.to_str().unwrap(), "--wait"]);
    running.ask(&["model", "drop"]);
    assert_eq!(status(&running)["fingerprint"], before);
    running.stop();
}

const BURST: &str = "[tables]\ncheckpoint_interval_s = 1\n[model]\nthreads = 1\n\
                     [model.fast]\nenabled = true\nwaiting_texts = 20\n";

/// All rows of gold, without the model that scored them.
fn gold(running: &Running) -> Vec<Value> {
    running.sql("select * from gold order by key, mention")
}

#[test]
fn in_a_burst_a_fast_model_answers_and_the_model_replaces_its_scores() {
    let site = Site::new(BURST);
    let mut numbers = Numbers(29);
    for number in 0..400 {
        let mood = MOODS[numbers.below(4) as usize];
        site.tweet(
            &format!("{number}.json"),
            &format!("@user{} {mood}, number {number}", number % 30),
        );
    }
    let provisional = "select count(*) from gold where tier = 0";
    let agree = "select count(*) from gold g join scores s on g.cleaned_text = s.text \
                 where g.tier = s.tier and g.model = s.model and g.predicted_sentiment = s.label";

    // All texts are there at once, most of them with the fast model's score; and so they are when it goes on.
    let running = site.start(&["--workers", "2"]);
    running.wait_for("all tweets", || {
        running.number("select count(*) from gold") == 400
    });
    assert!(running.number(provisional) > 200);
    assert_eq!(running.number(agree), 400);
    kept(&site, &running);
    running.kill();
    let verify = || {
        let mut verify = assay();
        let output = verify
            .args(["tables", "verify"])
            .arg(site.path("assay.toml"))
            .output();
        String::from_utf8(output.unwrap().stdout).unwrap()
    };
    assert!(verify().contains("every table holds"), "{}", verify());
    let running = site.start(&["--workers", "1"]);
    ready(&running);
    assert_eq!(running.number("select count(*) from gold"), 400);
    let waiting = running.number(provisional);
    assert!(waiting > 0);

    // A stop does not wait for the model; the end of the source does.
    running.stop();
    assert!(verify().contains("every table holds"), "{}", verify());
    site.run(&["--until-idle"]);
    let running = site.start(&[]);
    ready(&running);
    assert_eq!((running.number(provisional), scored(&running)), (0, 0));
    assert_eq!(running.number(agree), 400);
    let in_the_end = gold(&running);
    running.stop();

    // As without bursts.
    let plain = Site::new("");
    for entry in std::fs::read_dir(site.path("tweets")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, plain.path("tweets").join(path.file_name().unwrap())).unwrap();
    }
    let running = plain.start(&[]);
    running.wait_for("all tweets", || {
        running.number("select count(*) from gold") == 400
    });
    assert_eq!(gold(&running), in_the_end);
    running.stop();
}

#[test]
fn a_model_that_fails_later_leaves_the_old_one() {
    let site = Site::new("");
    site.tweet("one.json", "@user1 what a wonderful day");
    let running = site.start(&[]);
    ready(&running);
    let before = status(&running)["fingerprint"].clone();
    let candidate = fussy(&site.path(""), "fussy");
    let candidate = candidate.to_str().unwrap();
    running.ask(&["model", "shadow", candidate, "--wait"]);
    site.tweet("two.json", "@user2 there is a \u{2603} in the garden");
    running.wait_for("its end", || status(&running)["failure"].is_string());
    running.wait_for("the tweet", || {
        running.number("select count(*) from gold") == 2
    });
    assert_eq!(status(&running)["fingerprint"], before);
    assert_eq!(status(&running)["candidate"], Value::Null);
    running.wait_for("no scores of it", || {
        running.number("select count(distinct model) from scores") == 1
    });
    let refusal = refused(
        &running,
        &["model", "set", "sentiment", candidate, "--wait"],
    );
    assert!(refusal.contains("the model stays as it was"), "{refusal}");
    running.stop();
}

#[test]
fn a_text_that_the_model_cannot_score_stops_nothing_and_is_tried_again() {
    let site = Site::new("");
    let model = fussy(&site.path(""), "fussy");
    site.configure(&format!("[model]\ndirectory = \"{}\"\n", model.display()));
    site.tweet("one.json", "@user1 what a wonderful day");
    site.tweet("two.json", "@user2 and @user2, there is a \u{2603}");
    let labels = |running: &Running| {
        running.wait_for("both", || running.number("select count(*) from gold") == 3);
        let rows = running.sql("select predicted_sentiment from gold order by key");
        let label = |row: &Value| row["predicted_sentiment"].as_str().unwrap().to_owned();
        rows.iter().map(label).collect::<Vec<_>>()
    };
    for _ in 0..2 {
        let running = site.start(&[]);
        assert_eq!(labels(&running), ["positive", "", ""]);
        let rejects = running.sql("select key, stage from rejects");
        assert_eq!(
            rejects,
            [serde_json::json!({"key": "two.json", "stage": "score"})]
        );
        let (_, metrics) = running.get("/metrics").unwrap();
        assert!(
            metrics.contains("assay_unscorable_texts_total 1"),
            "{metrics}"
        );
        running.stop();
    }
    site.configure("");
    let running = site.start(&[]);
    let labels = labels(&running);
    assert!(
        labels[0] == "positive" && !labels[1].is_empty(),
        "{labels:?}"
    );
    assert_eq!(running.number("select count(*) from rejects"), 0);
    running.stop();
}
