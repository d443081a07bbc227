//! Topics that Assay publishes.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use connectors::files::Share;
use connectors::kafka::{KafkaSettings, KafkaSource};
use connectors::message::{Polled, Source};
use serde_json::Value;

use super::Running;

/// A message: its epoch, its key, and its value if it has one.
pub(crate) type Message = (u64, Value, Option<Value>);

pub(crate) fn broker() -> String {
    std::env::var("ASSAY_TEST_KAFKA").expect("set by `cargo xtask test`")
}

/// The lines that publish a relation.
pub(crate) fn sink(relation: &str, topic: &str, format: &str) -> String {
    format!(
        "[sink.kafka]\nenabled = true\nrelation = \"{relation}\"\ntopic = \"{topic}\"\nformat = \"{format}\"\n\
         [sink.kafka.properties]\n\"bootstrap.servers\" = \"{}\"\n",
        broker()
    )
}

/// All committed messages of the topic, those of a key in their order; none if there is no topic.
pub(crate) fn messages(topic: &str) -> Vec<Message> {
    let settings = KafkaSettings {
        properties: BTreeMap::from([("bootstrap.servers".to_owned(), broker())]),
        topics: vec![topic.to_owned()],
    };
    let Ok(mut source) = KafkaSource::open(&settings, Share::ALL, &HashMap::new()) else {
        return Vec::new();
    };
    let mut messages = Vec::new();
    loop {
        let polled = source.poll(Duration::from_millis(50), &mut |message| {
            let json = |bytes: &[u8]| serde_json::from_slice(bytes).unwrap();
            let epoch = (message.headers)("assay.epoch").unwrap();
            let epoch = String::from_utf8(epoch).unwrap().parse().unwrap();
            messages.push((epoch, json(message.key.unwrap()), message.value.map(json)));
        });
        if polled.unwrap() == Polled::CaughtUp {
            return messages;
        }
    }
}

/// The last value of each key.
pub(crate) fn last(messages: &[Message]) -> BTreeMap<String, Value> {
    let mut last = BTreeMap::new();
    for (_, key, value) in messages {
        match value {
            Some(value) => last.insert(key.to_string(), value.clone()),
            None => last.remove(&key.to_string()),
        };
    }
    last
}

pub(crate) fn relation(running: &Running, name: &str, key: &[&str]) -> BTreeMap<String, Value> {
    let rows = running.sql(&format!("select * from {name}")).into_iter();
    let keyed = rows.map(|row| {
        let columns = key.iter().map(|name| (*name).to_owned());
        let key: serde_json::Map<_, _> = columns
            .map(|name| (name.clone(), row[name].clone()))
            .collect();
        (Value::Object(key).to_string(), row)
    });
    keyed.collect()
}

/// What is wrong with messages in Debezium's envelope: each must begin where the one before it ended.
pub(crate) fn breaks(messages: &[Message]) -> Vec<String> {
    let mut rows: BTreeMap<String, Value> = BTreeMap::new();
    let mut breaks = Vec::new();
    for (epoch, key, value) in messages {
        let Some(value) = value else {
            if rows.contains_key(&key.to_string()) {
                breaks.push(format!("{key} is forgotten and not deleted"));
            }
            continue;
        };
        let before = rows.remove(&key.to_string()).unwrap_or_default();
        let op = match (before.is_null(), value["after"].is_null()) {
            (true, false) => "c",
            (false, false) => "u",
            _ => "d",
        };
        if value["before"] != before || value["op"] != op || value["before"] == value["after"] {
            breaks.push(format!("{key} was {before}, and then {value}"));
        }
        assert_eq!(value["ts_ms"], *epoch);
        if !value["after"].is_null() {
            rows.insert(key.to_string(), value["after"].clone());
        }
    }
    breaks
}
