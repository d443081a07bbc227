//! Models that people bring, looked at and used.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on should fail there"
)]

mod support;

use std::collections::BTreeMap;
use std::path::Path;

use dataflows::pipelines::mentions::polarity;
use models::evaluation::Confusion;
use serde_json::{Value, json};
use support::models::model;
use support::{Site, assay};

/// Whether it went well, and what was said.
fn said(arguments: &[&str]) -> (bool, String) {
    let output = assay().arg("model").args(arguments).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(said).unwrap())
}

#[test]
fn a_model_is_checked_before_it_is_used() {
    let folder = tempfile::tempdir().unwrap();
    let labels = |names: [&'static str; 3]| {
        move |config: &mut Value| {
            config["id2label"] = json!({"0": names[0], "1": names[1], "2": names[2]});
        }
    };
    let check = |directory: &Path, more: &[&str]| {
        let mut arguments = vec!["check", directory.to_str().unwrap()];
        arguments.extend(more);
        said(&arguments)
    };
    let (well, told) = said(&["check"]);
    assert!(
        well && told.contains("negative, neutral, positive"),
        "{told}"
    );

    let unnamed = model(
        folder.path(),
        "unnamed",
        labels(["LABEL_0", "LABEL_1", "LABEL_2"]),
    );
    let (well, told) = check(&unnamed, &[]);
    assert!(
        well && told.contains("LABEL_1 (counted as neutral)"),
        "{told}"
    );

    let own = model(folder.path(), "own", labels(["bad", "so-so", "good"]));
    let (well, told) = check(&own, &[]);
    assert!(!well && told.contains("no label is counted"), "{told}");
    let (well, told) = check(&own, &["--label", "bad=negative", "--label", "good=POS"]);
    assert!(
        well && told.contains("negative, so-so (not counted), POS (counted as positive)"),
        "{told}"
    );
    let (well, told) = check(&own, &["--label", "awful=negative"]);
    assert!(
        !well && told.contains("has no label \"awful\"; it has [\"bad\", \"so-so\", \"good\"]"),
        "{told}"
    );

    type Change = fn(&mut Value);
    let wrong: [(&str, Change, &str); 3] = [
        (
            "gap",
            |config| config["id2label"] = json!({"0": "a", "2": "b"}),
            "must name 0, 1, 2 and so on",
        ),
        (
            "few",
            |config| config["id2label"] = json!({"0": "a"}),
            "shape [1, 3]; config.json names 1 labels",
        ),
        (
            "several",
            |config| config["problem_type"] = json!("multi_label_classification"),
            "several labels",
        ),
    ];
    for (name, change, message) in wrong {
        let (well, told) = check(&model(folder.path(), name, change), &[]);
        assert!(
            !well && told.contains(message) && told.contains(name),
            "{told}"
        );
    }
    std::fs::remove_file(own.join("tokenizer.json")).unwrap();
    let (well, told) = check(&own, &[]);
    assert!(
        !well && told.contains("tokenizer.json\": No such file"),
        "{told}"
    );
}

