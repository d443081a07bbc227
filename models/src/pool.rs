//! Threads that score texts in batches of equal length.
//!
//! ```text
//!  submit ─▶ waiting texts ─ tokenize ─▶ one queue a length ─ classify ─▶ answers
//! ```
//!
//! The queue with the oldest text goes first, so that nothing waits for ever and answers come
//! roughly in the order of asking; what else has its length goes with it. Several models may share the
//! threads: those in the background get what the others leave.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::onnx::{TextClassifier, Tokens};
use crate::{ModelError, Prediction};

/// Texts a thread tokenizes at a time.
const TOKENIZE: usize = 64;

/// Tokenized texts that wait: enough to find full batches among all lengths.
const TOKENIZED: usize = 2_048;

/// Takes the answers to texts submitted together; called from the pool's threads.
pub type Answer = Arc<dyn Fn(Answers) + Send + Sync>;

/// Texts with what the model says of each.
pub type Answers = Vec<(Arc<str>, Prediction)>;

/// A pool of scoring threads. Dropping it stops the threads; what waits is not answered.
pub struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// A model that a pool's threads run. Dropping it takes the model out; what waits is not answered.
pub struct Scorer {
    shared: Arc<Shared>,
    lane: Arc<Lane>,
}

/// How much a model has done.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct PoolStatistics {
    /// Texts submitted and not answered yet.
    pub waiting: u64,
    /// Texts answered.
    pub scored: u64,
}

/// Hears of a pool's work, on its threads.
pub trait Watcher: Send + Sync + 'static {
    /// A batch of texts went through a model.
    fn classified(&self, texts: usize, took: Duration);

    /// The model of this fingerprint stopped working, which takes it out of the pool.
    fn failed(&self, fingerprint: &str, error: ModelError);
}

/// A model that does not work in the background leaves it one turn of so many.
const BACKGROUND_TURN: u64 = 8;

struct Shared {
    lanes: Mutex<Lanes>,
    work: Condvar,
    watcher: Box<dyn Watcher>,
}

/// The models of a pool with what waits for each.
#[derive(Default)]
struct Lanes {
    lanes: Vec<(Arc<Lane>, Queue)>,
    turns: u64,
    stopping: bool,
}

/// A model of a pool.
struct Lane {
    model: TextClassifier,
    background: AtomicBool,
    waiting: AtomicU64,
    scored: AtomicU64,
}

#[derive(Default)]
struct Queue {
    texts: VecDeque<(Arc<str>, Answer)>,
    tokenized: BTreeMap<usize, VecDeque<Job>>,
    tokenized_count: usize,
    next_number: u64,
}

struct Job {
    /// Increases in the order of tokenizing.
    number: u64,
    text: Arc<str>,
    tokens: Tokens,
    answer: Answer,
}

enum Work {
    Tokenize(Vec<(Arc<str>, Answer)>),
    Classify(Vec<Job>),
}

impl Pool {
    /// Starts the threads.
    pub fn start(threads: usize, watcher: impl Watcher) -> Self {
        let shared = Arc::new(Shared {
            lanes: Mutex::default(),
            work: Condvar::new(),
            watcher: Box::new(watcher),
        });
        let threads = (0..threads)
            .map(|_| {
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || shared.work())
            })
            .collect();
        Self { shared, threads }
    }

    /// Adds a model; one in the background gets what the others leave, and a small share at least.
    pub fn add(&self, model: TextClassifier, background: bool) -> Scorer {
        let lane = Arc::new(Lane {
            model,
            background: AtomicBool::new(background),
            waiting: AtomicU64::new(0),
            scored: AtomicU64::new(0),
        });
        let mut lanes = self.shared.lock();
        lanes.lanes.push((Arc::clone(&lane), Queue::default()));
        drop(lanes);
        let shared = Arc::clone(&self.shared);
        Scorer { shared, lane }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.lock().stopping = true;
        self.shared.work.notify_all();
        for thread in self.threads.drain(..) {
            // A thread that panicked has told so already.
            drop(thread.join());
        }
    }
}

