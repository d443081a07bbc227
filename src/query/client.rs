//! The other side of [`super::http`]: asks a running Assay, and shows its answer as a table.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::Value;

/// How long an answer may take, and how long a server may be silent that tells of changes.
const TIMEOUT: Duration = Duration::from_secs(60);

/// A server that is asked.
#[derive(Clone, Debug)]
pub struct Server {
    /// Where it is, such as `http://127.0.0.1:8080`.
    pub url: String,
    /// What lets the asker in, if the server wants to see something.
    pub token: Option<String>,
}

impl Server {
    /// Asks a query, now or as of an earlier epoch; returns the answer, which may be an `error`.
    ///
    /// # Errors
    /// If the server cannot be reached or does not speak as Assay does.
    pub fn ask(&self, query: &str, at: Option<u64>) -> anyhow::Result<Value> {
        let at = at.map_or(String::new(), |epoch| format!("?at={epoch}"));
        self.request(&format!("POST /v1/sql{at}"), query)
    }

    /// Asks what changed in a relation between two epochs.
    ///
    /// # Errors
    /// The same.
    pub fn diff(&self, relation: &str, from: u64, to: u64) -> anyhow::Result<Value> {
        let path = format!(
            "/v1/relations/{}/diff?from={from}&to={to}",
            encoded(relation)
        );
        self.request(&format!("GET {path}"), "")
    }

    /// Asks for the rows behind a number.
    ///
    /// # Errors
    /// The same.
    pub fn explain(
        &self,
        relation: &str,
        mention: &str,
        column: &str,
        limit: usize,
    ) -> anyhow::Result<Value> {
        let [relation, mention, column] = [relation, mention, column].map(encoded);
        let asked = format!("mention={mention}&column={column}&limit={limit}");
        self.request(&format!("GET /v1/explain/{relation}?{asked}"), "")
    }

    /// Tells what to do with the source: `pause` or `resume`.
    ///
    /// # Errors
    /// The same.
    pub fn order_source(&self, order: &str) -> anyhow::Result<Value> {
        self.request(&format!("POST /v1/source/{order}"), "")
    }

    /// Has what could not be used tried again.
    ///
    /// # Errors
    /// The same.
    pub fn retry_rejects(&self) -> anyhow::Result<Value> {
        self.request("POST /v1/rejects/retry", "")
    }

    /// Asks about the source.
    ///
    /// # Errors
    /// The same.
    pub fn source(&self) -> anyhow::Result<Value> {
        self.request("GET /v1/source", "")
    }

    /// Asks which model scores.
    ///
    /// # Errors
    /// The same.
    pub fn model(&self) -> anyhow::Result<Value> {
        self.request("GET /v1/model", "")
    }

    /// Has another model score.
    ///
    /// # Errors
    /// The same.
    pub fn load_model(&self, wanted: &Value) -> anyhow::Result<Value> {
        self.request("POST /v1/model", &wanted.to_string())
    }

    /// Tells what to do with the other model: `promote` or `drop`.
    ///
    /// # Errors
    /// The same.
    pub fn order_model(&self, order: &str) -> anyhow::Result<Value> {
        self.request(&format!("POST /v1/model/{order}"), "")
    }

    /// Asks what each process tells of itself.
    ///
    /// # Errors
    /// The same.
    pub fn status(&self) -> anyhow::Result<Value> {
        self.request("GET /v1/status", "")
    }

    /// Follows a relation: hands over each event's name and data until told to end, or the server ends.
    ///
    /// # Errors
    /// If the server cannot be reached, refuses or falls silent.
    pub fn follow(
        &self,
        relation: &str,
        condition: Option<&str>,
        mut event: impl FnMut(&str, Value) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let condition = condition.map_or(String::new(), |text| format!("?where={}", encoded(text)));
        let path = format!("/v1/relations/{}/changes{condition}", encoded(relation));
        let mut answer = BufReader::new(self.send(&format!("GET {path}"), "")?);
        let status = lines_of_head(&mut answer)?;
        if !status.contains(" 200 ") {
            let mut body = String::new();
            answer.read_to_string(&mut body)?;
            let body: Value = serde_json::from_str(&body).unwrap_or_default();
            bail!("{}", body["error"].as_str().unwrap_or(&status));
        }
        let mut name = String::new();
        for line in answer.lines() {
            let line = line.context("the server has fallen silent")?;
            if let Some(of_event) = line.strip_prefix("event: ") {
                of_event.clone_into(&mut name);
            } else if let Some(data) = line.strip_prefix("data: ") {
                let data = serde_json::from_str(data).context("the answer is not Assay's")?;
                event(&name, data)?;
            }
        }
        bail!("the server has closed the connection")
    }

