//! A table of PostgreSQL that mirrors a relation equals it, whatever happens to either side.
//!
//! Needs the services of `cargo xtask test`.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on should fail there"
)]

mod support;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use support::numbers::Numbers;
use support::{PATIENCE, Running, Site};
use tokio_postgres::{Client, NoTls};

/// Rows by who is mentioned: the counts, and the first and last time in seconds.
type Rows = BTreeMap<String, [i64; 5]>;

struct Mirrored {
    runtime: tokio::runtime::Runtime,
    client: Client,
    table: String,
    /// What a user may connect with who may write the table and nothing else.
    url: String,
}

impl Mirrored {
    /// Makes the table, as an administrator would, and its user.
    fn make() -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let admin = std::env::var("ASSAY_TEST_POSTGRES").expect("set by `cargo xtask test`");
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let client = runtime.block_on(async {
            let (client, connection) = tokio_postgres::connect(&admin, NoTls).await.unwrap();
            tokio::spawn(connection);
            client
        });
        let table = format!("mirror_{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let made = format!(
            "create table {table} (mention text primary key, min_timestamp timestamptz, \
             max_timestamp timestamptz, negative int8, neutral int8, positive int8, total int8, \
             predicted_negative int8, predicted_neutral int8, predicted_positive int8, \
             seen timestamptz default now()); \
             create role {table} login password 'mirror'; \
             grant select, insert, update, delete on {table} to {table}"
        );
        runtime.block_on(client.batch_execute(&made)).unwrap();
        let (_, rest) = admin.split_once('@').unwrap();
        let url = format!("postgres://{table}:mirror@{rest}");
        Self {
            runtime,
            client,
            table,
            url,
        }
    }

    fn execute(&self, sql: &str) -> u64 {
        let sql = sql.replace("TABLE", &self.table);
        self.runtime
            .block_on(self.client.execute(&sql, &[]))
            .unwrap()
    }

    fn rows(&self) -> Rows {
        let sql = format!(
            "select mention, coalesce(negative, -1), coalesce(neutral, -1), coalesce(positive, -1), \
             coalesce(extract(epoch from min_timestamp), -1)::int8, \
             coalesce(extract(epoch from max_timestamp), -1)::int8 from {}",
            self.table
        );
        let rows = self.runtime.block_on(self.client.query(&sql, &[])).unwrap();
        let row =
            |row: &tokio_postgres::Row| (row.get(0), std::array::from_fn(|at| row.get(at + 1)));
        rows.iter().map(row).collect()
    }

    /// The variables by which Assay writes here.
    fn variables(&self) -> Vec<(&'static str, String)> {
        let authority = std::env::var("ASSAY_TEST_POSTGRES_AUTHORITY").unwrap();
        vec![
            ("ASSAY__SINK__POSTGRES__ENABLED", "true".to_owned()),
            ("ASSAY__SINK__POSTGRES__URL", self.url.clone()),
            ("ASSAY__SINK__POSTGRES__TABLE", self.table.clone()),
            ("ASSAY__SINK__POSTGRES__AUTHORITY_FILE", authority),
        ]
    }
}

fn rows_of(running: &Running) -> Rows {
    let sql = "select mention, negative, neutral, positive, \
               arrow_cast(min_timestamp, 'Int64') / 1000000 as a, \
               arrow_cast(max_timestamp, 'Int64') / 1000000 as b from mention_sentiment";
    let rows = running.sql(sql).into_iter().map(|row| {
        let number = |name: &str| row[name].as_i64().unwrap();
        let counts = ["negative", "neutral", "positive", "a", "b"].map(number);
        (row["mention"].as_str().unwrap().to_owned(), counts)
    });
    rows.collect()
}

