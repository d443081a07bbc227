//! Reads the dates that tweets carry into microseconds since 1970 in UTC.
//!
//! Two families are understood, and nothing else is guessed at:
//!
//! | form | examples |
//! |---|---|
//! | `EEE MMM dd HH:mm:ss z yyyy` | `Mon Apr 06 22:19:45 PDT 2009`, `Tue Oct 18 21:53:25 +0000 2011` |
//! | RFC 3339, with its usual liberties | `2015-02-24T19:35:52.5Z`, `2015-02-24 11:35:52 -0800`, `2015-02-24Z` |
//!
//! A date without a zone is refused, since it names no instant, and so is `8/3/2020 6:18`, which is
//! August to some and March to others.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What a date counts that is a number, since 1970.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum DateUnit {
    /// Seconds.
    Seconds,
    /// Milliseconds.
    Milliseconds,
    /// Microseconds.
    Microseconds,
    /// Nanoseconds.
    Nanoseconds,
    /// Days.
    Days,
}

impl DateUnit {
    const ALL: [Self; 5] = [
        Self::Seconds,
        Self::Milliseconds,
        Self::Microseconds,
        Self::Nanoseconds,
        Self::Days,
    ];

    /// The unit of a name, as a configuration writes it.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|unit| unit.name() == name)
    }

    /// The name, as a configuration writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Seconds => "seconds",
            Self::Milliseconds => "milliseconds",
            Self::Microseconds => "microseconds",
            Self::Nanoseconds => "nanoseconds",
            Self::Days => "days",
        }
    }

    /// The unit by which such a count lies in the years 1990 to 2100; no two units share one.
    ///
    /// ```
    /// use dataflows::pipelines::mentions::date::DateUnit;
    /// assert_eq!(DateUnit::likely(14_340), Some(DateUnit::Days));
    /// assert_eq!(DateUnit::likely(1_239_056_385_000), Some(DateUnit::Milliseconds));
    /// assert_eq!(DateUnit::likely(7), None);
    /// ```
    pub fn likely(count: i64) -> Option<Self> {
        let ours = 631_152_000_000_000..4_102_444_800_000_000;
        let fits = |unit: &Self| {
            unit.microseconds(count)
                .is_some_and(|time| ours.contains(&time))
        };
        Self::ALL.into_iter().find(fits)
    }

    /// So many of them in microseconds, rounded down; `None` beyond what 64 bits hold.
    ///
    /// ```
    /// use dataflows::pipelines::mentions::date::DateUnit;
    /// assert_eq!(DateUnit::Seconds.microseconds(3), Some(3_000_000));
    /// assert_eq!(DateUnit::Nanoseconds.microseconds(-1), Some(-1));
    /// // What Debezium sends for PostgreSQL's infinity is no time.
    /// assert_eq!(DateUnit::Milliseconds.microseconds(i64::MAX), None);
    /// ```
    pub fn microseconds(self, count: i64) -> Option<i64> {
        match self {
            Self::Seconds => count.checked_mul(1_000_000),
            Self::Milliseconds => count.checked_mul(1_000),
            Self::Microseconds => Some(count),
            Self::Nanoseconds => Some(count.div_euclid(1_000)),
            Self::Days => count.checked_mul(SECONDS_PER_DAY * 1_000_000),
        }
    }
}

const SECONDS_PER_DAY: i64 = 86_400;

const WEEKDAYS: [&[u8; 3]; 7] = [b"Mon", b"Tue", b"Wed", b"Thu", b"Fri", b"Sat", b"Sun"];

const MONTHS: [&[u8; 3]; 12] = [
    b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec",
];

