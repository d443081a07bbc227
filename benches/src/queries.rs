//! Reads while the stream runs: look-ups, scans, explanations, and how soon a change is told.

use std::fs;
use std::io::Read;
use std::net::TcpListener;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use assay::config::{KafkaFormat, SourceKind};
use assay::generate::tweets::TweetGenerator;
use assay::query::client::Server;
use clap::Args;
use rdkafka::producer::{DefaultProducerContext, Producer, ThreadedProducer};
use tokio_postgres::{Client, NoTls};

use crate::consume::properties;
use crate::program::{Assay, SEED, bare, with_server};
use crate::table::{markdown, whole};
use crate::topic::{Topic, client, send};

/// How long Assay may take to read everything.
const PATIENCE: Duration = Duration::from_secs(600);

/// How often the producer sends a part of what is due.
const BURST: Duration = Duration::from_millis(10);

/// The key of the row by which deliveries are timed, and who is mentioned in it.
const MARKER: &str = "marker";

/// Reads while rows change.
#[derive(Args, Debug)]
pub(crate) struct Queries {
    /// Rows of the table.
    #[arg(long, default_value_t = 1_000_000)]
    tweets: usize,
    /// Changes a second while reads are timed.
    #[arg(long, default_value_t = 10_000)]
    rate: usize,
    /// Seconds for each kind of read.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Worker threads.
    #[arg(long, default_value_t = 1)]
    workers: usize,
    /// The brokers.
    #[arg(long, env = "ASSAY_TEST_KAFKA")]
    kafka: String,
}

pub(crate) fn run(bench: &Queries) -> anyhow::Result<()> {
    let topic = Topic::anew(
        &bench.kafka,
        &format!("assay-benches-queries-{}", bench.tweets),
    )?;
    let producer: ThreadedProducer<DefaultProducerContext> =
        client(&bench.kafka).set("linger.ms", "5").create()?;
    eprintln!("filling the topic {}", topic.name);
    for (number, tweet) in TweetGenerator::new(SEED).take(bench.tweets).enumerate() {
        send(
            &producer,
            &topic.name,
            &number.to_string(),
            Some(&tweet.to_json()),
        )?;
    }
    producer.flush(PATIENCE)?;
    let running = Running::start(bench, &topic)?;
    running.wait_until_read(bench.tweets)?;

    let done = AtomicBool::new(false);
    let lines = thread::scope(|scope| {
        let changing = scope.spawn(|| change(bench, &topic, &producer, &done));
        let lines = measure(bench, &running, &topic, &producer);
        done.store(true, Ordering::Relaxed);
        let changes = changing
            .join()
            .map_err(|_| anyhow::anyhow!("the producer failed"))??;
        Ok::<_, anyhow::Error>((lines?, changes))
    });
    let (lines, rate) = lines?;
    println!(
        "{} tweets, {} of them mentions, {} changes a second, workers: {}\n",
        whole(bench.tweets as f64),
        whole(running.number("select count(*) from gold")? as f64),
        whole(rate),
        bench.workers,
    );
    print!(
        "{}",
        markdown(["read", "times", "p50 ms", "p99 ms"], &lines)
    );
    Ok(())
}

/// Overwrites rows at the rate that is asked for; returns the rate that was reached.
fn change(
    bench: &Queries,
    topic: &Topic,
    producer: &ThreadedProducer<DefaultProducerContext>,
    done: &AtomicBool,
) -> anyhow::Result<f64> {
    let started = Instant::now();
    let mut tweets = TweetGenerator::new(SEED + 1);
    let mut sent = 0;
    while !done.load(Ordering::Relaxed) {
        let due = (started.elapsed().as_secs_f64() * bench.rate as f64) as usize;
        for tweet in tweets.by_ref().take(due - sent) {
            // Spread over all rows: a prime step visits each before any twice.
            let key = (sent * 7_919) % bench.tweets;
            send(
                producer,
                &topic.name,
                &key.to_string(),
                Some(&tweet.to_json()),
            )?;
            sent += 1;
        }
        thread::sleep(BURST);
    }
    Ok(sent as f64 / started.elapsed().as_secs_f64())
}

