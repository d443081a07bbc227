//! Who may connect, and how.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::Sink;
use pgwire::api::ClientInfo;
use pgwire::api::auth::noop::NoopStartupHandler;
use pgwire::api::auth::sasl::SASLAuthStartupHandler;
use pgwire::api::auth::sasl::scram::{SCRAM_ITERATIONS, ScramAuth, gen_salted_password};
use pgwire::api::auth::{
    AuthSource, DefaultServerParameterProvider, LoginInfo, Password, StartupHandler,
};
use pgwire::error::{PgWireError, PgWireResult};
use pgwire::messages::{PgWireBackendMessage, PgWireFrontendMessage};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;

use super::errors::fatal;
use crate::codes;

/// Connections at one time.
pub(super) const MOST_CONNECTIONS: usize = 100;

/// Who may connect, and how.
#[derive(Clone)]
pub struct Access {
    users: Option<Arc<Users>>,
    pub(super) encryption: Option<TlsAcceptor>,
}

impl Access {
    /// Access for users with passwords, or for everyone if there are none; encrypted, and then in no
    /// other way, or in the clear.
    ///
    /// # Errors
    /// If the system has no random numbers.
    pub fn new(
        users: Vec<(String, String)>,
        encryption: Option<TlsAcceptor>,
    ) -> Result<Self, getrandom::Error> {
        let known = (!users.is_empty()).then(|| Users::new(users)).transpose()?;
        Ok(Self {
            users: known.map(Arc::new),
            encryption,
        })
    }
}

impl fmt::Debug for Access {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Access")
    }
}

fn parameters() -> DefaultServerParameterProvider {
    let mut parameters = DefaultServerParameterProvider::default();
    parameters.is_superuser = false;
    parameters.default_transaction_read_only = true;
    parameters
}

/// The passwords of users, salted, as SCRAM has them.
struct Users {
    by_name: HashMap<String, (Vec<u8>, Vec<u8>)>,
    /// From which the salts of users are made that do not exist, so that asking does not tell who does.
    secret: [u8; 16],
}

impl Users {
    fn new(users: Vec<(String, String)>) -> Result<Self, getrandom::Error> {
        let random = || {
            let mut bytes = [0; 16];
            getrandom::fill(&mut bytes).map(|()| bytes)
        };
        let mut by_name = HashMap::new();
        for (name, password) in users {
            let salt = random()?;
            let salted = gen_salted_password(&password, &salt, SCRAM_ITERATIONS);
            by_name.insert(name, (salt.to_vec(), salted));
        }
        let secret = random()?;
        Ok(Self { by_name, secret })
    }
}

impl fmt::Debug for KnownUsers {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("KnownUsers")
    }
}

struct KnownUsers(Arc<Users>);

#[async_trait]
impl AuthSource for KnownUsers {
    async fn get_password(&self, login: &LoginInfo) -> PgWireResult<Password> {
        let user = login.user().unwrap_or_default();
        let (salt, salted) = match self.0.by_name.get(user) {
            Some(known) => known.clone(),
            None => {
                let salt = gen_salted_password(user, &self.0.secret, 1)[..16].to_vec();
                // No password salts to this: it is not known, and differs with each start.
                let salted = gen_salted_password(user, &self.0.secret, 2);
                (salt, salted)
            }
        };
        Ok(Password::new(Some(salt), salted))
    }
}

pub(super) struct Startup {
    /// Asks for a password, if one is needed.
    scram: Option<SASLAuthStartupHandler<DefaultServerParameterProvider>>,
    encrypted_only: bool,
    /// Whether the relations are known, which a session keeps from its start.
    readable: bool,
    /// A place among the connections; none if there was none left.
    place: Option<OwnedSemaphorePermit>,
}

impl Startup {
    /// How one connection begins: with a password if there are users, and one of the places that are left.
    pub(super) fn new(access: &Access, readable: bool, places: &Arc<Semaphore>) -> Self {
        let scram = access.users.as_ref().map(|users| {
            let users = Arc::new(KnownUsers(Arc::clone(users)));
            let parameters = Arc::new(parameters());
            SASLAuthStartupHandler::new(parameters).with_scram(ScramAuth::new(users))
        });
        Self {
            scram,
            encrypted_only: access.encryption.is_some(),
            readable,
            place: Arc::clone(places).try_acquire_owned().ok(),
        }
    }
}

#[async_trait]
impl StartupHandler for Startup {
    async fn on_startup<C>(
        &self,
        client: &mut C,
        message: PgWireFrontendMessage,
    ) -> PgWireResult<()>
    where
        C: ClientInfo + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::Error: fmt::Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        if self.place.is_none() {
            let message = format!("there are {MOST_CONNECTIONS} connections already");
            return Err(fatal(codes::TOO_MANY_CONNECTIONS, message));
        }
        if !self.readable {
            let message = "the dataflow is not running yet";
            return Err(fatal(codes::CANNOT_CONNECT_NOW, message.to_owned()));
        }
        if self.encrypted_only && !client.is_secure() {
            let message = "connect with encryption: sslmode=require or stricter";
            return Err(fatal(codes::INVALID_AUTHORIZATION, message.to_owned()));
        }
        match &self.scram {
            Some(scram) => scram.on_startup(client, message).await?,
            None => StartupHandler::on_startup(&Everyone, client, message).await?,
        }
        let options = client.metadata().get("options");
        if let Some(time) = options.and_then(|options| time_of_statements(options)) {
            let time = time.as_millis().to_string();
            client
                .metadata_mut()
                .insert(STATEMENT_TIMEOUT.to_owned(), time);
        }
        Ok(())
    }
}

/// Where the hook for SET keeps the time that a client has set for its statements, in milliseconds.
pub(super) const STATEMENT_TIMEOUT: &str = "statement_timeout_ms";

/// The time that a client asks for as it connects, by `-c statement_timeout=5s` in its options.
fn time_of_statements(options: &str) -> Option<Duration> {
    let mut words = options.split_whitespace();
    let mut time = None;
    while let Some(word) = words.next() {
        let setting = match word {
            "-c" => words.next()?,
            word => word
                .strip_prefix("--")
                .or_else(|| word.strip_prefix("-c"))?,
        };
        if let Some(("statement_timeout", value)) = setting.split_once('=') {
            let digits = value.trim_end_matches(|letter: char| !letter.is_ascii_digit());
            let milliseconds = match &value[digits.len()..] {
                "" | "ms" => 1,
                "s" => 1_000,
                "min" => 60_000,
                "h" => 3_600_000,
                _ => return None,
            };
            let count: u64 = digits.parse().ok()?;
            // None at all is what 0 asks for.
            time = (count > 0).then(|| Duration::from_millis(count.saturating_mul(milliseconds)));
        }
    }
    time
}

/// Lets everyone in.
struct Everyone;

impl NoopStartupHandler for Everyone {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_of_a_connection_say_how_long_statements_may_take() {
        for (options, milliseconds) in [
            ("-c statement_timeout=250", Some(250)),
            ("-c search_path=public -cstatement_timeout=5s", Some(5_000)),
            ("--statement_timeout=2min", Some(120_000)),
            ("-c statement_timeout=0", None),
            ("-c statement_timeout=soon", None),
            ("-c", None),
            ("", None),
        ] {
            let time = time_of_statements(options);
            assert_eq!(time, milliseconds.map(Duration::from_millis), "{options}");
        }
    }
}
