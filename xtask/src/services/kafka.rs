//! Kafka: one node that is broker and controller, every internal topic with a single copy. It listens
//! three times for clients: without any security, with TLS for those who know the password or bring a
//! token, and with TLS for those who show a certificate.

use std::fs::{self, File};
use std::io::Read;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Service, Settings, jars, loopback, remove_directory};
use crate::failure::{OrCannot, Outcome};
use crate::process::run_logged;

/// The port opens well before the broker serves, so the log has to say this as well.
const STARTED: &str = "Kafka Server started";
/// How much of the log is searched for it; the log begins anew at every start.
const SEARCHED_BYTES: u64 = 4 * 1024 * 1024;

/// What the user `assay` of the secure listener says, by any mechanism that asks for a password, and what
/// opens the key stores. It guards nothing: whoever reaches it reaches the open listener as well.
pub(crate) const PASSWORD: &str = "a password of the tests";

/// What the key stores call the key of each side.
const BROKER: &str = "broker";
const CLIENT: &str = "client";

/// The certificate that the broker shows, which is its own authority.
pub(super) fn authority(settings: &Settings) -> PathBuf {
    settings.directory.join("etc/kafka-certificate.pem")
}

/// The key and the certificate by which a client is known to the listener that asks for one.
pub(super) fn client_store(settings: &Settings) -> PathBuf {
    settings.directory.join("etc/kafka-client.p12")
}

fn key_store(settings: &Settings) -> PathBuf {
    settings.directory.join("etc/kafka-key.p12")
}

/// Makes a key and a certificate for the loopback interface, unless they are there.
fn make_certificate(settings: &Settings) -> Outcome {
    if authority(settings).exists() {
        return Ok(());
    }
    let store = key_store(settings);
    // One without its certificate was cut short.
    let _ = fs::remove_file(&store);
    // The new authority would not know what an earlier one issued.
    let _ = fs::remove_file(client_store(settings));
    let extensions = ["-ext", "san=ip:127.0.0.1,dns:localhost", "-ext", "bc:c"];
    make_pair(settings, &store, BROKER, "CN=localhost", &extensions)?;
    let certificate = authority(settings).display().to_string();
    let export = ["-exportcert", "-rfc", "-file", &certificate];
    key_tool(settings, &store, BROKER, &export)
}

/// Makes a key for clients and a certificate that the broker's key issues, unless they are there.
fn make_client_store(settings: &Settings) -> Outcome {
    let store = client_store(settings);
    if store.exists() {
        return Ok(());
    }
    // Begun as a copy of the broker's: only a key of the same store can sign. Half a store never bears
    // the name that is looked for.
    let unfinished = store.with_extension("unfinished");
    fs::copy(key_store(settings), &unfinished)
        .or_cannot(|| format!("write {}", unfinished.display()))?;
    let signed = ["-signer", BROKER];
    make_pair(settings, &unfinished, CLIENT, "CN=assay", &signed)?;
    // OpenSSL takes the first key that it finds.
    key_tool(settings, &unfinished, BROKER, &["-delete"])?;
    fs::rename(&unfinished, &store).or_cannot(|| format!("write {}", store.display()))
}

fn make_pair(
    settings: &Settings,
    store: &Path,
    alias: &str,
    name: &str,
    details: &[&str],
) -> Outcome {
    let pair = ["-genkeypair", "-keyalg", "EC", "-dname", name];
    let lifetime = ["-validity", "3650"];
    let arguments = [&pair[..], &lifetime, details].concat();
    key_tool(settings, store, alias, &arguments)
}

fn key_tool(settings: &Settings, store: &Path, alias: &str, arguments: &[&str]) -> Outcome {
    let mut command = jars::java(settings, "-m")?;
    command
        .arg("java.base/sun.security.tools.keytool.Main")
        .args(arguments)
        .args(["-alias", alias, "-storetype", "PKCS12"])
        .args(["-storepass", PASSWORD, "-keystore"])
        .arg(store);
    run_logged(command, &settings.log("kafka-certificate"))
}

pub(super) fn prepare(settings: &Settings) -> Outcome<Command> {
    make_certificate(settings)?;
    make_client_store(settings)?;
    let configuration = settings.configure("kafka.properties", &properties(settings))?;
    // The format command writes this file last: without it a killed run left half a format.
    let data = settings.data("kafka");
    if !data.join("meta.properties").exists() {
        remove_directory(&data)?;
        format(settings, &configuration)?;
    }
    let mut command = jars::java(settings, "kafka.Kafka")?;
    command.arg(configuration);
    Ok(command)
}

