//! The batch computation: what every relation should be, worked out from the log alone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use dataflows::change::Text;
use dataflows::pipelines::mentions::date::parse_date;
use dataflows::pipelines::mentions::mention::MentionRule;
use dataflows::pipelines::mentions::{
    Accuracy, Bronze, Gold, MentionSentiment, Silver, TextScore, User,
};
use dataflows::ports::Score;
use dataflows::record::{Confidence, Further, Timestamp};
use dataflows::reject::Reject;

use super::{Entry, Log};

/// All relations, each sorted.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Relations {
    pub(crate) bronze: Vec<Bronze>,
    pub(crate) silver: Vec<Silver>,
    pub(crate) gold: Vec<Gold>,
    pub(crate) scores: Vec<TextScore>,
    pub(crate) mention_sentiment: Vec<MentionSentiment>,
    pub(crate) accuracy: Vec<Accuracy>,
    pub(crate) users: Vec<User>,
    pub(crate) rejects: Vec<Reject>,
}

/// What follows from so many messages of each partition, scored like this, the slow and sure way.
pub(crate) fn recompute(log: &Log, consumed: &[usize], by: &By) -> Relations {
    let mut rows: BTreeMap<String, Result<Bronze, Reject>> = BTreeMap::new();
    for (partition, count) in consumed.iter().enumerate() {
        for (offset, entry) in log.0[partition][..*count].iter().enumerate() {
            let Some((key, new)) = read(entry, partition, offset) else {
                continue;
            };
            match new {
                None => drop(rows.remove(&key)),
                Some(new) if rows.get(&key).is_some_and(|old| says_the_same(old, &new)) => {}
                Some(new) => drop(rows.insert(key, new)),
            }
        }
    }
    derive(rows.into_values(), by)
}

pub(crate) fn says_the_same(old: &Result<Bronze, Reject>, new: &Result<Bronze, Reject>) -> bool {
    match (old, new) {
        (Ok(old), Ok(new)) => {
            (
                &old.date,
                &old.user,
                &old.text,
                &old.sentiment,
                &old.further,
            ) == (
                &new.date,
                &new.user,
                &new.text,
                &new.sentiment,
                &new.further,
            )
        }
        (Err(old), Err(new)) => (&old.reason, &old.raw) == (&new.reason, &new.raw),
        _ => false,
    }
}

pub(crate) type Said = Option<(String, Option<Result<Bronze, Reject>>)>;

pub(crate) fn read(entry: &Entry, partition: usize, offset: usize) -> Said {
    let position = Log::position(partition, offset);
    let key = entry.key.as_ref().map(|key| {
        let key: serde_json::Value = serde_json::from_slice(key).unwrap();
        key["id"].to_string()
    });
    let Some(bytes) = &entry.value else {
        return key.map(|key| (key, None));
    };
    let reject = |reason: &str| {
        let reject = Reject {
            position: position.as_str().into(),
            key: key.as_deref().map(Text::from),
            stage: "decode".into(),
            reason: reason.into(),
            raw: bytes.as_slice().into(),
            first_seen: Log::received(partition, offset),
            field: reason
                .starts_with("field")
                .then(|| reason.split('"').nth(1).unwrap().into()),
        };
        Some((
            key.clone().unwrap_or_else(|| position.clone()),
            Some(Err(reject)),
        ))
    };
    let json: serde_json::Value = match serde_json::from_slice(bytes) {
        Ok(json) => json,
        Err(_) if std::str::from_utf8(bytes).is_err() => return reject("not UTF-8 at byte 27"),
        Err(_) => return reject("not a JSON object: expected ident at line 1 column 2"),
    };
    match json["op"].as_str().unwrap() {
        "x" => return reject("field \"op\": unknown operation \"x\""),
        _ if key.is_none() => {
            return reject(
                "the message has no key; name the columns that tell rows apart in source.kafka.key, or \"*\" for \
                 a table without any",
            );
        }
        "d" => return key.map(|key| (key, None)),
        _ => {}
    }
    let after = &json["after"];
    let text = match &after["text"] {
        serde_json::Value::String(text) => text,
        serde_json::Value::Null => {
            return reject("field \"after.text\": expected a string, found nothing");
        }
        _ => return reject("field \"after.text\": expected a string, found a whole number"),
    };
    let optional = |name: &str| match &after[name] {
        serde_json::Value::Null => None,
        serde_json::Value::String(text) => Some(Text::from(text.as_str())),
        number => Some(number.to_string().into()),
    };
    let row = Bronze {
        key: key.as_deref().unwrap().into(),
        date: optional("date"),
        user: optional("user"),
        text: text.as_str().into(),
        sentiment: optional("sentiment"),
        source_file: position.as_str().into(),
        processing_time: Log::received(partition, offset),
        further: further(after),
    };
    key.map(|key| (key, Some(Ok(row))))
}

