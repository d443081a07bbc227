//! Gives each row the score of its text, asking a model once for each distinct text.
//!
//! ```text
//!  rows ─────▶ current model: text ─▶ score ───────────▶ rows with scores, and scores
//!                 ▲   ▲ promoted                                 ▲
//!  orders ───▶ candidate: the same texts, in the background ─▶ scores
//!                 │                                              │
//!  a burst ──▶ fast model: a score until the current model has its own
//! ```

mod memo;

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

use self::memo::{Applied, Entry, Memo, State, Told};
use super::stash::Stash;
use crate::change::{Collection, Diff, Epoch, Text};
use crate::ports::{Answers, FAST, FULL, Model, ModelOrder, Models, Score, Standing};
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
/// In a burst a fast model is asked for the same texts and does not keep epochs waiting for long. Of a text with such
/// a score the rows are remembered, and they take the current model's score in the first epoch that is not complete
/// when it is there. When nothing more is to come, the last epoch waits for that.
///
/// Restored scores may come from any worker, at epoch 0; those that no row of epoch 0 holds are forgotten.
///
/// State: each live text once, with its score, and with the candidate's; rows of texts with a fast model's score.
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
                let fast = models.fast().map(|model| Fast {
                    model,
                    answers: answers.apart(),
                });
                let mut scoring = Scoring {
                    current: Generation::new(models.current(), answers.apart()),
                    retiring: Vec::new(),
                    now: Some(Rc::new(capability)),
                    candidate,
                    fast,
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
                    rows.for_each(|capability, data| changes.add(&capability, data));
                    notices.for_each(|capability, data| told.append(&capability, data));
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
                    // 4. What is said from now on and not waited for belongs to the next epoch.
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
    /// The model that answers in a burst.
    fast: Option<Fast>,
    /// The right to tell what is not waited for: it holds the first epoch that is not complete.
    now: Option<Rc<Capability<Epoch>>>,
    answers: Answers<Vec<ScoredText>>,
    text_of: F,
}

impl<D: ExchangeData, F: Fn(&D) -> &Text> Scoring<D, F> {
    fn take_answers(&mut self, output: &mut Output<'_, D>) {
        let mut generations: Vec<_> = std::iter::once(&mut self.current)
            .chain(&mut self.retiring)
            .collect();
        for generation in &mut generations {
            generation.take_answers(self.now.as_ref(), output);
        }
        if let Some(fast) = &self.fast {
            while let Some(scores) = fast.answers.try_next() {
                for scored in scores {
                    for generation in &mut generations {
                        give_all(generation.memo.answer_for_now(&scored), output);
                    }
                }
            }
        }
        self.retiring
            .retain(|generation| !generation.memo.texts.is_empty());
        let (Some(candidate), Some(now)) = (&mut self.candidate, &self.now) else {
            return;
        };
        let mut session = output.session(&**now);
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
        let memo = &mut self.current.memo;
        let applied = memo.apply(&capability, changes, &self.text_of, &mut give);
        let crossed = self.ask(applied);
        if let Some(candidate) = &mut self.candidate {
            match std::mem::take(&mut candidate.begins) {
                true => candidate.ask(self.current.memo.live().cloned().collect()),
                false => candidate.follow(crossed, &mut give),
            }
        }
        if *capability.time() == 0 {
            self.current.memo.forget_unheld();
            if self.models.replaces() {
                let replaced = self.current.memo.provisional().cloned().collect();
                self.current.ask(replaced);
            }
            if let Some(candidate) = &mut self.candidate {
                candidate.forget_unheld(&self.current.memo);
            }
        }
    }

    /// Asks for the texts of which nothing is known; returns those that appeared or vanished.
    fn ask(&mut self, applied: Applied) -> Vec<(Text, Diff)> {
        let Applied { unknown, crossed } = applied;
        if let Some(fast) = &mut self.fast
            && !unknown.is_empty()
            && self.models.is_burst(unknown.len())
        {
            fast.model.submit(unknown.clone(), fast.answers.reply());
        }
        self.current.ask(unknown);
        crossed
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
                    self.begin(&fingerprint, give);
                }
                Notice::Order(_, ModelOrder::Promote(fingerprint)) => {
                    promoted |= self.promote(&fingerprint, give);
                }
                Notice::Order(_, ModelOrder::Drop) => self.drop_candidate(give),
            }
        }
        if let (true, Some(replaced)) = (promoted, self.retiring.last_mut()) {
            let rows = |diff| before.iter().map(move |row| (row.clone(), diff)).collect();
            replaced
                .memo
                .apply(capability, rows(-1), &self.text_of, give);
            // No row holds them any more, and no epoch waits for them.
            replaced.memo.texts.retain(|_, entry| entry.is_waited_for());
            let memo = &mut self.current.memo;
            let applied = memo.apply(capability, rows(1), &self.text_of, give);
            self.current.memo.forget_unheld();
            self.ask(applied);
        }
    }

    fn restore(&mut self, (text, mut score): ScoredText) {
        let fast = self.fast.as_ref();
        // The candidate may be the fast model: what was said in a burst is told apart by its tier.
        let of_burst =
            score.tier == FAST && fast.is_some_and(|fast| fast.model.fingerprint() == score.model);
        if score.model == self.current.fingerprint {
            score.tier = FULL;
            self.current.memo.restore(text, State::Known(score));
        } else if of_burst {
            let provisional = State::Provisional(score, Vec::new());
            self.current.memo.restore(text, provisional);
        } else if let Some(candidate) = &mut self.candidate
            && score.model == candidate.fingerprint
        {
            score.tier = FULL;
            candidate.texts.insert(text, Some(score));
        }
    }

    /// Has another model score what is live; one that does so already goes on.
    fn begin(&mut self, fingerprint: &str, give: &mut impl FnMut(Out<D>, Diff)) {
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
        true
    }

    fn drop_candidate(&mut self, give: &mut impl FnMut(Out<D>, Diff)) {
        if let Some(candidate) = self.candidate.take() {
            candidate
                .known()
                .for_each(|scored| give(Out::Score(scored), -1));
        }
    }

    fn advance(&mut self, next: Option<Epoch>) {
        match (&mut self.now, next) {
            (Some(now), Some(next)) if *now.time() != next => *now = Rc::new(now.delayed(&next)),
            (now, None) => {
                let waits =
                    self.models.replaces() && self.current.memo.provisional().next().is_some();
                now.take_if(|_| !waits);
            }
            _ => {}
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

/// A model that answers in a burst.
struct Fast {
    model: Box<dyn Model>,
    answers: Answers<Vec<ScoredText>>,
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

    fn ask(&mut self, texts: Vec<Text>) {
        if !texts.is_empty() {
            self.model.submit(texts, self.answers.reply());
        }
    }
}

impl<D: ExchangeData> Generation<D> {
    fn take_answers(&mut self, now: Option<&Rc<Capability<Epoch>>>, output: &mut Output<'_, D>) {
        while let Some(scores) = self.answers.try_next() {
            for (text, score) in scores {
                give_all(self.memo.answer(text, score, now), output);
            }
        }
    }
}

fn give_all<D: ExchangeData>(told: Vec<Told<D>>, output: &mut Output<'_, D>) {
    for (capability, out, diff) in told {
        let epoch = *capability.time();
        output.session(&*capability).give((out, epoch, diff));
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
    fn follow<D>(&mut self, crossed: Vec<(Text, Diff)>, give: &mut impl FnMut(Out<D>, Diff)) {
        let mut unknown = Vec::new();
        for (text, diff) in crossed {
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
