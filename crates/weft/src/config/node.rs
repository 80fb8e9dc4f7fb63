//! YAML as a tree that remembers where everything was written.
//!
//! Built from the parser's events, not from its document type: events keep duplicate keys, and bounds on depth and size
//! hold before memory is spent.

use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle};

use super::report::Mistake;
use super::source::Span;

/// Nesting a file may have.
const DEPTH: usize = 64;
/// Nodes a file may have, aliases expanded.
const NODES: usize = 200_000;

/// One value.
#[derive(Clone, Debug)]
pub(super) struct Node {
    /// Where it was written; of a map or list, its first line.
    pub span: Span,
    /// The key it belongs to, to blame when something in it is missing.
    pub owner: Span,
    /// What it is.
    pub data: Data,
}

/// What a node is.
#[derive(Clone, Debug)]
pub(super) enum Data {
    /// A scalar; what it means depends on where it stands.
    Scalar(Scalar),
    /// A sequence.
    List(Vec<Node>),
    /// A mapping, in file order, keys unique.
    Map(Vec<(Key, Node)>),
}

/// A scalar.
#[derive(Clone, Debug)]
pub(super) struct Scalar {
    /// Its text, environment references filled in.
    pub text: String,
    /// Without quotes: `true`, `5`, `null` are themselves.
    pub plain: bool,
    /// Characters of `text` stand in the file one for one, this far after the start of the span.
    pub verbatim: Option<u32>,
    /// A reference in it could not be filled in; that is reported, and nothing more is said of it.
    pub failed: bool,
}

/// A key of a mapping.
#[derive(Clone, Debug)]
pub(super) struct Key {
    /// Its text.
    pub text: String,
    /// Where.
    pub span: Span,
}

impl Node {
    /// An empty file.
    pub fn nothing() -> Self {
        let span = Span { file: 0, start: 0, end: 0 };
        let scalar = Scalar { text: String::new(), plain: true, verbatim: None, failed: false };
        Node { span, owner: span, data: Data::Scalar(scalar) }
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Node> {
        let Data::Map(entries) = &self.data else { return None };
        entries.iter().find(|(k, _)| k.text == key).map(|(_, n)| n)
    }

    /// The node at `with.items[0].sku`, or the last one on the way that is there.
    pub fn at_path(&self, path: &str) -> &Node {
        let path = path.strip_prefix('.').unwrap_or(path);
        let next = match &self.data {
            Data::List(items) => path.strip_prefix('[').and_then(|p| p.split_once(']')).and_then(|(i, rest)| {
                let i: usize = i.parse().ok()?;
                Some((items.get(i)?, rest))
            }),
            // Keys may have dots of their own: the longest that fits is meant.
            Data::Map(entries) => entries
                .iter()
                .filter_map(|(k, n)| Some((n, path.strip_prefix(k.text.as_str())?)))
                .filter(|(_, rest)| rest.is_empty() || rest.starts_with(['.', '[']))
                .min_by_key(|(_, rest)| rest.len()),
            Data::Scalar(_) => None,
        };
        match next {
            Some((node, rest)) if !path.is_empty() => node.at_path(rest),
            _ => self,
        }
    }

    /// What it is, for messages.
    pub fn what(&self) -> &'static str {
        match &self.data {
            Data::Scalar(s) if s.plain && s.text.is_empty() => "nothing",
            Data::Scalar(_) => "a single value",
            Data::List(_) => "a list",
            Data::Map(_) => "a map",
        }
    }
}

/// Looks up an environment variable.
pub(super) type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

enum Open {
    List(Vec<Node>),
    Map(Vec<(Key, Node)>, Option<Key>, HashMap<String, Span>),
}

struct Builder<'a> {
    text: &'a [char],
    file: u16,
    env: Env<'a>,
    mistakes: &'a mut Vec<Mistake>,
    anchors: HashMap<usize, Node>,
    stack: Vec<(Open, Span, usize)>,
    nodes: usize,
    root: Option<Node>,
}

