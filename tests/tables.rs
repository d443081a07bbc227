//! What looks after tables: they are listed, checked, mended, made smaller, looked back on, forgotten
//! from and deleted.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on should fail there"
)]

mod support;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Output;
use std::time::{Duration, SystemTime};

use arrow::compute::concat_batches;
use connectors::delta::{Action, Deletes, Table, TablesFolder};
use support::{Site, assay};

const NO_MODEL: &str = "[model]\nenabled = false\n";

/// Runs a command about the tables of a site.
fn order(site: &Site, words: &[&str], rest: &[&str]) -> Output {
    let mut command = assay();
    command.args(words).arg(site.path("assay.toml")).args(rest);
    command.current_dir(site.folder.path()).output().unwrap()
}

/// What a command prints that succeeds, words parted by one blank.
fn lines(site: &Site, words: &[&str], rest: &[&str]) -> Vec<String> {
    let output = order(site, words, rest);
    assert!(output.status.success(), "{output:?}");
    let printed = String::from_utf8(output.stdout).unwrap();
    let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    printed.lines().map(words).collect()
}

fn row(rows: &[String], start: &str) -> String {
    let found = rows.iter().find(|row| row.starts_with(start));
    found.unwrap_or_else(|| panic!("{start}: {rows:?}")).clone()
}

/// The data files of all tables, or of one.
fn data_files(site: &Site, relation: &str) -> BTreeSet<PathBuf> {
    let mut files = BTreeSet::new();
    for folder in std::fs::read_dir(site.path("tables")).unwrap() {
        let folder = folder.unwrap().path();
        if folder.is_dir() && (relation.is_empty() || folder.ends_with(relation)) {
            let inside = std::fs::read_dir(folder).unwrap();
            let inside = inside.map(|entry| entry.unwrap().path());
            files.extend(inside.filter(|path| path.extension().is_some_and(|e| e == "parquet")));
        }
    }
    files
}

fn table(site: &Site, relation: &str) -> (tokio::runtime::Runtime, Table) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let folder = TablesFolder::open(site.path("tables").to_str().unwrap()).unwrap();
    let schemas = dataflows::pipelines::mentions::schemas();
    let (_, schema) = schemas.iter().find(|(name, _)| *name == relation).unwrap();
    let table = Table::open(&folder, relation, schema.clone(), Deletes::Vectors);
    let table = runtime.block_on(table).unwrap();
    (runtime, table)
}

#[test]
fn tables_are_listed_their_versions_told_and_their_waste_removed() {
    let site = Site::new(NO_MODEL);
    for number in 0..3 {
        site.tweet(&format!("{number}.json"), "hi @bo");
    }
    site.run(&["--until-idle"]);
    std::fs::remove_file(site.path("tweets/0.json")).unwrap();
    site.run(&["--until-idle"]);
    let before = site.tables();
    // Two of three rows are left, one is marked, in one file.
    row(&lines(&site, &["tables", "list"], &[]), "bronze 2 2 1 1 ");
    let told = lines(&site, &["tables", "history"], &["gold"]);
    assert!(told.iter().all(|row| !row.starts_with("silver")));
    assert!(row(&told, "gold 0 ").ends_with("CREATE TABLE"), "{told:?}");
    assert!(
        row(&told, "gold 2 ").ends_with("STREAMING UPDATE"),
        "{told:?}"
    );

    // A file that no version needs goes once it is older than the history; what is needed stays.
    let stray = site.path("tables/gold/stray.parquet");
    std::fs::write(&stray, "left by a crash").unwrap();
    let vacuum = |rest: &[&str]| row(&lines(&site, &["tables", "vacuum"], rest), "gold");
    assert_eq!(vacuum(&[]), "gold 0 0");
    let old = SystemTime::now() - Duration::from_secs(2 * 24 * 3_600);
    std::fs::File::open(&stray)
        .unwrap()
        .set_modified(old)
        .unwrap();
    assert_eq!(vacuum(&["--dry-run"]), "gold 1 15");
    assert_eq!(vacuum(&[]), "gold 1 15");
    assert!(!stray.exists());
    assert_eq!(site.tables(), before);
}

