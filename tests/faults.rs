//! What happens while a service is away: the stream waits, says so, and goes on by itself.
//!
//! A test program of its own, because others would miss the services that it stops.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on should fail there"
)]

mod support;

use support::services::{Rows, Services};

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

    services.order(&["stop", "kafka", "--kill"]);
    running.wait_for("the failure to be counted", || {
        let (_, metrics) = running.get("/metrics").unwrap();
        metrics.contains("assay_source_retries_total{source=\"tweets\"}")
    });
    // Queries are answered meanwhile.
    assert_eq!(count(), rows.rows.len());
    rows.change(100);
    services.order(&["start", "kafka"]);
    running.wait_for("the changes made meanwhile", || count() == rows.rows.len());
    running.stop();
}
