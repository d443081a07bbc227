//! The program as its users run it: over files, with and without a model, killed, stopped, spread over
//! workers and processes, and given all kinds of nonsense.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on should fail there"
)]

mod support;

use std::path::Path;
use std::time::{Duration, Instant};

use support::{Site, assay, free_port};

const SECRET: &str = "known to the processes of these tests";

const NO_MODEL: &str = "[model]\nenabled = false\n";

fn generate(site: &Site, count: usize) {
    let tweets = site.path("tweets");
    let count = count.to_string();
    let arguments = ["generate", "tweets", "--count", &count, "--files"];
    assert!(
        assay()
            .args(arguments)
            .arg(tweets)
            .output()
            .unwrap()
            .status
            .success()
    );
}

/// The tables of an uninterrupted run over the same files.
fn tables_of_a_fresh_run(
    site: &Site,
    lines: &str,
) -> std::collections::BTreeMap<&'static str, Vec<String>> {
    let fresh = Site::new(lines);
    std::fs::remove_dir(fresh.path("tweets")).unwrap();
    std::os::unix::fs::symlink(site.path("tweets"), fresh.path("tweets")).unwrap();
    fresh.run(&["--until-idle"]);
    fresh.tables()
}

#[test]
fn the_last_line_of_a_run_sums_it_up() {
    let site = Site::new(NO_MODEL);
    generate(&site, 20);
    let told = String::from_utf8(site.run(&["--until-idle"]).stderr).unwrap();
    let last = told.lines().last().unwrap();
    assert!(last.starts_with("read 20 ("), "{told}");
    assert!(last.contains(" | bronze 20 | "), "{told}");
}

#[test]
fn the_demo_scores_counts_and_ends() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("demo");
    let output = assay()
        .args(["demo", "--exit", "--dir"])
        .arg(&dir)
        .output()
        .unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(
        printed
            .lines()
            .filter(|line| line.starts_with("mention "))
            .count(),
        2,
        "{printed}"
    );
    let tables = support::tables(&dir.join("tables"), &[]);
    assert_eq!(tables["bronze"].len(), 1_000);
    assert!(tables["gold"].len() > 600 && tables["gold"].len() == tables["silver"].len());

    // The same folder again: nothing is scored again, nothing is written.
    let again = assay()
        .args(["demo", "--exit", "--dir"])
        .arg(&dir)
        .output()
        .unwrap();
    let log = String::from_utf8(again.stderr).unwrap();
    assert!(log.contains("scored 0"), "{log}");
    assert_eq!(support::tables(&dir.join("tables"), &[]), tables);
}

#[test]
fn changes_of_files_are_followed_within_a_second() {
    let site = Site::new(NO_MODEL);
    site.tweet("one.json", "hi @bo");
    site.tweet("two.json", "hi @bo and @cy");
    let running = site.start(&["--workers", "2"]);
    let total = |mention: &str| {
        let sql = format!(
            "select coalesce(sum(total), 0) from mention_sentiment where mention = '{mention}'"
        );
        running.number(&sql)
    };
    assert_eq!((total("bo"), total("cy")), (2, 1));
    let changed = Instant::now();
    site.tweet("one.json", "hi @cy");
    std::fs::remove_file(site.path("tweets/two.json")).unwrap();
    running.wait_for("the change", || (total("bo"), total("cy")) == (0, 1));
    assert!(
        changed.elapsed() < Duration::from_secs(1),
        "took {:?}",
        changed.elapsed()
    );
    running.stop();
    assert_eq!(site.tables()["bronze"].len(), 1);
}

#[test]
fn killed_and_run_again_with_other_workers_the_tables_are_those_of_one_run() {
    let lines = format!("{NO_MODEL}[tables]\ncheckpoint_interval_s = 1\n");
    let site = Site::new(&lines);
    generate(&site, 300);
    let running = site.start(&["--workers", "2"]);
    for number in 1..=40 {
        let name = format!("{number:06}.json");
        if number % 3 == 0 {
            std::fs::remove_file(site.path("tweets").join(name)).unwrap();
        } else {
            site.tweet(&name, &format!("again @bo number {number}"));
        }
    }
    running.wait_for("the changes", || {
        running.number("select count(*) from bronze") == 287
    });
    running.kill();
    // While no one looks, files come, change and go.
    site.tweet("000050.json", "unseen @cy");
    site.tweet("new.json", "@cy is new");
    std::fs::remove_file(site.path("tweets/000051.json")).unwrap();
    site.run(&["--until-idle", "--workers", "3"]);
    assert_eq!(site.tables(), tables_of_a_fresh_run(&site, &lines));
    // And once more on one worker: nothing differs, so nothing is written.
    let before = data_files(&site.path("tables"));
    site.run(&["--until-idle"]);
    assert_eq!(data_files(&site.path("tables")), before);
}

