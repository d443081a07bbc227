//! What the user wrote: one file, and environment variables over it.
//!
//! Every key has a default, told in `mentions.toml` beside this file, which `assay init mentions`
//! prints. Unknown keys are refused, with their line. A variable `ASSAY__TABLES__PATH` overrides the
//! key `tables.path`; in the names of Kafka properties `_` stands for `.`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use dataflows::envelope::UNAVAILABLE;
use models::Runtime;
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::sinks::Envelope;

/// The commented configuration with every default.
pub const TEMPLATE: &str = include_str!("mentions.toml");

const PREFIX: &str = "ASSAY__";

/// The whole configuration.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The name of the pipeline.
    pub pipeline: String,
    /// Worker threads of this process.
    pub workers: usize,
    /// Milliseconds of an epoch.
    pub tick_ms: u64,
    /// Where rows come from.
    pub source: SourceSettings,
    /// What counts as a mention.
    pub mentions: MentionsSettings,
    /// What scores texts.
    pub model: ModelSettings,
    /// Where tables are kept.
    pub tables: TablesSettings,
    /// Where queries are answered.
    pub server: ServerSettings,
    /// Where relations are written besides their tables.
    pub sink: SinkSettings,
    /// What concerns several processes.
    pub cluster: ClusterSettings,
}

/// Where rows come from.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct SourceSettings {
    /// Which of the sources below is read.
    pub kind: SourceKind,
    /// Of a hundred messages, how many may be rejected before the source is paused.
    pub most_rejects_percent: u64,
    /// How the source names the columns.
    pub columns: ColumnsSettings,
    /// Whether bronze keeps all other columns as well.
    pub further_columns: bool,
    /// A folder of files.
    pub files: FilesSettings,
    /// Topics of a Kafka cluster.
    pub kafka: KafkaSettings,
}

/// The kinds of sources.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SourceKind {
    /// A folder of files.
    #[default]
    Files,
    /// Topics of a Kafka cluster.
    Kafka,
}

/// How the source names the columns of a tweet.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct ColumnsSettings {
    /// When it was tweeted.
    pub date: String,
    /// Who tweeted.
    pub user: String,
    /// The tweet.
    pub text: String,
    /// The given label.
    pub sentiment: String,
}

impl Default for SourceSettings {
    fn default() -> Self {
        Self {
            kind: SourceKind::default(),
            most_rejects_percent: 100,
            columns: ColumnsSettings::default(),
            further_columns: false,
            files: FilesSettings::default(),
            kafka: KafkaSettings::default(),
        }
    }
}

impl Default for ColumnsSettings {
    fn default() -> Self {
        let [date, user, text, sentiment] =
            ["date", "user", "text", "sentiment"].map(str::to_owned);
        Self {
            date,
            user,
            text,
            sentiment,
        }
    }
}

/// A folder of files.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct FilesSettings {
    /// The folder.
    pub path: PathBuf,
}

/// Topics of a Kafka cluster.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct KafkaSettings {
    /// The topics: exact names, and regular expressions, which begin with `^`.
    pub topics: Vec<String>,
    /// How messages tell what changed.
    pub format: KafkaFormat,
    /// How they are written.
    pub encoding: KafkaEncoding,
    /// The columns that rows are told apart by; none for the message's key.
    pub key: Vec<String>,
    /// What stands for a large value that did not change.
    pub unavailable_value: String,
    /// The topic that tells where transactions end; empty if they need not be shown whole.
    pub transactions: String,
    /// Who knows the schemas of messages in Avro.
    pub registry: RegistrySettings,
    /// The client's properties, under librdkafka's names.
    pub properties: BTreeMap<String, String>,
}

/// How messages of Kafka tell what changed.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum KafkaFormat {
    /// Debezium's envelope.
    #[default]
    Debezium,
    /// Debezium's rows alone, as `ExtractNewRecordState` makes them.
    Flattened,
    /// The value is the row, no value deletes it.
    Upsert,
    /// Every message is another row.
    Append,
}

/// How messages of Kafka are written.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum KafkaEncoding {
    /// As JSON, with or without a schema part.
    #[default]
    Json,
    /// In Avro's binary form.
    Avro,
}

