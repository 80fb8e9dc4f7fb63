//! CloudEvents over HTTP (HTTP protocol binding 1.0.2): binary, structured and batched content mode, and plain data.
//!
//! Shared by the API's publish calls and by routes that publish. Errors name the attribute, and in a batch the index.

use bytes::Bytes;
use http::{HeaderMap, header};
use percent_encoding::percent_decode_str;
use serde_json::Value;
use weft_core::envelope::{Envelope, InvalidEnvelope};
use weft_core::{Clock as _, Id, SystemClock, limits};

use crate::api::problem::{Problem, code, parse_json};

/// `type` of plain data published over HTTP.
pub const PLAIN_TYPE: &str = "weft.message";

/// Reads the events of a publish request, at least one. `source` is what plain data gets as its source: the path it was
/// posted to.
pub fn parse(headers: &HeaderMap, body: Bytes, source: &str) -> Result<Vec<Envelope>, Problem> {
    let content_type = match headers.get(header::CONTENT_TYPE) {
        None => None,
        Some(v) => Some(v.to_str().map_err(|_| {
            Problem::new(code::INVALID_HEADER, "Content-Type has characters that are not visible ASCII")
        })?),
    };
    let essence = content_type.unwrap_or("").split(';').next().unwrap_or("").trim().to_ascii_lowercase();
    match essence.as_str() {
        "application/cloudevents+json" => Ok(vec![structured(&parse_json::<Value>(&body)?)?]),
        "application/cloudevents-batch+json" => batch(&body),
        e if e.starts_with("application/cloudevents") => Err(Problem::new(
            code::UNSUPPORTED_MEDIA_TYPE,
            format!("'{e}' is not supported: use application/cloudevents+json or application/cloudevents-batch+json"),
        )),
        _ if headers.keys().any(|k| k.as_str().starts_with("ce-")) => Ok(vec![binary(headers, content_type, body)?]),
        _ => Ok(vec![plain(content_type, body, source)?]),
    }
}

fn structured(v: &Value) -> Result<Envelope, Problem> {
    Ok(Envelope::from_json(v)?)
}

fn batch(body: &[u8]) -> Result<Vec<Envelope>, Problem> {
    let Value::Array(items) = parse_json::<Value>(body)? else {
        return Err(Problem::new(code::INVALID_EVENT, "a CloudEvents batch is a JSON array of events"));
    };
    if items.is_empty() {
        return Err(Problem::new(code::INVALID_EVENT, "the batch holds no event"));
    }
    if items.len() > limits::COMMIT_OPS {
        let detail = format!("the batch holds {} events, the limit is {}", items.len(), limits::COMMIT_OPS);
        return Err(Problem::new(code::TOO_LARGE, detail).with("limit", limits::COMMIT_OPS));
    }
    items
        .iter()
        .enumerate()
        .map(|(i, v)| {
            structured(v).map_err(|p| Problem::new(p.code(), format!("event {i}: {}", p.detail())).with("index", i))
        })
        .collect()
}

/// Section 3.1: attributes are `ce-` headers, `datacontenttype` is Content-Type, the body is the data.
fn binary(headers: &HeaderMap, content_type: Option<&str>, body: Bytes) -> Result<Envelope, Problem> {
    let attribute = |name: &str| InvalidEnvelope::Attribute {
        name: name.to_owned(),
        reason: "must be printable ASCII with other characters percent-encoded as UTF-8",
    };
    let mut e = Envelope {
        id: String::new(),
        source: String::new(),
        ty: String::new(),
        subject: None,
        time: None,
        data_content_type: content_type.map(str::to_owned),
        data_schema: None,
        extensions: Default::default(),
        data: body,
    };
    let mut version = None;
    for (k, v) in headers {
        let Some(name) = k.as_str().strip_prefix("ce-") else { continue };
        let text = v.to_str().map_err(|_| attribute(name))?;
        // 3.1.3.2: values are percent-decoded once; a value that is not UTF-8 after that is an error.
        let text = percent_decode_str(text).decode_utf8().map_err(|_| attribute(name))?.into_owned();
        match name {
            "specversion" => version = Some(text),
            "id" => e.id = text,
            "source" => e.source = text,
            "type" => e.ty = text,
            "subject" => e.subject = Some(text),
            "time" => e.time = Some(text),
            "dataschema" => e.data_schema = Some(text),
            "datacontenttype" => {
                let reason = "is the Content-Type header in binary mode";
                return Err(InvalidEnvelope::Attribute { name: name.to_owned(), reason }.into());
            }
            _ => {
                e.extensions.insert(name.to_owned(), text);
            }
        }
    }
    match version.as_deref() {
        Some("1.0") => {}
        Some(other) => return Err(InvalidEnvelope::SpecVersion(other.to_owned()).into()),
        None => return Err(InvalidEnvelope::Missing("specversion").into()),
    }
    e.check()?;
    Ok(e)
}