fn data_files(tables: &Path) -> Vec<std::path::PathBuf> {
    let folders = std::fs::read_dir(tables)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let inside = folders
        .flat_map(|folder| std::fs::read_dir(folder).unwrap())
        .map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = inside
        .filter(|path| path.extension().is_some_and(|e| e == "parquet"))
        .collect();
    files.sort();
    files
}

#[test]
fn another_pattern_or_no_model_mends_only_what_differs() {
    let site = Site::new("");
    for number in 0..12 {
        site.tweet(
            &format!("{number}.json"),
            &format!("@bo: what a lovely day number {number}"),
        );
    }
    site.run(&["--until-idle", "--workers", "2"]);
    assert_eq!(
        (site.tables()["gold"].len(), site.tables()["scores"].len()),
        (12, 12)
    );
    // Without a model nothing is scored, and what the model said is gone.
    site.configure(NO_MODEL);
    site.run(&["--until-idle", "--workers", "4"]);
    assert_eq!(
        (
            site.tables()["scores"].len(),
            site.tables()["accuracy"].len()
        ),
        (0, 0)
    );
    assert_eq!(site.tables(), tables_of_a_fresh_run(&site, NO_MODEL));
    // The plain pattern takes the colon along.
    let pattern = "[mentions]\npattern = '@(\\S+)'\n";
    site.configure(pattern);
    site.run(&["--until-idle", "--workers", "3"]);
    let tables = site.tables();
    assert!(
        tables["mention_sentiment"][0].starts_with("mention=\"bo:\""),
        "{tables:?}"
    );
    assert_eq!(tables, tables_of_a_fresh_run(&site, pattern));
}

/// A certificate for this machine, its key, and the authority of both, as the configuration names them.
fn certificates(site: &Site) -> String {
    let mut authority = rcgen::CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let key = rcgen::KeyPair::generate().unwrap();
    let issuer = rcgen::CertifiedIssuer::self_signed(authority, key).unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let certificate = certificate.signed_by(&key, &issuer).unwrap();
    let files = [
        ("certificate", certificate.pem()),
        ("key", key.serialize_pem()),
        ("authority", issuer.pem()),
    ];
    let mut lines = "[cluster.tls]\n".to_owned();
    for (name, text) in files {
        std::fs::write(site.path(&format!("{name}.pem")), text).unwrap();
        lines += &format!("{name}_file = \"{name}.pem\"\n");
    }
    lines
}

#[test]
fn two_processes_keep_the_same_tables_as_one_encrypted_or_not() {
    for encrypted in [false, true] {
        let site = Site::new(NO_MODEL);
        if encrypted {
            site.configure(&format!("{NO_MODEL}{}", certificates(&site)));
        }
        generate(&site, 200);
        site.tweet("bad.json", "");
        std::fs::write(site.path("tweets/bad.json"), "{").unwrap();
        let hosts = format!("127.0.0.1:{}\n127.0.0.1:{}\n", free_port(), free_port());
        std::fs::write(site.path("hosts.txt"), hosts).unwrap();
        let process = |index: &str| {
            let mut command = assay();
            command
                .arg("run")
                .arg(site.path("assay.toml"))
                .args(["--until-idle", "--workers", "2"])
                .arg("--hosts")
                .arg(site.path("hosts.txt"))
                .args(["--process", index])
                .env("ASSAY__SERVER__LISTEN", "127.0.0.1:0")
                .env("ASSAY_CLUSTER_SECRET", SECRET);
            command.spawn().unwrap()
        };
        let mut processes = [process("0"), process("1")];
        for process in &mut processes {
            assert!(process.wait().unwrap().success());
        }
        assert_eq!(site.tables(), tables_of_a_fresh_run(&site, NO_MODEL));
    }
}

