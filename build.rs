//! Linker options that make the program smaller: identical functions are merged and relocations are packed, which saves
//! a fifteenth each.
//!
//! Not every linker knows them, and packed relocations need glibc 2.36, so each option is tried on an empty program.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

const OPTIONS: [&str; 2] = ["-Wl,--icf=all", "-Wl,-z,pack-relative-relocs"];

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    for option in OPTIONS {
        if works(option).unwrap_or(false) {
            println!("cargo:rustc-link-arg-bins={option}");
        }
    }
}

/// Returns whether a program that is linked with the option runs here; none if cargo does not say how to compile it.
fn works(option: &str) -> Option<bool> {
    let folder = env::var_os("OUT_DIR")?;
    let source = Path::new(&folder).join("empty.rs");
    let program = Path::new(&folder).join("empty");
    fs::write(&source, "fn main() {}\n").ok()?;
    let flags = env::var("CARGO_ENCODED_RUSTFLAGS").unwrap_or_default();
    let flags = flags.split('\x1f').filter(|flag| !flag.is_empty());
    let mut compile = Command::new(env::var_os("RUSTC")?);
    compile.args(flags).arg(&source).arg("-o").arg(&program);
    compile.arg("--target").arg(env::var_os("TARGET")?);
    compile.arg(format!("-Clink-arg={option}"));
    if let Some(linker) = env::var_os("RUSTC_LINKER") {
        let mut argument = OsString::from("-Clinker=");
        argument.push(linker);
        compile.arg(argument);
    }
    Some(succeeds(compile) && succeeds(Command::new(program)))
}

fn succeeds(mut command: Command) -> bool {
    let quiet = command.stdout(Stdio::null()).stderr(Stdio::null());
    quiet.status().is_ok_and(|status| status.success())
}
