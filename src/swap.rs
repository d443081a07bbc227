//! The models of a running process: the one whose scores count, and a candidate beside it.
//!
//! ```text
//!  every process loads it ─▶ it scores all live texts in the background ─▶ its scores count, everywhere at one epoch
//! ```
//!
//! Each process loads the candidate by itself and tells how it stands. The first process leads: it looks at what
//! all of them tell, and gives the orders that the dataflow obeys, each at one epoch on all workers. What was
//! decided is kept beside the tables, so that a restart goes on with it; a configuration that names another model
//! than it did then counts more.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use dataflows::ports::{ModelOrder, Standing};
use models::files::ModelFiles;
use models::pool::{Failure, GoOn, Pool, PoolStatistics, Scorer, Turn, Watcher};
use models::{Classifier, Runtime};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::runtime::Handle;

use crate::checkpoint::store::{Decisions, StoreError};
use crate::plan::{FastModelPlan, ModelPlan};
use crate::{EXIT_FAILURE, give_up, metrics, model};

/// How long to wait for what an order should bring about: epochs may be held up.
const ORDER_AGAIN: Duration = Duration::from_secs(5);

/// More failures of the model in a row are no fault of the texts.
const FAILURES: u64 = 16;

/// A candidate is promoted when not more than one of so many texts waits for it.
const WAITING_SHARE: u64 = 100;

/// A model by where it lies.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Choice {
    /// Its directory, or `None` for the model that is built in.
    pub directory: Option<PathBuf>,
    /// What some of its labels are called instead.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// The digest of its files.
    pub fingerprint: String,
    /// What a person calls it.
    pub name: String,
}

/// What all processes are told about models.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub enum SwapOrder {
    /// To have this model score beside the current one; and to promote it when it has scored everything, if
    /// that is said.
    Load(Choice, bool),
    /// To promote the candidate when it has scored everything.
    Promote,
    /// To let the candidate go.
    Drop,
}

/// What is kept beside the tables.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
struct Decided {
    /// The digest of the configured model's files when this was decided.
    configured: String,
    /// The model whose scores count, if it is not the configured one.
    current: Option<Choice>,
    /// The candidate, and whether it is to be promoted.
    candidate: Option<(Choice, bool)>,
}