/// Zone names and their minutes east of Greenwich, the ones of most tweets first.
///
/// Some abbreviations are shared. Those of the United States and Europe win, as in most parsers: `CST`
/// is Chicago and not Beijing, `BST` British summer and not Bangladesh, `AST` Halifax and not Riyadh.
/// `IST` is India, the largest of its three.
const ZONES: [(&[u8], i64); 49] = [
    (b"PDT", -420),
    (b"UTC", 0),
    (b"PST", -480),
    (b"GMT", 0),
    (b"EST", -300),
    (b"EDT", -240),
    (b"CST", -360),
    (b"CDT", -300),
    (b"MST", -420),
    (b"MDT", -360),
    (b"BST", 60),
    (b"CET", 60),
    (b"CEST", 120),
    (b"JST", 540),
    (b"IST", 330),
    (b"UT", 0),
    (b"Z", 0),
    (b"AKST", -540),
    (b"AKDT", -480),
    (b"HST", -600),
    (b"AST", -240),
    (b"ADT", -180),
    (b"NST", -210),
    (b"NDT", -150),
    (b"BRT", -180),
    (b"ART", -180),
    (b"CLT", -240),
    (b"CLST", -180),
    (b"COT", -300),
    (b"PET", -300),
    (b"WET", 0),
    (b"WEST", 60),
    (b"EET", 120),
    (b"EEST", 180),
    (b"MSK", 180),
    (b"TRT", 180),
    (b"SAST", 120),
    (b"WAT", 60),
    (b"CAT", 120),
    (b"EAT", 180),
    (b"PKT", 300),
    (b"WIB", 420),
    (b"HKT", 480),
    (b"SGT", 480),
    (b"KST", 540),
    (b"AWST", 480),
    (b"ACST", 570),
    (b"AEST", 600),
    (b"AEDT", 660),
];

/// Why a text is not a date; printed, it says what was expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum DateError {
    /// The text is empty or blank.
    Empty,
    /// The text has none of the understood shapes.
    Form,
    /// The order of day and month cannot be told.
    Ambiguous,
    /// The text begins with a word that is no weekday.
    Weekday,
    /// There is no such month.
    Month,
    /// The month has no such day.
    Day,
    /// The time of day is missing or out of range.
    Time,
    /// The year is not of four digits.
    Year,
    /// The zone is unknown or its offset out of range.
    Zone,
    /// There is no zone.
    NoZone,
    /// Something follows the date.
    Trailing,
}

impl fmt::Display for DateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DateError::Empty => "expected a date, found an empty text",
            DateError::Form => {
                "expected a date such as \"Mon Apr 06 22:19:45 PDT 2009\" or \"2009-04-06T22:19:45-07:00\""
            }
            DateError::Ambiguous => "expected the month as a name or the year first, day and month cannot be told apart",
            DateError::Weekday => "expected a weekday from \"Mon\" to \"Sun\"",
            DateError::Month => "expected a month from \"Jan\" to \"Dec\", or from 01 to 12",
            DateError::Day => "expected a day that the month has",
            DateError::Time => "expected a time of day from 00:00:00 to 23:59:59",
            DateError::Year => "expected a year of four digits",
            DateError::Zone => "expected a zone such as \"PDT\", \"UTC\", \"Z\" or \"-07:00\"",
            DateError::NoZone => "expected a zone, without one the date names no instant",
            DateError::Trailing => "expected nothing after the date",
        })
    }
}

impl std::error::Error for DateError {}

