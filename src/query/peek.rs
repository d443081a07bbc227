//! A query as data: it enters on the process that was asked, goes to all workers, is answered from
//! their indexes at one epoch, and comes back.
//!
//! ```text
//!  Peeker ─ ask ─▶ first worker of the process ─ broadcast ─▶ every worker
//!     ▲                       │                                   │ waits for the epoch, reads
//!     └────── answer ◀────────┴──────────── exchange ◀────────────┘
//! ```
//!
//! An order to stop or to pause takes the same way, so that all processes of a cluster heed it.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, OnceLock};
use std::thread::Thread;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use arrow::ipc::{reader::StreamReader, writer::StreamWriter};
use dataflows::change::Epoch;
use dataflows::ports::Index;
use serde::{Deserialize, Serialize};
use sql::ReadError;
use timely::dataflow::channels::pact::{Exchange, Pipeline};
use timely::dataflow::operators::generic::Operator;
use timely::dataflow::operators::vec::{Broadcast, Input};
use timely::dataflow::{InputHandleVec, StreamVec};
use timely::worker::Worker;
use tokio::sync::oneshot;

/// How long a past epoch stays readable, in milliseconds: time enough to plan a query.
const WINDOW_MS: u64 = 10_000;

/// A relation's name and columns.
pub type Schemas = Arc<OnceLock<BTreeMap<String, SchemaRef>>>;

enum Ask {
    Pin {
        relations: Vec<String>,
        answer: oneshot::Sender<Epoch>,
    },
    Read {
        epoch: Epoch,
        relation: String,
        key: Option<String>,
        answer: oneshot::Sender<ReadAnswer>,
    },
    Order(Order),
}

/// What all processes are told at once.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
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
}

type ReadAnswer = Result<Vec<RecordBatch>, ReadError>;

/// Reads the relations of a running dataflow, from any thread of its process.
#[derive(Clone, Debug)]
pub struct Peeker {
    asks: Sender<Ask>,
    worker: Arc<OnceLock<Thread>>,
    schemas: Schemas,
}

/// The worker's end of a [`Peeker`].
pub struct Asks {
    receiver: Receiver<Ask>,
    worker: Arc<OnceLock<Thread>>,
    schemas: Schemas,
}

/// A way to ask, and the end for the worker that will answer.
pub fn peeker() -> (Peeker, Asks) {
    let (asks, receiver) = channel();
    let worker = Arc::default();
    let schemas = Schemas::default();
    let peeker = Peeker {
        asks,
        worker: Arc::clone(&worker),
        schemas: Arc::clone(&schemas),
    };
    (
        peeker,
        Asks {
            receiver,
            worker,
            schemas,
        },
    )
}

impl Peeker {
    /// The relations that can be read; none before the dataflow stands.
    pub fn schemas(&self) -> BTreeMap<String, SchemaRef> {
        self.schemas.get().cloned().unwrap_or_default()
    }

    /// The newest epoch that is complete for all these relations, or for all there are if none is
    /// named.
    ///
    /// # Errors
    /// If the dataflow does not stand yet or has ended.
    pub async fn pin(&self, relations: Vec<String>) -> Result<Epoch, ReadError> {
        self.ask(|answer| Ask::Pin { relations, answer }).await
    }

    /// The rows of a relation at an epoch, all or those of one key.
    ///
    /// # Errors
    /// If the epoch is no longer readable, or the dataflow has ended.
    pub async fn read(&self, epoch: Epoch, relation: String, key: Option<String>) -> ReadAnswer {
        self.ask(|answer| Ask::Read {
            epoch,
            relation,
            key,
            answer,
        })
        .await?
    }

    /// Whether the dataflow stands, so that asking it will be heard.
    pub fn answering(&self) -> bool {
        self.worker.get().is_some()
    }

    /// Tells all processes.
    pub fn order(&self, order: Order) {
        // If the worker is gone, it has stopped.
        let _ = self.asks.send(Ask::Order(order));
        self.wake();
    }

    fn wake(&self) {
        if let Some(worker) = self.worker.get() {
            worker.unpark();
        }
    }

