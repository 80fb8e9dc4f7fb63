//! Everything that can go wrong between Weft and a service, told apart by what can have happened on the other side.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use weft_core::{Class, Classify, Name, Origin, limits};
use weft_policy::outcome::{self, Judged, Outcome, Transport};

/// Why a call, a registration or a reload failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// Nobody to send to: the service is unknown, or none of its instances is registered or resolved.
    #[error("{}", no_instances(.service, *.known))]
    NoInstances {
        /// The service that was asked for.
        service: Arc<str>,
        /// Whether configuration or a registration knows it.
        known: bool,
    },
    /// No connection: refused, unreachable, TLS failed, or not within [`limits::CONNECT_TIMEOUT`].
    #[error("connect to {instance} of service '{service}': {reason}")]
    Connect {
        /// The service.
        service: Name,
        /// The instance's address.
        instance: Arc<str>,
        /// What the operating system or TLS said.
        reason: Arc<str>,
    },
    /// The connection was closed, or the other side said it took nothing, before the request went out.
    #[error("{instance} of service '{service}' did not take the request: {reason}")]
    Unsent {
        /// The service.
        service: Name,
        /// The instance's address.
        instance: Arc<str>,
        /// What broke.
        reason: Arc<str>,
    },
    /// The connection ended after the request, or some of it, went out and before an answer came.
    #[error("{instance} of service '{service}' closed the connection without an answer: {reason}")]
    ResetBeforeBytes {
        /// The service.
        service: Name,
        /// The instance's address.
        instance: Arc<str>,
        /// What broke.
        reason: Arc<str>,
    },
    /// The connection ended in the middle of the answer, or the answer is not the protocol it should be.
    #[error("{instance} of service '{service}' broke off its answer: {reason}")]
    ResetAfterBytes {
        /// The service.
        service: Name,
        /// The instance's address.
        instance: Arc<str>,
        /// What broke.
        reason: Arc<str>,
    },
    /// The caller's own body failed while it was being sent.
    #[error("the request's body broke off: {reason}")]
    RequestBody {
        /// What the body said.
        reason: Arc<str>,
    },
    /// A streaming body was sent by an earlier attempt and cannot be sent again.
    #[error("the request's body was already sent and cannot be sent again")]
    BodySpent,
    /// The request cannot be put into the instance's protocol.
    #[error("the request cannot be sent: {reason}")]
    InvalidRequest {
        /// What is wrong with it.
        reason: Arc<str>,
    },
    /// A collected answer is over [`limits::COLLECTED_BODY_BYTES`].
    #[error("the answer of service '{service}' is over the limit of {limit} bytes for a collected answer")]
    AnswerTooLarge {
        /// The service.
        service: Name,
        /// The limit.
        limit: usize,
    },
    /// The address is one of Weft's own listeners: calls to it would go round in circles.
    #[error("service '{service}': the address {address} is one of Weft's own listeners")]
    OwnListener {
        /// The service.
        service: Name,
        /// The address.
        address: SocketAddr,
    },
    /// A certificate, key or CA file cannot be used.
    #[error("service '{service}': {}: {reason}", .path.display())]
    TlsFile {
        /// The service.
        service: Name,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: Arc<str>,
    },
    /// TLS cannot be set up from otherwise good files.
    #[error("service '{service}': TLS: {reason}")]
    Tls {
        /// The service.
        service: Name,
        /// What is wrong.
        reason: Arc<str>,
    },
    /// There is no such registration (any more): register again.
    #[error("service '{service}' has no registered instance '{id}': register it again")]
    NotRegistered {
        /// The service.
        service: Name,
        /// The instance.
        id: Name,
    },
    /// The service has [`limits::INSTANCES`] instances already.
    #[error("service '{service}' has {limit} registered instances, the limit", limit = limits::INSTANCES)]
    TooManyInstances {
        /// The service.
        service: Name,
    },
    /// There are [`limits::SERVICES`] services already.
    #[error("{limit} services are registered, the limit", limit = limits::SERVICES)]
    TooManyServices,
    /// A member of a registration is out of bounds.
    #[error("{member}: {reason}")]
    InvalidRegistration {
        /// Which member.
        member: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The registration could not be stored, or read back.
    #[error(transparent)]
    Store(#[from] weft_store::Error),
}

fn no_instances(service: &str, known: bool) -> String {
    match known {
        true => format!("service '{service}' has no instance that is registered, configured or resolved"),
        false => format!("service '{service}' is not configured and no instance of it is registered"),
    }
}

impl Error {
    /// The stable `code` of the problem, for clients.
    pub fn code(&self) -> &'static str {
        match self {
            Error::NoInstances { .. } => "no-instance",
            Error::Connect { .. } => "upstream-unreachable",
            Error::Unsent { .. } | Error::ResetBeforeBytes { .. } | Error::ResetAfterBytes { .. } => "upstream-broken",
            Error::AnswerTooLarge { .. } => "upstream-broken",
            Error::RequestBody { .. } | Error::InvalidRequest { .. } => "bad-request",
            Error::OwnListener { .. } | Error::InvalidRegistration { .. } => "bad-request",
            Error::NotRegistered { .. } => "not-found",
            Error::TooManyInstances { .. } | Error::TooManyServices => "overloaded",
            Error::BodySpent | Error::TlsFile { .. } | Error::Tls { .. } => "internal",
            Error::Store(_) => "store-unavailable",
        }
    }
}

