//! What a manifest says, and what a restart has to do with what it finds; decisions only.
//!
//! 1. Data files are written; nothing refers to them yet.
//! 2. The manifest appears, at once and whole, if there is none of its number. **This commits.**
//! 3. Each table's log is told its part, in one version that carries the epoch.
//!
//! A crash before 2 leaves files that nothing refers to. A crash after 2 leaves tables that have not
//! heard; [`recover`] finds them by the epoch that their logs carry, and they are told again.
//!
//! Manifests are numbered without gaps, so of two writers that know the same last manifest only one
//! can commit the next. Whoever starts to write puts a manifest that changes nothing: from then on
//! a writer that was thought dead finds its next number taken, however late it wakes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// The form of manifests that this program writes and reads.
pub const FORMAT: u32 = 2;

/// One checkpoint: its epoch, where the sources continue, and what the tables' logs must say.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Always [`FORMAT`].
    pub format: u32,
    /// The pipeline whose state this is.
    pub pipeline: String,
    /// Who put it; see [`super::lease::Lease`].
    pub writer: String,
    /// The state includes every change at or before this epoch, and nothing later.
    pub epoch: u64,
    /// The next offset of every partition ever read, by `topic/partition`.
    pub positions: BTreeMap<String, i64>,
    /// When the last message before such an offset was written, in milliseconds since 1970, where that is known.
    #[serde(default)]
    pub last_written: BTreeMap<String, i64>,
    /// The epoch that every table's log carried before this checkpoint; a table that no checkpoint
    /// had changed is absent.
    pub before: BTreeMap<String, u64>,
    /// What each changed table's log must say, in Delta's own words, by relation.
    pub changes: BTreeMap<String, Vec<Box<RawValue>>>,
}

/// What is not as any run could have left it.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
pub enum Refusal {
    /// A table carries a later epoch than the last manifest.
    #[error(
        "table \"{relation}\" holds the checkpoint of epoch {table}, but the last manifest is of \
         {manifest}: manifests are missing from \"_assay/manifests\"; restore them, or use another \
         folder for the tables"
    )]
    TableAhead {
        /// The table's relation.
        relation: String,
        /// The epoch that its log carries.
        table: i64,
        /// The last manifest's epoch, or 0 if there is none.
        manifest: u64,
    },
    /// A table does not carry the epoch that the checkpoints gave it.
    #[error(
        "table \"{relation}\" is not as the last checkpoint left it: was its folder removed or taken \
         from a backup? Restore it, or remove all tables to read the source from its beginning"
    )]
    TableLost {
        /// The table's relation.
        relation: String,
    },
    /// The folder belongs to another pipeline.
    #[error("the tables belong to pipeline \"{found}\", not \"{wanted}\"; use another folder")]
    OtherPipeline {
        /// Whose they are.
        found: String,
        /// Whose they should be.
        wanted: String,
    },
    /// Another version of the program wrote the manifest.
    #[error(
        "the last manifest has format {0}, this program reads format {FORMAT}; use the program that \
         wrote it, or another folder for the tables"
    )]
    Format(u32),
}

/// Returns the relations whose tables have not heard of the last manifest.
///
/// `applied` says for every table which epoch its log carries.
///
/// # Errors
/// If tables and manifest cannot be of the same history.
pub fn recover(
    pipeline: &str,
    last: Option<&Manifest>,
    applied: &BTreeMap<String, Option<i64>>,
) -> Result<Vec<String>, Refusal> {
    if let Some(last) = last {
        if last.format != FORMAT {
            return Err(Refusal::Format(last.format));
        }
        if last.pipeline != pipeline {
            let (found, wanted) = (last.pipeline.clone(), pipeline.to_owned());
            return Err(Refusal::OtherPipeline { found, wanted });
        }
    }
    let epoch = last.map_or(0, |manifest| manifest.epoch);
    let mut behind = Vec::new();
    for (relation, table) in applied {
        let table = table.unwrap_or(0);
        if table > epoch as i64 {
            let relation = relation.clone();
            return Err(Refusal::TableAhead {
                relation,
                table,
                manifest: epoch,
            });
        }
        let Some(last) = last else { continue };
        let before = last.before.get(relation).map_or(0, |epoch| *epoch as i64);
        let changed = last.changes.contains_key(relation);
        if changed && table == before {
            behind.push(relation.clone());
        } else if table != if changed { epoch as i64 } else { before } {
            return Err(Refusal::TableLost {
                relation: relation.clone(),
            });
        }
    }
    Ok(behind)
}