/// Returns the instant a date names, in microseconds since 1970-01-01 00:00 UTC.
///
/// - Names of weekdays, months and zones may come in any casing. The weekday must be one, but need not
///   be that of the date.
/// - An offset is `±hh:mm`, `±hhmm` or `±hh`, at most 23:59 either way; `GMT+2` style prefixes are
///   allowed before it. Which of several regions an abbreviation means is fixed, see the source.
/// - Only the numeric form takes a fraction (digits past the sixth are dropped) and the leap second
///   `:60`, which counts as the second after it.
/// - Years are 0000 to 9999 in the proleptic Gregorian calendar. Blanks around the date are ignored.
///
/// ```
/// use dataflows::pipelines::mentions::date::{DateError, parse_date};
///
/// assert_eq!(parse_date("Mon Apr 06 22:19:45 PDT 2009"), Ok(1_239_081_585_000_000));
/// assert_eq!(parse_date("2009-04-07T05:19:45.25Z"), Ok(1_239_081_585_250_000));
/// assert_eq!(parse_date("2009-04-07Z"), Ok(1_239_062_400_000_000));
/// assert_eq!(parse_date("2009-04-07T05:19:45"), Err(DateError::NoZone));
/// assert_eq!(parse_date("8/3/2020 6:18"), Err(DateError::Ambiguous));
/// ```
pub fn parse_date(text: &str) -> Result<i64, DateError> {
    let mut cursor = Cursor {
        rest: text.as_bytes().trim_ascii(),
    };
    let micros = match cursor.rest.first() {
        None => return Err(DateError::Empty),
        Some(byte) if byte.is_ascii_digit() => numeric(&mut cursor)?,
        Some(_) => named(&mut cursor)?,
    };
    if cursor.rest.is_empty() {
        Ok(micros)
    } else {
        Err(DateError::Trailing)
    }
}

/// Reads `EEE MMM dd HH:mm:ss z yyyy`.
fn named(cursor: &mut Cursor<'_>) -> Result<i64, DateError> {
    let weekday = cursor.word();
    if !weekday.first().is_some_and(u8::is_ascii_alphabetic) {
        return Err(DateError::Form);
    }
    index_of(&WEEKDAYS, weekday).ok_or(DateError::Weekday)?;
    cursor.blanks();
    let month = index_of(&MONTHS, cursor.word()).ok_or(DateError::Month)? + 1;
    cursor.blanks();
    let day = cursor.number(1..=2).ok_or(DateError::Day)?;
    if !cursor.blanks() {
        return Err(DateError::Day);
    }
    let seconds = cursor.time()?;
    if seconds.leap || !cursor.blanks() {
        return Err(DateError::Time);
    }
    let zone = cursor.word();
    // The zone left out: the year stands in its place.
    if zone.len() == 4 && zone.iter().all(u8::is_ascii_digit) && cursor.rest.is_empty() {
        return Err(DateError::NoZone);
    }
    let offset = zone_seconds(zone)?;
    cursor.blanks();
    let year = cursor.number(4..=4).ok_or(DateError::Year)?;
    let days = days_of(year, month, day)?;
    Ok((days * SECONDS_PER_DAY + seconds.of_day - offset) * 1_000_000)
}

/// Reads RFC 3339: `yyyy-MM-dd`, `T` or a blank, `HH:mm:ss`, a fraction perhaps, and the zone; or
/// `yyyy-MM-ddZ`, as XML Schema writes a day.
fn numeric(cursor: &mut Cursor<'_>) -> Result<i64, DateError> {
    let Some(year) = cursor.number(4..=4).filter(|_| cursor.eat(b'-')) else {
        return Err(if short_number_first(cursor.rest) {
            DateError::Ambiguous
        } else {
            DateError::Form
        });
    };
    let month = cursor.number(2..=2).ok_or(DateError::Month)?;
    if !cursor.eat(b'-') {
        return Err(DateError::Form);
    }
    let day = cursor.number(2..=2).ok_or(DateError::Day)?;
    let days = days_of(year, month, day)?;
    if let [b'Z' | b'z'] = cursor.rest {
        // A day as a whole, which begins at midnight.
        cursor.rest = &[];
        return Ok(days * SECONDS_PER_DAY * 1_000_000);
    }
    if !(cursor.eat(b'T') || cursor.eat(b't') || cursor.blanks()) {
        return Err(DateError::Time);
    }
    let seconds = cursor.time()?;
    let micros = cursor.fraction()?;
    cursor.blanks();
    let offset = match cursor.word() {
        [] => return Err(DateError::NoZone),
        zone => zone_seconds(zone)?,
    };
    Ok((days * SECONDS_PER_DAY + seconds.of_day - offset) * 1_000_000 + micros)
}