fn plain(content_type: Option<&str>, body: Bytes, source: &str) -> Result<Envelope, Problem> {
    let e = Envelope {
        id: Id::new().to_string(),
        source: source.to_owned(),
        ty: PLAIN_TYPE.to_owned(),
        subject: None,
        time: Some(SystemClock.now().to_string()),
        data_content_type: Some(content_type.unwrap_or("application/octet-stream").to_owned()),
        data_schema: None,
        extensions: Default::default(),
        data: body,
    };
    e.check()?;
    Ok(e)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
        fields.iter().map(|(k, v)| (http::HeaderName::from_static(k), v.parse().unwrap())).collect()
    }

    #[test]
    fn binary_mode_reads_attributes_from_headers() {
        let h = headers(&[
            ("ce-specversion", "1.0"),
            ("ce-id", "1"),
            ("ce-source", "/shop"),
            ("ce-type", "OrderCreated"),
            ("ce-subject", "Gr%C3%BC%C3%9Fe"),
            ("ce-tenant", "a"),
            ("content-type", "text/plain"),
        ]);
        let e = parse(&h, Bytes::from_static(b"hi"), "/x").unwrap().remove(0);
        assert_eq!((e.ty.as_str(), e.subject.as_deref()), ("OrderCreated", Some("Grüße")));
        assert_eq!((e.extensions["tenant"].as_str(), e.data_content_type.as_deref()), ("a", Some("text/plain")));
        assert_eq!(e.data, "hi");
    }

    #[test]
    fn a_missing_attribute_in_binary_mode_is_named() {
        let h = headers(&[("ce-specversion", "1.0"), ("ce-id", "1"), ("ce-type", "T")]);
        let p = parse(&h, Bytes::new(), "/x").unwrap_err();
        assert_eq!(p.code(), code::INVALID_EVENT);
        assert!(p.detail().contains("'source'"), "{}", p.detail());
        let p = parse(&headers(&[("ce-id", "1")]), Bytes::new(), "/x").unwrap_err();
        assert!(p.detail().contains("'specversion'"), "{}", p.detail());
    }

    #[test]
    fn a_batch_names_the_index_of_a_bad_event() {
        let h = headers(&[("content-type", "application/cloudevents-batch+json; charset=utf-8")]);
        let good = json!({"specversion":"1.0","id":"1","source":"/s","type":"T"});
        let body = |v: Value| Bytes::from(v.to_string());
        assert_eq!(parse(&h, body(json!([good, good])), "/x").unwrap().len(), 2);
        let p = parse(&h, body(json!([good, {"specversion":"1.0","id":"1","source":"/s"}])), "/x").unwrap_err();
        assert_eq!(p.to_json()["index"], 1);
        assert!(parse(&h, body(json!([])), "/x").is_err());
        let many = Value::Array(vec![good.clone(); limits::COMMIT_OPS + 1]);
        assert_eq!(parse(&h, body(many), "/x").unwrap_err().code(), code::TOO_LARGE);
    }

    #[test]
    fn plain_data_gets_its_attributes_filled_in() {
        let e = parse(
            &headers(&[("content-type", "application/json")]),
            Bytes::from_static(b"{}"),
            "/v1/queues/q/messages",
        );
        let e = e.unwrap().remove(0);
        assert_eq!((e.ty.as_str(), e.source.as_str()), (PLAIN_TYPE, "/v1/queues/q/messages"));
        assert!(e.is_json() && e.check().is_ok());
        let bare = parse(&HeaderMap::new(), Bytes::from_static(b"x"), "/x").unwrap().remove(0);
        assert_eq!(bare.data_content_type.as_deref(), Some("application/octet-stream"));
    }

    #[test]
    fn an_unknown_cloudevents_format_is_refused_and_not_taken_as_data() {
        let h = headers(&[("content-type", "application/cloudevents+avro")]);
        assert_eq!(parse(&h, Bytes::new(), "/x").unwrap_err().code(), code::UNSUPPORTED_MEDIA_TYPE);
    }
}
