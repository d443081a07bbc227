//! Models before they are used: `assay model check`, `bench` and `eval`; and in use: [`running`].

pub mod running;

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, IsTerminal, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use clap::Args;
use dataflows::pipelines::mentions::mention::MentionRule;
use dataflows::pipelines::mentions::{meaning, polarity};
use models::evaluation::{Calibration, Confusion};
use models::files::ModelFiles;
use models::pool::{Answer, Failure, GoOn, Pool, Turn, Watcher};
use models::{Classifier, Prediction, Runtime};
use serde_json::{Map, Value, json};

use crate::generate::tweets::TweetGenerator;
use crate::progress::thousands;
use crate::query::client::grid;
use crate::{charts, metrics, mlflow};

/// Which model.
#[derive(Args, Debug)]
pub struct Chosen {
    /// A directory with model.onnx, tokenizer.json and config.json, or models:/NAME/VERSION or models:/NAME@ALIAS
    /// of the MLflow server at MLFLOW_TRACKING_URI; the built-in model if none is named.
    directory: Option<PathBuf>,
    /// What one of its labels is to be called instead, as in [model.labels].
    #[arg(long = "label", value_name = "OWN=CALLED", value_parser = renamed)]
    labels: Vec<(String, String)>,
    /// What runs it: tract, or onnxruntime, whose library ORT_DYLIB_PATH names.
    #[arg(long, default_value = "tract")]
    runtime: Runtime,
}

/// How fast to try.
#[derive(Args, Debug)]
pub struct Bench {
    #[command(flatten)]
    chosen: Chosen,
    /// How many invented tweets to score.
    #[arg(long, default_value_t = 2_000)]
    texts: usize,
}

/// What to evaluate on.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  assay model eval --data labelled.jsonl
  zstdcat labelled.jsonl.zst | assay model eval models/mine --data - --png confusion.png")]
pub struct Eval {
    #[command(flatten)]
    chosen: Chosen,
    /// Labelled texts, a JSON object a line; - for standard input.
    #[arg(long)]
    data: PathBuf,
    /// The texts' column.
    #[arg(long, default_value = "text")]
    text: String,
    /// The labels' column.
    #[arg(long, default_value = "sentiment")]
    given: String,
    /// Where to write an image of the confusion matrix.
    #[arg(long)]
    png: Option<PathBuf>,
    /// Print the figures as JSON.
    #[arg(long)]
    json: bool,
}

fn renamed(text: &str) -> Result<(String, String), String> {
    let (own, called) = text.split_once('=').ok_or("write it as OWN=CALLED")?;
    Ok((own.to_owned(), called.to_owned()))
}

impl Chosen {
    fn load(&self) -> anyhow::Result<(String, Box<dyn Classifier>)> {
        let mut files = files(self.directory.as_deref())?;
        files.labels = self.labels.iter().cloned().collect();
        let model = models::load(&files, self.runtime)?;
        Ok((files.origin, model))
    }
}

/// The files of a model: in a directory, registered with MLflow, or built in.
///
/// # Errors
/// If they cannot be read, or not be downloaded.
pub fn files(directory: Option<&Path>) -> anyhow::Result<ModelFiles> {
    match directory.and_then(mlflow::registered) {
        Some(registered) => registered.map_err(anyhow::Error::msg)?.files(),
        None => Ok(ModelFiles::of(directory)?),
    }
}

/// Loads a model, tries it, and tells what it is.
///
/// # Errors
/// If it cannot be used.
pub fn check(chosen: &Chosen) -> anyhow::Result<()> {
    const TRIALS: [&str; 3] = [
        "what a wonderful day",
        "it is what it is",
        "this is terrible",
    ];
    let started = Instant::now();
    let (origin, model) = chosen.load()?;
    let took = started.elapsed();
    let mut told = String::new();
    let mut line = |name: &str, value: &str| {
        // Writing to a string cannot fail.
        let _ = writeln!(told, "{name:<12} {value}");
    };
    line("model", &origin);
    line("fingerprint", model.fingerprint());
    line("loaded in", &format!("{:.2} s", took.as_secs_f64()));
    let labels = model.labels().iter().map(|label| match polarity(label) {
        Some(meaning) if meaning.name() == &**label => label.to_string(),
        Some(meaning) => format!("{label} (counted as {})", meaning.name()),
        None => format!("{label} (not counted)"),
    });
    line("labels", &labels.collect::<Vec<_>>().join(", "));
    line("looks at", &model.extent());
    let batches = match model.batch_limit() {
        1 => "none: a text's score would depend on the others, so each goes alone".to_owned(),
        limit => format!("of up to {limit} texts"),
    };
    line("batches", &batches);
    for text in TRIALS {
        let prepared = model.prepare(text)?;
        let prediction = model.classify(&[prepared])?.remove(0);
        let percent = f64::from(prediction.confidence) / 1e4;
        line(
            "for example",
            &format!("\"{text}\" is {}, {percent:.1} % sure", prediction.label),
        );
    }
    print!("{told}");
    if !model.labels().iter().any(|label| polarity(label).is_some()) {
        bail!(
            "{origin}: no label is counted as negative, neutral or positive; say in [model.labels] which are, \
             or here by --label OWN=CALLED"
        );
    }
    Ok(())
}

