//! Columns of the source that no row type asks for, kept beside those that it does.
//!
//! They are texts by name, in one JSON object whose names are sorted, so that equal columns are equal
//! texts. Nulls are left out: a column that is null and one that a row does not have are the same. `null`
//! stands for a value that was not sent.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use crate::change::Text;

/// How many further columns there may be.
pub(super) const MOST: usize = 1_000;

/// Columns with their texts, as a message tells them.
pub(super) type Columns<'a> = Vec<(Cow<'a, str>, Cow<'a, str>)>;

/// Columns with their texts; none for one that was not sent.
type ByName<'a> = BTreeMap<Cow<'a, str>, Option<Cow<'a, str>>>;

/// The names of further columns that have been met, for all who show them.
#[derive(Debug, Default)]
pub struct FurtherNames(Mutex<BTreeSet<String>>);

impl FurtherNames {
    /// Takes note of names, as they are written in columns.
    pub fn meet(&self, names: impl IntoIterator<Item = String>) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.extend(names);
    }

    /// Takes note of a row's names, unless that would make too many: a table has few, but an object whose names are
    /// data has ever more.
    ///
    /// # Errors
    /// Tells the first that is too many; none is noted then.
    pub fn admit(&self, names: BTreeSet<String>) -> Result<(), String> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let new: Vec<_> = names.difference(&known).cloned().collect();
        match new.get(MOST.saturating_sub(known.len())) {
            Some(name) => Err(name.clone()),
            None => {
                known.extend(new);
                Ok(())
            }
        }
    }

    /// All names, sorted.
    pub fn all(&self) -> Vec<String> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.iter().cloned().collect()
    }
}

/// How a column of the source is called among others of these names: in lower case, with `_` for
/// characters that tables cannot have in names, and with `source_` before it if the name is taken.
pub(super) fn column_name<'n>(name: &'n str, taken: &[&str]) -> Cow<'n, str> {
    let plain = |character: char| {
        character == '_' || character.is_ascii_digit() || character.is_lowercase()
    };
    let name = match name.chars().all(plain) {
        true => Cow::Borrowed(name),
        false => {
            let lower = name.to_lowercase();
            let written = |character: char| match character.is_alphanumeric() {
                true => character,
                false => '_',
            };
            Cow::Owned(lower.chars().map(written).collect())
        }
    };
    match taken.contains(&&*name) {
        true => Cow::Owned(format!("source_{name}")),
        false => name,
    }
}

/// What stands for a value that was not sent, in each of the types that may be large.
#[derive(Debug)]
pub(super) struct Placeholders([String; 3]);

impl Placeholders {
    pub(super) fn new(text: &str) -> Self {
        let array = serde_json::Value::from(vec![text]).to_string();
        Self([text.to_owned(), array, BASE64_STANDARD.encode(text)])
    }

    fn are(&self, text: &str) -> bool {
        self.0.iter().any(|placeholder| placeholder == text)
    }
}

/// The columns as one text, and the first whose value was not sent, if there is one; no text if there are none.
pub(super) fn one_text(
    columns: Columns<'_>,
    taken: &[&str],
    placeholders: &Placeholders,
) -> (Option<Text>, Option<String>) {
    let mut not_sent = None;
    let mut by_name = BTreeMap::new();
    for (name, text) in &columns {
        let sent = !placeholders.are(text);
        if !sent {
            not_sent.get_or_insert_with(|| name.to_string());
        }
        by_name.insert(column_name(name, taken), sent.then_some(&**text));
    }
    (written(&by_name), not_sent)
}

fn written<T: serde::Serialize>(columns: &BTreeMap<Cow<'_, str>, T>) -> Option<Text> {
    // Texts by text are always written.
    let text = serde_json::to_string(columns).unwrap_or_default();
    (!columns.is_empty()).then(|| text.into())
}

/// The columns with what was not sent as it was before.
pub fn completed(columns: &str, older: Option<&str>) -> Option<Text> {
    let older = by_name(older.unwrap_or("{}"));
    let mut columns = by_name(columns);
    columns.retain(|name, text| {
        let earlier = || older.get(name).cloned().flatten();
        *text = text.take().or_else(earlier);
        text.is_some()
    });
    written(&columns)
}

fn by_name(columns: &str) -> ByName<'_> {
    serde_json::from_str(columns).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_made_fit_for_tables() {
        let taken = ["key", "text"];
        for (name, written) in [
            ("lang", "lang"),
            ("größe", "größe"),
            ("Mixed Case", "mixed_case"),
            ("a,b;c", "a_b_c"),
            ("key", "source_key"),
            ("Text", "source_text"),
        ] {
            assert_eq!(column_name(name, &taken), written);
        }
    }

    #[test]
    fn names_that_are_too_many_are_not_noted() {
        let known = FurtherNames::default();
        let names = |range: std::ops::Range<usize>| range.map(|n| format!("c{n:04}")).collect();
        assert_eq!(known.admit(names(0..999)), Ok(()));
        assert_eq!(known.admit(names(998..1_001)), Err("c1000".to_owned()));
        assert_eq!(known.admit(names(990..1_000)), Ok(()));
        assert_eq!(known.admit(names(0..1_000)), Ok(()));
        assert_eq!(known.all().len(), MOST);
    }

    #[test]
    fn what_was_not_sent_is_as_it_was() {
        let told = |columns: &[(&'static str, &'static str)]| {
            let columns = columns
                .iter()
                .map(|(name, text)| ((*name).into(), (*text).into()));
            one_text(columns.collect(), &[], &Placeholders::new("?"))
        };
        let (older, sent) = told(&[("b", "2"), ("a", "\"1\"")]);
        assert_eq!(older.as_deref(), Some(r#"{"a":"\"1\"","b":"2"}"#));
        assert_eq!(sent, None);
        let (newer, not_sent) = told(&[("b", "[\"?\"]"), ("c", "Pw==")]);
        assert_eq!(newer.as_deref(), Some(r#"{"b":null,"c":null}"#));
        assert_eq!(not_sent.as_deref(), Some("b"));
        let both = completed(&newer.unwrap(), older.as_deref());
        assert_eq!(both.as_deref(), Some(r#"{"b":"2"}"#));
        assert_eq!(completed(r#"{"c":null}"#, None), None);
        assert_eq!(told(&[]), (None, None));
    }
}
