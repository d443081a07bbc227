//! Data that waits for its epoch to complete, with the right to answer at that epoch.

use std::collections::BTreeMap;

use timely::dataflow::operators::{Capability, InputCapability};
use timely::progress::Timestamp;
use timely::progress::frontier::MutableAntichain;

use crate::change::{Diff, Epoch};

/// Data by epoch, each epoch with the capability to send at it.
///
/// Held: an epoch's capability lives exactly as long as its data waits, so the frontier downstream
/// never passes an epoch that has still to be answered, and never waits for one that has been.
pub(super) struct Stash<D, T: Timestamp = Epoch> {
    epochs: BTreeMap<T, (Capability<T>, Vec<D>)>,
}

impl<D, T: Timestamp> Stash<D, T> {
    pub(super) fn new() -> Self {
        Self {
            epochs: BTreeMap::new(),
        }
    }

    /// The data that waits for `epoch`, which must not precede the capability's own time.
    pub(super) fn at(&mut self, capability: &InputCapability<T>, epoch: T) -> &mut Vec<D> {
        let held = || (capability.delayed(&epoch, 0), Vec::new());
        &mut self.epochs.entry(epoch.clone()).or_insert_with(held).1
    }

    /// Adds data to what waits for the capability's own time, and takes it out of `data`.
    pub(super) fn append(&mut self, capability: &InputCapability<T>, data: &mut Vec<D>) {
        let waiting = self.at(capability, capability.time().clone());
        match waiting.is_empty() {
            // Often all of an epoch comes at once.
            true => std::mem::swap(waiting, data),
            false => waiting.append(data),
        }
    }

    /// The same, for an operator that defers what it already holds.
    pub(super) fn defer(&mut self, capability: &Capability<T>, epoch: T) -> &mut Vec<D> {
        let held = || (capability.delayed(&epoch), Vec::new());
        &mut self.epochs.entry(epoch.clone()).or_insert_with(held).1
    }

    /// The oldest epoch, if every frontier has passed it: nothing can come any more that stands before
    /// it in the order of its type, or beside it.
    pub(super) fn first_complete(&self, frontiers: &[&MutableAntichain<T>]) -> Option<&T> {
        let epoch = self.epochs.first_key_value()?.0;
        let awaited =
            |frontier: &&MutableAntichain<T>| frontier.frontier().iter().any(|at| at <= epoch);
        (!frontiers.iter().any(awaited)).then_some(epoch)
    }

    /// Takes the oldest epoch out, if it is complete.
    pub(super) fn pop_complete(
        &mut self,
        frontiers: &[&MutableAntichain<T>],
    ) -> Option<(Capability<T>, Vec<D>)> {
        self.first_complete(frontiers)?;
        self.epochs.pop_first().map(|(_, waiting)| waiting)
    }

    /// Takes an epoch out.
    pub(super) fn take(&mut self, epoch: &T) -> Option<(Capability<T>, Vec<D>)> {
        self.epochs.remove(epoch)
    }
}

impl<R, T: Timestamp> Stash<(R, Diff), T> {
    /// Adds changes to what waits for their epochs, and takes them out of `changes`.
    pub(super) fn add(&mut self, capability: &InputCapability<T>, changes: &mut Vec<(R, T, Diff)>) {
        while let Some((_, epoch, _)) = changes.first() {
            let epoch = epoch.clone();
            // Nearly always all of them.
            let run = changes.iter().take_while(|(_, at, _)| *at == epoch);
            let run = changes.drain(..run.count());
            self.at(capability, epoch)
                .extend(run.map(|(row, _, diff)| (row, diff)));
        }
    }
}
