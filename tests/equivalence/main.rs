//! P1 and P3 by properties: whatever happens at the source, and wherever the process is cut off,
//! every relation at every epoch equals a batch computation over the source's rows, and so do the
//! Delta tables at every checkpoint.
//!
//! A case is a random log of messages (inserts, updates, deletes, duplicates, broken ones) over a
//! few partitions, read by runs of 1 to 4 workers. Each run ends cleanly or is cut off; the next one
//! continues at the positions of the last checkpoint. Models answer late and out of order, from threads; now and then
//! one scores beside the current one, is promoted, or let go. In some runs a fast model answers now and then before
//! the current one does: until that has answered, the batch computation takes its score for those texts.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on should fail there"
)]

mod follow;
mod recompute;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use assay::Stop;
use assay::plan::{ClusterPlan, Plan, SourcePlan, TablesSettings};
use assay::wire::{Process, WorkerEnvironment};
use connectors::delta::{Deletes, Manifests, Table, TablesFolder};
use connectors::kafka::KafkaSettings;
use dataflows::change::{Epoch, Text};
use dataflows::envelope::{Envelope, Format, Message, NO_HEADERS};
use dataflows::intake::{Fed, FormatNow};
use dataflows::operators::checkpoint::Position;
use dataflows::pipelines::mentions::mention::MentionRule;
use dataflows::pipelines::mentions::{self, Bronze, Settings};
use dataflows::ports::{
    Built, Committer, Environment, FAST, Model, ModelOrder, Models, Observer, PredictionObserver,
    RejectObserver, Reply, Score, Sink, Standing,
};
use dataflows::record::{Record, Timestamp};
use proptest::prelude::*;
use timely::worker::Worker;

use follow::Follower;
use recompute::{By, FAST_MODEL, MODELS, Relations, predict, recompute};

/// Partitions of the source; a key always lies in the same one.
const PARTITIONS: usize = 3;

/// Milliseconds between checkpoints: every few epochs of a case.
const INTERVAL: u64 = 1_000;

// ---- the source --------------------------------------------------------------------------------

/// A message of the log: its partition, key and value.
#[derive(Clone)]
struct Entry {
    partition: usize,
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = |bytes: &Option<Vec<u8>>| {
            bytes
                .as_deref()
                .map(|b| String::from_utf8_lossy(b).into_owned())
        };
        write!(
            formatter,
            "{} {:?} {:?}",
            self.partition,
            text(&self.key),
            text(&self.value)
        )
    }
}

/// One message after another; an offset is a place among those of its partition.
#[derive(Clone, Debug)]
struct Log(Vec<Vec<Entry>>);

impl Log {
    fn new(entries: &[Entry]) -> Self {
        let mut partitions = vec![Vec::new(); PARTITIONS];
        for entry in entries {
            partitions[entry.partition].push(entry.clone());
        }
        Self(partitions)
    }

    fn position(partition: usize, offset: usize) -> String {
        format!("t/{partition}/{offset}")
    }

    /// A message's time of reading is a function of its place, so that redelivery repeats it.
    fn received(partition: usize, offset: usize) -> Timestamp {
        Timestamp((partition * 1_000_000 + offset) as i64)
    }
}

