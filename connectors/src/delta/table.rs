//! One Delta table: what its log says, and commits to it.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, FieldRef, Schema, SchemaRef};
use deltalake::DeltaTable;
use deltalake::kernel::engine::arrow_conversion::TryIntoKernel;
use deltalake::kernel::transaction::{CommitBuilder, CommitProperties};
use deltalake::kernel::{
    Action, Add, MetadataExt as _, Protocol, StructField, StructType, Transaction, new_metadata,
};
use deltalake::logstore::{LogStoreRef, StorageConfig, default_logstore};
use deltalake::protocol::checkpoints::{cleanup_expired_logs_for, create_checkpoint};
use deltalake::protocol::{DeltaOperation, OutputMode, SaveMode};
use futures::TryStreamExt;
use object_store::ObjectStore;
use object_store::path::Path;
use object_store::prefix::PrefixStore;

use super::files::{DataFile, DataFiles, Deletes, remove_entry, vector_path};
use super::{TableError, TablesFolder, further};

/// A Delta table as it was when last looked at.
#[derive(Clone)]
pub struct Table {
    relation: String,
    table: DeltaTable,
    schema: SchemaRef,
    deletes: Deletes,
}

impl Table {
    /// Opens the relation's table, making it first if there is none, and adding columns at its end that it has not
    /// yet.
    ///
    /// # Errors
    /// If the storage fails, or the table has other columns.
    pub async fn open(
        folder: &TablesFolder,
        relation: &str,
        schema: SchemaRef,
        deletes: Deletes,
    ) -> Result<Self, TableError> {
        let existing = Self::open_existing(folder, relation, Arc::clone(&schema), deletes).await?;
        if let Some(mut table) = existing {
            table.add_columns().await?;
            return Ok(table);
        }
        let log_store = log_store(folder, relation)?;
        Ok(Self {
            relation: relation.to_owned(),
            table: create(log_store, relation, &schema, deletes).await?,
            schema,
            deletes,
        })
    }

    /// Opens the relation's table, if there is one. Its last columns may be absent: rows are read as if they had
    /// nothing in them.
    ///
    /// # Errors
    /// If the storage fails, or the table has other columns.
    pub async fn open_existing(
        folder: &TablesFolder,
        relation: &str,
        schema: SchemaRef,
        deletes: Deletes,
    ) -> Result<Option<Self>, TableError> {
        let what = format!("cannot open table \"{relation}\"");
        let mut table = DeltaTable::new(log_store(folder, relation)?);
        let exists = table.verify_deltatable_existence().await;
        if !exists.map_err(TableError::storage(&*what))? {
            return Ok(None);
        }
        table.load().await.map_err(TableError::storage(&*what))?;
        let opened = Self {
            relation: relation.to_owned(),
            table,
            schema,
            deletes,
        };
        opened.check_columns()?;
        Ok(Some(opened))
    }

    fn check_columns(&self) -> Result<(), TableError> {
        let expected = names(&further::shown(&self.schema, &[]));
        let columns = self.columns()?;
        // Further columns have come at any time, before or after those that a newer program adds.
        let is_further = |field: &FieldRef| {
            further::place(&self.schema).is_some()
                && self.schema.field_with_name(field.name()).is_err()
                && *field.data_type() == DataType::Utf8
        };
        let own = columns.fields().iter().filter(|field| !is_further(field));
        let own: Vec<_> = own.map(name).collect();
        if expected.starts_with(&own) {
            return Ok(());
        }
        let found = names(&columns);
        Err(TableError::Unusable(format!(
            "table \"{}\" has columns ({}) instead of ({}); use another folder for the tables",
            self.relation,
            found.join(", "),
            expected.join(", ")
        )))
    }

    /// The columns that the table has.
    fn columns(&self) -> Result<SchemaRef, TableError> {
        let snapshot = self
            .table
            .snapshot()
            .map_err(TableError::storage(self.what("read")))?;
        Ok(snapshot.snapshot().arrow_schema())
    }

    /// The names of the columns that the table has and its relation's own are not.
    ///
    /// # Errors
    /// If the table's log cannot be read.
    pub fn further(&self) -> Result<Vec<String>, TableError> {
        let columns = self.columns()?;
        let names = columns.fields().iter().map(|field| field.name());
        let further = names.filter(|name| self.schema.field_with_name(name).is_err());
        Ok(further.cloned().collect())
    }

