//! The command line.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "the terminal is this program's output"
)]

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, Parser, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use polyskill_engine::{RouterRequest, Selection};

use crate::config::{Config, parse_parameters};
use crate::experiment_command::{AssignArgs, PlanArgs, TrafficArgs};
use crate::service::Service;
use crate::traces::ReplayArgs;
use crate::{
    adapters_command, api, bench, calibrate, eval, experiment_command, generate, modules,
    plugin_command, pull, record, routers, traces,
};

/// One frozen base model, many modules, routed per token and per layer.
#[derive(Debug, Parser)]
#[command(name = "polyskill", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve OpenAI's HTTP API.
    Serve {
        #[command(flatten)]
        args: ServeArgs,
        /// End when standard input does: whoever holds its other end has ended.
        #[arg(long, hide = true)]
        until_input_ends: bool,
    },
    /// Answer one prompt on the terminal.
    Generate(GenerateArgs),
    /// Fetch a base model into the cache and print its path.
    Pull {
        /// A known name (`smollm2-135m-instruct`, `gemma-3-270m`), `owner/name`, or `owner/name/file.gguf`.
        model: String,
    },
    /// Measure prefill and decode of base, one LoRA, and a router.
    Bench(ServeArgs),
    /// Make an expert policy for a sparse base, from a text that it reads.
    ///
    /// A stopped run goes on where it was. The policy is a module: put it with the others, name it in a request or let the
    /// router `expert-pruning` choose it.
    Calibrate(calibrate::CalibrateArgs),
    /// Compare base, modules and routers on task files, with intervals and a page.
    ///
    /// A task file has a question per line: {"prompt": "2 + 2 = ?", "references": ["4"], "metric": "numeric"}.
    /// A column of the comparison is a TOML table: [[column]], name = "Arrow", router = "arrow".
    /// adapters/evaluation/README.md has all fields, and examples/evaluation.toml is a comparison.
    Eval {
        #[command(flatten)]
        eval: eval::EvalArgs,
        #[command(flatten)]
        serve: ServeArgs,
    },
    /// Try experiments on task files and recorded traffic, and plan them.
    #[command(subcommand)]
    Experiment(ExperimentCommand),
    /// Work with traces of requests.
    #[command(subcommand)]
    Trace(TraceCommand),
    /// Write what a router of a running server planned, and rows that it decided, as fixtures for its self-test.
    Record(record::RecordArgs),
    /// Print the effective configuration.
    CheckConfig(ServeArgs),
    /// Merge, transform, inspect, verify and compare modules.
    #[command(subcommand)]
    Adapters(adapters_command::AdaptersCommand),
    /// Write, build, test, measure, sign and serve router plugins.
    #[command(subcommand)]
    Plugin(plugin_command::PluginCommand),
}

/// What can be done with traces.
#[derive(Clone, Debug, Subcommand)]
enum TraceCommand {
    /// Run recorded requests again: the same tokens and decisions must come out.
    Replay {
        #[command(flatten)]
        replay: ReplayArgs,
        #[command(flatten)]
        serve: ServeArgs,
    },
}

/// What can be done with experiments without a server.
#[derive(Clone, Debug, Subcommand)]
enum ExperimentCommand {
    /// Let each conversation of task files meet one arm, as live traffic would, grade the answers, and report.
    Run {
        #[command(flatten)]
        traffic: TrafficArgs,
        #[command(flatten)]
        serve: ServeArgs,
    },
    /// Let recorded requests meet every arm, one after the other, and report on pairs.
    Replay {
        #[command(flatten)]
        traffic: TrafficArgs,
        #[command(flatten)]
        serve: ServeArgs,
    },
    /// How many units an experiment needs, or what it can find.
    Plan(PlanArgs),
    /// Which arms units get.
    Assign(AssignArgs),
}

