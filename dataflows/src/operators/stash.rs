//! Data that waits for its epoch to complete, with the right to answer at that epoch.

use std::collections::BTreeMap;

use timely::dataflow::operators::{Capability, InputCapability};
use timely::progress::frontier::MutableAntichain;

use crate::change::Epoch;

/// Data by epoch, each epoch with the capability to send at it.
///
/// Held: an epoch's capability lives exactly as long as its data waits, so the frontier downstream
/// never passes an epoch that has still to be answered, and never waits for one that has been.
pub(super) struct Stash<D> {
    epochs: BTreeMap<Epoch, (Capability<Epoch>, Vec<D>)>,
}

impl<D> Stash<D> {
    pub(super) fn new() -> Self {
        Self {
            epochs: BTreeMap::new(),
        }
    }

    /// The data that waits for `epoch`, which must not precede the capability's own time.
    pub(super) fn at(&mut self, capability: &InputCapability<Epoch>, epoch: Epoch) -> &mut Vec<D> {
        let entry = self.epochs.entry(epoch);
        &mut entry
            .or_insert_with(|| (capability.delayed(&epoch, 0), Vec::new()))
            .1
    }

    /// The same, for an operator that defers what it already holds.
    pub(super) fn defer(&mut self, capability: &Capability<Epoch>, epoch: Epoch) -> &mut Vec<D> {
        let entry = self.epochs.entry(epoch);
        &mut entry
            .or_insert_with(|| (capability.delayed(&epoch), Vec::new()))
            .1
    }

    /// Takes the oldest epoch out, if every frontier has passed it.
    pub(super) fn pop_complete(
        &mut self,
        frontiers: &[&MutableAntichain<Epoch>],
    ) -> Option<(Capability<Epoch>, Vec<D>)> {
        let epoch = self.epochs.first_key_value()?.0;
        if frontiers.iter().any(|frontier| frontier.less_equal(epoch)) {
            return None;
        }
        self.epochs.pop_first().map(|(_, waiting)| waiting)
    }
}
