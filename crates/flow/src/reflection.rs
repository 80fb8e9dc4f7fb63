//! Descriptors of services that declare no .proto files, asked of the service itself: gRPC server reflection v1, or
//! v1alpha where v1 is not known (the messages are the same).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use hashbrown::HashMap;
use http::Request;
use http::header::CONTENT_TYPE;
use parking_lot::RwLock;
use prost::Message as _;
use prost_reflect::DescriptorPool;
use prost_types::{FileDescriptorProto, FileDescriptorSet};
use serde_json::Value;
use weft_core::{Class, Context, Name, limits};
use weft_mesh::Mesh;
use weft_policy::outcome::Judged as _;
use weft_policy::{Instance as Policy, Policy as PolicySpec};

use crate::definition::Catalog;
use crate::grpc::{Descriptors, Method, Mismatch};
use crate::machine::Outcome;

const PATHS: [&str; 2] = [
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
];
/// Rounds of asking for files that others import.
const ROUNDS: usize = 16;

/// What is known of services: configuration, and what reflection told.
pub(crate) struct Services {
    catalog: RwLock<Arc<Catalog>>,
    reflected: RwLock<HashMap<Name, Descriptors>>,
    policy: Policy,
}

impl Services {
    pub fn new() -> Self {
        let mut policy = PolicySpec::builtin();
        policy.deadline = Some(Duration::from_secs(10));
        Self { catalog: RwLock::default(), reflected: RwLock::default(), policy: Policy::new(&policy) }
    }

    /// Puts a catalog in force; what reflection told is asked anew.
    pub fn replace(&self, catalog: Catalog) {
        *self.catalog.write() = Arc::new(catalog);
        self.reflected.write().clear();
    }

    /// The method and its framed request. An error is an outcome: nothing of the step was sent.
    pub async fn encode(
        &self,
        mesh: &Mesh,
        ctx: &Context,
        service: &Name,
        method: &str,
        message: &Value,
    ) -> Result<(Method, Bytes), Outcome> {
        let fit = |d: &Descriptors| {
            let m = d.method(method)?;
            let framed = m.encode(message)?;
            Ok::<_, Mismatch>((m, framed))
        };
        let refused = |e: Mismatch| Outcome::Refused(e.to_string());
        if let Some(d) = self.catalog.read().descriptors(service) {
            return fit(d).map_err(refused);
        }
        let cached = self.reflected.read().get(service).cloned();
        if let Some(found) = cached.and_then(|d| fit(&d).ok()) {
            return Ok(found);
        }
        // Not known, or no longer what it was: the service may have been replaced by a newer one.
        let fresh = ask(mesh, ctx, service, &self.policy).await?;
        self.reflected.write().insert(service.clone(), fresh.clone());
        fit(&fresh).map_err(refused)
    }
}

async fn ask(mesh: &Mesh, ctx: &Context, service: &Name, policy: &Policy) -> Result<Descriptors, Outcome> {
    let mut path = PATHS[0];
    let listed = match exchange(mesh, ctx, service, policy, path, &[Ask::ListServices("*".into())]).await {
        Err(Failed::Unimplemented) => {
            path = PATHS[1];
            exchange(mesh, ctx, service, policy, path, &[Ask::ListServices("*".into())]).await
        }
        other => other,
    };
    let listed = listed.map_err(|f| f.outcome(service))?;
    let names = listed.iter().filter_map(|r| match &r.message {
        Some(Told::Services(l)) => Some(l.service.iter().map(|s| s.name.clone())),
        _ => None,
    });
    let asks: Vec<Ask> =
        names.flatten().filter(|n| !n.starts_with("grpc.reflection.")).map(Ask::FileContainingSymbol).collect();
    let mut files: HashMap<String, FileDescriptorProto> = HashMap::new();
    let mut asks = asks;
    for _ in 0..ROUNDS {
        if asks.is_empty() {
            let file = files.into_values().collect();
            return Descriptors::from_set(FileDescriptorSet { file }).map_err(|e| Outcome::Refused(e.to_string()));
        }
        let told = exchange(mesh, ctx, service, policy, path, &asks).await.map_err(|f| f.outcome(service))?;
        for r in told {
            match r.message {
                Some(Told::Files(set)) => {
                    for bytes in set.file_descriptor_proto {
                        let file = FileDescriptorProto::decode(bytes).map_err(|e| {
                            Outcome::Refused(format!("reflection of service '{service}' gave a broken descriptor: {e}"))
                        })?;
                        files.insert(file.name().to_owned(), file);
                    }
                }
                Some(Told::Error(e)) => {
                    return Err(Outcome::Refused(format!("reflection of service '{service}': {}", e.error_message)));
                }
                _ => {}
            }
        }
        if files.len() > limits::REFLECTED_FILES {
            let limit = limits::REFLECTED_FILES;
            return Err(Outcome::Refused(format!("reflection of service '{service}' has over {limit} files")));
        }
        let missing = missing_imports(&mut files);
        asks = missing.into_iter().map(Ask::FileByFilename).collect();
    }
    Err(Outcome::Refused(format!("reflection of service '{service}': imports go deeper than {ROUNDS}")))
}

