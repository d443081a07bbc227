//! A running Assay's stages at work, for a terminal: `assay monitor`.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::thread::sleep;
use std::time::Duration;

use serde_json::Value;

use crate::progress::thousands;
use crate::query::client::{Server, grid};

/// How often a terminal's table is painted again.
const REPAINTED: Duration = Duration::from_secs(1);

/// How often a line is printed elsewhere.
const PRINTED: Duration = Duration::from_secs(10);

/// Watches until the server ends, or the reader.
///
/// # Errors
/// If the server cannot be asked.
pub fn run(server: &Server, json: bool) -> anyhow::Result<()> {
    let terminal =
        std::io::stdout().is_terminal() && std::env::var("TERM").as_deref() != Ok("dumb");
    let pause = if terminal && !json {
        REPAINTED
    } else {
        PRINTED
    };
    let mut before = None;
    loop {
        let answer = server.status()?;
        let now = Sample::of(&answer);
        let shown = match (json, terminal) {
            (true, _) => format!("{answer}\n"),
            // The cursor goes home, and what is below the new table is cleared.
            (false, true) => format!("\x1b[H\x1b[2J{}", now.table(before.as_ref())),
            (false, false) => now.line(before.as_ref()),
        };
        let mut output = std::io::stdout().lock();
        if output
            .write_all(shown.as_bytes())
            .and_then(|()| output.flush())
            .is_err()
        {
            // Whoever reads has had enough.
            return Ok(());
        }
        drop(output);
        before = Some(now);
        sleep(pause);
    }
}

/// What all processes told, added up.
struct Sample {
    time: u64,
    processes: usize,
    workers: u64,
    memory: u64,
    read: u64,
    source: String,
    waiting: u64,
    /// Texts that were scored, and that wait; none without a model.
    scoring: Option<(u64, u64)>,
    checkpoint: Option<(u64, u64)>,
    stages: BTreeMap<usize, Stage>,
}

#[derive(Default)]
struct Stage {
    name: String,
    inserted: u64,
    retracted: u64,
    busy_ms: u64,
    lag_ms: u64,
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_default()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

impl Sample {
    fn of(status: &Value) -> Self {
        let processes = list(&status["processes"]);
        let sum = |of: fn(&Value) -> u64| processes.iter().map(of).sum();
        let mut stages: BTreeMap<usize, Stage> = BTreeMap::new();
        for (place, told) in processes
            .iter()
            .flat_map(|process| list(&process["stages"]).iter().enumerate())
        {
            let stage = stages.entry(place).or_default();
            told["name"]
                .as_str()
                .unwrap_or_default()
                .clone_into(&mut stage.name);
            stage.inserted += number(&told["inserted"]);
            stage.retracted += number(&told["retracted"]);
            stage.busy_ms += number(&told["busy_ms"]);
            stage.lag_ms = stage.lag_ms.max(number(&told["lag_ms"]));
        }
        let scored = processes
            .iter()
            .any(|process| process["scoring"].is_object());
        let mut checkpoints = processes.iter().map(|process| &process["checkpoint"]);
        let checkpoint = checkpoints.find(|checkpoint| checkpoint.is_object());
        Self {
            time: number(&status["time"]),
            processes: processes.len(),
            workers: sum(|process| number(&process["workers"])),
            memory: sum(|process| number(&process["memory_bytes"])),
            read: sum(|process| number(&process["read"])),
            source: processes
                .first()
                .and_then(|process| process["source"]["state"].as_str())
                .unwrap_or("not there yet")
                .to_owned(),
            waiting: sum(|process| {
                let partitions = list(&process["source"]["partitions"]).iter();
                partitions
                    .map(|partition| number(&partition["waiting"]))
                    .sum()
            }),
            scoring: scored.then(|| {
                (
                    sum(|process| number(&process["scoring"]["scored"])),
                    sum(|process| number(&process["scoring"]["waiting"])),
                )
            }),
            checkpoint: checkpoint
                .map(|checkpoint| (number(&checkpoint["epoch"]), number(&checkpoint["took_ms"]))),
            stages,
        }
    }

