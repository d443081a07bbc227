//! What tables of PostgreSQL go through, followed through Debezium and Kafka: large values, changed keys,
//! truncations, transactions over tables, connectors that start again; and other forms of messages.
//!
//! Needs what `cargo xtask test` starts.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on should fail there"
)]

mod support;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};

use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use support::database::Database;
use support::numbers::Numbers;
use support::services::{Connector, Services};
use support::{Running, Site};

/// The rows of a table as bronze should have them: by key the text, user, date and label.
fn rows(
    database: &Database,
    topic: &str,
    table: &str,
    date: &str,
) -> BTreeMap<String, [Option<String>; 4]> {
    let sql = format!("select id::text, body, who, {date}, mood::text from {table}");
    let rows = database.query(&sql);
    rows.iter()
        .map(|row| {
            let key: &str = row.get(0);
            (
                format!("{topic}/{key}"),
                [1, 2, 3, 4].map(|column| row.get(column)),
            )
        })
        .collect()
}

fn bronze(running: &Running) -> BTreeMap<String, [Option<String>; 4]> {
    let rows = running.sql("select key, text, \"user\" as who, date, sentiment from bronze");
    rows.iter()
        .map(|row| {
            let column = |name: &str| row[name].as_str().map(str::to_owned);
            let columns = ["text", "who", "date", "sentiment"].map(column);
            (column("key").unwrap(), columns)
        })
        .collect()
}

/// A text that mentions someone; one in three is too large, and too random, to lie in its row.
fn body(numbers: &mut Numbers) -> String {
    let large = numbers.below(3) == 0;
    let words = if large { 700 } else { 3 };
    let words: Vec<_> = (0..words)
        .map(|_| format!("{:x}", numbers.below(1 << 30)))
        .collect();
    format!("@bo {}", words.join(" "))
}

/// One change of one of the tables, and of its model: the ids it has, and whether their texts are large.
fn statement(numbers: &mut Numbers, table: &str, rows: &mut BTreeMap<u64, bool>) -> String {
    let id = numbers.below(40);
    let who = numbers.below(9);
    let Some(large) = rows.get(&id).copied() else {
        let body = body(numbers);
        rows.insert(id, body.len() > 1_000);
        let (mood, at) = (2 * numbers.below(3), numbers.below(1 << 30));
        return format!(
            "insert into {table} values ({id}, '{body}', 'user{who}', to_timestamp({at}) at time zone \
             'utc', {mood});"
        );
    };
    match numbers.below(20) {
        // A large text does not change here, so it is not sent.
        0..=7 => format!("update {table} set who = 'user{who}' where id = {id};"),
        8..=10 => {
            let body = body(numbers);
            rows.insert(id, body.len() > 1_000);
            format!("update {table} set body = '{body}' where id = {id};")
        }
        11..=15 => {
            rows.remove(&id);
            format!("delete from {table} where id = {id};")
        }
        // Nor does it when its row gets another key.
        16..=18 => {
            let new = 100 + numbers.below(1 << 20);
            rows.remove(&id);
            rows.insert(new, large);
            format!("update {table} set id = {new} where id = {id};")
        }
        19 if numbers.below(4) == 0 => {
            rows.clear();
            format!("truncate {table};")
        }
        _ => format!("update {table} set mood = null where id = {id};"),
    }
}

const COLUMNS: &str =
    "id bigint primary key, body text not null, who text, at timestamp, mood smallint";

const LINES: &str = "format = \"FORMAT\"\n[source.columns]\ntext = \"body\"\nuser = \"who\"\n\
                     date = \"at\"\nsentiment = \"mood\"\n[mentions]\nnumeric_date = \"microseconds\"\n\
                     [model]\nenabled = false\n[tables]\ncheckpoint_interval_s = 1\n";

/// Dates as JSON has them, counts of microseconds, and as Avro does, whose schemas tell what is counted.
const COUNTED: &str = "(extract(epoch from at) * 1000000)::bigint::text";
const WRITTEN: &str = "to_char(at, 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"')";

