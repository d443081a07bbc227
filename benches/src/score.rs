//! Scores distinct texts: by the bare model, by the pool of threads, and within the whole pipeline.
//!
//! The bare model gets tokens in batches that could not be better; what the pipeline reaches of its
//! rate is what everything around the model leaves of it. ONNX Runtime can be run beside it, on the same batches.

use std::collections::{BTreeMap, HashSet};
use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, anyhow};
use assay::generate::tweets::{GeneratedTweet, TweetGenerator};
use assay::model::score;
use clap::Args;
use dataflows::pipelines::mentions::mention::MentionRule;
use models::files::ModelFiles;
use models::{Classifier, ModelError, Prepared, Runtime};

use crate::cost::{self, Spent};
use crate::program::{Assay, SEED, bare_files, write_lines};
use crate::table::{markdown, whole};

/// Texts of a batch, as many as the pool takes.
const BATCH: usize = 16;

/// How often tract and ONNX Runtime take turns.
const ROUNDS: usize = 5;

/// Scores distinct texts with the built-in model.
#[derive(Args, Debug)]
pub(crate) struct Score {
    /// How many texts.
    #[arg(long, default_value_t = 2_000)]
    texts: usize,
    /// Only run the bare model, by tract and by ONNX Runtime, whose library ORT_DYLIB_PATH names.
    #[arg(long)]
    beside_onnxruntime: bool,
}

pub(crate) fn run(bench: &Score) -> anyhow::Result<()> {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    if bench.beside_onnxruntime {
        return beside_onnxruntime(bench.texts, cores);
    }
    let assay = Assay::find()?;
    let (tweets, texts) = distinct_texts(bench.texts);
    let model = models::load(&ModelFiles::built_in(), Runtime::Tract)?;
    let batches = batches(&*model, &texts)?;

    let mut rows = Vec::new();
    let mut add = |case: &str, spent: Spent| rows.push(line(case, spent, bench.texts));
    eprintln!("measuring: bare model, threads: 1");
    let (_, alone) = cost::of_work(|| classify(&*model, &batches, 1))?;
    add("bare model, threads: 1", alone);
    let case = format!("bare model, threads: {cores}");
    eprintln!("measuring: {case}");
    let (_, bare) = cost::of_work(|| classify(&*model, &batches, cores))?;
    add(&case, bare);
    let case = format!("pool, threads: {cores}");
    eprintln!("measuring: {case}");
    let (_, pool) = cost::of_work(|| score(model, cores, &texts))?;
    add(&case, pool);

    let (empty, full) = (assay.folder().join("empty"), assay.folder().join("full"));
    write_lines(&empty, std::iter::empty())?;
    write_lines(&full, tweets.into_iter())?;
    let run = |case: &str, folder: &Path| {
        let mut settings = bare_files(folder);
        settings.model.enabled = true;
        assay.run(case, &settings)
    };
    let start = run("pipeline, no texts", &empty)?.spent;
    let whole_run = run("pipeline", &full)?.spent;
    let pipeline = whole_run.without(start);
    add("pipeline, start taken off", pipeline);

    let head = ["case", "texts per second", "texts per CPU second"];
    println!(
        "{} distinct texts, {cores} cores:\n",
        whole(bench.texts as f64)
    );
    print!("{}", markdown(head, &rows));
    println!(
        "\nThe pipeline took {:.2} s and {:.2} CPU s, of which its start and the loading of the model \
         {:.2} s and {:.2} CPU s, as a run without texts takes.",
        whole_run.wall.as_secs_f64(),
        whole_run.cpu.as_secs_f64(),
        start.wall.as_secs_f64(),
        start.cpu.as_secs_f64(),
    );
    println!(
        "Pipeline of bare model with as many threads: {:.1}% by CPU seconds, {:.1}% by wall seconds.",
        percent(bare.cpu, pipeline.cpu),
        percent(bare.wall, pipeline.wall),
    );
    Ok(())
}