/// Why a process has no models.
#[derive(Debug, thiserror::Error)]
pub enum ModelsError {
    /// The configured model cannot be used.
    #[error(transparent)]
    Model(anyhow::Error),
    /// It cannot be read what was decided.
    #[error(transparent)]
    Tables(#[from] StoreError),
}

/// The models of a process.
pub struct Swap {
    pool: Pool,
    /// What runs the models.
    engine: Runtime,
    runtime: Handle,
    /// Where decisions are kept, if tables are.
    decisions: Option<Decisions>,
    workers: usize,
    failures: Arc<Mutex<Failures>>,
    fast: Option<FastModel>,
    state: Arc<Mutex<State>>,
}

/// What answers in a burst.
struct FastModel {
    name: String,
    scorer: Arc<Scorer>,
    /// How many texts may wait for the model before.
    waiting_texts: u64,
}

struct State {
    /// The configured model, by the digest of its files alone.
    configured: Choice,
    current: (Choice, Arc<Scorer>),
    candidate: Option<Candidate>,
    standings: BTreeMap<usize, Standing>,
    /// What the dataflow is to be told, on the first process.
    orders: Vec<ModelOrder>,
    /// The last of them, and when it was given.
    ordered: Option<(ModelOrder, Instant)>,
    /// What is kept beside the tables, and whether that is being written anew.
    kept: Option<Decided>,
    keeping: bool,
    /// Texts that earlier models have scored.
    scored_before: u64,
    /// Why the last candidate was let go, if it failed.
    failure: Option<String>,
}

/// Models that stopped working.
#[derive(Default)]
struct Failures {
    /// The fingerprints of those for whose scores epochs wait: without them nothing goes on.
    needed: Vec<String>,
    /// What became of others.
    others: BTreeMap<String, String>,
}

struct Candidate {
    choice: Choice,
    promote: bool,
    loaded: Loaded,
}

enum Loaded {
    NotYet,
    Scorer(Arc<Scorer>),
    Failed(String),
}

impl Swap {
    /// Loads the model that is configured, or the one that was chosen while it was configured.
    ///
    /// # Errors
    /// If the model cannot be used, or it cannot be read what was decided.
    pub fn start(
        plan: &ModelPlan,
        workers: usize,
        decisions: Option<Decisions>,
        runtime: Handle,
    ) -> Result<Self, ModelsError> {
        let mut configured = Choice {
            directory: plan.directory.clone(),
            labels: plan.labels.clone(),
            fingerprint: String::new(),
            name: String::new(),
        };
        let files = configured.files().map_err(ModelsError::Model)?;
        files.origin.clone_into(&mut configured.name);
        configured.fingerprint = files.fingerprint(None);
        let kept: Option<Option<Decided>> = decisions
            .as_ref()
            .map(|decisions| runtime.block_on(decisions.read()))
            .transpose()?;
        let kept = kept.flatten();
        let decided = kept.clone();
        let decided = decided.filter(|decided| decided.configured == configured.fingerprint);
        let (chosen, candidate) =
            decided.map_or((None, None), |decided| (decided.current, decided.candidate));
        let engine = plan.runtime;
        let chosen = chosen.and_then(|choice| Some((choice.load_again(engine)?, choice)));
        let (model, mut current) = match chosen {
            Some((model, choice)) => (model, choice),
            None => {
                let model = models::load(&files, engine);
                let model = model.map_err(|error| ModelsError::Model(error.into()))?;
                (model, configured.clone())
            }
        };
        model.fingerprint().clone_into(&mut current.fingerprint);
        let failures = Arc::new(Mutex::new(Failures {
            needed: vec![current.fingerprint.clone()],
            others: BTreeMap::new(),
        }));
        let pool = Pool::start(plan.threads, PoolWatcher(Arc::clone(&failures)));
        let scorer = Arc::new(pool.add(model, Turn::Foreground));
        let fast = plan
            .fast
            .as_ref()
            .map(|fast| FastModel::load(fast, engine, &pool));
        let fast = fast.transpose().map_err(ModelsError::Model)?;
        let candidate = candidate.and_then(|(choice, promote)| {
            let loaded = Loaded::Scorer(Arc::new(
                pool.add(choice.load_again(engine)?, Turn::Background),
            ));
            Some(Candidate {
                choice,
                promote,
                loaded,
            })
        });
        let state = State {
            configured,
            current: (current, scorer),
            candidate,
            standings: BTreeMap::new(),
            orders: Vec::new(),
            ordered: None,
            kept,
            keeping: false,
            scored_before: 0,
            failure: None,
        };
        Ok(Self {
            pool,
            engine,
            runtime,
            decisions,
            workers,
            failures,
            fast,
            state: Arc::new(Mutex::new(state)),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The model whose scores count.
    pub fn current(&self) -> Arc<Scorer> {
        Arc::clone(&self.state().current.1)
    }

    /// The candidate, once it is loaded.
    pub fn candidate(&self) -> Option<Arc<Scorer>> {
        self.state().candidate.as_ref()?.scorer().cloned()
    }

    /// The model that answers in a burst.
    pub fn fast(&self) -> Option<Arc<Scorer>> {
        self.fast.as_ref().map(|fast| Arc::clone(&fast.scorer))
    }

    /// The model that answers in a burst, unless it has become the one whose scores count.
    fn stand_in(&self, current: &Scorer) -> Option<&FastModel> {
        let fast = self.fast.as_ref();
        fast.filter(|fast| fast.scorer.fingerprint() != current.fingerprint())
    }

    /// Whether with so many more texts too many wait for the model whose scores count.
    pub fn is_burst(&self, texts: usize) -> bool {
        let current = self.current();
        let waiting = current.statistics().waiting + texts as u64;
        let stand_in = self.stand_in(&current);
        stand_in.is_some_and(|fast| waiting > fast.waiting_texts)
    }

    /// How many texts hold up epochs.
    pub fn holding_up(&self) -> u64 {
        let current = self.current();
        let waiting = current.statistics().waiting;
        match self.stand_in(&current) {
            Some(fast) => waiting.min(fast.scorer.statistics().waiting + fast.waiting_texts),
            None => waiting,
        }
    }

    /// What the models have done, and what waits for the one whose scores count.
    pub fn statistics(&self) -> PoolStatistics {
        let state = self.state();
        let mut statistics = state.current.1.statistics();
        statistics.scored += state.scored_before;
        if let Some(candidate) = state.candidate.as_ref().and_then(Candidate::scorer) {
            statistics.scored += candidate.statistics().scored;
        }
        if let Some(fast) = &self.fast {
            statistics.scored += fast.scorer.statistics().scored;
        }
        statistics
    }

    /// Notes how a worker stands. When all have promoted the candidate, it is the current model.
    pub fn note(&self, worker: usize, standing: Standing) {
        let mut state = self.state();
        if state.standings.get(&worker) == Some(&standing) {
            return;
        }
        state.standings.insert(worker, standing);
        let Some(candidate) = &state.candidate else {
            return;
        };
        let fingerprint = &candidate.choice.fingerprint;
        let promoted = |standing: &Standing| *standing.current == **fingerprint;
        if let (Loaded::Failed(why), true) =
            (&candidate.loaded, state.standings.values().any(promoted))
        {
            give_up(why, EXIT_FAILURE);
        }
        if state.standings.len() == self.workers && state.standings.values().all(promoted) {
            self.failures().needed.push(fingerprint.clone());
            state.settle();
        }
    }

    fn failures(&self) -> MutexGuard<'_, Failures> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Obeys an order that all processes were given.
    pub fn obey(self: &Arc<Self>, order: SwapOrder) {
        let mut state = self.state();
        match order {
            SwapOrder::Load(choice, promote) => {
                state.failure = None;
                self.failures().forget(&choice.fingerprint);
                let loads = state.candidate.as_ref().is_some_and(|candidate| {
                    candidate.choice.fingerprint == choice.fingerprint
                        && !matches!(candidate.loaded, Loaded::Failed(_))
                });
                if let (true, Some(candidate)) = (loads, &mut state.candidate) {
                    candidate.promote |= promote;
                    return;
                }
                state.candidate = Some(Candidate {
                    choice: choice.clone(),
                    promote,
                    loaded: Loaded::NotYet,
                });
                let swap = Arc::clone(self);
                std::thread::spawn(move || swap.load(&choice));
            }
            SwapOrder::Promote => {
                if let Some(candidate) = &mut state.candidate {
                    candidate.promote = true;
                }
            }
            SwapOrder::Drop => state.candidate = None,
        }
    }

    fn load(&self, choice: &Choice) {
        let loaded = match choice.load(self.engine) {
            Ok((model, _)) if model.fingerprint() == choice.fingerprint => {
                Loaded::Scorer(Arc::new(self.pool.add(model, Turn::Background)))
            }
            Ok(_) => Loaded::Failed(format!("{}: another model lies there", choice.name)),
            Err(error) => Loaded::Failed(format!("{error:#}")),
        };
        // Another may have been ordered meanwhile.
        if let Some(candidate) = &mut self.state().candidate
            && candidate.choice == *choice
        {
            candidate.loaded = loaded;
        }
    }

    /// What runs the models.
    pub fn engine(&self) -> Runtime {
        self.engine
    }

    /// What the dataflow is to be told, on the first process.
    pub fn take_orders(&self) -> Vec<ModelOrder> {
        std::mem::take(&mut self.state().orders)
    }

    /// How the models stand here, in JSON.
    pub fn tell(&self) -> Value {
        let mut state = self.state();
        state.note_failure(&mut self.failures());
        let standings = state.standings.values();
        let sum = |count: fn(&Standing) -> usize| standings.clone().map(count).sum::<usize>();
        let (scored, waiting) = (sum(|at| at.scored), sum(|at| at.waiting));
        let candidate = state.candidate.as_ref().map(|candidate| {
            let fingerprint = &candidate.choice.fingerprint;
            let begun = standings
                .clone()
                .filter(|at| at.candidate.as_deref() == Some(fingerprint));
            let mut told = json!({
                "name": candidate.choice.name,
                "fingerprint": fingerprint,
                "promote": candidate.promote,
                "loaded": candidate.scorer().is_some(),
                "begun": begun.count() == self.workers,
                "scored": scored,
                "waiting": waiting,
            });
            if let Loaded::Failed(why) = &candidate.loaded {
                told["failed"] = why.as_str().into();
            }
            told
        });
        json!({
            "name": state.current.0.name,
            "fingerprint": state.current.0.fingerprint,
            "candidate": candidate,
            "failure": state.failure,
            "fast": self.fast.as_ref().map(|fast| json!({
                "name": fast.name,
                "fingerprint": fast.scorer.fingerprint(),
                "scored": fast.scorer.statistics().scored,
            })),
        })
    }

    /// Leads all processes a step further, on the first of them; returns what they are to be told.
    pub fn lead(&self, told: &[Value]) -> Option<SwapOrder> {
        let mut state = self.state();
        let decided = state.decided();
        let Some(candidate) = &state.candidate else {
            if state.standings.values().any(|at| at.candidate.is_some()) {
                state.order(ModelOrder::Drop);
            }
            self.keep(&mut state, decided);
            return None;
        };
        let fingerprint = candidate.choice.fingerprint.clone();
        let candidates: Vec<_> = told
            .iter()
            .map(|told| &told["model"]["candidate"])
            .collect();
        let failed = candidates
            .iter()
            .find_map(|candidate| candidate["failed"].as_str());
        if let Some(why) = failed {
            tracing::error!("the candidate is let go, the model stays: {why}");
            state.failure = Some(why.to_owned());
            state.candidate = None;
            return Some(SwapOrder::Drop);
        }
        let all = |what: &str| {
            let here = |candidate: &&Value| candidate["fingerprint"] == *fingerprint;
            candidates
                .iter()
                .all(|told| here(told) && told[what] == true)
        };
        let sum = |what: &str| {
            let counts = candidates.iter().map(|told| told[what].as_u64());
            counts.map(Option::unwrap_or_default).sum::<u64>()
        };
        if all("begun") {
            // A stream that never rests brings new texts all the time: the few that are left hold up one epoch.
            let scored = sum("waiting") <= sum("scored") / WAITING_SHARE;
            let ready = candidate.promote && (scored || state.promotes(&fingerprint));
            let promoted = ready.then(|| state.promoted());
            if self.keep(&mut state, promoted.unwrap_or(decided)) && ready {
                state.order(ModelOrder::Promote(fingerprint.as_str().into()));
            }
        } else if all("loaded") && self.keep(&mut state, decided) {
            state.order(ModelOrder::Shadow(fingerprint.as_str().into()));
        }
        None
    }

    /// Keeps a decision beside the tables; returns whether it is kept. Until then it is tried again and again.
    fn keep(&self, state: &mut State, decided: Decided) -> bool {
        let Some(decisions) = &self.decisions else {
            return true;
        };
        let nothing = decided.current.is_none() && decided.candidate.is_none();
        if state.kept.as_ref() == Some(&decided) || (state.kept.is_none() && nothing) {
            return true;
        }
        if !std::mem::replace(&mut state.keeping, true) {
            let (decisions, state) = (decisions.clone(), Arc::clone(&self.state));
            self.runtime.spawn(async move {
                let written = decisions.write(&decided).await;
                let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
                state.keeping = false;
                match written {
                    Ok(()) => state.kept = Some(decided),
                    Err(error) => tracing::warn!("{:#}", anyhow::Error::from(error)),
                }
            });
        }
        false
    }
}

impl State {
    fn decided(&self) -> Decided {
        let (current, _) = &self.current;
        let candidate = self.candidate.as_ref();
        Decided {
            configured: self.configured.fingerprint.clone(),
            current: self.unless_configured(current),
            candidate: candidate.map(|candidate| (candidate.choice.clone(), candidate.promote)),
        }
    }

    fn unless_configured(&self, choice: &Choice) -> Option<Choice> {
        let configured = (&self.configured.directory, &self.configured.labels);
        (configured != (&choice.directory, &choice.labels)).then(|| choice.clone())
    }

    /// What is decided once the candidate's scores count.
    fn promoted(&self) -> Decided {
        let candidate = self.candidate.as_ref();
        Decided {
            configured: self.configured.fingerprint.clone(),
            current: candidate.and_then(|candidate| self.unless_configured(&candidate.choice)),
            candidate: None,
        }
    }

    /// Whether the candidate's promotion has been ordered.
    fn promotes(&self, candidate: &str) -> bool {
        let ordered = self.ordered.as_ref().map(|(order, _)| order);
        matches!(ordered, Some(ModelOrder::Promote(fingerprint)) if **fingerprint == *candidate)
    }

    /// Gives an order, and again if nothing has come of it after a while: twice does no harm.
    fn order(&mut self, order: ModelOrder) {
        let given = |(last, at): &(_, Instant)| *last == order && at.elapsed() < ORDER_AGAIN;
        if !self.ordered.as_ref().is_some_and(given) {
            self.ordered = Some((order.clone(), Instant::now()));
            self.orders.push(order);
        }
    }

    /// The candidate has become the current model.
    fn settle(&mut self) {
        let Some(candidate) = self.candidate.take() else {
            return;
        };
        if let Loaded::Scorer(scorer) = candidate.loaded {
            scorer.set_turn(Turn::Foreground);
            self.scored_before += self.current.1.statistics().scored;
            tracing::info!(model = candidate.choice.name, "the model was changed");
            self.current = (candidate.choice, scorer);
        }
    }

    /// Takes note of a candidate that stopped working.
    fn note_failure(&mut self, failures: &mut Failures) {
        if let Some(candidate) = &mut self.candidate
            && let Some(why) = failures.others.remove(&candidate.choice.fingerprint)
        {
            candidate.loaded = Loaded::Failed(why);
        }
    }
}

impl Failures {
    /// Forgets what became of an earlier model of these files, which epochs no longer wait for.
    fn forget(&mut self, fingerprint: &str) {
        self.needed.retain(|needed| needed != fingerprint);
        self.others.remove(fingerprint);
    }
}

impl FastModel {
    fn load(plan: &FastModelPlan, engine: Runtime, pool: &Pool) -> anyhow::Result<Self> {
        let mut files = match &plan.directory {
            Some(directory) => model::files(Some(directory))?,
            None => ModelFiles::built_in_fast(),
        };
        files.labels.clone_from(&plan.labels);
        let model = models::load(&files, engine)?;
        Ok(Self {
            name: files.origin,
            scorer: Arc::new(pool.add(model, Turn::First)),
            waiting_texts: plan.waiting_texts,
        })
    }
}

impl Candidate {
    fn scorer(&self) -> Option<&Arc<Scorer>> {
        match &self.loaded {
            Loaded::Scorer(scorer) => Some(scorer),
            Loaded::NotYet | Loaded::Failed(_) => None,
        }
    }
}

impl Choice {
    /// Its files.
    ///
    /// # Errors
    /// If they cannot be read, or not be downloaded.
    pub fn files(&self) -> anyhow::Result<ModelFiles> {
        let mut files = model::files(self.directory.as_deref())?;
        files.labels.clone_from(&self.labels);
        Ok(files)
    }

    /// Loads it; tells what a person calls it, too.
    ///
    /// # Errors
    /// If it cannot be used.
    pub fn load(&self, engine: Runtime) -> anyhow::Result<(Box<dyn Classifier>, String)> {
        let files = self.files()?;
        let model = models::load(&files, engine)?;
        Ok((model, files.origin))
    }

    /// Loads what was chosen in an earlier run, if it is still there.
    fn load_again(&self, engine: Runtime) -> Option<Box<dyn Classifier>> {
        let name = &self.name;
        match self.load(engine) {
            Ok((model, _)) if model.fingerprint() == self.fingerprint => return Some(model),
            Ok(_) => {
                tracing::warn!("{name}: another model lies there than the one that was chosen")
            }
            Err(error) => tracing::warn!("the model that was chosen cannot be used: {error:#}"),
        }
        None
    }
}

/// Tells of the models' work, and ends the process when the one fails whose scores count.
struct PoolWatcher(Arc<Mutex<Failures>>);

impl Watcher for PoolWatcher {
    fn classified(&self, texts: usize, took: Duration) {
        metrics::inference(texts, took);
    }

    fn failed(&self, failure: &Failure<'_>) -> GoOn {
        let Failure {
            fingerprint,
            error,
            in_a_row,
            ..
        } = failure;
        let mut failures = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !failures.needed.iter().any(|needed| needed == fingerprint) {
            tracing::error!(
                fingerprint,
                "a model beside the current one cannot score a text: {error}"
            );
            failures
                .others
                .insert((*fingerprint).to_owned(), error.to_string());
            return GoOn::No;
        }
        if *in_a_row > FAILURES {
            let what = format!("the model could not score {in_a_row} texts in a row: {error}");
            give_up(&what, EXIT_FAILURE)
        }
        metrics::unscorable();
        tracing::error!("a text has no label, because the model cannot score it: {error}");
        GoOn::Yes
    }
}
