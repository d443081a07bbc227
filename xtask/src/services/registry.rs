//! Apicurio Registry: the schemas of Avro messages, told to clients the way Confluent's registry does and
//! to the converters of Connect in its own.
//!
//! It keeps them in memory. After a restart ids are given out anew, so no schema is found for the messages
//! that topics hold from before, or a wrong one; and a converter at work does not notice.

use std::process::Command;

use super::{Settings, http, jars, loopback};
use crate::failure::Outcome;

const FOR_CLIENTS: &str = "/apis/ccompat/v7";
const FOR_CONVERTERS: &str = "/apis/registry/v2";

/// What tests find it by.
pub(super) fn environment(settings: &Settings) -> [(&'static str, String); 2] {
    let url = |path| format!("http://{}{path}", loopback(settings.registry_port));
    [
        ("ASSAY_TEST_REGISTRY", url(FOR_CLIENTS)),
        ("ASSAY_TEST_REGISTRY_CONVERTER", url(FOR_CONVERTERS)),
    ]
}

pub(super) fn prepare(settings: &Settings) -> Outcome<Command> {
    let address = loopback(settings.registry_port);
    let mut command = jars::machine(settings)?;
    command
        .arg(format!("-Dquarkus.http.host={}", address.ip()))
        .arg(format!("-Dquarkus.http.port={}", address.port()))
        .arg("-jar")
        .arg(jars::of_registry(settings));
    Ok(command)
}

pub(super) fn ready(settings: &Settings) -> bool {
    let subjects = format!("{FOR_CLIENTS}/subjects");
    http::get(loopback(settings.registry_port), &subjects).is_ok()
}