#[test]
fn a_runtime_that_is_not_there_is_refused() {
    let check = |runtime: &str| {
        let mut command = assay();
        command.args(["model", "check", "--runtime", runtime]);
        let output = command.env_remove("ORT_DYLIB_PATH").output().unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let told = check("torch");
    assert!(
        told.contains("tract") && told.contains("onnxruntime"),
        "{told}"
    );
    let told = check("onnxruntime");
    let why = match cfg!(feature = "onnxruntime") {
        true => "ORT_DYLIB_PATH must name",
        false => "--features onnxruntime",
    };
    assert!(told.contains(why), "{told}");
}

#[test]
fn a_model_is_measured_on_labelled_texts() {
    let folder = tempfile::tempdir().unwrap();
    let (data, image) = (
        folder.path().join("labelled.jsonl"),
        folder.path().join("confusion.png"),
    );
    let lines = [
        r#"{"text": "what a wonderful day", "sentiment": "positive"}"#,
        // Sentiment140's word for negative, and a repetition.
        r#"{"text": "this is terrible", "sentiment": 0}"#,
        r#"{"text": "this is terrible", "sentiment": "NEG"}"#,
        "",
        r#"{"text": "I hate it so much", "sentiment": "neutral"}"#,
    ];
    std::fs::write(&data, lines.join("\n")).unwrap();
    let (data, image) = (data.to_str().unwrap(), image.to_str().unwrap());
    let (well, told) = said(&["eval", "--data", data, "--png", image, "--json"]);
    assert!(well, "{told}");
    let told: Value = serde_json::from_str(&told).unwrap();
    assert_eq!(
        (&told["rows"], &told["accuracy"]),
        (&json!(4), &json!(0.75))
    );
    assert_eq!(
        told["confusion"]["negative"],
        json!({"negative": 2, "neutral": 0, "positive": 0})
    );
    assert_eq!(told["labels"]["negative"]["recall"], json!(1.0));
    assert_eq!(told["weighted"]["recall"], json!(0.75));
    let image = std::io::BufReader::new(std::fs::File::open(image).unwrap());
    assert_eq!(
        png::Decoder::new(image).read_info().unwrap().info().width,
        1_600
    );

    let (well, table) = said(&["eval", "--data", data]);
    assert!(
        well && table.contains("macro ") && table.contains("accuracy 0.7500"),
        "{table}"
    );
    let (well, told) = said(&["eval", "--data", data, "--given", "label"]);
    assert!(
        !well && told.contains("labelled.jsonl:1: no column \"label\"") && told.contains("--given"),
        "{told}"
    );
    std::fs::write(data, "{\"text\": \"a\", \"sentiment\": \"b\"}\nno JSON\n").unwrap();
    let (well, told) = said(&["eval", "--data", data]);
    assert!(
        !well && told.contains("labelled.jsonl:2: no JSON object"),
        "{told}"
    );
}

#[test]
fn labels_that_are_called_otherwise_are_counted() {
    let site = Site::new("[tables]\nenabled = false\n");
    let own = model(site.folder.path(), "own", |config| {
        config["id2label"] = json!({"0": "bad", "1": "so-so", "2": "good"});
    });
    site.tweet("1.json", "@bob what a wonderful day");
    site.tweet("2.json", "@bob this is terrible");
    let lines = "[tables]\nenabled = false\n[model]\ndirectory = \"own\"\n";
    let sql = "select predicted_negative * 10 + predicted_positive from mention_sentiment";
    for (labels, counted) in [
        ("", 0),
        (
            "[model.labels]\nbad = \"negative\"\ngood = \"positive\"\n",
            11,
        ),
    ] {
        site.configure(&format!("{lines}{labels}"));
        let running = site.start(&[]);
        running.wait_for("the counts", || running.number(sql) == counted);
        running.stop();
    }
    site.configure(&format!("{lines}[model.labels]\nawful = \"negative\"\n"));
    let output = assay()
        .arg("run")
        .arg(site.path("assay.toml"))
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && told.contains("has no label \"awful\""),
        "{told}"
    );
    drop(own);
}

#[test]
fn accuracy_is_told_as_labels_change() {
    let site = Site::new("[tables]\nenabled = false\n");
    site.tweet("1.json", "@bob what a wonderful day");
    site.tweet("2.json", "@bob this is terrible");
    let running = site.start(&[]);
    let told = |gauge: &str| {
        let (_, metrics) = running.get("/metrics").unwrap();
        let line = metrics.lines().find(|line| line.starts_with(gauge));
        line.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
    };
    // All are given as positive.
    running.wait_for("half", || told("assay_model_accuracy_ratio") == Some(0.5));
    let corrected = r#"{"user": "ada", "text": "@bob this is terrible", "date": "2009-04-07T05:19:45Z", "sentiment": "negative"}"#;
    std::fs::write(site.path("tweets").join("2.json"), corrected).unwrap();
    running.wait_for("all", || told("assay_model_accuracy_ratio") == Some(1.0));
    running.stop();
}

