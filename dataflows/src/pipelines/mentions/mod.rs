//! Who is mentioned in tweets, and with what sentiment: given, and as a model predicts it.
//!
//! ```text
//!  tweets ─ upsert ─▶ bronze ─ explode ─▶ silver ─ score ─▶ gold ─ tally ─▶ mention_sentiment
//!              │         │        │                  │         └─ tally ─▶ accuracy
//!              │         │        │                  └─▶ scores
//!              │         └─ tally │ ─▶ users
//!              └────── rejects ◀──┘
//! ```
//!
//! Every relation is what a batch program would compute from the source's present rows: when a row
//! changes or goes, all that was derived from it is taken back, and nothing else is touched.

pub mod date;
mod explode;
pub mod mention;

use std::sync::Arc;

use arrow::datatypes::SchemaRef;

use differential_dataflow::AsCollection;
use differential_dataflow::operators::ThresholdTotal;
use foldhash::{HashSet, HashSetExt};
use serde::{Deserialize, Serialize};
use timely::dataflow::operators::vec::{Map, ToStream};
use timely::dataflow::operators::{Concat, OkErr};
use timely::dataflow::{Scope, StreamVec};

use self::date::{DateUnit, parse_date};
use self::explode::explode;
use self::mention::MentionRule;
use crate::change::{Collection, Diff, Epoch, Text};
use crate::envelope::{
    Field, Message, Retry, RowChange, SourceRow, further, is_lacking, optional_text, required_text,
};
use crate::operators::batches::map_batches;
use crate::operators::score::{Notice, ScoredText, score};
use crate::operators::tally::{Aggregate, Extent, tally};
use crate::operators::upsert::{Revision, State, TryAgain, Upsert, upsert};
use crate::ports::{Built, Environment, FULL, ModelOrder, Ports, Score, Tier};
use crate::record;
use crate::record::{Confidence, Further, Origin, Record, Timestamp, read_column};
use crate::reject::{DECODE, Reject};

// ---- rows, from bronze to gold -------------------------------------------------------------

record! { "bronze";
    /// A tweet as the source has it, strings as they came.
    pub struct Bronze {
        /// The source's key: the table's primary key, or the file's path.
        key: Text,
        /// The date as written.
        date: Option<Text>,
        /// Who tweeted.
        user: Option<Text>,
        /// The tweet.
        text: Text,
        /// The given label.
        sentiment: Option<Text>,
        /// Where the row came from: `topic/partition/offset`, or the file's path.
        source_file: Origin,
        /// When it was read; kept across restarts.
        processing_time: Timestamp,
        /// The source's further columns, if they are kept.
        further: Further,
    }
}

record! { "silver";
    /// One mention in one tweet.
    pub struct Silver {
        /// The tweet's key.
        key: Text,
        /// The date, understood.
        timestamp: Timestamp,
        /// Who is mentioned, as written.
        mention: Text,
        /// The tweet without its mentions.
        cleaned_text: Text,
        /// The given label.
        sentiment: Option<Text>,
    }
}

record! { "gold", by mention;
    /// One mention in one tweet, with what the model says of the tweet.
    pub struct Gold on Silver as silver {
        /// How sure the model is, out of 100.
        predicted_score: Confidence,
        /// The model's own label; empty without a model, or if it cannot score the text.
        predicted_sentiment: Text,
        /// The given label as a number: 0 negative, 1 positive, -1 otherwise.
        sentiment_id: i64,
        /// The model's label as such a number.
        predicted_sentiment_id: i64,
        /// The fingerprint of the model.
        model: Text,
        /// 0 while a fast model's score stands in for the model's own, 1 otherwise.
        tier: Tier,
    }
}

record! { "scores";
    /// The model's answer for a text that some row of gold holds.
    pub struct TextScore {
        /// The text.
        text: Text,
        /// The fingerprint of the model.
        model: Text,
        /// The model's own label.
        label: Text,
        /// How sure the model is, out of 100.
        confidence: Confidence,
        /// 0 if it is a fast model's that stands in for the model's own, 1 otherwise.
        tier: Tier,
    }
}

