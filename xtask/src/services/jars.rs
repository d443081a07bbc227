//! The Java side: jars fetched once with Maven, and the command lines that run them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use super::{Settings, remove_directory};
use crate::failure::{Failure, OrCannot, Outcome};
use crate::install;
use crate::process::{progress, run_logged};

const KAFKA_VERSION: &str = "4.3.1";
const DEBEZIUM_VERSION: &str = "3.7.0.Final";
/// For Spark 4.0, see `readers`.
const DELTA_VERSION: &str = "4.0.0";
/// What Kafka itself is built with; without it its log goes nowhere.
const LOG4J_VERSION: &str = "2.25.4";
const DEPENDENCY_PLUGIN_VERSION: &str = "3.8.1";

/// Connect brings these itself. A second copy in the plugin's folder would be loaded beside them.
const OF_CONNECT: &str =
    "kafka-clients,connect-api,slf4j-api,jakarta.ws.rs-api,lz4-java,snappy-java,zstd-jni";

/// Small services, often started: compiled fast rather than well, and one collector thread.
const JVM_OPTIONS: [&str; 4] = [
    "-Xms128m",
    "-Xmx512m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
];

const LOGGING: &str = "\
status = error
appender.console.type = Console
appender.console.name = console
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = %d{ISO8601} %p %m (%c{1})%n%throwable
rootLogger.level = info
rootLogger.appenderRef.console.ref = console
";

/// One generated Maven project: what to fetch, and the folder it goes to.
struct Project {
    name: &'static str,
    folder: PathBuf,
    excluded: &'static str,
    artifacts: Vec<(&'static str, &'static str, &'static str)>,
}

/// Returns the folder that Connect looks for plugins in.
pub(super) fn plugins(settings: &Settings) -> PathBuf {
    settings.directory.join("plugins")
}

/// Returns the folder with what Spark needs to read Delta tables.
pub(super) fn of_spark(settings: &Settings) -> PathBuf {
    settings.directory.join("spark")
}

fn libraries(settings: &Settings) -> PathBuf {
    settings.directory.join("lib")
}

fn projects(settings: &Settings) -> [Project; 3] {
    let mut artifacts: Vec<_> = [
        "kafka_2.13",
        "kafka-tools",
        "connect-runtime",
        "connect-json",
        "connect-transforms",
    ]
    .map(|name| ("org.apache.kafka", name, KAFKA_VERSION))
    .into();
    artifacts.push((
        "org.apache.logging.log4j",
        "log4j-slf4j-impl",
        LOG4J_VERSION,
    ));
    [
        Project {
            name: "kafka",
            folder: libraries(settings),
            excluded: "",
            artifacts,
        },
        Project {
            name: "debezium",
            folder: plugins(settings).join("debezium"),
            excluded: OF_CONNECT,
            artifacts: vec![(
                "io.debezium",
                "debezium-connector-postgres",
                DEBEZIUM_VERSION,
            )],
        },
        Project {
            name: "spark",
            folder: of_spark(settings),
            excluded: "",
            artifacts: vec![("io.delta", "delta-spark_2.13", DELTA_VERSION)],
        },
    ]
}

/// Says whether the jars of these very versions are all there.
pub(super) fn complete(settings: &Settings) -> bool {
    let wanted = stamp(&projects(settings));
    fs::read_to_string(stamp_file(settings)).is_ok_and(|found| found == wanted)
}

/// Fetches the jars unless they are there. Written last, the stamp vouches for all of them.
pub(super) fn fetch(settings: &Settings) -> Outcome {
    if complete(settings) {
        return Ok(());
    }
    let begun = Instant::now();
    let projects = projects(settings);
    for project in &projects {
        remove_directory(&project.folder)?;
        write_project(settings, project.name, &pom(project))?;
    }
    let root = write_project(settings, "", &aggregator(&projects))?;
    let log = settings.log("mvn");
    // A download may break off. The second try asks again also for what was not found.
    run_logged(maven(&root, &[]), &log)
        .or_else(|_| run_logged(maven(&root, &["--update-snapshots"]), &log))?;
    let file = stamp_file(settings);
    fs::write(&file, stamp(&projects)).or_cannot(|| format!("write {}", file.display()))?;
    progress(
        "jars",
        &format!("fetched in {:.1} s", begun.elapsed().as_secs_f32()),
    );
    Ok(())
}

fn stamp_file(settings: &Settings) -> PathBuf {
    settings.directory.join("jars/complete")
}

fn stamp(projects: &[Project]) -> String {
    projects.iter().map(pom).collect()
}

fn write_project(settings: &Settings, name: &str, text: &str) -> Outcome<PathBuf> {
    let directory = settings.directory.join("jars").join(name);
    let file = directory.join("pom.xml");
    fs::create_dir_all(&directory)
        .and_then(|()| fs::write(&file, text))
        .or_cannot(|| format!("write {}", file.display()))?;
    Ok(file)
}

fn maven(root: &Path, options: &[&str]) -> Command {
    let mut command = Command::new("mvn");
    command
        .args(["--batch-mode", "--no-transfer-progress", "--quiet"])
        .args(options)
        .arg("--file")
        .arg(root)
        .arg(format!(
            "org.apache.maven.plugins:maven-dependency-plugin:{DEPENDENCY_PLUGIN_VERSION}:copy-dependencies"
        ))
        .stdin(Stdio::null());
    command
}

/// The plugin takes its settings from these properties, so one run serves projects that differ in them.
fn pom(project: &Project) -> String {
    let dependencies: String = project
        .artifacts
        .iter()
        .map(|(group, artifact, version)| {
            format!(
                "    <dependency><groupId>{group}</groupId><artifactId>{artifact}</artifactId>\
                 <version>{version}</version></dependency>\n"
            )
        })
        .collect();
    format!(
        "{}  <properties>\n    \
         <includeScope>runtime</includeScope>\n    \
         <excludeArtifactIds>{}</excludeArtifactIds>\n    \
         <outputDirectory>{}</outputDirectory>\n  \
         </properties>\n  <dependencies>\n{dependencies}  </dependencies>\n</project>\n",
        pom_head(project.name),
        project.excluded,
        xml_text(&project.folder.display().to_string()),
    )
}

fn aggregator(projects: &[Project]) -> String {
    let modules: String = projects
        .iter()
        .map(|project| format!("<module>{}</module>", project.name))
        .collect();
    format!(
        "{}  <modules>{modules}</modules>\n</project>\n",
        pom_head("services")
    )
}

fn pom_head(name: &str) -> String {
    format!(
        "<project xmlns=\"http://maven.apache.org/POM/4.0.0\">\n  \
         <modelVersion>4.0.0</modelVersion>\n  \
         <groupId>assay</groupId><artifactId>{name}</artifactId><version>1</version><packaging>pom</packaging>\n"
    )
}

fn xml_text(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

/// Returns a command that runs `class` of the fetched jars; what it takes can be added.
pub(super) fn java(settings: &Settings, class: &str) -> Outcome<Command> {
    let program = install::java().ok_or_else(|| {
        Failure::of_usage("Java 17 or newer is gone; install it or set JAVA_HOME")
    })?;
    let logging = settings.configure("log4j2.properties", LOGGING)?;
    let mut command = Command::new(program);
    command
        .args(JVM_OPTIONS)
        .arg(format!("-Dlog4j2.configurationFile={}", logging.display()))
        .arg("-cp")
        .arg(libraries(settings).join("*"))
        .arg(class)
        .current_dir(&settings.directory);
    Ok(command)
}
