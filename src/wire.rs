//! The only module that knows all three crates: what stands behind the names a pipeline asks for.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use connectors::delta::{Action, DataFile, DataFiles, FileRemoval, Manifests, TableError};
use connectors::files::{FilesSource, Share};
use connectors::kafka::KafkaSource;
use connectors::message::{Offset, Reached, Source, SourceError};
use dataflows::change::{Epoch, Text};
use dataflows::envelope::Format;
use dataflows::envelope::further::FurtherNames;
use dataflows::intake::FormatNow;
use dataflows::pipelines::mentions::{self, Bronze};
use dataflows::ports::{
    Checkpoint, Committer, Environment, FAST, FULL, FileRows, Model, Models, Observer,
    PredictionObserver, RejectObserver, Removal, Reply, Score, Sink, Standing, StoredFile, Tier,
    Written,
};
use dataflows::record::{Confidence, Record};
use models::Prediction;
use models::pool::{Answer, PoolStatistics, Scorer};
use roaring::RoaringBitmap;
use serde_json::value::RawValue;
use tokio::runtime::Handle;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use crate::checkpoint::crash;
use crate::checkpoint::lease::{self, Lease};
use crate::checkpoint::store::{Commit, Decisions, Pause, Store, StoreError};
use crate::metrics::{self, RowCounters};
use crate::plan::{Overrides, Plan, SourcePlan};
use crate::progress::Progress;
use crate::status::Statuses;
use crate::swap::{ModelsError, Swap};
use crate::{EXIT_FAILURE, Stop, give_up, now_ms};

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
    swap: Option<Arc<Swap>>,
    opening: Mutex<()>,
    tables: OnceLock<Tables>,
    stop: Arc<Stop>,
    progress: Arc<Progress>,
    sources_caught_up: Mutex<Vec<Epoch>>,
    caught_up: watch::Sender<Option<Epoch>>,
    durable: Arc<Mutex<Option<Vec<Offset>>>>,
    versions: Arc<Mutex<Option<Versions>>>,
    reading: Mutex<Reading>,
    /// What the source's messages look like, and how often that has been read anew.
    format: Mutex<Format>,
    retries: AtomicU64,
    /// Rows of bronze and rejects that appeared since the start.
    accepted: AtomicU64,
    rejected: AtomicU64,
    /// How many messages wait in each partition that this process reads.
    lags: Mutex<BTreeMap<Arc<str>, i64>>,
    /// When the process started, in milliseconds since 1970.
    started: u64,
    statuses: Statuses,
    /// Cloned for each sink that does not follow its relation yet.
    sinks_behind: Arc<()>,
    /// Further columns of the source that have been met, on any process.
    further: Arc<FurtherNames>,
}

/// The epoch of the last checkpoint, and the version at which it left each table.
pub type Versions = (Epoch, BTreeMap<String, u64>);

/// Whether the source is read.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Reading {
    /// It is.
    #[default]
    On,
    /// Someone has paused it.
    Paused,
    /// It was paused because too much of what it said could not be used.
    TooManyRejects,
}

/// The tables as they were opened.
struct Tables {
    relations: BTreeMap<String, RelationTable>,
    epoch: Epoch,
    positions: HashMap<Arc<str>, Reached>,
    /// Where checkpoints are committed, on the process that does.
    commits: Option<UnboundedSender<Request>>,
}

/// One relation's table.
#[derive(Clone)]
struct RelationTable {
    data: DataFiles,
    files: Vec<StoredFile>,
}

/// What the committing task is asked for.
enum Request {
    Commit(Checkpoint, Reply<()>),
    /// To end, and give the lease back.
    End(oneshot::Sender<()>),
}

