//! The whole check: lints and tests of the workspace against fresh services, which are stopped whatever happens.
//!
//! ```text
//! cargo xtask test ── spawns ──> guard            (own process group, reads our end of a pipe)
//!        │                         │
//!        ├── cargo fmt, build, test│  the pipe closes when we end, however we end
//!        └── end, ctrl-C, SIGKILL ─┴─> stops what cargo left running, then the services
//! ```
//!
//! The guard takes the place of signal handlers, which the standard library does not offer.

use std::env;
use std::fs::File;
use std::io::{self, BufRead, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::budget;
use crate::failure::{Failure, OrCannot, Outcome};
use crate::install::{self, Purpose};
use crate::lint;
use crate::process::{Reach, Signal, progress, send};
use crate::services::{self, Data, Settings};

/// The hidden command that this program starts itself with.
pub(crate) const GUARD: &str = "guard";

/// How long cargo and the tests get to end by themselves once the run is given up.
const GRACE: Duration = Duration::from_secs(1);

/// Variables that `cargo run` set for this program. Build scripts that watch them would run again, and all
/// that depends on them would be compiled again, at every change between `cargo test` and `cargo xtask test`.
const OF_CARGO_RUN: [&str; 5] = [
    "CARGO_PKG_",
    "CARGO_MANIFEST_",
    "CARGO_BIN_",
    "CARGO_CRATE_",
    "CARGO_PRIMARY_PACKAGE",
];

/// Runs the checks. With `arguments`, which are for `cargo test`, lints and the size of the build are left out.
pub(crate) fn run(settings: &Settings, arguments: &[String]) -> Outcome {
    services::make_directories(settings)?;
    install::prerequisites(&[Purpose::Compilation], &settings.log("apt"))?;
    let turn = services::turn(settings)?;
    let mut guard = Guard::start(&turn)?;
    let outcome = checks(settings, &mut guard, arguments);
    let stopped = guard.finish(settings);
    outcome.and(stopped)
}

/// Compiles while what the tests need is fetched and started, then runs the tests.
fn checks(settings: &Settings, guard: &mut Guard, arguments: &[String]) -> Outcome {
    let whole =
        arguments.is_empty() && env::var_os("ASSAY_SKIP_LINTS").is_none_or(|set| set != "1");
    let test = |extra: &[&str]| {
        let mut command = cargo(&["test", "--release", "--locked"]);
        if !arguments.iter().any(|argument| names_packages(argument)) {
            command.arg("--workspace");
        }
        command.args(extra).args(arguments);
        command
    };
    thread::scope(|scope| {
        let services = scope.spawn(|| {
            services::prepare(settings, Purpose::Tests)?;
            thread::scope(|scope| {
                let readers = scope.spawn(|| services::readers::fetch(settings));
                let services = services::up(settings, Data::Wipe);
                let readers = readers
                    .join()
                    .unwrap_or_else(|_| Err(Failure::new("the fetching of readers panicked")));
                services.and(readers)
            })
        });
        let compiled = compile(guard, whole, test(&["--no-run"]));
        let started = services
            .join()
            .unwrap_or_else(|_| Err(Failure::new("the start of the services panicked")));
        compiled.and(started)
    })?;
    let mut command = test(&[]);
    command.envs(services::environment(settings));
    guard.step("test", command)
}

fn compile(guard: &mut Guard, whole: bool, tests: Command) -> Outcome {
    if whole {
        guard.step("fmt", cargo(&["fmt", "--all", "--check"]))?;
        let this = env::current_exe().or_cannot(|| "find this program".to_owned())?;
        let mut clippy = cargo(&lint::BUILD);
        clippy.env(lint::WRAPPER, this);
        guard.step("clippy", clippy)?;
    }
    guard.step("compile", tests)?;
    if whole {
        budget::check(cargo(&budget::BUILD))?;
    }
    Ok(())
}

fn names_packages(argument: &str) -> bool {
    argument == "--workspace" || argument.starts_with("-p") || argument.starts_with("--package")
}

fn cargo(arguments: &[&str]) -> Command {
    let program = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(program);
    command.args(arguments);
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        if OF_CARGO_RUN.iter().any(|prefix| text.starts_with(prefix)) {
            command.env_remove(&name);
        }
    }
    command
}

/// The parent's handle of the process that cleans up after it.
struct Guard {
    process: Child,
    orders: ChildStdin,
}

impl Guard {
    fn start(turn: &File) -> Outcome<Self> {
        let spawn = || {
            Command::new(env::current_exe()?)
                .arg(GUARD)
                .stdin(Stdio::piped())
                // The lock belongs to the open file, so it lasts until the guard is done as well,
                // and the next run does not begin on services that are about to be stopped.
                .stdout(turn.try_clone()?)
                .process_group(0)
                .spawn()
        };
        let mut process =
            spawn().or_cannot(|| "start the guard that stops the services".to_owned())?;
        let orders = process
            .stdin
            .take()
            .ok_or_else(|| Failure::new("the guard has no standard input"))?;
        Ok(Self { process, orders })
    }

    /// Runs one command, known to the guard, and says how long it took.
    fn step(&mut self, name: &str, mut command: Command) -> Outcome {
        let begun = Instant::now();
        let mut child = command
            .stdin(Stdio::null())
            .process_group(0)
            .spawn()
            .or_cannot(|| format!("start cargo for `{name}`"))?;
        self.tell(child.id());
        let status = child.wait().or_cannot(|| format!("wait for `{name}`"))?;
        self.tell(0);
        let seconds = begun.elapsed().as_secs_f32();
        if status.success() {
            progress(name, &format!("passed in {seconds:.1} s"));
            return Ok(());
        }
        Err(Failure::with_code(
            format!("`{name}` failed after {seconds:.1} s"),
            code_of(status),
        ))
    }

    /// Names the process group to end if we end; 0 is none. A guard that is gone shows in `finish`.
    fn tell(&mut self, group: u32) {
        let _ = writeln!(self.orders, "{group}");
    }

    /// Lets the guard stop the services and waits for it.
    fn finish(mut self, settings: &Settings) -> Outcome {
        drop(self.orders);
        match self.process.wait() {
            Ok(status) if status.success() => Ok(()),
            _ => services::down(settings, Data::Keep),
        }
    }
}

/// What the guard does: it waits until the run ends, however it ends, and stops what it left behind.
pub(crate) fn guard(settings: &Settings) -> Outcome {
    let mut group = 0;
    for line in io::stdin().lock().lines().map_while(Result::ok) {
        group = line.trim().parse().unwrap_or(0);
    }
    if group != 0 {
        send(Signal::Terminate, group, Reach::Group)?;
        thread::sleep(GRACE);
        send(Signal::Kill, group, Reach::Group)?;
    }
    services::down(settings, Data::Keep)
}

/// The exit code as a shell would give it: 128 and the signal for a process that was killed.
fn code_of(status: ExitStatus) -> u8 {
    let code = status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}