/// Sixty tweets, a third of which change or go, in several checkpoints.
fn changed_site(lines: &str) -> Site {
    let site = Site::new(lines);
    for round in 0..4 {
        for number in 0..15 {
            site.tweet(
                &format!("{round}-{number}.json"),
                &format!("hi @bo and @cy {number}"),
            );
        }
        if round > 0 {
            site.tweet(
                &format!("{}-0.json", round - 1),
                &format!("changed @bo {round}"),
            );
            std::fs::remove_file(site.path(&format!("tweets/{}-1.json", round - 1))).unwrap();
        }
        site.run(&["--until-idle"]);
    }
    site
}

#[test]
fn tables_are_written_anew_and_hold_the_same() {
    let site = changed_site(NO_MODEL);
    let before = site.tables();
    assert!(data_files(&site, "bronze").len() >= 4);
    let optimized = lines(&site, &["tables", "optimize"], &[]);
    row(&optimized, "bronze 4 1");
    let listed = lines(&site, &["tables", "list"], &[]);
    let bronze = row(&listed, "bronze");
    let columns: Vec<_> = bronze.split(' ').collect();
    assert_eq!(columns[2..5], ["57", "0", "1"], "{bronze}");
    assert_eq!(site.tables(), before);
    // Rows are found where they are now.
    std::fs::remove_file(site.path("tweets/3-7.json")).unwrap();
    site.run(&["--until-idle"]);
    assert_eq!(site.tables()["bronze"].len(), 56);
    lines(&site, &["tables", "verify"], &[]);
}

