//! Kafka Connect: one worker in distributed mode. Its plugins are Debezium's PostgreSQL connector and the
//! converters of the registry.

use std::process::Command;

use super::http::get;
use super::{Settings, jars, loopback};
use crate::failure::Outcome;

const CONNECTOR: &str = "io.debezium.connector.postgresql.PostgresConnector";

pub(super) fn prepare(settings: &Settings) -> Outcome<Command> {
    let configuration = settings.configure("connect.properties", &properties(settings))?;
    let mut command = jars::java(settings, "org.apache.kafka.connect.cli.ConnectDistributed")?;
    command.arg(configuration);
    Ok(command)
}

/// The first answer waits until the worker is a member of its group, so it takes connectors from then on.
pub(super) fn ready(settings: &Settings) -> bool {
    let address = loopback(settings.connect_port);
    get(address, "/connectors").is_ok()
        && get(address, "/connector-plugins").is_ok_and(|plugins| plugins.contains(CONNECTOR))
}

fn properties(settings: &Settings) -> String {
    format!(
        "\
bootstrap.servers={kafka}
listeners=http://{address}
rest.advertised.host.name={host}
plugin.path={plugins}
# Only what plugins declare: a search through all classes triples the time to start.
plugin.discovery=service_load

group.id=assay-connect
config.storage.topic=assay-connect-configs
offset.storage.topic=assay-connect-offsets
status.storage.topic=assay-connect-status
config.storage.replication.factor=1
offset.storage.replication.factor=1
status.storage.replication.factor=1
offset.storage.partitions=1
status.storage.partitions=1

# Plain JSON unless a connector says otherwise.
key.converter=org.apache.kafka.connect.json.JsonConverter
value.converter=org.apache.kafka.connect.json.JsonConverter
key.converter.schemas.enable=false
value.converter.schemas.enable=false

# Quick: a killed worker is missed after the shortest time the broker allows, and its work given away at once.
session.timeout.ms=6000
heartbeat.interval.ms=1000
scheduled.rebalance.max.delay.ms=0
offset.flush.interval.ms=1000
",
        kafka = loopback(settings.kafka_port),
        address = loopback(settings.connect_port),
        host = loopback(settings.connect_port).ip(),
        plugins = jars::plugins(settings).display(),
    )
}
