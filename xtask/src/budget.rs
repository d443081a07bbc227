//! What a newcomer waits for: the build stays as small as it is, unless a limit is raised beside what makes it grow.

use std::collections::BTreeSet;
use std::fs;
use std::process::{Command, Stdio};

use crate::failure::{Failure, OrCannot, Outcome};
use crate::process::progress;

/// Packages that the program is built of, those included that only build it.
const PACKAGES: usize = 533;

/// Crates and build scripts that are compiled, and build scripts that are run.
const COMPILE_UNITS: usize = 685;

/// Megabytes of the program, the model included.
const PROGRAM_MB: usize = 100;

/// The build of the demo; `cargo run --release -- demo` compiles the same.
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

/// Counts what the demo is built of. All has been built before, so `build` has nothing to do but to tell.
pub(crate) fn check(mut build: Command) -> Outcome {
    let output = build.stdin(Stdio::null()).stderr(Stdio::inherit()).output();
    let output = output.or_cannot(|| "start cargo".to_owned())?;
    if !output.status.success() {
        return Err(Failure::new("the program could not be built"));
    }
    let found = Build::told(&String::from_utf8_lossy(&output.stdout))?;
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

/// A limit holds with a tenth to spare, so that it is not raised at every change.
fn within(what: &str, found: usize, limit: usize) -> Outcome {
    if found <= limit + limit / 10 {
        return Ok(());
    }
    Err(Failure::new(format!(
        "{found} {what}, more than a tenth above the limit of {limit}; leave something out, or raise the limit in {}",
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
    /// Reads cargo's messages, one in each line: of every crate that is there and of every script that has run.
    fn told(messages: &str) -> Outcome<Self> {
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
                .ok_or_else(|| Failure::new("cargo does not say where the program is"))?
                .to_owned(),
        })
    }
}

/// The value of a field that is a text without escapes, as names and paths of crates are.
fn text_of<'a>(message: &'a str, field: &str) -> Option<&'a str> {
    let (_, after) = message.split_once(&format!("\"{field}\":\""))?;
    after.split('"').next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crates_and_scripts_are_counted_and_the_last_program_is_taken() {
        let messages = [
            r#"{"reason":"compiler-artifact","package_id":"one@1","executable":null}"#,
            r#"{"reason":"compiler-message","package_id":"noise@1"}"#,
            r#"{"reason":"compiler-artifact","package_id":"two@2","executable":"/target/two"}"#,
            r#"{"reason":"build-script-executed","package_id":"two@2"}"#,
            r#"{"reason":"build-finished","success":true}"#,
        ];
        assert_eq!(
            Build::told(&messages.join("\n")).unwrap(),
            Build {
                packages: 2,
                units: 3,
                program: "/target/two".to_owned()
            }
        );
    }

    #[test]
    fn a_limit_is_passed_by_more_than_a_tenth_only() {
        assert!(within("packages", 110, 100).is_ok());
        assert!(within("packages", 111, 100).is_err());
    }
}
