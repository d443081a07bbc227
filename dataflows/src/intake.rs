//! The way of a source's messages into the dataflow: decoded into epochs on an ingest thread, and fed to
//! the worker, one closed epoch after another.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};

use differential_dataflow::ExchangeData;
use foldhash::HashSet;
use timely::dataflow::InputHandleVec;

use crate::change::{Epoch, Text};
use crate::envelope::{Decoder, Format, Message, NotYet, RowChange, SourceRow};
use crate::operators::checkpoint::Position;
use crate::operators::upsert::{State, Upsert};
use crate::ports::ModelOrder;
use crate::transactions::Transactions;

/// How many closed epochs may wait between an ingest thread and its worker: enough to keep both
/// busy, few enough that a backlog stays in the source.
const EPOCHS_IN_FLIGHT: usize = 4;

/// Tells what a source's messages look like now; it may change while the program runs.
pub type FormatNow = Arc<dyn Fn() -> Format + Send + Sync>;

/// The worker is gone, so nothing more can be handed over.
#[derive(Clone, Copy, Debug)]
pub struct Closed;

/// The end of a source that an ingest thread fills, one epoch after another.
pub trait Intake: Send {
    /// Decodes a message into the open epoch.
    ///
    /// # Errors
    /// If it cannot be decoded yet: it is to be pushed again, before any other.
    fn push(&mut self, message: &Message<'_>) -> Result<(), NotYet>;

    /// Hears, about once a second, that the source holds nothing more for now. Returns a warning if something
    /// was waited for in vain, and is not any longer.
    fn nothing_waits(&mut self) -> Option<String>;

    /// Reads messages by the format as it is now, and has this worker try again what could not be used.
    fn retry(&mut self, worker: usize);

    /// Deletes the rows of the last checkpoint that a replaying source has not told of, of those
    /// keys that it would have told of; call when it has told everything once.
    fn sweep(&mut self, holds: &dyn Fn(&str) -> bool);

    /// How many records the open epoch holds.
    fn open_records(&self) -> usize;

    /// How many messages are held back until the transactions are complete that they belong to.
    fn held_back(&self) -> usize;

    /// The partitions that are not to be read for now, because what was read of them waits for others.
    fn ahead(&self) -> Vec<Text>;

    /// Closes the open epoch, together with the positions that it moved; waits while the worker is
    /// behind. Epochs must increase.
    ///
    /// # Errors
    /// If the worker is gone.
    fn close(&mut self, epoch: Epoch, positions: Vec<Position>) -> Result<(), Closed>;
}

pub(crate) struct EpochBatch<R> {
    epoch: Epoch,
    rows: Vec<RowChange<R>>,
    positions: Vec<Position>,
}

/// Decodes messages, and holds back what belongs to transactions that are not complete.
pub(crate) struct DecodingIntake<R> {
    format: FormatNow,
    decoder: Decoder,
    workers: u64,
    open: Vec<RowChange<R>>,
    /// Keys of the last checkpoint that the source has not told of yet.
    unseen: HashSet<Text>,
    /// What of transactions is held back, if they are shown whole.
    transactions: Option<Transactions<R>>,
    epochs: SyncSender<EpochBatch<R>>,
}

impl<R: SourceRow> DecodingIntake<R> {
    /// An intake, and the end at which its epochs come out.
    pub(crate) fn new(
        format: FormatNow,
        workers: u64,
        stored_keys: HashSet<Text>,
    ) -> (Self, Receiver<EpochBatch<R>>) {
        let (sender, receiver) = sync_channel(EPOCHS_IN_FLIGHT);
        let now = format();
        let transactions = now.transactions.clone().map(Transactions::new);
        let intake = Self {
            format,
            decoder: Decoder::new(now),
            workers,
            open: Vec::new(),
            unseen: stored_keys,
            transactions,
            epochs: sender,
        };
        (intake, receiver)
    }

    /// Takes note of the changes from this place on, and has every worker hear of truncations.
    fn admit(&mut self, from: usize) {
        for place in from..self.open.len() {
            let told = &self.open[place];
            if !self.unseen.is_empty() {
                self.unseen.remove(&told.key);
            }
            if let State::Truncated(_) = told.state {
                let (key, at) = (Text::clone(&told.key), told.at);
                let copy = |worker| Upsert {
                    key: Text::clone(&key),
                    at,
                    state: State::Truncated(worker),
                };
                self.open.extend((1..self.workers).map(copy));
            }
        }
    }
}

impl<R: SourceRow + Send> Intake for DecodingIntake<R> {
    fn push(&mut self, message: &Message<'_>) -> Result<(), NotYet> {
        let from = self.open.len();
        match &mut self.transactions {
            None => drop(self.decoder.decode(message, &mut self.open)?),
            Some(transactions) => {
                transactions.push(&mut self.decoder, message)?;
                transactions.release(&mut self.open);
            }
        }
        self.admit(from);
        Ok(())
    }