/// Times of one kind of read, as a line of the table.
fn line(name: &str, mut times: Vec<Duration>) -> [String; 4] {
    times.sort();
    let at = |share: usize| {
        let place = times.len().saturating_sub(1) * share / 100;
        let time = times.get(place).copied().unwrap_or_default();
        format!("{:.1}", time.as_secs_f64() * 1_000.0)
    };
    [name.to_owned(), whole(times.len() as f64), at(50), at(99)]
}

fn measure(
    bench: &Queries,
    running: &Running,
    topic: &Topic,
    producer: &ThreadedProducer<DefaultProducerContext>,
) -> anyhow::Result<Vec<[String; 4]>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let address = format!(
        "host=127.0.0.1 port={} user=bench dbname=assay",
        running.postgres
    );
    let reader = runtime.block_on(async {
        let (reader, connection) = tokio_postgres::connect(&address, NoTls).await?;
        tokio::spawn(connection);
        Ok::<_, anyhow::Error>(reader)
    })?;
    let mentions = "select mention from mention_sentiment order by total desc limit 1000";
    let mentions = runtime.block_on(reader.query(mentions, &[]))?;
    let mentions: Vec<String> = mentions.iter().map(|row| row.get(0)).collect();
    ensure!(!mentions.is_empty(), "no one is mentioned");
    let time = Duration::from_secs(bench.seconds);
    let mut lines = Vec::new();
    for (name, sql) in [
        (
            "a mention's counts, by name",
            "select * from mention_sentiment where mention = $1",
        ),
        (
            "a mention's rows of gold, by name",
            "select count(*) from gold where mention = $1",
        ),
    ] {
        eprintln!("measuring: {name}");
        let times = runtime.block_on(look_up(&reader, sql, &mentions, time))?;
        lines.push(line(name, times));
    }
    let name = "the twenty most mentioned, of all";
    eprintln!("measuring: {name}");
    let top = "select mention, total from mention_sentiment order by total desc limit 20";
    lines.push(line(
        name,
        timed(time, || {
            runtime.block_on(reader.query(top, &[]))?;
            Ok(())
        })?,
    ));
    let name = "the rows behind a count (explain)";
    eprintln!("measuring: {name}");
    let server = running.server();
    let mut next = mentions.iter().cycle();
    lines.push(line(
        name,
        timed(time, || {
            let mention = next.next().map_or("", String::as_str);
            let answer = server.explain("mention_sentiment", mention, "total", 100)?;
            ensure!(answer["count"] == answer["value"], "{answer}");
            Ok(())
        })?,
    ));
    let name = "from a change in Kafka to a follower";
    eprintln!("measuring: {name}");
    lines.push(line(name, deliveries(running, topic, producer, time)?));
    Ok(lines)
}

