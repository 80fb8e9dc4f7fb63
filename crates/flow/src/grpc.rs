//! gRPC methods without generated code: descriptors from .proto files or from a service's reflection, JSON to a framed
//! request message and back.
//!
//! JSON uses the field names of the .proto file, 64-bit numbers are numbers, and fields at their default are present, so
//! that an expression reads what the .proto file says. On the way in, lowerCamelCase names and 64-bit numbers as strings
//! (the canonical protobuf JSON) are taken too.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::{BufMut as _, Bytes, BytesMut};
use prost::Message as _;
use prost_reflect::{
    DescriptorPool, DeserializeOptions, DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, MethodDescriptor,
    SerializeOptions,
};
use serde_json::Value;

use crate::expr::suggest;
use crate::template::Template;

/// The descriptors of one service's methods.
#[derive(Clone, Debug)]
pub struct Descriptors {
    pool: Arc<DescriptorPool>,
}

/// Why a gRPC call cannot be built or read.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum Mismatch {
    /// The .proto files do not compile.
    #[error("{0}")]
    Proto(String),
    /// No such method.
    #[error("the service has no gRPC method '{method}'{hint}")]
    NoMethod {
        /// As asked for.
        method: String,
        /// The nearest, or all there are.
        hint: String,
    },
    /// More than one service has a method of that name.
    #[error("'{method}' is a method of {services}: write package.Service/{method}")]
    Ambiguous {
        /// As asked for.
        method: String,
        /// Who has it.
        services: String,
    },
    /// A saga step calls unary methods.
    #[error("'{0}' is a streaming method; a step calls unary methods")]
    Streaming(String),
    /// The JSON is not such a message.
    #[error("{message}: {reason}")]
    Request {
        /// Full name of the message.
        message: String,
        /// What does not fit.
        reason: String,
    },
    /// The answer is not such a message.
    #[error("the answer is not a {message}: {reason}")]
    Response {
        /// Full name of the message.
        message: String,
        /// What does not fit.
        reason: String,
    },
}

impl Descriptors {
    /// Compiles .proto files; a file's imports are looked for beside it (the well-known types are built in).
    pub fn from_files(files: &[PathBuf]) -> Result<Self, Mismatch> {
        let mut dirs: Vec<PathBuf> = Vec::new();
        for f in files {
            let dir = f.parent().map(|p| if p.as_os_str().is_empty() { ".".into() } else { p.to_owned() });
            if let Some(d) = dir
                && !dirs.contains(&d)
            {
                dirs.push(d);
            }
        }
        let set = protox::compile(files, dirs).map_err(|e| Mismatch::Proto(format!("{e:?}").trim().to_owned()))?;
        Self::from_set(set)
    }

    /// From a set of compiled files.
    pub fn from_set(set: prost_types::FileDescriptorSet) -> Result<Self, Mismatch> {
        let pool = DescriptorPool::from_file_descriptor_set(set).map_err(|e| Mismatch::Proto(e.to_string()))?;
        Ok(Self { pool: Arc::new(pool) })
    }

    /// `Reserve`, when one service has it, or `package.Service/Reserve`.
    pub fn method(&self, name: &str) -> Result<Method, Mismatch> {
        let all: Vec<MethodDescriptor> = self.pool.services().flat_map(|s| s.methods().collect::<Vec<_>>()).collect();
        let full = |m: &MethodDescriptor| format!("{}/{}", m.parent_service().full_name(), m.name());
        let mut hits = all.iter().filter(|m| if name.contains('/') { full(m) == name } else { m.name() == name });
        let Some(m) = hits.next() else {
            let known: Vec<String> =
                all.iter().map(|m| if name.contains('/') { full(m) } else { m.name().into() }).collect();
            let known: Vec<&str> = known.iter().map(String::as_str).collect();
            let hint = match suggest(name, &known) {
                s if !s.is_empty() => s,
                _ if known.is_empty() => "; its descriptors name no service".into(),
                _ => format!("; it has {}", known.join(", ")),
            };
            return Err(Mismatch::NoMethod { method: name.to_owned(), hint });
        };
        let others: Vec<String> = hits.map(|m| m.parent_service().full_name().to_owned()).collect();
        if !others.is_empty() {
            let services = format!("{} and {}", m.parent_service().full_name(), others.join(", "));
            return Err(Mismatch::Ambiguous { method: name.to_owned(), services });
        }
        if m.is_client_streaming() || m.is_server_streaming() {
            return Err(Mismatch::Streaming(full(m)));
        }
        Ok(Method { descriptor: m.clone() })
    }
}

