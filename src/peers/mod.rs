//! Brings the processes of a cluster together: sockets between all of them, each opened by someone
//! who knows the cluster's secret.
//!
//! Every process listens for those after it in the file of hosts and dials those before it. Whoever
//! dials speaks first:
//!
//! ```text
//!  dials                                     listens
//!    hello: who, of how many, with a nonce ──▶
//!                                          ◀── hello, and a seal over both hellos
//!    a seal over both hellos ────────────────▶
//! ```
//!
//! A seal is an HMAC-SHA-256 (RFC 2104) with the secret. It covers both nonces, so an old one proves
//! nothing, and says who gives it, so one's own sent back proves nothing either. Until a seal has
//! been checked nothing of what arrived is believed, and a connection that cannot give one is closed
//! and forgotten. What is sent afterwards is not sealed; with [`tls`], all of this is encrypted.

pub mod tls;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

use crate::plan::ClusterPlan;

/// How long a stranger may take to say who it is.
const PATIENCE: Duration = Duration::from_secs(5);

/// Pause between attempts to reach a process that is not there yet.
const REDIAL: Duration = Duration::from_millis(200);

/// How often it is told who is still missing.
const REMINDER: Duration = Duration::from_secs(5);

/// The most bytes of a hello.
const LONGEST_HELLO: usize = 512;

/// What all processes of a cluster know, and nobody else.
#[derive(Clone)]
pub struct Secret(Arc<[u8]>);

impl Secret {
    /// The fewest bytes of a secret.
    pub const SHORTEST: usize = 16;

    /// A secret, unless it is too short to be one.
    pub fn new(text: &str) -> Option<Self> {
        let text = text.trim();
        (text.len() >= Self::SHORTEST).then(|| Self(text.as_bytes().into()))
    }

    /// A new secret, as text.
    ///
    /// # Errors
    /// If the system has no random numbers.
    pub fn random() -> io::Result<String> {
        random_hex()
    }

    fn seal(&self, giver: &str, hello: &[u8], answer: &[u8]) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes any key");
        for part in [giver.as_bytes(), hello, answer] {
            mac.update(&(part.len() as u64).to_be_bytes());
            mac.update(part);
        }
        mac
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Secret")
    }
}

fn random_hex() -> io::Result<String> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(io::Error::other)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Why the processes do not come together.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// The own address cannot be listened on.
    #[error("cannot listen on {address} for the other processes: {source}")]
    Listen {
        /// The address, from the file of hosts.
        address: String,
        /// What the system said.
        source: io::Error,
    },
    /// What listens where a process should be does not know the secret.
    #[error(
        "what listens on {address} does not know the cluster's secret; give every process the same"
    )]
    Secret {
        /// The address, from the file of hosts.
        address: String,
    },
    /// A process of this cluster was started otherwise.
    #[error("process {process} differs: {difference}; start all processes alike")]
    Differs {
        /// Which.
        process: usize,
        /// In what.
        difference: String,
    },
    /// The system has no random numbers.
    #[error("cannot make a nonce: {0}")]
    Random(io::Error),
}

/// What a process says of itself first.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Hello {
    process: usize,
    processes: usize,
    workers: usize,
    version: String,
    nonce: String,
}

/// A connection that came to nothing.
enum Failure {
    /// It may have been anyone.
    Stranger(String),
    /// It was one of us, and going on cannot help.
    Fatal(PeerError),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Stranger(error.to_string())
    }
}

/// One process, as it introduces itself.
struct Introduction {
    cluster: ClusterPlan,
    secret: Secret,
}

/// The ways to all other processes.
#[derive(Debug)]
pub struct Peers {
    /// The socket of process i at place i, and none at the own place.
    pub sockets: Vec<Option<std::net::TcpStream>>,
    /// What passes on between a socket and its encrypted connection; without TLS there is nothing.
    bridges: Vec<JoinHandle<()>>,
}

impl Peers {
    /// Takes the sockets; what is returned must be awaited after they have been closed.
    pub fn split(self) -> (Vec<Option<std::net::TcpStream>>, Bridges) {
        (self.sockets, Bridges(self.bridges))
    }
}

/// What passes on between sockets and encrypted connections.
pub struct Bridges(Vec<JoinHandle<()>>);

