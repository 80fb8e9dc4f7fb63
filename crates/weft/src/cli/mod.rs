//! The command line.
//!
//! `up`, `check`, `explain`, `schema` and `version` work on files; everything else asks the API of a running Weft. Output
//! is for people, `--json` prints what the API answered.

mod channels;
mod client;
mod diff;
mod keys;
mod local;
mod routes;
mod sagas;
mod services;
mod table;
mod trace;
mod versions;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

#[derive(Parser)]
#[command(
    name = "weft",
    version,
    about = "Everything your services need to talk to each other, in one binary",
    after_help = "Start with `weft up`, then `weft services` in another terminal.",
    propagate_version = true
)]
struct Cli<U: Args> {
    #[command(subcommand)]
    command: Command<U>,
}

#[derive(Subcommand)]
enum Command<U: Args> {
    /// Runs Weft until it is told to stop
    Up(U),
    /// Checks a configuration file and reports every mistake at once
    Check(local::CheckArgs),
    /// Prints the effective policy of something, with the line each value comes from
    Explain(local::ExplainArgs),
    /// Prints the JSON Schema of weft.yaml, for completion in editors
    Schema(local::SchemaArgs),
    /// Compares two OpenAPI or .proto files and names what breaks callers
    Diff(diff::DiffArgs),
    /// Prints the version
    Version,
    #[command(flatten)]
    Ask(Ask),
}

/// What a running Weft is asked.
#[derive(Subcommand)]
enum Ask {
    /// Lists services and their instances
    Services(services::ServicesArgs),
    /// Lists routes: what they match, where they send, what they do
    Routes(routes::RoutesArgs),
    /// Lists queues, looks into one, or brings dead letters back
    Queues(channels::QueuesArgs),
    /// Lists topics and subscriptions
    Topics(channels::TopicsArgs),
    /// Publishes a message to a topic or queue
    Publish(channels::PublishArgs),
    /// Receives messages from a queue or subscription
    Receive(channels::ReceiveArgs),
    /// Makes, lists, rotates, disables and revokes API keys
    Keys(keys::KeysArgs),
    /// Lists, shows, starts, retries and cancels sagas
    Sagas(sagas::SagasArgs),
    /// Shows a trace as a tree
    Trace(trace::TraceArgs),
    /// Shows who uses which version of the APIs behind the gateway
    Versions(versions::VersionsArgs),
}

/// Options of every command that asks a running Weft.
#[derive(Args, Clone, Debug)]
struct Remote {
    /// Address of the API
    #[arg(long, value_name = "URL", env = "WEFT_API", default_value = "http://127.0.0.1:8081", global = true)]
    api: String,
    /// Prints the API's JSON
    #[arg(long, global = true)]
    json: bool,
}

/// A configuration file.
#[derive(Args, Clone, Debug)]
struct File {
    /// Configuration file
    #[arg(short, long, value_name = "FILE", default_value = "weft.yaml")]
    config: PathBuf,
}

/// Parses the arguments of the process and does what they say; `up` runs Weft.
pub fn main<U: Args>(up: fn(U) -> ExitCode) -> ExitCode {
    let asked = match Cli::<U>::parse().command {
        Command::Up(args) => return up(args),
        Command::Check(args) => return local::check(&args),
        Command::Explain(args) => return local::explain(&args),
        Command::Schema(args) => return local::schema(&args),
        Command::Diff(args) => return diff::run(&args),
        Command::Version => return print(&format!("weft {}\n", env!("CARGO_PKG_VERSION"))),
        Command::Ask(ask) => ask,
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            eprintln!("weft: the runtime does not start: {e}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(asked.run()) {
        Ok(text) => print(&text),
        Err(e) => {
            eprint!("{e}");
            ExitCode::FAILURE
        }
    }
}

type Answer = Result<String, client::Error>;

impl Ask {
    async fn run(self) -> Answer {
        match self {
            Ask::Services(args) => services::run(args).await,
            Ask::Routes(args) => routes::run(args).await,
            Ask::Queues(args) => channels::queues(args).await,
            Ask::Topics(args) => channels::topics(args).await,
            Ask::Publish(args) => channels::publish(args).await,
            Ask::Receive(args) => channels::receive(args).await,
            Ask::Keys(args) => keys::run(args).await,
            Ask::Sagas(args) => sagas::run(args).await,
            Ask::Trace(args) => trace::run(args).await,
            Ask::Versions(args) => versions::run(args).await,
        }
    }
}

/// Prints; a reader that went away (`weft queues | head`) is no failure.
fn print(text: &str) -> ExitCode {
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("weft: cannot write: {e}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests;