    /// How much of something came a second since another sample.
    fn rate(&self, before: Option<&Self>, count: impl Fn(&Self) -> u64) -> u64 {
        let Some(before) = before else { return 0 };
        let came = count(self).saturating_sub(count(before));
        let seconds = self.time.saturating_sub(before.time).max(1) as f64 / 1_000.0;
        (came as f64 / seconds).round() as u64
    }

    fn table(&self, before: Option<&Self>) -> String {
        let columns = ["stage", "rows", "rows/s", "busy ms/s", "lag s"].map(str::to_owned);
        let rows: Vec<_> = self
            .stages
            .iter()
            .map(|(place, stage)| {
                let of = |count: fn(&Stage) -> u64| {
                    self.rate(before, |sample| sample.stages.get(place).map_or(0, count))
                };
                vec![
                    stage.name.clone(),
                    thousands(stage.inserted.saturating_sub(stage.retracted)),
                    thousands(of(|stage| stage.inserted + stage.retracted)),
                    thousands(of(|stage| stage.busy_ms)),
                    format!("{:.1}", stage.lag_ms as f64 / 1_000.0),
                ]
            })
            .collect();
        let scoring = self.scoring.map_or(String::new(), |(scored, waiting)| {
            let rate = self.rate(before, |sample| {
                sample.scoring.map_or(0, |(scored, _)| scored)
            });
            format!(
                "model    {} texts, {}/s, {} wait\n",
                thousands(scored),
                thousands(rate),
                thousands(waiting)
            )
        });
        let checkpoint = self.checkpoint.map_or(String::new(), |(epoch, took)| {
            let ago = self.time.saturating_sub(epoch) / 1_000;
            format!("tables   durable as of {ago} s ago, written in {took} ms\n")
        });
        format!(
            "source   {}, {} read, {}/s, {} wait\n{scoring}{checkpoint}running  {} process{}, {} worker{}, {} MB\n\n{}",
            self.source,
            thousands(self.read),
            thousands(self.rate(before, |sample| sample.read)),
            thousands(self.waiting),
            self.processes,
            if self.processes == 1 { "" } else { "es" },
            self.workers,
            if self.workers == 1 { "" } else { "s" },
            self.memory >> 20,
            grid(&columns, &rows)
        )
    }

    fn line(&self, before: Option<&Self>) -> String {
        let stages = self.stages.values().map(|stage| {
            let rows = stage.inserted.saturating_sub(stage.retracted);
            format!("{} {}", stage.name, thousands(rows))
        });
        let lag = self.stages.values().map(|stage| stage.lag_ms).max();
        format!(
            "read {} ({}/s) | {} | lag {:.1} s\n",
            thousands(self.read),
            thousands(self.rate(before, |sample| sample.read)),
            stages.collect::<Vec<_>>().join(" | "),
            lag.unwrap_or_default() as f64 / 1_000.0
        )
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn processes_are_added_up_and_rates_are_of_the_time_between() {
        let status = |time: u64, inserted: u64| {
            let process = json!({
                "workers": 2, "memory_bytes": 1 << 20, "read": inserted,
                "source": { "state": "on", "partitions": [{ "partition": "t/0", "waiting": 3 }] },
                "stages": [{ "name": "bronze", "inserted": inserted, "retracted": 1, "busy_ms": time, "lag_ms": 100 }],
                "scoring": null, "checkpoint": null,
            });
            Sample::of(&json!({ "time": time, "processes": [process.clone(), process] }))
        };
        let (before, now) = (status(1_000, 11), status(3_000, 511));
        let table = now.table(Some(&before));
        for part in [
            "source   on, 1,022 read, 500/s, 6 wait",
            "2 processes, 4 workers, 2 MB",
            "bronze  1,020     500      2,000    0.1",
        ] {
            assert!(table.contains(part), "{part} is missing from\n{table}");
        }
        assert_eq!(
            now.line(None),
            "read 1,022 (0/s) | bronze 1,020 | lag 0.1 s\n"
        );
    }
}
