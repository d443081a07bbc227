//! The files of one Delta table: rows in Parquet, and which of them have been removed.
//!
//! Nothing here changes what a reader of the table sees; committing the entries does.

use std::sync::Arc;

use arrow::array::{Array, BooleanArray, RecordBatch, make_array, new_null_array};
use arrow::compute::{concat_batches, filter_record_batch};
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use bytes::Bytes;
use delta_kernel::actions::deletion_vector::DeletionVectorDescriptor as KernelDescriptor;
use delta_kernel::actions::deletion_vector_writer::{
    KernelDeletionVector, StreamingDeletionVectorWriter,
};
use delta_kernel::table_properties::DataSkippingNumIndexedCols;
use deltalake::datafile::writer::{DeltaWriter, WriterConfig};
use deltalake::kernel::{Action, Add, DeletionVectorDescriptor, Remove, StorageType};
use deltalake::logstore::LogStoreRef;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use roaring::RoaringBitmap;
use uuid::Uuid;

use super::{TableError, further};

/// Columns whose least and greatest values are noted for readers that skip files.
const STATISTICS_COLUMNS: u64 = 32;

/// How rows are removed from a data file.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Deletes {
    /// By a deletion vector beside the file, which stays as it is.
    Vectors,
    /// By writing the file anew without them, for readers that know no deletion vectors.
    Rewrite,
}

/// A data file: the entry of the table's log that makes it part of the table.
#[derive(Clone, Debug)]
pub struct DataFile {
    /// The rows it was written with.
    pub rows: u32,
    /// The entry.
    pub entry: Add,
}

impl DataFile {
    /// How many of its rows are part of the table.
    pub fn live(&self) -> u64 {
        u64::from(self.rows) - self.marked()
    }

    /// How many of its rows have been removed by a deletion vector.
    pub fn marked(&self) -> u64 {
        let vector = self.entry.deletion_vector.as_ref();
        vector.map_or(0, |vector| vector.cardinality.unsigned_abs())
    }
}

/// Rows to take out of one file, by the numbers with which it was first written or found.
#[derive(Clone, Debug)]
pub struct FileRemoval {
    /// The file, as it is now.
    pub file: DataFile,
    /// The rows that had been removed before.
    pub removed_before: RoaringBitmap,
    /// The rows that go now.
    pub rows: RoaringBitmap,
    /// Whether they only moved to another file.
    pub moved: bool,
}

/// A file that lost rows.
#[derive(Clone, Debug)]
pub struct ChangedFile {
    /// The file as it is then; none if no rows are left.
    pub file: Option<DataFile>,
    /// What the table's log must say.
    pub actions: Vec<Action>,
    /// Bytes that were written for it.
    pub bytes: u64,
}

/// Reads and writes the files of one table.
#[derive(Clone)]
pub struct DataFiles {
    relation: String,
    schema: SchemaRef,
    log_store: LogStoreRef,
    deletes: Deletes,
}

impl DataFiles {
    pub(super) fn new(
        relation: &str,
        schema: SchemaRef,
        log_store: LogStoreRef,
        deletes: Deletes,
    ) -> Self {
        let relation = relation.to_owned();
        Self {
            relation,
            schema,
            log_store,
            deletes,
        }
    }

    fn store(&self) -> Arc<dyn ObjectStore> {
        self.log_store.object_store(None)
    }

    fn what(&self, verb: &str, file: &str) -> String {
        format!(
            "cannot {verb} file \"{file}\" of table \"{}\"",
            self.relation
        )
    }