/// A schema registry.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct RegistrySettings {
    /// Where its API's paths begin.
    pub url: String,
    /// The user, if it asks for one.
    pub user: String,
    /// The user's password.
    pub password: String,
    /// The certificates, in PEM, of those who may have issued its own; empty for the system's.
    pub authority_file: PathBuf,
}

/// What counts as a mention.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct MentionsSettings {
    /// A regular expression instead of Twitter's rule; empty for Twitter's rule.
    pub pattern: String,
    /// Whether mentions that differ only in case are counted together.
    pub fold_case: bool,
    /// What a date counts that is a number; empty if none may be.
    pub numeric_date: String,
}

/// What scores texts.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelSettings {
    /// Whether texts are scored at all.
    pub enabled: bool,
    /// A model's directory, or `models:/NAME/VERSION` or `models:/NAME@ALIAS`; empty for the model that is built in.
    pub directory: PathBuf,
    /// Scoring threads; 0 for one a core.
    pub threads: usize,
    /// What runs it.
    pub runtime: Runtime,
    /// What some of its labels are to be called instead.
    pub labels: BTreeMap<String, String>,
    /// What answers in a burst.
    pub fast: FastModelSettings,
}

/// The model that answers when texts come faster than the model above can score them, until it has.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct FastModelSettings {
    /// Whether there is one.
    pub enabled: bool,
    /// Its directory, or where it is registered; empty for the n-gram model that is built in.
    pub directory: PathBuf,
    /// What some of its labels are to be called instead.
    pub labels: BTreeMap<String, String>,
    /// How many texts may wait for the model in one process before this one answers.
    pub waiting_texts: u64,
}

impl Default for FastModelSettings {
    fn default() -> Self {
        Self {
            enabled: false,
            directory: PathBuf::new(),
            labels: BTreeMap::new(),
            waiting_texts: 256,
        }
    }
}

/// Where tables are kept.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct TablesSettings {
    /// Whether relations are kept in tables at all.
    pub enabled: bool,
    /// The folder of the tables: a path, or a URL such as `s3://bucket/folder`.
    pub path: String,
    /// Seconds between checkpoints.
    pub checkpoint_interval_s: u64,
    /// How rows are removed from data files.
    pub deletes: Deletes,
    /// For how many hours earlier versions of the tables can be read.
    pub history_hours: u64,
}

/// How rows are removed from data files.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Deletes {
    /// By deletion vectors; the files stay as they are.
    #[default]
    Vectors,
    /// By writing the files anew without them, for readers that know no deletion vectors.
    Rewrite,
}

/// Where queries are answered.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServerSettings {
    /// Whether queries are answered at all.
    pub enabled: bool,
    /// Address and port to listen on.
    pub listen: String,
    /// A file with the tokens of those who may ask, one a line; everyone may if there is none.
    pub tokens_file: PathBuf,
    /// Seconds that a query may take.
    pub query_timeout_s: u64,
    /// Megabytes that a query may hold in memory.
    pub query_memory_mb: usize,
    /// PostgreSQL's protocol.
    pub postgres: PostgresSettings,
}

/// Where clients of PostgreSQL are served.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct PostgresSettings {
    /// Whether they are.
    pub enabled: bool,
    /// Address and port to listen on.
    pub listen: String,
    /// A file with a user and a password a line, as `user:password`; everyone may connect if there is none.
    pub users_file: PathBuf,
    /// The certificate to encrypt with; without it, nothing is encrypted.
    pub certificate_file: PathBuf,
    /// Its key.
    pub key_file: PathBuf,
}

impl Default for PostgresSettings {
    fn default() -> Self {
        Self {
            enabled: false,
            listen: "127.0.0.1:5433".to_owned(),
            users_file: PathBuf::new(),
            certificate_file: PathBuf::new(),
            key_file: PathBuf::new(),
        }
    }
}

/// Where relations are written besides their tables.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct SinkSettings {
    /// A table of PostgreSQL.
    pub postgres: MirrorSettings,
    /// A topic of Kafka.
    pub kafka: PublisherSettings,
}

/// A topic of Kafka that tells what changes in a relation.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct PublisherSettings {
    /// Whether there is one.
    pub enabled: bool,
    /// The relation.
    pub relation: String,
    /// The topic.
    pub topic: String,
    /// The shape of its messages.
    pub format: Envelope,
    /// The client's properties, under librdkafka's names.
    pub properties: BTreeMap<String, String>,
}

