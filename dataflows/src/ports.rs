//! What a pipeline may ask for, and what the program around it must provide.
//!
//! ```text
//!            decoded epochs            texts            row batches           commits
//!  Intake ─────────────────▶ Feed   ──────▶ Model    ──────────▶ Sink    ──────────▶ Committer
//!  (ingest thread)         (worker)  ◀──────         ◀──────────           ◀──────────
//!                                    scores           file names            done
//! ```
//!
//! Nothing here blocks a worker: what takes time is asked for, and answers arrive through a
//! [`Reply`], which wakes the operator that asked.

use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use differential_dataflow::ExchangeData;
use foldhash::{HashMap, HashMapExt, HashSet, HashSetExt};
use roaring::RoaringBitmap;
use serde::{Deserialize, Serialize};
use timely::dataflow::operators::Concatenate;
use timely::dataflow::operators::generic::OperatorInfo;
use timely::dataflow::operators::probe::Handle as Probe;
use timely::dataflow::operators::vec::Input as _;
use timely::dataflow::{Scope, StreamVec};

use crate::change::{Collection, Diff, Epoch, Text};
use crate::envelope::{RowChange, SourceRow};
use crate::index::{Index, index};
use crate::intake::{ChannelFeed, DecodingIntake, Feed, FormatNow, Intake};
use crate::operators::checkpoint::{Change, Position, checkpoint};
use crate::operators::persist::{StoredRow, persist};
use crate::record::Record;
use crate::reject::Reject;

/// Wakes the operator or worker that waits for an answer; callable from any thread.
pub type Waker = Arc<dyn Fn() + Send + Sync>;

/// Where the answers to one operator's requests go.
pub struct Reply<T> {
    answers: Sender<T>,
    waker: Waker,
}

impl<T> Clone for Reply<T> {
    fn clone(&self) -> Self {
        Self {
            answers: self.answers.clone(),
            waker: Arc::clone(&self.waker),
        }
    }
}

impl<T> Reply<T> {
    /// Delivers an answer and wakes the operator. Without effect if the operator is gone.
    pub fn send(&self, answer: T) {
        // A worker that has stopped no longer waits: its answer has no reader, and is not needed.
        let _ = self.answers.send(answer);
        (self.waker)();
    }
}

/// The answers of one kind that an operator waits for.
pub(crate) struct Answers<T> {
    reply: Reply<T>,
    receiver: Receiver<T>,
}

impl<T> Answers<T> {
    /// Answers that wake the operator of this scope and description.
    pub(crate) fn new(scope: &Scope<'_, Epoch>, info: &OperatorInfo) -> Self {
        let (answers, receiver) = mpsc::channel();
        let activator = scope.worker().sync_activator_for(info.address.to_vec());
        // An activation fails only when the worker is gone, and then no one waits.
        let waker: Waker = Arc::new(move || {
            let _ = activator.activate();
        });
        Self {
            reply: Reply { answers, waker },
            receiver,
        }
    }

    /// Answers apart from these that wake the same operator.
    pub(crate) fn apart(&self) -> Self {
        let (answers, receiver) = mpsc::channel();
        let waker = Arc::clone(&self.reply.waker);
        Self {
            reply: Reply { answers, waker },
            receiver,
        }
    }

    /// Where to send answers.
    pub(crate) fn reply(&self) -> Reply<T> {
        self.reply.clone()
    }

    pub(crate) fn try_next(&self) -> Option<T> {
        self.receiver.try_recv().ok()
    }
}

/// A model's answer for one text.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, Deserialize)]
pub struct Score {
    /// The model's own label.
    pub label: Text,
    /// How sure the model is of it.
    pub confidence: crate::record::Confidence,
    /// The fingerprint of the model.
    pub model: Text,
    /// Which kind of model.
    pub tier: Tier,
}

/// What kind of model a score is from: 0 from a fast one whose score is replaced as soon as the current model has
/// its own, 1 from the current model or the candidate.
pub type Tier = i64;

/// Of a score that will be replaced.
pub const FAST: Tier = 0;