fn event(op: &str, after: &str) -> Vec<u8> {
    format!(r#"{{"before":null,"after":{after},"source":{{"lsn":7}},"op":"{op}","ts_ms":1}}"#)
        .into_bytes()
}

fn tweet_json() -> impl Strategy<Value = String> {
    let dates = prop::sample::select(vec![
        r#""Mon Apr 06 22:19:45 PDT 2009""#,
        r#""Tue Apr 07 05:00:00 UTC 2009""#,
        r#""2015-02-24T11:35:52Z""#,
        r#""someday""#,
        "null",
    ]);
    let users = prop::sample::select(vec![r#""ada""#, r#""bo""#, "null"]);
    let texts = prop::sample::select(vec![
        "hi @ada",
        "@bo @cy good",
        "@ada and @ada again",
        "no one",
        "",
        "@Ada shouts",
        "late @cy \u{1f600}",
    ]);
    let labels = prop::sample::select(vec![
        r#""positive""#,
        r#""negative""#,
        r#""neutral""#,
        r#""odd""#,
        "4",
        "null",
    ]);
    let further = prop::sample::select(vec![
        "",
        r#","lang":"en""#,
        r#","lang":null,"likes":5"#,
        r#","likes":"many","tags":["a",1]"#,
    ]);
    (dates, users, texts, labels, further).prop_map(|(date, user, text, label, further)| {
        format!(
            r#"{{"id":1,"date":{date},"user":{user},"text":"{text}","sentiment":{label}{further}}}"#
        )
    })
}

fn entry() -> impl Strategy<Value = Entry> {
    let value = prop_oneof![
        12 => ("[cru]", tweet_json()).prop_map(|(op, after)| Some(event(&op, &after))),
        3 => Just(Some(event("d", "null"))),
        2 => Just(None),
        1 => Just(Some(b"not json".to_vec())),
        1 => Just(Some(b"{\"op\":\"c\",\"after\":{\"text\":\"\xff\"}}".to_vec())),
        1 => Just(Some(event("c", r#"{"text":5}"#))),
        1 => Just(Some(event("c", r#"{"date":"x"}"#))),
        1 => Just(Some(event("x", "null"))),
    ];
    (0..9_usize, prop::bool::weighted(0.03), value).prop_map(|(key, keyless, value)| Entry {
        partition: key % PARTITIONS,
        key: (!keyless).then(|| format!(r#"{{"id":{key}}}"#).into_bytes()),
        value,
    })
}

/// Some messages are delivered twice in a row, as connectors do.
fn log() -> impl Strategy<Value = Vec<Entry>> {
    prop::collection::vec((entry(), 1..=2_usize), 1..60).prop_map(|entries| {
        let repeated = |(entry, times)| std::iter::repeat_n(entry, times);
        entries.into_iter().flat_map(repeated).collect()
    })
}

// ---- the system under test ---------------------------------------------------------------------

/// The program's own environment, with a model that answers late and out of order.
struct TestEnvironment {
    inner: WorkerEnvironment,
    models: SlowModels,
}

/// What models were asked for: their fingerprints and the texts.
type Asked = Arc<Mutex<Vec<(Text, Text)>>>;

/// The model whose scores count, and the one beside it.
#[derive(Clone, Debug)]
struct Chosen {
    current: &'static str,
    candidate: Option<&'static str>,
}

#[derive(Clone)]
struct SlowModels {
    chosen: Chosen,
    asked: Asked,
    /// Whether there are bursts, and a model that answers in them.
    bursts: bool,
    /// How often it was asked whether there is one.
    epochs: usize,
}

impl SlowModels {
    fn model(&self, fingerprint: &str) -> Box<dyn Model> {
        Box::new(SlowModel {
            fingerprint: fingerprint.into(),
            asked: Arc::clone(&self.asked),
            slow: self.bursts && fingerprint != FAST_MODEL,
        })
    }
}

impl Models for SlowModels {
    fn current(&mut self) -> Box<dyn Model> {
        self.model(self.chosen.current)
    }

    fn candidate(&mut self) -> Option<Box<dyn Model>> {
        Some(self.model(self.chosen.candidate?))
    }

    fn find(&mut self, fingerprint: &str) -> Option<Box<dyn Model>> {
        Some(self.model(fingerprint))
    }

    fn fast(&mut self) -> Option<Box<dyn Model>> {
        self.bursts.then(|| self.model(FAST_MODEL))
    }

    fn is_burst(&mut self, _: usize) -> bool {
        self.epochs += 1;
        !self.epochs.is_multiple_of(4)
    }

    fn replaces(&mut self) -> bool {
        true
    }

    fn note(&mut self, _: Standing) {}
}

struct SlowModel {
    fingerprint: Text,
    asked: Asked,
    slow: bool,
}

impl Model for SlowModel {
    fn fingerprint(&self) -> Text {
        self.fingerprint.clone()
    }

    fn submit(&mut self, texts: Vec<Text>, reply: Reply<Vec<(Text, Score)>>) {
        let model = self.fingerprint.clone();
        let asked = texts.iter().map(|text| (model.clone(), text.clone()));
        self.asked.lock().unwrap().extend(asked);
        let slow = self.slow;
        std::thread::spawn(move || {
            for text in texts.into_iter().rev() {
                if slow {
                    let pause = u64::try_from(text.len() % 4).unwrap();
                    std::thread::sleep(Duration::from_millis(pause));
                }
                let score = predict(&model, &text);
                reply.send(vec![(text, score)]);
                std::thread::yield_now();
            }
        });
    }
}

impl Environment for TestEnvironment {
    fn models(&mut self, _: &str) -> Option<Box<dyn Models>> {
        Some(Box::new(self.models.clone()))
    }

    fn recalls_scores(&self) -> bool {
        true
    }

    fn sink(&mut self, relation: &'static str, schema: SchemaRef) -> Option<Box<dyn Sink>> {
        self.inner.sink(relation, schema)
    }

    fn indexed(&self, _: &'static str) -> bool {
        true
    }

    fn observer(&mut self, stage: &'static str) -> Observer {
        self.inner.observer(stage)
    }

    fn rejected(&mut self) -> RejectObserver {
        self.inner.rejected()
    }

    fn predicted(&mut self) -> PredictionObserver {
        self.inner.predicted()
    }

    fn committer(&mut self) -> Option<Box<dyn Committer>> {
        self.inner.committer()
    }

    fn checkpoint_interval(&self) -> u64 {
        INTERVAL
    }

    fn restored_epoch(&self) -> Epoch {
        self.inner.restored_epoch()
    }

    fn format(&self, _: &str) -> FormatNow {
        Arc::new(format)
    }

    fn replays(&self, _: &str) -> bool {
        false
    }
}

/// How a run ends.
#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    /// The source ends, and everything becomes durable.
    Clean,
    /// The dataflow is dropped in the middle, and what was being written with it.
    CutOff,
}

/// What happens to the models at an epoch.
#[derive(Clone, Copy, Debug)]
enum Turn {
    Nothing,
    Shadow(&'static str),
    Promote,
    Drop,
}

/// A run: how many workers, and how far each epoch reads.
#[derive(Clone, Debug)]
struct Run {
    workers: usize,
    /// Milliseconds to the next epoch, messages of each partition, and what happens to the models.
    epochs: Vec<(u64, [usize; PARTITIONS], Turn)>,
    bursts: bool,
    end: End,
}

fn run() -> impl Strategy<Value = Run> {
    let turn = prop_oneof![
        5 => Just(Turn::Nothing),
        2 => prop::sample::select(MODELS.to_vec()).prop_map(Turn::Shadow),
        2 => Just(Turn::Promote),
        1 => Just(Turn::Drop),
    ];
    let epoch = (1..900_u64, prop::array::uniform3(0..6_usize), turn);
    let end = prop::sample::select(vec![End::Clean, End::CutOff]);
    let epochs = prop::collection::vec(epoch, 1..12);
    (1..=4_usize, epochs, any::<bool>(), end).prop_map(|(workers, epochs, bursts, end)| Run {
        workers,
        epochs,
        bursts,
        end,
    })
}

/// An epoch, up to which offset of each partition it reads, and the models from it on.
#[derive(Clone, Debug)]
struct Step {
    epoch: Epoch,
    from: Vec<usize>,
    to: Vec<usize>,
    order: Option<ModelOrder>,
    chosen: Chosen,
}

impl Chosen {
    /// What becomes of the models, and what the dataflow is told.
    fn turn(&mut self, turn: Turn) -> Option<ModelOrder> {
        match turn {
            Turn::Nothing => None,
            Turn::Shadow(model) => {
                if self.current != model {
                    self.candidate = Some(model);
                }
                Some(ModelOrder::Shadow(model.into()))
            }
            Turn::Promote => {
                self.current = self.candidate.take()?;
                Some(ModelOrder::Promote(self.current.into()))
            }
            Turn::Drop => {
                self.candidate = None;
                Some(ModelOrder::Drop)
            }
        }
    }
}

fn steps(run: &Run, log: &Log, restored: Epoch, consumed: &[usize], chosen: &Chosen) -> Vec<Step> {
    let mut epoch = restored;
    let mut from = consumed.to_vec();
    let mut chosen = chosen.clone();
    let mut steps = Vec::new();
    for (pause, counts, turn) in &run.epochs {
        epoch += pause;
        let order = chosen.turn(*turn);
        let to: Vec<_> = (0..PARTITIONS)
            .map(|partition| (from[partition] + counts[partition]).min(log.0[partition].len()))
            .collect();
        steps.push(Step {
            epoch,
            from: from.clone(),
            to: to.clone(),
            order,
            chosen: chosen.clone(),
        });
        from = to;
    }
    steps
}

/// What a worker read of a relation at an epoch.
type Seen = (Epoch, &'static str, RecordBatch);

fn work(
    worker: &mut Worker,
    process: &Arc<Process>,
    models: &SlowModels,
    log: &Log,
    steps: &[Step],
    end: End,
    seen: &Sender<Seen>,
) {
    let mut environment = TestEnvironment {
        inner: process.environment(worker.index()),
        models: models.clone(),
    };
    let settings = Settings {
        rule: MentionRule::twitter(),
        fold_case: false,
        numeric_date: None,
    };
    let Built {
        mut intakes,
        mut feeds,
        mut indexes,
        checkpointed,
        computed,
    } = worker
        .dataflow::<Epoch, _, _>(|scope| mentions::build(scope, &mut environment, &settings))
        .unwrap();
    feeds[0].restore();
    let mut follower = Follower::default();
    let intake = &mut intakes[0].1;
    for step in steps {
        let mut moved = Vec::new();
        for partition in (0..PARTITIONS).filter(|number| number % worker.peers() == worker.index())
        {
            for offset in step.from[partition]..step.to[partition] {
                let entry = &log.0[partition][offset];
                let message = Message {
                    key: entry.key.as_deref(),
                    value: entry.value.as_deref(),
                    headers: NO_HEADERS,
                    origin: &format!("t/{partition}"),
                    offset: Some(offset as u64),
                    received: Log::received(partition, offset),
                };
                intake.push(&message).unwrap();
            }
            let next_offset = step.to[partition] as i64;
            moved.push(Position {
                last_written: None,
                partition: format!("t/{partition}").into(),
                next_offset,
            });
        }
        if let (0, Some(order)) = (worker.index(), &step.order) {
            feeds[0].order(order.clone());
        }
        intake.close(step.epoch, moved).unwrap();
        while !matches!(feeds[0].feed(), Fed::Epoch(..)) {}
        while computed.less_equal(&step.epoch)
            || indexes
                .iter()
                .any(|index| index.frontier().is_some_and(|first| first <= step.epoch))
        {
            worker.step_or_park(Some(Duration::from_millis(1)));
        }
        for index in &mut indexes {
            let rows = follower.read(&mut **index, step.epoch);
            seen.send((step.epoch, index.relation(), rows)).unwrap();
            index.compact(step.epoch, step.epoch);
        }
    }
    match end {
        End::Clean => {
            feeds[0].end();
            while !checkpointed.as_ref().unwrap().done() {
                worker.step_or_park(Some(Duration::from_millis(1)));
            }
        }
        End::CutOff => {
            for dataflow in worker.installed_dataflows() {
                worker.drop_dataflow(dataflow);
            }
        }
    }
}

fn format() -> Format {
    Format {
        further: Some(Arc::default()),
        ..Format::new::<Arc<Bronze>>(Envelope::Debezium)
    }
}

fn plan(folder: &std::path::Path, workers: usize, deletes: Deletes) -> Plan {
    Plan {
        file: None,
        pipeline: "mentions".to_owned(),
        tick_ms: 100,
        format: format(),
        most_rejects_percent: 100,
        source: SourcePlan::Kafka(KafkaSettings {
            properties: BTreeMap::new(),
            topics: Vec::new(),
        }),
        mentions: Settings {
            rule: MentionRule::twitter(),
            fold_case: false,
            numeric_date: None,
        },
        model: None,
        tables: Some(TablesSettings {
            location: folder.display().to_string(),
            deletes,
            history: Duration::ZERO,
        }),
        checkpoint_interval_ms: INTERVAL,
        server: None,
        sinks: Vec::new(),
        cluster: ClusterPlan {
            workers,
            process: 0,
            hosts: Vec::new(),
            secret: None,
            tls: None,
        },
        until_idle: false,
    }
}

/// The epoch of the last manifest and the offsets in it.
fn last_checkpoint(folder: &std::path::Path) -> (Epoch, Vec<usize>) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let manifests = Manifests::open(&TablesFolder::open(folder.to_str().unwrap()).unwrap());
    let numbers = runtime.block_on(manifests.numbers()).unwrap();
    let Some(number) = numbers.last() else {
        return (0, vec![0; PARTITIONS]);
    };
    let manifest = runtime.block_on(manifests.read(*number)).unwrap();
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    let offset = |partition: usize| {
        manifest["positions"][format!("t/{partition}")]
            .as_u64()
            .unwrap_or(0) as usize
    };
    let epoch = manifest["epoch"].as_u64().unwrap();
    (epoch, (0..PARTITIONS).map(offset).collect())
}

fn collect<'b>(batches: impl Iterator<Item = (&'static str, &'b RecordBatch)>) -> Relations {
    fn add<R: Record>(rows: &mut Vec<R>, batch: &RecordBatch) {
        rows.extend(R::from_batch(batch).unwrap());
    }
    let mut all = Relations::default();
    for (relation, batch) in batches {
        match relation {
            "bronze" => add(&mut all.bronze, batch),
            "silver" => add(&mut all.silver, batch),
            "gold" => add(&mut all.gold, batch),
            "scores" => add(&mut all.scores, batch),
            "mention_sentiment" => add(&mut all.mention_sentiment, batch),
            "accuracy" => add(&mut all.accuracy, batch),
            "users" => add(&mut all.users, batch),
            "rejects" => add(&mut all.rejects, batch),
            other => panic!("unknown relation {other}"),
        }
    }
    all.sort();
    all
}

/// The tables as any reader of Delta finds them.
fn read_tables(folder: &std::path::Path) -> Relations {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let folder = TablesFolder::open(folder.to_str().unwrap()).unwrap();
    let mut batches = Vec::new();
    for (relation, schema) in mentions::schemas() {
        let table = runtime
            .block_on(Table::open(&folder, relation, schema, Deletes::Vectors))
            .unwrap();
        let rows = runtime.block_on(table.rows()).unwrap();
        batches.extend(rows.into_iter().map(|batch| (relation, batch)));
    }
    collect(batches.iter().map(|(relation, batch)| (*relation, batch)))
}

fn check(entries: &[Entry], runs: &[Run], deletes: Deletes) {
    let folder = tempfile::tempdir().unwrap();
    let log = Log::new(entries);
    let mut chosen = Chosen {
        current: MODELS[0],
        candidate: None,
    };
    // The current model from each epoch on, as far as it may have become durable.
    let mut currents = vec![(0, MODELS[0])];
    for run in runs {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let plan = plan(folder.path(), run.workers, deletes);
        let process = Arc::new(
            Process::new(plan, runtime.handle().clone(), Arc::new(Stop::default())).unwrap(),
        );
        // Finishes what the last run may have left half done.
        process.open_tables().unwrap();
        let (restored, consumed) = last_checkpoint(folder.path());
        assert_eq!(process.restored_epoch(), restored);
        currents.retain(|(epoch, _)| *epoch <= restored);
        let held = read_tables(folder.path());
        let current = currents.last().unwrap().1;
        let what = format!("tables at {restored}");
        compare(held.clone(), &log, &consumed, current, &what);

        let steps = Arc::new(steps(run, &log, restored, &consumed, &chosen));
        currents.extend(steps.iter().map(|step| (step.epoch, step.chosen.current)));
        let models = SlowModels {
            chosen: chosen.clone(),
            asked: Asked::default(),
            bursts: run.bursts,
            epochs: 0,
        };
        let (seen, all_seen) = channel();
        let seen = Mutex::new(seen);
        let (worker_log, worker_steps, worker_models) =
            (log.clone(), Arc::clone(&steps), models.clone());
        let end = run.end;
        let guards = timely::execute(timely::Config::process(run.workers), move |worker| {
            let seen = seen.lock().unwrap().clone();
            work(
                worker,
                &process,
                &worker_models,
                &worker_log,
                &worker_steps,
                end,
                &seen,
            );
        });
        guards
            .unwrap()
            .join()
            .into_iter()
            .for_each(|ended| ended.unwrap());

        let mut by_epoch: HashMap<Epoch, Vec<(&'static str, RecordBatch)>> = HashMap::new();
        for (epoch, relation, rows) in all_seen {
            by_epoch.entry(epoch).or_default().push((relation, rows));
        }
        for step in steps.iter() {
            let seen = collect(
                by_epoch[&step.epoch]
                    .iter()
                    .map(|(relation, rows)| (*relation, rows)),
            );
            let current = step.chosen.current;
            let what = format!("relations at {}", step.epoch);
            compare(seen, &log, &step.to, current, &what);
        }
        check_asked(
            &log,
            &consumed,
            &held,
            &chosen,
            &steps,
            &models.asked.lock().unwrap(),
        );
        runtime.shutdown_timeout(Duration::from_secs(10));
        if let (End::Clean, Some(last)) = (run.end, steps.last()) {
            let current = last.chosen.current;
            let held = read_tables(folder.path());
            assert!(held.gold.iter().all(|row| row.tier != FAST));
            compare(held, &log, &last.to, current, "tables at the end");
        }
        chosen = steps.last().map_or(chosen, |step| step.chosen.clone());
    }
}

/// Compares what is seen with the batch computation.
///
/// Which texts have the fast model's score is no function of the epoch; but all relations must agree on it. Nor is what
/// the candidate has said so far; but it is said of live texts, once and as the candidate says it.
fn compare(mut seen: Relations, log: &Log, consumed: &[usize], current: &'static str, what: &str) {
    let (scores, others) = std::mem::take(&mut seen.scores)
        .into_iter()
        .partition::<Vec<_>, _>(|row| *row.model == *current || row.tier == FAST);
    let provisional = scores.iter().filter(|row| row.tier == FAST);
    let by = By {
        current,
        provisional: provisional.map(|row| row.text.clone()).collect(),
    };
    let expected = recompute(log, consumed, &by);
    seen.scores = scores;
    for pair in others.windows(2) {
        assert!(pair[0] != pair[1], "{what}: {pair:?} twice");
    }
    for row in others {
        let live = expected.scores.iter().any(|score| score.text == row.text);
        let score = predict(&row.model, &row.text);
        assert!(live, "{what}: {row:?} of a text that is not live");
        assert_eq!(
            (&row.label, row.confidence),
            (&score.label, score.confidence),
            "{what}"
        );
    }
    assert_eq!(seen, expected, "{what}");
}

/// P6: a model is asked for a text only where the text appears that it did not know, or the model does; and
/// where only one model is there, it is asked each time.
fn check_asked(
    log: &Log,
    consumed: &[usize],
    held: &Relations,
    chosen: &Chosen,
    steps: &[Step],
    asked: &[(Text, Text)],
) {
    let alone = chosen.candidate.is_none() && steps.iter().all(|step| step.order.is_none());
    let of =
        |chosen: &Chosen, model: &str| chosen.current == model || chosen.candidate == Some(model);
    let restored = std::iter::once((consumed, chosen));
    let states = restored.chain(steps.iter().map(|step| (&*step.to, &step.chosen)));
    let states: Vec<_> = states
        .map(|(consumed, chosen)| {
            let by = By {
                current: chosen.current,
                provisional: BTreeSet::new(),
            };
            (recompute(log, consumed, &by).scores, chosen)
        })
        .collect();
    let of_fast = |asked: &&(Text, Text)| *asked.0 == *FAST_MODEL;
    for (_, text) in asked.iter().filter(of_fast) {
        let (fast, others) = asked
            .iter()
            .filter(|(_, of)| of == text)
            .partition::<Vec<_>, _>(of_fast);
        assert!(
            fast.len() <= others.len(),
            "\"{text}\" was asked for too often in a burst"
        );
    }
    for (model, text) in asked.iter().filter(|asked| !of_fast(asked)) {
        let known = held
            .scores
            .iter()
            .any(|row| row.model == *model && row.text == *text);
        let mut wanted = known && of(chosen, model);
        let mut appeared = 0;
        for (texts, chosen) in &states {
            let live = texts.iter().any(|row| row.text == *text);
            let was_wanted = std::mem::replace(&mut wanted, live && of(chosen, model));
            appeared += usize::from(wanted && !was_wanted);
        }
        let times = asked
            .iter()
            .filter(|(by, of)| by == model && of == text)
            .count();
        let what = format!("\"{text}\" was scored {times} times by {model}");
        assert!(times <= appeared, "{what}, not {appeared}");
        assert!(!alone || times == appeared, "{what}, not {appeared}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 24,
        max_shrink_iters: 60,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn relations_and_tables_equal_a_batch_computation(
        entries in log(),
        runs in prop::collection::vec(run(), 1..4),
        deletes in prop::sample::select(vec![Deletes::Vectors, Deletes::Rewrite]),
    ) {
        check(&entries, &runs, deletes);
    }
}