impl Bridges {
    /// Waits until all has been passed on.
    pub async fn end(self) {
        let all = futures::future::join_all(self.0);
        // A peer that does not close its end has nothing to hear any more.
        let _ = tokio::time::timeout(PATIENCE, all).await;
    }
}

/// The way to one process, and what passes on, if it is encrypted.
type Way = (TcpStream, Option<JoinHandle<()>>);

/// Connects this process with all others; waits for them as long as it takes.
///
/// # Errors
/// If the own address cannot be listened on, or a process was started with another secret, version
/// or number of workers.
pub async fn connect(cluster: &ClusterPlan, secret: &Secret) -> Result<Peers, PeerError> {
    let own = Arc::new(Introduction {
        cluster: cluster.clone(),
        secret: secret.clone(),
    });
    let address = own.address(cluster.process);
    let listening = TcpListener::bind(&address).await;
    let listener = listening.map_err(|source| PeerError::Listen { address, source })?;
    let mut dialled = JoinSet::new();
    for other in 0..cluster.process {
        dialled.spawn(dial(Arc::clone(&own), other));
    }
    let mut greeted = JoinSet::new();
    let mut peers: Vec<Option<Way>> = cluster.hosts.iter().map(|_| None).collect();
    let mut reminder = tokio::time::interval(REMINDER);
    reminder.reset();
    while missing(&peers, cluster.process).next().is_some() {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, from)) => drop(greeted.spawn(greet(Arc::clone(&own), stream, from))),
                Err(error) => tracing::warn!(%error, "cannot accept a connection"),
            },
            Some(Ok(reached)) = dialled.join_next() => {
                let (process, way) = reached?;
                peers[process] = Some(way);
            }
            Some(Ok(known)) = greeted.join_next() => {
                // One that was started again takes the place of what it was.
                if let Some((process, way)) = known? {
                    peers[process] = Some(way);
                }
            }
            _ = reminder.tick() => {
                let missing: Vec<_> = missing(&peers, cluster.process)
                    .map(|process| format!("{process} ({})", cluster.hosts[process]))
                    .collect();
                tracing::info!("waiting for process {}", missing.join(", "));
            }
        }
    }
    let mut bridges = Vec::new();
    let mut blocking = |(stream, bridge): Way| {
        bridges.extend(bridge);
        let stream = stream.into_std()?;
        stream.set_nonblocking(false)?;
        Ok(stream)
    };
    let sockets = peers
        .into_iter()
        .map(|peer| peer.map(&mut blocking).transpose());
    let sockets = sockets
        .collect::<io::Result<_>>()
        .map_err(|source| PeerError::Listen {
            address: own.address(cluster.process),
            source,
        })?;
    Ok(Peers { sockets, bridges })
}

fn missing(peers: &[Option<Way>], own: usize) -> impl Iterator<Item = usize> {
    let absent = peers.iter().enumerate().filter(|(_, peer)| peer.is_none());
    absent
        .map(|(process, _)| process)
        .filter(move |process| *process != own)
}

/// Dials a process until it answers.
async fn dial(own: Arc<Introduction>, process: usize) -> Result<(usize, Way), PeerError> {
    loop {
        if let Ok(stream) = TcpStream::connect(own.address(process)).await {
            match tokio::time::timeout(PATIENCE, own.dial(process, stream)).await {
                Ok(Ok(way)) => return Ok((process, way)),
                Ok(Err(Failure::Fatal(error))) => return Err(error),
                // It may be about to end, or not yet what it will be.
                Ok(Err(Failure::Stranger(reason))) => {
                    tracing::debug!(process, reason, "cannot reach a process yet");
                }
                Err(_) => {}
            }
        }
        tokio::time::sleep(REDIAL).await;
    }
}

/// Finds out who dialled; strangers are told of in the log and forgotten.
async fn greet(
    own: Arc<Introduction>,
    stream: TcpStream,
    from: SocketAddr,
) -> Result<Option<(usize, Way)>, PeerError> {
    let reason = match tokio::time::timeout(PATIENCE, own.greet(stream)).await {
        Ok(Ok(known)) => return Ok(Some(known)),
        Ok(Err(Failure::Fatal(error))) => return Err(error),
        Ok(Err(Failure::Stranger(reason))) => reason,
        Err(_) => "it said nothing".to_owned(),
    };
    tracing::warn!(%from, reason, "refused a connection that is not of this cluster");
    Ok(None)
}

