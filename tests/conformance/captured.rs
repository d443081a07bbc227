//! Messages as a real Debezium wrote them, with and without schemas, flattened and in Avro, come to the rows that the
//! tables had in the end, every column of them.
//!
//! They are real tweets, so they are not part of the project: where `../shared/data` is not there, there is
//! nothing to test.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use dataflows::envelope::avro::Schema;
use dataflows::envelope::{
    Decoder, Encoding, Envelope, Format, Message, NO_HEADERS, RowChange, SchemaError, Schemas,
    UNAVAILABLE,
};
use dataflows::operators::upsert::State;
use dataflows::pipelines::mentions::Bronze;
use dataflows::record::Timestamp;
use serde_json::Value;

use super::{Delivered, Numbers, Place, Rows, follow};

/// Tables, with the column that is taken for the text; further ones are all others.
const TABLES: [(&str, &str); 10] = [
    ("public.tw", "text"),
    ("public.tw_full", "text"),
    ("public.toast_d", "big"),
    ("public.toast_f", "big"),
    ("public.defi", "v"),
    ("public.made_later", "v"),
    ("public.tr_parent", "v"),
    ("public.tr_child", "v"),
    ("public.nokey", "b"),
    ("Mixed.Case.My_Table-1", "select"),
];

/// Columns of a row, by name.
type Columns = BTreeMap<String, String>;

fn folder() -> Option<PathBuf> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/data/cdc/captured");
    let folder = PathBuf::from(folder);
    if !folder.is_dir() {
        eprintln!("{} is not there: nothing is compared", folder.display());
        return None;
    }
    Some(folder)
}

