//! Looks after tables from the command line: what there is, how it came, what can go.

use std::time::Duration;

use anyhow::Context;
use connectors::delta::{Table, TablesFolder};
use dataflows::pipelines::mentions;

use crate::plan::{Plan, TablesSettings};
use crate::progress::thousands;
use crate::query::client::grid;

/// What to do with the tables.
#[derive(Clone, Copy, Debug)]
pub enum Order {
    /// Print what each table holds.
    List,
    /// Print the versions of a table, the newest first.
    History,
    /// Remove files that nothing needs, or only count them.
    Vacuum {
        /// Whether to remove them.
        remove: bool,
    },
}

/// Does it with the tables of a plan, all or one, and prints what came of it.
///
/// # Errors
/// If there are no such tables, or they cannot be read.
pub fn run(plan: &Plan, relation: Option<&str>, order: Order) -> anyhow::Result<()> {
    let settings = plan.tables.as_ref();
    let settings = settings.context("the configuration keeps no tables")?;
    let folder = TablesFolder::open(&settings.location)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    let tables = runtime.block_on(open(&folder, settings, relation))?;
    let printed = match order {
        Order::List => runtime.block_on(list(&tables)),
        Order::History => runtime.block_on(history(&tables)),
        Order::Vacuum { remove } => runtime.block_on(vacuum(&tables, settings.history, remove)),
    };
    print!("{}", printed?);
    Ok(())
}

async fn open(
    folder: &TablesFolder,
    settings: &TablesSettings,
    wanted: Option<&str>,
) -> anyhow::Result<Vec<(&'static str, Table)>> {
    let mut tables = Vec::new();
    for (relation, schema) in mentions::schemas() {
        if wanted.is_none_or(|wanted| wanted == relation) {
            let table = Table::open_existing(folder, relation, schema, settings.deletes).await?;
            tables.extend(table.map(|table| (relation, table)));
        }
    }
    anyhow::ensure!(
        !tables.is_empty(),
        "there is no such table in \"{}\"",
        folder.location()
    );
    Ok(tables)
}

async fn list(tables: &[(&str, Table)]) -> anyhow::Result<String> {
    let mut rows = Vec::new();
    for (relation, table) in tables {
        let files = table.files().await?;
        let removed = |file: &connectors::delta::DataFile| {
            let vector = file.entry.deletion_vector.as_ref();
            vector.map_or(0, |vector| vector.cardinality.unsigned_abs())
        };
        let marked: u64 = files.iter().map(removed).sum();
        let written: u64 = files.iter().map(|file| u64::from(file.rows)).sum();
        let bytes: i64 = files.iter().map(|file| file.entry.size).sum();
        rows.push(vec![
            (*relation).to_owned(),
            table.version().to_string(),
            thousands(written - marked),
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
        let vacuumed = table.vacuum(cutoff, remove).await?;
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
