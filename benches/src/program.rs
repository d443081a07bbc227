//! Runs the `assay` program on a configuration until it has read everything.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use assay::config::{Settings, SourceKind};
use assay::generate::tweets::GeneratedTweet;
use tempfile::TempDir;

use crate::cost::{self, Cost};

/// The seed of everything that is generated here, so that every run has the same input.
pub(crate) const SEED: u64 = 2_009;

/// Lines of a file: the source reads 512 files a turn and closes epochs between turns, so that
/// 100 lines make epochs of 51,200 rows, which is about what a Kafka topic's have.
pub(crate) const LINES_A_FILE: usize = 100;

/// The `assay` program beside this one, and a folder that goes away with this value.
pub(crate) struct Assay {
    program: PathBuf,
    folder: TempDir,
}

impl Assay {
    /// Finds the program.
    ///
    /// # Errors
    /// If it has not been built.
    pub(crate) fn find() -> anyhow::Result<Self> {
        let benches = std::env::current_exe().context("cannot tell where this program lies")?;
        let program = benches.with_file_name("assay");
        ensure!(
            program.is_file(),
            "there is no \"{}\"; run cargo build --release -p assay -p benches",
            program.display()
        );
        let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
        Ok(Self { program, folder })
    }

    /// The program.
    pub(crate) fn program(&self) -> &Path {
        &self.program
    }

    /// Where a bench may put its input and tables.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Runs the settings until idle.
    ///
    /// # Errors
    /// If the program fails.
    pub(crate) fn run(&self, case: &str, settings: &Settings) -> anyhow::Result<Cost> {
        eprintln!("measuring: {case}");
        let file = self.folder().join("assay.toml");
        let text = toml::to_string(settings).context("cannot write settings as TOML")?;
        fs::write(&file, text).with_context(|| format!("cannot write \"{}\"", file.display()))?;
        let mut command = Command::new(&self.program);
        command.arg("run").arg(&file).arg("--until-idle");
        // Variables over the configuration would measure something else than the table says.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("ASSAY__") {
                command.env_remove(name);
            }
        }
        cost::of_child(command, &self.folder().join("log")).context(case.to_owned())
    }
}

/// Settings with nothing but a source and the dataflow: no model, no tables, no server.
pub(crate) fn bare(kind: SourceKind) -> Settings {
    let mut settings = Settings::default();
    settings.source.kind = kind;
    settings.model.enabled = false;
    settings.tables.enabled = false;
    settings.server.enabled = false;
    settings
}

/// Bare settings that read this folder.
pub(crate) fn bare_files(folder: &Path) -> Settings {
    let mut settings = bare(SourceKind::Files);
    settings.source.files.path = folder.to_owned();
    settings
}

/// Turns queries on, which index every relation, at any free port.
pub(crate) fn with_server(mut settings: Settings) -> Settings {
    settings.server.enabled = true;
    settings.server.listen = "127.0.0.1:0".to_owned();
    settings
}

/// Turns tables on, kept in a folder that must be new.
pub(crate) fn with_tables(mut settings: Settings, folder: &Path) -> Settings {
    settings.tables.enabled = true;
    settings.tables.path = folder.display().to_string();
    settings.tables.checkpoint_interval_s = 10;
    settings
}

/// Makes a folder, empty but for these tweets, in files of one a line.
///
/// # Errors
/// If a file cannot be written.
pub(crate) fn write_lines(
    folder: &Path,
    mut tweets: impl Iterator<Item = GeneratedTweet>,
) -> anyhow::Result<()> {
    let refused = || format!("cannot write to \"{}\"", folder.display());
    fs::create_dir_all(folder).with_context(refused)?;
    for number in 1.. {
        let tweets = tweets.by_ref().take(LINES_A_FILE);
        let lines: String = tweets.map(|tweet| tweet.to_json() + "\n").collect();
        if lines.is_empty() {
            break;
        }
        let name = format!("{number:06}.jsonl");
        fs::write(folder.join(name), lines).with_context(refused)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use assay::generate::tweets::TweetGenerator;

    use super::*;

    #[test]
    fn all_lines_are_written_and_none_makes_an_empty_folder() {
        let folder = tempfile::tempdir().unwrap();
        for count in [0, 100, 250] {
            let folder = folder.path().join(count.to_string());
            write_lines(&folder, TweetGenerator::new(SEED).take(count)).unwrap();
            let files = fs::read_dir(&folder).unwrap();
            let texts = files.map(|file| fs::read_to_string(file.unwrap().path()).unwrap());
            let lines: Vec<_> = texts.map(|text| text.lines().count()).collect();
            assert_eq!(lines.iter().sum::<usize>(), count);
            assert_eq!(lines.len(), count.div_ceil(LINES_A_FILE));
        }
    }

    #[test]
    fn settings_are_read_back_as_meant() {
        let meant = with_tables(with_server(bare(SourceKind::Kafka)), Path::new("/x/tables"));
        let text = toml::to_string(&meant).unwrap();
        let read = assay::config::read("x.toml", &text, std::iter::empty());
        assert_eq!(read.unwrap(), meant);
    }
}
