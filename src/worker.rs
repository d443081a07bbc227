//! A worker's loop: feed epochs in, let the dataflow step, answer queries, end in order.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use dataflows::change::Epoch;
use dataflows::intake::{Fed, Feed};
use dataflows::pipelines::mentions;
use dataflows::ports::Built;
use timely::dataflow::operators::probe::Handle as Probe;
use timely::worker::Worker;

use crate::ingest::Ingest;
use crate::query::peek::{Answering, Asks, Order};
use crate::wire::{Process, Reading};
use crate::{EXIT_FAILURE, EXIT_USAGE, give_up, metrics, now_ms, stages, status};

/// How long a worker sleeps when nothing is to be done; whatever brings work wakes it.
const REST: Duration = Duration::from_millis(50);

/// How often lags are told.
const REPORT_INTERVAL: Duration = Duration::from_millis(500);

/// How often a process tells of itself.
const STATUS_INTERVAL: Duration = Duration::from_secs(1);

/// Rejects are looked at after so many rows and rejects: of fewer, one would be too large a share.
const ENOUGH: u64 = 100;

/// An epoch that stays incomplete for so long is worth a word.
const STALLED: Duration = Duration::from_secs(10);

/// Checkpoints that may be under way before the intake pauses.
const CHECKPOINTS_BEHIND: u64 = 3;

/// Runs the pipeline on one worker, until its sources end or a stop is asked for.
pub fn run(worker: &mut Worker, process: &Arc<Process>, asks: Option<Asks>) {
    if let Err(error) = process.open_tables() {
        give_up(
            &format_args!("{:#}", anyhow::Error::from(error)),
            EXIT_USAGE,
        );
    }
    let first_of_process = asks.is_some();
    if process.plan().server.is_some() {
        stages::watch(worker, process);
    }
    let started = Instant::now();
    let Built {
        intakes,
        feeds,
        indexes,
        checkpointed,
        computed,
    } = build(worker, process);
    tracing::debug!(worker = worker.index(), took = ?started.elapsed(), "tables read");
    let answering = Answering::build(worker, indexes, asks);
    for (name, intake) in intakes {
        let ingest = Ingest {
            name,
            worker: worker.index(),
            workers: worker.peers(),
            intake,
            worker_thread: std::thread::current(),
            process: Arc::clone(process),
        };
        ingest.start();
    }
    let turns = Turns {
        process: Arc::clone(process),
        feeds,
        answering,
        checkpointed,
        computed,
        last_fed: 0,
        first_of_process,
        next_report: Instant::now(),
        next_status: Instant::now(),
        restoring: (process.restored_epoch() > 0).then_some(started),
        looked_at: (0, 0),
        oldest: None,
        oldest_since: Instant::now(),
    };
    turns.run(worker);
}

fn build(worker: &mut Worker, process: &Arc<Process>) -> Built {
    let mut environment = process.environment(worker.index());
    let settings = &process.plan().mentions;
    let built =
        worker.dataflow::<Epoch, _, _>(|scope| mentions::build(scope, &mut environment, settings));
    built.unwrap_or_else(|error| {
        give_up(
            &format_args!("cannot restore the tables: {error}"),
            EXIT_FAILURE,
        )
    })
}

struct Turns {
    process: Arc<Process>,
    feeds: Vec<Box<dyn Feed>>,
    answering: Answering,
    checkpointed: Option<Probe<Epoch>>,
    computed: Probe<Epoch>,
    last_fed: Epoch,
    first_of_process: bool,
    next_report: Instant,
    next_status: Instant,
    /// Since when the state of the last checkpoint has been derived, while it is.
    restoring: Option<Instant>,
    /// Rows of bronze and rejects at the last look.
    looked_at: (u64, u64),
    /// The oldest epoch that is not complete, and since when it has been that.
    oldest: Option<Epoch>,
    oldest_since: Instant,
}

impl Turns {
    fn run(mut self, worker: &mut Worker) {
        self.feeds.iter_mut().for_each(|feed| feed.restore());
        while !self.done() {
            for order in self.answering.turn() {
                match order {
                    Order::Stop => self.process.stop().request(),
                    Order::Pause => self.process.set_reading(Reading::Paused),
                    Order::PauseForRejects => self.process.set_reading(Reading::TooManyRejects),
                    Order::Resume => self.process.set_reading(Reading::On),
                    // Every worker hears of it, and its process is to act once.
                    Order::RetryRejects if self.first_of_process => self.process.retry_rejects(),
                    Order::RetryRejects => {}
                    Order::Swap(order) => {
                        if let (true, Some(swap)) = (self.first_of_process, self.process.swap()) {
                            swap.obey(order);
                        }
                    }
                    Order::Status(process, status) => {
                        if self.first_of_process {
                            let further = self.process.statuses().note(process, &status);
                            self.process.further().meet(further);
                        }
                    }
                }
            }
            let fed = self.feed();
            self.report();
            if fed || self.answering.busy() {
                worker.step();
            } else {
                worker.step_or_park(Some(REST));
            }
        }
        self.answering.end();
    }

    /// Everything has been read, computed and made durable.
    fn done(&self) -> bool {
        let durable = self.checkpointed.as_ref().is_none_or(Probe::done);
        self.computed.done() && durable
    }