/// What makes a connector write Avro: Confluent's wire format, or else with numbers in headers.
fn avro(in_headers: bool) -> Value {
    let registry =
        std::env::var("ASSAY_TEST_REGISTRY_CONVERTER").expect("set by `cargo xtask test`");
    let mut settings = json!({
        "skipped.operations": "none",
        "schema.name.adjustment.mode": "avro",
        "field.name.adjustment.mode": "avro",
    });
    for part in ["key", "value"] {
        let converter = format!("{part}.converter");
        settings[&converter] = json!("io.apicurio.registry.utils.converter.AvroConverter");
        let mut set = |name: &str, value: &str| {
            settings[format!("{converter}.apicurio.registry.{name}")] = json!(value);
        };
        set("url", &registry);
        set("auto-register", "true");
        set("use-id", "contentId");
        set("headers.enabled", &in_headers.to_string());
        set("as-confluent", &(!in_headers).to_string());
    }
    settings
}

/// The lines that have Avro read, with a registry that is asked there.
fn avro_lines(registry: &str) -> String {
    format!("encoding = \"avro\"\nregistry = {{ url = \"{registry}\" }}\n")
}

fn registry() -> String {
    std::env::var("ASSAY_TEST_REGISTRY").expect("set by `cargo xtask test`")
}

/// A site that reads topics; `topics` is TOML.
fn site(services: &Services, topics: &str, format: &str) -> Site {
    let kafka = services.kafka();
    let lines = LINES.replace("FORMAT", format);
    Site::new(&format!(
        "[source]\nkind = \"kafka\"\n[source.kafka.properties]\n\"bootstrap.servers\" = \"{kafka}\"\n\
         [source.kafka]\ntopics = {topics}\n{lines}"
    ))
}

#[test]
fn whatever_tables_go_through_is_followed() {
    let settings = json!({ "skipped.operations": "none" });
    follow("through", &settings, "", COUNTED);
}

#[test]
fn whatever_tables_go_through_is_followed_in_avro() {
    follow("avro", &avro(false), &avro_lines(&registry()), WRITTEN);
}

/// Follows two tables through all that can happen to them.
fn follow(name: &str, settings: &Value, lines: &str, date: &str) {
    let services = Services::find();
    let database = Database::connect(&services);
    let tables = [&*format!("{name}_a"), &*format!("{name}_b")];
    for table in tables {
        database.run(&format!("create table {table} ({COLUMNS})"));
        database.run(&format!(
            "insert into {table} values (1, '@bo first', 'ada', null, 4)"
        ));
    }
    let connector = services.capture_as(name, &tables, settings);
    let topic = |table: &str| format!("{name}.public.{table}");
    for table in tables {
        services.wait_for_topic(&topic(table));
    }
    let site = site(
        &services,
        &format!("['^{name}\\.public\\.{name}_[ab]$']\n{lines}"),
        "debezium",
    );

    let mut numbers = Numbers(7);
    let mut models = [BTreeMap::from([(1, false)]), BTreeMap::from([(1, false)])];
    let mut change = |count: usize| {
        for _ in 0..count {
            let mut transaction = "begin;".to_owned();
            for _ in 0..1 + numbers.below(4) {
                let one = numbers.below(2) as usize;
                transaction += &statement(&mut numbers, tables[one], &mut models[one]);
            }
            database.run(&(transaction + "commit;"));
        }
    };
    let running = site.start(&["--workers", "2"]);
    change(150);
    connector.restart();
    change(50);
    running.kill();
    change(100);
    let running = site.start(&["--workers", "3"]);
    change(100);
    // What comes last in each topic tells that all before it have come.
    for table in tables {
        database.run(&format!(
            "insert into {table} values (5000000, '@cy last', 'last', null, null)"
        ));
    }
    running.wait_for("the last rows", || {
        running.number("select count(*) from bronze where \"user\" = 'last'") == 2
    });
    let mut expected = BTreeMap::new();
    for table in tables {
        expected.extend(rows(&database, &topic(table), table, date));
    }
    assert!(expected.len() > 20, "{}", expected.len());
    let found = bronze(&running);
    let differ: Vec<_> = expected
        .iter()
        .filter(|(key, row)| found.get(*key) != Some(row))
        .map(|(key, row)| {
            (
                key,
                row.clone().map(short),
                found.get(key).cloned().map(|r| r.map(short)),
            )
        })
        .collect();
    assert!(differ.is_empty(), "{differ:?}");
    assert_eq!(found.len(), expected.len());
    assert_eq!(
        running.number("select count(*) from rejects where stage = 'decode'"),
        0
    );
    running.stop();
}

fn short(text: Option<String>) -> Option<String> {
    text.map(|text| text.chars().take(40).collect())
}