impl Scorer {
    /// Asks for the scores of texts; each is answered once, in any grouping and order.
    pub fn submit(&self, texts: Vec<Arc<str>>, answer: &Answer) {
        let count = texts.len() as u64;
        self.lane.waiting.fetch_add(count, Ordering::Relaxed);
        self.shared.with_queue(&self.lane, |queue| {
            let asked = texts.into_iter().map(|text| (text, Arc::clone(answer)));
            queue.texts.extend(asked);
        });
        self.shared.work.notify_all();
    }

    /// The model comes first from now on.
    pub fn to_foreground(&self) {
        self.lane.background.store(false, Ordering::Relaxed);
    }

    /// The digest of the model's files and of what runs them.
    pub fn fingerprint(&self) -> &str {
        self.lane.model.fingerprint()
    }

    /// How much has been done, and how much waits.
    pub fn statistics(&self) -> PoolStatistics {
        PoolStatistics {
            waiting: self.lane.waiting.load(Ordering::Relaxed),
            scored: self.lane.scored.load(Ordering::Relaxed),
        }
    }
}

impl Drop for Scorer {
    fn drop(&mut self) {
        self.shared.remove(&self.lane);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Lanes> {
        // The queues are whole between any two statements that could panic.
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something to a model's queue, if the model is still there.
    fn with_queue(&self, lane: &Arc<Lane>, act: impl FnOnce(&mut Queue)) {
        let mut lanes = self.lock();
        let found = lanes
            .lanes
            .iter_mut()
            .find(|(known, _)| Arc::ptr_eq(known, lane));
        if let Some((_, queue)) = found {
            act(queue);
        }
    }

    fn remove(&self, lane: &Arc<Lane>) {
        self.lock()
            .lanes
            .retain(|(known, _)| !Arc::ptr_eq(known, lane));
    }

    fn work(&self) {
        while let Some((lane, work)) = self.next_work() {
            let done = match work {
                Work::Tokenize(texts) => self.tokenize(&lane, texts),
                Work::Classify(jobs) => self.classify(&lane, jobs),
            };
            if let Err(error) = done {
                self.remove(&lane);
                self.watcher.failed(lane.model.fingerprint(), error);
            }
        }
    }

    fn next_work(&self) -> Option<(Arc<Lane>, Work)> {
        let mut lanes = self.lock();
        loop {
            if lanes.stopping {
                return None;
            }
            if let Some(work) = lanes.take() {
                return Some(work);
            }
            lanes = self
                .work
                .wait(lanes)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn tokenize(&self, lane: &Arc<Lane>, texts: Vec<(Arc<str>, Answer)>) -> Result<(), ModelError> {
        let tokens: Vec<_> = texts
            .iter()
            .map(|(text, _)| lane.model.tokenize(text))
            .collect::<Result<_, _>>()?;
        self.with_queue(lane, |queue| {
            for ((text, answer), tokens) in texts.into_iter().zip(tokens) {
                queue.insert(text, tokens, answer);
            }
        });
        self.work.notify_all();
        Ok(())
    }

    fn classify(&self, lane: &Lane, jobs: Vec<Job>) -> Result<(), ModelError> {
        let count = jobs.len() as u64;
        let mut tokens = Vec::with_capacity(jobs.len());
        let mut asked = Vec::with_capacity(jobs.len());
        for job in jobs {
            tokens.push(job.tokens);
            asked.push((job.text, job.answer));
        }
        let started = Instant::now();
        let predictions = lane.model.classify(&tokens)?;
        self.watcher.classified(tokens.len(), started.elapsed());
        lane.scored.fetch_add(count, Ordering::Relaxed);
        lane.waiting.fetch_sub(count, Ordering::Relaxed);
        answer_all(asked.into_iter().zip(predictions));
        Ok(())
    }
}

impl Lanes {
    /// The next piece of work: of a model in the background if it is its turn, or if no other has any.
    fn take(&mut self) -> Option<(Arc<Lane>, Work)> {
        self.turns += 1;
        let background_first = self.turns.is_multiple_of(BACKGROUND_TURN);
        let take = |background: bool, lanes: &mut Vec<(Arc<Lane>, Queue)>| {
            lanes.iter_mut().find_map(|(lane, queue)| {
                let chosen = lane.background.load(Ordering::Relaxed) == background;
                let work = chosen
                    .then(|| queue.take(lane.model.batch_limit()))
                    .flatten();
                work.map(|work| (Arc::clone(lane), work))
            })
        };
        take(background_first, &mut self.lanes).or_else(|| take(!background_first, &mut self.lanes))
    }
}

/// Answers each asker once, with all of its texts.
fn answer_all(predictions: impl Iterator<Item = ((Arc<str>, Answer), Prediction)>) {
    let mut askers: Vec<(Answer, Answers)> = Vec::new();
    for ((text, answer), prediction) in predictions {
        match askers
            .iter_mut()
            .find(|(known, _)| Arc::ptr_eq(known, &answer))
        {
            Some((_, answers)) => answers.push((text, prediction)),
            None => askers.push((answer, vec![(text, prediction)])),
        }
    }
    for (answer, answers) in askers {
        answer(answers);
    }
}

impl Queue {
    fn insert(&mut self, text: Arc<str>, tokens: Tokens, answer: Answer) {
        let number = self.next_number;
        self.next_number += 1;
        self.tokenized_count += 1;
        let length = tokens.padded_len();
        self.tokenized.entry(length).or_default().push_back(Job {
            number,
            text,
            tokens,
            answer,
        });
    }

    fn take(&mut self, batch_limit: usize) -> Option<Work> {
        if !self.texts.is_empty() && self.tokenized_count < TOKENIZED {
            let count = self.texts.len().min(TOKENIZE);
            return Some(Work::Tokenize(self.texts.drain(..count).collect()));
        }
        let oldest = self
            .tokenized
            .iter()
            .filter_map(|(length, jobs)| Some((jobs.front()?.number, *length)))
            .min();
        let (_, length) = oldest?;
        let jobs = self.tokenized.get_mut(&length)?;
        let batch: Vec<_> = jobs.drain(..jobs.len().min(batch_limit)).collect();
        self.tokenized_count -= batch.len();
        Some(Work::Classify(batch))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::mpsc;

    use super::*;
    use crate::Runtime;
    use crate::files::ModelFiles;

    struct Panicking;

    impl Watcher for Panicking {
        fn classified(&self, _: usize, _: Duration) {}

        fn failed(&self, _: &str, error: ModelError) {
            panic!("{error}");
        }
    }

    #[test]
    fn every_text_is_answered_once_and_as_it_would_be_alone() {
        let model = TextClassifier::load(&ModelFiles::built_in(), Runtime::Tract).unwrap();
        let texts: Vec<Arc<str>> = (0..200)
            .map(|n| format!("tweet {n} {}", "and so on ".repeat(n % 7)).into())
            .collect();
        let alone = |text: &str| {
            model
                .classify(&[model.tokenize(text).unwrap()])
                .unwrap()
                .remove(0)
        };
        let expected: HashMap<_, _> = texts
            .iter()
            .map(|text| (Arc::clone(text), alone(text)))
            .collect();

        let pool = Pool::start(2, Panicking);
        let scorer = pool.add(model, false);
        let (sender, receiver) = mpsc::channel();
        let answer: Answer = Arc::new(move |answers| sender.send(answers).unwrap());
        scorer.submit(texts[..50].to_vec(), &answer);
        scorer.submit(texts[50..].to_vec(), &answer);
        let mut answered = HashMap::new();
        while answered.len() < texts.len() {
            for (text, prediction) in receiver.recv().unwrap() {
                assert_eq!(answered.insert(text, prediction), None);
            }
        }
        assert_eq!(answered, expected);
        assert_eq!(
            (scorer.statistics().waiting, scorer.statistics().scored),
            (0, 200)
        );
    }
}
