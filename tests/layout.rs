//! The rooms of the workspace: heavy dependencies stay where they belong, and leaves do not know one
//! another, so that each is built and tested alone.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on should fail there"
)]

use std::collections::BTreeSet;
use std::process::Command;

use serde_json::Value;

/// A dependency, and the only members that may name it.
const ROOMS: [(&str, &[&str]); 11] = [
    ("timely", &["assay", "dataflows"]),
    ("differential-dataflow", &["dataflows"]),
    ("rdkafka", &["benches", "connectors"]),
    ("reqwest", &["assay", "connectors"]),
    ("deltalake", &["connectors"]),
    ("tokio-postgres", &["assay", "benches", "connectors"]),
    ("tract-onnx", &["models"]),
    ("ort", &["models"]),
    ("tokenizers", &["models"]),
    ("datafusion", &["sql"]),
    ("axum", &["assay"]),
];

/// Members that know none of the others.
const LEAVES: [&str; 5] = ["connectors", "dataflows", "models", "sql", "xtask"];

fn members() -> Vec<(String, BTreeSet<String>)> {
    let output = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--format-version",
            "1",
            "--no-deps",
            "--offline",
            "--locked",
        ])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let name = |value: &Value| value["name"].as_str().unwrap().to_owned();
    let packages = metadata["packages"].as_array().unwrap().iter();
    packages
        .map(|package| {
            (
                name(package),
                package["dependencies"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(name)
                    .collect(),
            )
        })
        .collect()
}

#[test]
fn heavy_dependencies_stay_in_their_rooms() {
    for (member, dependencies) in members() {
        for (dependency, rooms) in ROOMS {
            let at_home = rooms.contains(&member.as_str());
            assert!(
                at_home || !dependencies.contains(dependency),
                "{member} must not depend on {dependency}"
            );
        }
    }
}

#[test]
fn leaves_do_not_know_one_another() {
    let members = members();
    for leaf in LEAVES {
        let (_, dependencies) = members.iter().find(|(name, _)| name == leaf).unwrap();
        for (other, _) in &members {
            assert!(
                !dependencies.contains(other),
                "{leaf} must not depend on {other}"
            );
        }
    }
}

/// Neither knows the other, and both must call it the same.
#[test]
fn the_column_that_holds_others_has_one_mark() {
    assert_eq!(dataflows::record::FURTHER, connectors::delta::further::MARK);
}