/// A registry that is out of order for a while, and then passes questions on to the real one.
fn failing_registry(failures: usize) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let real = registry();
    let real = real.strip_prefix("http://").unwrap();
    let (real, prefix) = real.split_once('/').unwrap();
    let (real, prefix) = (real.to_owned(), prefix.to_owned());
    std::thread::spawn(move || {
        for (number, stream) in listener.incoming().enumerate() {
            let mut stream = stream.unwrap();
            let mut line = String::new();
            BufReader::new(&stream).read_line(&mut line).unwrap();
            let path = line.split(' ').nth(1).unwrap();
            if number < failures {
                let answer = "HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\n\r\n";
                stream.write_all(answer.as_bytes()).unwrap();
                continue;
            }
            let mut asked = TcpStream::connect(&real).unwrap();
            write!(
                asked,
                "GET /{prefix}{path} HTTP/1.0\r\nHost: {real}\r\n\r\n"
            )
            .unwrap();
            let mut answer = Vec::new();
            asked.read_to_end(&mut answer).unwrap();
            stream.write_all(&answer).unwrap();
        }
    });
    format!("http://{address}")
}

#[test]
fn avro_with_numbers_in_headers_waits_for_its_registry_and_follows_its_schema() {
    let services = Services::find();
    let database = Database::connect(&services);
    database.run(&format!("create table headed ({COLUMNS})"));
    database.run(
        "insert into headed values (1, '@bo one', 'ada', null, 4), (2, '@cy two', 'bo', null, 0)",
    );
    let _connector = services.capture_as("headed", &["headed"], &avro(true));
    services.wait_for_topic("headed.public.headed");
    let lines = avro_lines(&failing_registry(3));
    let site = site(
        &services,
        &format!("['headed.public.headed']\n{lines}"),
        "debezium",
    );
    let running = site.start(&[]);
    running.wait_for("the snapshot", || {
        running.number("select count(*) from bronze") == 2
    });
    let (_, metrics) = running.get("/metrics").unwrap();
    assert!(
        metrics.contains("assay_source_retries_total{source=\"tweets\"}"),
        "{metrics}"
    );
    // Columns come, change and go; each time the registry has another schema.
    database.run("alter table headed add column place text default 'here'; update headed set who = 'cy' where id = 1");
    database.run("alter table headed alter column mood type bigint; insert into headed values (3, '@di three', 'di', null, 2)");
    database.run("alter table headed drop column who; delete from headed where id = 2; update headed set body = '@ed' where id = 3");
    running.wait_for("the changes", || {
        let row = "select count(*) from bronze where text = '@ed' and \"user\" is null and sentiment = '2'";
        running.number(row) == 1
    });
    assert_eq!(running.number("select count(*) from bronze"), 2);
    let log = running.log();
    for change in ["added=\"place\" gone=\"\"", "added=\"\" gone=\"who\""] {
        let said = log.lines().any(|line| {
            line.contains("the columns of a table have changed") && line.contains(change)
        });
        assert!(said, "{log}");
    }
    // What does not suit is rejected by itself, with its field and why; the rest goes on.
    database.run(
        "alter table headed alter column body type integer using 7; \
         insert into headed values (4, 5, null, 0)",
    );
    let reason = "select reason from rejects where stage = 'decode' and key = '4'";
    running.wait_for("the reject", || running.sql(reason).len() == 1);
    let said = running.sql(reason)[0]["reason"]
        .as_str()
        .unwrap()
        .to_owned();
    assert_eq!(
        said,
        "field \"after.body\": expected a string, found a whole number"
    );
    database.run(
        "alter table headed alter column body type text; update headed set body = '@fi' where id = 4",
    );
    running.wait_for("the row", || running.sql(reason).is_empty());
    assert_eq!(running.number("select count(*) from bronze"), 3);
    running.stop();
}

/// Rows that go from one table to the other, one a transaction: there are always as many.
const MOVED: i64 = 100;

