//! Clippy over the workspace's own crates, with the dependencies that the program and its tests are built of.
//!
//! `cargo clippy` checks instead of building, and the one does not use what the other has left: all dependencies would
//! be read a second time, which takes longer than all the rest of the lints. So this is a build in which the compiler of
//! the workspace's members is replaced:
//!
//! ```text
//! cargo build --all-targets ─┬─> rustc                                            for a dependency: compiled as ever
//!                            └─> xtask RUSTC ARGS ─> clippy-driver RUSTC ARGS'    for a member: looked at, no code made
//! ```
//!
//! The program is left alone: what another compiler makes of a member has another name, and as it makes no program there
//! is none that cargo could put in place of the one that is there. For the same reason members are looked at each time.

use std::env;
use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// Says to cargo which program compiles the workspace's members.
pub(crate) const WRAPPER: &str = "RUSTC_WORKSPACE_WRAPPER";

/// The arguments of the build that lints: with features that the tests are without, since what they need at run
/// time is not there.
pub(crate) const BUILD: [&str; 6] = [
    "build",
    "--release",
    "--workspace",
    "--all-targets",
    "--all-features",
    "--locked",
];

/// Whether cargo calls this program in place of the compiler: its path is then the first argument.
pub(crate) fn stands_in(first: Option<&OsString>) -> bool {
    env::var_os(WRAPPER).is_some()
        && first.is_some_and(|first| Path::new(first).file_stem() == Some(OsStr::new("rustc")))
}

/// Looks at one crate, as the compiler would be called for it. Returns only if that cannot be started.
pub(crate) fn run(arguments: &[OsString]) -> ExitCode {
    let Some((rustc, arguments)) = arguments.split_first() else {
        return ExitCode::FAILURE;
    };
    let mut command = if is_looked_at(arguments) {
        let mut command = Command::new(driver(Path::new(rustc)));
        command.arg(rustc);
        command.args(arguments.iter().map(|argument| without_code(argument)));
        command.args(["-D", "warnings"]);
        command
    } else {
        let mut command = Command::new(rustc);
        command.args(arguments);
        command
    };
    let error = command.exec();
    eprintln!(
        "error: cannot start {}: {error}",
        command.get_program().display()
    );
    ExitCode::FAILURE
}

/// Whether this is about a crate to look at. Otherwise cargo asks for the compiler's settings, or will run what is made.
fn is_looked_at(arguments: &[OsString]) -> bool {
    let has = |start: &str| {
        let starts = |argument: &OsString| argument.to_string_lossy().starts_with(start);
        arguments.iter().any(starts)
    };
    has(EMIT) && !has("build_script_")
}

/// The toolchain's driver lies beside its compiler.
fn driver(rustc: &Path) -> PathBuf {
    let beside = rustc.with_file_name("clippy-driver");
    if beside.is_file() {
        beside
    } else {
        "clippy-driver".into()
    }
}

const EMIT: &str = "--emit=";

/// Leaves out what makes code. A crate of the workspace has no code here, only metadata beside where it would be.
fn without_code(argument: &OsStr) -> OsString {
    let Some(text) = argument.to_str() else {
        return argument.to_owned();
    };
    if let Some(kinds) = text.strip_prefix(EMIT) {
        let kept: Vec<&str> = kinds
            .split(',')
            .filter(|kind| !matches!(*kind, "link" | "metadata"))
            .chain(["metadata"])
            .collect();
        return format!("{EMIT}{}", kept.join(",")).into();
    }
    if let Some(library) = text.strip_suffix(".rlib")
        && let Some((_, path)) = text.split_once('=')
        && !Path::new(path).exists()
    {
        return format!("{library}.rmeta").into();
    }
    argument.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crate_is_looked_at_without_making_code() {
        let given = [
            "--emit=dep-info,metadata,link",
            "--test",
            "--emit=dep-info,link",
        ];
        let made: Vec<OsString> = given
            .iter()
            .map(|it| without_code(OsStr::new(it)))
            .collect();
        assert_eq!(
            made,
            [
                "--emit=dep-info,metadata",
                "--test",
                "--emit=dep-info,metadata"
            ]
        );
    }

    #[test]
    fn what_cargo_runs_is_made() {
        let words = |line: &str| line.split(' ').map(OsString::from).collect::<Vec<_>>();
        let library = "--crate-name dataflows --emit=dep-info,metadata,link";
        assert!(is_looked_at(&words(library)));
        let script = "--crate-name build_script_build --emit=dep-info,link";
        assert!(!is_looked_at(&words(script)));
        assert!(!is_looked_at(&words("-vV")));
    }

    #[test]
    fn a_library_that_has_no_code_is_known_by_its_metadata() {
        let there = env::current_exe().unwrap();
        let folder = there.parent().unwrap().display();
        let absent = format!("assay={folder}/libabsent.rlib");
        assert_eq!(
            without_code(OsStr::new(&absent)),
            OsString::from(format!("assay={folder}/libabsent.rmeta"))
        );
    }
}
