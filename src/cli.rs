//! What the user typed.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{Args, Parser, Subcommand};
use connectors::delta::TableError;
use dataflows::pipelines::mentions::COUNTS;
use serde_json::Value;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::checkpoint::store::StoreError;
use crate::cluster::{self, RunError, Running};
use crate::launch::{self, Launch};
use crate::mlflow::TrackingServer;
use crate::plan::{Mistakes, Overrides, Plan, SECRET_VARIABLE};
use crate::progress::Display;
use crate::query::client::Server;
use crate::tables::{self, Order};
use crate::{
    EXIT_FAILURE, EXIT_USAGE, config, demo, doctor, evaluate, events, generate, mlflow, model,
    monitor, query, report,
};

/// Keeps scores and counts true while the data underneath them changes.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Examples:
  assay demo                         an example to play with, nothing else needed
  assay init mentions > assay.toml   a configuration with every default
  assay run assay.toml               run it until ctrl-C
  assay query 'select * from mention_sentiment order by total desc limit 10'"
)]
struct Cli {
    /// Write logs as JSON, one object a line.
    #[arg(long, global = true)]
    log_json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a pipeline until ctrl-C or SIGTERM, which make a last checkpoint.
    Run(Run),
    /// Run a pipeline in several processes on this machine, and all again whenever one dies.
    Launch(LaunchArguments),
    /// Look at everything that a configuration names, and tell what holds and what does not.
    #[command(after_help = "Exits with code 1 if something would keep the pipeline from running.")]
    Doctor {
        /// The configuration.
        config: PathBuf,
    },
    /// Generate tweets into a folder, run the mentions pipeline on them, and stay for changes.
    Demo(Demo),
    /// Print a commented configuration with every default.
    Init {
        /// The pipeline.
        #[arg(value_parser = ["mentions"])]
        pipeline: String,
    },
    /// Ask a running Assay, in SQL.
    Query(Query),
    /// Print a relation's rows, and then each change to them, until ctrl-C.
    Subscribe(Subscribe),
    /// Show the rows behind a number.
    Explain(Explain),
    /// Watch a running Assay's stages at work.
    #[command(
        after_help = "On a terminal a table that is painted again each second; elsewhere a line every ten seconds."
    )]
    Monitor(Asking),
    /// Write what a running Assay knows as one page with charts.
    #[command(
        after_help = "The folder gets an index.html and a PNG image a chart. All of it is of one epoch.

Example:
  assay report --out report"
    )]
    Report {
        /// The folder; made if there is none.
        #[arg(long)]
        out: PathBuf,
        #[command(flatten)]
        whom: Whom,
    },
    /// Log with MLflow how well a running Assay's models do.
    Evaluate(Evaluate),
    /// Look at a model before it is used.
    #[command(subcommand)]
    Model(ModelOrder),
    /// Show what changed in a relation between two epochs or times.
    Diff(Diff),
    /// Pause a running Assay's source, read on, or tell how it is.
    #[command(after_help = "A pause holds until it is lifted, or until the next start.")]
    Source {
        /// What to do.
        #[arg(value_parser = ["pause", "resume", "status"])]
        order: String,
        #[command(flatten)]
        asking: Asking,
    },
    /// Show what could not be used, by reason, or try it again.
    #[command(
        after_help = "A retry reads the configuration's [source] anew: corrected columns, keys and formats
count for what comes as well. It begins when the order has reached all processes."
    )]
    Rejects {
        /// What to do.
        #[arg(value_parser = ["list", "retry"])]
        order: String,
        #[command(flatten)]
        asking: Asking,
    },
    /// Look after the tables of a configuration.
    #[command(subcommand)]
    Tables(Tables),
    /// Remove someone's rows from every table, and say what was removed from where.
    Forget(Forget),
    /// Make data to try a pipeline on.
    #[command(subcommand)]
    Generate(Generate),
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  assay run assay.toml
  assay run assay.toml --until-idle --workers 2
  ASSAY__TABLES__PATH=/data/tables assay run assay.toml
  assay run assay.toml --hosts hosts.txt --process 0     one process of several")]
