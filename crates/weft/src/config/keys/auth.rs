//! `auth:`, and the `auth` block of policies.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Map, Value as Json, json};
use weft_core::Name;
use weft_policy::net::Net;

use crate::config::declare::{Declared, section, words};
use crate::config::expr::Cel;
use crate::config::node::{Data, Key, Node};
use crate::config::source::At;
use crate::config::value::{Cx, Many, Value, scalar};

section! {
    /// A way to know who calls: exactly one of `jwt`, `api_key` and `basic`.
    AuthProvider {
        /// JSON Web Tokens of an issuer.
        "jwt" jwt: opt(JwtProvider),
        /// Weft's own API keys, made with `weft keys create`.
        "api_key" api_key: opt(ApiKeyProvider),
        /// User and password.
        "basic" basic: opt(BasicProvider),
    }
}

words! {
    /// Signature algorithms; `none` and HMAC are none of them.
    Algorithm {
        "RS256" Rs256, "RS384" Rs384, "RS512" Rs512, "PS256" Ps256, "PS384" Ps384, "PS512" Ps512,
        "ES256" Es256, "ES384" Es384, "EdDSA" EdDsa
    }
}

section! {
    /// What is asked of a token. Without `jwks` the issuer's own discovery document says where its keys are.
    JwtProvider {
        /// `iss` must be exactly this.
        "issuer" issuer: opt(String),
        /// The issuer's public keys.
        "jwks" jwks: opt(Jwks),
        /// Certificate authorities (PEM) for fetching keys; without it the system's.
        "ca" ca: opt(PathBuf),
        /// Allows fetching keys without TLS from other machines.
        "insecure" insecure: def(bool, "false"),
        /// `aud` must name one of these; without it, any.
        "audience" audience: opt(Many<String>),
        /// Algorithms that are accepted; without it, all that a key of the issuer can do.
        "algorithms" algorithms: opt(Many<Algorithm>),
        /// How far the issuer's clock may differ.
        "leeway" leeway: def(Duration, "30s"),
        /// Claims that must be there.
        "required" required: opt(Many<String>),
        /// The claim that names the caller.
        "principal" principal: def(String, "sub"),
        /// The claim that lists scopes, as words in a text or as a list.
        "scopes" scopes: def(String, "scope"),
        /// Takes tokens without `exp`.
        "endless" endless: def(bool, "false"),
        /// The header it comes in; of `authorization` the credential `Bearer`.
        "header" header: def(String, "authorization"),
    }
}

section! {
    /// A JSON Web Key Set: one of `url`, `file` and `keys`. A URL alone is fetched.
    Jwks short "url" {
        /// Fetched, and kept fresh.
        "url" url: opt(String),
        /// Read with the configuration.
        "file" file: opt(PathBuf),
        /// Written in place.
        "keys" keys: opt(JwkList),
    }
}

section! {
    /// Where an API key comes in: one of `header` and `query`.
    ApiKeyProvider {
        /// A header; of `authorization` the credential `Bearer`. Without both, `x-api-key`.
        "header" header: opt(String),
        /// A query parameter. Addresses end up in logs and histories: a header is better.
        "query" query: opt(String),
    }
}

section! {
    /// Users of the configuration.
    BasicProvider {
        /// User and Argon2 hash, as `weft keys password` makes it.
        "users" users: req(Users),
        /// What a browser shows when it asks.
        "realm" realm: def(String, "weft"),
    }
}

section! {
    /// Who may call. The name of a provider, or a list of them, alone asks for a caller that any of them knows.
    Auth {
        /// Providers, any of which is enough; without it nobody is asked who they are.
        "use" providers: opt(Many<Name>),
        /// Lets callers without a credential in as anonymous.
        "optional" optional: def(bool, "false"),
        /// Source networks that are let in; without it, all.
        "allow" allow: opt(Many<Net>),
        /// Source networks that are not let in, whatever `allow` says.
        "deny" deny: opt(Many<Net>),
        /// Scopes, all of which the caller must have.
        "scopes" scopes: opt(Many<String>),
        /// A condition on `principal`, `subject`, `provider`, `scopes`, `claims` and `request`.
        "require" require: opt(Cel),
        /// Judges `scopes` and `require`, counts and logs, and lets everybody through.
        "dry_run" dry_run: def(bool, "false"),
        /// Leaves the credential in the request that goes on.
        "forward" forward: def(bool, "false"),
        /// Headers for the target, with the expression of their value. What callers send under these names never goes on.
        "headers" headers: opt(HeaderValues),
    }
}

