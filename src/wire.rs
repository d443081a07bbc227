//! The only module that knows all three crates: what stands behind the names a pipeline asks for.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use connectors::delta::{Table, TableError, TablesFolder};
use connectors::files::{FilesSource, Share};
use connectors::kafka::KafkaSource;
use connectors::message::{Offset, Source, SourceError};
use dataflows::change::{Epoch, Text};
use dataflows::envelope::Envelope;
use dataflows::pipelines::mentions;
use dataflows::ports::{
    Checkpoint, Committer, Environment, Model, Observer, RejectObserver, Reply, Score, Sink,
    Written,
};
use dataflows::record::Confidence;
use models::files::ModelFiles;
use models::onnx::TextClassifier;
use models::pool::{Answer, Pool, PoolStatistics, Watcher};
use models::{ModelError, Prediction};
use serde_json::value::RawValue;
use tokio::runtime::Handle;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::watch;

use crate::checkpoint::store::{Commit, Pause, Store, StoreError};
use crate::metrics::{self, RowCounters};
use crate::plan::{Plan, SourcePlan};
use crate::progress::Progress;
use crate::{EXIT_FAILURE, Stop, give_up};

/// Records of an epoch during catch-up: few where each must be scored, so that results keep coming;
/// many where only counting is to be done, because each epoch has its price.
const RECORDS_AN_EPOCH_SCORED: usize = 1_000;
const RECORDS_AN_EPOCH_COUNTED: usize = 50_000;

/// Texts that may wait for the model before the intake pauses.
const WAITING_TEXTS: u64 = 4_000;

/// What all threads of one process share.
pub struct Process {
    plan: Plan,
    runtime: Handle,
    pool: Option<Arc<Pool>>,
    tables: OnceLock<Tables>,
    stop: Arc<Stop>,
    progress: Arc<Progress>,
    sources_caught_up: Mutex<Vec<Epoch>>,
    caught_up: watch::Sender<Option<Epoch>>,
    durable: Arc<Mutex<Option<Vec<Offset>>>>,
}

/// The tables as they were opened.
struct Tables {
    /// Each relation's table and its files.
    relations: BTreeMap<String, (Table, Vec<Text>)>,
    epoch: Epoch,
    positions: HashMap<Arc<str>, i64>,
    commits: UnboundedSender<(Checkpoint, Reply<()>)>,
}

impl Process {
    /// Loads the model; tables are opened later, by [`Process::open_tables`].
    ///
    /// # Errors
    /// If the model cannot be used.
    pub fn new(plan: Plan, runtime: Handle, stop: Arc<Stop>) -> Result<Self, ModelError> {
        let pool = match &plan.model {
            None => None,
            Some(model) => {
                let files = match &model.directory {
                    Some(directory) => ModelFiles::read(directory)?,
                    None => ModelFiles::built_in(),
                };
                let classifier = TextClassifier::load(&files)?;
                Some(Arc::new(Pool::start(
                    classifier,
                    model.threads,
                    PoolWatcher,
                )))
            }
        };
        Ok(Self {
            plan,
            runtime,
            pool,
            tables: OnceLock::new(),
            stop,
            progress: Arc::default(),
            sources_caught_up: Mutex::default(),
            caught_up: watch::Sender::new(None),
            durable: Arc::default(),
        })
    }

    /// What is to run.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The request to stop.
    pub fn stop(&self) -> &Stop {
        &self.stop
    }

    /// Counts for people.
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// What the model's threads have done.
    pub fn scoring(&self) -> Option<PoolStatistics> {
        self.pool.as_ref().map(|pool| pool.statistics())
    }

    /// Whether so many texts wait for the model that the intake should pause.
    pub fn scoring_is_behind(&self) -> bool {
        self.scoring()
            .is_some_and(|scoring| scoring.waiting > WAITING_TEXTS)
    }

    /// How many records an epoch may hold during catch-up.
    pub fn records_an_epoch(&self) -> usize {
        if self.pool.is_some() {
            RECORDS_AN_EPOCH_SCORED
        } else {
            RECORDS_AN_EPOCH_COUNTED
        }
    }

    /// A source of this process has been read to its end, which it was at this epoch.
    pub fn caught_up(&self, epoch: Epoch) {
        let mut epochs = self
            .sources_caught_up
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        epochs.push(epoch);
        if epochs.len() == self.plan.cluster.workers {
            self.caught_up.send_replace(epochs.iter().max().copied());
        }
    }

    /// Follows whether all sources of this process have been read to their end, and at which epoch.
    pub fn watch_caught_up(&self) -> watch::Receiver<Option<Epoch>> {
        self.caught_up.subscribe()
    }