#[test]
fn what_others_did_to_a_table_is_found_told_counted_and_mended() {
    let site = changed_site("[tables]\ncheckpoint_interval_s = 1\n");
    let verified = lines(&site, &["tables", "verify"], &["--rescore"]);
    assert_eq!(row(&verified, "gold"), "gold 111 0 0");
    let whole = site.tables();

    // Someone doubles a file of users, as another writer would.
    let (runtime, mut users) = table(&site, "users");
    let rows = runtime.block_on(users.rows()).unwrap();
    let rows = concat_batches(&users.schema(), &rows).unwrap();
    let extra = runtime
        .block_on(users.data_files().append(&rows, false))
        .unwrap();
    let actions = vec![Action::Add(extra.entry)];
    runtime
        .block_on(users.commit("someone else", 1, actions))
        .unwrap();
    let output = order(&site, &["tables", "verify"], &[]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let printed = String::from_utf8(output.stdout).unwrap();
    assert!(printed.contains("users has too much: {"), "{printed}");

    // A file of gold is lost, and half of one of silver.
    let before = data_files(&site, "");
    let lost = data_files(&site, "gold").pop_first().unwrap();
    std::fs::remove_file(&lost).unwrap();
    let half = data_files(&site, "silver").pop_first().unwrap();
    let bytes = std::fs::read(&half).unwrap();
    std::fs::write(&half, &bytes[..bytes.len() / 2]).unwrap();
    let running = site.start(&[]);
    running.wait_for("the mended tables", || {
        let (_, metrics) = running.get("/metrics").unwrap();
        let counted = |relation| {
            let line = format!("assay_table_mended_files_total{{relation=\"{relation}\"}} 1");
            metrics.contains(&line)
        };
        ["users", "gold", "silver"].map(counted) == [true; 3] && running.checkpointed() > 0
    });
    running.stop();
    assert_eq!(site.tables(), whole);
    lines(&site, &["tables", "verify"], &[]);
    // Nothing was written but what was lost.
    let now = data_files(&site, "");
    let new: Vec<_> = now.difference(&before).collect();
    assert!(
        new.iter().all(|file| {
            let folder = file.parent().unwrap();
            folder.ends_with("gold") || folder.ends_with("silver")
        }),
        "{new:?}"
    );
}

#[test]
fn the_past_is_answered_and_compared() {
    let site = Site::new(&format!("{NO_MODEL}[tables]\ncheckpoint_interval_s = 1\n"));
    site.tweet("1.json", "hi @bo");
    site.tweet("2.json", "hi @cy");
    let running = site.start(&[]);
    running.wait_for("a checkpoint", || running.checkpointed() > 0);
    let first = running.checkpointed();
    site.tweet("1.json", "bye @bo");
    std::fs::remove_file(site.path("tweets/2.json")).unwrap();
    running.wait_for("the change", || {
        running.number("select count(*) from gold") == 1
    });
    running.wait_for("the next checkpoint", || running.checkpointed() > first);
    let server = format!("http://127.0.0.1:{}", site.port);
    let ask = |arguments: &[&str]| {
        let output = assay()
            .args(arguments)
            .args(["--server", &server])
            .output()
            .unwrap();
        (
            output.status.success(),
            String::from_utf8(output.stdout).unwrap() + &String::from_utf8_lossy(&output.stderr),
        )
    };
    let first = first.to_string();
    let sql = "select key, cleaned_text from gold order by key";
    let (_, then) = ask(&["query", "--at", &first, sql, "--json"]);
    assert!(
        then.contains(
            r#"[{"cleaned_text":"hi","key":"1.json"},{"cleaned_text":"hi","key":"2.json"}]"#
        ),
        "{then}"
    );
    let (_, then) = ask(&[
        "query",
        "--at",
        &first,
        "select count(*) as n from gold where key = '2.json'",
    ]);
    assert!(then.contains("\n1\n"), "{then}");
    let (_, now) = ask(&["query", "--at", "2100-01-01", sql, "--json"]);
    assert!(
        now.contains(r#"[{"cleaned_text":"bye","key":"1.json"}]"#),
        "{now}"
    );
    // Before the first checkpoint there was nothing.
    let (_, never) = ask(&[
        "query",
        "--at",
        "2009-04-06",
        "select count(*) as n from gold",
    ]);
    assert!(never.contains("\n0\n"), "{never}");

    let (_, diff) = ask(&["diff", "silver", "--from", &first, "--json"]);
    let diff: serde_json::Value = serde_json::from_str(&diff).unwrap();
    let changes: Vec<_> = diff["rows"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| {
            (
                row["diff"].as_i64().unwrap(),
                row["key"].as_str().unwrap(),
                row["cleaned_text"].as_str().unwrap(),
            )
        })
        .collect();
    assert_eq!(
        changes,
        [
            (1, "1.json", "bye"),
            (-1, "1.json", "hi"),
            (-1, "2.json", "hi")
        ]
    );
    let (ok, error) = ask(&["diff", "songs", "--from", &first]);
    assert!(!ok && error.contains("there is no relation"), "{error}");
    let (ok, error) = ask(&["query", "--at", "yesterday", sql]);
    assert!(!ok && error.contains("no epoch or time"), "{error}");
}

fn tweet_of(site: &Site, user: &str, name: &str, text: &str) {
    let json = serde_json::json!({
        "date": "Mon Apr 06 22:19:45 PDT 2009", "user": user, "text": text, "sentiment": "positive",
    });
    std::fs::write(site.path("tweets").join(name), json.to_string()).unwrap();
}

#[test]
fn a_person_is_forgotten_everywhere_and_a_receipt_says_so() {
    let site = Site::new("");
    let secret = "@bo nobody else would ever say such a thing about the weather";
    tweet_of(&site, "eve", "eve-1.json", secret);
    tweet_of(&site, "eve", "eve-2.json", "@bo hello");
    tweet_of(&site, "ada", "ada.json", "@bo hello");
    tweet_of(&site, "ada", "ada-2.json", "@eve where are you?");
    // One of hers that could not be used, and one whose text was another once.
    std::fs::write(
        site.path("tweets/eve-bad.json"),
        r#"{"user": "eve", "text": 5}"#,
    )
    .unwrap();
    site.run(&["--until-idle"]);
    tweet_of(
        &site,
        "eve",
        "eve-2.json",
        "@bo something else that only she would have written",
    );
    site.run(&["--until-idle"]);
    assert_eq!(site.tables()["rejects"].len(), 1);

    let forget = ["--where", "\"user\" = 'eve'", "--purge"];
    let output = order(&site, &["forget"], &forget);
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(
        !output.status.success() && error.contains("eve-1.json"),
        "{error}"
    );
    assert_eq!(site.tables()["bronze"].len(), 4);

    for name in ["eve-1.json", "eve-2.json", "eve-bad.json"] {
        std::fs::remove_file(site.path("tweets").join(name)).unwrap();
    }
    let output = order(&site, &["forget"], &forget);
    assert!(output.status.success(), "{output:?}");
    let receipt = std::fs::read(site.path("forget-receipt.json")).unwrap();
    let receipt: serde_json::Value = serde_json::from_slice(&receipt).unwrap();
    let removed = |relation: &str| {
        receipt["relations"][relation]["rows_removed"]
            .as_u64()
            .unwrap()
    };
    assert_eq!(
        ["bronze", "silver", "gold", "scores", "users", "rejects"].map(removed),
        [2, 2, 2, 2, 1, 1],
        "{receipt:#}"
    );
    // What is said of @bo has changed, and what is said of her by others stays.
    assert_eq!(receipt["relations"]["mention_sentiment"]["rows_added"], 1);
    assert_eq!(receipt["purge"]["traces"], serde_json::json!([]));

    let left = format!("{:?}", site.tables());
    for trace in ["nobody else", "only she", "eve-", "\\\"user\\\": \\\"eve"] {
        assert!(!left.contains(trace), "{trace}: {left}");
    }
    assert!(left.contains("mention=\\\"eve\\\""), "{left}");
    lines(&site, &["tables", "verify"], &["--rescore"]);
    site.run(&["--until-idle"]);
    assert_eq!(format!("{:?}", site.tables()), left);
}

#[test]
fn what_a_purge_leaves_is_found() {
    let site = Site::new(NO_MODEL);
    tweet_of(
        &site,
        "eve",
        "eve.json",
        "@bo nobody else would ever say such a thing",
    );
    tweet_of(&site, "ada", "ada.json", "@bo hello");
    site.run(&["--until-idle"]);
    std::fs::remove_file(site.path("tweets/eve.json")).unwrap();
    // A copy of the old log lies where the log is looked for.
    let log = site.path("tables/silver/_delta_log");
    let copy = log.join("copy-of-a-backup.json");
    std::fs::copy(log.join(format!("{:020}.json", 1)), &copy).unwrap();
    let forget = ["--where", "\"user\" = 'eve'", "--purge"];
    let output = order(&site, &["forget"], &forget);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let receipt = std::fs::read_to_string(site.path("forget-receipt.json")).unwrap();
    assert!(
        receipt.contains("silver/_delta_log/copy-of-a-backup.json"),
        "{receipt}"
    );
}

#[test]
fn tables_are_deleted_when_one_is_sure() {
    let site = changed_site(NO_MODEL);
    let whole = site.tables();
    let output = order(&site, &["tables", "reset"], &[]);
    assert!(!output.status.success());
    assert!(String::from_utf8(output.stderr).unwrap().contains("--yes"));
    assert_eq!(site.tables(), whole);

    let running = site.start(&[]);
    for words in [["tables", "reset"], ["tables", "optimize"]] {
        let rest: &[&str] = if words[1] == "reset" { &["--yes"] } else { &[] };
        let output = order(&site, &words, rest);
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(error.contains("another process"), "{error}");
    }
    running.stop();

    std::fs::write(site.path("tables/mine.txt"), "no table").unwrap();
    lines(&site, &["tables", "reset"], &["--yes"]);
    assert!(data_files(&site, "").is_empty() && site.path("tables/mine.txt").exists());
    site.run(&["--until-idle"]);
    assert_eq!(site.tables(), whole);
}
