//! The texts that rows hold, with what a model has said of each, and what waits for it.

use std::rc::Rc;

use differential_dataflow::consolidation::consolidate;
use foldhash::{HashMap, HashMapExt};
use timely::dataflow::operators::Capability;

use super::{Out, ScoredText};
use crate::change::{Diff, Epoch, Text};
use crate::ports::Score;

/// Something to tell, with the right to tell it.
pub(super) type Told<D> = (Rc<Capability<Epoch>>, Out<D>, Diff);

/// A change that waits for its text's score, with the right to send it.
pub(super) struct Waiting<D> {
    capability: Rc<Capability<Epoch>>,
    /// The row that changed, or none for the text itself.
    row: Option<D>,
    diff: Diff,
}

pub(super) enum State<D> {
    Known(Score),
    /// Nothing is known, and changes wait.
    Asked(Vec<Waiting<D>>),
    /// The fast model's score, until the model has said its own; with the rows that hold the text.
    Provisional(Score, Vec<(D, Diff)>),
}

pub(super) struct Entry<D> {
    /// How many rows hold the text.
    pub(super) live: Diff,
    pub(super) state: State<D>,
}

impl<D> Entry<D> {
    pub(super) fn is_waited_for(&self) -> bool {
        matches!(self.state, State::Asked(_))
    }
}

pub(super) struct Memo<D> {
    pub(super) texts: HashMap<Text, Entry<D>>,
}

impl<D> Default for Memo<D> {
    fn default() -> Self {
        Self {
            texts: HashMap::new(),
        }
    }
}

/// What an epoch meant for texts.
#[derive(Default)]
pub(super) struct Applied {
    /// Texts that the model must be asked for.
    pub(super) unknown: Vec<Text>,
    /// Texts that appeared, and texts that no row holds any more.
    pub(super) crossed: Vec<(Text, Diff)>,
}

impl<D: Clone + Ord> Memo<D> {
    pub(super) fn restore(&mut self, text: Text, state: State<D>) {
        self.texts.insert(text, Entry { live: 0, state });
    }

    pub(super) fn live(&self) -> impl Iterator<Item = &Text> {
        let held = self.texts.iter().filter(|(_, entry)| entry.live > 0);
        held.map(|(text, _)| text)
    }

    /// Forgets scores that no row holds: those that were known before any row was.
    pub(super) fn forget_unheld(&mut self) {
        self.texts
            .retain(|_, entry| entry.live > 0 || entry.is_waited_for());
    }

    /// Texts that have the fast model's score.
    pub(super) fn provisional(&self) -> impl Iterator<Item = &Text> {
        let texts = self.texts.iter();
        texts.filter_map(|(text, entry)| {
            matches!(entry.state, State::Provisional(..)).then_some(text)
        })
    }

    /// Applies an epoch's changes; gives what is known.
    pub(super) fn apply(
        &mut self,
        capability: &Rc<Capability<Epoch>>,
        changes: Vec<(D, Diff)>,
        text_of: impl Fn(&D) -> &Text,
        give: &mut impl FnMut(Out<D>, Diff),
    ) -> Applied {
        let mut applied = Applied::default();
        let mut live_before: HashMap<Text, Diff> = HashMap::new();
        for (row, diff) in changes {
            let text = text_of(&row).clone();
            let entry = self.texts.entry(text.clone()).or_insert_with(|| {
                applied.unknown.push(text.clone());
                Entry {
                    live: 0,
                    state: State::Asked(Vec::new()),
                }
            });
            live_before.entry(text).or_insert(entry.live);
            entry.live += diff;
            match &mut entry.state {
                State::Known(score) => give(Out::Row(row, score.clone()), diff),
                State::Asked(waiting) => {
                    waiting.push(Waiting {
                        capability: Rc::clone(capability),
                        row: Some(row),
                        diff,
                    });
                }
                State::Provisional(score, rows) => {
                    remember(rows, row.clone(), diff);
                    give(Out::Row(row, score.clone()), diff);
                }
            }
        }
        for (text, before) in live_before {
            let diff = self.appear_or_vanish(capability, &text, before, give);
            if diff != 0 {
                applied.crossed.push((text, diff));
            }
        }
        applied
    }

