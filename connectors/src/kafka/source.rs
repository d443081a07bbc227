//! Partitions of topics as a source; positions are the caller's, never the group's.
//!
//! Partitions are assigned by name, not by a consumer group, so a worker's share depends on nothing
//! but its index, and does not change when partitions are added. The group is told what has become
//! durable, for lag monitoring only.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::Offset as KafkaOffset;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Headers as _, Message as _};
use rdkafka::topic_partition_list::TopicPartitionList;
use regex::Regex;

use super::client::{ATTEMPT_TIMEOUT, NO_GROUP, Watch, configuration, partition_name, reach};
use super::lost::OnLoss;
use crate::files::Share;
use crate::message::{Message, Offset, Polled, Reached, Source, SourceError};

/// How long the brokers may take to tell where a partition ends.
const WATERMARKS_TIMEOUT: Duration = Duration::from_secs(10);

/// How often it is looked whether partitions or topics have been added.
const BETWEEN_SEARCHES: Duration = Duration::from_secs(10);

/// How many messages one turn delivers at most, so that epochs can close in between.
const MESSAGES_A_TURN: usize = 1_000;

/// How the client fetches ahead, unless it is told otherwise. Once it holds so many kilobytes of a partition it pauses for
/// so many milliseconds; by its own defaults, 64 MiB and a second, a fast reader waits for it most of the time.
const AHEAD: [(&str, &str); 2] = [
    ("queued.max.messages.kbytes", "16384"),
    ("fetch.queue.backoff.ms", "10"),
];

/// How often librdkafka reports its statistics, in milliseconds.
const STATISTICS_INTERVAL: &str = "1000";

/// Which topics to read, and how to reach them.
#[derive(Clone, Debug)]
pub struct KafkaSettings {
    /// Properties of the client under librdkafka's names; `bootstrap.servers` must be among them.
    pub properties: BTreeMap<String, String>,
    /// The topics: exact names, and regular expressions, which begin with `^`.
    pub topics: Vec<String>,
}

impl KafkaSettings {
    fn client(&self) -> ClientConfig {
        let mut client = configuration(&self.properties);
        for (name, value) in AHEAD.into_iter().chain([("group.id", NO_GROUP)]) {
            if !self.properties.contains_key(name) {
                client.set(name, value);
            }
        }
        client
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("enable.partition.eof", "true")
            // A position that the broker no longer has must be heard of; what then is decided here.
            .set("auto.offset.reset", "error")
            .set("statistics.interval.ms", STATISTICS_INTERVAL);
        client
    }

    fn on_loss(&self) -> OnLoss {
        OnLoss::named(self.properties.get("auto.offset.reset"))
    }

    fn brokers(&self) -> &str {
        self.properties
            .get("bootstrap.servers")
            .map_or("", String::as_str)
    }
}

/// Which topics are read.
struct Topics {
    names: BTreeSet<String>,
    patterns: Vec<Regex>,
}

impl Topics {
    fn new(topics: &[String]) -> Result<Self, SourceError> {
        let (patterns, names): (Vec<_>, Vec<_>) = topics
            .iter()
            .cloned()
            .partition(|topic| topic.starts_with('^'));
        let pattern = |topic: &String| {
            Regex::new(topic).map_err(|error| {
                SourceError::Fatal(format!(
                    "kafka topic \"{topic}\" is no regular expression: {error}"
                ))
            })
        };
        Ok(Self {
            names: names.into_iter().collect(),
            patterns: patterns.iter().map(pattern).collect::<Result<_, _>>()?,
        })
    }

    fn contain(&self, topic: &str) -> bool {
        // What begins so is the brokers' own.
        let found = || self.patterns.iter().any(|pattern| pattern.is_match(topic));
        self.names.contains(topic) || (!topic.starts_with("__") && found())
    }
}

/// Whether a partition is this share's: those of a topic are dealt out one after another, beginning
/// at a worker that follows from its name.
fn is_ours(share: Share, topic: &str, number: i32) -> bool {
    let first = xxhash_rust::xxh3::xxh3_64(topic.as_bytes());
    let place = first.wrapping_add(u64::from(number.unsigned_abs()));
    place % share.workers as u64 == share.worker as u64
}

