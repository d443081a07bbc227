//! PostgreSQL: a throw-away cluster with logical decoding, a role `assay` that may do everything and its database.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::{Settings, loopback, remove_directory};
use crate::failure::{Failure, OrCannot, Outcome};
use crate::install;
use crate::process::{self, run_logged};

/// Role, password and database alike.
const NAME: &str = "assay";

/// How long the processes of a killed server get to notice; they do within a second.
const ORPHANS_LIMIT: Duration = Duration::from_secs(10);

/// Settings of the server, given on its command line so that a change reaches clusters that exist.
const SETTINGS: [(&str, &str); 13] = [
    ("ssl", "on"),
    ("listen_addresses", "127.0.0.1"),
    ("unix_socket_directories", ""),
    ("wal_level", "logical"),
    ("max_replication_slots", "64"),
    ("max_wal_senders", "64"),
    ("max_connections", "100"),
    // A forgotten slot must not fill the disk.
    ("max_slot_wal_keep_size", "2GB"),
    // Nothing here has to survive a power cut.
    ("fsync", "off"),
    ("full_page_writes", "off"),
    ("shared_buffers", "64MB"),
    ("timezone", "UTC"),
    ("log_timezone", "UTC"),
];

/// The user of the operating system that the server runs as. PostgreSQL refuses to run as root.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Account {
    user: u32,
    group: u32,
}

impl Account {
    /// Returns the account to change to; none if we may stay who we are.
    fn needed() -> Outcome<Option<Self>> {
        if !install::is_root()? {
            return Ok(None);
        }
        let users =
            fs::read_to_string("/etc/passwd").or_cannot(|| "read /etc/passwd".to_owned())?;
        let account = Self::in_users("postgres", &users)
            .ok_or_else(|| Failure::of_usage("root cannot run PostgreSQL and there is no user `postgres`; add one or run this as another user"))?;
        Ok(Some(account))
    }

    fn in_users(name: &str, users: &str) -> Option<Self> {
        let entry = users
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        let mut fields = entry.split(':').skip(1);
        let user = fields.next()?.parse().ok()?;
        let group = fields.next()?.parse().ok()?;
        Some(Self { user, group })
    }
}

pub(super) fn url(settings: &Settings) -> String {
    format!(
        "postgres://{NAME}:{NAME}@{}/{NAME}",
        loopback(settings.postgres_port)
    )
}

/// Returns the directory of everything that is PostgreSQL's.
///
/// Root's cache is closed to the user `postgres`, so the cluster of root is in a place open to all.
pub(super) fn home(settings: &Settings) -> Outcome<PathBuf> {
    Ok(if install::is_root()? {
        PathBuf::from(format!(
            "/var/tmp/assay-postgres-{}",
            settings.postgres_port
        ))
    } else {
        settings.data("postgres")
    })
}

pub(super) fn prepare(settings: &Settings) -> Outcome<Command> {
    let account = Account::needed()?;
    let home = home(settings)?;
    refuse_foreign(&home, account)?;
    // Written when the cluster is whole: without it a killed run left half of one.
    let complete = home.join("complete-with-own-certificate");
    if !complete.exists() {
        make_home(&home, account)?;
        make_cluster(settings, &home, account)?;
        make_certificate(settings, &home, account)?;
        fs::write(&complete, "").or_cannot(|| format!("write {}", complete.display()))?;
    }
    clear_lock(&cluster(&home))?;
    let mut command = program("postgres", account)?;
    command
        .arg("-D")
        .arg(cluster(&home))
        .args(["-p", &settings.postgres_port.to_string()]);
    for (name, value) in SETTINGS {
        command.arg("-c").arg(format!("{name}={value}"));
    }
    let (certificate, key) = (certificate(&home), key(&home));
    for (name, file) in [("ssl_cert_file", certificate), ("ssl_key_file", key)] {
        command.arg("-c").arg(format!("{name}={}", file.display()));
    }
    Ok(command)
}

