//! Tables of PostgreSQL whose columns change while they are read, and such as have no key.
//!
//! Needs what `cargo xtask test` starts.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on should fail there"
)]

mod support;

use std::collections::BTreeMap;

use connectors::delta::{Deletes, Table, TablesFolder};
use dataflows::pipelines::mentions;
use serde_json::json;
use support::database::Database;
use support::numbers::Numbers;
use support::services::Services;
use support::{Running, Site, free_port};

const DATE: &str = "2009-04-06T22:19:45Z";

/// A site that reads a topic of a table with these columns.
fn site(services: &Services, topic: &str, source: &str, kafka: &str, lines: &str) -> Site {
    let brokers = services.kafka();
    Site::new(&format!(
        "[source]\nkind = \"kafka\"\n{source}[source.kafka.properties]\n\"bootstrap.servers\" = \"{brokers}\"\n\
         [source.kafka]\ntopics = [\"{topic}\"]\n{kafka}[source.columns]\ntext = \"body\"\nuser = \"who\"\n\
         date = \"at\"\nsentiment = \"mood\"\n[model]\nenabled = false\n\
         [tables]\ncheckpoint_interval_s = 1\n{lines}"
    ))
}

/// The columns of bronze's table besides its own, as any reader of it sees them.
fn further(site: &Site) -> Vec<String> {
    let folder = TablesFolder::open(site.path("tables").to_str().unwrap()).unwrap();
    let (relation, schema) = mentions::schemas()[0].clone();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let table = Table::open_existing(&folder, relation, schema, Deletes::Vectors);
    let table = runtime.block_on(table).unwrap();
    table.map_or_else(Vec::new, |table| table.further().unwrap())
}

/// Rows of bronze, the columns in this order.
fn bronze(running: &Running, columns: &[&str]) -> Vec<Vec<Option<String>>> {
    let names = columns.join(", ");
    let rows = running.sql(&format!("select {names} from bronze order by key"));
    let text = |value: &serde_json::Value| value.as_str().map(str::to_owned);
    rows.iter()
        .map(|row| columns.iter().map(|name| text(&row[*name])).collect())
        .collect()
}

