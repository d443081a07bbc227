//! Long-running processes that outlive this one: started, found again by their pid file, awaited and stopped.
//!
//! A pid file holds `PID STARTED`, the second being the start time the kernel keeps for the process.
//! Both must match, so a pid that was given to another program since is never taken for ours.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::failure::{Failure, OrCannot, Outcome};

const POLL: Duration = Duration::from_millis(50);
const TAIL_LINES: usize = 30;
const TAIL_BYTES: u64 = 16 * 1024;

/// Tells the user how one of the parts fares.
pub(crate) fn progress(part: &str, news: &str) {
    // Not eprintln!, which panics when stderr is closed: the guard must go on stopping services then.
    let _ = writeln!(io::stderr(), "{part:<9} {news}");
}

/// A process started here or by an earlier run, wherever its files say.
pub(crate) struct Daemon {
    pub(crate) name: &'static str,
    pub(crate) log: PathBuf,
    pub(crate) pid_file: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Signal {
    Interrupt,
    Terminate,
    Kill,
}

impl Signal {
    fn name(self) -> &'static str {
        match self {
            Signal::Interrupt => "INT",
            Signal::Terminate => "TERM",
            Signal::Kill => "KILL",
        }
    }
}

impl Daemon {
    /// Returns the pid if the process of the pid file is alive.
    pub(crate) fn running(&self) -> Option<u32> {
        let text = fs::read_to_string(&self.pid_file).ok()?;
        let (pid, started) = text.trim().split_once(' ')?;
        let pid = pid.parse().ok()?;
        let alive = start_time(pid)? == started.parse::<u64>().ok()?;
        alive.then_some(pid)
    }

    /// Starts `command` in a process group of its own, so that a terminal's ctrl-C does not reach it.
    pub(crate) fn spawn(&self, mut command: Command) -> Outcome {
        if self.log.exists() {
            // One generation back is kept: after a crash the log of before is the interesting one.
            let earlier = self.log.with_extension("log.1");
            fs::rename(&self.log, &earlier).or_cannot(|| format!("write {}", earlier.display()))?;
        }
        log_to(&mut command, &self.log)?;
        let mut child = command
            .stdin(Stdio::null())
            .process_group(0)
            .spawn()
            .or_cannot(|| format!("start {}", describe(&command)))?;
        let pid = child.id();
        // A process that is gone already is reported by `wait_until`, with its log.
        let started = start_time(pid).unwrap_or_default();
        fs::write(&self.pid_file, format!("{pid} {started}\n"))
            .or_cannot(|| format!("write {}", self.pid_file.display()))?;
        // Reaped here: a service stopped in the middle of a long test run would stay a zombie.
        thread::spawn(move || child.wait());
        Ok(())
    }

    /// Returns when `ready` says so; fails when the process dies first or `limit` has passed.
    pub(crate) fn wait_until(&self, limit: Duration, ready: impl Fn() -> bool) -> Outcome {
        let begun = Instant::now();
        while !ready() {
            let complaint = if self.running().is_none() {
                format!("{} ended before it was ready", self.name)
            } else if begun.elapsed() > limit {
                format!("{} was not ready in {} s", self.name, limit.as_secs())
            } else {
                thread::sleep(POLL);
                continue;
            };
            return Err(with_tail(complaint, &self.log));
        }
        Ok(())
    }

    /// Stops the process: `signal` first, SIGKILL after `limit`. A process that is not there is fine.
    pub(crate) fn stop(&self, signal: Signal, limit: Duration) -> Outcome {
        let Some(pid) = self.running() else {
            return remove_if_there(&self.pid_file);
        };
        let begun = Instant::now();
        send(signal, pid, Reach::Process)?;
        if self.gone_within(limit) {
            let verb = if signal == Signal::Kill {
                "killed"
            } else {
                "stopped"
            };
            progress(
                self.name,
                &format!("{verb} in {:.1} s", begun.elapsed().as_secs_f32()),
            );
        } else {
            send(Signal::Kill, pid, Reach::Group)?;
            if !self.gone_within(limit) {
                return Err(Failure::new(format!(
                    "{} (pid {pid}) did not end when killed",
                    self.name
                )));
            }
            progress(
                self.name,
                &format!("did not stop in {} s, killed", limit.as_secs()),
            );
        }
        remove_if_there(&self.pid_file)
    }

    fn gone_within(&self, limit: Duration) -> bool {
        let begun = Instant::now();
        while self.running().is_some() {
            if begun.elapsed() > limit {
                return false;
            }
            thread::sleep(POLL);
        }
        true
    }
}

