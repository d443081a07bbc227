//! What must be on the machine before anything runs: looked for, and installed where that is possible.

use std::env;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::failure::{Failure, OrCannot, Outcome};
use crate::process::{progress, run_logged};

/// The oldest Java whose class files Kafka and Debezium are.
const JAVA_MAJOR: u32 = 17;

/// What is about to happen, which decides what must be there.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Purpose {
    /// Fetching the jars of the services.
    Jars,
    Services,
    Compilation,
    /// The services, and the browser and readers that tests use.
    Tests,
}

impl Purpose {
    fn needs(self) -> Vec<Need> {
        match self {
            Purpose::Jars => vec![MAVEN],
            Purpose::Services => vec![JAVA, POSTGRES, OPENSSL_PROGRAM],
            Purpose::Compilation => vec![COMPILER, MAKE, PKG_CONFIG, OPENSSL],
            Purpose::Tests => {
                let mut needs = Purpose::Services.needs();
                needs.extend([PYTHON, BROWSER, BROWSER_DRIVER]);
                needs
            }
        }
    }
}

/// One thing that must be there, and the Debian packages that bring it: the first that apt knows is taken.
struct Need {
    what: &'static str,
    packages: &'static [&'static str],
    met: fn() -> bool,
}

const JAVA: Need = Need {
    what: "Java 17 or newer",
    packages: &[
        "openjdk-17-jre-headless",
        "openjdk-21-jre-headless",
        "openjdk-25-jre-headless",
    ],
    met: || java().is_some(),
};
const MAVEN: Need = Need {
    what: "Maven",
    packages: &["maven"],
    met: || on_path("mvn").is_some(),
};
const POSTGRES: Need = Need {
    what: "the PostgreSQL server",
    packages: &["postgresql"],
    met: || postgres_programs().is_some(),
};
const COMPILER: Need = Need {
    what: "a C and a C++ compiler",
    packages: &["build-essential"],
    met: || on_path("cc").is_some() && on_path("c++").is_some(),
};
const MAKE: Need = Need {
    what: "make",
    packages: &["make"],
    met: || on_path("make").is_some(),
};
const PKG_CONFIG: Need = Need {
    what: "pkg-config",
    packages: &["pkg-config"],
    met: || on_path("pkg-config").is_some(),
};
const OPENSSL: Need = Need {
    what: "the headers of OpenSSL",
    packages: &["libssl-dev"],
    met: || {
        let mut command = Command::new("pkg-config");
        command.args(["--exists", "openssl"]);
        succeeds(command)
    },
};

const OPENSSL_PROGRAM: Need = Need {
    what: "the program openssl",
    packages: &["openssl"],
    met: || on_path("openssl").is_some(),
};
const BROWSER: Need = Need {
    what: "the browser Chromium",
    packages: &["chromium"],
    met: || on_path("chromium").is_some(),
};
const BROWSER_DRIVER: Need = Need {
    what: "Chromium's driver",
    packages: &["chromium-driver"],
    met: || on_path("chromedriver").is_some(),
};
const PYTHON: Need = Need {
    what: "Python 3 that can make environments",
    packages: &["python3-venv"],
    met: || {
        let mut command = Command::new("python3");
        command.args(["-c", "import ensurepip, venv"]);
        succeeds(command)
    },
};

/// Makes sure that what these purposes need is installed.
///
/// As root on a system with apt the missing packages are installed. Otherwise the failure names them.
pub(crate) fn prerequisites(purposes: &[Purpose], log: &Path) -> Outcome {
    let needs = purposes.iter().flat_map(|purpose| purpose.needs());
    let missing = unmet(needs.collect());
    if missing.is_empty() {
        return Ok(());
    }
    if !is_root()? || on_path("apt-get").is_none() {
        return Err(missing_failure(&missing));
    }
    install(&missing, log)?;
    let missing = unmet(missing);
    if missing.is_empty() {
        return Ok(());
    }
    Err(missing_failure(&missing))
}

fn unmet(needs: Vec<Need>) -> Vec<Need> {
    needs.into_iter().filter(|need| !(need.met)()).collect()
}

fn missing_failure(missing: &[Need]) -> Failure {
    let whats: Vec<&str> = missing.iter().map(|need| need.what).collect();
    let packages: Vec<&str> = missing.iter().map(|need| need.packages[0]).collect();
    Failure::of_usage(format!(
        "missing: {}; install them, with Debian's names: apt-get install {}",
        whats.join(", "),
        packages.join(" ")
    ))
}

