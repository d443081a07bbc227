//! Writes small files, and those that still hold removed rows, as fewer whole ones.

use std::mem::take;

use arrow::compute::concat_batches;
use deltalake::kernel::Action;

use super::TableError;
use super::files::{DataFile, remove_entry};
use super::table::Table;

/// Rows of a file that is large enough, and so the most that are held in memory at once.
const FULL: u64 = 1 << 18;

/// What was rewritten, not yet committed.
#[derive(Clone, Debug, Default)]
pub struct Rewritten {
    /// Files that go.
    pub before: usize,
    /// Files that come.
    pub after: usize,
    /// What the table's log must say.
    pub actions: Vec<Action>,
}

impl Table {
    /// Writes small files, and those that still hold removed rows, as fewer whole ones. No reader
    /// sees it until the actions are committed, and then no row has changed.
    ///
    /// # Errors
    /// If a file cannot be read or written.
    pub async fn rewrite(&self) -> Result<Rewritten, TableError> {
        let mut rewritten = Rewritten::default();
        let mut group = Vec::new();
        let mut rows = 0;
        for file in self.files().await? {
            let live = file.live();
            if live >= FULL && file.entry.deletion_vector.is_none() {
                continue;
            }
            if rows + live > FULL {
                self.write_as_one(take(&mut group), &mut rewritten).await?;
                rows = 0;
            }
            rows += live;
            group.push(file);
        }
        self.write_as_one(group, &mut rewritten).await?;
        Ok(rewritten)
    }

    async fn write_as_one(
        &self,
        group: Vec<DataFile>,
        rewritten: &mut Rewritten,
    ) -> Result<(), TableError> {
        let data = self.data_files();
        match group.as_slice() {
            [] => return Ok(()),
            [file] if file.entry.deletion_vector.is_none() => return Ok(()),
            _ => {}
        }
        let mut batches = Vec::with_capacity(group.len());
        for file in &group {
            batches.push(data.present(file).await?);
        }
        let rows = concat_batches(&self.schema(), &batches);
        let rows = rows.map_err(TableError::storage(self.what("rewrite files of")))?;
        if rows.num_rows() > 0 {
            let file = data.append(&rows, true).await?;
            rewritten.after += 1;
            rewritten.actions.push(Action::Add(file.entry));
        }
        rewritten.before += group.len();
        let removed = group.iter().map(|file| remove_entry(&file.entry, false));
        rewritten.actions.extend(removed);
        Ok(())
    }
}
