//! Threads that score texts in batches of equal length.
//!
//! ```text
//!  submit ─▶ waiting texts ─ tokenize ─▶ one queue a length ─ classify ─▶ answers
//! ```
//!
//! The queue with the oldest text goes first, so that nothing waits for ever and answers come
//! roughly in the order of asking; what else has its length goes with it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
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

/// How much a pool has done.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct PoolStatistics {
    /// Texts submitted and not answered yet.
    pub waiting: u64,
    /// Texts answered.
    pub scored: u64,
}

/// Hears of a pool's work, on its threads.
pub trait Watcher: Send + Sync + 'static {
    /// A batch of texts went through the model.
    fn classified(&self, texts: usize, took: Duration);

    /// The model stopped working, which ends its thread.
    fn failed(&self, error: ModelError);
}

struct Shared {
    model: TextClassifier,
    queue: Mutex<Queue>,
    work: Condvar,
    waiting: AtomicU64,
    scored: AtomicU64,
    watcher: Box<dyn Watcher>,
}

#[derive(Default)]
struct Queue {
    texts: VecDeque<(Arc<str>, Answer)>,
    tokenized: BTreeMap<usize, VecDeque<Job>>,
    tokenized_count: usize,
    next_number: u64,
    stopping: bool,
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
    pub fn start(model: TextClassifier, threads: usize, watcher: impl Watcher) -> Self {
        let shared = Arc::new(Shared {
            model,
            queue: Mutex::default(),
            work: Condvar::new(),
            waiting: AtomicU64::new(0),
            scored: AtomicU64::new(0),
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

    /// Asks for the scores of texts; each is answered once, in any grouping and order.
    pub fn submit(&self, texts: Vec<Arc<str>>, answer: &Answer) {
        self.shared
            .waiting
            .fetch_add(texts.len() as u64, Ordering::Relaxed);
        let mut queue = self.shared.lock();
        queue
            .texts
            .extend(texts.into_iter().map(|text| (text, Arc::clone(answer))));
        drop(queue);
        self.shared.work.notify_all();
    }

    /// The digest of the model's files.
    pub fn fingerprint(&self) -> &str {
        self.shared.model.fingerprint()
    }

    /// How much has been done, and how much waits.
    pub fn statistics(&self) -> PoolStatistics {
        PoolStatistics {
            waiting: self.shared.waiting.load(Ordering::Relaxed),
            scored: self.shared.scored.load(Ordering::Relaxed),
        }
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

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        // The queue is whole between any two statements that could panic.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        while let Some(work) = self.next_work() {
            let done = match work {
                Work::Tokenize(texts) => self.tokenize(texts),
                Work::Classify(jobs) => self.classify(jobs),
            };
            if let Err(error) = done {
                self.watcher.failed(error);
                return;
            }
        }
    }

    fn next_work(&self) -> Option<Work> {
        let mut queue = self.lock();
        loop {
            if queue.stopping {
                return None;
            }
            if let Some(work) = queue.take(self.model.batch_limit()) {
                return Some(work);
            }
            queue = self
                .work
                .wait(queue)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn tokenize(&self, texts: Vec<(Arc<str>, Answer)>) -> Result<(), ModelError> {
        let tokens: Vec<_> = texts
            .iter()
            .map(|(text, _)| self.model.tokenize(text))
            .collect::<Result<_, _>>()?;
        let mut queue = self.lock();
        for ((text, answer), tokens) in texts.into_iter().zip(tokens) {
            queue.insert(text, tokens, answer);
        }
        drop(queue);
        self.work.notify_all();
        Ok(())
    }

    fn classify(&self, jobs: Vec<Job>) -> Result<(), ModelError> {
        let count = jobs.len() as u64;
        let mut tokens = Vec::with_capacity(jobs.len());
        let mut asked = Vec::with_capacity(jobs.len());
        for job in jobs {
            tokens.push(job.tokens);
            asked.push((job.text, job.answer));
        }
        let started = Instant::now();
        let predictions = self.model.classify(&tokens)?;
        self.watcher.classified(tokens.len(), started.elapsed());
        self.scored.fetch_add(count, Ordering::Relaxed);
        self.waiting.fetch_sub(count, Ordering::Relaxed);
        answer_all(asked.into_iter().zip(predictions));
        Ok(())
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
    use crate::files::ModelFiles;

    struct Panicking;

    impl Watcher for Panicking {
        fn classified(&self, _: usize, _: Duration) {}

        fn failed(&self, error: ModelError) {
            panic!("{error}");
        }
    }

    #[test]
    fn every_text_is_answered_once_and_as_it_would_be_alone() {
        let model = TextClassifier::load(&ModelFiles::built_in()).unwrap();
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

        let pool = Pool::start(model, 2, Panicking);
        let (sender, receiver) = mpsc::channel();
        let answer: Answer = Arc::new(move |answers| sender.send(answers).unwrap());
        pool.submit(texts[..50].to_vec(), &answer);
        pool.submit(texts[50..].to_vec(), &answer);
        let mut answered = HashMap::new();
        while answered.len() < texts.len() {
            for (text, prediction) in receiver.recv().unwrap() {
                assert_eq!(answered.insert(text, prediction), None);
            }
        }
        assert_eq!(answered, expected);
        assert_eq!(
            (pool.statistics().waiting, pool.statistics().scored),
            (0, 200)
        );
    }
}
