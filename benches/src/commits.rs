//! Commits many checkpoints, one after another: what a commit costs, and how long the log gets.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use arrow::array::RecordBatch;
use assay::checkpoint::store::{Commit, Store, TablesPlan};
use clap::Args;
use connectors::delta::{Action, DataFile, Deletes, FileRemoval, TablesFolder};
use dataflows::pipelines::mentions::User;
use dataflows::record::Record;
use serde_json::value::{RawValue, to_raw_value};

use crate::cost::{NOW, memory_mib};
use crate::table::{markdown, whole};

/// Commits measured at each mark.
const MEASURED: u64 = 100;

/// Commits checkpoints of one row each to one table.
#[derive(Args, Debug)]
pub(crate) struct Commits {
    /// Checkpoints, a line each.
    #[arg(long, value_delimiter = ',', default_value = "100,1000,10000")]
    commits: Vec<u64>,
}

pub(crate) fn run(bench: &Commits) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    let lines = runtime.block_on(measure(&bench.commits))?;
    let head = [
        "commits",
        "ms a commit",
        "log files",
        "log kB",
        "s to open",
        "MiB",
    ];
    println!("{}", markdown(head, &lines));
    Ok(())
}

async fn measure(marks: &[u64]) -> anyhow::Result<Vec<[String; 6]>> {
    let folder = tempfile::tempdir()?;
    let path = folder
        .path()
        .to_str()
        .context("a folder with an odd name")?;
    let plan = TablesPlan {
        folder: TablesFolder::open(path)?,
        pipeline: "bench".to_owned(),
        relations: vec![(User::RELATION, User::schema())],
        from_source: &[],
        deletes: Deletes::Vectors,
        history: Duration::ZERO,
    };
    let mut store = Store::write(&plan).await?;
    let mut file: Option<DataFile> = None;
    let mut lines = Vec::new();
    let mut recent = Duration::ZERO;
    for epoch in 1..=marks.iter().copied().max().unwrap_or(0) {
        let begun = Instant::now();
        let changes;
        (file, changes) = replace(&store, file, epoch).await?;
        store
            .commit(Commit {
                epoch,
                changes,
                moved: Vec::new(),
            })
            .await?;
        store.tidy().await;
        recent += begun.elapsed();
        if epoch % MEASURED == 0 {
            if marks.contains(&epoch) {
                lines.push(line(&plan, folder.path(), epoch, recent).await?);
            }
            recent = Duration::ZERO;
        }
    }
    Ok(lines)
}

async fn line(
    plan: &TablesPlan,
    folder: &Path,
    commits: u64,
    recent: Duration,
) -> anyhow::Result<[String; 6]> {
    let log = folder.join(User::RELATION).join("_delta_log");
    let files: Vec<_> = fs::read_dir(log)?.collect::<Result<_, _>>()?;
    let bytes: u64 = files
        .iter()
        .filter_map(|file| Some(file.metadata().ok()?.len()))
        .sum();
    let begun = Instant::now();
    Store::read(plan).await?;
    Ok([
        whole(commits as f64),
        format!("{:.1}", recent.as_secs_f64() * 1_000.0 / MEASURED as f64),
        whole(files.len() as f64),
        whole(bytes as f64 / 1_000.0),
        format!("{:.3}", begun.elapsed().as_secs_f64()),
        format!("{:.0}", memory_mib(std::process::id(), NOW)),
    ])
}

type Changes = BTreeMap<String, Vec<Box<RawValue>>>;

/// A file of one row instead of the last one.
async fn replace(
    store: &Store,
    old: Option<DataFile>,
    epoch: u64,
) -> anyhow::Result<(Option<DataFile>, Changes)> {
    let table = store.table(User::RELATION).context("no table")?;
    let data = table.data_files();
    let new = data.append(&row(epoch), false).await?;
    let mut actions = vec![Action::Add(new.entry.clone())];
    if let Some(file) = old {
        let rows = [0].into_iter().collect();
        let removed_before = Default::default();
        let removal = FileRemoval {
            file,
            removed_before,
            rows,
            moved: false,
        };
        for changed in data.remove(&[removal]).await? {
            actions.extend(changed.actions);
        }
    }
    let actions = actions.iter().map(to_raw_value).collect::<Result<_, _>>()?;
    Ok((Some(new), [(User::RELATION.to_owned(), actions)].into()))
}

fn row(epoch: u64) -> RecordBatch {
    let tweets = epoch as i64;
    User::to_batch(&[User {
        user: "ada".into(),
        tweets,
        with_mention: tweets,
        without_mention: 0,
    }])
}
