//! Limits on the size of the build, which is the first thing that a new user waits for.

use std::collections::BTreeSet;
use std::fs;
use std::process::{Command, Stdio};

use crate::failure::{Failure, OrCannot, Outcome};
use crate::process::progress;

/// Packages in the build of the program, including those of build scripts and macros.
const PACKAGES: usize = 533;

/// Crates and build scripts compiled, and build scripts run.
const COMPILE_UNITS: usize = 685;

/// Size of the program, including its model, in millions of bytes.
const PROGRAM_MB: usize = 100;

/// Arguments of a build that compiles the same as `cargo run --release -- demo`.
pub(crate) const BUILD: [&str; 9] = [
    "build",
    "--release",
    "--package",
    "assay",
    "--bin",
    "assay",
    "--message-format",
    "json",
    "--locked",
];

/// Fails if the build of the program has grown past a limit. Everything is compiled already, so `build` only reports.
pub(crate) fn check(mut build: Command) -> Outcome {
    let output = build.stdin(Stdio::null()).stderr(Stdio::inherit()).output();
    let output = output.or_cannot(|| "start cargo".to_owned())?;
    if !output.status.success() {
        return Err(Failure::new("the program could not be built"));
    }
    let found = Build::parse(&String::from_utf8_lossy(&output.stdout))?;
    let program = fs::metadata(&found.program);
    let bytes = program
        .or_cannot(|| format!("find {}", found.program))?
        .len();
    let megabytes = usize::try_from(bytes / 1_000_000).unwrap_or(usize::MAX);
    progress(
        "budget",
        &format!(
            "{} packages, {} compile units, {megabytes} MB",
            found.packages, found.units
        ),
    );
    within("packages", found.packages, PACKAGES)?;
    within("compile units", found.units, COMPILE_UNITS)?;
    within("MB of program", megabytes, PROGRAM_MB)
}

/// Allows a tenth above the limit, so that not every change has to raise it.
fn within(what: &str, found: usize, limit: usize) -> Outcome {
    if found <= limit + limit / 10 {
        return Ok(());
    }
    Err(Failure::new(format!(
        "{found} {what}, more than a tenth above the limit of {limit}; remove a dependency, or raise the limit in {}",
        file!()
    )))
}

#[derive(Debug, PartialEq)]
struct Build {
    packages: usize,
    units: usize,
    program: String,
}

impl Build {
    /// Parses cargo's messages, one a line: one for every crate, fresh or not, and one for every build script that ran.
    fn parse(messages: &str) -> Outcome<Self> {
        let mut packages = BTreeSet::new();
        let mut units = 0;
        let mut program = None;
        for message in messages.lines() {
            let is = |reason: &str| message.starts_with(&format!("{{\"reason\":\"{reason}\""));
            if is("compiler-artifact") || is("build-script-executed") {
                units += 1;
                packages.extend(text_of(message, "package_id"));
                program = text_of(message, "executable").or(program);
            }
        }
        Ok(Self {
            packages: packages.len(),
            units,
            program: program
                .ok_or_else(|| Failure::new("cargo did not report where the program is"))?
                .to_owned(),
        })
    }
}

/// Returns the value of a string field that has no escapes, as identifiers and paths of packages do not.
fn text_of<'a>(message: &'a str, field: &str) -> Option<&'a str> {
    let (_, after) = message.split_once(&format!("\"{field}\":\""))?;
    after.split('"').next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crates_and_scripts_are_counted() {
        let messages = [
            r#"{"reason":"compiler-artifact","package_id":"one@1","executable":null}"#,
            r#"{"reason":"compiler-message","package_id":"noise@1"}"#,
            r#"{"reason":"compiler-artifact","package_id":"two@2","executable":"/target/two"}"#,
            r#"{"reason":"build-script-executed","package_id":"two@2"}"#,
            r#"{"reason":"build-finished","success":true}"#,
        ];
        assert_eq!(
            Build::parse(&messages.join("\n")).unwrap(),
            Build {
                packages: 2,
                units: 3,
                program: "/target/two".to_owned()
            }
        );
    }

    #[test]
    fn a_tenth_above_the_limit_is_allowed() {
        assert!(within("packages", 110, 100).is_ok());
        assert!(within("packages", 111, 100).is_err());
    }
}
