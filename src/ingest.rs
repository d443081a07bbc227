//! A thread a source: poll, decode into the open epoch, close the epoch, hand it over.

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

use connectors::message::{Message as Delivered, Polled, Source, SourceError};
use dataflows::change::Epoch;
use dataflows::envelope::{HEADERS, Message, NotYet};
use dataflows::intake::{Closed, Intake};
use dataflows::operators::checkpoint::Position;
use dataflows::record::Timestamp;

use crate::wire::{Process, Reading};
use crate::{EXIT_FAILURE, EXIT_USAGE, give_up, metrics, now_ms};

/// What an ingest thread is made of.
pub struct Ingest {
    /// The source's name in the pipeline.
    pub name: &'static str,
    /// The worker that it feeds.
    pub worker: usize,
    /// How many workers there are.
    pub workers: usize,
    /// Where decoded epochs go.
    pub intake: Box<dyn Intake>,
    /// Woken when an epoch has been closed.
    pub worker_thread: Thread,
    /// What the process shares.
    pub process: Arc<Process>,
}

/// The longest pause between attempts at a source that fails.
const LONGEST_PAUSE: Duration = Duration::from_secs(3);

/// How often lag is told, and durable offsets are passed on.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);

impl Ingest {
    /// Starts the thread.
    pub fn start(self) -> JoinHandle<()> {
        std::thread::spawn(move || {
            let opened = self.process.open_source(self.worker, self.workers);
            let source = opened.unwrap_or_else(|error| give_up(&error, EXIT_USAGE));
            let clock = Clock::new(self.process.restored_epoch(), self.process.plan().tick_ms);
            // A worker that is gone needs no more epochs.
            let _ = Reader {
                ingest: self,
                source,
                waiting: VecDeque::new(),
                clock,
                failures: Failures::default(),
                retries: 0,
            }
            .run();
        })
    }
}

struct Reader {
    ingest: Ingest,
    source: Box<dyn Source>,
    /// What the source has delivered and cannot be decoded yet.
    waiting: VecDeque<Waiting>,
    clock: Clock,
    failures: Failures,
    /// How often what could not be used has been tried again.
    retries: u64,
}

impl Reader {
    fn run(mut self) -> Result<(), Closed> {
        let process = Arc::clone(&self.ingest.process);
        let mut caught_up = false;
        let mut next_report = Instant::now();
        while !process.stop().requested() {
            let was_caught_up = caught_up;
            caught_up |= self.read_epoch();
            if caught_up && !was_caught_up && self.source.replays() {
                let source = &self.source;
                self.ingest.intake.sweep(&|key| source.holds(key));
            }
            let epoch = self.close_epoch()?;
            if caught_up && !was_caught_up {
                process.caught_up(epoch);
            }
            // A sink reads what it has to show from the dataflow, which ends with its sources.
            if caught_up && process.plan().until_idle && !process.sinks_are_behind() {
                break;
            }
            if Instant::now() >= next_report {
                next_report = Instant::now() + REPORT_INTERVAL;
                self.report();
            }
        }
        Ok(())
    }

    /// Reads until the tick is over or the epoch is full; returns whether the source has been read
    /// to its end.
    fn read_epoch(&mut self) -> bool {
        let limit = self.ingest.process.records_an_epoch();
        let mut caught_up = false;
        loop {
            let wait = self.clock.until_next_tick();
            if wait.is_zero() || self.ingest.intake.open_records() >= limit {
                return caught_up;
            }
            self.retry_rejects();
            if let Some(pause) = self.failures.pause() {
                std::thread::park_timeout(pause.min(wait));
                continue;
            }
            // Epochs go on, so that what was read is completed and made durable.
            if self.ingest.process.reading() != Reading::On {
                std::thread::park_timeout(wait);
                continue;
            }
            match self.poll(wait) {
                Ok(polled) => {
                    self.failures = Failures::default();
                    caught_up |= polled == Polled::CaughtUp;
                }
                Err(SourceError::Retry(error)) => {
                    metrics::source_failed(self.ingest.name);
                    let pause = self.failures.add();
                    tracing::warn!("{error}; trying again in {pause:?}");
                }
                Err(SourceError::Fatal(error)) => give_up(&error, EXIT_FAILURE),
            }
            // What was there has been read: show it now rather than at the tick's end.
            if caught_up && self.ingest.process.plan().until_idle {
                return true;
            }
        }
    }

    /// Tries again what could not be used, if that has been ordered since it was last done.
    fn retry_rejects(&mut self) {
        let ordered = self.ingest.process.retries();
        if ordered != self.retries {
            self.retries = ordered;
            self.ingest.intake.retry(self.ingest.worker);
        }
    }

    /// Reads some messages, unless some wait that came before.
    fn poll(&mut self, wait: Duration) -> Result<Polled, SourceError> {
        let intake = &mut self.ingest.intake;
        while let Some(message) = self.waiting.front() {
            let pushed = message.push(&mut **intake);
            pushed.map_err(|NotYet(reason)| SourceError::Retry(reason))?;
            self.waiting.pop_front();
        }
        let ahead = intake.ahead();
        self.source
            .hold(&ahead.iter().map(|name| &**name).collect::<Vec<_>>());
        let received = Timestamp(now_ms() as i64 * 1_000);
        let waiting = &mut self.waiting;
        let mut records = 0;
        let polled = self.source.poll(wait, &mut |message| {
            records += 1;
            // What follows on one that waits must wait as well: it may be about the same row.
            if !waiting.is_empty() || push(&mut **intake, message, received).is_err() {
                waiting.push_back(Waiting::new(message, received));
            }
        });
        if records > 0 {
            metrics::records(self.ingest.name, self.ingest.worker, records);
            self.ingest.process.progress().records(records);
        }
        match self.waiting.is_empty() {
            true => polled,
            false => Ok(Polled::Some),
        }
    }

