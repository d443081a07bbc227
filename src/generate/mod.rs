//! Data to try a pipeline on: invented tweets, as files or as rows of a table.

mod phrases;
pub mod tweets;

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Args;
use connectors::postgres::{TweetWriter, Write};

use self::tweets::{Change, ChangeGenerator, ChangeKind, TweetGenerator};

/// Tweets by invented people, as files or as rows of a table.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  assay generate tweets --files tweets --count 1000
  assay generate tweets --files tweets.jsonl --count 100000
  assay generate tweets --postgres postgres://me@127.0.0.1/shop --rate 200 --count 10000")]
pub struct Tweets {
    /// A folder for files of one tweet each, or a .jsonl file for one tweet a line.
    #[arg(
        long,
        value_name = "PATH",
        required_unless_present = "postgres",
        conflicts_with = "postgres"
    )]
    files: Option<PathBuf>,
    /// A database to insert into; with updates and deletes among the inserts.
    #[arg(
        long,
        value_name = "URL",
        env = "ASSAY_GENERATE_POSTGRES",
        hide_env_values = true
    )]
    postgres: Option<String>,
    /// The table, made if there is none.
    #[arg(long, default_value = "public.tweets")]
    table: String,
    /// How many tweets, or changes of a table.
    #[arg(long, default_value_t = 1_000)]
    count: usize,
    /// Changes a second; as fast as possible if not given.
    #[arg(long, value_name = "N", requires = "postgres")]
    rate: Option<u32>,
    /// Share of updates among the changes.
    #[arg(long, default_value_t = 0.15)]
    updates: f64,
    /// Share of deletes among the changes.
    #[arg(long, default_value_t = 0.05)]
    deletes: f64,
    /// Share of tweets that mention someone.
    #[arg(long, default_value_t = 0.7)]
    mentions: f64,
    /// Equal seeds make equal tweets.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Rows that may still be updated or deleted.
const LIVE_ROWS: usize = 100_000;

/// Changes of one transaction, and the most time that one gathers them.
const BATCH: usize = 500;
const BATCH_TIME: Duration = Duration::from_millis(100);

/// Generates what was asked for.
///
/// # Errors
/// If files or rows cannot be written.
pub fn run(tweets: &Tweets) -> anyhow::Result<()> {
    let shares = [tweets.updates, tweets.deletes, tweets.mentions];
    ensure!(
        shares.iter().all(|share| (0.0..=1.0).contains(share)),
        "shares must be between 0 and 1"
    );
    match (&tweets.files, &tweets.postgres) {
        (Some(path), _) => {
            let generator = TweetGenerator::new(tweets.seed).with_mention_share(tweets.mentions);
            write_files(path, generator, tweets.count)
                .with_context(|| format!("cannot write to \"{}\"", path.display()))?;
            println!("{} tweets in {}", tweets.count, path.display());
        }
        (None, Some(url)) => write_table(url, tweets)?,
        (None, None) => unreachable!("clap requires one of the two"),
    }
    Ok(())
}

/// Writes tweets to a folder, one a file, or to a `.jsonl` file, one a line.
///
/// # Errors
/// If a file cannot be written.
pub fn write_files(path: &Path, generator: TweetGenerator, count: usize) -> io::Result<()> {
    let tweets = generator.take(count);
    if path
        .extension()
        .is_some_and(|extension| extension == "jsonl")
    {
        let lines: String = tweets.map(|tweet| tweet.to_json() + "\n").collect();
        return std::fs::write(path, lines);
    }
    std::fs::create_dir_all(path)?;
    for (number, tweet) in (1..).zip(tweets) {
        std::fs::write(path.join(format!("{number:06}.json")), tweet.to_json())?;
    }
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn write_table(url: &str, tweets: &Tweets) -> anyhow::Result<()> {
    let mut writer = TweetWriter::connect(url, &tweets.table).await?;
    // Ids go on after those in the table, so that a second run adds to the first.
    let first_id = writer.greatest_id().await?;
    let mut changes = ChangeGenerator::new(tweets.seed, LIVE_ROWS)
        .with_shares(tweets.updates, tweets.deletes)
        .with_mention_share(tweets.mentions);
    let mut counts = [0_usize; 3];
    let started = Instant::now();
    let mut written = 0;
    while written < tweets.count {
        let size = batch_size(tweets.rate).min(tweets.count - written);
        let batch: Vec<_> = (0..size).map(|_| changes.next_change()).collect();
        let rows: Vec<_> = batch.iter().map(|change| row(change, first_id)).collect();
        writer.write(&rows).await?;
        batch
            .iter()
            .for_each(|change| counts[change.kind as usize] += 1);
        written += size;
        if let Some(rate) = tweets.rate {
            let due = started + Duration::from_secs_f64(written as f64 / f64::from(rate.max(1)));
            tokio::time::sleep_until(due.into()).await;
        }
    }
    let [inserts, updates, deletes] = counts;
    println!(
        "{inserts} inserts, {updates} updates, {deletes} deletes in {}",
        tweets.table
    );
    Ok(())
}

fn batch_size(rate: Option<u32>) -> usize {
    let in_time = rate.map_or(BATCH, |rate| {
        (f64::from(rate) * BATCH_TIME.as_secs_f64()) as usize
    });
    in_time.clamp(1, BATCH)
}

fn row(change: &Change, first_id: i64) -> Write<'_> {
    let id = first_id + change.id;
    let columns = change
        .tweet
        .as_ref()
        .filter(|_| change.kind != ChangeKind::Delete);
    (
        id,
        columns.map(|tweet| [&*tweet.date, &*tweet.user, &*tweet.text, &*tweet.sentiment]),
    )
}
