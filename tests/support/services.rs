//! The real services, as `cargo xtask` starts them: connectors, topics and a table to change.

use std::collections::{BTreeMap, HashMap};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use assay::generate::tweets::{ChangeGenerator, GeneratedTweet};
use connectors::files::Share;
use connectors::kafka::{KafkaSettings, KafkaSource};
use connectors::postgres::TweetWriter;
use serde_json::{Value, json};

use super::{PATIENCE, Site, request};

/// How often it is looked whether a connector's tasks have failed.
const BETWEEN_LOOKS: Duration = Duration::from_secs(1);

/// The services, as `cargo xtask` tells of them.
pub(crate) struct Services {
    kafka: String,
    connect_port: u16,
    postgres: String,
}

impl Services {
    pub(crate) fn find() -> Self {
        let variable = |name: &str| {
            std::env::var(name).unwrap_or_else(|_| {
                panic!("{name} is not set; run `cargo xtask test`, or `cargo xtask services up` and its env")
            })
        };
        let connect = variable("ASSAY_TEST_CONNECT");
        Self {
            kafka: variable("ASSAY_TEST_KAFKA"),
            connect_port: connect
                .rsplit_once(':')
                .unwrap()
                .1
                .trim_end_matches('/')
                .parse()
                .unwrap(),
            postgres: variable("ASSAY_TEST_POSTGRES"),
        }
    }

    /// Starts a connector for one table; its topic is `NAME.public.NAME`.
    pub(crate) fn capture(&self, name: &str, schemas: bool) -> Connector {
        let settings = json!({
            "topic.creation.default.partitions": "3",
            "key.converter.schemas.enable": schemas.to_string(),
            "value.converter.schemas.enable": schemas.to_string(),
        });
        let connector = self.capture_as(name, &[name], &settings);
        self.wait_for_topic(&connector.topic());
        connector
    }

    /// Starts a connector for some tables, with settings besides the usual ones; the topic of a table
    /// is `NAME.public.TABLE`, of one partition.
    pub(crate) fn capture_as(&self, name: &str, tables: &[&str], settings: &Value) -> Connector {
        let (user, rest) = self
            .postgres
            .trim_start_matches("postgres://")
            .split_once(':')
            .unwrap();
        let (password, rest) = rest.split_once('@').unwrap();
        let (address, database) = rest.split_once('/').unwrap();
        let (host, port) = address.split_once(':').unwrap();
        let tables: Vec<_> = tables
            .iter()
            .map(|table| format!("public.{table}"))
            .collect();
        let mut config = json!({
            "connector.class": "io.debezium.connector.postgresql.PostgresConnector",
            "tasks.max": "1",
            "database.hostname": host, "database.port": port, "database.user": user,
            "database.password": password, "database.dbname": database,
            "topic.prefix": name, "table.include.list": tables.join(","),
            "plugin.name": "pgoutput", "slot.name": name, "publication.name": name,
            "publication.autocreate.mode": "filtered", "snapshot.mode": "initial",
            "poll.interval.ms": "50",
            "topic.creation.default.replication.factor": "1",
            "topic.creation.default.partitions": "1",
            "key.converter": "org.apache.kafka.connect.json.JsonConverter",
            "key.converter.schemas.enable": "false",
            "value.converter": "org.apache.kafka.connect.json.JsonConverter",
            "value.converter.schemas.enable": "false",
        });
        for (key, value) in settings.as_object().unwrap() {
            config[key] = value.clone();
        }
        let path = format!("/connectors/{name}/config");
        let (status, body) = request(self.connect_port, "PUT", &path, &config.to_string()).unwrap();
        assert!(status == 201 || status == 200, "{status}: {body}");
        let connector = Connector {
            port: self.connect_port,
            name: name.to_owned(),
            over: Arc::default(),
        };
        connector.look_after();
        connector.wait_until_running();
        connector
    }

    /// Where PostgreSQL is.
    pub(crate) fn postgres(&self) -> &str {
        &self.postgres
    }

    /// Where the broker is.
    pub(crate) fn kafka(&self) -> &str {
        &self.kafka
    }

    pub(crate) fn wait_for_topic(&self, topic: &str) {
        let settings = KafkaSettings {
            properties: BTreeMap::from([("bootstrap.servers".to_owned(), self.kafka.clone())]),
            topics: vec![topic.to_owned()],
        };
        wait_for(topic, || {
            KafkaSource::open(&settings, Share::NOTHING, &HashMap::new()).is_ok()
        });
    }

    /// Stops or starts one of them.
    pub(crate) fn order(&self, order: &[&str]) {
        let xtask = std::env::var("ASSAY_TEST_XTASK").expect("`cargo xtask` tells where it is");
        let done = Command::new(xtask)
            .arg("services")
            .args(order)
            .status()
            .unwrap();
        assert!(done.success(), "services {order:?}");
    }

