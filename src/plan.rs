//! What will run: the settings checked as a whole, before anything starts.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use connectors::delta::{Deletes, TableError, TablesFolder};
use connectors::kafka::{KafkaSettings, TopicSettings};
use connectors::postgres::MirrorSettings;
use connectors::registry::Registry;
use dataflows::envelope::{Encoding, Envelope, Format};
use dataflows::pipelines::mentions;
use dataflows::pipelines::mentions::date::DateUnit;
use dataflows::pipelines::mentions::mention::MentionRule;
use dataflows::transactions::TransactionTopic;
use models::Runtime;
use regex::RegexSet;
use sql::Limits;
use sql::postgres::Access;
use tokio_rustls::TlsAcceptor;
use url::Url;

use crate::checkpoint::store::TablesPlan;
use crate::config::{
    self, KafkaEncoding, KafkaFormat, RegistrySettings, Settings, SourceKind, line_of,
};
use crate::mlflow;
use crate::peers::tls::Tls;
use crate::peers::{self, Secret};
use crate::query::http::Tokens;
use crate::schemas::RegistrySchemas;
use crate::sinks::{MirrorPlan, PublisherPlan, SinkPlan};

/// A checked configuration.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The name of the pipeline.
    pub pipeline: String,
    /// Milliseconds of an epoch.
    pub tick_ms: u64,
    /// Where rows come from.
    pub source: SourcePlan,
    /// What the source's messages look like.
    pub format: Format,
    /// Of a hundred messages, how many may be rejected before the source is paused.
    pub most_rejects_percent: u64,
    /// What the pipeline's user may set.
    pub mentions: mentions::Settings,
    /// What scores texts, or `None` to score none.
    pub model: Option<ModelPlan>,
    /// The tables, or `None` to keep none.
    pub tables: Option<TablesSettings>,
    /// Milliseconds between checkpoints.
    pub checkpoint_interval_ms: u64,
    /// How queries are answered, or `None` to answer none.
    pub server: Option<ServerPlan>,
    /// What is kept equal to a relation outside.
    pub sinks: Vec<SinkPlan>,
    /// The processes and workers.
    pub cluster: ClusterPlan,
    /// Whether to end when the source has been read to its end.
    pub until_idle: bool,
    /// The configuration's file, if it came from one.
    pub file: Option<PathBuf>,
}

/// The relations whose rows are told apart by their first column.
const MIRRORED: [&str; 3] = ["mention_sentiment", "users", "bronze"];

/// The relations whose rows are told apart by their first columns, and by how many. Those of silver and gold
/// are not told apart by anything: who is mentioned twice in a text has two equal rows.
const PUBLISHED: [(&str, usize); 5] = [
    ("mention_sentiment", 1),
    ("users", 1),
    ("bronze", 1),
    ("scores", 2),
    ("accuracy", 3),
];

/// How queries are answered.
#[derive(Clone, Debug)]
pub struct ServerPlan {
    /// Where HTTP is answered.
    pub listen: SocketAddr,
    /// Who may ask over HTTP.
    pub tokens: Tokens,
    /// What each query may take.
    pub limits: Limits,
    /// How clients of PostgreSQL are served, if they are.
    pub postgres: Option<PostgresPlan>,
}

/// How clients of PostgreSQL are served.
#[derive(Clone, Debug)]
pub struct PostgresPlan {
    /// Where.
    pub listen: SocketAddr,
    /// Who may connect.
    pub access: Access,
}

impl Plan {
    /// What each query may take.
    pub fn limits(&self) -> Limits {
        // Without a server no one asks but the demo.
        let unasked = Limits {
            memory: 256 << 20,
            time: Duration::from_secs(30),
        };
        self.server.as_ref().map_or(unasked, |server| server.limits)
    }

    /// Reads and checks a configuration.
    ///
    /// # Errors
    /// Tells all mistakes at once.
    pub fn read(file: &Path, overrides: &Overrides) -> anyhow::Result<Self> {
        let name = file.display().to_string();
        let text = std::fs::read_to_string(file)
            .map_err(|error| Mistakes::one(format!("cannot read \"{name}\": {error}")))?;
        let settings = config::read(&name, &text, std::env::vars())?;
        let folder = match file.parent() {
            Some(parent) if parent != OsStr::new("") => parent,
            _ => Path::new("."),
        };
        let plan = Self::new(&settings, overrides, &name, &text, folder)?;
        let file = Some(file.to_owned());
        Ok(Self { file, ..plan })
    }

