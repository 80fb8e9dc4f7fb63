//! How a value of each type is read from YAML, described in the JSON Schema and named in the reference.
//!
//! One trait does the three, so they cannot disagree.

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value as Json, json};
use weft_core::{Name, units};
use weft_mesh::spec::Address;
use weft_policy::net::Net;

use super::declare::Declared;
use super::node::{Data, Node, Scalar};
use super::report::Mistake;
use super::source::{At, Sources, Span};

/// What reading needs: the sources, for relative paths, and a place to put mistakes.
pub(super) struct Cx<'a> {
    /// Files.
    pub sources: &'a Sources,
    /// Found so far.
    pub mistakes: Vec<Mistake>,
}

impl Cx<'_> {
    /// Notes a mistake.
    pub fn say(&mut self, mistake: Mistake) {
        self.mistakes.push(mistake);
    }

    /// Notes that `node` should have been something else.
    pub fn expected(&mut self, node: &Node, what: &str) {
        if matches!(&node.data, Data::Scalar(s) if s.failed) {
            return;
        }
        let given = match &node.data {
            Data::Scalar(s) if !s.text.is_empty() => format!("'{}'", shorten(&s.text)),
            _ => node.what().to_owned(),
        };
        // Nothing has no place of its own: blame the key.
        let at = if node.span.start == node.span.end { node.owner } else { node.span };
        self.say(Mistake::new(Some(at), format!("expected {what}, found {given}")));
    }
}

/// The first part of a text, for messages.
pub(super) fn shorten(text: &str) -> String {
    let short: String = text.chars().take(60).collect();
    if short.len() < text.len() { short + "..." } else { short }
}

/// A type that a key can have.
pub(super) trait Value: Sized {
    /// Reads it, or notes what is wrong.
    fn read(node: &Node, cx: &mut Cx<'_>) -> Option<Self>;
    /// Its JSON Schema; sections add themselves to `declared`.
    fn schema(declared: &mut Declared) -> Json;
    /// How the reference names it.
    fn kind() -> String;
}

/// A scalar's text, or a mistake.
pub(super) fn scalar<'n>(node: &'n Node, cx: &mut Cx<'_>, what: &str) -> Option<&'n Scalar> {
    match &node.data {
        Data::Scalar(s) if !(s.failed || s.plain && s.text.is_empty()) => Some(s),
        _ => {
            cx.expected(node, what);
            None
        }
    }
}

/// A schema for text of a pattern, or a reference to the environment.
pub(super) fn pattern(p: &str) -> Json {
    json!({"type": "string", "pattern": format!("^(?:{p})$|\\$\\{{")})
}

fn from_text<T, E: std::fmt::Display>(
    node: &Node,
    cx: &mut Cx<'_>,
    what: &str,
    parse: impl FnOnce(&str) -> Result<T, E>,
) -> Option<T> {
    let text = &scalar(node, cx, what)?.text;
    match parse(text) {
        Ok(v) => Some(v),
        Err(e) => {
            // Our errors read "what is wrong: what to write".
            let text = e.to_string();
            let mistake = match text.split_once(": ") {
                Some((wrong, instead)) => Mistake::new(Some(node.span), wrong).help(instead),
                None => Mistake::new(Some(node.span), text),
            };
            cx.say(mistake);
            None
        }
    }
}

macro_rules! values {
    ($($ty:ty, $kind:literal, $schema:expr, $parse:expr;)*) => { $(
        impl Value for $ty {
            fn read(node: &Node, cx: &mut Cx<'_>) -> Option<Self> {
                from_text(node, cx, concat!("a ", $kind), $parse)
            }
            fn schema(_: &mut Declared) -> Json {
                $schema
            }
            fn kind() -> String {
                $kind.to_owned()
            }
        }
    )* };
}

/// A share from 0 to 1, written `20%`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Percent(pub f64);

/// A number with a fraction, not below 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Decimal(pub f64);

/// `100/s`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct PerTime(pub u32, pub Duration);

/// A whole number, with `k`, `M` or `G` for thousands: `10k`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Amount(pub u64);

/// A day (its first instant in UTC) or an instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Date(pub weft_core::Timestamp);

/// `50ms..2s`, or one duration for both ends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Backoff {
    /// First.
    pub min: Duration,
    /// Longest.
    pub max: Duration,
}