    /// The offsets that became durable since the last call, if any did.
    pub fn take_durable(&self) -> Option<Vec<Offset>> {
        self.durable
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    /// Opens the tables, once, if the plan has any. Blocks.
    ///
    /// # Errors
    /// If they cannot be used.
    pub fn open_tables(&self) -> Result<(), StoreError> {
        let Some(path) = &self.plan.tables else {
            return Ok(());
        };
        if self.tables.get().is_some() {
            return Ok(());
        }
        let folder = TablesFolder::open(path)?;
        let schemas = mentions::schemas();
        let store = self
            .runtime
            .block_on(Store::open(&folder, &self.plan.pipeline, &schemas))?;
        let mut relations = BTreeMap::new();
        for (relation, _) in &schemas {
            if let Some(table) = store.table(relation) {
                let files = self.runtime.block_on(table.files())?;
                let files = files.into_iter().map(Text::from).collect();
                relations.insert((*relation).to_owned(), (table.clone(), files));
            }
        }
        let positions = store.positions().iter();
        let positions = positions
            .map(|(name, offset)| (name.as_str().into(), *offset))
            .collect();
        let epoch = store.epoch();
        let (commits, requests) = unbounded_channel();
        self.runtime
            .spawn(commit_all(store, requests, Arc::clone(&self.durable)));
        // Of several workers that come here together one wins; what they found is the same.
        let _ = self.tables.set(Tables {
            relations,
            epoch,
            positions,
            commits,
        });
        Ok(())
    }

    /// The epoch of the last checkpoint, 0 if there is none.
    pub fn restored_epoch(&self) -> Epoch {
        self.tables.get().map_or(0, |tables| tables.epoch)
    }

    /// Opens a worker's share of the source.
    ///
    /// # Errors
    /// If the source is not there.
    pub fn open_source(
        &self,
        worker: usize,
        workers: usize,
    ) -> Result<Box<dyn Source>, SourceError> {
        let share = Share { worker, workers };
        Ok(match &self.plan.source {
            SourcePlan::Files(folder) => Box::new(FilesSource::open(folder, share)?),
            SourcePlan::Kafka(settings) => {
                let none = HashMap::new();
                let positions = self.tables.get().map_or(&none, |tables| &tables.positions);
                Box::new(KafkaSource::open(settings, share, positions)?)
            }
        })
    }

    /// The environment of a pipeline on one worker.
    pub fn environment(self: &Arc<Self>, worker: usize) -> WorkerEnvironment {
        WorkerEnvironment {
            process: Arc::clone(self),
            worker,
        }
    }
}

/// Commits checkpoints in the order of asking; what fails for good ends the process.
async fn commit_all(
    mut store: Store,
    mut requests: UnboundedReceiver<(Checkpoint, Reply<()>)>,
    durable: Arc<Mutex<Option<Vec<Offset>>>>,
) {
    while let Some((checkpoint, reply)) = requests.recv().await {
        let commit = to_commit(checkpoint).unwrap_or_else(|error| give_up(&error, EXIT_FAILURE));
        if let Err(error) = store.commit(commit).await {
            give_up(
                &format_args!("{:#}", anyhow::Error::from(error)),
                EXIT_FAILURE,
            );
        }
        let offsets = store.positions().iter();
        let offsets = offsets
            .map(|(name, offset)| (name.as_str().into(), *offset))
            .collect();
        *durable.lock().unwrap_or_else(PoisonError::into_inner) = Some(offsets);
        reply.send(());
    }
}

fn to_commit(checkpoint: Checkpoint) -> Result<Commit, serde_json::Error> {
    let mut changes: BTreeMap<String, Vec<Box<RawValue>>> = BTreeMap::new();
    for change in checkpoint.changes {
        let action = RawValue::from_string(change.action.to_string())?;
        changes
            .entry(change.relation.to_string())
            .or_default()
            .push(action);
    }
    let moved = checkpoint.positions.into_iter();
    let moved = moved.map(|position| (position.partition.to_string(), position.next_offset));
    Ok(Commit {
        epoch: checkpoint.epoch,
        changes,
        moved: moved.collect(),
    })
}

/// Tells of the model's work, and ends the process when the model fails.
struct PoolWatcher;

impl Watcher for PoolWatcher {
    fn classified(&self, texts: usize, took: Duration) {
        metrics::inference(texts, took);
    }

    fn failed(&self, error: ModelError) {
        give_up(&error, EXIT_FAILURE)
    }
}

/// What stands behind the names that a pipeline asks for, on one worker.
pub struct WorkerEnvironment {
    process: Arc<Process>,
    worker: usize,
}

impl Environment for WorkerEnvironment {
    fn model(&mut self, _: &str) -> Option<Box<dyn Model>> {
        let pool = Arc::clone(self.process.pool.as_ref()?);
        Some(Box::new(PooledModel { pool }))
    }

    fn sink(&mut self, relation: &'static str, _: SchemaRef) -> Option<Box<dyn Sink>> {
        let (table, files) = self.process.tables.get()?.relations.get(relation)?.clone();
        let runtime = self.process.runtime.clone();
        Some(Box::new(TableSink {
            relation,
            table,
            files,
            runtime,
        }))
    }

    fn indexed(&self, _: &'static str) -> bool {
        self.process.plan.listen.is_some()
    }

    fn observer(&mut self, relation: &'static str) -> Observer {
        let counters = RowCounters::new(relation, self.worker);
        let progress = Arc::clone(&self.process.progress);
        Box::new(move |inserted, retracted| {
            counters.add(inserted, retracted);
            progress.rows(relation, inserted as i64 - retracted as i64);
        })
    }

