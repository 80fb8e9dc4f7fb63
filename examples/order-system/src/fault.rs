//! What can go wrong in a service, and how it is told over HTTP and gRPC.

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::json;

/// Why a request was not done.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The request makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// There is no such thing.
    #[error("there is no {0}")]
    NotFound(String),
    /// The request is understood and the answer is no; repeating it changes nothing.
    #[error("{detail}")]
    Refused {
        /// Stable, for programs.
        code: &'static str,
        /// For people.
        detail: String,
    },
    /// The credentials do not hold.
    #[error("{0}")]
    Unauthorized(&'static str),
    /// The fault that `POST /chaos` asked for.
    #[error("fault on command: {0}")]
    Commanded(String),
    /// The service's own database.
    #[error("database: {0}")]
    Database(#[from] rusqlite::Error),
    /// Weft did not take what this service had to tell it.
    #[error(transparent)]
    Weft(#[from] crate::weft::Failure),
}

impl Fault {
    /// A refusal.
    pub fn refused(code: &'static str, detail: impl Into<String>) -> Self {
        Self::Refused { code, detail: detail.into() }
    }

    fn status(&self) -> (StatusCode, &'static str) {
        match self {
            Self::Invalid(_) => (StatusCode::BAD_REQUEST, "invalid"),
            Self::NotFound(_) => (StatusCode::NOT_FOUND, "not-found"),
            Self::Refused { code, .. } => (StatusCode::CONFLICT, code),
            Self::Unauthorized(_) => (StatusCode::UNAUTHORIZED, "unauthorized"),
            Self::Commanded(_) | Self::Database(_) => (StatusCode::INTERNAL_SERVER_ERROR, "internal"),
            Self::Weft(_) => (StatusCode::SERVICE_UNAVAILABLE, "weft-away"),
        }
    }
}

/// RFC 9457.
impl IntoResponse for Fault {
    fn into_response(self) -> Response {
        let (status, code) = self.status();
        if status.is_server_error() {
            tracing::warn!(error = %self, "request failed");
        }
        let title = status.canonical_reason().unwrap_or("Error");
        let body = json!({"type": "about:blank", "title": title, "status": status.as_u16(), "code": code, "detail": self.to_string()});
        (status, [("content-type", "application/problem+json")], body.to_string()).into_response()
    }
}

impl From<Fault> for tonic::Status {
    fn from(fault: Fault) -> Self {
        let text = fault.to_string();
        match fault {
            Fault::Invalid(_) => Self::invalid_argument(text),
            Fault::NotFound(_) => Self::not_found(text),
            Fault::Refused { .. } => Self::failed_precondition(text),
            Fault::Unauthorized(_) => Self::unauthenticated(text),
            Fault::Commanded(_) | Fault::Database(_) => Self::internal(text),
            Fault::Weft(_) => Self::unavailable(text),
        }
    }
}