const DURATION: &str = r"0|(?:[0-9]+(?:\.[0-9]+)?(?:us|ms|s|m|h|d))+";

fn duration(s: &str) -> Result<Duration, String> {
    units::parse_duration(s).map_err(|e| {
        // A bare number: the unit is what is missing.
        if s.parse::<u32>().is_ok() { format!("'{s}' has no unit: write '{s}s' or '{s}ms'") } else { e.to_string() }
    })
}

fn backoff(s: &str) -> Result<Backoff, String> {
    let (min, max) = s.split_once("..").unwrap_or((s, s));
    let both = duration(min.trim()).and_then(|min| Ok(Backoff { min, max: duration(max.trim())? }));
    let b = both.map_err(|_| format!("'{}' is not a backoff: write it like 50ms..2s", shorten(s)))?;
    if b.min > b.max { Err(format!("'{s}' goes backwards: write the shorter first")) } else { Ok(b) }
}

fn percent(s: &str) -> Result<Percent, String> {
    units::parse_percent(s).map(Percent).map_err(|e| match s.parse::<f64>() {
        Ok(n) if (0.0..=1.0).contains(&n) => format!("'{s}' is not a percentage: write '{}%'", n * 100.0),
        Ok(n) if n <= 100.0 && n > 0.0 => format!("'{s}' is not a percentage: write '{s}%'"),
        _ => e.to_string(),
    })
}

fn decimal(s: &str) -> Result<Decimal, String> {
    let good = |n: &f64| n.is_finite() && *n >= 0.0;
    s.parse()
        .ok()
        .filter(good)
        .map(Decimal)
        .ok_or_else(|| format!("'{}' is not a number: write it like 1.9", shorten(s)))
}

fn rate(s: &str) -> Result<PerTime, String> {
    match units::parse_rate(s) {
        Ok((0, _)) => Err("a rate of 0 lets nothing through: write at least 1/s".to_owned()),
        Ok((n, per)) => Ok(PerTime(n, per)),
        Err(e) => Err(e.to_string()),
    }
}

fn amount(s: &str) -> Result<Amount, String> {
    let (digits, times) = match s.as_bytes().last() {
        Some(b'k' | b'K') => (&s[..s.len() - 1], 1_000),
        Some(b'M') => (&s[..s.len() - 1], 1_000_000),
        Some(b'G') => (&s[..s.len() - 1], 1_000_000_000),
        _ => (s, 1),
    };
    let n = digits.trim().parse::<u64>().ok().and_then(|n| n.checked_mul(times));
    match n {
        Some(0) => Err("a quota of 0 lets nothing through: write at least 1".to_owned()),
        Some(n) => Ok(Amount(n)),
        None => Err(format!("'{}' is not a number: write it like 500, 10k or 5M", shorten(s))),
    }
}

fn date(s: &str) -> Result<Date, String> {
    let at = weft_core::Timestamp::parse(s).or_else(|| weft_core::Timestamp::parse(&format!("{s}T00:00:00Z")));
    at.map(Date)
        .ok_or_else(|| format!("'{}' is not a date: write it like 2026-03-31 or 2026-03-31T12:00:00Z", shorten(s)))
}

fn whole<T: TryFrom<i128>>(s: &str, least: i128, most: i128) -> Result<T, String> {
    let n: i128 = s.parse().map_err(|_| format!("'{}' is not a whole number: write digits alone", shorten(s)))?;
    let wrong = |word: &str, bound: i128| {
        Err(format!("{n} is too {word}: write {bound} or {}", if bound == least { "more" } else { "less" }))
    };
    match n {
        n if n < least => wrong("small", least),
        n if n > most => wrong("large", most),
        n => T::try_from(n).map_err(|_| format!("{n} is out of range: write a smaller number")),
    }
}

