//! Looks at everything that a configuration names, before anything runs: what is there, what the
//! messages are like, which promises hold for them and which do not.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::ensure;
use connectors::delta::{DataFile, Manifests, Table};
use connectors::message::{Message as Delivered, Polled};
use dataflows::envelope::further::FurtherNames;
use dataflows::envelope::{Decoder, Envelope, Format, NotYet, RowChange};
use dataflows::operators::upsert::State;
use dataflows::pipelines::mentions::Bronze;
use dataflows::pipelines::mentions::date::DateUnit;
use dataflows::record::Timestamp;
use serde_json::Value;
use tokio::runtime::Runtime;

use crate::checkpoint::lease::Lease;
use crate::checkpoint::store::TablesPlan;
use crate::ingest::read_at;
use crate::now_ms;
use crate::plan::{Plan, SourcePlan};
use crate::progress::thousands;
use crate::tables;

/// How many messages are looked at, and for how long at most.
const MESSAGES: usize = 1_000;
const PATIENCE: Duration = Duration::from_secs(5);

/// A clock that differs by less is right.
const SKEW_MS: i64 = 2_000;

/// Less room than this on a disk is worth a word.
const SCARCE_BYTES: u64 = 1 << 30;

/// How grave a finding is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Grade {
    /// As it should be.
    Good,
    /// It works, but someone should know.
    Notable,
    /// It does not work.
    Bad,
}

