//! The workers' part of queries: reads and follows what was asked for, a little at each turn.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::time::Instant;

use dataflows::change::Epoch;
use dataflows::index::{Index, Rows, Selection};
use serde::{Deserialize, Serialize};
use sql::ReadError;
use timely::dataflow::channels::pact::{Exchange, Pipeline};
use timely::dataflow::operators::generic::Operator;
use timely::dataflow::operators::vec::{Broadcast, Input};
use timely::dataflow::{InputHandleVec, StreamVec};
use timely::worker::Worker;
use tokio::sync::mpsc::UnboundedSender;

use super::batch::Batch;
use super::changes::{ChangesPart, ChangesSender, FollowError};
use super::window::Window;
use super::{Ask, Asks, CREDIT, Follow, Order, REMEMBERED_MS, Read, Readable, RowsPart};

/// Chunks that are read in one turn, of all reads together.
const CHUNKS_A_TURN: usize = 4;

/// What workers tell all workers.
#[derive(Clone, Debug, Serialize, Deserialize)]
enum Request {
    Read(Tag, Read),
    Follow(Tag, Follow),
    /// The asker has taken a chunk of this worker's.
    More(Tag, usize),
    Cancel(Tag),
    Order(Order),
}

/// Which of all reads and followings is meant: its number on the process that asks, and the worker that
/// asks for that process.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize, Deserialize)]
struct Tag {
    asker: usize,
    number: u64,
}

/// What a worker answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Part {
    tag: Tag,
    worker: usize,
    what: What,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
enum What {
    Rows {
        rows: Batch,
        last: bool,
    },
    Changes {
        changes: Batch,
        before: Option<Epoch>,
    },
    /// The epoch asked for is not known any more.
    Compacted,
}

/// Answers on a worker.
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
    waiting: Vec<(Tag, Read)>,
    reading: VecDeque<Reading>,
    following: Vec<Following>,
    gathering: BTreeMap<u64, Gathering>,
    followers: BTreeMap<u64, ChangesSender>,
    /// The last epoch that was complete, for when there are no more.
    last_complete: Epoch,
    window: Window,
}

type Queue<T> = Rc<RefCell<VecDeque<T>>>;

struct Reading {
    tag: Tag,
    rows: Box<dyn Rows>,
    credit: usize,
}

struct Following {
    tag: Tag,
    index: usize,
    selection: Selection,
    /// What was told: everything before this epoch.
    told: Epoch,
}

