//! Kafka, Kafka Connect with Debezium, a schema registry and PostgreSQL as plain processes on the loopback
//! interface.
//!
//! ```text
//! jars ─┬─> Kafka ────┬─> Connect   each arrow: started as soon as all before it are ready
//!       └─> registry ─┘
//! PostgreSQL                        at the same time
//! ```
//!
//! Everything lives in one directory, `Settings::directory`:
//!
//! | path                | what                                                        |
//! |---------------------|-------------------------------------------------------------|
//! | `lib`, `plugins`    | jars of Kafka and Connect, kept for ever                    |
//! | `registry`          | the registry's program, kept for ever; it has no data       |
//! | `jars`, `etc`       | generated project and configuration files, Kafka's keys     |
//! | `data`              | what `--wipe` forgets; as root, PostgreSQL's is elsewhere   |
//! | `log`, `pid`        | one file for each service                                   |

mod connect;
mod http;
mod jars;
mod kafka;
mod postgres;
pub(crate) mod readers;
mod registry;

use std::env;
use std::fs::{self, File, TryLockError};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use crate::failure::{Failure, OrCannot, Outcome};
use crate::install::{self, Purpose};
use crate::process::{Daemon, Signal, progress};

/// Generous, since it only matters when something is wrong; a loaded machine needs up to 50 s in all.
const START_LIMIT: Duration = Duration::from_secs(150);
const STOP_LIMIT: Duration = Duration::from_secs(20);
/// A port may be held for a moment by a connection of somebody who was given it as a source port.
const PORT_LIMIT: Duration = Duration::from_secs(3);

const KAFKA_PORT: (&str, u16) = ("ASSAY_KAFKA_PORT", 19092);
const SECURE_PORT: (&str, u16) = ("ASSAY_KAFKA_SECURE_PORT", 19094);
const CERTIFICATE_PORT: (&str, u16) = ("ASSAY_KAFKA_CERTIFICATE_PORT", 19095);
const CONTROLLER_PORT: (&str, u16) = ("ASSAY_KAFKA_CONTROLLER_PORT", 19093);
const CONNECT_PORT: (&str, u16) = ("ASSAY_CONNECT_PORT", 18083);
const REGISTRY_PORT: (&str, u16) = ("ASSAY_REGISTRY_PORT", 18081);
const POSTGRES_PORT: (&str, u16) = ("ASSAY_POSTGRES_PORT", 15432);

/// What happens to topics, connectors and databases of an earlier run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Data {
    Keep,
    Wipe,
}

/// How a service is stopped.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Force {
    Polite,
    Kill,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Service {
    Kafka,
    Registry,
    Connect,
    Postgres,
}

impl Service {
    const ALL: [Service; 4] = [
        Service::Kafka,
        Service::Registry,
        Service::Connect,
        Service::Postgres,
    ];

    pub(crate) fn named(name: &str) -> Outcome<Self> {
        Self::ALL
            .into_iter()
            .find(|service| service.name() == name)
            .ok_or_else(|| {
                Failure::of_usage(format!(
                    "unknown service `{name}`; there are kafka, registry, connect and postgres"
                ))
            })
    }

