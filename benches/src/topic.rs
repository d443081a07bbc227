//! Fills a Kafka topic with a table's history, as Debezium would tell it.
//!
//! Of the events 80% are inserts, 15% updates and 5% deletes, each delete followed by a tombstone.
//! Updates and deletes carry the whole row as it was, which a table with `REPLICA IDENTITY FULL`
//! yields: the most that a reader has to skip. The same seed makes the same history.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use assay::generate::tweets::{Change, ChangeGenerator, ChangeKind, GeneratedTweet};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};

use crate::program::SEED;

/// Enough for two workers to have two each.
const PARTITIONS: i32 = 4;

/// Rows that may still be updated or deleted.
const LIVE_ROWS: usize = 100_000;

/// How long the brokers may take for one answer.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The pause before something is tried again.
const PAUSE: Duration = Duration::from_millis(20);

/// A moment of 2009, from which every event is a millisecond later than the one before.
const FIRST_EVENT_MS: usize = 1_239_000_000_000;

/// A topic that holds a whole history.
pub(crate) struct Topic {
    /// Its name, which tells the number of events.
    pub(crate) name: String,
    /// How many messages it holds: events and tombstones.
    pub(crate) messages: usize,
}

impl Topic {
    /// Returns the topic of so many events, filling it unless it is full; a topic that was left
    /// half full is deleted first.
    ///
    /// # Errors
    /// If the brokers cannot be reached, or do not hold in the end what they were sent.
    pub(crate) fn filled(brokers: &str, events: usize) -> anyhow::Result<Self> {
        let tombstones = history(events).filter(|change| change.kind == ChangeKind::Delete);
        let topic = Self {
            name: format!("assay-benches-{events}"),
            messages: events + tombstones.count(),
        };
        match topic.held(brokers)? {
            Some(held) if held == topic.messages => return Ok(topic),
            Some(_) => topic.delete(brokers)?,
            None => {}
        }
        topic.create(brokers)?;
        topic.fill(brokers, events)?;
        let held = topic.held(brokers)?.unwrap_or(0);
        ensure!(
            held == topic.messages,
            "kafka topic \"{}\" holds {held} messages of {} that were sent",
            topic.name,
            topic.messages
        );
        Ok(topic)
    }

    /// An empty topic of this name; one that exists is deleted first.
    ///
    /// # Errors
    /// If the brokers cannot be reached.
    pub(crate) fn anew(brokers: &str, name: &str) -> anyhow::Result<Self> {
        let topic = Self {
            name: name.to_owned(),
            messages: 0,
        };
        if topic.held(brokers)?.is_some() {
            topic.delete(brokers)?;
        }
        topic.create(brokers)?;
        Ok(topic)
    }

    /// How many messages the topic holds, or `None` if it does not exist.
    fn held(&self, brokers: &str) -> anyhow::Result<Option<usize>> {
        let consumer: BaseConsumer = client(brokers).create()?;
        // Asking for all topics cannot make the broker create this one.
        let metadata = consumer
            .fetch_metadata(None, TIMEOUT)
            .with_context(|| format!("cannot reach the kafka brokers \"{brokers}\""))?;
        let mut topics = metadata.topics().iter();
        let Some(topic) = topics.find(|topic| topic.name() == self.name) else {
            return Ok(None);
        };
        let mut held = 0;
        for partition in topic.partitions() {
            let (low, high) = consumer
                .fetch_watermarks(&self.name, partition.id(), TIMEOUT)
                .with_context(|| format!("cannot read the bounds of topic \"{}\"", self.name))?;
            held += usize::try_from(high - low).unwrap_or(0);
        }
        Ok(Some(held))
    }

    fn delete(&self, brokers: &str) -> anyhow::Result<()> {
        eprintln!("deleting the topic {}, which is not full", self.name);
        let admin: AdminClient<DefaultClientContext> = client(brokers).create()?;
        let results = wait(admin.delete_topics(&[self.name.as_str()], &options()))?;
        for result in results? {
            let refused = |(name, code)| anyhow::anyhow!("cannot delete topic \"{name}\": {code}");
            result.map_err(refused)?;
        }
        Ok(())
    }

    /// Creates the topic; a deletion may take a while until it is through.
    fn create(&self, brokers: &str) -> anyhow::Result<()> {
        let admin: AdminClient<DefaultClientContext> = client(brokers).create()?;
        let topic = NewTopic::new(&self.name, PARTITIONS, TopicReplication::Fixed(1))
            .set("retention.ms", "-1");
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let results = wait(admin.create_topics([&topic], &options()))??;
            match results.into_iter().next() {
                Some(Ok(_)) => return Ok(()),
                Some(Err((_, RDKafkaErrorCode::TopicAlreadyExists)))
                    if Instant::now() < deadline =>
                {
                    thread::sleep(PAUSE);
                }
                Some(Err((name, code))) => bail!("cannot create topic \"{name}\": {code}"),
                None => bail!(
                    "the broker did not say whether it created \"{}\"",
                    self.name
                ),
            }
        }
    }

    fn fill(&self, brokers: &str, events: usize) -> anyhow::Result<()> {
        eprintln!("filling the topic {} with {events} events", self.name);
        let producer: ThreadedProducer<DefaultProducerContext> = client(brokers)
            // Neither twice nor out of order when a request is tried again.
            .set("enable.idempotence", "true")
            .set("linger.ms", "50")
            .create()?;
        let mut rows = Rows::default();
        let mut bytes = 0;
        for (number, change) in history(events).enumerate() {
            let key = format!("{{\"id\":{}}}", change.id);
            let deleted = change.kind == ChangeKind::Delete;
            let value = rows.event(number, change);
            bytes += value.len();
            send(&producer, &self.name, &key, Some(&value))?;
            if deleted {
                send(&producer, &self.name, &key, None)?;
            }
        }
        producer
            .flush(TIMEOUT)
            .context("cannot send the last messages")?;
        eprintln!("filled: {} bytes an event", bytes / events.max(1));
        Ok(())
    }
}

