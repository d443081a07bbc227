//! Delta tables in one folder, and beside them the manifests that commit them together.
//!
//! ```text
//!  tables/bronze/              one Delta table a relation
//!  tables/silver/ ...
//!  tables/_assay/manifests/    one small file a checkpoint; its appearance is the commit
//! ```
//!
//! Writing a data file changes nothing that a reader sees; [`Table::commit`] does.

mod manifests;
mod table;

use std::path::{Path, PathBuf};

pub use manifests::{Manifests, PutManifest};
pub use table::{NewFile, Rewritten, Table};

use url::Url;

/// Why a table or manifest could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// The storage failed; it may work later.
    #[error("{what}: {source}")]
    Storage {
        /// What was tried, on which table.
        what: String,
        /// What the storage or the table format said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The table is not what this program can keep; trying again will not help.
    #[error("{0}")]
    Unusable(String),
}

impl TableError {
    fn storage<E>(what: impl Into<String>) -> impl FnOnce(E) -> Self
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let what = what.into();
        move |source| Self::Storage {
            what,
            source: source.into(),
        }
    }
}

/// A folder of tables.
#[derive(Clone, Debug)]
pub struct TablesFolder {
    path: PathBuf,
    url: Url,
}

impl TablesFolder {
    /// Opens the folder, making it first if need be.
    ///
    /// # Errors
    /// If it cannot be made, or cannot be written to.
    pub fn open(path: &Path) -> Result<Self, TableError> {
        let refused = |error: std::io::Error| {
            TableError::Unusable(format!(
                "cannot use the folder \"{}\": {error}",
                path.display()
            ))
        };
        std::fs::create_dir_all(path.join("_assay")).map_err(refused)?;
        let path = path.canonicalize().map_err(refused)?;
        let url = Url::from_directory_path(&path)
            .map_err(|()| TableError::Unusable(format!("\"{}\" is no folder", path.display())))?;
        Ok(Self { path, url })
    }

    /// The folder's path, absolute.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn table_url(&self, relation: &str) -> Result<Url, TableError> {
        std::fs::create_dir_all(self.path.join(relation)).map_err(TableError::storage(format!(
            "cannot make the folder of table \"{relation}\""
        )))?;
        self.url
            .join(&format!("{relation}/"))
            .map_err(TableError::storage(format!(
                "cannot name table \"{relation}\""
            )))
    }
}