    async fn add_columns(&mut self) -> Result<(), TableError> {
        let expected = further::shown(&self.schema, &[]);
        let Some((metadata, fields)) = self.with_columns(expected.fields().iter().cloned())? else {
            return Ok(());
        };
        let operation = DeltaOperation::AddColumn { fields };
        let properties = CommitProperties::default();
        self.commit_as(operation, properties, vec![metadata]).await
    }

    /// What the log must say for the table to have these columns as well, and those that it lacks of them; nothing
    /// if it lacks none.
    fn with_columns(
        &self,
        columns: impl Iterator<Item = FieldRef>,
    ) -> Result<Option<(Action, Vec<StructField>)>, TableError> {
        let found = self.columns()?;
        let lacking = columns.filter(|field| found.field_with_name(field.name()).is_err());
        let lacking: Vec<_> = lacking.collect();
        if lacking.is_empty() {
            return Ok(None);
        }
        let what = self.what("add columns to");
        let all = found.fields().iter().cloned().chain(lacking);
        let all = Schema::new(all.collect::<Vec<_>>());
        let columns: StructType = (&nullable(&all))
            .try_into_kernel()
            .map_err(TableError::storage(&*what))?;
        let snapshot = self.table.snapshot().map_err(TableError::storage(&*what))?;
        let metadata = snapshot.metadata().clone().with_schema(&columns);
        let metadata = metadata.map_err(TableError::storage(&*what))?;
        let added = columns.fields().skip(found.fields().len()).cloned();
        Ok(Some((Action::Metadata(metadata), added.collect())))
    }

    pub(super) fn what(&self, verb: &str) -> String {
        format!("cannot {verb} table \"{}\"", self.relation)
    }

    pub(super) fn log_store(&self) -> LogStoreRef {
        self.table.log_store()
    }

    /// Reads and writes the table's files.
    pub fn data_files(&self) -> DataFiles {
        let log_store = self.table.log_store();
        DataFiles::new(
            &self.relation,
            Arc::clone(&self.schema),
            log_store,
            self.deletes,
        )
    }

    /// The columns.
    pub fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    /// The version of the table's log that this knows.
    pub fn version(&self) -> u64 {
        self.table.version().unwrap_or(0)
    }

    /// The files that make up the table, sorted by name.
    ///
    /// # Errors
    /// If the table's log cannot be read, or does not say how many rows a file has.
    pub async fn files(&self) -> Result<Vec<DataFile>, TableError> {
        let entries = self.entries().await?;
        let files = entries.into_values().map(|entry| {
            let rows = entry
                .get_stats()
                .ok()
                .flatten()
                .map(|stats| stats.num_records);
            let rows = rows.and_then(|rows| u32::try_from(rows).ok());
            let unknown = || {
                let what = self.what("use");
                let message = format!("{what}: its log does not count the rows of {}", entry.path);
                TableError::Unusable(message)
            };
            Ok(DataFile {
                rows: rows.ok_or_else(unknown)?,
                entry,
            })
        });
        files.collect()
    }

    /// All rows of the table, a batch for each file.
    ///
    /// # Errors
    /// If the log or a file cannot be read.
    pub async fn rows(&self) -> Result<Vec<RecordBatch>, TableError> {
        let data = self.data_files();
        let mut rows = Vec::new();
        for file in self.files().await? {
            rows.push(data.present(&file).await?);
        }
        Ok(rows)
    }

