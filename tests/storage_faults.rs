//! What happens while the storage fails or a process does not get to run: the stream waits, queries are
//! answered, nothing is lost, and all goes on by itself when the fault is gone.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on should fail there"
)]

mod support;

use std::process::{Command, Stdio};

use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit};
use support::buckets::{Bucket, Fault, Way};
use support::{Running, Site, request};

const LINES: &str = "[model]\nenabled = false\n[tables]\ncheckpoint_interval_s = 1\n";

fn pid(number: u32) -> Pid {
    Pid::from_raw(number as i32).unwrap()
}

fn retries(running: &Running) -> u64 {
    let (_, metrics) = running.get("/metrics").unwrap();
    let mut lines = metrics.lines();
    let retries = lines.find_map(|line| line.strip_prefix("assay_storage_retries_total "));
    retries.map_or(0, |retries| retries.parse().unwrap())
}

/// Changes a tweet and waits until everyone sees it; returns the epoch.
fn change(site: &Site, running: &Running, text: &str) -> u64 {
    site.tweet("1.json", text);
    let sql = format!("select count(*) from bronze where text = '{text}'");
    running.wait_for(text, || running.number(&sql) == 1);
    running.answer(&sql)["epoch"].as_u64().unwrap()
}

fn assert_exact(site: &Site) {
    let fresh = Site::new(LINES);
    std::fs::remove_dir(fresh.path("tweets")).unwrap();
    std::os::unix::fs::symlink(site.path("tweets"), fresh.path("tweets")).unwrap();
    fresh.run(&["--until-idle"]);
    assert_eq!(site.tables(), fresh.tables());
}

#[test]
fn a_folder_that_cannot_be_written_is_waited_for() {
    let site = Site::new(LINES);
    site.tweet("1.json", "hi @bo");
    let running = site.start(&[]);
    running.wait_for("a checkpoint", || running.checkpointed() > 0);
    std::fs::rename(site.path("tables/gold"), site.path("tables/away")).unwrap();
    std::fs::write(site.path("tables/gold"), "in the way").unwrap();
    let before = retries(&running);
    let epoch = change(&site, &running, "bye @bo");
    running.wait_for("failures", || retries(&running) > before + 2);
    std::fs::remove_file(site.path("tables/gold")).unwrap();
    std::fs::rename(site.path("tables/away"), site.path("tables/gold")).unwrap();
    running.wait_for("a checkpoint", || running.checkpointed() >= epoch);
    running.stop();
    let log = std::fs::read_to_string(site.path("log.txt")).unwrap();
    assert!(
        log.contains("table \"gold\"") && log.contains("trying again in"),
        "{log}"
    );
    assert_exact(&site);
}

#[test]
fn a_disk_that_takes_no_more_is_waited_for() {
    let site = Site::new(LINES);
    site.tweet("1.json", "hi @bo");
    // The signal that a file has grown too large is ignored, so that writing fails instead, as it
    // does on a full disk.
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' XFSZ; exec \"$0\" \"$@\""]);
    command
        .arg(env!("CARGO_BIN_EXE_assay"))
        .arg("run")
        .arg(site.path("assay.toml"));
    let child = command.stderr(Stdio::null()).spawn().unwrap();
    let process = pid(child.id());
    let running = site.follow(child);
    running.wait_for("a checkpoint", || {
        running.get("/metrics").is_some() && running.checkpointed() > 0
    });
    let largest = |bytes| Rlimit {
        current: bytes,
        maximum: None,
    };
    let before = retries(&running);
    prlimit(Some(process), Resource::Fsize, largest(Some(0))).unwrap();
    let epoch = change(&site, &running, "bye @bo");
    running.wait_for("failures", || retries(&running) > before + 2);
    // Queries are answered meanwhile.
    assert_eq!(running.number("select count(*) from gold"), 1);
    prlimit(Some(process), Resource::Fsize, largest(None)).unwrap();
    running.wait_for("a checkpoint", || running.checkpointed() >= epoch);
    running.stop();
    assert_exact(&site);
}

#[test]
fn a_bucket_that_fails_hangs_or_breaks_off_is_waited_for() {
    let bucket = Bucket::start();
    let way = Way::to(bucket.port);
    let site = Site::new(&format!("{LINES}path = \"s3://kept/tables\"\n"));
    site.tweet("1.json", "hi @bo");
    let running = site.start_with(&[], &bucket.environment(way.port));
    for (round, fault) in [Fault::Unavailable, Fault::Hang, Fault::Cut]
        .into_iter()
        .enumerate()
    {
        let reached = running.checkpointed();
        way.disturb(fault);
        let before = way.disturbed();
        let epoch = change(&site, &running, &format!("@bo in round {round}"));
        running.wait_for("disturbed requests", || way.disturbed() >= before + 20);
        assert!(running.checkpointed() < epoch.max(reached + 1), "{fault:?}");
        way.disturb(Fault::None);
        running.wait_for("a checkpoint", || running.checkpointed() >= epoch);
    }
    running.stop();
    let environment = bucket.environment(way.port);
    let verified = support::assay()
        .args(["tables", "verify"])
        .arg(site.path("assay.toml"))
        .envs(environment)
        .output()
        .unwrap();
    let printed = String::from_utf8(verified.stdout).unwrap();
    assert!(
        verified.status.success() && printed.contains("follows from bronze"),
        "{printed}"
    );
}

#[test]
fn a_paused_process_goes_on_and_a_replaced_one_ends() {
    let site = Site::new(LINES);
    site.tweet("1.json", "hi @bo");
    let first = site.start(&[]);
    first.wait_for("a checkpoint", || first.checkpointed() > 0);
    kill_process(pid(first.id()), Signal::STOP).unwrap();
    site.tweet("1.json", "seen later @bo");
    kill_process(pid(first.id()), Signal::CONT).unwrap();
    let sql = "select count(*) from gold where cleaned_text = 'seen later'";
    first.wait_for("the change", || first.number(sql) == 1);

    kill_process(pid(first.id()), Signal::STOP).unwrap();
    let second = Site::new(LINES);
    for folder in ["tweets", "tables"] {
        let _ = std::fs::remove_dir(second.path(folder));
        std::os::unix::fs::symlink(site.path(folder), second.path(folder)).unwrap();
    }
    let other = second.start(&[]);
    let epoch = change(&site, &other, "by the other @bo");
    other.wait_for("a checkpoint", || other.checkpointed() >= epoch);
    // It sees the change as well, and must not commit it a second time.
    kill_process(pid(first.id()), Signal::CONT).unwrap();
    first.wait_for("its end", || {
        request(site.port, "GET", "/healthz", "").is_none()
    });
    let status = first.ended();
    let log = std::fs::read_to_string(site.path("log.txt")).unwrap();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(
        log.contains("another process has taken over the tables"),
        "{log}"
    );
    let epoch = change(&site, &other, "and again @bo");
    other.wait_for("a checkpoint", || other.checkpointed() >= epoch);
    other.stop();
    assert_exact(&site);
}