    fn rejected(&mut self) -> RejectObserver {
        Box::new(metrics::rejected)
    }

    fn committer(&mut self) -> Option<Box<dyn Committer>> {
        if self.worker != 0 {
            return None;
        }
        let commits = self.process.tables.get()?.commits.clone();
        Some(Box::new(TableCommitter { commits }))
    }

    fn checkpoint_interval(&self) -> u64 {
        self.process.plan.checkpoint_interval_ms
    }

    fn restored_epoch(&self) -> Epoch {
        self.process.restored_epoch()
    }

    fn envelope(&self, _: &str) -> Envelope {
        match self.process.plan.source {
            SourcePlan::Files(_) => Envelope::Upsert,
            SourcePlan::Kafka(_) => Envelope::Debezium,
        }
    }

    fn replays(&self, _: &str) -> bool {
        matches!(self.process.plan.source, SourcePlan::Files(_))
    }
}

struct PooledModel {
    pool: Arc<Pool>,
}

impl Model for PooledModel {
    fn fingerprint(&self) -> Text {
        self.pool.fingerprint().into()
    }

    fn submit(&mut self, texts: Vec<Text>, reply: Reply<Vec<(Text, Score)>>) {
        let answer: Answer = Arc::new(move |predictions| {
            reply.send(predictions.into_iter().map(to_score).collect());
        });
        self.pool.submit(texts, &answer);
    }
}

fn to_score((text, prediction): (Text, Prediction)) -> (Text, Score) {
    let confidence = Confidence(prediction.confidence);
    (
        text,
        Score {
            label: prediction.label,
            confidence,
        },
    )
}

struct TableSink {
    relation: &'static str,
    table: Table,
    files: Vec<Text>,
    runtime: Handle,
}

impl Sink for TableSink {
    fn files(&self) -> &[Text] {
        &self.files
    }

    fn read(&self, file: &str) -> Result<Vec<RecordBatch>, String> {
        let read = self.runtime.block_on(self.table.read(file));
        read.map_err(|error| format!("{:#}", anyhow::Error::from(error)))
    }

    fn append(&mut self, rows: RecordBatch, reply: Reply<Written>) {
        let table = self.table.clone();
        self.runtime.spawn(async move {
            let mut retry = Retry::default();
            loop {
                match append(&table, &rows).await {
                    Ok(written) => return reply.send(written),
                    Err(error) => retry.after(error).await,
                }
            }
        });
    }

    fn rewrite(&mut self, files: Vec<(Text, Vec<u32>)>, reply: Reply<Vec<Written>>) {
        let table = self.table.clone();
        self.runtime.spawn(async move {
            let mut retry = Retry::default();
            let mut written = Vec::with_capacity(files.len());
            while let Some((file, without)) = files.get(written.len()) {
                match rewrite(&table, file, without).await {
                    Ok(file) => written.push(file),
                    Err(error) => retry.after(error).await,
                }
            }
            reply.send(written);
        });
    }

    fn compared(&mut self, missing: usize, surplus: usize) {
        if missing > 0 || surplus > 0 {
            tracing::warn!(
                table = self.relation,
                missing,
                surplus,
                "the table differed from its relation and is being mended"
            );
        }
        metrics::compared(self.relation, missing, surplus);
    }
}

/// Pauses before each new attempt; ends the process if trying again cannot help.
#[derive(Default)]
struct Retry(Pause);

impl Retry {
    async fn after(&mut self, error: StoreError) {
        if let Err(error) = self.0.after(error).await {
            give_up(
                &format_args!("{:#}", anyhow::Error::from(error)),
                EXIT_FAILURE,
            );
        }
    }
}

async fn append(table: &Table, rows: &RecordBatch) -> Result<Written, StoreError> {
    let new = table.append(rows).await?;
    metrics::data_file(new.bytes);
    Ok(Written {
        file: Some(new.name.into()),
        actions: vec![to_json(&new.action)?],
    })
}

async fn rewrite(table: &Table, file: &str, without: &[u32]) -> Result<Written, StoreError> {
    let rewritten = table.rewrite(file, without).await?;
    let mut actions = vec![to_json(&rewritten.remove)?];
    let mut name = None;
    if let Some(new) = rewritten.new {
        metrics::data_file(new.bytes);
        actions.push(to_json(&new.action)?);
        name = Some(new.name.into());
    }
    Ok(Written {
        file: name,
        actions,
    })
}

fn to_json(action: &impl serde::Serialize) -> Result<Text, StoreError> {
    let json = serde_json::to_string(action);
    let unfit = |error| TableError::Unusable(format!("cannot write a log entry: {error}"));
    Ok(json.map_err(unfit)?.into())
}

struct TableCommitter {
    commits: UnboundedSender<(Checkpoint, Reply<()>)>,
}

impl Committer for TableCommitter {
    fn commit(&mut self, checkpoint: Checkpoint, reply: Reply<()>) {
        // The receiver lives as long as the runtime, which outlives the workers.
        let _ = self.commits.send((checkpoint, reply));
    }
}