#[test]
fn each_process_of_a_cluster_answers_for_all() {
    let cluster = format!("[cluster]\nsecret_file = \"secret.txt\"\n{NO_MODEL}");
    let site = Site::new(&cluster);
    std::fs::write(site.path("secret.txt"), SECRET).unwrap();
    generate(&site, 100);
    let hosts = format!("127.0.0.1:{}\n127.0.0.1:{}\n", free_port(), free_port());
    std::fs::write(site.path("hosts.txt"), hosts).unwrap();
    let hosts = site.path("hosts.txt").display().to_string();
    let other = Site::new(&cluster);
    std::fs::write(other.path("secret.txt"), SECRET).unwrap();
    for folder in ["tweets", "tables"] {
        let _ = std::fs::remove_dir(other.path(folder));
        std::os::unix::fs::symlink(site.path(folder), other.path(folder)).unwrap();
    }
    std::thread::scope(|scope| {
        let second = scope.spawn(|| other.start(&["--hosts", &hosts, "--process", "1"]));
        let first = site.start(&["--hosts", &hosts, "--process", "0"]);
        let second = second.join().unwrap();
        let count = "select count(*) from bronze";
        first.wait_for("all rows", || first.number(count) == 100);
        second.wait_for("all rows", || second.number(count) == 100);
        // A stop of one is a stop of both.
        first.stop();
        second.wait_for("the end", || second.get("/healthz").is_none());
    });
    assert_eq!(site.tables()["bronze"].len(), 100);
}

#[test]
fn a_cluster_without_a_secret_is_refused() {
    let site = Site::new(NO_MODEL);
    std::fs::write(site.path("hosts.txt"), "127.0.0.1:1\n127.0.0.1:2\n").unwrap();
    let output = assay()
        .arg("run")
        .arg(site.path("assay.toml"))
        .args(["--process", "0", "--hosts"])
        .arg(site.path("hosts.txt"))
        .output()
        .unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{message}");
    assert!(message.contains("cluster.secret_file"), "{message}");
}

/// The process numbers of the children of a process.
fn children(process: u32) -> Vec<u32> {
    let listed = std::process::Command::new("pgrep")
        .args(["-P", &process.to_string()])
        .output()
        .unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    listed.lines().map(|line| line.parse().unwrap()).collect()
}

#[test]
fn a_launched_cluster_comes_back_whichever_process_dies() {
    let site = Site::new(&format!("{NO_MODEL}[tables]\ncheckpoint_interval_s = 1\n"));
    generate(&site, 200);
    let running = site.launch(&["--processes", "3", "--workers", "1"]);
    let rows = || {
        running
            .get("/readyz")
            .is_some_and(|(status, _)| status == 200)
            && running.number("select count(*) from bronze") == 200
    };
    running.wait_for("all rows", rows);
    for victim in 0..3 {
        let processes = children(running.id());
        assert_eq!(processes.len(), 3, "{processes:?}");
        let killed = std::process::Command::new("kill")
            .args(["-9", &processes[victim].to_string()])
            .status();
        assert!(killed.unwrap().success());
        running.wait_for("other processes", || {
            let now = children(running.id());
            now.len() == 3 && now.iter().all(|process| !processes.contains(process))
        });
        site.tweet("000001.json", &format!("@bo once more {victim}"));
        let answers = || {
            running
                .get("/readyz")
                .is_some_and(|(status, _)| status == 200)
        };
        running.wait_for("an answer", answers);
        let sql = format!("select count(*) from bronze where text = '@bo once more {victim}'");
        running.wait_for("the change", || running.number(&sql) == 1);
    }
    running.stop();
    assert_eq!(site.tables(), tables_of_a_fresh_run(&site, NO_MODEL));
}

#[test]
fn a_cluster_whose_launcher_is_killed_ends_and_frees_its_tables() {
    let site = Site::new(NO_MODEL);
    generate(&site, 20);
    let running = site.launch(&["--processes", "2", "--workers", "1"]);
    running.wait_for("readiness", || {
        running
            .get("/readyz")
            .is_some_and(|(status, _)| status == 200)
    });
    running.kill();
    site.run(&["--until-idle"]);
    assert_eq!(site.tables(), tables_of_a_fresh_run(&site, NO_MODEL));
}

