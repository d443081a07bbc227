//! What all clients of HTTP have in common: whom they believe, how long they wait, and what they say of errors.

use std::time::Duration;

use reqwest::blocking::Client;
use reqwest::tls::Certificate;

/// How long a server may take to answer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// A client, for threads that may wait. It believes those whose certificates these are, in PEM, or else
/// those whom the system believes.
///
/// # Errors
/// If the bytes hold no certificate.
pub(crate) fn client(authority: Option<&[u8]>) -> Result<Client, String> {
    let mut client = Client::builder().timeout(TIMEOUT);
    if let Some(authority) = authority {
        let certificates = Certificate::from_pem_bundle(authority).unwrap_or_default();
        if certificates.is_empty() {
            return Err("the authority's file holds no certificate in PEM".to_owned());
        }
        client = client.tls_built_in_root_certs(false);
        for certificate in certificates {
            client = client.add_root_certificate(certificate);
        }
    }
    client.build().map_err(|error| told(&error))
}

/// An error with its causes; the topmost alone says little.
pub(crate) fn told(error: &dyn std::error::Error) -> String {
    let mut told = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        told = format!("{told}: {error}");
        cause = error.source();
    }
    told
}
