//! The other side of [`super::http`]: asks a running Assay, and shows its answer as a table.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::Value;

/// How long an answer may take.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Asks a server a query, now or as of an earlier epoch; returns its answer, which may be an `error`.
///
/// # Errors
/// If the server cannot be reached or does not speak as Assay does.
pub fn ask(server: &str, query: &str, at: Option<u64>) -> anyhow::Result<Value> {
    let at = at.map_or(String::new(), |epoch| format!("?at={epoch}"));
    request(server, &format!("POST /v1/sql{at}"), query)
}

/// Asks a server what changed in a relation between two epochs.
///
/// # Errors
/// The same.
pub fn diff(server: &str, relation: &str, from: u64, to: u64) -> anyhow::Result<Value> {
    let path = format!("/v1/relations/{relation}/diff?from={from}&to={to}");
    request(server, &format!("GET {path}"), "")
}

/// Tells a server what to do with its source: `pause` or `resume`.
///
/// # Errors
/// The same.
pub fn order_source(server: &str, order: &str) -> anyhow::Result<Value> {
    request(server, &format!("POST /v1/source/{order}"), "")
}

/// Has a server try again what could not be used.
///
/// # Errors
/// The same.
pub fn retry_rejects(server: &str) -> anyhow::Result<Value> {
    request(server, "POST /v1/rejects/retry", "")
}

/// Asks a server about its source.
///
/// # Errors
/// The same.
pub fn source(server: &str) -> anyhow::Result<Value> {
    request(server, "GET /v1/source", "")
}

/// What [`source`] answered, for people.
pub fn source_table(answer: &Value) -> String {
    let partitions = answer["partitions"]
        .as_array()
        .map_or(&[][..], Vec::as_slice);
    let rows = partitions.iter();
    let rows = rows.map(|row| vec![text(&row["partition"]), text(&row["waiting"])]);
    let columns = ["partition", "waiting"].map(str::to_owned);
    let state = match answer["paused"].as_bool() {
        Some(true) => "paused",
        _ => "being read",
    };
    format!(
        "{}the source is {state}\n",
        grid(&columns, &rows.collect::<Vec<_>>())
    )
}

fn request(server: &str, what: &str, body: &str) -> anyhow::Result<Value> {
    let Some(address) = server.strip_prefix("http://") else {
        bail!("write the server as \"http://127.0.0.1:8080\"");
    };
    let address = address.trim_end_matches('/');
    let mut stream = TcpStream::connect(address).context("is Assay running there?")?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    // HTTP/1.0 without keep-alive: the answer ends where the connection does.
    write!(
        stream,
        "{what} HTTP/1.0\r\nHost: {address}\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (_, body) = answer
        .split_once("\r\n\r\n")
        .context("the answer is not HTTP")?;
    serde_json::from_str(body).context("the answer is not Assay's")
}

/// An answer as a table for people, with its epoch and number of rows below.
pub fn table(answer: &Value) -> String {
    let list = |name: &str| answer[name].as_array().map_or(&[][..], Vec::as_slice);
    let columns: Vec<_> = list("columns")
        .iter()
        .map(|column| text(&column["name"]))
        .collect();
    let rows: Vec<Vec<String>> = list("rows")
        .iter()
        .map(|row| columns.iter().map(|column| text(&row[column])).collect())
        .collect();
    let mut table = grid(&columns, &rows);
    let plural = if rows.len() == 1 { "" } else { "s" };
    table.push_str(&format!(
        "({} row{plural}, epoch {})\n",
        rows.len(),
        answer["epoch"]
    ));
    table
}

/// Rows below their columns, aligned; numbers to the right, line breaks shown as blanks.
pub fn grid(columns: &[String], rows: &[Vec<String>]) -> String {
    let width = |index: usize| {
        let cells = rows.iter().map(|row| row[index].chars().count());
        cells
            .chain([columns[index].chars().count()])
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<_> = (0..columns.len()).map(width).collect();
    let number = |cell: &String| cell.replace(',', "").parse::<f64>().is_ok();
    let right: Vec<_> = (0..columns.len())
        .map(|index| !rows.is_empty() && rows.iter().all(|row| number(&row[index])))
        .collect();
    let line = |cells: &[String]| {
        let cells = cells.iter().enumerate().map(|(index, cell)| {
            let width = widths[index];
            if right[index] {
                format!("{cell:>width$}")
            } else {
                format!("{cell:<width$}")
            }
        });
        format!("{}\n", cells.collect::<Vec<_>>().join("  ").trim_end())
    };
    let rule: Vec<_> = widths.iter().map(|width| "-".repeat(*width)).collect();
    let mut grid = line(columns) + &line(&rule);
    grid.extend(rows.iter().map(|row| line(row)));
    grid
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.replace(['\n', '\r'], " "),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn answers_are_aligned_tables() {
        let answer = json!({
            "epoch": 5,
            "columns": [{"name": "mention"}, {"name": "n"}],
            "rows": [{"mention": "ada", "n": 12}, {"mention": null, "n": 3}],
        });
        let shown = "mention   n\n-------  --\nada      12\n          3\n(2 rows, epoch 5)\n";
        assert_eq!(table(&answer), shown);
    }

    #[test]
    fn a_server_that_is_not_there_is_told() {
        let error = ask("http://127.0.0.1:1", "select 1", None).unwrap_err();
        assert!(
            error.to_string().contains("is Assay running there?"),
            "{error}"
        );
    }
}
