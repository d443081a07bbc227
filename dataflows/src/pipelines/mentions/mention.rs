//! Finds the mentions of a tweet and gives back the text without them.
//!
//! Two rules can decide what a mention is: Twitter's own ([`MentionRule::twitter`]), written by hand
//! because it sees every text of the stream, and any regular expression ([`MentionRule::pattern`]).
//! They differ where people are sloppy: Twitter takes `bo` from `@bo:` and nothing from `al@bo.example`;
//! `@(\S+)` takes `bo:` and `bo.example`.

use std::borrow::Cow;
use std::ops::Range;

use regex::Regex;

/// The longest name an account may have.
const HANDLE_LIMIT: usize = 15;

/// The at sign of full-width keyboards, U+FF20.
const WIDE_AT: &str = "＠";

/// One mention of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mention<'t> {
    /// The name without the at sign, in the casing of the text.
    pub handle: &'t str,
    /// The bytes of the text that the mention covers, at sign included.
    pub range: Range<usize>,
}

/// The mentions of one text, in the order they stand in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mentions<'t> {
    text: &'t str,
    found: Vec<Mention<'t>>,
}

/// What counts as a mention.
#[derive(Clone, Debug)]
pub struct MentionRule(Kind);

#[derive(Clone, Debug)]
enum Kind {
    Twitter,
    Pattern(Regex),
}

impl MentionRule {
    /// Returns Twitter's own rule.
    ///
    /// A mention is `@` or `＠` followed by 1 to 15 ASCII letters, digits or underscores.
    ///
    /// - Before it stands nothing, or a character that is none of `A-Z a-z 0-9 _ ! # $ % & * @ ＠`;
    ///   so `al@bo.example` has no mention and `の@bo` has one. The one exception is a glued `RT` in any
    ///   casing, itself not the end of a longer word or e-mail address: `RT@bo` mentions `bo`.
    /// - After it comes neither an at sign, nor an accented Latin letter or mark, nor `://`; so `@_@`,
    ///   `@josé` and `@http://` mention nobody.
    /// - A longer name is cut to its first 15 characters, as Twitter's library does at its own limit.
    /// - Of a list (`@bo/friends`) only the account is mentioned.
    ///
    /// ```
    /// use dataflows::pipelines::mentions::mention::MentionRule;
    ///
    /// let mentions = MentionRule::twitter().extract("thanks @bo, write to al@bo.example");
    /// let found = mentions.iter().next().unwrap();
    /// assert_eq!((found.handle, found.range.clone()), ("bo", 7..10));
    /// assert_eq!(mentions.len(), 1);
    /// ```
    pub fn twitter() -> Self {
        MentionRule(Kind::Twitter)
    }

    /// Returns a rule by which every match of `pattern` is a mention.
    ///
    /// The handle is group 1 where the pattern has one and it took part in the match, else the whole
    /// match. A match with an empty handle is no mention.
    ///
    /// ```
    /// use dataflows::pipelines::mentions::mention::MentionRule;
    ///
    /// let rule = MentionRule::pattern(r"@(\S+)")?;
    /// let mentions = rule.extract("cc @bo: and @al");
    /// assert_eq!(mentions.iter().map(|m| m.handle).collect::<Vec<_>>(), ["bo:", "al"]);
    /// # Ok::<(), regex::Error>(())
    /// ```
    pub fn pattern(pattern: &str) -> Result<Self, regex::Error> {
        Ok(MentionRule(Kind::Pattern(Regex::new(pattern)?)))
    }

    /// Returns the mentions of `text`; by Twitter's rule, a text without any costs no allocation.
    pub fn extract<'t>(&self, text: &'t str) -> Mentions<'t> {
        let found = match &self.0 {
            Kind::Twitter => Twitter {
                text,
                position: 0,
                used: 0,
            }
            .collect(),
            Kind::Pattern(regex) => matches(regex, text),
        };
        Mentions { text, found }
    }

    /// Returns true if the text mentions anybody; looks no further than the first.
    pub fn finds_any(&self, text: &str) -> bool {
        match &self.0 {
            Kind::Twitter => {
                let (position, used) = (0, 0);
                let mut mentions = Twitter {
                    text,
                    position,
                    used,
                };
                mentions.next().is_some()
            }
            Kind::Pattern(regex) => !matches(regex, text).is_empty(),
        }
    }

    /// Returns `text` without its mentions, by the rule of [`Mentions::cleaned`].
    ///
    /// ```
    /// use dataflows::pipelines::mentions::mention::MentionRule;
    ///
    /// let rule = MentionRule::twitter();
    /// assert_eq!(rule.cleaned("@bo  @al the  train is late"), "the  train is late");
    /// assert_eq!(rule.cleaned("late again (@bo)"), "late again ()");
    /// ```
    pub fn cleaned(&self, text: &str) -> String {
        self.extract(text).cleaned().into_owned()
    }
}