record! { "mention_sentiment";
    /// All that is said of one who is mentioned.
    pub struct MentionSentiment {
        /// Who is mentioned.
        mention: Text,
        /// The date of the first mention.
        min_timestamp: Timestamp,
        /// The date of the last mention.
        max_timestamp: Timestamp,
        /// Mentions given as negative.
        negative: i64,
        /// Mentions given as neutral.
        neutral: i64,
        /// Mentions given as positive.
        positive: i64,
        /// Mentions with a given label.
        total: i64,
        /// Mentions predicted as negative.
        predicted_negative: i64,
        /// Mentions predicted as neutral.
        predicted_neutral: i64,
        /// Mentions predicted as positive.
        predicted_positive: i64,
    }
}

record! { "accuracy";
    /// One cell of the confusion matrix: how many rows of gold carry these two labels.
    pub struct Accuracy {
        /// The fingerprint of the model.
        model: Text,
        /// The given label.
        given_label: Text,
        /// The model's label.
        predicted_label: Text,
        /// How many rows carry both.
        rows: i64,
    }
}

record! { "users";
    /// One who tweets.
    pub struct User {
        /// Who tweets.
        user: Text,
        /// How many tweets.
        tweets: i64,
        /// How many of them mention someone.
        with_mention: i64,
        /// How many mention no one.
        without_mention: i64,
    }
}

/// The relations of the pipeline, in the order of its flow.
pub const RELATIONS: [&str; 8] = [
    "bronze",
    "silver",
    "gold",
    "scores",
    "mention_sentiment",
    "accuracy",
    "users",
    "rejects",
];

/// The relations that hold what the source said; all others follow from them.
pub const FROM_SOURCE: [&str; 2] = ["bronze", "rejects"];

/// The relations with their columns.
pub fn schemas() -> [(&'static str, SchemaRef); RELATIONS.len()] {
    let [
        bronze,
        silver,
        gold,
        scores,
        mention_sentiment,
        accuracy,
        users,
        rejects,
    ] = RELATIONS;
    [
        (bronze, Bronze::schema()),
        (silver, Silver::schema()),
        (gold, Gold::schema()),
        (scores, TextScore::schema()),
        (mention_sentiment, MentionSentiment::schema()),
        (accuracy, Accuracy::schema()),
        (users, User::schema()),
        (rejects, Reject::schema()),
    ]
}

// ---- from one row to the next --------------------------------------------------------------

impl SourceRow for Arc<Bronze> {
    const FIELDS: &'static [&'static str] = &["date", "user", "text", "sentiment"];

    const COLUMNS: &'static [&'static str] = &[
        "key",
        "date",
        "user",
        "text",
        "sentiment",
        "source_file",
        "processing_time",
        "further",
    ];

    fn from_fields(
        key: Text,
        fields: &[Field<'_>],
        further: Option<Text>,
        paths: &[String],
        message: &Message<'_>,
    ) -> Result<Self, String> {
        let ([date, user, text, sentiment], [date_path, user_path, text_path, sentiment_path]) =
            (fields, paths)
        else {
            return Err("expected four fields".to_owned());
        };
        Ok(Arc::new(Bronze {
            key,
            date: number_text(date_path, date)?,
            user: number_text(user_path, user)?,
            text: required_text(text_path, text)?,
            sentiment: number_text(sentiment_path, sentiment)?,
            source_file: message.origin(),
            processing_time: message.received,
            further: Further(further),
        }))
    }
}

impl Revision for Bronze {
    fn same_as(&self, newer: &Self) -> bool {
        self.text == newer.text
            && self.date == newer.date
            && self.user == newer.user
            && self.sentiment == newer.sentiment
            && self.further == newer.further
    }

