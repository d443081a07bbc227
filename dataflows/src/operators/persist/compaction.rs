//! Which small files to write as one, and when.
//!
//! Files fall into tiers by how many live rows they hold, each tier reaching eight times as far as
//! the one below. Eight files of one tier become one of the next: so a row is written again at most
//! once for each tier, and a worker holds fewer than eight files of each. (The scheme of
//! size-tiered log-structured merge trees.)

use std::collections::BTreeMap;

use arrow::array::RecordBatch;
use timely::dataflow::Scope;
use timely::dataflow::operators::generic::OperatorInfo;

use super::locations::{HeldFile, Locations};
use crate::change::Epoch;
use crate::ports::{Answers, Sink};

/// How many files become one, and how much larger each tier is than the one below.
const FAN_IN: usize = 8;

/// Live rows from which on a file is left alone; also the most that are moved at once, which
/// bounds the memory it takes.
const FULL: u32 = 1 << 18;

/// A file as it was fetched.
pub(super) struct FetchedFile {
    pub(super) number: u32,
    pub(super) batches: Vec<RecordBatch>,
}

/// One compaction at a time: files are chosen, fetched in the background, and written as one with
/// the next checkpoint.
pub(super) struct Compaction {
    answers: Answers<Vec<Option<Vec<RecordBatch>>>>,
    /// The numbers of the files that were asked for.
    fetching: Vec<u32>,
    fetched: Option<Vec<FetchedFile>>,
    /// The greatest file number when one could not be fetched: older files are left alone.
    gone_up_to: Option<u32>,
}

impl Compaction {
    pub(super) fn new(scope: &Scope<'_, Epoch>, info: &OperatorInfo) -> Self {
        Self {
            answers: Answers::new(scope, info),
            fetching: Vec::new(),
            fetched: None,
            gone_up_to: None,
        }
    }

    pub(super) fn take_answer(&mut self) {
        let Some(answer) = self.answers.try_next() else {
            return;
        };
        let fetching = std::mem::take(&mut self.fetching);
        if answer.iter().any(Option::is_none) {
            self.gone_up_to = fetching.iter().copied().max().max(self.gone_up_to);
        }
        let fetched = fetching.into_iter().zip(answer);
        let fetched = fetched.filter_map(|(number, batches)| {
            Some(FetchedFile {
                number,
                batches: batches?,
            })
        });
        self.fetched = Some(fetched.collect());
    }

    /// The files that are to be moved with this checkpoint.
    pub(super) fn ready(&mut self) -> Option<Vec<FetchedFile>> {
        self.fetched.take()
    }

    /// Asks for the next files, unless some are under way.
    pub(super) fn start(&mut self, table: &Locations, sink: &mut dyn Sink) {
        if !self.fetching.is_empty() || self.fetched.is_some() {
            return;
        }
        let files = table.files();
        let files = files.filter(|(number, _)| Some(*number) > self.gone_up_to);
        self.fetching = choose(files);
        if !self.fetching.is_empty() {
            let names = self.fetching.iter().filter_map(|file| table.name(*file));
            sink.fetch(names.cloned().collect(), self.answers.reply());
        }
    }
}

/// The files to write as one: enough of one tier, or one of which most rows have gone.
fn choose<'f>(files: impl Iterator<Item = (u32, &'f HeldFile)>) -> Vec<u32> {
    let mut tiers: BTreeMap<u32, Vec<(u32, u32)>> = BTreeMap::new();
    let mut hollow = None;
    for (number, file) in files {
        if file.live < FULL {
            let tier = file.live.max(1).ilog(FAN_IN as u32);
            tiers.entry(tier).or_default().push((number, file.live));
        }
        if file.live < file.most / 2 {
            hollow = Some(number);
        }
    }
    let full_tier = tiers.into_values().find(|files| files.len() >= FAN_IN);
    match full_tier {
        Some(files) => {
            let mut rows = 0;
            let fitting = files.into_iter().take_while(|(_, live)| {
                rows += live;
                rows <= 2 * FULL
            });
            fitting.map(|(number, _)| number).collect()
        }
        None => hollow.into_iter().collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(live: &[(u32, u32)]) -> Vec<u32> {
        let mut table = Locations::new(Vec::new());
        let mut digest = 0;
        for (live, most) in live {
            let digests: Vec<u128> = (0..*most).map(|row| digest + u128::from(row)).collect();
            digest += u128::from(*most);
            table.append(digests, "file".into());
            table.shrink_last(*live);
        }
        choose(table.files())
    }

    #[test]
    fn eight_files_of_a_tier_become_one() {
        assert!(chosen(&[(3, 3); 7]).is_empty());
        assert_eq!(chosen(&[(3, 3); 8]).len(), 8);
        let mixed = [
            (3, 3),
            (3, 3),
            (3, 3),
            (100, 100),
            (3, 3),
            (3, 3),
            (3, 3),
            (3, 3),
            (3, 3),
        ];
        assert_eq!(chosen(&mixed), [0, 1, 2, 4, 5, 6, 7, 8]);
    }

    #[test]
    fn a_file_that_lost_most_of_its_rows_is_written_anew() {
        assert!(chosen(&[(50, 100)]).is_empty());
        assert_eq!(chosen(&[(100, 100), (49, 100)]), [1]);
    }

    #[test]
    fn full_files_are_left_alone_and_no_move_is_too_large() {
        assert!(chosen(&[(FULL, FULL); 9]).is_empty());
        let half = (FULL - 1, FULL - 1);
        assert_eq!(chosen(&[half; 8]).len(), 2);
    }
}