    /// What the tables are and where, if any are kept.
    ///
    /// # Errors
    /// If the place cannot be used.
    pub fn tables_plan(&self) -> Result<Option<TablesPlan>, TableError> {
        let Some(tables) = &self.tables else {
            return Ok(None);
        };
        Ok(Some(TablesPlan {
            folder: TablesFolder::open(&tables.location)?,
            pipeline: self.pipeline.clone(),
            relations: mentions::schemas().into(),
            from_source: &mentions::FROM_SOURCE,
            deletes: tables.deletes,
            history: tables.history,
        }))
    }
}

/// How tables are kept.
#[derive(Clone, Debug)]
pub struct TablesSettings {
    /// A folder's path, or a URL such as `s3://bucket/folder`.
    pub location: String,
    /// How rows are removed from files.
    pub deletes: Deletes,
    /// For how long earlier versions can be read.
    pub history: Duration,
}

/// Where rows come from.
#[derive(Clone, Debug)]
pub enum SourcePlan {
    /// A folder of files.
    Files(PathBuf),
    /// Topics of a Kafka cluster.
    Kafka(KafkaSettings),
}

impl SourcePlan {
    /// The kind's name, as the configuration has it.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Files(_) => "files",
            Self::Kafka(_) => "kafka",
        }
    }
}

/// What scores texts.
#[derive(Clone, Debug)]
pub struct ModelPlan {
    /// A model's directory, or its address in MLflow's registry, or `None` for the model that is built in.
    pub directory: Option<PathBuf>,
    /// Scoring threads.
    pub threads: usize,
    /// What runs it.
    pub runtime: Runtime,
    /// What some labels are to be called instead.
    pub labels: BTreeMap<String, String>,
    /// What answers in a burst.
    pub fast: Option<FastModelPlan>,
}

/// What answers in a burst.
#[derive(Clone, Debug)]
pub struct FastModelPlan {
    /// A model's directory, or its address in MLflow's registry, or `None` for the n-gram model that is built in.
    pub directory: Option<PathBuf>,
    /// What some labels are to be called instead.
    pub labels: BTreeMap<String, String>,
    /// How many texts may wait for the model before.
    pub waiting_texts: u64,
}

/// The processes of a cluster and their workers.
#[derive(Clone, Debug, Default)]
pub struct ClusterPlan {
    /// Worker threads of each process.
    pub workers: usize,
    /// This process's place in `hosts`.
    pub process: usize,
    /// The address of every process; empty for a single one.
    pub hosts: Vec<String>,
    /// What the processes know one another by; there is one if there are several.
    pub secret: Option<Secret>,
    /// What encrypts what they say, if anything does.
    pub tls: Option<Tls>,
}

/// The variable that holds the cluster's secret, instead of a file.
pub const SECRET_VARIABLE: &str = "ASSAY_CLUSTER_SECRET";

/// How the command line and the environment change the configuration.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// Worker threads, if given.
    pub workers: Option<usize>,
    /// This process's place in the file of hosts.
    pub process: usize,
    /// A file with the address of every process, one a line.
    pub hosts: Option<PathBuf>,
    /// What the processes know one another by, from [`SECRET_VARIABLE`].
    pub secret: Option<String>,
    /// Whether to end when the source has been read to its end.
    pub until_idle: bool,
}

/// Everything that is wrong with a configuration.
#[derive(Debug)]
pub struct Mistakes(Vec<String>);

impl Mistakes {
    /// A single mistake, of something that comes before the configuration's keys.
    pub fn one(mistake: String) -> Self {
        Self(vec![mistake])
    }
}

impl fmt::Display for Mistakes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "the configuration cannot be used")?;
        self.0
            .iter()
            .try_for_each(|mistake| write!(formatter, "\n  - {mistake}"))
    }
}

/// The topics that are read; an expression that is none is told of when the topics are looked for.
fn topics_read(topics: &[String]) -> RegexSet {
    let topics = topics.iter().map(|topic| exactly(topic));
    let expressions = topics.filter(|topic| regex::Regex::new(topic).is_ok());
    RegexSet::new(expressions).unwrap_or_default()
}