/// Runs the same batches by tract and by ONNX Runtime, in turns, so that whatever else the machine does is in
/// the way of both.
fn beside_onnxruntime(count: usize, cores: usize) -> anyhow::Result<()> {
    let load = |runtime| models::load(&ModelFiles::built_in(), runtime);
    let (tract, peer) = (load(Runtime::Tract)?, load(Runtime::OnnxRuntime)?);
    let (_, texts) = distinct_texts(count);
    let batches = batches(&*tract, &texts)?;
    let mut rows = Vec::new();
    for threads in [1, cores] {
        eprintln!("measuring: threads: {threads}");
        let spent = |model: &dyn Classifier| {
            let (_, spent) = cost::of_work(|| classify(model, &batches, threads))?;
            anyhow::Ok(spent)
        };
        let (mut ours, mut theirs) = (spent(&*tract)?, spent(&*peer)?);
        for _ in 1..ROUNDS {
            ours = ours.least(spent(&*tract)?);
            theirs = theirs.least(spent(&*peer)?);
        }
        let rate = |spent: Spent| format!("{:.1}", count as f64 / spent.wall.as_secs_f64());
        rows.push([
            threads.to_string(),
            rate(ours),
            rate(theirs),
            format!("{:.1}%", percent(theirs.wall, ours.wall)),
            format!("{:.1}%", percent(theirs.cpu, ours.cpu)),
        ]);
    }
    let head = [
        "threads",
        "tract, texts per second",
        "ONNX Runtime, texts per second",
        "tract of ONNX Runtime",
        "by CPU seconds",
    ];
    println!(
        "{} distinct texts, {cores} cores, the best of {ROUNDS} rounds:\n",
        whole(count as f64)
    );
    print!("{}", markdown(head, &rows));
    println!(
        "\nBoth give {} texts the same label.",
        whole(alike(&*tract, &*peer, &batches)? as f64)
    );
    Ok(())
}

/// How many texts both models give the same label.
fn alike(
    one: &dyn Classifier,
    other: &dyn Classifier,
    batches: &[Vec<Prepared>],
) -> anyhow::Result<usize> {
    let mut alike = 0;
    for batch in batches {
        let (ours, theirs) = (one.classify(batch)?, other.classify(batch)?);
        let pairs = ours.iter().zip(&theirs);
        alike += pairs
            .filter(|(one, other)| one.label == other.label)
            .count();
    }
    Ok(alike)
}

/// As many tweets as asked for, each with a mention and a cleaned text that no other has, so that
/// each costs the pipeline one scoring; and the cleaned texts.
fn distinct_texts(count: usize) -> (Vec<GeneratedTweet>, Vec<Arc<str>>) {
    let rule = MentionRule::twitter();
    let mut seen = HashSet::new();
    TweetGenerator::new(SEED)
        .with_mention_share(1.0)
        .map(|tweet| {
            let cleaned: Arc<str> = rule.cleaned(&tweet.text).into();
            (tweet, cleaned)
        })
        .filter(|(_, cleaned)| seen.insert(Arc::clone(cleaned)))
        .take(count)
        .unzip()
}

/// The texts' tokens in batches of equal length, the longest first, so that threads end together.
fn batches(model: &dyn Classifier, texts: &[Arc<str>]) -> anyhow::Result<Vec<Vec<Prepared>>> {
    let mut lengths: BTreeMap<usize, Vec<Prepared>> = BTreeMap::new();
    for text in texts {
        let tokens = model.prepare(text)?;
        lengths.entry(tokens.length()).or_default().push(tokens);
    }
    let same_length = lengths.values().rev();
    Ok(same_length
        .flat_map(|tokens| tokens.chunks(BATCH))
        .map(<[Prepared]>::to_vec)
        .collect())
}

fn classify(
    model: &dyn Classifier,
    batches: &[Vec<Prepared>],
    threads: usize,
) -> anyhow::Result<()> {
    let next = AtomicUsize::new(0);
    let work = || -> Result<(), ModelError> {
        while let Some(batch) = batches.get(next.fetch_add(1, Ordering::Relaxed)) {
            black_box(model.classify(batch)?);
        }
        Ok(())
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        threads.into_iter().try_for_each(|thread| {
            let ended = thread.join().map_err(|_| anyhow!("a thread panicked"))?;
            ended.context("cannot classify")
        })
    })
}

fn line(case: &str, spent: Spent, texts: usize) -> [String; 3] {
    let rate = |time: Duration| format!("{:.1}", texts as f64 / time.as_secs_f64());
    [case.to_owned(), rate(spent.wall), rate(spent.cpu)]
}

/// The share of a rate that is left when the same work takes longer than the least.
fn percent(least: Duration, taken: Duration) -> f64 {
    100.0 * least.as_secs_f64() / taken.as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_distinct_and_all_tweets_mention_someone() {
        let (tweets, texts) = distinct_texts(3_000);
        let rule = MentionRule::twitter();
        assert_eq!((tweets.len(), texts.len()), (3_000, 3_000));
        assert!(
            tweets
                .iter()
                .all(|tweet| !rule.extract(&tweet.text).is_empty())
        );
        assert_eq!(texts.iter().collect::<HashSet<_>>().len(), 3_000);
    }

    #[test]
    fn batches_hold_every_text_and_one_length_each() {
        let model = models::load(&ModelFiles::built_in(), Runtime::Tract).unwrap();
        let (_, texts) = distinct_texts(300);
        let batches = batches(&*model, &texts).unwrap();
        assert_eq!(batches.iter().map(Vec::len).sum::<usize>(), 300);
        for batch in batches {
            assert!(batch.len() <= BATCH);
            assert!(
                batch
                    .iter()
                    .all(|tokens| tokens.length() == batch[0].length())
            );
        }
    }
}