/// One worker's share of the topics' partitions.
pub struct KafkaSource {
    consumer: BaseConsumer<Watch>,
    brokers: String,
    topics: Topics,
    on_loss: OnLoss,
    share: Share,
    next_search: Instant,
    group: bool,
    partitions: Vec<PartitionState>,
    /// Partitions by topic and number.
    places: HashMap<String, HashMap<i32, usize>>,
    /// The place of the partition that the last message was of.
    last_place: Option<usize>,
}

struct PartitionState {
    name: Arc<str>,
    topic: String,
    number: i32,
    next_offset: i64,
    moved: bool,
    /// When the last message was written that was read.
    last_written: Option<i64>,
    /// The same of an earlier run, until the message has been met again.
    to_compare: Option<i64>,
    /// Whether nothing is to be delivered for now.
    held: bool,
    /// Where the partition ended when the source was opened.
    end_at_start: i64,
}

impl PartitionState {
    /// Is read from here on, whatever was read before; the client forgets that it was paused.
    fn begin_at(&mut self, next_offset: i64) {
        self.next_offset = next_offset;
        self.moved = true;
        self.last_written = None;
        self.to_compare = None;
        self.held = false;
    }
}

impl KafkaSource {
    /// Opens this worker's share, from the given offsets on, or from the beginning of a partition
    /// that has none.
    ///
    /// # Errors
    /// If the brokers cannot be reached, a topic does not exist, or a property is not understood.
    pub fn open(
        settings: &KafkaSettings,
        share: Share,
        offsets: &HashMap<Arc<str>, Reached>,
    ) -> Result<Self, SourceError> {
        let watch = Watch::new(&settings.properties)
            .map_err(|error| SourceError::Fatal(format!("kafka: {error}")))?;
        let consumer: BaseConsumer<Watch> = settings
            .client()
            .create_with_context(watch)
            .map_err(|error| SourceError::Fatal(format!("kafka: {error}")))?;
        let mut source = Self {
            consumer,
            brokers: settings.brokers().to_owned(),
            topics: Topics::new(&settings.topics)?,
            on_loss: settings.on_loss(),
            share,
            next_search: Instant::now() + BETWEEN_SEARCHES,
            group: settings.properties.contains_key("group.id"),
            partitions: Vec::new(),
            places: HashMap::new(),
            last_place: None,
        };
        let found = source.first_search()?;
        source.ensure_all_exist(&found)?;
        source.ensure_none_is_gone(&found, offsets)?;
        let mut assignment = TopicPartitionList::new();
        for (topic, number) in found {
            if is_ours(share, &topic, number) {
                source.assign(&topic, number, offsets, &mut assignment)?;
            }
        }
        let assigned = source.consumer.assign(&assignment);
        assigned.map_err(|error| SourceError::Fatal(format!("kafka: {error}")))?;
        Ok(source)
    }

    /// Nothing may be assigned yet.
    fn first_search(&self) -> Result<BTreeSet<(String, i32)>, SourceError> {
        let found = reach(&self.consumer, || self.search());
        found.map_err(|why| self.unreachable(&why))
    }

    /// The partitions of all topics that are to be read, by topic and number.
    fn search(&self) -> Result<BTreeSet<(String, i32)>, KafkaError> {
        // Brokers may have many more topics, of which only an expression has to see all.
        let asked: Vec<Option<&str>> = match self.topics.patterns.is_empty() {
            true => self
                .topics
                .names
                .iter()
                .map(|name| Some(name.as_str()))
                .collect(),
            false => vec![None],
        };
        let mut found = BTreeSet::new();
        for topic in asked {
            let metadata = self.consumer.fetch_metadata(topic, ATTEMPT_TIMEOUT)?;
            let topics = metadata.topics().iter();
            for topic in topics.filter(|topic| self.topics.contain(topic.name())) {
                let numbers = topic.partitions().iter().map(|partition| partition.id());
                found.extend(numbers.map(|number| (topic.name().to_owned(), number)));
            }
        }
        Ok(found)
    }

    fn unreachable(&self, why: &str) -> SourceError {
        let brokers = &self.brokers;
        SourceError::Fatal(format!(
            "cannot reach the kafka brokers \"{brokers}\": {why}"
        ))
    }

