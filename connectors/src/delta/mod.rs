//! Delta tables in one folder, and beside them the manifests that commit them together.
//!
//! ```text
//!  tables/bronze/              one Delta table a relation
//!  tables/silver/ ...
//!  tables/_assay/manifests/    one small file a checkpoint; its appearance is the commit
//!  tables/_assay/lease.json    who writes here
//! ```
//!
//! The folder is on a file system or in a bucket. Writing a data file changes nothing that a reader
//! sees; [`Table::commit`] does.

mod files;
pub mod further;
mod manifests;
mod rewrite;
mod table;
mod vacuum;

use std::sync::Arc;
use std::time::Duration;

pub use deltalake::kernel::Action;
pub use files::{ChangedFile, DataFile, DataFiles, Deletes, FileRemoval, of_relation};
pub use manifests::{Manifests, PutManifest};
pub use rewrite::Rewritten;
pub use table::{Mended, Table, TableVersion};
pub use vacuum::{Keep, Vacuumed};

use arrow::array::RecordBatch;
use bytes::Bytes;
use futures::TryStreamExt;
use object_store::aws::AmazonS3Builder;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{BackoffConfig, ObjectStore, ObjectStoreExt, RetryConfig};
use url::Url;

/// Why a table or manifest could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// The storage failed; it may work later.
    #[error("{what}: {why}")]
    Storage {
        /// What was tried, on which table.
        what: String,
        /// What the storage or the table format said, its own causes included.
        why: String,
    },
    /// The table is not what this program can keep; trying again will not help.
    #[error("{0}")]
    Unusable(String),
}

impl TableError {
    fn storage<E>(what: impl Into<String>) -> impl FnOnce(E) -> Self
    where
        E: std::fmt::Display,
    {
        let what = what.into();
        move |error| Self::Storage {
            what,
            why: error.to_string(),
        }
    }
}

/// A folder of tables, on a file system or in a bucket.
#[derive(Clone, Debug)]
pub struct TablesFolder {
    /// The folder, with a slash at its end.
    url: Url,
    /// The whole file system or bucket.
    root: Arc<dyn ObjectStore>,
    /// The folder in it.
    path: Path,
}

/// A request is repeated for a moment only: whoever asked tries again for as long as need be, and says so.
const BRIEFLY: RetryConfig = RetryConfig {
    backoff: BackoffConfig {
        init_backoff: Duration::from_millis(50),
        max_backoff: Duration::from_millis(200),
        base: 2.0,
    },
    max_retries: 2,
    retry_timeout: Duration::from_secs(60),
};

impl TablesFolder {
    /// Opens the folder that a path or a URL such as `s3://bucket/folder` names; a folder of a file
    /// system is made if need be.
    ///
    /// A bucket's credentials, region and endpoint come from the environment, by the usual names
    /// (`AWS_ACCESS_KEY_ID`, `AWS_REGION`, `AWS_ENDPOINT_URL` ...).
    ///
    /// # Errors
    /// If it cannot be made, or cannot be written to.
    pub fn open(location: &str) -> Result<Self, TableError> {
        match location.split_once("://") {
            None => Self::open_local(std::path::Path::new(location)),
            Some(("s3", _)) => Self::open_bucket(location),
            Some((scheme, _)) => Err(TableError::Unusable(format!(
                "cannot use \"{location}\": tables are kept in folders and in s3:// buckets, not \
                 {scheme}://"
            ))),
        }
    }

    fn open_local(path: &std::path::Path) -> Result<Self, TableError> {
        let refused = |error: std::io::Error| {
            TableError::Unusable(format!(
                "cannot use the folder \"{}\": {error}",
                path.display()
            ))
        };
        std::fs::create_dir_all(path.join("_assay")).map_err(refused)?;
        let absolute = path.canonicalize().map_err(refused)?;
        let unfit = || TableError::Unusable(format!("\"{}\" is no folder", absolute.display()));
        let url = Url::from_directory_path(&absolute).map_err(|()| unfit())?;
        Ok(Self {
            path: Path::from_absolute_path(&absolute).map_err(|_| unfit())?,
            url,
            root: Arc::new(LocalFileSystem::new()),
        })
    }

    fn open_bucket(location: &str) -> Result<Self, TableError> {
        let unfit = |error: &dyn std::fmt::Display| {
            TableError::Unusable(format!("cannot use \"{location}\": {error}"))
        };
        let location = format!("{}/", location.trim_end_matches('/'));
        let url = Url::parse(&location).map_err(|error| unfit(&error))?;
        let bucket = AmazonS3Builder::from_env()
            .with_url(&location)
            .with_retry(BRIEFLY)
            .build();
        Ok(Self {
            root: Arc::new(bucket.map_err(|error| unfit(&error))?),
            path: Path::from_url_path(url.path()).map_err(|error| unfit(&error))?,
            url,
        })
    }

    /// The folder, for people.
    pub fn location(&self) -> &str {
        self.url.as_str()
    }

    /// The bytes that are free where the folder lies; `None` in a bucket.
    pub fn free_bytes(&self) -> Option<u64> {
        let path = self.url.to_file_path().ok()?;
        let system = rustix::fs::statvfs(&path).ok()?;
        Some(system.f_bavail * system.f_frsize)
    }

    /// Every file of these tables and of the manifests, by its name in the folder.
    ///
    /// # Errors
    /// If the storage fails.
    pub async fn files(&self, relations: &[&str]) -> Result<Vec<String>, TableError> {
        let mut files = Vec::new();
        for part in relations.iter().copied().chain(["_assay"]) {
            let folder = self.path.clone().join(part);
            let listed: Vec<_> =
                self.root
                    .list(Some(&folder))
                    .try_collect()
                    .await
                    .map_err(TableError::storage(format!(
                        "cannot list the files of \"{part}\""
                    )))?;
            let names = listed.iter().filter_map(|object| {
                let parts = object.location.prefix_match(&self.path)?;
                Some(parts.collect::<Path>().to_string())
            });
            files.extend(names);
        }
        Ok(files)
    }

    /// What is in a file.
    ///
    /// # Errors
    /// If the storage fails.
    pub async fn read(&self, file: &str) -> Result<Bytes, TableError> {
        let what = format!("cannot read \"{file}\"");
        let found = self.root.get(&self.path_of(file)).await;
        let found = found.map_err(TableError::storage(&*what))?;
        found.bytes().await.map_err(TableError::storage(what))
    }

    /// All rows of a Parquet file, whether or not they are part of a table.
    ///
    /// # Errors
    /// If the storage fails, or it is no Parquet file.
    pub async fn read_rows(&self, file: &str) -> Result<Vec<RecordBatch>, TableError> {
        files::decode(&format!("cannot decode \"{file}\""), self.read(file).await?)
    }

    /// Removes a file, whatever may need it.
    ///
    /// # Errors
    /// If the storage fails.
    pub async fn remove(&self, file: &str) -> Result<(), TableError> {
        let removed = self.root.delete(&self.path_of(file)).await;
        removed.map_err(TableError::storage(format!("cannot remove \"{file}\"")))
    }

    fn path_of(&self, file: &str) -> Path {
        let name = Path::from(file);
        self.path.parts().chain(name.parts()).collect()
    }

    fn root(&self) -> Arc<dyn ObjectStore> {
        Arc::clone(&self.root)
    }

    fn path(&self) -> &Path {
        &self.path
    }

    fn table_url(&self, relation: &str) -> Result<Url, TableError> {
        let unfit = TableError::storage(format!("cannot name table \"{relation}\""));
        self.url.join(&format!("{relation}/")).map_err(unfit)
    }
}
