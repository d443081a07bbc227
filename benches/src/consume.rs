//! Polls a topic to its end and parses every message, or only counts it, and does nothing with it.
//!
//! What this costs no pipeline can save, with this client and this parser; `catch-up` runs it as a
//! child, so that it is measured as the pipeline is.

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
use dataflows::envelope::{Decoder, Envelope, Format, RowChange};
use dataflows::operators::upsert::State;
use dataflows::pipelines::mentions::Bronze;
use dataflows::record::Timestamp;

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
    let settings = KafkaSettings {
        properties: properties(&arguments.kafka),
        topics: vec![arguments.topic.clone()],
    };
    let mut source = KafkaSource::open(&settings, Share::ALL, &HashMap::new())?;
    let received = Timestamp(assay::now_ms() as i64 * 1_000);
    let (mut messages, mut changes) = (0, 0);
    let mut decoder = Decoder::new(Format::new::<Arc<Bronze>>(Envelope::Debezium));
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
            let understood = |change: &RowChange<_>| !matches!(change.state, State::Row(Err(_)));
            changes += black_box(&decoded)
                .iter()
                .filter(|change| understood(change))
                .count();
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