struct Run {
    /// The configuration.
    config: PathBuf,
    /// End when the source has been read to its end and everything is durable.
    #[arg(long)]
    until_idle: bool,
    /// Worker threads of this process.
    #[arg(long, value_name = "N")]
    workers: Option<usize>,
    /// This process's place in the file of hosts, from 0.
    #[arg(long, value_name = "I", requires = "hosts")]
    process: Option<usize>,
    /// A file with the host and port of every process, one a line, the same for all of them.
    #[arg(long, value_name = "FILE", requires = "process")]
    hosts: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  assay launch --processes 4 --workers 1 assay.toml
  assay launch --processes 2 assay.toml --until-idle

The first process answers queries where the configuration says, the others at the ports that follow.")]
struct LaunchArguments {
    /// The configuration.
    config: PathBuf,
    /// Processes.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=256))]
    processes: u16,
    /// Worker threads of each process.
    #[arg(long, value_name = "N")]
    workers: Option<usize>,
    /// End when the source has been read to its end and everything is durable.
    #[arg(long)]
    until_idle: bool,
}

#[derive(Debug, Args)]
struct Demo {
    /// The folder for tweets and tables; a new one if not given. One of an earlier demo goes on.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// End after the results have been printed.
    #[arg(long)]
    exit: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  assay query 'select count(*) from gold'
  assay query --at '2026-01-01 12:30:00' 'select count(*) from gold'
  assay query --server http://127.0.0.1:9000 \"select * from users where \\\"user\\\" = 'ada'\"")]
struct Query {
    /// The query.
    sql: String,
    /// Answer as of the last checkpoint at or before an epoch or a time (UTC).
    #[arg(long, value_name = "EPOCH_OR_TIME", value_parser = query::past::parse_epoch)]
    at: Option<u64>,
    #[command(flatten)]
    asking: Asking,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  assay diff users --from '2026-01-01 12:00' --to '2026-01-01 12:30'
  assay diff mention_sentiment --from 2026-01-01 --json

Each row is shown once, with how many more (or fewer) of it there are at the end.")]
struct Diff {
    /// The relation.
    relation: String,
    /// From the last checkpoint at or before this epoch or time (UTC).
    #[arg(long, value_name = "EPOCH_OR_TIME", value_parser = query::past::parse_epoch)]
    from: u64,
    /// To the last checkpoint at or before this one; the newest there is if not given.
    #[arg(long, value_name = "EPOCH_OR_TIME", value_parser = query::past::parse_epoch)]
    to: Option<u64>,
    #[command(flatten)]
    asking: Asking,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  assay subscribe accuracy
  assay subscribe mention_sentiment --where \"mention = 'united'\"
  assay subscribe rejects --json | jq .row.reason

Each line is an epoch, how many more or fewer of a row there are, and the row. First come the rows as they are.")]
struct Subscribe {
    /// The relation.
    relation: String,
    /// Only rows for which a condition holds, as in SQL.
    #[arg(long = "where", value_name = "CONDITION")]
    condition: Option<String>,
    #[command(flatten)]
    asking: Asking,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:
  assay explain mention_sentiment --mention united --column negative")]
struct Explain {
    /// The relation.
    #[arg(value_parser = ["mention_sentiment"])]
    relation: String,
    /// Who is mentioned.
    #[arg(long)]
    mention: String,
    /// The number's column.
    #[arg(long, value_parser = COUNTS)]
    column: String,
    /// How many rows to show, the newest first.
    #[arg(long, default_value_t = 20)]
    limit: usize,
    #[command(flatten)]
    asking: Asking,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  assay evaluate --mlflow http://127.0.0.1:5000
  MLFLOW_TRACKING_URI=https://mlflow.example assay evaluate --experiment tweets

Each model gets a run of its own, whose page's address is printed: precision, recall and F1 of each label, macro and
weighted, accuracy, and an image of the confusion matrix. Whoever asks is named as for MLflow's own clients, by
MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or by MLFLOW_TRACKING_TOKEN.")]
struct Evaluate {
    /// The MLflow server.
    #[arg(long, value_name = "URL", env = mlflow::ADDRESS_VARIABLE, hide_env_values = true)]
    mlflow: String,
    /// The experiment; made if there is none.
    #[arg(
        long,
        value_name = "NAME",
        env = "MLFLOW_EXPERIMENT_NAME",
        default_value = "assay"
    )]
    experiment: String,
    #[command(flatten)]
    whom: Whom,
}

/// Whom to ask.
#[derive(Debug, Args)]
struct Whom {
    /// Where Assay answers.
    #[arg(long, env = "ASSAY_SERVER", default_value = "http://127.0.0.1:8080")]
    server: String,
    /// The token to show, where tokens are asked for.
    #[arg(long, env = "ASSAY_TOKEN", hide_env_values = true)]
    token: Option<String>,
}

/// Whom to ask, and how to show the answer.
#[derive(Debug, Args)]
struct Asking {
    #[command(flatten)]
    whom: Whom,
    /// Print the answer as JSON.
    #[arg(long)]
    json: bool,
}

impl Whom {
    fn server(&self) -> Server {
        Server {
            url: self.server.clone(),
            token: self.token.clone(),
        }
    }
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  assay forget assay.toml --where \"\\\"user\\\" = 'ada'\"
  assay forget assay.toml --where \"\\\"user\\\" = 'ada'\" --purge

Stop Assay first, and delete the rows at the source, which would bring them back otherwise. Without
--purge, earlier versions of the tables hold them until the history has passed and a vacuum came by.")]
struct Forget {
    /// The configuration.
    config: PathBuf,
    /// Which rows of bronze to forget, as in SQL.
    #[arg(long = "where", value_name = "CONDITION")]
    condition: String,
    /// Remove them from all files as well, with all earlier versions, and look whether it is so.
    #[arg(long)]
    purge: bool,
    /// Where to write the receipt.
    #[arg(long, value_name = "FILE", default_value = "forget-receipt.json")]
    receipt: PathBuf,
}

#[derive(Debug, Subcommand)]
enum Tables {
    /// Print what each table holds; marked rows are removed ones that a file still has.
    List {
        /// The configuration.
        config: PathBuf,
    },
    /// Print the versions of tables that can still be read, the newest first.
    History {
        /// The configuration.
        config: PathBuf,
        /// One relation alone.
        relation: Option<String>,
    },
    /// Write small files, and those with removed rows, as fewer whole ones; Assay must not be running,
    /// which does so by itself.
    Optimize {
        /// The configuration.
        config: PathBuf,
    },
    /// Derive every relation from bronze again and tell where a table differs; changes nothing.
    #[command(
        after_help = "Exits with code 1 if a table differs. A running Assay is not disturbed."
    )]
    Verify {
        /// The configuration.
        config: PathBuf,
        /// Score every text again, rather than trust the scores that are kept.
        #[arg(long)]
        rescore: bool,
    },
    /// Delete all tables, after asking.
    Reset {
        /// The configuration.
        config: PathBuf,
        /// Delete without asking.
        #[arg(long)]
        yes: bool,
    },
    /// Remove files that no version within the history needs; a running Assay is not disturbed.
    #[command(after_help = "Examples:
  assay tables vacuum assay.toml --dry-run
  assay tables vacuum assay.toml

How long earlier versions can be read is tables.history_hours. Files younger than an hour are left alone.")]
    Vacuum {
        /// The configuration.
        config: PathBuf,
        /// Only tell what would be removed.
        #[arg(long)]
        dry_run: bool,
    },
}

/// Another model for a running Assay.
#[derive(Args, Debug)]
struct OtherModel {
    #[command(flatten)]
    chosen: model::Chosen,
    /// Wait until it has scored every live text, and, if it is to count, everything shows it.
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    whom: Whom,
}

impl OtherModel {
    fn load(&self, promote: bool) -> anyhow::Result<()> {
        model::running::load(&self.chosen, promote, self.wait, &self.whom.server())
    }
}

#[derive(Debug, Subcommand)]
enum ModelOrder {
    /// Load a model, try it, and tell what it is.
    #[command(after_help = "Examples:
  assay model check models/mine
  assay model check models/mine --label LABEL_1=positive
  MLFLOW_TRACKING_URI=http://127.0.0.1:5000 assay model check models:/tweets@champion")]
    Check(model::Chosen),
    /// Measure how fast a model is on this machine.
    Bench(model::Bench),
    /// Score labelled texts: precision, recall, F1, confusion matrix, calibration.
    Eval(model::Eval),
    /// Tell what another model would change in a running Assay: how many texts, how long, which labels.
    Plan {
        #[command(flatten)]
        chosen: model::Chosen,
        #[command(flatten)]
        whom: Whom,
    },
    /// Change a running Assay's model: it scores every live text first, then all relations move in one epoch.
    #[command(after_help = "Examples:
  assay model plan models/mine
  assay model set sentiment models/mine --wait

The stream goes on meanwhile. If the model fails, the old one stays. The change holds over restarts, until the
configuration names another model.")]
    Set {
        /// Which of the pipeline's models.
        #[arg(value_parser = ["sentiment"])]
        name: String,
        #[command(flatten)]
        other: OtherModel,
    },
    /// Have another model score beside a running Assay's own; model_agreement shows where they differ.
    #[command(after_help = "Examples:
  assay model shadow models/mine
  assay query 'select * from model_agreement order by texts desc limit 20'
  assay model promote --wait")]
    Shadow(OtherModel),
    /// Make the scores of the model count that scores beside the other; none is made again.
    Promote {
        /// Wait until everything shows it.
        #[arg(long)]
        wait: bool,
        #[command(flatten)]
        whom: Whom,
    },
    /// Let the model go that scores beside the other.
    Drop {
        #[command(flatten)]
        whom: Whom,
    },
    /// Tell which model a running Assay has, and which beside it.
    Status {
        #[command(flatten)]
        whom: Whom,
    },
}

#[derive(Debug, Subcommand)]
enum Generate {
    /// Tweets by invented people, equal for equal seeds.
    Tweets(generate::Tweets),
}

/// Parses, runs, prints one error.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    start_logging(cli.log_json);
    end_on_panic();
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("assay: {error:#}");
            ExitCode::from(exit_code(&error) as u8)
        }
    }
}