fn socket(s: &str) -> Result<SocketAddr, String> {
    // `:8080`, `8080` and `localhost:8080` are what people try first.
    let port = s.strip_prefix("localhost").unwrap_or(s);
    let port = port.strip_prefix(':').unwrap_or(port);
    s.parse().map_err(|_| match port.parse::<u16>() {
        Ok(p) => format!("'{s}' is not an address to listen on: write '127.0.0.1:{p}'"),
        Err(_) => format!("'{}' is not an address to listen on: write it like 127.0.0.1:8080", shorten(s)),
    })
}

fn truth(s: &str) -> Result<bool, String> {
    match s {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(format!("'{}' is neither true nor false: write true or false", shorten(s))),
    }
}

fn number(min: u64, max: u64) -> Json {
    json!({"anyOf": [{"type": "integer", "minimum": min, "maximum": max}, pattern("[0-9]+")]})
}

values! {
    Duration, "duration", pattern(DURATION), duration;
    Backoff, "backoff", pattern(&format!("(?:{DURATION})(?: *\\.\\. *(?:{DURATION}))?")), backoff;
    Percent, "percentage", pattern(r"[0-9]+(?:\.[0-9]+)? *%"), percent;
    Decimal, "number with a fraction", json!({"anyOf": [{"type": "number", "minimum": 0}, pattern(r"[0-9]+(?:\.[0-9]+)?")]}), decimal;
    PerTime, "rate", pattern(r"[0-9]+ */ *[smhd]"), rate;
    Amount, "number such as `10k`", json!({"anyOf": [{"type": "integer", "minimum": 1}, pattern("[0-9]+ *[kKMG]?")]}), amount;
    Date, "date", pattern(r"[0-9]{4}-[0-9]{2}-[0-9]{2}(?:T.+)?"), date;
    Name, "name", pattern("[A-Za-z0-9][A-Za-z0-9._-]{0,127}"), Name::new;
    SocketAddr, "listen address", pattern(r".+:[0-9]+"), socket;
    Net, "network", pattern(r"[0-9a-fA-F.:]+(?:/[0-9]+)?"), |s| s.parse::<Net>();
    Address, "address", pattern(r".+:[0-9]+|unix:/.+"), |s| s.parse::<Address>();
    u64, "number", number(0, i64::MAX as u64), |s| whole(s, 0, i64::MAX.into());
    u32, "number", number(0, u32::MAX.into()), |s| whole(s, 0, u32::MAX.into());
    NonZeroU32, "number, at least 1", number(1, u32::MAX.into()),
        |s| whole(s, 1, u32::MAX.into()).map(|n: u32| NonZeroU32::new(n).expect("at least 1: checked"));
    i32, "number", json!({"anyOf": [{"type": "integer"}, pattern("-?[0-9]+")]}), |s| whole(s, i32::MIN.into(), i32::MAX.into());
    bool, "`true` or `false`", json!({"anyOf": [{"type": "boolean"}, pattern("true|false")]}), truth;
    String, "text", json!({"type": ["string", "number", "boolean"]}), |s| Ok::<_, String>(s.to_owned());
}

impl Value for PathBuf {
    fn read(node: &Node, cx: &mut Cx<'_>) -> Option<Self> {
        let text = &scalar(node, cx, "a path")?.text;
        Some(cx.sources.resolve(node.span, text))
    }
    fn schema(_: &mut Declared) -> Json {
        json!({"type": "string"})
    }
    fn kind() -> String {
        "path, seen from the file it is written in".to_owned()
    }
}

impl<T: Value> Value for At<T> {
    fn read(node: &Node, cx: &mut Cx<'_>) -> Option<Self> {
        T::read(node, cx).map(|v| At::new(v, node.span))
    }
    fn schema(declared: &mut Declared) -> Json {
        T::schema(declared)
    }
    fn kind() -> String {
        T::kind()
    }
}

/// One, or a list.
#[derive(Clone, Debug)]
pub(super) struct Many<T>(pub Vec<At<T>>);