/// Moves rows between two tables for as many rounds as are wanted, while what is shown of them is looked at.
fn move_rows(
    name: &str,
    goes_on: impl Fn(usize, &Connector) -> bool + Send + Sync,
    look: impl FnOnce(Site, &AtomicBool),
) {
    let services = Services::find();
    let database = Database::connect(&services);
    let tables = ["a", "b"].map(|table| format!("{name}_{table}"));
    for table in &tables {
        database.run(&format!("create table {table} ({COLUMNS})"));
    }
    database.run(&format!(
        "insert into {} select n, '@bo ' || n, 'ada', null, 4 from generate_series(1, {MOVED}) n",
        tables[0]
    ));
    let settings = json!({ "provide.transaction.metadata": "true" });
    let names = tables.each_ref().map(String::as_str);
    let connector = services.capture_as(name, &names, &settings);
    services.wait_for_topic(&format!("{name}.public.{}", tables[0]));
    let topics = format!("['^{name}\\.public\\..*$']\ntransactions = \"{name}.transaction\"");
    let site = site(&services, &topics, "debezium");
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in (0..).take_while(|number| goes_on(*number, &connector)) {
                let (from, to) = (&tables[number % 2], &tables[(number + 1) % 2]);
                for id in 1..=MOVED {
                    database.run(&format!(
                        "begin; insert into {to} select * from {from} where id = {id}; \
                         delete from {from} where id = {id}; commit;"
                    ));
                }
            }
            let last = format!(
                "insert into {} values (1000, '@cy last', 'last', null, null)",
                tables[0]
            );
            database.run(&last);
            done.store(true, Ordering::Relaxed);
        });
        look(site, &done);
    });
}

/// Whether the last row is there. There are always as many others.
fn all_are_there(running: &Running) -> bool {
    let counted =
        "select count(*) as rows, count(*) filter (where \"user\" = 'last') as last from bronze";
    let row = &running.sql(counted)[0];
    let (rows, last) = (row["rows"].as_i64().unwrap(), row["last"].as_i64().unwrap());
    assert_eq!(rows - last, MOVED);
    last == 1
}

fn snapshot_is_there(running: &Running) {
    running.wait_for("the snapshot", || {
        running.number("select count(*) from bronze") == MOVED
    });
}

#[test]
fn a_transaction_over_tables_is_seen_whole_or_not_at_all() {
    let restarted = |round: usize, connector: &Connector| {
        if round == 11 {
            connector.restart();
        }
        round < 20
    };
    move_rows("whole", restarted, |site, done| {
        let running = site.start(&["--workers", "2"]);
        snapshot_is_there(&running);
        running.wait_for("the last row", || {
            all_are_there(&running) && done.load(Ordering::Relaxed)
        });
        let undecoded = "select count(*) from rejects where stage = 'decode'";
        assert_eq!(running.number(undecoded), 0);
        running.stop();
    });
}

#[test]
fn a_transaction_is_seen_whole_after_kills() {
    let killed = AtomicBool::new(false);
    move_rows(
        "killed",
        |_, _| !killed.load(Ordering::Relaxed),
        |site, done| {
            let mut running = site.start(&["--workers", "2"]);
            snapshot_is_there(&running);
            running.wait_for("a checkpoint", || {
                site.tables()["bronze"].len() as i64 == MOVED
            });
            for kill in 0..5 {
                let in_first = "select count(*) from bronze where key like '%_a/%'";
                let seen = RefCell::new(BTreeSet::new());
                running.wait_for("rows to move", || {
                    all_are_there(&running);
                    seen.borrow_mut().insert(running.number(in_first));
                    seen.borrow().len() > 5
                });
                running.kill();
                running = site.start(&["--workers", if kill % 2 == 0 { "1" } else { "2" }]);
                running.wait_for("readiness", || {
                    let ready = running.get("/readyz");
                    ready.is_some_and(|(status, _)| status == 200)
                });
            }
            killed.store(true, Ordering::Relaxed);
            running.wait_for("the last row", || {
                all_are_there(&running) && done.load(Ordering::Relaxed)
            });
            running.stop();
            assert_eq!(site.tables()["bronze"].len() as i64, MOVED + 1);
        },
    );
}

