//! What happens while a service is away: the stream waits, says so, and goes on by itself.
//!
//! A test program of its own, because others would miss the services that it stops.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on should fail there"
)]

mod support;

use support::services::{Rows, Services};
use support::topics::{breaks, last, messages, sink};
use support::{Running, Site};

#[test]
fn a_broker_that_goes_and_comes_back_is_waited_for() {
    let services = Services::find();
    let mut rows = Rows::new(&services, "faults");
    rows.change(100);
    let connector = services.capture("faults", false);
    let lines = "[model]\nenabled = false\n[tables]\ncheckpoint_interval_s = 1\n";
    let site = services.site(&connector.topic(), lines);
    let running = site.start(&["--workers", "2"]);
    let count = || running.number("select count(*) from bronze") as usize;
    running.wait_for("the snapshot", || count() == rows.rows.len());
    let publishing = Publishing::start();

    services.order(&["stop", "kafka", "--kill"]);
    running.wait_for("the failure to be counted", || {
        let (_, metrics) = running.get("/metrics").unwrap();
        metrics.contains("assay_source_retries_total{source=\"tweets\"}")
    });
    // Queries are answered meanwhile.
    assert_eq!(count(), rows.rows.len());
    rows.change(100);
    publishing.fail();
    services.order(&["start", "kafka"]);
    running.wait_for("the changes made meanwhile", || count() == rows.rows.len());
    running.stop();
    publishing.end();
}

/// One who publishes all the while.
struct Publishing {
    site: Site,
    running: Running,
}

impl Publishing {
    const TOPIC: &'static str = "published_faults";

    fn start() -> Self {
        let lines = "[model]\nenabled = false\n[tables]\nenabled = false\n";
        let sink = sink("mention_sentiment", Self::TOPIC, "debezium");
        let site = Site::new(&format!("{lines}{sink}"));
        site.tweet("early.json", "@early hears");
        let running = site.start(&[]);
        running.wait_for("the topic", || !messages(Self::TOPIC).is_empty());
        Self { site, running }
    }

    /// Has something to say while nobody hears it.
    fn fail(&self) {
        self.site.tweet("away.json", "@away hears");
        self.running.wait_for("the failure to be counted", || {
            let (_, metrics) = self.running.get("/metrics").unwrap();
            metrics.contains("assay_sink_failures_total{sink=\"kafka\"}")
        });
    }

    /// Nothing was said twice, and nothing left unsaid.
    fn end(self) {
        self.running.wait_for("the topic to follow", || {
            last(&messages(Self::TOPIC)).len() == 2
        });
        self.site.tweet("late.json", "@late hears");
        self.running.wait_for("the topic to follow on", || {
            last(&messages(Self::TOPIC)).len() == 3
        });
        let all = messages(Self::TOPIC);
        assert_eq!((all.len(), breaks(&all)), (3, Vec::new()));
        self.running.stop();
    }
}