impl Default for PublisherSettings {
    fn default() -> Self {
        let brokers = ("bootstrap.servers".to_owned(), "127.0.0.1:9092".to_owned());
        Self {
            enabled: false,
            relation: "mention_sentiment".to_owned(),
            topic: "mention_sentiment".to_owned(),
            format: Envelope::default(),
            properties: BTreeMap::from([brokers]),
        }
    }
}

/// A table of PostgreSQL that mirrors a relation.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct MirrorSettings {
    /// Whether there is one.
    pub enabled: bool,
    /// The server, user and database.
    pub url: String,
    /// The relation.
    pub relation: String,
    /// The table.
    pub table: String,
    /// Whether to speak in the clear.
    pub unencrypted: bool,
    /// The certificates of those who may have issued the server's.
    pub authority_file: PathBuf,
}

impl Default for MirrorSettings {
    fn default() -> Self {
        Self {
            enabled: false,
            url: String::new(),
            relation: "mention_sentiment".to_owned(),
            table: "mention_sentiment".to_owned(),
            unencrypted: false,
            authority_file: PathBuf::new(),
        }
    }
}

/// What concerns several processes.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClusterSettings {
    /// A file with the secret by which the processes know one another.
    pub secret_file: PathBuf,
    /// What encrypts what they say to one another.
    pub tls: TlsSettings,
}

/// The files of TLS, in PEM; none of them without TLS.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct TlsSettings {
    /// The certificate that this process shows, for the host in the file of hosts.
    pub certificate_file: PathBuf,
    /// The certificate's key.
    pub key_file: PathBuf,
    /// The certificates of those who may issue certificates of processes.
    pub authority_file: PathBuf,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            pipeline: "mentions".to_owned(),
            workers: 1,
            tick_ms: 100,
            source: SourceSettings::default(),
            mentions: MentionsSettings::default(),
            model: ModelSettings::default(),
            tables: TablesSettings::default(),
            server: ServerSettings::default(),
            sink: SinkSettings::default(),
            cluster: ClusterSettings::default(),
        }
    }
}

impl Default for FilesSettings {
    fn default() -> Self {
        Self {
            path: "tweets".into(),
        }
    }
}

impl Default for KafkaSettings {
    fn default() -> Self {
        let properties = [
            ("bootstrap.servers", "127.0.0.1:9092"),
            ("group.id", "assay"),
        ];
        let owned = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
        Self {
            topics: vec!["tweets.public.tweets".to_owned()],
            format: KafkaFormat::default(),
            encoding: KafkaEncoding::default(),
            key: Vec::new(),
            unavailable_value: UNAVAILABLE.to_owned(),
            transactions: String::new(),
            registry: RegistrySettings::default(),
            properties: properties.into_iter().map(owned).collect(),
        }
    }
}

impl Default for ModelSettings {
    fn default() -> Self {
        Self {
            enabled: true,
            directory: PathBuf::new(),
            threads: 0,
            runtime: Runtime::default(),
            labels: BTreeMap::new(),
            fast: FastModelSettings::default(),
        }
    }
}

impl Default for TablesSettings {
    fn default() -> Self {
        Self {
            enabled: true,
            path: "tables".to_owned(),
            checkpoint_interval_s: 10,
            deletes: Deletes::default(),
            history_hours: 24,
        }
    }
}

impl Default for ServerSettings {
    fn default() -> Self {
        Self {
            enabled: true,
            listen: "127.0.0.1:8080".to_owned(),
            tokens_file: PathBuf::new(),
            query_timeout_s: 30,
            query_memory_mb: 256,
            postgres: PostgresSettings::default(),
        }
    }
}

/// What cannot be read as a configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file is not TOML, or has a key or value that is not understood.
    #[error("{file}: {error}")]
    File {
        /// The file's name.
        file: String,
        /// What is wrong, with the line.
        error: toml::de::Error,
    },
    /// A variable names no key, or its value does not suit.
    #[error("environment variable {variable}: {message}")]
    Variable {
        /// The variable.
        variable: String,
        /// What is wrong.
        message: String,
    },
}