#[test]
fn nonsense_becomes_rejects_and_nothing_is_lost() {
    let site = Site::new("[tables]\ncheckpoint_interval_s = 1\n");
    let write =
        |name: &str, bytes: &[u8]| std::fs::write(site.path("tweets").join(name), bytes).unwrap();
    site.tweet("good.json", "hi @bo");
    site.tweet("empty-text.json", "");
    site.tweet("only-mention.json", "@bo");
    site.tweet(
        "long.json",
        &format!("@bo {}", "long words ".repeat(10_000)),
    );
    site.tweet("huge.json", &"0123456789".repeat(1_000_000));
    write("not-json.json", b"hello");
    write("empty.json", b"");
    write("null.json", b"null");
    write("array.json", b"[1,2]");
    write("utf8.json", b"{\"text\":\"\xff\xfe\"}");
    write("type.json", b"{\"text\":{\"a\":[1]},\"date\":\"x\"}");
    write("missing.json", b"{\"user\":\"bo\"}");
    write(
        "date.json",
        br#"{"date":"yesterday","user":"bo","text":"@cy","sentiment":"neutral"}"#,
    );
    write("deep.json", "[".repeat(100_000).as_bytes());
    write(
        "lines.jsonl",
        b"{\"text\":\"@di\",\"date\":\"2015-02-24T11:35:52Z\"}\nbroken\n\n{\"text\":1}",
    );
    let running = site.start(&[]);
    let rejected = |key: &str| {
        let rows = running.sql(&format!(
            "select stage, reason from rejects where key = '{key}'"
        ));
        rows.first().map(|row| {
            format!(
                "{}: {}",
                row["stage"].as_str().unwrap(),
                row["reason"].as_str().unwrap()
            )
        })
    };
    for (key, reason) in [
        ("not-json.json", "decode: not a JSON object"),
        ("empty.json", "decode: not a JSON object"),
        ("array.json", "decode: not a JSON object"),
        ("utf8.json", "decode: not UTF-8 at byte 9"),
        (
            "type.json",
            "decode: field \"text\": expected a string, found an object",
        ),
        (
            "missing.json",
            "decode: field \"text\": expected a string, found nothing",
        ),
        ("date.json", "silver: field \"date\": "),
        ("deep.json", "decode: not a JSON object"),
        ("lines.jsonl#2", "decode: not a JSON object"),
        ("lines.jsonl#4", "decode: field \"text\""),
    ] {
        let found = rejected(key).unwrap_or_else(|| panic!("{key} is not among the rejects"));
        assert!(found.starts_with(reason), "{key}: {found}");
    }
    assert_eq!(running.number("select count(*) from bronze"), 7);
    assert_eq!(running.number("select count(*) from gold"), 4);
    // Each correction takes its reject back.
    let before = running.number("select count(*) from rejects");
    site.tweet("not-json.json", "@bo is right now");
    site.tweet("date.json", "@cy too");
    running.wait_for("the corrections", || {
        running.number("select count(*) from rejects") == before - 2
    });
    running.wait_for("the rows", || {
        running.number("select count(*) from gold") == 6
    });
    let (_, metrics) = running.get("/metrics").unwrap();
    assert!(
        metrics.contains("assay_rejects_total{stage=\"decode\",reason=\"not UTF-8\"} 1"),
        "{metrics}"
    );
    running.stop();
    assert_eq!(site.tables()["rejects"].len() as i64, before - 2);
}

#[test]
fn a_query_sees_one_epoch_and_changes_nothing() {
    let site = Site::new(NO_MODEL);
    generate(&site, 200);
    let running = site.start(&["--workers", "2"]);
    let consistent = "select (select count(*) from silver) as silver, (select count(*) from gold) as gold, \
                      (select count(*) from bronze) as bronze, (select coalesce(sum(tweets), 0) from users) as tweets";
    for number in 0..60 {
        site.tweet(
            &format!("{:06}.json", number % 30 + 1),
            &format!("@bo @cy {number}"),
        );
        let row = running.sql(consistent).remove(0);
        assert_eq!(
            (&row["silver"], &row["bronze"]),
            (&row["gold"], &row["tweets"]),
            "{row}"
        );
    }
    for sql in [
        "drop table gold",
        "delete from gold",
        "create table x as select 1",
    ] {
        let (status, body) = support::request(site.port, "POST", "/v1/sql", sql).unwrap();
        assert_eq!(status, 400, "{body}");
    }
    let (status, body) = running
        .get("/v1/relations/mention_sentiment?key=bo")
        .unwrap();
    let rows: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!(
        (status, rows["rows"].as_array().unwrap().len()),
        (200, 1),
        "{body}"
    );
    assert_eq!(running.get("/v1/relations/nothing").unwrap().0, 404);
    assert_eq!(running.get("/healthz").unwrap().0, 200);
}