    /// The scores relation holds a text exactly as long as some row does; returns how that changed.
    fn appear_or_vanish(
        &mut self,
        capability: &Rc<Capability<Epoch>>,
        text: &Text,
        before: Diff,
        give: &mut impl FnMut(Out<D>, Diff),
    ) -> Diff {
        let Some(entry) = self.texts.get_mut(text) else {
            return 0;
        };
        let diff = Diff::from(entry.live > 0) - Diff::from(before > 0);
        if diff == 0 {
            return 0;
        }
        match &mut entry.state {
            State::Asked(waiting) => {
                waiting.push(Waiting {
                    capability: Rc::clone(capability),
                    row: None,
                    diff,
                });
            }
            State::Known(score) => {
                give(Out::Score((text.clone(), score.clone())), diff);
                if entry.live == 0 {
                    self.texts.remove(text);
                }
            }
            // It stays until the model has answered, so that it is not asked again.
            State::Provisional(score, _) => {
                give(Out::Score((text.clone(), score.clone())), diff);
            }
        }
        diff
    }

    /// Records the score of a text; returns all that waited for it, or what it replaces now.
    pub(super) fn answer(
        &mut self,
        text: Text,
        score: Score,
        now: Option<&Rc<Capability<Epoch>>>,
    ) -> Vec<Told<D>> {
        let Some(entry) = self.texts.get_mut(&text) else {
            return Vec::new();
        };
        let live = entry.live;
        let told = match (
            std::mem::replace(&mut entry.state, State::Known(score.clone())),
            now,
        ) {
            (State::Asked(waiting), _) => release(&text, &score, waiting),
            (State::Provisional(fast, rows), Some(now)) => {
                replace(&text, [&fast, &score], rows, live, now)
            }
            // Nothing can be told any more.
            (before, _) => {
                entry.state = before;
                return Vec::new();
            }
        };
        if live == 0 {
            self.texts.remove(&text);
        }
        told
    }

    /// Records the fast model's score of a text; returns all that waited for it.
    pub(super) fn answer_for_now(&mut self, (text, score): &ScoredText) -> Vec<Told<D>> {
        let Some(entry) = self.texts.get_mut(text) else {
            return Vec::new();
        };
        let State::Asked(waiting) = &mut entry.state else {
            return Vec::new();
        };
        let waiting = std::mem::take(waiting);
        let mut rows = Vec::new();
        for change in &waiting {
            if let Some(row) = &change.row {
                remember(&mut rows, row.clone(), change.diff);
            }
        }
        entry.state = State::Provisional(score.clone(), rows);
        release(text, score, waiting)
    }
}

/// What waited for a text's score.
fn release<D>(text: &Text, score: &Score, waiting: Vec<Waiting<D>>) -> Vec<Told<D>> {
    let told = waiting.into_iter().map(|change| {
        let out = match change.row {
            Some(row) => Out::Row(row, score.clone()),
            None => Out::Score((text.clone(), score.clone())),
        };
        (change.capability, out, change.diff)
    });
    told.collect()
}

/// A score in the place of another, for the text and the rows that hold it.
fn replace<D: Clone + Ord>(
    text: &Text,
    [old, new]: [&Score; 2],
    mut rows: Vec<(D, Diff)>,
    live: Diff,
    now: &Rc<Capability<Epoch>>,
) -> Vec<Told<D>> {
    consolidate(&mut rows);
    let mut told = Vec::with_capacity(2 * rows.len() + 2);
    let mut tell = |out, diff| told.push((Rc::clone(now), out, diff));
    for (row, diff) in rows {
        tell(Out::Row(row.clone(), old.clone()), -diff);
        tell(Out::Row(row, new.clone()), diff);
    }
    if live > 0 {
        tell(Out::Score((text.clone(), old.clone())), -1);
        tell(Out::Score((text.clone(), new.clone())), 1);
    }
    told
}

/// Adds a change of a row, and sums up changes whenever they have doubled.
fn remember<D: Ord>(rows: &mut Vec<(D, Diff)>, row: D, diff: Diff) {
    if rows.len() == rows.capacity() {
        consolidate(rows);
        rows.reserve(rows.len().max(1));
    }
    rows.push((row, diff));
}
