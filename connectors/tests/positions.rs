//! Positions that a broker does not have any more, told apart on a real one.
//!
//! Needs what `cargo xtask test` starts.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on should fail there"
)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use connectors::files::Share;
use connectors::kafka::{KafkaSettings, KafkaSource};
use connectors::message::{Polled, Reached, Source, SourceError};
use rdkafka::Offset;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::topic_partition_list::TopicPartitionList;

/// Generous, since it only matters when something is wrong.
const PATIENCE: Duration = Duration::from_secs(60);

struct Broker {
    address: String,
    admin: AdminClient<DefaultClientContext>,
    runtime: tokio::runtime::Runtime,
}

impl Broker {
    fn find() -> Self {
        let address = std::env::var("ASSAY_TEST_KAFKA").expect("set by `cargo xtask test`");
        let mut client = ClientConfig::new();
        let admin = client.set("bootstrap.servers", &address).create().unwrap();
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.enable_all().build().unwrap();
        Self {
            address,
            admin,
            runtime,
        }
    }

    fn create(&self, topic: &str) {
        let topic = NewTopic::new(topic, 1, TopicReplication::Fixed(1));
        let options = AdminOptions::new();
        let created = self.admin.create_topics([&topic], &options);
        let created = self.runtime.block_on(created).unwrap();
        created[0].as_ref().unwrap();
    }

    fn delete(&self, topic: &str) {
        let options = AdminOptions::new();
        let deleted = self.admin.delete_topics(&[topic], &options);
        let deleted = self.runtime.block_on(deleted).unwrap();
        deleted[0].as_ref().unwrap();
    }

    /// Deletes the messages before an offset, as retention does.
    fn delete_before(&self, topic: &str, offset: i64) {
        let mut offsets = TopicPartitionList::new();
        let offset = Offset::Offset(offset);
        offsets.add_partition_offset(topic, 0, offset).unwrap();
        let options = AdminOptions::new();
        let deleted = self.admin.delete_records(&offsets, &options);
        self.runtime.block_on(deleted).unwrap();
    }

    fn produce(&self, topic: &str, count: usize) {
        let mut client = ClientConfig::new();
        client.set("bootstrap.servers", &self.address);
        let producer: BaseProducer = client.create().unwrap();
        for number in 0..count {
            let value = number.to_string();
            let record = BaseRecord::<str, str>::to(topic);
            producer.send(record.partition(0).payload(&value)).unwrap();
        }
        producer.flush(PATIENCE).unwrap();
    }

    fn open(
        &self,
        topic: &str,
        from: Option<i64>,
        reset: &str,
    ) -> Result<KafkaSource, SourceError> {
        self.open_after(topic, from.map(|offset| (offset, None)), reset)
    }

    /// The same, where it is known when the last message before the offset was written.
    fn open_after(
        &self,
        topic: &str,
        from: Option<(i64, Option<i64>)>,
        reset: &str,
    ) -> Result<KafkaSource, SourceError> {
        let properties = [
            ("bootstrap.servers", self.address.as_str()),
            ("auto.offset.reset", reset),
            ("topic.metadata.refresh.interval.ms", "200"),
            ("topic.metadata.propagation.max.ms", "500"),
            // So that little is fetched ahead.
            ("fetch.message.max.bytes", "10000"),
            ("queued.min.messages", "10"),
        ];
        let owned = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
        let settings = KafkaSettings {
            properties: BTreeMap::from(properties.map(owned)),
            topics: vec![format!("^{topic}$")],
        };
        let from = from.into_iter().map(|(next_offset, last_written)| {
            let partition: Arc<str> = format!("{topic}/0").into();
            let reached = Reached {
                partition: Arc::clone(&partition),
                next_offset,
                last_written,
            };
            (partition, reached)
        });
        KafkaSource::open(&settings, Share::ALL, &from.collect())
    }

    /// Why the topic cannot be read from this offset on.
    fn refused(&self, topic: &str, from: i64) -> String {
        match self.open(topic, Some(from), "error") {
            Err(SourceError::Fatal(reason)) => reason,
            Err(SourceError::Retry(reason)) => panic!("only for now: {reason}"),
            Ok(_) => panic!("opened at {from}"),
        }
    }
}

/// Reads until the condition holds of the offsets, or the source fails for good.
fn read(source: &mut KafkaSource, done: impl Fn(&[i64]) -> bool) -> Result<Vec<i64>, String> {
    let started = Instant::now();
    let mut offsets = Vec::new();
    while !done(&offsets) {
        let waited = started.elapsed();
        assert!(waited < PATIENCE, "waited in vain, after {offsets:?}");
        let polled = source.poll(Duration::from_millis(100), &mut |message| {
            offsets.push(message.offset.unwrap() as i64);
        });
        match polled {
            Ok(Polled::Some | Polled::CaughtUp) | Err(SourceError::Retry(_)) => {}
            Err(SourceError::Fatal(reason)) => return Err(reason),
        }
    }
    Ok(offsets)
}