#[test]
fn columns_come_go_and_change_while_their_table_is_read() {
    let services = Services::find();
    let database = Database::connect(&services);
    database.run(
        "create table evolving (id text primary key, body text, who text, at timestamp, mood numeric(2,0), lang text);
         insert into evolving select 'a' || i, '@bo ' || i, 'ada', '2009-04-06 22:19:45.5', 4, 'en'
             from generate_series(1, 5) i;",
    );
    let settings = json!({
        "key.converter.schemas.enable": "true",
        "value.converter.schemas.enable": "true",
    });
    let connector = services.capture_as("evolving", &["evolving"], &settings);
    let topic = "evolving.public.evolving";
    services.wait_for_topic(topic);
    let postgres = free_port();
    let lines = format!("[server.postgres]\nenabled = true\nlisten = \"127.0.0.1:{postgres}\"\n");
    let site = site(&services, topic, "further_columns = true\n", "", &lines);
    let running = site.start(&["--workers", "2"]);
    running.wait_for("the snapshot", || {
        running.number("select count(*) from bronze where lang = 'en'") == 5
    });
    // With schemas, dates and decimals need no settings.
    let first = running.sql("select date, sentiment, id from bronze where key = 'a1'");
    assert_eq!(first[0]["date"], "2009-04-06T22:19:45.500Z");
    assert_eq!(
        (&first[0]["sentiment"], &first[0]["id"]),
        (&json!("4"), &json!("a1"))
    );
    let count = "select count(*) from mention_sentiment where positive > 0";
    assert_eq!(running.number(count), 1);

    // A client that is connected before a column comes sees it as well.
    let client = Database::connect_to(&format!("postgres://assay@127.0.0.1:{postgres}/assay"));
    let select = "select likes, tags, price from bronze where key = 'b1'";
    database.run(
        "alter table evolving add column likes int, add column tags text[], add column price numeric(10,2),
             add column seen date, add column flag boolean default true, add column document jsonb,
             add column code uuid;
         insert into evolving values ('b1', '@cy', 'bo', null, null, 'de', 7, '{x,\"y z\"}', 12.50, '2020-02-29',
             false, '{\"k\": [1, 2]}', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11');",
    );
    running.wait_for("a row with new columns", || {
        running.number("select count(*) from bronze where key = 'b1'") == 1
    });
    let row = client.texts(select).remove(0);
    let expected = ["7", r#"["x","y z"]"#, "12.50"].map(|text| Some(text.to_owned()));
    assert_eq!(row, expected);
    running.wait_for("columns in the table", || further(&site).len() == 9);

    database.run(
        "alter table evolving rename column lang to language;
         alter table evolving alter column likes type bigint;
         alter table evolving drop column tags;
         insert into evolving (id, body, language, likes) values ('c1', '@bo', 'fr', 9223372036854775807);",
    );
    running.wait_for("a row after a column was renamed", || {
        running.number("select count(*) from bronze where key = 'c1'") == 1
    });
    let row = running.sql("select language, likes, lang, tags from bronze where key = 'c1'");
    assert_eq!(row[0]["language"], "fr");
    assert_eq!(row[0]["likes"], "9223372036854775807");
    assert!(row[0]["lang"].is_null() && row[0]["tags"].is_null());

    // What does not suit any more is rejected, and the rest goes on.
    database.run(
        "alter table evolving alter column body type bigint using 1;
         insert into evolving (id, body, who) values ('d1', 5, 'cy');",
    );
    running.wait_for("a reject", || {
        running.number(
            "select count(*) from rejects where key = 'd1' and reason like 'field \"after.body\"%'",
        ) == 1
    });
    running.kill();
    connector.restart();
    database.run(
        "alter table evolving alter column body type text using '@bo ' || body;
         update evolving set who = coalesce(who, '') || '!';",
    );
    let running = site.start(&["--workers", "3"]);
    running.wait_for("the rows that were rejected", || {
        running.number("select count(*) from bronze where \"user\" like '%!'") == 8
    });
    let columns = "key, text, user, language, likes, price, seen, flag, document, code";
    let columns: Vec<_> = columns.split(", ").collect();
    let expected = database.texts(
        "select id, body, who, language, likes::text, price::text, seen::text || 'Z', flag::text,
             document::text, code::text
         from evolving order by id",
    );
    let quoted: Vec<_> = columns
        .iter()
        .map(|name| if *name == "user" { "\"user\"" } else { name })
        .collect();
    let found = running.sql(&format!(
        "select {} from bronze order by key",
        quoted.join(", ")
    ));
    let found: Vec<Vec<_>> = found
        .iter()
        .map(|row| {
            columns
                .iter()
                .map(|name| row[*name].as_str().map(str::to_owned))
                .collect()
        })
        .collect();
    assert_eq!(found, expected);
    assert_eq!(running.number("select count(*) from rejects"), 3);
    let (_, relations) = running.get("/v1/relations/bronze?key=c1").unwrap();
    assert!(relations.contains("\"language\":\"fr\""), "{relations}");
    running.stop();
    let names = further(&site);
    for name in [
        "id", "lang", "language", "likes", "tags", "price", "seen", "flag", "document", "code",
    ] {
        assert!(names.contains(&name.to_owned()), "{names:?} lacks {name}");
    }
}

#[test]
fn equal_rows_of_a_table_without_a_key_are_counted() {
    let services = Services::find();
    let database = Database::connect(&services);
    database.run(
        "create table keyless (body text, who text, at text, mood int);
         alter table keyless replica identity full;
         insert into keyless values ('@bo', 'ada', '2009-04-06T00:00:00Z', 4), ('@bo', 'ada', '2009-04-06T00:00:00Z', 4),
             ('@cy', null, '2009-04-06T00:00:00Z', 0);",
    );
    let settings = json!({ "skipped.operations": "none" });
    let connector = services.capture_as("keyless", &["keyless"], &settings);
    let topic = "keyless.public.keyless";
    services.wait_for_topic(topic);
    let site = site(&services, topic, "", "key = [\"*\"]\n", "");
    let mut numbers = Numbers(11);
    let mut change = |count: usize| {
        for _ in 0..count {
            let [body, who, mood] = [2, 2, 3].map(|among| numbers.below(among));
            let one = format!(
                "(select ctid from keyless where body = '@{body}' and who = 'w{who}' limit 1)"
            );
            database.run(&match numbers.below(10) {
                0..5 => format!("insert into keyless values ('@{body}', 'w{who}', '{DATE}', {mood})"),
                5..7 => format!("delete from keyless where ctid = {one}"),
                7..9 => format!("update keyless set mood = {mood} where ctid = {one}"),
                // Several equal rows at one place of the log.
                _ => format!(
                    "insert into keyless select '@{body}', 'w{who}', '{DATE}', {mood} from generate_series(1, 3)"
                ),
            });
        }
    };
    let running = site.start(&["--workers", "2"]);
    change(150);
    connector.restart();
    change(50);
    running.kill();
    change(100);
    let running = site.start(&["--workers", "3"]);
    change(50);
    database.run("insert into keyless values ('@dan', 'last', null, null)");
    running.wait_for("the last row", || {
        running.number("select count(*) from bronze where \"user\" = 'last'") == 1
    });
    let grouped = |rows: Vec<Vec<Option<String>>>| -> BTreeMap<Vec<Option<String>>, usize> {
        let mut counts = BTreeMap::new();
        for row in rows {
            *counts.entry(row).or_default() += 1;
        }
        counts
    };
    let expected = grouped(database.texts("select body, mood::text from keyless"));
    assert!(expected.values().any(|count| *count > 1), "{expected:?}");
    assert_eq!(grouped(bronze(&running, &["text", "sentiment"])), expected);
    let mentioned = running.number("select sum(total) from mention_sentiment");
    let labelled = database.texts("select count(*)::text from keyless where mood in (0, 2, 4)");
    assert_eq!(
        labelled[0][0].as_deref(),
        Some(mentioned.to_string().as_str())
    );
    assert_eq!(
        running.number("select count(*) from rejects where stage = 'decode'"),
        0
    );
    database.run("truncate keyless");
    running.wait_for("nothing", || {
        running.number("select count(*) from bronze") == 0
    });
    running.stop();
}