fn lines(file: PathBuf) -> Vec<Value> {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// The messages of a form, by topic without the connector's name.
fn messages(folder: &Path, form: &str) -> BTreeMap<String, Vec<(Place, Delivered)>> {
    let bytes = |of: &Value, name: &str| match of[format!("{name}_b64")].as_str() {
        Some(encoded) => Some(BASE64_STANDARD.decode(encoded).unwrap()),
        None => of[name].as_str().map(|text| text.as_bytes().to_vec()),
    };
    let mut topics: BTreeMap<String, Vec<(Place, Delivered)>> = BTreeMap::new();
    for line in lines(folder.join(format!("{form}.jsonl"))) {
        let topic = line["topic"].as_str().unwrap();
        let headers = line["headers"].as_array().unwrap().iter();
        let headers = headers.filter_map(|header| {
            Some((header["name"].as_str()?.to_owned(), bytes(header, "value")?))
        });
        let message = Delivered {
            key: bytes(&line, "key"),
            value: bytes(&line, "value"),
            headers: headers.collect(),
        };
        let place = (format!("{topic}/0"), line["offset"].as_u64().unwrap());
        let table = topic.strip_prefix(&format!("{form}.")).unwrap_or(topic);
        topics
            .entry(table.to_owned())
            .or_default()
            .push((place, message));
    }
    topics
}

/// The schemas of the messages in Avro.
#[derive(Debug)]
struct Captured(BTreeMap<String, Value>);

impl Schemas for Captured {
    fn schema(&self, number: u32) -> Result<Arc<Schema>, SchemaError> {
        let schema = self.0.get(&number.to_string());
        let schema = schema.ok_or_else(|| SchemaError::Unknown(format!("no schema {number}")))?;
        let schema = Schema::parse(&schema.to_string(), &[]);
        schema.map(Arc::new).map_err(SchemaError::Unknown)
    }
}

fn format(folder: &Path, form: &str, table: &str, text: &str) -> Format {
    let envelope = match form {
        "flat" => Envelope::Flattened,
        _ => Envelope::Debezium,
    };
    let encoding = match form {
        "avro" => {
            let schemas = fs::read(folder.join("avro_schemas.json")).unwrap();
            let schemas: Value = serde_json::from_slice(&schemas).unwrap();
            let schemas = serde_json::from_value(schemas["by_id"].clone()).unwrap();
            Encoding::Avro(Arc::new(Captured(schemas)))
        }
        _ => Encoding::Json,
    };
    let plain = Format::new::<Arc<Bronze>>(envelope);
    // No table has these columns, so all of theirs but the text are further ones.
    let columns = ["no date", "no user", text, "no label"];
    Format {
        encoding,
        columns: columns.map(str::to_owned).into(),
        keyless: table == "public.nokey",
        unavailable: UNAVAILABLE.to_owned(),
        further: Some(Arc::default()),
        ..plain
    }
}

/// What bronze holds, however the messages are cut into epochs and over workers, and possibly broken off.
fn rows(
    format: &Format,
    messages: &[(Place, Delivered)],
    restarts: bool,
) -> Vec<(String, Columns)> {
    let mut outcomes = (0..5).map(|round| {
        let mut numbers = Numbers(round);
        let broken_off = match restarts {
            true => numbers.below(messages.len() as u64 + 1) as usize,
            false => 0,
        };
        let (first, rest) = messages.split_at(broken_off);
        let state = follow(format, Vec::new(), first, &mut numbers);
        let state: Rows = follow(format, state, rest, &mut numbers);
        let rows = state.into_iter().filter_map(|row| match row {
            Ok(row) => {
                let further = row.further.0.as_deref().unwrap_or("{}");
                Some((row.text.to_string(), serde_json::from_str(further).unwrap()))
            }
            // Where there is nothing in the column that is taken for the text.
            Err(reject) => {
                assert!(
                    reject.reason.ends_with("expected a string, found null"),
                    "{}",
                    reject.reason
                );
                None
            }
        });
        let mut rows: Vec<(String, Columns)> = rows.collect();
        rows.sort();
        rows
    });
    let rows = outcomes.next().unwrap();
    assert!(outcomes.all(|others| others == rows));
    rows
}

/// A table's row as PostgreSQL tells it at the end.
fn final_row(row: Value, text: &str) -> (String, Columns) {
    let Value::Object(columns) = row else {
        panic!("{row} is no row");
    };
    let mut columns: Columns = columns
        .into_iter()
        .filter_map(|(name, value)| match value {
            Value::Null => None,
            Value::String(text) => Some((name, text)),
            value => Some((name, value.to_string())),
        })
        .collect();
    let text = columns.remove(text).unwrap_or_default();
    (text, columns)
}

/// The same value in one way of writing it: bytes are in hexadecimal or in base 64, JSON has spaces or none, names
/// of columns are in lower case, and `source_` stands before those that bronze has itself.
fn plainly((text, columns): (String, Columns)) -> (String, Columns) {
    let columns = columns.into_iter().map(|(name, value)| {
        let bytes = value.strip_prefix("\\x").map(|digits| {
            let byte = |place: usize| u8::from_str_radix(&digits[place..place + 2], 16).unwrap();
            BASE64_STANDARD.encode((0..digits.len()).step_by(2).map(byte).collect::<Vec<_>>())
        });
        let json = || match value.starts_with(['{', '[']) {
            true => serde_json::from_str::<Value>(&value)
                .ok()
                .map(|json| json.to_string()),
            false => None,
        };
        let name = name.trim_start_matches("source_").to_lowercase();
        let name = name.replace(' ', "_");
        (name, bytes.or_else(json).unwrap_or(value))
    });
    (text, columns.collect())
}

#[test]
fn captured_messages_come_to_the_tables_as_they_were_in_the_end() {
    let Some(folder) = folder() else { return };
    let mut compared = 0;
    for form in ["plain", "schemas", "flat", "avro"] {
        let topics = messages(&folder, form);
        for (table, text) in TABLES {
            let Some(messages) = topics.get(table) else {
                continue;
            };
            // Between the two halves of a changed key, large values that were not sent would be lost.
            let restarts = !table.starts_with("public.toast");
            let file = table.replace("My_Table", "My Table");
            let expected = lines(folder.join(format!("final/{file}.jsonl")));
            let expected = expected
                .into_iter()
                .map(|row| plainly(final_row(row, text)));
            let mut expected: Vec<_> = expected.collect();
            expected.sort();
            let found = rows(&format(&folder, form, table, text), messages, restarts);
            let found: Vec<_> = found.into_iter().map(plainly).collect();
            assert_eq!(found, expected, "{table}, {form}");
            compared += 1;
        }
    }
    assert_eq!(compared, 10 + 10 + 2 + 3);
}

#[test]
fn values_of_all_types_are_told_alike_in_avro_and_in_json_with_schemas() {
    let Some(folder) = folder() else { return };
    let table = "public.types";
    let [json, avro] = ["schemas", "avro"].map(|form| {
        let messages = &messages(&folder, form)[table];
        let rows = rows(&format(&folder, form, table, "vc"), messages, true);
        rows.into_iter().map(plainly).collect::<Vec<_>>()
    });
    assert_eq!(json, avro);
    let all = json
        .iter()
        .find(|(_, columns)| columns["id"] == "1")
        .unwrap();
    for (column, expected) in [
        ("n102", "12345678.90"),
        ("nfree", "123456789012345678901234567890.123456789"),
        ("mon", "1234.56"),
        ("d", "2009-04-06Z"),
        ("t6", "22:19:45.123456"),
        ("t3", "22:19:45.123"),
        ("ts", "2009-04-06T22:19:45.123456Z"),
        ("tstz", "2009-04-07T05:19:45.123456Z"),
        ("i8", "-9223372036854775808"),
        ("na", r#"["1.10",null,"22.00"]"#),
        ("ta", r#"["a","b c",null,"d\"q"]"#),
        ("hs", r#"{"k1":"v1","k2":null}"#),
        ("by", "AP8Q"),
        ("e", "positive"),
        ("b", "true"),
    ] {
        assert_eq!(all.1[column], expected, "{column}");
    }
}

/// All files below a folder.
fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => files(&path, found),
            false => found.push(path),
        }
    }
}

#[test]
fn whatever_other_connectors_write_is_a_row_a_deletion_or_a_reject() {
    let Some(folder) = folder() else { return };
    let mut found = Vec::new();
    files(folder.parent().unwrap(), &mut found);
    let plain = Format::new::<Arc<Bronze>>(Envelope::Debezium);
    // Names that tables of these samples have.
    let columns = ["date", "user", "name", "weight"];
    let mut decoder = Decoder::new(Format {
        columns: columns.map(str::to_owned).into(),
        further: Some(Arc::default()),
        ..plain
    });
    let (mut events, mut rows, mut gone) = (0, 0, 0);
    for file in found {
        let Ok(text) = fs::read_to_string(&file) else {
            continue;
        };
        let lines = text
            .lines()
            .map(str::trim)
            .filter(|line| line.starts_with('{'));
        // Documents over many lines, and one event a line.
        for value in [text.trim()].into_iter().chain(lines) {
            let message = Message {
                key: Some(b"{\"id\":1}"),
                value: Some(value.as_bytes()),
                headers: NO_HEADERS,
                origin: "samples/0",
                offset: Some(0),
                received: Timestamp(0),
            };
            let mut told: Vec<RowChange<Arc<Bronze>>> = Vec::new();
            decoder.decode(&message, &mut told).unwrap();
            for change in told {
                events += 1;
                match change.state {
                    State::Row(Ok(_)) => rows += 1,
                    State::Gone | State::Left(_) => gone += 1,
                    State::Row(Err(reject)) => assert!(!reject.reason.is_empty()),
                    _ => {}
                }
            }
        }
    }
    assert!(
        events > 1_000 && rows > 100 && gone > 10,
        "{events}, {rows}, {gone}"
    );
}