    /// All rows that were written to a file, in order; `None` if it is not there.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub async fn read(&self, file: &str) -> Result<Option<Vec<RecordBatch>>, TableError> {
        let bytes = match self.store().get(&Path::from(file)).await {
            Ok(found) => found.bytes().await,
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(error) => Err(error),
        };
        let bytes = bytes.map_err(TableError::storage(self.what("read", file)))?;
        self.decode(file, bytes).map(Some)
    }

    fn decode(&self, file: &str, bytes: Bytes) -> Result<Vec<RecordBatch>, TableError> {
        let what = self.what("decode", file);
        let batches = decode(&what, bytes)?.into_iter();
        let completed = batches.map(|batch| of_relation(&batch, &self.schema));
        completed
            .collect::<Result<_, _>>()
            .map_err(TableError::storage(what))
    }

    /// The numbers of the rows that have been removed from a file. Blocks.
    ///
    /// # Errors
    /// If the file's deletion vector cannot be read.
    pub fn removed(&self, file: &DataFile) -> Result<RoaringBitmap, TableError> {
        let Some(vector) = file.entry.deletion_vector.clone() else {
            return Ok(RoaringBitmap::new());
        };
        let what = self.what("read the deletion vector of", &file.entry.path);
        let storage = self.log_store.engine(None).storage_handler();
        let rows = KernelDescriptor::try_from(vector)
            .and_then(|vector| vector.read(storage, self.log_store.root_url()))
            .map_err(TableError::storage(&*what))?;
        // A data file has fewer than 2^32 rows, so only the first of the 32-bit bitmaps is used.
        let mut bitmaps = rows.bitmaps();
        let removed = bitmaps.next().map(|(_, bitmap)| bitmap.clone());
        Ok(removed.unwrap_or_default())
    }

    /// The rows of a file that are part of the table, in order.
    ///
    /// # Errors
    /// If the file or its deletion vector cannot be read.
    pub async fn present(&self, file: &DataFile) -> Result<RecordBatch, TableError> {
        let path = &file.entry.path;
        let batches = self.read(path).await?;
        let batches = batches.ok_or_else(|| self.lost(path))?;
        let (this, entry) = (self.clone(), file.clone());
        let removed = tokio::task::spawn_blocking(move || this.removed(&entry)).await;
        let removed = removed.map_err(TableError::storage(self.what("read", path)))??;
        self.without(path, &batches, &removed)
    }

    fn lost(&self, file: &str) -> TableError {
        TableError::Unusable(format!("{}: it is not there", self.what("read", file)))
    }

    /// Writes the rows to one new file, in order.
    ///
    /// # Errors
    /// If the storage fails.
    pub async fn append(&self, rows: &RecordBatch, moved: bool) -> Result<DataFile, TableError> {
        let what = self.what("write", "(new)");
        let columns = DataSkippingNumIndexedCols::NumColumns(STATISTICS_COLUMNS);
        let (rows, names) = further::expand_all(rows).map_err(TableError::storage(&*what))?;
        let schema = rows.schema();
        // No file is split, so that a row's number is its place in what was written.
        let file_size = None;
        let config = WriterConfig::new(schema, vec![], None, file_size, None, columns, None);
        // Encoded in memory, and put at once: the writer panics when its storage fails.
        let memory: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let mut writer = DeltaWriter::new(Arc::clone(&memory), config);
        writer
            .write(&rows)
            .await
            .map_err(TableError::storage(&*what))?;
        let mut added = writer.close().await.map_err(TableError::storage(&*what))?;
        match (added.pop(), added.is_empty()) {
            (Some(mut entry), true) => {
                let path = Path::from(entry.path.as_str());
                let copied = async {
                    let bytes = memory.get(&path).await?.bytes().await?;
                    self.store().put(&path, bytes.into()).await
                };
                copied.await.map_err(TableError::storage(what))?;
                entry.data_change = !moved;
                further::tag(&mut entry, &names);
                let rows = rows.num_rows() as u32;
                Ok(DataFile { rows, entry })
            }
            (last, _) => Err(TableError::Unusable(format!(
                "{what}: expected one file, found {}",
                added.len() + usize::from(last.is_some())
            ))),
        }
    }

    /// Takes rows out of files; returns what became of each, in the same order.
    ///
    /// # Errors
    /// If the storage fails.
    pub async fn remove(&self, removals: &[FileRemoval]) -> Result<Vec<ChangedFile>, TableError> {
        match self.deletes {
            Deletes::Vectors => self.mark(removals).await,
            Deletes::Rewrite => {
                let mut changed = Vec::with_capacity(removals.len());
                for removal in removals {
                    changed.push(self.rewrite(removal).await?);
                }
                Ok(changed)
            }
        }
    }

    /// Writes the deletion vectors of all files to one object.
    async fn mark(&self, removals: &[FileRemoval]) -> Result<Vec<ChangedFile>, TableError> {
        let what = format!(
            "cannot write a deletion vector of table \"{}\"",
            self.relation
        );
        let id = Uuid::new_v4();
        let mut object = Vec::new();
        let mut writer = StreamingDeletionVectorWriter::new(&mut object);
        let mut changed = Vec::with_capacity(removals.len());
        for removal in removals {
            let remove = remove_entry(&removal.file.entry, !removal.moved);
            if removal.leaves_nothing() {
                changed.push(ChangedFile::gone(remove));
                continue;
            }
            let mut vector = KernelDeletionVector::new();
            let all = &removal.removed_before | &removal.rows;
            vector.add_deleted_row_indexes(all.iter().map(u64::from));
            let written = writer
                .write_deletion_vector(vector)
                .map_err(TableError::storage(&*what))?;
            let mut entry = removal.file.entry.clone();
            entry.stats = entry.stats.map(|stats| with_loose_bounds(&stats));
            entry.data_change = !removal.moved;
            entry.deletion_vector = Some(DeletionVectorDescriptor {
                storage_type: StorageType::UuidRelativePath,
                path_or_inline_dv: z85::encode(id.as_bytes()),
                offset: Some(written.offset),
                size_in_bytes: written.size_in_bytes,
                cardinality: written.cardinality,
            });
            let rows = removal.file.rows;
            changed.push(ChangedFile {
                actions: vec![remove, Action::Add(entry.clone())],
                file: Some(DataFile { rows, entry }),
                bytes: written.size_in_bytes.unsigned_abs().into(),
            });
        }
        if !object.is_empty() {
            let path = Path::from(vector_name(id));
            let put = self.store().put(&path, object.into()).await;
            put.map_err(TableError::storage(what))?;
        }
        Ok(changed)
    }

    async fn rewrite(&self, removal: &FileRemoval) -> Result<ChangedFile, TableError> {
        let remove = remove_entry(&removal.file.entry, !removal.moved);
        if removal.leaves_nothing() {
            return Ok(ChangedFile::gone(remove));
        }
        let path = &removal.file.entry.path;
        let batches = self.read(path).await?;
        let batches = batches.ok_or_else(|| self.lost(path))?;
        let kept = self.without(path, &batches, &places(removal))?;
        let new = self.append(&kept, removal.moved).await?;
        // The numbers of the rows stay those of the first file.
        let rows = removal.file.rows;
        Ok(ChangedFile {
            actions: vec![remove, Action::Add(new.entry.clone())],
            bytes: new.entry.size.unsigned_abs(),
            file: Some(DataFile {
                rows,
                entry: new.entry,
            }),
        })
    }

    fn without(
        &self,
        file: &str,
        batches: &[RecordBatch],
        rows: &RoaringBitmap,
    ) -> Result<RecordBatch, TableError> {
        let what = self.what("filter", file);
        let all = concat_batches(&self.schema, batches).map_err(TableError::storage(&*what))?;
        let numbers = 0..all.num_rows() as u32;
        let keep: Vec<bool> = numbers.map(|number| !rows.contains(number)).collect();
        filter_record_batch(&all, &BooleanArray::from(keep)).map_err(TableError::storage(what))
    }
}

