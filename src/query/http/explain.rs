//! The rows behind a number: `GET /v1/explain/mention_sentiment?mention=united&column=negative`.
//!
//! | parameter | meaning |
//! |---|---|
//! | `mention` | who is mentioned |
//! | `column` | the column whose number is asked about, such as `negative`, `total` or `predicted_positive` |
//! | `limit` | how many rows are shown, the newest first; 1,000 if not given |
//!
//! The answer tells the number (`value`) and how many rows of gold stand behind it (`count`), which is the
//! same; then the rows, with their texts and where in the source each came from, all of one epoch.

use std::collections::HashMap;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use dataflows::change::{Epoch, Text};
use dataflows::index::{LookUp, Selection};
use dataflows::pipelines::mentions::{self, Bronze, COUNTS, Gold, MentionSentiment};
use dataflows::record::{Record, Timestamp};
use serde::Deserialize;
use serde_json::{Value, json};
use sql::ReadError;

use super::parameters::Parameters;
use super::{Refusal, Server};

/// Rows that are shown unless it is said how many.
const SHOWN: usize = 1_000;

#[derive(Deserialize)]
pub(super) struct Asked {
    mention: String,
    column: String,
    limit: Option<usize>,
}

pub(super) async fn explain(
    State(server): State<Server>,
    Path(relation): Path<String>,
    Parameters(asked): Parameters<Asked>,
) -> Result<Json<Value>, Refusal> {
    if relation != MentionSentiment::RELATION {
        let message = "only the numbers of mention_sentiment can be explained";
        return Err(Refusal::new(StatusCode::NOT_FOUND, message));
    }
    if !COUNTS.contains(&asked.column.as_str()) {
        let message = format!("\"{}\" counts no rows: {}", asked.column, COUNTS.join(", "));
        return Err(Refusal::new(StatusCode::BAD_REQUEST, message));
    }
    let named = [MentionSentiment::RELATION, Gold::RELATION, Bronze::RELATION];
    let epoch = server.peeker.pin(named.map(str::to_owned).to_vec()).await?;
    let found = Reader {
        server: &server,
        epoch,
    };
    let fold_case = server.process.plan().mentions.fold_case;
    let counted = match fold_case {
        true => asked.mention.to_lowercase(),
        false => asked.mention.clone(),
    };
    let value = found.value(&counted, &asked.column).await?;
    let mut gold = found.gold(&asked.mention, &asked.column).await?;
    let count = gold.len();
    gold.sort_by_key(|row| std::cmp::Reverse(row.timestamp));
    gold.truncate(asked.limit.unwrap_or(SHOWN));
    let bronze = found.bronze(&gold).await?;
    let rows: Vec<_> = gold
        .iter()
        .map(|row| shown(row, bronze.get(&row.key)))
        .collect();
    Ok(Json(json!({
        "epoch": epoch,
        "relation": relation,
        "mention": asked.mention,
        "column": asked.column,
        "value": value,
        "count": count,
        "rows": rows,
    })))
}

/// Reads relations at one epoch.
struct Reader<'s> {
    server: &'s Server,
    epoch: Epoch,
}

impl Reader<'_> {
    async fn rows<D: Record>(&self, look_up: LookUp) -> Result<Vec<D>, Refusal> {
        let selection = Selection {
            look_up: Some(look_up),
            ..Selection::default()
        };
        let relation = D::RELATION.to_owned();
        let rows = self.server.peeker.read(self.epoch, relation, selection);
        let mut found = Vec::new();
        for batch in rows.all().await? {
            found.extend(D::from_batch(&batch).map_err(ReadError::Unavailable)?);
        }
        Ok(found)
    }

    /// The number that is asked about; 0 if no one of this name is mentioned.
    async fn value(&self, mention: &str, column: &str) -> Result<i64, Refusal> {
        let found: Vec<MentionSentiment> = self.rows(by("mention", [mention.into()])).await?;
        Ok(found.first().map_or(0, |row| match column {
            "negative" => row.negative,
            "neutral" => row.neutral,
            "positive" => row.positive,
            "predicted_negative" => row.predicted_negative,
            "predicted_neutral" => row.predicted_neutral,
            "predicted_positive" => row.predicted_positive,
            _ => row.total,
        }))
    }

    async fn gold(&self, mention: &str, column: &str) -> Result<Vec<Gold>, Refusal> {
        let look_up = LookUp {
            any_case: self.server.process.plan().mentions.fold_case,
            ..by("mention", [mention.into()])
        };
        let mut rows = self.rows(look_up).await?;
        rows.retain(|row| mentions::counts(column, row));
        Ok(rows)
    }

    /// The tweets that these rows are of, by key.
    async fn bronze(&self, gold: &[Gold]) -> Result<HashMap<Text, Bronze>, Refusal> {
        let keys = gold.iter().map(|row| row.key.to_string());
        let tweets: Vec<Bronze> = self.rows(by("key", keys)).await?;
        let tweets = tweets.into_iter();
        Ok(tweets.map(|tweet| (tweet.key.clone(), tweet)).collect())
    }
}

fn by(column: &str, values: impl IntoIterator<Item = String>) -> LookUp {
    LookUp {
        column: column.to_owned(),
        values: values.into_iter().collect(),
        any_case: false,
    }
}

fn shown(row: &Gold, tweet: Option<&Bronze>) -> Value {
    json!({
        "key": row.key,
        "mention": row.mention,
        "timestamp": time(row.timestamp),
        "sentiment": row.sentiment,
        "predicted_sentiment": row.predicted_sentiment,
        "predicted_score": row.predicted_score.points(),
        "model": row.model,
        "user": tweet.and_then(|tweet| tweet.user.as_ref()),
        "text": tweet.map(|tweet| &tweet.text),
        "source_file": tweet.map(|tweet| tweet.source_file.to_string()),
    })
}

fn time(timestamp: Timestamp) -> Option<String> {
    let time = chrono::DateTime::from_timestamp_micros(timestamp.0)?;
    Some(time.to_rfc3339_opts(chrono::SecondsFormat::AutoSi, true))
}