/// All columns that are not asked for, as texts.
fn further(after: &serde_json::Value) -> Further {
    let asked = ["date", "user", "text", "sentiment"];
    let columns = after.as_object().unwrap().iter();
    let columns = columns.filter_map(|(name, value)| match value {
        serde_json::Value::Null => None,
        _ if asked.contains(&name.as_str()) => None,
        serde_json::Value::String(text) => Some((name, text.clone())),
        value => Some((name, value.to_string())),
    });
    let columns: BTreeMap<_, _> = columns.collect();
    Further((!columns.is_empty()).then(|| serde_json::to_string(&columns).unwrap().into()))
}

pub(crate) fn derive(rows: impl Iterator<Item = Result<Bronze, Reject>>, by: &By) -> Relations {
    let mut relations = Relations::default();
    for row in rows {
        match row {
            Err(reject) => relations.rejects.push(reject),
            Ok(row) => {
                derive_silver(&row, &mut relations);
                relations.bronze.push(row);
            }
        }
    }
    for row in &relations.silver {
        relations.gold.push(gold_of(row, by));
    }
    aggregate(&mut relations, by);
    relations.sort();
    relations
}

impl Relations {
    pub(crate) fn sort(&mut self) {
        self.bronze.sort();
        self.silver.sort();
        self.gold.sort();
        self.scores.sort();
        self.mention_sentiment.sort();
        self.accuracy.sort();
        self.users.sort();
        self.rejects.sort();
    }
}

pub(crate) fn derive_silver(row: &Bronze, relations: &mut Relations) {
    let date = row.date.as_deref().unwrap_or_default();
    match parse_date(date) {
        Err(error) => relations.rejects.push(Reject {
            position: row.source_file.to_string().into(),
            key: Some(row.key.clone()),
            stage: "silver".into(),
            reason: format!("field \"date\": {error}").into(),
            raw: date.as_bytes().into(),
            first_seen: row.processing_time,
            field: Some("date".into()),
        }),
        Ok(timestamp) => {
            let rule = MentionRule::twitter();
            for mention in &rule.extract(&row.text) {
                relations.silver.push(Silver {
                    key: row.key.clone(),
                    timestamp: Timestamp(timestamp),
                    mention: mention.handle.into(),
                    cleaned_text: rule.cleaned(&row.text).into(),
                    sentiment: row.sentiment.clone(),
                });
            }
        }
    }
}

/// The models of this test: a label and a confidence made from the bytes of the text and the model's name.
pub(crate) fn predict(model: &str, text: &str) -> Score {
    let sum: u32 = model.bytes().chain(text.bytes()).map(u32::from).sum();
    let label = ["negative", "neutral", "positive"][sum as usize % 3];
    Score {
        label: label.into(),
        confidence: Confidence(sum % 1_000_000),
        model: model.into(),
        tier: i64::from(model != FAST_MODEL),
    }
}

