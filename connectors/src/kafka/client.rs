//! What all clients of Kafka share: their properties, their tokens, and hearing what they say.

use std::collections::{BTreeMap, HashMap};
use std::error::Error;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::ClientContext;
use rdkafka::client::OAuthToken;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::DeliveryResult;
use rdkafka::producer::ProducerContext;
use rdkafka::statistics::Statistics;

use super::oauth::{PROPERTIES, Tokens};

/// How long the brokers may take to answer at start.
const START_TIMEOUT: Duration = Duration::from_secs(10);

/// How long it is listened to what the client says when an attempt to reach them fails.
const LISTENING: Duration = Duration::from_millis(50);

/// How long one attempt to reach them may take, during which a source closes no epoch.
pub(super) const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(1);

/// The group of those who are in none; the client wants one.
pub(super) const NO_GROUP: &str = "assay";

/// A client with these properties, except those that are read here.
pub(super) fn configuration(properties: &BTreeMap<String, String>) -> ClientConfig {
    let mut client = ClientConfig::new();
    // A broker that comes back should be found soon; the client's own default is ten seconds.
    client.set("reconnect.backoff.max.ms", "1000");
    let own = |name: &str| PROPERTIES.contains(&name);
    for (name, value) in properties.iter().filter(|(name, _)| !own(name)) {
        client.set(name, value);
    }
    client.set_log_level(RDKafkaLogLevel::Warning);
    client
}

/// Attempts something until brokers answer, or refuse to, or time is up. The consumer may have no
/// partitions yet.
///
/// # Errors
/// Says, as the client does, why the brokers cannot be reached.
pub(super) fn reach<T>(
    consumer: &BaseConsumer<Watch>,
    attempt: impl Fn() -> Result<T, KafkaError>,
) -> Result<T, String> {
    let started = Instant::now();
    loop {
        let error = match attempt() {
            Ok(found) => return Ok(found),
            Err(error) => error,
        };
        // Only polling brings what the client says; without partitions it brings nothing else.
        let mut refused = false;
        while let Some(polled) = consumer.poll(LISTENING) {
            let code = polled.err().and_then(|error| error.rdkafka_error_code());
            // Trying again will not change these.
            refused |= matches!(
                code,
                Some(RDKafkaErrorCode::Authentication | RDKafkaErrorCode::SSL)
            );
        }
        if refused || started.elapsed() > START_TIMEOUT {
            return Err(consumer.context().why(&error));
        }
    }
}

/// What a partition is called.
pub(super) fn partition_name(topic: &str, number: i32) -> String {
    format!("{topic}/{number}")
}

/// What librdkafka reports from its own threads.
#[derive(Default)]
pub(super) struct Watch {
    ends: Mutex<HashMap<String, End>>,
    /// The last error that the client told of, in its own words.
    told: Mutex<Option<String>>,
    /// Where tokens for the broker come from, if it asks for any.
    tokens: Option<Tokens>,
}

/// The end of a partition, as of the last report.
#[derive(Clone, Copy)]
pub(super) struct End {
    pub high_offset: i64,
    /// Where the consumer met the end; beyond the last message, if markers follow it.
    pub met_at: i64,
}

impl Watch {
    /// # Errors
    /// If the properties say that there are tokens, but not where from.
    pub(super) fn new(properties: &BTreeMap<String, String>) -> Result<Self, String> {
        Ok(Self {
            tokens: Tokens::of(properties)?,
            ..Self::default()
        })
    }

    /// Why something failed: what the client told of last, if it did, is plainer than its errors.
    pub(super) fn why(&self, error: &KafkaError) -> String {
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.clone().unwrap_or_else(|| error.to_string())
    }

    pub(super) fn end(&self, partition: &str) -> Option<End> {
        self.ends
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(partition)
            .copied()
    }

    fn tell(&self, what: &str) {
        *self.told.lock().unwrap_or_else(PoisonError::into_inner) = Some(what.to_owned());
    }
}

impl ClientContext for Watch {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn generate_oauth_token(&self, _: Option<&str>) -> Result<OAuthToken, Box<dyn Error>> {
        let tokens = self
            .tokens
            .as_ref()
            .ok_or("nothing says where tokens come from")?;
        let token = tokens.fetch();
        if let Err(error) = &token {
            self.tell(error);
        }
        Ok(token?)
    }

    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        if level as i32 <= RDKafkaLogLevel::Error as i32 {
            // Where it comes from stands first, in brackets.
            let told = message.split_once("]: ").map_or(message, |(_, told)| told);
            self.tell(told);
        }
        // What matters comes back from a poll as well; while brokers are away this comes in floods.
        tracing::debug!(facility, message, "kafka client");
    }

    fn stats(&self, statistics: Statistics) {
        let mut ends = self.ends.lock().unwrap_or_else(PoisonError::into_inner);
        for (topic, statistics) in &statistics.topics {
            for (number, partition) in &statistics.partitions {
                if partition.desired && partition.hi_offset >= 0 {
                    let end = End {
                        high_offset: partition.hi_offset,
                        met_at: partition.eof_offset,
                    };
                    ends.insert(partition_name(topic, *number), end);
                }
            }
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "kafka client");
    }
}

impl ConsumerContext for Watch {}

impl ProducerContext for Watch {
    type DeliveryOpaque = ();

    fn delivery(&self, delivered: &DeliveryResult<'_>, (): ()) {
        // The transaction fails for it too, without saying why.
        if let Err((error, _)) = delivered {
            self.tell(&error.to_string());
        }
    }
}