/// A topic as an expression, if it is not one already.
fn exactly(topic: &str) -> String {
    match topic.starts_with('^') {
        true => topic.to_owned(),
        false => format!("^{}$", regex::escape(topic)),
    }
}

impl std::error::Error for Mistakes {}

/// Gathers mistakes, each with the key and its line.
struct Check<'a> {
    file: &'a str,
    text: &'a str,
    mistakes: Vec<String>,
}

impl Check<'_> {
    fn mistake(&mut self, key: &str, message: impl fmt::Display) {
        let place = match line_of(self.text, key) {
            Some(line) => format!("{}:{line}: ", self.file),
            None => String::new(),
        };
        self.mistakes.push(format!("{place}{key}: {message}"));
    }

    fn require(&mut self, holds: bool, key: &str, message: impl fmt::Display) {
        if !holds {
            self.mistake(key, message);
        }
    }
}

impl Plan {
    /// Checks the settings, which came from this file and text; relative paths start at `folder`.
    ///
    /// # Errors
    /// Tells all mistakes at once.
    pub fn new(
        settings: &Settings,
        overrides: &Overrides,
        file: &str,
        text: &str,
        folder: &Path,
    ) -> Result<Self, Mistakes> {
        let mut check = Check {
            file,
            text,
            mistakes: Vec::new(),
        };
        check.require(
            settings.pipeline == "mentions",
            "pipeline",
            format!(
                "there is no pipeline \"{}\"; there is \"mentions\"",
                settings.pipeline
            ),
        );
        let tick_fits = (1..=10_000).contains(&settings.tick_ms);
        check.require(tick_fits, "tick_ms", "must be between 1 and 10000");
        let interval = settings.tables.checkpoint_interval_s;
        let interval_fits = (1..=86_400).contains(&interval);
        check.require(
            interval_fits,
            "tables.checkpoint_interval_s",
            "must be between 1 and 86400",
        );
        check.require(
            settings.source.most_rejects_percent <= 100,
            "source.most_rejects_percent",
            "must be between 0 and 100",
        );
        let plan = Self {
            pipeline: settings.pipeline.clone(),
            tick_ms: settings.tick_ms,
            source: check.source(settings, folder),
            format: check.format(settings, folder),
            most_rejects_percent: settings.source.most_rejects_percent,
            mentions: check.mentions(settings),
            model: check.model(settings, folder),
            tables: check.tables(settings, folder),
            checkpoint_interval_ms: interval.saturating_mul(1_000),
            server: check.server(settings, folder),
            sinks: check.sinks(settings, folder),
            cluster: check.cluster(settings, overrides, folder),
            until_idle: overrides.until_idle,
            file: None,
        };
        if check.mistakes.is_empty() {
            Ok(plan)
        } else {
            Err(Mistakes(check.mistakes))
        }
    }
}

