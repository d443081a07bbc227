//! Performs checkpoints and restarts on tables and manifests, as [`super::protocol`] decides.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use arrow::datatypes::SchemaRef;
use bytes::Bytes;
use connectors::delta::{Manifests, PutManifest, Table, TableError, TablesFolder};
use serde_json::value::RawValue;

use super::protocol::{FORMAT, Manifest, Refusal, application, recover};
use crate::metrics;

/// Manifests kept for those who look back; a restart needs the last one alone.
const MANIFESTS_KEPT: usize = 10;

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
    #[error("manifest {epoch} cannot be understood: {source}")]
    Manifest {
        /// Its epoch.
        epoch: u64,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// Someone else has written this checkpoint.
    #[error("another process has written epoch {0} to the same tables; only one may write them")]
    Taken(u64),
}

/// A pipeline's tables, brought to the state of their last manifest.
pub struct Store {
    pipeline: String,
    manifests: Manifests,
    tables: BTreeMap<String, Table>,
    epoch: u64,
    positions: BTreeMap<String, i64>,
    /// The epoch of each table's last change.
    changed_at: BTreeMap<String, u64>,
}

/// A checkpoint to be committed.
pub struct Commit {
    /// Its epoch.
    pub epoch: u64,
    /// What the tables' logs must say, by relation.
    pub changes: BTreeMap<String, Vec<Box<RawValue>>>,
    /// The positions that moved.
    pub moved: Vec<(String, i64)>,
}

impl Store {
    /// Opens the tables, makes those that are missing, and finishes a checkpoint that was cut short.
    ///
    /// # Errors
    /// If the storage fails, or what it holds is not of one history.
    pub async fn open(
        folder: &TablesFolder,
        pipeline: &str,
        relations: &[(&str, SchemaRef)],
    ) -> Result<Self, StoreError> {
        let manifests = Manifests::open(folder)?;
        let last = match manifests.epochs().await?.last() {
            Some(epoch) => Some(read_manifest(&manifests, *epoch).await?),
            None => None,
        };
        let mut tables = BTreeMap::new();
        let mut applied = BTreeMap::new();
        for (relation, schema) in relations {
            let table = Table::open(folder, relation, schema.clone()).await?;
            let epoch = table.transaction(&application(pipeline, relation)).await?;
            applied.insert((*relation).to_owned(), epoch);
            tables.insert((*relation).to_owned(), table);
        }
        let behind = recover(pipeline, last.as_ref(), &applied)?;
        let mut store = Self {
            pipeline: pipeline.to_owned(),
            manifests,
            tables,
            epoch: 0,
            positions: BTreeMap::new(),
            changed_at: BTreeMap::new(),
        };
        if let Some(last) = last {
            for relation in behind {
                tracing::info!(table = %relation, epoch = last.epoch, "finishing a checkpoint that was cut short");
                store.apply(&relation, &last).await?;
            }
            store.epoch = last.epoch;
            store.changed_at = changed_at(&last);
            store.positions = last.positions;
        }
        Ok(store)
    }

    /// The epoch of the last checkpoint, 0 if there is none.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Where the sources continue.
    pub fn positions(&self) -> &BTreeMap<String, i64> {
        &self.positions
    }

    /// The table of a relation.
    pub fn table(&self, relation: &str) -> Option<&Table> {
        self.tables.get(relation)
    }

    /// Commits a checkpoint; tries again, with growing pauses, while the storage fails.
    ///
    /// # Errors
    /// If trying again cannot help.
    pub async fn commit(&mut self, commit: Commit) -> Result<(), StoreError> {
        let started = Instant::now();
        for (partition, offset) in commit.moved {
            self.positions.insert(partition, offset);
        }
        let manifest = Manifest {
            format: FORMAT,
            pipeline: self.pipeline.clone(),
            epoch: commit.epoch,
            positions: self.positions.clone(),
            before: self.changed_at.clone(),
            changes: commit.changes,
        };
        let bytes = serde_json::to_vec(&manifest).map_err(|source| StoreError::Manifest {
            epoch: commit.epoch,
            source,
        })?;
        self.put(&manifest, bytes.into()).await?;
        for relation in manifest.changes.keys() {
            let mut pause = Pause::default();
            while let Err(error) = self.apply(relation, &manifest).await {
                pause.after(error).await?;
            }
        }
        self.epoch = commit.epoch;
        self.changed_at = changed_at(&manifest);
        self.forget_old_manifests().await;
        metrics::checkpoint(started.elapsed(), commit.epoch);
        tracing::debug!(
            epoch = commit.epoch,
            tables = manifest.changes.len(),
            "checkpoint"
        );
        Ok(())
    }

    async fn put(&self, manifest: &Manifest, bytes: Bytes) -> Result<(), StoreError> {
        let mut pause = Pause::default();
        loop {
            self.require_own_history(manifest.epoch).await?;
            match self.manifests.put(manifest.epoch, bytes.clone()).await {
                Ok(PutManifest::Created) => return Ok(()),
                Ok(PutManifest::Existed) => {
                    // A failed attempt of our own may have left it after all.
                    if self.manifests.read(manifest.epoch).await? == bytes {
                        return Ok(());
                    }
                    return Err(StoreError::Taken(manifest.epoch));
                }
                Err(error) => pause.after(error.into()).await?,
            }
        }
    }

    /// Finds another writer by the manifests it has put since our last.
    async fn require_own_history(&self, next: u64) -> Result<(), StoreError> {
        let epochs = match self.manifests.epochs().await {
            Ok(epochs) => epochs,
            // Putting will fail too, and is tried again.
            Err(TableError::Storage { .. }) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        match epochs.into_iter().rev().find(|epoch| *epoch != next) {
            Some(newest) if newest != self.epoch => Err(StoreError::Taken(newest)),
            _ => Ok(()),
        }
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
        // Looking at the log first makes telling it twice harmless: Delta itself would accept it.
        table.refresh().await?;
        let epoch = manifest.epoch as i64;
        if table
            .transaction(&application)
            .await?
            .is_some_and(|applied| applied >= epoch)
        {
            return Ok(());
        }
        let actions: Result<Vec<_>, _> = changes
            .iter()
            .map(|change| serde_json::from_str(change.get()))
            .collect();
        let actions = actions.map_err(|source| StoreError::Manifest {
            epoch: manifest.epoch,
            source,
        })?;
        table.commit(&application, epoch, actions).await?;
        Ok(())
    }

    async fn forget_old_manifests(&self) {
        let forget = async {
            let epochs = self.manifests.epochs().await?;
            for epoch in epochs.iter().rev().skip(MANIFESTS_KEPT) {
                self.manifests.remove(*epoch).await?;
            }
            Ok::<_, TableError>(())
        };
        if let Err(error) = forget.await {
            // They cost a little space, and the next checkpoint tries again.
            tracing::warn!(%error, "cannot remove old manifests");
        }
    }
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

async fn read_manifest(manifests: &Manifests, epoch: u64) -> Result<Manifest, StoreError> {
    let bytes = manifests.read(epoch).await?;
    serde_json::from_slice(&bytes).map_err(|source| StoreError::Manifest { epoch, source })
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