pub(super) fn ready(settings: &Settings) -> bool {
    says_started(settings) && TcpStream::connect(loopback(settings.kafka_port)).is_ok()
}

fn says_started(settings: &Settings) -> bool {
    let log = Service::Kafka.daemon(settings).log;
    let mut text = Vec::new();
    File::open(log)
        .and_then(|file| file.take(SEARCHED_BYTES).read_to_end(&mut text))
        .is_ok_and(|_| String::from_utf8_lossy(&text).contains(STARTED))
}

fn format(settings: &Settings, configuration: &Path) -> Outcome {
    let mut command = jars::java(settings, "kafka.tools.StorageTool")?;
    command
        .args(["format", "--cluster-id", &new_cluster_id()?, "--config"])
        .arg(configuration);
    for mechanism in ["SCRAM-SHA-256", "SCRAM-SHA-512"] {
        let user = format!("{mechanism}=[name=assay,password={PASSWORD}]");
        command.args(["--add-scram", &user]);
    }
    run_logged(command, &settings.log("kafka-format"))
}

/// Returns 16 random bytes as Kafka writes them: 22 characters of URL-safe base 64.
fn new_cluster_id() -> Outcome<String> {
    let mut random = [0; 22];
    File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut random))
        .or_cannot(|| "read /dev/urandom".to_owned())?;
    Ok(cluster_id(random))
}

fn cluster_id(random: [u8; 22]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let digit = |index: usize| match index {
        // A letter first: an id that begins with a dash is taken for an option.
        0 => usize::from(random[index] % 52),
        // The last digit has two bits of the sixteenth byte and four zeros.
        21 => usize::from(random[index] % 4) * 16,
        _ => usize::from(random[index] % 64),
    };
    (0..random.len())
        .map(|index| char::from(DIGITS[digit(index)]))
        .collect()
}

fn properties(settings: &Settings) -> String {
    let broker = loopback(settings.kafka_port);
    let controller = loopback(settings.controller_port);
    let secure = loopback(settings.secure_port);
    let certificate = loopback(settings.certificate_port);
    let clients = format!("PLAINTEXT://{broker},SASL_SSL://{secure},SSL://{certificate}");
    let security = security(settings);
    let data = settings.data("kafka");
    format!(
        "\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@{controller}
controller.listener.names=CONTROLLER
listeners={clients},CONTROLLER://{controller}
advertised.listeners={clients}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL_SSL:SASL_SSL,SSL:SSL
inter.broker.listener.name=PLAINTEXT
{security}
log.dirs={data}

# One node: the defaults ask for three copies and the first internal topic could never be made.
offsets.topic.replication.factor=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1

# Small: fifty partitions and 128 MiB for the cleaner are meant for more than a test.
offsets.topic.num.partitions=4
transaction.state.log.num.partitions=4
share.coordinator.state.topic.num.partitions=1
log.cleaner.dedupe.buffer.size=16777216
log.segment.bytes=67108864

# Quick: a consumer group does not wait for members who may still come.
group.initial.rebalance.delay.ms=0
# After a kill the new process is let in only when the old one counts as dead, by default after 9 s.
broker.session.timeout.ms=5000
broker.heartbeat.interval.ms=1000
auto.create.topics.enable=true
num.partitions=1
",
        data = data.display(),
    )
}

/// Returns the properties of the listeners with TLS: how the broker is known to clients and they to it.
fn security(settings: &Settings) -> String {
    let module =
        |name: &str| format!("org.apache.kafka.common.security.{name}LoginModule required");
    let plain = module("plain.Plain");
    let scram = module("scram.Scram");
    let token = module("oauthbearer.OAuthBearer");
    format!(
        "\
ssl.keystore.type=PKCS12
ssl.keystore.location={store}
ssl.keystore.password={PASSWORD}

sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512,OAUTHBEARER
listener.name.sasl_ssl.plain.sasl.jaas.config={plain} user_assay=\"{PASSWORD}\";
listener.name.sasl_ssl.scram-sha-256.sasl.jaas.config={scram};
listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config={scram};
# Without a callback handler any unsigned token is believed that names a subject and has not expired.
listener.name.sasl_ssl.oauthbearer.sasl.jaas.config={token};

listener.name.ssl.ssl.client.auth=required
listener.name.ssl.ssl.truststore.type=PEM
listener.name.ssl.ssl.truststore.location={authority}
",
        store = key_store(settings).display(),
        authority = authority(settings).display(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_id_has_22_characters_and_begins_with_a_letter() {
        assert_eq!(cluster_id([0; 22]), "AAAAAAAAAAAAAAAAAAAAAA");
        assert_eq!(cluster_id([255; 22]), "v____________________w");
    }
}
