//! Rows a batch at a time, for steps that every row goes through.
//!
//! What such a step costs is moving rows and waiting for memory. Both are less for a batch: rows go straight into
//! the next one, and what they lead to is fetched for all of them before the first is worked on.

use std::hint::black_box;

use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::generic::Operator;

use differential_dataflow::AsCollection;

use crate::change::{Change, Collection};

/// Returns what is made of each row, at the same epoch and as often.
///
/// `touch` looks at whatever is needed of a row that does not stand in the row itself, and answers anything that
/// depends on it.
pub fn map_batches<'s, D: 'static, E: Clone + 'static>(
    rows: Collection<'s, D>,
    name: &str,
    touch: impl Fn(&D) -> usize + 'static,
    make: impl Fn(D) -> E + 'static,
) -> Collection<'s, E> {
    let made = rows.inner.unary(Pipeline, name, |_, _| {
        move |input, output| {
            input.for_each(|capability, batch| {
                fetch(batch, &touch);
                let mut made: Vec<_> = batch
                    .drain(..)
                    .map(|(row, epoch, diff)| (make(row), epoch, diff))
                    .collect();
                output.session(&capability).give_container(&mut made);
            });
        }
    });
    made.as_collection()
}

/// Has the processor fetch what rows lead to: the waits for memory overlap, that come one after another if each row
/// is worked on before the next is looked at.
pub fn fetch<D>(batch: &[Change<D>], touch: impl Fn(&D) -> usize) {
    black_box(batch.iter().map(|(row, _, _)| touch(row)).sum::<usize>());
}