    /// The entries of the log that make up the table, by file.
    pub(super) async fn entries(&self) -> Result<BTreeMap<String, Add>, TableError> {
        let snapshot = self
            .table
            .snapshot()
            .map_err(TableError::storage(self.what("read")))?;
        let log_store = self.table.log_store();
        let views = snapshot.snapshot().file_views(&*log_store, None);
        #[expect(
            deprecated,
            reason = "an entry is committed again with a deletion vector"
        )]
        let entries = views.map_ok(|view| {
            let entry = view.add_action();
            (entry.path.clone(), entry)
        });
        entries
            .try_collect()
            .await
            .map_err(TableError::storage(self.what("list the files of")))
    }

    /// The last version that this application committed, if it did.
    ///
    /// # Errors
    /// If the table's log cannot be read.
    pub async fn transaction(&self, application: &str) -> Result<Option<i64>, TableError> {
        let what = self.what("read the transactions of");
        let snapshot = self.table.snapshot().map_err(TableError::storage(&*what))?;
        let log_store = self.table.log_store();
        let version = snapshot.transaction_version(&*log_store, application).await;
        version.map_err(TableError::storage(what))
    }

    /// Commits the actions in one version of the table, marked with the application's version.
    ///
    /// Fails, rather than merges, if someone else has committed since the table was looked at.
    ///
    /// # Errors
    /// If the storage fails or the table has moved on; [`Table::refresh`] before trying again.
    pub async fn commit(
        &mut self,
        application: &str,
        version: i64,
        actions: Vec<Action>,
    ) -> Result<(), TableError> {
        let operation = DeltaOperation::StreamingUpdate {
            output_mode: OutputMode::Update,
            query_id: application.to_owned(),
            epoch_id: version,
        };
        let transaction = Transaction::new(application, version);
        let properties = CommitProperties::default().with_application_transaction(transaction);
        self.commit_as(operation, properties, actions).await
    }

    async fn commit_as(
        &mut self,
        operation: DeltaOperation,
        properties: CommitProperties,
        actions: Vec<Action>,
    ) -> Result<(), TableError> {
        let what = self.what("commit to");
        let mut actions = actions;
        let further = further::tagged(&actions);
        let further = further.iter().map(|name| further::column(name));
        if let Some((metadata, added)) = self.with_columns(further)? {
            let added: Vec<_> = added.iter().map(|field| field.name().as_str()).collect();
            tracing::info!(
                table = self.relation,
                added = added.join(", "),
                "the table gets columns"
            );
            actions.insert(0, metadata);
        }
        let snapshot = self.table.snapshot().map_err(TableError::storage(&*what))?;
        // The log is tidied apart from commits, see `tidy`.
        let properties = properties
            .with_max_retries(0)
            .with_create_checkpoint(false)
            .with_cleanup_expired_logs(Some(false));
        CommitBuilder::from(properties)
            .with_actions(actions)
            .build(Some(snapshot), self.table.log_store(), operation)
            .await
            .map_err(TableError::storage(what))?;
        self.refresh().await
    }

    /// Looks at the table anew.
    ///
    /// # Errors
    /// If the table's log cannot be read.
    pub async fn refresh(&mut self) -> Result<(), TableError> {
        let what = self.what("read the log of");
        self.table
            .update_state()
            .await
            .map_err(TableError::storage(what))
    }

    /// The newest version that the application committed, if the log still tells.
    ///
    /// # Errors
    /// If the table's log cannot be read.
    pub async fn committed_version(&self, application: &str) -> Result<Option<u64>, TableError> {
        for version in (0..=self.version()).rev() {
            let Some(actions) = self.commit_entry(version).await? else {
                break;
            };
            let ours =
                |action: &Action| matches!(action, Action::Txn(txn) if txn.app_id == application);
            if actions.iter().any(ours) {
                return Ok(Some(version));
            }
        }
        Ok(None)
    }

    /// The last version that the application committed at or before its own version `at`, and that
    /// version of its own; `(0, 0)` if it had committed none, `None` if the log no longer tells.
    ///
    /// # Errors
    /// If the table's log cannot be read.
    pub async fn committed_by(
        &self,
        application: &str,
        at: i64,
    ) -> Result<Option<(u64, i64)>, TableError> {
        // The application's versions only grow, and the log loses its oldest entries first: so a
        // binary search finds the last one that is not too new, or the last that is lost.
        let (mut first, mut end) = (0, self.version() + 1);
        let mut found = None;
        while first < end {
            let middle = first + (end - first) / 2;
            match self.last_commit_of(application, first, middle).await? {
                LastCommit::Lost => first = middle + 1,
                LastCommit::None => {
                    found = found.or((first == 0).then_some((0, 0)));
                    first = middle + 1;
                }
                LastCommit::Version(version, own) if own <= at => {
                    found = Some((version, own));
                    first = middle + 1;
                }
                LastCommit::Version(version, _) => end = version,
            }
        }
        Ok(found)
    }

    /// The last version of the application from `first` up to `last`.
    async fn last_commit_of(
        &self,
        application: &str,
        first: u64,
        last: u64,
    ) -> Result<LastCommit, TableError> {
        for version in (first..=last).rev() {
            let Some(actions) = self.commit_entry(version).await? else {
                return Ok(LastCommit::Lost);
            };
            let own = actions.iter().find_map(|action| match action {
                Action::Txn(own) if own.app_id == application => Some(own.version),
                _ => None,
            });
            if let Some(own) = own {
                return Ok(LastCommit::Version(version, own));
            }
        }
        Ok(LastCommit::None)
    }

    /// The versions that the log still tells of, the newest first.
    ///
    /// # Errors
    /// If the table's log cannot be read.
    pub async fn history(&self) -> Result<Vec<TableVersion>, TableError> {
        let mut versions = Vec::new();
        for version in (0..=self.version()).rev() {
            let Some(actions) = self.commit_entry(version).await? else {
                break;
            };
            let mut told = TableVersion {
                version,
                committed_at: 0,
                operation: String::new(),
                epoch: None,
            };
            for action in actions {
                match action {
                    Action::CommitInfo(commit) => {
                        told.committed_at = commit.timestamp.unwrap_or(0);
                        told.operation = commit.operation.unwrap_or_default();
                    }
                    Action::Txn(transaction) => told.epoch = Some(transaction.version),
                    _ => {}
                }
            }
            versions.push(told);
        }
        Ok(versions)
    }

    /// What a version committed, if the log still tells.
    pub(super) async fn commit_entry(
        &self,
        version: u64,
    ) -> Result<Option<Vec<Action>>, TableError> {
        let entry = self.log_store().read_commit_entry(version).await;
        let entry = entry.map_err(TableError::storage(self.what("read the log of")))?;
        let actions = |bytes: bytes::Bytes| {
            let lines = bytes.split(|byte| *byte == b'\n');
            lines
                .filter_map(|line| serde_json::from_slice(line).ok())
                .collect()
        };
        Ok(entry.map(actions))
    }

    /// The table as it was at an earlier version.
    ///
    /// # Errors
    /// If the log no longer tells.
    pub async fn at(&self, version: u64) -> Result<Self, TableError> {
        let mut earlier = self.clone();
        let what = format!("{} as of version {version}", self.what("read"));
        let loaded = earlier.table.load_version(version).await;
        loaded.map_err(TableError::storage(what))?;
        Ok(earlier)
    }

    /// Commits whatever makes the table what `wanted` says, less the files that are not there;
    /// returns how many files were put back and how many taken out.
    ///
    /// # Errors
    /// If the storage fails or the table has moved on.
    pub async fn mend(&mut self, wanted: &Self) -> Result<Mended, TableError> {
        let mut entries = wanted.entries().await?;
        let missing = self.missing(&entries).await?;
        entries.retain(|path, _| !missing.contains(path));
        let found = self.entries().await?;
        let same = |ours: &Add, theirs: &Add| ours.deletion_vector == theirs.deletion_vector;
        let mut actions = Vec::new();
        let mut mended = Mended::default();
        for (path, entry) in &found {
            if !entries.get(path).is_some_and(|wanted| same(wanted, entry)) {
                actions.push(remove_entry(entry, true));
                mended.taken_out += 1;
            }
        }
        for (path, entry) in entries {
            if !found.get(&path).is_some_and(|found| same(&entry, found)) {
                actions.push(Action::Add(entry));
                mended.put_back += 1;
            }
        }
        mended.lost = missing.len();
        if !actions.is_empty() {
            let operation = DeltaOperation::Restore {
                version: Some(wanted.version()),
                datetime: None,
            };
            let properties = CommitProperties::default();
            self.commit_as(operation, properties, actions).await?;
        }
        Ok(mended)
    }

    /// The files that the log names and the storage does not have, whole and with the right size.
    async fn missing(&self, entries: &BTreeMap<String, Add>) -> Result<Vec<String>, TableError> {
        let store = self.table.log_store().object_store(None);
        let what = self.what("list the files of");
        let objects = store
            .list(None)
            .map_ok(|object| (object.location, object.size));
        let there: BTreeMap<_, _> = objects
            .try_collect()
            .await
            .map_err(TableError::storage(what))?;
        let is_there = |entry: &Add| {
            let path = Path::from(entry.path.as_str());
            let vector = entry.deletion_vector.as_ref();
            let vector = vector.is_none_or(|vector| {
                let path = vector_path(vector);
                path.is_none_or(|path| there.contains_key(&path))
            });
            there.get(&path) == Some(&entry.size.unsigned_abs()) && vector
        };
        let missing = entries.iter().filter(|(_, entry)| !is_there(entry));
        Ok(missing.map(|(path, _)| path.clone()).collect())
    }

    /// Writes a checkpoint of the log, and removes entries older than the cutoff (milliseconds
    /// since 1970) that no later version needs.
    ///
    /// # Errors
    /// If the storage fails.
    pub async fn tidy(&self, cutoff: i64) -> Result<(), TableError> {
        let what = self.what("tidy the log of");
        let checkpoint = create_checkpoint(&self.table, None).await;
        checkpoint.map_err(TableError::storage(&*what))?;
        let log_store = self.table.log_store();
        cleanup_expired_logs_for(self.version(), &*log_store, cutoff, None)
            .await
            .map_err(TableError::storage(what))?;
        Ok(())
    }
}

