//! Measures what Assay costs: CPU seconds, wall seconds and memory, beside the least that would do.
//!
//! ```text
//!  benches ──▶ make the input ──▶ run `assay` as a child ──▶ read its cost from /proc ──▶ Markdown
//! ```
//!
//! - [`catch_up`]: a Kafka topic from its beginning, beside a consumer that only parses
//!   ([`consume`]); [`topic`] fills the topic.
//! - [`score`]: texts through the model, bare and within the pipeline.
//! - [`memory`]: bytes a live row.
//! - [`checkpoint`]: a few changes of large tables, and a restart.
//! - [`commits`]: many checkpoints, and the log that they leave.
//! - [`queries`]: reads, and deliveries to a follower, while the stream runs.
//! - [`start_files`]: a folder of many small files.
//! - [`program`], [`cost`], [`table`]: how a run is started, what it cost, how results are printed.
//!
//! The README says why these shapes, and how to read the numbers.

mod catch_up;
mod checkpoint;
mod commits;
mod consume;
mod cost;
mod memory;
mod program;
mod queries;
mod score;
mod start_files;
mod table;
mod topic;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

// The allocator of `assay`, so that what runs in this process compares with what runs in that one.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measures what Assay costs, and prints Markdown tables.
#[derive(Debug, Parser)]
#[command(after_help = "Examples:
  cargo build --release -p assay -p benches
  target/release/benches catch-up --kafka 127.0.0.1:19092
  target/release/benches score --texts 2000")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Read a Kafka topic from its beginning, without a model.
    CatchUp(catch_up::CatchUp),
    /// Score distinct texts, by the bare model and within the pipeline.
    Score(score::Score),
    /// Hold many rows, with and without indexes.
    Memory(memory::Memory),
    /// Change a few rows of many, and start again.
    Checkpoint(checkpoint::Checkpoint),
    /// Commit many checkpoints, one after another.
    Commits(commits::Commits),
    /// Read relations, and follow one, while rows change.
    Queries(queries::Queries),
    /// Read a folder of files with one tweet each, into tables.
    StartFiles(start_files::StartFiles),
    /// Poll and parse a topic, and do nothing with it: the floor of `catch-up`, which runs it.
    #[command(hide = true)]
    Consume(consume::Consume),
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::CatchUp(bench) => catch_up::run(&bench),
        Command::Score(bench) => score::run(&bench),
        Command::Memory(bench) => memory::run(&bench),
        Command::Checkpoint(bench) => checkpoint::run(&bench),
        Command::Commits(bench) => commits::run(&bench),
        Command::Queries(bench) => queries::run(&bench),
        Command::StartFiles(bench) => start_files::run(&bench),
        Command::Consume(bench) => consume::run(&bench),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("benches: {error:#}");
            ExitCode::FAILURE
        }
    }
}