/// Measures a model on invented tweets.
///
/// # Errors
/// If it cannot be used.
pub fn bench(bench: &Bench) -> anyhow::Result<()> {
    let (origin, model) = bench.chosen.load()?;
    let texts = invented(bench.texts);
    let rate = |took: Duration| texts.len() as f64 / took.as_secs_f64();
    let started = Instant::now();
    for text in &texts {
        model.prepare(text)?;
    }
    let mut rows = vec![measured("preparing, one thread", rate(started.elapsed()))];
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut model = model;
    for threads in [1, cores] {
        let started = Instant::now();
        score(model, threads, &texts)?;
        let case = format!("scoring, threads: {threads}");
        rows.push(measured(&case, rate(started.elapsed())));
        if threads == cores {
            break;
        }
        (_, model) = bench.chosen.load()?;
    }
    let head = ["", "texts a second", "a million texts"].map(str::to_owned);
    println!(
        "{origin}, {} distinct texts:\n",
        thousands(texts.len() as u64)
    );
    print!("{}", grid(&head, &rows));
    if let Some(bytes) = metrics::resident_bytes() {
        println!("\nresident memory {} MiB", bytes >> 20);
    }
    Ok(())
}

fn measured(case: &str, rate: f64) -> Vec<String> {
    let million = 1e6 / rate;
    vec![
        case.to_owned(),
        thousands(rate as u64),
        match million {
            ..100.0 => format!("{million:.1} s"),
            ..6_000.0 => format!("{:.0} min", million / 60.0),
            _ => format!("{:.1} h", million / 3_600.0),
        },
    ]
}

/// Distinct texts as the pipeline has them: of tweets, without who is mentioned.
fn invented(count: usize) -> Vec<Arc<str>> {
    let rule = MentionRule::twitter();
    let mut met = std::collections::HashSet::new();
    TweetGenerator::new(1)
        .map(|tweet| rule.cleaned(&tweet.text).into())
        .filter(|text: &Arc<str>| met.insert(Arc::clone(text)))
        .take(count)
        .collect()
}

/// Scores labelled texts and tells what the model's labels are worth.
///
/// # Errors
/// If the model or a line of the data cannot be used.
pub fn eval(eval: &Eval) -> anyhow::Result<()> {
    let (origin, model) = eval.chosen.load()?;
    let fingerprint = model.fingerprint().to_owned();
    let rows = labelled(eval)?;
    let mut texts: Vec<_> = rows.iter().map(|(text, _)| Arc::clone(text)).collect();
    texts.sort_unstable();
    texts.dedup();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let started = Instant::now();
    let predictions = score(model, cores, &texts)?;
    let took = started.elapsed();
    let (mut confusion, mut calibration) = (Confusion::default(), Calibration::default());
    for (text, given) in &rows {
        // All texts were asked for.
        let Some(prediction) = predictions.get(text) else {
            continue;
        };
        let (given, predicted) = (meaning(given), meaning(&prediction.label));
        confusion.add(given, predicted, 1);
        calibration.add(prediction.confidence, given == predicted);
    }
    if let Some(png) = &eval.png {
        let image = charts::matrix(&format!("{origin}: given and predicted"), &confusion)?;
        std::fs::write(png, image).with_context(|| format!("cannot write {}", png.display()))?;
    }
    if eval.json {
        println!(
            "{}",
            figures(&origin, &fingerprint, &confusion, &calibration)
        );
        return Ok(());
    }
    let rate = thousands((texts.len() as f64 / took.as_secs_f64()) as u64);
    println!(
        "{origin}, {} rows, {rate} texts a second\n",
        thousands(rows.len() as u64)
    );
    print!("{}", matrix(&confusion, "given \\ predicted"));
    println!();
    print!("{}", scores(&confusion));
    println!(
        "\naccuracy {:.4}, expected calibration error {:.4}",
        confusion.accuracy(),
        calibration.error()
    );
    Ok(())
}

/// The texts and their labels.
fn labelled(eval: &Eval) -> anyhow::Result<Vec<(Arc<str>, String)>> {
    let name = eval.data.display();
    let reader: Box<dyn BufRead> = match eval.data == Path::new("-") {
        true => Box::new(std::io::stdin().lock()),
        false => {
            let file = std::fs::File::open(&eval.data);
            Box::new(BufReader::new(
                file.with_context(|| format!("cannot read {name}"))?,
            ))
        }
    };
    let mut rows = Vec::new();
    for (number, line) in reader.lines().enumerate() {
        let line = line.with_context(|| format!("cannot read {name}"))?;
        if line.trim().is_empty() {
            continue;
        }
        let row = row(&line, &eval.text, &eval.given);
        rows.push(row.map_err(|why| anyhow!("{name}:{}: {why}", number + 1))?);
    }
    if rows.is_empty() {
        bail!("{name} holds no rows");
    }
    Ok(rows)
}