/// A provider's name, a list of them, or an [`Auth`] map.
#[derive(Clone, Debug)]
pub(in crate::config) struct AuthUse(pub Auth);

impl Value for AuthUse {
    fn read(node: &Node, cx: &mut Cx<'_>) -> Option<Self> {
        let names = match &node.data {
            Data::Scalar(s) => !s.text.is_empty(),
            Data::List(_) => true,
            Data::Map(_) => false,
        };
        if !names {
            return Auth::read(node, cx).map(Self);
        }
        let key = Key { text: "use".to_owned(), span: node.span };
        let map = Node { span: node.span, owner: node.owner, data: Data::Map(vec![(key, node.clone())]) };
        Auth::read(&map, cx).map(Self)
    }
    fn schema(declared: &mut Declared) -> Json {
        let names = Many::<Name>::schema(declared);
        json!({"anyOf": [names, declared.section::<Auth>()]})
    }
    fn kind() -> String {
        format!("name of a provider, a list of them, {}", Auth::kind())
    }
}

/// Keys as JSON Web Keys write them: texts, and lists of them.
#[derive(Clone, Debug)]
pub(in crate::config) struct JwkList(pub Json);

impl Value for JwkList {
    fn read(node: &Node, cx: &mut Cx<'_>) -> Option<Self> {
        let Data::List(_) = &node.data else {
            cx.expected(node, "a list of JSON Web Keys");
            return None;
        };
        Some(Self(texts(node)))
    }
    fn schema(_: &mut Declared) -> Json {
        json!({"type": "array", "items": {"type": "object"}})
    }
    fn kind() -> String {
        "list of JSON Web Keys".to_owned()
    }
}

fn texts(node: &Node) -> Json {
    match &node.data {
        Data::Map(m) => Json::Object(m.iter().map(|(k, v)| (k.text.clone(), texts(v))).collect::<Map<_, _>>()),
        Data::List(l) => l.iter().map(texts).collect(),
        Data::Scalar(s) => s.text.clone().into(),
    }
}

/// Names and what they are worth, each with its place.
#[derive(Clone, Debug)]
pub(in crate::config) struct Users(pub Vec<(At<String>, At<String>)>);

impl Value for Users {
    fn read(node: &Node, cx: &mut Cx<'_>) -> Option<Self> {
        let Data::Map(entries) = &node.data else {
            cx.expected(node, "a map from user to password hash");
            return None;
        };
        let one = |(k, v): &(Key, Node)| {
            let hash = scalar(v, cx, "a password hash")?.text.clone();
            Some((At::new(k.text.clone(), k.span), At::new(hash, v.span)))
        };
        Some(Self(entries.iter().filter_map(one).collect()))
    }
    fn schema(_: &mut Declared) -> Json {
        json!({"type": "object", "additionalProperties": {"type": "string"}})
    }
    fn kind() -> String {
        "map from user to Argon2 hash".to_owned()
    }
}

/// Header names and CEL expressions.
#[derive(Clone, Debug)]
pub(in crate::config) struct HeaderValues(pub Vec<(At<String>, At<Cel>)>);

impl Value for HeaderValues {
    fn read(node: &Node, cx: &mut Cx<'_>) -> Option<Self> {
        let Data::Map(entries) = &node.data else {
            cx.expected(node, "a map from header to CEL expression");
            return None;
        };
        let one = |(k, v): &(Key, Node)| Some((At::new(k.text.clone(), k.span), At::<Cel>::read(v, cx)?));
        Some(Self(entries.iter().filter_map(one).collect()))
    }
    fn schema(declared: &mut Declared) -> Json {
        json!({"type": "object", "additionalProperties": Cel::schema(declared)})
    }
    fn kind() -> String {
        "map from header to CEL expression".to_owned()
    }
}
