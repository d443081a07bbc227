//! What the values of a column mean that are written as numbers or bytes: times, dates, decimals.
//!
//! Avro schemas tell it by `logicalType` or by Kafka Connect's name for the type (`connect.name`), the
//! schema part of JSON by the latter. Such values are told as people write them.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use chrono::{DateTime, NaiveDate, SecondsFormat};
use foldhash::HashMap;
use serde::Deserialize;
use serde_json::Value;

/// Places after a decimal's point; a schema may ask for more than there is memory.
const MOST_PLACES: usize = 1_000;

const SECONDS_A_DAY: i64 = 86_400;

/// What a value means.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Meaning {
    /// Days since 1970.
    Date,
    /// Since 1970.
    Timestamp { ticks_a_second: i64 },
    /// Since midnight.
    Time { ticks_a_second: i64 },
    /// A whole number over a power of ten.
    Decimal { scale: usize },
    /// The same, each with a scale of its own.
    VariableDecimal,
}

impl Meaning {
    /// The meaning of a type's name; a decimal has one if it has a scale.
    pub(super) fn of(name: &str, scale: Option<usize>) -> Option<Self> {
        let timestamp = |ticks_a_second| Some(Self::Timestamp { ticks_a_second });
        let time = |ticks_a_second| Some(Self::Time { ticks_a_second });
        match name {
            "date" | "io.debezium.time.Date" | "org.apache.kafka.connect.data.Date" => {
                Some(Self::Date)
            }
            "timestamp-millis"
            | "local-timestamp-millis"
            | "io.debezium.time.Timestamp"
            | "org.apache.kafka.connect.data.Timestamp" => timestamp(1_000),
            "timestamp-micros" | "local-timestamp-micros" | "io.debezium.time.MicroTimestamp" => {
                timestamp(1_000_000)
            }
            "timestamp-nanos" | "local-timestamp-nanos" | "io.debezium.time.NanoTimestamp" => {
                timestamp(1_000_000_000)
            }
            "time-millis" | "io.debezium.time.Time" | "org.apache.kafka.connect.data.Time" => {
                time(1_000)
            }
            "time-micros" | "io.debezium.time.MicroTime" => time(1_000_000),
            "io.debezium.time.NanoTime" => time(1_000_000_000),
            "decimal" | "org.apache.kafka.connect.data.Decimal" => {
                let scale = scale.filter(|scale| *scale <= MOST_PLACES)?;
                Some(Self::Decimal { scale })
            }
            "io.debezium.data.VariableScaleDecimal" => Some(Self::VariableDecimal),
            _ => None,
        }
    }

    /// A count as people write it; `None` where there is no such time, as for PostgreSQL's `infinity`.
    pub(super) fn of_count(self, count: i64) -> Option<String> {
        match self {
            Self::Date => date_text(count),
            Self::Timestamp { ticks_a_second } => timestamp_text(count, ticks_a_second),
            Self::Time { ticks_a_second } => time_text(count, ticks_a_second),
            Self::Decimal { .. } | Self::VariableDecimal => None,
        }
    }

    /// A value of JSON as people write it, or an array of such values, if it is written as its meaning has it.
    pub(super) fn of_json(self, value: &Value) -> Option<String> {
        let Value::Array(items) = value else {
            return self.of_one(value);
        };
        let item = |item: &Value| self.of_one(item).map_or_else(|| item.clone(), Value::from);
        Some(Value::from_iter(items.iter().map(item)).to_string())
    }

    fn of_one(self, value: &Value) -> Option<String> {
        let bytes = |value: &Value| BASE64_STANDARD.decode(value.as_str()?).ok();
        match self {
            Self::Decimal { scale } => Some(decimal_text(&bytes(value)?, scale)),
            Self::VariableDecimal => {
                let scale = usize::try_from(value["scale"].as_u64()?).ok()?;
                variable_decimal_text(&bytes(&value["value"])?, scale)
            }
            _ => self.of_count(value.as_i64()?),
        }
    }
}

fn date_text(days: i64) -> Option<String> {
    let days = i32::try_from(days).ok()?;
    // With the zone, without which a day is no time.
    NaiveDate::from_epoch_days(days).map(|date| format!("{date}Z"))
}

fn timestamp_text(count: i64, ticks_a_second: i64) -> Option<String> {
    let nanoseconds_a_tick = 1_000_000_000 / ticks_a_second;
    let nanoseconds = count.rem_euclid(ticks_a_second) * nanoseconds_a_tick;
    let seconds = count.div_euclid(ticks_a_second);
    let time = DateTime::from_timestamp(seconds, nanoseconds as u32)?;
    Some(time.to_rfc3339_opts(SecondsFormat::AutoSi, true))
}

/// A time of day; PostgreSQL's `24:00:00` is one.
fn time_text(count: i64, ticks_a_second: i64) -> Option<String> {
    let seconds = count.div_euclid(ticks_a_second);
    if !(0..=SECONDS_A_DAY).contains(&seconds) {
        return None;
    }
    let (hours, minutes) = (seconds / 3_600, seconds / 60 % 60);
    let whole = format!("{hours:02}:{minutes:02}:{:02}", seconds % 60);
    match count.rem_euclid(ticks_a_second) {
        0 => Some(whole),
        part => {
            let digits = ticks_a_second.ilog10() as usize;
            let part = format!("{part:0digits$}");
            Some(format!("{whole}.{}", part.trim_end_matches('0')))
        }
    }
}

