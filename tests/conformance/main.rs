//! What real connectors send, and what the source's rows then are: each file in `cases` has messages,
//! and the rows and rejects that they come to.
//!
//! A case is run again and again: its partitions interleaved otherwise, its messages cut into other
//! epochs, spread over other numbers of workers, and broken off and gone on with anywhere. The end is
//! always the same.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on should fail there"
)]

mod captured;
#[path = "../support/numbers.rs"]
mod numbers;

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};

use dataflows::change::Text;
use dataflows::envelope::{Decoder, Envelope, Format, Message, Retry, RowChange, UNAVAILABLE};
use dataflows::operators::upsert::{State, Upsert, never, upsert};
use dataflows::pipelines::mentions::{Bronze, told_as_copy};
use dataflows::record::Timestamp;
use dataflows::reject::Reject;
use numbers::Numbers;
use serde::Deserialize;
use timely::dataflow::InputHandleVec;
use timely::dataflow::operators::vec::Input;

/// How often each case is run.
const ROUNDS: u64 = 25;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    /// What it is about.
    about: String,
    format: String,
    /// The source's names of date, user, text and sentiment, if they are others.
    #[serde(default)]
    columns: Vec<String>,
    #[serde(default)]
    key: Vec<String>,
    #[serde(default)]
    several_topics: bool,
    /// Whether further columns are kept.
    #[serde(default)]
    further: bool,
    /// Whether it may be broken off anywhere: a truncation reaches further while nothing is.
    #[serde(default = "yes")]
    restarts: bool,
    #[serde(default)]
    message: Vec<Told>,
    #[serde(default)]
    row: Vec<Row>,
    #[serde(default)]
    reject: Vec<Rejected>,
}

fn yes() -> bool {
    true
}

/// A message; without a value it is a tombstone.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Told {
    #[serde(default = "default_topic")]
    topic: String,
    #[serde(default)]
    partition: usize,
    key: Option<String>,
    value: Option<String>,
    #[serde(default)]
    headers: BTreeMap<String, String>,
}

/// A message as it comes.
#[derive(Clone, Default)]
struct Delivered {
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    headers: BTreeMap<String, Vec<u8>>,
}

impl Told {
    fn delivered(self) -> Delivered {
        let headers = self.headers.into_iter();
        Delivered {
            key: self.key.map(String::into_bytes),
            value: self.value.map(String::into_bytes),
            headers: headers
                .map(|(name, value)| (name, value.into_bytes()))
                .collect(),
        }
    }
}

fn default_topic() -> String {
    "notes".to_owned()
}

#[derive(Clone, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd)]
#[serde(deny_unknown_fields)]
struct Row {
    /// Any, if it is not said.
    key: Option<String>,
    text: String,
    #[serde(default)]
    further: BTreeMap<String, String>,
    date: Option<String>,
    user: Option<String>,
    sentiment: Option<String>,
}

#[derive(Clone, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd)]
#[serde(deny_unknown_fields)]
struct Rejected {
    key: Option<String>,
    reason: String,
}

/// What the source's rows are.
type Rows = Vec<SourceState>;

/// A message's partition and its offset there.
type Place = (String, u64);

/// What the source says of a key.
type SourceState = Result<Arc<Bronze>, Box<Reject>>;

impl Case {
    fn format(&self) -> Format {
        let envelope = match self.format.as_str() {
            "debezium" => Envelope::Debezium,
            "flattened" => Envelope::Flattened,
            "upsert" => Envelope::Upsert,
            "append" => Envelope::Append,
            other => panic!("no such format: {other}"),
        };
        let plain = Format::new::<Arc<Bronze>>(envelope);
        let columns = match self.columns.is_empty() {
            true => plain.columns.clone(),
            false => self.columns.clone(),
        };
        let keyless = self.key == ["*"];
        Format {
            columns,
            keyless,
            key_columns: if keyless {
                Vec::new()
            } else {
                self.key.clone()
            },
            further: self.further.then(Arc::default),
            several_topics: self.several_topics,
            unavailable: UNAVAILABLE.to_owned(),
            ..plain
        }
    }

    /// The messages with their positions, those of each partition in order, partitions mingled.
    fn mingled(&self, numbers: &mut Numbers) -> Vec<(Place, Delivered)> {
        let mut partitions: BTreeMap<(String, usize), Vec<Told>> = BTreeMap::new();
        for told in &self.message {
            let partition = (told.topic.clone(), told.partition);
            partitions.entry(partition).or_default().push(told.clone());
        }
        let mut queues: Vec<_> = partitions
            .into_iter()
            .map(|((topic, partition), told)| {
                let numbered = told.into_iter().enumerate();
                let placed = numbered.map(|(offset, told)| {
                    let place = (format!("{topic}/{partition}"), offset as u64);
                    (place, told.delivered())
                });
                placed.collect::<std::collections::VecDeque<_>>()
            })
            .collect();
        let mut mingled = Vec::new();
        while queues.iter().any(|queue| !queue.is_empty()) {
            let queue = numbers.below(queues.len() as u64) as usize;
            mingled.extend(queues[queue].pop_front());
        }
        mingled
    }
}

