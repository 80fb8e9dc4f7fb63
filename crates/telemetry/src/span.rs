//! One finished piece of work in a trace, and its shape in the API's JSON.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use tokio::time::Instant;
use weft_core::trace::{SpanId, TraceId};
use weft_core::{Clock, Name, SystemClock, Timestamp, Trace, limits};

/// Text that is usually known beforehand or shared, so that a span costs no copy of it.
#[derive(Clone)]
pub enum Text {
    /// Written in the program.
    Static(&'static str),
    /// Shared.
    Shared(Arc<str>),
}

/// An attribute's value.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Value {
    /// `true` or `false`.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// Any number.
    Float(f64),
    /// Text.
    Text(Text),
}

/// The span's part in an exchange, as OpenTelemetry names it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SpanKind {
    /// Work inside a process.
    #[default]
    Internal,
    /// Answers a request.
    Server,
    /// Makes a request and waits.
    Client,
    /// Hands over a message.
    Producer,
    /// Takes a message.
    Consumer,
}

/// How the work ended. What went wrong is told by the attributes `error.type` and `error.message`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SpanStatus {
    /// As it should.
    #[default]
    Ok,
    /// It failed.
    Error,
}

/// A finished span.
#[derive(Clone, Debug, PartialEq)]
pub struct SpanRecord {
    /// Which trace, which span, which parent.
    pub trace: Trace,
    /// What was done: few different values (`POST /v1/orders`, `saga place-order`), no ids.
    pub name: Text,
    /// Its part in an exchange.
    pub kind: SpanKind,
    /// Who did it: `gateway`, `broker`, `flow`, or the service called.
    pub service: Text,
    /// When it began.
    pub start: Timestamp,
    /// How long it took.
    pub duration: Duration,
    /// How it ended.
    pub status: SpanStatus,
    /// At most [`limits::SPAN_ATTRIBUTES`], texts of at most [`limits::SPAN_TEXT_BYTES`].
    pub attributes: Vec<(Text, Value)>,
}

/// Begins a span. Nothing is recorded until [`Running::end`].
pub fn start(trace: Trace, name: impl Into<Text>, kind: SpanKind, service: impl Into<Text>) -> Running {
    Running {
        record: SpanRecord {
            trace,
            name: name.into(),
            kind,
            service: service.into(),
            start: SystemClock.now(),
            duration: Duration::ZERO,
            status: SpanStatus::Ok,
            attributes: Vec::new(),
        },
        began: Instant::now(),
    }
}

/// A span under way.
#[derive(Clone, Debug)]
#[must_use = "a span is recorded only when it is ended and handed to telemetry"]
pub struct Running {
    record: SpanRecord,
    began: Instant,
}

impl Running {
    /// The span's place in its trace.
    pub fn trace(&self) -> Trace {
        self.record.trace
    }

    /// Notes an attribute.
    pub fn set(&mut self, key: impl Into<Text>, value: impl Into<Value>) {
        self.record.set(key, value);
    }

    /// Ends it now.
    pub fn end(mut self, status: SpanStatus) -> SpanRecord {
        self.record.duration = self.began.elapsed();
        self.record.status = status;
        self.record
    }

    /// Ends it now as failed: a stable code and what a person should read.
    pub fn fail(mut self, code: impl Into<Text>, message: impl Into<Text>) -> SpanRecord {
        self.set("error.type", Value::Text(code.into()));
        self.set("error.message", Value::Text(message.into()));
        self.end(SpanStatus::Error)
    }
}

impl SpanRecord {
    /// Notes an attribute; beyond [`limits::SPAN_ATTRIBUTES`] it is left out.
    pub fn set(&mut self, key: impl Into<Text>, value: impl Into<Value>) {
        if self.attributes.len() < limits::SPAN_ATTRIBUTES {
            self.attributes.push((key.into(), value.into()));
        }
    }

    /// An attribute's value.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.attributes.iter().find(|(k, _)| k.as_str() == key).map(|(_, v)| v)
    }

    /// When it ended.
    pub fn end(&self) -> Timestamp {
        self.start.plus(self.duration)
    }

    /// Holds it to the size limits.
    pub(crate) fn bound(&mut self) {
        self.attributes.truncate(limits::SPAN_ATTRIBUTES);
        self.name.bound();
        self.service.bound();
        for (key, value) in &mut self.attributes {
            key.bound();
            if let Value::Text(t) = value {
                t.bound();
            }
        }
    }
}

impl Text {
    /// As text.
    #[inline]
    pub fn as_str(&self) -> &str {
        match self {
            Text::Static(s) => s,
            Text::Shared(s) => s,
        }
    }

