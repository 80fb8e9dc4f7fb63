//! Who is calling, and whether they may: credentials out of requests, providers that vouch, keys of issuers.
//!
//! What it is not: whether a token, a key or a password is good is decided in `policy::auth`; here is where they are
//! found in a request, what is fetched to check them, and how the answer reads (RFC 6750, RFC 7617, RFC 9110 11).

pub mod api_keys;
mod counts;
mod expression;
mod fetch;
mod guard;
mod provider;
mod source;
pub mod spec;
mod tries;

pub use api_keys::ApiKeys;
pub use expression::NAMES;

pub(crate) use expression::Caller;
pub(crate) use guard::Guard;
pub(crate) use provider::Provider;

/// What providers are made with.
#[derive(Clone, Debug)]
pub(crate) struct Means {
    pub(crate) telemetry: weft_telemetry::Telemetry,
    pub(crate) api_keys: ApiKeys,
    /// Where key sets are fetched: never on a thread that carries requests.
    pub(crate) runtime: tokio::runtime::Handle,
}
