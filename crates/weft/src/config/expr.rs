//! CEL in configuration: syntax is checked when it is read, with the column inside the expression.

use serde_json::{Map, Value as Json, json};

use super::declare::Declared;
use super::node::{Data, Node, Scalar};
use super::report::Mistake;
use super::source::Span;
use super::value::{Cx, Value, scalar, shorten};

/// Bytes of one expression.
const EXPRESSION_BYTES: usize = 16 << 10;

/// A CEL expression whose syntax is right.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Cel {
    /// Its source.
    pub text: String,
    /// As in [`Scalar`].
    pub verbatim: Option<u32>,
}

/// Data whose strings are CEL: `{ id: saga.id, status: "'done'" }`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Template(pub Json);

impl Value for Cel {
    fn read(node: &Node, cx: &mut Cx<'_>) -> Option<Self> {
        let s = scalar(node, cx, "a CEL expression")?;
        check(&s.text, node.span, s.verbatim, cx).then(|| Cel { text: s.text.clone(), verbatim: s.verbatim })
    }
    fn schema(_: &mut Declared) -> Json {
        json!({"type": ["string", "number", "boolean"]})
    }
    fn kind() -> String {
        "CEL expression".to_owned()
    }
}

impl Value for Template {
    fn read(node: &Node, cx: &mut Cx<'_>) -> Option<Self> {
        template(node, cx).map(Template)
    }
    fn schema(_: &mut Declared) -> Json {
        json!({})
    }
    fn kind() -> String {
        "data whose strings are CEL expressions".to_owned()
    }
}

/// Checks one expression; `verbatim` as in [`Scalar`].
pub(super) fn check(source: &str, span: Span, verbatim: Option<u32>, cx: &mut Cx<'_>) -> bool {
    if source.len() > EXPRESSION_BYTES {
        cx.say(Mistake::new(Some(span), format!("an expression of more than {EXPRESSION_BYTES} bytes")));
        return false;
    }
    let Err(errors) = cel::Program::compile(source) else { return true };
    let Some(first) = errors.errors.first() else { return true };
    let line = usize::try_from(first.pos.0).unwrap_or(1).max(1);
    let column = usize::try_from(first.pos.1).unwrap_or(1).max(1);
    let before: usize = source.split('\n').take(line - 1).map(|l| l.chars().count() + 1).sum();
    let chars = source.chars().count();
    let offset = (before + column - 1).min(chars) as u32;
    let at = match verbatim {
        // At the end of the expression the caret stands on what follows it.
        Some(skip) => Span { start: span.start + skip + offset, end: span.start + skip + offset + 1, ..span },
        None => span,
    };
    let what = first.msg.lines().next().unwrap_or_default();
    let message = format!("'{}' is not a CEL expression, at its column {}", shorten(source), offset + 1);
    cx.say(Mistake::new(Some(at), message).help(plain_words(what)));
    false
}

/// Notes what the saga compiler says about an expression, with the caret under the word it complains of.
///
/// Its messages read `'expression': unknown name 'word'; did you mean 'other'?; ...`.
pub(super) fn complain(message: &str, text: &str, span: Span, verbatim: Option<u32>, cx: &mut Cx<'_>) {
    let message = match message.rfind("': ") {
        Some(at) if message.starts_with('\'') => &message[at + 3..],
        _ => message,
    };
    let (wrong, help) = message.split_once("; ").or_else(|| message.split_once(": ")).unwrap_or((message, ""));
    let at = verbatim
        .and_then(|skip| {
            let word = wrong.split('\'').nth(1)?;
            let (offset, len) = (word_in(text, word)?, word.chars().count() as u32);
            Some(Span { start: span.start + skip + offset, end: span.start + skip + offset + len, ..span })
        })
        .unwrap_or(span);
    let overlaps = |m: &Mistake| m.at.is_some_and(|s| s.file == at.file && s.start < at.end && at.start < s.end);
    // A broken call or name has been reported already, with more to say.
    if !cx.mistakes.iter().any(overlaps) {
        cx.say(Mistake::new(Some(at), wrong).help(help));
    }
}