/// A decimal of two's complement, the highest byte first; in base 64 if it is beyond 128 bits.
pub(super) fn decimal_text(bytes: &[u8], scale: usize) -> String {
    let negative = bytes.first().is_some_and(|byte| byte & 0x80 != 0);
    let mut wide = [if negative { 0xff } else { 0 }; 16];
    let Some(start) = wide.len().checked_sub(bytes.len()) else {
        return BASE64_STANDARD.encode(bytes);
    };
    wide[start..].copy_from_slice(bytes);
    let sign = if negative { "-" } else { "" };
    let digits = i128::from_be_bytes(wide).unsigned_abs().to_string();
    let digits = format!("{digits:0>width$}", width = scale + 1);
    match digits.split_at(digits.len() - scale) {
        (whole, "") => format!("{sign}{whole}"),
        (whole, fraction) => format!("{sign}{whole}.{fraction}"),
    }
}

/// A decimal that tells its scale, if that can be believed.
pub(super) fn variable_decimal_text(bytes: &[u8], scale: usize) -> Option<String> {
    (scale <= MOST_PLACES).then(|| decimal_text(bytes, scale))
}

/// What the columns of a row mean, by name; those that mean no more than is written are absent.
pub(super) type Meanings = HashMap<String, Meaning>;

/// A schema as Kafka Connect's JSON converter writes it before each payload.
#[derive(Deserialize)]
struct ConnectSchema {
    field: Option<String>,
    name: Option<String>,
    #[serde(default)]
    fields: Vec<ConnectSchema>,
    items: Option<Box<ConnectSchema>>,
    #[serde(default)]
    parameters: BTreeMap<String, String>,
}

impl ConnectSchema {
    /// What the values mean, or those in an array.
    fn meaning(&self) -> Option<Meaning> {
        if let Some(items) = &self.items {
            return items.meaning();
        }
        let scale = self.parameters.get("scale");
        let scale = scale.and_then(|scale| scale.parse().ok());
        Meaning::of(self.name.as_deref()?, scale)
    }
}

/// What the schema part of a message tells of its rows: those of `after` in an envelope, or its own.
pub(super) fn meanings(schema: &str) -> Meanings {
    // A schema that is not understood tells nothing: values are then as they are written.
    let Ok(Some(schema)) = serde_json::from_str::<Option<ConnectSchema>>(schema) else {
        return Meanings::default();
    };
    let envelope = schema.fields.iter();
    let mut row = envelope.filter(|field| field.field.as_deref() == Some("after"));
    let columns = row.next().map_or(&schema.fields, |row| &row.fields).iter();
    let meaning = |column: &ConnectSchema| Some((column.field.clone()?, column.meaning()?));
    columns.filter_map(meaning).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn counts_are_told_as_people_write_them() {
        let time = |ticks_a_second| Meaning::Time { ticks_a_second };
        assert_eq!(time(1_000).of_count(1_500).unwrap(), "00:00:01.5");
        let late = time(1_000_000).of_count(86_399_000_007).unwrap();
        assert_eq!(late, "23:59:59.000007");
        let midnight = time(1_000_000_000).of_count(86_400_000_000_000);
        assert_eq!(midnight.unwrap(), "24:00:00");
        assert_eq!(time(1_000).of_count(-1), None);
        assert_eq!(Meaning::Date.of_count(-719_163).unwrap(), "0000-12-31Z");
        let timestamp = Meaning::of("io.debezium.time.Timestamp", None).unwrap();
        assert_eq!(timestamp.of_count(i64::MAX), None);
    }

    #[test]
    fn values_of_json_are_told_by_what_they_mean() {
        let decimal = Meaning::of("org.apache.kafka.connect.data.Decimal", Some(2)).unwrap();
        assert_eq!(decimal.of_json(&json!("MDk=")).unwrap(), "123.45");
        // As converters write it that are told to write numbers.
        assert_eq!(decimal.of_json(&json!(123.45)), None);
        let variable = Meaning::of("io.debezium.data.VariableScaleDecimal", None).unwrap();
        let value = json!({"scale": 1, "value": "/w=="});
        assert_eq!(variable.of_json(&value).unwrap(), "-0.1");
        let mad = json!({"scale": 1_000_000_000_u64, "value": "/w=="});
        assert_eq!(variable.of_json(&mad), None);
        assert_eq!(Meaning::Date.of_json(&json!("2009-04-06")), None);
        let several = decimal.of_json(&json!(["MDk=", null]));
        assert_eq!(several.unwrap(), r#"["123.45",null]"#);
    }

    #[test]
    fn a_schema_tells_of_the_rows_in_its_envelope_or_of_its_own() {
        let at = json!({"type": "int64", "name": "io.debezium.time.MicroTimestamp", "field": "at"});
        let price = json!({"type": "bytes", "name": "org.apache.kafka.connect.data.Decimal",
                           "parameters": {"scale": "2"}, "field": "price"});
        let row = json!({"type": "struct", "field": "after", "fields":
                         [at, price, {"type": "string", "field": "text"}]});
        let envelope =
            json!({"type": "struct", "fields": [{"type": "string", "field": "op"}, row]});
        let told = meanings(&envelope.to_string());
        assert_eq!(told, meanings(&row.to_string()));
        assert_eq!(told.len(), 2);
        assert_eq!(told["price"], Meaning::Decimal { scale: 2 });
        assert!(meanings("null").is_empty() && meanings("[1]").is_empty());
    }
}
