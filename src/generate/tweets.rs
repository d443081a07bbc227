//! Invents tweets, and changes to tweets, that look like real ones and are the same for the same seed.
//!
//! A text is put together from parts that carry one sentiment, so a sentiment model mostly agrees with
//! the given label:
//!
//! ```text
//! @zvablikro  ugh,  my parcel is late again  and now I am grumpy  #delivery 😡
//! mention     opener         body                   closer        decoration
//! ```
//!
//! Some handles are hot and most occur once; casing varies, texts repeat, entities, links, accents and
//! line breaks turn up, since a stream processor meets all of these. People and places are made up.
//! Everything is drawn with whole numbers, so that every platform draws alike.

use std::collections::VecDeque;

use serde::Serialize;

use super::phrases;

/// The share of tweets with a mention when nothing else is said.
const MENTION_SHARE: f64 = 0.7;

/// Repeated texts are taken from this many recent ones.
const RECENT_TEXTS: usize = 64;

/// The days of April 2009 over which the dates spread: two weeks from Monday the 6th.
const FIRST_DAY: u64 = 6;
const DAYS: u64 = 14;

const WEEKDAYS: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];

/// Zones in the proportion they are drawn.
const ZONES: [&str; 10] = [
    "PDT", "PDT", "PDT", "PDT", "PDT", "UTC", "UTC", "EDT", "BST", "+0200",
];

/// One invented tweet, with the fields of the shipped examples.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GeneratedTweet {
    /// When it was written, as `Mon Apr 06 22:19:45 PDT 2009`.
    pub date: String,
    /// The handle of its author, without at sign.
    pub user: String,
    /// What it says.
    pub text: String,
    /// What it feels: `negative`, `neutral` or `positive`.
    pub sentiment: String,
}

impl GeneratedTweet {
    /// Returns the tweet as one line of JSON, its keys in the order of the fields.
    ///
    /// ```
    /// use assay::generate::tweets::GeneratedTweet;
    ///
    /// let tweet = GeneratedTweet {
    ///     date: "Mon Apr 06 22:19:45 PDT 2009".into(),
    ///     user: "blavriko".into(),
    ///     text: "the tram is \"on time\"".into(),
    ///     sentiment: "positive".into(),
    /// };
    /// assert_eq!(
    ///     tweet.to_json(),
    ///     r#"{"date":"Mon Apr 06 22:19:45 PDT 2009","user":"blavriko","text":"the tram is \"on time\"","sentiment":"positive"}"#
    /// );
    /// ```
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("a struct of strings is always JSON")
    }
}

/// Draws tweets without end; equal seeds draw equal tweets.
///
/// ```
/// use assay::generate::tweets::TweetGenerator;
///
/// let mut one = TweetGenerator::new(7);
/// let mut other = TweetGenerator::new(7);
/// assert_eq!(one.next_tweet(), other.next_tweet());
/// assert_ne!(one.next_tweet(), TweetGenerator::new(8).next_tweet());
/// ```
#[derive(Clone, Debug)]
pub struct TweetGenerator {
    draws: Draws,
    mention_share: f64,
    recent: VecDeque<(String, Sentiment)>,
}

impl TweetGenerator {
    /// Returns the generator of a seed, with a mention in 70% of its tweets.
    pub fn new(seed: u64) -> Self {
        TweetGenerator {
            draws: Draws(seed),
            mention_share: MENTION_SHARE,
            recent: VecDeque::new(),
        }
    }

    /// Sets the share of tweets with a mention, from 0 to 1; in the wild it is about 0.46.
    pub fn with_mention_share(mut self, share: f64) -> Self {
        self.mention_share = share.clamp(0.0, 1.0);
        self
    }

    /// Returns the next tweet.
    pub fn next_tweet(&mut self) -> GeneratedTweet {
        let (text, sentiment) = self.text_or_repeat();
        GeneratedTweet {
            date: self.date(),
            user: self.handle(),
            text,
            sentiment: sentiment.label().to_string(),
        }
    }

    /// Returns a new text, or in 2% of the calls a recent one.
    fn text_or_repeat(&mut self) -> (String, Sentiment) {
        if !self.recent.is_empty() && self.draws.chance(0.02) {
            return self.recent[self.draws.place(self.recent.len())].clone();
        }
        let sentiment = self.sentiment();
        let text = self.text(sentiment);
        if self.recent.len() == RECENT_TEXTS {
            self.recent.pop_front();
        }
        self.recent.push_back((text.clone(), sentiment));
        (text, sentiment)
    }