fn install(missing: &[Need], log: &Path) -> Outcome {
    if missing
        .iter()
        .any(|need| need.packages == POSTGRES.packages)
    {
        keep_debian_from_starting_a_cluster()?;
    }
    run_logged(apt(&["update"]), log)?;
    let packages: Vec<&str> = missing.iter().map(known_package).collect();
    progress("apt", &format!("installing {}", packages.join(" ")));
    let mut arguments = vec!["install", "--yes", "--no-install-recommends"];
    arguments.extend(packages);
    run_logged(apt(&arguments), log)
}

fn apt(arguments: &[&str]) -> Command {
    let mut command = Command::new("apt-get");
    command
        .args(["--quiet", "-o", "DPkg::Lock::Timeout=120"])
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null());
    command
}

fn known_package(need: &Need) -> &'static str {
    let known = |package: &&&str| {
        let mut command = Command::new("apt-cache");
        command.args(["show", package]);
        succeeds(command)
    };
    need.packages
        .iter()
        .find(known)
        .unwrap_or(&need.packages[0])
}

/// Debian's package makes and starts a cluster of its own when it is installed, unless told not to before.
fn keep_debian_from_starting_a_cluster() -> Outcome {
    let directory = Path::new("/etc/postgresql-common");
    let file = directory.join("createcluster.conf");
    if file.exists() {
        return Ok(());
    }
    fs::create_dir_all(directory)
        .and_then(|()| fs::write(&file, "create_main_cluster = false\n"))
        .or_cannot(|| format!("write {}", file.display()))
}

/// Returns the `java` to use: of JAVA_HOME, of the path, or any that Debian installed; new enough in each case.
pub(crate) fn java() -> Option<PathBuf> {
    let home = env::var_os("JAVA_HOME").map(|home| Path::new(&home).join("bin/java"));
    let installed = directories_in("/usr/lib/jvm")
        .into_iter()
        .map(|directory| directory.join("bin/java"));
    home.into_iter()
        .chain(on_path("java"))
        .chain(installed)
        .find(|java| java_major(java).is_some_and(|major| major >= JAVA_MAJOR))
}

fn java_major(java: &Path) -> Option<u32> {
    let output = Command::new(java).arg("-version").output().ok()?;
    parse_java_major(&String::from_utf8_lossy(&output.stderr))
}

/// The first quoted word of `openjdk version "17.0.15" 2025-04-15`, up to what is no digit.
fn parse_java_major(text: &str) -> Option<u32> {
    let version = text.split('"').nth(1)?;
    version
        .split(|c: char| !c.is_ascii_digit())
        .next()?
        .parse()
        .ok()
}

/// Returns the directory with the programs of the newest PostgreSQL server.
///
/// Debian keeps them off the path, one directory for each major version.
pub(crate) fn postgres_programs() -> Option<PathBuf> {
    let debian = directories_in("/usr/lib/postgresql")
        .into_iter()
        .filter_map(|directory| {
            let major: u32 = directory.file_name()?.to_str()?.parse().ok()?;
            Some((major, directory.join("bin")))
        })
        .filter(|(_, programs)| programs.join("initdb").is_file())
        .max()
        .map(|(_, programs)| programs);
    debian.or_else(|| Some(on_path("initdb")?.parent()?.to_owned()))
}

/// Says whether this process may do everything; its own entry in /proc belongs to the effective user.
pub(crate) fn is_root() -> Outcome<bool> {
    let own =
        fs::metadata("/proc/self").or_cannot(|| "read /proc, which Linux provides".to_owned())?;
    Ok(own.uid() == 0)
}

fn on_path(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path)
        .map(|directory| directory.join(program))
        .find(|candidate| candidate.is_file())
}

fn directories_in(path: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

fn succeeds(mut command: Command) -> bool {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_major_version_of_java_is_read_from_its_first_line() {
        let text = "openjdk version \"17.0.15\" 2025-04-15\nOpenJDK Runtime Environment";
        assert_eq!(parse_java_major(text), Some(17));
        assert_eq!(
            parse_java_major("openjdk version \"25\" 2025-09-16"),
            Some(25)
        );
        assert_eq!(
            parse_java_major("openjdk version \"21-ea\" 2023-09-19"),
            Some(21)
        );
        assert_eq!(parse_java_major("java: command not found"), None);
    }

    #[test]
    fn java_eight_counted_otherwise_and_is_too_old_either_way() {
        assert_eq!(parse_java_major("java version \"1.8.0_402\""), Some(1));
    }
}