/// Of a score that stays.
pub const FULL: Tier = 1;

/// Turns texts into labels, on threads of its own.
pub trait Model {
    /// The digest of the model's files, part of every score's identity.
    fn fingerprint(&self) -> Text;

    /// Scores the texts, in any order and any number of answers, each text exactly once.
    fn submit(&mut self, texts: Vec<Text>, reply: Reply<Vec<(Text, Score)>>);
}

/// The models that score a pipeline's texts, as one worker knows them.
pub trait Models {
    /// The model whose scores count at start.
    fn current(&mut self) -> Box<dyn Model>;

    /// The model that scores beside it from the start, if there is one.
    fn candidate(&mut self) -> Option<Box<dyn Model>>;

    /// The model of this fingerprint, which scores beside the current one from now on; `None` if it has
    /// gone meanwhile.
    fn find(&mut self, fingerprint: &str) -> Option<Box<dyn Model>>;

    /// The model that answers for the current one in a burst, if there is one.
    fn fast(&mut self) -> Option<Box<dyn Model>>;

    /// Whether so many texts are more than the current model can be waited for.
    fn is_burst(&mut self, texts: usize) -> bool;

    /// Whether the scores of a last run's bursts are to be replaced, and the input's end waits until all are.
    fn replaces(&mut self) -> bool;

    /// Hears how things stand on this worker, whenever they may have changed.
    fn note(&mut self, standing: Standing);
}

/// How a worker's models stand.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Standing {
    /// The fingerprint of the model whose scores count.
    pub current: Text,
    /// The candidate's.
    pub candidate: Option<Text>,
    /// Of how many live texts the candidate has said something.
    pub scored: usize,
    /// Of how many it has yet to.
    pub waiting: usize,
}

/// What is to become of a pipeline's models, told to all workers at one epoch.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize, Deserialize)]
pub enum ModelOrder {
    /// The model of this fingerprint scores all live texts beside the current one.
    Shadow(Text),
    /// The scores of that model count from this epoch on.
    Promote(Text),
    /// No model scores beside the current one any more.
    Drop,
}

/// A file of a table.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct StoredFile {
    /// Its name, unique in its table for ever.
    pub name: Text,
    /// The rows that were written to it, those included that were removed later.
    pub rows: u32,
    /// What the sink must know to change it, opaque to the dataflow.
    pub entry: Text,
}

/// What a sink has done to one file.
#[derive(Clone, Debug)]
pub struct Written {
    /// The file, as the sink knows it now; none if no rows are left in it.
    pub file: Option<StoredFile>,
    /// What the table's log must say about it, opaque to the dataflow.
    pub actions: Vec<Text>,
}

/// Rows to take out of one file. Row numbers are those with which the file was first written or
/// found.
#[derive(Clone, Debug)]
pub struct Removal {
    /// The file.
    pub file: StoredFile,
    /// The rows that had been removed before.
    pub removed_before: RoaringBitmap,
    /// The rows that go now; none of them has gone before.
    pub rows: RoaringBitmap,
    /// Whether those rows only moved to another file.
    pub moved: bool,
}

/// The rows of a file as they were written, and which of them are no longer part of the table.
#[derive(Clone, Debug)]
pub struct FileRows {
    /// All rows, in the order of their numbers.
    pub batches: Vec<RecordBatch>,
    /// The numbers of the rows that were removed.
    pub removed: RoaringBitmap,
}

impl FileRows {
    /// Visits the rows that are part of the table, with their numbers, in order.
    ///
    /// # Errors
    /// If the columns are not those of the relation.
    pub fn for_each<D: Record>(&self, mut visit: impl FnMut(u32, D)) -> Result<(), String> {
        let mut number = 0;
        for batch in &self.batches {
            for record in D::from_batch(batch)? {
                if !self.removed.contains(number) {
                    visit(number, record);
                }
                number += 1;
            }
        }
        Ok(())
    }
}