struct Gathering {
    workers_left: usize,
    rows: UnboundedSender<RowsPart>,
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
            let to_asker = Exchange::new(|part: &Part| part.tag.asker as u64);
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
            let _ = asks.shared.worker.set(std::thread::current());
            let _ = asks.shared.workers.set(worker.peers());
            let readable = |index: &dyn Index| Readable {
                schema: index.schema(),
                look_ups: index.look_ups(),
            };
            let catalog = indexes
                .iter()
                .map(|index| (index.relation().to_owned(), readable(&**index)));
            let _ = asks.shared.catalog.set(catalog.collect());
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
            reading: VecDeque::new(),
            following: Vec::new(),
            gathering: BTreeMap::new(),
            followers: BTreeMap::new(),
            last_complete: 0,
            window: Window::new(Instant::now()),
        }
    }

    /// Tells all processes.
    pub fn order(&mut self, order: Order) {
        self.request(Request::Order(order));
    }

    /// The indexes that queries are answered from.
    pub fn indexes(&self) -> &[Box<dyn Index>] {
        &self.indexes
    }

    /// Whether there are rows to read at the next turn.
    pub fn busy(&self) -> bool {
        self.reading.iter().any(|reading| reading.credit > 0)
    }

    /// Does what can be done now; returns what was ordered, on any process.
    pub fn turn(&mut self) -> Vec<Order> {
        self.take_asks();
        let orders = self.take_requests();
        self.open_reads();
        self.read_chunks();
        self.tell_changes();
        self.gather_parts();
        // Last, so that what is forgotten has been told.
        self.compact();
        orders
    }

    /// Ends the ways between workers; nothing can be asked any more.
    pub fn end(&mut self) {
        self.requests = None;
        self.parts = None;
        self.asks = None;
        self.gathering.clear();
        self.followers.clear();
    }

    /// The first epoch that may still change for one of these relations, or for any if none is named.
    fn frontier(&self, relations: &[String]) -> Option<Epoch> {
        let named =
            |relation| relations.is_empty() || relations.iter().any(|name| name == relation);
        let indexes = self.indexes.iter().filter(|index| named(index.relation()));
        indexes.filter_map(|index| index.frontier()).min()
    }

    /// The last epoch before a frontier.
    fn complete(&self, frontier: Option<Epoch>) -> Epoch {
        frontier.map_or(self.last_complete, |first| first.saturating_sub(1))
    }

    fn compact(&mut self) {
        let Some(frontier) = self.frontier(&[]) else {
            return;
        };
        self.last_complete = self.last_complete.max(frontier.saturating_sub(1));
        let readable = self.window.readable(Instant::now(), frontier);
        let remembered = frontier.saturating_sub(REMEMBERED_MS);
        for index in &mut self.indexes {
            index.compact(readable, remembered);
        }
    }

    fn take_asks(&mut self) {
        let asker = self.worker;
        let tag = |number| Tag { asker, number };
        while let Some(ask) = self
            .asks
            .as_ref()
            .and_then(|asks| asks.receiver.try_recv().ok())
        {
            match ask {
                Ask::Pin { relations, answer } => {
                    let epoch = self.complete(self.frontier(&relations));
                    // Whoever asked may have gone away, here and below.
                    let _ = answer.send(epoch);
                }
                Ask::Progress(answer) => {
                    let indexes = self.indexes.iter();
                    let complete = indexes.map(|index| {
                        let epoch = self.complete(index.frontier());
                        (index.relation().to_owned(), epoch)
                    });
                    let _ = answer.send(complete.collect());
                }
                Ask::Read { number, read, rows } => {
                    let workers_left = self.workers;
                    let gathering = Gathering { workers_left, rows };
                    self.gathering.insert(number, gathering);
                    self.request(Request::Read(tag(number), read));
                }
                Ask::Follow {
                    number,
                    follow,
                    changes,
                } => {
                    self.followers.insert(number, changes);
                    self.request(Request::Follow(tag(number), follow));
                }
                Ask::More { number, worker } => {
                    if self.gathering.contains_key(&number) {
                        self.request(Request::More(tag(number), worker));
                    }
                }
                Ask::Cancel(number) => {
                    let read = self.gathering.remove(&number).is_some();
                    let followed = self.followers.remove(&number).is_some();
                    if read || followed {
                        self.request(Request::Cancel(tag(number)));
                    }
                }
                Ask::Order(order) => self.request(Request::Order(order)),
            }
        }
    }

    fn take_requests(&mut self) -> Vec<Order> {
        let mut orders = Vec::new();
        while let Some(request) = pop(&self.arrived_requests) {
            match request {
                Request::Read(tag, read) => self.waiting.push((tag, read)),
                Request::Follow(tag, follow) => self.follow(tag, follow),
                Request::More(tag, worker) if worker == self.worker => {
                    let mut reading = self.reading.iter_mut();
                    if let Some(reading) = reading.find(|reading| reading.tag == tag) {
                        reading.credit += 1;
                    }
                }
                Request::More(..) => {}
                Request::Cancel(tag) => {
                    self.waiting.retain(|(waiting, _)| *waiting != tag);
                    self.reading.retain(|reading| reading.tag != tag);
                    self.following.retain(|following| following.tag != tag);
                }
                Request::Order(order) => orders.push(order),
            }
        }
        orders
    }

    fn request(&mut self, request: Request) {
        if let Some(requests) = &mut self.requests {
            send_now(requests, request);
        }
    }

    fn answer(&mut self, tag: Tag, what: What) {
        let worker = self.worker;
        if let Some(parts) = &mut self.parts {
            send_now(parts, Part { tag, worker, what });
        }
    }

    fn index_of(&self, relation: &str) -> Option<usize> {
        let mut indexes = self.indexes.iter();
        indexes.position(|index| index.relation() == relation)
    }

    /// Begins the reads whose epochs have become complete.
    fn open_reads(&mut self) {
        for (tag, read) in std::mem::take(&mut self.waiting) {
            let named = self.index_of(&read.relation);
            let opened = named.map(|place| &mut self.indexes[place]).map(|index| {
                let complete = index.frontier().is_none_or(|first| first > read.epoch);
                complete.then(|| index.open(read.epoch, &read.selection))
            });
            match opened {
                Some(None) => self.waiting.push((tag, read)),
                Some(Some(Ok(rows))) => self.reading.push_back(Reading {
                    tag,
                    rows,
                    credit: CREDIT,
                }),
                // A relation that is not there is never asked for: names come from the catalog.
                Some(Some(Err(_))) | None => self.answer(tag, What::Compacted),
            }
        }
    }

    fn read_chunks(&mut self) {
        let mut chunks = CHUNKS_A_TURN;
        for _ in 0..self.reading.len() {
            let Some(mut reading) = self.reading.pop_front() else {
                return;
            };
            if chunks == 0 || reading.credit == 0 {
                self.reading.push_back(reading);
                continue;
            }
            chunks -= 1;
            reading.credit -= 1;
            let (rows, last) = reading.rows.next_chunk();
            let rows = Batch(rows);
            self.answer(reading.tag, What::Rows { rows, last });
            if !last {
                self.reading.push_back(reading);
            }
        }
    }

    fn follow(&mut self, tag: Tag, follow: Follow) {
        match self.index_of(&follow.relation) {
            Some(index) => self.following.push(Following {
                tag,
                index,
                selection: follow.selection,
                told: follow.after + 1,
            }),
            // The same.
            None => self.answer(tag, What::Compacted),
        }
    }

    /// Tells those who follow what changed in the epochs that have become complete.
    fn tell_changes(&mut self) {
        for mut following in std::mem::take(&mut self.following) {
            let index = &self.indexes[following.index];
            let before = index.frontier();
            if before.is_some_and(|before| before <= following.told) {
                self.following.push(following);
                continue;
            }
            let until = before.unwrap_or(Epoch::MAX);
            match index.changes(following.told, until, &following.selection) {
                Ok(changes) => {
                    let changes = Batch(changes);
                    self.answer(following.tag, What::Changes { changes, before });
                    following.told = until;
                    if before.is_some() {
                        self.following.push(following);
                    }
                }
                Err(_) => self.answer(following.tag, What::Compacted),
            }
        }
    }

    fn gather_parts(&mut self) {
        while let Some(part) = pop(&self.arrived_parts) {
            let number = part.tag.number;
            let done = match part.what {
                What::Rows { rows, last } => {
                    let Some(gathering) = self.gathering.get_mut(&number) else {
                        continue;
                    };
                    let _ = gathering.rows.send(RowsPart::Rows(part.worker, rows.0));
                    gathering.workers_left -= usize::from(last);
                    if gathering.workers_left == 0 {
                        let _ = gathering.rows.send(RowsPart::End(Ok(())));
                        self.gathering.remove(&number);
                    }
                    false
                }
                What::Changes { changes, before } => {
                    let told = ChangesPart {
                        worker: part.worker,
                        before,
                        changes: changes.0,
                    };
                    let follower = self.followers.get(&number);
                    follower.is_some_and(|follower| !follower.send(told))
                }
                What::Compacted => {
                    if let Some(gathering) = self.gathering.get(&number) {
                        let compacted = RowsPart::End(Err(ReadError::Compacted));
                        let _ = gathering.rows.send(compacted);
                    }
                    if let Some(follower) = self.followers.get(&number) {
                        follower.end(FollowError::Forgotten);
                    }
                    true
                }
            };
            if done {
                self.gathering.remove(&number);
                self.followers.remove(&number);
                self.request(Request::Cancel(part.tag));
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