    fn sentiment(&mut self) -> Sentiment {
        match self.draws.below(100) {
            0..38 => Sentiment::Negative,
            38..58 => Sentiment::Neutral,
            _ => Sentiment::Positive,
        }
    }

    /// Returns a text of a sentiment, mentions included.
    fn text(&mut self, sentiment: Sentiment) -> String {
        let mut text = self.statement(sentiment);
        self.decorate(&mut text, sentiment);
        if self.draws.chance(self.mention_share) {
            text = self.addressed(text);
        }
        text
    }

    /// Returns opener, body and closer, each but the body left out at times.
    fn statement(&mut self, sentiment: Sentiment) -> String {
        let parts = sentiment.parts();
        let topic = &phrases::TOPICS[self.draws.place(phrases::TOPICS.len())];
        let body = if self.draws.chance(0.35) {
            self.draws.pick(topic.says(sentiment)).to_string()
        } else {
            self.draws
                .pick(parts.bodies)
                .replace("{}", self.draws.pick(topic.things))
        };
        let mut text = String::new();
        if self.draws.chance(0.45) {
            text.push_str(self.draws.pick(parts.openers));
            text.push(' ');
        }
        text.push_str(&body);
        if self.draws.chance(0.5) {
            // A question mark closes its sentence already.
            text.push_str(if body.ends_with('?') {
                " "
            } else {
                self.joint()
            });
            text.push_str(self.draws.pick(parts.closers));
        } else if !body.ends_with('?') && self.draws.chance(0.4) {
            text.push_str(self.draws.pick(&["!", "!!", ".", "...", " ..."]));
        }
        if self.draws.chance(0.1) {
            text.push_str(" #");
            text.push_str(topic.tag);
        }
        text
    }

    /// Returns what stands between two sentences; now and then an escaped ampersand or a line break.
    fn joint(&mut self) -> &'static str {
        match self.draws.below(100) {
            0..2 => "\n",
            2..16 => " &amp; ",
            16..50 => ", ",
            50..80 => ". ",
            _ => " - ",
        }
    }

    /// Adds a link, an emoji or a tag at times, and rarely raises the voice.
    fn decorate(&mut self, text: &mut String, sentiment: Sentiment) {
        let parts = sentiment.parts();
        if self.draws.chance(0.12) {
            text.push_str(" #");
            text.push_str(self.draws.pick(parts.tags));
        }
        if self.draws.chance(0.2) {
            text.push(' ');
            text.push_str(self.draws.pick(parts.emoji));
        }
        if self.draws.chance(0.02) {
            *text = text
                .to_uppercase()
                .replace("&AMP;", "&amp;")
                .replace("&LT;", "&lt;");
        }
        if self.draws.chance(parts.link_share) {
            text.push_str(" https://t.co/");
            text.push_str(&self.code());
        }
    }

    /// Returns the ten letters and digits of a shortened link.
    fn code(&mut self) -> String {
        let letters = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";
        (0..10)
            .map(|_| char::from(self.draws.pick(letters)))
            .collect()
    }

    /// Puts one mention into a text, or several in 5% of the calls.
    fn addressed(&mut self, text: String) -> String {
        let mention = self.mention();
        match self.draws.below(100) {
            0..4 => format!("RT {mention}: {text}"),
            4..8 => format!("{mention} {} {text}", self.mention()),
            8 => format!("{mention} {text} ({mention})"),
            9..20 => format!("{text} {mention}"),
            20..26 => format!("{text} /cc {mention}"),
            26..32 => format!(".{mention} {text}"),
            32..38 => format!("hey {mention}, {text}"),
            38..42 => format!("{mention}: {text}"),
            _ => format!("{mention} {text}"),
        }
    }

    /// Returns a handle with its at sign, in another casing in 2% of the calls.
    fn mention(&mut self) -> String {
        let handle = self.handle();
        match self.draws.below(100) {
            0 => format!("@{}", handle.to_uppercase()),
            1 => format!("@{}{}", handle[..1].to_uppercase(), &handle[1..]),
            _ => format!("@{handle}"),
        }
    }

    /// Returns a handle: of 1,023 known ones in 40% of the calls, else of millions.
    ///
    /// Among the known each doubling of the rank is as likely as the one before, which makes a handle
    /// about as likely as the inverse of its rank (Zipf's law) without a fraction.
    fn handle(&mut self) -> String {
        if self.draws.chance(0.4) {
            let octave = 1 << self.draws.below(10);
            known_handle(octave + self.draws.below(octave))
        } else {
            rare_handle(self.draws.below(1 << 24))
        }
    }

    /// Returns a date whose weekday fits; the zone is put to the local time, whatever it is.
    fn date(&mut self) -> String {
        let day = self.draws.below(DAYS);
        let (hour, minute, second) = (
            self.draws.below(24),
            self.draws.below(60),
            self.draws.below(60),
        );
        let weekday = WEEKDAYS[usize::try_from(day % 7).unwrap_or(0)];
        let zone = self.draws.pick(&ZONES);
        format!(
            "{weekday} Apr {:02} {hour:02}:{minute:02}:{second:02} {zone} 2009",
            FIRST_DAY + day
        )
    }
}