impl<'t> Mentions<'t> {
    /// Returns the mentions in order.
    pub fn iter(&self) -> std::slice::Iter<'_, Mention<'t>> {
        self.found.iter()
    }

    /// Returns how many mentions there are, repeated handles included.
    pub fn len(&self) -> usize {
        self.found.len()
    }

    /// Returns true if the text mentions nobody.
    pub fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// Returns the text without its mentions; borrowed when what is left is one piece of it.
    ///
    /// 1. A mention goes together with the white space that touches it on either side, and so does the
    ///    next one if nothing else stands between them.
    /// 2. One space takes their place if any white space went with them, else nothing.
    /// 3. White space at both ends of the result goes, also when there was no mention.
    ///
    /// Everything else stays byte for byte: other runs of blanks, line breaks, punctuation. White space
    /// is what Unicode calls so.
    pub fn cleaned(&self) -> Cow<'t, str> {
        let mut cleaned = Cow::Borrowed("");
        let mut spaced = false;
        for stretch in self.stretches() {
            spaced |= stretch.starts_with(char::is_whitespace);
            let piece = stretch.trim();
            if piece.is_empty() {
                continue;
            }
            if cleaned.is_empty() {
                cleaned = Cow::Borrowed(piece);
            } else {
                cleaned
                    .to_mut()
                    .extend(spaced.then_some(" ").into_iter().chain([piece]));
            }
            spaced = stretch.ends_with(char::is_whitespace);
        }
        cleaned
    }

    /// Returns what stands before, between and after the mentions: one stretch more than mentions.
    fn stretches(&self) -> impl Iterator<Item = &'t str> {
        let starts = std::iter::once(0).chain(self.found.iter().map(|mention| mention.range.end));
        let ends = self
            .found
            .iter()
            .map(|mention| mention.range.start)
            .chain([self.text.len()]);
        starts.zip(ends).map(|(start, end)| &self.text[start..end])
    }
}

impl<'t> IntoIterator for Mentions<'t> {
    type Item = Mention<'t>;
    type IntoIter = std::vec::IntoIter<Mention<'t>>;

    fn into_iter(self) -> Self::IntoIter {
        self.found.into_iter()
    }
}

impl<'m, 't> IntoIterator for &'m Mentions<'t> {
    type Item = &'m Mention<'t>;
    type IntoIter = std::slice::Iter<'m, Mention<'t>>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// Twitter's rule, as a scan from at sign to at sign.
struct Twitter<'t> {
    text: &'t str,
    /// Where the search for the next at sign begins.
    position: usize,
    /// The end of the last name that followed a lawful start, mention or not. What lies before it
    /// introduces nothing more: the `rt` of `@rt@bo` is a name, not a retweet mark.
    used: usize,
}

impl<'t> Iterator for Twitter<'t> {
    type Item = Mention<'t>;

    fn next(&mut self) -> Option<Mention<'t>> {
        while let Some(at) = next_at_sign(self.text.as_bytes(), self.position) {
            self.position = at.end;
            let end = at.end + handle_length(&self.text.as_bytes()[at.end..]);
            if end == at.end || !may_start(&self.text[..at.start], self.used) {
                continue;
            }
            (self.position, self.used) = (end, end);
            if may_end(&self.text[end..]) {
                return Some(Mention {
                    handle: &self.text[at.end..end],
                    range: at.start..end,
                });
            }
        }
        None
    }
}

/// Returns the bytes of the first at sign, of either width, at or after `from`.
fn next_at_sign(bytes: &[u8], mut from: usize) -> Option<Range<usize>> {
    loop {
        from += candidate(&bytes[from..])?;
        if bytes[from] == b'@' {
            return Some(from..from + 1);
        }
        if bytes[from..].starts_with(WIDE_AT.as_bytes()) {
            return Some(from..from + WIDE_AT.len());
        }
        from += 1;
    }
}

/// Returns the place of the first byte that may begin an at sign.
fn candidate(bytes: &[u8]) -> Option<usize> {
    let begins = |byte: &u8| (*byte == b'@') | (*byte == WIDE_AT.as_bytes()[0]);
    // Most texts have long stretches without: a block without early exit becomes vector compares.
    let block = |block: &&[u8]| !block.iter().fold(false, |hit, byte| hit | begins(byte));
    let clear = bytes.chunks_exact(16).take_while(block).count() * 16;
    bytes[clear..]
        .iter()
        .position(begins)
        .map(|place| clear + place)
}