/// Reads one file. `None` = empty, or so broken that only the mistakes are of use.
pub(super) fn parse(text: &str, file: u16, env: Env<'_>, mistakes: &mut Vec<Mistake>) -> Option<Node> {
    let chars: Vec<char> = text.chars().collect();
    let mut parser = Parser::new_from_str(text);
    let mut b =
        Builder { text: &chars, file, env, mistakes, anchors: HashMap::new(), stack: Vec::new(), nodes: 0, root: None };
    let mut documents = 0;
    while let Some(event) = parser.next_event() {
        let (event, span) = match event {
            Ok(e) => e,
            Err(e) => {
                let at = u32::try_from(e.marker().index()).unwrap_or(u32::MAX).min(chars.len() as u32);
                let span = Span { file, start: at, end: (at + 1).min(chars.len() as u32) };
                b.mistakes.push(Mistake::new(Some(span), format!("not valid YAML: {}", e.info())));
                return None;
            }
        };
        let span = b.span(span.start.index(), span.end.index());
        if matches!(event, Event::DocumentStart(_)) {
            documents += 1;
            if documents > 1 {
                b.mistakes.push(
                    Mistake::new(Some(span), "a second document in one file").help("use include: for further files"),
                );
                return None;
            }
        }
        if matches!(event, Event::StreamEnd) {
            break;
        }
        b.event(event, span)?;
    }
    b.root
}