    fn nothing_waits(&mut self) -> Option<String> {
        let from = self.open.len();
        let transactions = self.transactions.as_mut()?;
        let given_up = transactions.nothing_waits();
        transactions.release(&mut self.open);
        self.admit(from);
        given_up
    }

    fn retry(&mut self, worker: usize) {
        self.decoder.read_by((self.format)());
        let state = State::Retry(worker as u64);
        let (key, at) = ("".into(), 0);
        self.open.push(Upsert { key, at, state });
    }

    fn sweep(&mut self, holds: &dyn Fn(&str) -> bool) {
        let gone = std::mem::take(&mut self.unseen)
            .into_iter()
            .filter(|key| holds(key));
        self.open.extend(gone.map(Upsert::gone));
    }

    fn open_records(&self) -> usize {
        self.open.len()
    }

    fn held_back(&self) -> usize {
        self.transactions
            .as_ref()
            .map_or(0, Transactions::held_back)
    }

    fn ahead(&self) -> Vec<Text> {
        self.transactions
            .as_ref()
            .map_or_else(Vec::new, Transactions::ahead)
    }

    fn close(&mut self, epoch: Epoch, positions: Vec<Position>) -> Result<(), Closed> {
        // An epoch is about as large as the one before it.
        let next = Vec::with_capacity(self.open.len());
        let rows = std::mem::replace(&mut self.open, next);
        let positions = match &mut self.transactions {
            None => positions,
            Some(transactions) => transactions.released_up_to(positions),
        };
        let batch = EpochBatch {
            epoch,
            rows,
            positions,
        };
        self.epochs.send(batch).map_err(|_| Closed)
    }
}

/// What came of one turn of a [`Feed`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Fed {
    /// An epoch of this many records entered the dataflow.
    Epoch(Epoch, usize),
    /// Nothing waits.
    Empty,
    /// The source has ended, and the dataflow has been told.
    Ended,
}

/// The end of a source that its worker empties.
pub trait Feed {
    /// Sends the restored rows at epoch 0; call once, before any epoch is fed.
    fn restore(&mut self);

    /// Feeds one closed epoch, if one waits.
    fn feed(&mut self) -> Fed;

    /// Tells what is to become of the models, at the next epoch that is fed; one worker does, for all.
    fn order(&mut self, order: ModelOrder);

    /// Ends the source: no epoch will follow.
    fn end(&mut self);
}

pub(crate) struct ChannelFeed<R: SourceRow + ExchangeData> {
    rows: Option<InputHandleVec<Epoch, RowChange<R>>>,
    positions: Option<InputHandleVec<Epoch, Position>>,
    orders: Option<InputHandleVec<Epoch, ModelOrder>>,
    waiting_orders: Vec<ModelOrder>,
    epochs: Receiver<EpochBatch<R>>,
    restored: Vec<RowChange<R>>,
}

impl<R: SourceRow + ExchangeData> ChannelFeed<R> {
    pub(crate) fn new(
        rows: InputHandleVec<Epoch, RowChange<R>>,
        positions: InputHandleVec<Epoch, Position>,
        orders: InputHandleVec<Epoch, ModelOrder>,
        epochs: Receiver<EpochBatch<R>>,
        restored: Vec<RowChange<R>>,
    ) -> Self {
        Self {
            rows: Some(rows),
            positions: Some(positions),
            orders: Some(orders),
            waiting_orders: Vec::new(),
            epochs,
            restored,
        }
    }
}

impl<R: SourceRow + ExchangeData> Feed for ChannelFeed<R> {
    fn restore(&mut self) {
        if let Some(rows) = &mut self.rows {
            rows.send_batch(&mut self.restored);
            self.restored = Vec::new();
            rows.advance_to(1);
        }
        if let Some(positions) = &mut self.positions {
            positions.advance_to(1);
        }
        if let Some(orders) = &mut self.orders {
            orders.advance_to(1);
        }
    }

    fn feed(&mut self) -> Fed {
        let (Some(rows), Some(positions), Some(orders)) =
            (&mut self.rows, &mut self.positions, &mut self.orders)
        else {
            return Fed::Ended;
        };
        match self.epochs.try_recv() {
            Ok(mut batch) => {
                let records = batch.rows.len();
                rows.advance_to(batch.epoch);
                rows.send_batch(&mut batch.rows);
                rows.advance_to(batch.epoch + 1);
                positions.advance_to(batch.epoch);
                positions.send_batch(&mut batch.positions);
                positions.advance_to(batch.epoch + 1);
                orders.advance_to(batch.epoch);
                orders.send_batch(&mut self.waiting_orders);
                orders.advance_to(batch.epoch + 1);
                Fed::Epoch(batch.epoch, records)
            }
            Err(TryRecvError::Empty) => Fed::Empty,
            Err(TryRecvError::Disconnected) => {
                self.end();
                Fed::Ended
            }
        }
    }

    fn order(&mut self, order: ModelOrder) {
        self.waiting_orders.push(order);
    }

    fn end(&mut self) {
        self.rows = None;
        self.positions = None;
        self.orders = None;
    }
}