    fn completed(&self, older: &Self, absent: u64) -> Option<Self> {
        let mut row = self.clone();
        let is_absent = |field: usize| absent & (1 << field) != 0;
        // In the order of the fields of `SourceRow`, the further ones last.
        if is_absent(0) {
            row.date.clone_from(&older.date);
        }
        if is_absent(1) {
            row.user.clone_from(&older.user);
        }
        if is_absent(2) {
            row.text.clone_from(&older.text);
        }
        if is_absent(3) {
            row.sentiment.clone_from(&older.sentiment);
        }
        if let (true, Some(further)) = (is_absent(4), &self.further.0) {
            row.further = Further(further::completed(further, older.further.0.as_deref()));
        }
        Some(row)
    }
}

/// A field as text that may be a number: a label of Sentiment140, a user's number, a date that Debezium
/// counts.
fn number_text(path: &str, field: &Field<'_>) -> Result<Option<Text>, String> {
    match field {
        Field::Integer(number) => Ok(Some(number.to_string().into())),
        Field::Fraction(number) => Ok(Some(number.to_string().into())),
        field => optional_text(path, field),
    }
}

/// What the pipeline's user may set.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What counts as a mention.
    pub rule: MentionRule,
    /// Whether mentions that differ only in case are counted together, in lower case.
    pub fold_case: bool,
    /// What a date counts that is a number; none if such dates are not understood.
    pub numeric_date: Option<DateUnit>,
}

/// Returns a row for each mention in the tweet, in the order of the text.
///
/// # Errors
/// A tweet whose date cannot be understood is rejected as a whole.
pub fn mentions_of(tweet: &Bronze, settings: &Settings) -> Result<Vec<Arc<Silver>>, Box<Reject>> {
    let date = tweet.date.as_deref().unwrap_or_default();
    let timestamp = timestamp(date, settings.numeric_date).map_err(|error| {
        Box::new(Reject {
            position: tweet.source_file.to_string().into(),
            key: Some(tweet.key.clone()),
            stage: SILVER.into(),
            reason: format!("field \"date\": {error}").into(),
            raw: date.as_bytes().into(),
            first_seen: tweet.processing_time,
            field: Some("date".into()),
        })
    })?;
    let mentions = settings.rule.extract(&tweet.text);
    if mentions.is_empty() {
        return Ok(Vec::new());
    }
    let cleaned_text: Text = mentions.cleaned().into();
    let silver = |mention: &mention::Mention<'_>| {
        Arc::new(Silver {
            key: tweet.key.clone(),
            timestamp: Timestamp(timestamp),
            mention: mention.handle.into(),
            cleaned_text: cleaned_text.clone(),
            sentiment: tweet.sentiment.clone(),
        })
    };
    Ok(mentions.iter().map(silver).collect())
}

/// Microseconds since 1970 of a date as the source has it.
fn timestamp(date: &str, unit: Option<DateUnit>) -> Result<i64, String> {
    match (unit, date.parse()) {
        (Some(unit), Ok(count)) => {
            let time = unit.microseconds(count).filter(|time| TIMES.contains(time));
            time.ok_or_else(|| format!("{count} is beyond the years 1 to 9999"))
        }
        _ => parse_date(date).map_err(|error| error.to_string()),
    }
}

/// The microseconds of the years 1 to 9999, which every reader of the tables understands.
const TIMES: std::ops::Range<i64> = -62_135_596_800_000_000..253_402_300_800_000_000;

/// The stage of rejects that reached bronze but not silver.
const SILVER: &str = "silver";

