//! What others read over PostgreSQL's protocol, and what a browser shows: psycopg, JDBC and Chromium.
//!
//! Needs what `cargo xtask test` fetches.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on should fail there"
)]

mod support;

use std::path::PathBuf;
use std::process::Command;

use support::{Site, assay, free_port};

fn variable(name: &str) -> String {
    std::env::var(name).expect("set by `cargo xtask test`")
}

/// A script of this folder.
fn script(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/clients")
        .join(name)
}

fn succeeds(command: &mut Command) {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{complained}");
    println!("{said}");
}

fn generate(site: &Site, count: usize) {
    let tweets = site.path("tweets").display().to_string();
    let mut generate = assay();
    generate.args(["generate", "tweets", "--files", &tweets]);
    succeeds(generate.args(["--count", &count.to_string()]));
}

/// A site whose server is encrypted and has one user, and the port of its PostgreSQL protocol.
fn guarded() -> (Site, u16) {
    let port = free_port();
    let site = Site::new(&format!(
        "[model]\nenabled = false\n[tables]\nenabled = false\n[server.postgres]\nenabled = true\n\
         listen = \"127.0.0.1:{port}\"\nusers_file = \"users.txt\"\n\
         certificate_file = \"certificate.pem\"\nkey_file = \"key.pem\"\n"
    ));
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    std::fs::write(site.path("certificate.pem"), made.cert.pem()).unwrap();
    std::fs::write(site.path("key.pem"), made.signing_key.serialize_pem()).unwrap();
    std::fs::write(site.path("users.txt"), "reader:secret\n").unwrap();
    generate(&site, 2_000);
    (site, port)
}

#[test]
fn psycopg_reads() {
    let (site, port) = guarded();
    let running = site.start(&["--workers", "2"]);
    succeeds(
        Command::new(variable("ASSAY_TEST_PYTHON"))
            .arg(script("psycopg_client.py"))
            .args(["127.0.0.1", &port.to_string(), "reader", "secret"])
            .arg(site.path("certificate.pem")),
    );
    running.stop();
}

#[test]
fn jdbc_reads() {
    let (site, port) = guarded();
    let running = site.start(&["--workers", "2"]);
    let authority = site.path("certificate.pem");
    let url = format!(
        "jdbc:postgresql://127.0.0.1:{port}/assay?sslmode=verify-full&sslrootcert={}",
        authority.display()
    );
    succeeds(
        Command::new("java")
            .args(["-cp", &variable("ASSAY_TEST_JDBC")])
            .arg(script("Jdbc.java"))
            .args([&url, "reader", "secret"]),
    );
    running.stop();
}

#[test]
fn a_browser_shows_what_sql_answers_and_survives_its_server() {
    let site = Site::new("[tables]\nenabled = false\n");
    generate(&site, 400);
    let url = format!("http://127.0.0.1:{}", site.port);
    let python = variable("ASSAY_TEST_PYTHON");
    let running = site.start(&[]);
    succeeds(
        Command::new(&python)
            .arg(script("browser.py"))
            .args(["page", &url])
            .args([site.path("pictures"), site.path("tweets")]),
    );
    running.stop();
    succeeds(
        Command::new(&python)
            .arg(script("browser.py"))
            .args(["away", &url])
            .args([site.path("pictures"), env!("CARGO_BIN_EXE_assay").into()])
            .arg(site.path("assay.toml")),
    );
}
