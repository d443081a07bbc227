//! A query as data: it enters on the process that was asked, goes to all workers, is answered from
//! their indexes at one epoch, and comes back.
//!
//! ```text
//!  Peeker ─ ask ─▶ first worker of the process ─ broadcast ─▶ every worker
//!     ▲                       │                                   │ waits for the epoch, reads
//!     └──── rows, changes ◀───┴──────────── exchange ◀────────────┘
//! ```
//!
//! Rows come in chunks, a worker reads one a turn and no more than [`CREDIT`] ahead of the asker, so a
//! query neither stops the dataflow nor gathers in memory. Whoever follows a relation's changes is told
//! after each epoch, and is let go when falling behind. Orders to all processes, and what each process
//! tells of itself, take the same way.

mod answering;
mod batch;
mod changes;
mod window;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, OnceLock};
use std::thread::Thread;
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use dataflows::change::Epoch;
use dataflows::envelope::further::FurtherNames;
use dataflows::index::Selection;
use serde::{Deserialize, Serialize};
use sql::ReadError;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;

pub use self::answering::Answering;
use self::changes::ChangesSender;
pub use self::changes::{ChangeStream, Changes, FollowError};
use crate::swap::SwapOrder;

/// How long an epoch stays readable after a later one is complete: time enough to plan a query.
const WINDOW: Duration = Duration::from_secs(10);

/// For how long changes are remembered, in milliseconds, unless there are too many of them: whoever lost
/// the connection can go on within this time.
pub const REMEMBERED_MS: u64 = 60_000;

/// Chunks that a worker may be ahead of the asker.
const CREDIT: usize = 4;

/// What can be read of a relation.
#[derive(Clone, Debug)]
pub struct Readable {
    /// The relation's columns.
    pub schema: SchemaRef,
    /// The columns by whose values rows are found.
    pub look_ups: &'static [&'static str],
}

/// The relations by name.
pub type Catalog = BTreeMap<String, Readable>;

enum Ask {
    Pin {
        relations: Vec<String>,
        answer: oneshot::Sender<Epoch>,
    },
    Progress(oneshot::Sender<BTreeMap<String, Epoch>>),
    Read {
        number: u64,
        read: Read,
        rows: UnboundedSender<RowsPart>,
    },
    Follow {
        number: u64,
        follow: Follow,
        changes: ChangesSender,
    },
    More {
        number: u64,
        worker: usize,
    },
    Cancel(u64),
    Order(Order),
}

