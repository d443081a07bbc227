//! One Delta table: data files written first, a commit that makes them count afterwards.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{BooleanArray, RecordBatch};
use arrow::compute::{concat_batches, filter_record_batch};
use arrow::datatypes::SchemaRef;
use bytes::Bytes;
use delta_kernel::table_properties::DataSkippingNumIndexedCols;
use deltalake::datafile::writer::{DeltaWriter, WriterConfig};
use deltalake::kernel::engine::arrow_conversion::TryIntoKernel;
use deltalake::kernel::transaction::{CommitBuilder, CommitProperties};
use deltalake::kernel::{Action, Remove, StructType, Transaction};
use deltalake::operations::create::CreateBuilder;
use deltalake::protocol::{DeltaOperation, SaveMode};
use deltalake::{DeltaTable, DeltaTableBuilder};
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::{TableError, TablesFolder};

/// Columns whose least and greatest values are noted for readers that skip files.
const STATISTICS_COLUMNS: u64 = 32;

/// A data file that was written but is not part of the table yet.
#[derive(Clone, Debug)]
pub struct NewFile {
    /// Its name in the table's folder.
    pub name: String,
    /// The entry of the table's log that makes it part of the table.
    pub action: Action,
    /// Its size.
    pub bytes: u64,
}

/// A data file to be replaced by one without some of its rows.
#[derive(Clone, Debug)]
pub struct Rewritten {
    /// The entry of the log that takes the old file out.
    pub remove: Action,
    /// The new file, if any rows are left.
    pub new: Option<NewFile>,
}

/// A Delta table as it was when last looked at.
#[derive(Clone)]
pub struct Table {
    relation: String,
    table: DeltaTable,
    schema: SchemaRef,
}

impl Table {
    /// Opens the relation's table, making it first if there is none.
    ///
    /// # Errors
    /// If the storage fails, or the table has other columns.
    pub async fn open(
        folder: &TablesFolder,
        relation: &str,
        schema: SchemaRef,
    ) -> Result<Self, TableError> {
        let what = format!("cannot open table \"{relation}\"");
        let url = folder.table_url(relation)?;
        let mut table = DeltaTableBuilder::from_url(url.clone())
            .and_then(DeltaTableBuilder::build)
            .map_err(TableError::storage(&*what))?;
        let exists = table.verify_deltatable_existence().await;
        if exists.map_err(TableError::storage(&*what))? {
            table.load().await.map_err(TableError::storage(&*what))?;
        } else {
            table = create(url.as_str(), relation, &schema).await?;
        }
        let opened = Self {
            relation: relation.to_owned(),
            table,
            schema,
        };
        opened.check_columns()?;
        Ok(opened)
    }

    fn check_columns(&self) -> Result<(), TableError> {
        let snapshot = self
            .table
            .snapshot()
            .map_err(TableError::storage(self.what("read")))?;
        let found = snapshot.snapshot().arrow_schema();
        let names = |schema: &SchemaRef| -> Vec<String> {
            schema
                .fields()
                .iter()
                .map(|f| format!("{} {}", f.name(), f.data_type()))
                .collect()
        };
        if names(&found) == names(&self.schema) {
            return Ok(());
        }
        Err(TableError::Unusable(format!(
            "table \"{}\" has columns ({}) instead of ({}); use another folder for the tables",
            self.relation,
            names(&found).join(", "),
            names(&self.schema).join(", ")
        )))
    }

    fn what(&self, verb: &str) -> String {
        format!("cannot {verb} table \"{}\"", self.relation)
    }

    fn store(&self) -> Arc<dyn ObjectStore> {
        self.table.object_store()
    }

    /// The names of the files that make up the table, sorted.
    ///
    /// # Errors
    /// If the table's log cannot be read.
    pub async fn files(&self) -> Result<Vec<String>, TableError> {
        let snapshot = self
            .table
            .snapshot()
            .map_err(TableError::storage(self.what("read")))?;
        let log_store = self.table.log_store();
        let views: Vec<_> = snapshot
            .snapshot()
            .file_views(&*log_store, None)
            .try_collect()
            .await
            .map_err(TableError::storage(self.what("list the files of")))?;
        let mut files: Vec<_> = views
            .iter()
            .map(|view| view.object_store_path().to_string())
            .collect();
        files.sort_unstable();
        Ok(files)
    }