/// Returns true for the start of `8/3/2020`, `08-03-20` or `8.3.2020`.
fn short_number_first(bytes: &[u8]) -> bool {
    let digits = bytes
        .iter()
        .take_while(|byte| byte.is_ascii_digit())
        .count();
    digits <= 2 && matches!(bytes.get(digits), Some(b'/' | b'-' | b'.'))
}

/// Returns the place of a three-letter name, in any casing.
fn index_of(names: &[&[u8; 3]], word: &[u8]) -> Option<i64> {
    let place = names
        .iter()
        .position(|name| word.eq_ignore_ascii_case(*name))?;
    i64::try_from(place).ok()
}

/// Returns the seconds that a zone, by name or by offset, is ahead of UTC.
fn zone_seconds(zone: &[u8]) -> Result<i64, DateError> {
    let named = ZONES
        .iter()
        .find(|(name, _)| zone.eq_ignore_ascii_case(name));
    if let Some((_, minutes)) = named {
        return Ok(minutes * 60);
    }
    let signed = match zone.split_first_chunk::<3>() {
        Some((prefix, signed))
            if prefix.eq_ignore_ascii_case(b"GMT") || prefix.eq_ignore_ascii_case(b"UTC") =>
        {
            signed
        }
        _ => zone,
    };
    offset_seconds(signed).ok_or(DateError::Zone)
}

/// Returns the seconds of `±hh:mm`, `±hhmm` or `±hh`.
fn offset_seconds(signed: &[u8]) -> Option<i64> {
    let (sign, digits) = signed.split_first()?;
    let sign = match sign {
        b'+' => 1,
        b'-' => -1,
        _ => return None,
    };
    let mut cursor = Cursor { rest: digits };
    let hours = cursor.number(1..=2)?;
    let minutes = match cursor.rest {
        [] => 0,
        _ => {
            cursor.eat(b':');
            cursor.number(2..=2)?
        }
    };
    (hours < 24 && minutes < 60 && cursor.rest.is_empty())
        .then_some(sign * (hours * 60 + minutes) * 60)
}

/// Returns the days from 1970-01-01 to a date, or says which part of the date does not exist.
fn days_of(year: i64, month: i64, day: i64) -> Result<i64, DateError> {
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let length = match month {
        4 | 6 | 9 | 11 => 30,
        2 if leap => 29,
        2 => 28,
        1..=12 => 31,
        _ => return Err(DateError::Month),
    };
    if day < 1 || day > length {
        return Err(DateError::Day);
    }
    Ok(days_from_civil(year, month, day))
}

/// Returns the days from 1970-01-01 to a date of the Gregorian calendar.
///
/// This is `days_from_civil` of Howard Hinnant's "chrono-Compatible Low-Level Date Algorithms"
/// (<https://howardhinnant.github.io/date_algorithms.html>): years begin in March, so that the leap day
/// comes last, and are counted within eras of 400 years, all of one length.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

/// A time of day.
struct Time {
    of_day: i64,
    /// Whether the second was written as 60.
    leap: bool,
}

/// What is left to read. A method that fails may have read a part.
struct Cursor<'t> {
    rest: &'t [u8],
}

impl<'t> Cursor<'t> {
    /// Skips one expected byte; returns whether it was there.
    fn eat(&mut self, byte: u8) -> bool {
        let Some(rest) = self.rest.strip_prefix(&[byte]) else {
            return false;
        };
        self.rest = rest;
        true
    }

    /// Skips blanks; returns whether there were any.
    fn blanks(&mut self) -> bool {
        let before = self.rest.len();
        self.rest = self.rest.trim_ascii_start();
        self.rest.len() < before
    }

