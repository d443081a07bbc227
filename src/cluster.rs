//! Starts everything that the plan asks for, and ends it.

use std::any::Any;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use connectors::files::{FilesSource, Share};
use connectors::kafka::KafkaSource;
use connectors::message::SourceError;
use dataflows::change::Epoch;
use sql::postgres;
use timely::communication::Hooks;
use timely::communication::allocator::zero_copy::initialize::initialize_networking_from_sockets;
use timely::communication::allocator::{AllocatorBuilder, ProcessBuilder};
use timely::{CommunicationConfig, WorkerConfig};
use tokio::net::TcpListener;
use tokio::runtime::{Handle, Runtime};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::checkpoint::store::StoreError;
use crate::peers::{self, Bridges, PeerError};
use crate::plan::{ClusterPlan, Plan, SourcePlan};
use crate::progress::Display;
use crate::query::http::{self, Server};
use crate::query::peek::{Asks, Order, Peeker, peeker};
use crate::query::sql::Queries;
use crate::swap::ModelsError;
use crate::wire::Process;
use crate::{Stop, accuracy, metrics, sinks, worker};

/// Why nothing runs.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The model cannot be used.
    #[error(transparent)]
    Model(anyhow::Error),
    /// The source is not there.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The tables cannot be used.
    #[error(transparent)]
    Tables(#[from] StoreError),
    /// The server cannot listen.
    #[error("{0}")]
    Server(String),
    /// The processes do not come together.
    #[error(transparent)]
    Peers(#[from] PeerError),
    /// The threads cannot be started.
    #[error("cannot start: {0}")]
    Start(String),
}

impl From<ModelsError> for RunError {
    fn from(error: ModelsError) -> Self {
        match error {
            ModelsError::Model(error) => Self::Model(error),
            ModelsError::Tables(error) => Self::Tables(error),
        }
    }
}

/// A pipeline that runs, as other threads of its process see it.
#[derive(Clone)]
pub struct Running {
    /// Reads its relations.
    pub peeker: Peeker,
    /// Asks them in SQL.
    pub queries: Queries,
    /// Where it answers over HTTP, if it does.
    pub address: Option<SocketAddr>,
    /// Where it answers PostgreSQL's clients, if it does.
    pub postgres: Option<SocketAddr>,
    /// Whether the sources of this process have been read to their end, and at which epoch.
    pub caught_up: watch::Receiver<Option<Epoch>>,
    process: Arc<Process>,
    display: Arc<Mutex<Display>>,
}

impl Running {
    /// Asks all processes to end, after a last checkpoint.
    pub fn stop(&self) {
        self.peeker.order(Order::Stop);
    }

    /// Shows people how far the process is, if it is time.
    pub fn show(&self) {
        self.display()
            .show(self.process.progress(), self.process.scoring());
    }

    /// Shows how far the process is, and leaves the line to what is printed next.
    pub fn show_and_break(&self) {
        self.display()
            .show_and_break(self.process.progress(), self.process.scoring());
    }

    /// Shows how far the process is for the last time.
    pub fn finish(&self) {
        self.display()
            .finish(self.process.progress(), self.process.scoring());
    }

    fn display(&self) -> MutexGuard<'_, Display> {
        self.display.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs the plan to its end; `beside` is started on a thread of its own once everything stands.
///
/// # Errors
/// If something is missing at the start. What fails later ends the process.
pub fn run(plan: Plan, beside: impl FnOnce(Running) + Send + 'static) -> Result<(), RunError> {
    let failed = |error: std::io::Error| RunError::Start(error.to_string());
    let runtime = crate::runtime().map_err(failed)?;
    check_source(&plan.source)?;
    // What is found at the first look at the tables is counted already.
    let metrics = metrics::install().map_err(|error| RunError::Start(error.to_string()))?;
    let stop = Arc::new(Stop::default());
    let process = Process::new(plan, runtime.handle().clone(), Arc::clone(&stop))?;
    let process = Arc::new(process);
    let first = process.plan().cluster.process == 0;
    if first {
        // The first process finishes what a crash cut short, before the others look at the tables.
        process.open_tables()?;
    }
    let (peeker, asks) = peeker(Arc::clone(process.further()));
    let threads = query_threads().map_err(failed)?;
    let limits = process.plan().limits();
    let queries = Queries::new(peeker.clone(), threads.handle().clone(), limits);
    let postgres = serve_postgres(&threads, process.plan(), &queries)?;
    let server = Server::new(
        queries.clone(),
        peeker.clone(),
        Arc::clone(&process),
        metrics,
    );
    let address = serve(&runtime, process.plan(), server)?;
    let sinks = process.plan().sinks.iter().filter(|_| first);
    if first && process.plan().server.is_some() {
        runtime.spawn(accuracy::tell(peeker.clone()));
    }
    let mut following = JoinSet::new();
    for sink in sinks {
        let following_sink = sinks::run(sink.clone(), Arc::clone(&process), peeker.clone());
        following.spawn_on(following_sink, runtime.handle());
    }
    runtime.spawn(stop_on_signal(peeker.clone()));
    let caught_up = process.watch_caught_up();
    let running = Running {
        peeker,
        queries,
        address,
        postgres,
        caught_up,
        process: Arc::clone(&process),
        display: Arc::default(),
    };
    let shown = running.clone();
    std::thread::spawn(move || beside(running));
    run_workers(&process, asks)?;
    if !process.sinks_are_behind() {
        runtime.block_on(end_sinks(following));
    }
    process.close_tables();
    shown.finish();
    // A query may be under way, and is not waited for.
    threads.shutdown_background();
    Ok(())
}

/// Waits until sinks show the last epoch, or for a while.
async fn end_sinks(mut following: JoinSet<()>) {
    let ended = async { while following.join_next().await.is_some() {} };
    if timeout(SINKS_TIMEOUT, ended).await.is_err() {
        tracing::warn!(
            "a sink does not show the last epoch; the next start writes what is missing"
        );
    }
}

/// How long a stop may be held up by those who take the last epoch.
const SINKS_TIMEOUT: Duration = Duration::from_secs(10);

/// Threads that answer queries. Two, so that a long query does not keep a short one waiting, and so few
/// that queries cannot take all cores from the stream.
fn query_threads() -> std::io::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("queries")
        .enable_all()
        .build()
}

/// Looks whether the source is there, so that a mistake is told before anything starts.
fn check_source(source: &SourcePlan) -> Result<(), SourceError> {
    match source {
        SourcePlan::Files(folder) => FilesSource::open(folder, Share::NOTHING).map(drop),
        SourcePlan::Kafka(settings) => {
            KafkaSource::open(settings, Share::NOTHING, &Default::default()).map(drop)
        }
    }
}

fn serve(runtime: &Runtime, plan: &Plan, server: Server) -> Result<Option<SocketAddr>, RunError> {
    let Some(settings) = &plan.server else {
        return Ok(None);
    };
    let (listener, address) = bind(runtime, settings.listen, "server.listen")?;
    if !address.ip().is_loopback() && settings.tokens.is_empty() {
        tracing::warn!(
            "everyone who can reach {address} may ask and pause the source: name a file of tokens in \
             server.tokens_file"
        );
    }
    runtime.spawn(http::serve(listener, server, settings.tokens.clone()));
    Ok(Some(address))
}

fn serve_postgres(
    threads: &Runtime,
    plan: &Plan,
    queries: &Queries,
) -> Result<Option<SocketAddr>, RunError> {
    let settings = plan.server.as_ref();
    let Some(settings) = settings.and_then(|server| server.postgres.as_ref()) else {
        return Ok(None);
    };
    let (listener, address) = bind(threads, settings.listen, "server.postgres.listen")?;
    let (access, snapshots) = (settings.access.clone(), Arc::new(queries.clone()));
    threads.spawn(postgres::serve(
        listener,
        access,
        queries.limits(),
        snapshots,
    ));
    Ok(Some(address))
}

/// Binds an address; port 0 takes any that is free.
fn bind(
    runtime: &Runtime,
    address: SocketAddr,
    key: &str,
) -> Result<(TcpListener, SocketAddr), RunError> {
    let bound = runtime.block_on(TcpListener::bind(address));
    let bound = bound.and_then(|listener| Ok((listener.local_addr()?, listener)));
    let (address, listener) = bound.map_err(|error| {
        RunError::Server(format!(
            "cannot listen on {address}: {error}; set {key} to another"
        ))
    })?;
    Ok((listener, address))
}

/// Asks everything to end at the first ctrl-C or SIGTERM; a second one ends at once, and so does the
/// first while there is nothing yet to be lost.
async fn stop_on_signal(peeker: Peeker) {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut interrupt), Ok(mut terminate)) = (
        signal(SignalKind::interrupt()),
        signal(SignalKind::terminate()),
    ) else {
        return;
    };
    for attempt in 1.. {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        if attempt > 1 || !peeker.answering() {
            std::process::exit(EXIT_INTERRUPTED);
        }
        tracing::info!("stopping after a last checkpoint; a second signal stops at once");
        peeker.order(Order::Stop);
    }
}

