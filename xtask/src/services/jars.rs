//! The Java side: what Maven fetches once, jars and the registry's archive, and the command lines that run it.

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
/// Of the registry and its converters. It runs on Java 17; the third generation's newest needs 21.
const APICURIO_VERSION: &str = "2.6.13.Final";
/// For Spark 4.0, see `readers`.
const DELTA_VERSION: &str = "4.0.0";
/// What Kafka itself is built with; without it its log goes nowhere.
const LOG4J_VERSION: &str = "2.25.4";
const DEPENDENCY_PLUGIN_VERSION: &str = "3.8.1";
/// When the plugin runs: an early phase, in which Maven has nothing else to do.
const PHASE: &str = "initialize";

/// Connect brings these itself. A second copy in a plugin's folder would be loaded beside them.
const OF_CONNECT: &str = "kafka-clients,connect-api,connect-json,slf4j-api,jakarta.ws.rs-api,lz4-java,snappy-java,zstd-jni";

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
    form: Form,
    excluded: &'static str,
    artifacts: Vec<(&'static str, &'static str, &'static str)>,
}

/// How the artifacts of a project come.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Form {
    /// As jars, and all jars that they depend on.
    Jars,
    /// As an archive that lacks nothing; it is unpacked.
    Archive,
}

impl Form {
    /// What the plugin of Maven is to do.
    fn goal(self) -> &'static str {
        match self {
            Form::Jars => "copy-dependencies",
            Form::Archive => "unpack-dependencies",
        }
    }

    /// What a dependency says besides its name and version.
    fn details(self) -> &'static str {
        match self {
            Form::Jars => "",
            // Maven would fetch what the archive was made of as well.
            Form::Archive => {
                "<type>tar.gz</type><classifier>all</classifier>\
                 <exclusions><exclusion><groupId>*</groupId><artifactId>*</artifactId></exclusion></exclusions>"
            }
        }
    }
}

/// Returns PostgreSQL's driver for Java, which Debezium brings along.
pub(super) fn of_jdbc(settings: &Settings) -> PathBuf {
    let folder = plugins(settings).join("debezium");
    let files = fs::read_dir(&folder).into_iter().flatten().flatten();
    let driver = files.map(|file| file.path()).find(|file| {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("postgresql-") && name.ends_with(".jar")
    });
    // Before the jars are fetched there is none.
    driver.unwrap_or(folder)
}

/// Returns the folder that Connect looks for plugins in.
pub(super) fn plugins(settings: &Settings) -> PathBuf {
    settings.directory.join("plugins")
}

/// Returns the folder with what Spark needs to read Delta tables.
pub(super) fn of_spark(settings: &Settings) -> PathBuf {
    settings.directory.join("spark")
}

/// Returns the jar that the registry is started by. It names the others, which are beside it.
pub(super) fn of_registry(settings: &Settings) -> PathBuf {
    registry(settings).join(format!(
        "apicurio-registry-app-{APICURIO_VERSION}-runner.jar"
    ))
}

fn registry(settings: &Settings) -> PathBuf {
    settings.directory.join("registry")
}

fn converters(settings: &Settings) -> PathBuf {
    plugins(settings).join("apicurio")
}

fn libraries(settings: &Settings) -> PathBuf {
    settings.directory.join("lib")
}

fn projects(settings: &Settings) -> [Project; 5] {
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
            form: Form::Jars,
            excluded: "",
            artifacts,
        },
        Project {
            name: "debezium",
            folder: plugins(settings).join("debezium"),
            form: Form::Jars,
            excluded: OF_CONNECT,
            artifacts: vec![(
                "io.debezium",
                "debezium-connector-postgres",
                DEBEZIUM_VERSION,
            )],
        },
        Project {
            name: "converters",
            folder: converters(settings),
            form: Form::Jars,
            excluded: OF_CONNECT,
            artifacts: vec![(
                "io.apicurio",
                "apicurio-registry-utils-converter",
                APICURIO_VERSION,
            )],
        },
        Project {
            name: "registry",
            folder: registry(settings),
            form: Form::Archive,
            excluded: "",
            artifacts: vec![("io.apicurio", "apicurio-registry-app", APICURIO_VERSION)],
        },
        Project {
            name: "spark",
            folder: of_spark(settings),
            form: Form::Jars,
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
    list_converters(settings)?;
    let file = stamp_file(settings);
    fs::write(&file, stamp(&projects)).or_cannot(|| format!("write {}", file.display()))?;
    progress(
        "jars",
        &format!("fetched in {:.1} s", begun.elapsed().as_secs_f32()),
    );
    Ok(())
}