/// Mistakes that the user can mend before starting again have a code of their own.
fn exit_code(error: &anyhow::Error) -> i32 {
    let of_the_start = match error.downcast_ref::<RunError>() {
        Some(RunError::Start(_)) => false,
        // A storage that fails may be back when a supervisor tries again.
        Some(RunError::Tables(StoreError::Table(TableError::Storage { .. }))) => false,
        Some(_) => true,
        None => {
            error.is::<Mistakes>()
                || error.is::<config::ConfigError>()
                || error.is::<demo::Unusable>()
        }
    };
    if of_the_start {
        EXIT_USAGE
    } else {
        EXIT_FAILURE
    }
}

/// What is logged unless `ASSAY_LOG` says otherwise. librdkafka, tract and the statistics of Delta's writer say
/// much that matters to no one but their authors.
const LOGGED: &str =
    "warn,assay=info,connectors=info,dataflows=info,deltalake_core::writer::stats=error";

fn start_logging(json: bool) {
    let filter = EnvFilter::try_from_env("ASSAY_LOG").unwrap_or_else(|_| EnvFilter::new(LOGGED));
    let colours = std::io::stderr().is_terminal()
        && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    let logs = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(colours)
        .with_target(false);
    let kept = tracing_subscriber::registry()
        .with(filter)
        .with(events::Keep);
    if json {
        kept.with(logs.json()).init()
    } else {
        kept.with(logs).init()
    }
}

