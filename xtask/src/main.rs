//! Runs the project's checks and the services that its tests talk to; `cargo xtask --help` lists the commands.

mod budget;
mod failure;
mod install;
mod lint;
mod process;
mod services;
mod test;

use std::borrow::Cow;
use std::ffi::OsString;
use std::process::ExitCode;

use failure::{Failure, Outcome};
use services::{Data, Force, Service, Settings};

const HELP: &str = "\
Runs the checks of this project and the services its tests talk to.

Usage: cargo xtask COMMAND

Commands:
  test [ARGS...]                    install what is missing, start the services on empty data, run
                                    fmt, clippy and the tests, see that the build has not grown, stop
                                    the services; ARGS go to `cargo test` and leave the rest out
  services up [--wipe]              start Kafka, a schema registry, Kafka Connect and PostgreSQL and
                                    leave them running
  services down [--wipe]            stop them
  services status                   say which of them answer; exit code 1 if one does not
  services env                      print what the tests read, as lines for a shell
  services start NAME               start one: kafka, registry, connect or postgres
  services stop NAME [--kill]       stop one, or kill it without a chance to tidy up

--wipe forgets the services' data: topics, connectors, databases. Downloads are kept. The registry forgets
its schemas whenever it stops.

Examples:
  cargo xtask test                             what continuous integration runs
  cargo xtask test -p connectors kafka         tests of one package whose name has `kafka`
  cargo xtask test -- --nocapture              with the tests' output
  cargo xtask services up && eval \"$(cargo xtask services env)\" && cargo test --release
  cargo xtask services stop kafka --kill       as if the broker had lost its power
  cargo xtask services down --wipe

Environment:
  ASSAY_SERVICES_DIR                where services live [default: the user's cache, assay/services]
  ASSAY_KAFKA_PORT                  [default: 19092]
  ASSAY_KAFKA_CONTROLLER_PORT       [default: 19093]
  ASSAY_KAFKA_SECURE_PORT           TLS and SASL [default: 19094]
  ASSAY_KAFKA_CERTIFICATE_PORT      TLS with client certificates [default: 19095]
  ASSAY_REGISTRY_PORT               [default: 18081]
  ASSAY_CONNECT_PORT                [default: 18083]
  ASSAY_POSTGRES_PORT               [default: 15432]
  ASSAY_SKIP_LINTS=1                `test` leaves fmt, clippy and the size of the build out
";

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    if lint::stands_in(arguments.first()) {
        return lint::run(&arguments);
    }
    let words = arguments.iter().map(|word| word.to_string_lossy());
    let arguments: Vec<String> = words.map(Cow::into_owned).collect();
    match dispatch(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("error: {failure}");
            failure.exit_code()
        }
    }
}

fn dispatch(arguments: &[String]) -> Outcome {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        [] | ["help" | "--help" | "-h", ..] | ["test" | "services", "--help" | "-h"] => {
            print!("{HELP}");
            Ok(())
        }
        ["test", ..] => test::run(&Settings::from_environment()?, &arguments[1..]),
        [test::GUARD] => test::guard(&Settings::from_environment()?),
        ["services", words @ ..] => dispatch_services(words),
        [unknown, ..] => Err(unknown_command(unknown)),
    }
}

fn dispatch_services(words: &[&str]) -> Outcome {
    let settings = Settings::from_environment()?;
    match words {
        ["up"] => services::up(&settings, Data::Keep),
        ["up", "--wipe"] => services::up(&settings, Data::Wipe),
        ["down"] => services::down(&settings, Data::Keep),
        ["down", "--wipe"] => services::down(&settings, Data::Wipe),
        ["status"] => services::status(&settings),
        ["env"] => {
            services::print_environment(&settings);
            Ok(())
        }
        ["start", name] => services::start_one(&settings, Service::named(name)?),
        ["stop", name] => services::stop_one(&settings, Service::named(name)?, Force::Polite),
        ["stop", name, "--kill"] => {
            services::stop_one(&settings, Service::named(name)?, Force::Kill)
        }
        _ => Err(unknown_command(&format!("services {}", words.join(" ")))),
    }
}

fn unknown_command(words: &str) -> Failure {
    Failure::of_usage(format!(
        "unknown command `{}`; `cargo xtask --help` lists them",
        words.trim_end()
    ))
}