impl Iterator for TweetGenerator {
    type Item = GeneratedTweet;

    fn next(&mut self) -> Option<GeneratedTweet> {
        Some(self.next_tweet())
    }
}

/// What a change does to its row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ChangeKind {
    /// The id is new.
    Insert,
    /// The row of a live id gets another text or another label.
    Update,
    /// A live id goes, and never returns.
    Delete,
}

/// One change to a table of tweets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The primary key.
    pub id: i64,
    /// What happens to its row.
    pub kind: ChangeKind,
    /// The whole row after the change; none after a delete.
    pub tweet: Option<GeneratedTweet>,
}

/// Draws a history of inserts, updates and deletes; equal seeds draw equal histories.
///
/// Ids count up from 1. The history is valid: only an id that was inserted, and not deleted since, is
/// updated or deleted. The cost of a change does not depend on how many came before.
///
/// ```
/// use assay::generate::tweets::{ChangeGenerator, ChangeKind};
///
/// let mut changes = ChangeGenerator::new(7, 1_000);
/// let first = changes.next_change();
/// assert_eq!((first.id, first.kind), (1, ChangeKind::Insert));
/// assert!(first.tweet.is_some());
/// ```
#[derive(Clone, Debug)]
pub struct ChangeGenerator {
    tweets: TweetGenerator,
    draws: Draws,
    updates: f64,
    deletes: f64,
    next_id: i64,
    /// The rows that may still change.
    live: Vec<(i64, GeneratedTweet)>,
    limit: usize,
}

impl ChangeGenerator {
    /// Returns the generator of a seed, with 15% updates and 5% deletes.
    ///
    /// It remembers up to `live` rows (at least one) to update or delete. Past that, each insert makes it
    /// forget another row: that one stays in the table as it is.
    pub fn new(seed: u64, live: usize) -> Self {
        ChangeGenerator {
            tweets: TweetGenerator::new(seed),
            // The complement keeps the choice of changes apart from the choice of words.
            draws: Draws(!seed),
            updates: 0.15,
            deletes: 0.05,
            next_id: 1,
            live: Vec::new(),
            limit: live.max(1),
        }
    }

    /// Sets the shares of updates and deletes, each from 0 to 1; inserts are the rest.
    ///
    /// While no row is live every change is an insert.
    pub fn with_shares(mut self, updates: f64, deletes: f64) -> Self {
        (self.updates, self.deletes) = (updates.clamp(0.0, 1.0), deletes.clamp(0.0, 1.0));
        self
    }

    /// Sets the share of tweets with a mention, as [`TweetGenerator::with_mention_share`] does.
    pub fn with_mention_share(mut self, share: f64) -> Self {
        self.tweets = self.tweets.with_mention_share(share);
        self
    }

    /// Returns the next change.
    pub fn next_change(&mut self) -> Change {
        let dice = self.draws.unit();
        if self.live.is_empty() || dice >= self.updates + self.deletes {
            self.insert()
        } else if dice < self.updates {
            self.update()
        } else {
            self.delete()
        }
    }

    fn insert(&mut self) -> Change {
        let (id, tweet) = (self.next_id, self.tweets.next_tweet());
        self.next_id += 1;
        if self.live.len() < self.limit {
            self.live.push((id, tweet.clone()));
        } else {
            let place = self.draws.place(self.live.len());
            self.live[place] = (id, tweet.clone());
        }
        Change {
            id,
            kind: ChangeKind::Insert,
            tweet: Some(tweet),
        }
    }