    pub(crate) fn site(&self, topic: &str, lines: &str) -> Site {
        let kafka = &self.kafka;
        Site::new(&format!(
            "[source]\nkind = \"kafka\"\n[source.kafka]\ntopics = [\"{topic}\"]\n\
             [source.kafka.properties]\n\"bootstrap.servers\" = \"{kafka}\"\n\"group.id\" = \"{topic}\"\n{lines}"
        ))
    }
}

/// A connector that is deleted when dropped.
pub(crate) struct Connector {
    port: u16,
    name: String,
    /// Whether it is not needed any more.
    over: Arc<AtomicBool>,
}

impl Connector {
    pub(crate) fn topic(&self) -> String {
        format!("{0}.public.{0}", self.name)
    }

    /// Ends the connector and starts it again, where it had last noted that it was.
    pub(crate) fn restart(&self) {
        let path = format!("/connectors/{}/restart?includeTasks=true", self.name);
        let (status, body) = request(self.port, "POST", &path, "").unwrap();
        assert!(status == 202 || status == 204, "{status}: {body}");
        self.wait_until_running();
    }

    pub(crate) fn wait_until_running(&self) {
        wait_for("the connector", || {
            let tasks = tasks(self.port, &self.name);
            !tasks.is_empty() && tasks.iter().all(|task| task["state"] == "RUNNING")
        });
    }

    /// Starts a task again that has failed, as those do who run connectors: its converter gives up at once when the
    /// registry refuses for a moment.
    fn look_after(&self) {
        let (port, name, over) = (self.port, self.name.clone(), Arc::clone(&self.over));
        std::thread::spawn(move || {
            while !over.load(Ordering::Relaxed) {
                let tasks = tasks(port, &name);
                for failed in tasks.iter().filter(|task| task["state"] == "FAILED") {
                    let (id, trace) = (&failed["id"], &failed["trace"]);
                    eprintln!("task {id} of the connector {name} has failed: {trace}");
                    let path = format!("/connectors/{name}/tasks/{id}/restart");
                    request(port, "POST", &path, "");
                }
                std::thread::sleep(BETWEEN_LOOKS);
            }
        });
    }
}

/// A connector's tasks, with their states; none if it does not tell.
fn tasks(port: u16, name: &str) -> Vec<Value> {
    let path = format!("/connectors/{name}/status");
    let Some((200, body)) = request(port, "GET", &path, "") else {
        return Vec::new();
    };
    let status: Value = serde_json::from_str(&body).unwrap();
    status["tasks"].as_array().cloned().unwrap_or_default()
}

impl Drop for Connector {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        request(
            self.port,
            "DELETE",
            &format!("/connectors/{}", self.name),
            "",
        );
    }
}

pub(crate) fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < PATIENCE, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A table and a model of what it should hold.
pub(crate) struct Rows {
    runtime: tokio::runtime::Runtime,
    writer: TweetWriter,
    pub(crate) rows: BTreeMap<i64, GeneratedTweet>,
    changes: ChangeGenerator,
}

impl Rows {
    pub(crate) fn new(services: &Services, table: &str) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let table = format!("public.{table}");
        let writer = runtime
            .block_on(TweetWriter::connect(&services.postgres, &table))
            .unwrap();
        let changes = ChangeGenerator::new(11, 1_000).with_shares(0.3, 0.2);
        Self {
            runtime,
            writer,
            rows: BTreeMap::new(),
            changes,
        }
    }

    pub(crate) fn write(&mut self, rows: &[(i64, Option<GeneratedTweet>)]) {
        let writes: Vec<_> = rows
            .iter()
            .map(|(id, tweet)| {
                let row = tweet
                    .as_ref()
                    .map(|t| [&*t.date, &*t.user, &*t.text, &*t.sentiment]);
                (*id, row)
            })
            .collect();
        self.runtime.block_on(self.writer.write(&writes)).unwrap();
        for (id, tweet) in rows {
            match tweet {
                Some(tweet) => drop(self.rows.insert(*id, tweet.clone())),
                None => drop(self.rows.remove(id)),
            }
        }
    }

    /// Inserts, updates and deletes, in transactions of ten.
    pub(crate) fn change(&mut self, count: usize) {
        for _ in 0..count / 10 {
            let changes: Vec<_> = (0..10).map(|_| self.changes.next_change()).collect();
            let rows: Vec<_> = changes
                .into_iter()
                .map(|change| (change.id, change.tweet))
                .collect();
            self.write(&rows);
        }
    }

    /// The lines of bronze that the rows should have, without those that tell of reading.
    pub(crate) fn bronze(&self) -> Vec<String> {
        let line = |(id, tweet): (&i64, &GeneratedTweet)| {
            let json = |text: &str| Value::from(text).to_string();
            format!(
                "key=\"{id}\" date={} user={} text={} sentiment={} further=null ",
                json(&tweet.date),
                json(&tweet.user),
                json(&tweet.text),
                json(&tweet.sentiment)
            )
        };
        let mut lines: Vec<_> = self.rows.iter().map(line).collect();
        lines.sort();
        lines
    }
}
