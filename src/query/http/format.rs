//! The forms of an answer: JSON, JSON lines, CSV and Arrow's stream, as `Accept` asks.

use arrow::array::RecordBatch;
use arrow::error::ArrowError;
use arrow::ipc::writer::StreamWriter;
use axum::Json;
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use dataflows::change::Epoch;
use serde_json::json;
use sql::Answer;

use super::{Refusal, columns};

/// The header that tells the epoch of an answer which has no other place for it.
const EPOCH: HeaderName = HeaderName::from_static("assay-epoch");

/// A form of an answer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Format {
    /// One object, with epoch and columns.
    Json,
    /// An object a row and line.
    JsonLines,
    /// Comma-separated values with a header.
    Csv,
    /// Arrow's stream format.
    Arrow,
}

/// The media types, the first of each form being what answers are called.
const TYPES: [(&str, Format); 8] = [
    ("application/json", Format::Json),
    ("application/jsonl", Format::JsonLines),
    ("text/csv", Format::Csv),
    ("application/vnd.apache.arrow.stream", Format::Arrow),
    ("application/x-ndjson", Format::JsonLines),
    ("application/ndjson", Format::JsonLines),
    ("application/*", Format::Json),
    ("*/*", Format::Json),
];

impl Format {
    /// The form that a request asks for: of those it names the first that is known.
    pub(super) fn asked_for(headers: &HeaderMap) -> Result<Self, Refusal> {
        let Some(accepted) = headers.get(header::ACCEPT) else {
            return Ok(Self::Json);
        };
        let accepted = accepted.to_str().unwrap_or_default();
        let mut named = accepted
            .split(',')
            .map(|part| part.split(';').next().unwrap_or_default().trim());
        let known = |name| {
            let mut types = TYPES.iter();
            types.find(|(known, _)| *known == name)
        };
        named
            .find_map(known)
            .map(|(_, format)| *format)
            .ok_or_else(|| {
                let forms: Vec<_> = TYPES[..4].iter().map(|(name, _)| *name).collect();
                let message = format!("answers come as {}", forms.join(", "));
                Refusal::new(StatusCode::NOT_ACCEPTABLE, message)
            })
    }

    pub(super) fn show(self, epoch: Epoch, answer: &Answer) -> Result<Response, Refusal> {
        let body = match self {
            Self::Json => {
                let (columns, rows) = (columns(&answer.schema), sql::to_json(&answer.batches)?);
                let body = json!({ "epoch": epoch, "columns": columns, "rows": rows });
                return Ok(Json(body).into_response());
            }
            Self::JsonLines => json_lines(&answer.batches),
            Self::Csv => csv(answer),
            Self::Arrow => arrow_stream(answer),
        };
        let body = body.map_err(|error| {
            let message = format!("the answer cannot be shown in this form: {error}");
            Refusal::new(StatusCode::NOT_ACCEPTABLE, message)
        })?;
        let named = TYPES.iter().find(|(_, format)| *format == self);
        let name = named.map_or("", |(name, _)| name);
        let headers = [
            (header::CONTENT_TYPE, name.to_owned()),
            (EPOCH, epoch.to_string()),
        ];
        Ok((headers, body).into_response())
    }
}

fn json_lines(batches: &[RecordBatch]) -> Result<Vec<u8>, ArrowError> {
    let mut bytes = Vec::new();
    let mut writer = arrow::json::WriterBuilder::new()
        .with_explicit_nulls(true)
        .build::<_, arrow::json::writer::LineDelimited>(&mut bytes);
    writer.write_batches(&batches.iter().collect::<Vec<_>>())?;
    writer.finish()?;
    drop(writer);
    Ok(bytes)
}

fn csv(answer: &Answer) -> Result<Vec<u8>, ArrowError> {
    let mut writer = arrow::csv::Writer::new(Vec::new());
    // The header comes with the first rows, even if there are none.
    writer.write(&RecordBatch::new_empty(answer.schema.clone()))?;
    for batch in &answer.batches {
        writer.write(batch)?;
    }
    Ok(writer.into_inner())
}

fn arrow_stream(answer: &Answer) -> Result<Vec<u8>, ArrowError> {
    let mut writer = StreamWriter::try_new(Vec::new(), &answer.schema)?;
    for batch in &answer.batches {
        writer.write(batch)?;
    }
    writer.into_inner()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked_for(accept: &str) -> Option<Format> {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, accept.parse().unwrap());
        Format::asked_for(&headers).ok()
    }

    #[test]
    fn the_first_known_form_is_taken() {
        assert_eq!(asked_for("text/csv"), Some(Format::Csv));
        assert_eq!(asked_for("text/html, */*;q=0.8"), Some(Format::Json));
        assert_eq!(
            asked_for("application/x-ndjson;q=0.9"),
            Some(Format::JsonLines)
        );
        assert_eq!(asked_for("image/png"), None);
        assert_eq!(
            Format::asked_for(&HeaderMap::new()).ok(),
            Some(Format::Json)
        );
    }
}
