//! Starts the processes of a cluster on this machine, and all of them again whenever one ends.
//!
//! A cluster cannot do without any of its processes, so when one dies the others end too, and all
//! start again from the last checkpoint.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;

use crate::EXIT_USAGE;
use crate::peers::Secret;
use crate::plan::{SECRET_VARIABLE, ServerPlan};

/// Pauses before a cluster is started again, growing while it does not stay up.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// A cluster that ran for so long counts as having stood.
const STOOD: Duration = Duration::from_secs(30);

/// The variable that tells a process who has launched it.
const LAUNCHER_VARIABLE: &str = "ASSAY_LAUNCHER";

/// Makes a process that was launched stop, with a last checkpoint, should its launcher be killed.
///
/// # Errors
/// If the launcher is gone already.
pub fn stop_with_launcher() -> anyhow::Result<()> {
    let Ok(launcher) = std::env::var(LAUNCHER_VARIABLE) else {
        return Ok(());
    };
    // Only Linux offers this; elsewhere the processes would stay until they are told to end.
    #[cfg(target_os = "linux")]
    rustix::process::set_parent_process_death_signal(Some(Signal::TERM))?;
    let parent = rustix::process::getppid().map(|parent| parent.as_raw_nonzero().to_string());
    anyhow::ensure!(
        parent == Some(launcher),
        "the launcher of this process is gone"
    );
    Ok(())
}

/// What to start.
#[derive(Debug)]
pub struct Launch {
    /// The configuration.
    pub config: PathBuf,
    /// How many processes.
    pub processes: usize,
    /// Worker threads of each; as configured if not given.
    pub workers: Option<usize>,
    /// Whether to end when the source has been read to its end.
    pub until_idle: bool,
    /// How the first process answers queries; the others answer at the ports that follow.
    pub server: Option<ServerPlan>,
}

/// How a cluster ended.
enum End {
    /// As it was asked to.
    Clean,
    /// In a way that starting it again would not mend.
    Unusable(i32),
    /// Because a process died.
    Died,
}

/// Runs the cluster until it is told to end.
///
/// # Errors
/// If processes cannot be started. Ends the process with the code of one that cannot be used.
pub fn run(launch: &Launch) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(supervise(launch))
}

async fn supervise(launch: &Launch) -> anyhow::Result<()> {
    let hosts = std::env::temp_dir().join(format!("assay-hosts-{}.txt", std::process::id()));
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut pause = FIRST_PAUSE;
    let end = loop {
        let started = Instant::now();
        let mut cluster = Cluster::start(launch, &hosts)?;
        let end = loop {
            tokio::select! {
                end = cluster.ended() => break end,
                _ = interrupt.recv() => cluster.signal(Signal::TERM),
                _ = terminate.recv() => cluster.signal(Signal::TERM),
            }
        };
        cluster.kill().await;
        match end {
            End::Died if !cluster.stopping => {}
            end => break end,
        }
        if started.elapsed() > STOOD {
            pause = FIRST_PAUSE;
        }
        tracing::warn!("starting all processes again from the last checkpoint, in {pause:?}");
        tokio::select! {
            () = tokio::time::sleep(pause) => pause = (pause * 2).min(LONGEST_PAUSE),
            _ = interrupt.recv() => break End::Clean,
            _ = terminate.recv() => break End::Clean,
        }
    };
    // It was of use to this cluster alone.
    let _ = std::fs::remove_file(&hosts);
    match end {
        End::Clean => Ok(()),
        End::Unusable(code) => std::process::exit(code),
        End::Died => bail!("a process ended before its last checkpoint"),
    }
}

/// The processes of one cluster.
struct Cluster {
    children: Vec<Child>,
    stopping: bool,
}