    /// A file's rows, in order.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub async fn read(&self, file: &str) -> Result<Vec<RecordBatch>, TableError> {
        let bytes = self.bytes(file).await?;
        self.decode(file, bytes)
    }

    async fn bytes(&self, file: &str) -> Result<Bytes, TableError> {
        let what = format!("cannot read file \"{file}\" of table \"{}\"", self.relation);
        let found = self
            .store()
            .get(&Path::from(file))
            .await
            .map_err(TableError::storage(&*what))?;
        found.bytes().await.map_err(TableError::storage(what))
    }

    fn decode(&self, file: &str, bytes: Bytes) -> Result<Vec<RecordBatch>, TableError> {
        let what = format!(
            "cannot decode file \"{file}\" of table \"{}\"",
            self.relation
        );
        let reader = ParquetRecordBatchReaderBuilder::try_new(bytes)
            .and_then(ParquetRecordBatchReaderBuilder::build)
            .map_err(TableError::storage(&*what))?;
        reader
            .collect::<Result<_, _>>()
            .map_err(TableError::storage(what))
    }

    /// Writes the rows to one new file, in order.
    ///
    /// # Errors
    /// If the storage fails.
    pub async fn append(&self, rows: &RecordBatch) -> Result<NewFile, TableError> {
        let what = self.what("write a file of");
        let columns = DataSkippingNumIndexedCols::NumColumns(STATISTICS_COLUMNS);
        let schema = Arc::clone(&self.schema);
        // No file is split, so that a row's number is its place in what was written.
        let file_size = None;
        let config = WriterConfig::new(schema, vec![], None, file_size, None, columns, None);
        let mut writer = DeltaWriter::new(self.store(), config);
        writer
            .write(rows)
            .await
            .map_err(TableError::storage(&*what))?;
        let mut added = writer.close().await.map_err(TableError::storage(&*what))?;
        match (added.pop(), added.is_empty()) {
            (Some(add), true) => Ok(NewFile {
                name: add.path.clone(),
                bytes: add.size.unsigned_abs(),
                action: Action::Add(add),
            }),
            (last, _) => Err(TableError::Unusable(format!(
                "{what}: expected one file, found {}",
                added.len() + usize::from(last.is_some())
            ))),
        }
    }

    /// Writes a file anew without the rows of these numbers, which are sorted.
    ///
    /// # Errors
    /// If the storage fails.
    pub async fn rewrite(&self, file: &str, without: &[u32]) -> Result<Rewritten, TableError> {
        let bytes = self.bytes(file).await?;
        let size = bytes.len() as i64;
        let batches = self.decode(file, bytes)?;
        let kept = self.filter(file, &batches, without)?;
        let new = match kept.num_rows() {
            0 => None,
            _ => Some(self.append(&kept).await?),
        };
        let remove = Action::Remove(Remove {
            path: file.to_owned(),
            data_change: true,
            deletion_timestamp: Some(chrono::Utc::now().timestamp_millis()),
            extended_file_metadata: Some(true),
            partition_values: Some(HashMap::new()),
            size: Some(size),
            ..Remove::default()
        });
        Ok(Rewritten { remove, new })
    }

    fn filter(
        &self,
        file: &str,
        batches: &[RecordBatch],
        without: &[u32],
    ) -> Result<RecordBatch, TableError> {
        let what = format!(
            "cannot filter file \"{file}\" of table \"{}\"",
            self.relation
        );
        let all = concat_batches(&self.schema, batches).map_err(TableError::storage(&*what))?;
        let mut keep = vec![true; all.num_rows()];
        for row in without {
            match keep.get_mut(*row as usize) {
                Some(kept) => *kept = false,
                None => return Err(TableError::Unusable(format!("{what}: it has no row {row}"))),
            }
        }
        filter_record_batch(&all, &BooleanArray::from(keep)).map_err(TableError::storage(what))
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
        let what = self.what("commit to");
        let snapshot = self.table.snapshot().map_err(TableError::storage(&*what))?;
        let properties = CommitProperties::default()
            .with_application_transaction(Transaction::new(application, version))
            .with_max_retries(0);
        let operation = DeltaOperation::Write {
            mode: SaveMode::Append,
            partition_by: None,
            predicate: None,
        };
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
}

async fn create(url: &str, relation: &str, schema: &SchemaRef) -> Result<DeltaTable, TableError> {
    let what = format!("cannot make table \"{relation}\"");
    let columns: StructType = schema
        .as_ref()
        .try_into_kernel()
        .map_err(TableError::storage(&*what))?;
    CreateBuilder::new()
        .with_location(url)
        .with_table_name(relation)
        .with_columns(columns.fields().cloned())
        .with_save_mode(SaveMode::Ignore)
        .await
        .map_err(TableError::storage(what))
}
