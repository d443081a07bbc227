//! Runs a pipeline over what its last checkpoint holds, without reading its sources.
//!
//! That is what every start does first: all relations are derived from bronze anew, and compared with
//! their tables.

use std::sync::Arc;
use std::time::Duration;

use anyhow::anyhow;
use dataflows::change::Epoch;
use dataflows::pipelines::mentions;
use dataflows::ports::{Built, Environment};
use timely::dataflow::operators::probe::Handle as Probe;
use tokio::runtime::Runtime;

use crate::Stop;
use crate::plan::{ClusterPlan, Plan};
use crate::wire::{Process, WorkerEnvironment};

/// How long the worker sleeps when nothing is to be done; whatever brings work wakes it.
const REST: Duration = Duration::from_millis(50);

/// A process of one worker for this plan, whose tables are still to be opened.
///
/// # Errors
/// If the model cannot be used.
pub(crate) fn process(plan: &Plan, runtime: &Runtime) -> anyhow::Result<Arc<Process>> {
    let alone = Plan {
        server: None,
        sinks: Vec::new(),
        cluster: ClusterPlan {
            workers: 1,
            ..ClusterPlan::default()
        },
        ..plan.clone()
    };
    let process = Process::new(alone, runtime.handle().clone(), Arc::new(Stop::default()))?;
    Ok(Arc::new(process))
}

/// Runs the pipeline in an environment made from that of the process, to its end.
///
/// # Errors
/// If the tables cannot be read.
pub(super) fn derive<E: Environment>(
    process: &Arc<Process>,
    environment: impl FnOnce(WorkerEnvironment) -> E + Send + Sync + 'static,
) -> anyhow::Result<()> {
    let process = Arc::clone(process);
    let derived = timely::execute_directly(move |worker| {
        let mut environment = environment(process.environment(0));
        let settings = &process.plan().mentions;
        let built = worker
            .dataflow::<Epoch, _, _>(|scope| mentions::build(scope, &mut environment, settings));
        let Built {
            mut feeds,
            checkpointed,
            computed,
            ..
        } = built?;
        for feed in &mut feeds {
            feed.restore();
            feed.end();
        }
        let durable = || checkpointed.as_ref().is_none_or(Probe::done);
        while !(computed.done() && durable()) {
            worker.step_or_park(Some(REST));
        }
        Ok(())
    });
    derived.map_err(|error: String| anyhow!("cannot read the tables: {error}"))
}