/// Which model has scored each text.
pub(crate) struct By {
    /// The model whose scores count.
    pub(crate) current: &'static str,
    /// The texts that have the fast model's score.
    pub(crate) provisional: BTreeSet<Text>,
}

impl By {
    fn score(&self, text: &str) -> Score {
        let fast = self.provisional.contains(text);
        predict(if fast { FAST_MODEL } else { self.current }, text)
    }
}

/// The model that answers in bursts.
pub(crate) const FAST_MODEL: &str = "model-f";

/// The fingerprints of the models.
pub(crate) const MODELS: [&str; 3] = ["model-a", "model-b", "model-d"];

pub(crate) fn gold_of(row: &Silver, by: &By) -> Gold {
    let id = |label: Option<&str>| match label {
        Some("negative") => 0,
        Some("positive" | "4") => 1,
        _ => -1,
    };
    let score = by.score(&row.cleaned_text);
    Gold {
        silver: Arc::new(row.clone()),
        predicted_score: score.confidence,
        predicted_sentiment: score.label.clone(),
        sentiment_id: id(row.sentiment.as_deref()),
        predicted_sentiment_id: id(Some(&score.label)),
        model: score.model,
        tier: score.tier,
    }
}

pub(crate) fn aggregate(relations: &mut Relations, by: &By) {
    let mut mentions: BTreeMap<Text, Vec<&Gold>> = BTreeMap::new();
    let mut cells: BTreeMap<(Text, Text, Text), i64> = BTreeMap::new();
    let mut texts: BTreeMap<Text, Score> = BTreeMap::new();
    for gold in &relations.gold {
        mentions.entry(gold.mention.clone()).or_default().push(gold);
        texts.insert(gold.cleaned_text.clone(), by.score(&gold.cleaned_text));
        if let Some(given) = &gold.sentiment {
            let given = if &**given == "4" {
                "positive".into()
            } else {
                given.clone()
            };
            *cells
                .entry((gold.model.clone(), given, gold.predicted_sentiment.clone()))
                .or_default() += 1;
        }
    }
    for (mention, rows) in mentions {
        let given = |labels: &[&str]| {
            let given = |row: &&&Gold| {
                row.sentiment
                    .as_deref()
                    .is_some_and(|label| labels.contains(&label))
            };
            rows.iter().filter(given).count() as i64
        };
        let predicted = |label: &str| {
            rows.iter()
                .filter(|row| *row.predicted_sentiment == *label)
                .count() as i64
        };
        let timestamps = || rows.iter().map(|row| row.timestamp);
        relations.mention_sentiment.push(MentionSentiment {
            mention,
            min_timestamp: timestamps().min().unwrap(),
            max_timestamp: timestamps().max().unwrap(),
            negative: given(&["negative"]),
            neutral: given(&["neutral"]),
            positive: given(&["positive", "4"]),
            total: given(&["negative", "neutral", "positive", "4"]),
            predicted_negative: predicted("negative"),
            predicted_neutral: predicted("neutral"),
            predicted_positive: predicted("positive"),
        });
    }
    for ((model, given_label, predicted_label), rows) in cells {
        relations.accuracy.push(Accuracy {
            model,
            given_label,
            predicted_label,
            rows,
        });
    }
    for (text, score) in texts {
        relations.scores.push(TextScore {
            text,
            model: score.model,
            label: score.label,
            confidence: score.confidence,
            tier: score.tier,
        });
    }
    let mut users: BTreeMap<Text, [i64; 2]> = BTreeMap::new();
    for row in &relations.bronze {
        if let Some(user) = &row.user {
            let mentions = !MentionRule::twitter().extract(&row.text).is_empty();
            users.entry(user.clone()).or_default()[usize::from(mentions)] += 1;
        }
    }
    for (user, [without_mention, with_mention]) in users {
        let tweets = with_mention + without_mention;
        relations.users.push(User {
            user,
            tweets,
            with_mention,
            without_mention,
        });
    }
}