/// What was found, one line each.
#[derive(Default)]
struct Findings(Vec<(Grade, &'static str, String)>);

impl Findings {
    fn add(&mut self, grade: Grade, what: &'static str, said: impl Into<String>) {
        self.0.push((grade, what, said.into()));
    }

    fn good(&mut self, what: &'static str, said: impl Into<String>) {
        self.add(Grade::Good, what, said);
    }

    fn note(&mut self, what: &'static str, said: impl Into<String>) {
        self.add(Grade::Notable, what, said);
    }

    fn bad(&mut self, what: &'static str, said: impl Into<String>) {
        self.add(Grade::Bad, what, said);
    }

    fn show(&self) -> String {
        let mut shown = String::new();
        for (grade, what, said) in &self.0 {
            let grade = match grade {
                Grade::Good => "ok",
                Grade::Notable => "note",
                Grade::Bad => "BAD",
            };
            // Writing to a string cannot fail.
            let _ = writeln!(shown, "{grade:<5} {what:<9} {said}");
        }
        shown
    }
}

/// Looks at all of it and prints what was found.
///
/// # Errors
/// If something would keep the pipeline from running.
pub fn run(plan: &Plan) -> anyhow::Result<()> {
    let runtime = crate::runtime()?;
    let mut findings = Findings::default();
    match plan.tables_plan() {
        Ok(None) => findings.note(
            "tables",
            "none are kept: a restart reads the source from its beginning",
        ),
        Ok(Some(tables)) => runtime.block_on(look_at_tables(&tables, &mut findings)),
        Err(error) => findings.bad("tables", error.to_string()),
    }
    look_at_server(plan, &mut findings);
    look_at_source(plan, &runtime, &mut findings);
    print!("{}", findings.show());
    let bad = findings
        .0
        .iter()
        .filter(|(grade, ..)| *grade == Grade::Bad)
        .count();
    ensure!(
        bad == 0,
        "{bad} of these would keep the pipeline from running"
    );
    Ok(())
}

fn look_at_server(plan: &Plan, findings: &mut Findings) {
    let Some(server) = &plan.server else {
        return findings.note("server", "none: no queries and no metrics");
    };
    let postgres = server.postgres.as_ref().map(|postgres| postgres.listen);
    for address in std::iter::once(server.listen).chain(postgres) {
        match std::net::TcpListener::bind(address) {
            Ok(_) => findings.good("server", format!("{address} is free")),
            Err(error) => findings.bad("server", format!("cannot listen on {address}: {error}")),
        }
    }
}

async fn look_at_tables(plan: &TablesPlan, findings: &mut Findings) {
    let place = plan.folder.location();
    let manifests = Manifests::open(&plan.folder);
    match manifests.try_out().await {
        Ok(true) => findings.good(
            "tables",
            format!("{place} can be written, and keeps what is there already"),
        ),
        Ok(false) => {
            let message =
                format!("{place} overwrites what must not be: its server knows no conditional put");
            findings.bad("tables", message);
        }
        Err(error) => findings.bad("tables", error.to_string()),
    }
    if let Some(free) = plan.folder.free_bytes() {
        let message = format!("{} MB free", thousands(free >> 20));
        match free < SCARCE_BYTES {
            true => findings.note("disk", message),
            false => findings.good("disk", message),
        }
    }
    match Lease::own().holder(&manifests).await {
        Ok(None) => {}
        Ok(Some(holder)) => findings.note(
            "tables",
            format!(
                "process {} writes them, or did a moment ago; a run beside it is refused",
                holder.process
            ),
        ),
        Err(error) => findings.bad("tables", error.to_string()),
    }
    let mut rows = 0;
    let mut there = 0;
    for (relation, schema) in &plan.relations {
        let schema = Arc::clone(schema);
        match Table::open_existing(&plan.folder, relation, schema, plan.deletes).await {
            Ok(None) => {}
            Ok(Some(table)) => {
                there += 1;
                let files = table.files().await.unwrap_or_default();
                rows += files.iter().map(DataFile::live).sum::<u64>();
            }
            Err(error) => findings.bad("tables", error.to_string()),
        }
    }
    let rows = thousands(rows);
    findings.good(
        "tables",
        format!(
            "{there} of {} are there, with {rows} rows",
            plan.relations.len()
        ),
    );
}

fn look_at_source(plan: &Plan, runtime: &Runtime, findings: &mut Findings) {
    // The model is loaded with the process.
    let process = match tables::derive::process(plan, runtime) {
        Ok(process) => process,
        Err(error) => return findings.bad("model", format!("{error:#}")),
    };
    match &plan.model {
        None => findings.note("model", "none: the given labels are counted alone"),
        Some(_) => findings.good("model", "loads"),
    }
    let mut source = match process.open_source(0, 1) {
        Ok(source) => source,
        Err(error) => return findings.bad("source", error.to_string()),
    };
    let waiting: i64 = source.lag().iter().map(|(_, waiting)| waiting).sum();
    match &plan.source {
        SourcePlan::Files(folder) => {
            findings.good("source", format!("folder {}", folder.display()))
        }
        SourcePlan::Kafka(settings) => {
            let partitions = source.lag().len();
            let brokers = settings
                .properties
                .get("bootstrap.servers")
                .map_or("", String::as_str);
            let waiting = thousands(waiting.unsigned_abs());
            let message = format!("kafka {brokers}: {partitions} partitions, {waiting} messages");
            findings.good("source", message);
            let plain = settings
                .properties
                .get("security.protocol")
                .is_none_or(|p| p == "PLAINTEXT");
            if plain && !brokers.split(',').all(is_loopback) {
                findings.note(
                    "source",
                    "what the brokers say is not encrypted: set \"security.protocol\"",
                );
            }
        }
    }
    let mut sample = Sample::new(plan);
    let started = Instant::now();
    while sample.messages < MESSAGES && started.elapsed() < PATIENCE {
        let wait = Duration::from_millis(200);
        match source.poll(wait, &mut |message| sample.add(message)) {
            Ok(Polled::CaughtUp) => break,
            Ok(Polled::Some) => {}
            Err(error) => return findings.bad("source", error.to_string()),
        }
    }
    sample.tell(plan, findings);
}

fn is_loopback(broker: &str) -> bool {
    ["127.", "localhost", "[::1]"]
        .iter()
        .any(|start| broker.trim().starts_with(start))
}

/// The updates of a table.
#[derive(Default)]
struct Updates {
    all: usize,
    /// Those that tell the row as it was.
    with_before: usize,
}

impl Updates {
    /// What they tell of the table's replica identity.
    fn identity(&self) -> &'static str {
        match (self.all, self.with_before) {
            (0, _) => "no update there to tell its replica identity",
            (_, 0) => {
                "replica identity default: enough, as rows are told apart by key; large values that did not \
                 change are taken from the row that is held"
            }
            _ => "replica identity full: updates tell the row as it was, and large values always",
        }
    }
}

/// What some messages are like.
struct Sample {
    decoder: Decoder,
    /// Columns that the pipeline does not ask for.
    further: Arc<FurtherNames>,
    key_columns: BTreeSet<String>,
    /// How many messages of JSON tell their schema.
    with_schemas: usize,
    debezium: bool,
    messages: usize,
    rows: usize,
    deletes: usize,
    truncations: usize,
    /// Rows some of whose values were not sent.
    patches: usize,
    /// How many could not be used, by reason.
    rejects: BTreeMap<String, usize>,
    keyless: usize,
    /// A date that is a number.
    numeric_date: Option<i64>,
    /// Connectors and their versions.
    connectors: BTreeSet<String>,
    tables: BTreeMap<String, Updates>,
    /// What a transaction's topic would be called, if events tell of transactions.
    transactions: Option<String>,
    newest_ms: i64,
}

impl Sample {
    fn new(plan: &Plan) -> Self {
        let further = Arc::<FurtherNames>::default();
        let format = Format {
            further: Some(Arc::clone(&further)),
            ..plan.format.clone()
        };
        Self {
            decoder: Decoder::new(format),
            further,
            key_columns: BTreeSet::new(),
            with_schemas: 0,
            debezium: plan.format.envelope == Envelope::Debezium,
            messages: 0,
            rows: 0,
            deletes: 0,
            truncations: 0,
            patches: 0,
            rejects: BTreeMap::new(),
            keyless: 0,
            numeric_date: None,
            connectors: BTreeSet::new(),
            tables: BTreeMap::new(),
            transactions: None,
            newest_ms: 0,
        }
    }

    fn add(&mut self, message: &Delivered<'_>) {
        self.messages += 1;
        self.keyless += usize::from(message.key.is_none());
        if let Some(Ok(Value::Object(key))) = message.key.map(serde_json::from_slice) {
            let payload = key.get("payload").and_then(Value::as_object);
            self.key_columns
                .extend(payload.unwrap_or(&key).keys().cloned());
        }
        let tells = |value: &[u8]| value.starts_with(b"{\"schema\":{");
        self.with_schemas += usize::from(message.value.is_some_and(tells));
        let mut told: Vec<RowChange<Arc<Bronze>>> = Vec::new();
        let received = Timestamp(now_ms() as i64 * 1_000);
        let message = read_at(message, received);
        if let Err(NotYet(reason)) = self.decoder.decode(&message, &mut told) {
            *self.rejects.entry(reason).or_default() += 1;
        }
        for change in told {
            match change.state {
                State::Row(Ok(row)) | State::More(Ok(row)) => {
                    self.rows += 1;
                    let date = row.date.as_ref().and_then(|date| date.parse().ok());
                    self.numeric_date = date.or(self.numeric_date);
                }
                State::Row(Err(reject)) | State::More(Err(reject)) => {
                    *self.rejects.entry(reject.reason.to_string()).or_default() += 1
                }
                State::Patch(_) => self.patches += 1,
                State::Gone | State::Fewer(_) | State::Left(_) | State::Arrived(_) => {
                    self.deletes += 1
                }
                State::Truncated(_) => self.truncations += 1,
                State::Retry(_) | State::Retried(_) | State::Tell(_) => {}
            }
        }
        if self.debezium
            && let Ok(Some(event)) = self.decoder.tree(&message)
        {
            self.look_into(&event);
        }
    }

    fn look_into(&mut self, event: &Value) {
        let source = &event["source"];
        let text = |name: &str| source[name].as_str().unwrap_or("?");
        if source.is_object() {
            self.connectors
                .insert(format!("{} {}", text("connector"), text("version")));
            let table = format!("{}.{}", text("schema"), text("table"));
            let updates = self.tables.entry(table).or_default();
            if event["op"] == "u" {
                updates.all += 1;
                updates.with_before += usize::from(event["before"].is_object());
            }
        }
        if event["transaction"].is_object() {
            self.transactions = Some(format!("{}.transaction", text("name")));
        }
        self.newest_ms = self.newest_ms.max(event["ts_ms"].as_i64().unwrap_or(0));
    }

    fn tell(&self, plan: &Plan, findings: &mut Findings) {
        if self.messages == 0 {
            return findings.note("messages", "none there to look at");
        }
        let rejected: usize = self.rejects.values().sum();
        findings.good(
            "messages",
            format!(
                "{} looked at: {} rows, {} deletes, {} truncations, {rejected} that cannot be used",
                thousands(self.messages as u64),
                thousands((self.rows + self.patches) as u64),
                thousands(self.deletes as u64),
                self.truncations,
            ),
        );
        for (reason, count) in self.rejects.iter().take(10) {
            findings.note("messages", format!("{count} rejected: {reason}"));
        }
        if self.keyless > 0
            && plan.format.key_columns.is_empty()
            && !plan.format.keyless
            && plan.format.envelope != Envelope::Append
        {
            findings.note(
                "keys",
                format!(
                    "{} messages have none: name columns in source.kafka.key, or \"*\" for a table without any",
                    self.keyless
                ),
            );
        }
        if let (Some(count), None) = (self.numeric_date, plan.mentions.numeric_date) {
            let likely = DateUnit::likely(count);
            let likely = likely.map_or(String::new(), |unit| {
                format!(", likely \"{}\"", unit.name())
            });
            findings.note(
                "dates",
                format!(
                    "some are numbers, such as {count}: say in mentions.numeric_date what they count{likely}"
                ),
            );
        }
        if self.with_schemas > 0 {
            findings.good(
                "types",
                "schemas are told: times and decimals are understood by what they say",
            );
        }
        let mut further = self.further.all();
        // What rows are told apart by is kept as the key.
        further.retain(|name| !self.key_columns.contains(name));
        let further = further.join(", ");
        match (&plan.format.further, further.is_empty()) {
            (_, true) => {}
            (Some(_), false) => findings.good("columns", format!("kept besides: {further}")),
            (None, false) => findings.note(
                "columns",
                format!("not kept: {further}; source.further_columns = true keeps them in bronze"),
            ),
        }
        for connector in &self.connectors {
            findings.good("debezium", connector);
        }
        for (table, updates) in &self.tables {
            findings.good("debezium", format!("table {table}: {}", updates.identity()));
        }
        if let (Some(topic), None) = (&self.transactions, &plan.format.transactions) {
            findings.note(
                "debezium",
                format!(
                    "half of a transaction may be seen for a moment: source.kafka.transactions = \"{topic}\" shows \
                     each whole"
                ),
            );
        }
        if self.patches > 0 {
            findings.note(
                "debezium",
                format!(
                    "{} updates lack large values: they are taken from the row that is held, and rejected where \
                     none is; replica identity full sends them",
                    self.patches
                ),
            );
        }
        let ahead = self.newest_ms - now_ms() as i64;
        if ahead > SKEW_MS {
            findings.note(
                "clock",
                format!(
                    "the connector's is {} s ahead of this machine's",
                    ahead / 1_000
                ),
            );
        }
    }
}