#[derive(Args, Clone, Debug)]
struct ServeArgs {
    /// Configuration file (TOML).
    #[arg(long, env = "POLYSKILL_CONFIG")]
    config: Option<PathBuf>,
    /// Base model: a known name, a hub repository, a directory or a GGUF file.
    #[arg(long, env = "POLYSKILL_MODEL")]
    model: Option<String>,
    /// Name under which the base is served.
    #[arg(long, env = "POLYSKILL_SERVED_MODEL_NAME")]
    served_model_name: Option<String>,
    /// An expert policy: of a sparse base, hold only the experts in memory that it keeps, for all requests.
    #[arg(long, env = "POLYSKILL_KEEP_EXPERTS")]
    keep_experts: Option<PathBuf>,
    /// Directory whose folders are modules (PEFT).
    #[arg(long, env = "POLYSKILL_ADAPTERS")]
    adapters: Vec<PathBuf>,
    /// Directory whose folders are router plugins.
    #[arg(long, env = "POLYSKILL_PLUGINS")]
    plugins: Vec<PathBuf>,
    /// Address to listen on.
    #[arg(long, env = "POLYSKILL_LISTEN")]
    listen: Option<String>,
    /// Bearer key that requests must carry.
    #[arg(long, env = "POLYSKILL_API_KEY", hide_env_values = true)]
    api_key: Option<String>,
    /// Bearer key that turns the admin routes on.
    #[arg(long, env = "POLYSKILL_ADMIN_KEY", hide_env_values = true)]
    admin_key: Option<String>,
    /// Development: load plugins without a trusted signature. They stay in their sandbox.
    #[arg(long, env = "POLYSKILL_ALLOW_UNSIGNED")]
    allow_unsigned: bool,
    /// Watch the directories of modules and load what changes.
    #[arg(long, env = "POLYSKILL_WATCH_ADAPTERS")]
    watch_adapters: bool,
    /// Directory that keeps what is loaded at run time, so that a restart serves the same.
    #[arg(long, env = "POLYSKILL_STATE")]
    state: Option<PathBuf>,
    /// MiB of modules' weights in memory; without it all stay.
    #[arg(long, env = "POLYSKILL_MAX_MODULE_MIB")]
    max_module_mib: Option<usize>,
    /// Let holders of the API key load and unload modules over vLLM's routes.
    #[arg(long, env = "VLLM_ALLOW_RUNTIME_LORA_UPDATING", value_parser = clap::builder::FalseyValueParser::new(), action = clap::ArgAction::SetTrue)]
    allow_runtime_lora_updating: bool,
    /// Watch the directories of plugins and load what changes.
    #[arg(long, env = "POLYSKILL_WATCH_PLUGINS")]
    watch_plugins: bool,
}

#[derive(Args, Clone, Debug)]
struct GenerateArgs {
    /// The user's message.
    prompt: String,
    /// Route with this router over all modules.
    #[arg(long)]
    router: Option<String>,
    /// Router parameter, `name=value`; repeatable.
    #[arg(long = "param")]
    params: Vec<String>,
    /// Use this module; repeatable, `name` or `name=weight`.
    #[arg(long = "adapter")]
    adapter: Vec<String>,
    /// Show each token's modules in colour.
    #[arg(long)]
    trace: bool,
    /// Tokens at most.
    #[arg(long, default_value_t = 128)]
    max_tokens: usize,
    /// 0 is greedy.
    #[arg(long, default_value_t = 0.0)]
    temperature: f32,
    /// Start of the random stream.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    serve: ServeArgs,
}

