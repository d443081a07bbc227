//! A pipeline to play with: invented tweets in a folder, scored and counted, open to changes.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::cluster::{self, RunError, Running};
use crate::config::Settings;
use crate::generate::tweets::TweetGenerator;
use crate::generate::write_files;
use crate::plan::{Overrides, Plan};
use crate::progress::{Display, thousands};
use crate::query::client::grid;
use crate::{EXIT_FAILURE, give_up};

/// How many tweets the example has.
const TWEETS: usize = 1_000;

/// The seed of the example, so that everyone sees the same.
const SEED: u64 = 2_009;

/// A folder that the demo cannot use.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Unusable(String);

/// Runs the demo in this folder, or in a new one.
///
/// # Errors
/// If the folder cannot be used, or the pipeline cannot start.
pub fn run(dir: Option<PathBuf>, exit: bool) -> anyhow::Result<()> {
    let dir = dir.unwrap_or_else(new_folder);
    let tweets = dir.join("tweets");
    if !tweets.is_dir() {
        prepare(&dir, &tweets)?;
    }
    let mut settings = Settings::default();
    let plan = |settings: &Settings| {
        Plan::new(settings, &Overrides::default(), "demo", "", &dir).map_err(anyhow::Error::from)
    };
    let server = &mut settings.server;
    server.postgres.enabled = true;
    for listen in [&mut server.listen, &mut server.postgres.listen] {
        if port_is_taken(listen) {
            // Another demo may be running; any free port will do.
            *listen = "127.0.0.1:0".to_owned();
        }
    }
    let plan = plan(&settings)?;
    cluster::run(plan, move |running| {
        if let Err(error) = show(&running, &dir, exit) {
            give_up(&format_args!("{error:#}"), EXIT_FAILURE);
        }
    })
    .map_err(|error: RunError| error.into())
}

fn new_folder() -> PathBuf {
    let numbered = (2..).map(|number| PathBuf::from(format!("assay-demo-{number}")));
    let mut names = std::iter::once(PathBuf::from("assay-demo")).chain(numbered);
    names
        .find(|name| !name.exists())
        .unwrap_or_else(|| "assay-demo".into())
}

fn prepare(dir: &Path, tweets: &Path) -> anyhow::Result<()> {
    let occupied = dir
        .read_dir()
        .is_ok_and(|mut entries| entries.next().is_some());
    if occupied {
        let message = format!(
            "\"{}\" holds something else; name an empty folder",
            dir.display()
        );
        return Err(Unusable(message).into());
    }
    write_files(tweets, TweetGenerator::new(SEED), TWEETS).map_err(|error| {
        Unusable(format!("cannot write to \"{}\": {error}", tweets.display())).into()
    })
}

fn port_is_taken(address: &str) -> bool {
    std::net::TcpListener::bind(address).is_err()
}

/// Follows the pipeline until all tweets are counted, prints the results, and stays or ends.
#[tokio::main(flavor = "current_thread")]
async fn show(running: &Running, dir: &Path, exit: bool) -> anyhow::Result<()> {
    let tweets = dir.join("tweets");
    println!(
        "{} invented tweets in {}",
        thousands(count_files(&tweets)),
        tweets.display()
    );
    wait_until_counted(running).await?;
    if exit {
        running.finish();
    } else {
        running.show_and_break();
    }
    for label in ["positive", "negative"] {
        let top = format!(
            "select mention, {label}, predicted_{label}, total from mention_sentiment \
             order by {label} desc, predicted_{label} desc, mention limit 20"
        );
        println!("\nThe 20 mentions with the most {label} tweets, as given and as predicted:\n");
        print!("{}", ask(running, &top).await?);
    }
    println!("\nTables: {}", dir.join("tables").display());
    if exit {
        running.stop();
        return Ok(());
    }
    invite(running, &tweets);
    loop {
        tokio::time::sleep(Display::INTERVAL).await;
        running.show();
    }
}

/// This program, as it can be called from where it was called.
fn program() -> String {
    let program = std::env::current_exe().unwrap_or_else(|_| "assay".into());
    let here = std::env::current_dir().unwrap_or_default();
    program
        .strip_prefix(here)
        .unwrap_or(&program)
        .display()
        .to_string()
}

fn count_files(folder: &Path) -> u64 {
    folder
        .read_dir()
        .map_or(0, |entries| entries.count() as u64)
}

async fn wait_until_counted(running: &Running) -> anyhow::Result<()> {
    let mut caught_up = running.caught_up.clone();
    loop {
        running.show();
        let read_to = *caught_up.borrow_and_update();
        if let Some(epoch) = read_to
            && running.peeker.pin(Vec::new()).await? >= epoch
        {
            return Ok(());
        }
        tokio::time::sleep(Display::INTERVAL / 5).await;
    }
}

async fn ask(running: &Running, sql: &str) -> anyhow::Result<String> {
    let (_, answer) = running.queries.answer(sql).await?;
    let columns: Vec<_> = answer
        .schema
        .fields()
        .iter()
        .map(|field| field.name().clone())
        .collect();
    let rows = sql::to_json(&answer.batches)?;
    let cell = |row: &Value, column: &String| match &row[column] {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let rows: Vec<_> = rows
        .iter()
        .map(|row| columns.iter().map(|column| cell(row, column)).collect())
        .collect();
    Ok(grid(&columns, &rows))
}

fn invite(running: &Running, tweets: &Path) {
    let server = running.address.map(|address| format!("http://{address}"));
    let server = server.unwrap_or_default();
    let postgres = running.postgres.map(|address| {
        let (host, port) = (address.ip(), address.port());
        format!("psql -h {host} -p {port} assay")
    });
    let postgres = postgres.unwrap_or_default();
    let first = tweets.join("000001.json");
    let program = program();
    println!(
        "
Now change something, and watch the counts follow. In another terminal:

  edit    {}
  remove  {}
  watch   {server}/ in a browser
  ask     {program} query --server {server} 'select * from users order by tweets desc limit 5'
  or      {postgres}

Ctrl-C ends, after a last checkpoint.
",
        first.display(),
        tweets.join("000002.json").display(),
    );
}
