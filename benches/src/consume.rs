//! Polls a topic to its end and parses every message, or only counts it, and does nothing with it.
//!
//! What this costs no pipeline can save, with this client and this parser; `catch-up` runs it as a
//! child, so that it is measured as the pipeline is. Beside it, the same decoder by itself, over messages that are
//! in memory already.

use std::collections::{BTreeMap, HashMap};
use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use anyhow::ensure;
use assay::ingest::read_at;
use clap::Args;
use connectors::files::Share;
use connectors::kafka::{KafkaSettings, KafkaSource};
use connectors::message::{Polled, Source};
use dataflows::envelope::{Decoder, Envelope, Format, Message, NO_HEADERS, RowChange};
use dataflows::operators::upsert::State;
use dataflows::pipelines::mentions::Bronze;
use dataflows::record::Timestamp;

use crate::cost::{self, Spent};

/// How long one turn may wait for a message.
const WAIT: Duration = Duration::from_millis(100);

/// Polls and parses a topic.
#[derive(Args, Debug)]
pub(crate) struct Consume {
    /// The brokers.
    #[arg(long)]
    kafka: String,
    /// The topic.
    #[arg(long)]
    topic: String,
    /// How many messages it holds.
    #[arg(long)]
    messages: usize,
    /// Looks into no message.
    #[arg(long)]
    bare: bool,
}

/// The client's properties, the same for the bare consumer and for the pipeline.
pub(crate) fn properties(brokers: &str) -> BTreeMap<String, String> {
    let properties = [
        ("bootstrap.servers", brokers),
        ("group.id", "assay-benches"),
    ];
    let owned = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
    properties.map(owned).into()
}

pub(crate) fn run(arguments: &Consume) -> anyhow::Result<()> {
    let mut source = open(&arguments.kafka, &arguments.topic)?;
    let received = Timestamp(assay::now_ms() as i64 * 1_000);
    let (mut messages, mut changes) = (0, 0);
    let mut decoder = decoder();
    let mut decoded: Vec<RowChange<Arc<Bronze>>> = Vec::new();
    let mut polled = Polled::Some;
    while polled != Polled::CaughtUp {
        polled = source.poll(WAIT, &mut |message| {
            let message = read_at(message, received);
            messages += 1;
            if arguments.bare {
                changes += 1;
                return;
            }
            let _ = decoder.decode(&message, &mut decoded);
            changes += understood(&decoded);
            decoded.clear();
        })?;
    }
    let expected = arguments.messages;
    ensure!(
        messages == expected && changes == expected,
        "of {expected} messages {messages} were read and {changes} understood"
    );
    Ok(())
}

fn open(kafka: &str, topic: &str) -> anyhow::Result<KafkaSource> {
    let settings = KafkaSettings {
        properties: properties(kafka),
        topics: vec![topic.to_owned()],
    };
    let source = KafkaSource::open(&settings, Share::ALL, &HashMap::new());
    source.map_err(anyhow::Error::from)
}

fn decoder() -> Decoder {
    Decoder::new(Format::new::<Arc<Bronze>>(Envelope::Debezium))
}

fn understood(decoded: &[RowChange<Arc<Bronze>>]) -> usize {
    let understood = |change: &&RowChange<_>| !matches!(change.state, State::Row(Err(_)));
    black_box(decoded).iter().filter(understood).count()
}

/// A message that is kept: its key, value, partition and offset.
type Kept = (Option<Vec<u8>>, Option<Vec<u8>>, Arc<str>, Option<u64>);

/// Decodes the first messages of a topic, that are read before and kept in memory, as often as is said.
///
/// # Errors
/// If the topic cannot be read, or a message not be understood.
pub(crate) fn decode_kept(
    kafka: &str,
    topic: &str,
    messages: usize,
    rounds: usize,
) -> anyhow::Result<Spent> {
    let mut kept: Vec<Kept> = Vec::with_capacity(messages);
    let mut source = open(kafka, topic)?;
    while kept.len() < messages {
        source.poll(WAIT, &mut |message| {
            let copy = |bytes: Option<&[u8]>| bytes.map(<[u8]>::to_vec);
            let (key, value) = (copy(message.key), copy(message.value));
            let origin: Arc<str> = message.origin.into();
            kept.push((key, value, origin, message.offset));
        })?;
    }
    // Its threads would be measured too.
    drop(source);
    let received = Timestamp(assay::now_ms() as i64 * 1_000);
    let (changes, spent) = cost::of_work(|| {
        let (mut decoded, mut changes) = (Vec::new(), 0);
        for _ in 0..rounds {
            // One that had met them would take them for repetitions.
            let mut decoder = decoder();
            for (key, value, origin, offset) in &kept {
                let message = Message {
                    key: key.as_deref(),
                    value: value.as_deref(),
                    headers: NO_HEADERS,
                    origin,
                    offset: *offset,
                    received,
                };
                let _ = decoder.decode(&message, &mut decoded);
                changes += understood(&decoded);
                decoded.clear();
            }
        }
        Ok(changes)
    })?;
    let expected = kept.len() * rounds;
    ensure!(
        changes == expected,
        "of {expected} messages {changes} were understood"
    );
    // Rates are told of as many messages as were asked for, and a turn brings some more.
    Ok(spent.times(messages as f64 / kept.len() as f64))
}
