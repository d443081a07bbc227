//! Runs clippy over the workspace's crates, using the dependencies that were compiled for the program and its tests.
//!
//! `cargo clippy` checks instead of building, and cargo does not reuse a build's output for a check: all dependencies
//! would be compiled a second time, up to their metadata. So this is a build in which clippy replaces the compiler of
//! the workspace's members:
//!
//! ```text
//! cargo build --all-targets ─┬─> rustc ARGS                                for a dependency: compiled as usual
//!                            └─> xtask RUSTC ARGS ─> clippy-driver ARGS'   for a member: linted, no code generated
//! ```
//!
//! The program in the target folder stays as it is: cargo gives the output of another compiler another name, and the
//! linter writes no program that cargo could copy over the real one. For the same reason members are linted every time.

use std::env;
use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// The variable that names the compiler of the workspace's members for cargo.
pub(crate) const WRAPPER: &str = "RUSTC_WORKSPACE_WRAPPER";

/// Arguments of the build that lints. All features are on, including those whose libraries the tests do not have.
pub(crate) const BUILD: [&str; 6] = [
    "build",
    "--release",
    "--workspace",
    "--all-targets",
    "--all-features",
    "--locked",
];

/// Returns whether cargo calls this program in place of the compiler, whose path is then the first argument.
pub(crate) fn stands_in(first: Option<&OsString>) -> bool {
    env::var_os(WRAPPER).is_some()
        && first.is_some_and(|first| Path::new(first).file_stem() == Some(OsStr::new("rustc")))
}

/// Lints one crate, given the arguments of the compiler. Returns only if the linter cannot be started.
pub(crate) fn run(arguments: &[OsString]) -> ExitCode {
    let Some((rustc, arguments)) = arguments.split_first() else {
        return ExitCode::FAILURE;
    };
    let mut command = if lints(arguments) {
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

/// Returns whether the call compiles a crate to lint. Other calls ask for the compiler's settings or make a build script.
fn lints(arguments: &[OsString]) -> bool {
    let has = |start: &str| {
        let starts = |argument: &OsString| argument.to_string_lossy().starts_with(start);
        arguments.iter().any(starts)
    };
    has(EMIT) && !has("build_script_")
}

/// Returns clippy's driver, which a toolchain keeps beside its compiler.
fn driver(rustc: &Path) -> PathBuf {
    let beside = rustc.with_file_name("clippy-driver");
    if beside.is_file() {
        beside
    } else {
        "clippy-driver".into()
    }
}

const EMIT: &str = "--emit=";

/// Removes code generation from an argument, and replaces a member's library, which has no code, by its metadata.
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
    fn a_crate_lints_without_making_code() {
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
    fn build_scripts_are_compiled() {
        let words = |line: &str| line.split(' ').map(OsString::from).collect::<Vec<_>>();
        let library = "--crate-name dataflows --emit=dep-info,metadata,link";
        assert!(lints(&words(library)));
        let script = "--crate-name build_script_build --emit=dep-info,link";
        assert!(!lints(&words(script)));
        assert!(!lints(&words("-vV")));
    }

    #[test]
    fn a_library_without_code_is_replaced_by_its_metadata() {
        let there = env::current_exe().unwrap();
        let folder = there.parent().unwrap().display();
        let absent = format!("assay={folder}/libabsent.rlib");
        assert_eq!(
            without_code(OsStr::new(&absent)),
            OsString::from(format!("assay={folder}/libabsent.rmeta"))
        );
    }
}
