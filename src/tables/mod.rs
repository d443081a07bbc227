//! Looks after tables from the command line: what there is, how it came, what can go.
//!
//! What only reads may be done beside a running Assay. What writes takes the lease, as a run does.

pub(crate) mod derive;
pub mod forget;
mod verify;

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use connectors::delta::{Action, DataFile, Keep, Manifests, Rewritten, Table};
use serde_json::value::RawValue;

use crate::checkpoint::lease::Lease;
use crate::checkpoint::store::{Commit, Store, StoreError, TablesPlan};
use crate::plan::Plan;
use crate::progress::thousands;
use crate::query::client::grid;
use crate::runtime;

/// What to do with the tables.
#[derive(Clone, Copy, Debug)]
pub enum Order {
    /// Print what each table holds.
    List,
    /// Print the versions of a table, the newest first.
    History,
    /// Write small files, and those with removed rows, as fewer whole ones.
    Optimize,
    /// Remove files that nothing needs, or only count them.
    Vacuum {
        /// Whether to remove them.
        remove: bool,
    },
    /// Compare every table with what follows from bronze.
    Verify {
        /// Whether texts are scored again, rather than the scores trusted that are kept.
        rescore: bool,
    },
    /// Delete all tables.
    Reset {
        /// Whether to delete without asking.
        sure: bool,
    },
}

/// Does it with the tables of a plan, all or one, and prints what came of it.
///
/// # Errors
/// If there are no such tables, they cannot be read, or they are not as they should be.
pub fn run(plan: &Plan, relation: Option<&str>, order: Order) -> anyhow::Result<()> {
    let tables_plan = plan.tables_plan()?;
    let tables_plan = tables_plan.context("the configuration keeps no tables")?;
    let runtime = runtime()?;
    let existing = || runtime.block_on(open(&tables_plan, relation));
    let printed = match order {
        Order::List => runtime.block_on(list(&existing()?))?,
        Order::History => runtime.block_on(history(&existing()?))?,
        Order::Optimize => runtime.block_on(optimize(&tables_plan))?,
        Order::Vacuum { remove } => {
            runtime.block_on(vacuum(&existing()?, tables_plan.history, remove))?
        }
        Order::Verify { rescore } => {
            existing()?;
            let (printed, equal) = verify::verify(plan, rescore)?;
            print!("{printed}");
            return if equal { Ok(()) } else { Err(Differ.into()) };
        }
        Order::Reset { sure } => runtime.block_on(reset(&tables_plan, sure))?,
    };
    print!("{printed}");
    Ok(())
}

/// Tables are not what follows from bronze.
#[derive(Debug, thiserror::Error)]
#[error("tables differ from what follows from bronze")]
struct Differ;

async fn open(
    plan: &TablesPlan,
    wanted: Option<&str>,
) -> anyhow::Result<Vec<(&'static str, Table)>> {
    let mut tables = Vec::new();
    for (relation, schema) in &plan.relations {
        if wanted.is_none_or(|wanted| wanted == *relation) {
            let schema = Arc::clone(schema);
            let table = Table::open_existing(&plan.folder, relation, schema, plan.deletes).await?;
            tables.extend(table.map(|table| (*relation, table)));
        }
    }
    anyhow::ensure!(
        !tables.is_empty(),
        "there is no such table in \"{}\"",
        plan.folder.location()
    );
    Ok(tables)
}

async fn list(tables: &[(&str, Table)]) -> anyhow::Result<String> {
    let mut rows = Vec::new();
    for (relation, table) in tables {
        let files = table.files().await?;
        let marked: u64 = files.iter().map(DataFile::marked).sum();
        let live: u64 = files.iter().map(DataFile::live).sum();
        let bytes: i64 = files.iter().map(|file| file.entry.size).sum();
        rows.push(vec![
            (*relation).to_owned(),
            table.version().to_string(),
            thousands(live),
            thousands(marked),
            thousands(files.len() as u64),
            thousands(bytes.unsigned_abs()),
        ]);
    }
    let head = ["table", "version", "rows", "marked", "files", "bytes"];
    Ok(columns(&head, &rows))
}

async fn history(tables: &[(&str, Table)]) -> anyhow::Result<String> {
    let mut rows = Vec::new();
    for (relation, table) in tables {
        for commit in table.history().await? {
            rows.push(vec![
                (*relation).to_owned(),
                commit.version.to_string(),
                time(commit.committed_at),
                commit
                    .epoch
                    .map_or(String::new(), |epoch| epoch.to_string()),
                commit.operation,
            ]);
        }
    }
    let head = ["table", "version", "time", "epoch", "operation"];
    Ok(columns(&head, &rows))
}