impl Cluster {
    fn start(launch: &Launch, hosts: &Path) -> anyhow::Result<Self> {
        std::fs::write(hosts, free_addresses(launch.processes)?)
            .with_context(|| format!("cannot write \"{}\"", hosts.display()))?;
        let secret = Secret::random().context("cannot make a secret")?;
        let program = std::env::current_exe().context("cannot find this program")?;
        let mut children = Vec::with_capacity(launch.processes);
        for process in 0..launch.processes {
            let mut command = Command::new(&program);
            command
                .arg("run")
                .arg(&launch.config)
                .args(["--process", &process.to_string(), "--hosts"])
                .arg(hosts)
                .env(SECRET_VARIABLE, &secret)
                .env(LAUNCHER_VARIABLE, std::process::id().to_string())
                .stdin(Stdio::null())
                .stderr(Stdio::piped())
                // A signal of the terminal reaches the launcher alone, which passes it on once.
                .process_group(0)
                .kill_on_drop(true);
            // What stays on this machine is not encrypted, and certificates are for other names.
            for file in ["CERTIFICATE", "KEY", "AUTHORITY"] {
                command.env(format!("ASSAY__CLUSTER__TLS__{file}_FILE"), "");
            }
            if let Some(workers) = launch.workers {
                command.args(["--workers", &workers.to_string()]);
            }
            if launch.until_idle {
                command.arg("--until-idle");
            }
            if let Some(server) = &launch.server {
                command.env("ASSAY__SERVER__LISTEN", following(server.listen, process));
                if let Some(postgres) = &server.postgres {
                    let listen = following(postgres.listen, process);
                    command.env("ASSAY__SERVER__POSTGRES__LISTEN", listen);
                }
            }
            let mut child = command.spawn().context("cannot start a process")?;
            if let Some(said) = child.stderr.take() {
                tokio::spawn(repeat(process, said));
            }
            children.push(child);
        }
        let stopping = false;
        Ok(Self { children, stopping })
    }

    /// Waits until all have ended well, or one has not.
    async fn ended(&mut self) -> End {
        let mut running: Vec<_> = self.children.iter_mut().enumerate().collect();
        while !running.is_empty() {
            let waiting = running.iter_mut().map(|(_, child)| Box::pin(child.wait()));
            let (status, at, _) = futures::future::select_all(waiting).await;
            let (process, _) = running.swap_remove(at);
            match status.as_ref().ok().and_then(ExitStatus::code) {
                Some(0) => {}
                Some(EXIT_USAGE) => return End::Unusable(EXIT_USAGE),
                _ => {
                    let status = status.map_or_else(|e| e.to_string(), |status| status.to_string());
                    tracing::error!(process, status, "a process has died");
                    return End::Died;
                }
            }
        }
        End::Clean
    }

    /// Passes a signal on to all that still run.
    fn signal(&mut self, signal: Signal) {
        self.stopping = true;
        for child in &self.children {
            let pid = child.id().and_then(|id| Pid::from_raw(id as i32));
            if let Some(pid) = pid {
                // It may have ended in this moment, which is what the signal asks for.
                let _ = kill_process(pid, signal);
            }
        }
    }

    /// Ends all that still run.
    async fn kill(&mut self) {
        let mut killed = JoinSet::new();
        for mut child in self.children.drain(..) {
            killed.spawn(async move { child.kill().await });
        }
        // One that has ended already cannot be killed.
        while killed.join_next().await.is_some() {}
    }
}

/// The address of a process, some ports after the first one's.
fn following(first: SocketAddr, process: usize) -> String {
    let port = match first.port() {
        0 => 0,
        port => port.saturating_add(process as u16),
    };
    SocketAddr::new(first.ip(), port).to_string()
}

/// Addresses on which nobody listens now, one a line.
fn free_addresses(count: usize) -> anyhow::Result<String> {
    let listeners: Vec<_> = (0..count)
        .map(|_| TcpListener::bind("127.0.0.1:0"))
        .collect::<Result<_, _>>()
        .context("cannot find free ports")?;
    let mut addresses = String::new();
    for listener in &listeners {
        addresses += &format!("{}\n", listener.local_addr()?);
    }
    Ok(addresses)
}

/// Repeats what a process says, each line with its number.
async fn repeat(process: usize, said: impl AsyncRead + Unpin) {
    let mut lines = BufReader::new(said).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        eprintln!("{process} | {line}");
    }
}
