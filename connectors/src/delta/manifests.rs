//! The manifests of checkpoints: small files of which each appears once and never changes.

use std::sync::Arc;

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions};

use super::{TableError, TablesFolder};

/// What came of putting a manifest.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum PutManifest {
    /// It is there now, and was not before.
    Created,
    /// One of this epoch was there already.
    Existed,
}

/// The manifests of one folder of tables, by epoch.
#[derive(Clone)]
pub struct Manifests {
    store: Arc<dyn ObjectStore>,
}

impl Manifests {
    /// The manifests beside the tables of this folder.
    ///
    /// # Errors
    /// If the folder cannot be opened.
    pub fn open(folder: &TablesFolder) -> Result<Self, TableError> {
        let store = LocalFileSystem::new_with_prefix(folder.path())
            .map_err(TableError::storage("cannot open the tables' folder"))?;
        Ok(Self {
            store: Arc::new(store),
        })
    }

    /// Puts the manifest of an epoch, unless there is one.
    ///
    /// # Errors
    /// If the storage fails; then it is unknown whether the manifest is there.
    pub async fn put(&self, epoch: u64, manifest: Bytes) -> Result<PutManifest, TableError> {
        let options = PutOptions::from(PutMode::Create);
        match self
            .store
            .put_opts(&location(epoch), manifest.into(), options)
            .await
        {
            Ok(_) => Ok(PutManifest::Created),
            Err(object_store::Error::AlreadyExists { .. }) => Ok(PutManifest::Existed),
            Err(error) => Err(TableError::storage(format!(
                "cannot write manifest {epoch}"
            ))(error)),
        }
    }

    /// The epochs of all manifests, ascending.
    ///
    /// # Errors
    /// If the storage fails.
    pub async fn epochs(&self) -> Result<Vec<u64>, TableError> {
        let folder = Path::from(FOLDER);
        let listed: Vec<_> = self
            .store
            .list(Some(&folder))
            .try_collect()
            .await
            .map_err(TableError::storage("cannot list the manifests"))?;
        let epoch = |name: &str| name.strip_suffix(".json")?.parse().ok();
        let names = listed
            .iter()
            .filter_map(|object| object.location.filename());
        let mut epochs: Vec<u64> = names.filter_map(epoch).collect();
        epochs.sort_unstable();
        Ok(epochs)
    }

    /// The manifest of an epoch.
    ///
    /// # Errors
    /// If the storage fails.
    pub async fn read(&self, epoch: u64) -> Result<Bytes, TableError> {
        let what = format!("cannot read manifest {epoch}");
        let found = self
            .store
            .get(&location(epoch))
            .await
            .map_err(TableError::storage(&*what))?;
        found.bytes().await.map_err(TableError::storage(what))
    }

    /// Removes the manifest of an epoch that no restart needs.
    ///
    /// # Errors
    /// If the storage fails.
    pub async fn remove(&self, epoch: u64) -> Result<(), TableError> {
        let removed = self.store.delete(&location(epoch)).await;
        removed.map_err(TableError::storage(format!(
            "cannot remove manifest {epoch}"
        )))
    }
}

const FOLDER: &str = "_assay/manifests";

/// Names sort as their epochs do: 20 digits hold every `u64`.
fn location(epoch: u64) -> Path {
    Path::from(format!("{FOLDER}/{epoch:020}.json"))
}
