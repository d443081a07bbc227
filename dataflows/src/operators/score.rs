//! Gives each row the score of its text, asking a model once for each distinct text.
//!
//! ```text
//!  rows ─────▶ current model: text ─▶ score ───────────▶ rows with scores, and scores
//!                 ▲   │ promoted
//!  orders ───▶ candidate: the same texts, in the background ─▶ scores
//! ```

use std::rc::Rc;

use differential_dataflow::consolidation::consolidate;
use differential_dataflow::{AsCollection, ExchangeData};
use foldhash::{HashMap, HashMapExt};
use serde::{Deserialize, Serialize};
use timely::container::CapacityContainerBuilder;
use timely::dataflow::StreamVec;
use timely::dataflow::channels::pact::Exchange;
use timely::dataflow::operators::generic::{Operator, OutputBuilderSession};
use timely::dataflow::operators::{Capability, OkErr};

use super::stash::Stash;
use crate::change::{Collection, Diff, Epoch, Text};
use crate::ports::{Answers, Model, ModelOrder, Models, Score, Standing};
use crate::record::place;

/// A text with its score.
pub type ScoredText = (Text, Score);

/// What the operator is told besides changes of rows.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Notice<D> {
    /// A score of an earlier run.
    Restored(ScoredText),
    /// A row as it was before this epoch, in which a model is promoted.
    Before(D),
    /// What is to become of the models; for this worker.
    Order(u64, ModelOrder),
}