    fn name(self) -> &'static str {
        match self {
            Service::Kafka => "kafka",
            Service::Registry => "registry",
            Service::Connect => "connect",
            Service::Postgres => "postgres",
        }
    }

    /// The ports it listens on, each with the variable that moves it.
    fn ports(self, settings: &Settings) -> Vec<(&'static str, u16)> {
        match self {
            Service::Kafka => vec![
                (KAFKA_PORT.0, settings.kafka_port),
                (CONTROLLER_PORT.0, settings.controller_port),
                (SECURE_PORT.0, settings.secure_port),
                (CERTIFICATE_PORT.0, settings.certificate_port),
            ],
            Service::Registry => vec![(REGISTRY_PORT.0, settings.registry_port)],
            Service::Connect => vec![(CONNECT_PORT.0, settings.connect_port)],
            Service::Postgres => vec![(POSTGRES_PORT.0, settings.postgres_port)],
        }
    }

    /// Writes what the service reads at its start and returns the command that starts it.
    fn prepare(self, settings: &Settings) -> Outcome<Command> {
        match self {
            Service::Kafka => kafka::prepare(settings),
            Service::Registry => registry::prepare(settings),
            Service::Connect => connect::prepare(settings),
            Service::Postgres => postgres::prepare(settings),
        }
    }

    fn ready(self, settings: &Settings) -> bool {
        match self {
            Service::Kafka => kafka::ready(settings),
            Service::Registry => registry::ready(settings),
            Service::Connect => connect::ready(settings),
            Service::Postgres => postgres::ready(settings),
        }
    }

    fn stop_signal(self) -> Signal {
        match self {
            // PostgreSQL's "fast": SIGTERM would wait until the last client has left.
            Service::Postgres => Signal::Interrupt,
            Service::Kafka | Service::Registry | Service::Connect => Signal::Terminate,
        }
    }

    fn daemon(self, settings: &Settings) -> Daemon {
        Daemon {
            name: self.name(),
            log: settings.log(self.name()),
            pid_file: settings.directory.join(format!("pid/{}.pid", self.name())),
        }
    }
}

/// Where the services live and listen.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    directory: PathBuf,
    kafka_port: u16,
    controller_port: u16,
    secure_port: u16,
    certificate_port: u16,
    registry_port: u16,
    connect_port: u16,
    postgres_port: u16,
}

impl Settings {
    pub(crate) fn from_environment() -> Outcome<Self> {
        Ok(Self {
            directory: directory()?,
            kafka_port: port(KAFKA_PORT)?,
            controller_port: port(CONTROLLER_PORT)?,
            secure_port: port(SECURE_PORT)?,
            certificate_port: port(CERTIFICATE_PORT)?,
            registry_port: port(REGISTRY_PORT)?,
            connect_port: port(CONNECT_PORT)?,
            postgres_port: port(POSTGRES_PORT)?,
        })
    }

    pub(crate) fn log(&self, name: &str) -> PathBuf {
        self.directory.join(format!("log/{name}.log"))
    }

    fn data(&self, name: &str) -> PathBuf {
        self.directory.join("data").join(name)
    }

    /// Writes a generated configuration file and returns its path.
    fn configure(&self, name: &str, text: &str) -> Outcome<PathBuf> {
        let path = self.directory.join("etc").join(name);
        fs::write(&path, text).or_cannot(|| format!("write {}", path.display()))?;
        Ok(path)
    }
}