/// A label as counted: negative, neutral or positive, or `None` for any other.
///
/// ```
/// use dataflows::pipelines::mentions::{Polarity, polarity};
/// assert_eq!(polarity("Positive"), Some(Polarity::Positive));
/// assert_eq!(polarity("0"), Some(Polarity::Negative)); // Sentiment140 writes 0, 2 and 4
/// assert_eq!(polarity("4.0"), Some(Polarity::Positive));
/// assert_eq!(polarity("4.5"), None);
/// assert_eq!(polarity("NEU"), Some(Polarity::Neutral)); // as models of Hugging Face say it
/// assert_eq!(polarity("LABEL_2"), Some(Polarity::Positive)); // or do not say it
/// assert_eq!(polarity("angry"), None);
/// ```
pub fn polarity(label: &str) -> Option<Polarity> {
    let is = |name: &str| label.eq_ignore_ascii_case(name);
    match label {
        "0" | "LABEL_0" => Some(Polarity::Negative),
        "2" | "LABEL_1" => Some(Polarity::Neutral),
        "4" | "LABEL_2" => Some(Polarity::Positive),
        _ if is("negative") || is("neg") => Some(Polarity::Negative),
        _ if is("neutral") || is("neu") => Some(Polarity::Neutral),
        _ if is("positive") || is("pos") => Some(Polarity::Positive),
        // A decimal, of a column that may hold fractions.
        _ => label
            .trim_end_matches('0')
            .strip_suffix('.')
            .and_then(polarity),
    }
}

/// What a label says.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize, Deserialize)]
pub enum Polarity {
    /// Against.
    Negative,
    /// Neither.
    Neutral,
    /// For.
    Positive,
}

impl Polarity {
    /// The label as Assay writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Negative => "negative",
            Self::Neutral => "neutral",
            Self::Positive => "positive",
        }
    }
}

/// The columns of `mention_sentiment` that count rows of gold.
pub const COUNTS: [&str; 7] = [
    "negative",
    "neutral",
    "positive",
    "total",
    "predicted_negative",
    "predicted_neutral",
    "predicted_positive",
];

/// Whether a row of gold is one of those that a column of [`COUNTS`] counts.
pub fn counts(column: &str, row: &Gold) -> bool {
    let given = row.sentiment.as_deref().and_then(polarity);
    let predicted = polarity(&row.predicted_sentiment);
    match column.strip_prefix("predicted_") {
        Some(name) => predicted.is_some_and(|polarity| polarity.name() == name),
        None if column == "total" => given.is_some(),
        None => given.is_some_and(|polarity| polarity.name() == column),
    }
}

/// A label by what it says, since several are written for the same.
pub fn meaning(label: &str) -> &str {
    polarity(label).map_or(label, |polarity| polarity.name())
}

fn sentiment_id(label: Option<&str>) -> i64 {
    match label.and_then(polarity) {
        Some(Polarity::Negative) => 0,
        Some(Polarity::Positive) => 1,
        Some(Polarity::Neutral) | None => -1,
    }
}

fn gold(silver: Arc<Silver>, score: &Score) -> Arc<Gold> {
    Arc::new(Gold {
        predicted_score: score.confidence,
        predicted_sentiment: score.label.clone(),
        sentiment_id: sentiment_id(silver.sentiment.as_deref()),
        predicted_sentiment_id: sentiment_id(Some(&score.label)),
        model: score.model.clone(),
        tier: score.tier,
        silver,
    })
}

/// Counts by label.
#[derive(Clone, Copy, Debug, Default)]
struct Labels {
    negative: i64,
    neutral: i64,
    positive: i64,
}

impl Labels {
    fn add(&mut self, label: Option<Polarity>, diff: Diff) {
        let diff = diff as i64;
        match label {
            Some(Polarity::Negative) => self.negative += diff,
            Some(Polarity::Neutral) => self.neutral += diff,
            Some(Polarity::Positive) => self.positive += diff,
            None => {}
        }
    }
}

/// What a row of gold says of whom it mentions.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize, Deserialize)]
struct Mentioned {
    timestamp: i64,
    given: Option<Polarity>,
    predicted: Option<Polarity>,
}

impl Mentioned {
    fn in_row(gold: &Gold) -> Self {
        Self {
            timestamp: gold.timestamp.0,
            given: gold.sentiment.as_deref().and_then(polarity),
            predicted: polarity(&gold.predicted_sentiment),
        }
    }
}