impl Process {
    /// Loads the model; tables are opened later, by [`Process::open_tables`].
    ///
    /// # Errors
    /// If the model cannot be used, or the storage does not tell which it is.
    pub fn new(plan: Plan, runtime: Handle, stop: Arc<Stop>) -> Result<Self, ModelsError> {
        let swap = match &plan.model {
            None => None,
            Some(model) => {
                let tables = plan.tables_plan().map_err(StoreError::from)?;
                let decisions = tables.map(|tables| Decisions::open(&tables.folder));
                let workers = plan.cluster.workers;
                let swap = Swap::start(model, workers, decisions, runtime.clone())?;
                Some(Arc::new(swap))
            }
        };
        let further = plan.format.further.clone().unwrap_or_default();
        Ok(Self {
            format: Mutex::new(plan.format.clone()),
            retries: AtomicU64::default(),
            plan,
            runtime,
            swap,
            opening: Mutex::default(),
            tables: OnceLock::new(),
            stop,
            progress: Arc::default(),
            sources_caught_up: Mutex::default(),
            caught_up: watch::Sender::new(None),
            durable: Arc::default(),
            versions: Arc::default(),
            reading: Mutex::default(),
            accepted: AtomicU64::default(),
            rejected: AtomicU64::default(),
            lags: Mutex::default(),
            started: now_ms(),
            statuses: Statuses::default(),
            sinks_behind: Arc::default(),
            further,
        })
    }

    /// What is to run.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Runs what waits for others.
    pub fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// The request to stop.
    pub fn stop(&self) -> &Arc<Stop> {
        &self.stop
    }

    /// Has the source read, or nothing read from it.
    pub fn set_reading(&self, reading: Reading) {
        let mut now = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        if std::mem::replace(&mut *now, reading) != reading {
            match reading {
                Reading::On => tracing::info!("the source is read on"),
                Reading::Paused => tracing::info!("the source is paused"),
                Reading::TooManyRejects => tracing::error!(
                    "the source is paused: too much of what it says cannot be used; see the relation \
                     rejects, and go on with `assay source resume`"
                ),
            }
        }
    }

    /// Has what could not be used tried again, by what the configuration says of messages now.
    pub fn retry_rejects(&self) {
        if let Some(file) = &self.plan.file {
            match Plan::read(file, &Overrides::default()) {
                Ok(plan) => {
                    let mut format = plan.format;
                    format.further = format.further.map(|_| Arc::clone(&self.further));
                    *self.format.lock().unwrap_or_else(PoisonError::into_inner) = format;
                }
                Err(error) => {
                    tracing::error!("{error:#}; what it said of messages before is kept to");
                }
            }
        }
        tracing::info!("what could not be used is tried again");
        self.retries.fetch_add(1, Ordering::Release);
    }

    /// How often what could not be used is to be tried again.
    pub fn retries(&self) -> u64 {
        self.retries.load(Ordering::Acquire)
    }

    /// What the source's messages look like.
    pub fn format(&self) -> Format {
        let format = self.format.lock().unwrap_or_else(PoisonError::into_inner);
        format.clone()
    }

    /// The further columns of the source that have been met, on any process.
    pub fn further(&self) -> &Arc<FurtherNames> {
        &self.further
    }

