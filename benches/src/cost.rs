//! What a run cost, read from `/proc`: no profiler, and nothing inside the program that is measured.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

/// How often a child's memory is looked at, which is also how exactly its end is known.
const POLL: Duration = Duration::from_millis(10);

/// The unit of CPU time in `/proc`: Linux tells programs a hundredth of a second, on every platform
/// that Assay runs on.
const TICK: Duration = Duration::from_millis(10);

/// How much of a failed child's log is shown.
const TAIL_LINES: usize = 20;

/// Time that was spent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spent {
    /// From start to end.
    pub(crate) wall: Duration,
    /// User and system time of all threads, in steps of 10 ms.
    pub(crate) cpu: Duration,
}

impl Spent {
    /// What is left without the other; nothing if the other spent more.
    pub(crate) fn without(self, other: Self) -> Self {
        Self {
            wall: self.wall.saturating_sub(other.wall),
            cpu: self.cpu.saturating_sub(other.cpu),
        }
    }

    /// What this many times as much work would spend.
    pub(crate) fn times(self, factor: f64) -> Self {
        Self {
            wall: self.wall.mul_f64(factor),
            cpu: self.cpu.mul_f64(factor),
        }
    }

    /// The lesser of both, by each clock.
    pub(crate) fn least(self, other: Self) -> Self {
        Self {
            wall: self.wall.min(other.wall),
            cpu: self.cpu.min(other.cpu),
        }
    }
}

/// What a child process cost.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cost {
    /// From before it was started until it had ended.
    pub(crate) spent: Spent,
    /// The most memory that was resident at once.
    pub(crate) peak_bytes: u64,
}

impl Cost {
    /// The peak in MiB.
    pub(crate) fn peak_mib(&self) -> f64 {
        self.peak_bytes as f64 / f64::from(1 << 20)
    }
}

/// Runs a command to its end, with its output in `log`, and returns what it cost.
///
/// One at a time: the kernel keeps a single sum for all children that have ended.
///
/// # Errors
/// If it cannot be started or fails; then the end of its log is told.
pub(crate) fn of_child(mut command: Command, log: &Path) -> anyhow::Result<Cost> {
    let create = || format!("cannot write \"{}\"", log.display());
    let output = File::create(log).with_context(create)?;
    let errors = output.try_clone().with_context(create)?;
    let program = command.get_program().to_string_lossy().into_owned();
    let before = CpuTime::now()?;
    let started = Instant::now();
    let child = command
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(errors)
        .spawn()
        .with_context(|| format!("cannot start \"{program}\""))?;
    let (status, peak_bytes) = follow(child)?;
    let wall = started.elapsed();
    let cpu = CpuTime::now()?.children.saturating_sub(before.children);
    if !status.success() {
        bail!(
            "\"{program}\" failed ({status}); its last words:\n{}",
            tail(log)
        );
    }
    Ok(Cost {
        spent: Spent { wall, cpu },
        peak_bytes,
    })
}

/// Waits for a child, and returns how it ended and its greatest resident memory.
fn follow(mut child: Child) -> anyhow::Result<(ExitStatus, u64)> {
    let status_file = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    loop {
        // The kernel keeps the maximum, so only growth in the last moment can be missed.
        let text = fs::read_to_string(&status_file).unwrap_or_default();
        peak = peak.max(memory(&text, PEAK).unwrap_or(0));
        if let Some(status) = child.try_wait().context("cannot wait for a child")? {
            return Ok((status, peak));
        }
        thread::sleep(POLL);
    }
}

/// Runs a closure in this process, and returns its answer and the time that all threads spent.
///
/// # Errors
/// If the closure fails.
pub(crate) fn of_work<T>(work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<(T, Spent)> {
    let before = CpuTime::now()?;
    let started = Instant::now();
    let answer = work()?;
    let wall = started.elapsed();
    let cpu = CpuTime::now()?.own.saturating_sub(before.own);
    Ok((answer, Spent { wall, cpu }))
}

/// CPU time since the start of this process, user and system together.
#[derive(Debug, PartialEq)]
struct CpuTime {
    own: Duration,
    /// Of children that have ended and been waited for.
    children: Duration,
}

impl CpuTime {
    fn now() -> anyhow::Result<Self> {
        let stat = fs::read_to_string("/proc/self/stat").context("cannot read /proc/self/stat")?;
        Self::parse(&stat).context("cannot understand /proc/self/stat")
    }

    fn parse(stat: &str) -> Option<Self> {
        // The program's name stands in parentheses and may hold any character, these two included.
        let (_, fields) = stat.rsplit_once(')')?;
        let times: Vec<u32> = fields
            .split_whitespace()
            .skip(11)
            .take(4)
            .map(|field| field.parse().ok())
            .collect::<Option<_>>()?;
        let [user, system, children_user, children_system] = times[..] else {
            return None;
        };
        Some(Self {
            own: TICK * user + TICK * system,
            children: TICK * children_user + TICK * children_system,
        })
    }
}

/// The greatest resident memory so far, as a process's status names it.
pub(crate) const PEAK: &str = "VmHWM:";

/// The resident memory now.
pub(crate) const NOW: &str = "VmRSS:";

/// A figure of a process's memory in MiB; 0 once the process has ended.
pub(crate) fn memory_mib(process: u32, figure: &str) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    memory(&status, figure).unwrap_or(0) as f64 / 1_048_576.0
}

/// A figure in bytes of a `/proc/PID/status`; none once the process has ended.
fn memory(status: &str, figure: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(figure))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

fn tail(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_times_are_found_behind_a_name_with_parentheses() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 1 0 0 0 150 50 300 25 20 0 1 0 4711";
        let expected = CpuTime {
            own: Duration::from_secs(2),
            children: Duration::from_millis(3_250),
        };
        assert_eq!(CpuTime::parse(stat), Some(expected));
        assert_eq!(CpuTime::parse("7 (a) S 1 7"), None);
    }

    #[test]
    fn memory_is_in_bytes() {
        let status = "Name:\tassay\nVmHWM:\t    2048 kB\nVmRSS:\t  1024 kB\n";
        assert_eq!(memory(status, PEAK), Some(2_097_152));
        assert_eq!(memory("Name:\tassay\nState:\tZ (zombie)\n", PEAK), None);
    }

    #[test]
    fn a_child_is_charged_and_its_failure_told() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let shell = |script: &str| {
            let mut command = Command::new("sh");
            command.args(["-c", script]);
            of_child(command, &log)
        };
        let cost = shell("i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done").unwrap();
        assert!(cost.spent.cpu > Duration::ZERO && cost.peak_bytes > 0);
        let error = shell("echo so sad >&2; exit 3").unwrap_err().to_string();
        assert!(error.contains("so sad") && error.contains('3'), "{error}");
    }
}