fn directory() -> Outcome<PathBuf> {
    let variable = |name: &str| {
        env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let chosen = variable("ASSAY_SERVICES_DIR")
        .or_else(|| Some(variable("XDG_CACHE_HOME")?.join("assay/services")))
        .or_else(|| Some(variable("HOME")?.join(".cache/assay/services")))
        .ok_or_else(|| {
            Failure::of_usage("no place for the services: set ASSAY_SERVICES_DIR to a directory")
        })?;
    std::path::absolute(&chosen).or_cannot(|| format!("use the directory {}", chosen.display()))
}

fn port((variable, default): (&str, u16)) -> Outcome<u16> {
    match env::var(variable) {
        Ok(text) => text.parse().map_err(|_| {
            Failure::of_usage(format!("{variable} is `{text}`, expected a port number"))
        }),
        Err(_) => Ok(default),
    }
}

fn loopback(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

/// Returns what the tests read from their environment to find the services.
pub(crate) fn environment(settings: &Settings) -> Vec<(&'static str, String)> {
    let mut variables = vec![
        (
            "ASSAY_TEST_KAFKA",
            loopback(settings.kafka_port).to_string(),
        ),
        (
            "ASSAY_TEST_KAFKA_SECURE",
            loopback(settings.secure_port).to_string(),
        ),
        (
            "ASSAY_TEST_KAFKA_AUTHORITY",
            kafka::authority(settings).display().to_string(),
        ),
        (
            "ASSAY_TEST_KAFKA_CERTIFICATE",
            loopback(settings.certificate_port).to_string(),
        ),
        (
            "ASSAY_TEST_KAFKA_CLIENT_STORE",
            kafka::client_store(settings).display().to_string(),
        ),
        ("ASSAY_TEST_KAFKA_PASSWORD", kafka::PASSWORD.to_owned()),
        (
            "ASSAY_TEST_CONNECT",
            format!("http://{}", loopback(settings.connect_port)),
        ),
        ("ASSAY_TEST_POSTGRES", postgres::url(settings)),
        (
            "ASSAY_TEST_POSTGRES_AUTHORITY",
            postgres::authority(settings).map_or(String::new(), |file| file.display().to_string()),
        ),
        (
            "ASSAY_TEST_SERVICES_DIR",
            settings.directory.display().to_string(),
        ),
    ];
    // For tests that stop and start a service: this program, without a cargo that waits for its lock.
    if let Ok(program) = env::current_exe() {
        variables.push(("ASSAY_TEST_XTASK", program.display().to_string()));
    }
    variables.extend(registry::environment(settings));
    variables.extend(readers::environment(settings));
    variables
}

pub(crate) fn print_environment(settings: &Settings) {
    for (name, value) in environment(settings) {
        println!("export {name}='{}'", value.replace('\'', r"'\''"));
    }
}

pub(crate) fn make_directories(settings: &Settings) -> Outcome {
    for name in ["etc", "log", "pid", "data"] {
        let path = settings.directory.join(name);
        fs::create_dir_all(&path).or_cannot(|| format!("make the directory {}", path.display()))?;
    }
    Ok(())
}

/// Makes the directories and sees to it that everything `purpose` needs is installed.
pub(crate) fn prepare(settings: &Settings, purpose: Purpose) -> Outcome {
    make_directories(settings)?;
    let mut purposes = vec![purpose];
    if !jars::complete(settings) {
        purposes.push(Purpose::Jars);
    }
    install::prerequisites(&purposes, &settings.log("apt"))
}

/// Waits until no other test run uses these services. The turn lasts until the file is closed.
pub(crate) fn turn(settings: &Settings) -> Outcome<File> {
    lock(&settings.directory.join("test.lock"), "another test run")
}

/// Starts what is not running. What runs already is only asked whether it answers.
pub(crate) fn up(settings: &Settings, data: Data) -> Outcome {
    prepare(settings, Purpose::Services)?;
    let _alone = alone(settings)?;
    if data == Data::Wipe {
        stop_all(settings)?;
        wipe(settings)?;
    }
    thread::scope(|scope| {
        let postgres = scope.spawn(|| start(settings, Service::Postgres));
        let others = jars::fetch(settings)
            // A connector that goes on where it was needs the registry from its first message.
            .and_then(|()| {
                at_once(&[Service::Kafka, Service::Registry], |service| {
                    start(settings, service)
                })
            })
            .and_then(|()| start(settings, Service::Connect));
        let postgres = postgres
            .join()
            .unwrap_or_else(|_| Err(Failure::new("the start of postgres panicked")));
        others.and(postgres)
    })
}

pub(crate) fn down(settings: &Settings, data: Data) -> Outcome {
    if !settings.directory.exists() {
        return Ok(());
    }
    let _alone = alone(settings)?;
    stop_all(settings)?;
    match data {
        Data::Keep => Ok(()),
        Data::Wipe => wipe(settings),
    }
}

pub(crate) fn start_one(settings: &Settings, service: Service) -> Outcome {
    prepare(settings, Purpose::Services)?;
    let _alone = alone(settings)?;
    if service != Service::Postgres {
        jars::fetch(settings)?;
    }
    start(settings, service)
}

pub(crate) fn stop_one(settings: &Settings, service: Service, force: Force) -> Outcome {
    if !settings.directory.exists() {
        return Ok(());
    }
    let _alone = alone(settings)?;
    let signal = match force {
        Force::Polite => service.stop_signal(),
        Force::Kill => Signal::Kill,
    };
    service.daemon(settings).stop(signal, STOP_LIMIT)
}

/// Prints a line for each service and fails if one of them does not answer.
pub(crate) fn status(settings: &Settings) -> Outcome {
    let mut silent = Vec::new();
    for service in Service::ALL {
        let address = loopback(service.ports(settings)[0].1);
        let state = match service.daemon(settings).running() {
            Some(pid) if service.ready(settings) => format!("ready on {address}, pid {pid}"),
            Some(pid) => {
                silent.push(service.name());
                format!("not answering on {address}, pid {pid}")
            }
            None => {
                silent.push(service.name());
                "stopped".to_owned()
            }
        };
        println!("{:<9} {state}", service.name());
    }
    if silent.is_empty() {
        return Ok(());
    }
    Err(Failure::new(format!(
        "not ready: {}; `cargo xtask services up` starts what is missing",
        silent.join(", ")
    )))
}

fn start(settings: &Settings, service: Service) -> Outcome {
    let begun = Instant::now();
    let daemon = service.daemon(settings);
    let ready = || service.ready(settings);
    if let Some(pid) = daemon.running() {
        daemon.wait_until(START_LIMIT, ready)?;
        progress(service.name(), &format!("is up, pid {pid}"));
        return Ok(());
    }
    for (variable, port) in service.ports(settings) {
        await_free(service, variable, port)?;
    }
    daemon.spawn(service.prepare(settings)?)?;
    daemon.wait_until(START_LIMIT, ready)?;
    progress(
        service.name(),
        &format!("ready in {:.1} s", begun.elapsed().as_secs_f32()),
    );
    Ok(())
}

/// A program of somebody else on the port would answer our probe, and the tests would talk to it.
fn await_free(service: Service, variable: &str, port: u16) -> Outcome {
    let begun = Instant::now();
    while let Err(error) = TcpListener::bind(loopback(port)) {
        if begun.elapsed() > PORT_LIMIT {
            return Err(Failure::new(format!(
                "port {port} is not free for {} ({error}); stop the program that uses it or set {variable} to another",
                service.name()
            )));
        }
        thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

fn stop_all(settings: &Settings) -> Outcome {
    let stop = |service: Service| {
        service
            .daemon(settings)
            .stop(service.stop_signal(), STOP_LIMIT)
    };
    // Connect goes first: it leaves its group at the broker and its slot in the database in good order.
    let connect = stop(Service::Connect);
    let others = [Service::Kafka, Service::Registry, Service::Postgres];
    connect.and(at_once(&others, stop))
}

/// Does the same to several services at once. All are waited for, whichever of them fails.
fn at_once(services: &[Service], act: impl Fn(Service) -> Outcome + Sync) -> Outcome {
    let act = &act;
    thread::scope(|scope| {
        let threads: Vec<_> = services
            .iter()
            .map(|&service| (service, scope.spawn(move || act(service))))
            .collect();
        threads
            .into_iter()
            .map(|(service, thread)| {
                let panicked = || format!("the thread for {} panicked", service.name());
                thread
                    .join()
                    .unwrap_or_else(|_| Err(Failure::new(panicked())))
            })
            .fold(Ok(()), Result::and)
    })
}

fn wipe(settings: &Settings) -> Outcome {
    for path in [settings.data("kafka"), postgres::home(settings)?] {
        remove_directory(&path)?;
    }
    Ok(())
}

fn remove_directory(path: &Path) -> Outcome {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.or_cannot(|| format!("remove the directory {}", path.display())),
    }
}

/// Two commands at once would start everything twice.
fn alone(settings: &Settings) -> Outcome<File> {
    lock(&settings.directory.join("services.lock"), "another command")
}

fn lock(path: &Path, holder: &str) -> Outcome<File> {
    let what = || format!("lock {}", path.display());
    let file = File::create(path).or_cannot(what)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            progress("services", &format!("in use by {holder}, waiting"));
            file.lock().or_cannot(what)?;
        }
        Err(TryLockError::Error(error)) => return Err(error).or_cannot(what),
    }
    Ok(file)
}
