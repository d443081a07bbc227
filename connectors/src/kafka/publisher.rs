//! A topic that holds the last message of each key, written in transactions.
//!
//! Nothing is remembered of what was published before: whoever opens the topic reads it to its end and
//! publishes the difference. Those who read only what is committed see each transaction whole or not at all,
//! and nothing twice.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::time::{Duration, Instant};

use futures::executor::block_on;
use rdkafka::Offset;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, Headers as _, Message as _, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer, ThreadedProducer};
use rdkafka::topic_partition_list::TopicPartitionList;

use super::client::{ATTEMPT_TIMEOUT, NO_GROUP, Watch, configuration, reach};

/// How long the brokers may take to begin or to end a transaction, to take a message, or to give one.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The header that says what a message is a row of.
const RELATION: &str = "assay.relation";

/// The header that says of which epoch it is.
const EPOCH: &str = "assay.epoch";

/// Which topic to write, and how to reach it.
#[derive(Clone)]
pub struct TopicSettings {
    /// Properties of the client under librdkafka's names; `bootstrap.servers` must be among them.
    pub properties: BTreeMap<String, String>,
    /// The topic.
    pub topic: String,
    /// What its messages are rows of.
    pub relation: String,
}

impl fmt::Debug for TopicSettings {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The properties may hold a password.
        write!(formatter, "TopicSettings({})", self.topic)
    }
}

impl TopicSettings {
    fn consumer(&self) -> ClientConfig {
        let mut client = configuration(&self.properties);
        client
            .set("group.id", NO_GROUP)
            .set("enable.auto.commit", "false")
            .set("enable.partition.eof", "true")
            .set("isolation.level", "read_committed");
        client
    }

    fn producer(&self) -> ClientConfig {
        let mut client = configuration(&self.properties);
        let mut default = |name: &str, value: &str| {
            if !self.properties.contains_key(name) {
                client.set(name, value);
            }
        };
        // Who opens a topic takes it from whoever wrote it before.
        default("transactional.id", &format!("assay-{}", self.topic));
        // Keys go where Kafka's own client puts them, so that topics can be joined.
        default("partitioner", "murmur2_random");
        default("compression.type", "zstd");
        client
    }
}

/// Why a topic cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The brokers cannot be reached, or refuse something.
    #[error("{what}: {why}")]
    Kafka {
        /// What was tried.
        what: String,
        /// What the brokers, or the client, say.
        why: String,
    },
    /// Someone else has opened the topic since.
    #[error("another Assay has taken over kafka topic \"{0}\"")]
    Replaced(String),
    /// The topic holds something else.
    #[error(
        "kafka topic \"{topic}\" holds messages that are no rows of {relation}, the first of them at \
         {position}: name a topic that nobody else writes"
    )]
    Foreign {
        /// The topic.
        topic: String,
        /// What it should hold.
        relation: String,
        /// Partition and offset.
        position: String,
    },
}

/// The last message of each key of a topic.
pub type Published = HashMap<Vec<u8>, Vec<u8>>;

/// An open topic. All its calls block.
pub struct Publisher {
    settings: TopicSettings,
    producer: ThreadedProducer<Watch>,
}

impl Publisher {
    /// Takes a topic over from whoever wrote it, making it if there is none; returns what it holds.
    ///
    /// # Errors
    /// If brokers cannot be reached or refuse something, or the topic holds anything but rows of the
    /// relation.
    ///
    /// # Panics
    /// Within a task of an asynchronous runtime.
    pub fn open(settings: TopicSettings) -> Result<(Self, Published), PublishError> {
        let watch =
            || Watch::new(&settings.properties).map_err(|why| failed("cannot fetch tokens", &why));
        let unfit = |error| failed("the properties are refused", &error);
        let consumer: BaseConsumer<Watch> = settings
            .consumer()
            .create_with_context(watch()?)
            .map_err(unfit)?;
        let partitions = partitions(&settings, &consumer)?;
        let producer: ThreadedProducer<Watch> = settings
            .producer()
            .create_with_context(watch()?)
            .map_err(unfit)?;
        let publisher = Self { settings, producer };
        publisher
            .producer
            .init_transactions(TIMEOUT)
            .map_err(|error| publisher.failed("cannot begin to write", &error))?;
        // Whatever was under way is ended now, one way or the other, so that the end is the end.
        let published = read(&publisher.settings, &consumer, &partitions)?;
        Ok((publisher, published))
    }

    /// Begins a transaction.
    ///
    /// # Errors
    /// If someone else has opened the topic since.
    pub fn begin(&self) -> Result<Transaction<'_>, PublishError> {
        let begun = self.producer.begin_transaction();
        begun.map_err(|error| self.failed("cannot begin a transaction", &error))?;
        Ok(Transaction(self))
    }

    fn failed(&self, what: &str, error: &KafkaError) -> PublishError {
        let client = self.producer.client();
        let replaced = |code| {
            use RDKafkaErrorCode::{Fenced, InvalidProducerEpoch, ProducerFenced};
            matches!(code, Fenced | ProducerFenced | InvalidProducerEpoch)
        };
        let told = client.fatal_error().map(|(code, _)| code);
        if told.or(error.rdkafka_error_code()).is_some_and(replaced) {
            return PublishError::Replaced(self.settings.topic.clone());
        }
        let topic = &self.settings.topic;
        failed(
            &format!("kafka topic \"{topic}\": {what}"),
            &client.context().why(error),
        )
    }
}

/// Messages that are seen together, or never if this is dropped.
pub struct Transaction<'publisher>(&'publisher Publisher);

