//! Reading the file and what it includes into one tree.

use std::io;
use std::path::{Path, PathBuf};

use weft_core::limits;

use super::node::{Data, Env, Key, Node, parse};
use super::report::Mistake;
use super::source::{Sources, Span, beside};

/// Files that one configuration may consist of.
const INCLUDE_FILES: usize = 64;

/// Where files and environment variables come from.
pub(super) struct Input<'a> {
    /// Reads a file.
    pub read: &'a dyn Fn(&Path) -> io::Result<Vec<u8>>,
    /// Looks up an environment variable.
    pub env: Env<'a>,
}

/// Reads `path` and all it includes. `None` = nothing usable.
pub(super) fn gather(
    path: &Path,
    input: &Input<'_>,
    sources: &mut Sources,
    mistakes: &mut Vec<Mistake>,
) -> Option<Node> {
    let mut root: Option<Node> = None;
    let mut waiting: Vec<(PathBuf, Option<Span>)> = vec![(path.to_owned(), None)];
    let mut seen: Vec<PathBuf> = Vec::new();
    while let Some((path, from)) = waiting.pop() {
        // The same file by two ways is read once; that also ends a circle.
        if seen.contains(&path) {
            continue;
        }
        if seen.len() == INCLUDE_FILES {
            mistakes.push(Mistake::new(from, format!("more than {INCLUDE_FILES} files")).help("include fewer"));
            break;
        }
        seen.push(path.clone());
        let Some(text) = read(&path, from, input, mistakes) else { continue };
        let file = sources.add(&path, text);
        let text = sources.files()[usize::from(file)].text.as_str();
        let Some(node) = parse(text, file, input.env, mistakes) else { continue };
        // In reverse, so that the first include is read first.
        waiting.extend(includes(&node, &path).into_iter().rev());
        match &mut root {
            None => root = Some(node),
            Some(root) => merge(root, node, mistakes),
        }
    }
    root
}

fn read(path: &Path, from: Option<Span>, input: &Input<'_>, mistakes: &mut Vec<Mistake>) -> Option<String> {
    let name = path.display();
    let bytes = match (input.read)(path) {
        Ok(bytes) => bytes,
        Err(e) => {
            let why = match e.kind() {
                io::ErrorKind::NotFound => format!("there is no file {name}"),
                _ => format!("cannot read {name}: {e}"),
            };
            let help = match from {
                Some(_) => "paths are seen from the file they are written in",
                None => "name the file with -c FILE",
            };
            mistakes.push(Mistake::new(from, why).help(help));
            return None;
        }
    };
    if bytes.len() > limits::CONFIG_BYTES {
        let message = format!("{name} has {} bytes, more than {}", bytes.len(), limits::CONFIG_BYTES);
        mistakes.push(Mistake::new(from, message).help("split it and use include:"));
        return None;
    }
    match String::from_utf8(bytes) {
        Ok(text) => Some(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text)),
        Err(e) => {
            let line = 1 + e.as_bytes()[..e.utf8_error().valid_up_to()].iter().filter(|b| **b == b'\n').count();
            let message = format!("{name} is not UTF-8 text: line {line} holds other bytes");
            mistakes.push(Mistake::new(from, message).help("save it as UTF-8"));
            None
        }
    }
}

fn includes(node: &Node, path: &Path) -> Vec<(PathBuf, Option<Span>)> {
    let Data::Map(entries) = &node.data else { return Vec::new() };
    let Some((_, value)) = entries.iter().find(|(k, _)| k.text == "include") else { return Vec::new() };
    let one = |n: &Node| match &n.data {
        Data::Scalar(s) if !s.text.is_empty() => Some((beside(path, &s.text), Some(n.span))),
        _ => None, // reported when the key is read
    };
    match &value.data {
        Data::List(items) => items.iter().filter_map(one).collect(),
        _ => one(value).into_iter().collect(),
    }
}

/// Joins two files: maps of declarations become one, lists inside them are appended, anything else is there twice.
fn merge(root: &mut Node, other: Node, mistakes: &mut Vec<Mistake>) {
    let Data::Map(new) = other.data else {
        if !matches!(&other.data, Data::Scalar(s) if s.text.is_empty()) {
            mistakes.push(Mistake::new(Some(other.span), format!("a configuration is a map, found {}", other.what())));
        }
        return;
    };
    if matches!(&root.data, Data::Scalar(s) if s.text.is_empty()) {
        root.data = Data::Map(Vec::new());
    }
    let Data::Map(entries) = &mut root.data else { return };
    for (key, value) in new {
        let Some((first, there)) = entries.iter_mut().find(|(k, _)| k.text == key.text) else {
            entries.push((key, value));
            continue;
        };
        match (&mut there.data, value.data) {
            (Data::Map(there), Data::Map(more)) => more.into_iter().for_each(|(k, v)| join(there, k, v, mistakes)),
            (_, Data::Scalar(s)) if s.plain && s.text.is_empty() => {}
            _ if key.text == "include" => {}
            _ => twice(&key, first, mistakes),
        }
    }
}

fn join(there: &mut Vec<(Key, Node)>, key: Key, value: Node, mistakes: &mut Vec<Mistake>) {
    match there.iter_mut().find(|(k, _)| k.text == key.text) {
        None => there.push((key, value)),
        Some((first, node)) => match (&mut node.data, value.data) {
            (Data::List(items), Data::List(more)) => items.extend(more),
            _ => twice(&key, first, mistakes),
        },
    }
}

fn twice(key: &Key, first: &Key, mistakes: &mut Vec<Mistake>) {
    let message = format!("'{}' is declared in two files", key.text);
    mistakes
        .push(Mistake::new(Some(key.span), message).help("keep one of the two").also(Some(first.span), "first here"));
}
