//! Performs checkpoints and restarts on tables and manifests, as [`super::protocol`] decides.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::datatypes::SchemaRef;
use bytes::Bytes;
use connectors::delta::{
    Deletes, Keep, Manifests, Mended, PutManifest, Table, TableError, TablesFolder, Vacuumed,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use super::crash;
use super::lease::Lease;
use super::protocol::{FORMAT, Manifest, Refusal, application, recover};
use crate::metrics;

/// Manifests kept for those who look back; a restart needs the last one alone.
const MANIFESTS_KEPT: usize = 10;

/// Versions of a table between checkpoints of its log.
const VERSIONS_BETWEEN_LOG_CHECKPOINTS: u64 = 100;

/// How often a reader looks again while a writer is between the manifest and the tables.
const BETWEEN_LOOKS: Duration = Duration::from_millis(50);

/// After so long a reader takes it that the writer is gone.
const LONGEST_CHECKPOINT: Duration = Duration::from_secs(10);

/// Why the tables cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A table or manifest could not be read or written.
    #[error(transparent)]
    Table(#[from] TableError),
    /// What was found is not of one history.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// A manifest is not what it should be.
    #[error("manifest {number} cannot be understood: {source}")]
    Manifest {
        /// Its number.
        number: u64,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// Someone else writes the tables.
    #[error(
        "the tables are written by another process (number {0} on its machine); only one may write \
         them: stop it, or use another folder"
    )]
    Held(u32),
    /// A crash left the last checkpoint unfinished, and nobody finishes it.
    #[error("the last checkpoint was cut short; start Assay once to finish it")]
    CutShort,
    /// Someone else has become the writer of the tables.
    #[error("another process has taken over the tables; this one writes them no more")]
    TakenOver,
}

/// What was decided while a pipeline ran, kept beside its tables as JSON.
#[derive(Clone)]
pub struct Decisions(Manifests);

impl Decisions {
    /// Those beside the tables in this folder.
    pub fn open(folder: &TablesFolder) -> Self {
        Self(Manifests::open(folder))
    }

    /// What was decided, if anything was that can be understood.
    ///
    /// # Errors
    /// If the storage fails.
    pub async fn read<T: DeserializeOwned>(&self) -> Result<Option<T>, StoreError> {
        let kept = self.0.models().await?;
        Ok(kept.and_then(|bytes| serde_json::from_slice(&bytes).ok()))
    }

    /// Writes what is decided in the place of what was.
    ///
    /// # Errors
    /// If the storage fails.
    pub async fn write(&self, decided: &impl Serialize) -> Result<(), StoreError> {
        let json = serde_json::to_vec_pretty(decided);
        let json = json.map_err(|error| TableError::Unusable(error.to_string()))?;
        Ok(self.0.write_models(json.into()).await?)
    }
}

/// What a pipeline's tables are, and where.
#[derive(Clone, Debug)]
pub struct TablesPlan {
    /// Where they are.
    pub folder: TablesFolder,
    /// The pipeline's name.
    pub pipeline: String,
    /// Its relations and their columns.
    pub relations: Vec<(&'static str, SchemaRef)>,
    /// The relations that come from the source: rows lost from them must be read there again.
    pub from_source: &'static [&'static str],
    /// How rows are removed from files.
    pub deletes: Deletes,
    /// For how long earlier versions of the tables can be read.
    pub history: Duration,
}

/// A pipeline's tables in the state of their last manifest.
pub struct Store {
    pipeline: String,
    history: Duration,
    manifests: Manifests,
    /// The number of the last manifest, 0 if there is none.
    number: u64,
    lease: Lease,
    tables: BTreeMap<String, Table>,
    epoch: u64,
    positions: BTreeMap<String, i64>,
    last_written: BTreeMap<String, i64>,
    /// The epoch of each table's last change.
    changed_at: BTreeMap<String, u64>,
}

