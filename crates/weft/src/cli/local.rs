//! Commands that work on files alone.

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use serde_json::json;

use super::table::Table;
use super::{File, print};
use crate::config::{self, Explanation, Loaded};

#[derive(Args)]
pub(super) struct CheckArgs {
    #[command(flatten)]
    file: File,
    /// Prints the mistakes as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub(super) struct ExplainArgs {
    /// What
    #[arg(value_enum)]
    kind: Kind,
    /// Its name; of a step, `saga/step` or `saga/step/compensate`. Without a name all are listed
    name: Option<String>,
    #[command(flatten)]
    file: File,
    /// Prints JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub(super) struct SchemaArgs {
    /// Prints the reference page in Markdown instead
    #[arg(long)]
    reference: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    Route,
    Queue,
    Topic,
    Subscription,
    Step,
    Service,
}

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Kind::Route => "route",
            Kind::Queue => "queue",
            Kind::Topic => "topic",
            Kind::Subscription => "subscription",
            Kind::Step => "step",
            Kind::Service => "service",
        }
    }
}

fn load(file: &File, json: bool) -> Result<Loaded, ExitCode> {
    config::load(&file.config).map_err(|report| {
        if json {
            print(&format!("{:#}\n", json!({"ok": false, "mistakes": report.lines()})));
        } else {
            eprint!("{}", report.render(std::io::stderr().is_terminal()));
        }
        ExitCode::FAILURE
    })
}

pub(super) fn check(args: &CheckArgs) -> ExitCode {
    let loaded = match load(&args.file, args.json) {
        Ok(loaded) => loaded,
        Err(code) => return code,
    };
    if args.json {
        return print(&format!("{:#}\n", json!({"ok": true, "mistakes": []})));
    }
    let s = &loaded.snapshot;
    let counts = [
        (s.services.len(), "service"),
        (s.gateway.routes.len(), "route"),
        (s.queues.len(), "queue"),
        (s.topics.len(), "topic"),
        (s.subscriptions.len(), "subscription"),
        (s.sagas.len(), "saga"),
    ];
    let counts = counts.map(|(n, what)| format!("{n} {what}{}", if n == 1 { "" } else { "s" }));
    print(&format!("{}: no mistakes; {}\n", args.file.config.display(), counts.join(", ")))
}

pub(super) fn explain(args: &ExplainArgs) -> ExitCode {
    let loaded = match load(&args.file, false) {
        Ok(loaded) => loaded,
        Err(code) => return code,
    };
    let kind = args.kind.word();
    let Some(name) = &args.name else {
        let all: Vec<_> = loaded.explanations.iter().filter(|e| e.kind == kind).collect();
        if args.json {
            return print(&format!("{:#}\n", json!(all)));
        }
        let mut table = Table::new([kind, "does", "declared"]);
        for e in all {
            let at = e.at.as_ref().map_or(String::new(), ToString::to_string);
            table.row([e.name.clone(), e.summary.clone(), at]);
        }
        return print(&table.render(&format!("no {kind} is declared")));
    };
    match loaded.explain(kind, name) {
        Some(e) if args.json => print(&format!("{:#}\n", json!(e))),
        Some(e) => print(&explained(e)),
        None => {
            eprintln!("weft: unknown {kind} '{name}'\n  {}", config::suggest(name, kind, loaded.explained(kind)));
            ExitCode::FAILURE
        }
    }
}

/// An explanation as a table.
pub(super) fn explained(e: &Explanation) -> String {
    let at = e.at.as_ref().map_or(String::new(), |p| format!("  ({p})"));
    let mut table = Table::new(["key", "value", "from", "written"]);
    for v in &e.values {
        let at = v.at.as_ref().map_or(String::new(), ToString::to_string);
        table.row([v.key.clone(), v.value.clone(), v.from.clone(), at]);
    }
    format!("{} {}: {}{at}\n\n{}", e.kind, e.name, e.summary, table.render("nothing applies"))
}

pub(super) fn schema(args: &SchemaArgs) -> ExitCode {
    print(&if args.reference { config::reference() } else { config::schema_text() })
}