#[test]
fn messages_that_were_deleted_before_they_were_read_are_missed() {
    let broker = Broker::find();
    let topic = "positions-deleted";
    broker.create(topic);
    broker.produce(topic, 10);
    broker.delete_before(topic, 6);
    let reason = broker.refused(topic, 2);
    let said = "the messages 2 to 5 were deleted before they were read";
    assert!(reason.contains(said), "{reason}");
    // The first one that is left is where reading goes on: nothing is missed.
    for (from, reset) in [(Some(6), "error"), (None, "error"), (Some(2), "earliest")] {
        let mut source = broker.open(topic, from, reset).unwrap();
        let offsets = read(&mut source, |offsets| offsets.len() == 4);
        assert_eq!(offsets.unwrap(), [6, 7, 8, 9]);
    }
}

#[test]
fn messages_that_are_deleted_while_others_are_read_are_missed() {
    let broker = Broker::find();
    let topic = "positions-overtaken";
    broker.create(topic);
    broker.produce(topic, 50_000);
    let mut stops = broker.open(topic, Some(0), "error").unwrap();
    let mut goes_on = broker.open(topic, Some(0), "earliest").unwrap();
    for source in [&mut stops, &mut goes_on] {
        read(source, |offsets| !offsets.is_empty()).unwrap();
    }
    broker.delete_before(topic, 49_000);
    let reason = read(&mut stops, |offsets| offsets.last() == Some(&49_999));
    let reason = reason.unwrap_err();
    assert!(reason.contains("to 48999 were deleted"), "{reason}");
    let offsets = read(&mut goes_on, |offsets| offsets.last() == Some(&49_999)).unwrap();
    assert!(offsets.len() < 49_999, "{}", offsets.len());
    assert!(offsets.is_sorted());
}

#[test]
fn a_topic_made_anew_is_told_of() {
    let broker = Broker::find();
    let topic = "positions-anew";
    broker.create(topic);
    broker.produce(topic, 3);
    let reason = broker.refused(topic, 7);
    assert!(reason.contains("it ends at 3, before 7"), "{reason}");
    let mut source = broker.open(topic, Some(7), "earliest").unwrap();
    let offsets = read(&mut source, |offsets| offsets.len() == 3);
    assert_eq!(offsets.unwrap(), [0, 1, 2]);
}

#[test]
fn a_topic_made_anew_with_more_messages_is_told_by_the_last_that_was_read() {
    let broker = Broker::find();
    let topic = "positions-exchanged";
    broker.create(topic);
    broker.produce(topic, 5);
    let mut source = broker.open(topic, None, "error").unwrap();
    read(&mut source, |offsets| offsets.len() == 5).unwrap();
    let reached = source.moved().remove(0);
    let from = Some((reached.next_offset, reached.last_written));
    assert!(matches!(from, Some((5, Some(_)))));
    // The same topic goes on, and what was read is not delivered again.
    broker.produce(topic, 1);
    let mut source = broker.open_after(topic, from, "error").unwrap();
    let offsets = read(&mut source, |offsets| !offsets.is_empty());
    assert_eq!(offsets.unwrap(), [5]);
    broker.delete(topic);
    broker.create(topic);
    broker.produce(topic, 8);
    let mut source = broker.open_after(topic, from, "error").unwrap();
    let reason = read(&mut source, |_| false).unwrap_err();
    assert!(reason.contains("its topic was made anew"), "{reason}");
    let mut source = broker.open_after(topic, from, "earliest").unwrap();
    let offsets = read(&mut source, |offsets| offsets.last() == Some(&7)).unwrap();
    assert_eq!(offsets, [0, 1, 2, 3, 4, 5, 6, 7]);
}

#[test]
fn a_topic_that_is_deleted_is_told_of_and_read_when_it_comes_back() {
    let broker = Broker::find();
    let topic = "positions-gone";
    broker.create(topic);
    broker.produce(topic, 3);
    let mut stops = broker.open(topic, None, "error").unwrap();
    let mut goes_on = broker.open(topic, None, "earliest").unwrap();
    for source in [&mut stops, &mut goes_on] {
        let offsets = read(source, |offsets| offsets.len() == 3);
        assert_eq!(offsets.unwrap(), [0, 1, 2]);
    }
    broker.delete(topic);
    let reason = read(&mut stops, |_| false).unwrap_err();
    assert!(reason.contains("its topic was deleted"), "{reason}");
    let reason = broker.refused(topic, 3);
    assert!(reason.contains("its topic was deleted"), "{reason}");
    broker.create(topic);
    broker.produce(topic, 2);
    let offsets = read(&mut goes_on, |offsets| offsets.len() == 2);
    assert_eq!(offsets.unwrap(), [0, 1]);
}