/// Reads a configuration's text, and the variables that override it.
///
/// # Errors
/// See [`ConfigError`].
pub fn read(
    file: &str,
    text: &str,
    variables: impl Iterator<Item = (String, String)>,
) -> Result<Settings, ConfigError> {
    let refused = |error| ConfigError::File {
        file: file.to_owned(),
        error,
    };
    let mut settings: Settings = toml::from_str(text).map_err(refused)?;
    // The defaults are part of what is overridden, so that one property does not replace them all.
    let mut table = Table::try_from(&settings).unwrap_or_default();
    for (variable, value) in variables {
        let Some(path) = variable.strip_prefix(PREFIX) else {
            continue;
        };
        let path = key_path(path);
        let (path, value) = match key_in_file(&path, &table) {
            None => (path, value),
            Some(path) => {
                let text = std::fs::read_to_string(&value);
                let text = text.map_err(|error| ConfigError::Variable {
                    variable: variable.clone(),
                    message: format!("cannot read \"{value}\": {error}"),
                })?;
                (path, text.trim_end_matches(['\r', '\n']).to_owned())
            }
        };
        // A number may be meant as a string: a password of digits, say.
        let plain = Value::String(value.clone());
        let overridden =
            put(&mut table, &path, parse(&value)).or_else(|_| put(&mut table, &path, plain));
        settings = overridden.map_err(|message| ConfigError::Variable {
            variable: variable.clone(),
            message: message.trim().replace('\n', " "),
        })?;
    }
    Ok(settings)
}

/// The keys that a variable's name leads through.
fn key_path(name: &str) -> Vec<String> {
    let mut path: Vec<String> = name.split("__").map(str::to_lowercase).collect();
    if let [section, kind, properties, property] = path.as_mut_slice()
        && ["source", "sink"].contains(&section.as_str())
        && (kind.as_str(), properties.as_str()) == ("kafka", "properties")
    {
        *property = property.replace('_', ".");
    }
    path
}

/// The key whose value lies in a file, if a variable `..._FILE` says so: there is no key of its own name.
fn key_in_file(path: &[String], known: &Table) -> Option<Vec<String>> {
    let (last, sections) = path.split_last()?;
    let suffixes = ["_file", ".file"];
    let key = suffixes
        .iter()
        .find_map(|suffix| last.strip_suffix(suffix))?;
    let section = sections
        .iter()
        .try_fold(known, |table, section| table.get(section)?.as_table());
    let is_key = section.is_some_and(|section| section.contains_key(last));
    (!is_key).then(|| [sections, &[key.to_owned()]].concat())
}

/// A variable's value as TOML has it, or else as a plain string.
fn parse(value: &str) -> Value {
    let parsed = toml::from_str::<Table>(&format!("value = {value}")).ok();
    let parsed = parsed.and_then(|mut table| table.remove("value"));
    parsed.unwrap_or_else(|| Value::String(value.to_owned()))
}

/// Puts a value into the table, if settings can be made of it then.
fn put(table: &mut Table, path: &[String], value: Value) -> Result<Settings, String> {
    let mut changed = table.clone();
    insert(&mut changed, path, value)?;
    let settings = Settings::deserialize(changed.clone()).map_err(|error| error.to_string())?;
    *table = changed;
    Ok(settings)
}

fn insert(table: &mut Table, path: &[String], value: Value) -> Result<(), String> {
    match path {
        [] => Err("names no key".to_owned()),
        [key] => {
            table.insert(key.clone(), value);
            Ok(())
        }
        [section, rest @ ..] => {
            let section = table
                .entry(section.clone())
                .or_insert_with(|| Value::Table(Table::new()));
            let section = section
                .as_table_mut()
                .ok_or("leads through a key that is no section")?;
            insert(section, rest, value)
        }
    }
}