    /// Returns everything up to the next blank.
    fn word(&mut self) -> &'t [u8] {
        let end = self
            .rest
            .iter()
            .position(u8::is_ascii_whitespace)
            .unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        word
    }

    /// Returns the number made of as many of the coming digits as `width` allows; reads nothing otherwise.
    fn number(&mut self, width: std::ops::RangeInclusive<usize>) -> Option<i64> {
        let digits = self
            .rest
            .iter()
            .take(*width.end())
            .take_while(|byte| byte.is_ascii_digit())
            .count();
        if !width.contains(&digits) {
            return None;
        }
        let (digits, rest) = self.rest.split_at(digits);
        self.rest = rest;
        Some(
            digits
                .iter()
                .fold(0, |number, digit| number * 10 + i64::from(digit - b'0')),
        )
    }

    /// Returns the time of `HH:mm:ss`.
    fn time(&mut self) -> Result<Time, DateError> {
        let (hour, minute, second) = self.clock().ok_or(DateError::Time)?;
        if hour > 23 || minute > 59 || second > 60 {
            return Err(DateError::Time);
        }
        Ok(Time {
            of_day: hour * 3_600 + minute * 60 + second,
            leap: second == 60,
        })
    }

    fn clock(&mut self) -> Option<(i64, i64, i64)> {
        let hour = self.number(2..=2).filter(|_| self.eat(b':'))?;
        let minute = self.number(2..=2).filter(|_| self.eat(b':'))?;
        Some((hour, minute, self.number(2..=2)?))
    }

    /// Returns the microseconds of a fraction such as `.25`; 0 when there is none.
    fn fraction(&mut self) -> Result<i64, DateError> {
        if !self.eat(b'.') {
            return Ok(0);
        }
        let length = self
            .rest
            .iter()
            .take_while(|byte| byte.is_ascii_digit())
            .count();
        if length == 0 {
            return Err(DateError::Time);
        }
        let (digits, rest) = self.rest.split_at(length);
        self.rest = rest;
        let padded = digits.iter().chain(std::iter::repeat(&b'0')).take(6);
        Ok(padded.fold(0, |micros, digit| micros * 10 + i64::from(digit - b'0')))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::{DateTime, FixedOffset, NaiveDate, TimeZone, Utc};

    /// A repeatable stream of numbers, enough to pick instants with.
    struct Draws(u64);

    impl Draws {
        fn below(&mut self, limit: u64) -> u64 {
            self.0 = self
                .0
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 20) % limit
        }

        /// An instant between the years 1 and 9998, in microseconds.
        fn instant(&mut self) -> i64 {
            let first = -62_135_596_800_i64;
            let second = first + i64::try_from(self.below(315_537_897_599 - 86_400 * 366)).unwrap();
            second * 1_000_000 + i64::try_from(self.below(1_000_000)).unwrap()
        }
    }

    fn utc(
        year: i32,
        month: u32,
        day: u32,
        hour: u32,
        minute: u32,
        second: u32,
    ) -> Result<i64, DateError> {
        Ok(Utc
            .with_ymd_and_hms(year, month, day, hour, minute, second)
            .unwrap()
            .timestamp_micros())
    }

    #[test]
    fn both_forms_name_the_same_instant() {
        let expected = utc(2009, 4, 7, 5, 19, 45);
        for text in [
            "Mon Apr 06 22:19:45 PDT 2009",
            "Mon Apr 6 22:19:45 PDT 2009",
            "Mon Apr  6 22:19:45 PDT 2009",
            "mon APR 06 22:19:45 pdt 2009",
            " Tue Apr 07 05:19:45 UTC 2009\n",
            "Tue Apr 07 05:19:45 +0000 2009",
            "Tue Apr 07 07:19:45 +02:00 2009",
            "Tue Apr 07 07:19:45 GMT+02:00 2009",
            "Tue Apr 07 05:19:45 Z 2009",
            "2009-04-07T05:19:45Z",
            "2009-04-07t05:19:45z",
            "2009-04-07 05:19:45.000 UTC",
            "2009-04-06 22:19:45 -0700",
            "2009-04-06T22:19:45-07:00",
            "2009-04-06 22:19:45-07",
            "2009-04-06 22:19:45 PDT",
        ] {
            assert_eq!(parse_date(text), expected, "{text}");
        }
    }

    #[test]
    fn zones_are_ahead_of_greenwich_by_their_minutes() {
        for (zone, hour, minute) in [
            ("EST", 17, 0),
            ("EDT", 16, 0),
            ("CST", 18, 0),
            ("CDT", 17, 0),
            ("MST", 19, 0),
            ("MDT", 18, 0),
            ("PST", 20, 0),
            ("BST", 11, 0),
            ("CET", 11, 0),
            ("CEST", 10, 0),
            ("JST", 3, 0),
            ("IST", 6, 30),
            ("GMT", 12, 0),
        ] {
            let text = format!("Wed Jul 01 12:00:00 {zone} 2009");
            assert_eq!(
                parse_date(&text),
                utc(2009, 7, 1, hour, minute, 0),
                "{text}"
            );
        }
    }

    #[test]
    fn zone_names_are_distinct_and_real_offsets() {
        for (place, (name, minutes)) in ZONES.iter().enumerate() {
            assert!(
                !ZONES[..place].iter().any(|(other, _)| other == name),
                "{name:?}"
            );
            assert!(minutes.abs() <= 14 * 60 && minutes % 30 == 0, "{name:?}");
        }
    }

    #[test]
    fn the_weekday_need_not_fit() {
        assert_eq!(
            parse_date("Sun Apr 06 22:19:45 PDT 2009"),
            parse_date("Mon Apr 06 22:19:45 PDT 2009")
        );
        assert_eq!(
            parse_date("Xyz Apr 06 22:19:45 PDT 2009"),
            Err(DateError::Weekday)
        );
    }

    #[test]
    fn fractions_are_cut_to_microseconds() {
        let second = utc(1969, 12, 31, 23, 59, 58).unwrap();
        for (fraction, micros) in [
            (".5", 500_000),
            (".000001", 1),
            (".1234567", 123_456),
            (".9999999999", 999_999),
        ] {
            let text = format!("1969-12-31T23:59:58{fraction}Z");
            assert_eq!(parse_date(&text), Ok(second + micros), "{text}");
        }
        assert_eq!(parse_date("1969-12-31T23:59:58.Z"), Err(DateError::Time));
    }

    #[test]
    fn a_leap_second_is_the_second_after() {
        assert_eq!(parse_date("2016-12-31T23:59:60Z"), utc(2017, 1, 1, 0, 0, 0));
        assert_eq!(
            parse_date("2016-12-31T15:59:60.5-08:00"),
            utc(2017, 1, 1, 0, 0, 0).map(|at| at + 500_000)
        );
        assert_eq!(
            parse_date("Sat Dec 31 23:59:60 UTC 2016"),
            Err(DateError::Time)
        );
        assert_eq!(parse_date("2016-12-31T23:59:61Z"), Err(DateError::Time));
    }

    #[test]
    fn what_is_no_date_is_refused_with_its_reason() {
        use DateError::*;
        for (text, reason) in [
            ("", Empty),
            (" \t", Empty),
            ("yesterday", Weekday),
            ("-1", Form),
            ("é", Form),
            ("1239081585", Form),
            ("20090406T221945Z", Form),
            ("8/3/2020 6:18", Ambiguous),
            ("08-03-2020 06:18:00Z", Ambiguous),
            ("8.3.2020", Ambiguous),
            ("Mon", Month),
            ("Mon Foo 06 22:19:45 PDT 2009", Month),
            ("Monday April 06 22:19:45 PDT 2009", Weekday),
            ("Mon Apr", Day),
            ("Mon Apr 31 22:19:45 PDT 2009", Day),
            ("Mon Apr 006 22:19:45 PDT 2009", Day),
            ("Mon Apr 06", Day),
            ("Mon Apr 06 22:19 PDT 2009", Time),
            ("Mon Apr 06 24:00:00 PDT 2009", Time),
            ("Mon Apr 06 22:60:00 PDT 2009", Time),
            ("Mon Apr 06 22:19:45 2009", NoZone),
            ("Mon Apr 06 22:19:45 XXT 2009", Zone),
            ("Mon Apr 06 22:19:45 +2400 2009", Zone),
            ("Mon Apr 06 22:19:45 PDT", Year),
            ("Mon Apr 06 22:19:45 PDT 09", Year),
            ("Mon Apr 06 22:19:45 PDT 20090", Trailing),
            ("Mon Apr 06 22:19:45 PDT 2009 at home", Trailing),
            ("2015-02-24", Time),
            ("2015-02-24T11:35Z", Time),
            ("2015-02-24T11:35:52", NoZone),
            ("2015-02-24 11:35:52.25", NoZone),
            ("2015-02-24T11:35:52+1:60", Zone),
            ("2015-02-24T11:35:52+12:", Zone),
            ("2015-02-24T11:35:52+", Zone),
            ("2015-02-24T24:00:00Z", Time),
            ("2015-02-29T11:35:52Z", Day),
            ("2015-02-00T11:35:52Z", Day),
            ("2015-13-24T11:35:52Z", Month),
            ("2015-00-24T11:35:52Z", Month),
            ("2015-02-24T11:35:52Z Z", Trailing),
        ] {
            assert_eq!(parse_date(text), Err(reason), "{text:?}");
        }
    }

    #[test]
    fn reasons_say_what_was_expected() {
        assert_eq!(
            DateError::Day.to_string(),
            "expected a day that the month has"
        );
        assert!(
            DateError::Form
                .to_string()
                .starts_with("expected a date such as")
        );
    }

    #[test]
    fn days_exist_exactly_where_chrono_says() {
        for year in [
            0, 1, 1600, 1899, 1900, 1970, 1999, 2000, 2004, 2009, 2100, 9999,
        ] {
            for (month, day) in (0..=13).flat_map(|month| (0..=32).map(move |day| (month, day))) {
                let epoch = NaiveDate::from_ymd_opt(1970, 1, 1).unwrap();
                let expected =
                    NaiveDate::from_ymd_opt(year, month, day).map(|date| (date - epoch).num_days());
                let found = days_of(i64::from(year), i64::from(month), i64::from(day)).ok();
                assert_eq!(found, expected, "{year}-{month}-{day}");
            }
        }
    }

    #[test]
    fn what_chrono_writes_is_read_back() {
        let mut draws = Draws(7);
        for _ in 0..20_000 {
            let micros = draws.instant();
            let minutes = i32::try_from(draws.below(2 * 14 * 60)).unwrap() - 14 * 60;
            let zone = FixedOffset::east_opt(minutes * 60).unwrap();
            let at = DateTime::from_timestamp_micros(micros)
                .unwrap()
                .with_timezone(&zone);
            let whole = Ok(micros.div_euclid(1_000_000) * 1_000_000);
            for (format, expected) in [
                ("%Y-%m-%dT%H:%M:%S%.6f%:z", Ok(micros)),
                ("%Y-%m-%d %H:%M:%S%.9f %z", Ok(micros)),
                ("%Y-%m-%d %H:%M:%S %z", whole),
                ("%a %b %d %H:%M:%S %z %Y", whole),
                ("%a %b %e %H:%M:%S %:z %Y", whole),
            ] {
                let text = at.format(format).to_string();
                assert_eq!(parse_date(&text), expected, "{text}");
            }
        }
    }

    #[test]
    fn no_text_makes_it_panic() {
        let (mut draws, alphabet) = (Draws(11), b"0123456789:-+.TZ /MonAprPDT\xE9");
        let seeds = [
            "Mon Apr 06 22:19:45 PDT 2009",
            "2015-02-24T11:35:52.123+05:30",
        ];
        for round in 0..50_000 {
            let mut bytes = seeds[round % 2].as_bytes().to_vec();
            for _ in 0..=draws.below(3) {
                let place = draws.below(bytes.len() as u64) as usize;
                let letter = alphabet[draws.below(alphabet.len() as u64) as usize];
                if draws.below(2) == 0 {
                    bytes[place] = letter;
                } else {
                    bytes.truncate(place + 1);
                }
            }
            let _ = parse_date(&String::from_utf8_lossy(&bytes));
        }
    }
}