/// Imports that must still be asked for. Servers often leave out the well-known types, which are built in here.
fn missing_imports(files: &mut HashMap<String, FileDescriptorProto>) -> Vec<String> {
    let known = DescriptorPool::global();
    loop {
        let imports = files.values().flat_map(|f| f.dependency.iter());
        let missing: BTreeSet<String> = imports.filter(|d| !files.contains_key(*d)).cloned().collect();
        let (built_in, missing): (Vec<_>, Vec<_>) =
            missing.into_iter().partition(|name| known.get_file_by_name(name).is_some());
        if built_in.is_empty() {
            return missing;
        }
        for name in built_in {
            let file = known.get_file_by_name(&name).expect("partitioned by it").file_descriptor_proto().clone();
            files.insert(name, file);
        }
    }
}

enum Failed {
    Unimplemented,
    /// May go better later.
    Later(String),
    Never(String),
}

impl Failed {
    fn outcome(self, service: &Name) -> Outcome {
        match self {
            Failed::Unimplemented => Outcome::Refused(format!(
                "service '{service}' declares no .proto files and answers no server reflection: add proto: to it"
            )),
            Failed::Later(r) => Outcome::NotDone(format!("reflection of service '{service}': {r}")),
            Failed::Never(r) => Outcome::Refused(format!("reflection of service '{service}': {r}")),
        }
    }
}

/// The method streams both ways; here the questions are sent at once and the answers read to the end.
async fn exchange(
    mesh: &Mesh,
    ctx: &Context,
    service: &Name,
    policy: &Policy,
    path: &'static str,
    asks: &[Ask],
) -> Result<Vec<Response>, Failed> {
    let mut body = BytesMut::new();
    for a in asks {
        let message = Question { host: String::new(), ask: Some(a.clone()) };
        body.put_u8(0);
        body.put_u32(message.encoded_len() as u32);
        message.encode(&mut body).expect("the buffer grows");
    }
    let request = Request::post(path)
        .header(CONTENT_TYPE, "application/grpc")
        // Asking twice is harmless, and a key says so to the retry loop.
        .header("idempotency-key", "reflection")
        .body(body.freeze())
        .expect("a fixed request");
    let answer = mesh.call(ctx, service, request, policy).await.map_err(|e| {
        let never = e.outcome().failure == Some(Class::Rejected);
        if never { Failed::Never(e.to_string()) } else { Failed::Later(e.to_string()) }
    })?;
    match (answer.grpc_status(), answer.outcome.failure) {
        (Some((0, _)), _) => {}
        (Some((12, _)), _) => return Err(Failed::Unimplemented),
        (_, Some(Class::Rejected)) | (None, None) => {
            return Err(Failed::Never(format!("it answered HTTP {}", answer.status.as_u16())));
        }
        (status, _) => return Err(Failed::Later(format!("it answered {status:?}"))),
    }
    let mut rest = answer.body;
    let mut out = Vec::new();
    while rest.len() >= 5 {
        let compressed = rest.get_u8() != 0;
        let len = rest.get_u32() as usize;
        if compressed || len > rest.len() {
            return Err(Failed::Never("its answer is cut or compressed".into()));
        }
        let message = Response::decode(rest.split_to(len)).map_err(|e| Failed::Never(e.to_string()))?;
        out.push(message);
    }
    Ok(out)
}

// grpc/reflection/v1/reflection.proto, the parts that are used; field numbers are those of the standard.

#[derive(Clone, PartialEq, prost::Message)]
struct Question {
    #[prost(string, tag = "1")]
    host: String,
    #[prost(oneof = "Ask", tags = "3, 4, 7")]
    ask: Option<Ask>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Ask {
    #[prost(string, tag = "3")]
    FileByFilename(String),
    #[prost(string, tag = "4")]
    FileContainingSymbol(String),
    #[prost(string, tag = "7")]
    ListServices(String),
}

#[derive(Clone, PartialEq, prost::Message)]
struct Response {
    #[prost(oneof = "Told", tags = "4, 6, 7")]
    message: Option<Told>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Told {
    #[prost(message, tag = "4")]
    Files(Files),
    #[prost(message, tag = "6")]
    Services(Listed),
    #[prost(message, tag = "7")]
    Error(Problem),
}

#[derive(Clone, PartialEq, prost::Message)]
struct Files {
    #[prost(bytes = "bytes", repeated, tag = "1")]
    file_descriptor_proto: Vec<Bytes>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Listed {
    #[prost(message, repeated, tag = "1")]
    service: Vec<ServiceName>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ServiceName {
    #[prost(string, tag = "1")]
    name: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Problem {
    #[prost(int32, tag = "1")]
    error_code: i32,
    #[prost(string, tag = "2")]
    error_message: String,
}