    async fn ask<T>(&self, ask: impl FnOnce(oneshot::Sender<T>) -> Ask) -> Result<T, ReadError> {
        let unavailable = || ReadError::Unavailable("the dataflow is not running".to_owned());
        let (answer, answered) = oneshot::channel();
        self.asks.send(ask(answer)).map_err(|_| unavailable())?;
        self.wake();
        answered.await.map_err(|_| unavailable())
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
enum Request {
    Read(Read),
    Order(Order),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Read {
    /// Unique on the worker that asks.
    number: u64,
    asker: usize,
    epoch: Epoch,
    relation: String,
    key: Option<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Part {
    number: u64,
    asker: usize,
    /// The worker's rows in Arrow's stream format, or that the epoch is no longer readable.
    rows: Option<Vec<u8>>,
}

/// Answers on a worker: takes what is asked, reads when the epoch is complete, gathers the parts.
pub struct Answering {
    worker: usize,
    workers: usize,
    indexes: Vec<Box<dyn Index>>,
    asks: Option<Asks>,
    requests: Option<InputHandleVec<u64, Request>>,
    parts: Option<InputHandleVec<u64, Part>>,
    arrived_requests: Queue<Request>,
    arrived_parts: Queue<Part>,
    /// Reads whose epoch is not complete here yet.
    waiting: Vec<Read>,
    gathering: BTreeMap<u64, Gathering>,
    next_number: u64,
    /// The last epoch that was complete, for when there are no more.
    last_complete: Epoch,
}

type Queue<T> = Rc<RefCell<VecDeque<T>>>;

struct Gathering {
    parts: Vec<Option<Vec<u8>>>,
    answer: oneshot::Sender<ReadAnswer>,
}

impl Answering {
    /// Builds the way of queries between workers; `asks` is given on one worker of each process.
    pub fn build(worker: &mut Worker, indexes: Vec<Box<dyn Index>>, asks: Option<Asks>) -> Self {
        let arrived_requests: Queue<Request> = Rc::default();
        let arrived_parts: Queue<Part> = Rc::default();
        let (requests, parts) = worker.dataflow::<u64, _, _>(|scope| {
            let (requests, request_stream) = scope.new_input::<Request>();
            let (parts, part_stream) = scope.new_input::<Part>();
            collect(request_stream.broadcast(), &arrived_requests);
            let to_asker = Exchange::new(|part: &Part| part.asker as u64);
            let at_asker = part_stream.unary(to_asker, "Parts", |_, _| {
                |input, output| {
                    input.for_each(|capability, data| {
                        output.session(&capability).give_container(data)
                    });
                }
            });
            collect(at_asker, &arrived_parts);
            (requests, parts)
        });
        if let Some(asks) = &asks {
            // Each is set once, by the one worker that answers for the process.
            let _ = asks.worker.set(std::thread::current());
            let schemas = indexes
                .iter()
                .map(|index| (index.relation().to_owned(), index.schema()));
            let _ = asks.schemas.set(schemas.collect());
        }
        Self {
            worker: worker.index(),
            workers: worker.peers(),
            indexes,
            asks,
            requests: Some(requests),
            parts: Some(parts),
            arrived_requests,
            arrived_parts,
            waiting: Vec::new(),
            gathering: BTreeMap::new(),
            next_number: 0,
            last_complete: 0,
        }
    }

    /// Tells all processes.
    pub fn order(&mut self, order: Order) {
        self.send(Request::Order(order));
    }

    /// The indexes that queries are answered from.
    pub fn indexes(&self) -> &[Box<dyn Index>] {
        &self.indexes
    }

    /// Does what can be done now; returns what was ordered, on any process.
    pub fn turn(&mut self) -> Vec<Order> {
        self.compact();
        self.take_asks();
        let mut orders = Vec::new();
        while let Some(request) = pop(&self.arrived_requests) {
            match request {
                Request::Read(read) => self.waiting.push(read),
                Request::Order(order) => orders.push(order),
            }
        }
        self.answer_reads();
        self.gather_parts();
        orders
    }

    /// Ends the ways between workers; nothing can be asked any more.
    pub fn end(&mut self) {
        self.requests = None;
        self.parts = None;
        self.asks = None;
    }

    /// The first epoch that may still change for one of these relations, or for any if none is named.
    fn frontier(&self, relations: &[String]) -> Option<Epoch> {
        let named =
            |relation| relations.is_empty() || relations.iter().any(|name| name == relation);
        let indexes = self.indexes.iter().filter(|index| named(index.relation()));
        indexes.filter_map(|index| index.frontier()).min()
    }

    fn compact(&mut self) {
        let Some(frontier) = self.frontier(&[]) else {
            return;
        };
        self.last_complete = self.last_complete.max(frontier.saturating_sub(1));
        let since = frontier.saturating_sub(WINDOW_MS);
        self.indexes
            .iter_mut()
            .for_each(|index| index.compact(since));
    }

    fn take_asks(&mut self) {
        while let Some(ask) = self
            .asks
            .as_ref()
            .and_then(|asks| asks.receiver.try_recv().ok())
        {
            match ask {
                Ask::Pin { relations, answer } => {
                    let frontier = self.frontier(&relations);
                    let epoch =
                        frontier.map_or(self.last_complete, |first| first.saturating_sub(1));
                    // Whoever asked may have gone away.
                    let _ = answer.send(epoch);
                }
                Ask::Read {
                    epoch,
                    relation,
                    key,
                    answer,
                } => {
                    let number = self.next_number;
                    self.next_number += 1;
                    self.gathering.insert(
                        number,
                        Gathering {
                            parts: Vec::new(),
                            answer,
                        },
                    );
                    let asker = self.worker;
                    self.send(Request::Read(Read {
                        number,
                        asker,
                        epoch,
                        relation,
                        key,
                    }));
                }
                Ask::Order(order) => self.send(Request::Order(order)),
            }
        }
    }

    fn send(&mut self, request: Request) {
        if let Some(requests) = &mut self.requests {
            send_now(requests, request);
        }
    }

    fn answer_reads(&mut self) {
        for read in std::mem::take(&mut self.waiting) {
            let named = self
                .indexes
                .iter_mut()
                .find(|index| index.relation() == read.relation);
            let rows = match named {
                Some(index) if index.frontier().is_some_and(|first| first <= read.epoch) => {
                    self.waiting.push(read);
                    continue;
                }
                Some(index) => index.read(read.epoch, read.key.as_deref()).ok(),
                None => None,
            };
            let rows = rows.and_then(|rows| encode(&rows).ok());
            if let Some(parts) = &mut self.parts {
                let part = Part {
                    number: read.number,
                    asker: read.asker,
                    rows,
                };
                send_now(parts, part);
            }
        }
    }

    fn gather_parts(&mut self) {
        while let Some(part) = pop(&self.arrived_parts) {
            let Some(gathering) = self.gathering.get_mut(&part.number) else {
                continue;
            };
            gathering.parts.push(part.rows);
            if gathering.parts.len() == self.workers
                && let Some(gathering) = self.gathering.remove(&part.number)
            {
                let parts: Option<Vec<_>> = gathering.parts.into_iter().collect();
                let answer = match parts {
                    None => Err(ReadError::Compacted),
                    Some(parts) => decode(&parts).map_err(|error| {
                        ReadError::Unavailable(format!("cannot read rows: {error}"))
                    }),
                };
                // Whoever asked may have gone away.
                let _ = gathering.answer.send(answer);
            }
        }
    }
}

/// Sends at once. Flushing alone would leave the record in the buffers between workers, which only
/// an advance of time empties; the times themselves mean nothing.
fn send_now<D: Clone + 'static>(input: &mut InputHandleVec<u64, D>, record: D) {
    input.send(record);
    let next = input.time() + 1;
    input.advance_to(next);
}

fn collect<D: Clone + 'static>(stream: StreamVec<'_, u64, D>, queue: &Queue<D>) {
    let queue = Rc::clone(queue);
    stream.sink(Pipeline, "Collect", move |(input, _)| {
        input.for_each(|_, data| queue.borrow_mut().extend(data.drain(..)));
    });
}

fn pop<T>(queue: &Queue<T>) -> Option<T> {
    queue.borrow_mut().pop_front()
}

fn encode(rows: &RecordBatch) -> Result<Vec<u8>, ArrowError> {
    let mut bytes = Vec::new();
    let mut writer = StreamWriter::try_new(&mut bytes, &rows.schema())?;
    writer.write(rows)?;
    writer.finish()?;
    drop(writer);
    Ok(bytes)
}

fn decode(parts: &[Vec<u8>]) -> Result<Vec<RecordBatch>, ArrowError> {
    let mut batches = Vec::new();
    for part in parts {
        for batch in StreamReader::try_new(part.as_slice(), None)? {
            batches.push(batch?);
        }
    }
    Ok(batches)
}