/// The name under which a table's log carries the epochs of a pipeline.
pub fn application(pipeline: &str, relation: &str) -> String {
    format!("{pipeline}/{relation}")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn manifest(epoch: u64, before: &[(&str, u64)], changed: &[&str]) -> Manifest {
        Manifest {
            format: FORMAT,
            pipeline: "mentions".to_owned(),
            writer: String::new(),
            epoch,
            positions: BTreeMap::new(),
            last_written: BTreeMap::new(),
            before: before
                .iter()
                .map(|(name, epoch)| (name.to_string(), *epoch))
                .collect(),
            changes: changed
                .iter()
                .map(|name| (name.to_string(), Vec::new()))
                .collect(),
        }
    }

    fn applied(tables: &[(&str, Option<i64>)]) -> BTreeMap<String, Option<i64>> {
        tables
            .iter()
            .map(|(name, epoch)| (name.to_string(), *epoch))
            .collect()
    }

    #[test]
    fn only_changed_tables_that_have_not_heard_are_told_again() {
        let before = [("silver", 10), ("users", 10)];
        let last = manifest(20, &before, &["bronze", "silver"]);
        let behind =
            |tables: &[(&str, Option<i64>)]| recover("mentions", Some(&last), &applied(tables));
        let tables = [
            ("bronze", Some(20)),
            ("silver", Some(10)),
            ("users", Some(10)),
        ];
        assert_eq!(behind(&tables), Ok(vec!["silver".to_owned()]));
        let tables = [
            ("bronze", None),
            ("silver", Some(20)),
            ("users", Some(10)),
            ("gold", None),
        ];
        assert_eq!(behind(&tables), Ok(vec!["bronze".to_owned()]));
        assert_eq!(
            recover("mentions", None, &applied(&[("bronze", None)])),
            Ok(vec![])
        );
    }

    #[test]
    fn a_table_that_was_lost_is_refused() {
        let last = manifest(20, &[("silver", 10), ("users", 10)], &["silver"]);
        for tables in [
            [("users", None)],
            [("users", Some(5))],
            [("silver", None)],
            [("silver", Some(5))],
        ] {
            let refusal = recover("mentions", Some(&last), &applied(&tables));
            assert!(
                matches!(refusal, Err(Refusal::TableLost { .. })),
                "{tables:?}"
            );
        }
    }

    #[test]
    fn a_table_ahead_of_its_manifests_is_refused() {
        let tables = applied(&[("bronze", Some(30))]);
        let refused = |last| {
            matches!(
                recover("mentions", last, &tables),
                Err(Refusal::TableAhead { .. })
            )
        };
        assert!(refused(None) && refused(Some(&manifest(20, &[], &[]))));
    }

    const RELATIONS: [&str; 3] = ["bronze", "gold", "silver"];

    /// Which tables each of a history of checkpoints changed, and how many of the last one's tables
    /// had been told when the program was killed.
    fn histories() -> impl Strategy<Value = (Vec<Vec<bool>>, usize)> {
        let changed = proptest::collection::vec(any::<bool>(), RELATIONS.len());
        (
            proptest::collection::vec(changed, 1..8),
            0..=RELATIONS.len(),
        )
    }

    /// Makes the checkpoints of a history, at epochs 10, 20 and so on; returns the last manifest and
    /// what each table carries when so many tables of the last checkpoint had been told.
    fn play(history: &[Vec<bool>], told: usize) -> (Manifest, BTreeMap<String, Option<i64>>) {
        let mut tables: BTreeMap<String, Option<i64>> =
            RELATIONS.map(|relation| (relation.to_owned(), None)).into();
        let mut last = manifest(0, &[], &[]);
        for (number, changed) in history.iter().enumerate() {
            let epoch = 10 * (number as u64 + 1);
            let changed = RELATIONS
                .iter()
                .zip(changed)
                .filter(|(_, changed)| **changed);
            let changed: Vec<_> = changed.map(|(relation, _)| *relation).collect();
            let before = tables
                .iter()
                .filter_map(|(name, table)| Some((name.as_str(), table.as_ref()?.unsigned_abs())));
            last = manifest(epoch, &before.collect::<Vec<_>>(), &changed);
            let is_last = number + 1 == history.len();
            let heard = if is_last { told } else { changed.len() };
            for relation in changed.into_iter().take(heard) {
                tables.insert(relation.to_owned(), Some(epoch as i64));
            }
        }
        (last, tables)
    }

    proptest! {
        #[test]
        fn whatever_a_crash_leaves_is_finished((history, told) in histories()) {
            let (last, mut tables) = play(&history, told);
            let behind = recover("mentions", Some(&last), &tables).unwrap();
            let untold: Vec<_> = last.changes.keys().skip(told).cloned().collect();
            prop_assert_eq!(&behind, &untold);
            for relation in behind {
                tables.insert(relation, Some(last.epoch as i64));
            }
            // And nothing is left to be done: the same as if nobody had been killed.
            prop_assert_eq!(recover("mentions", Some(&last), &tables), Ok(Vec::new()));
            prop_assert_eq!(tables, play(&history, RELATIONS.len()).1);
        }

        #[test]
        fn a_table_of_another_time_is_never_taken_for_what_it_was(
            (history, told) in histories(),
            table in 0..RELATIONS.len(),
            carried in proptest::option::of(1..100_i64),
        ) {
            let (last, mut tables) = play(&history, told);
            let before = last.before.get(RELATIONS[table]).map(|epoch| *epoch as i64);
            let after = Some(last.epoch as i64);
            let lawful = carried == before
                || (carried == after && last.changes.contains_key(RELATIONS[table]));
            tables.insert(RELATIONS[table].to_owned(), carried);
            prop_assert_eq!(recover("mentions", Some(&last), &tables).is_ok(), lawful);
        }
    }

    #[test]
    fn another_pipelines_or_programs_manifest_is_refused() {
        let last = manifest(20, &[], &[]);
        let refusal = recover("songs", Some(&last), &applied(&[]));
        assert!(matches!(refusal, Err(Refusal::OtherPipeline { .. })));
        let last = Manifest { format: 9, ..last };
        assert_eq!(
            recover("mentions", Some(&last), &applied(&[])),
            Err(Refusal::Format(9))
        );
    }
}