/// The state of one mention: its row, and what the row is made of.
#[derive(Default)]
struct MentionTally {
    timestamps: Extent<i64>,
    given: Labels,
    predicted: Labels,
}

impl Aggregate for MentionTally {
    type Key = Text;
    type Value = Mentioned;
    type Row = MentionSentiment;

    fn add(&mut self, mentioned: &Mentioned, diff: Diff) {
        self.timestamps.add(mentioned.timestamp, diff);
        self.given.add(mentioned.given, diff);
        self.predicted.add(mentioned.predicted, diff);
    }

    fn row(&self, mention: &Text) -> Option<MentionSentiment> {
        let given = self.given;
        Some(MentionSentiment {
            mention: mention.clone(),
            min_timestamp: Timestamp(*self.timestamps.min()?),
            max_timestamp: Timestamp(*self.timestamps.max()?),
            negative: given.negative,
            neutral: given.neutral,
            positive: given.positive,
            total: given.negative + given.neutral + given.positive,
            predicted_negative: self.predicted.negative,
            predicted_neutral: self.predicted.neutral,
            predicted_positive: self.predicted.positive,
        })
    }
}

#[derive(Default)]
struct AccuracyTally(i64);

impl Aggregate for AccuracyTally {
    type Key = (Text, Text, Text);
    type Value = ();
    type Row = Accuracy;

    fn add(&mut self, (): &(), diff: Diff) {
        self.0 += diff as i64;
    }

    fn row(&self, (model, given, predicted): &Self::Key) -> Option<Accuracy> {
        (self.0 != 0).then(|| Accuracy {
            model: model.clone(),
            given_label: given.clone(),
            predicted_label: predicted.clone(),
            rows: self.0,
        })
    }
}

#[derive(Default)]
struct UserTally {
    with_mention: i64,
    without_mention: i64,
}

impl Aggregate for UserTally {
    type Key = Text;
    type Value = bool;
    type Row = User;

    fn add(&mut self, mentions_someone: &bool, diff: Diff) {
        if *mentions_someone {
            self.with_mention += diff as i64;
        } else {
            self.without_mention += diff as i64;
        }
    }

    fn row(&self, user: &Text) -> Option<User> {
        let tweets = self.with_mention + self.without_mention;
        (tweets != 0).then(|| User {
            user: user.clone(),
            tweets,
            with_mention: self.with_mention,
            without_mention: self.without_mention,
        })
    }
}

// ---- the flow ------------------------------------------------------------------------------

/// The source's name.
const SOURCE: &str = "tweets";

type Restored = Vec<RowChange<Arc<Bronze>>>;

/// Builds the pipeline in this scope, on top of what the last checkpoint held.
///
/// # Errors
/// If the tables of the last checkpoint cannot be read.
pub fn build(
    scope: Scope<'_, Epoch>,
    environment: &mut dyn Environment,
    settings: &Settings,
) -> Result<Built, String> {
    let mut ports = Ports::new(scope, environment);

    let restored = restored_rows(&mut ports)?;
    let stored_keys = stored_keys(&mut ports)?;
    let tweets = ports.source(SOURCE, restored, stored_keys);
    let orders = to_all_workers(ports.model_orders());
    let tweets = tweets.concat(orders.clone().flat_map(told_before));
    let format = ports.format(SOURCE);
    let (rows, before) = upsert(tweets, "Bronze", move || try_again(Retry::new(format())));
    let (bronze, unreadable) = split(rows);
    let bronze = ports.publish(bronze)?;

    let exploded = explode(bronze, settings.clone());
    let silver = ports.publish(exploded.silver)?;

    let of_mentions = settings.clone();
    let before = before.flat_map(move |row| {
        let mentions = row
            .ok()
            .and_then(|tweet| mentions_of(&tweet, &of_mentions).ok());
        mentions.into_iter().flatten().map(Notice::Before)
    });
    let orders = orders.map(|(worker, order)| Notice::Order(worker, order));
    let predicted = predict(&mut ports, silver, orders.concat(before))?;
    let gold = ports.publish(predicted.gold)?;
    ports.publish(predicted.scores)?;

    let fold_case = settings.fold_case;
    let mentioned = map_batches(
        gold,
        "Mentioned",
        |gold| usize::from(gold.cleaned_text.as_bytes().first() == gold.mention.as_bytes().first()),
        move |gold| (mentioned(&gold, fold_case), Mentioned::in_row(&gold)),
    );
    ports.publish(tally::<MentionTally>(mentioned, "MentionSentiment"))?;
    ports.publish(tally::<AccuracyTally>(predicted.labels, "Accuracy"))?;
    ports.publish(tally::<UserTally>(exploded.tweeted, "Users"))?;
    let rejects = unreadable
        .concat(exploded.undated)
        .concat(predicted.unscored);
    ports.publish_rejects(rejects)?;
    Ok(ports.finish())
}

