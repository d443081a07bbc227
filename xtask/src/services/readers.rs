//! Programs from Python's registry that tests need: readers of Delta tables to compare with (Spark,
//! and Polars with the package of delta-rs), clients of PostgreSQL and of a browser, a server that
//! speaks S3, and MLflow's.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

use super::{Settings, jars, remove_directory};
use crate::failure::{OrCannot, Outcome};
use crate::process::{progress, run_logged};

/// Spark is the newest for which this version of Delta's library is made; see `jars`. MLflow's server comes as its
/// small package with what the server imports, which is less than half of the large one.
const REQUIREMENTS: &str = "aiohttp==3.14.5\nalembic==1.20.1\ndeltalake==1.6.6\nflask-cors==6.0.5\nflask-wtf==1.3.0\nflask==3.1.3\nmlflow-skinny==3.17.2\nmoto[s3,server]==5.2.5\nnumpy==2.4.6\npandas==3.1.1\npolars==2.1.0\npsycopg[binary]==3.3.9\npyspark==4.0.1\nselenium==4.51.0\nsqlalchemy==2.1.9\n";

/// What tests find the readers by.
pub(super) fn environment(settings: &Settings) -> [(&'static str, String); 3] {
    [
        ("ASSAY_TEST_PYTHON", python(settings).display().to_string()),
        (
            "ASSAY_TEST_SPARK_JARS",
            jars::of_spark(settings).display().to_string(),
        ),
        (
            "ASSAY_TEST_JDBC",
            jars::of_jdbc(settings).display().to_string(),
        ),
    ]
}

fn directory(settings: &Settings) -> PathBuf {
    settings.directory.join("python")
}

fn python(settings: &Settings) -> PathBuf {
    directory(settings).join("bin/python")
}

/// Installs the packages into an environment of their own, unless they are there. Written last, the
/// file of requirements vouches for them.
pub(crate) fn fetch(settings: &Settings) -> Outcome {
    let stamp = directory(settings).join("complete.txt");
    if fs::read_to_string(&stamp).is_ok_and(|found| found == REQUIREMENTS) {
        return Ok(());
    }
    let begun = Instant::now();
    let log = settings.log("pip");
    let directory = directory(settings);
    remove_directory(&directory)?;
    let mut make = Command::new("python3");
    make.args(["-m", "venv"])
        .arg(&directory)
        .stdin(Stdio::null());
    run_logged(make, &log)?;
    let mut install = Command::new(python(settings));
    install
        .args([
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
        ])
        .args(REQUIREMENTS.lines())
        .stdin(Stdio::null());
    run_logged(install, &log)?;
    fs::write(&stamp, REQUIREMENTS).or_cannot(|| format!("write {}", stamp.display()))?;
    progress(
        "readers",
        &format!("fetched in {:.1} s", begun.elapsed().as_secs_f32()),
    );
    Ok(())
}