    fn bound(&mut self) {
        let s = self.as_str();
        if s.len() > limits::SPAN_TEXT_BYTES {
            let cut = s.floor_char_boundary(limits::SPAN_TEXT_BYTES);
            *self = Text::Shared(s[..cut].into());
        }
    }
}

impl std::ops::Deref for Text {
    type Target = str;
    fn deref(&self) -> &str {
        self.as_str()
    }
}
impl PartialEq for Text {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}
impl Eq for Text {}
impl PartialEq<str> for Text {
    fn eq(&self, other: &str) -> bool {
        self.as_str() == other
    }
}
impl PartialEq<&str> for Text {
    fn eq(&self, other: &&str) -> bool {
        self.as_str() == *other
    }
}
impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self)
    }
}
impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}
impl From<&'static str> for Text {
    fn from(s: &'static str) -> Self {
        Text::Static(s)
    }
}
impl From<String> for Text {
    fn from(s: String) -> Self {
        Text::Shared(s.into())
    }
}
impl From<Arc<str>> for Text {
    fn from(s: Arc<str>) -> Self {
        Text::Shared(s)
    }
}
impl From<&Arc<str>> for Text {
    fn from(s: &Arc<str>) -> Self {
        Text::Shared(s.clone())
    }
}
impl From<&Name> for Text {
    fn from(n: &Name) -> Self {
        Text::Shared(n.to_shared())
    }
}
impl From<Cow<'static, str>> for Text {
    fn from(s: Cow<'static, str>) -> Self {
        match s {
            Cow::Borrowed(s) => Text::Static(s),
            Cow::Owned(s) => s.into(),
        }
    }
}
impl Serialize for Text {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(self)
    }
}
impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d).map(Text::from)
    }
}

impl<T: Into<Text>> From<T> for Value {
    fn from(t: T) -> Self {
        Value::Text(t.into())
    }
}
macro_rules! value_from {
    ($($from:ty => $variant:ident as $to:ty),*) => {$(
        impl From<$from> for Value {
            fn from(v: $from) -> Self {
                Value::$variant(v as $to)
            }
        }
    )*};
}
value_from!(bool => Bool as bool, i64 => Int as i64, i32 => Int as i64, u16 => Int as i64, u32 => Int as i64, u64 => Int as i64,
    usize => Int as i64, f64 => Float as f64);

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Bool(v) => v.fmt(f),
            Value::Int(v) => v.fmt(f),
            Value::Float(v) => v.fmt(f),
            Value::Text(v) => v.fmt(f),
        }
    }
}

/// `GET /v1/traces/{id}`, both ways.
#[derive(Clone, Debug, PartialEq)]
pub struct TraceView {
    /// Which.
    pub trace_id: TraceId,
    /// Its spans by start.
    pub spans: Vec<SpanRecord>,
}

/// A span as JSON. The trace id is given once, outside, where spans come in a [`TraceView`].
#[derive(Serialize, Deserialize)]
struct SpanJson {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    trace_id: Option<String>,
    span_id: String,
    parent_id: Option<String>,
    name: Text,
    kind: SpanKind,
    service: Text,
    start: String,
    duration_us: u64,
    status: SpanStatus,
    #[serde(default)]
    attributes: Attributes,
}

#[derive(Serialize, Deserialize)]
struct TraceJson {
    trace_id: String,
    spans: Vec<SpanJson>,
}

/// A JSON object in the order given.
#[derive(Default)]
struct Attributes(Vec<(Text, Value)>);

impl Serialize for Attributes {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_map(self.0.iter().map(|(k, v)| (k, v)))
    }
}

impl<'de> Deserialize<'de> for Attributes {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Map;
        impl<'de> serde::de::Visitor<'de> for Map {
            type Value = Attributes;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of attributes")
            }
            fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Attributes, A::Error> {
                let mut out = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    out.push(entry);
                }
                Ok(Attributes(out))
            }
        }
        d.deserialize_map(Map)
    }
}

impl SpanJson {
    fn of(r: &SpanRecord) -> Self {
        Self {
            trace_id: None,
            span_id: r.trace.span_id.to_string(),
            parent_id: r.trace.parent.map(|p| p.to_string()),
            name: r.name.clone(),
            kind: r.kind,
            service: r.service.clone(),
            start: r.start.to_string(),
            duration_us: r.duration.as_micros().min(u128::from(u64::MAX)) as u64,
            status: r.status,
            attributes: Attributes(r.attributes.clone()),
        }
    }

