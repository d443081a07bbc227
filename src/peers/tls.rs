//! Encryption between the processes of a cluster: TLS with a certificate on both ends.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

/// What a process shows, and whom it believes.
#[derive(Clone)]
pub struct Tls {
    acceptor: TlsAcceptor,
    connector: TlsConnector,
}

impl fmt::Debug for Tls {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Tls")
    }
}

/// Why the files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file is not there, or not in PEM.
    #[error("cannot use \"{file}\": {why}")]
    File {
        /// The file.
        file: String,
        /// What is wrong with it.
        why: pem::Error,
    },
    /// The certificate and the key do not fit, or cannot be used.
    #[error("cannot use the certificate with the key: {0}")]
    Certificate(rustls::Error),
    /// The authorities cannot be used.
    #[error("cannot use the authority's certificate: {0}")]
    Authority(#[from] VerifierBuilderError),
}

/// What encrypts connections of clients, who need no certificate of their own.
///
/// # Errors
/// If a file cannot be used; the message names it.
pub fn acceptor(certificate: &Path, key: &Path) -> Result<TlsAcceptor, TlsError> {
    let shown = read_certificates(certificate)?;
    let key = read_key(key)?;
    let accepting = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Certificate)?
        .with_no_client_auth()
        .with_single_cert(shown, key)
        .map_err(TlsError::Certificate)?;
    Ok(TlsAcceptor::from(Arc::new(accepting)))
}

impl Tls {
    /// Reads the certificate that this process shows, its key, and the certificates of those whose
    /// word is taken for the other processes; all in PEM.
    ///
    /// # Errors
    /// If a file cannot be used; the message names it.
    pub fn read(certificate: &Path, key: &Path, authority: &Path) -> Result<Self, TlsError> {
        let shown = read_certificates(certificate)?;
        let key = read_key(key)?;
        let mut authorities = RootCertStore::empty();
        for believed in read_certificates(authority)? {
            authorities.add(believed).map_err(TlsError::Certificate)?;
        }
        let authorities = Arc::new(authorities);
        let provider = Arc::new(ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(
            Arc::clone(&authorities),
            Arc::clone(&provider),
        );
        let accepting = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Certificate)?
            .with_client_cert_verifier(verifier.build()?)
            .with_single_cert(shown.clone(), key.clone_key())
            .map_err(TlsError::Certificate)?;
        let dialling = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Certificate)?
            .with_root_certificates(authorities)
            .with_client_auth_cert(shown, key)
            .map_err(TlsError::Certificate)?;
        Ok(Self {
            acceptor: TlsAcceptor::from(Arc::new(accepting)),
            connector: TlsConnector::from(Arc::new(dialling)),
        })
    }

    /// Encrypts a connection that this process has opened to an address of the file of hosts, whose
    /// host the other's certificate must be for.
    pub(super) async fn dial(
        &self,
        address: &str,
        stream: TcpStream,
    ) -> io::Result<client::TlsStream<TcpStream>> {
        let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
        let host = host
            .trim_start_matches('[')
            .trim_end_matches(']')
            .to_owned();
        let name = ServerName::try_from(host).map_err(io::Error::other)?;
        self.connector.connect(name, stream).await
    }

    /// Encrypts a connection that another process has opened.
    pub(super) async fn accept(
        &self,
        stream: TcpStream,
    ) -> io::Result<server::TlsStream<TcpStream>> {
        self.acceptor.accept(stream).await
    }
}

fn read_key(file: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let unfit = |why| TlsError::File {
        file: file.display().to_string(),
        why,
    };
    PrivateKeyDer::from_pem_file(file).map_err(unfit)
}

fn read_certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let unfit = |why| TlsError::File {
        file: file.display().to_string(),
        why,
    };
    let found = CertificateDer::pem_file_iter(file).map_err(unfit)?;
    let found: Vec<_> = found.collect::<Result<_, _>>().map_err(unfit)?;
    match found.is_empty() {
        true => Err(unfit(pem::Error::NoItemsFound)),
        false => Ok(found),
    }
}

/// A plain socket whose other end is the encrypted stream: the dataflow takes sockets and nothing
/// else. The task ends when both ends have been closed and all has been passed on.
pub(super) async fn bridge(
    mut encrypted: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
) -> io::Result<(TcpStream, JoinHandle<()>)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let near = TcpStream::connect(listener.local_addr()?).await?;
    let mut far = loop {
        let (stream, from) = listener.accept().await?;
        // Anyone on this machine may have been faster.
        if from == near.local_addr()? {
            break stream;
        }
    };
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    let passing = tokio::spawn(async move {
        // A broken connection ends both ends, which is how the dataflow learns of it.
        let _ = copy_bidirectional(&mut far, &mut encrypted).await;
    });
    Ok((near, passing))
}