    /// Whether the source is read.
    pub fn reading(&self) -> Reading {
        *self.reading.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many rows of bronze, and how many rejects, have appeared on this process since its start.
    pub fn accepted_and_rejected(&self) -> (u64, u64) {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        (count(&self.accepted), count(&self.rejected))
    }

    /// Notes how many messages wait in partitions.
    pub fn note_lags(&self, lags: &[Offset]) {
        let mut known = self.lags.lock().unwrap_or_else(PoisonError::into_inner);
        known.extend(lags.iter().cloned());
    }

    /// How many messages wait in each partition that this process reads, as of a moment ago.
    pub fn lags(&self) -> BTreeMap<Arc<str>, i64> {
        self.lags
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// When the process started, in milliseconds since 1970.
    pub fn started(&self) -> u64 {
        self.started
    }

    /// What all processes tell of themselves.
    pub fn statuses(&self) -> &Statuses {
        &self.statuses
    }

    /// Counts for people.
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// The models, if texts are scored.
    pub fn swap(&self) -> Option<&Arc<Swap>> {
        self.swap.as_ref()
    }

    /// The tables as the last checkpoint left them, on the process that writes them.
    pub fn versions(&self) -> Option<Versions> {
        let versions = self.versions.lock();
        versions.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What the models' threads have done.
    pub fn scoring(&self) -> Option<PoolStatistics> {
        self.swap.as_ref().map(|swap| swap.statistics())
    }

    /// Whether so many texts wait for the model that the intake should pause.
    pub fn scoring_is_behind(&self) -> bool {
        let waiting = self.swap.as_ref().map(|swap| swap.holding_up());
        waiting.is_some_and(|waiting| waiting > WAITING_TEXTS)
    }

    /// How many records an epoch may hold during catch-up.
    pub fn records_an_epoch(&self) -> usize {
        if self.swap.is_some() {
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

    /// To be held for a sink until it follows its relation.
    pub fn sink_behind(&self) -> Arc<()> {
        Arc::clone(&self.sinks_behind)
    }

    /// Whether a sink of this process does not follow its relation yet.
    pub fn sinks_are_behind(&self) -> bool {
        Arc::strong_count(&self.sinks_behind) > 1
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

    /// Opens the tables, once, if the plan has any: the first process to write them, the others to
    /// read. Blocks.
    ///
    /// # Errors
    /// If they cannot be used.
    pub fn open_tables(&self) -> Result<(), StoreError> {
        self.open(self.plan.cluster.process == 0)
    }

    /// Opens the tables to read them alone, beside whoever writes them. Blocks.
    ///
    /// # Errors
    /// If they cannot be used.
    pub fn read_tables(&self) -> Result<(), StoreError> {
        self.open(false)
    }

    fn open(&self, writes: bool) -> Result<(), StoreError> {
        let _opening = self.opening.lock().unwrap_or_else(PoisonError::into_inner);
        if self.tables.get().is_some() {
            return Ok(());
        }
        let Some(plan) = self.plan.tables_plan()? else {
            return Ok(());
        };
        let opened = self.runtime.block_on(async {
            let store = match writes {
                true => Store::write(&plan).await?,
                false => Store::read(&plan).await?,
            };
            let relations = relation_tables(&store).await?;
            Ok::<_, StoreError>((store, relations))
        });
        let (store, relations) = opened?;
        for table in store.tables().values() {
            self.further.meet(table.further()?);
        }
        let positions = store.positions().iter();
        let positions = positions
            .map(|(name, offset)| {
                let partition: Arc<str> = name.as_str().into();
                let reached = Reached {
                    partition: Arc::clone(&partition),
                    next_offset: *offset,
                    last_written: store.last_written().get(name).copied(),
                };
                (partition, reached)
            })
            .collect();
        let epoch = store.epoch();
        let commits = writes.then(|| {
            let (commits, requests) = unbounded_channel();
            let renewal = self.runtime.spawn(renew(store.lease()));
            let durable = Arc::clone(&self.durable);
            let versions = Arc::clone(&self.versions);
            note_versions(&versions, &store);
            self.runtime
                .spawn(commit_all(store, requests, durable, versions, renewal));
            commits
        });
        let _ = self.tables.set(Tables {
            relations,
            epoch,
            positions,
            commits,
        });
        Ok(())
    }

    /// Gives the tables back; nothing may be committed afterwards. Blocks.
    pub fn close_tables(&self) {
        if let Some(commits) = self.tables.get().and_then(|tables| tables.commits.as_ref()) {
            let (done, ended) = oneshot::channel();
            if commits.send(Request::End(done)).is_ok() {
                // If the task has ended already, so has its lease.
                let _ = self.runtime.block_on(ended);
            }
        }
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
                // Transactions are put together by one reader of all their parts.
                let share = match (&self.plan.format.transactions, worker) {
                    (None, _) => share,
                    (Some(_), 0) => Share::ALL,
                    (Some(_), _) => Share::NOTHING,
                };
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

async fn relation_tables(store: &Store) -> Result<BTreeMap<String, RelationTable>, StoreError> {
    let mut relations = BTreeMap::new();
    for (relation, _) in mentions::schemas() {
        if let Some(table) = store.table(relation) {
            let files = table.files().await?;
            let files = files.iter().map(to_stored).collect::<Result<_, _>>()?;
            let data = table.data_files();
            relations.insert(relation.to_owned(), RelationTable { data, files });
        }
    }
    Ok(relations)
}

/// Commits checkpoints in the order of asking; what fails for good ends the process.
async fn commit_all(
    mut store: Store,
    mut requests: UnboundedReceiver<Request>,
    durable: Arc<Mutex<Option<Vec<Offset>>>>,
    versions: Arc<Mutex<Option<Versions>>>,
    renewal: JoinHandle<()>,
) {
    while let Some(request) = requests.recv().await {
        let (checkpoint, reply) = match request {
            Request::Commit(checkpoint, reply) => (checkpoint, reply),
            Request::End(done) => {
                // Who still renews would take a lease that was given back for one that was taken away.
                renewal.abort();
                let _ = renewal.await;
                store.release().await;
                let _ = done.send(());
                return;
            }
        };
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
        note_versions(&versions, &store);
        reply.send(());
        store.tidy().await;
    }
}

fn note_versions(versions: &Mutex<Option<Versions>>, store: &Store) {
    let tables = store.tables().iter();
    let tables = tables.map(|(relation, table)| (relation.clone(), table.version()));
    let noted = (store.epoch(), tables.collect());
    *versions.lock().unwrap_or_else(PoisonError::into_inner) = Some(noted);
}

/// Renews the lease for as long as it is ours; ends the process when it is not.
async fn renew((mut lease, manifests): (Lease, Manifests)) {
    loop {
        tokio::time::sleep(lease::RENEWAL).await;
        match lease.renew(&manifests).await {
            Ok(true) => {}
            Ok(false) => give_up(&StoreError::TakenOver, EXIT_FAILURE),
            Err(error) => tracing::warn!("{:#}", anyhow::Error::from(error)),
        }
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
    let moved = moved.map(|position| {
        let partition = position.partition.to_string();
        (partition, position.next_offset, position.last_written)
    });
    Ok(Commit {
        epoch: checkpoint.epoch,
        changes,
        moved: moved.collect(),
    })
}

/// What stands behind the names that a pipeline asks for, on one worker.
pub struct WorkerEnvironment {
    process: Arc<Process>,
    worker: usize,
}

impl Environment for WorkerEnvironment {
    fn models(&mut self, _: &str) -> Option<Box<dyn Models>> {
        let swap = Arc::clone(self.process.swap.as_ref()?);
        let worker = self.worker;
        let stop = Arc::clone(self.process.stop());
        Some(Box::new(WorkerModels { swap, worker, stop }))
    }

    fn recalls_scores(&self) -> bool {
        true
    }

    fn sink(&mut self, relation: &'static str, _: SchemaRef) -> Option<Box<dyn Sink>> {
        let table = self.process.tables.get()?.relations.get(relation)?;
        Some(Box::new(TableSink {
            relation,
            table: table.clone(),
            runtime: self.process.runtime.clone(),
        }))
    }

    fn indexed(&self, _: &'static str) -> bool {
        self.process.plan.server.is_some()
    }

    fn observer(&mut self, relation: &'static str) -> Observer {
        let counters = RowCounters::new(relation, self.worker);
        let process = Arc::clone(&self.process);
        let is_bronze = relation == Bronze::RELATION;
        Box::new(move |inserted, retracted| {
            counters.add(inserted, retracted);
            if is_bronze {
                process
                    .accepted
                    .fetch_add(inserted as u64, Ordering::Relaxed);
            }
            let progress = process.progress();
            progress.rows(relation, inserted, retracted);
        })
    }

    fn rejected(&mut self) -> RejectObserver {
        let process = Arc::clone(&self.process);
        Box::new(move |stage, class| {
            process.rejected.fetch_add(1, Ordering::Relaxed);
            metrics::rejected(stage, class);
        })
    }

    fn predicted(&mut self) -> PredictionObserver {
        metrics::predictions()
    }

    fn committer(&mut self) -> Option<Box<dyn Committer>> {
        if self.worker != 0 {
            return None;
        }
        let commits = self.process.tables.get()?.commits.clone()?;
        Some(Box::new(TableCommitter { commits }))
    }

    fn checkpoint_interval(&self) -> u64 {
        self.process.plan.checkpoint_interval_ms
    }

    fn restored_epoch(&self) -> Epoch {
        self.process.restored_epoch()
    }

    fn format(&self, _: &str) -> FormatNow {
        let process = Arc::clone(&self.process);
        Arc::new(move || process.format())
    }

    fn replays(&self, _: &str) -> bool {
        matches!(self.process.plan.source, SourcePlan::Files(_))
    }
}

/// The models of a process, as one of its workers knows them.
struct WorkerModels {
    swap: Arc<Swap>,
    worker: usize,
    stop: Arc<Stop>,
}

impl Models for WorkerModels {
    fn current(&mut self) -> Box<dyn Model> {
        Box::new(PooledModel(self.swap.current(), FULL))
    }

    fn candidate(&mut self) -> Option<Box<dyn Model>> {
        Some(Box::new(PooledModel(self.swap.candidate()?, FULL)))
    }

    fn find(&mut self, fingerprint: &str) -> Option<Box<dyn Model>> {
        let candidate = self.swap.candidate();
        let found = candidate.filter(|candidate| candidate.fingerprint() == fingerprint);
        Some(Box::new(PooledModel(found?, FULL)))
    }

    fn fast(&mut self) -> Option<Box<dyn Model>> {
        Some(Box::new(PooledModel(self.swap.fast()?, FAST)))
    }

    fn is_burst(&mut self, texts: usize) -> bool {
        self.swap.is_burst(texts)
    }

    fn replaces(&mut self) -> bool {
        !self.stop.requested()
    }

    fn note(&mut self, standing: Standing) {
        self.swap.note(self.worker, standing);
    }
}

struct PooledModel(Arc<Scorer>, Tier);

impl Model for PooledModel {
    fn fingerprint(&self) -> Text {
        self.0.fingerprint().into()
    }

    fn submit(&mut self, texts: Vec<Text>, reply: Reply<Vec<(Text, Score)>>) {
        let (model, tier) = (self.fingerprint(), self.1);
        let answer: Answer = Arc::new(move |predictions| {
            let scored = predictions.into_iter();
            reply.send(
                scored
                    .map(|scored| to_score(scored, &model, tier))
                    .collect(),
            );
        });
        let texts = texts.into_iter().map(Arc::from).collect();
        self.0.submit(texts, &answer);
    }
}

fn to_score((text, prediction): (Arc<str>, Prediction), model: &Text, tier: Tier) -> (Text, Score) {
    let score = Score {
        label: prediction.label.into(),
        confidence: Confidence(prediction.confidence),
        model: model.clone(),
        tier,
    };
    (text.into(), score)
}

struct TableSink {
    relation: &'static str,
    table: RelationTable,
    runtime: Handle,
}

impl TableSink {
    /// Tries until it succeeds, in the background, and answers.
    fn until_done<T: Send + 'static, F>(
        &self,
        reply: Reply<T>,
        attempt: impl Fn(DataFiles) -> F + Send + 'static,
    ) where
        F: Future<Output = Result<T, StoreError>> + Send,
    {
        let data = self.table.data.clone();
        self.runtime.spawn(async move {
            let mut pause = Pause::default();
            loop {
                match attempt(data.clone()).await {
                    Ok(done) => return reply.send(done),
                    Err(error) => {
                        if let Err(error) = pause.after(error).await {
                            give_up(
                                &format_args!("{:#}", anyhow::Error::from(error)),
                                EXIT_FAILURE,
                            );
                        }
                    }
                }
            }
        });
    }
}

impl Sink for TableSink {
    fn files(&self) -> &[StoredFile] {
        &self.table.files
    }

    fn read(&self, file: &StoredFile) -> Result<FileRows, String> {
        let read = self.runtime.block_on(self.table.data.read(&file.name));
        let batches = read.map_err(|error| format!("{:#}", anyhow::Error::from(error)))?;
        Ok(FileRows {
            batches: batches.ok_or_else(|| format!("file \"{}\" has gone", file.name))?,
            removed: self.removed(file)?,
        })
    }

    fn removed(&self, file: &StoredFile) -> Result<RoaringBitmap, String> {
        let file = from_stored(file).map_err(|error| error.to_string())?;
        // The vector is read by a task of the runtime, for which this thread waits.
        let _runtime = self.runtime.enter();
        let removed = self.table.data.removed(&file);
        removed.map_err(|error| format!("{:#}", anyhow::Error::from(error)))
    }

    fn append(&mut self, rows: RecordBatch, moved: bool, reply: Reply<Written>) {
        let rows = Arc::new(rows);
        self.until_done(reply, move |data| append(data, Arc::clone(&rows), moved));
    }

    fn fetch(&mut self, files: Vec<Text>, reply: Reply<Vec<Option<Vec<RecordBatch>>>>) {
        let files = Arc::new(files);
        self.until_done(reply, move |data| fetch(data, Arc::clone(&files)));
    }

    fn remove(&mut self, removals: Vec<Removal>, reply: Reply<Vec<Written>>) {
        let removals = Arc::new(removals);
        self.until_done(reply, move |data| remove(data, Arc::clone(&removals)));
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

async fn append(
    data: DataFiles,
    rows: Arc<RecordBatch>,
    moved: bool,
) -> Result<Written, StoreError> {
    let file = data.append(&rows, moved).await?;
    metrics::data_file(file.entry.size.unsigned_abs());
    crash::point(if moved {
        "file-compacted"
    } else {
        "file-written"
    });
    let action = to_json(&Action::Add(file.entry.clone()))?;
    Ok(Written {
        file: Some(to_stored(&file)?),
        actions: vec![action],
    })
}

async fn fetch(
    data: DataFiles,
    files: Arc<Vec<Text>>,
) -> Result<Vec<Option<Vec<RecordBatch>>>, StoreError> {
    let mut fetched = Vec::with_capacity(files.len());
    for file in files.iter() {
        fetched.push(data.read(file).await?);
    }
    Ok(fetched)
}

async fn remove(data: DataFiles, removals: Arc<Vec<Removal>>) -> Result<Vec<Written>, StoreError> {
    let removals = removals.iter().map(|removal| {
        Ok(FileRemoval {
            file: from_stored(&removal.file)?,
            removed_before: removal.removed_before.clone(),
            rows: removal.rows.clone(),
            moved: removal.moved,
        })
    });
    let removals = removals.collect::<Result<Vec<_>, StoreError>>()?;
    let changed = data.remove(&removals).await?;
    crash::point("rows-removed");
    let written = changed.iter().map(|changed| {
        metrics::data_file(changed.bytes);
        Ok(Written {
            file: changed.file.as_ref().map(to_stored).transpose()?,
            actions: changed
                .actions
                .iter()
                .map(to_json)
                .collect::<Result<_, _>>()?,
        })
    });
    written.collect()
}

fn to_stored(file: &DataFile) -> Result<StoredFile, StoreError> {
    Ok(StoredFile {
        name: file.entry.path.as_str().into(),
        rows: file.rows,
        entry: to_json(&file.entry)?,
    })
}

fn from_stored(file: &StoredFile) -> Result<DataFile, StoreError> {
    let unfit = |error| TableError::Unusable(format!("cannot read a log entry: {error}"));
    Ok(DataFile {
        rows: file.rows,
        entry: serde_json::from_str(&file.entry).map_err(unfit)?,
    })
}

fn to_json(action: &impl serde::Serialize) -> Result<Text, StoreError> {
    let json = serde_json::to_string(action);
    let unfit = |error| TableError::Unusable(format!("cannot write a log entry: {error}"));
    Ok(json.map_err(unfit)?.into())
}

struct TableCommitter {
    commits: UnboundedSender<Request>,
}

impl Committer for TableCommitter {
    fn commit(&mut self, checkpoint: Checkpoint, reply: Reply<()>) {
        // The receiver lives as long as the runtime, which outlives the workers.
        let _ = self.commits.send(Request::Commit(checkpoint, reply));
    }
}