/// Ends the process at the first panic: a worker that is gone would leave the others waiting, and
/// a process that lingers would serve what is no longer true.
fn end_on_panic() {
    let told = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        match lost_peer() {
            Some(peer) => eprintln!(
                "assay: process {peer} of the cluster has ended or cannot be reached; ending as well, \
                 to start again from the last checkpoint"
            ),
            None => told(panic),
        }
        std::process::exit(EXIT_FAILURE);
    }));
}

/// The process to which the panicking thread talks: losing the connection is how timely's threads
/// learn that it has ended.
fn lost_peer() -> Option<String> {
    let thread = std::thread::current();
    let name = thread.name()?.strip_prefix("timely:")?;
    let (kind, peer) = name.split_once('-')?;
    matches!(kind, "recv" | "send").then(|| peer.to_owned())
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Run(run) => run_pipeline(&run),
        Command::Launch(arguments) => launch_processes(arguments),
        Command::Doctor { config } => doctor::run(&Plan::read(&config, &Overrides::default())?),
        Command::Demo(demo) => demo::run(demo.dir, demo.exit),
        Command::Init { .. } => {
            print!("{}", config::TEMPLATE);
            Ok(())
        }
        Command::Query(query) => show(&query.asking, |server| server.ask(&query.sql, query.at)),
        Command::Subscribe(subscribe) => follow_changes(&subscribe),
        Command::Explain(explain) => show_explained(&explain),
        Command::Monitor(asking) => monitor::run(&asking.whom.server(), asking.json),
        Command::Report { out, whom } => {
            println!("{}", report::write(&whom.server(), &out)?);
            Ok(())
        }
        Command::Evaluate(evaluate) => evaluate::run(
            &evaluate.whom.server(),
            &TrackingServer::at(&evaluate.mlflow)?,
            &evaluate.experiment,
        ),
        Command::Model(order) => look_at_model(&order),
        Command::Diff(diff) => show(&diff.asking, |server| {
            server.diff(
                &diff.relation,
                diff.from,
                diff.to.unwrap_or(query::past::NEWEST),
            )
        }),
        Command::Source { order, asking } => steer_source(&order, &asking),
        Command::Rejects { order, asking } => look_at_rejects(&order, &asking),
        Command::Tables(order) => look_after(&order),
        Command::Forget(forget) => tables::forget::run(
            &Plan::read(&forget.config, &Overrides::default())?,
            &forget.condition,
            forget.purge,
            &forget.receipt,
        ),
        Command::Generate(Generate::Tweets(tweets)) => generate::run(&tweets),
    }
}