#[test]
fn views_tell_how_good_the_model_is() {
    let site = Site::new("");
    let moods = [
        "what a wonderful day",
        "this is terrible",
        "it is what it is",
    ];
    // Written in several ways, and often not what a model would say.
    let given = ["POS", "negative", "2", "positive"];
    for number in 0..60 {
        let tweet = json!({
            "date": format!("Mon Apr {:02} 22:19:45 UTC 2009", 6 + number % 3),
            "user": "ada",
            "text": format!("@user{} {}, number {number}", number % 5, moods[number % 3]),
            "sentiment": given[number % 4],
        });
        let path = site.path("tweets").join(format!("{number}.json"));
        std::fs::write(path, tweet.to_string()).unwrap();
    }
    let running = site.start(&["--workers", "2"]);
    running.wait_for("all rows", || {
        running.number("select count(*) from gold") == 60
    });

    let mut all = Confusion::default();
    let mut by_mention: BTreeMap<String, Confusion> = BTreeMap::new();
    let mut by_day: BTreeMap<String, Confusion> = BTreeMap::new();
    let rows =
        running.sql("select mention, \"timestamp\", sentiment, predicted_sentiment from gold");
    for row in rows {
        let text = |name: &str| row[name].as_str().unwrap().to_owned();
        let given = polarity(&text("sentiment")).unwrap().name();
        let predicted = polarity(&text("predicted_sentiment")).unwrap().name();
        let day = text("timestamp")[..10].to_owned();
        let (mention, day) = (by_mention.entry(text("mention")), by_day.entry(day));
        for confusion in [&mut all, mention.or_default(), day.or_default()] {
            confusion.add(given, predicted, 1);
        }
    }
    let near = |row: &Value, name: &str, expected: f64| {
        let found = row[name].as_f64().unwrap();
        assert!(
            (found - expected).abs() < 1e-9,
            "{name} is {found}, not {expected}: {row}"
        );
    };
    let by_label = running.sql("select * from accuracy_by_label order by label");
    assert_eq!(by_label.len(), all.scores().len());
    for (row, scores) in by_label.iter().zip(all.scores()) {
        assert_eq!(
            (&row["label"], &row["rows"]),
            (&json!(scores.label), &json!(scores.given))
        );
        near(row, "precision", scores.precision);
        near(row, "recall", scores.recall);
        near(row, "f1", scores.f1);
    }
    let row = &running.sql("select * from accuracy_by_model")[0];
    near(row, "accuracy", all.accuracy());
    for (name, scores) in [("macro", all.mean()), ("weighted", all.weighted_mean())] {
        near(row, &format!("{name}_precision"), scores.precision);
        near(row, &format!("{name}_recall"), scores.recall);
        near(row, &format!("{name}_f1"), scores.f1);
    }
    for (view, key, expected) in [
        ("accuracy_by_mention", "mention", by_mention),
        ("accuracy_by_day", "day", by_day),
    ] {
        let rows = running.sql(&format!("select * from {view} order by {key}"));
        assert_eq!(rows.len(), expected.len(), "{view}");
        for (row, (key_of_row, confusion)) in rows.iter().zip(&expected) {
            assert!(
                row[key].as_str().unwrap().starts_with(key_of_row.as_str()),
                "{row}"
            );
            near(row, "accuracy", confusion.accuracy());
        }
    }
    // A corrected label moves them at once.
    let before = running.sql("select hits from accuracy_by_mention where mention = 'user0'");
    site.tweet("0.json", "@user0 what a wonderful day, number 0");
    site.tweet("5.json", "@user0 what a wonderful day, number 5");
    running.wait_for("the corrected labels", || {
        running.sql("select hits from accuracy_by_mention where mention = 'user0'") != before
    });
    running.stop();
}
