//! Who may write a folder of tables.
//!
//! A lease keeps a second writer from starting beside a living one. It is a courtesy: what makes a
//! second writer harmless is that manifests are numbered without gaps ([`super::protocol`]).
//!
//! The writer renews its lease again and again. Whoever finds a lease and can see that its holder
//! runs no more (same machine, no such process) takes it at once; otherwise it watches, by its own
//! clock, whether the lease is still renewed. So clocks need not agree.

use std::time::Duration;

use bytes::Bytes;
use connectors::delta::{Manifests, TableError};
use serde::{Deserialize, Serialize};

/// How often a lease is renewed.
pub const RENEWAL: Duration = Duration::from_secs(2);

/// A lease that was not renewed for so long has lapsed.
const LAPSE: Duration = Duration::from_secs(10);

/// A writer and a sign that it lives.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lease {
    /// Names one run of one process, and no other ever.
    pub writer: String,
    /// The process's number, for people.
    pub process: u32,
    /// Counts the renewals.
    pub renewals: u64,
    /// Whether the writer has ended and given it back.
    pub released: bool,
}

impl Lease {
    /// A lease for this run of this process.
    pub fn own() -> Self {
        Self {
            writer: writer(std::process::id()).unwrap_or_else(unique_writer),
            process: std::process::id(),
            renewals: 0,
            released: false,
        }
    }

    /// Whether it can be seen that the writer runs no more.
    fn holder_has_ended(&self) -> bool {
        let Some((place, _)) = self.writer.rsplit_once('/') else {
            return false;
        };
        match writer(std::process::id()) {
            // On this machine, what a process of this number would be called now tells.
            Some(own)
                if own
                    .rsplit_once('/')
                    .is_some_and(|(own, _)| machine(own) == machine(place)) =>
            {
                writer(self.process).as_ref() != Some(&self.writer)
            }
            _ => false,
        }
    }

    /// Reads the lease that is there.
    ///
    /// # Errors
    /// If the storage fails.
    pub async fn read(manifests: &Manifests) -> Result<Option<Self>, TableError> {
        // One that cannot be understood is nobody's.
        let bytes = manifests.lease().await?;
        Ok(bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()))
    }

    /// Writes this lease.
    ///
    /// # Errors
    /// If the storage fails.
    pub async fn write(&self, manifests: &Manifests) -> Result<(), TableError> {
        let json = serde_json::to_vec(self).unwrap_or_default();
        manifests.write_lease(Bytes::from(json)).await
    }

    /// Renews the lease, unless someone else has it now; returns whether it is still ours.
    ///
    /// # Errors
    /// If the storage fails.
    pub async fn renew(&mut self, manifests: &Manifests) -> Result<bool, TableError> {
        match Self::read(manifests).await? {
            Some(found) if found.writer != self.writer || found.released => Ok(false),
            _ => {
                self.renewals += 1;
                self.write(manifests).await?;
                Ok(true)
            }
        }
    }

    /// Who holds the lease, if someone else does, as far as can be seen without waiting.
    ///
    /// # Errors
    /// If the storage fails.
    pub async fn holder(&self, manifests: &Manifests) -> Result<Option<Self>, TableError> {
        let found = Self::read(manifests).await?;
        Ok(found.filter(|found| {
            !found.released && found.writer != self.writer && !found.holder_has_ended()
        }))
    }

    /// Waits until nobody else holds the lease; returns who does, if that does not happen.
    ///
    /// # Errors
    /// If the storage fails.
    pub async fn vacancy(&self, manifests: &Manifests) -> Result<Result<(), Self>, TableError> {
        let Some(found) = self.holder(manifests).await? else {
            return Ok(Ok(()));
        };
        tracing::warn!(
            process = found.process,
            "another process may still write the tables; waiting up to {LAPSE:?} to see"
        );
        let mut waited = Duration::ZERO;
        while waited < LAPSE {
            tokio::time::sleep(RENEWAL / 2).await;
            waited += RENEWAL / 2;
            match Self::read(manifests).await? {
                Some(now) if now == found && now.holder_has_ended() => break,
                Some(now) if now == found => {}
                Some(now) if now.released => break,
                Some(now) => return Ok(Err(now)),
                None => break,
            }
        }
        Ok(Ok(()))
    }
}

/// Everything of a writer's name but which process it is.
fn machine(place: &str) -> &str {
    place.rsplit_once('/').map_or(place, |(machine, _)| machine)
}

/// `boot/process-namespace/number/start`: no other process has it, before or after. Only Linux tells
/// all four.
fn writer(process: u32) -> Option<String> {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let namespace = std::fs::read_link("/proc/self/ns/pid").ok()?;
    let status = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The second field is a name in brackets, which may hold anything; start is the 22nd.
    let (_, fields) = status.rsplit_once(')')?;
    let mut fields = fields.split_whitespace();
    let state = fields.next()?;
    let start = fields.nth(18)?;
    // One that has ended but was not waited for writes no more.
    (state != "Z").then(|| format!("{}/{}/{process}/{start}", boot.trim(), namespace.display()))
}

fn unique_writer() -> String {
    format!("unknown/{}/{}", std::process::id(), crate::now_ms())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_knows_its_own_name_and_that_it_lives() {
        let lease = Lease::own();
        assert!(!lease.holder_has_ended());
        assert_eq!(lease.writer, Lease::own().writer);
    }

    #[test]
    fn one_that_ended_on_this_machine_is_seen_to_have() {
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let lease = Lease {
            writer: writer(child.id()).unwrap(),
            process: child.id(),
            ..Lease::own()
        };
        assert!(!lease.holder_has_ended());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(lease.holder_has_ended());
    }

    #[test]
    fn of_another_machine_nothing_is_known() {
        let lease = Lease {
            writer: "boot/pid:[1]/77/1234".to_owned(),
            ..Lease::own()
        };
        assert!(!lease.holder_has_ended());
    }
}
