//! Reads a folder of files with one tweet each into tables: what a first start takes.

use anyhow::Context;
use assay::generate::tweets::TweetGenerator;
use assay::generate::write_files;
use clap::Args;

use crate::program::{Assay, SEED, bare_files, with_tables};
use crate::table::{markdown, whole};

/// Reads a folder of small files into tables, without a model.
#[derive(Args, Debug)]
pub(crate) struct StartFiles {
    /// Files, each with one tweet.
    #[arg(long, default_value_t = 100_000)]
    files: usize,
}

pub(crate) fn run(bench: &StartFiles) -> anyhow::Result<()> {
    let assay = Assay::find()?;
    let tweets = assay.folder().join("tweets");
    write_files(&tweets, TweetGenerator::new(SEED), bench.files)
        .with_context(|| format!("cannot write to \"{}\"", tweets.display()))?;
    let settings = with_tables(bare_files(&tweets), &assay.folder().join("tables"));
    let cost = assay.run("first start", &settings)?;
    let (wall, cpu) = (cost.spent.wall.as_secs_f64(), cost.spent.cpu.as_secs_f64());
    let row = [
        "first start".to_owned(),
        format!("{wall:.2}"),
        format!("{cpu:.2}"),
        whole(cpu * 1e6 / bench.files as f64),
        format!("{:.0}", cost.peak_mib()),
    ];
    let head = ["case", "wall s", "CPU s", "CPU µs per file", "peak MiB"];
    println!("{} files, until durable:\n", whole(bench.files as f64));
    print!("{}", markdown(head, &[row]));
    Ok(())
}