/// Returns how many bytes at the start make a name, cut at the limit.
fn handle_length(bytes: &[u8]) -> usize {
    bytes
        .iter()
        .take(HANDLE_LIMIT)
        .take_while(|byte| name_byte(**byte))
        .count()
}

fn name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// Returns true if an at sign right after `before`, of which names have taken `used` bytes, can start a mention.
fn may_start(before: &str, used: usize) -> bool {
    match before.as_bytes().last() {
        None => true,
        Some(b'!' | b'#' | b'$' | b'%' | b'&' | b'*' | b'@') => false,
        Some(byte) if name_byte(*byte) => {
            used + 2 <= before.len() && retweet_mark(before.as_bytes())
        }
        Some(_) => !before.ends_with(WIDE_AT),
    }
}

/// Returns true if `before` ends with `rt` standing alone, in any casing.
fn retweet_mark(before: &[u8]) -> bool {
    let Some((head, mark)) = before.split_last_chunk::<2>() else {
        return false;
    };
    let glued = |byte: &u8| name_byte(*byte) || matches!(byte, b'+' | b'~' | b'.' | b'-');
    mark.eq_ignore_ascii_case(b"rt") && !head.last().is_some_and(glued)
}

/// Returns true if a name right before `after` can end there.
fn may_end(after: &str) -> bool {
    let Some(next) = after.chars().next() else {
        return true;
    };
    !matches!(next, '@' | '＠') && !accented(next) && !after.starts_with("://")
}

/// Returns true for the accented Latin letters and combining marks that Twitter counts as part of a word.
fn accented(letter: char) -> bool {
    matches!(letter,
        '\u{c0}'..='\u{24f}' if !matches!(letter, '×' | '÷'))
        || matches!(letter,
            '\u{253}' | '\u{254}' | '\u{256}' | '\u{257}' | '\u{259}' | '\u{25b}' | '\u{263}' | '\u{268}'
            | '\u{26f}' | '\u{272}' | '\u{289}' | '\u{28b}' | '\u{2bb}'
            | '\u{300}'..='\u{36f}' | '\u{1e00}'..='\u{1eff}')
}