pub(super) fn ready(settings: &Settings) -> bool {
    let ask = |mut command: Command| {
        let address = loopback(settings.postgres_port);
        command
            .args(["--quiet", "--timeout=2", "--dbname", NAME])
            .args([
                "--host",
                &address.ip().to_string(),
                "--port",
                &address.port().to_string(),
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
    };
    program("pg_isready", None)
        .is_ok_and(|command| ask(command).is_ok_and(|status| status.success()))
}

/// The certificate that the server shows, which is its own authority.
pub(super) fn authority(settings: &Settings) -> Outcome<PathBuf> {
    Ok(certificate(&home(settings)?))
}

fn certificate(home: &Path) -> PathBuf {
    home.join("certificate.pem")
}

fn key(home: &Path) -> PathBuf {
    home.join("key.pem")
}

/// Makes a key and a certificate for the loopback interface.
fn make_certificate(settings: &Settings, home: &Path, account: Option<Account>) -> Outcome {
    let mut command = Command::new("openssl");
    command
        .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes"])
        .args(["-days", "3650", "-subj", "/CN=localhost"])
        .args(["-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"])
        .args(["-addext", "basicConstraints=critical,CA:FALSE"])
        .arg("-out")
        .arg(certificate(home))
        .arg("-keyout")
        .arg(key(home))
        .current_dir("/")
        .stdin(Stdio::null());
    if let Some(account) = account {
        command.uid(account.user).gid(account.group);
    }
    run_logged(command, &settings.log("postgres-certificate"))
}

fn cluster(home: &Path) -> PathBuf {
    home.join("cluster")
}

/// Returns a command for a program of the server, run as `account` in a directory that it may enter.
fn program(name: &str, account: Option<Account>) -> Outcome<Command> {
    let programs = install::postgres_programs()
        .ok_or_else(|| Failure::of_usage("the PostgreSQL server is gone; install it"))?;
    let mut command = Command::new(programs.join(name));
    command.current_dir("/");
    if let Some(account) = account {
        command.uid(account.user).gid(account.group);
    }
    Ok(command)
}

/// Removes the lock file that a killed server left.
///
/// The server would do so, were it sure that the pid in the file is gone. It takes a zombie for alive, and
/// a killed server stays one where the first process of a container does not wait for its orphans.
/// Held: no process of the old server is left, since each has the cluster as its working directory.
fn clear_lock(cluster: &Path) -> Outcome {
    let lock = cluster.join("postmaster.pid");
    if !lock.exists() {
        return Ok(());
    }
    let begun = Instant::now();
    while let Some(pid) = process::working_in(cluster) {
        if begun.elapsed() > ORPHANS_LIMIT {
            return Err(Failure::new(format!(
                "process {pid} of an earlier PostgreSQL server still works in {}; stop it",
                cluster.display()
            )));
        }
        thread::sleep(Duration::from_millis(50));
    }
    fs::remove_file(&lock).or_cannot(|| format!("remove {}", lock.display()))
}

/// Refuses a directory of somebody else, who could have put it there: the place may be open to all.
fn refuse_foreign(home: &Path, account: Option<Account>) -> Outcome {
    let found = match fs::symlink_metadata(home) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.or_cannot(|| format!("look at {}", home.display()))?,
    };
    let ours = account.is_none_or(|account| found.uid() == account.user);
    if found.is_dir() && ours {
        return Ok(());
    }
    Err(Failure::new(format!(
        "{} is in the way of the PostgreSQL cluster and belongs to somebody else; remove it",
        home.display()
    )))
}

/// Makes an empty directory for the account alone.
fn make_home(home: &Path, account: Option<Account>) -> Outcome {
    remove_directory(home)?;
    fs::DirBuilder::new()
        .mode(0o700)
        .create(home)
        .or_cannot(|| format!("make the directory {}", home.display()))?;
    give(home, account)
}

fn give(path: &Path, account: Option<Account>) -> Outcome {
    let Some(Account { user, group }) = account else {
        return Ok(());
    };
    chown(path, Some(user), Some(group))
        .or_cannot(|| format!("give {} to user `postgres`", path.display()))
}

fn make_cluster(settings: &Settings, home: &Path, account: Option<Account>) -> Outcome {
    let password = home.join("password");
    fs::write(&password, NAME).or_cannot(|| format!("write {}", password.display()))?;
    give(&password, account)?;
    let mut initdb = program("initdb", account)?;
    initdb
        .args(["--username", NAME, "--auth=scram-sha-256", "--pwfile"])
        .arg(&password)
        .args([
            "--encoding=UTF8",
            "--locale=C.UTF-8",
            "--no-sync",
            "--pgdata",
        ])
        .arg(cluster(home))
        .stdin(Stdio::null());
    run_logged(initdb, &settings.log("initdb"))?;
    make_database(settings, home, account)
}

/// Makes the database before the server starts: a server of one process reads statements from its input.
fn make_database(settings: &Settings, home: &Path, account: Option<Account>) -> Outcome {
    let statements = home.join("database.sql");
    let open = || {
        fs::write(&statements, format!("create database {NAME};\n"))?;
        File::open(&statements)
    };
    let input = open().or_cannot(|| format!("write {}", statements.display()))?;
    let mut command = program("postgres", account)?;
    // -F: no fsync. Without the option the program ends well even if a statement failed.
    command
        .args(["--single", "-F", "-c", "exit_on_error=on", "-D"])
        .arg(cluster(home))
        .arg("postgres")
        .stdin(input);
    run_logged(command, &settings.log("postgres-database"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const USERS: &str = "root:x:0:0:root:/root:/bin/bash\npostgres-old:x:7:8::/:/bin/sh\npostgres:x:103:114:,,,:/var/lib/postgresql:/bin/bash\n";

    #[test]
    fn the_account_is_found_by_its_whole_name() {
        let account = Account::in_users("postgres", USERS);
        assert_eq!(
            account,
            Some(Account {
                user: 103,
                group: 114
            })
        );
        assert_eq!(Account::in_users("nobody", USERS), None);
    }
}
