//! Holds many rows: how many bytes a live row takes, with the indexes that queries read and without.

use assay::config::Settings;
use assay::generate::tweets::TweetGenerator;
use clap::Args;

use crate::program::{Assay, SEED, bare_files, with_server, write_lines};
use crate::table::{markdown, whole};

/// Holds many rows in memory, without model and tables.
#[derive(Args, Debug)]
pub(crate) struct Memory {
    /// Tweets, each a live row of bronze.
    #[arg(long, default_value_t = 1_000_000)]
    rows: usize,
}

pub(crate) fn run(bench: &Memory) -> anyhow::Result<()> {
    let assay = Assay::find()?;
    let (empty, full) = (assay.folder().join("empty"), assay.folder().join("full"));
    write_lines(&empty, std::iter::empty())?;
    write_lines(&full, TweetGenerator::new(SEED).take(bench.rows))?;
    let measure = |case: &str, change: fn(Settings) -> Settings| {
        let without = assay.run(&format!("{case}, no rows"), &change(bare_files(&empty)))?;
        let with = assay.run(case, &change(bare_files(&full)))?;
        let rows = with.peak_bytes.saturating_sub(without.peak_bytes);
        anyhow::Ok([
            case.to_owned(),
            format!("{:.0}", without.peak_mib()),
            format!("{:.0}", with.peak_mib()),
            whole(rows as f64 / bench.rows as f64),
        ])
    };
    let rows = [
        measure("dataflow", |settings| settings)?,
        measure("with indexes for queries", with_server)?,
    ];
    let head = [
        "case",
        "peak MiB, no rows",
        "peak MiB",
        "bytes per live row",
    ];
    println!("{} live rows:\n", whole(bench.rows as f64));
    print!("{}", markdown(head, &rows));
    Ok(())
}