#[test]
fn flattened_rows_and_topics_that_come_later_are_read() {
    let services = Services::find();
    let database = Database::connect(&services);
    database.run(&format!("create table flat_one ({COLUMNS})"));
    database.run(
        "insert into flat_one values (1, '@bo one', 'ada', null, 4), (2, '@cy two', 'bo', null, 0)",
    );
    let settings = json!({
        "transforms": "unwrap",
        "transforms.unwrap.type": "io.debezium.transforms.ExtractNewRecordState",
        "transforms.unwrap.delete.tombstone.handling.mode": "rewrite",
        "transforms.unwrap.add.fields": "op,lsn",
    });
    let _one = services.capture_as("flat", &["flat_one"], &settings);
    services.wait_for_topic("flat.public.flat_one");
    let site = site(&services, "['^flat.*\\.public\\.']", "flattened");
    let running = site.start(&["--workers", "2"]);
    let count = || running.number("select count(*) from bronze");
    running.wait_for("the snapshot", || count() == 2);
    database.run("delete from flat_one where id = 1; update flat_one set who = 'cy' where id = 2");
    let changed =
        "select count(*) from bronze where key = 'flat.public.flat_one/2' and \"user\" = 'cy'";
    running.wait_for("the changes", || {
        count() == 1 && running.number(changed) == 1
    });

    // A table, a connector and a topic that were not there when the program started.
    database.run(&format!("create table flat_two ({COLUMNS})"));
    database.run("insert into flat_two values (2, '@bo other', 'ada', null, 4)");
    let _two = services.capture_as("flat2", &["flat_two"], &settings);
    running.wait_for("the new topic", || count() == 2);
    running.stop();
    let keys: Vec<_> = site.tables()["bronze"]
        .iter()
        .map(|row| row.split(' ').next().unwrap().to_owned())
        .collect();
    assert_eq!(
        keys,
        [
            "key=\"flat.public.flat_one/2\"",
            "key=\"flat2.public.flat_two/2\""
        ]
    );
}

#[test]
fn a_text_that_cannot_be_known_is_a_reject_until_it_is_sent() {
    let services = Services::find();
    let database = Database::connect(&services);
    database.run(&format!("create table unknown_text ({COLUMNS})"));
    let mut numbers = Numbers(3);
    let large: String = (0..700)
        .map(|_| format!("{:x}", numbers.below(1 << 30)))
        .collect();
    database.run(&format!(
        "insert into unknown_text values (1, '{large}', 'ada', null, 4)"
    ));
    // Without a snapshot nothing tells of the row as it is.
    let settings = json!({ "snapshot.mode": "no_data" });
    let _connector = services.capture_as("unknown", &["unknown_text"], &settings);
    // The slot is there before the connector is said to run.
    database.run("update unknown_text set who = 'bo' where id = 1");
    services.wait_for_topic("unknown.public.unknown_text");
    let site = site(&services, "['unknown.public.unknown_text']", "debezium");
    let running = site.start(&[]);
    let reasons =
        || -> Vec<Value> { running.sql("select reason from rejects where stage = 'decode'") };
    running.wait_for("the reject", || reasons().len() == 1);
    let reason = reasons()[0]["reason"].as_str().unwrap().to_owned();
    assert!(
        reason.contains("\"after.body\"") && reason.contains("replica identity full"),
        "{reason}"
    );
    database.run("update unknown_text set body = '@bo short' where id = 1");
    running.wait_for("the row", || {
        reasons().is_empty()
            && running.number("select count(*) from bronze where text = '@bo short'") == 1
    });
    running.stop();
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is set by `cargo xtask test`"))
}

/// A topic with one row, read from brokers that guard it.
struct Guarded {
    topic: String,
    _connector: Connector,
}

impl Guarded {
    fn new(name: &str) -> Self {
        let services = Services::find();
        let database = Database::connect(&services);
        database.run(&format!("create table {name} ({COLUMNS})"));
        database.run(&format!(
            "insert into {name} values (1, '@bo one', 'ada', null, 4)"
        ));
        let connector = services.capture_as(name, &[name], &json!({}));
        let topic = connector.topic();
        services.wait_for_topic(&topic);
        Self {
            topic,
            _connector: connector,
        }
    }

    /// Reads the topic with these properties, the last of which is a secret and comes by the environment;
    /// returns what became of it.
    fn read(&self, properties: &[(&str, &str)], secret: (&str, &str)) -> Result<(), String> {
        let properties: String = properties
            .iter()
            .map(|(name, value)| format!("\"{name}\" = \"{value}\"\n"))
            .collect();
        let lines = LINES.replace("FORMAT", "debezium");
        let site = Site::new(&format!(
            "[source]\nkind = \"kafka\"\n[source.kafka.properties]\n{properties}\
             [source.kafka]\ntopics = ['{}']\n{lines}",
            self.topic
        ));
        let name = secret.0.replace('.', "_").to_uppercase();
        let output = support::assay()
            .arg("run")
            .arg(site.path("assay.toml"))
            .arg("--until-idle")
            .env(
                format!("ASSAY__SOURCE__KAFKA__PROPERTIES__{name}"),
                secret.1,
            )
            .env("ASSAY_LOG", "trace")
            .output()
            .unwrap();
        let said =
            String::from_utf8(output.stderr).unwrap() + &String::from_utf8_lossy(&output.stdout);
        assert!(!said.contains(secret.1), "a secret in the log");
        match output.status.code() {
            Some(0) => assert_eq!(site.tables()["bronze"].len(), 1),
            code => {
                assert_eq!(code, Some(2), "{said}");
                return Err(said);
            }
        }
        Ok(())
    }
}