/// Returns the matches of a pattern as mentions.
fn matches<'t>(regex: &Regex, text: &'t str) -> Vec<Mention<'t>> {
    let mention = |captures: regex::Captures<'t>| {
        let whole = captures.get_match();
        let handle = captures.get(1).unwrap_or(whole).as_str();
        (!handle.is_empty()).then(|| Mention {
            handle,
            range: whole.range(),
        })
    };
    regex.captures_iter(text).filter_map(mention).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handles(text: &str) -> Vec<&str> {
        MentionRule::twitter()
            .extract(text)
            .iter()
            .map(|mention| mention.handle)
            .collect()
    }

    fn cleaned(text: &str) -> String {
        MentionRule::twitter().cleaned(text)
    }

    #[test]
    fn a_name_is_letters_digits_and_underscores() {
        assert_eq!(
            handles("@bo, @Al_9! and @7 met @__"),
            ["bo", "Al_9", "7", "__"]
        );
        assert_eq!(handles("@ bo, @-bo, @é, @"), [""; 0]);
        assert_eq!(handles("@bo-al's @bo.al @bo/friends"), ["bo", "bo", "bo"]);
    }

    #[test]
    fn a_name_ends_at_fifteen_characters() {
        assert_eq!(handles("@fifteen_letters"), ["fifteen_letters"]);
        assert_eq!(handles("@fifteen_letters_and_on"), ["fifteen_letters"]);
        assert_eq!(handles("@fifteen_lettersé"), [""; 0]);
    }

    #[test]
    fn both_at_signs_count_and_ranges_are_bytes() {
        let mentions: Vec<_> = MentionRule::twitter()
            .extract("é＠bo @al")
            .into_iter()
            .collect();
        let expected = [
            Mention {
                handle: "bo",
                range: 2..7,
            },
            Mention {
                handle: "al",
                range: 8..11,
            },
        ];
        assert_eq!(mentions, expected);
        // The same first byte as the wide at sign: full-width letters, variation selectors.
        assert_eq!(handles("ａ ❤\u{fe0f}＠bo \u{fe0f}@al"), ["bo", "al"]);
    }

    #[test]
    fn the_character_before_decides() {
        for before in ["a", "7", "_", "!", "#", "$", "%", "&", "*", "@", "＠"] {
            assert_eq!(
                handles(&format!("x {before}@bo")),
                [""; 0],
                "after {before}"
            );
        }
        for before in [
            " ", "\n", ".", ",", ":", ";", "(", "\"", "-", "+", "~", "/", "é", "の", "🎉",
        ] {
            assert_eq!(handles(&format!("x {before}@bo")), ["bo"], "after {before}");
        }
    }

    #[test]
    fn the_character_after_decides() {
        for after in ["@", "＠", "@al", "é", "Ž", "ɓ", "\u{301}", "ế", "://al"] {
            assert_eq!(handles(&format!("@bo{after}")), [""; 0], "before {after}");
        }
        for after in [
            "", " ", ":", ":/", "'s", "の", "×", "÷", "ж", "🎉", "…", " é",
        ] {
            assert_eq!(handles(&format!("@bo{after}")), ["bo"], "before {after}");
        }
    }

    #[test]
    fn a_glued_retweet_mark_introduces_a_mention() {
        for text in [
            "RT@bo",
            "rt@bo",
            "so: Rt@bo",
            "の rT@bo",
            "éRT@bo",
            "RT:@bo",
            "rt: @bo",
            "RT @bo",
        ] {
            assert_eq!(handles(text), ["bo"], "{text}");
        }
        for text in [
            "art@bo", "_rt@bo", "1RT@bo", ".rt@bo", "a-rt@bo", "a+rt@bo", "~rt@bo", "t@bo",
            "@rt@bo",
        ] {
            assert_eq!(handles(text), [""; 0], "{text}");
        }
    }

    #[test]
    fn addresses_are_no_mentions() {
        assert_eq!(handles("al@bo.example or al.x+y@bo.example"), [""; 0]);
        assert_eq!(handles("@al wrote to @bo@bo.example"), ["al"]);
    }

    #[test]
    fn at_signs_are_found_at_every_distance() {
        for distance in 0..70 {
            let text = format!("{}@bo", " ".repeat(distance));
            assert_eq!(handles(&text), ["bo"], "{distance}");
            let text = format!("{}の＠bo", "é".repeat(distance));
            assert_eq!(handles(&text), ["bo"], "{distance}");
        }
    }

    #[test]
    fn cleaning_closes_the_gap() {
        assert_eq!(cleaned("@bo hello"), "hello");
        assert_eq!(cleaned("hello @bo"), "hello");
        assert_eq!(cleaned("say @bo hello"), "say hello");
        assert_eq!(cleaned("say\u{3000}@bo\n\n@al\t@cy hello"), "say hello");
        assert_eq!(cleaned("say @bo, hello"), "say , hello");
        assert_eq!(cleaned("say (@bo ) hello"), "say ( ) hello");
        assert_eq!(cleaned("の@boに"), "のに");
        assert_eq!(cleaned(".@bo!@al"), ".!@al");
        assert_eq!(cleaned("RT @bo: hello"), "RT : hello");
    }

    #[test]
    fn cleaning_keeps_the_rest() {
        assert_eq!(cleaned("a  b\n\nc @bo d  e"), "a  b\n\nc d  e");
        assert_eq!(cleaned(" \n a  b\t"), "a  b");
        assert_eq!(cleaned("@bo"), "");
        assert_eq!(cleaned(" @bo @al "), "");
        assert_eq!(cleaned(""), "");
    }

    #[test]
    fn a_text_left_in_one_piece_is_borrowed() {
        let rule = MentionRule::twitter();
        for text in ["hello", "@bo hello", "@bo @al hello @cy"] {
            assert!(
                matches!(rule.extract(text).cleaned(), Cow::Borrowed("hello")),
                "{text}"
            );
        }
        assert!(matches!(rule.extract("a @bo b").cleaned(), Cow::Owned(_)));
    }

    #[test]
    fn a_pattern_takes_what_it_matches() {
        let rule = MentionRule::pattern(r"@(\S+)").unwrap();
        let mentions = rule.extract("al@bo.example: @cy,\n@dé!");
        let found: Vec<_> = mentions
            .iter()
            .map(|m| (m.handle, m.range.clone()))
            .collect();
        assert_eq!(
            found,
            [("bo.example:", 2..14), ("cy,", 15..19), ("dé!", 20..25)]
        );
        assert_eq!(mentions.cleaned(), "al");
    }

    #[test]
    fn a_pattern_without_a_group_takes_the_whole_match() {
        let rule = MentionRule::pattern(r"@\w+|~(\w+)").unwrap();
        assert_eq!(
            rule.extract("@bo ~al")
                .iter()
                .map(|m| m.handle)
                .collect::<Vec<_>>(),
            ["@bo", "al"]
        );
    }

    #[test]
    fn empty_handles_are_no_mentions() {
        assert!(MentionRule::pattern("@*").unwrap().extract("bo").is_empty());
        assert_eq!(
            MentionRule::pattern(r"@(\w*)").unwrap().cleaned("@ @bo @"),
            "@ @"
        );
        assert!(MentionRule::pattern("@(").is_err());
    }

    /// Twitter's rule written down a second time, as the pattern it is usually given as.
    #[test]
    fn the_scan_agrees_with_a_pattern() {
        let pattern = concat!(
            r"(?:^|[^a-zA-Z0-9_!#$%&*@＠]|(?:^|[^a-zA-Z0-9_+~.-])(?i:rt):?)",
            r"[@＠]([a-zA-Z0-9_]{1,15})",
        );
        let reference = Regex::new(pattern).unwrap();
        let parts = [
            "@", "@", "＠", "rt", "RT", "bo", "x", "_", ":", "://", " ", ".", "-", "é", "の", "*",
            "\n",
        ];
        let mut state = 1_u64;
        for _ in 0..20_000 {
            let mut text = String::new();
            for _ in 0..12 {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                text.push_str(parts[(state >> 33) as usize % parts.len()]);
            }
            let expected: Vec<_> = reference
                .captures_iter(&text)
                .filter(|found| may_end(&text[found.get_match().end()..]))
                .map(|found| found.get(1).unwrap().range())
                .collect();
            let found = MentionRule::twitter().extract(&text);
            let found: Vec<_> = found
                .iter()
                .map(|m| m.range.end - m.handle.len()..m.range.end)
                .collect();
            assert_eq!(found, expected, "{text:?}");
        }
    }

    /// A case of Twitter's conformance suite: its name, its text, the names with their place in characters.
    struct Case {
        description: String,
        text: String,
        expected: Vec<(String, Option<usize>)>,
    }

    /// Reads the cases of one section. The suite is YAML, of which it uses little: quoted strings as in
    /// JSON, one key a line.
    fn cases(suite: &str, section: &str) -> Vec<Case> {
        let header = format!("  {section}:");
        let body = suite.lines().skip_while(|line| *line != header).skip(1);
        let mut cases: Vec<Case> = Vec::new();
        for line in body.take_while(|line| line.is_empty() || line.starts_with("   ")) {
            let Some((key, value)) = line.trim_start().trim_start_matches("- ").split_once(": ")
            else {
                continue;
            };
            if key == "description" {
                let description = value.to_string();
                cases.push(Case {
                    description,
                    text: String::new(),
                    expected: Vec::new(),
                });
            }
            let case = cases.last_mut().unwrap();
            match key {
                "text" => case.text = serde_json::from_str(value).unwrap(),
                "screen_name" => case
                    .expected
                    .push((serde_json::from_str(value).unwrap(), None)),
                "expected" => {
                    let names: Vec<String> = serde_json::from_str(value).unwrap();
                    case.expected = names.into_iter().map(|name| (name, None)).collect();
                }
                "indices" => {
                    let [start, _]: [usize; 2] = serde_json::from_str(value).unwrap();
                    case.expected.last_mut().unwrap().1 = Some(start);
                }
                _ => {}
            }
        }
        cases
    }

    #[test]
    fn twitters_own_cases_hold() {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../shared/data/text/twitter-text-conformance/extract.yml"
        );
        let Ok(suite) = std::fs::read_to_string(path) else {
            println!("skipped: Twitter's conformance suite is not at {path}");
            return;
        };
        for (section, least) in [
            ("mentions", 20),
            ("mentions_with_indices", 3),
            ("mentions_or_lists_with_indices", 5),
        ] {
            let cases = cases(&suite, section);
            assert!(
                cases.len() >= least,
                "{section}: read {} cases",
                cases.len()
            );
            for case in cases {
                let mentions = MentionRule::twitter().extract(&case.text);
                assert_eq!(mentions.len(), case.expected.len(), "{}", case.description);
                for (mention, (name, start)) in mentions.iter().zip(&case.expected) {
                    let before = case.text[..mention.range.start].chars().count();
                    assert_eq!(mention.handle, name, "{}", case.description);
                    assert_eq!(start.unwrap_or(before), before, "{}", case.description);
                    assert_eq!(mention.range.len(), name.len() + 1, "{}", case.description);
                }
            }
        }
    }
}
