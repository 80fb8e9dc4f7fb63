//! The top of the file, and what concerns the process as a whole.

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;

use super::auth::AuthProvider;
use super::channel::{Queue, Subscription, Topic};
use super::gateway::Gateway;
use super::policy::Policy;
use super::saga::Saga;
use super::service::Service;
use crate::config::declare::{section, words};
use crate::config::value::{Many, Named};

section! {
    /// Everything is optional: an empty file runs the defaults.
    Configuration {
        /// Further files, seen from this one; what they declare joins what this one declares.
        "include" include: opt(Many<PathBuf>),
        /// What can be called by name.
        "services" services: opt(Named<Service>),
        /// Policies by name. `default` applies to every call.
        "policies" policies: opt(Named<Policy>),
        /// Ways to know who calls, by name; policies refer to them in `auth`.
        "auth" auth: opt(Named<AuthProvider>),
        /// Where requests come in and where they go.
        "gateway" gateway: opt(Gateway),
        /// Queues.
        "queues" queues: opt(Named<Queue>),
        /// Topics.
        "topics" topics: opt(Named<Topic>),
        /// Subscriptions to topics.
        "subscriptions" subscriptions: opt(Named<Subscription>),
        /// Sagas.
        "sagas" sagas: opt(Named<Saga>),
        /// The API and dashboard.
        "api" api: opt(Api),
        /// Where state is kept.
        "store" store: opt(Store),
        /// Where messages are kept.
        "broker" broker: def(BrokerKind, "embedded"),
        /// The program's own log.
        "logs" logs: opt(Logs),
        /// Where this process runs: instances of the same zone are preferred, as long as half of them are well.
        "zone" zone: opt(String),
        /// Threads that carry requests; without it one per core.
        "threads" threads: opt(NonZeroU32),
    }
}

section! {
    /// The API. An address alone is where it listens.
    Api short "listen" {
        /// Where it listens. Port 0 takes a free one.
        "listen" listen: def(SocketAddr, "127.0.0.1:8081"),
        /// Allows listening on an address other than loopback.
        "insecure" insecure: def(bool, "false"),
        /// Names that clients call it by, besides localhost and IP addresses; others are refused, against DNS rebinding.
        "hosts" hosts: opt(Many<String>),
    }
}

words! {
    /// Kinds of store.
    StoreKind { "embedded" Embedded }
}

words! {
    /// Kinds of broker.
    BrokerKind { "embedded" Embedded }
}

section! {
    /// The store. `embedded` alone is the default.
    Store short "kind" {
        /// `embedded`: a journal and its views in a directory of this machine.
        "kind" kind: def(StoreKind, "embedded"),
        /// The directory; without it `weft-data` in the working directory. `weft up --data` and `WEFT_DATA` are stronger.
        "dir" dir: opt(PathBuf),
    }
}

words! {
    /// How log lines look.
    LogFormat { "human" Human, "json" Json }
}

section! {
    /// The program's own log, on standard error.
    Logs short "format" {
        /// For people, or one JSON object a line.
        "format" format: def(LogFormat, "human"),
        /// `error`, `warn`, `info`, `debug`, `trace`, or per module: `info,weft_mesh=debug`.
        "level" level: def(String, "info"),
    }
}