impl FileRemoval {
    fn leaves_nothing(&self) -> bool {
        self.removed_before.len() + self.rows.len() == u64::from(self.file.rows)
    }
}

impl ChangedFile {
    fn gone(remove: Action) -> Self {
        Self {
            file: None,
            actions: vec![remove],
            bytes: 0,
        }
    }
}

/// All rows of a Parquet file; `what` is told if it is none.
pub(super) fn decode(what: &str, bytes: Bytes) -> Result<Vec<RecordBatch>, TableError> {
    let reader = ParquetRecordBatchReaderBuilder::try_new(bytes)
        .and_then(ParquetRecordBatchReaderBuilder::build)
        .map_err(TableError::storage(what))?;
    reader
        .collect::<Result<_, _>>()
        .map_err(TableError::storage(what))
}

/// The relation's columns of rows in a file. Those that came after the rows were written have nothing in them, which
/// is 0 or an empty text where there must be something.
///
/// # Errors
/// If the file's columns are not those of the relation.
pub fn of_relation(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch, ArrowError> {
    let held = further::place(schema);
    let mut columns = Vec::with_capacity(schema.fields().len());
    for (place, field) in schema.fields().iter().enumerate() {
        let column = match batch.column_by_name(field.name()) {
            _ if held == Some(place) => further::collapse(batch, schema),
            Some(column) => Arc::clone(column),
            None => {
                let nulls = new_null_array(field.data_type(), batch.num_rows());
                match field.is_nullable() {
                    true => nulls,
                    false => make_array(nulls.to_data().into_builder().nulls(None).build()?),
                }
            }
        };
        columns.push(column);
    }
    RecordBatch::try_new(Arc::clone(schema), columns)
}

/// The entry of the log that takes a file out of the table.
pub(super) fn remove_entry(entry: &Add, data_change: bool) -> Action {
    Action::Remove(Remove {
        path: entry.path.clone(),
        data_change,
        deletion_timestamp: Some(chrono::Utc::now().timestamp_millis()),
        extended_file_metadata: Some(true),
        partition_values: Some(entry.partition_values.clone()),
        size: Some(entry.size),
        deletion_vector: entry.deletion_vector.clone(),
        ..Remove::default()
    })
}

/// Under which name the table format looks for the deletion vectors of this identifier.
fn vector_name(id: Uuid) -> String {
    format!("deletion_vector_{id}.bin")
}

/// Where a deletion vector lies in the table's folder; `None` if it lies elsewhere.
pub(super) fn vector_path(vector: &DeletionVectorDescriptor) -> Option<Path> {
    if vector.storage_type != StorageType::UuidRelativePath {
        return None;
    }
    // A folder's name of any length may stand before the 20 characters of the identifier.
    let start = vector.path_or_inline_dv.len().checked_sub(20)?;
    let (folder, id) = vector.path_or_inline_dv.split_at_checked(start)?;
    let id = Uuid::from_slice(&z85::decode(id).ok()?).ok()?;
    let parts = [folder, &vector_name(id)];
    Some(
        parts
            .iter()
            .copied()
            .filter(|part| !part.is_empty())
            .collect(),
    )
}

/// The places, in the file as it lies there, of the rows that must not be in the next one.
///
/// A file with a deletion vector still has all its rows. One that was rewritten has lost those
/// removed before, so that a row's place is what is left of its number after them.
fn places(removal: &FileRemoval) -> RoaringBitmap {
    let before = &removal.removed_before;
    if removal.file.entry.deletion_vector.is_some() {
        return before | &removal.rows;
    }
    let place = |row: u32| row - before.rank(row) as u32;
    removal.rows.iter().map(place).collect()
}

/// Says that the least and greatest values may belong to rows that have been removed.
fn with_loose_bounds(statistics: &str) -> String {
    let parsed = serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(statistics);
    match parsed {
        Ok(mut statistics) => {
            statistics.insert("tightBounds".to_owned(), false.into());
            serde_json::Value::Object(statistics).to_string()
        }
        Err(_) => statistics.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn removal(before: &[u32], rows: &[u32]) -> FileRemoval {
        FileRemoval {
            file: DataFile {
                rows: 8,
                entry: Add::default(),
            },
            removed_before: before.iter().copied().collect(),
            rows: rows.iter().copied().collect(),
            moved: false,
        }
    }

    fn places(removal: &FileRemoval) -> Vec<u32> {
        super::places(removal).iter().collect()
    }

    #[test]
    fn numbers_become_places_in_a_rewritten_file() {
        assert_eq!(places(&removal(&[], &[5, 2])), [2, 5]);
        // Rows 0 1 3 4 6 7 are left, now at places 0 to 5.
        assert_eq!(places(&removal(&[2, 5], &[7, 0, 3])), [0, 2, 5]);
        assert!(removal(&[0, 2, 3, 5, 7], &[6, 4, 1]).leaves_nothing());
    }

    #[test]
    fn a_file_with_a_deletion_vector_still_has_all_its_rows() {
        let mut removal = removal(&[2], &[5]);
        removal.file.entry.deletion_vector = Some(DeletionVectorDescriptor {
            storage_type: StorageType::UuidRelativePath,
            path_or_inline_dv: String::new(),
            offset: None,
            size_in_bytes: 0,
            cardinality: 1,
        });
        assert_eq!(places(&removal), [2, 5]);
    }

    #[test]
    fn bounds_are_loosened_and_the_rest_is_kept() {
        let loose = with_loose_bounds(r#"{"numRecords":3,"tightBounds":true}"#);
        assert!(loose.contains("\"tightBounds\":false") && loose.contains("\"numRecords\":3"));
    }
}