impl Transaction<'_> {
    /// Adds a message of an epoch; one without a value says that there is none for the key any more.
    ///
    /// # Errors
    /// If the client refuses it, or brokers take none for a while.
    pub fn send(&self, epoch: u64, key: &[u8], value: Option<&[u8]>) -> Result<(), PublishError> {
        let Publisher { settings, producer } = self.0;
        let headers = OwnedHeaders::new_with_capacity(2)
            .insert(Header {
                key: RELATION,
                value: Some(&settings.relation),
            })
            .insert(Header {
                key: EPOCH,
                value: Some(&epoch.to_string()),
            });
        let mut message = BaseRecord::to(&settings.topic).key(key).headers(headers);
        message.payload = value;
        let given_up = Instant::now() + TIMEOUT;
        loop {
            let Err((error, refused)) = producer.send(message) else {
                return Ok(());
            };
            let full = error.rdkafka_error_code() == Some(RDKafkaErrorCode::QueueFull);
            if !full || Instant::now() > given_up {
                return Err(self.0.failed("cannot write", &error));
            }
            message = refused;
            // Room is made by what is on its way; that it has all arrived is not needed.
            let _ = producer.flush(ATTEMPT_TIMEOUT);
        }
    }

    /// Ends it.
    ///
    /// # Errors
    /// If a message has not arrived, or the end is not confirmed: then only reading the topic tells
    /// whether this was seen.
    pub fn commit(self) -> Result<(), PublishError> {
        let committed = self.0.producer.commit_transaction(TIMEOUT);
        committed.map_err(|error| self.0.failed("cannot commit", &error))
    }
}

fn failed(what: &str, why: &dyn fmt::Display) -> PublishError {
    PublishError::Kafka {
        what: what.to_owned(),
        why: why.to_string(),
    }
}

/// The topic's partitions. If it is not there it is made, to be compacted: it keeps the last message of
/// each key for ever, and what came before for as long as the brokers please.
fn partitions(
    settings: &TopicSettings,
    consumer: &BaseConsumer<Watch>,
) -> Result<Vec<i32>, PublishError> {
    let topic = &settings.topic;
    let look = || {
        let metadata = consumer.fetch_metadata(Some(topic), ATTEMPT_TIMEOUT)?;
        let topics = metadata.topics().iter();
        let partitions = topics.flat_map(|topic| topic.partitions());
        Ok(partitions.map(|partition| partition.id()).collect())
    };
    let unreachable = |why: String| failed("cannot reach the kafka brokers", &why);
    let partitions: Vec<_> = reach(consumer, look).map_err(unreachable)?;
    if !partitions.is_empty() {
        return Ok(partitions);
    }
    make(settings)?;
    // The broker that is asked next may not have heard of it yet.
    let made = || match look() {
        Ok(partitions) if partitions.is_empty() => Err(KafkaError::MetadataFetch(
            RDKafkaErrorCode::UnknownTopicOrPartition,
        )),
        other => other,
    };
    reach(consumer, made).map_err(unreachable)
}

fn make(settings: &TopicSettings) -> Result<(), PublishError> {
    let topic = &settings.topic;
    let what = format!("kafka topic \"{topic}\" does not exist and cannot be made");
    let admin: AdminClient<DefaultClientContext> = configuration(&settings.properties)
        .create()
        .map_err(|error| failed(&what, &error))?;
    // As many partitions and replicas as the brokers are set up for.
    let new =
        NewTopic::new(topic, -1, TopicReplication::Fixed(-1)).set("cleanup.policy", "compact");
    let options = AdminOptions::new().operation_timeout(Some(TIMEOUT));
    let made = block_on(admin.create_topics([&new], &options));
    for made in made.map_err(|error| failed(&what, &error))? {
        match made {
            Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
            Err((_, code)) => return Err(failed(&what, &code)),
        }
    }
    Ok(())
}

/// Reads all that is committed.
fn read(
    settings: &TopicSettings,
    consumer: &BaseConsumer<Watch>,
    partitions: &[i32],
) -> Result<Published, PublishError> {
    let topic = &settings.topic;
    let what = format!("cannot read kafka topic \"{topic}\"");
    let why = |error: &KafkaError| failed(&what, &consumer.context().why(error));
    let mut assignment = TopicPartitionList::new();
    for number in partitions {
        let added = assignment.add_partition_offset(topic, *number, Offset::Beginning);
        added.map_err(|error| why(&error))?;
    }
    consumer.assign(&assignment).map_err(|error| why(&error))?;
    let mut published = Published::new();
    // A partition may end several times, if someone writes to it meanwhile.
    let mut unread: BTreeSet<_> = partitions.iter().copied().collect();
    while !unread.is_empty() {
        let polled = consumer.poll(TIMEOUT);
        let message = match polled.ok_or_else(|| failed(&what, &"the brokers send nothing"))? {
            Ok(message) => message,
            Err(KafkaError::PartitionEOF(number)) => {
                unread.remove(&number);
                continue;
            }
            Err(error) => return Err(why(&error)),
        };
        let headers = message
            .headers()
            .into_iter()
            .flat_map(|headers| headers.iter());
        let mut relations = headers.filter(|header| header.key == RELATION);
        let ours = relations.any(|header| header.value == Some(settings.relation.as_bytes()));
        let Some(key) = message.key().filter(|_| ours) else {
            return Err(PublishError::Foreign {
                topic: topic.clone(),
                relation: settings.relation.clone(),
                position: format!("{}/{}", message.partition(), message.offset()),
            });
        };
        match message.payload() {
            Some(value) => drop(published.insert(key.to_owned(), value.to_owned())),
            None => drop(published.remove(key)),
        }
    }
    Ok(published)
}
