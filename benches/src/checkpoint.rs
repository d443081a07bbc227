//! Changes a few rows of many: what a checkpoint costs, by how many rows there are and how many
//! change; and how soon a start answers again.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use assay::generate::tweets::{GeneratedTweet, TweetGenerator};
use assay::query::client::Server;
use clap::Args;

use crate::cost::{NOW, PEAK, memory_mib};
use crate::program::{Assay, LINES_A_FILE, SEED, bare_files, with_tables, write_lines};
use crate::table::{markdown, whole};

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(600);

/// How often it is looked whether something has happened.
const POLL: Duration = Duration::from_millis(5);

/// How often it is asked whether all rows are there.
const BETWEEN_QUERIES: Duration = Duration::from_millis(100);

/// So long without a checkpoint, and all is durable: more than the interval of one second.
const SETTLED: Duration = Duration::from_millis(2_500);

/// Checkpoints measured of each case; the median is told.
const ROUNDS: usize = 5;

/// Changes rows of large tables, and measures checkpoints and a restart.
#[derive(Args, Debug)]
pub(crate) struct Checkpoint {
    /// Rows of bronze, a case each.
    #[arg(long, value_delimiter = ',', default_value = "100000,300000,1000000")]
    rows: Vec<usize>,
    /// Rows to change, a case each with the most rows.
    #[arg(long, value_delimiter = ',', default_value = "100,1000,10000")]
    changes: Vec<usize>,
}

pub(crate) fn run(bench: &Checkpoint) -> anyhow::Result<()> {
    let mut checkpoints = Vec::new();
    let mut restarts = Vec::new();
    for rows in &bench.rows {
        let assay = Assay::find()?;
        let tweets = assay.folder().join("tweets");
        write_lines(&tweets, TweetGenerator::new(SEED).take(*rows))?;
        let largest = bench.rows.iter().max() == Some(rows);
        let changes = bench
            .changes
            .iter()
            .filter(|changes| largest || **changes == 1_000);
        let running = Running::start(&assay, &tweets)?;
        running.wait_for_rows(*rows)?;
        running.settle()?;
        for changes in changes {
            eprintln!("measuring: {changes} of {rows} rows");
            checkpoints.push(running.measure(&tweets, *rows, *changes)?);
        }
        let gold = running.number("select count(*) from gold")?;
        running.kill()?;

        eprintln!("measuring: restart on {rows} rows");
        let begun = Instant::now();
        let running = Running::start(&assay, &tweets)?;
        running.wait_for_rows(*rows)?;
        let answered = begun.elapsed();
        restarts.push([
            whole(*rows as f64),
            whole(gold as f64),
            format!("{:.1}", answered.as_secs_f64()),
            format!("{:.0}", running.mib(PEAK)),
        ]);
        running.kill()?;
    }
    let head = [
        "rows",
        "gold",
        "changed",
        "s until durable",
        "kB written",
        "MiB after",
    ];
    println!(
        "Median of {ROUNDS} checkpoints, one after another from top to bottom:\n\n{}",
        markdown(head, &checkpoints)
    );
    let head = ["rows", "gold", "s until it answers", "peak MiB"];
    println!("A start after `kill -9`:\n\n{}", markdown(head, &restarts));
    Ok(())
}

/// The program while it runs, with a checkpoint every second.
struct Running {
    child: Child,
    address: String,
}

impl Running {
    fn start(assay: &Assay, tweets: &Path) -> anyhow::Result<Self> {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let address = format!("127.0.0.1:{port}");
        let mut settings = with_tables(bare_files(tweets), &assay.folder().join("tables"));
        settings.workers = 2;
        settings.tables.checkpoint_interval_s = 1;
        settings.server.enabled = true;
        settings.server.listen.clone_from(&address);
        let file = assay.folder().join("checkpoint.toml");
        fs::write(&file, toml::to_string(&settings)?)?;
        let log = fs::File::create(assay.folder().join("log"))?;
        let mut command = Command::new(assay.program());
        command.arg("run").arg(file).stderr(log);
        let child = command.spawn().context("cannot start assay")?;
        Ok(Self { child, address })
    }

    fn number(&self, sql: &str) -> anyhow::Result<u64> {
        let url = format!("http://{}", self.address);
        let answer = Server { url, token: None }.ask(sql, None)?;
        let row = answer["rows"][0].as_object().context("no row")?;
        let number = row.values().next().and_then(|n| n.as_u64());
        number.context("no number")
    }