/// Returns each row with the score of its text by the current model, and the scores of all texts that
/// some row holds.
///
/// The score of a text cannot change while a row holds it and the model stays, so a row meets its score
/// here, where the text's rows come together, and a retraction takes away exactly what its insertion
/// gave. A text without a score waits for the model and holds its epoch; rows of known texts pass at
/// once. Every epoch is answered exactly, so a text that was asked for is used even if it has gone since.
///
/// A candidate scores the same texts in the background and holds up nothing: its scores appear as they
/// are made. When it is promoted, every row takes its new score in the epoch of the order, and the rows
/// of that epoch must be told as they were before it. A text that the candidate has not scored by then
/// holds that epoch.
///
/// Restored scores may come from any worker, at epoch 0; those that no row of epoch 0 holds are forgotten.
///
/// State: each live text once, with its score, and with the candidate's.
pub fn score<'s, D: ExchangeData>(
    rows: Collection<'s, D>,
    text_of: impl Fn(&D) -> &Text + Clone + 'static,
    mut models: Box<dyn Models>,
    notices: StreamVec<'s, Epoch, Notice<D>>,
) -> (Collection<'s, (D, Score)>, Collection<'s, ScoredText>) {
    let scope = rows.scope();
    let (text_of_row, text_of_notice) = (text_of.clone(), text_of.clone());
    let by_text = Exchange::new(move |(row, _, _): &(D, Epoch, Diff)| place(text_of_row(row)));
    let by_notice = Exchange::new(move |notice: &Notice<D>| match notice {
        Notice::Restored((text, _)) => place(text),
        Notice::Before(row) => place(text_of_notice(row)),
        Notice::Order(worker, _) => *worker,
    });
    let output =
        rows.inner
            .binary_frontier(notices, by_text, by_notice, "Score", |capability, info| {
                let answers: Answers<Vec<ScoredText>> = Answers::new(&scope, &info);
                let candidate = models.candidate();
                let candidate = candidate.map(|model| Candidate::new(model, answers.apart()));
                let mut scoring = Scoring {
                    current: Generation::new(models.current(), answers.apart()),
                    retiring: Vec::new(),
                    now: candidate.is_some().then_some(capability),
                    candidate,
                    models,
                    answers,
                    text_of,
                };
                let mut changes: Stash<(D, Diff)> = Stash::new();
                let mut told: Stash<Notice<D>> = Stash::new();
                move |(rows, rows_frontier),
                      (notices, notices_frontier),
                      output: &mut Output<'_, D>| {
                    // 1. Take in.
                    rows.for_each(|capability, data| {
                        for (row, epoch, diff) in data.drain(..) {
                            changes.at(&capability, epoch).push((row, diff));
                        }
                    });
                    notices.for_each(|capability, data| {
                        let epoch = *capability.time();
                        told.at(&capability, epoch).append(data);
                    });
                    // 2. What waited for scores is answered, each part at its own epoch.
                    scoring.take_answers(output);
                    // 3. Complete epochs: known texts are answered, the rest is asked for.
                    let frontiers = [rows_frontier, notices_frontier];
                    loop {
                        let epochs = [
                            changes.first_complete(&frontiers),
                            told.first_complete(&frontiers),
                        ];
                        let Some(epoch) = epochs.into_iter().flatten().min().copied() else {
                            break;
                        };
                        let (told, changes) = (told.take(&epoch), changes.take(&epoch));
                        scoring.complete(told, changes, output);
                    }
                    // 4. What the candidate says from now on belongs to the next epoch.
                    let next = frontiers.map(|frontier| frontier.frontier().first().copied());
                    scoring.advance(next.into_iter().flatten().min());
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

/// What came for one epoch, with the right to answer at it.
type Came<T> = Option<(Capability<Epoch>, Vec<T>)>;

/// The models of one worker with what they said.
struct Scoring<D, F> {
    models: Box<dyn Models>,
    /// The model whose scores count.
    current: Generation<D>,
    /// Models that were replaced while texts waited for them.
    retiring: Vec<Generation<D>>,
    candidate: Option<Candidate>,
    /// The right to tell what a candidate says: it holds no epoch that has been completed.
    now: Option<Capability<Epoch>>,
    answers: Answers<Vec<ScoredText>>,
    text_of: F,
}

impl<D: ExchangeData, F: Fn(&D) -> &Text> Scoring<D, F> {
    fn take_answers(&mut self, output: &mut Output<'_, D>) {
        for generation in std::iter::once(&mut self.current).chain(&mut self.retiring) {
            generation.take_answers(output);
        }
        self.retiring
            .retain(|generation| !generation.memo.texts.is_empty());
        let (Some(candidate), Some(now)) = (&mut self.candidate, &self.now) else {
            return;
        };
        let mut session = output.session(now);
        while let Some(scores) = candidate.answers.try_next() {
            for scored in scores {
                if candidate.answer(&scored, &self.current.memo) {
                    session.give((Out::Score(scored), *now.time(), 1));
                }
            }
        }
    }

    /// Answers an epoch: orders first, then rows as they were before it, then its changes.
    fn complete(
        &mut self,
        told: Came<Notice<D>>,
        changed: Came<(D, Diff)>,
        output: &mut Output<'_, D>,
    ) {
        let of_notices = told.as_ref().map(|(capability, _)| capability);
        let of_changes = changed.as_ref().map(|(capability, _)| capability);
        let Some(capability) = of_notices.or(of_changes).cloned().map(Rc::new) else {
            return;
        };
        let mut session = output.session(&*capability);
        let mut give = |out, diff| session.give((out, *capability.time(), diff));
        if let Some((_, notices)) = told {
            self.hear(&capability, notices, &mut give);
        }
        let mut changes = changed.map_or_else(Vec::new, |(_, changes)| changes);
        consolidate(&mut changes);
        let applied = self
            .current
            .apply(&capability, changes, &self.text_of, &mut give);
        if let Some(candidate) = &mut self.candidate {
            match std::mem::take(&mut candidate.begins) {
                true => candidate.ask(self.current.memo.live().cloned().collect()),
                false => candidate.follow(applied, &mut give),
            }
        }
        if *capability.time() == 0 {
            self.current.memo.forget_unheld();
            if let Some(candidate) = &mut self.candidate {
                candidate.forget_unheld(&self.current.memo);
            }
        }
    }

    /// Obeys orders at an epoch.
    fn hear(
        &mut self,
        capability: &Rc<Capability<Epoch>>,
        notices: Vec<Notice<D>>,
        give: &mut impl FnMut(Out<D>, Diff),
    ) {
        let mut before = Vec::new();
        let mut promoted = false;
        for notice in notices {
            match notice {
                Notice::Restored(scored) => self.restore(scored),
                Notice::Before(row) => before.push(row),
                Notice::Order(_, ModelOrder::Shadow(fingerprint)) => {
                    self.begin(&fingerprint, capability, give);
                }
                Notice::Order(_, ModelOrder::Promote(fingerprint)) => {
                    promoted |= self.promote(&fingerprint, give);
                }
                Notice::Order(_, ModelOrder::Drop) => self.drop_candidate(give),
            }
        }
        if let (true, Some(replaced)) = (promoted, self.retiring.last_mut()) {
            let rows = |diff| before.iter().map(move |row| (row.clone(), diff)).collect();
            replaced.apply(capability, rows(-1), &self.text_of, give);
            self.current.apply(capability, rows(1), &self.text_of, give);
            self.current.memo.forget_unheld();
        }
    }

    fn restore(&mut self, (text, score): ScoredText) {
        if score.model == self.current.fingerprint {
            self.current.memo.restore((text, score));
        } else if let Some(candidate) = &mut self.candidate
            && score.model == candidate.fingerprint
        {
            candidate.texts.insert(text, Some(score));
        }
    }

    /// Has another model score what is live; one that does so already goes on.
    fn begin(
        &mut self,
        fingerprint: &str,
        capability: &Rc<Capability<Epoch>>,
        give: &mut impl FnMut(Out<D>, Diff),
    ) {
        let candidate = self.candidate.as_ref();
        let known = [
            Some(&self.current.fingerprint),
            candidate.map(|model| &model.fingerprint),
        ];
        if known
            .into_iter()
            .flatten()
            .any(|known| **known == *fingerprint)
        {
            return;
        }
        self.drop_candidate(give);
        let Some(model) = self.models.find(fingerprint) else {
            return;
        };
        let mut candidate = Candidate::new(model, self.answers.apart());
        candidate.begins = true;
        self.candidate = Some(candidate);
        self.now = Some((**capability).clone());
    }

    /// Makes the candidate's scores count; returns whether there is such a candidate.
    fn promote(&mut self, fingerprint: &str, give: &mut impl FnMut(Out<D>, Diff)) -> bool {
        let promoted = self
            .candidate
            .take_if(|candidate| *candidate.fingerprint == *fingerprint);
        let Some(candidate) = promoted else {
            return false;
        };
        // Its scores are given anew with the rows that hold them.
        candidate
            .known()
            .for_each(|scored| give(Out::Score(scored), -1));
        let current = candidate.into_generation();
        self.retiring
            .push(std::mem::replace(&mut self.current, current));
        self.now = None;
        true
    }

    fn drop_candidate(&mut self, give: &mut impl FnMut(Out<D>, Diff)) {
        if let Some(candidate) = self.candidate.take() {
            candidate
                .known()
                .for_each(|scored| give(Out::Score(scored), -1));
        }
        self.now = None;
    }

    fn advance(&mut self, next: Option<Epoch>) {
        match (&mut self.now, next) {
            (Some(now), Some(next)) => now.downgrade(&next),
            (now, None) => *now = None,
            (None, Some(_)) => {}
        }
        let candidate = self.candidate.as_ref();
        self.models.note(Standing {
            current: self.current.fingerprint.clone(),
            candidate: candidate.map(|candidate| candidate.fingerprint.clone()),
            scored: candidate.map_or(0, |candidate| candidate.texts.len() - candidate.waiting),
            waiting: candidate.map_or(0, |candidate| candidate.waiting),
        });
    }
}

/// A model with what it said of the texts that rows hold.
struct Generation<D> {
    fingerprint: Text,
    model: Box<dyn Model>,
    answers: Answers<Vec<ScoredText>>,
    memo: Memo<D>,
}

impl<D: Clone + Ord> Generation<D> {
    fn new(model: Box<dyn Model>, answers: Answers<Vec<ScoredText>>) -> Self {
        Self {
            fingerprint: model.fingerprint(),
            model,
            answers,
            memo: Memo::default(),
        }
    }

    /// Applies changes of rows, and asks the model for what it has not been asked for.
    fn apply(
        &mut self,
        capability: &Rc<Capability<Epoch>>,
        changes: Vec<(D, Diff)>,
        text_of: impl Fn(&D) -> &Text,
        give: &mut impl FnMut(Out<D>, Diff),
    ) -> Applied {
        let applied = self.memo.apply(capability, changes, text_of, give);
        if !applied.unknown.is_empty() {
            let unknown = applied.unknown.clone();
            self.model.submit(unknown, self.answers.reply());
        }
        applied
    }
}

impl<D: ExchangeData> Generation<D> {
    fn take_answers(&mut self, output: &mut Output<'_, D>) {
        while let Some(scores) = self.answers.try_next() {
            for (text, score) in scores {
                for (capability, out, diff) in self.memo.answer(text, score) {
                    let epoch = *capability.time();
                    output.session(&*capability).give((out, epoch, diff));
                }
            }
        }
    }
}

/// A model that scores beside the current one.
///
/// Held: a score has been told exactly if the current model's memo holds its text as live. While the last
/// run's state is restored, scores stand here before their texts.
struct Candidate {
    fingerprint: Text,
    model: Box<dyn Model>,
    answers: Answers<Vec<ScoredText>>,
    /// What it said; nothing yet of texts that it was asked for.
    texts: HashMap<Text, Option<Score>>,
    /// Of how many texts it has yet to say something.
    waiting: usize,
    /// Whether it has yet to be asked for what is live.
    begins: bool,
}

impl Candidate {
    fn new(model: Box<dyn Model>, answers: Answers<Vec<ScoredText>>) -> Self {
        Self {
            fingerprint: model.fingerprint(),
            model,
            answers,
            texts: HashMap::new(),
            waiting: 0,
            begins: false,
        }
    }

    /// Asks for texts of which none is known or asked for.
    fn ask(&mut self, texts: Vec<Text>) {
        self.waiting += texts.len();
        self.texts
            .extend(texts.iter().map(|text| (text.clone(), None)));
        if !texts.is_empty() {
            self.model.submit(texts, self.answers.reply());
        }
    }

    /// Records a score; returns whether it is to be told, which it is if some row still holds the text.
    fn answer<D>(&mut self, (text, score): &ScoredText, memo: &Memo<D>) -> bool {
        self.waiting -= 1;
        let live = memo.texts.get(text).is_some_and(|entry| entry.live > 0);
        match live {
            true => drop(self.texts.insert(text.clone(), Some(score.clone()))),
            false => drop(self.texts.remove(text)),
        }
        live
    }

    /// Follows the texts that appeared or vanished with an epoch.
    fn follow<D>(&mut self, applied: Applied, give: &mut impl FnMut(Out<D>, Diff)) {
        let mut unknown = Vec::new();
        for (text, diff) in applied.crossed {
            match self.texts.get(&text) {
                Some(Some(score)) => {
                    give(Out::Score((text.clone(), score.clone())), diff);
                    if diff < 0 {
                        self.texts.remove(&text);
                    }
                }
                // It is looked at again when the model has answered.
                Some(None) => {}
                None if diff > 0 => unknown.push(text),
                None => {}
            }
        }
        self.ask(unknown);
    }

    fn forget_unheld<D>(&mut self, memo: &Memo<D>) {
        self.texts.retain(|text, score| {
            score.is_none() || memo.texts.get(text).is_some_and(|entry| entry.live > 0)
        });
    }

    /// The scores that have been told.
    fn known(&self) -> impl Iterator<Item = ScoredText> {
        let texts = self.texts.iter();
        texts.filter_map(|(text, score)| Some((text.clone(), score.clone()?)))
    }

    /// What it said and was asked for, no row holding any of it yet.
    fn into_generation<D>(self) -> Generation<D> {
        let texts = self.texts.into_iter().map(|(text, score)| {
            let state = score.map_or_else(|| State::Asked(Vec::new()), State::Known);
            (text, Entry { live: 0, state })
        });
        Generation {
            fingerprint: self.fingerprint,
            model: self.model,
            answers: self.answers,
            memo: Memo {
                texts: texts.collect(),
            },
        }
    }
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

/// What an epoch meant for texts.
#[derive(Default)]
struct Applied {
    /// Texts that the model must be asked for.
    unknown: Vec<Text>,
    /// Texts that appeared, and texts that no row holds any more.
    crossed: Vec<(Text, Diff)>,
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

    fn live(&self) -> impl Iterator<Item = &Text> {
        let held = self.texts.iter().filter(|(_, entry)| entry.live > 0);
        held.map(|(text, _)| text)
    }

    /// Forgets scores that no row holds: those that were known before any row was.
    fn forget_unheld(&mut self) {
        self.texts
            .retain(|_, entry| entry.live > 0 || matches!(entry.state, State::Asked(_)));
    }

    /// Applies an epoch's changes; gives what is known.
    fn apply(
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
        }
        diff
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