    fn close_epoch(&mut self) -> Result<Epoch, Closed> {
        let epoch = self.clock.next_epoch();
        // What waits has not been read, so the positions stay where they were.
        let moved = match self.waiting.is_empty() {
            true => self.source.moved().into_iter(),
            false => Vec::new().into_iter(),
        };
        let moved = moved.map(|reached| Position {
            partition: reached.partition.into(),
            next_offset: reached.next_offset,
            last_written: reached.last_written,
        });
        self.ingest.intake.close(epoch, moved.collect())?;
        self.ingest.worker_thread.unpark();
        Ok(epoch)
    }

    fn report(&mut self) {
        let lags = self.source.lag();
        // What is held back is not waited for.
        let ahead = self.ingest.intake.ahead();
        let held = |name: &str| ahead.iter().any(|partition| **partition == *name);
        if lags
            .iter()
            .all(|(name, waiting)| *waiting == 0 || held(name))
            && let Some(warning) = self.ingest.intake.nothing_waits()
        {
            tracing::warn!("{warning}");
        }
        metrics::held_back(
            self.ingest.name,
            self.ingest.worker,
            self.ingest.intake.held_back(),
        );
        for (partition, waiting) in &lags {
            metrics::source_lag(partition, *waiting);
        }
        self.ingest.process.note_lags(&lags);
        // Any consumer may speak for the group, and one is enough.
        if self.ingest.worker == 0
            && let Some(durable) = self.ingest.process.take_durable()
        {
            self.source.durable(&durable);
        }
    }
}

fn push(
    intake: &mut dyn Intake,
    message: &Delivered<'_>,
    received: Timestamp,
) -> Result<(), NotYet> {
    intake.push(&read_at(message, received))
}

/// A message as decoders take it, read at this time.
pub fn read_at<'a>(message: &Delivered<'a>, received: Timestamp) -> Message<'a> {
    Message {
        key: message.key,
        value: message.value,
        headers: message.headers,
        origin: message.origin,
        offset: message.offset,
        received,
    }
}

/// A message that is kept until it can be decoded.
struct Waiting {
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    headers: Vec<(&'static str, Vec<u8>)>,
    origin: String,
    offset: Option<u64>,
    received: Timestamp,
}

impl Waiting {
    fn new(message: &Delivered<'_>, received: Timestamp) -> Self {
        let headers = HEADERS.into_iter();
        let headers = headers.filter_map(|name| Some((name, (message.headers)(name)?)));
        Self {
            key: message.key.map(<[u8]>::to_vec),
            value: message.value.map(<[u8]>::to_vec),
            headers: headers.collect(),
            origin: message.origin.to_owned(),
            offset: message.offset,
            received,
        }
    }

    fn push(&self, intake: &mut dyn Intake) -> Result<(), NotYet> {
        let header = |wanted: &str| {
            let mut headers = self.headers.iter();
            let (_, value) = headers.find(|(name, _)| *name == wanted)?;
            Some(value.clone())
        };
        let message = Delivered {
            key: self.key.as_deref(),
            value: self.value.as_deref(),
            headers: &header,
            origin: &self.origin,
            offset: self.offset,
        };
        push(intake, &message, self.received)
    }
}

/// Pauses between attempts that double until one succeeds.
#[derive(Default)]
struct Failures {
    count: u32,
    retry_at: Option<Instant>,
}

impl Failures {
    fn add(&mut self) -> Duration {
        let pause = Duration::from_millis(100) * 2_u32.pow(self.count.min(10));
        let pause = pause.min(LONGEST_PAUSE);
        self.count += 1;
        self.retry_at = Some(Instant::now() + pause);
        pause
    }

    /// How long to wait before the next attempt, if at all.
    fn pause(&self) -> Option<Duration> {
        let left = self.retry_at?.checked_duration_since(Instant::now())?;
        (!left.is_zero()).then_some(left)
    }
}

/// Stamps epochs: the wall clock rounded down to the tick, and always later than the last.
struct Clock {
    tick_ms: u64,
    last: Epoch,
    next_tick: Instant,
}

impl Clock {
    fn new(restored: Epoch, tick_ms: u64) -> Self {
        Self {
            tick_ms,
            last: restored,
            next_tick: Instant::now() + Duration::from_millis(tick_ms),
        }
    }

    fn until_next_tick(&self) -> Duration {
        self.next_tick.saturating_duration_since(Instant::now())
    }

    fn next_epoch(&mut self) -> Epoch {
        let now = now_ms();
        self.last = (now - now % self.tick_ms).max(self.last + 1);
        if self.until_next_tick().is_zero() {
            self.next_tick = Instant::now() + Duration::from_millis(self.tick_ms);
        }
        self.last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epochs_increase_even_past_the_clock() {
        let ahead = now_ms() + 60_000;
        let mut clock = Clock::new(ahead, 100);
        assert_eq!(
            (clock.next_epoch(), clock.next_epoch()),
            (ahead + 1, ahead + 2)
        );
        let mut clock = Clock::new(0, 100);
        let first = clock.next_epoch();
        assert_eq!(first % 100, 0);
        assert!(clock.next_epoch() > first);
    }
}
