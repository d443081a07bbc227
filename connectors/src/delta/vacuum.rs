//! Removes the files of a table that no version worth reading needs.

use std::collections::BTreeSet;

use deltalake::kernel::{Action, Add};
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStoreExt};

use super::TableError;
use super::files::vector_path;
use super::table::Table;

/// A file that the log has never named may be about to be committed while it is younger than this.
const UNCOMMITTED_MS: i64 = 3_600_000;

/// What a vacuum leaves.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Keep {
    /// The versions since a moment (milliseconds since 1970), and files too young to be committed.
    Since(i64),
    /// The current version alone. Only its writer knows that no file is about to be committed.
    Current,
}

/// What a vacuum found.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Vacuumed {
    /// Files that nothing needs.
    pub files: usize,
    /// Their bytes.
    pub bytes: u64,
}

impl Table {
    /// Removes the data files and deletion vectors that no version to be kept needs, or only counts
    /// them.
    ///
    /// # Errors
    /// If the log or the folder cannot be read, or a file cannot be removed.
    pub async fn vacuum(&self, keep: Keep, remove: bool) -> Result<Vacuumed, TableError> {
        let what = self.what("vacuum");
        let store = self.log_store().object_store(None);
        let objects: Vec<ObjectMeta> = store
            .list(None)
            .try_collect()
            .await
            .map_err(TableError::storage(&*what))?;
        let (cutoff, newest) = match keep {
            Keep::Since(cutoff) => {
                let young = chrono::Utc::now().timestamp_millis() - UNCOMMITTED_MS;
                (cutoff, young.min(cutoff))
            }
            Keep::Current => (i64::MAX, i64::MAX),
        };
        let needed = self.needed_since(cutoff, &objects).await?;
        let mut vacuumed = Vacuumed::default();
        for object in objects {
            let in_log = object
                .location
                .parts()
                .next()
                .is_some_and(|part| part.as_ref() == LOG);
            let old = object.last_modified.timestamp_millis() < newest;
            if in_log || !old || needed.contains(&object.location) {
                continue;
            }
            if remove {
                let removed = store.delete(&object.location).await;
                removed.map_err(TableError::storage(&*what))?;
            }
            vacuumed.files += 1;
            vacuumed.bytes += object.size;
        }
        Ok(vacuumed)
    }

    /// The files of the last version before the cutoff, and those that came since.
    async fn needed_since(
        &self,
        cutoff: i64,
        objects: &[ObjectMeta],
    ) -> Result<BTreeSet<Path>, TableError> {
        let versions = objects.iter().filter_map(|object| {
            let version = version_of(&object.location)?;
            Some((version, object.last_modified.timestamp_millis()))
        });
        let versions: Vec<(u64, i64)> = versions.collect();
        let before = versions.iter().filter(|(_, written)| *written < cutoff);
        let oldest = versions
            .iter()
            .map(|(version, _)| *version)
            .min()
            .unwrap_or(0);
        let first = before.map(|(version, _)| *version).max().unwrap_or(oldest);
        let mut needed = BTreeSet::new();
        for entry in self.at(first).await?.entries().await?.into_values() {
            add_paths(&entry, &mut needed);
        }
        for version in first + 1..=self.version() {
            for action in self.commit_entry(version).await?.unwrap_or_default() {
                if let Action::Add(entry) = action {
                    add_paths(&entry, &mut needed);
                }
            }
        }
        Ok(needed)
    }
}

const LOG: &str = "_delta_log";

/// The version that an object of the log commits, if it does.
fn version_of(location: &Path) -> Option<u64> {
    let name = location.filename()?.strip_suffix(".json")?;
    let in_log = location.parts().next()?.as_ref() == LOG;
    (in_log && name.len() == 20).then(|| name.parse().ok())?
}

fn add_paths(entry: &Add, paths: &mut BTreeSet<Path>) {
    paths.insert(Path::from(entry.path.as_str()));
    paths.extend(entry.deletion_vector.as_ref().and_then(vector_path));
}