/// A checkpoint to be committed.
pub struct Commit {
    /// Its epoch.
    pub epoch: u64,
    /// What the tables' logs must say, by relation.
    pub changes: BTreeMap<String, Vec<Box<RawValue>>>,
    /// The positions that moved, with when the last message before each was written.
    pub moved: Vec<(String, i64, Option<i64>)>,
}

impl Store {
    /// Opens the tables to read them, making those that are missing: all as of one checkpoint, even
    /// while another process goes on to write.
    ///
    /// # Errors
    /// If the storage fails, or what it holds is not of one history.
    pub async fn read(plan: &TablesPlan) -> Result<Self, StoreError> {
        let mut waited = Duration::ZERO;
        loop {
            let (store, last) = Self::open(plan).await?;
            let number = store.manifests.numbers().await?.last().copied();
            let settled = number.unwrap_or(0) == store.number;
            if settled && store.behind(last.as_ref()).await?.is_empty() {
                return Ok(store.at(last.as_ref()));
            }
            if waited > LONGEST_CHECKPOINT {
                return Err(StoreError::CutShort);
            }
            tokio::time::sleep(BETWEEN_LOOKS).await;
            waited += BETWEEN_LOOKS;
        }
    }

    /// Opens the tables to write them: waits for the lease, finishes a checkpoint that was cut
    /// short, takes back what others changed, and keeps whoever wrote before from writing.
    ///
    /// # Errors
    /// If the storage fails, someone else writes, or what is there is not of one history.
    pub async fn write(plan: &TablesPlan) -> Result<Self, StoreError> {
        let manifests = Manifests::open(&plan.folder);
        let own = Lease::own();
        if let Err(holder) = own.vacancy(&manifests).await? {
            return Err(StoreError::Held(holder.process));
        }
        own.write(&manifests).await?;
        crash::point("restore-begun");
        loop {
            let (mut store, last) = Self::open(plan).await?;
            if let Some(last) = &last {
                for relation in store.behind(Some(last)).await? {
                    tracing::info!(table = %relation, epoch = last.epoch, "finishing a checkpoint that was cut short");
                    store.apply(&relation, last).await?;
                    crash::point("table-recovered");
                }
            } else {
                store.behind(None).await?;
            }
            let lost = store.mend().await?;
            store = store.at(last.as_ref());
            if plan
                .from_source
                .iter()
                .any(|relation| lost.contains(*relation))
            {
                tracing::warn!(
                    "rows of the source were lost from the tables; reading it again from its beginning"
                );
                store.positions.clear();
                store.last_written.clear();
            }
            let begin = store.manifest(store.epoch, BTreeMap::new());
            let bytes = to_bytes(&begin, store.number + 1)?;
            match store.manifests.put(store.number + 1, bytes).await? {
                PutManifest::Created => {
                    store.number += 1;
                    crash::point("writer-changed");
                    return Ok(store);
                }
                // The writer before us was not dead after all, and has just committed its last.
                PutManifest::Existed => {}
            }
        }
    }

    async fn open(plan: &TablesPlan) -> Result<(Self, Option<Manifest>), StoreError> {
        let manifests = Manifests::open(&plan.folder);
        let (number, last) = last_manifest(&manifests).await?;
        let mut tables = BTreeMap::new();
        for (relation, schema) in &plan.relations {
            let table = Table::open(&plan.folder, relation, schema.clone(), plan.deletes).await?;
            tables.insert((*relation).to_owned(), table);
        }
        let store = Self {
            pipeline: plan.pipeline.clone(),
            history: plan.history,
            manifests,
            number,
            lease: Lease::own(),
            tables,
            epoch: 0,
            positions: BTreeMap::new(),
            last_written: BTreeMap::new(),
            changed_at: BTreeMap::new(),
        };
        Ok((store, last))
    }

    /// The relations whose tables have not heard of the last manifest.
    async fn behind(&self, last: Option<&Manifest>) -> Result<Vec<String>, StoreError> {
        let mut applied = BTreeMap::new();
        for (relation, table) in &self.tables {
            let application = application(&self.pipeline, relation);
            applied.insert(relation.clone(), table.transaction(&application).await?);
        }
        Ok(recover(&self.pipeline, last, &applied)?)
    }