/// What all processes are told at once.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub enum Order {
    /// End, after a last checkpoint.
    Stop,
    /// Read nothing from the source until told otherwise.
    Pause,
    /// The same, because too much of what was read cannot be used.
    PauseForRejects,
    /// Read on.
    Resume,
    /// Try again what could not be used.
    RetryRejects,
    /// Change the model.
    Swap(SwapOrder),
    /// Know what a process tells of itself, in JSON.
    Status(usize, String),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Read {
    epoch: Epoch,
    relation: String,
    selection: Selection,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Follow {
    /// The last epoch of which everything is known already.
    after: Epoch,
    relation: String,
    selection: Selection,
}

/// What comes of a read.
enum RowsPart {
    /// A chunk, and the worker it is from.
    Rows(usize, RecordBatch),
    /// That there is no more.
    End(Result<(), ReadError>),
}

/// Reads the relations of a running dataflow, from any thread of its process.
#[derive(Clone, Debug)]
pub struct Peeker {
    asks: Sender<Ask>,
    shared: Arc<Shared>,
    further: Arc<FurtherNames>,
}

/// What the threads that ask know of the worker that answers.
#[derive(Debug, Default)]
struct Shared {
    worker: OnceLock<Thread>,
    /// How many workers there are, on all processes.
    workers: OnceLock<usize>,
    catalog: OnceLock<Catalog>,
    next_number: AtomicU64,
}

/// The worker's end of a [`Peeker`].
pub struct Asks {
    receiver: Receiver<Ask>,
    shared: Arc<Shared>,
}

/// A way to ask, and the end for the worker that will answer. Further columns of relations have these names.
pub fn peeker(further: Arc<FurtherNames>) -> (Peeker, Asks) {
    let (asks, receiver) = channel();
    let shared = Arc::<Shared>::default();
    let peeker = Peeker {
        asks,
        shared: Arc::clone(&shared),
        further,
    };
    (peeker, Asks { receiver, shared })
}

impl Peeker {
    /// The relations that can be read; none before the dataflow stands.
    pub fn catalog(&self) -> &Catalog {
        static NONE: Catalog = Catalog::new();
        self.shared.catalog.get().unwrap_or(&NONE)
    }

    /// The further columns that have been met so far, which relations hold in one; see
    /// [`connectors::delta::further`].
    pub fn further(&self) -> Vec<String> {
        self.further.all()
    }

    /// The newest epoch that is complete for all these relations, or for all there are if none is
    /// named.
    ///
    /// # Errors
    /// If the dataflow does not stand yet or has ended.
    pub async fn pin(&self, relations: Vec<String>) -> Result<Epoch, ReadError> {
        self.ask(|answer| Ask::Pin { relations, answer }).await
    }

    /// The newest complete epoch of each relation.
    ///
    /// # Errors
    /// The same.
    pub async fn progress(&self) -> Result<BTreeMap<String, Epoch>, ReadError> {
        self.ask(Ask::Progress).await
    }

    /// The rows of a relation at an epoch, those that are selected, as they come in.
    pub fn read(&self, epoch: Epoch, relation: String, selection: Selection) -> RowStream {
        let (sender, rows) = unbounded_channel();
        let number = self.number();
        let read = Read {
            epoch,
            relation,
            selection,
        };
        // If the worker is gone, the other end of the channel goes too, which tells; so it does below.
        self.send(Ask::Read {
            number,
            read,
            rows: sender,
        });
        RowStream {
            peeker: self.clone(),
            number,
            rows,
        }
    }

    /// What changes in a relation after an epoch, as epochs complete.
    pub fn follow(&self, after: Epoch, relation: String, selection: Selection) -> ChangeStream {
        let (changes, parts) = changes::channel();
        let number = self.number();
        let follow = Follow {
            after,
            relation,
            selection,
        };
        self.send(Ask::Follow {
            number,
            follow,
            changes,
        });
        ChangeStream::new(self.clone(), number, after, parts)
    }

    /// All rows of a relation as of now, and what changes in it from then on: the epoch, the rows, the changes.
    ///
    /// # Errors
    /// If the dataflow does not stand yet or has ended.
    pub async fn follow_from_now(
        &self,
        relation: &str,
    ) -> Result<(Epoch, Vec<RecordBatch>, ChangeStream), ReadError> {
        let epoch = self.pin(vec![relation.to_owned()]).await?;
        let all = Selection::default();
        let changes = self.follow(epoch, relation.to_owned(), all.clone());
        let rows = self.read(epoch, relation.to_owned(), all).all().await?;
        Ok((epoch, rows, changes))
    }

    /// Whether the dataflow stands, so that asking it will be heard.
    pub fn answering(&self) -> bool {
        self.shared.worker.get().is_some()
    }

    /// Tells all processes.
    pub fn order(&self, order: Order) {
        self.send(Ask::Order(order));
    }

    fn number(&self) -> u64 {
        self.shared.next_number.fetch_add(1, Ordering::Relaxed)
    }

    fn send(&self, ask: Ask) {
        // If the worker is gone, it has stopped.
        let _ = self.asks.send(ask);
        self.wake();
    }

    fn wake(&self) {
        if let Some(worker) = self.shared.worker.get() {
            worker.unpark();
        }
    }

    async fn ask<T>(&self, ask: impl FnOnce(oneshot::Sender<T>) -> Ask) -> Result<T, ReadError> {
        let (answer, answered) = oneshot::channel();
        self.asks.send(ask(answer)).map_err(|_| ended())?;
        self.wake();
        answered.await.map_err(|_| ended())
    }
}

fn ended() -> ReadError {
    ReadError::Unavailable("the dataflow is not running".to_owned())
}

/// Rows on their way from the workers. To drop it ends the reading.
#[derive(Debug)]
pub struct RowStream {
    peeker: Peeker,
    number: u64,
    rows: UnboundedReceiver<RowsPart>,
}

impl RowStream {
    /// The next rows; `None` after the last.
    ///
    /// # Errors
    /// If the epoch is no longer readable, or the dataflow has ended.
    pub async fn next(&mut self) -> Result<Option<RecordBatch>, ReadError> {
        match self.rows.recv().await {
            Some(RowsPart::Rows(worker, rows)) => {
                let number = self.number;
                self.peeker.send(Ask::More { number, worker });
                Ok(Some(rows))
            }
            Some(RowsPart::End(end)) => end.map(|()| None),
            None => Err(ended()),
        }
    }

    /// All the rows that are left.
    ///
    /// # Errors
    /// The same.
    pub async fn all(mut self) -> Result<Vec<RecordBatch>, ReadError> {
        let mut all = Vec::new();
        while let Some(rows) = self.next().await? {
            all.push(rows);
        }
        Ok(all)
    }
}

impl Drop for RowStream {
    fn drop(&mut self) {
        self.peeker.send(Ask::Cancel(self.number));
    }
}