/// What a part of the log tells of an application's commits.
enum LastCommit {
    /// The last one, with the application's own version.
    Version(u64, i64),
    /// There is none.
    None,
    /// Nothing any more.
    Lost,
}

/// A version of a table.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TableVersion {
    /// Its number.
    pub version: u64,
    /// When it was committed, in milliseconds since 1970.
    pub committed_at: i64,
    /// What was done, in the table format's words.
    pub operation: String,
    /// The epoch of the checkpoint that it belongs to, if to one.
    pub epoch: Option<i64>,
}

/// What was not as it should have been in a table's log.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Mended {
    /// Files that someone else had taken out.
    pub put_back: usize,
    /// Files that someone else had put in, and those that were lost.
    pub taken_out: usize,
    /// Files that the log named and the storage did not have.
    pub lost: usize,
}

fn log_store(folder: &TablesFolder, relation: &str) -> Result<LogStoreRef, TableError> {
    let url = folder.table_url(relation)?;
    let root = folder.root();
    let prefix = folder.path().clone().join(relation);
    let table: Arc<dyn ObjectStore> = Arc::new(PrefixStore::new(Arc::clone(&root), prefix));
    Ok(default_logstore(
        table,
        root,
        &url,
        &StorageConfig::default(),
    ))
}

fn names(schema: &SchemaRef) -> Vec<String> {
    schema.fields().iter().map(name).collect()
}