/// Where a word stands alone in a text, in characters.
fn word_in(text: &str, word: &str) -> Option<u32> {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    let alone =
        |at: usize| !text[..at].ends_with(|c| part(c) || c == '.') && !text[at + word.len()..].starts_with(part);
    let at = text.match_indices(word).map(|(at, _)| at).find(|at| alone(*at))?;
    Some(text[..at].chars().count() as u32)
}

/// The parser's message without its grammar's inside.
fn plain_words(message: &str) -> String {
    let message = message.strip_prefix("Syntax error: ").unwrap_or(message);
    let message = message.split(" expecting ").next().unwrap_or(message);
    if message.contains("<EOF>") {
        return "the expression ends where more is expected".to_owned();
    }
    match message.strip_prefix("token recognition error at: ") {
        Some(token) if token.starts_with("'=") => "compare with '=='".to_owned(),
        Some(token) => format!("{} has no meaning in an expression", shorten(token)),
        None => shorten(message),
    }
}

fn template(node: &Node, cx: &mut Cx<'_>) -> Option<Json> {
    match &node.data {
        Data::Map(entries) => {
            let mut out = Map::new();
            let mut whole = true;
            for (key, value) in entries {
                match template(value, cx) {
                    Some(v) => drop(out.insert(key.text.clone(), v)),
                    None => whole = false,
                }
            }
            whole.then_some(Json::Object(out))
        }
        Data::List(items) => {
            let read: Vec<_> = items.iter().map(|n| template(n, cx)).collect();
            read.into_iter().collect::<Option<Vec<_>>>().map(Json::Array)
        }
        Data::Scalar(s) => match core_schema(s) {
            Some(v) => Some(v),
            None => check(&s.text, node.span, s.verbatim, cx).then(|| Json::String(s.text.clone())),
        },
    }
}

/// Null, booleans and numbers of the YAML 1.2 core schema; `None` = text.
fn core_schema(s: &Scalar) -> Option<Json> {
    if !s.plain {
        return None;
    }
    match s.text.as_str() {
        "" | "~" | "null" => Some(Json::Null),
        "true" => Some(Json::Bool(true)),
        "false" => Some(Json::Bool(false)),
        t => match t.parse::<i64>() {
            Ok(n) => Some(n.into()),
            Err(_) if t.starts_with(|c: char| c.is_ascii_digit() || c == '-') => {
                t.parse::<f64>().ok().and_then(serde_json::Number::from_f64).map(Json::Number)
            }
            Err(_) => None,
        },
    }
}

/// Checks each `{cel}` of a text; answers whether all are right.
pub(super) fn check_placeholders(text: &str, span: Span, verbatim: Option<u32>, cx: &mut Cx<'_>) -> bool {
    let chars: Vec<char> = text.chars().collect();
    let mut i = 0;
    let mut right = true;
    while i < chars.len() {
        match chars[i] {
            '{' => {
                let Some(len) = closing(&chars[i + 1..]) else {
                    let at = verbatim.map_or(span, |skip| one(span, skip + i as u32));
                    cx.say(Mistake::new(Some(at), "'{' without '}'").help("write {expression}"));
                    return false;
                };
                let inside: String = chars[i + 1..i + 1 + len].iter().collect();
                let start = span.start + i as u32 + 1;
                let part = match verbatim {
                    Some(skip) => Span { start: start + skip, end: start + skip + len as u32, ..span },
                    None => span,
                };
                right &= check(&inside, part, verbatim.map(|_| 0), cx);
                i += len + 2;
            }
            '}' => {
                let at = verbatim.map_or(span, |skip| one(span, skip + i as u32));
                cx.say(Mistake::new(Some(at), "'}' without '{'").help("write {expression}"));
                return false;
            }
            _ => i += 1,
        }
    }
    right
}

fn one(span: Span, offset: u32) -> Span {
    Span { start: span.start + offset, end: span.start + offset + 1, ..span }
}

/// Length up to the brace that closes, past nested braces and quoted text.
fn closing(chars: &[char]) -> Option<usize> {
    let (mut depth, mut quote) = (0, None);
    for (i, c) in chars.iter().enumerate() {
        match (quote, c) {
            (Some(q), c) if q == *c => quote = None,
            (Some(_), _) => {}
            (None, '\'' | '"') => quote = Some(*c),
            (None, '{') => depth += 1,
            (None, '}') if depth == 0 => return Some(i),
            (None, '}') => depth -= 1,
            _ => {}
        }
    }
    None
}