fn history(events: usize) -> impl Iterator<Item = Change> {
    ChangeGenerator::new(SEED, LIVE_ROWS).take(events)
}

pub(crate) fn client(brokers: &str) -> ClientConfig {
    let mut client = ClientConfig::new();
    client.set("bootstrap.servers", brokers);
    client
}

fn options() -> AdminOptions {
    AdminOptions::new().operation_timeout(Some(TIMEOUT))
}

/// Waits for an answer of the admin client.
fn wait<T>(answer: impl Future<Output = T>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    Ok(runtime.block_on(answer))
}

/// Hands a message to the producer, waiting while its queue is full.
pub(crate) fn send(
    producer: &ThreadedProducer<DefaultProducerContext>,
    topic: &str,
    key: &str,
    value: Option<&str>,
) -> anyhow::Result<()> {
    let mut record = BaseRecord::<str, str>::to(topic).key(key);
    if let Some(value) = value {
        record = record.payload(value);
    }
    loop {
        match producer.send(record) {
            Ok(()) => return Ok(()),
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), refused)) => {
                record = refused;
                thread::sleep(PAUSE);
            }
            Err((error, _)) => return Err(error).context("cannot send a message"),
        }
    }
}

/// The table as it stands after some changes; about 300 bytes a row, live or gone.
#[derive(Default)]
struct Rows(Vec<Option<GeneratedTweet>>);

impl Rows {
    /// Applies a change, and returns what Debezium says of it.
    fn event(&mut self, number: usize, change: Change) -> String {
        let Change { id, kind, tweet } = change;
        let place = usize::try_from(id).unwrap_or(0);
        if self.0.len() <= place {
            self.0.resize(place + 1, None);
        }
        let after = row(id, tweet.as_ref());
        let before = std::mem::replace(&mut self.0[place], tweet);
        let before = row(id, before.as_ref());
        let op = match kind {
            ChangeKind::Insert => "c",
            ChangeKind::Update => "u",
            ChangeKind::Delete => "d",
        };
        let at = FIRST_EVENT_MS + number;
        let position = 24_000_000 + number * 200;
        format!(
            "{{\"before\":{before},\"after\":{after},\"source\":{{\"version\":\"3.2.0.Final\",\
             \"connector\":\"postgresql\",\"name\":\"tweets\",\"ts_ms\":{at},\"snapshot\":\"false\",\
             \"db\":\"shop\",\"sequence\":\"[\\\"{position}\\\",\\\"{position}\\\"]\",\
             \"schema\":\"public\",\"table\":\"tweets\",\"txId\":{number},\"lsn\":{position},\
             \"xmin\":null}},\"transaction\":null,\"op\":\"{op}\",\"ts_ms\":{at}}}"
        )
    }
}

/// A row with its primary key, as Debezium writes it.
fn row(id: i64, tweet: Option<&GeneratedTweet>) -> String {
    match tweet {
        Some(tweet) => format!("{{\"id\":{id},{}", &tweet.to_json()[1..]),
        None => "null".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::Arc;

    use dataflows::envelope::{Decoder, Envelope, Format, Message, NO_HEADERS, RowChange};
    use dataflows::operators::upsert::State;
    use dataflows::pipelines::mentions::Bronze;
    use dataflows::record::Timestamp;

    use super::*;

    #[test]
    fn events_decode_to_the_rows_of_their_history() {
        let mut rows = Rows::default();
        let mut decoder = Decoder::new(Format::new::<Arc<Bronze>>(Envelope::Debezium));
        let mut decoded = HashMap::new();
        let mut bytes = 0;
        for (number, change) in history(2_000).enumerate() {
            let key = format!("{{\"id\":{}}}", change.id);
            let value = rows.event(number, change);
            bytes += value.len();
            let message = Message {
                key: Some(key.as_bytes()),
                value: Some(value.as_bytes()),
                headers: NO_HEADERS,
                origin: "t/0",
                offset: Some(0),
                received: Timestamp(0),
            };
            let mut told: Vec<RowChange<Arc<Bronze>>> = Vec::new();
            decoder.decode(&message, &mut told).unwrap();
            let change = told.pop().unwrap();
            match change.state {
                State::Row(Ok(row)) => drop(decoded.insert(change.key, row)),
                State::Gone => assert!(decoded.remove(&change.key).is_some()),
                other => panic!("{other:?} from {value}"),
            }
        }
        let live = rows.0.iter().flatten().count();
        assert_eq!(live, decoded.len());
        for (key, row) in decoded {
            let tweet = rows.0[key.parse::<usize>().unwrap()].as_ref().unwrap();
            assert_eq!(*tweet.text, *row.text);
        }
        assert!(
            (450..650).contains(&(bytes / 2_000)),
            "{} bytes",
            bytes / 2_000
        );
    }

    #[test]
    fn changes_and_deletes_tell_the_row_as_it_was() {
        let mut rows = Rows::default();
        for (number, change) in history(500).enumerate() {
            let kind = change.kind;
            let value = rows.event(number, change);
            let fresh = value.starts_with("{\"before\":null,");
            assert_eq!(fresh, kind == ChangeKind::Insert, "{value}");
            let gone = value.contains(",\"after\":null,");
            assert_eq!(gone, kind == ChangeKind::Delete, "{value}");
        }
    }
}
