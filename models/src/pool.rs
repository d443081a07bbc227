//! Threads that score texts in batches of equal length.
//!
//! ```text
//!  submit ─▶ waiting texts ─ prepare ─▶ one queue a length ─ classify ─▶ answers
//! ```
//!
//! The queue with the oldest text goes first, so that nothing waits for ever and answers come
//! roughly in the order of asking; what else has its length goes with it. Several models may share the
//! threads, each when it is its [`Turn`].

use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::{Classifier, ModelError, Prediction, Prepared};

/// Texts a thread prepares at a time.
const PREPARE: usize = 64;

/// Prepared texts that wait: enough to find full batches among all lengths.
const PREPARED: usize = 2_048;

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

    /// A model could not score a text. If it is to go on, the text is answered with no label; else it is taken out of
    /// the pool.
    fn failed(&self, failure: &Failure<'_>) -> GoOn;
}

/// A text that a model could not score.
#[derive(Debug)]
pub struct Failure<'a> {
    /// The digest of the model's files.
    pub fingerprint: &'a str,
    /// The text.
    pub text: &'a str,
    /// Why.
    pub error: &'a ModelError,
    /// How many texts it could not score since it last could, this one among them.
    pub in_a_row: u64,
}

/// Whether a model that failed goes on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum GoOn {
    /// It does.
    Yes,
    /// It is taken out.
    No,
}

/// When it is a model's turn, those of an earlier kind before those of a later one.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Turn {
    /// Before all others.
    First,
    /// The usual.
    Foreground,
    /// With what the others leave.
    Background,
}

/// One turn of so many goes the other way round, so that nothing waits for ever.
const OTHER_WAY: u64 = 8;

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
    model: Box<dyn Classifier>,
    turn: AtomicU8,
    waiting: AtomicU64,
    scored: AtomicU64,
    /// Texts that it could not score since it last could.
    failed: AtomicU64,
}

#[derive(Default)]
struct Queue {
    texts: VecDeque<(Arc<str>, Answer)>,
    prepared: BTreeMap<usize, VecDeque<Job>>,
    prepared_count: usize,
    next_number: u64,
}

struct Job {
    /// Increases in the order of preparing.
    number: u64,
    text: Arc<str>,
    prepared: Prepared,
    answer: Answer,
}

enum Work {
    Prepare(Vec<(Arc<str>, Answer)>),
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