fn row(line: &str, text: &str, given: &str) -> Result<(Arc<str>, String), String> {
    let row: Map<String, Value> =
        serde_json::from_str(line).map_err(|error| format!("no JSON object: {error}"))?;
    let column = |name: &str, option: &str| {
        let value = row.get(name).filter(|value| !value.is_null());
        value.ok_or_else(|| {
            let names: Vec<_> = row.keys().collect();
            format!("no column \"{name}\" among {names:?}; {option} names another")
        })
    };
    let as_text = |value: &Value| {
        value
            .as_str()
            .map_or_else(|| value.to_string(), str::to_owned)
    };
    let label = as_text(column(given, "--given")?);
    Ok((as_text(column(text, "--text")?).into(), label))
}

/// Tells what goes wrong in the pool.
struct Alarm(std::sync::mpsc::Sender<anyhow::Result<models::pool::Answers>>);

impl Watcher for Alarm {
    fn classified(&self, _: usize, _: Duration) {}

    fn failed(&self, failure: &Failure<'_>) -> GoOn {
        let why = anyhow!("it cannot score \"{}\": {}", failure.text, failure.error);
        // Whoever waited may have given up already.
        let _ = self.0.send(Err(why));
        GoOn::No
    }
}

/// Scores distinct texts, with progress where a terminal is.
///
/// # Errors
/// If the model fails.
pub fn score(
    model: Box<dyn Classifier>,
    threads: usize,
    texts: &[Arc<str>],
) -> anyhow::Result<HashMap<Arc<str>, Prediction>> {
    let (sender, answers) = channel();
    let pool = Pool::start(threads, Alarm(sender.clone()));
    let scorer = pool.add(model, Turn::Foreground);
    let answer: Answer = Arc::new(move |answers| {
        let _ = sender.send(Ok(answers));
    });
    scorer.submit(texts.to_vec(), &answer);
    let terminal = std::io::stderr().is_terminal();
    let mut predictions = HashMap::with_capacity(texts.len());
    while predictions.len() < texts.len() {
        predictions.extend(answers.recv()??);
        if terminal {
            let (done, all) = (predictions.len() as u64, texts.len() as u64);
            eprint!("\r{} of {} scored", thousands(done), thousands(all));
            // What cannot be shown need not be.
            let _ = std::io::stderr().flush();
        }
    }
    if terminal {
        eprint!("\r\x1b[K");
    }
    Ok(predictions)
}

/// Counts by given label, a line each, and predicted label.
fn matrix(confusion: &Confusion, corner: &str) -> String {
    let labels: Vec<_> = confusion.labels().collect();
    let mut head = vec![corner.to_owned()];
    head.extend(labels.iter().map(|label| (*label).to_owned()));
    let rows = labels.iter().map(|given| {
        let counts = labels
            .iter()
            .map(|predicted| confusion.count(given, predicted));
        std::iter::once((*given).to_owned())
            .chain(counts.map(thousands))
            .collect()
    });
    grid(&head, &rows.collect::<Vec<Vec<_>>>())
}

fn scores(confusion: &Confusion) -> String {
    let rows = confusion.scores_and_means().into_iter().map(|scores| {
        let figures = [scores.precision, scores.recall, scores.f1];
        let figures = figures.map(|figure| format!("{figure:.4}"));
        let mut row = vec![scores.label];
        row.extend(figures);
        row.push(thousands(scores.given));
        row
    });
    let head = ["label", "precision", "recall", "F1", "rows"].map(str::to_owned);
    grid(&head, &rows.collect::<Vec<_>>())
}

fn figures(
    origin: &str,
    fingerprint: &str,
    confusion: &Confusion,
    calibration: &Calibration,
) -> Value {
    let score = |scores: models::evaluation::Scores| {
        let figures = json!({
            "precision": scores.precision, "recall": scores.recall, "f1": scores.f1, "rows": scores.given,
        });
        (scores.label, figures)
    };
    let labels: Vec<_> = confusion.labels().collect();
    let counts = |given: &&str| {
        let counts = labels
            .iter()
            .map(|predicted| (*predicted, confusion.count(given, predicted)));
        counts.collect::<BTreeMap<_, _>>()
    };
    let matrix: BTreeMap<_, _> = labels.iter().map(|given| (*given, counts(given))).collect();
    json!({
        "model": origin,
        "fingerprint": fingerprint,
        "rows": confusion.total(),
        "accuracy": confusion.accuracy(),
        "expected_calibration_error": calibration.error(),
        "labels": confusion.scores().into_iter().map(score).collect::<Map<_, _>>(),
        "macro": score(confusion.mean()).1,
        "weighted": score(confusion.weighted_mean()).1,
        "confusion": matrix,
    })
}