    /// The same search once the source reads.
    fn search_again(&self) -> Result<BTreeSet<(String, i32)>, SourceError> {
        let found = self.search();
        found.map_err(|error| self.unreachable(&self.consumer.context().why(&error)))
    }

    fn ensure_all_exist(&self, found: &BTreeSet<(String, i32)>) -> Result<(), SourceError> {
        let exists = |name: &str| found.iter().any(|(topic, _)| topic == name);
        match self.topics.names.iter().find(|name| !exists(name)) {
            None => Ok(()),
            Some(absent) => Err(SourceError::Fatal(format!(
                "kafka topic \"{absent}\" does not exist on \"{}\"",
                self.brokers
            ))),
        }
    }

    /// Looks whether partitions that have been read are still there.
    fn ensure_none_is_gone(
        &self,
        found: &BTreeSet<(String, i32)>,
        offsets: &HashMap<Arc<str>, Reached>,
    ) -> Result<(), SourceError> {
        for name in offsets.keys() {
            let Some((topic, number)) = name.rsplit_once('/') else {
                continue;
            };
            let partition = (topic.to_owned(), number.parse().unwrap_or_default());
            let read = self.topics.contain(topic) && is_ours(self.share, topic, partition.1);
            if read && !found.contains(&partition) {
                self.on_loss.gone(name)?;
            }
        }
        Ok(())
    }

    /// Where a partition is among those that are read.
    fn place_of(&self, topic: &str, number: i32) -> Option<usize> {
        // Messages of a partition come in runs.
        let last = self.last_place.filter(|last| {
            let partition = &self.partitions[*last];
            partition.number == number && partition.topic == topic
        });
        last.or_else(|| self.places.get(topic)?.get(&number).copied())
    }

    /// Looks which partitions cannot be read on, after the client said that some cannot, and goes on with
    /// what there is of them.
    fn realign(&mut self) -> Result<(), SourceError> {
        let found = self.search_again()?;
        // A partition that comes back has another place.
        self.last_place = None;
        let mut reread = Vec::new();
        for partition in &mut self.partitions {
            let (topic, number) = (&partition.topic, partition.number);
            let of_topic = self.places.get_mut(topic);
            let Some(known) = of_topic.filter(|known| known.contains_key(&number)) else {
                continue;
            };
            if !found.contains(&(topic.clone(), number)) {
                self.on_loss.gone(&partition.name)?;
                known.remove(&number);
                partition.end_at_start = 0;
                reread.push((topic.clone(), number, None));
                continue;
            }
            let held = self
                .consumer
                .fetch_watermarks(topic, number, WATERMARKS_TIMEOUT);
            let Ok((first, end)) = held else {
                continue;
            };
            let held = first..=end;
            let next = self
                .on_loss
                .offset(&partition.name, partition.next_offset, &held)?;
            if next != partition.next_offset {
                reread.push((topic.clone(), number, Some(next)));
                partition.begin_at(next);
            }
        }
        for (topic, number, next) in reread {
            self.reassign(&topic, number, next)
                .map_err(|error| SourceError::Fatal(format!("kafka: {error}")))?;
        }
        Ok(())
    }

    /// Reads a partition from its beginning, whose topic was made anew, if that is what is to be done then.
    fn begin_anew(&mut self, place: usize) -> Result<(), SourceError> {
        let failed = |error| SourceError::Fatal(format!("kafka: {error}"));
        let partition = &self.partitions[place];
        self.on_loss.made_anew(&partition.name)?;
        let (topic, number) = (partition.topic.clone(), partition.number);
        let held = self
            .consumer
            .fetch_watermarks(&topic, number, WATERMARKS_TIMEOUT);
        let (first, _) = held.map_err(failed)?;
        self.partitions[place].begin_at(first);
        self.reassign(&topic, number, Some(first)).map_err(failed)
    }

    /// Reads a partition from another offset on, or not at all.
    fn reassign(&self, topic: &str, number: i32, next: Option<i64>) -> Result<(), KafkaError> {
        let mut partition = TopicPartitionList::new();
        partition.add_partition(topic, number);
        self.consumer.incremental_unassign(&partition)?;
        let Some(next) = next else {
            return Ok(());
        };
        partition.set_partition_offset(topic, number, KafkaOffset::Offset(next))?;
        self.consumer.incremental_assign(&partition)
    }