    fn at(mut self, last: Option<&Manifest>) -> Self {
        if let Some(last) = last {
            self.epoch = last.epoch;
            self.changed_at = changed_at(last);
            self.positions = last.positions.clone();
            self.last_written = last.last_written.clone();
        }
        self
    }

    /// Makes every table what it was after the last checkpoint that changed it, less lost files;
    /// returns the relations that lost some.
    async fn mend(&mut self) -> Result<BTreeSet<String>, StoreError> {
        let mut lost = BTreeSet::new();
        for (relation, table) in &mut self.tables {
            let application = application(&self.pipeline, relation);
            let ours = table.committed_version(&application).await?;
            let wanted = match ours.filter(|ours| *ours < table.version()) {
                Some(ours) => table.at(ours).await?,
                None => table.clone(),
            };
            let mended = table.mend(&wanted).await?;
            if mended.lost > 0 {
                lost.insert(relation.clone());
            }
            report(relation, mended);
        }
        Ok(lost)
    }

    /// The epoch of the last checkpoint, 0 if there is none.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Where the sources continue.
    pub fn positions(&self) -> &BTreeMap<String, i64> {
        &self.positions
    }

    /// When the last message before each of those positions was written, where that is known.
    pub fn last_written(&self) -> &BTreeMap<String, i64> {
        &self.last_written
    }

    /// The table of a relation.
    pub fn table(&self, relation: &str) -> Option<&Table> {
        self.tables.get(relation)
    }

    /// All tables, by relation.
    pub fn tables(&self) -> &BTreeMap<String, Table> {
        &self.tables
    }

    /// The lease under which this writes, and where it is renewed.
    pub fn lease(&self) -> (Lease, Manifests) {
        (self.lease.clone(), self.manifests.clone())
    }

    /// Commits a checkpoint; tries again, with growing pauses, while the storage fails.
    ///
    /// # Errors
    /// If trying again cannot help.
    pub async fn commit(&mut self, commit: Commit) -> Result<(), StoreError> {
        let started = Instant::now();
        for (partition, next_offset, last_written) in commit.moved {
            match last_written {
                Some(time) => self.last_written.insert(partition.clone(), time),
                None => self.last_written.remove(&partition),
            };
            self.positions.insert(partition, next_offset);
        }
        let manifest = self.manifest(commit.epoch, commit.changes);
        self.put(&manifest).await?;
        crash::point("manifest-put");
        for relation in manifest.changes.keys() {
            let mut pause = Pause::default();
            while let Err(error) = self.apply(relation, &manifest).await {
                pause.after(error).await?;
            }
            crash::point("table-committed");
        }
        self.epoch = commit.epoch;
        self.changed_at = changed_at(&manifest);
        metrics::checkpoint(started.elapsed(), commit.epoch);
        tracing::debug!(
            epoch = commit.epoch,
            tables = manifest.changes.len(),
            "checkpoint"
        );
        Ok(())
    }

    fn manifest(&self, epoch: u64, changes: BTreeMap<String, Vec<Box<RawValue>>>) -> Manifest {
        Manifest {
            format: FORMAT,
            pipeline: self.pipeline.clone(),
            writer: self.lease.writer.clone(),
            epoch,
            positions: self.positions.clone(),
            last_written: self.last_written.clone(),
            before: self.changed_at.clone(),
            changes,
        }
    }

    async fn put(&mut self, manifest: &Manifest) -> Result<(), StoreError> {
        let number = self.number + 1;
        let bytes = to_bytes(manifest, number)?;
        let mut pause = Pause::default();
        loop {
            match self.put_once(number, &bytes).await {
                Ok(()) => {
                    self.number = number;
                    return Ok(());
                }
                Err(error) => pause.after(error).await?,
            }
        }
    }