fn look_at_model(order: &ModelOrder) -> anyhow::Result<()> {
    use model::running;
    match order {
        ModelOrder::Check(chosen) => model::check(chosen),
        ModelOrder::Bench(bench) => model::bench(bench),
        ModelOrder::Eval(eval) => model::eval(eval),
        ModelOrder::Plan { chosen, whom } => running::plan(chosen, &whom.server()),
        ModelOrder::Set { other, .. } => other.load(true),
        ModelOrder::Shadow(other) => other.load(false),
        ModelOrder::Promote { wait, whom } => running::promote(*wait, &whom.server()),
        ModelOrder::Drop { whom } => running::drop_candidate(&whom.server()),
        ModelOrder::Status { whom } => running::status(&whom.server()),
    }
}

fn run_pipeline(run: &Run) -> anyhow::Result<()> {
    launch::stop_with_launcher()?;
    let overrides = Overrides {
        workers: run.workers,
        process: run.process.unwrap_or(0),
        hosts: run.hosts.clone(),
        until_idle: run.until_idle,
        secret: std::env::var(SECRET_VARIABLE).ok(),
    };
    let plan = Plan::read(&run.config, &overrides)?;
    cluster::run(plan, follow)?;
    Ok(())
}

fn launch_processes(arguments: LaunchArguments) -> anyhow::Result<()> {
    let overrides = Overrides {
        workers: arguments.workers,
        ..Overrides::default()
    };
    // Checked here as well, so that a mistake is told once and not by every process.
    let plan = Plan::read(&arguments.config, &overrides)?;
    launch::run(&Launch {
        config: arguments.config,
        processes: arguments.processes.into(),
        workers: arguments.workers,
        until_idle: arguments.until_idle,
        server: plan.server,
    })
}

fn look_after(order: &Tables) -> anyhow::Result<()> {
    let (config, relation, order) = match order {
        Tables::List { config } => (config, None, Order::List),
        Tables::History { config, relation } => (config, relation.as_deref(), Order::History),
        Tables::Optimize { config } => (config, None, Order::Optimize),
        Tables::Verify { config, rescore } => (config, None, Order::Verify { rescore: *rescore }),
        Tables::Reset { config, yes } => (config, None, Order::Reset { sure: *yes }),
        Tables::Vacuum { config, dry_run } => (config, None, Order::Vacuum { remove: !dry_run }),
    };
    tables::run(&Plan::read(config, &Overrides::default())?, relation, order)
}