/// The source's rows at the last checkpoint: those that could be used, and those that could not.
fn restored_rows(ports: &mut Ports<'_, '_>) -> Result<Restored, String> {
    let bronze = ports.restored::<Arc<Bronze>>()?;
    let rejects = ports
        .restored::<Reject>()?
        .into_iter()
        .filter(|reject| *reject.stage == *DECODE);
    let keyless = ports.format(SOURCE)().keyless;
    let usable = bronze
        .into_iter()
        .map(|row| Upsert::row(row.key.clone(), Ok(row)));
    // Whatever was refused may be of use to other settings.
    let mut retry = try_again(Retry::new(ports.format(SOURCE)()));
    let unusable = rejects.map(|reject| {
        let key = reject.source_key();
        let refused = Err(Box::new(reject));
        retry(&refused).unwrap_or_else(|| Upsert::row(key, refused))
    });
    let counted = |told| if keyless { told_as_copy(told) } else { told };
    // If a key has a row as well, that one counts.
    Ok(unusable.chain(usable).map(counted).collect())
}

/// A stored row of a table without a key; equal ones are stored one by one.
pub fn told_as_copy<R>(told: RowChange<R>) -> RowChange<R> {
    let state = match told.state {
        State::Row(Err(reject)) if is_lacking(&reject) => State::Fewer(Err(reject)),
        State::Row(row) => State::More(row),
        state => state,
    };
    Upsert { state, ..told }
}

/// Orders, once for each worker.
fn to_all_workers(
    orders: StreamVec<'_, Epoch, ModelOrder>,
) -> StreamVec<'_, Epoch, (u64, ModelOrder)> {
    let workers = orders.scope().peers() as u64;
    orders.flat_map(move |order| (0..workers).map(move |worker| (worker, order.clone())))
}

/// A model is promoted for all rows, which are told for that.
fn told_before((worker, order): (u64, ModelOrder)) -> Option<RowChange<Arc<Bronze>>> {
    matches!(order, ModelOrder::Promote(_)).then(|| Upsert {
        key: "".into(),
        at: 0,
        state: State::Tell(worker),
    })
}

/// Tries rejected messages again.
fn try_again(mut retry: Retry) -> TryAgain<Result<Arc<Bronze>, Box<Reject>>> {
    Box::new(move |row| retry.row(row.as_ref().err()?))
}

/// The keys of all those rows, for a source that tells everything anew but not what has gone.
fn stored_keys(ports: &mut Ports<'_, '_>) -> Result<HashSet<Text>, String> {
    if !ports.replays(SOURCE) {
        return Ok(HashSet::new());
    }
    let mut keys = ports.stored_keys::<Bronze>(|rows| {
        let keys: Vec<Text> = read_column(rows, "key")?;
        Ok(keys.into_iter().map(Some).collect())
    })?;
    keys.extend(ports.stored_keys::<Reject>(|rows| {
        let key = |reject: Reject| (*reject.stage == *DECODE).then(|| reject.source_key());
        Ok(Reject::from_batch(rows)?.into_iter().map(key).collect())
    })?);
    Ok(keys)
}