    async fn put_once(&self, number: u64, bytes: &Bytes) -> Result<(), StoreError> {
        let existed = self.manifests.put(number, bytes.clone()).await? == PutManifest::Existed;
        // A failed attempt of our own may have left it after all.
        if existed && self.manifests.read(number).await? != bytes {
            return Err(StoreError::TakenOver);
        }
        // Old manifests are removed, so the number of a writer that slept for long may be free again.
        if self.manifests.numbers().await?.last() != Some(&number) {
            self.manifests.remove(number).await?;
            return Err(StoreError::TakenOver);
        }
        Ok(())
    }

    /// Tells one table's log its part of the manifest, unless it has heard.
    async fn apply(&mut self, relation: &str, manifest: &Manifest) -> Result<(), StoreError> {
        let application = application(&self.pipeline, relation);
        let (Some(table), Some(changes)) = (
            self.tables.get_mut(relation),
            manifest.changes.get(relation),
        ) else {
            return Ok(());
        };
        let known = table.clone();
        table.refresh().await?;
        // Looking at the log first makes telling it twice harmless: Delta itself would accept it.
        let epoch = manifest.epoch as i64;
        if table
            .transaction(&application)
            .await?
            .is_some_and(|applied| applied >= epoch)
        {
            return Ok(());
        }
        if table.version() != known.version() {
            report(relation, table.mend(&known).await?);
        }
        let actions: Result<Vec<_>, _> = changes
            .iter()
            .map(|change| serde_json::from_str(change.get()))
            .collect();
        let actions = actions.map_err(|source| StoreError::Manifest {
            number: self.number,
            source,
        })?;
        table.commit(&application, epoch, actions).await?;
        Ok(())
    }

    /// Makes the current versions of the tables the only ones: what was removed from them is gone
    /// from the storage as well, and the past can no longer be read.
    ///
    /// # Errors
    /// If the storage fails, or someone else has become the writer.
    pub async fn drop_history(&mut self) -> Result<Vacuumed, StoreError> {
        // A manifest repeats what the tables' logs say, so that of the last change goes as well.
        let nothing = self.manifest(self.epoch, BTreeMap::new());
        self.put(&nothing).await?;
        for number in self.manifests.numbers().await? {
            if number < self.number {
                self.manifests.remove(number).await?;
            }
        }
        let mut removed = Vacuumed::default();
        for table in self.tables.values() {
            let vacuumed = table.vacuum(Keep::Current, true).await?;
            removed.files += vacuumed.files;
            removed.bytes += vacuumed.bytes;
            table.tidy(crate::now_ms() as i64).await?;
        }
        Ok(removed)
    }

    /// Gives the lease back; failing only makes the next writer wait.
    pub async fn release(self) {
        let lease = Lease {
            released: true,
            ..self.lease
        };
        if let Err(error) = lease.write(&self.manifests).await {
            tracing::warn!("{:#}", anyhow::Error::from(error));
        }
    }

    /// Removes what neither a restart nor a look back needs; failing costs only space.
    pub async fn tidy(&self) {
        if let Err(error) = self.try_tidy().await {
            tracing::warn!("cannot tidy up: {:#}", anyhow::Error::from(error));
        }
    }

    async fn try_tidy(&self) -> Result<(), TableError> {
        let numbers = self.manifests.numbers().await?;
        for number in numbers.iter().rev().skip(MANIFESTS_KEPT) {
            self.manifests.remove(*number).await?;
        }
        let cutoff = crate::now_ms() as i64 - self.history.as_millis() as i64;
        for table in self.tables.values() {
            if table.version() > 0
                && table
                    .version()
                    .is_multiple_of(VERSIONS_BETWEEN_LOG_CHECKPOINTS)
            {
                table.tidy(cutoff).await?;
                crash::point("log-tidied");
            }
        }
        Ok(())
    }
}