/// A unary method that can be called.
#[derive(Clone, Debug)]
pub struct Method {
    descriptor: MethodDescriptor,
}

impl Method {
    /// `/package.Service/Method`.
    pub fn path(&self) -> String {
        format!("/{}/{}", self.descriptor.parent_service().full_name(), self.descriptor.name())
    }

    /// The framed request message for JSON.
    pub fn encode(&self, json: &Value) -> Result<Bytes, Mismatch> {
        let input = self.descriptor.input();
        let message = input.full_name().to_owned();
        let msg = DynamicMessage::deserialize_with_options(input, json, &DeserializeOptions::new())
            .map_err(|e| Mismatch::Request { message, reason: e.to_string() })?;
        let len = msg.encoded_len();
        let mut out = BytesMut::with_capacity(5 + len);
        out.put_u8(0);
        out.put_u32(len as u32);
        msg.encode(&mut out).expect("the buffer grows");
        Ok(out.freeze())
    }

    /// JSON of a framed answer.
    pub fn decode(&self, framed: &Bytes) -> Result<Value, Mismatch> {
        let output = self.descriptor.output();
        let message = output.full_name().to_owned();
        let bad = |reason: String| Mismatch::Response { message: message.clone(), reason };
        let body = unframe(framed).map_err(|r| bad(r.to_owned()))?;
        let msg = DynamicMessage::decode(output, body).map_err(|e| bad(e.to_string()))?;
        let options = SerializeOptions::new()
            .use_proto_field_name(true)
            .stringify_64_bit_integers(false)
            .skip_default_fields(false);
        msg.serialize_with_options(serde_json::value::Serializer, &options).map_err(|e| bad(e.to_string()))
    }

    /// Mistakes in a request template that can be known before it runs: fields the message does not have.
    pub fn check(&self, with: &Template, at: &str, report: &mut dyn FnMut(&str, String)) {
        check_message(&self.descriptor.input(), with, at, report);
    }
}

/// The one message of a unary answer (gRPC over HTTP/2, Length-Prefixed-Message).
pub(crate) fn unframe(framed: &Bytes) -> Result<Bytes, &'static str> {
    let Some((head, body)) = framed.split_at_checked(5) else { return Err("it has no message") };
    let len = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
    match (head[0], body.len()) {
        (0, n) if n == len => Ok(framed.slice(5..)),
        (0, n) if n > len => Err("it has more than one message"),
        (0, _) => Err("its message is cut"),
        _ => Err("its message is compressed, which was not asked for"),
    }
}

fn check_message(d: &MessageDescriptor, t: &Template, at: &str, report: &mut dyn FnMut(&str, String)) {
    // Well-known types have a JSON form of their own; an expression's value is known only when it runs.
    if d.full_name().starts_with("google.protobuf.") {
        return;
    }
    match t {
        Template::Expr(_) | Template::Literal(Value::Null) => {}
        Template::Object(members) => {
            for (name, value) in members {
                let at = format!("{at}.{name}");
                match d.get_field_by_name(name).or_else(|| d.get_field_by_json_name(name)) {
                    Some(f) => check_field(&f, value, &at, report),
                    None => {
                        let fields: Vec<String> = d.fields().map(|f| f.name().to_owned()).collect();
                        let known: Vec<&str> = fields.iter().map(String::as_str).collect();
                        let hint = suggest(name, &known);
                        let have = known.join(", ");
                        report(&at, format!("{} has no field '{name}'{hint}; it has {have}", d.full_name()));
                    }
                }
            }
        }
        _ => report(at, format!("{} is a message: write an object", d.full_name())),
    }
}

fn check_field(f: &FieldDescriptor, t: &Template, at: &str, report: &mut dyn FnMut(&str, String)) {
    let Kind::Message(m) = f.kind() else {
        if matches!(t, Template::Object(_)) {
            report(at, format!("field '{}' is not a message: an object cannot stand here", f.name()));
        }
        return;
    };
    if f.is_map() {
        return;
    }
    match (f.is_list(), t) {
        (true, Template::Array(items)) => {
            items.iter().enumerate().for_each(|(i, t)| check_message(&m, t, &format!("{at}[{i}]"), report));
        }
        (true, Template::Object(_)) => report(at, format!("field '{}' is repeated: write a list", f.name())),
        (true, _) => {}
        (false, t) => check_message(&m, t, at, report),
    }
}