/// The rows and rejects after some messages, told in epochs of random length to random workers.
fn follow(
    format: &Format,
    before: Rows,
    messages: &[(Place, Delivered)],
    numbers: &mut Numbers,
) -> Rows {
    let workers = 1 + numbers.below(3) as usize;
    let mut decoder = Decoder::new(format.clone());
    let mut epochs: Vec<Vec<RowChange<Arc<Bronze>>>> = vec![Vec::new()];
    let mut retry = Retry::new(format.clone());
    for state in before {
        let told = match state {
            Ok(row) => Upsert::row(row.key.clone(), Ok(row)),
            Err(reject) => {
                let retried = retry.row(&reject);
                retried.unwrap_or_else(|| Upsert::row(reject.source_key(), Err(reject)))
            }
        };
        epochs[0].push(if format.keyless {
            told_as_copy(told)
        } else {
            told
        });
    }
    for ((origin, offset), told) in messages {
        if numbers.below(3) == 0 {
            epochs.push(Vec::new());
        }
        let message = Message {
            key: told.key.as_deref(),
            value: told.value.as_deref(),
            headers: &|name| told.headers.get(name).cloned(),
            origin,
            offset: Some(*offset),
            received: Timestamp(0),
        };
        let open = epochs.last_mut().unwrap();
        let known = open.len();
        decoder.decode(&message, open).unwrap();
        // As the intake does, a truncation is copied for every worker.
        for place in known..open.len() {
            if let State::Truncated(_) = open[place].state {
                let copies = (1..workers as u64).map(|worker| Upsert {
                    state: State::Truncated(worker),
                    ..open[place].clone()
                });
                let copies: Vec<_> = copies.collect();
                open.extend(copies);
            }
        }
    }
    run(epochs, workers)
}

fn run(epochs: Vec<Vec<RowChange<Arc<Bronze>>>>, workers: usize) -> Rows {
    let (changes, changed) = channel();
    let (epochs, changes) = (Arc::new(epochs), Arc::new(Mutex::new(changes)));
    let configuration = timely::Config::process(workers);
    let running = timely::execute(configuration, move |worker| {
        let changes = changes.lock().unwrap().clone();
        let mut input = InputHandleVec::new();
        worker.dataflow(|scope| {
            let upserts = scope.input_from(&mut input);
            let (rows, _) = upsert::<SourceState>(upserts, "Rows", never);
            rows.inspect(move |(row, _, diff)| {
                changes.send((row.clone(), *diff)).unwrap();
            });
        });
        for (epoch, told) in epochs.iter().enumerate() {
            input.advance_to(epoch as u64);
            if worker.index() == 0 {
                told.iter().cloned().for_each(|told| input.send(told));
            }
        }
    });
    running
        .unwrap()
        .join()
        .into_iter()
        .for_each(|ended| ended.unwrap());
    sum(&changed)
}

/// What is left of changes.
fn sum(changed: &Receiver<(SourceState, isize)>) -> Rows {
    let mut counts: BTreeMap<_, isize> = BTreeMap::new();
    for (row, diff) in changed.try_iter() {
        *counts.entry(row).or_default() += diff;
    }
    assert!(counts.values().all(|count| *count >= 0), "{counts:?}");
    let rows = counts.into_iter();
    rows.flat_map(|(row, count)| std::iter::repeat_n(row, count as usize))
        .collect()
}

fn check(case: &Case, state: &Rows, round: u64) {
    let mut expected = case.row.clone();
    let any_key = expected.iter().all(|row| row.key.is_none());
    let rows = state.iter().filter_map(|row| row.as_ref().ok());
    let mut rows: Vec<_> = rows
        .map(|row| Row {
            key: (!any_key).then(|| row.key.to_string()),
            ..shown(row)
        })
        .collect();
    rows.sort();
    expected.sort();
    assert_eq!(rows, expected, "{} (round {round})", case.about);
    let rejects = state.iter().filter_map(|row| row.as_ref().err());
    let mut rejects: Vec<&Reject> = rejects.map(|reject| &**reject).collect();
    rejects.sort_by_key(|reject| reject.key.clone());
    let mut expected = case.reject.clone();
    expected.sort();
    let same = |(found, expected): (&&Reject, &Rejected)| {
        let any_key = expected.key.as_deref() == Some("*");
        (any_key || found.key == expected.key.as_deref().map(Text::from))
            && found.reason.contains(&expected.reason)
    };
    let all = rejects.len() == expected.len() && rejects.iter().zip(&expected).all(same);
    assert!(all, "{} (round {round}): {rejects:?}", case.about);
}

fn shown(row: &Arc<Bronze>) -> Row {
    let text = |text: &Option<Text>| text.as_deref().map(str::to_owned);
    let further = row.further.0.as_deref().unwrap_or("{}");
    Row {
        key: Some(row.key.to_string()),
        further: serde_json::from_str(further).unwrap(),
        text: row.text.to_string(),
        date: text(&row.date),
        user: text(&row.user),
        sentiment: text(&row.sentiment),
    }
}

#[test]
fn every_case_comes_to_its_rows_however_it_is_read() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/conformance/cases");
    let mut cases = 0;
    for file in std::fs::read_dir(folder).unwrap() {
        let file = file.unwrap().path();
        let text = std::fs::read_to_string(&file).unwrap();
        let case: Case =
            toml::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        cases += 1;
        for round in 0..ROUNDS {
            let mut numbers = Numbers(round);
            let messages = case.mingled(&mut numbers);
            let broken_off = match case.restarts {
                true => numbers.below(messages.len() as u64 + 1) as usize,
                false => 0,
            };
            let (first, rest) = messages.split_at(broken_off);
            let format = case.format();
            let state = follow(&format, Vec::new(), first, &mut numbers);
            let state = follow(&format, state, rest, &mut numbers);
            check(&case, &state, round);
        }
    }
    assert!(cases >= 20, "{cases} cases");
}