impl<T: Value> Value for Many<T> {
    fn read(node: &Node, cx: &mut Cx<'_>) -> Option<Self> {
        match &node.data {
            Data::List(items) => Some(Many(items.iter().filter_map(|n| At::read(n, cx)).collect())),
            _ => At::read(node, cx).map(|v| Many(vec![v])),
        }
    }
    fn schema(declared: &mut Declared) -> Json {
        let one = T::schema(declared);
        json!({"anyOf": [one, {"type": "array", "items": one}]})
    }
    fn kind() -> String {
        format!("{}, or a list", T::kind())
    }
}

/// A value, or `off`.
#[derive(Clone, Debug)]
pub(super) enum Switch<T> {
    /// Turned off.
    Off,
    /// This.
    On(T),
}

impl<T: Value> Value for Switch<T> {
    fn read(node: &Node, cx: &mut Cx<'_>) -> Option<Self> {
        match &node.data {
            Data::Scalar(s) if matches!(s.text.as_str(), "off" | "false") => Some(Switch::Off),
            _ => T::read(node, cx).map(Switch::On),
        }
    }
    fn schema(declared: &mut Declared) -> Json {
        json!({"anyOf": [{"enum": ["off", false]}, T::schema(declared)]})
    }
    fn kind() -> String {
        format!("{}, or `off`", T::kind())
    }
}

/// A map from names that the user chooses. Entries that could not be read keep their name, so that what refers to them
/// is not reported a second time.
#[derive(Clone, Debug)]
pub(super) struct Named<T>(pub Vec<Entry<T>>);

/// One entry of [`Named`].
#[derive(Clone, Debug)]
pub(super) struct Entry<T> {
    /// Its name.
    pub name: Name,
    /// Where the name stands.
    pub at: Span,
    /// `None` = mistakes inside, reported.
    pub value: Option<T>,
}

impl<T> Default for Named<T> {
    fn default() -> Self {
        Named(Vec::new())
    }
}

impl<T> Named<T> {
    /// The names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|e| e.name.as_str())
    }

    /// Entries that could be read.
    pub fn good(&self) -> impl Iterator<Item = (&Entry<T>, &T)> {
        self.0.iter().filter_map(|e| e.value.as_ref().map(|v| (e, v)))
    }

    /// The entry of a name.
    pub fn get(&self, name: &str) -> Option<&Entry<T>> {
        self.0.iter().find(|e| e.name.as_str() == name)
    }
}

impl<T: Value> Value for Named<T> {
    fn read(node: &Node, cx: &mut Cx<'_>) -> Option<Self> {
        let entries = match &node.data {
            Data::Map(entries) => entries.as_slice(),
            Data::Scalar(s) if s.plain && s.text.is_empty() => &[],
            _ => {
                cx.expected(node, "a map from names");
                return None;
            }
        };
        let mut out = Vec::with_capacity(entries.len());
        for (key, node) in entries {
            let value = T::read(node, cx);
            match Name::new(&key.text) {
                Ok(name) => out.push(Entry { name, at: key.span, value }),
                Err(e) => {
                    let text = e.to_string();
                    let (wrong, instead) = text.split_once(": ").unwrap_or((&text, ""));
                    cx.say(Mistake::new(Some(key.span), wrong).help(instead));
                }
            }
        }
        Some(Named(out))
    }
    fn schema(declared: &mut Declared) -> Json {
        let value = T::schema(declared);
        json!({"type": ["object", "null"], "propertyNames": {"pattern": "^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"}, "additionalProperties": value})
    }
    fn kind() -> String {
        format!("map from name to {}", T::kind())
    }
}

/// Reads a default that a declaration gives as text.
pub(super) fn default<T: Value>(text: &str) -> T {
    let span = Span { file: 0, start: 0, end: 0 };
    let data = Data::Scalar(Scalar { text: text.to_owned(), plain: true, verbatim: None, failed: false });
    let mut sources = Sources::default();
    sources.add(std::path::Path::new(""), String::new());
    let mut cx = Cx { sources: &sources, mistakes: Vec::new() };
    T::read(&Node { span, owner: span, data }, &mut cx).expect("declared defaults are valid: a test reads them all")
}

/// A section with nothing written in it; only for sections whose keys are all optional.
pub(super) fn default_of<T: Value>() -> T {
    default("")
}