#[test]
fn a_broker_that_asks_for_tls_and_a_password_is_read() {
    let broker = variable("ASSAY_TEST_KAFKA_SECURE");
    let authority = variable("ASSAY_TEST_KAFKA_AUTHORITY");
    let password = variable("ASSAY_TEST_KAFKA_PASSWORD");
    let guarded = Guarded::new("guarded");
    for mechanism in ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] {
        let properties = [
            ("bootstrap.servers", &*broker),
            ("security.protocol", "SASL_SSL"),
            ("sasl.mechanism", mechanism),
            ("sasl.username", "assay"),
            ("ssl.ca.location", &*authority),
        ];
        let read = |password| guarded.read(&properties, ("sasl.password", password));
        assert_eq!(read(&*password), Ok(()));
        let said = read("another password").unwrap_err();
        assert!(
            said.contains("cannot reach the kafka brokers") && said.contains("uthentication"),
            "{said}"
        );
        // A broker whose certificate nobody vouches for is not spoken to.
        let unknown = guarded.read(&properties[..4], ("sasl.password", &*password));
        let said = unknown.unwrap_err();
        assert!(said.contains("certificate"), "{said}");
    }
}

#[test]
fn a_broker_that_asks_for_a_certificate_is_read() {
    let broker = variable("ASSAY_TEST_KAFKA_CERTIFICATE");
    let authority = variable("ASSAY_TEST_KAFKA_AUTHORITY");
    let store = variable("ASSAY_TEST_KAFKA_CLIENT_STORE");
    let password = variable("ASSAY_TEST_KAFKA_PASSWORD");
    let guarded = Guarded::new("certified");
    let properties = [
        ("bootstrap.servers", &*broker),
        ("security.protocol", "SSL"),
        ("ssl.ca.location", &*authority),
        ("ssl.keystore.location", &*store),
    ];
    let secret = ("ssl.keystore.password", &*password);
    assert_eq!(guarded.read(&properties, secret), Ok(()));
    let said = guarded
        .read(&properties[..3], ("sasl.password", "none"))
        .unwrap_err();
    assert!(said.contains("cannot reach the kafka brokers"), "{said}");
    let said = guarded
        .read(&properties, ("ssl.keystore.password", "another"))
        .unwrap_err();
    assert!(said.contains("ssl.keystore"), "{said}");
}

/// An endpoint that gives tokens to those who know the secret; the broker looks at what they say, and not at
/// who signed them.
fn token_endpoint(id: &str, secret: &str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let expected = format!("Basic {}", BASE64_STANDARD.encode(format!("{id}:{secret}")));
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let lines = BufReader::new(&stream).lines().map(Result::unwrap);
            let head: Vec<_> = lines.take_while(|line| !line.is_empty()).collect();
            let shown = head.iter().find_map(|line| {
                let (name, value) = line.split_once(": ")?;
                name.eq_ignore_ascii_case("authorization").then_some(value)
            });
            let answer = if shown == Some(&*expected) {
                let now = assay::now_ms() / 1_000;
                let claims = json!({ "sub": "assay", "iat": now, "exp": now + 60 });
                let part = |part: &Value| BASE64_URL_SAFE_NO_PAD.encode(part.to_string());
                let token = format!("{}.{}.", part(&json!({ "alg": "none" })), part(&claims));
                let body =
                    json!({ "access_token": token, "token_type": "bearer", "expires_in": 60 });
                let body = body.to_string();
                format!("200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())
            } else {
                "401 Unauthorized\r\nContent-Length: 0\r\n\r\n".to_owned()
            };
            write!(stream, "HTTP/1.1 {answer}").unwrap();
        }
    });
    format!("http://{address}/token")
}