#[test]
fn a_mirror_equals_its_relation_after_changes_kills_and_meddling() {
    let mirrored = Mirrored::make();
    let site = Site::new("[model]\nenabled = false\n[tables]\ncheckpoint_interval_s = 1\n");
    let mut numbers = Numbers(11);
    (0..100).for_each(|_| site.change(&mut numbers));
    for round in 0..4 {
        let running = site.start_with(&[], &mirrored.variables());
        let equal = || mirrored.rows() == rows_of(&running);
        running.wait_for("the mirror", equal);
        assert!(!mirrored.rows().is_empty());
        for _ in 0..5 {
            (0..10).for_each(|_| site.change(&mut numbers));
            running.wait_for("the mirror to follow", equal);
        }
        if round == 0 {
            // No one else writes it meanwhile.
            let other = Site::new("[model]\nenabled = false\n[tables]\nenabled = false\n");
            other.tweet("1.json", "@nobody at all");
            let second = other.start_with(&[], &mirrored.variables());
            second.wait_for("a refusal", || second.log().contains("another Assay"));
            assert!(!mirrored.rows().contains_key("nobody"));
        }
        // Changes may be on their way when it dies.
        (0..10).for_each(|_| site.change(&mut numbers));
        running.kill();
        mirrored.execute("delete from TABLE where mention like '%1'");
        mirrored.execute("update TABLE set negative = 77 where mention like '%2'");
        mirrored.execute("insert into TABLE (mention, total) values ('meddler', 1)");
    }
}

#[test]
fn a_mirror_is_never_half_an_epoch() {
    let mirrored = Mirrored::make();
    let site = Site::new("[model]\nenabled = false\n[tables]\nenabled = false\n");
    let running = site.start_with(&[], &mirrored.variables());
    // Each version of the file mentions ten people, ten others each time.
    let names = |version: usize| {
        let names = (0..10).map(|number| format!("@v{version}_{number} "));
        names.collect::<String>()
    };
    let started = std::time::Instant::now();
    let mut versions = 0;
    while versions < 20 {
        versions += 1;
        site.tweet("one.json", &names(versions));
        loop {
            let rows = mirrored.rows();
            assert!([0, 10].contains(&rows.len()), "{:?}", rows.keys());
            let first = rows
                .keys()
                .next()
                .map(|name| name.split('_').next().unwrap().to_owned());
            let whole = |name: &String| Some(name.split('_').next().unwrap()) == first.as_deref();
            assert!(rows.keys().all(whole), "{:?}", rows.keys());
            if first == Some(format!("v{versions}")) {
                break;
            }
            assert!(started.elapsed() < PATIENCE, "{}", running.log());
        }
    }
    running.stop();
}

#[test]
fn a_restart_that_reads_and_scores_everything_again_takes_nothing_away() {
    let mirrored = Mirrored::make();
    let site = Site::new("[tables]\nenabled = false\n[model]\nthreads = 1\n");
    const ROWS: usize = 200;
    // Long texts, so that scoring takes longer than reading.
    let long = "hears of everything there is to hear of and more ".repeat(4);
    for number in 0..ROWS {
        let text = format!("@user{number} {long} {number}");
        site.tweet(&format!("{number}.json"), &text);
    }
    let follows = |running: &Running| running.log().contains("the sink \"postgres\" follows");
    let running = site.start_with(&[], &mirrored.variables());
    running.wait_for("the mirror", || mirrored.rows().len() == ROWS);
    running.stop();
    let running = site.spawn("run", &[], &mirrored.variables());
    running.wait_for("the mirror to follow again", || {
        assert_eq!(mirrored.rows().len(), ROWS);
        follows(&running)
    });
    running.stop();
}

#[test]
fn a_server_that_is_not_the_one_is_not_believed() {
    let mirrored = Mirrored::make();
    let site = Site::new("[model]\nenabled = false\n[tables]\nenabled = false\n");
    site.tweet("1.json", "@bo hears");
    let mut variables = mirrored.variables();
    // The broker's certificate is another's.
    let other = std::env::var("ASSAY_TEST_KAFKA_AUTHORITY").unwrap();
    variables.last_mut().unwrap().1 = other;
    let running = site.start_with(&[], &variables);
    running.wait_for("a refusal", || {
        running.log().contains("cannot connect to PostgreSQL")
    });
    assert!(!running.log().contains("mirror@"), "the password is shown");
    assert!(mirrored.rows().is_empty());
    running.stop();
}