/// Splits a collection of results into the two collections of what they hold.
fn split<'s, T, E>(
    results: Collection<'s, Result<T, Box<E>>>,
) -> (Collection<'s, T>, Collection<'s, E>)
where
    T: Clone + 'static,
    E: Clone + 'static,
{
    let (oks, errors) = sort(results, |result| result);
    (oks, errors.map(|error| *error))
}

/// Sorts rows of one kind out.
fn sort<'s, T, K, E>(
    rows: Collection<'s, T>,
    of_kind: impl Fn(T) -> Result<K, E> + 'static,
) -> (Collection<'s, K>, Collection<'s, E>)
where
    T: Clone + 'static,
    K: Clone + 'static,
    E: Clone + 'static,
{
    let (those, others) = rows
        .inner
        .ok_err(move |(row, epoch, diff)| match of_kind(row) {
            Ok(row) => Ok((row, epoch, diff)),
            Err(row) => Err((row, epoch, diff)),
        });
    (those.as_collection(), others.as_collection())
}

/// What a model makes of silver.
struct Predicted<'s> {
    gold: Collection<'s, Arc<Gold>>,
    scores: Collection<'s, TextScore>,
    /// The labels of each row that was given one and predicted one.
    labels: Collection<'s, ((Text, Text, Text), ())>,
    /// What the model could not score.
    unscored: Collection<'s, Reject>,
}

/// Gives each mention the current model's score of its text; without a model, an empty one.
fn predict<'s>(
    ports: &mut Ports<'s, '_>,
    silver: Collection<'s, Arc<Silver>>,
    notices: StreamVec<'s, Epoch, Notice<Arc<Silver>>>,
) -> Result<Predicted<'s>, String> {
    let Some(mut models) = ports.models("sentiment") else {
        let none = Score {
            label: "".into(),
            confidence: Confidence::default(),
            model: "".into(),
            tier: FULL,
        };
        return Ok(Predicted {
            gold: silver.map(move |row| gold(row, &none)),
            scores: nothing(ports.scope()),
            labels: nothing(ports.scope()),
            unscored: nothing(ports.scope()),
        });
    };
    // Scores of models that are not there are of no use; persisting will take them out of the table.
    let recalled = ports.recalls_scores();
    let current = models.current().fingerprint();
    let restored = ports.restored::<TextScore>()?.into_iter();
    let restored = restored
        // What could not be scored is tried again.
        .filter(move |row| (recalled || row.model != current) && !row.label.is_empty())
        .map(|row| Notice::Restored(known(row)));
    let notices = notices.concat(restored.to_stream(ports.scope()));
    let (scored, scores) = score(
        silver,
        |row: &Arc<Silver>| &row.cleaned_text,
        models,
        notices,
    );
    let mut predicted = ports.predicted();
    let gold = scored.map(|(row, score)| gold(row, &score));
    let gold = gold.inspect(move |(row, _, diff)| {
        predicted(&row.model, &row.predicted_sentiment, *diff);
    });
    let scores = scores.map(|(text, score)| TextScore {
        text,
        model: score.model,
        label: score.label,
        confidence: score.confidence,
        tier: score.tier,
    });
    Ok(Predicted {
        labels: gold.clone().flat_map(labels_of),
        // Who is mentioned twice in a tweet does not make two rejects of it.
        unscored: gold
            .clone()
            .flat_map(|gold| unscorable(&gold))
            .distinct_total(),
        gold,
        scores,
    })
}

/// A collection without any rows.
fn nothing<D: Clone + 'static>(scope: Scope<'_, Epoch>) -> Collection<'_, D> {
    None::<(D, Epoch, Diff)>.to_stream(scope).as_collection()
}

fn known(row: TextScore) -> ScoredText {
    let score = Score {
        label: row.label,
        confidence: row.confidence,
        model: row.model,
        tier: row.tier,
    };
    (row.text, score)
}