    fn wait_for(&self, what: &str, mut holds: impl FnMut() -> bool) -> anyhow::Result<()> {
        let begun = Instant::now();
        while !holds() {
            if begun.elapsed() > PATIENCE {
                bail!("waited in vain for {what}");
            }
            thread::sleep(POLL);
        }
        Ok(())
    }

    fn wait_for_rows(&self, rows: usize) -> anyhow::Result<()> {
        let sql = "select sum(tweets) from users";
        let all = || {
            // A query takes its time as well, so they must not be many.
            thread::sleep(BETWEEN_QUERIES);
            self.number(sql).is_ok_and(|found| found == rows as u64)
        };
        self.wait_for("all rows", all)
    }

    /// Reads a metric without labels.
    fn metric(&self, name: &str) -> Option<f64> {
        let mut stream = TcpStream::connect(&self.address).ok()?;
        write!(stream, "GET /metrics HTTP/1.0\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let mut lines = answer.lines();
        let line = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
        line.parse().ok()
    }

    /// Milliseconds since 1970 up to which everything is durable.
    fn durable(&self) -> u64 {
        let seconds = self.metric("assay_checkpoint_timestamp_seconds");
        seconds.map_or(0, |seconds| (seconds * 1_000.0).round() as u64)
    }

    /// Waits until nothing is left to be made durable.
    fn settle(&self) -> anyhow::Result<()> {
        let mut last = 0;
        self.wait_for("the last checkpoint", || {
            thread::sleep(SETTLED);
            std::mem::replace(&mut last, self.durable()) == self.durable()
        })
    }

    /// Changes rows spread over the folder, in one checkpoint, again and again.
    fn measure(&self, tweets: &Path, rows: usize, changes: usize) -> anyhow::Result<[String; 6]> {
        let mut seconds = Vec::new();
        let mut bytes = Vec::new();
        for round in 0..ROUNDS {
            let written = || self.metric("assay_checkpoint_bytes_total").unwrap_or(0.0);
            // All changes are made within one second, after its checkpoint has been written.
            let (before, last) = (written(), self.durable());
            thread::sleep(Duration::from_millis(1_050 - assay::now_ms() % 1_000));
            let mark = change(tweets, rows, changes, round)?;
            let sql = format!(
                "select count(*) from users where \"user\" = '{mark}' and tweets = {changes}"
            );
            self.wait_for("their checkpoint", || self.durable() > last)?;
            let late = assay::now_ms().saturating_sub(self.durable());
            seconds.push(late as f64 / 1_000.0);
            self.settle()?;
            bytes.push(written() - before);
            if self.number(&sql)? != 1 {
                bail!("the changes are not there");
            }
        }
        let gold = self.number("select count(*) from gold")?;
        Ok([
            whole(rows as f64),
            whole(gold as f64),
            whole(changes as f64),
            format!("{:.2}", median(seconds)),
            whole(median(bytes) / 1_000.0),
            format!("{:.0}", self.mib(NOW)),
        ])
    }

    fn mib(&self, figure: &str) -> f64 {
        memory_mib(self.child.id(), figure)
    }

    fn kill(mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

/// Gives tweets another user, the last line of files spread over the folder; returns the user.
fn change(tweets: &Path, rows: usize, changes: usize, round: usize) -> anyhow::Result<String> {
    let mark = format!("marked_{rows}_{changes}_{round}");
    let files = rows / LINES_A_FILE;
    let lines = changes.div_ceil(files);
    let touched = changes / lines;
    for number in 0..touched {
        let file = tweets.join(format!("{:06}.jsonl", 1 + number * files / touched));
        let text = fs::read_to_string(&file)?;
        let mut tweets: Vec<_> = text.lines().map(str::to_owned).collect();
        for line in tweets.iter_mut().rev().take(lines) {
            let mut tweet: GeneratedTweet = parse(line)?;
            tweet.user.clone_from(&mark);
            *line = tweet.to_json();
        }
        fs::write(&file, tweets.join("\n") + "\n")?;
    }
    Ok(mark)
}

fn parse(line: &str) -> anyhow::Result<GeneratedTweet> {
    let row: serde_json::Value = serde_json::from_str(line)?;
    let text = |name: &str| row[name].as_str().unwrap_or_default().to_owned();
    Ok(GeneratedTweet {
        date: text("date"),
        user: text("user"),
        text: text("text"),
        sentiment: text("sentiment"),
    })
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}
