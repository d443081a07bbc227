//! The model of a running Assay: what another would change, and the change itself.

use std::io::{IsTerminal, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use models::evaluation::Confusion;
use serde_json::{Value, json};

use super::{Chosen, matrix, meaning, score};
use crate::progress::thousands;
use crate::query::client::Server;

/// Texts on which a model is tried out.
const SAMPLE: usize = 500;

/// How often it is looked how far a change has come.
const PAUSE: Duration = Duration::from_millis(200);

/// How long an order may take to be heard of.
const ORDERED: Duration = Duration::from_secs(10);

/// Tells how many texts another model would have to score, how long that takes, and of how many the label would
/// change.
///
/// # Errors
/// If the model cannot be used, or Assay does not answer.
pub fn plan(chosen: &Chosen, server: &Server) -> anyhow::Result<()> {
    let (origin, model) = chosen.load()?;
    let current = server.model()?;
    let fingerprint = text_of(&current, "fingerprint")?;
    if fingerprint == model.fingerprint() {
        println!("{origin} is the model already");
        return Ok(());
    }
    let live = count(server, &fingerprint)?;
    let known = count(server, model.fingerprint())?;
    let sample =
        format!("select text, label from scores where model = '{fingerprint}' limit {SAMPLE}");
    let sample = rows(server, &sample)?;
    let labels: Vec<(Arc<str>, String)> = sample
        .iter()
        .map(|row| Ok((text_of(row, "text")?.into(), text_of(row, "label")?)))
        .collect::<anyhow::Result<_>>()?;
    let texts: Vec<_> = labels.iter().map(|(text, _)| Arc::clone(text)).collect();
    println!(
        "{} live texts, of which {origin} has scored {}",
        thousands(live),
        thousands(known)
    );
    if texts.is_empty() {
        return Ok(());
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let started = Instant::now();
    let predictions = score(model, cores, &texts)?;
    let rate = texts.len() as f64 / started.elapsed().as_secs_f64();
    let took = Duration::from_secs_f64(live.saturating_sub(known) as f64 / rate);
    println!(
        "{} texts a second on {cores} cores here and now: about {} for the rest\n",
        thousands(rate as u64),
        duration(took)
    );
    let mut confusion = Confusion::default();
    for (text, label) in &labels {
        if let Some(prediction) = predictions.get(text) {
            confusion.add(meaning(label), meaning(&prediction.label), 1);
        }
    }
    print!("{}", matrix(&confusion, "now \\ then"));
    println!(
        "\nof {} texts {:.1} % keep their label",
        texts.len(),
        100.0 * confusion.accuracy()
    );
    Ok(())
}

fn duration(took: Duration) -> String {
    match took.as_secs() {
        seconds @ ..120 => format!("{seconds} s"),
        seconds @ ..7_200 => format!("{} min", seconds / 60),
        seconds => format!("{} h", seconds / 3_600),
    }
}

/// Has another model score everything beside the current one, and then, if it is to be promoted, take its place.
///
/// # Errors
/// If the model cannot be used, or Assay does not answer; with `wait`, also if it has failed.
pub fn load(chosen: &Chosen, promote: bool, wait: bool, server: &Server) -> anyhow::Result<()> {
    let directory = chosen.directory.as_deref().map(place).transpose()?;
    let labels: serde_json::Map<_, _> = chosen
        .labels
        .iter()
        .map(|(own, called)| (own.clone(), called.as_str().into()))
        .collect();
    let wanted = json!({ "directory": directory, "labels": labels, "promote": promote });
    let ordered = server.load_model(&wanted)?;
    let fingerprint = text_of(&ordered, "fingerprint")?;
    match (wait, promote) {
        (true, _) => wait_for(server, &fingerprint, promote),
        (false, true) => {
            println!("{fingerprint} has been ordered; `assay model status` tells how far it is");
            Ok(())
        }
        (false, false) => {
            println!(
                "{fingerprint} scores beside the model; see model_agreement, then promote or drop it"
            );
            Ok(())
        }
    }
}

/// Where a model lies, for a server with another working directory.
fn place(directory: &Path) -> anyhow::Result<PathBuf> {
    if directory.starts_with("models:/") {
        return Ok(directory.to_owned());
    }
    std::path::absolute(directory).with_context(|| format!("cannot find {}", directory.display()))
}

/// Promotes the candidate.
///
/// # Errors
/// If there is none, or Assay does not answer; with `wait`, also if it has failed.
pub fn promote(wait: bool, server: &Server) -> anyhow::Result<()> {
    let ordered = server.order_model("promote")?;
    let fingerprint = text_of(&ordered, "fingerprint")?;
    match wait {
        true => wait_for(server, &fingerprint, true),
        false => {
            println!("{fingerprint} is promoted when it has scored every text");
            Ok(())
        }
    }
}

/// Lets the candidate go.
///
/// # Errors
/// If there is none, or Assay does not answer.
pub fn drop_candidate(server: &Server) -> anyhow::Result<()> {
    let ordered = server.order_model("drop")?;
    println!("{} is let go", text_of(&ordered, "fingerprint")?);
    Ok(())
}

/// Tells which model scores, and which beside it.
///
/// # Errors
/// If Assay does not answer.
pub fn status(server: &Server) -> anyhow::Result<()> {
    let told = server.model()?;
    println!(
        "model      {}, {}",
        text_of(&told, "name")?,
        text_of(&told, "fingerprint")?
    );
    if let Some(fast) = told["fast"].as_str() {
        println!("in a burst {fast}");
    }
    let candidate = &told["candidate"];
    if !candidate.is_null() {
        let then = match candidate["promote"] == true {
            true => ", to be promoted then",
            false => "",
        };
        println!(
            "candidate  {}, {}: {}{then}",
            text_of(candidate, "name")?,
            text_of(candidate, "fingerprint")?,
            progress(candidate)
        );
    }
    if let Some(failure) = told["failure"].as_str() {
        println!("failed     {failure}");
    }
    Ok(())
}

fn progress(candidate: &Value) -> String {
    let number = |name: &str| candidate[name].as_u64().unwrap_or_default();
    match candidate["begun"] == true {
        true => {
            let (scored, waiting) = (number("scored"), number("waiting"));
            format!(
                "{} of {} texts scored",
                thousands(scored),
                thousands(scored + waiting)
            )
        }
        false => "being loaded".to_owned(),
    }
}

/// Waits until a model has scored everything, and, if it is promoted, until everything shows it.
fn wait_for(server: &Server, fingerprint: &str, promote: bool) -> anyhow::Result<()> {
    let terminal = std::io::stderr().is_terminal();
    let started = Instant::now();
    let mut seen = false;
    loop {
        let told = server.model()?;
        let candidate = &told["candidate"];
        let is_candidate = candidate["fingerprint"] == fingerprint;
        seen |= is_candidate;
        if terminal {
            eprint!(
                "\r\x1b[K{}",
                if is_candidate {
                    progress(candidate)
                } else {
                    String::new()
                }
            );
            // What cannot be shown need not be.
            let _ = std::io::stderr().flush();
        }
        let done = match promote {
            true => {
                told["fingerprint"] == fingerprint
                    && told["alike"] == true
                    && moved(server, fingerprint)?
            }
            false => is_candidate && all_scored(server, fingerprint)?,
        };
        if done {
            break;
        }
        if let (false, Some(failure)) = (is_candidate, told["failure"].as_str()) {
            bail!("the model stays as it was: {failure}");
        }
        let gone = !is_candidate && told["fingerprint"] != fingerprint;
        if gone && (seen || started.elapsed() > ORDERED) {
            bail!("the model stays as it was: the other one was let go");
        }
        std::thread::sleep(PAUSE);
    }
    if terminal {
        eprint!("\r\x1b[K");
    }
    let rows = count(server, fingerprint)?;
    let what = match promote {
        true => "is the model now",
        false => "has scored every text",
    };
    println!(
        "{fingerprint} {what}: {} texts in {}",
        thousands(rows),
        duration(started.elapsed())
    );
    Ok(())
}

/// Whether the candidate's score of every live text can be seen.
fn all_scored(server: &Server, fingerprint: &str) -> anyhow::Result<bool> {
    let query = format!(
        "select count(*) filter (where model = '{fingerprint}') as scored, \
         count(*) filter (where model <> '{fingerprint}') as live from scores"
    );
    let counted = rows(server, &query)?;
    Ok(counted[0]["scored"] == counted[0]["live"])
}

/// Whether no row of gold is left that another model has scored, but those of a burst.
fn moved(server: &Server, fingerprint: &str) -> anyhow::Result<bool> {
    let left = rows(
        server,
        &format!("select count(*) as n from gold where model <> '{fingerprint}' and tier = 1"),
    )?;
    Ok(left[0]["n"] == 0)
}

/// How many texts a model has scored, of those that are live.
fn count(server: &Server, fingerprint: &str) -> anyhow::Result<u64> {
    let counted = rows(
        server,
        &format!("select count(*) as n from scores where model = '{fingerprint}'"),
    )?;
    counted[0]["n"]
        .as_u64()
        .context("the answer is not Assay's")
}

fn rows(server: &Server, query: &str) -> anyhow::Result<Vec<Value>> {
    let answer = server.ask(query, None)?;
    let rows = answer["rows"].as_array().cloned();
    rows.context("the answer is not Assay's")
}

fn text_of(value: &Value, name: &str) -> anyhow::Result<String> {
    let text = value[name].as_str().map(str::to_owned);
    text.context("the answer is not Assay's")
}