#[test]
fn mistakes_are_told_at_once_with_exit_code_2() {
    let refused = |site: &Site, parts: &[&str]| {
        let started = Instant::now();
        let output = assay()
            .arg("run")
            .arg(site.path("assay.toml"))
            .output()
            .unwrap();
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{message}");
        assert!(parts.iter().all(|part| message.contains(part)), "{message}");
        assert!(
            started.elapsed() < Duration::from_secs(20),
            "took {:?}",
            started.elapsed()
        );
    };
    refused(
        &Site::new("tick = 5\n"),
        &["line 1", "unknown field", "tick_ms"],
    );
    refused(
        &Site::new("[source.files]\npath = \"nowhere\"\n"),
        &[":2: source.files.path", "make it"],
    );
    refused(
        &Site::new("[cluster.tls]\nkey_file = \"key.pem\"\n"),
        &["cluster.tls.certificate_file", "all three files or none"],
    );
    refused(
        &Site::new("[model]\ndirectory = \"nowhere\"\n"),
        &[":2: model.directory", "built-in"],
    );
    refused(
        &Site::new("[model]\ndirectory = \"tweets\"\n"),
        &["cannot read", "config.json"],
    );
    let kafka = "[source]\nkind = \"kafka\"\n[source.kafka]\ntopics = [\"t\"]\n\
                 [source.kafka.properties]\n\"bootstrap.servers\" = \"127.0.0.1:1\"\n";
    refused(
        &Site::new(kafka),
        &["cannot reach the kafka brokers \"127.0.0.1:1\""],
    );
    let site = Site::new("");
    std::fs::write(site.path("tables"), "in the way").unwrap();
    refused(&site, &["cannot use the folder"]);
    let output = assay().args(["run", "no-such-file.toml"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn the_printed_configuration_runs_as_it_is() {
    let site = Site::new("");
    let printed = assay().args(["init", "mentions"]).output().unwrap().stdout;
    std::fs::write(site.path("assay.toml"), printed).unwrap();
    site.tweet("one.json", "hi @bo");
    let mut command = assay();
    command
        .arg("run")
        .arg(site.path("assay.toml"))
        .arg("--until-idle");
    let output = command
        .env("ASSAY__SERVER__LISTEN", "127.0.0.1:0")
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(site.tables()["gold"].len(), 1);
}

#[test]
fn the_doctor_tells_what_it_finds_and_changes_nothing() {
    let site = Site::new("");
    site.tweet("1.json", "hi @bo");
    std::fs::write(site.path("tweets/2.json"), r#"{"date": 5, "text": "hi"}"#).unwrap();
    std::fs::write(site.path("tweets/3.json"), r#"{"text": [1]}"#).unwrap();
    let examine = || {
        let output = assay()
            .arg("doctor")
            .arg(site.path("assay.toml"))
            .output()
            .unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        (output.status.code(), said)
    };
    let (code, said) = examine();
    assert_eq!(code, Some(0), "{said}");
    for line in [
        "can be written, and keeps what is there already",
        "0 of 8 are there, with 0 rows",
        "ok    model     loads",
        "3 looked at: 2 rows, 0 deletes, 0 truncations, 1 that cannot be used",
        "note  messages  1 rejected: field \"text\": expected a string, found an array",
        "note  dates     some are numbers, such as 5: say in mentions.numeric_date what they count\n",
    ] {
        assert!(said.contains(line), "{line}: {said}");
    }
    assert!(!site.path("tables/bronze").exists());
    // What a run holds is told, and does not keep the doctor from looking.
    let running = site.start(&[]);
    let (code, said) = examine();
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("BAD   server    cannot listen on"), "{said}");
    assert!(
        said.contains("8 of 8 are there") && said.contains("writes them"),
        "{said}"
    );
    running.stop();
}

#[test]
fn a_source_is_paused_and_read_on_in_all_processes() {
    let site = Site::new(&format!("{NO_MODEL}[tables]\ncheckpoint_interval_s = 1\n"));
    generate(&site, 50);
    let running = site.launch(&["--processes", "2", "--workers", "1"]);
    running.wait_for("all rows", || {
        running
            .get("/readyz")
            .is_some_and(|(status, _)| status == 200)
            && running.number("select count(*) from bronze") == 50
    });
    let server = format!("http://127.0.0.1:{}", site.port);
    let source = |order: &str| {
        let output = assay()
            .args(["source", order, "--server", &server])
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(source("status").contains("the source is being read"));
    source("pause");
    let paused = |port: u16| {
        let answer = support::request(port, "GET", "/v1/source", "");
        answer.is_some_and(|(_, body)| body.contains("\"paused\":true"))
    };
    running.wait_for("the pause", || paused(site.port) && paused(site.port + 1));
    // What is being read at this moment still comes, within a tick.
    let epoch = || {
        running.answer("select count(*) from bronze")["epoch"]
            .as_u64()
            .unwrap()
    };
    let wait_for_epochs = || {
        let before = epoch();
        running.wait_for("ten epochs", || epoch() > before + 1_000);
    };
    wait_for_epochs();
    for number in 0..20 {
        site.tweet(&format!("later-{number}.json"), "hi @bo");
    }
    wait_for_epochs();
    assert_eq!(running.number("select count(*) from bronze"), 50);
    source("resume");
    running.wait_for("the new rows", || {
        running.number("select count(*) from bronze") == 70
    });
    running.stop();
}

#[test]
fn a_source_that_talks_nonsense_is_paused() {
    let site = Site::new(&format!("[source]\nmost_rejects_percent = 20\n{NO_MODEL}"));
    generate(&site, 300);
    let running = site.start(&[]);
    running.wait_for("all rows", || {
        running.number("select count(*) from bronze") == 300
    });
    for number in 0..400 {
        std::fs::write(site.path(&format!("tweets/bad-{number}.json")), "{").unwrap();
    }
    running.wait_for("the pause", || {
        running
            .get("/readyz")
            .is_some_and(|(status, _)| status == 503)
    });
    let (_, why) = running.get("/readyz").unwrap();
    assert!(why.contains("cannot be used"), "{why}");
    for number in 0..400 {
        std::fs::remove_file(site.path(&format!("tweets/bad-{number}.json"))).unwrap();
    }
    let (status, _) = support::request(site.port, "POST", "/v1/source/resume", "").unwrap();
    assert_eq!(status, 200);
    running.wait_for("readiness", || {
        running
            .get("/readyz")
            .is_some_and(|(status, _)| status == 200)
    });
    running.wait_for("no rejects", || {
        running.number("select count(*) from rejects") == 0
    });
    running.stop();
    // Rejects that a start finds in the tables pause nothing.
    std::fs::write(site.path("tweets/bad.json"), "{").unwrap();
    site.run(&["--until-idle"]);
    let running = site.start(&[]);
    assert_eq!(running.number("select count(*) from rejects"), 1);
    running.stop();
}

#[test]
fn a_second_writer_is_noticed() {
    let lines = format!("{NO_MODEL}[tables]\ncheckpoint_interval_s = 1\n");
    let site = Site::new(&lines);
    site.tweet("one.json", "hi @bo");
    let first = site.start(&[]);
    first.wait_for("a checkpoint", || {
        std::fs::read_dir(site.path("tables/_assay/manifests"))
            .is_ok_and(|mut found| found.next().is_some())
    });
    let mut second = assay();
    second
        .arg("run")
        .arg(site.path("assay.toml"))
        .env("ASSAY__SERVER__LISTEN", "127.0.0.1:0");
    let mut second = second.stderr(std::process::Stdio::piped()).spawn().unwrap();
    // Both see the change; whoever commits second must end instead.
    site.tweet("two.json", "hi @cy");
    let started = Instant::now();
    let mut number = 0;
    while first.get("/healthz").is_some() && second.try_wait().unwrap().is_none() {
        assert!(
            started.elapsed() < support::PATIENCE,
            "two writers went on side by side"
        );
        number += 1;
        site.tweet(&format!("more-{number}.json"), "hi @di");
        std::thread::sleep(Duration::from_millis(100));
    }
    let _ = second.kill();
    let _ = second.wait();
}