/// Runs the program.
pub fn main() -> ExitCode {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn,polyskill=info,hf_hub=off"));
    let colours = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours);
    log.with_writer(std::io::stderr).init();
    let cli = Cli::parse();
    let result = match cli.command {
        Command::Serve { args, until_input_ends } => {
            let watched = if until_input_ends { end_with_input() } else { Ok(()) };
            watched.and_then(|()| serve(&args))
        }
        Command::Generate(args) => generate_one(args),
        Command::Pull { model } => pull_model(&model),
        Command::Bench(args) => run_bench(&args),
        Command::Calibrate(args) => calibrate::run(&args, &mut std::io::stdout()),
        Command::Eval { eval, serve } => evaluate(&eval, &serve),
        Command::Experiment(command) => experiment(&command),
        Command::Trace(TraceCommand::Replay { replay, serve }) => replay_traces(&replay, &serve),
        Command::Record(args) => record::record(&args).map(|count| {
            eprintln!("polyskill: {count} fixtures written");
        }),
        Command::CheckConfig(args) => check_config(&args),
        Command::Adapters(command) => adapters_command::run(&command, &mut std::io::stdout()),
        Command::Plugin(command) => plugin_command::run(&command, &mut std::io::stdout()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("polyskill: {message}");
            ExitCode::FAILURE
        }
    }
}

impl ServeArgs {
    /// File, then flags and variables, then what lies in the working directory.
    fn config(&self) -> Result<Config, String> {
        let mut config = match &self.config {
            Some(path) => Config::read(path).map_err(|error| error.to_string())?,
            None => Config::default(),
        };
        let flags = self.clone();
        config.model = flags.model.or(config.model);
        config.served_model_name = flags.served_model_name.or(config.served_model_name);
        config.keep_experts = flags.keep_experts.or(config.keep_experts);
        config.listen = flags.listen.or(config.listen);
        config.api_key = flags.api_key.or(config.api_key);
        config.admin_key = flags.admin_key.or(config.admin_key);
        if !flags.adapters.is_empty() {
            config.adapters = flags.adapters;
        }
        if !flags.plugins.is_empty() {
            config.plugins = flags.plugins;
        }
        config.trust.allow_unsigned |= flags.allow_unsigned;
        config.watch_plugins |= flags.watch_plugins;
        config.state = flags.state.or(config.state);
        config.residency.max_mib = flags.max_module_mib.or(config.residency.max_mib);
        config.watch_adapters |= flags.watch_adapters;
        config.allow_runtime_lora_updating |= flags.allow_runtime_lora_updating;
        let shipped = |path: &str| Some(PathBuf::from(path)).filter(|path| path.is_dir());
        if config.adapters.is_empty() && config.model.is_none() {
            config.adapters.extend(shipped("adapters/library"));
        }
        if config.plugins.is_empty() {
            // Built here, from this source tree.
            config.plugins.extend(shipped("target/plugins"));
            config.trust.unsigned.extend(shipped("target/plugins"));
        }
        Ok(config)
    }
}

/// How often a long start says where it is, where nobody sees a spinner.
const SAY_EVERY: std::time::Duration = std::time::Duration::from_secs(2);

/// A spinner that shows each stage of a long start; lines in a log, now and then.
fn start_service(config: &Config) -> Result<Service, String> {
    let spinner = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed} {msg}") {
        spinner.set_style(style);
    }
    spinner.enable_steady_tick(std::time::Duration::from_millis(100));
    let mut said = std::time::Instant::now();
    let service = Service::start(config, &mut |message| {
        spinner.set_message(message.to_owned());
        if spinner.is_hidden() && said.elapsed() >= SAY_EVERY && !message.starts_with("left out") {
            eprintln!("polyskill: {message}");
            said = std::time::Instant::now();
        }
        if message.starts_with("left out") {
            spinner.suspend(|| eprintln!("polyskill: {message}"));
        }
    });
    spinner.finish_and_clear();
    service.map_err(|error| error.to_string())
}

/// Ends this process as soon as standard input ends. `plugin dev` holds the other end, and the system closes
/// it however that process ends.
fn end_with_input() -> Result<(), String> {
    let watch = || {
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        std::process::exit(0);
    };
    let thread = std::thread::Builder::new().name("parent-watch".to_owned()).spawn(watch);
    thread.map(drop).map_err(|error| format!("cannot watch standard input: {error}"))
}