impl Builder<'_> {
    fn span(&self, start: usize, end: usize) -> Span {
        let len = self.text.len();
        let start = start.min(len);
        let end = end.clamp(start, len);
        // Trailing blanks and line ends belong to what follows.
        let kept = self.text[start..end].iter().rposition(|c| !c.is_whitespace()).map_or(start, |i| start + i + 1);
        Span { file: self.file, start: start as u32, end: kept as u32 }
    }

    /// The first line of a span.
    fn head(&self, span: Span) -> Span {
        let line = self.text[span.start as usize..].iter().position(|c| *c == '\n').unwrap_or(self.text.len());
        Span { end: span.end.min(span.start + line as u32).max(span.start), ..span }
    }

    /// `None` stops the reading.
    fn event(&mut self, event: Event<'_>, span: Span) -> Option<()> {
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                self.untagged(tag.is_some(), span);
                let node = self.scalar(&text, style, span);
                self.put(node, anchor)
            }
            Event::SequenceStart(anchor, tag) => {
                self.untagged(tag.is_some(), span);
                self.open(Open::List(Vec::new()), span, anchor)
            }
            Event::MappingStart(anchor, tag) => {
                self.untagged(tag.is_some(), span);
                self.open(Open::Map(Vec::new(), None, HashMap::new()), span, anchor)
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let (open, start, anchor) = self.stack.pop().expect("the parser balances starts and ends");
                let span = self.head(Span { end: span.end.max(start.start), ..start });
                let data = match open {
                    Open::List(items) => Data::List(items),
                    Open::Map(entries, ..) => Data::Map(entries),
                };
                self.put(Node { span, owner: span, data }, anchor)
            }
            Event::Alias(id) => match self.anchors.get(&id).cloned() {
                Some(node) => {
                    self.nodes += count(&node);
                    self.put(Node { owner: span, ..node }, 0)
                }
                None => {
                    self.mistakes.push(Mistake::new(Some(span), "this alias names no anchor before it"));
                    None
                }
            },
            _ => Some(()),
        }
    }

    fn untagged(&mut self, tagged: bool, span: Span) {
        if tagged {
            self.mistakes.push(Mistake::new(Some(span), "YAML tags have no meaning here").help("leave the '!...' out"));
        }
    }

    fn open(&mut self, open: Open, span: Span, anchor: usize) -> Option<()> {
        if self.stack.len() >= DEPTH {
            self.mistakes.push(Mistake::new(Some(span), format!("nested deeper than {DEPTH} levels")));
            return None;
        }
        self.stack.push((open, span, anchor));
        Some(())
    }

    fn put(&mut self, mut node: Node, anchor: usize) -> Option<()> {
        self.nodes += 1;
        if self.nodes > NODES {
            self.mistakes.push(Mistake::new(Some(node.span), format!("more than {NODES} values in one file")));
            return None;
        }
        if anchor > 0 {
            self.anchors.insert(anchor, node.clone());
        }
        match self.stack.last_mut() {
            None => self.root = Some(node),
            Some((Open::List(items), ..)) => items.push(node),
            Some((Open::Map(_, key @ None, _), ..)) => {
                let text = match node.data {
                    Data::Scalar(s) => s.text,
                    _ => {
                        self.mistakes.push(Mistake::new(Some(node.span), "a key is a single word"));
                        return None;
                    }
                };
                *key = Some(Key { text, span: node.span });
            }
            Some((Open::Map(entries, key, seen), ..)) => {
                let key = key.take().expect("the arm above took the case without a key");
                node.owner = key.span;
                match seen.get(&key.text) {
                    Some(first) => {
                        let mistake = Mistake::new(Some(key.span), format!("'{}' is written twice", key.text))
                            .help("keep one of the two")
                            .also(Some(*first), "first here");
                        self.mistakes.push(mistake);
                    }
                    None => {
                        seen.insert(key.text.clone(), key.span);
                        entries.push((key, node));
                    }
                }
            }
        }
        Some(())
    }

    fn scalar(&mut self, text: &str, style: ScalarStyle, span: Span) -> Node {
        // A key keeps its text; only values take environment references.
        let is_key = matches!(self.stack.last(), Some((Open::Map(_, None, _), ..)));
        let source = &self.text[span.start as usize..span.end as usize];
        let skip = usize::from(style != ScalarStyle::Plain);
        let verbatim = source.len() >= 2 * skip && text.chars().eq(source[skip..source.len() - skip].iter().copied());
        let before = self.mistakes.len();
        let (text, changed) = match is_key {
            true => (text.to_owned(), false),
            false => self.fill(text, span),
        };
        let verbatim = (verbatim && !changed).then_some(skip as u32);
        let failed = self.mistakes.len() > before;
        let scalar = Scalar { text, plain: style == ScalarStyle::Plain, verbatim, failed };
        let span = if matches!(style, ScalarStyle::Literal | ScalarStyle::Folded) { self.head(span) } else { span };
        Node { span, owner: span, data: Data::Scalar(scalar) }
    }

    /// Fills in `${NAME}` and `${NAME:-default}`; `$${` is a literal `${`.
    fn fill(&mut self, text: &str, span: Span) -> (String, bool) {
        let (mut out, mut rest, mut changed) = (String::new(), text, false);
        while let Some(at) = rest.find("${") {
            changed = true;
            if rest[..at].ends_with('$') {
                out += &rest[..at - 1];
                out += "${";
                rest = &rest[at + 2..];
                continue;
            }
            out += &rest[..at];
            let Some(len) = rest[at..].find('}') else {
                let mistake = Mistake::new(Some(span), "'${' without '}'");
                self.mistakes.push(mistake.help("write ${NAME} or ${NAME:-default}; $${ is a literal ${"));
                return (text.to_owned(), true);
            };
            let inside = &rest[at + 2..at + len];
            let (name, default) = inside.split_once(":-").map_or((inside, None), |(n, d)| (n, Some(d)));
            let well_named = !name.is_empty()
                && !name.starts_with(|c: char| c.is_ascii_digit())
                && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
            match (self.env)(name).filter(|_| well_named).filter(|v| !v.is_empty() || default.is_none()) {
                Some(value) => out += &value,
                None if !well_named => {
                    let mistake =
                        Mistake::new(Some(span), format!("'{name}' is not the name of an environment variable"));
                    self.mistakes.push(mistake.help("write ${NAME} or ${NAME:-default}"));
                }
                None => match default {
                    Some(default) => out += default,
                    None => {
                        let mistake = Mistake::new(Some(span), format!("the environment variable {name} is not set"));
                        self.mistakes.push(mistake.help(format!("set it, or write ${{{name}:-default}}")));
                    }
                },
            }
            rest = &rest[at + len + 1..];
        }
        out += rest;
        (out, changed)
    }
}

fn count(node: &Node) -> usize {
    match &node.data {
        Data::Scalar(_) => 1,
        Data::List(items) => 1 + items.iter().map(count).sum::<usize>(),
        Data::Map(entries) => 1 + entries.iter().map(|(_, n)| count(n)).sum::<usize>(),
    }
}
