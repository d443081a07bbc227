//! Gives each row the score of its text, asking the model once for each distinct text.

use std::rc::Rc;

use differential_dataflow::consolidation::consolidate;
use differential_dataflow::{AsCollection, ExchangeData};
use foldhash::{HashMap, HashMapExt};
use serde::{Deserialize, Serialize};
use timely::container::CapacityContainerBuilder;
use timely::dataflow::channels::pact::Exchange;
use timely::dataflow::operators::generic::{Operator, OutputBuilderSession};
use timely::dataflow::operators::vec::ToStream;
use timely::dataflow::operators::{Capability, OkErr};

use super::stash::Stash;
use crate::change::{Collection, Diff, Epoch, Text};
use crate::ports::{Answers, Model, Score};
use crate::record::place;

/// A text with its score.
pub type ScoredText = (Text, Score);

/// Returns each row with the score of its text, and the scores of all texts that some row holds.
///
/// The score of a text cannot change while a row holds it, so a row meets its score here, where
/// the text's rows come together, and a retraction takes away exactly what its insertion gave. A
/// text without a score waits for the model and holds its epoch; rows of known texts pass at once.
/// Every epoch is answered exactly, so a text that was asked for is used even if it has gone since.
///
/// `restored` are scores of an earlier run, from any worker; those that no row of epoch 0 holds are
/// forgotten.
///
/// State: each live text once, with its score.
pub fn score<'s, D: ExchangeData>(
    rows: Collection<'s, D>,
    text_of: impl Fn(&D) -> &Text + Clone + 'static,
    mut model: Box<dyn Model>,
    restored: Vec<ScoredText>,
) -> (Collection<'s, (D, Score)>, Collection<'s, ScoredText>) {
    let scope = rows.scope();
    let text_of_row = text_of.clone();
    let by_text = Exchange::new(move |(row, _, _): &(D, Epoch, Diff)| place(text_of_row(row)));
    let by_scored = Exchange::new(|(text, _): &ScoredText| place(text));
    let restored = restored.to_stream(scope);
    let output = rows
        .inner
        .binary_frontier(restored, by_text, by_scored, "Score", |_, info| {
            let answers: Answers<Vec<ScoredText>> = Answers::new(&scope, &info);
            let mut stash: Stash<(D, Diff)> = Stash::new();
            let mut memo: Memo<D> = Memo::default();
            let mut restoring = true;
            move |(rows, rows_frontier),
                  (restored, restored_frontier),
                  output: &mut Output<'_, D>| {
                // 1. Take in.
                restored.for_each(|_, data| data.drain(..).for_each(|scored| memo.restore(scored)));
                rows.for_each(|capability, data| {
                    for (row, epoch, diff) in data.drain(..) {
                        stash.at(&capability, epoch).push((row, diff));
                    }
                });
                // 2. What waited for these scores is answered, each part at its own epoch.
                while let Some(scores) = answers.try_next() {
                    for (text, score) in scores {
                        for (capability, out, diff) in memo.answer(text, score) {
                            output
                                .session(&*capability)
                                .give((out, *capability.time(), diff));
                        }
                    }
                }
                // 3. Complete epochs: known texts are answered, the rest is asked for.
                let frontiers = [rows_frontier, restored_frontier];
                while let Some((capability, mut changes)) = stash.pop_complete(&frontiers) {
                    consolidate(&mut changes);
                    let capability = Rc::new(capability);
                    let mut session = output.session(&*capability);
                    let mut give = |out, diff| session.give((out, *capability.time(), diff));
                    let unknown = memo.apply(&capability, changes, &text_of, &mut give);
                    if !unknown.is_empty() {
                        model.submit(unknown, answers.reply());
                    }
                }
                // 4. Restored scores that no restored row holds are no longer needed.
                if restoring && !frontiers.iter().any(|frontier| frontier.less_equal(&0)) {
                    restoring = false;
                    memo.texts.retain(|_, entry| {
                        entry.live > 0 || matches!(entry.state, State::Asked(_))
                    });
                }
            }
        });
    let (rows, scores) = output.ok_err(|(out, epoch, diff)| match out {
        Out::Row(row, score) => Ok(((row, score), epoch, diff)),
        Out::Score(scored) => Err((scored, epoch, diff)),
    });
    (rows.as_collection(), scores.as_collection())
}

type Output<'o, D> =
    OutputBuilderSession<'o, Epoch, CapacityContainerBuilder<Vec<(Out<D>, Epoch, Diff)>>>;

#[derive(Clone, Debug, Serialize, Deserialize)]
enum Out<D> {
    Row(D, Score),
    Score(ScoredText),
}

/// A change that waits for its text's score, with the right to send it.
struct Waiting<D> {
    capability: Rc<Capability<Epoch>>,
    /// The row that changed, or none for the text itself.
    row: Option<D>,
    diff: Diff,
}

enum State<D> {
    Known(Score),
    Asked(Vec<Waiting<D>>),
}

struct Entry<D> {
    /// How many rows hold the text.
    live: Diff,
    state: State<D>,
}

struct Memo<D> {
    texts: HashMap<Text, Entry<D>>,
}

impl<D> Default for Memo<D> {
    fn default() -> Self {
        Self {
            texts: HashMap::new(),
        }
    }
}

impl<D: Clone> Memo<D> {
    fn restore(&mut self, (text, score): ScoredText) {
        self.texts.insert(
            text,
            Entry {
                live: 0,
                state: State::Known(score),
            },
        );
    }

    /// Applies an epoch's changes; gives what is known and returns the texts to ask for.
    fn apply(
        &mut self,
        capability: &Rc<Capability<Epoch>>,
        changes: Vec<(D, Diff)>,
        text_of: impl Fn(&D) -> &Text,
        give: &mut impl FnMut(Out<D>, Diff),
    ) -> Vec<Text> {
        let mut unknown = Vec::new();
        let mut live_before: HashMap<Text, Diff> = HashMap::new();
        for (row, diff) in changes {
            let text = text_of(&row).clone();
            let entry = self.texts.entry(text.clone()).or_insert_with(|| {
                unknown.push(text.clone());
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
            }
        }
        for (text, before) in live_before {
            self.appear_or_vanish(capability, text, before, give);
        }
        unknown
    }

    /// The scores relation holds a text exactly as long as some row does.
    fn appear_or_vanish(
        &mut self,
        capability: &Rc<Capability<Epoch>>,
        text: Text,
        before: Diff,
        give: &mut impl FnMut(Out<D>, Diff),
    ) {
        let Some(entry) = self.texts.get_mut(&text) else {
            return;
        };
        let diff = Diff::from(entry.live > 0) - Diff::from(before > 0);
        if diff == 0 {
            return;
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
                    self.texts.remove(&text);
                }
            }
        }
    }

    /// Records the score of a text; returns all that waited for it.
    fn answer(
        &mut self,
        text: Text,
        score: Score,
    ) -> impl Iterator<Item = (Rc<Capability<Epoch>>, Out<D>, Diff)> + use<D> {
        let mut waiting = Vec::new();
        if let Some(entry) = self.texts.get_mut(&text) {
            let known = State::Known(score.clone());
            if let State::Asked(asked) = std::mem::replace(&mut entry.state, known) {
                waiting = asked;
            }
            if entry.live == 0 {
                self.texts.remove(&text);
            }
        }
        waiting.into_iter().map(move |change| {
            let out = match change.row {
                Some(row) => Out::Row(row, score.clone()),
                None => Out::Score((text.clone(), score.clone())),
            };
            (change.capability, out, change.diff)
        })
    }
}
