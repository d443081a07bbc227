//! Kafka: partitions of topics as a source, and a topic as a sink.

mod client;
mod lost;
mod oauth;
mod publisher;
mod source;

pub use self::publisher::{PublishError, Published, Publisher, TopicSettings, Transaction};
pub use self::source::{KafkaSettings, KafkaSource};