    /// Adds a model.
    pub fn add(&self, model: Box<dyn Classifier>, turn: Turn) -> Scorer {
        let lane = Arc::new(Lane {
            model,
            turn: AtomicU8::new(turn as u8),
            waiting: AtomicU64::new(0),
            scored: AtomicU64::new(0),
            failed: AtomicU64::new(0),
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

    /// When it is the model's turn from now on.
    pub fn set_turn(&self, turn: Turn) {
        self.lane.turn.store(turn as u8, Ordering::Relaxed);
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
            match work {
                Work::Prepare(texts) => self.prepare(&lane, texts),
                Work::Classify(jobs) => self.classify(&lane, jobs),
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

    fn prepare(&self, lane: &Arc<Lane>, texts: Vec<(Arc<str>, Answer)>) {
        let mut prepared = Vec::with_capacity(texts.len());
        for (text, answer) in texts {
            match attempt(|| lane.model.prepare(&text)) {
                Ok(ready) => prepared.push((text, ready, answer)),
                Err(error) => self.fail(lane, text, answer, &error),
            }
        }
        self.with_queue(lane, |queue| {
            for (text, prepared, answer) in prepared {
                queue.insert(text, prepared, answer);
            }
        });
        self.work.notify_all();
    }

    fn classify(&self, lane: &Arc<Lane>, jobs: Vec<Job>) {
        let mut batch = Vec::with_capacity(jobs.len());
        let mut asked = Vec::with_capacity(jobs.len());
        for job in jobs {
            batch.push(job.prepared);
            asked.push((job.text, job.answer));
        }
        let started = Instant::now();
        match attempt(|| lane.model.classify(&batch)) {
            Ok(predictions) => {
                self.watcher.classified(batch.len(), started.elapsed());
                lane.failed.store(0, Ordering::Relaxed);
                lane.answered(batch.len() as u64);
                answer_all(asked.into_iter().zip(predictions));
            }
            Err(error) if batch.len() == 1 => {
                for (text, answer) in asked {
                    self.fail(lane, text, answer, &error);
                }
            }
            // Which of them it is, each shows by itself.
            Err(_) => {
                for ((text, answer), prepared) in asked.into_iter().zip(batch) {
                    let number = 0;
                    self.classify(
                        lane,
                        vec![Job {
                            number,
                            text,
                            prepared,
                            answer,
                        }],
                    );
                }
            }
        }
    }

    fn fail(&self, lane: &Arc<Lane>, text: Arc<str>, answer: Answer, error: &ModelError) {
        let go_on = self.watcher.failed(&Failure {
            fingerprint: lane.model.fingerprint(),
            text: &text,
            error,
            in_a_row: lane.failed.fetch_add(1, Ordering::Relaxed) + 1,
        });
        match go_on {
            GoOn::Yes => {
                lane.answered(1);
                answer(vec![(text, Prediction::none())]);
            }
            GoOn::No => self.remove(lane),
        }
    }
}

impl Lane {
    fn answered(&self, texts: u64) {
        self.scored.fetch_add(texts, Ordering::Relaxed);
        self.waiting.fetch_sub(texts, Ordering::Relaxed);
    }
}

/// What a model says, even if it panics: what runs it does so where it meets what it did not expect.
fn attempt<T>(ask: impl FnOnce() -> Result<T, ModelError>) -> Result<T, ModelError> {
    // A model is not changed by being asked, so it is whole afterwards.
    catch_unwind(AssertUnwindSafe(ask)).unwrap_or_else(|panic| {
        let why = panic.downcast_ref::<String>().map(String::as_str);
        let why = why.or_else(|| panic.downcast_ref::<&str>().copied());
        Err(ModelError(format!(
            "it panicked: {}",
            why.unwrap_or("no reason is told")
        )))
    })
}

impl Lanes {
    /// The next piece of work.
    fn take(&mut self) -> Option<(Arc<Lane>, Work)> {
        self.turns += 1;
        let mut turns = [Turn::First, Turn::Foreground, Turn::Background];
        if self.turns.is_multiple_of(OTHER_WAY) {
            turns.reverse();
        }
        turns.into_iter().find_map(|turn| self.take_of(turn))
    }

    fn take_of(&mut self, turn: Turn) -> Option<(Arc<Lane>, Work)> {
        self.lanes.iter_mut().find_map(|(lane, queue)| {
            let chosen = lane.turn.load(Ordering::Relaxed) == turn as u8;
            let work = chosen
                .then(|| queue.take(lane.model.batch_limit()))
                .flatten();
            work.map(|work| (Arc::clone(lane), work))
        })
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
    fn insert(&mut self, text: Arc<str>, prepared: Prepared, answer: Answer) {
        let number = self.next_number;
        self.next_number += 1;
        self.prepared_count += 1;
        let length = prepared.length();
        self.prepared.entry(length).or_default().push_back(Job {
            number,
            text,
            prepared,
            answer,
        });
    }

    fn take(&mut self, batch_limit: usize) -> Option<Work> {
        if !self.texts.is_empty() && self.prepared_count < PREPARED {
            let count = self.texts.len().min(PREPARE);
            return Some(Work::Prepare(self.texts.drain(..count).collect()));
        }
        let oldest = self
            .prepared
            .iter()
            .filter_map(|(length, jobs)| Some((jobs.front()?.number, *length)))
            .min();
        let (_, length) = oldest?;
        let jobs = self.prepared.get_mut(&length)?;
        let batch: Vec<_> = jobs.drain(..jobs.len().min(batch_limit)).collect();
        self.prepared_count -= batch.len();
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

    /// Takes note of failures.
    struct Noting(GoOn, mpsc::Sender<(String, u64)>);

    impl Watcher for Noting {
        fn classified(&self, _: usize, _: Duration) {}

        fn failed(&self, failure: &Failure<'_>) -> GoOn {
            let told = (failure.text.to_owned(), failure.in_a_row);
            self.1.send(told).unwrap();
            self.0
        }
    }

    /// Says how long a text is; cannot prepare what begins with `!`, and panics when it meets `?`.
    struct Fussy(Vec<Arc<str>>);

    impl Classifier for Fussy {
        fn fingerprint(&self) -> &str {
            "fussy"
        }

        fn labels(&self) -> &[Arc<str>] {
            &self.0
        }

        fn extent(&self) -> String {
            String::new()
        }

        fn batch_limit(&self) -> usize {
            4
        }

        fn prepare(&self, text: &str) -> Result<Prepared, ModelError> {
            if text.starts_with('!') {
                return Err(ModelError("it shouts".to_owned()));
            }
            Ok(Prepared {
                values: vec![i64::from(text.contains('?'))],
                shown: text.len(),
            })
        }

        fn classify(&self, batch: &[Prepared]) -> Result<Vec<Prediction>, ModelError> {
            assert!(batch.iter().all(|text| text.values == [0]), "a question");
            let label = |text: &Prepared| Prediction {
                label: text.shown.to_string().into(),
                confidence: 1,
            };
            Ok(batch.iter().map(label).collect())
        }
    }

    fn fussy(go_on: GoOn, texts: &[&str]) -> (HashMap<String, String>, Vec<(String, u64)>) {
        let (sender, failures) = mpsc::channel();
        let pool = Pool::start(1, Noting(go_on, sender));
        let scorer = pool.add(Box::new(Fussy(Vec::new())), Turn::Foreground);
        let (sender, answers) = mpsc::channel();
        let answer: Answer = Arc::new(move |answers| sender.send(answers).unwrap());
        scorer.submit(texts.iter().map(|text| Arc::from(*text)).collect(), &answer);
        drop(answer);
        let mut answered = HashMap::new();
        // Without the model, nobody is left who could answer.
        while answered.len() < texts.len()
            && let Ok(answers) = answers.recv()
        {
            let labels = answers.into_iter();
            answered.extend(labels.map(|(text, said)| (text.to_string(), said.label.to_string())));
        }
        drop((scorer, pool));
        (answered, failures.try_iter().collect())
    }

    #[test]
    fn a_text_that_cannot_be_scored_harms_no_other() {
        let texts = ["a", "!b", "ccc", "d?", "!", "ee"];
        let (answered, failures) = fussy(GoOn::Yes, &texts);
        let expected = [
            ("a", "1"),
            ("!b", ""),
            ("ccc", "3"),
            ("d?", ""),
            ("!", ""),
            ("ee", "2"),
        ];
        let expected = expected.map(|(text, label)| (text.to_owned(), label.to_owned()));
        assert_eq!(answered, HashMap::from(expected));
        let texts: Vec<_> = failures.iter().map(|(text, _)| text.as_str()).collect();
        assert_eq!(texts, ["!b", "!", "d?"]);
        assert_eq!((failures[0].1, failures[1].1), (1, 2));
    }

    #[test]
    fn a_model_that_does_not_go_on_answers_no_more() {
        let (answered, failures) = fussy(GoOn::No, &["a", "!b", "ccc"]);
        assert_eq!(answered, HashMap::new());
        assert_eq!(failures, [("!b".to_owned(), 1)]);
    }

    #[test]
    fn every_text_is_answered_once_and_as_it_would_be_alone() {
        let model = crate::load(&ModelFiles::built_in(), Runtime::Tract).unwrap();
        let texts: Vec<Arc<str>> = (0..200)
            .map(|n| format!("tweet {n} {}", "and so on ".repeat(n % 7)).into())
            .collect();
        let alone = |text: &str| {
            model
                .classify(&[model.prepare(text).unwrap()])
                .unwrap()
                .remove(0)
        };
        let expected: HashMap<_, _> = texts
            .iter()
            .map(|text| (Arc::clone(text), alone(text)))
            .collect();

        let (sender, failures) = mpsc::channel();
        let pool = Pool::start(2, Noting(GoOn::No, sender));
        let scorer = pool.add(model, Turn::Foreground);
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
        assert_eq!(failures.try_iter().count(), 0);
    }
}