/// One relation's table: the files of its last checkpoint, and ways to change them.
///
/// A write that fails is retried by the sink until it succeeds; the dataflow waits meanwhile.
pub trait Sink {
    /// The files that made up the table at the restored checkpoint, the same list on every worker.
    fn files(&self) -> &[StoredFile];

    /// A file's rows.
    ///
    /// # Errors
    /// If the file cannot be read; the message names it.
    fn read(&self, file: &StoredFile) -> Result<FileRows, String>;

    /// The numbers of the rows that had been removed from a file.
    ///
    /// # Errors
    /// If it cannot be read; the message names the file.
    fn removed(&self, file: &StoredFile) -> Result<RoaringBitmap, String>;

    /// Writes the rows to one new file, in order, so that row numbers are positions in the batch.
    /// Rows that only move come from other files, which lose them at the same checkpoint.
    fn append(&mut self, rows: RecordBatch, moved: bool, reply: Reply<Written>);

    /// Reads files as they were first written, in the background; those that are no longer there
    /// are answered by `None`.
    fn fetch(&mut self, files: Vec<Text>, reply: Reply<Vec<Option<Vec<RecordBatch>>>>);

    /// Takes rows out of files; answers in the same order.
    fn remove(&mut self, removals: Vec<Removal>, reply: Reply<Vec<Written>>);

    /// Hears how many rows the table lacked and had too many of when it was compared at start.
    fn compared(&mut self, missing: usize, surplus: usize);
}

/// All that changes durably between two checkpoints.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// The epoch: the state includes every change at it or before, and nothing later.
    pub epoch: Epoch,
    /// What each table's log must say, by relation.
    pub changes: Vec<Change>,
    /// The positions that moved: what was read up to there is part of the state.
    pub positions: Vec<Position>,
}

/// Commits checkpoints, one after another.
pub trait Committer {
    /// Makes the checkpoint durable, all of it or nothing; replies when it is.
    fn commit(&mut self, checkpoint: Checkpoint, reply: Reply<()>);
}

/// Counts what passes a stage: insertions, then retractions, once a batch.
pub type Observer = Box<dyn Fn(usize, usize)>;

/// Counts a reject, by its stage and the kind of its reason.
pub type RejectObserver = Box<dyn Fn(&str, String)>;

/// Hears of predictions: the model, its label, and by how much the number of rows with it has changed.
pub type PredictionObserver = Box<dyn FnMut(&str, &str, Diff)>;

/// What stands behind the names that a pipeline asks for, on one worker.
pub trait Environment {
    /// The models of this name, or `None` if the pipeline runs without.
    fn models(&mut self, name: &str) -> Option<Box<dyn Models>>;

    /// Whether scores by the current model that the last checkpoint held are used again.
    fn recalls_scores(&self) -> bool;