fn serve(args: &ServeArgs) -> Result<(), String> {
    let config = args.config()?;
    let service = Arc::new(start_service(&config)?);
    if config.watch_adapters {
        let changed = |service: &Service| service.composer.refresh_routers();
        modules::watch(&service, |service| &service.modules, changed)
            .map_err(|error| error.to_string())?;
    }
    if config.watch_plugins {
        routers::watch(&service, |service| (&service.routers, &service.composer))
            .map_err(|error| error.to_string())?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| error.to_string())?;
    let listen = config.listen();
    runtime.block_on(async {
        service.experiments.watch();
        let listener = tokio::net::TcpListener::bind(listen)
            .await
            .map_err(|error| format!("cannot listen on {listen}: {error}"))?;
        let address = listener.local_addr().map_err(|error| error.to_string())?;
        let modules = service.composer.library().snapshot().len();
        let routers: Vec<String> =
            service.composer.routers().into_iter().map(|router| router.name).collect();
        let names: Vec<&str> = service.skill_sets.iter().map(|set| set.id.as_str()).collect();
        eprintln!(
            "polyskill: serving {} with {modules} modules, routers [{}], skill sets [{}] on http://{address}",
            service.base_name,
            routers.join(", "),
            names.join(", "),
        );
        let app = api::router(Arc::clone(&service), config.max_body_bytes);
        let (told, signalled) = tokio::sync::oneshot::channel();
        let until = async {
            shutdown_signal().await;
            eprintln!("polyskill: finishing running requests");
            let _ = told.send(());
        };
        let server = axum::serve(listener, app).with_graceful_shutdown(until);
        tokio::select! {
            served = async { server.await } => served.map_err(|error| error.to_string()),
            () = nothing_runs(signalled, &service) => Ok(()),
        }
    })?;
    service.engine.drain();
    Ok(())
}

/// After the signal to stop, waits until no request has run for a while: a client that stalls in the middle
/// of a request must not keep the server. A second signal ends it at once.
async fn nothing_runs(signalled: tokio::sync::oneshot::Receiver<()>, service: &Service) {
    const LOOK: std::time::Duration = std::time::Duration::from_millis(100);
    const IDLE_LOOKS: u32 = 20;
    if signalled.await.is_err() {
        std::future::pending::<()>().await;
    }
    tokio::spawn(async {
        shutdown_signal().await;
        eprintln!("polyskill: stopped by a second signal");
        std::process::exit(1);
    });
    let mut idle_looks = 0;
    while idle_looks < IDLE_LOOKS {
        tokio::time::sleep(LOOK).await;
        let stats = service.engine.handle().stats().snapshot();
        idle_looks = if stats.running + stats.waiting == 0 { idle_looks + 1 } else { 0 };
    }
}

async fn shutdown_signal() {
    let interrupt = async {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    #[cfg(unix)]
    {
        let terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate());
        if let Ok(mut terminate) = terminate {
            tokio::select! {
                () = interrupt => {}
                _ = terminate.recv() => {}
            }
            return;
        }
    }
    interrupt.await;
}

fn generate_one(args: GenerateArgs) -> Result<(), String> {
    let adapters: Vec<(String, f32)> =
        args.adapter.iter().map(|text| weighted(text)).collect::<Result<_, _>>()?;
    let mut seen = std::collections::BTreeSet::new();
    if let Some((twice, _)) = adapters.iter().find(|(name, _)| !seen.insert(name)) {
        return Err(format!("--adapter names `{twice}` twice, expected each name once"));
    }
    let selection = match &args.router {
        Some(router) => Selection::Routed(RouterRequest {
            beside: adapters,
            text: Some(args.prompt.clone()),
            ..routed(router.clone(), &args.params)?
        }),
        None if adapters.is_empty() => Selection::Base,
        None => Selection::Weighted(adapters),
    };
    let temperature = args.temperature;
    if !(0.0..=100.0).contains(&temperature) {
        return Err(format!("--temperature is {temperature}, expected 0 to 100"));
    }
    if args.max_tokens == 0 {
        return Err("--max-tokens is 0, expected at least 1".to_owned());
    }
    let service = start_service(&args.serve.config()?)?;
    let options = generate::Options {
        prompt: args.prompt,
        selection,
        trace: args.trace,
        max_tokens: args.max_tokens,
        temperature: args.temperature,
        seed: args.seed,
    };
    generate::run(&service, &options)
}