    fn update(&mut self) -> Change {
        let place = self.draws.place(self.live.len());
        let (id, tweet) = &mut self.live[place];
        let sentiment = Sentiment::of(&tweet.sentiment);
        if self.draws.chance(0.5) {
            tweet.sentiment = sentiment
                .neighbour(self.draws.chance(0.5))
                .label()
                .to_string();
        } else {
            // Drawn afresh until it differs, which the first draw all but always does.
            let before = std::mem::take(&mut tweet.text);
            tweet.text.clone_from(&before);
            while tweet.text == before {
                tweet.text = self.tweets.text(sentiment);
            }
        }
        Change {
            id: *id,
            kind: ChangeKind::Update,
            tweet: Some(tweet.clone()),
        }
    }

    fn delete(&mut self) -> Change {
        let (id, _) = self.live.swap_remove(self.draws.place(self.live.len()));
        Change {
            id,
            kind: ChangeKind::Delete,
            tweet: None,
        }
    }
}

impl Iterator for ChangeGenerator {
    type Item = Change;

    fn next(&mut self) -> Option<Change> {
        Some(self.next_change())
    }
}

/// Returns the handle of a rank below 2^18: three syllables.
fn known_handle(rank: u64) -> String {
    // Odd, so that ranks keep apart; large, so that neighbours look nothing alike.
    adorned(syllables(rank.wrapping_mul(0x2_9e35), 3), rank)
}

/// Returns one of 2^24 handles: four syllables.
fn rare_handle(number: u64) -> String {
    adorned(syllables(number, 4), number)
}

/// Returns the lowest bits of a number as syllables, six bits each: a cluster of consonants and a vowel.
/// Such a name is plainly made up.
fn syllables(number: u64, count: usize) -> String {
    let syllable = |place: usize| {
        let bits = (number >> (6 * place)) as usize;
        [phrases::ONSETS[bits & 15], phrases::VOWELS[bits >> 4 & 3]]
    };
    (0..count).flat_map(syllable).collect()
}

/// Gives a third of the handles an underscore or digits; 15 characters stay the limit.
fn adorned(mut handle: String, number: u64) -> String {
    match mix(number) % 9 {
        0 => handle.insert(6, '_'),
        1 => handle.push_str(&(mix(number + 1) % 90 + 10).to_string()),
        2 => handle.push('_'),
        _ => {}
    }
    handle
}

/// What a text feels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sentiment {
    Negative,
    Neutral,
    Positive,
}

impl Sentiment {
    fn label(self) -> &'static str {
        match self {
            Sentiment::Negative => "negative",
            Sentiment::Neutral => "neutral",
            Sentiment::Positive => "positive",
        }
    }

    fn of(label: &str) -> Self {
        match label {
            "negative" => Sentiment::Negative,
            "positive" => Sentiment::Positive,
            _ => Sentiment::Neutral,
        }
    }

    /// Returns the label an annotator would take instead: never the opposite.
    fn neighbour(self, up: bool) -> Self {
        match self {
            Sentiment::Neutral if up => Sentiment::Positive,
            Sentiment::Neutral => Sentiment::Negative,
            _ => Sentiment::Neutral,
        }
    }

    fn parts(self) -> &'static phrases::Parts {
        match self {
            Sentiment::Negative => &phrases::NEGATIVE,
            Sentiment::Neutral => &phrases::NEUTRAL,
            Sentiment::Positive => &phrases::POSITIVE,
        }
    }
}

/// Random numbers by SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number
/// generators", 2014): a counter whose every value is mixed.
#[derive(Clone, Debug)]
struct Draws(u64);

impl Draws {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// Returns a number below `limit`: the high half of a 128-bit product, whose bias is below
    /// `limit` in 2^64.
    fn below(&mut self, limit: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(limit)) >> 64) as u64
    }

    fn place(&mut self, length: usize) -> usize {
        self.below(length as u64) as usize
    }

    fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.place(choices.len())]
    }

    /// Returns a fraction in [0, 1) of 53 bits, which a float holds exactly.
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn chance(&mut self, share: f64) -> bool {
        self.unit() < share
    }
}

