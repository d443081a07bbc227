//! What a running Assay's models are worth, logged with MLflow: `assay evaluate`.

use std::collections::BTreeMap;

use anyhow::ensure;
use dataflows::pipelines::mentions::meaning;
use models::evaluation::Confusion;
use regex::{Captures, Regex};
use serde_json::Value;

use crate::charts;
use crate::mlflow::{Run, TrackingServer};
use crate::query::client::Server;

/// Parameters of every run, and where a process tells them.
const TOLD: [(&str, &str); 3] = [
    ("assay_version", "/version"),
    ("silver_delta_version", "/tables/versions/silver"),
    ("checkpoint_epoch", "/tables/epoch"),
];

/// Characters that MLflow does not take in a metric's name; a slash would begin another part of it.
const REFUSED: &str = r"[^\p{L}\p{N}_. -]";

/// Logs a run for each model that has scored what had a label, and prints the addresses of the runs' pages.
///
/// # Errors
/// If one of the servers cannot be asked or refuses, or no label can be compared yet.
pub fn run(server: &Server, tracking: &TrackingServer, experiment: &str) -> anyhow::Result<()> {
    let mlflow_version = tracking.version()?;
    let status = server.status()?;
    let answer = server.ask("select * from accuracy", None)?;
    let models = models(&answer);
    ensure!(
        !models.is_empty(),
        "there is nothing to evaluate: no row has both a given and a predicted label"
    );
    let experiment = tracking.experiment(experiment)?;
    let mut known = parameters(&status);
    known.push(("mlflow_version", mlflow_version));
    known.push(("epoch", plain(&answer["epoch"])));
    for (fingerprint, confusion) in &models {
        let name = name(&status, fingerprint);
        let mut parameters = known.clone();
        parameters.push(("fingerprint", (*fingerprint).to_owned()));
        parameters.extend(name.map(|name| ("model", name.to_owned())));
        let image = charts::matrix("Given and predicted labels", confusion)?;
        let run = Run {
            name: name.unwrap_or(fingerprint).to_owned(),
            parameters,
            metrics: metrics(confusion)?,
            artifact: ("confusion_matrix.png", image),
        };
        println!("{}", tracking.log(&experiment, run)?);
    }
    Ok(())
}

/// How often each label was predicted where each was given, by the models' fingerprints.
fn models(answer: &Value) -> BTreeMap<&str, Confusion> {
    let mut models = BTreeMap::<&str, Confusion>::new();
    for row in answer["rows"].as_array().into_iter().flatten() {
        let given = meaning(text(row, "given_label"));
        let predicted = meaning(text(row, "predicted_label"));
        let rows = row["rows"].as_u64().unwrap_or_default();
        let confusion = models.entry(text(row, "model")).or_default();
        confusion.add(given, predicted, rows);
    }
    models
}

fn text<'row>(row: &'row Value, column: &str) -> &'row str {
    row[column].as_str().unwrap_or_default()
}

/// What the processes tell of themselves that belongs to every run.
fn parameters(status: &Value) -> Vec<(&'static str, String)> {
    let known = TOLD
        .iter()
        .filter_map(|(name, pointer)| Some((*name, plain(of_any(status, pointer)?))));
    known.collect()
}

/// What the model of this fingerprint is called, if it is the one that scores now.
fn name<'status>(status: &'status Value, fingerprint: &str) -> Option<&'status str> {
    let scores_now = of_any(status, "/model/fingerprint")?.as_str() == Some(fingerprint);
    let name = of_any(status, "/model/name")?.as_str();
    name.filter(|_| scores_now)
}

/// What the first of the processes says that says anything.
fn of_any<'status>(status: &'status Value, pointer: &str) -> Option<&'status Value> {
    let processes = status["processes"].as_array()?.iter();
    let mut told = processes.filter_map(|process| process.pointer(pointer));
    told.find(|value| !value.is_null())
}

fn plain(value: &Value) -> String {
    let text = value.as_str().map(str::to_owned);
    text.unwrap_or_else(|| value.to_string())
}

fn metrics(confusion: &Confusion) -> anyhow::Result<Vec<(String, f64)>> {
    let mut metrics = vec![
        ("accuracy".to_owned(), confusion.accuracy()),
        ("rows".to_owned(), confusion.total() as f64),
    ];
    for scores in confusion.scores_and_means() {
        let label = spelled(&scores.label)?;
        metrics.push((format!("precision/{label}"), scores.precision));
        metrics.push((format!("recall/{label}"), scores.recall));
        metrics.push((format!("f1/{label}"), scores.f1));
    }
    Ok(metrics)
}

/// A label as a part of a metric's name. What MLflow does not take is written as its number, lest two labels
/// become one.
fn spelled(label: &str) -> anyhow::Result<String> {
    if label.is_empty() {
        return Ok("empty".to_owned());
    }
    let number = |refused: &Captures<'_>| {
        let letters = refused[0].chars();
        letters
            .map(|letter| format!("u{:04X}", u32::from(letter)))
            .collect::<String>()
    };
    Ok(Regex::new(REFUSED)?.replace_all(label, number).into_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn labels_are_told_apart_in_names_that_mlflow_takes() {
        for (label, name) in [
            ("positive", "positive"),
            ("1 star", "1 star"),
            ("très-bon", "très-bon"),
            ("a/b:c", "au002Fbu003Ac"),
            ("🙂", "u1F642"),
            ("", "empty"),
        ] {
            assert_eq!(spelled(label).unwrap(), name);
        }
    }

    #[test]
    fn a_run_tells_what_is_known_and_leaves_out_what_is_not() {
        let model = json!({ "name": "mine", "fingerprint": "f1" });
        let tables = json!({ "epoch": 7, "versions": { "silver": 3 } });
        let status = json!({ "processes": [
            { "version": "1.2", "model": model, "tables": null },
            { "version": "1.2", "model": model, "tables": tables },
        ]});
        let known = [("assay_version", "1.2"), ("silver_delta_version", "3")];
        let known = known.map(|(name, value)| (name, value.to_owned()));
        assert_eq!(parameters(&status)[..2], known);
        assert_eq!(name(&status, "f1"), Some("mine"));
        assert_eq!(name(&status, "f2"), None);
        assert!(parameters(&json!({ "processes": [] })).is_empty());
    }

    #[test]
    fn each_model_has_its_own_counts() {
        let row = |model: &str, given: &str, rows: u64| {
            json!({
                "model": model, "given_label": given, "predicted_label": "NEG", "rows": rows,
            })
        };
        let answer =
            json!({ "rows": [row("f1", "0", 3), row("f1", "positive", 1), row("f2", "0", 1)] });
        let models = models(&answer);
        let metrics = metrics(&models["f1"]).unwrap();
        for (name, value) in [
            ("accuracy", 0.75),
            ("rows", 4.0),
            ("precision/negative", 0.75),
            ("recall/macro", 0.5),
            ("recall/weighted", 0.75),
        ] {
            assert!(metrics.contains(&(name.to_owned(), value)), "{metrics:?}");
        }
        assert_eq!(models["f2"].accuracy(), 1.0);
    }
}