/// gRPC status names (grpc/doc/statuscodes.md).
pub fn status_name(code: u32) -> &'static str {
    const NAMES: [&str; 17] = [
        "OK",
        "CANCELLED",
        "UNKNOWN",
        "INVALID_ARGUMENT",
        "DEADLINE_EXCEEDED",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "RESOURCE_EXHAUSTED",
        "FAILED_PRECONDITION",
        "ABORTED",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
        "INTERNAL",
        "UNAVAILABLE",
        "DATA_LOSS",
        "UNAUTHENTICATED",
    ];
    NAMES.get(code as usize).copied().unwrap_or("UNKNOWN")
}

#[cfg(test)]
mod tests {
    use super::*;
    use hashbrown::HashMap;
    use serde_json::json;

    fn inventory() -> Descriptors {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("inventory.proto");
        std::fs::write(
            dir.path().join("items.proto"),
            "syntax=\"proto3\"; package shop; message Item { string sku = 1; int64 count = 2; }",
        )
        .unwrap();
        std::fs::write(
            &file,
            r#"syntax = "proto3"; package shop; import "items.proto"; import "google/protobuf/timestamp.proto";
            service Inventory {
              rpc Reserve(ReserveRequest) returns (ReserveReply);
              rpc Watch(ReserveRequest) returns (stream ReserveReply);
            }
            service Other { rpc Get(Item) returns (Item); }
            service Another { rpc Get(Item) returns (Item); }
            message ReserveRequest { string key = 1; repeated Item items = 2; google.protobuf.Timestamp at = 3; }
            message ReserveReply { int64 left_count = 1; bool ok = 2; optional string note = 3; }"#,
        )
        .unwrap();
        Descriptors::from_files(&[file]).unwrap()
    }

    #[test]
    fn json_becomes_the_message_and_comes_back_under_the_names_of_the_proto_file() {
        let m = inventory().method("Reserve").unwrap();
        assert_eq!(m.path(), "/shop.Inventory/Reserve");
        let framed = m.encode(&json!({"key": "k", "items": [{"sku": "a", "count": 9007199254740993i64}]})).unwrap();
        assert_eq!(framed[0], 0);
        assert_eq!(u32::from_be_bytes(framed[1..5].try_into().unwrap()) as usize, framed.len() - 5);
        // left_count = 300, by hand: tag 8, varint.
        let reply = Bytes::from_static(&[0, 0, 0, 0, 3, 0x08, 0xac, 0x02]);
        assert_eq!(m.decode(&reply).unwrap(), json!({"left_count": 300, "ok": false}));
    }

    #[test]
    fn what_does_not_match_is_named() {
        let d = inventory();
        let m = d.method("Reserve").unwrap();
        let e = m.encode(&json!({"kee": 1})).unwrap_err().to_string();
        assert!(e.contains("shop.ReserveRequest") && e.contains("kee"), "{e}");
        assert!(d.method("Reserv").unwrap_err().to_string().contains("did you mean 'Reserve'?"));
        assert!(matches!(d.method("Get"), Err(Mismatch::Ambiguous { .. })));
        assert_eq!(d.method("shop.Other/Get").unwrap().path(), "/shop.Other/Get");
        assert!(matches!(d.method("Watch"), Err(Mismatch::Streaming(_))));
        for bad in [&b""[..], &[0, 0, 0, 0, 9, 1], &[1, 0, 0, 0, 0], &[0, 0, 0, 0, 0, 1]] {
            assert!(m.decode(&Bytes::copy_from_slice(bad)).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_template_with_unknown_fields_is_found_before_it_runs() {
        let m = inventory().method("Reserve").unwrap();
        let with = json!({"kee": "1", "items": [{"sku": "'a'", "cuont": 1}], "at": "'2026-01-01T00:00:00Z'"});
        let t = Template::compile(&with, &[], "with", &mut |_, m| panic!("{m}"));
        let mut seen = Vec::new();
        m.check(&t, "with", &mut |at, m| seen.push(format!("{at}: {m}")));
        assert_eq!(seen.len(), 2, "{seen:?}");
        assert!(seen.iter().any(|s| s.starts_with("with.kee:") && s.contains("'key'")), "{seen:?}");
        assert!(seen.iter().any(|s| s.starts_with("with.items[0].cuont:") && s.contains("'count'")), "{seen:?}");
        let v = t.eval(&HashMap::<&str, Value>::new());
        assert!(v.is_ok());
    }

    #[test]
    fn a_proto_file_with_a_mistake_says_where() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("bad.proto");
        std::fs::write(&file, "syntax = \"proto3\";\nmessage A { strin g = 1; }").unwrap();
        let e = Descriptors::from_files(&[file]).unwrap_err().to_string();
        assert!(e.contains("bad.proto") && e.contains("strin"), "{e}");
    }
}
