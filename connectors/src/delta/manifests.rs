//! The manifests of checkpoints, of which each appears once and never changes, and the lease of
//! whoever writes them.

use std::sync::Arc;

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions};

use super::{TableError, TablesFolder};

/// What came of putting a manifest.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum PutManifest {
    /// It is there now, and was not before.
    Created,
    /// One of this number was there already.
    Existed,
}

/// The manifests of one folder of tables, by number.
#[derive(Clone)]
pub struct Manifests {
    store: Arc<dyn ObjectStore>,
}

impl Manifests {
    /// The manifests beside the tables of this folder.
    pub fn open(folder: &TablesFolder) -> Self {
        let path = folder.path().clone().join("_assay");
        Self {
            store: Arc::new(PrefixStore::new(folder.root(), path)),
        }
    }

    /// Puts the manifest of a number, unless there is one.
    ///
    /// # Errors
    /// If the storage fails; then it is unknown whether the manifest is there.
    pub async fn put(&self, number: u64, manifest: Bytes) -> Result<PutManifest, TableError> {
        let options = PutOptions::from(PutMode::Create);
        let location = location(number);
        let put = self.store.put_opts(&location, manifest.into(), options);
        match put.await {
            Ok(_) => Ok(PutManifest::Created),
            Err(object_store::Error::AlreadyExists { .. }) => Ok(PutManifest::Existed),
            Err(error) => Err(TableError::storage(format!(
                "cannot write manifest {number}"
            ))(error)),
        }
    }

    /// Whether the storage can be written, and refuses to overwrite what is there where it must.
    ///
    /// # Errors
    /// If the storage fails.
    pub async fn try_out(&self) -> Result<bool, TableError> {
        let failed = || TableError::storage("cannot write beside the tables");
        let place = Path::from(format!("probe-{}", uuid::Uuid::new_v4()));
        let put = || {
            let options = PutOptions::from(PutMode::Create);
            self.store
                .put_opts(&place, Bytes::from_static(b"probe").into(), options)
        };
        put().await.map_err(failed())?;
        let refused = match put().await {
            Ok(_) => false,
            Err(object_store::Error::AlreadyExists { .. }) => true,
            Err(error) => return Err(failed()(error)),
        };
        self.store.delete(&place).await.map_err(failed())?;
        Ok(refused)
    }

    /// The numbers of all manifests, ascending.
    ///
    /// # Errors
    /// If the storage fails.
    pub async fn numbers(&self) -> Result<Vec<u64>, TableError> {
        let listed: Vec<_> = self
            .store
            .list(Some(&Path::from(FOLDER)))
            .try_collect()
            .await
            .map_err(TableError::storage("cannot list the manifests"))?;
        let number = |name: &str| name.strip_suffix(".json")?.parse().ok();
        let names = listed
            .iter()
            .filter_map(|object| object.location.filename());
        let mut numbers: Vec<u64> = names.filter_map(number).collect();
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// The manifest of a number.
    ///
    /// # Errors
    /// If the storage fails.
    pub async fn read(&self, number: u64) -> Result<Bytes, TableError> {
        let what = format!("cannot read manifest {number}");
        let found = self.store.get(&location(number)).await;
        let found = found.map_err(TableError::storage(&*what))?;
        found.bytes().await.map_err(TableError::storage(what))
    }

    /// Removes a manifest that no restart needs.
    ///
    /// # Errors
    /// If the storage fails.
    pub async fn remove(&self, number: u64) -> Result<(), TableError> {
        let removed = self.store.delete(&location(number)).await;
        removed.map_err(TableError::storage(format!(
            "cannot remove manifest {number}"
        )))
    }

    /// The lease, if anyone has ever written one.
    ///
    /// # Errors
    /// If the storage fails.
    pub async fn lease(&self) -> Result<Option<Bytes>, TableError> {
        self.file(LEASE).await
    }

    /// Overwrites the lease.
    ///
    /// # Errors
    /// If the storage fails.
    pub async fn write_lease(&self, lease: Bytes) -> Result<(), TableError> {
        self.write_file(LEASE, lease).await
    }

    /// What was decided about models, if anything ever was.
    ///
    /// # Errors
    /// If the storage fails.
    pub async fn models(&self) -> Result<Option<Bytes>, TableError> {
        self.file(MODELS).await
    }

    /// Overwrites what was decided about models.
    ///
    /// # Errors
    /// If the storage fails.
    pub async fn write_models(&self, models: Bytes) -> Result<(), TableError> {
        self.write_file(MODELS, models).await
    }

    async fn file(&self, name: &str) -> Result<Option<Bytes>, TableError> {
        let bytes = match self.store.get(&Path::from(name)).await {
            Ok(found) => found.bytes().await,
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(error) => Err(error),
        };
        bytes
            .map(Some)
            .map_err(TableError::storage(format!("cannot read _assay/{name}")))
    }

    async fn write_file(&self, name: &str, bytes: Bytes) -> Result<(), TableError> {
        let put = self.store.put(&Path::from(name), bytes.into()).await;
        put.map(drop)
            .map_err(TableError::storage(format!("cannot write _assay/{name}")))
    }
}

const FOLDER: &str = "manifests";
const LEASE: &str = "lease.json";
const MODELS: &str = "models.json";

/// Names sort as their numbers do: 20 digits hold every `u64`.
fn location(number: u64) -> Path {
    Path::from(format!("{FOLDER}/{number:020}.json"))
}
