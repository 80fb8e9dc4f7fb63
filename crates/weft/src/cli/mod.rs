//! The command line.
//!
//! `up`, `check`, `explain`, `schema` and `version` work on files; everything else asks the API of a running Weft. Output
//! is for people, `--json` prints what the API answered.

mod channels;
mod client;
mod local;
mod sagas;
mod services;
mod table;
mod trace;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use client::Client;

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
    /// Prints the version
    Version,
    /// Lists services and their instances
    Services(services::ServicesArgs),
    /// Lists queues, looks into one, or brings dead letters back
    Queues(channels::QueuesArgs),
    /// Lists topics and subscriptions
    Topics(channels::TopicsArgs),
    /// Publishes a message to a topic or queue
    Publish(channels::PublishArgs),
    /// Receives messages from a queue or subscription
    Receive(channels::ReceiveArgs),
    /// Lists, shows, starts, retries and cancels sagas
    Sagas(sagas::SagasArgs),
    /// Shows a trace as a tree
    Trace(trace::TraceArgs),
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
        Command::Version => return print(&format!("weft {}\n", env!("CARGO_PKG_VERSION"))),
        Command::Services(args) => run(args.remote.clone(), |c| Box::pin(services::run(args, c))),
        Command::Queues(args) => run(args.remote.clone(), |c| Box::pin(channels::queues(args, c))),
        Command::Topics(args) => run(args.remote.clone(), |c| Box::pin(channels::topics(args, c))),
        Command::Publish(args) => run(args.remote.clone(), |c| Box::pin(channels::publish(args, c))),
        Command::Receive(args) => run(args.remote.clone(), |c| Box::pin(channels::receive(args, c))),
        Command::Sagas(args) => run(args.remote.clone(), |c| Box::pin(sagas::run(args, c))),
        Command::Trace(args) => run(args.remote.clone(), |c| Box::pin(trace::run(args, c))),
    };
    match asked {
        Ok(text) => print(&text),
        Err(e) => {
            eprint!("{e}");
            ExitCode::FAILURE
        }
    }
}

type Answer = Result<String, client::Error>;

/// Runs one command that asks the API, on a runtime of its own.
fn run(remote: Remote, ask: impl FnOnce(Client) -> std::pin::Pin<Box<dyn Future<Output = Answer>>>) -> Answer {
    let client = Client::new(&remote.api, remote.json)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(client::Error::Runtime)?;
    runtime.block_on(ask(client))
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
mod tests {
    use clap::CommandFactory;

    #[derive(clap::Args)]
    struct NoOptions {}

    #[test]
    fn the_command_line_is_well_formed() {
        super::Cli::<NoOptions>::command().debug_assert();
    }
}