/// The line, from 1 on, on which the configuration sets a key, if it does.
pub fn line_of(text: &str, key: &str) -> Option<usize> {
    let (section, name) = key.rsplit_once('.').unwrap_or(("", key));
    let mut here = "";
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if let Some(header) = line.strip_prefix('[') {
            here = header.split(']').next().unwrap_or_default().trim();
        } else if let Some((found, _)) = line.split_once('=')
            && here == section
            && found.trim().trim_matches('"') == name
        {
            return Some(index + 1);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_with(text: &str, variables: &[(&str, &str)]) -> Result<Settings, String> {
        let variables = variables
            .iter()
            .map(|(name, value)| (name.to_string(), value.to_string()));
        read("x.toml", text, variables).map_err(|error| error.to_string())
    }

    #[test]
    fn the_template_tells_the_defaults() {
        assert_eq!(read_with(TEMPLATE, &[]), Ok(Settings::default()));
        let keys = toml::to_string(&Settings::default()).unwrap();
        for key in keys
            .lines()
            .filter_map(|line| line.split_once(" = "))
            .map(|(key, _)| key)
        {
            assert!(
                TEMPLATE.contains(&format!("{key} = ")),
                "the template lacks {key}"
            );
        }
    }

    #[test]
    fn a_mistake_is_shown_with_its_line() {
        let error = read_with("workers = 2\n\n[tables]\npth = \"x\"\n", &[]).unwrap_err();
        assert!(
            error.contains("line 4") && error.contains("pth") && error.contains("path"),
            "{error}"
        );
        let error = read_with("workers = \"two\"", &[]).unwrap_err();
        assert!(
            error.contains("line 1") && error.contains("workers"),
            "{error}"
        );
    }

    #[test]
    fn variables_override_every_kind_of_key() {
        let settings = read_with(
            "workers = 2",
            &[
                ("ASSAY__WORKERS", "3"),
                ("ASSAY__TABLES__PATH", "/data/tables"),
                ("ASSAY__SERVER__ENABLED", "false"),
                ("ASSAY__SOURCE__KAFKA__TOPICS", "[\"a\", \"b\"]"),
                ("ASSAY__SOURCE__KAFKA__PROPERTIES__SASL_PASSWORD", "12345"),
                ("ASSAY_TEST_KAFKA", "ignored"),
            ],
        )
        .unwrap();
        assert_eq!((settings.workers, settings.server.enabled), (3, false));
        assert_eq!(settings.tables.path, "/data/tables");
        assert_eq!(settings.source.kafka.topics, ["a", "b"]);
        assert_eq!(settings.source.kafka.properties["sasl.password"], "12345");
        assert_eq!(
            settings.source.kafka.properties["bootstrap.servers"],
            "127.0.0.1:9092"
        );
    }

    #[test]
    fn a_variable_may_name_a_file_with_the_value() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("secret");
        std::fs::write(&file, "12345\n").unwrap();
        let file = file.to_str().unwrap();
        let settings = read_with(
            "",
            &[
                ("ASSAY__SOURCE__KAFKA__PROPERTIES__SASL_PASSWORD_FILE", file),
                ("ASSAY__SOURCE__KAFKA__REGISTRY__PASSWORD_FILE", file),
                // A key of its own.
                ("ASSAY__SERVER__TOKENS_FILE", file),
            ],
        );
        let settings = settings.unwrap();
        assert_eq!(settings.source.kafka.properties["sasl.password"], "12345");
        assert_eq!(settings.source.kafka.registry.password, "12345");
        assert_eq!(settings.server.tokens_file.to_str(), Some(file));
        let variable = "ASSAY__SOURCE__KAFKA__REGISTRY__PASSWORD_FILE";
        let error = read_with("", &[(variable, "/nowhere")]).unwrap_err();
        assert!(
            error.contains(variable) && error.contains("\"/nowhere\""),
            "{error}"
        );
    }

    #[test]
    fn a_variable_that_does_not_suit_is_named() {
        let error = read_with("", &[("ASSAY__TABLES__PTH", "x")]).unwrap_err();
        assert!(
            error.starts_with("environment variable ASSAY__TABLES__PTH: "),
            "{error}"
        );
        let error = read_with("", &[("ASSAY__WORKERS__X", "1")]).unwrap_err();
        assert!(error.contains("ASSAY__WORKERS__X"), "{error}");
    }

    #[test]
    fn keys_are_found_by_section_and_name() {
        let text = "path = 1\n[tables]\npath = 2\n[source.kafka]\ntopics = []\n";
        assert_eq!(line_of(text, "tables.path"), Some(3));
        assert_eq!(line_of(text, "source.kafka.topics"), Some(5));
        assert_eq!(line_of(text, "path"), Some(1));
        assert_eq!(line_of(text, "server.listen"), None);
    }
}