/// Shows progress for as long as the process lives.
fn follow(running: Running) {
    if let Some(address) = running.address {
        tracing::info!("answering on http://{address}");
    }
    if let Some(address) = running.postgres {
        tracing::info!("answering PostgreSQL's clients on {address}");
    }
    loop {
        running.show();
        std::thread::park_timeout(Display::INTERVAL);
    }
}

fn steer_source(order: &str, asking: &Asking) -> anyhow::Result<()> {
    let server = asking.whom.server();
    let answer = match order {
        "status" => server.source(),
        order => server.order_source(order),
    }?;
    match (order, asking.json) {
        ("status", false) => print!("{}", query::client::source_table(&answer)),
        (_, true) => println!("{answer}"),
        (order, false) => println!("{order} has been ordered"),
    }
    Ok(())
}

fn look_at_rejects(order: &str, asking: &Asking) -> anyhow::Result<()> {
    if order == "list" {
        return show(asking, |server| server.ask(REJECTS, None));
    }
    let answer = asking.whom.server().retry_rejects()?;
    match asking.json {
        true => println!("{answer}"),
        false => println!("what could not be used is tried again"),
    }
    Ok(())
}

fn follow_changes(subscribe: &Subscribe) -> anyhow::Result<()> {
    let asking = &subscribe.asking;
    let print = |name: &str, data: Value| print_changes(name, &data, asking.json);
    let condition = subscribe.condition.as_deref();
    let followed = asking
        .whom
        .server()
        .follow(&subscribe.relation, condition, print);
    match followed {
        // Whoever reads what is printed has had enough, as of `| head`.
        Err(error) if is_broken_pipe(&error) => Ok(()),
        followed => followed.with_context(|| format!("cannot follow at {}", asking.whom.server)),
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let error = error.downcast_ref::<std::io::Error>();
    error.is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

fn print_changes(name: &str, data: &Value, as_json: bool) -> anyhow::Result<()> {
    let mut output = std::io::stdout().lock();
    let mut print = |epoch: &Value, diff: &Value, row: &Value| match as_json {
        true => writeln!(
            output,
            "{{\"epoch\":{epoch},\"diff\":{diff},\"row\":{row}}}"
        ),
        false => writeln!(output, "{epoch}  {:>+3}  {row}", diff.as_i64().unwrap_or(0)),
    };
    let list = |list: &str| data[list].as_array().cloned().unwrap_or_default();
    match name {
        "snapshot" => {
            for row in list("rows") {
                print(&data["epoch"], &Value::from(1), &row)?;
            }
        }
        "changes" => {
            for change in list("changes") {
                print(&change["epoch"], &change["diff"], &change["row"])?;
            }
        }
        _ => bail!("{}", data["reason"].as_str().unwrap_or("the changes end")),
    }
    Ok(output.flush()?)
}

fn show_explained(explain: &Explain) -> anyhow::Result<()> {
    let asking = &explain.asking;
    let (relation, mention, column) = (&explain.relation, &explain.mention, &explain.column);
    let server = asking.whom.server();
    let answer = server.explain(relation, mention, column, explain.limit)?;
    match asking.json {
        true => println!("{answer}"),
        false => print!("{}", query::client::explained(&answer)),
    }
    Ok(())
}

/// Rejects by their reasons, the most frequent first, each with an example.
const REJECTS: &str = "select stage, reason, count(*) as rejects, min(position) as example, \
                       max(first_seen) as last_seen from rejects group by stage, reason \
                       order by rejects desc, stage, reason limit 100";

/// Prints a server's answer.
fn show(asking: &Asking, ask: impl FnOnce(&Server) -> anyhow::Result<Value>) -> anyhow::Result<()> {
    let answer = ask(&asking.whom.server())?;
    if asking.json {
        println!("{answer}");
    } else {
        print!("{}", query::client::table(&answer));
    }
    Ok(())
}