impl Check<'_> {
    fn source(&mut self, settings: &Settings, folder: &Path) -> SourcePlan {
        match settings.source.kind {
            SourceKind::Files => {
                let path = folder.join(&settings.source.files.path);
                let message = format!(
                    "there is no folder \"{}\"; make it, or name the folder that holds the tweets",
                    path.display()
                );
                self.require(path.is_dir(), "source.files.path", message);
                SourcePlan::Files(path)
            }
            SourceKind::Kafka => {
                let kafka = &settings.source.kafka;
                let message = "name at least one topic";
                self.require(!kafka.topics.is_empty(), "source.kafka.topics", message);
                self.require_brokers("source.kafka.properties", &kafka.properties);
                let reset = kafka.properties.get("auto.offset.reset");
                let known =
                    reset.is_none_or(|reset| ["error", "earliest"].contains(&reset.as_str()));
                let message = "\"auto.offset.reset\" must be \"error\" or \"earliest\"";
                self.require(known, "source.kafka.properties", message);
                for name in ["enable.auto.commit", "enable.partition.eof"] {
                    let message =
                        format!("\"{name}\" cannot be set: Assay keeps the positions itself");
                    let free = !kafka.properties.contains_key(name);
                    self.require(free, "source.kafka.properties", message);
                }
                let mut topics = kafka.topics.clone();
                // An expression, because the topic is not there before the first transaction.
                let transactions = !kafka.transactions.is_empty();
                let transactions = transactions.then(|| exactly(&kafka.transactions));
                topics.extend(transactions);
                SourcePlan::Kafka(KafkaSettings {
                    properties: kafka.properties.clone(),
                    topics,
                })
            }
        }
    }

    fn format(&mut self, settings: &Settings, folder: &Path) -> Format {
        let columns = &settings.source.columns;
        let columns = [
            &columns.date,
            &columns.user,
            &columns.text,
            &columns.sentiment,
        ];
        let named = columns.iter().all(|name| !name.is_empty());
        self.require(named, "source.columns", "a column must have a name");
        let kafka = &settings.source.kafka;
        let plain = Format::new::<Arc<mentions::Bronze>>(Envelope::Upsert);
        let format = Format {
            columns: columns.map(String::clone).into(),
            further: settings.source.further_columns.then(Arc::default),
            ..plain
        };
        let envelope = match (settings.source.kind, kafka.format) {
            (SourceKind::Files, _) => {
                return Format {
                    json_keys: false,
                    ..format
                };
            }
            (SourceKind::Kafka, KafkaFormat::Debezium) => Envelope::Debezium,
            (SourceKind::Kafka, KafkaFormat::Flattened) => Envelope::Flattened,
            (SourceKind::Kafka, KafkaFormat::Upsert) => Envelope::Upsert,
            (SourceKind::Kafka, KafkaFormat::Append) => Envelope::Append,
        };
        let keyless = self.keyless(kafka);
        let encoding = match kafka.encoding {
            KafkaEncoding::Json => Encoding::Json,
            KafkaEncoding::Avro => self.avro(&kafka.registry, folder),
        };
        Format {
            envelope,
            encoding,
            transactions: self.transactions(kafka),
            key_columns: if keyless {
                Vec::new()
            } else {
                kafka.key.clone()
            },
            keyless,
            several_topics: kafka.topics.len() > 1
                || kafka.topics.iter().any(|t| t.starts_with('^')),
            unavailable: kafka.unavailable_value.clone(),
            ..format
        }
    }

    /// Whether rows are told apart by all that is read of them.
    fn keyless(&mut self, kafka: &config::KafkaSettings) -> bool {
        let whole_row = |name: &String| name == "*";
        let keyless = kafka.key.iter().any(whole_row);
        let key = "source.kafka.key";
        let alone = !keyless || kafka.key.len() == 1;
        self.require(
            alone,
            key,
            "\"*\" stands for the whole row, so nothing can stand beside it",
        );
        let debezium = !keyless || kafka.format == KafkaFormat::Debezium;
        let message = "\"*\" needs Debezium's envelope, which tells of rows as they were";
        self.require(debezium, key, message);
        keyless
    }

    fn transactions(&mut self, kafka: &config::KafkaSettings) -> Option<TransactionTopic> {
        if kafka.transactions.is_empty() {
            return None;
        }
        let key = "source.kafka.transactions";
        let debezium = kafka.format == KafkaFormat::Debezium;
        self.require(
            debezium,
            key,
            "needs Debezium's envelope: format = \"debezium\"",
        );
        let read = topics_read(&kafka.topics);
        let topic = kafka.transactions.clone();
        let apart = !read.is_match(&topic);
        self.require(apart, key, "is among source.kafka.topics; it holds no rows");
        Some(TransactionTopic { topic, read })
    }

    fn avro(&mut self, registry: &RegistrySettings, folder: &Path) -> Encoding {
        let url = Url::parse(&registry.url).ok();
        let Some(url) = url.filter(|url| ["http", "https"].contains(&url.scheme())) else {
            let message =
                "names no registry; messages in Avro need one, such as \"http://127.0.0.1:8081\"";
            self.mistake("source.kafka.registry.url", message);
            return Encoding::Json;
        };
        let key = "source.kafka.registry.authority_file";
        let authority = self.bytes(key, &registry.authority_file, folder);
        let password = || registry.password.clone();
        let user = (!registry.user.is_empty()).then(|| (registry.user.clone(), password()));
        let registry = Registry::new(connectors::registry::RegistrySettings {
            url,
            user,
            authority,
        });
        match registry {
            Ok(registry) => Encoding::Avro(Arc::new(RegistrySchemas(registry))),
            Err(error) => {
                self.mistake(key, error);
                Encoding::Json
            }
        }
    }

    fn mentions(&mut self, settings: &Settings) -> mentions::Settings {
        let rule = match settings.mentions.pattern.as_str() {
            "" => MentionRule::twitter(),
            pattern => MentionRule::pattern(pattern).unwrap_or_else(|error| {
                self.mistake("mentions.pattern", error);
                MentionRule::twitter()
            }),
        };
        let numeric_date = match settings.mentions.numeric_date.as_str() {
            "" => None,
            name => {
                let unit = DateUnit::from_name(name);
                let message = "must be \"seconds\", \"milliseconds\", \"microseconds\", \"nanoseconds\" \
                               or \"days\", or empty";
                self.require(unit.is_some(), "mentions.numeric_date", message);
                unit
            }
        };
        mentions::Settings {
            numeric_date,
            rule,
            fold_case: settings.mentions.fold_case,
        }
    }

    fn model(&mut self, settings: &Settings, folder: &Path) -> Option<ModelPlan> {
        let model = &settings.model;
        if !model.enabled {
            return None;
        }
        let directory = self.model_directory("model.directory", &model.directory, folder);
        let fast = model.fast.enabled.then(|| FastModelPlan {
            directory: self.model_directory("model.fast.directory", &model.fast.directory, folder),
            labels: model.fast.labels.clone(),
            waiting_texts: model.fast.waiting_texts,
        });
        if let Err(error) = model.runtime.built_in() {
            self.mistake("model.runtime", error);
        }
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        let threads = if model.threads == 0 {
            cores()
        } else {
            model.threads
        };
        Some(ModelPlan {
            directory,
            threads,
            runtime: model.runtime,
            labels: model.labels.clone(),
            fast,
        })
    }

    /// The directory that holds a model, or where it is registered, which stays as it is written; none if
    /// nothing is named.
    fn model_directory(
        &mut self,
        key: &'static str,
        named: &Path,
        folder: &Path,
    ) -> Option<PathBuf> {
        if named.as_os_str().is_empty() {
            return None;
        }
        if let Some(registered) = mlflow::registered(named) {
            if let Err(message) = registered {
                self.mistake(key, message);
            }
            return Some(named.to_owned());
        }
        let directory = folder.join(named);
        let message = format!(
            "there is no directory \"{}\"; name one with model.onnx, tokenizer.json and \
             config.json, or leave it empty for the built-in model",
            directory.display()
        );
        self.require(directory.is_dir(), key, message);
        Some(directory)
    }

    fn tables(&mut self, settings: &Settings, folder: &Path) -> Option<TablesSettings> {
        let tables = &settings.tables;
        let location = match tables.path.contains("://") {
            true => tables.path.clone(),
            false => folder.join(&tables.path).display().to_string(),
        };
        tables.enabled.then(|| TablesSettings {
            location,
            deletes: match tables.deletes {
                config::Deletes::Vectors => Deletes::Vectors,
                config::Deletes::Rewrite => Deletes::Rewrite,
            },
            history: Duration::from_secs(tables.history_hours.saturating_mul(3_600)),
        })
    }

    fn server(&mut self, settings: &Settings, folder: &Path) -> Option<ServerPlan> {
        let server = &settings.server;
        if !server.enabled {
            return None;
        }
        let limits = [
            ("server.query_timeout_s", server.query_timeout_s as usize),
            ("server.query_memory_mb", server.query_memory_mb),
        ];
        for (key, limit) in limits {
            self.require(limit > 0, key, "must be 1 or more");
        }
        let postgres = &server.postgres;
        let tokens = self.lines("server.tokens_file", &server.tokens_file, folder);
        Some(ServerPlan {
            listen: self.address("server.listen", &server.listen, "127.0.0.1:8080")?,
            tokens: Tokens::new(&tokens),
            limits: Limits {
                memory: server.query_memory_mb << 20,
                time: Duration::from_secs(server.query_timeout_s),
            },
            postgres: match postgres.enabled {
                true => Some(self.postgres(postgres, folder)?),
                false => None,
            },
        })
    }

    fn postgres(
        &mut self,
        settings: &config::PostgresSettings,
        folder: &Path,
    ) -> Option<PostgresPlan> {
        const LISTEN: &str = "server.postgres.listen";
        const USERS: &str = "server.postgres.users_file";
        let listen = self.address(LISTEN, &settings.listen, "127.0.0.1:5433")?;
        let mut users = Vec::new();
        for line in self.lines(USERS, &settings.users_file, folder) {
            match line.split_once(':') {
                Some((user, password)) if !user.is_empty() && !password.is_empty() => {
                    users.push((user.to_owned(), password.to_owned()));
                }
                // The line is not shown: it may hold a password.
                _ => self.mistake(
                    USERS,
                    "each line must be a user, a colon and a password".to_owned(),
                ),
            }
        }
        let message = "this address can be reached from other hosts: name users and their passwords in \
                       server.postgres.users_file, or listen on 127.0.0.1";
        self.require(
            !users.is_empty() || listen.ip().is_loopback(),
            LISTEN,
            message,
        );
        let encryption = self.encryption(settings, folder);
        match Access::new(users, encryption) {
            Ok(access) => Some(PostgresPlan { listen, access }),
            Err(error) => {
                self.mistake(USERS, error);
                None
            }
        }
    }

    fn encryption(
        &mut self,
        settings: &config::PostgresSettings,
        folder: &Path,
    ) -> Option<TlsAcceptor> {
        let [certificate, key] = [&settings.certificate_file, &settings.key_file];
        match (
            certificate.as_os_str().is_empty(),
            key.as_os_str().is_empty(),
        ) {
            (true, true) => None,
            (false, false) => {
                let acceptor = peers::tls::acceptor(&folder.join(certificate), &folder.join(key));
                let refused = |error| self.mistake("server.postgres.certificate_file", error);
                acceptor.map_err(refused).ok()
            }
            _ => {
                let message = "encryption takes a certificate_file and a key_file, or neither";
                self.mistake("server.postgres", message);
                None
            }
        }
    }

    fn sinks(&mut self, settings: &Settings, folder: &Path) -> Vec<SinkPlan> {
        let mirror = self.mirror(settings, folder).map(SinkPlan::Postgres);
        let publisher = self.publisher(settings).map(SinkPlan::Kafka);
        let sinks: Vec<_> = mirror.into_iter().chain(publisher).collect();
        self.require(
            sinks.is_empty() || settings.server.enabled,
            "sink",
            "sinks read relations as queries do: set server.enabled",
        );
        sinks
    }

    fn require_brokers(&mut self, key: &'static str, properties: &BTreeMap<String, String>) {
        let brokers = properties.contains_key("bootstrap.servers");
        let message = "\"bootstrap.servers\" is missing; name a broker, such as \"127.0.0.1:9092\"";
        self.require(brokers, key, message);
    }

    fn publisher(&mut self, settings: &Settings) -> Option<PublisherPlan> {
        let publisher = &settings.sink.kafka;
        if !publisher.enabled {
            return None;
        }
        self.require_brokers("sink.kafka.properties", &publisher.properties);
        let topic = &publisher.topic;
        self.require(!topic.is_empty(), "sink.kafka.topic", "name a topic");
        if settings.source.kind == SourceKind::Kafka {
            let read = topics_read(&settings.source.kafka.topics);
            let message = format!("\"{topic}\" is one of source.kafka.topics; name another");
            self.require(!read.is_match(topic), "sink.kafka.topic", message);
        }
        let mut published = PUBLISHED.iter();
        let Some((relation, key_columns)) =
            published.find(|(relation, _)| *relation == publisher.relation)
        else {
            let names: Vec<_> = PUBLISHED.iter().map(|(name, _)| *name).collect();
            let message = format!("must be one of {}", names.join(", "));
            self.mistake("sink.kafka.relation", message);
            return None;
        };
        Some(PublisherPlan {
            relation,
            key_columns: *key_columns,
            envelope: publisher.format,
            settings: TopicSettings {
                properties: publisher.properties.clone(),
                topic: topic.clone(),
                relation: publisher.relation.clone(),
            },
        })
    }

    fn mirror(&mut self, settings: &Settings, folder: &Path) -> Option<MirrorPlan> {
        let mirror = &settings.sink.postgres;
        if !mirror.enabled {
            return None;
        }
        self.require(
            !mirror.url.is_empty(),
            "sink.postgres.url",
            "name the server, such as \"postgres://assay@db.example/shop\"",
        );
        self.require(
            MIRRORED.contains(&mirror.relation.as_str()),
            "sink.postgres.relation",
            format!("must be one of {}", MIRRORED.join(", ")),
        );
        let key = "sink.postgres.authority_file";
        let authority = self.bytes(key, &mirror.authority_file, folder);
        Some(MirrorPlan {
            relation: mirror.relation.clone(),
            settings: MirrorSettings {
                url: mirror.url.clone(),
                table: mirror.table.clone(),
                unencrypted: mirror.unencrypted,
                authority,
            },
        })
    }

    /// What a file holds that may not be named.
    fn bytes(&mut self, key: &str, file: &Path, folder: &Path) -> Option<Vec<u8>> {
        if file.as_os_str().is_empty() {
            return None;
        }
        let file = folder.join(file);
        let refused = |error| self.mistake(key, format!("cannot read {}: {error}", file.display()));
        std::fs::read(&file).map_err(refused).ok()
    }

    /// The lines of a file that may not be named; those that are empty or begin with # left out.
    fn lines(&mut self, key: &str, file: &Path, folder: &Path) -> Vec<String> {
        if file.as_os_str().is_empty() {
            return Vec::new();
        }
        let text = match std::fs::read_to_string(folder.join(file)) {
            Ok(text) => text,
            Err(error) => {
                self.mistake(key, format!("cannot read \"{}\": {error}", file.display()));
                return Vec::new();
            }
        };
        let lines: Vec<_> = text
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .map(str::to_owned)
            .collect();
        // An empty file would let everyone in, who are meant to be kept out.
        self.require(!lines.is_empty(), key, "the file has no lines");
        lines
    }

    fn address(&mut self, key: &str, text: &str, example: &str) -> Option<SocketAddr> {
        let parsed = text.parse();
        if parsed.is_err() {
            let message = format!("\"{text}\" is no address and port; write it as \"{example}\"");
            self.mistake(key, message);
        }
        parsed.ok()
    }

    fn cluster(
        &mut self,
        settings: &Settings,
        overrides: &Overrides,
        folder: &Path,
    ) -> ClusterPlan {
        let workers = overrides.workers.unwrap_or(settings.workers);
        self.require(
            (1..=1_024).contains(&workers),
            "workers",
            "must be between 1 and 1024",
        );
        let hosts = match &overrides.hosts {
            Some(file) => self.hosts(file),
            None => Vec::new(),
        };
        let process = overrides.process;
        if process >= hosts.len().max(1) {
            let message = format!("there is no process {process} among {}", hosts.len().max(1));
            self.mistake("--process", message);
        }
        let secret = match hosts.len() {
            0 | 1 => None,
            _ => self.secret(settings, overrides, folder),
        };
        ClusterPlan {
            workers,
            process,
            hosts,
            secret,
            tls: self.tls(&settings.cluster.tls, folder),
        }
    }

    fn tls(&mut self, settings: &config::TlsSettings, folder: &Path) -> Option<Tls> {
        let files = [
            ("certificate_file", &settings.certificate_file),
            ("key_file", &settings.key_file),
            ("authority_file", &settings.authority_file),
        ];
        let absent: Vec<_> = files
            .iter()
            .filter(|(_, file)| file.as_os_str().is_empty())
            .collect();
        match absent.as_slice() {
            [] => {}
            [_, _, _] => return None,
            [(name, _), ..] => {
                let message = "is needed as well: TLS takes all three files or none";
                self.mistake(&format!("cluster.tls.{name}"), message);
                return None;
            }
        }
        let [certificate, key, authority] = files.map(|(_, file)| folder.join(file));
        let tls = Tls::read(&certificate, &key, &authority);
        tls.map_err(|error| self.mistake("cluster.tls", error)).ok()
    }

    fn secret(
        &mut self,
        settings: &Settings,
        overrides: &Overrides,
        folder: &Path,
    ) -> Option<Secret> {
        const KEY: &str = "cluster.secret_file";
        let file = &settings.cluster.secret_file;
        let text = match &overrides.secret {
            Some(text) => text.clone(),
            None if file.as_os_str().is_empty() => {
                let message = format!(
                    "several processes must know one another by a secret; make one with \
                     `openssl rand -hex 32 > secret.txt` and name the file, or set {SECRET_VARIABLE}"
                );
                self.mistake(KEY, message);
                return None;
            }
            None => match std::fs::read_to_string(folder.join(file)) {
                Ok(text) => text,
                Err(error) => {
                    self.mistake(KEY, format!("cannot read \"{}\": {error}", file.display()));
                    return None;
                }
            },
        };
        let secret = Secret::new(&text);
        let message = format!("a secret has at least {} characters", Secret::SHORTEST);
        self.require(secret.is_some(), KEY, message);
        secret
    }

    fn hosts(&mut self, file: &Path) -> Vec<String> {
        let text = std::fs::read_to_string(file).unwrap_or_else(|error| {
            self.mistake(
                "--hosts",
                format!("cannot read \"{}\": {error}", file.display()),
            );
            String::new()
        });
        let hosts: Vec<_> = text
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty())
            .collect();
        for host in &hosts {
            let port = host
                .rsplit_once(':')
                .and_then(|(_, port)| port.parse::<u16>().ok());
            let message = format!("\"{host}\" is no host and port, such as \"10.0.0.1:2101\"");
            self.require(port.is_some(), "--hosts", message);
        }
        hosts.into_iter().map(str::to_owned).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(text: &str) -> Result<Plan, String> {
        let settings = crate::config::read("x.toml", text, std::iter::empty()).unwrap();
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
        Plan::new(&settings, &Overrides::default(), "x.toml", text, folder)
            .map_err(|mistakes| mistakes.to_string())
    }

    #[test]
    fn all_mistakes_are_told_at_once_with_lines_and_remedies() {
        let text = "tick_ms = 0\n[source.files]\npath = \"nowhere\"\n[mentions]\npattern = \"(\"\n\
                    [server]\nlisten = \"8080\"\n";
        let message = plan(text).unwrap_err();
        for part in [
            "x.toml:1: tick_ms",
            "x.toml:3: source.files.path",
            "x.toml:5: mentions.pattern",
            "x.toml:7: server.listen",
        ] {
            assert!(message.contains(part), "{part} is missing from {message}");
        }
    }

    #[test]
    fn a_source_that_exists_is_accepted() {
        let plan = plan("[source.files]\npath = \"src\"\n[model]\nenabled = false\n").unwrap();
        assert!(plan.model.is_none() && plan.tables.is_some());
    }

    #[test]
    fn a_runtime_that_was_left_out_is_refused() {
        let text = "[source.files]\npath = \"src\"\n[model]\nruntime = \"onnxruntime\"\n";
        match Runtime::OnnxRuntime.built_in() {
            Ok(()) => drop(plan(text).unwrap()),
            Err(_) => {
                let message = plan(text).unwrap_err();
                assert!(
                    message.contains("x.toml:4: model.runtime: this program was built without"),
                    "{message}"
                );
            }
        }
    }

    #[test]
    fn positions_cannot_be_taken_from_assay() {
        let text = "[source]\nkind = \"kafka\"\n[source.kafka.properties]\n\"enable.auto.commit\" = \"true\"\n";
        let message = plan(text).unwrap_err();
        assert!(
            message.contains("enable.auto.commit") && message.contains("bootstrap.servers"),
            "{message}"
        );
    }

    #[test]
    fn a_topic_is_not_both_read_and_written() {
        let plan = |topics: &str, relation: &str| {
            plan(&format!(
                "[source]\nkind = \"kafka\"\n[source.kafka]\ntopics = [\"{topics}\"]\n[sink.kafka]\n\
                 enabled = true\ntopic = \"counts\"\nrelation = \"{relation}\"\n"
            ))
        };
        assert!(plan("tweets", "users").is_ok());
        // One that is no expression does not hide the others.
        for topics in ["counts", "^c.*", "^(\", \"counts"] {
            let message = plan(topics, "users").unwrap_err();
            assert!(message.contains("sink.kafka.topic"), "{message}");
        }
        let message = plan("tweets", "gold").unwrap_err();
        assert!(
            message.contains("mention_sentiment, users, bronze"),
            "{message}"
        );
    }
}