impl Introduction {
    fn address(&self, process: usize) -> String {
        self.cluster.hosts[process].clone()
    }

    fn hello(&self) -> Result<Vec<u8>, Failure> {
        let hello = Hello {
            process: self.cluster.process,
            processes: self.cluster.hosts.len(),
            workers: self.cluster.workers,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            nonce: random_hex().map_err(|error| Failure::Fatal(PeerError::Random(error)))?,
        };
        let mut line = serde_json::to_vec(&hello).map_err(io::Error::from)?;
        line.push(b'\n');
        Ok(line)
    }

    async fn dial(&self, process: usize, mut stream: TcpStream) -> Result<Way, Failure> {
        stream.set_nodelay(true)?;
        let Some(tls) = &self.cluster.tls else {
            self.introduce(process, &mut stream).await?;
            return Ok((stream, None));
        };
        let mut encrypted = tls.dial(&self.address(process), stream).await?;
        self.introduce(process, &mut encrypted).await?;
        let (stream, bridge) = tls::bridge(encrypted).await?;
        Ok((stream, Some(bridge)))
    }

    async fn greet(&self, mut stream: TcpStream) -> Result<(usize, Way), Failure> {
        stream.set_nodelay(true)?;
        let Some(tls) = &self.cluster.tls else {
            let process = self.receive(&mut stream).await?;
            return Ok((process, (stream, None)));
        };
        let mut encrypted = tls.accept(stream).await?;
        let process = self.receive(&mut encrypted).await?;
        let (stream, bridge) = tls::bridge(encrypted).await?;
        Ok((process, (stream, Some(bridge))))
    }

    /// Speaks first.
    async fn introduce(
        &self,
        process: usize,
        stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    ) -> Result<(), Failure> {
        let hello = self.hello()?;
        stream.write_all(&hello).await?;
        stream.flush().await?;
        let answer = read_line(stream).await?;
        let seal = read_seal(stream).await?;
        let expected = self.secret.seal("listens", &hello, &answer);
        if expected.verify_slice(&seal).is_err() {
            let address = self.address(process);
            return Err(Failure::Fatal(PeerError::Secret { address }));
        }
        self.check(&answer, Some(process))?;
        let seal = self.secret.seal("dials", &hello, &answer).finalize();
        stream.write_all(&seal.into_bytes()).await?;
        stream.flush().await?;
        Ok(())
    }

    /// Hears who speaks.
    async fn receive(
        &self,
        stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    ) -> Result<usize, Failure> {
        let hello = read_line(stream).await?;
        let answer = self.hello()?;
        let seal = self.secret.seal("listens", &hello, &answer).finalize();
        stream.write_all(&answer).await?;
        stream.write_all(&seal.into_bytes()).await?;
        stream.flush().await?;
        let seal = read_seal(stream).await?;
        let expected = self.secret.seal("dials", &hello, &answer);
        if expected.verify_slice(&seal).is_err() {
            let reason = "it does not know the cluster's secret";
            return Err(Failure::Stranger(reason.to_owned()));
        }
        self.check(&hello, None)
    }

    /// Whether a process that knows the secret was started as this one was; returns its place.
    fn check(&self, line: &[u8], expected: Option<usize>) -> Result<usize, Failure> {
        let hello: Hello = serde_json::from_slice(line).map_err(io::Error::from)?;
        let differs = |what: &str, there: &dyn fmt::Display, here: &dyn fmt::Display| {
            Failure::Fatal(PeerError::Differs {
                process: hello.process,
                difference: format!("{what} {there} there, {here} here"),
            })
        };
        let processes = self.cluster.hosts.len();
        if hello.version != env!("CARGO_PKG_VERSION") {
            return Err(differs(
                "version",
                &hello.version,
                &env!("CARGO_PKG_VERSION"),
            ));
        }
        if hello.processes != processes {
            return Err(differs("processes", &hello.processes, &processes));
        }
        if hello.workers != self.cluster.workers {
            return Err(differs("workers", &hello.workers, &self.cluster.workers));
        }
        let own = self.cluster.process;
        let fits = match expected {
            Some(process) => hello.process == process,
            None => hello.process > own && hello.process < processes,
        };
        match fits {
            true => Ok(hello.process),
            false => Err(differs(
                "the place in the file of hosts is",
                &hello.process,
                &own,
            )),
        }
    }
}