async fn look_up(
    reader: &Client,
    sql: &str,
    mentions: &[String],
    time: Duration,
) -> anyhow::Result<Vec<Duration>> {
    let statement = reader.prepare(sql).await?;
    let (started, mut times) = (Instant::now(), Vec::new());
    for mention in mentions.iter().cycle() {
        if started.elapsed() > time {
            break;
        }
        let begun = Instant::now();
        reader.query(&statement, &[mention]).await?;
        times.push(begun.elapsed());
        // Not as fast as one reader can, which would measure the reader.
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok(times)
}

fn timed(
    time: Duration,
    mut read: impl FnMut() -> anyhow::Result<()>,
) -> anyhow::Result<Vec<Duration>> {
    let (started, mut times) = (Instant::now(), Vec::new());
    while started.elapsed() < time {
        let begun = Instant::now();
        read()?;
        times.push(begun.elapsed());
    }
    Ok(times)
}

/// From the moment that a change is handed to the producer until a follower has heard of it.
fn deliveries(
    running: &Running,
    topic: &Topic,
    producer: &ThreadedProducer<DefaultProducerContext>,
    time: Duration,
) -> anyhow::Result<Vec<Duration>> {
    let (heard, hears) = channel();
    let server = running.server();
    // Ends with the process; a failure shows by silence.
    thread::spawn(move || {
        server.follow(
            "bronze",
            Some(&format!("key = '{MARKER}'")),
            |event, data| {
                if event == "snapshot" {
                    heard.send((event.to_owned(), Instant::now()))?;
                }
                let changes = data["changes"].as_array().into_iter().flatten();
                for change in changes.filter(|change| change["diff"] == 1) {
                    heard.send((change["row"]["text"].to_string(), Instant::now()))?;
                }
                Ok(())
            },
        )
    });
    hears
        .recv_timeout(PATIENCE)
        .context("no snapshot was told")?;
    let (started, mut times) = (Instant::now(), Vec::new());
    while started.elapsed() < time {
        let text = format!("number {}", times.len());
        let tweet = serde_json::json!({
            "date": "2009-04-06T22:19:45Z", "user": "bench", "text": text, "sentiment": "neutral",
        });
        let begun = Instant::now();
        send(producer, &topic.name, MARKER, Some(&tweet.to_string()))?;
        loop {
            let (told, at) = hears
                .recv_timeout(PATIENCE)
                .context("a change was not told")?;
            if told.contains(&text) {
                times.push(at - begun);
                break;
            }
        }
        // Out of step with the epochs.
        thread::sleep(Duration::from_millis(37));
    }
    Ok(times)
}

/// Assay while it runs; killed when dropped.
struct Running {
    child: Child,
    http: u16,
    postgres: u16,
    assay: Assay,
}

impl Running {
    fn start(bench: &Queries, topic: &Topic) -> anyhow::Result<Self> {
        let assay = Assay::find()?;
        let mut settings = with_server(bare(SourceKind::Kafka));
        settings.workers = bench.workers;
        settings.source.kafka.topics = vec![topic.name.clone()];
        settings.source.kafka.properties = properties(&bench.kafka);
        settings.source.kafka.format = KafkaFormat::Upsert;
        let (http, postgres) = (free_port()?, free_port()?);
        settings.server.listen = format!("127.0.0.1:{http}");
        settings.server.postgres.enabled = true;
        settings.server.postgres.listen = format!("127.0.0.1:{postgres}");
        let file = assay.folder().join("assay.toml");
        fs::write(&file, toml::to_string(&settings)?)?;
        let log = fs::File::create(assay.folder().join("log"))?;
        let mut command = Command::new(assay.program());
        command.arg("run").arg(file).stderr(log);
        let child = command.spawn().context("cannot start assay")?;
        Ok(Self {
            child,
            http,
            postgres,
            assay,
        })
    }

    fn server(&self) -> Server {
        Server {
            url: format!("http://127.0.0.1:{}", self.http),
            token: None,
        }
    }

    fn number(&self, sql: &str) -> anyhow::Result<u64> {
        let answer = self.server().ask(sql, None)?;
        let row = answer["rows"][0].as_object().context("no row")?;
        let number = row.values().next().and_then(|number| number.as_u64());
        number.context("no number")
    }

    fn wait_until_read(&self, tweets: usize) -> anyhow::Result<()> {
        let started = Instant::now();
        while self.number("select count(*) from bronze").unwrap_or(0) < tweets as u64 {
            if started.elapsed() > PATIENCE {
                let mut log = String::new();
                fs::File::open(self.assay.folder().join("log"))?.read_to_string(&mut log)?;
                bail!("assay has not read everything; it says:\n{log}");
            }
            thread::sleep(Duration::from_millis(500));
        }
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