/// Whom a signal is for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Reach {
    Process,
    /// The process group that the process leads.
    Group,
}

/// Sends a signal; that the process is gone by now is no failure.
pub(crate) fn send(signal: Signal, pid: u32, reach: Reach) -> Outcome {
    let target = match reach {
        Reach::Process => pid.to_string(),
        Reach::Group => format!("-{pid}"),
    };
    // The shell's own `kill`: the program of that name is missing on small systems.
    Command::new("sh")
        .args([
            "-c",
            "kill -s \"$1\" -- \"$2\"",
            "sh",
            signal.name(),
            &target,
        ])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .map(drop)
        .or_cannot(|| "run sh to send a signal".to_owned())
}

/// Runs a command to its end with its output in `log`.
pub(crate) fn run_logged(mut command: Command, log: &Path) -> Outcome {
    log_to(&mut command, log)?;
    let status = command
        .status()
        .or_cannot(|| format!("start {}", describe(&command)))?;
    if status.success() {
        return Ok(());
    }
    Err(with_tail(
        format!("{} failed ({status})", describe(&command)),
        log,
    ))
}

/// Sends the output of `command`, both streams, to a new file.
fn log_to(command: &mut Command, log: &Path) -> Outcome {
    let create = || {
        let file = File::create(log)?;
        Ok::<_, io::Error>((file.try_clone()?, file))
    };
    let (stdout, stderr) = create().or_cannot(|| format!("write {}", log.display()))?;
    command.stdout(stdout).stderr(stderr);
    Ok(())
}

fn describe(command: &Command) -> String {
    command.get_program().to_string_lossy().into_owned()
}

fn with_tail(complaint: String, log: &Path) -> Failure {
    let text = tail(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let kept = &lines[lines.len().saturating_sub(TAIL_LINES)..];
    Failure::new(format!(
        "{complaint}; the end of {}:\n  {}",
        log.display(),
        kept.join("\n  ")
    ))
}

fn tail(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn remove_if_there(path: &Path) -> Outcome {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.or_cannot(|| format!("remove {}", path.display())),
    }
}

/// Returns the pid of a process whose working directory this is.
pub(crate) fn working_in(directory: &Path) -> Option<u32> {
    let processes = fs::read_dir("/proc").ok()?.flatten();
    processes
        .filter(|process| {
            fs::read_link(process.path().join("cwd")).is_ok_and(|found| found == directory)
        })
        .find_map(|process| process.file_name().to_str()?.parse().ok())
}

/// Returns when the kernel started the process, in its ticks since boot; none if it does not run.
fn start_time(pid: u32) -> Option<u64> {
    parse_start_time(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn parse_start_time(stat: &str) -> Option<u64> {
    // The program's name stands in parentheses and may hold any character, these two included.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace();
    match fields.next()? {
        // Ended, and waiting for a parent that never asks: as good as gone.
        "Z" | "X" => None,
        _ => fields.nth(18)?.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIELDS: &str = "1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4711 8192 99";

    #[test]
    fn the_start_time_is_found_behind_a_name_with_parentheses() {
        let stat = format!("7 (a) b (c) S {FIELDS}");
        assert_eq!(parse_start_time(&stat), Some(4711));
    }

    #[test]
    fn a_zombie_does_not_run() {
        assert_eq!(parse_start_time(&format!("7 (java) Z {FIELDS}")), None);
    }

    #[test]
    fn a_process_is_found_by_its_pid_file_until_it_is_stopped() {
        let directory = std::env::temp_dir().join(format!("assay-xtask-{}", std::process::id()));
        fs::create_dir_all(&directory).expect("a temporary directory");
        let daemon = Daemon {
            name: "sleeper",
            log: directory.join("sleeper.log"),
            pid_file: directory.join("sleeper.pid"),
        };
        let mut command = Command::new("sleep");
        command.arg("60");
        daemon.spawn(command).expect("sleep starts");
        let pid = daemon.running().expect("it runs");

        // The same pid with another start time is another program.
        fs::write(&daemon.pid_file, format!("{pid} 1\n")).expect("the pid file");
        assert_eq!(daemon.running(), None);
        let started = start_time(pid).expect("it still runs");
        fs::write(&daemon.pid_file, format!("{pid} {started}\n")).expect("the pid file");

        daemon
            .stop(Signal::Terminate, Duration::from_secs(10))
            .expect("it stops");
        assert_eq!(daemon.running(), None);
        assert!(!daemon.pid_file.exists());
        fs::remove_dir_all(&directory).expect("the directory is ours");
    }
}
