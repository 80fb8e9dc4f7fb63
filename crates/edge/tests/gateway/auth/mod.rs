//! Who calls, asked at a running gateway.

mod authorize;
mod issuer;
mod keys;
mod passwords;
mod tokens;

use bytes::Bytes;
use http::{HeaderMap, Request};
use http_body_util::{BodyExt as _, Full};
use weft_edge::auth::spec::ProviderSpec;
use weft_mesh::Protocol;
use weft_policy::spec::Auth;

use crate::support::*;

/// A gateway whose one route asks who calls, before a service that shows what it got.
async fn guarded(providers: Vec<ProviderSpec>, change: impl FnOnce(&mut Auth)) -> World {
    let mut auth = Auth { providers: providers.iter().map(|p| p.name.to_string()).collect(), ..Auth::default() };
    change(&mut auth);
    let mut r = route("all", "/**", "s");
    r.policy.auth = Some(auth);
    let spec = weft_edge::spec::GatewaySpec { auth: providers, ..gateway(vec![r]) };
    World::start(spec, &[spec_of("s", Protocol::Http, &[echo().await])]).await
}

struct Got {
    status: u16,
    headers: HeaderMap,
    text: String,
}

impl Got {
    fn code(&self) -> String {
        json(self.text.as_bytes())["code"].as_str().unwrap_or_default().to_owned()
    }
    fn challenge(&self) -> &str {
        self.headers.get("www-authenticate").map_or("", |v| v.to_str().unwrap())
    }
}

/// What the gateway answers to a request with these fields.
async fn ask(w: &World, path: &str, fields: &[(&str, &str)]) -> Got {
    let r = fields.iter().fold(Request::get(path).header("host", "h"), |r, (n, v)| r.header(*n, *v));
    let (head, body) = w.send(r.body(Full::new(Bytes::new())).unwrap()).await.into_parts();
    let text = String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap();
    Got { status: head.status.as_u16(), headers: head.headers, text }
}

async fn bearer(w: &World, token: &str) -> Got {
    ask(w, "/orders", &[("authorization", &format!("Bearer {token}"))]).await
}

fn decisions(w: &World, provider: &str, result: &str) -> u64 {
    let line = format!("weft_auth_decisions_total{{provider=\"{provider}\",result=\"{result}\"}} ");
    let text = w.telemetry.metrics().render_prometheus();
    text.lines().find_map(|l| l.strip_prefix(&line)).map_or(0, |n| n.parse().unwrap())
}