/// Reads up to the end of the line and not a byte further: what follows is not ours.
async fn read_line(stream: &mut (impl AsyncRead + Unpin)) -> Result<Vec<u8>, Failure> {
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        if line.len() == LONGEST_HELLO {
            return Err(Failure::Stranger("it said something else".to_owned()));
        }
        line.push(stream.read_u8().await?);
    }
    Ok(line)
}

async fn read_seal(stream: &mut (impl AsyncRead + Unpin)) -> Result<[u8; 32], Failure> {
    let mut seal = [0; 32];
    stream.read_exact(&mut seal).await?;
    Ok(seal)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn free_addresses(count: usize) -> Vec<String> {
        let listeners: Vec<_> = (0..count)
            .map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap())
            .collect();
        let address = |listener: &std::net::TcpListener| listener.local_addr().unwrap().to_string();
        listeners.iter().map(address).collect()
    }

    fn cluster(hosts: &[String], process: usize, workers: usize) -> ClusterPlan {
        ClusterPlan {
            workers,
            process,
            hosts: hosts.to_vec(),
            secret: None,
            tls: None,
        }
    }

    fn secret(text: &str) -> Secret {
        Secret::new(text).unwrap()
    }

    #[tokio::test]
    async fn processes_find_one_another_whoever_else_calls() {
        let hosts = free_addresses(3);
        let known = secret("only we know this");
        let clusters: Vec<_> = (0..3).map(|process| cluster(&hosts, process, 1)).collect();
        let strangers = async {
            for bytes in [&b"GET / HTTP/1.0\r\n\r\n"[..], &[0xff; 4_096], b"{}\n"] {
                let mut stream = loop {
                    match TcpStream::connect(&hosts[0]).await {
                        Ok(stream) => break stream,
                        Err(_) => tokio::task::yield_now().await,
                    }
                };
                let _ = stream.write_all(bytes).await;
            }
        };
        let others = async {
            strangers.await;
            tokio::join!(connect(&clusters[1], &known), connect(&clusters[2], &known))
        };
        let (first, (second, third)) = tokio::join!(connect(&clusters[0], &known), others);
        for (process, sockets) in [first, second, third].into_iter().enumerate() {
            let sockets = sockets.unwrap().sockets;
            let absent: Vec<_> = (0..3).filter(|place| sockets[*place].is_none()).collect();
            assert_eq!(absent, [process]);
        }
    }

    #[tokio::test]
    async fn another_secret_is_told_apart_from_another_number_of_workers() {
        let hosts = free_addresses(2);
        let first = tokio::spawn({
            let cluster = cluster(&hosts, 0, 1);
            async move { connect(&cluster, &secret("only we know this")).await }
        });
        let other = connect(&cluster(&hosts, 1, 1), &secret("only they know that")).await;
        assert!(matches!(other, Err(PeerError::Secret { .. })), "{other:?}");
        let other = connect(&cluster(&hosts, 1, 2), &secret("only we know this")).await;
        let message = other.unwrap_err().to_string();
        assert!(message.contains("workers 1 there, 2 here"), "{message}");
        first.abort();
    }

    /// An authority, and certificates by it for this machine.
    struct Authority {
        folder: tempfile::TempDir,
        issuer: rcgen::CertifiedIssuer<'static, rcgen::KeyPair>,
    }

    impl Authority {
        fn new() -> Self {
            let mut authority = rcgen::CertificateParams::new(Vec::new()).unwrap();
            authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
            let key = rcgen::KeyPair::generate().unwrap();
            let issuer = rcgen::CertifiedIssuer::self_signed(authority, key).unwrap();
            let folder = tempfile::tempdir().unwrap();
            std::fs::write(folder.path().join("authority.pem"), issuer.pem()).unwrap();
            Self { folder, issuer }
        }

        /// What a process on this host shows to those who believe this or another authority.
        fn tls(&self, host: &str, believed: &Self) -> tls::Tls {
            let key = rcgen::KeyPair::generate().unwrap();
            let certificate = rcgen::CertificateParams::new(vec![host.to_owned()]).unwrap();
            let certificate = certificate.signed_by(&key, &self.issuer).unwrap();
            let file = |name: &str, text: String| {
                let file = self.folder.path().join(name);
                std::fs::write(&file, text).unwrap();
                file
            };
            let certificate = file("certificate.pem", certificate.pem());
            let key = file("key.pem", key.serialize_pem());
            let authority = believed.folder.path().join("authority.pem");
            tls::Tls::read(&certificate, &key, &authority).unwrap()
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_processes_say_is_encrypted_and_arrives() {
        use std::io::{Read, Write};
        let hosts = free_addresses(2);
        let authority = Authority::new();
        let tls = Some(authority.tls("127.0.0.1", &authority));
        let known = secret("only we know this");
        let clusters: Vec<_> = (0..2)
            .map(|process| ClusterPlan {
                tls: tls.clone(),
                ..cluster(&hosts, process, 1)
            })
            .collect();
        let stranger = async {
            // Speaks no TLS, though it knows the secret.
            let plain = cluster(&hosts, 1, 1);
            let waiting = connect(&plain, &known);
            assert!(tokio::time::timeout(REDIAL * 3, waiting).await.is_err());
            connect(&clusters[1], &known).await
        };
        let (first, second) = tokio::join!(connect(&clusters[0], &known), stranger);
        let ((mut first, one), (mut second, other)) =
            (first.unwrap().split(), second.unwrap().split());
        let said = vec![7; 1 << 20];
        let mut near = first[1].take().unwrap();
        let mut far = second[0].take().unwrap();
        let writing = tokio::task::spawn_blocking({
            let said = said.clone();
            move || near.write_all(&said)
        });
        let reading = tokio::task::spawn_blocking(move || {
            let mut heard = Vec::new();
            far.read_to_end(&mut heard).map(|_| heard)
        });
        writing.await.unwrap().unwrap();
        assert_eq!(reading.await.unwrap().unwrap(), said);
        tokio::join!(one.end(), other.end());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_certificate_of_a_stranger_or_for_another_host_is_refused() {
        let hosts = free_addresses(2);
        let (ours, theirs) = (Authority::new(), Authority::new());
        let known = secret("only we know this");
        for (listening, dialling) in [
            (ours.tls("127.0.0.1", &ours), theirs.tls("127.0.0.1", &ours)),
            (
                ours.tls("elsewhere.example", &ours),
                ours.tls("127.0.0.1", &ours),
            ),
        ] {
            let first = ClusterPlan {
                tls: Some(listening),
                ..cluster(&hosts, 0, 1)
            };
            let second = ClusterPlan {
                tls: Some(dialling),
                ..cluster(&hosts, 1, 1)
            };
            let both = async { tokio::join!(connect(&first, &known), connect(&second, &known)) };
            assert!(tokio::time::timeout(REDIAL * 5, both).await.is_err());
        }
    }

    #[test]
    fn files_that_are_no_certificates_are_named() {
        let authority = Authority::new();
        let tls = authority.tls("127.0.0.1", &authority);
        assert_eq!(format!("{tls:?}"), "Tls");
        let folder = authority.folder.path();
        let file = |name: &str| folder.join(name);
        let read = |certificate: &str, key: &str, authority: &str| {
            tls::Tls::read(&file(certificate), &file(key), &file(authority))
                .unwrap_err()
                .to_string()
        };
        assert!(read("none.pem", "key.pem", "authority.pem").contains("none.pem"));
        assert!(
            read("certificate.pem", "authority.pem", "authority.pem").contains("authority.pem")
        );
        assert!(read("certificate.pem", "key.pem", "key.pem").contains("key.pem"));
        assert!(read("authority.pem", "key.pem", "authority.pem").contains("with the key"));
    }

    #[test]
    fn a_short_secret_is_none() {
        assert!(Secret::new(" 0123456789abcde \n").is_none());
        assert!(Secret::new("0123456789abcdef\n").is_some());
        assert_eq!(format!("{:?}", secret("0123456789abcdef")), "Secret");
    }
}