    /// Feeds what waits, unless something behind is too slow; returns whether anything was fed.
    fn feed(&mut self) -> bool {
        let stopping = self.process.stop().requested();
        // The restored state is derived first: it answers queries, and what is read meanwhile can wait.
        let restoring = self.computed.less_than(&1);
        if restoring || (!stopping && self.behind()) {
            return false;
        }
        let mut fed_any = false;
        for feed in &mut self.feeds {
            match feed.feed() {
                Fed::Epoch(epoch, _) => {
                    self.last_fed = self.last_fed.max(epoch);
                    fed_any = true;
                }
                Fed::Empty | Fed::Ended => {}
            }
        }
        fed_any
    }

    /// Whether the model or the tables are so far behind that a backlog had better stay in the
    /// source, where it costs no memory.
    fn behind(&self) -> bool {
        let most = CHECKPOINTS_BEHIND * self.process.plan().checkpoint_interval_ms;
        let checkpoint_lag = self
            .checkpointed
            .as_ref()
            .map_or(0, |probe| self.epochs_behind(probe));
        self.process.scoring_is_behind() || checkpoint_lag > most
    }

    fn epochs_behind(&self, probe: &Probe<Epoch>) -> u64 {
        let first = probe.with_frontier(|frontier| frontier.first().copied());
        first.map_or(0, |first| self.last_fed.saturating_sub(first))
    }

    fn report(&mut self) {
        if !self.first_of_process || Instant::now() < self.next_report {
            return;
        }
        self.next_report = Instant::now() + REPORT_INTERVAL;
        let behind = |first: Epoch| Duration::from_millis(now_ms().saturating_sub(first));
        for index in self.answering.indexes() {
            // Before the restored state is complete there is no epoch to be behind.
            if let Some(first) = index.frontier().filter(|first| *first > 1) {
                let lag = behind(first);
                metrics::epoch_lag(index.relation(), lag);
                if let Some(stage) = self.process.progress().stage(index.relation()) {
                    let lag_ms = lag.as_millis() as u64;
                    stage.lag_ms.store(lag_ms, Ordering::Relaxed);
                }
            }
        }
        if let Some(scoring) = self.process.scoring() {
            metrics::waiting_texts(scoring.waiting);
        }
        let first = self
            .computed
            .with_frontier(|frontier| frontier.first().copied());
        self.tell_restored(first);
        self.tell_status();
        self.lead_models();
        self.watch_rejects(first);
        self.watch(first);
        self.process.progress().lag(
            first
                .filter(|first| *first > 1)
                .map_or(Duration::ZERO, behind),
        );
    }

    /// Tells all processes of this one, once a second.
    fn tell_status(&mut self) {
        if self.process.plan().server.is_none() || Instant::now() < self.next_status {
            return;
        }
        self.next_status = Instant::now() + STATUS_INTERVAL;
        let process = self.process.plan().cluster.process;
        let status = status::of(&self.process).to_string();
        self.answering.order(Order::Status(process, status));
    }

    /// The first worker of all gives the models' orders.
    fn lead_models(&mut self) {
        let cluster = &self.process.plan().cluster;
        let Some(swap) = self.process.swap().filter(|_| cluster.process == 0) else {
            return;
        };
        let told = self.process.statuses().processes();
        if told.len() < cluster.hosts.len().max(1) {
            return;
        }
        if let Some(order) = swap.lead(&told) {
            self.answering.order(Order::Swap(order));
        }
        for order in swap.take_orders() {
            self.feeds
                .iter_mut()
                .for_each(|feed| feed.order(order.clone()));
        }
    }

    fn tell_restored(&mut self, first: Option<Epoch>) {
        if first.is_none_or(|first| first > 0)
            && let Some(started) = self.restoring.take()
        {
            let epoch = self.process.restored_epoch();
            let took = started.elapsed();
            tracing::info!(epoch, ?took, "went on from the last checkpoint");
        }
    }

    /// Pauses the source when too much of what was read of late cannot be used.
    fn watch_rejects(&mut self, first: Option<Epoch>) {
        let now = self.process.accepted_and_rejected();
        // What the last checkpoint held appears anew, and is nothing new.
        if first == Some(0) || self.process.reading() != Reading::On {
            self.looked_at = now;
            return;
        }
        let (good, bad) = (now.0 - self.looked_at.0, now.1 - self.looked_at.1);
        if good + bad < ENOUGH {
            return;
        }
        self.looked_at = now;
        if bad * 100 > (good + bad) * self.process.plan().most_rejects_percent {
            self.answering.order(Order::PauseForRejects);
        }
    }

    /// Says when the oldest epoch stays incomplete: a peer that hangs tells of itself in no other way.
    fn watch(&mut self, oldest: Option<Epoch>) {
        if oldest != self.oldest || oldest.is_none_or(|oldest| oldest > self.last_fed) {
            self.oldest = oldest;
            self.oldest_since = Instant::now();
        } else if self.oldest_since.elapsed() > STALLED {
            self.oldest_since = Instant::now();
            let others = match self.process.plan().cluster.hosts.len() {
                0 | 1 => "",
                _ => ", or another process is paused or cannot be reached",
            };
            tracing::warn!(
                "no epoch has been completed for {STALLED:?}: something is slow{others}"
            );
        }
    }
}