    /// The table of this relation, or `None` if it is not kept in one.
    fn sink(&mut self, relation: &'static str, schema: SchemaRef) -> Option<Box<dyn Sink>>;

    /// Whether the relation can be queried.
    fn indexed(&self, relation: &'static str) -> bool;

    /// Counts the rows that pass a stage.
    fn observer(&mut self, stage: &'static str) -> Observer;

    /// Counts what could not be used.
    fn rejected(&mut self) -> RejectObserver;

    /// Who hears of predictions.
    fn predicted(&mut self) -> PredictionObserver;

    /// The committer, on the one worker that has it.
    fn committer(&mut self) -> Option<Box<dyn Committer>>;

    /// Milliseconds between checkpoints.
    fn checkpoint_interval(&self) -> u64;

    /// The epoch of the restored checkpoint; 0 if there was none.
    fn restored_epoch(&self) -> Epoch;

    /// What this source's messages look like.
    fn format(&self, source: &str) -> FormatNow;

    /// Whether this source tells its whole present state at start.
    fn replays(&self, source: &str) -> bool;
}

/// Everything a pipeline asks for by name while it is built, and what was gathered for the worker.
pub struct Ports<'s, 'e> {
    scope: Scope<'s, Epoch>,
    environment: &'e mut dyn Environment,
    changes: Vec<StreamVec<'s, Epoch, Change>>,
    positions: Vec<StreamVec<'s, Epoch, Position>>,
    orders: Vec<StreamVec<'s, Epoch, ModelOrder>>,
    /// Where the rows lie of relations that were read already, so that no table is read twice.
    stored: HashMap<&'static str, Vec<StoredRow>>,
    built: Built,
}

/// A pipeline's dataflow as its worker holds it.
#[derive(Default)]
pub struct Built {
    /// Sources by name, each with the end that an ingest thread fills.
    pub intakes: Vec<(&'static str, Box<dyn Intake>)>,
    /// The other ends, for the worker to empty.
    pub feeds: Vec<Box<dyn Feed>>,
    /// The relations that can be queried.
    pub indexes: Vec<Box<dyn Index>>,
    /// How far checkpoints have become durable; `None` if nothing is kept in tables.
    pub checkpointed: Option<Probe<Epoch>>,
    /// How far everything has been computed.
    pub computed: Probe<Epoch>,
}

impl<'s, 'e> Ports<'s, 'e> {
    /// Ports for a pipeline to be built in this scope.
    pub fn new(scope: Scope<'s, Epoch>, environment: &'e mut dyn Environment) -> Self {
        Self {
            scope,
            environment,
            changes: Vec::new(),
            positions: Vec::new(),
            orders: Vec::new(),
            stored: HashMap::new(),
            built: Built::default(),
        }
    }

    /// The scope that the pipeline is built in.
    pub fn scope(&self) -> Scope<'s, Epoch> {
        self.scope
    }

    /// The named source's rows by key, after those that the last checkpoint held.
    ///
    /// `stored_keys` are the keys of all rows that the checkpoint held, on any worker; they matter
    /// for a source that replays, which cannot tell of what went while no one looked.
    pub fn source<R: SourceRow + ExchangeData>(
        &mut self,
        name: &'static str,
        restored: Vec<RowChange<R>>,
        stored_keys: HashSet<Text>,
    ) -> StreamVec<'s, Epoch, RowChange<R>> {
        let (rows, row_stream) = self.scope.new_input();
        let (positions, position_stream) = self.scope.new_input();
        let (orders, order_stream) = self.scope.new_input();
        let peers = self.scope.peers() as u64;
        let (intake, epochs) = DecodingIntake::new(self.format(name), peers, stored_keys);
        let feed = ChannelFeed::new(rows, positions, orders, epochs, restored);
        self.orders.push(order_stream);
        self.built.intakes.push((name, Box::new(intake)));
        self.built.feeds.push(Box::new(feed));
        self.positions.push(position_stream);
        row_stream
    }

    /// The named models.
    pub fn models(&mut self, name: &str) -> Option<Box<dyn Models>> {
        self.environment.models(name)
    }

    /// What is to become of the models, as some worker tells by its feed; call after [`Ports::source`].
    pub fn model_orders(&self) -> StreamVec<'s, Epoch, ModelOrder> {
        self.scope.concatenate(self.orders.clone())
    }

    /// Whether scores that the last checkpoint held are used again.
    pub fn recalls_scores(&self) -> bool {
        self.environment.recalls_scores()
    }

    /// This worker's share of what the last checkpoint held of a relation.
    ///
    /// # Errors
    /// If a file of the table cannot be read.
    pub fn restored<D: Record>(&mut self) -> Result<Vec<D>, String> {
        let Some(sink) = self.environment.sink(D::RELATION, D::schema()) else {
            return Ok(Vec::new());
        };
        let mut rows: Vec<D> = Vec::new();
        let mut stored = Vec::new();
        for (file, stored_file) in own_files(&*sink, &self.scope) {
            let read = sink.read(stored_file)?.for_each(|row, record| {
                stored.push(StoredRow::new(&record, file, row));
                rows.push(record);
            });
            read.map_err(|error| format!("{}: {error}", stored_file.name))?;
        }
        self.stored.insert(D::RELATION, stored);
        Ok(rows)
    }

    /// What the named source's messages look like.
    pub fn format(&self, source: &str) -> FormatNow {
        self.environment.format(source)
    }

    /// Whether the named source tells its whole present state at start.
    pub fn replays(&self, source: &str) -> bool {
        self.environment.replays(source)
    }

    /// A key of every row that the last checkpoint held of a relation, on any worker; `keys_of` says
    /// for each row of a batch which, if any.
    ///
    /// # Errors
    /// If a file of the table cannot be read.
    pub fn stored_keys<D: Record>(
        &mut self,
        keys_of: impl Fn(&RecordBatch) -> Result<Vec<Option<Text>>, String>,
    ) -> Result<HashSet<Text>, String> {
        let Some(sink) = self.environment.sink(D::RELATION, D::schema()) else {
            return Ok(HashSet::new());
        };
        let mut keys = HashSet::new();
        for file in sink.files() {
            let stored = sink.read(file)?;
            let mut number = 0;
            for batch in &stored.batches {
                let found = keys_of(batch).map_err(|error| format!("{}: {error}", file.name))?;
                for key in found {
                    keys.extend(key.filter(|_| !stored.removed.contains(number)));
                    number += 1;
                }
            }
        }
        Ok(keys)
    }

    /// Who hears of predictions.
    pub fn predicted(&mut self) -> PredictionObserver {
        self.environment.predicted()
    }

    /// Publishes the relation of rejects, counted by reason as well.
    ///
    /// # Errors
    /// If the table's files cannot be read.
    pub fn publish_rejects(
        &mut self,
        rejects: Collection<'s, Reject>,
    ) -> Result<Collection<'s, Reject>, String> {
        let rejected = self.environment.rejected();
        let rejects = rejects.inspect(move |(reject, _, diff)| {
            if *diff > 0 {
                rejected(&reject.stage, reject.class());
            }
        });
        self.publish(rejects)
    }

