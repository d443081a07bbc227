//! Kafka Connect: one worker in distributed mode with Debezium's PostgreSQL connector as its only plugin.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::time::Duration;

use super::{Settings, jars, loopback};
use crate::failure::Outcome;

const ANSWER_LIMIT: Duration = Duration::from_secs(5);
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

/// Returns what the server answers, if its status is 200.
fn get(address: SocketAddr, path: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, ANSWER_LIMIT)?;
    stream.set_read_timeout(Some(ANSWER_LIMIT))?;
    stream.set_write_timeout(Some(ANSWER_LIMIT))?;
    // Version 1.0: the answer ends with the connection and comes in one piece.
    write!(
        stream,
        "GET {path} HTTP/1.0\r\nHost: {address}\r\nAccept: application/json\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    if status_of(&answer) == Some(200) {
        return Ok(answer);
    }
    Err(io::Error::other("the answer is not a success"))
}

/// The second word of the first line, as in `HTTP/1.1 200 OK`.
fn status_of(answer: &str) -> Option<u16> {
    answer.split_whitespace().nth(1)?.parse().ok()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_is_read_from_the_first_line() {
        assert_eq!(status_of("HTTP/1.1 200 OK\r\n\r\n[]"), Some(200));
        assert_eq!(
            status_of("HTTP/1.1 503 Service Unavailable\r\n\r\n"),
            Some(503)
        );
        assert_eq!(status_of(""), None);
    }
}