    /// Reads from now on what partitions have been added, each from its beginning.
    fn adopt_new(&mut self) -> Result<(), SourceError> {
        let mut added = TopicPartitionList::new();
        let none = HashMap::new();
        let found = self.search_again()?;
        for (topic, number) in found {
            let known = self
                .places
                .get(&topic)
                .is_some_and(|known| known.contains_key(&number));
            if !known && is_ours(self.share, &topic, number) {
                self.assign(&topic, number, &none, &mut added)?;
                tracing::info!(topic, partition = number, "reading a new partition");
            }
        }
        if added.count() > 0 {
            let assigned = self.consumer.incremental_assign(&added);
            assigned.map_err(|error| SourceError::Fatal(format!("kafka: {error}")))?;
        }
        Ok(())
    }

    fn assign(
        &mut self,
        topic: &str,
        number: i32,
        offsets: &HashMap<Arc<str>, Reached>,
        assignment: &mut TopicPartitionList,
    ) -> Result<(), SourceError> {
        let name: Arc<str> = partition_name(topic, number).into();
        let (low, high) = self
            .consumer
            .fetch_watermarks(topic, number, WATERMARKS_TIMEOUT)
            .map_err(|error| SourceError::Fatal(format!("kafka partition \"{name}\": {error}")))?;
        let reached = offsets.get(&name);
        let wanted = reached.map_or(low, |reached| reached.next_offset);
        let next_offset = self.on_loss.offset(&name, wanted, &(low..=high))?;
        let last_written = reached.and_then(|reached| reached.last_written);
        let to_compare = last_written.filter(|_| next_offset == wanted && next_offset > low);
        // The last message that was read is read again, and compared.
        let first = next_offset - i64::from(to_compare.is_some());
        assignment
            .add_partition_offset(topic, number, KafkaOffset::Offset(first))
            .map_err(|error| SourceError::Fatal(format!("kafka partition \"{name}\": {error}")))?;
        let place = self.partitions.len();
        self.places
            .entry(topic.to_owned())
            .or_default()
            .insert(number, place);
        self.partitions.push(PartitionState {
            name,
            topic: topic.to_owned(),
            number,
            next_offset,
            moved: false,
            last_written,
            to_compare,
            held: false,
            end_at_start: high,
        });
        Ok(())
    }

    /// Turns an error of the client into one that may pass, or else gives it back as one that will not.
    fn fail(&mut self, error: &KafkaError) -> Result<SourceError, SourceError> {
        let code = error.rdkafka_error_code();
        let misplaced = matches!(
            code,
            Some(
                RDKafkaErrorCode::OffsetOutOfRange
                    | RDKafkaErrorCode::AutoOffsetReset
                    | RDKafkaErrorCode::UnknownTopicOrPartition
                    | RDKafkaErrorCode::UnknownTopic
                    | RDKafkaErrorCode::UnknownPartition
            )
        );
        if misplaced {
            self.realign()?;
        }
        let lasting = matches!(
            code,
            Some(
                RDKafkaErrorCode::TopicAuthorizationFailed
                    | RDKafkaErrorCode::SaslAuthenticationFailed
                    | RDKafkaErrorCode::Fatal
            )
        );
        if lasting {
            Err(SourceError::Fatal(format!("kafka: {error}")))
        } else {
            Ok(SourceError::Retry(format!("kafka: {error}")))
        }
    }
}