/// Adds a list of their plugins to the converters, whose jars lack it: it is all that Connect looks at.
fn list_converters(settings: &Settings) -> Outcome {
    let mut command = java(settings, "org.apache.kafka.tools.ConnectPluginPath")?;
    command
        .args(["sync-manifests", "--plugin-location"])
        .arg(converters(settings));
    run_logged(command, &settings.log("connect-plugins"))
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
        .arg(PHASE)
        .stdin(Stdio::null());
    command
}

/// The plugin takes its settings from these properties, and its goal from each project, so one run serves
/// projects that differ in them. Unless told to overwrite, it does not unpack what it unpacked before, even
/// if its folder is gone.
fn pom(project: &Project) -> String {
    let dependencies: String = project
        .artifacts
        .iter()
        .map(|(group, artifact, version)| {
            format!(
                "    <dependency><groupId>{group}</groupId><artifactId>{artifact}</artifactId>\
                 <version>{version}</version>{}</dependency>\n",
                project.form.details()
            )
        })
        .collect();
    format!(
        "{}  <properties>\n    \
         <includeScope>runtime</includeScope>\n    \
         <overWriteReleases>true</overWriteReleases>\n    \
         <excludeArtifactIds>{}</excludeArtifactIds>\n    \
         <outputDirectory>{}</outputDirectory>\n  \
         </properties>\n  <dependencies>\n{dependencies}  </dependencies>\n{}</project>\n",
        pom_head(project.name),
        project.excluded,
        xml_text(&project.folder.display().to_string()),
        plugin(project.form.goal()),
    )
}

fn plugin(goal: &str) -> String {
    format!(
        "  <build><plugins><plugin>\n    \
         <groupId>org.apache.maven.plugins</groupId><artifactId>maven-dependency-plugin</artifactId>\
         <version>{DEPENDENCY_PLUGIN_VERSION}</version>\n    \
         <executions><execution><phase>{PHASE}</phase><goals><goal>{goal}</goal></goals></execution></executions>\n  \
         </plugin></plugins></build>\n"
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

/// Returns the command of a Java machine; what it is to run has to be added.
pub(super) fn machine(settings: &Settings) -> Outcome<Command> {
    let program = install::java().ok_or_else(|| {
        Failure::of_usage("Java 17 or newer is gone; install it or set JAVA_HOME")
    })?;
    let mut command = Command::new(program);
    command.args(JVM_OPTIONS).current_dir(&settings.directory);
    Ok(command)
}

/// Returns a command that runs `class` of the fetched jars; what it takes can be added.
pub(super) fn java(settings: &Settings, class: &str) -> Outcome<Command> {
    let logging = settings.configure("log4j2.properties", LOGGING)?;
    let mut command = machine(settings)?;
    command
        .arg(format!("-Dlog4j2.configurationFile={}", logging.display()))
        .arg("-cp")
        .arg(libraries(settings).join("*"))
        .arg(class);
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pom_of(form: Form) -> String {
        pom(&Project {
            name: "example",
            folder: PathBuf::from("/a & b"),
            form,
            excluded: "",
            artifacts: vec![("group", "artifact", "1.0")],
        })
    }

    #[test]
    fn jars_are_copied_with_what_they_depend_on() {
        let pom = pom_of(Form::Jars);
        assert!(pom.contains("<goal>copy-dependencies</goal>"));
        assert!(pom.contains("<version>1.0</version></dependency>"));
        assert!(pom.contains("<outputDirectory>/a &amp; b</outputDirectory>"));
    }

    #[test]
    fn an_archive_is_unpacked_and_nothing_is_fetched_besides() {
        let pom = pom_of(Form::Archive);
        assert!(pom.contains("<goal>unpack-dependencies</goal>"));
        assert!(pom.contains("<version>1.0</version><type>tar.gz</type>"));
        assert!(pom.contains("<groupId>*</groupId><artifactId>*</artifactId></exclusion>"));
    }
}