    /// Publishes a relation: counts its rows, keeps it in its table and makes it queryable. Returns its rows, for
    /// those that follow from them: so nothing is copied for a relation that is neither kept nor queried.
    ///
    /// # Errors
    /// If the table's files cannot be read.
    pub fn publish<D: Record>(
        &mut self,
        rows: Collection<'s, D>,
    ) -> Result<Collection<'s, D>, String> {
        let observer = self.environment.observer(D::RELATION);
        let rows = rows.inspect_container(move |event| {
            if let Ok((_, batch)) = event {
                let count = |sign: Diff| {
                    let of_sign = batch.iter().map(|(_, _, diff)| (diff * sign).max(0));
                    of_sign.sum::<Diff>().unsigned_abs()
                };
                observer(count(1), count(-1));
            }
        });
        let rows = rows.probe_with(&self.built.computed);
        if let Some(sink) = self.environment.sink(D::RELATION, D::schema()) {
            let interval = self.environment.checkpoint_interval();
            let restored = self.environment.restored_epoch();
            let stored = self.stored.remove(D::RELATION);
            let changes = persist(rows.clone(), sink, stored, interval, restored)?;
            self.changes.push(changes);
        }
        if self.environment.indexed(D::RELATION) {
            self.built.indexes.push(index(rows.clone()));
        }
        Ok(rows)
    }

    /// Ties all tables and positions into checkpoints; the last thing a pipeline's builder does.
    pub fn finish(mut self) -> Built {
        let kept = !self.changes.is_empty();
        let changes = self.scope.concatenate(self.changes);
        let positions = self.scope.concatenate(self.positions);
        let committer = self.environment.committer();
        let interval = self.environment.checkpoint_interval();
        let probe = checkpoint(changes, positions, committer, interval);
        self.built.checkpointed = kept.then_some(probe);
        self.built
    }
}

/// The files of a table that this worker reads at start, with their places in the list.
pub(crate) fn own_files<'f>(
    sink: &'f dyn Sink,
    scope: &Scope<'_, Epoch>,
) -> impl Iterator<Item = (usize, &'f StoredFile)> {
    let (worker, workers) = (scope.index(), scope.peers());
    sink.files()
        .iter()
        .enumerate()
        .skip(worker)
        .step_by(workers)
}