/// The last epoch at or before this one whose checkpoint all tables have heard of.
///
/// # Errors
/// If the storage fails.
pub async fn settled_epoch(plan: &TablesPlan, epoch: u64) -> Result<u64, StoreError> {
    let (_, last) = last_manifest(&Manifests::open(&plan.folder)).await?;
    let Some(last) = last.filter(|last| last.epoch <= epoch) else {
        return Ok(epoch);
    };
    for relation in last.changes.keys() {
        let Some(table) = open_existing(plan, relation).await? else {
            continue;
        };
        let heard = table
            .transaction(&application(&plan.pipeline, relation))
            .await?;
        if heard.is_none_or(|heard| heard.unsigned_abs() < last.epoch) {
            return Ok(last.epoch - 1);
        }
    }
    Ok(epoch)
}

/// A table as of a [`settled_epoch`], with the epoch at which it had last changed; `None` if its log
/// does not reach back so far, or there is no such table.
///
/// # Errors
/// If the storage fails.
pub async fn table_at(
    plan: &TablesPlan,
    relation: &str,
    epoch: u64,
) -> Result<Option<(u64, Table)>, StoreError> {
    let Some(table) = open_existing(plan, relation).await? else {
        return Ok(None);
    };
    let application = application(&plan.pipeline, relation);
    let Some((version, changed)) = table.committed_by(&application, epoch as i64).await? else {
        return Ok(None);
    };
    Ok(Some((changed.unsigned_abs(), table.at(version).await?)))
}

async fn open_existing(plan: &TablesPlan, relation: &str) -> Result<Option<Table>, StoreError> {
    let Some((_, schema)) = plan.relations.iter().find(|(name, _)| *name == relation) else {
        return Ok(None);
    };
    let schema = Arc::clone(schema);
    Ok(Table::open_existing(&plan.folder, relation, schema, plan.deletes).await?)
}

fn report(relation: &str, mended: Mended) {
    if mended == Mended::default() {
        return;
    }
    let Mended {
        put_back,
        taken_out,
        lost,
    } = mended;
    tracing::warn!(
        table = relation,
        put_back,
        taken_out,
        lost,
        "files of the table are not as they were left; the table is being mended"
    );
    metrics::mended_files(relation, put_back + taken_out);
}

/// The epoch that each table's log carries once it has heard of the manifest.
fn changed_at(manifest: &Manifest) -> BTreeMap<String, u64> {
    let mut changed_at = manifest.before.clone();
    changed_at.extend(
        manifest
            .changes
            .keys()
            .map(|relation| (relation.clone(), manifest.epoch)),
    );
    changed_at
}

fn to_bytes(manifest: &Manifest, number: u64) -> Result<Bytes, StoreError> {
    let bytes = serde_json::to_vec(manifest);
    let bytes = bytes.map_err(|source| StoreError::Manifest { number, source })?;
    Ok(bytes.into())
}

/// The last manifest and its number, which is 0 if there is none.
async fn last_manifest(manifests: &Manifests) -> Result<(u64, Option<Manifest>), StoreError> {
    match manifests.numbers().await?.last() {
        None => Ok((0, None)),
        Some(number) => Ok((*number, Some(read_manifest(manifests, *number).await?))),
    }
}

async fn read_manifest(manifests: &Manifests, number: u64) -> Result<Manifest, StoreError> {
    let bytes = manifests.read(number).await?;
    serde_json::from_slice(&bytes).map_err(|source| StoreError::Manifest { number, source })
}

/// Growing pauses between attempts at something that failed but may work later.
pub struct Pause {
    next: Duration,
}

impl Default for Pause {
    fn default() -> Self {
        Self {
            next: Duration::from_millis(100),
        }
    }
}

impl Pause {
    const LONGEST: Duration = Duration::from_secs(10);

    /// Tells of the error and waits, if trying again may help; otherwise gives the error back.
    ///
    /// # Errors
    /// If trying again cannot help.
    pub async fn after(&mut self, error: StoreError) -> Result<(), StoreError> {
        if !matches!(error, StoreError::Table(TableError::Storage { .. })) {
            return Err(error);
        }
        metrics::storage_failed();
        let error = anyhow::Error::from(error);
        tracing::warn!("{error:#}; trying again in {:?}", self.next);
        tokio::time::sleep(self.next).await;
        self.next = (self.next * 2).min(Self::LONGEST);
        Ok(())
    }
}
