//! P3 by force: the program is ended again and again, at random instants and at every step of a
//! checkpoint, while rows of PostgreSQL change; afterwards its tables equal those of a run that
//! nobody disturbed.
//!
//! `ASSAY_TEST_KILLS` says how often (20), `ASSAY_TEST_SEED` which of all histories (1).

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on should fail there"
)]

mod support;

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::process::Child;
use std::time::{Duration, Instant};

use assay::checkpoint::crash::POINTS;
use support::Site;
use support::services::{Rows, Services};

const LINES: &str = "[model]\nenabled = false\n[tables]\ncheckpoint_interval_s = 1\n";

const SIGABRT: i32 = 6;

/// Small numbers that follow from a seed (the generator of Knuth's MMIX).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

fn from_environment(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().unwrap())
}

/// Starts the program so that it ends at a point, if it comes by there so often.
fn start(site: &Site, workers: u64, point: &str, passes: u64) -> Child {
    let log = std::fs::File::create(site.path("log.txt")).unwrap();
    support::assay()
        .arg("run")
        .arg(site.path("assay.toml"))
        .args(["--workers", &workers.to_string()])
        .env("ASSAY_CRASH_AT", format!("{point}:{passes}"))
        .stderr(log)
        .spawn()
        .unwrap()
}

/// Waits until the program has ended at its point, or kills it; returns whether it had.
fn end(site: &Site, mut running: Child, patience: Duration) -> bool {
    let started = Instant::now();
    while started.elapsed() < patience {
        if let Some(status) = running.try_wait().unwrap() {
            let log = std::fs::read_to_string(site.path("log.txt")).unwrap();
            assert_eq!(status.signal(), Some(SIGABRT), "{status}: {log}");
            return true;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    running.kill().unwrap();
    running.wait().unwrap();
    false
}

#[test]
fn nothing_is_lost_or_doubled_however_often_the_program_is_killed() {
    let kills = from_environment("ASSAY_TEST_KILLS", 20);
    let mut numbers = Numbers(from_environment("ASSAY_TEST_SEED", 1));
    let services = Services::find();
    let mut rows = Rows::new(&services, "crashes");
    rows.change(100);
    let connector = services.capture("crashes", false);
    let site = services.site(&connector.topic(), LINES);

    let mut ended: BTreeMap<&str, u64> = BTreeMap::new();
    for kill in 0..kills {
        let point = POINTS[(kill % POINTS.len() as u64) as usize];
        let running = start(&site, 1 + numbers.below(4), point, 1 + numbers.below(6));
        rows.change(10 * (1 + numbers.below(6) as usize));
        let patience = Duration::from_millis(300 + numbers.below(3_000));
        let at_point = end(&site, running, patience);
        *ended
            .entry(if at_point { point } else { "anywhere" })
            .or_default() += 1;
    }
    println!("{kills} kills: {ended:?}");

    let running = site.start(&["--workers", "2"]);
    let markers: Vec<_> = (0..60)
        .map(|number| {
            let tweet = rows.rows.values().next().unwrap().clone();
            let user = "marker".to_owned();
            (
                1_000_000 + number,
                Some(assay::generate::tweets::GeneratedTweet { user, ..tweet }),
            )
        })
        .collect();
    rows.write(&markers);
    running.wait_for("the last rows", || {
        running.number("select count(*) from users where \"user\" = 'marker' and tweets = 60") == 1
    });
    running.stop();

    let of_reading = ["source_file", "processing_time", "position", "first_seen"];
    let survived = support::tables(&site.path("tables"), &of_reading);
    assert_eq!(survived["bronze"], rows.bronze());
    let undisturbed = services.site(&connector.topic(), LINES);
    undisturbed.run(&["--until-idle"]);
    assert_eq!(
        survived,
        support::tables(&undisturbed.path("tables"), &of_reading)
    );
}
