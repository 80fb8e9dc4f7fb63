//! A CloudEvent in its JSON form, as it travels on the topic `orders`.

use axum::http::HeaderMap;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::fault::Fault;

/// A CloudEvent 1.0.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// `1.0`.
    pub specversion: String,
    /// Unique; made of subject and type, so that the same fact told twice is the same event.
    pub id: String,
    /// Who tells.
    pub source: String,
    /// What happened.
    #[serde(rename = "type")]
    pub ty: String,
    /// To which order.
    #[serde(default)]
    pub subject: String,
    /// When.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<String>,
    /// The trace it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
    /// `application/json`.
    #[serde(default = "json_type")]
    pub datacontenttype: String,
    /// The details.
    #[serde(default)]
    pub data: Value,
}

impl Event {
    /// Something that happened to an order.
    pub fn new(source: &str, ty: &str, order: &str, data: Value) -> Self {
        Self {
            specversion: "1.0".into(),
            id: format!("{order}:{ty}"),
            source: format!("/services/{source}"),
            ty: ty.into(),
            subject: order.into(),
            time: Some(jiff::Timestamp::now().to_string()),
            traceparent: None,
            datacontenttype: json_type(),
            data,
        }
    }

    /// In the trace of what caused it.
    pub fn in_trace(mut self, traceparent: Option<String>) -> Self {
        self.traceparent = traceparent;
        self
    }

    /// Reads the HTTP binary mode: attributes in `ce-` headers, data in the body (CloudEvents HTTP binding 3.1).
    pub fn from_http(headers: &HeaderMap, body: &[u8]) -> Result<Self, Fault> {
        let text = |name: &str| headers.get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
        let attribute = |name: &str| text(name).ok_or_else(|| Fault::Invalid(format!("the header {name} is missing")));
        let data = if body.is_empty() {
            Value::Null
        } else {
            serde_json::from_slice(body).map_err(|e| Fault::Invalid(format!("the event's data is not JSON: {e}")))?
        };
        Ok(Self {
            specversion: attribute("ce-specversion")?,
            id: attribute("ce-id")?,
            source: attribute("ce-source")?,
            ty: attribute("ce-type")?,
            subject: text("ce-subject").unwrap_or_default(),
            time: text("ce-time"),
            traceparent: text("traceparent").or_else(|| text("ce-traceparent")),
            datacontenttype: text("content-type").unwrap_or_else(json_type),
            data,
        })
    }

    /// A string member of the data.
    pub fn text(&self, name: &str) -> Result<&str, Fault> {
        self.data[name].as_str().ok_or_else(|| Fault::Invalid(format!("{} {} has no '{name}'", self.ty, self.id)))
    }
}

/// The caller's trace, to be copied into what follows from the call.
pub fn traceparent(headers: &HeaderMap) -> Option<String> {
    headers.get("traceparent").and_then(|v| v.to_str().ok()).map(str::to_owned)
}

fn json_type() -> String {
    "application/json".into()
}