/// Ended before a last checkpoint, as shells tell of ctrl-C.
const EXIT_INTERRUPTED: i32 = 130;

fn run_workers(process: &Arc<Process>, asks: Asks) -> Result<(), RunError> {
    let cluster = process.plan().cluster.clone();
    let asks = Mutex::new(Some(asks));
    let process = Arc::clone(process);
    let (builders, guard, bridges) = communication(&cluster, process.runtime())?;
    let runtime = process.runtime().clone();
    let configuration = WorkerConfig::default();
    let workers = timely::execute::execute_from(builders, guard, configuration, move |worker| {
        // One worker of the process answers for it.
        let first =
            worker.index() == process.plan().cluster.process * process.plan().cluster.workers;
        let asks = first
            .then(|| asks.lock().unwrap_or_else(PoisonError::into_inner).take())
            .flatten();
        worker::run(worker, &process, asks);
    });
    let workers = workers.map_err(RunError::Start)?;
    let ended = workers.join();
    if let Some(bridges) = bridges {
        runtime.block_on(bridges.end());
    }
    ended
        .into_iter()
        .try_for_each(|ended| ended.map_err(RunError::Start))
}

/// What timely's workers are made of, and what must be awaited when they have ended.
type Communication = (Vec<AllocatorBuilder>, Box<dyn Any + Send>, Option<Bridges>);

/// How the workers of all processes reach one another.
fn communication(cluster: &ClusterPlan, runtime: &Handle) -> Result<Communication, RunError> {
    let threads = cluster.workers;
    let (Some(secret), 2..) = (&cluster.secret, cluster.hosts.len()) else {
        let configuration = match threads {
            1 => CommunicationConfig::Thread,
            threads => CommunicationConfig::Process(threads),
        };
        let (builders, guard) = configuration.try_build().map_err(RunError::Start)?;
        return Ok((builders, guard, None));
    };
    let (sockets, bridges) = runtime.block_on(peers::connect(cluster, secret))?.split();
    let hooks = Hooks::default();
    let (refill, spill) = (hooks.refill.clone(), hooks.spill.clone());
    let within = ProcessBuilder::new_typed_vector(threads, refill, spill);
    let between =
        initialize_networking_from_sockets(within, sockets, cluster.process, threads, hooks);
    let (builders, guard) = between.map_err(|error| RunError::Start(error.to_string()))?;
    let builders = builders.into_iter().map(AllocatorBuilder::Tcp).collect();
    Ok((builders, Box::new(guard), Some(bridges)))
}