/// The finishing function of SplitMix64.
fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use super::*;

    fn tweets(seed: u64, count: usize) -> Vec<GeneratedTweet> {
        TweetGenerator::new(seed).take(count).collect()
    }

    /// The handles after at signs; texts hold no others.
    fn mentions(text: &str) -> Vec<&str> {
        let name = |part: &'_ str| {
            part.find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
                .unwrap_or(part.len())
        };
        text.split('@')
            .skip(1)
            .map(|part| &part[..name(part)])
            .collect()
    }

    fn share(tweets: &[GeneratedTweet], holds: impl Fn(&GeneratedTweet) -> bool) -> f64 {
        tweets.iter().filter(|tweet| holds(tweet)).count() as f64 / tweets.len() as f64
    }

    /// FNV-1a over 64 bits.
    fn digest(lines: impl Iterator<Item = String>) -> u64 {
        let bytes = lines.flat_map(|line| (line + "\n").into_bytes());
        bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
        })
    }

    /// A seed means the same tweets for ever: change these only with a reason to tell users.
    #[test]
    fn a_seed_is_frozen() {
        assert_eq!(
            digest(tweets(1, 1_000).iter().map(GeneratedTweet::to_json)),
            0xd129_8c8b_bf18_dfbf
        );
        let changes = ChangeGenerator::new(1, 100).take(1_000);
        let line = |change: Change| {
            format!(
                "{} {:?} {:?}",
                change.id,
                change.kind,
                change.tweet.map(|t| t.to_json())
            )
        };
        assert_eq!(digest(changes.map(line)), 0xacac_6d91_92d5_82d1);
    }

    #[test]
    fn shares_are_as_documented() {
        let tweets = tweets(3, 20_000);
        let between = |low: f64, high: f64, holds: &dyn Fn(&GeneratedTweet) -> bool| {
            let found = share(&tweets, holds);
            assert!(
                (low..high).contains(&found),
                "{found} is not between {low} and {high}"
            );
        };
        between(0.68, 0.72, &|tweet| tweet.text.contains('@'));
        between(0.02, 0.05, &|tweet| mentions(&tweet.text).len() > 1);
        between(0.005, 0.02, &|tweet| tweet.text.contains('\n'));
        between(0.05, 0.12, &|tweet| tweet.text.contains("&amp;"));
        between(0.08, 0.2, &|tweet| tweet.text.contains("https://t.co/"));
        between(0.1, 0.3, &|tweet| tweet.text.contains('#'));
        between(0.36, 0.40, &|tweet| tweet.sentiment == "negative");
        between(0.18, 0.22, &|tweet| tweet.sentiment == "neutral");
        between(0.40, 0.44, &|tweet| tweet.sentiment == "positive");
    }

    #[test]
    fn the_share_of_mentions_can_be_set() {
        for wanted in [0.0, 0.46, 1.0] {
            let tweets: Vec<_> = TweetGenerator::new(5)
                .with_mention_share(wanted)
                .take(5_000)
                .collect();
            let found = share(&tweets, |tweet| tweet.text.contains('@'));
            assert!((found - wanted).abs() < 0.03, "{found} instead of {wanted}");
        }
    }

    #[test]
    fn texts_vary_and_repeat_a_little() {
        let tweets = tweets(9, 1_000);
        let distinct: HashSet<_> = tweets.iter().map(|tweet| &tweet.text).collect();
        assert!(
            (960..=990).contains(&distinct.len()),
            "{} distinct texts",
            distinct.len()
        );
        assert!(tweets.iter().all(|tweet| tweet.text.chars().count() <= 280));
    }

    #[test]
    fn handles_are_lawful_and_some_are_hot() {
        let mut counts: HashMap<String, u32> = HashMap::new();
        let mut casings: HashMap<String, HashSet<String>> = HashMap::new();
        for tweet in tweets(11, 20_000) {
            for handle in mentions(&tweet.text)
                .into_iter()
                .chain([tweet.user.as_str()])
            {
                assert!((9..=15).contains(&handle.len()), "{handle}");
                *counts.entry(handle.to_lowercase()).or_default() += 1;
                casings
                    .entry(handle.to_lowercase())
                    .or_default()
                    .insert(handle.to_string());
            }
        }
        let once = counts.values().filter(|count| **count == 1).count();
        assert!(
            once * 10 > counts.len() * 8,
            "{once} of {} occur once",
            counts.len()
        );
        assert!(
            counts
                .values()
                .max()
                .is_some_and(|hottest| *hottest > 1_000)
        );
        assert!(
            casings
                .values()
                .filter(|spellings| spellings.len() > 1)
                .count()
                > 20
        );
    }

    #[test]
    fn ranks_and_numbers_have_handles_of_their_own() {
        let known: HashSet<_> = (1..1_024).map(known_handle).collect();
        assert_eq!(known.len(), 1_023);
        let rare: HashSet<_> = (0..10_000)
            .map(|number| rare_handle(number * 1_677))
            .collect();
        assert_eq!(rare.len(), 10_000);
    }

    #[test]
    fn dates_are_of_two_weeks_and_know_their_weekday() {
        let mut days = HashSet::new();
        for tweet in tweets(13, 2_000) {
            let parts: Vec<_> = tweet.date.split(' ').collect();
            let [weekday, "Apr", day, time, zone, "2009"] = parts[..] else {
                panic!("{}", tweet.date)
            };
            let place = WEEKDAYS.iter().position(|name| *name == weekday).unwrap();
            let day: usize = day.parse().unwrap();
            // 6 April 2009 was a Monday.
            assert_eq!((day - 6) % 7, place, "{}", tweet.date);
            assert!(
                (6..20).contains(&day) && ZONES.contains(&zone),
                "{}",
                tweet.date
            );
            let time: Vec<u32> = time.split(':').map(|part| part.parse().unwrap()).collect();
            assert!(
                time[0] < 24 && time[1] < 60 && time[2] < 60,
                "{}",
                tweet.date
            );
            days.insert(day);
        }
        assert_eq!(days.len(), 14);
    }

    #[test]
    fn json_reads_back() {
        for tweet in tweets(15, 500) {
            let value: serde_json::Value = serde_json::from_str(&tweet.to_json()).unwrap();
            assert_eq!(value["text"], tweet.text.as_str());
            assert_eq!(value["sentiment"], tweet.sentiment.as_str());
            assert_eq!(value.as_object().unwrap().len(), 4);
        }
    }

    #[test]
    fn there_is_enough_to_say() {
        let parts = [&phrases::NEGATIVE, &phrases::NEUTRAL, &phrases::POSITIVE];
        let shared: HashSet<_> = parts
            .iter()
            .flat_map(|part| part.openers.iter().chain(part.bodies).chain(part.closers))
            .collect();
        let moods = [Sentiment::Negative, Sentiment::Neutral, Sentiment::Positive];
        let own: HashSet<_> = phrases::TOPICS
            .iter()
            .flat_map(|topic| moods.map(|mood| topic.says(mood)))
            .flatten()
            .collect();
        assert!(
            shared.len() >= 120 && own.len() >= 80,
            "{} shared, {} own",
            shared.len(),
            own.len()
        );
        assert!(
            parts
                .iter()
                .flat_map(|part| part.bodies)
                .all(|body| body.matches("{}").count() == 1)
        );
    }

    #[test]
    fn histories_are_valid() {
        let mut changes = ChangeGenerator::new(17, 50);
        let mut rows: HashMap<i64, GeneratedTweet> = HashMap::new();
        let mut counts: HashMap<ChangeKind, u32> = HashMap::new();
        let mut last_id = 0;
        for _ in 0..20_000 {
            let Change { id, kind, tweet } = changes.next_change();
            *counts.entry(kind).or_default() += 1;
            match (kind, tweet) {
                (ChangeKind::Insert, Some(tweet)) => {
                    assert_eq!(id, last_id + 1);
                    last_id = id;
                    rows.insert(id, tweet);
                }
                (ChangeKind::Update, Some(tweet)) => {
                    let before = rows
                        .insert(id, tweet.clone())
                        .expect("an update needs a live id");
                    assert_ne!(
                        (&before.text, &before.sentiment),
                        (&tweet.text, &tweet.sentiment)
                    );
                    assert_eq!((before.date, before.user), (tweet.date, tweet.user));
                }
                (ChangeKind::Delete, None) => {
                    assert!(rows.remove(&id).is_some(), "a delete needs a live id")
                }
                other => panic!("{other:?}"),
            }
            assert!(changes.live.len() <= 50);
        }
        assert!(
            (2_800..3_200).contains(&counts[&ChangeKind::Update]),
            "{counts:?}"
        );
        assert!(
            (850..1_150).contains(&counts[&ChangeKind::Delete]),
            "{counts:?}"
        );
    }

    #[test]
    fn shares_of_changes_can_be_set() {
        let inserts = ChangeGenerator::new(19, 10).with_shares(0.0, 0.0).take(500);
        assert!(
            inserts
                .into_iter()
                .all(|change| change.kind == ChangeKind::Insert)
        );
        let mut churn = ChangeGenerator::new(19, 0).with_shares(0.0, 1.0);
        let kinds: Vec<_> = churn.by_ref().take(4).map(|change| change.kind).collect();
        use ChangeKind::{Delete, Insert};
        assert_eq!(kinds, [Insert, Delete, Insert, Delete]);
    }
}