/// A tweet whose text the model could not score. What it was that the model minded stands in the log.
fn unscorable(gold: &Gold) -> Option<Reject> {
    let without_label = gold.predicted_sentiment.is_empty() && !gold.model.is_empty();
    without_label.then(|| Reject {
        position: gold.key.clone(),
        key: Some(gold.key.clone()),
        stage: "score".into(),
        reason: "field \"cleaned_text\": the model cannot score it".into(),
        raw: gold.cleaned_text.as_bytes().into(),
        first_seen: gold.timestamp,
        field: Some("cleaned_text".into()),
    })
}

fn mentioned(gold: &Gold, fold_case: bool) -> Text {
    if fold_case {
        gold.mention.to_lowercase().into()
    } else {
        gold.mention.clone()
    }
}

fn labels_of(gold: Arc<Gold>) -> Option<((Text, Text, Text), ())> {
    let given = gold.sentiment.as_ref()?;
    // Sentiment140's numbers are compared by what they mean.
    let given = match meaning(given) {
        same if same == &**given => given.clone(),
        other => other.into(),
    };
    let predicted = !gold.predicted_sentiment.is_empty();
    predicted.then(|| {
        (
            (gold.model.clone(), given, gold.predicted_sentiment.clone()),
            (),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tweet(date: &str, text: &str) -> Bronze {
        Bronze {
            key: "7".into(),
            date: Some(date.into()),
            user: Some("ada".into()),
            text: text.into(),
            sentiment: Some("positive".into()),
            source_file: "t/0/3".into(),
            processing_time: Timestamp(11),
            further: Further::default(),
        }
    }

    fn settings(numeric_date: Option<DateUnit>) -> Settings {
        Settings {
            rule: MentionRule::twitter(),
            fold_case: false,
            numeric_date,
        }
    }

    #[test]
    fn a_number_is_a_date_if_it_is_said_what_it_counts() {
        let tweet = |date| tweet(date, "@bo");
        let timestamp = |date, unit| {
            let rows = mentions_of(&tweet(date), &settings(unit));
            rows.map(|rows| rows[0].timestamp.0)
                .map_err(|reject| reject.reason)
        };
        assert_eq!(
            timestamp("1239081585000", Some(DateUnit::Milliseconds)),
            Ok(1_239_081_585_000_000)
        );
        assert_eq!(
            timestamp("14341", Some(DateUnit::Days)),
            Ok(1_239_062_400_000_000)
        );
        assert!(timestamp("1239081585000", None).is_err());
        // What Debezium makes of PostgreSQL's infinity.
        let infinity = timestamp("9223372036825200000", Some(DateUnit::Microseconds));
        assert!(infinity.unwrap_err().contains("beyond the years"));
    }

    #[test]
    fn a_tweet_yields_one_row_for_each_place_that_mentions() {
        let tweet = tweet("Mon Apr 06 22:19:45 PDT 2009", "@bo and @cy and @bo again");
        let rows = mentions_of(&tweet, &settings(None)).unwrap();
        let mentions: Vec<_> = rows.iter().map(|row| &*row.mention).collect();
        assert_eq!(mentions, ["bo", "cy", "bo"]);
        assert!(
            rows.iter()
                .all(|row| row.timestamp == Timestamp(1_239_081_585_000_000))
        );
        assert!(rows.iter().all(|row| &*row.cleaned_text == "and and again"));
    }

    #[test]
    fn an_unreadable_date_rejects_the_tweet_and_says_why() {
        let reject = mentions_of(&tweet("someday", "@bo"), &settings(None)).unwrap_err();
        assert_eq!(
            (&*reject.position, reject.key.as_deref()),
            ("t/0/3", Some("7"))
        );
        assert_eq!((&*reject.stage, &*reject.raw), ("silver", &b"someday"[..]));
        assert!(
            reject.reason.starts_with("field \"date\": "),
            "{}",
            reject.reason
        );
    }
}