fn routed(router: String, params: &[String]) -> Result<RouterRequest, String> {
    let parameters = parse_parameters(params)?;
    Ok(RouterRequest { router, parameters, ..RouterRequest::default() })
}

fn weighted(text: &str) -> Result<(String, f32), String> {
    match text.split_once('=') {
        None => Ok((text.to_owned(), 1.0)),
        Some((name, weight)) => {
            let weight = weight
                .parse()
                .map_err(|_| format!("--adapter `{text}`: `{weight}` is no number"))?;
            Ok((name.to_owned(), weight))
        }
    }
}

fn pull_model(model: &str) -> Result<(), String> {
    let path = pull::resolve(model, &mut |message| eprintln!("polyskill: {message}"))
        .map_err(|error| error.to_string())?;
    println!("{}", path.display());
    Ok(())
}

fn run_bench(args: &ServeArgs) -> Result<(), String> {
    let service = start_service(&args.config()?)?;
    let mut cases = vec![bench::Case { name: "base".to_owned(), selection: Selection::Base }];
    let snapshot = service.composer.library().snapshot();
    if let Some((name, _)) = snapshot.iter().next() {
        let selection = Selection::Weighted(vec![(name.to_owned(), 1.0)]);
        cases.push(bench::Case { name: "one LoRA".to_owned(), selection });
    }
    if service.composer.routers().iter().any(|router| router.name == "arrow")
        && !snapshot.is_empty()
    {
        let selection = Selection::Routed(routed("arrow".to_owned(), &["top_k=3".to_owned()])?);
        cases.push(bench::Case { name: "arrow top-3".to_owned(), selection });
    }
    bench::run(&service, &cases)
}

fn replay_traces(replay: &ReplayArgs, serve: &ServeArgs) -> Result<(), String> {
    let service = start_service(&serve.config()?)?;
    traces::replay(&service, replay, &mut std::io::stdout().lock())
}

fn experiment(command: &ExperimentCommand) -> Result<(), String> {
    let out = &mut std::io::stdout().lock();
    let (traffic, serve, every_arm) = match command {
        ExperimentCommand::Plan(args) => return experiment_command::plan(args, out),
        ExperimentCommand::Assign(args) => return experiment_command::assign(args, out),
        ExperimentCommand::Run { traffic, serve } => (traffic, serve, false),
        ExperimentCommand::Replay { traffic, serve } => (traffic, serve, true),
    };
    let service = start_service(&serve.config()?)?;
    experiment_command::run(&service, (traffic, every_arm), out)
}

fn evaluate(args: &eval::EvalArgs, serve: &ServeArgs) -> Result<(), String> {
    let service = start_service(&serve.config()?)?;
    print!("{}", eval::run(&service, args)?);
    eprintln!("polyskill: report.md, report.json and report.html are in {}", args.out.display());
    Ok(())
}

fn check_config(args: &ServeArgs) -> Result<(), String> {
    let mut config = args.config()?;
    config.check().map_err(|error| error.to_string())?;
    // Keys are secrets; whether they are set is not.
    for key in [&mut config.api_key, &mut config.admin_key].into_iter().flatten() {
        *key = "(set)".to_owned();
    }
    print!("{}", toml::to_string_pretty(&config).map_err(|error| error.to_string())?);
    Ok(())
}
