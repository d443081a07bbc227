//! Reads a Kafka topic from its beginning: how fast, at what cost, beside the least that it could cost.

use std::path::Path;
use std::process::Command;

use anyhow::Context;
use assay::config::{Settings, SourceKind};
use clap::Args;

use crate::consume::{self, properties};
use crate::cost::{self, Cost, Spent};
use crate::program::{Assay, bare, with_server, with_tables};
use crate::table::{markdown, whole};
use crate::topic::Topic;

/// The decoder by itself, over messages in memory.
const KEPT: &str = "decode alone";

/// How many messages it is given: about as many as the client holds ahead. Of more it would be measured how long
/// memory takes.
const MOST_KEPT: usize = 24_000;

/// How often it decodes them.
const ROUNDS: usize = 20;

/// Reads a topic from its beginning.
#[derive(Args, Debug)]
pub(crate) struct CatchUp {
    /// Changes of rows in the topic; tombstones come on top.
    #[arg(long, default_value_t = 1_000_000)]
    events: usize,
    /// Worker threads, one run for each; tables and queries are measured with one worker.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2])]
    workers: Vec<usize>,
    /// The brokers.
    #[arg(long, env = "ASSAY_TEST_KAFKA")]
    kafka: String,
}

pub(crate) fn run(bench: &CatchUp) -> anyhow::Result<()> {
    let assay = Assay::find()?;
    let topic = Topic::filled(&bench.kafka, bench.events)?;
    let mut settings = bare(SourceKind::Kafka);
    settings.workers = 1;
    settings.source.kafka.topics = vec![topic.name.clone()];
    settings.source.kafka.properties = properties(&bench.kafka);

    let mut costs = Vec::new();
    for (case, more) in [("consume", &["--bare"][..]), ("consume and decode", &[])] {
        costs.push((case, consume(bench, &topic, case, more, assay.folder())?));
    }
    let cases = cases(&settings, &bench.workers, assay.folder());
    for (case, settings) in &cases {
        costs.push((case.as_str(), assay.run(case, settings)?));
    }
    eprintln!("measuring: {KEPT}");
    let kept = topic.messages.min(MOST_KEPT);
    let spent = consume::decode_kept(&bench.kafka, &topic.name, kept, ROUNDS)?;
    let mut rows: Vec<_> = costs
        .iter()
        .map(|(case, cost)| line(case, cost.spent, bench.events, Some(cost.peak_mib())))
        .collect();
    let kept_events = ROUNDS * kept * bench.events / topic.messages;
    rows.insert(2, line(KEPT, spent, kept_events, None));
    let head = [
        "case",
        "events per second",
        "CPU s per million events",
        "peak MiB",
    ];
    println!(
        "{} events, {} messages, start and end of the process included:\n",
        whole(bench.events as f64),
        whole(topic.messages as f64)
    );
    print!("{}", markdown(head, &rows));
    Ok(())
}

/// What is run, under the names of the printed table.
fn cases(bare: &Settings, workers: &[usize], folder: &Path) -> Vec<(String, Settings)> {
    let dataflow = workers.iter().map(|&workers| {
        let settings = Settings {
            workers,
            ..bare.clone()
        };
        (format!("dataflow, workers: {workers}"), settings)
    });
    let server = with_server(bare.clone());
    let tables = with_tables(bare.clone(), &folder.join("tables"));
    dataflow
        .chain([
            ("with indexes for queries, workers: 1".to_owned(), server),
            ("with tables, workers: 1".to_owned(), tables),
        ])
        .collect()
}

fn consume(
    bench: &CatchUp,
    topic: &Topic,
    case: &str,
    more: &[&str],
    folder: &Path,
) -> anyhow::Result<Cost> {
    eprintln!("measuring: {case}");
    let program = std::env::current_exe().context("cannot tell where this program lies")?;
    let mut command = Command::new(program);
    command
        .args(["consume", "--kafka", &bench.kafka, "--topic", &topic.name])
        .args(["--messages", &topic.messages.to_string()])
        .args(more);
    cost::of_child(command, &folder.join("log"))
}

fn line(case: &str, spent: Spent, events: usize, peak_mib: Option<f64>) -> [String; 4] {
    let events = events as f64;
    let cpu = spent.cpu.as_secs_f64() / (events / 1e6);
    [
        case.to_owned(),
        whole(events / spent.wall.as_secs_f64()),
        format!("{cpu:.2}"),
        peak_mib.map_or_else(String::new, |peak| format!("{peak:.0}")),
    ]
}