impl Judged for Error {
    fn outcome(&self) -> Outcome {
        match self {
            // No instance answered badly, so no breaker failure; a retry may meet one that has registered meanwhile.
            Error::NoInstances { .. } => {
                Outcome { unsent: true, retry_after: Some(Duration::ZERO), ..Outcome::failed(Class::Retryable, false) }
            }
            Error::Connect { .. } | Error::Unsent { .. } => outcome::classify_transport(Transport::NeverSent),
            Error::ResetBeforeBytes { .. } => outcome::classify_transport(Transport::ResetBeforeBytes),
            Error::ResetAfterBytes { .. } => outcome::classify_transport(Transport::ResetAfterBytes),
            Error::Store(e) => Outcome::failed(e.class(), false),
            Error::TooManyInstances { .. } | Error::TooManyServices => Outcome::failed(Class::Overloaded, false),
            Error::BodySpent | Error::TlsFile { .. } | Error::Tls { .. } => Outcome::failed(Class::Fault, false),
            Error::RequestBody { .. }
            | Error::InvalidRequest { .. }
            | Error::AnswerTooLarge { .. }
            | Error::OwnListener { .. }
            | Error::NotRegistered { .. }
            | Error::InvalidRegistration { .. } => Outcome::failed(Class::Rejected, false),
        }
    }

    fn blames_caller(&self) -> bool {
        matches!(self, Error::RequestBody { .. })
    }
}

impl Classify for Error {
    fn class(&self) -> Class {
        self.outcome().failure.unwrap_or(Class::Fault)
    }

    fn origin(&self) -> Origin {
        match self {
            Error::NoInstances { .. }
            | Error::Connect { .. }
            | Error::Unsent { .. }
            | Error::ResetBeforeBytes { .. }
            | Error::ResetAfterBytes { .. }
            | Error::AnswerTooLarge { .. } => Origin::Upstream,
            Error::RequestBody { .. }
            | Error::InvalidRequest { .. }
            | Error::OwnListener { .. }
            | Error::NotRegistered { .. }
            | Error::TooManyInstances { .. }
            | Error::TooManyServices
            | Error::InvalidRegistration { .. } => Origin::Downstream,
            Error::BodySpent | Error::TlsFile { .. } | Error::Tls { .. } => Origin::Internal,
            Error::Store(e) => e.origin(),
        }
    }
}