#[test]
fn a_broker_that_asks_for_a_token_is_read() {
    let broker = variable("ASSAY_TEST_KAFKA_SECURE");
    let authority = variable("ASSAY_TEST_KAFKA_AUTHORITY");
    let endpoint = token_endpoint("the client", "the secret of the client");
    let guarded = Guarded::new("tokened");
    let properties = [
        ("bootstrap.servers", &*broker),
        ("security.protocol", "SASL_SSL"),
        ("ssl.ca.location", &*authority),
        ("sasl.mechanism", "OAUTHBEARER"),
        ("sasl.oauthbearer.method", "oidc"),
        ("sasl.oauthbearer.client.id", "the client"),
        ("sasl.oauthbearer.token.endpoint.url", &*endpoint),
    ];
    let read = |count: usize, secret| {
        guarded.read(
            &properties[..count],
            ("sasl.oauthbearer.client.secret", secret),
        )
    };
    assert_eq!(read(7, "the secret of the client"), Ok(()));
    let said = read(7, "another secret").unwrap_err();
    assert!(said.contains("it answers 401"), "{said}");
    let said = read(6, "the secret of the client").unwrap_err();
    let missing = "\"sasl.oauthbearer.token.endpoint.url\" is missing";
    assert!(said.contains(missing), "{said}");
}

/// How a connector writes times, and what then counts those of `stamp`, `short_stamp`, `day` and `zoned`; nothing
/// for a text.
const TIME_MODES: [(&str, [&str; 4]); 6] = [
    ("adaptive", ["microseconds", "milliseconds", "days", ""]),
    (
        "adaptive_time_microseconds",
        ["microseconds", "milliseconds", "days", ""],
    ),
    ("connect", ["milliseconds", "milliseconds", "days", ""]),
    ("isostring", ["", "", "", ""]),
    ("microseconds", ["microseconds", "microseconds", "days", ""]),
    ("nanoseconds", ["nanoseconds", "nanoseconds", "days", ""]),
];

#[test]
fn times_are_understood_in_every_precision_mode() {
    let services = Services::find();
    let database = Database::connect(&services);
    let columns = [
        ("stamp", "2009-04-06T22:19:45.123Z"),
        ("short_stamp", "2009-04-06T22:19:45.123Z"),
        ("day", "2009-04-06T00:00:00Z"),
        ("zoned", "2009-04-06T20:19:45.123Z"),
    ];
    let in_json = TIME_MODES.map(|(mode, units)| {
        let settings = json!({ "time.precision.mode": mode });
        (format!("timed_{mode}"), settings, units, String::new())
    });
    let (settings, lines) = (avro(false), avro_lines(&registry()));
    let in_avro = ("timed_avro".to_owned(), settings, [""; 4], lines);
    for (name, settings, units, lines) in in_json.into_iter().chain([in_avro]) {
        database.run(&format!(
            "create table {name} (id bigint primary key, body text, stamp timestamp, short_stamp timestamp(3), \
             day date, zoned timestamptz); \
             insert into {name} values (1, '@bo one', '2009-04-06 22:19:45.123', '2009-04-06 22:19:45.123', \
             '2009-04-06', '2009-04-06 22:19:45.123+02')"
        ));
        let connector = services.capture_as(&name, &[&name], &settings);
        services.wait_for_topic(&connector.topic());
        for ((column, expected), unit) in columns.iter().zip(units) {
            let topics = format!("['{}']\n{lines}", connector.topic());
            let site = site(&services, &topics, "debezium");
            let configuration = std::fs::read_to_string(site.path("assay.toml")).unwrap();
            let configuration = configuration
                .replace("date = \"at\"", &format!("date = \"{column}\""))
                .replace("\"microseconds\"", &format!("\"{unit}\""));
            std::fs::write(site.path("assay.toml"), configuration).unwrap();
            let running = site.start(&[]);
            running.wait_for(&format!("the row of {name}"), || {
                running.number("select count(*) from bronze") == 1
            });
            let rows = format!("select count(*) from silver where timestamp = '{expected}'");
            let date = || running.sql("select date from bronze");
            assert_eq!(running.number(&rows), 1, "{name}.{column}: {:?}", date());
            running.stop();
        }
    }
}