impl Source for KafkaSource {
    fn poll(
        &mut self,
        wait: Duration,
        deliver: &mut dyn FnMut(&Message<'_>),
    ) -> Result<Polled, SourceError> {
        if Instant::now() >= self.next_search {
            self.next_search = Instant::now() + BETWEEN_SEARCHES;
            if let Err(error) = self.adopt_new() {
                // Brokers that are away are told of by what follows.
                tracing::debug!(%error, "cannot look for new partitions");
            }
        }
        let mut wait = wait;
        let mut delivered = false;
        let mut failure = None;
        let mut anew = None;
        for _ in 0..MESSAGES_A_TURN {
            let message = match self.consumer.poll(wait) {
                Some(Ok(message)) => message,
                Some(Err(KafkaError::PartitionEOF(_))) => continue,
                Some(Err(error)) => {
                    // The client goes on by itself, and queues an error for each attempt: all of
                    // them are taken at once, lest old ones be met after the broker is back.
                    failure = Some(self.fail(&error)?);
                    wait = Duration::ZERO;
                    continue;
                }
                None => break,
            };
            wait = Duration::ZERO;
            delivered = true;
            let Some(place) = self.place_of(message.topic(), message.partition()) else {
                continue;
            };
            self.last_place = Some(place);
            let partition = &mut self.partitions[place];
            let written = message.timestamp().to_millis();
            if let Some(expected) = partition.to_compare.take()
                && message.offset() < partition.next_offset
            {
                if written != Some(expected) {
                    anew = Some(place);
                    break;
                }
                continue;
            }
            partition.next_offset = message.offset() + 1;
            partition.last_written = written;
            partition.moved = true;
            let header = |name: &str| {
                let mut headers = message.headers()?.iter();
                let header = headers.find(|header| header.key == name)?;
                header.value.map(<[u8]>::to_vec)
            };
            deliver(&Message {
                key: message.key(),
                value: message.payload(),
                headers: &header,
                origin: &partition.name,
                offset: u64::try_from(message.offset()).ok(),
            });
        }
        if let Some(place) = anew {
            self.begin_anew(place)?;
        }
        if let (Some(failure), false) = (failure, delivered) {
            return Err(failure);
        }
        let watch = self.consumer.context();
        let caught_up = |partition: &PartitionState| {
            let end = partition.end_at_start;
            partition.next_offset >= end
                || watch
                    .end(&partition.name)
                    .is_some_and(|known| known.met_at >= end)
        };
        Ok(if self.partitions.iter().all(caught_up) {
            Polled::CaughtUp
        } else {
            Polled::Some
        })
    }

    fn hold(&mut self, partitions: &[&str]) {
        let mut paused = TopicPartitionList::new();
        let mut resumed = TopicPartitionList::new();
        for partition in &mut self.partitions {
            let held = partitions.contains(&&*partition.name);
            if held != std::mem::replace(&mut partition.held, held) {
                let list = if held { &mut paused } else { &mut resumed };
                list.add_partition(&partition.topic, partition.number);
            }
        }
        if paused.count() + resumed.count() == 0 {
            return;
        }
        let outcome = self.consumer.pause(&paused);
        let outcome = outcome.and_then(|()| self.consumer.resume(&resumed));
        if let Err(error) = outcome {
            // More is held in memory then.
            tracing::debug!(%error, "cannot hold partitions back");
        }
    }

    fn moved(&mut self) -> Vec<Reached> {
        let moved = self
            .partitions
            .iter_mut()
            .filter(|partition| partition.moved);
        moved
            .map(|partition| {
                partition.moved = false;
                Reached {
                    partition: Arc::clone(&partition.name),
                    next_offset: partition.next_offset,
                    last_written: partition.last_written,
                }
            })
            .collect()
    }

    fn durable(&mut self, offsets: &[Offset]) {
        if !self.group {
            return;
        }
        let mut list = TopicPartitionList::new();
        for (name, next_offset) in offsets {
            if let Some((topic, number)) = name.rsplit_once('/')
                && let Ok(number) = number.parse()
                && let Err(error) =
                    list.add_partition_offset(topic, number, KafkaOffset::Offset(*next_offset))
            {
                tracing::debug!(partition = %name, %error, "cannot name an offset to the group");
            }
        }
        if list.count() > 0
            && let Err(error) = self.consumer.commit(&list, CommitMode::Async)
        {
            // Only lag monitoring suffers; positions are kept elsewhere.
            tracing::debug!(%error, "cannot commit the group's offsets");
        }
    }

    fn lag(&self) -> Vec<Offset> {
        let watch = self.consumer.context();
        let lag = |partition: &PartitionState| {
            let behind = match watch.end(&partition.name) {
                Some(end) if end.met_at >= end.high_offset => 0,
                Some(end) => end.high_offset - partition.next_offset,
                None => partition.end_at_start - partition.next_offset,
            };
            (Arc::clone(&partition.name), behind.max(0))
        };
        self.partitions.iter().map(lag).collect()
    }

    fn replays(&self) -> bool {
        false
    }

    fn holds(&self, _: &str) -> bool {
        // Which partition a key hashes to is the producer's affair.
        false
    }
}
