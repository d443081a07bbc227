//! The instants at which a test may end the process, as `kill -9` would.
//!
//! `ASSAY_CRASH_AT=manifest-put:3` ends it when it comes by `manifest-put` for the third time. The
//! check is in every build, so that what is tested is what runs.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// All instants, in the order in which a run comes by them.
pub const POINTS: [&str; 9] = [
    "restore-begun",
    "table-recovered",
    "writer-changed",
    "file-written",
    "file-compacted",
    "rows-removed",
    "manifest-put",
    "table-committed",
    "log-tidied",
];

struct Target {
    point: String,
    passes_left: AtomicU64,
}

/// Ends the process here, if a test asked for it.
pub fn point(name: &str) {
    static TARGET: OnceLock<Option<Target>> = OnceLock::new();
    let target = TARGET.get_or_init(|| parse(&std::env::var("ASSAY_CRASH_AT").ok()?));
    if let Some(target) = target.as_ref().filter(|target| target.point == name)
        && target.passes_left.fetch_sub(1, Ordering::Relaxed) == 1
    {
        // Unlike exit, this runs nothing: no destructor, no buffered write, no lease given back.
        std::process::abort();
    }
}

fn parse(text: &str) -> Option<Target> {
    let (point, passes) = text.split_once(':').unwrap_or((text, "1"));
    let passes_left = AtomicU64::new(passes.parse().ok()?);
    let point = point.to_owned();
    Some(Target { point, passes_left })
}
