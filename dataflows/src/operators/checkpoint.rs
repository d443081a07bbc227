//! Gathers what changed in all tables, and the positions read, into one commit an epoch.

use serde::{Deserialize, Serialize};
use timely::container::CapacityContainerBuilder;
use timely::dataflow::StreamVec;
use timely::dataflow::channels::pact::Exchange;
use timely::dataflow::operators::generic::{Operator, OutputBuilderSession};
use timely::dataflow::operators::probe::Handle as Probe;
use timely::dataflow::operators::{Capability, Probe as _};

use super::stash::Stash;
use crate::change::{Epoch, Text, checkpoint_epoch};
use crate::ports::{Answers, Checkpoint, Committer};

/// Something that a table's log must say.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Change {
    /// The table's relation.
    pub relation: Text,
    /// The entry of its log, opaque to the dataflow.
    pub action: Text,
}

/// Up to where a source has been read.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Position {
    /// What is read in order: `topic/partition`.
    pub partition: Text,
    /// The offset of the first message that has not been read.
    pub next_offset: i64,
    /// When the last message before it was written, in milliseconds since 1970, if that is known.
    pub last_written: Option<i64>,
}

enum Part {
    Change(Change),
    Position(Position),
}

/// Nothing is sent; only the frontier tells.
type NoOutput<'o> = OutputBuilderSession<'o, Epoch, CapacityContainerBuilder<Vec<()>>>;

/// Commits each checkpoint once everything at or before its epoch has arrived, in order of epochs.
///
/// All parts travel to the worker that has the committer. The returned probe passes an epoch when
/// it is durable; until then the capability is held, so every worker sees how far commits lag.
pub fn checkpoint<'s>(
    changes: StreamVec<'s, Epoch, Change>,
    positions: StreamVec<'s, Epoch, Position>,
    mut committer: Option<Box<dyn Committer>>,
    interval: u64,
) -> Probe<Epoch> {
    let probe = Probe::new();
    let scope = changes.scope();
    let to_committer = || Exchange::new(|_: &_| COMMITTING_WORKER);
    let positions_to_committer = Exchange::new(|_: &Position| COMMITTING_WORKER);
    let durable: StreamVec<'s, Epoch, ()> = changes.binary_frontier(
        positions,
        to_committer(),
        positions_to_committer,
        "Checkpoint",
        |_, info| {
            let answers = Answers::new(&scope, &info);
            let mut stash: Stash<Part> = Stash::new();
            let mut in_flight: Option<Capability<Epoch>> = None;
            move |(changes, changes_frontier),
                  (positions, positions_frontier),
                  _: &mut NoOutput<'_>| {
                changes.for_each(|capability, data| {
                    let epoch = checkpoint_epoch(*capability.time(), interval);
                    stash
                        .at(&capability, epoch)
                        .extend(data.drain(..).map(Part::Change));
                });
                positions.for_each(|capability, data| {
                    let epoch = checkpoint_epoch(*capability.time(), interval);
                    stash
                        .at(&capability, epoch)
                        .extend(data.drain(..).map(Part::Position));
                });
                if answers.try_next().is_some() {
                    in_flight = None;
                }
                let Some(committer) = &mut committer else {
                    while stash
                        .pop_complete(&[changes_frontier, positions_frontier])
                        .is_some()
                    {}
                    return;
                };
                if in_flight.is_some() {
                    return;
                }
                let complete = stash.pop_complete(&[changes_frontier, positions_frontier]);
                if let Some((capability, parts)) = complete {
                    committer.commit(gather(*capability.time(), parts), answers.reply());
                    in_flight = Some(capability);
                }
            }
        },
    );
    durable.probe_with(&probe);
    probe
}

/// The worker that commits, by place; see [`crate::ports::Environment::committer`].
pub const COMMITTING_WORKER: u64 = 0;

fn gather(epoch: Epoch, parts: Vec<Part>) -> Checkpoint {
    let mut checkpoint = Checkpoint {
        epoch,
        changes: Vec::new(),
        positions: Vec::new(),
    };
    for part in parts {
        match part {
            Part::Change(change) => checkpoint.changes.push(change),
            Part::Position(position) => checkpoint.positions.push(position),
        }
    }
    checkpoint
}
