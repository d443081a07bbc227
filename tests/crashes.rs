//! P3 by force: the program is ended again and again, at random instants and at every step of a
//! checkpoint, while rows of PostgreSQL change, and goes on with another number of processes and
//! workers; afterwards its tables equal those of a run that nobody disturbed.
//!
//! `ASSAY_TEST_KILLS` says how often (20), `ASSAY_TEST_SEED` which of all histories (1).

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on should fail there"
)]

mod support;

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::Child;
use std::time::{Duration, Instant};

use assay::checkpoint::crash::POINTS;
use support::Site;
use support::numbers::Numbers;
use support::services::{Rows, Services};

const LINES: &str = "[model]\nenabled = false\n[tables]\ncheckpoint_interval_s = 1\n";

const SIGABRT: i32 = 6;

fn from_environment(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().unwrap())
}

/// The processes of a run, one of which ends at a point, if it comes by there so often.
struct Run {
    processes: Vec<Child>,
    ends: usize,
}

impl Run {
    fn start(site: &Site, numbers: &mut Numbers, point: &str) -> Self {
        let processes = 1 + numbers.below(3) as usize;
        let workers = 1 + numbers.below(3);
        let passes = 1 + numbers.below(4);
        let ends = numbers.below(processes as u64) as usize;
        let addresses: Vec<_> = (0..processes)
            .map(|_| format!("127.0.0.1:{}\n", support::free_port()))
            .collect();
        std::fs::write(site.path("hosts.txt"), addresses.concat()).unwrap();
        let start = |process: usize| {
            let mut command = support::assay();
            command
                .arg("run")
                .arg(site.path("assay.toml"))
                .args(["--workers", &workers.to_string()])
                .env("ASSAY__SERVER__LISTEN", "127.0.0.1:0")
                .env("ASSAY_CLUSTER_SECRET", "known to these processes")
                .stderr(std::fs::File::create(log(site, process)).unwrap());
            if processes > 1 {
                command.args(["--process", &process.to_string(), "--hosts"]);
                command.arg(site.path("hosts.txt"));
            }
            if process == ends {
                command.env("ASSAY_CRASH_AT", format!("{point}:{passes}"));
            }
            command.spawn().unwrap()
        };
        let processes = (0..processes).map(start).collect();
        Self { processes, ends }
    }

    /// Waits until a process has ended at its point, and then kills all; returns whether one had.
    fn end(mut self, site: &Site, patience: Duration) -> bool {
        let started = Instant::now();
        let mut at_point = false;
        while !at_point && started.elapsed() < patience {
            if let Some(status) = self.processes[self.ends].try_wait().unwrap() {
                let log = std::fs::read_to_string(log(site, self.ends)).unwrap();
                assert_eq!(status.signal(), Some(SIGABRT), "{status}: {log}");
                at_point = true;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        for process in &mut self.processes {
            // The one that has ended, and those that noticed, cannot be killed any more.
            let _ = process.kill();
            process.wait().unwrap();
        }
        at_point
    }
}

fn log(site: &Site, process: usize) -> PathBuf {
    site.path(&format!("log-{process}.txt"))
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
        let run = Run::start(&site, &mut numbers, point);
        rows.change(10 * (1 + numbers.below(6) as usize));
        let patience = Duration::from_millis(500 + numbers.below(4_000));
        let at_point = run.end(&site, patience);
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
