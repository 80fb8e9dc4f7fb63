//! `weft.yaml`: read, checked and resolved; or every mistake at once.
//!
//! [`load`] goes through four steps: [`files`] reads the file and what it includes into one tree of nodes that remember
//! their place; [`keys`] declares every key once, which drives reading, suggestions, the JSON Schema and the reference
//! page; [`layer`] lays policies over each other; [`lower`] checks references and makes the typed snapshot.

mod declare;
mod expr;
mod files;
mod keys;
mod layer;
mod limit;
mod lower;
mod node;
mod report;
mod schema;
mod source;
mod value;

#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use weft_edge::spec::Snapshot;

pub use layer::Explained;
pub use lower::Explanation;
pub use report::{Mistake, MistakeLine, Report, suggest};
pub use schema::{reference, schema, schema_text};
pub use source::{At, Place, Source, Sources, Span};

use files::Input;
use keys::root::Configuration;
use node::Node;
use value::{Cx, Value};

/// Reads YAML that is no configuration as JSON; the error says where it is broken.
pub(crate) fn yaml_to_json(text: &str) -> Result<serde_json::Value, String> {
    use node::Data;
    use serde_json::Value as Json;
    fn json(node: &Node) -> Json {
        match &node.data {
            Data::Map(m) => Json::Object(m.iter().map(|(k, v)| (k.text.clone(), json(v))).collect()),
            Data::List(l) => l.iter().map(json).collect(),
            Data::Scalar(s) if s.plain && matches!(s.text.as_str(), "" | "~") => Json::Null,
            Data::Scalar(s) if s.plain => serde_json::from_str(&s.text)
                .ok()
                .filter(|v: &Json| !v.is_string())
                .unwrap_or_else(|| s.text.clone().into()),
            Data::Scalar(s) => s.text.clone().into(),
        }
    }
    let mut sources = Sources::default();
    sources.add(Path::new(""), text.to_owned());
    let mut mistakes = Vec::new();
    // `${...}` means nothing here.
    let root = node::parse(text, 0, &|name| Some(format!("${{{name}}}")), &mut mistakes);
    if let Some(m) = mistakes.first() {
        let at = m.at.map(|s| sources.place(s)).map(|p| format!("line {}, column {}: ", p.line, p.column));
        return Err(format!("{}{}", at.unwrap_or_default(), m.message));
    }
    Ok(root.as_ref().map_or(Json::Null, json))
}

/// A configuration that holds together.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// What runs.
    pub snapshot: Snapshot,
    /// What concerns the process as a whole; read once at start.
    pub settings: Settings,
    /// The files it was read from, to watch for changes.
    pub sources: Arc<Sources>,
    /// Effective values and where they came from.
    pub explanations: Vec<Explanation>,
}

/// What concerns the process as a whole.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Settings {
    /// The API.
    pub api: ApiSettings,
    /// Whether the file says where the gateway listens: then a taken port is fatal.
    pub gateway_written: bool,
    /// The store.
    pub store: StoreSettings,
    /// The log.
    pub logs: LogSettings,
    /// Threads that carry requests; `None` = one per core.
    pub threads: Option<usize>,
}

/// The API.
#[derive(Clone, Debug, PartialEq)]
pub struct ApiSettings {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Whether the file says so: then a taken port is fatal.
    pub written: bool,
    /// Names that clients call it by, besides localhost and IP addresses.
    pub hosts: Vec<String>,
}

/// The embedded store.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StoreSettings {
    /// Its directory; `None` = `weft-data` in the working directory.
    pub dir: Option<PathBuf>,
}

/// The log on standard error.
#[derive(Clone, Debug, PartialEq)]
pub struct LogSettings {
    /// One JSON object a line instead of text for people.
    pub json: bool,
    /// Filter, as in `info,weft_mesh=debug`.
    pub level: String,
}

impl Default for ApiSettings {
    fn default() -> Self {
        Self { listen: ([127, 0, 0, 1], 8081).into(), written: false, hosts: Vec::new() }
    }
}

impl Default for LogSettings {
    fn default() -> Self {
        Self { json: false, level: "info".to_owned() }
    }
}

impl Loaded {
    /// The explanation of one thing. A step may be named without its saga when that is unambiguous.
    pub fn explain(&self, kind: &str, name: &str) -> Option<&Explanation> {
        let mut of_kind = self.explanations.iter().filter(|e| e.kind == kind);
        of_kind.clone().find(|e| e.name == name).or_else(|| {
            let suffix = format!("/{name}");
            let found = of_kind.find(|e| kind == "step" && e.name.ends_with(&suffix))?;
            of_kind.all(|e| !e.name.ends_with(&suffix)).then_some(found)
        })
    }

    /// The names of all explained things of a kind.
    pub fn explained(&self, kind: &str) -> Vec<&str> {
        self.explanations.iter().filter(|e| e.kind == kind).map(|e| e.name.as_str()).collect()
    }
}

/// Reads and checks `path` and what it includes.
pub fn load(path: &Path) -> Result<Loaded, Report> {
    load_from(path, &Input { read: &|p| read_bounded(p), env: &|name| std::env::var(name).ok() })
}

/// The configuration of an empty file: every default.
pub fn defaults() -> Loaded {
    let input = Input { read: &|_| Ok(Vec::new()), env: &|_| None };
    load_from(Path::new("defaults"), &input).expect("the defaults hold together: a test loads them")
}

/// Reads at most one byte more than the limit, so that a device or a huge file does not fill memory.
fn read_bounded(path: &Path) -> std::io::Result<Vec<u8>> {
    use std::io::Read;
    let mut out = Vec::new();
    let limit = weft_core::limits::CONFIG_BYTES as u64 + 1;
    std::fs::File::open(path)?.take(limit).read_to_end(&mut out)?;
    Ok(out)
}

fn load_from(path: &Path, input: &Input<'_>) -> Result<Loaded, Report> {
    let mut sources = Sources::default();
    let mut mistakes = Vec::new();
    let node = files::gather(path, input, &mut sources, &mut mistakes);
    let mut cx = Cx { sources: &sources, mistakes };
    // A file without a word in it is an empty map; one that could not be read at all has been reported.
    let node = node.or_else(|| cx.mistakes.is_empty().then(Node::nothing));
    let lowered = node.and_then(|node| {
        let root = Configuration::read(&node, &mut cx)?;
        Some(lower::lower(&root, &node, &mut cx))
    });
    let mistakes = cx.mistakes;
    let sources = Arc::new(sources);
    match lowered {
        Some((snapshot, settings, explanations)) if mistakes.is_empty() => {
            Ok(Loaded { snapshot, settings, sources, explanations })
        }
        _ => Err(Report::new(sources, mistakes)),
    }
}