    fn into_record<E: serde::de::Error>(self, trace_id: TraceId) -> Result<SpanRecord, E> {
        let span = |s: &str| SpanId::parse(s).ok_or_else(|| E::custom(format!("'{s}' is not a span id")));
        Ok(SpanRecord {
            trace: Trace {
                trace_id,
                span_id: span(&self.span_id)?,
                parent: self.parent_id.as_deref().map(span).transpose()?,
                sampled: true,
            },
            name: self.name,
            kind: self.kind,
            service: self.service,
            start: Timestamp::parse(&self.start)
                .ok_or_else(|| E::custom(format!("'{}' is not an RFC 3339 instant", self.start)))?,
            duration: Duration::from_micros(self.duration_us),
            status: self.status,
            attributes: self.attributes.0,
        })
    }
}

fn trace_id<E: serde::de::Error>(s: Option<&str>) -> Result<TraceId, E> {
    let s = s.ok_or_else(|| E::missing_field("trace_id"))?;
    TraceId::parse(s).ok_or_else(|| E::custom(format!("'{s}' is not a trace id")))
}

impl Serialize for SpanRecord {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        SpanJson { trace_id: Some(self.trace.trace_id.to_string()), ..SpanJson::of(self) }.serialize(s)
    }
}
impl<'de> Deserialize<'de> for SpanRecord {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let json = SpanJson::deserialize(d)?;
        let id = trace_id(json.trace_id.as_deref())?;
        json.into_record(id)
    }
}
impl Serialize for TraceView {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let spans = self.spans.iter().map(SpanJson::of).collect();
        TraceJson { trace_id: self.trace_id.to_string(), spans }.serialize(s)
    }
}
impl<'de> Deserialize<'de> for TraceView {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let json = TraceJson::deserialize(d)?;
        let id = trace_id(Some(&json.trace_id))?;
        let spans = json.spans.into_iter().map(|s| s.into_record(id)).collect::<Result<_, _>>()?;
        Ok(Self { trace_id: id, spans })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> SpanRecord {
        let mut r = SpanRecord {
            trace: Trace::root().child(),
            name: "POST /v1/orders".into(),
            kind: SpanKind::Server,
            service: "gateway".into(),
            start: Timestamp(1_700_000_000_123),
            duration: Duration::from_micros(1_234),
            status: SpanStatus::Error,
            attributes: Vec::new(),
        };
        r.set("http.response.status_code", 503);
        r.set("error.type", "breaker-open");
        r.set("retried", true);
        r.set("ratio", 0.5);
        r
    }

    #[test]
    fn a_span_reads_back_from_the_apis_json() {
        let r = record();
        let json = serde_json::to_value(&r).unwrap();
        assert_eq!(json["duration_us"], 1_234);
        assert_eq!(json["start"], "2023-11-14T22:13:20.123Z");
        assert_eq!(json["kind"], "server");
        assert_eq!(json["status"], "error");
        assert_eq!(json["attributes"]["http.response.status_code"], 503);
        let text = serde_json::to_string(&r).unwrap();
        assert_eq!(serde_json::from_str::<SpanRecord>(&text).unwrap(), r, "attributes in their order");

        let view = TraceView { trace_id: r.trace.trace_id, spans: vec![r] };
        let json = serde_json::to_value(&view).unwrap();
        assert_eq!(json["spans"][0].get("trace_id"), None, "given once, outside");
        let text = serde_json::to_string(&view).unwrap();
        assert_eq!(serde_json::from_str::<TraceView>(&text).unwrap(), view);
    }

    #[test]
    fn json_that_is_no_span_is_refused_by_name() {
        let mut json = serde_json::to_value(record()).unwrap();
        json["span_id"] = "xyz".into();
        let e = serde_json::from_value::<SpanRecord>(json).unwrap_err();
        assert!(e.to_string().contains("'xyz' is not a span id"), "{e}");
    }

    #[test]
    fn a_span_is_held_to_its_size() {
        let mut r = record();
        r.name = "ä".repeat(limits::SPAN_TEXT_BYTES).into();
        for i in 0..2 * limits::SPAN_ATTRIBUTES {
            r.set(format!("k{i}"), "v");
        }
        assert_eq!(r.attributes.len(), limits::SPAN_ATTRIBUTES);
        r.attributes.push(("over".into(), "v".into()));
        r.bound();
        assert!(r.name.len() <= limits::SPAN_TEXT_BYTES && r.name.ends_with('ä'));
        assert_eq!(r.attributes.len(), limits::SPAN_ATTRIBUTES);
    }

    #[tokio::test(start_paused = true)]
    async fn a_running_span_measures_its_time() {
        let s = start(Trace::root(), "x", SpanKind::Internal, "flow");
        tokio::time::sleep(Duration::from_millis(40)).await;
        let r = s.fail("store-unavailable", "the disk is full");
        assert_eq!((r.duration, r.status), (Duration::from_millis(40), SpanStatus::Error));
        assert_eq!(r.get("error.type"), Some(&Value::from("store-unavailable")));
    }
}