#[test]
fn the_doctor_looks_into_messages() {
    let services = Services::find();
    let database = Database::connect(&services);
    let tables = ["looked_at_full", "looked_at_default"];
    for table in tables {
        database.run(&format!(
            "create table {table} ({COLUMNS}, lang text); \
             insert into {table} values (1, '@bo one', 'ada', '2009-04-06 22:19:45', 4)"
        ));
    }
    database.run("alter table looked_at_full replica identity full");
    let settings = json!({ "provide.transaction.metadata": "true" });
    let _connector = services.capture_as("looked", &tables, &settings);
    database.run("update looked_at_full set who = 'bo'; update looked_at_default set who = 'bo'");
    services.wait_for_topic("looked.transaction");
    let site = site(&services, "['^looked\\.public\\.']", "debezium");
    let configuration = std::fs::read_to_string(site.path("assay.toml")).unwrap();
    let unnamed = configuration.replace("numeric_date = \"microseconds\"", "");
    std::fs::write(site.path("assay.toml"), unnamed).unwrap();
    let mut said = String::new();
    support::services::wait_for("the updates", || {
        let mut command = support::assay();
        let output = command
            .arg("doctor")
            .arg(site.path("assay.toml"))
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        said = String::from_utf8(output.stdout).unwrap();
        !said.contains("no update there")
    });
    for line in [
        "ok    debezium  postgresql 3.",
        "ok    debezium  table public.looked_at_default: replica identity default",
        "ok    debezium  table public.looked_at_full: replica identity full",
        "note  debezium  half of a transaction may be seen for a moment: source.kafka.transactions = \
         \"looked.transaction\"",
        "note  columns   not kept: lang; source.further_columns = true keeps them in bronze",
        "note  dates     some are numbers, such as 1239056385000000: say in mentions.numeric_date what they \
         count, likely \"microseconds\"",
    ] {
        assert!(said.contains(line), "{line} is not in\n{said}");
    }
}

#[test]
fn rejects_heal_when_the_configuration_does() {
    let services = Services::find();
    let database = Database::connect(&services);
    database.run(&format!("create table healed ({COLUMNS})"));
    database.run(
        "insert into healed select n, '@bo ' || n, 'ada', null, 4 from generate_series(1, 50) n",
    );
    let _connector = services.capture_as("healed", &["healed"], &json!({}));
    services.wait_for_topic("healed.public.healed");
    let site = site(&services, "['healed.public.healed']", "debezium");
    let right = std::fs::read_to_string(site.path("assay.toml")).unwrap();
    // The column is called otherwise: nothing can be used, and nothing is lost.
    let wrong = right.replace("text = \"body\"", "text = \"words\"");
    std::fs::write(site.path("assay.toml"), &wrong).unwrap();
    let running = site.start(&[]);
    let rejects = "select count(*) from rejects where stage = 'decode'";
    running.wait_for("the rejects", || running.number(rejects) == 50);
    database.run("delete from healed where id = 1");
    running.wait_for("the delete", || running.number(rejects) == 49);
    let listed = running.ask(&["rejects", "list"]);
    let reason = "field \"after.words\": expected a string, found nothing";
    assert!(listed.contains(reason) && listed.contains("49"), "{listed}");
    running.stop();

    // A start tries them again by what the configuration says then, and an order does while it runs.
    let running = site.start(&["--workers", "2"]);
    assert_eq!(running.number(rejects), 49);
    std::fs::write(site.path("assay.toml"), "source = 7").unwrap();
    running.ask(&["rejects", "retry"]);
    running.wait_for("the mistake to be told", || {
        running.log().contains("is kept to")
    });
    assert_eq!(running.number(rejects), 49);
    std::fs::write(site.path("assay.toml"), &right).unwrap();
    running.ask(&["rejects", "retry"]);
    running.wait_for("the retry", || running.number(rejects) == 0);
    assert_eq!(running.number("select count(*) from bronze"), 49);
    // What comes is read by it, too.
    database.run("update healed set body = '@di' where id = 3");
    running.wait_for("the update", || {
        running.number("select count(*) from bronze where text = '@di' and key = '3'") == 1
    });
    running.stop();
    let running = site.start(&["--workers", "2"]);
    assert_eq!(running.number(rejects), 0);
    assert_eq!(running.number("select count(*) from bronze"), 49);
    database.run("update healed set body = '@cy' where id = 2");
    running.wait_for("the update", || {
        running.number("select count(*) from bronze where text = '@cy' and key = '2'") == 1
    });
    running.stop();
    assert_eq!(site.tables()["bronze"].len(), 49);
}
