//! How long workers spend on each stage, from what timely tells of its operators.
//!
//! A pipeline is built stage by stage, and a stage ends with the arrangement of its relation, which bears
//! the relation's name. So an operator belongs to the first relation that was arranged after it was built.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use dataflows::pipelines::mentions::RELATIONS;
use timely::logging::{StartStop, TimelyEvent, TimelyEventBuilder};
use timely::worker::Worker;

use crate::wire::Process;

/// Adds up from now on what this worker spends; to be called before the pipeline is built.
pub fn watch(worker: &Worker, process: &Arc<Process>) {
    let Some(mut registry) = worker.log_register() else {
        return;
    };
    let mut operators = Operators::default();
    let process = Arc::clone(process);
    registry.insert::<TimelyEventBuilder, _>("timely", move |_, events| {
        let events = events
            .as_mut()
            .into_iter()
            .flat_map(|events| events.drain(..));
        for (time, event) in events {
            if let Some((relation, spent)) = operators.hear(time, event)
                && let Some(stage) = process.progress().stage(relation)
            {
                let spent = spent.as_micros() as u64;
                stage.busy_us.fetch_add(spent, Ordering::Relaxed);
            }
        }
    });
}

#[derive(Default)]
struct Operators {
    /// Those whose stage is not known yet.
    unassigned: Vec<usize>,
    stages: HashMap<usize, &'static str>,
    /// Since when an operator has been running.
    started: HashMap<usize, Duration>,
}

impl Operators {
    /// Returns the relation that time was spent on, if an operator of one has just come to rest.
    fn hear(&mut self, time: Duration, event: TimelyEvent) -> Option<(&'static str, Duration)> {
        match event {
            // Operators inside others are counted with those: an address is a path of numbers.
            TimelyEvent::Operates(operator) if operator.addr.len() == 2 => {
                self.unassigned.push(operator.id);
                let arranged = RELATIONS
                    .iter()
                    .find(|name| operator.name.ends_with(**name));
                if let Some(relation) = arranged {
                    let of_stage = self.unassigned.drain(..);
                    self.stages.extend(of_stage.map(|id| (id, *relation)));
                }
                None
            }
            TimelyEvent::Schedule(schedule) if self.stages.contains_key(&schedule.id) => {
                match schedule.start_stop {
                    StartStop::Start => {
                        self.started.insert(schedule.id, time);
                        None
                    }
                    StartStop::Stop => {
                        let started = self.started.remove(&schedule.id)?;
                        let relation = self.stages.get(&schedule.id)?;
                        Some((relation, time.saturating_sub(started)))
                    }
                }
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use timely::logging::{OperatesEvent, ScheduleEvent};

    use super::*;

    #[test]
    fn time_goes_to_the_relation_that_is_arranged_next() {
        let mut operators = Operators::default();
        let built = |id, name: &str, addr: &[usize]| {
            TimelyEvent::Operates(OperatesEvent {
                id,
                addr: addr.to_vec(),
                name: name.to_owned(),
            })
        };
        let ran = |id, start_stop| TimelyEvent::Schedule(ScheduleEvent { id, start_stop });
        let at = Duration::from_millis;
        for event in [
            built(1, "upsert", &[0, 1]),
            built(2, "inside", &[0, 1, 1]),
            built(3, "Arrange: bronze", &[0, 2]),
            built(4, "explode", &[0, 3]),
        ] {
            assert_eq!(operators.hear(at(0), event), None);
        }
        for id in [1, 2, 4] {
            assert_eq!(operators.hear(at(5), ran(id, StartStop::Start)), None);
        }
        let stopped = operators.hear(at(7), ran(1, StartStop::Stop));
        assert_eq!(stopped, Some(("bronze", at(2))));
        for id in [2, 4] {
            assert_eq!(operators.hear(at(8), ran(id, StartStop::Stop)), None);
        }
    }
}
