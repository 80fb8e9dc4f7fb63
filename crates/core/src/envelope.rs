//! A bounded message: a CloudEvent (CloudEvents 1.0.2) and its bytes.
//!
//! Three forms: structured JSON ([`Envelope::to_json`]), HTTP binary mode (headers, in `edge`) and the
//! compact stored form ([`Envelope::encode`]).

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use prost::Message as _;
use serde_json::{Map, Value};

use crate::clock::{Clock, SystemClock};
use crate::id::Id;
use crate::limits;

/// A CloudEvent and its data.
#[derive(Clone, Debug, PartialEq)]
pub struct Envelope {
    /// `id`: unique per source.
    pub id: String,
    /// `source`: a URI reference.
    pub source: String,
    /// `type`.
    pub ty: String,
    /// `subject`.
    pub subject: Option<String>,
    /// `time`, RFC 3339.
    pub time: Option<String>,
    /// `datacontenttype`.
    pub data_content_type: Option<String>,
    /// `dataschema`.
    pub data_schema: Option<String>,
    /// Extension attributes by name, as strings.
    pub extensions: BTreeMap<String, String>,
    /// The data.
    pub data: Bytes,
}

/// Why something is not a CloudEvent.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum InvalidEnvelope {
    /// A required attribute is missing or empty.
    #[error("CloudEvents attribute '{0}' is required and missing")]
    Missing(&'static str),
    /// An attribute has the wrong type or form.
    #[error("CloudEvents attribute '{name}' {reason}")]
    Attribute {
        /// Which.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The event is not a JSON object.
    #[error("a CloudEvent in JSON is an object, this is {0}")]
    NotAnObject(&'static str),
    /// `specversion` is not 1.0.
    #[error("CloudEvents specversion '{0}' is not supported: use 1.0")]
    SpecVersion(String),
    /// Over a named limit.
    #[error("the event has {got} {what}, the limit is {limit}")]
    TooLarge {
        /// Of what.
        what: &'static str,
        /// How many.
        got: usize,
        /// The limit.
        limit: usize,
    },
    /// The stored form did not decode.
    #[error("the stored envelope does not decode: {0}")]
    Stored(String),
}

impl Envelope {
    /// An event with JSON data, a fresh id and the time now.
    pub fn json(source: &str, ty: &str, data: &Value) -> Self {
        Self {
            id: Id::new().to_string(),
            source: source.to_owned(),
            ty: ty.to_owned(),
            subject: None,
            time: Some(SystemClock.now().to_string()),
            data_content_type: Some("application/json".into()),
            data_schema: None,
            extensions: BTreeMap::new(),
            data: Bytes::from(data.to_string()),
        }
    }

    /// The W3C trace of the event (Distributed Tracing extension), if it carries one.
    pub fn traceparent(&self) -> Option<&str> {
        self.extensions.get("traceparent").map(String::as_str)
    }

    /// Whether the data is JSON by its content type (none means JSON: JSON event format 3.1).
    pub fn is_json(&self) -> bool {
        let Some(ct) = &self.data_content_type else { return true };
        let essence = ct.split(';').next().unwrap_or("").trim();
        essence.eq_ignore_ascii_case("application/json") || essence.to_ascii_lowercase().ends_with("+json")
    }

    /// The data as JSON, when it is JSON.
    pub fn data_json(&self) -> Option<Value> {
        if self.is_json() { serde_json::from_slice(&self.data).ok() } else { None }
    }

    /// The structured form (CloudEvents JSON event format 1.0.2).
    pub fn to_json(&self) -> Value {
        let mut m = Map::new();
        let mut put = |k: &str, v: &str| m.insert(k.to_owned(), Value::String(v.to_owned()));
        put("specversion", "1.0");
        put("id", &self.id);
        put("source", &self.source);
        put("type", &self.ty);
        for (k, v) in [
            ("subject", &self.subject),
            ("time", &self.time),
            ("datacontenttype", &self.data_content_type),
            ("dataschema", &self.data_schema),
        ] {
            if let Some(v) = v {
                put(k, v);
            }
        }
        for (k, v) in &self.extensions {
            put(k, v);
        }
        if !self.data.is_empty() {
            match (self.data_json(), std::str::from_utf8(&self.data)) {
                (Some(v), _) => m.insert("data".into(), v),
                (None, Ok(text)) if !self.is_json() => m.insert("data".into(), Value::String(text.to_owned())),
                _ => m.insert("data_base64".into(), Value::String(BASE64.encode(&self.data))),
            };
        }
        Value::Object(m)
    }

    /// Reads the structured form. Missing `id`, `source` or `type` is an error: the publisher chose the
    /// CloudEvents form and must fill it.
    pub fn from_json(v: &Value) -> Result<Self, InvalidEnvelope> {
        let Value::Object(m) = v else {
            return Err(InvalidEnvelope::NotAnObject(match v {
                Value::Null => "null",
                Value::Bool(_) => "a boolean",
                Value::Number(_) => "a number",
                Value::String(_) => "a string",
                _ => "an array",
            }));
        };
        let text = |k: &str| -> Result<Option<String>, InvalidEnvelope> {
            match m.get(k) {
                None | Some(Value::Null) => Ok(None),
                Some(Value::String(s)) => Ok(Some(s.clone())),
                Some(_) => Err(InvalidEnvelope::Attribute { name: k.to_owned(), reason: "must be a string" }),
            }
        };
        let required = |k: &'static str| text(k)?.filter(|s| !s.is_empty()).ok_or(InvalidEnvelope::Missing(k));
        let spec = required("specversion")?;
        if spec != "1.0" {
            return Err(InvalidEnvelope::SpecVersion(spec));
        }
        let mut e = Envelope {
            id: required("id")?,
            source: required("source")?,
            ty: required("type")?,
            subject: text("subject")?,
            time: text("time")?,
            data_content_type: text("datacontenttype")?,
            data_schema: text("dataschema")?,
            extensions: BTreeMap::new(),
            data: Bytes::new(),
        };
        for (k, v) in m {
            match k.as_str() {
                "specversion" | "id" | "source" | "type" | "subject" | "time" | "datacontenttype" | "dataschema" => {}
                "data" => {
                    e.data = match v {
                        Value::String(s) if !e.is_json() => Bytes::from(s.clone()),
                        v => Bytes::from(v.to_string()),
                    };
                    if e.data_content_type.is_none() {
                        e.data_content_type = Some("application/json".into());
                    }
                }
                "data_base64" => {
                    let bytes = v.as_str().and_then(|s| BASE64.decode(s).ok());
                    e.data = bytes
                        .ok_or(InvalidEnvelope::Attribute { name: k.clone(), reason: "must be a base64 string" })?
                        .into();
                }
                _ => {
                    let s = match v {
                        Value::String(s) => s.clone(),
                        Value::Number(n) => n.to_string(),
                        Value::Bool(b) => b.to_string(),
                        Value::Null => continue,
                        _ => {
                            return Err(InvalidEnvelope::Attribute {
                                name: k.clone(),
                                reason: "must be a string, number or boolean",
                            });
                        }
                    };
                    e.extensions.insert(k.clone(), s);
                }
            }
        }
        e.check()?;
        Ok(e)
    }

    /// Checks required attributes, extension names and limits; every publish door calls it.
    pub fn check(&self) -> Result<(), InvalidEnvelope> {
        for (name, v) in [("id", &self.id), ("source", &self.source), ("type", &self.ty)] {
            if v.is_empty() {
                return Err(InvalidEnvelope::Missing(name));
            }
        }
        if let Some(t) = &self.time
            && crate::Timestamp::parse(t).is_none()
        {
            return Err(InvalidEnvelope::Attribute { name: "time".into(), reason: "must be an RFC 3339 instant" });
        }
        for name in self.extensions.keys() {
            if name.is_empty() || !name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()) {
                return Err(InvalidEnvelope::Attribute {
                    name: name.clone(),
                    reason: "must be named with lowercase letters and digits only",
                });
            }
        }
        if self.extensions.len() > limits::ENVELOPE_EXTENSIONS {
            return Err(InvalidEnvelope::TooLarge {
                what: "extension attributes",
                got: self.extensions.len(),
                limit: limits::ENVELOPE_EXTENSIONS,
            });
        }
        if self.data.len() > limits::MESSAGE_BYTES {
            return Err(InvalidEnvelope::TooLarge {
                what: "bytes of data",
                got: self.data.len(),
                limit: limits::MESSAGE_BYTES,
            });
        }
        Ok(())
    }

    /// The stored form: a protobuf message behind one format byte.
    pub fn encode(&self) -> Bytes {
        let stored = Stored {
            id: self.id.clone(),
            source: self.source.clone(),
            ty: self.ty.clone(),
            subject: self.subject.clone(),
            time: self.time.clone(),
            data_content_type: self.data_content_type.clone(),
            data_schema: self.data_schema.clone(),
            extensions: self.extensions.clone(),
            data: self.data.clone(),
        };
        let mut out = Vec::with_capacity(1 + stored.encoded_len());
        out.push(STORED_FORMAT);
        stored.encode(&mut out).expect("a Vec grows");
        out.into()
    }

    /// Reads the stored form.
    pub fn decode(mut bytes: Bytes) -> Result<Self, InvalidEnvelope> {
        match bytes.first() {
            Some(&STORED_FORMAT) => {}
            other => {
                return Err(InvalidEnvelope::Stored(format!("format {other:?}, this binary reads {STORED_FORMAT}")));
            }
        }
        let _ = bytes.split_to(1);
        let s = Stored::decode(bytes).map_err(|e| InvalidEnvelope::Stored(e.to_string()))?;
        Ok(Self {
            id: s.id,
            source: s.source,
            ty: s.ty,
            subject: s.subject,
            time: s.time,
            data_content_type: s.data_content_type,
            data_schema: s.data_schema,
            extensions: s.extensions,
            data: s.data,
        })
    }
}

const STORED_FORMAT: u8 = 1;

#[derive(Clone, PartialEq, prost::Message)]
struct Stored {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(string, tag = "2")]
    source: String,
    #[prost(string, tag = "3")]
    ty: String,
    #[prost(string, optional, tag = "4")]
    subject: Option<String>,
    #[prost(string, optional, tag = "5")]
    time: Option<String>,
    #[prost(string, optional, tag = "6")]
    data_content_type: Option<String>,
    #[prost(string, optional, tag = "7")]
    data_schema: Option<String>,
    #[prost(btree_map = "string, string", tag = "8")]
    extensions: BTreeMap<String, String>,
    #[prost(bytes = "bytes", tag = "9")]
    data: Bytes,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_structured_and_the_stored_form_read_back() {
        let v = json!({"specversion":"1.0","id":"1","source":"/s","type":"T","subject":"x","time":"2026-01-01T00:00:00Z",
            "traceparent":"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01","data":{"a":[1,2]}});
        let e = Envelope::from_json(&v).unwrap();
        assert_eq!(Envelope::decode(e.encode()).unwrap(), e);
        assert_eq!(Envelope::from_json(&e.to_json()).unwrap(), e);
        assert_eq!(e.data_json().unwrap(), json!({"a":[1,2]}));
    }

    #[test]
    fn binary_data_travels_as_base64_and_text_as_text() {
        let mut e = Envelope::json("/s", "T", &json!(1));
        e.data_content_type = Some("application/octet-stream".into());
        e.data = Bytes::from_static(&[0xff, 0]);
        assert_eq!(Envelope::from_json(&e.to_json()).unwrap(), e);
        e.data_content_type = Some("text/plain".into());
        e.data = Bytes::from_static(b"hello");
        assert_eq!(e.to_json()["data"], json!("hello"));
        assert_eq!(Envelope::from_json(&e.to_json()).unwrap(), e);
    }

    #[test]
    fn a_missing_attribute_is_named() {
        let v = json!({"specversion":"1.0","id":"1","source":"/s"});
        assert_eq!(Envelope::from_json(&v), Err(InvalidEnvelope::Missing("type")));
        let v = json!({"specversion":"0.3","id":"1","source":"/s","type":"T"});
        assert_eq!(Envelope::from_json(&v), Err(InvalidEnvelope::SpecVersion("0.3".into())));
        let v = json!({"specversion":"1.0","id":"1","source":"/s","type":"T","time":"yesterday"});
        assert!(matches!(Envelope::from_json(&v), Err(InvalidEnvelope::Attribute { name, .. }) if name == "time"));
    }

    #[test]
    fn data_over_the_limit_is_refused() {
        let mut e = Envelope::json("/s", "T", &json!(1));
        e.data = vec![0; limits::MESSAGE_BYTES].into();
        assert!(e.check().is_ok());
        e.data = vec![0; limits::MESSAGE_BYTES + 1].into();
        assert!(matches!(e.check(), Err(InvalidEnvelope::TooLarge { .. })));
    }
}