    /// Asks for an answer that is no refusal.
    fn request(&self, what: &str, body: &str) -> anyhow::Result<Value> {
        let answer = self.exchange(what, body);
        let answer = answer.with_context(|| format!("cannot ask {}", self.url))?;
        match answer["error"].as_str() {
            Some(refusal) => bail!("{refusal}"),
            None => Ok(answer),
        }
    }

    fn exchange(&self, what: &str, body: &str) -> anyhow::Result<Value> {
        let mut answer = String::new();
        self.send(what, body)?.read_to_string(&mut answer)?;
        let (_, body) = answer
            .split_once("\r\n\r\n")
            .context("the answer is not HTTP")?;
        serde_json::from_str(body).context("the answer is not Assay's")
    }

    fn send(&self, what: &str, body: &str) -> anyhow::Result<TcpStream> {
        let Some(address) = self.url.strip_prefix("http://") else {
            bail!("write the server as \"http://127.0.0.1:8080\"");
        };
        let address = address.trim_end_matches('/');
        let token = match &self.token {
            // A line break would begin another header.
            Some(token) if token.chars().any(char::is_control) => {
                bail!("a token has no control characters")
            }
            Some(token) => format!("Authorization: Bearer {token}\r\n"),
            None => String::new(),
        };
        let mut stream = TcpStream::connect(address).context("is Assay running there?")?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        // HTTP/1.0 without keep-alive: the answer ends where the connection does.
        write!(
            stream,
            "{what} HTTP/1.0\r\nHost: {address}\r\n{token}Content-Length: {}\r\n\r\n{body}",
            body.len()
        )?;
        Ok(stream)
    }
}

/// Reads an answer's head; returns its first line.
fn lines_of_head(answer: &mut impl BufRead) -> anyhow::Result<String> {
    let mut first = String::new();
    answer.read_line(&mut first)?;
    let mut line = String::new();
    loop {
        line.clear();
        if answer.read_line(&mut line)? == 0 {
            bail!("the answer is not HTTP");
        }
        if line.trim_end().is_empty() {
            return Ok(first.trim_end().to_owned());
        }
    }
}

/// A text as part of a URL.
fn encoded(text: &str) -> String {
    url::form_urlencoded::byte_serialize(text.as_bytes()).collect()
}

/// What [`Server::explain`] answered, for people.
pub fn explained(answer: &Value) -> String {
    let columns = [
        "timestamp",
        "user",
        "text",
        "sentiment",
        "predicted_sentiment",
        "source_file",
    ];
    let rows = answer["rows"].as_array().map_or(&[][..], Vec::as_slice);
    let shown = |row: &Value| columns.iter().map(|column| text(&row[column])).collect();
    let rows: Vec<_> = rows.iter().map(shown).collect();
    let columns = columns.map(str::to_owned);
    let (count, value) = (&answer["count"], &answer["value"]);
    let (mention, column, epoch) = (
        text(&answer["mention"]),
        text(&answer["column"]),
        &answer["epoch"],
    );
    format!(
        "{}({} of {count} rows; {column} of {mention} is {value}, epoch {epoch})\n",
        grid(&columns, &rows),
        rows.len(),
    )
}

/// What [`Server::source`] answered, for people.
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
        let server = Server {
            url: "http://127.0.0.1:1".to_owned(),
            token: None,
        };
        let error = format!("{:#}", server.ask("select 1", None).unwrap_err());
        let expected = "cannot ask http://127.0.0.1:1: is Assay running there?";
        assert!(error.starts_with(expected), "{error}");
    }
}