fn name(field: &FieldRef) -> String {
    format!("{} {}", field.name(), field.data_type())
}

/// What readers and writers of a table with deletion vectors must know, and nothing besides: a
/// reader that does not know them refuses the table.
const WITH_VECTORS: &str = r#"{"minReaderVersion":3,"minWriterVersion":7,
    "readerFeatures":["deletionVectors"],"writerFeatures":["deletionVectors"]}"#;

/// What every reader and writer knows.
const PLAIN: &str = r#"{"minReaderVersion":1,"minWriterVersion":2}"#;

/// The columns as the table declares them. To say that a column is never null is an invariant, which
/// writers of the table would have to know as a feature of its own; no data here needs it said.
fn nullable(schema: &Schema) -> Schema {
    let fields = schema.fields().iter();
    let fields: Vec<_> = fields
        .map(|field| field.as_ref().clone().with_nullable(true))
        .collect();
    Schema::new(fields)
}

/// Commits a table's first version, unless it is there.
async fn create(
    log_store: LogStoreRef,
    relation: &str,
    schema: &SchemaRef,
    deletes: Deletes,
) -> Result<DeltaTable, TableError> {
    let what = format!("cannot make table \"{relation}\"");
    let columns: StructType = (&nullable(&further::shown(schema, &[])))
        .try_into_kernel()
        .map_err(TableError::storage(&*what))?;
    let (protocol, configuration) = match deletes {
        Deletes::Vectors => (WITH_VECTORS, vec![("delta.enableDeletionVectors", "true")]),
        Deletes::Rewrite => (PLAIN, Vec::new()),
    };
    let protocol: Protocol = serde_json::from_str(protocol).map_err(TableError::storage(&*what))?;
    let no_partitions: [&str; 0] = [];
    let metadata = new_metadata(&columns, no_partitions, configuration)
        .and_then(|metadata| metadata.with_name(relation.to_owned()))
        .map_err(TableError::storage(&*what))?;
    let operation = DeltaOperation::Create {
        mode: SaveMode::Ignore,
        location: log_store.root_url().clone(),
        protocol: protocol.clone(),
        metadata: metadata.clone(),
    };
    let properties = CommitProperties::default().with_max_retries(0);
    let actions = vec![Action::Protocol(protocol), Action::Metadata(metadata)];
    let committed = CommitBuilder::from(properties)
        .with_actions(actions)
        .build(None, Arc::clone(&log_store), operation)
        .await;
    let mut table = DeltaTable::new(log_store);
    // Another process may have been faster; what counts is that the table is there.
    match (table.load().await, committed) {
        (Ok(()), _) => Ok(table),
        (Err(_), Err(error)) => Err(TableError::storage(what)(error)),
        (Err(error), Ok(_)) => Err(TableError::storage(what)(error)),
    }
}