fn time(milliseconds: i64) -> String {
    let time = chrono::DateTime::from_timestamp_millis(milliseconds);
    time.map_or(String::new(), |time| {
        time.format("%Y-%m-%d %H:%M:%S%.3f UTC").to_string()
    })
}

fn columns(head: &[&str], rows: &[Vec<String>]) -> String {
    let head: Vec<_> = head.iter().map(|name| (*name).to_owned()).collect();
    grid(&head, rows)
}

async fn vacuum(
    tables: &[(&str, Table)],
    history: Duration,
    remove: bool,
) -> anyhow::Result<String> {
    let cutoff = crate::now_ms() as i64 - history.as_millis() as i64;
    let mut rows = Vec::new();
    for (relation, table) in tables {
        let vacuumed = table.vacuum(Keep::Since(cutoff), remove).await?;
        rows.push(vec![
            (*relation).to_owned(),
            thousands(vacuumed.files as u64),
            thousands(vacuumed.bytes),
        ]);
    }
    let files = match remove {
        true => "files removed",
        false => "files to remove",
    };
    Ok(columns(&["table", files, "bytes"], &rows))
}

async fn optimize(plan: &TablesPlan) -> anyhow::Result<String> {
    let mut store = Store::write(plan).await?;
    let rewritten = rewrite(&mut store).await?;
    store.release().await;
    let rows = rewritten.into_iter().map(|(relation, rewritten)| {
        let counts = [rewritten.before, rewritten.after];
        let counts = counts.map(|count| thousands(count as u64));
        [vec![relation], counts.into()].concat()
    });
    let rows: Vec<_> = rows.collect();
    Ok(columns(&["table", "files before", "files after"], &rows))
}

/// Writes the small and the marked files of all tables anew, and commits them as a checkpoint.
async fn rewrite(store: &mut Store) -> anyhow::Result<Vec<(String, Rewritten)>> {
    let mut all = Vec::new();
    let mut changes = BTreeMap::new();
    for (relation, table) in store.tables() {
        let rewritten = table.rewrite().await?;
        if !rewritten.actions.is_empty() {
            changes.insert(relation.clone(), raw(&rewritten.actions)?);
        }
        all.push((relation.clone(), rewritten));
    }
    commit(store, changes).await?;
    Ok(all)
}

fn raw(actions: &[Action]) -> serde_json::Result<Vec<Box<RawValue>>> {
    actions
        .iter()
        .map(serde_json::value::to_raw_value)
        .collect()
}

/// Commits changes of the tables at the epoch after the last one: nothing was read in between.
async fn commit(
    store: &mut Store,
    changes: BTreeMap<String, Vec<Box<RawValue>>>,
) -> Result<(), StoreError> {
    if changes.is_empty() {
        return Ok(());
    }
    let epoch = store.epoch() + 1;
    let moved = Vec::new();
    store
        .commit(Commit {
            epoch,
            changes,
            moved,
        })
        .await
}

async fn reset(plan: &TablesPlan, sure: bool) -> anyhow::Result<String> {
    let own = Lease::own();
    if let Err(holder) = own.vacancy(&Manifests::open(&plan.folder)).await? {
        return Err(StoreError::Held(holder.process).into());
    }
    let relations: Vec<_> = plan
        .relations
        .iter()
        .map(|(relation, _)| *relation)
        .collect();
    let files = plan.folder.files(&relations).await?;
    let what = format!(
        "{} files in \"{}\"",
        thousands(files.len() as u64),
        plan.folder.location()
    );
    if !sure && !confirmed(&format!("Delete all tables, {what}?"))? {
        return Ok("nothing was deleted\n".to_owned());
    }
    for file in &files {
        plan.folder.remove(file).await?;
    }
    Ok(format!(
        "deleted {what}; the next start reads the source from its beginning\n"
    ))
}

/// Asks on the terminal; only the word "yes" is one.
fn confirmed(question: &str) -> anyhow::Result<bool> {
    let input = std::io::stdin();
    anyhow::ensure!(
        input.is_terminal(),
        "there is no terminal to ask on; add --yes to delete without asking"
    );
    eprint!("{question} Type yes: ");
    let mut answer = String::new();
    input.read_line(&mut answer)?;
    Ok(answer.trim() == "yes")
}
